//! Headers of a copied packet, as far as they were copied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the headers say.
pub(super) struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: Option<(u16, u16)>,
    pub icmp: Option<(u8, u8)>,
    pub length: u32,
}

/// `None`: no IP header.
pub(super) fn read(bytes: &[u8]) -> Option<Packet> {
    match bytes.first()? >> 4 {
        4 => v4(bytes),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8]) -> Option<Packet> {
    let header = bytes.get(..20)?;
    let address = |at: usize| {
        Some(IpAddr::V4(Ipv4Addr::from(
            <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
        )))
    };
    let later_fragment = half(header, 6)? & 0x1fff != 0;
    let behind = bytes
        .get(4 * usize::from(header[0] & 0xf)..)
        .filter(|_| !later_fragment);
    let packet = Packet {
        source: address(12)?,
        destination: address(16)?,
        protocol: header[9],
        ports: None,
        icmp: None,
        length: half(header, 2)?.into(),
    };
    Some(packet.with(behind.unwrap_or_default()))
}

fn v6(bytes: &[u8]) -> Option<Packet> {
    let header = bytes.get(..40)?;
    let address = |at: usize| {
        Some(IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?,
        )))
    };
    let mut packet = Packet {
        source: address(8)?,
        destination: address(24)?,
        protocol: header[6],
        ports: None,
        icmp: None,
        length: u32::from(half(header, 4)?) + 40,
    };
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const OPTIONS: u8 = 60;
    let mut behind = &bytes[40..];
    loop {
        let length = match packet.protocol {
            HOP_BY_HOP | ROUTING | OPTIONS => behind.get(1).map(|length| 8 + 8 * usize::from(*length)),
            AUTHENTICATION => behind.get(1).map(|length| 8 + 4 * usize::from(*length)),
            FRAGMENT => Some(8),
            _ => return Some(packet.with(behind)),
        };
        let Some(extension) = length.and_then(|length| behind.get(..length)) else {
            return Some(packet);
        };
        let later_fragment = packet.protocol == FRAGMENT && half(extension, 2)? & 0xfff8 != 0;
        packet.protocol = extension[0];
        if later_fragment {
            return Some(packet);
        }
        behind = &behind[extension.len()..];
    }
}

impl Packet {
    /// What stands behind the IP headers.
    fn with(mut self, behind: &[u8]) -> Self {
        const ICMP: u8 = 1;
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const DCCP: u8 = 33;
        const ICMPV6: u8 = 58;
        const SCTP: u8 = 132;
        const UDP_LITE: u8 = 136;
        match self.protocol {
            TCP | UDP | DCCP | SCTP | UDP_LITE => self.ports = half(behind, 0).zip(half(behind, 2)),
            ICMP | ICMPV6 => self.icmp = behind.first().copied().zip(behind.get(1).copied()),
            _ => {}
        }
        self
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6_header(next: u8) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 100, next, 64];
        bytes.extend_from_slice(&[0x20; 16]);
        bytes.extend_from_slice(&[0x30; 16]);
        bytes
    }

    #[test]
    fn ports_stand_behind_extension_headers() {
        let mut bytes = v6_header(0);
        bytes.extend_from_slice(&[44, 0, 0, 0, 0, 0, 0, 0]); // hop by hop, then a fragment
        bytes.extend_from_slice(&[17, 0, 0, 1, 0, 0, 0, 9]); // the first of several, then UDP
        bytes.extend_from_slice(&[0x12, 0x34, 0, 53]);
        let packet = read(&bytes).unwrap();
        assert_eq!(
            (packet.protocol, packet.ports, packet.length),
            (17, Some((0x1234, 53)), 140)
        );
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut bytes = v6_header(44);
        bytes.extend_from_slice(&[17, 0, 0, 8, 0, 0, 0, 9]);
        bytes.extend_from_slice(&[0x12, 0x34, 0, 53]);
        let packet = read(&bytes).unwrap();
        assert_eq!((packet.protocol, packet.ports), (17, None));
        let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 1, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        bytes.extend_from_slice(&[0x12, 0x34, 0, 53]);
        assert_eq!(read(&bytes).unwrap().ports, None);
    }

    #[test]
    fn whatever_is_cut_off_is_no_packet_or_has_less() {
        let mut bytes = v6_header(60);
        bytes.extend_from_slice(&[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 80, 1, 1]);
        for length in 0..=bytes.len() {
            let packet = read(&bytes[..length]);
            assert_eq!(packet.is_some(), length >= 40);
            let ports = packet.and_then(|packet| packet.ports);
            assert_eq!(ports, (length == bytes.len()).then_some((80, 0x101)));
        }
    }
}
