//! Packets as bytes, from the IP header on, with right checksums; sent past the sender's own kernel, and seen where they arrive.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use kernel::{IfName, Mac};
use linux::capture::{Capture, Direction, Selection};

use super::net::inside;

/// The node's end of every pod's link.
const NODE: Mac = Mac([0xee; 6]);
const DEVICE: &str = "eth0";
/// What every packet ends with, before its number.
const MARK: [u8; 4] = *b"mrgy";

const ICMP_V6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Inside {
    /// From a port to a port.
    Udp(u16, u16),
    /// From a port to a port with these flags, and nothing else that a connection has.
    Tcp(u16, u16, u8),
    /// A type of ICMPv6, and what follows the checksum.
    IcmpV6(u8, Vec<u8>),
    /// A protocol, of which there is nothing to be seen.
    Bare(u8),
}

/// A packet of this number.
pub fn packet(source: IpAddr, destination: IpAddr, carries: &Inside, number: u32) -> Vec<u8> {
    let (protocol, checksum_at, mut bytes) = match carries {
        Inside::Udp(from, to) => (UDP, Some(6), [ports(*from, *to), vec![0; 4]].concat()),
        Inside::Tcp(from, to, flags) => {
            let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0];
            (TCP, Some(16), [ports(*from, *to), rest.to_vec()].concat())
        }
        Inside::IcmpV6(kind, rest) => (ICMP_V6, Some(2), [&[*kind, 0, 0, 0][..], rest].concat()),
        Inside::Bare(protocol) => (*protocol, None, Vec::new()),
    };
    bytes.extend(MARK);
    bytes.extend(number.to_be_bytes());
    let length = u16::try_from(bytes.len()).expect("a small packet");
    if protocol == UDP {
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let addresses = [octets(source), octets(destination)].concat();
    if let Some(at) = checksum_at {
        let pseudo = [&addresses[..], &length.to_be_bytes(), &[0, protocol]].concat();
        let sum = checksum(&[pseudo, bytes.clone()].concat());
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut header = match source {
        IpAddr::V4(_) => {
            let total = (length + 20).to_be_bytes();
            vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0]
        }
        // Neighbours are believed at 255 alone: nobody has forwarded that.
        IpAddr::V6(_) => {
            let [high, low] = length.to_be_bytes();
            vec![0x60, 0, 0, 0, high, low, protocol, 255]
        }
    };
    header.extend(addresses);
    if source.is_ipv4() {
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [header, bytes].concat()
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// The device of a pod, from inside: sends packets, and sees those that come.
pub struct Wire(Capture);

impl Wire {
    pub fn open(place: &str) -> Self {
        let open = || Capture::open(Some(&IfName::from(DEVICE)), Selection::ArpAndIp);
        Self(inside(place, open).expect("the pod's device"))
    }

    /// Sends a packet to the node.
    pub fn send(&self, packet: &[u8]) {
        let ethertype = match packet[0] >> 4 {
            4 => 0x0800,
            _ => 0x86dd,
        };
        let sent = self.0.send(&IfName::from(DEVICE), NODE, ethertype, packet);
        sent.expect("the device takes it");
    }

    /// Waits for a packet of this number; the numbers of those that came before it.
    pub fn until(&mut self, number: u32) -> Vec<u32> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut before = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let packet = self.0.next_within(left).expect("the device");
            let packet = packet.unwrap_or_else(|| panic!("packet {number} does not arrive; {before:?} did"));
            if packet.direction == Direction::Out {
                continue;
            }
            match number_of(&packet.bytes) {
                Some(found) if found == number => return before,
                Some(found) => before.push(found),
                None => {}
            }
        }
    }
}

fn number_of(bytes: &[u8]) -> Option<u32> {
    let (_, tail) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let number = tail.strip_prefix(&MARK)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}
