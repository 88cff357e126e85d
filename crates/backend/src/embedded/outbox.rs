//! The sending side of a connection, usable from any thread without waiting.
//!
//! Alone, a frame goes out at once: no task has to wake up first ([`Outbox::send`]). In a crowd frames are queued, and
//! [`Outbox::run`] sends what has come together in one system call ([`Outbox::queue_up`]). Who produces without being asked
//! waits for [`Outbox::room`] first.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::Notify;

/// So many requests under way on one connection are a crowd.
pub(crate) const CROWD: usize = 4;
/// Producers wait while so many bytes are queued.
const HIGH_WATER: usize = 256 << 10;

/// The sending side of one connection.
pub(crate) struct Outbox {
    stream: Arc<UnixStream>,
    queue: Mutex<Queue>,
    /// Something was queued, or it was closed.
    filled: Notify,
    /// Something was sent, or it was closed.
    drained: Notify,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// How many of them are sent.
    sent: usize,
    closed: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Sent {
    /// It is sent or queued.
    Yes,
    /// The other side certainly has not got it: the connection was closed before.
    No,
}

impl Outbox {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self {
            stream,
            queue: Mutex::default(),
            filled: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// Sends or queues a whole frame. Never waits.
    pub(crate) fn send(&self, frame: &[u8]) -> Sent {
        let mut queue = self.queue();
        if queue.closed {
            return Sent::No;
        }
        let mut rest = frame;
        if queue.is_empty() {
            match self.stream.try_write(frame) {
                Ok(written) => rest = &frame[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(queue);
                    self.close();
                    return Sent::No;
                }
            }
        }
        if !rest.is_empty() {
            queue.bytes.extend_from_slice(rest);
            self.filled.notify_one();
        }
        Sent::Yes
    }

    /// Queues a whole frame. Never waits.
    pub(crate) fn queue_up(&self, frame: &[u8]) -> Sent {
        let mut queue = self.queue();
        if queue.closed {
            return Sent::No;
        }
        queue.bytes.extend_from_slice(frame);
        self.filled.notify_one();
        Sent::Yes
    }

    /// Waits until little is queued, or it is closed.
    pub(crate) async fn room(&self) {
        self.below(HIGH_WATER).await;
    }

    /// Waits until everything is sent, or it is closed.
    pub(crate) async fn flushed(&self) {
        self.below(1).await;
    }

    async fn below(&self, limit: usize) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            let closed_or_low = {
                let queue = self.queue();
                queue.closed || queue.bytes.len() - queue.sent < limit
            };
            if closed_or_low {
                return;
            }
            drained.await;
        }
    }

    /// Sends what is queued until the connection ends or [`Outbox::close`].
    pub(crate) async fn run(&self) {
        while self.send_queued().await.is_ok() {
            self.filled.notified().await;
        }
        self.close();
    }

    /// Drops what is queued and ends [`Outbox::run`].
    pub(crate) fn close(&self) {
        *self.queue() = Queue {
            closed: true,
            ..Queue::default()
        };
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    async fn send_queued(&self) -> io::Result<()> {
        while self.try_send_queued()? {
            self.stream.writable().await?;
        }
        Ok(())
    }

    /// Answers whether anything is left.
    fn try_send_queued(&self) -> io::Result<bool> {
        let mut queue = self.queue();
        loop {
            if queue.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if queue.is_empty() {
                // A burst does not keep its memory.
                queue.bytes.shrink_to(HIGH_WATER);
                return Ok(false);
            }
            match self.stream.try_write(&queue.bytes[queue.sent..]) {
                Ok(written) => {
                    queue.sent += written;
                    if queue.sent == queue.bytes.len() {
                        queue.bytes.clear();
                        queue.sent = 0;
                    }
                    self.drained.notify_waiters();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Every mutation completes before the lock is released.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }
}
