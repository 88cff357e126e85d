//! A socket that the kernel tells about changes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::sockopt::{self, Filter};

/// A non-blocking netlink socket that has joined groups, in the namespace of the thread that opened it.
pub(crate) struct Notifications(netlink_sys::Socket);

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
        let notifications = Self(socket);
        sockopt::receive_buffer(notifications.as_fd(), bytes);
        if !filter.is_empty() {
            sockopt::attach_filter(notifications.as_fd(), filter)?;
        }
        for group in groups {
            notifications.0.add_membership(*group)?;
        }
        Ok(notifications)
    }

    /// One datagram into `buffer`; its length. `WouldBlock`: none waits. `ENOBUFS`: some were lost.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.recv(&mut &mut *buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.0` and is open as long as the borrow of `self` lasts.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
