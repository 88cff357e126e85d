//! Messages of netfilter's netlink family (nf_tables, conntrack, nflog), and the socket that carries them.
//!
//! The kernel works inside `sendmsg` and has queued all its answers when the call returns: so nothing is waited for.

mod bytes;
mod socket;

pub(crate) use bytes::{Bytes, Target};
pub(crate) use socket::Socket;

/// `NFNL_SUBSYS_CTNETLINK`.
pub(crate) const CONNTRACK: u16 = 1;
/// `NFNL_SUBSYS_ULOG`.
pub(crate) const ULOG: u16 = 4;
/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const NFTABLES: u16 = 10;

/// Bytes of `nfgenmsg`, which begins every message.
pub(crate) const GENERIC: usize = 4;

/// A number as it is in most attributes.
pub(crate) fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

/// A number as it is in most attributes.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A number as it is in most attributes.
pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// Text with or without a zero byte at its end.
pub(crate) fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}
