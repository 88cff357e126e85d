//! Socket options of TCP that a BGP speaker needs and the standard library lacks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use kernel::IfName;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::sockopt;

/// A non-blocking listening socket with `SO_REUSEADDR`; for IPv6, of IPv6 alone. Must be asked for a password before the
/// peer connects: see [`set_md5`].
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<Socket> {
    let socket = open(address.ip())?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// A non-blocking socket for an outgoing connection, without delay of small segments; from `local` if given. Options such
/// as [`set_md5`] go between this and connecting.
pub fn outgoing(remote: SocketAddr, local: Option<IpAddr>) -> io::Result<Socket> {
    let socket = open(remote.ip())?;
    socket.set_tcp_nodelay(true)?;
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    Ok(socket)
}

/// Small segments leave at once: a KEEPALIVE does not wait for an UPDATE's acknowledgement.
pub fn set_nodelay(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Binds a socket to a device (`SO_BINDTODEVICE`): a link-local peer is on one link.
pub fn bind_to_device(socket: &impl AsFd, device: &IfName) -> io::Result<()> {
    SockRef::from(socket).bind_device(Some(device.0.as_bytes()))
}

/// RFC 5082: sends with TTL 255 and takes only packets that have at least `255 - hops + 1` left. `hops` is the greatest
/// distance of the peer, 1 to 255; 1 for one on the link.
pub fn set_ttl_security(socket: &impl AsFd, peer: IpAddr, hops: u8) -> io::Result<()> {
    let least = i32::from(255 - hops.max(1)) + 1;
    let fd = socket.as_fd();
    match peer {
        IpAddr::V4(_) => {
            sockopt::set(fd, libc::IPPROTO_IP, libc::IP_TTL, &255i32)?;
            sockopt::set(fd, libc::IPPROTO_IP, libc::IP_MINTTL, &least)
        }
        IpAddr::V6(_) => {
            sockopt::set(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &255i32)?;
            sockopt::set(fd, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &least)
        }
    }
}

/// Sets the time to live of what is sent, for a peer some hops away.
pub fn set_ttl(socket: &impl AsFd, peer: IpAddr, ttl: u8) -> io::Result<()> {
    match peer {
        IpAddr::V4(_) => sockopt::set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_TTL, &i32::from(ttl)),
        IpAddr::V6(_) => sockopt::set(
            socket.as_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_UNICAST_HOPS,
            &i32::from(ttl),
        ),
    }
}

/// RFC 2385: signs segments to and from `peer` with a password of at most 80 bytes; an empty one takes the signature away.
///
/// On a listening socket it holds for connections from that peer, and unsigned ones are dropped. `InvalidInput`: the
/// password is too long. `Unsupported` or `ENOPROTOOPT`: this kernel has no `TCP_MD5SIG`.
pub fn set_md5(socket: &impl AsFd, peer: IpAddr, password: &[u8]) -> io::Result<()> {
    if password.len() > MD5_LONGEST {
        let text = format!("a TCP password has at most {MD5_LONGEST} bytes, not {}", password.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut signature = Md5Signature {
        address: [0; 128],
        flags: 0,
        prefix_length: 0,
        key_length: password.len() as u16,
        device: 0,
        key: [0; MD5_LONGEST],
    };
    signature.key[..password.len()].copy_from_slice(password);
    // A listener for both families knows IPv4 peers by their mapped address.
    let peer = match (family_of(socket.as_fd())?, peer) {
        (Domain::IPV6, IpAddr::V4(peer)) => IpAddr::V6(peer.to_ipv6_mapped()),
        (_, peer) => peer,
    };
    match peer {
        IpAddr::V4(peer) => {
            // sockaddr_in: family, port, address.
            signature.address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            signature.address[4..8].copy_from_slice(&peer.octets());
        }
        IpAddr::V6(peer) => {
            // sockaddr_in6: family, port, flow, address.
            signature.address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            signature.address[8..24].copy_from_slice(&peer.octets());
        }
    }
    sockopt::set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature)
}

const MD5_LONGEST: usize = 80;
/// linux/in6.h; crate `libc` lacks it.
const IPV6_MINHOPCOUNT: i32 = 73;

/// `struct tcp_md5sig` of linux/tcp.h.
#[derive(Clone, Copy)]
#[repr(C)]
struct Md5Signature {
    address: [u8; 128],
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    device: i32,
    key: [u8; MD5_LONGEST],
}

fn open(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn family_of(fd: BorrowedFd<'_>) -> io::Result<Domain> {
    SockRef::from(&fd).domain()
}
