//! What travels over the socket: frames of a four-byte big-endian length and that many bytes of JSON.
//!
//! A frame is `[id, message]`. The client picks ids; every message of the server repeats the id of the request it answers,
//! in any order. Resources pass through as raw JSON. The first request of a connection is [`Request::Hello`].
//!
//! Watches have credit: the server sends at most as many changes as the client granted ([`CREDIT`] at first), so neither
//! side queues for a reader that is too slow.

use std::io;
use std::sync::Arc;

use api::Key;
use datastore::{Revision, Scope, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::UnixStream;

/// Grows when old and new programs can no longer talk.
pub(crate) const PROTOCOL: u32 = 2;
/// The largest frame: a few of the largest resources.
pub(crate) const MAX_FRAME: usize = 4 << 20;
/// The changes of a watch that may be under way at first.
pub(crate) const CREDIT: u32 = 256;

/// From client to server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello {
        protocol: u32,
    },
    Get(Key),
    List(Scope),
    Create(Box<RawValue>),
    Update {
        value: Box<RawValue>,
        expected: Revision,
    },
    Delete {
        key: Key,
        expected: Option<Revision>,
    },
    /// Several writes: `Create`, `Update`, `Delete` and nothing else.
    WriteAll(Vec<Request>),
    Watch {
        scope: Scope,
        from: Option<Revision>,
    },
    /// The watch with this frame's id may send so many more changes.
    Credit(u32),
    /// Ends the watch with this frame's id.
    Cancel,
}

/// From server to client. `V` is the raw JSON of a resource, borrowed or owned.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply<V> {
    Hello {
        protocol: u32,
    },
    /// Answers `Get` and, with what was deleted, `Delete`.
    Found {
        value: V,
        revision: Revision,
    },
    /// Answers `Get`.
    Absent,
    /// Answers `Create` and `Update`.
    Written(Revision),
    /// Answers `WriteAll`: one answer for each write that was tried, as if it had been alone.
    All(Vec<Reply<V>>),
    /// Answers `List`, in parts: more follow until there is a revision.
    Items {
        items: Vec<(Key, Revision, V)>,
        revision: Option<Revision>,
    },
    /// A change a watch saw.
    Change {
        key: Key,
        value: Option<V>,
        revision: Revision,
    },
    /// A watch has sent what was there.
    InSync(Revision),
    /// The request failed; a watch ends with it.
    Failed(StoreError),
}

/// Encodes one frame. A reply too large to send becomes a refusal.
pub(crate) fn reply_frame<V: Serialize>(id: u64, reply: &Reply<V>) -> Vec<u8> {
    frame(id, reply).unwrap_or_else(|error| {
        let refused = Reply::<()>::Failed(StoreError::Refused(format!("the answer cannot be sent: {error}")));
        frame(id, &refused).expect("a short text fits into a frame")
    })
}

/// Encodes one frame.
///
/// # Errors
/// If the message has no JSON form or is larger than [`MAX_FRAME`].
pub(crate) fn frame<M: Serialize>(id: u64, message: &M) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, &(id, message))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too large"),
        ));
    }
    let length = u32::try_from(length).expect("at most MAX_FRAME");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Takes frames off a socket.
pub(crate) struct Frames {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
    /// What of the buffer has been handed out.
    taken: usize,
}

impl Frames {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// The next message and its id; `None` once the other side has closed the connection. May be cancelled.
    ///
    /// # Errors
    /// What the socket says; `InvalidData` for a frame that is too large or not a message; `UnexpectedEof` in its midst.
    pub(crate) async fn next<M: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<(u64, M)>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return match self.buffer.len() - self.taken {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    fn take<M: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<(u64, M)>> {
        let Some((head, rest)) = self.buffer[self.taken..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            let text = format!("a frame of {length} bytes is too large");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message =
            serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.taken += 4 + length;
        Ok(Some(message))
    }

    /// Reads what there is; `false` at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.is_empty() {
            // A large frame does not keep its memory.
            self.buffer.shrink_to(64 << 10);
        }
        self.buffer.reserve(16 << 10);
        loop {
            self.stream.readable().await?;
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(read) => return Ok(read > 0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
