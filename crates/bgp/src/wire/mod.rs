//! BGP messages to bytes and back (RFC 4271 4). The error of every decoder is the NOTIFICATION to send.
//!
//! Any bytes are safe: all reads are checked, nothing is cast.

mod attributes;
mod open;
mod reader;
mod update;

use bytes::{BufMut, Bytes, BytesMut};

use crate::message::{AfiSafi, Message, Notification};

pub use open::{decode_open, encode_open};
pub use update::{UpdateContext, decode_update, encode_announcement, encode_end_of_rib, encode_withdrawal};

/// Longest message (RFC 4271 4.1).
pub const MAX_MESSAGE: usize = 4096;
/// Marker, length and type.
pub const HEADER: usize = 19;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

/// Cuts a byte stream into messages. Holds no buffer while nothing is half received.
#[derive(Debug, Default)]
pub struct Framer {
    unread: Bytes,
}

impl Framer {
    /// Appends what arrived.
    pub fn push(&mut self, bytes: Bytes) {
        if self.unread.is_empty() {
            self.unread = bytes;
            return;
        }
        let mut joined = BytesMut::with_capacity(self.unread.len() + bytes.len());
        joined.extend_from_slice(&self.unread);
        joined.extend_from_slice(&bytes);
        self.unread = joined.freeze();
    }

    /// The next whole message, `None` if more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<Message>, Notification> {
        let Some((marker, rest)) = self.unread.split_first_chunk::<16>() else {
            self.release_if_small();
            return Ok(None);
        };
        if *marker != [0xff; 16] {
            return Err(Notification::NOT_SYNCHRONISED);
        }
        let Some([high, low, kind]) = rest.first_chunk::<3>().copied() else {
            self.release_if_small();
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let fits = match kind {
            OPEN => length >= 29,
            UPDATE => length >= 23,
            NOTIFICATION => length >= 21,
            KEEPALIVE => length == HEADER,
            ROUTE_REFRESH => length == 23,
            _ => {
                return Err(Notification {
                    data: Bytes::copy_from_slice(&[kind]),
                    ..Notification::bare(1, 3)
                });
            }
        };
        if !fits || length > MAX_MESSAGE {
            return Err(Notification {
                data: Bytes::copy_from_slice(&[high, low]),
                ..Notification::bare(1, 2)
            });
        }
        if self.unread.len() < length {
            self.release_if_small();
            return Ok(None);
        }
        let body = self.unread.split_to(length).slice(HEADER..);
        decode_body(kind, body).map(Some)
    }

    /// A short remainder must not keep a long receive buffer alive.
    fn release_if_small(&mut self) {
        self.unread = match self.unread.is_empty() {
            true => Bytes::new(),
            false => Bytes::copy_from_slice(&self.unread),
        };
    }
}

fn decode_body(kind: u8, body: Bytes) -> Result<Message, Notification> {
    Ok(match kind {
        OPEN => Message::Open(decode_open(&body)?),
        UPDATE => Message::Update(body),
        NOTIFICATION => {
            let (code, subcode) = (byte(&body, 0), byte(&body, 1));
            // The slice copies, so that a remembered error keeps no receive buffer alive.
            Message::Notification(Notification {
                code,
                subcode,
                data: Bytes::copy_from_slice(&body[2..]),
            })
        }
        ROUTE_REFRESH => Message::RouteRefresh(AfiSafi {
            afi: u16::from_be_bytes([byte(&body, 0), byte(&body, 1)]),
            safi: byte(&body, 3),
        }),
        _ => Message::Keepalive,
    })
}

fn byte(body: &Bytes, at: usize) -> u8 {
    body.get(at).copied().unwrap_or_default()
}

/// NOTIFICATION as bytes; data that does not fit is cut.
pub fn encode_notification(notification: &Notification) -> Bytes {
    let room = MAX_MESSAGE - HEADER - 2;
    let data = &notification.data[..notification.data.len().min(room)];
    framed(NOTIFICATION, |out| {
        out.put_u8(notification.code);
        out.put_u8(notification.subcode);
        out.put_slice(data);
    })
}

/// KEEPALIVE as bytes.
pub fn encode_keepalive() -> Bytes {
    const MESSAGE: [u8; HEADER] = {
        let mut message = [0xff; HEADER];
        message[16] = 0;
        message[17] = HEADER as u8;
        message[18] = KEEPALIVE;
        message
    };
    Bytes::from_static(&MESSAGE)
}

/// ROUTE-REFRESH as bytes (RFC 2918).
pub fn encode_route_refresh(family: AfiSafi) -> Bytes {
    framed(ROUTE_REFRESH, |out| {
        out.put_u16(family.afi);
        out.put_u8(0);
        out.put_u8(family.safi);
    })
}

/// Writes header and body; the length is filled in afterwards.
fn framed(kind: u8, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_slice(&[0xff; 16]);
    out.put_u16(0);
    out.put_u8(kind);
    body(&mut out);
    let length = u16::try_from(out.len()).expect("every encoder keeps to 4096 bytes");
    out[16..18].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}
