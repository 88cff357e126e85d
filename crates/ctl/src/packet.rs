//! A captured packet in words: outer and inner headers of IP-in-IP, one line a header.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Slice, Ipv6Slice};

/// What a packet shows. `inner` is present for IP-in-IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The outermost header.
    pub outer: IpHeader,
    /// The header inside, for protocol 4.
    pub inner: Option<IpHeader>,
    /// What the innermost packet carries: `ICMP echo request id 1 seq 1`.
    pub payload: String,
}

/// The fields of an IP header that people look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol number of what follows, behind IPv6's extension headers.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Length with header and payload, bytes.
    pub length: u32,
    /// What only IPv4 has.
    pub v4: Option<Ipv4Fields>,
}

/// What only an IPv4 header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Fields {
    /// Identification.
    pub id: u16,
    /// Do not fragment.
    pub dont_fragment: bool,
}

/// Decodes the head of an IPv4 or IPv6 packet, of which the rest was not kept.
pub fn head(bytes: &[u8]) -> Option<Packet> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)));
    let length = match bytes.first()? >> 4 {
        4 => word(2)?,
        _ => word(4)? + 40,
    };
    let mut whole = bytes.to_vec();
    whole.resize(length.max(bytes.len()), 0);
    ip(&whole)
}

/// Decodes an IPv4 or IPv6 packet.
pub fn ip(bytes: &[u8]) -> Option<Packet> {
    match bytes.first()? >> 4 {
        4 => v4(bytes),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8]) -> Option<Packet> {
    let outer = Ipv4Slice::from_slice(bytes).ok()?;
    let inside = outer.payload().payload;
    if outer.payload_ip_number() == IpNumber::IPV4
        && let Ok(inner) = Ipv4Slice::from_slice(inside)
    {
        return Some(Packet {
            outer: header(&outer),
            inner: Some(header(&inner)),
            payload: payload_v4(&inner),
        });
    }
    Some(Packet {
        outer: header(&outer),
        inner: None,
        payload: payload_v4(&outer),
    })
}

fn v6(bytes: &[u8]) -> Option<Packet> {
    let slice = Ipv6Slice::from_slice(bytes).ok()?;
    let (header, carried) = (slice.header(), slice.payload());
    let outer = IpHeader {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: carried.ip_number.0,
        ttl: header.hop_limit(),
        length: u32::from(header.payload_length()) + 40,
        v4: None,
    };
    let payload = match carried.fragmented {
        true => format!("fragment of {} bytes", carried.payload.len()),
        false => payload(carried.ip_number, carried.payload),
    };
    Some(Packet {
        outer,
        inner: None,
        payload,
    })
}

impl Packet {
    /// The innermost header.
    pub fn innermost(&self) -> &IpHeader {
        self.inner.as_ref().unwrap_or(&self.outer)
    }

    /// One line a header, indented by depth.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.inner {
            Some(inner) => {
                lines.push(format!("outer  {}", self.outer.line()));
                lines.push(format!("  inner  {}", inner.line()));
                lines.push(format!("    {}", self.payload));
            }
            None => {
                lines.push(self.outer.line());
                lines.push(format!("  {}", self.payload));
            }
        }
        lines
    }
}

impl IpHeader {
    fn line(&self) -> String {
        let Self {
            source,
            destination,
            protocol,
            ttl,
            length,
            ..
        } = self;
        let (version, hops, rest) = match self.v4 {
            Some(Ipv4Fields { id, dont_fragment }) => {
                let df = if dont_fragment { " DF" } else { "" };
                ("IPv4", "ttl", format!("  id {id}{df}"))
            }
            None => ("IPv6", "hop limit", String::new()),
        };
        let name = protocol_name(*protocol);
        format!(
            "{version} {source} -> {destination}  protocol {protocol} ({name})  {hops} {ttl}  length {length}{rest}"
        )
    }
}

fn header(slice: &Ipv4Slice<'_>) -> IpHeader {
    let header = slice.header();
    IpHeader {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        ttl: header.ttl(),
        length: header.total_len().into(),
        v4: Some(Ipv4Fields {
            id: header.identification(),
            dont_fragment: header.dont_fragment(),
        }),
    }
}

fn payload_v4(slice: &Ipv4Slice<'_>) -> String {
    let bytes = slice.payload().payload;
    if slice.is_payload_fragmented() {
        return format!(
            "fragment at {} of {} bytes",
            slice.header().fragments_offset().byte_offset(),
            bytes.len()
        );
    }
    payload(slice.payload_ip_number(), bytes)
}

fn payload(protocol: IpNumber, bytes: &[u8]) -> String {
    match protocol {
        IpNumber::ICMP => icmp(bytes),
        IpNumber::IPV6_ICMP => icmp_v6(bytes),
        IpNumber::TCP => ports("TCP", bytes),
        IpNumber::UDP => ports("UDP", bytes),
        other => format!(
            "protocol {} ({}), {} bytes",
            other.0,
            protocol_name(other.0),
            bytes.len()
        ),
    }
}

fn icmp(bytes: &[u8]) -> String {
    let Some(&[kind, code, _, _, id_high, id_low, seq_high, seq_low]) = bytes.first_chunk::<8>() else {
        return "ICMP, cut short".into();
    };
    let echo = |what: &str| {
        let (id, seq) = (
            u16::from_be_bytes([id_high, id_low]),
            u16::from_be_bytes([seq_high, seq_low]),
        );
        format!("ICMP {what} id {id} seq {seq}")
    };
    match (kind, code) {
        (8, 0) => echo("echo request"),
        (0, 0) => echo("echo reply"),
        (3, 4) => "ICMP destination unreachable: fragmentation needed".into(),
        (3, _) => format!("ICMP destination unreachable, code {code}"),
        (11, _) => "ICMP time exceeded".into(),
        _ => format!("ICMP type {kind} code {code}"),
    }
}

fn icmp_v6(bytes: &[u8]) -> String {
    let Some(&[kind, code, _, _, a, b, c, d]) = bytes.first_chunk::<8>() else {
        return "ICMPv6, cut short".into();
    };
    let numbers = || format!("id {} seq {}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match kind {
        128 => format!("ICMPv6 echo request {}", numbers()),
        129 => format!("ICMPv6 echo reply {}", numbers()),
        1 => format!("ICMPv6 destination unreachable, code {code}"),
        2 => format!("ICMPv6 packet too big: MTU {}", u32::from_be_bytes([a, b, c, d])),
        3 => "ICMPv6 time exceeded".into(),
        133..=137 => format!("ICMPv6 neighbour discovery, type {kind}"),
        _ => format!("ICMPv6 type {kind} code {code}"),
    }
}

fn ports(name: &str, bytes: &[u8]) -> String {
    match bytes.first_chunk::<4>() {
        Some(&[a, b, c, d]) => {
            format!(
                "{name} {} -> {}  {} bytes",
                u16::from_be_bytes([a, b]),
                u16::from_be_bytes([c, d]),
                bytes.len()
            )
        }
        None => format!("{name}, cut short"),
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        1 => "ICMP",
        4 => "IP-in-IP",
        6 => "TCP",
        17 => "UDP",
        58 => "ICMPv6",
        132 => "SCTP",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &[&str]) {
        let lines = ip(bytes).map(|packet| packet.lines()).unwrap_or_default();
        assert_eq!(lines, expected);
    }

    /// `ping -c 1 192.168.202.5` from 192.168.36.75, between nodes 10.211.55.8 and 10.211.55.9.
    #[rustfmt::skip]
    const IPIP_ECHO: [u8; 52] = [
        0x45, 0, 0, 52, 0x12, 0x34, 0x40, 0, 63, 4, 0, 0, 10, 211, 55, 8, 10, 211, 55, 9,  // outer, DF, ttl 63
        0x45, 0, 0, 32, 0x00, 0x07, 0x40, 0, 63, 1, 0, 0, 192, 168, 36, 75, 192, 168, 202, 5, // inner
        8, 0, 0, 0, 0, 9, 0, 1, 1, 2, 3, 4,                                                 // echo request id 9 seq 1
    ];

    #[test]
    fn both_headers_of_ip_in_ip_are_shown() {
        check(
            &IPIP_ECHO,
            &[
                "outer  IPv4 10.211.55.8 -> 10.211.55.9  protocol 4 (IP-in-IP)  ttl 63  length 52  id 4660 DF",
                "  inner  IPv4 192.168.36.75 -> 192.168.202.5  protocol 1 (ICMP)  ttl 63  length 32  id 7 DF",
                "    ICMP echo request id 9 seq 1",
            ],
        );
    }

    #[test]
    fn a_plain_packet_has_one_header() {
        check(
            &IPIP_ECHO[20..],
            &[
                "IPv4 192.168.36.75 -> 192.168.202.5  protocol 1 (ICMP)  ttl 63  length 32  id 7 DF",
                "  ICMP echo request id 9 seq 1",
            ],
        );
    }

    #[test]
    fn a_head_shows_what_the_whole_packet_shows() {
        let mut packet = IPIP_ECHO.to_vec();
        (packet[3], packet[23]) = (252, 232);
        packet.resize(252, 0);
        let whole = ip(&packet);
        assert!(whole.is_some());
        assert_eq!(head(&packet[..100]), whole);
        assert_eq!(ip(&packet[..100]), None);
        for length in 0..50 {
            let _ = head(&packet[..length]);
        }
    }

    #[test]
    fn ipv6_is_shown_too() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 12, 58, 63];
        packet.extend("fd00:192:168::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("fd00:192:168::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend([128, 0, 0, 0, 0, 9, 0, 1, 1, 2, 3, 4]);
        check(
            &packet,
            &[
                "IPv6 fd00:192:168::1 -> fd00:192:168::2  protocol 58 (ICMPv6)  hop limit 63  length 52",
                "  ICMPv6 echo request id 9 seq 1",
            ],
        );
        for length in 0..packet.len() {
            let _ = ip(&packet[..length]);
        }
    }

    #[test]
    fn anything_can_be_cut_anywhere() {
        for length in 0..IPIP_ECHO.len() {
            let _ = ip(&IPIP_ECHO[..length]);
        }
        check(&[], &[]);
        check(&[0x50; 40], &[]);
    }
}
