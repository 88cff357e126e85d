//! A socket to netfilter.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Bytes, Target};
use crate::request::{Failure, Message, Messages, done_of, error_of};
use crate::sockopt;

/// A netlink socket in the network namespace of the thread that opened it; usable from any thread.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    port: u32,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

/// What the kernel said to a batch.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Failures with the sequence numbers of the messages at fault, in order.
    pub failures: Vec<(u32, Failure)>,
    /// The message that asked for it was acknowledged.
    pub acknowledged: bool,
    /// Some answers did not fit into the receive buffer.
    pub lost: bool,
}

/// The kernel fills at most 32 KiB per datagram of a dump, and as many as it is told with logged packets.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Room for the errors of some thousand messages.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// A dump that a concurrent change made inconsistent is read again so often.
const DUMP_ATTEMPTS: usize = 5;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

impl Socket {
    /// Opens a socket with extended errors.
    pub fn open() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        let port = inner.bind_auto()?.port_number();
        inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        let socket = Self {
            inner,
            port,
            sequence: 0,
            send_buffer: 0,
            buffer: vec![0; RECEIVE_BYTES],
        };
        sockopt::receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
        Ok(socket)
    }

    /// What the kernel calls this socket.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The first of `count` sequence numbers that nobody else has.
    pub fn sequences(&mut self, count: u32) -> u32 {
        // 0 is what the kernel uses where it has none.
        if self.sequence > u32::MAX / 2 {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    /// Sends a whole batch of messages as one datagram and reads everything that the kernel says to it.
    /// `last` is the sequence number of the message that asks for an acknowledgement.
    pub fn batch(&mut self, bytes: &[u8], last: u32, mut other: impl FnMut(&Message<'_>)) -> Result<Answer, Failure> {
        self.send(bytes)?;
        let mut answer = Answer::default();
        loop {
            let length = match self.receive(libc::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    answer.lost = true;
                    continue;
                }
                Err(error) => return Err(broken(error)),
            };
            for message in Messages(&self.buffer[..length]) {
                if message.kind != NLMSG_ERROR {
                    other(&message);
                    continue;
                }
                match error_of(&message) {
                    Some(failure) => answer.failures.push((message.sequence, failure)),
                    None => answer.acknowledged |= message.sequence == last,
                }
            }
        }
        answer.failures.sort_by_key(|(sequence, _)| *sequence);
        Ok(answer)
    }

    /// Sends one request and waits until it is done.
    pub fn request(&mut self, target: Target, flags: u16, body: impl FnOnce(&mut Bytes)) -> Result<(), Failure> {
        let sequence = self.sequences(1);
        let mut bytes = Bytes::default();
        bytes.message(target, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, body);
        let answer = self.batch(&bytes.0, sequence, |_| ())?;
        match answer.failures.into_iter().next() {
            Some((_, failure)) => Err(failure),
            None if answer.acknowledged => Ok(()),
            None => Err(Failure::Broken("a request was not answered".into())),
        }
    }

    /// Asks for one object; `None` if the kernel has no such.
    pub fn get<T>(
        &mut self,
        target: Target,
        body: impl FnOnce(&mut Bytes),
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let sequence = self.sequences(1);
        let mut bytes = Bytes::default();
        bytes.message(target, NLM_F_REQUEST, sequence, body);
        let mut found = None;
        let answer = self.batch(&bytes.0, sequence, |message| {
            if message.sequence == sequence && found.is_none() {
                found = read(message.payload);
            }
        })?;
        match answer.failures.into_iter().next() {
            Some((_, failure)) if failure.errno() == Some(libc::ENOENT) => Ok(None),
            Some((_, failure)) => Err(failure),
            None => Ok(found),
        }
    }

    /// Reads all objects: `each` gets every message's payload. `restart` is called when a concurrent change made the dump
    /// inconsistent and it begins again; after some attempts the answer is `false`.
    pub fn dump<S>(
        &mut self,
        target: Target,
        body: impl Fn(&mut Bytes),
        state: &mut S,
        restart: impl Fn(&mut S),
        each: impl Fn(&mut S, &[u8]),
    ) -> Result<bool, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            restart(state);
            let sequence = self.sequences(1);
            let mut bytes = Bytes::default();
            bytes.message(target, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body);
            self.send(&bytes.0)?;
            if self.dump_once(sequence, |payload| each(state, payload))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `false`: the dump was interrupted by a change.
    fn dump_once(&mut self, sequence: u32, mut each: impl FnMut(&[u8])) -> Result<bool, Failure> {
        let mut consistent = true;
        loop {
            let length = self.receive(0).map_err(broken)?;
            for message in Messages(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                let ended = match message.kind {
                    NLMSG_ERROR => error_of(&message),
                    NLMSG_DONE => done_of(&message),
                    _ => {
                        each(message.payload);
                        continue;
                    }
                };
                return match ended {
                    None => Ok(consistent),
                    Some(failure) if failure.errno() == Some(libc::EINTR) => Ok(false),
                    // What was asked about is gone: nothing to read.
                    Some(failure) if failure.errno() == Some(libc::ENOENT) => Ok(consistent),
                    Some(failure) => Err(failure),
                };
            }
        }
    }

    /// From now on nothing waits.
    pub fn set_non_blocking(&mut self) -> io::Result<()> {
        self.inner.set_non_blocking(true)
    }

    /// Reads one datagram; `read` also gets the socket, to ask about devices.
    pub fn take(&mut self, read: impl FnOnce(BorrowedFd<'_>, &[u8])) -> io::Result<()> {
        let length = self.receive(0)?;
        read(self.as_fd(), &self.buffer[..length]);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        // The kernel takes a datagram only if the send buffer has room for all of it.
        let room = bytes.len() + 4096;
        if room > self.send_buffer {
            sockopt::send_buffer(self.as_fd(), i32::try_from(room).unwrap_or(i32::MAX));
            self.send_buffer = room;
        }
        loop {
            match self.inner.send(bytes, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => return Err(Failure::Broken(format!("sent {sent} of {} bytes", bytes.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn receive(&mut self, flags: i32) -> io::Result<usize> {
        loop {
            match self.inner.recv(&mut &mut self.buffer[..], flags | libc::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                // Half of this answer is lost; room for the next is cheap.
                Ok(length) => {
                    self.buffer.resize(length, 0);
                    return Err(io::Error::other(format!("an answer of {length} bytes was cut")));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
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

fn broken(error: io::Error) -> Failure {
    Failure::Broken(error.to_string())
}
