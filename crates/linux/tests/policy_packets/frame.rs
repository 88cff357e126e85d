//! Packets as bytes: the first of a flow, and its answer, with right checksums. The last eight bytes say which it is.

use std::net::IpAddr;

use policy::evaluate::Packet;
use proof::packet::{ICMP, ICMP_V6, SCTP, TCP, UDP, UDPLITE};

const MARK: [u8; 4] = *b"prof";
/// What every packet ends with.
const TAIL: usize = 8;

/// The first packet of a flow, from the IP header on.
pub fn first(packet: &Packet, id: u32) -> Vec<u8> {
    build(packet, id, false)
}

/// What the other side would answer to a packet of TCP, UDP or echo; `None`: to others nothing.
pub fn answer(packet: &Packet, first: u32, id: u32) -> Option<(Packet, Vec<u8>)> {
    let icmp = match packet.icmp {
        None => None,
        Some((8, 0)) => Some((0, 0)),
        Some((128, 0)) => Some((129, 0)),
        Some(_) => return None,
    };
    if ![TCP, UDP, ICMP, ICMP_V6].contains(&packet.protocol) {
        return None;
    }
    let turned = Packet {
        source: packet.destination,
        destination: packet.source,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        icmp,
        ..packet.clone()
    };
    let mut bytes = build(&turned, id, true);
    if icmp.is_some() {
        // Echoes are recognised by the number that the question had.
        number_icmp(&turned, &mut bytes, first);
    }
    Some((turned, bytes))
}

/// Which packet this is, if it is one of ours.
pub fn id_of(bytes: &[u8]) -> Option<u32> {
    let (_, tail) = bytes.split_at_checked(bytes.len().checked_sub(TAIL)?)?;
    let id = tail.strip_prefix(&MARK)?;
    Some(u32::from_be_bytes(id.try_into().ok()?))
}

fn build(packet: &Packet, id: u32, is_answer: bool) -> Vec<u8> {
    let mut transport = transport(packet, is_answer);
    transport.extend(MARK);
    transport.extend(id.to_be_bytes());
    let mut bytes = header(packet, transport.len());
    let start = bytes.len();
    bytes.extend(transport);
    finish(packet, &mut bytes, start);
    if packet.icmp.is_some() && !is_answer {
        number_icmp(packet, &mut bytes, id);
    }
    bytes
}

/// All but what is known at the end only.
fn transport(packet: &Packet, is_answer: bool) -> Vec<u8> {
    let ports: Vec<u8> = [packet.source_port, packet.destination_port]
        .into_iter()
        .flatten()
        .flat_map(u16::to_be_bytes)
        .collect();
    match packet.protocol {
        TCP => {
            // A repeated SYN is the same again.
            let (sequence, acknowledged, flags) = match is_answer {
                false => (1_000u32, 0u32, 0x02),
                true => (5_000, 1_001, 0x12),
            };
            let rest = [0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
            [&ports[..], &sequence.to_be_bytes(), &acknowledged.to_be_bytes(), &rest].concat()
        }
        UDP | UDPLITE => [&ports[..], &[0; 4]].concat(),
        SCTP => {
            // Tag 0 and checksum; INIT with a parameter that nobody knows, which is the end.
            let init = [1, 0, 0, 32, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
            [&ports[..], &[0; 8], &init, &[0xc0, 0x77, 0, 12]].concat()
        }
        ICMP | ICMP_V6 => {
            let (kind, code) = packet.icmp.unwrap_or_default();
            vec![kind, code, 0, 0, 0, 0, 0, 0]
        }
        _ => Vec::new(),
    }
}

fn header(packet: &Packet, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).unwrap();
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, packet.protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([packet.protocol, 64]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("both ends of a packet are of one family"),
    }
}

/// Lengths and checksums of the transport header that begins at `start`.
fn finish(packet: &Packet, bytes: &mut [u8], start: usize) {
    let length = u16::try_from(bytes.len() - start).unwrap();
    let at = match packet.protocol {
        TCP => 16,
        UDP => {
            bytes[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
            6
        }
        UDPLITE => 6,
        ICMP | ICMP_V6 => 2,
        SCTP => {
            let sum = crc32c(&bytes[start..]);
            bytes[start + 8..start + 12].copy_from_slice(&sum.to_le_bytes());
            return;
        }
        _ => return,
    };
    bytes[start + at..start + at + 2].fill(0);
    let pseudo = pseudo_header(packet, length);
    let over: &[u8] = if packet.protocol == ICMP { &[] } else { &pseudo };
    let sum = match checksum(&[over, &bytes[start..]]) {
        0 if [UDP, UDPLITE].contains(&packet.protocol) => 0xffff,
        sum => sum,
    };
    bytes[start + at..start + at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Gives a question or answer of ICMP its number.
fn number_icmp(packet: &Packet, bytes: &mut [u8], id: u32) {
    let start = if packet.source.is_ipv4() { 20 } else { 40 };
    bytes[start + 4..start + 8].copy_from_slice(&id.to_be_bytes());
    finish(packet, bytes, start);
}

fn pseudo_header(packet: &Packet, length: u16) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(u32::from(length).to_be_bytes());
    // Linux' conntrack checks UDP-Lite as if it were UDP.
    let protocol = if packet.protocol == UDPLITE {
        UDP
    } else {
        packet.protocol
    };
    pseudo.extend(u32::from(protocol).to_be_bytes());
    pseudo
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or_default()))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let bit = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        (0..8).fold(crc ^ u32::from(*byte), bit)
    };
    !bytes.iter().fold(u32::MAX, step)
}
