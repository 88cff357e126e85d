//! Netlink messages as bytes: building requests, taking answers apart.

use std::net::Ipv4Addr;

use super::RTM_NEWNEIGH;

const NLM_F_REQUEST: u16 = 1;
const NESTED: u16 = 0x8000;
/// Bytes of a message's header.
pub const HEADER: usize = 16;
const AF_INET: u8 = libc::AF_INET as u8;

/// A request under construction.
pub struct Message {
    pub buffer: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut buffer = vec![0; HEADER];
        buffer[4..6].copy_from_slice(&kind.to_ne_bytes());
        buffer[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Self { buffer }
    }

    pub fn link(kind: u16, flags: u16, index: u32) -> Self {
        let mut message = Self::new(kind, flags);
        message.raw(&[0; 4]);
        message.raw(&index.to_ne_bytes());
        message.raw(&[0; 8]);
        message
    }

    pub fn address(kind: u16, flags: u16, index: u32, prefix: u8) -> Self {
        let mut message = Self::new(kind, flags);
        message.raw(&[AF_INET, prefix, 0, 0]);
        message.raw(&index.to_ne_bytes());
        message
    }

    pub fn neighbor(kind: u16, flags: u16, index: u32) -> Self {
        let mut message = Self::new(kind, flags);
        message.raw(&[AF_INET, 0, 0, 0]);
        message.raw(&index.to_ne_bytes());
        let state = if kind == RTM_NEWNEIGH { libc::NUD_PERMANENT } else { 0 };
        message.raw(&state.to_ne_bytes());
        message.raw(&[0; 2]);
        message
    }

    pub fn traffic(kind: u16, flags: u16, index: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut message = Self::new(kind, flags);
        message.raw(&[0; 4]);
        for word in [index, handle, parent, info] {
            message.raw(&word.to_ne_bytes());
        }
        message
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.raw(&((value.len() + 4) as u16).to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.bytes(kind | NESTED, &[]);
        fill(self);
        let length = (self.buffer.len() - start) as u16;
        self.patch(start, &length.to_ne_bytes());
    }

    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn finish(&mut self, sequence: u32) {
        let length = self.buffer.len() as u32;
        self.patch(0, &length.to_ne_bytes());
        self.patch(8, &sequence.to_ne_bytes());
    }

    pub fn flags(&self) -> u16 {
        u16_at(&self.buffer, 6).unwrap_or(0)
    }
}

pub struct MessageHeader {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
}

pub fn split_message(datagram: &[u8]) -> Option<(MessageHeader, &[u8], &[u8])> {
    let length = u32_at(datagram, 0)? as usize;
    let header = MessageHeader {
        kind: u16_at(datagram, 4)?,
        flags: u16_at(datagram, 6)?,
        sequence: u32_at(datagram, 8)?,
    };
    let payload = datagram.get(HEADER..length)?;
    Some((
        header,
        payload,
        datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]),
    ))
}

/// The value of the first attribute of that kind.
pub fn attribute(mut rest: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        if u16_at(rest, 2)? & !NESTED & !0x4000 == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

pub fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(u32_at(bytes, at)? as i32)
}
