//! One request to the agent, with a deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::protocol::{self, Reply, Request};

/// How long a request may take in all; upstream's IPAM waits as long.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Why there is no reply, sorted by what the plugin says.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody listens: the agent is not running.
    #[error("cannot connect: {0}")]
    Absent(#[source] io::Error),
    /// The agent took the request and did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The agent went away with the request: it was stopped, or it crashed.
    #[error("the agent ended before it answered")]
    Ended(#[source] io::Error),
    /// The connection broke, or the answer made no sense.
    #[error("connection failed: {0}")]
    Broken(#[source] io::Error),
}

/// Sends a request and waits for the reply, at most `deadline`. Connecting fails at once if nobody listens.
pub fn ask(socket: &Path, request: &Request, deadline: Duration) -> Result<Reply, Unanswered> {
    let stream = UnixStream::connect(socket).map_err(Unanswered::Absent)?;
    let mut timed = Timed {
        stream,
        until: Instant::now() + deadline,
    };
    exchange(&mut timed, request).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Unanswered::Silent(deadline),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Unanswered::Ended(error)
        }
        _ => Unanswered::Broken(error),
    })
}

fn exchange(timed: &mut Timed, request: &Request) -> io::Result<Reply> {
    timed.write_all(&protocol::encode(request)?)?;
    protocol::read(timed)
}

/// A stream whose reads and writes all end at one moment.
struct Timed {
    stream: UnixStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(Some(left))
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
