//! Copies of packets as they pass devices of a network namespace (`AF_PACKET`), for the lab's decoder.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kernel::{IfName, Mac};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sockopt::{self, Filter, JUMP_EQ, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN};

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the namespace, from the device.
    In,
    /// Out of it.
    Out,
    /// Between others (promiscuous or forwarded by a bridge).
    Other,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When the kernel saw it.
    pub at: SystemTime,
    /// Number of the device.
    pub index: u32,
    /// Which way.
    pub direction: Direction,
    /// `ETH_P_*`: 0x0800 IPv4, 0x86dd IPv6, 0x0806 ARP.
    pub ethertype: u16,
    /// From the network header on, without the Ethernet header; at most the snap length.
    pub bytes: Vec<u8>,
    /// Length before it was cut.
    pub length: usize,
}

/// What to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything.
    All,
    /// IPv4 of these protocols (4 IPIP, 1 ICMP) and nothing else; at most 16 protocols.
    Ipv4Protocols(&'static [u8]),
    /// ARP and IPv4.
    ArpAndIpv4,
    /// ARP, IPv4 and IPv6.
    ArpAndIp,
    /// Packets of a protocol to or from one of these addresses (at most [`ENDS`]), as they are or inside IP-in-IP; only the
    /// first [`HEAD`] bytes of each.
    Of(Vec<IpAddr>, u8),
}

/// What is kept of packets that are only looked at: both headers of IP-in-IP with options, and what follows them.
pub const HEAD: u32 = 192;

/// So many addresses one capture looks for.
pub const ENDS: usize = 32;

/// A capturing socket in the namespace of the thread that opened it.
pub struct Capture {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// Longest packet that is kept whole.
const SNAP_LENGTH: usize = 65_536;
const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u32 = 0x0800;
const ETH_P_ARP: u32 = 0x0806;
const ETH_P_IPV6: u32 = 0x86dd;
/// `SKF_AD_OFF + SKF_AD_PROTOCOL`: the ethertype, whatever the device's header looks like.
const ETHERTYPE_AT: u32 = (-0x1000i32) as u32;

impl Capture {
    /// Captures on one device, or on all.
    pub fn open(device: Option<&IfName>, selection: Selection) -> io::Result<Self> {
        // SOCK_DGRAM: the kernel takes link headers off, so that devices of all kinds look the same. Protocol 0: nothing
        // arrives before the filter is in place.
        // SAFETY: no pointers; the answer is checked.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if let Some(program) = program(selection)? {
            sockopt::attach_filter(socket.as_fd(), &program)?;
        }
        sockopt::receive_buffer(socket.as_fd(), 4 << 20);
        sockopt::set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
        let index = match device {
            None => 0,
            Some(device) => sockopt::device_index(socket.as_fd(), device)?
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no device {device}")))?,
        };
        bind(socket.as_fd(), index)?;
        Ok(Self {
            socket,
            buffer: vec![0; SNAP_LENGTH],
        })
    }

    /// The next packet that waits; `None` if none does.
    pub fn try_next(&mut self) -> io::Result<Option<Packet>> {
        match receive(self.socket.as_fd(), &mut self.buffer) {
            Ok(packet) => Ok(Some(packet)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next packet, waiting for it; `None` if none comes within `patience`.
    pub fn next_within(&mut self, patience: Duration) -> io::Result<Option<Packet>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(packet) = self.try_next()? {
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a payload out of a device to a hardware address; the kernel writes the link header.
    pub fn send(&self, device: &IfName, to: Mac, ethertype: u16, payload: &[u8]) -> io::Result<()> {
        let index = sockopt::device_index(self.socket.as_fd(), device)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no device {device}")))?;
        let address = address(index, ethertype, Some(to));
        // SAFETY: pointers and lengths describe `payload` and `address`, which live through the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                payload.as_ptr().cast(),
                payload.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The filter; offsets count from the network header.
fn program(selection: Selection) -> io::Result<Option<Vec<Filter>>> {
    const PROTOCOL_AT: u32 = 9;
    let instruction = |code, jt, jf, k| Filter { code, jt, jf, k };
    let (keep, drop) = (instruction(RETURN, 0, 0, u32::MAX), instruction(RETURN, 0, 0, 0));
    match selection {
        Selection::All => Ok(None),
        Selection::ArpAndIpv4 => Ok(Some(vec![
            instruction(LOAD_HALF, 0, 0, ETHERTYPE_AT),
            instruction(JUMP_EQ, 1, 0, ETH_P_ARP),
            instruction(JUMP_EQ, 0, 1, ETH_P_IP),
            keep,
            drop,
        ])),
        Selection::ArpAndIp => Ok(Some(vec![
            instruction(LOAD_HALF, 0, 0, ETHERTYPE_AT),
            instruction(JUMP_EQ, 2, 0, ETH_P_ARP),
            instruction(JUMP_EQ, 1, 0, ETH_P_IP),
            instruction(JUMP_EQ, 0, 1, ETH_P_IPV6),
            keep,
            drop,
        ])),
        Selection::Ipv4Protocols(protocols) => {
            let count = u8::try_from(protocols.len()).ok().filter(|count| *count <= 16);
            let count = count.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "at most 16 protocols"))?;
            let mut program = vec![
                instruction(LOAD_HALF, 0, 0, ETHERTYPE_AT),
                instruction(JUMP_EQ, 0, count + 1, ETH_P_IP),
                instruction(LOAD_BYTE, 0, 0, PROTOCOL_AT),
            ];
            for (protocol, rest) in protocols.iter().zip((0..count).rev()) {
                program.push(instruction(JUMP_EQ, rest + 1, 0, u32::from(*protocol)));
            }
            program.extend([drop, keep]);
            Ok(Some(program))
        }
        Selection::Of(addresses, _) if addresses.len() > ENDS => {
            let text = format!("{} addresses: at most {ENDS}", addresses.len());
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
        Selection::Of(addresses, protocol) => {
            let mut program: Vec<Filter> = addresses.iter().flat_map(|address| of(*address, protocol)).collect();
            program.push(KEEP_NOTHING);
            Ok(Some(program))
        }
    }
}

/// Keeps packets to or from an address; otherwise goes on behind. The outer header of IP-in-IP is taken to have no options, as
/// the tunnel writes it.
fn of(address: IpAddr, protocol: u8) -> Vec<Filter> {
    const OUTER: u32 = 20;
    const IPIP: u32 = 4;
    let ethertype = |is| (LOAD_HALF, ETHERTYPE_AT, is);
    let protocol = u32::from(protocol);
    let mut program = Vec::new();
    match address {
        IpAddr::V4(address) => {
            let address = u32::from(address);
            for at in [12, 16] {
                let plain = [ethertype(ETH_P_IP), (LOAD_BYTE, 9, protocol), (LOAD_WORD, at, address)];
                let inside = [
                    ethertype(ETH_P_IP),
                    (LOAD_BYTE, 9, IPIP),
                    (LOAD_BYTE, OUTER + 9, protocol),
                    (LOAD_WORD, OUTER + at, address),
                ];
                program.extend(keep_if(&plain));
                program.extend(keep_if(&inside));
            }
        }
        IpAddr::V6(address) => {
            for at in [8, 24] {
                let mut parts = vec![ethertype(ETH_P_IPV6), (LOAD_BYTE, 6, protocol)];
                for (place, bytes) in (at..).step_by(4).zip(address.octets().chunks_exact(4)) {
                    let word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
                    parts.push((LOAD_WORD, place, word));
                }
                program.extend(keep_if(&parts));
            }
        }
    }
    program
}

const KEEP_NOTHING: Filter = Filter {
    code: RETURN,
    jt: 0,
    jf: 0,
    k: 0,
};

/// Keeps the head of a packet for which every load gives what it should; otherwise goes on behind.
fn keep_if(parts: &[(u16, u32, u32)]) -> Vec<Filter> {
    let mut program = Vec::new();
    for (done, (load, at, is)) in parts.iter().enumerate() {
        // Two instructions for each part that is left, and the last one.
        let rest = 2 * (parts.len() - done - 1) + 1;
        program.push(Filter {
            code: *load,
            jt: 0,
            jf: 0,
            k: *at,
        });
        program.push(Filter {
            code: JUMP_EQ,
            jt: 0,
            jf: rest as u8,
            k: *is,
        });
    }
    program.push(Filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: HEAD,
    });
    program
}

fn address(index: u32, ethertype: u16, to: Option<Mac>) -> libc::sockaddr_ll {
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    if let Some(Mac(to)) = to {
        address.sll_halen = to.len() as u8;
        address.sll_addr[..to.len()].copy_from_slice(&to);
    }
    address
}

fn bind(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let address = address(index, ETH_P_ALL, None);
    // SAFETY: pointer and length describe `address`, which lives through the call.
    let answer = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Room for the timestamp's control message, aligned as control messages are.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `msghdr` is a C struct of integers and pointers; all zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `header` is to a local or to `buffer`, with its length beside it; all live through the call.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_TRUNC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed before, and filled by the kernel; every bit pattern is valid for its integers.
    let from = unsafe { from.assume_init() };
    Ok(Packet {
        at: timestamp(&header).unwrap_or_else(SystemTime::now),
        index: from.sll_ifindex as u32,
        direction: match from.sll_pkttype {
            libc::PACKET_OUTGOING => Direction::Out,
            libc::PACKET_HOST | libc::PACKET_BROADCAST | libc::PACKET_MULTICAST => Direction::In,
            _ => Direction::Other,
        },
        ethertype: u16::from_be(from.sll_protocol),
        bytes: buffer[..length.min(buffer.len())].to_vec(),
        length,
    })
}

fn timestamp(header: &libc::msghdr) -> Option<SystemTime> {
    // SAFETY: `header` is as `recvmsg` left it, with its control buffer alive in the caller.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, and inside the control buffer, as CMSG_FIRSTHDR and CMSG_NXTHDR promise.
        let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_TIMESTAMPNS {
            // SAFETY: the data of this control message is a `timespec`, perhaps not aligned.
            let time = unsafe { libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned() };
            let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
            return UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}
