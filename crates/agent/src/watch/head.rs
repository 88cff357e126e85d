//! The head of a packet that was seen: whose it is, and what makes it itself. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A packet's headers, as far as packets are told apart by them. Of IP-in-IP the inner packet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source and destination port, if the protocol has them.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// ICMP echo's identifier.
    pub echo: Option<u16>,
    /// IPv4's identification; 0: IPv6.
    pub id: u16,
    /// What else no hop changes, translations included: what the protocol numbers its packets by, else the payload's beginning.
    pub rest: Vec<u8>,
}

impl Head {
    /// Where it comes from; port 0 if it has none.
    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.ports.map_or(0, |ports| ports.0))
    }

    /// Where it goes; port 0 if it has none.
    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.ports.map_or(0, |ports| ports.1))
    }
}

/// Whether this is the end that was asked about: port 0 there means any.
pub fn is_at(asked: SocketAddr, end: SocketAddr) -> bool {
    asked.ip() == end.ip() && (asked.port() == 0 || asked.port() == end.port())
}

/// Reads the beginning of a packet, from its IP header on; `None`: it is no IP packet, or is cut within that header.
pub fn read(bytes: &[u8]) -> Option<Head> {
    match bytes.first()? >> 4 {
        4 => v4(bytes, true),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8], outer: bool) -> Option<Head> {
    const IPIP: u8 = 4;
    let header = bytes.get(..20)?;
    let behind = bytes.get(4 * usize::from(header[0] & 0xf)..)?;
    if outer
        && header[9] == IPIP
        && let Some(inner) = behind
            .first()
            .filter(|first| *first >> 4 == 4)
            .and_then(|_| v4(behind, false))
    {
        return Some(inner);
    }
    let address = |at: usize| {
        let bytes = <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(bytes)))
    };
    let id = u16::from_be_bytes([header[4], header[5]]);
    Some(with_payload([address(12)?, address(16)?], header[9], id, behind))
}

fn v6(bytes: &[u8]) -> Option<Head> {
    let header = bytes.get(..40)?;
    let address = |at: usize| {
        let bytes = <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)))
    };
    Some(with_payload([address(8)?, address(24)?], header[6], 0, &bytes[40..]))
}

fn with_payload([source, destination]: [IpAddr; 2], protocol: u8, id: u16, behind: &[u8]) -> Head {
    let part = |from: usize, to: usize| behind.get(from..to.min(behind.len())).unwrap_or_default().to_vec();
    let ports = || half(behind, 0).zip(half(behind, 2));
    let icmp = || behind.first().copied().zip(behind.get(1).copied());
    // Ports and checksums change where something is translated.
    let (ports, icmp, rest) = match protocol {
        // Sequence number and flags.
        6 => (ports(), None, [part(4, 8), part(13, 14)].concat()),
        // Length, and the beginning of the payload.
        17 | 136 => (ports(), None, [part(4, 6), part(8, 24)].concat()),
        // Verification tag, and the first chunk.
        132 => (ports(), None, [part(4, 8), part(12, 28)].concat()),
        // Type, code, sequence number.
        1 | 58 => (None, icmp(), [part(0, 2), part(6, 8)].concat()),
        _ => (None, None, part(0, 16)),
    };
    Head {
        source,
        destination,
        protocol,
        ports,
        icmp,
        echo: icmp.and_then(|_| half(behind, 4)),
        id,
        rest,
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 10.0.0.1 to 10.0.0.2.
    fn packet(protocol: u8, behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0x45, 0, 0, 60, 0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        bytes.extend(behind);
        bytes
    }

    #[test]
    fn what_a_translation_changes_does_not_make_another_packet() {
        let check = |protocol: u8, behind: &[u8], changed: &[usize], from: &str, to: &str| {
            let one = packet(protocol, behind);
            let mut two = one.clone();
            changed.iter().for_each(|at| two[20 + at] ^= 0x55);
            let (one, two) = (read(&one).expect("a packet"), read(&two).expect("a packet"));
            assert_eq!((one.from().to_string(), one.to().to_string()), (from.into(), to.into()));
            assert_eq!((one.id, &one.rest), (two.id, &two.rest), "{protocol}");
            let tunnelled = read(&packet(4, &packet(protocol, behind))).expect("a packet");
            assert_eq!(tunnelled, one);
        };
        let mut tcp = [0; 20];
        tcp[..8].copy_from_slice(&[0x9c, 0x40, 0, 80, 1, 2, 3, 4]);
        check(6, &tcp, &[0, 1, 2, 3, 16, 17], "10.0.0.1:40000", "10.0.0.2:80");
        check(
            17,
            &[0x9c, 0x40, 0, 53, 0, 9, 0xaa, 0xbb, 7],
            &[0, 3, 6, 7],
            "10.0.0.1:40000",
            "10.0.0.2:53",
        );
        let mut sctp = [9; 28];
        sctp[..4].copy_from_slice(&[0x9c, 0x40, 0, 99]);
        check(132, &sctp, &[0, 2, 8, 9, 10, 11], "10.0.0.1:40000", "10.0.0.2:99");
        check(
            1,
            &[8, 0, 0xaa, 0xbb, 0, 77, 0, 1],
            &[2, 3, 4],
            "10.0.0.1:0",
            "10.0.0.2:0",
        );
        let echo = read(&packet(1, &[8, 0, 0, 0, 0, 77, 0, 1])).expect("a packet");
        assert_eq!((echo.icmp, echo.echo), (Some((8, 0)), Some(77)));
        for (asked, end, expected) in [
            ("10.0.0.1:0", "10.0.0.1:7", true),
            ("10.0.0.1:7", "10.0.0.1:7", true),
            ("10.0.0.1:8", "10.0.0.1:7", false),
            ("10.0.0.2:0", "10.0.0.1:7", false),
        ] {
            let [first, second] = [asked, end].map(|text| text.parse().expect("an end"));
            assert_eq!(is_at(first, second), expected, "{asked} {end}");
        }
    }
}
