//! A socket that the kernel tells about changes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::request::Messages;
use crate::sockopt::{self, Filter};

/// A non-blocking netlink socket that has joined groups, in the namespace of the thread that opened it.
pub(crate) struct Notifications {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
}

/// Room for a datagram.
const DATAGRAM: usize = 64 * 1024;

impl Notifications {
    /// Joins `groups` (`RTNLGRP_*`), with a receive buffer of so many bytes; `filter` drops before buffering.
    pub fn open(groups: &[u32], bytes: i32, filter: &[Filter]) -> io::Result<Self> {
        Self::of_family(NETLINK_ROUTE, groups, bytes, filter)
    }

    /// The same for netfilter's groups (`NFNLGRP_*`).
    pub fn of_netfilter(groups: &[u32], bytes: i32, filter: &[Filter]) -> io::Result<Self> {
        Self::of_family(NETLINK_NETFILTER, groups, bytes, filter)
    }

    fn of_family(family: isize, groups: &[u32], bytes: i32, filter: &[Filter]) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(family)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        let notifications = Self {
            socket,
            buffer: vec![0; DATAGRAM],
        };
        sockopt::receive_buffer(notifications.as_fd(), bytes);
        if !filter.is_empty() {
            sockopt::attach_filter(notifications.as_fd(), filter)?;
        }
        for group in groups {
            notifications.socket.add_membership(*group)?;
        }
        Ok(notifications)
    }

    /// The messages of the next datagram. `WouldBlock`: none waits. `ENOBUFS`: some were lost.
    pub fn receive(&mut self) -> io::Result<Messages<'_>> {
        let length = loop {
            match self.socket.recv(&mut &mut *self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        Ok(Messages(&self.buffer[..length]))
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.socket` and is open as long as the borrow of `self` lasts.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
