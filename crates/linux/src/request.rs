//! Requests to rtnetlink, many at a time.
//!
//! The kernel works on a request inside `sendmsg` and has queued its answer when the call returns, so there is nothing
//! to wait for asynchronously: one blocking socket serves the agent, the CNI server and the lab alike.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use kernel::{IfName, KernelError};
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::decode::{Attributes, read_i32, read_u16, read_u32};
use crate::sockopt;

/// One request: what, and `NLM_F_*` flags beyond request and acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE`, `NLM_F_EXCL`, `NLM_F_REPLACE`; 0 for none.
    pub flags: u16,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kernel said no.
    #[error("{reason} (errno {errno})")]
    Refused {
        /// Error number, positive.
        errno: i32,
        /// The kernel's extended text, or the text of the number.
        reason: String,
    },
    /// The socket failed, or the kernel's answer made no sense.
    #[error("netlink: {0}")]
    Broken(String),
}

/// A netlink socket in the network namespace of the thread that opened it; usable from any thread.
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// So many acknowledgements fit into the default receive buffer even if every request fails.
const BATCH_MESSAGES: usize = 128;
/// Bytes of one `sendmsg`, well below the default send buffer.
const BATCH_BYTES: usize = 48 * 1024;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// A dump that a concurrent change made inconsistent is read again so often before it is taken as it is.
const DUMP_ATTEMPTS: usize = 5;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

impl Socket {
    /// Opens a socket with extended errors and strict checking of dump requests.
    pub fn open() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        inner.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            inner,
            sequence: 0,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Sends all requests in order and answers one result for each; a refused one does not stop the others.
    pub fn send_all(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Failure>>, Failure> {
        let mut results = Vec::with_capacity(requests.len());
        let mut bytes = Vec::with_capacity(BATCH_BYTES.min(requests.len() * 128));
        let mut rest = requests;
        while !rest.is_empty() {
            bytes.clear();
            let first = self.sequence.wrapping_add(1);
            let mut count = 0;
            let mut last_at = 0;
            while count < rest.len() && count < BATCH_MESSAGES && bytes.len() < BATCH_BYTES {
                last_at = bytes.len();
                self.sequence = self.sequence.wrapping_add(1);
                append(&mut bytes, &rest[count], self.sequence);
                count += 1;
            }
            // Errors come regardless; one acknowledgement at the end says that all has been worked on.
            set_flag(&mut bytes[last_at..], NLM_F_ACK);
            self.send(&bytes)?;
            let at = results.len();
            results.resize_with(at + count, || Ok(()));
            self.collect(first, &mut results[at..])?;
            rest = &rest[count..];
        }
        Ok(results)
    }

    /// Sends one request.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        self.send_all(&[Request { message, flags }])?.pop().unwrap_or(Ok(()))
    }

    /// Reads a whole table: `each` gets every message's type and payload. `restart` is called when a concurrent change
    /// made the dump inconsistent and it begins again.
    pub fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        mut restart: impl FnMut(),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Failure> {
        let request = Request {
            message,
            flags: NLM_F_DUMP,
        };
        for _ in 0..DUMP_ATTEMPTS {
            restart();
            if self.dump_once(&request, &mut each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Asks for one object; `None` if the kernel has no such (ENODEV, ENOENT, ESRCH).
    pub fn get<T>(
        &mut self,
        message: RouteNetlinkMessage,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, &Request { message, flags: 0 }, self.sequence);
        self.send(&bytes)?;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                if message.kind != NLMSG_ERROR {
                    return Ok(read(message.payload));
                }
                return match error_of(&message) {
                    Some(Failure::Refused {
                        errno: libc::ENODEV | libc::ENOENT | libc::ESRCH,
                        ..
                    })
                    | None => Ok(None),
                    Some(failure) => Err(failure),
                };
            }
        }
    }

    /// The number of a device; `None` if there is none of that name.
    pub fn index(&self, name: &IfName) -> Result<Option<u32>, Failure> {
        sockopt::device_index(self.as_fd(), name).map_err(|error| Failure::Broken(error.to_string()))
    }

    /// The name of a device; `None` if there is none of that number.
    pub fn name(&self, index: u32) -> Result<Option<IfName>, Failure> {
        sockopt::device_name(self.as_fd(), index).map_err(|error| Failure::Broken(error.to_string()))
    }

    /// `false`: the dump was interrupted by a change.
    fn dump_once(&mut self, request: &Request, each: &mut impl FnMut(u16, &[u8])) -> Result<bool, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        append(&mut bytes, request, self.sequence);
        self.send(&bytes)?;
        let mut consistent = true;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return error_of(&message).map_or(Ok(consistent), Err),
                    NLMSG_DONE => return done_of(&message).map_or(Ok(consistent), Err),
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        loop {
            match self.inner.send(bytes, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => return Err(Failure::Broken(format!("sent {sent} of {} bytes", bytes.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Broken(error.to_string())),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Failure> {
        loop {
            match self.inner.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                // Half of this answer is lost; room for the next is cheap.
                Ok(length) => {
                    self.buffer.resize(length, 0);
                    return Err(Failure::Broken(format!("an answer of {length} bytes was cut")));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Broken(error.to_string())),
            }
        }
    }

    /// Reads answers up to the acknowledgement of the last request.
    fn collect(&mut self, first: u32, results: &mut [Result<(), Failure>]) -> Result<(), Failure> {
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                let place = message.sequence.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR || place >= results.len() {
                    continue;
                }
                if let Some(failure) = error_of(&message) {
                    results[place] = Err(failure);
                }
                if place + 1 == results.len() {
                    return Ok(());
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.inner` and is open as long as the borrow of `self` lasts.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}

impl Failure {
    /// The error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Failure::Refused { errno, .. } => Some(*errno),
            Failure::Broken(_) => None,
        }
    }

    /// As an error of the port: `what` was asked, about `device` if it is about one.
    pub fn about(self, what: impl Into<String>, device: Option<&IfName>) -> KernelError {
        match (self, device) {
            (Failure::Broken(reason), _) => KernelError::Broken(reason),
            (
                Failure::Refused {
                    errno: libc::ENODEV | libc::ENXIO,
                    ..
                },
                Some(device),
            ) => KernelError::NoDevice(device.clone()),
            (
                Failure::Refused {
                    errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT,
                    reason,
                },
                _,
            ) => KernelError::Unsupported(format!("{}: {reason}", what.into())),
            (Failure::Refused { errno, reason }, _) => KernelError::Refused {
                what: what.into(),
                reason,
                errno,
            },
        }
    }
}

/// One netlink message inside a datagram.
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages of a datagram; what is malformed ends it.
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = read_u32(self.0, 0)? as usize;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: read_u16(self.0, 4)?,
            flags: read_u16(self.0, 6)?,
            sequence: read_u32(self.0, 8)?,
            payload,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

fn append(bytes: &mut Vec<u8>, request: &Request, sequence: u32) {
    let length = HEADER + NetlinkSerializable::buffer_len(&request.message);
    let mut header = NetlinkHeader::default();
    header.length = length as u32;
    header.message_type = request.message.message_type();
    header.flags = NLM_F_REQUEST | request.flags;
    header.sequence_number = sequence;
    let at = bytes.len();
    bytes.resize(at + length.next_multiple_of(4), 0);
    header.emit(&mut bytes[at..]);
    request.message.serialize(&mut bytes[at + HEADER..at + length]);
}

fn set_flag(message: &mut [u8], flag: u16) {
    if let Some(place) = message.get_mut(6..8) {
        let flags = u16::from_ne_bytes([place[0], place[1]]) | flag;
        place.copy_from_slice(&flags.to_ne_bytes());
    }
}

/// `None`: an acknowledgement.
pub(crate) fn error_of(message: &Message<'_>) -> Option<Failure> {
    let Some(code) = read_i32(message.payload, 0) else {
        return Some(Failure::Broken("an error message without a code".into()));
    };
    // `nlmsgerr` is the code and the header of the request, then the request itself unless capped, then attributes.
    let attributes_at = match message.flags & NLM_F_CAPPED {
        0 => 4 + (read_u32(message.payload, 4)? as usize).next_multiple_of(4),
        _ => 4 + HEADER,
    };
    refusal(code, message, attributes_at)
}

/// The end of a dump carries the dump's own error.
pub(crate) fn done_of(message: &Message<'_>) -> Option<Failure> {
    refusal(read_i32(message.payload, 0).unwrap_or(0), message, 4)
}

fn refusal(code: i32, message: &Message<'_>, attributes_at: usize) -> Option<Failure> {
    if code == 0 {
        return None;
    }
    let errno = code.saturating_neg();
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| message.payload.get(attributes_at..))
        .flatten()
        .and_then(|bytes| Attributes(bytes).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches(['\0', '.']).to_string());
    let reason = text.unwrap_or_else(|| nix::errno::Errno::from_raw(errno).desc().to_string());
    Some(Failure::Refused { errno, reason })
}
