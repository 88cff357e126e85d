//! Datagrams of a netlink socket as a stream of events.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use futures::stream::{self, BoxStream};
use tokio::io::unix::AsyncFd;

/// A non-blocking socket and what its datagrams say. It owns its descriptor, which stays the same as long as it lives.
pub(crate) trait Source: AsRawFd + Send + 'static {
    /// What is told.
    type Event: Send + 'static;
    /// Tells that datagrams were lost.
    const LOST: Self::Event;
    /// Datagrams read before the events so far are handed out.
    const AT_ONCE: usize;

    /// The events of the next datagram. `WouldBlock`: none waits. `ENOBUFS`: some were lost.
    fn receive(&mut self, events: &mut VecDeque<Self::Event>) -> io::Result<()>;

    /// Starts again after a loss; false: it cannot.
    fn recover(&mut self) -> bool {
        true
    }
}

/// The events; must be called inside a tokio runtime. The stream ends where the socket does, after a last [`Source::LOST`].
pub(crate) fn events<S: Source>(source: S) -> io::Result<BoxStream<'static, S::Event>> {
    // SAFETY: the descriptor is owned by the value that is moved in, and stays the same until that is dropped.
    let socket = unsafe { AsyncFd::register(source) }.map_err(io::Error::from)?;
    let pump = Pump {
        socket,
        queue: VecDeque::new(),
        ended: false,
    };
    Ok(Box::pin(stream::unfold(pump, Pump::next)))
}

struct Pump<S: Source> {
    socket: AsyncFd<S>,
    queue: VecDeque<S::Event>,
    ended: bool,
}

impl<S: Source> Pump<S> {
    async fn next(mut self) -> Option<(S::Event, Self)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some((event, self));
            }
            if self.ended {
                return None;
            }
            self.read().await;
        }
    }

    /// Waits for datagrams and reads a handful.
    async fn read(&mut self) {
        let Ok(mut ready) = self.socket.readable_mut().await else {
            self.ended = true;
            return;
        };
        for _ in 0..S::AT_ONCE {
            let queue = &mut self.queue;
            match ready.try_io(|socket| socket.get_mut().receive(queue)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let full = error.raw_os_error() == Some(libc::ENOBUFS);
                    self.ended = !full || !ready.get_inner_mut().recover();
                    self.queue.push_back(S::LOST);
                    if self.ended {
                        return;
                    }
                }
                Err(_would_block) => return,
            }
        }
    }
}
