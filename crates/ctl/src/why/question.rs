//! What is asked: `FROM -> TO[:PORT[/PROTOCOL]]` to two places and a packet.

use std::net::IpAddr;

use api::{Key, Protocol, Resource};
use policy::evaluate::Packet;

use super::place::{Place, Whose};
use super::world::World;
use crate::CtlError;

/// A source port that nothing is likely to mention.
pub const SOURCE_PORT: u16 = 50_000;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const PORTED: [u8; 4] = [6, 17, 132, 136];

/// A connection that somebody asks about.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it comes from.
    pub from: Place,
    /// Where it goes.
    pub to: Place,
    /// Its first packet.
    pub packet: Packet,
    /// Neither port nor protocol was said.
    pub any: bool,
}

/// A protocol with what belongs to it, before the family is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Nothing was said.
    Any,
    /// A protocol with ports.
    Port(u8, PortName),
    /// ICMP or ICMPv6, as the family has it: type and code; `None`: an echo request.
    Icmp(Option<(u8, u8)>),
    /// Another protocol.
    Protocol(u8),
}

/// A port by number, or as the destination calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortName {
    /// A number.
    Number(u16),
    /// A name of the destination's.
    Named(String),
}

/// The two ends of a command line: one, two or more words, with or without an arrow.
pub fn ends(words: &[String]) -> Result<[String; 2], CtlError> {
    const RIGHT: &str = "write FROM TO[:PORT[/PROTOCOL]], or 'FROM -> TO' in quotes";
    let line = words.join(" ");
    let line = line.replace("->", " ").replace('\u{2192}', " ");
    let parts: Vec<&str> = line.split_whitespace().collect();
    match parts.as_slice() {
        [_, "-"] => Err(CtlError::Usage(format!(
            "`-` is no destination; the shell takes `>` for a redirection to a file: {RIGHT}"
        ))),
        [from, to] => Ok([(*from).to_owned(), (*to).to_owned()]),
        [] => Err(CtlError::Usage(format!("FROM and TO are missing: {RIGHT}"))),
        [from] => Err(CtlError::Usage(format!("after FROM (`{from}`) TO is missing: {RIGHT}"))),
        [_, _, more @ ..] => Err(CtlError::Usage(format!(
            "`{}` is one word too many: {RIGHT}",
            more.join(" ")
        ))),
    }
}

/// A place's word and what stands behind its colon.
pub fn split(word: &str) -> (&str, Option<&str>) {
    if word.parse::<IpAddr>().is_ok() {
        return (word, None);
    }
    if let Some((address, rest)) = word.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':'));
    }
    match word.split_once(':') {
        Some((place, rest)) => (place, Some(rest)),
        None => (word, None),
    }
}

impl Traffic {
    /// `80`, `80/udp`, `http`, `icmp`, `8/icmp`, `47`-th protocol as `/47`; `None`: nothing was said.
    pub fn read(argument: &str, text: Option<&str>) -> Result<Self, CtlError> {
        let Some(text) = text else { return Ok(Traffic::Any) };
        let refuse = |why: &str| CtlError::Usage(format!("{argument}: `{text}` {why}"));
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (Some(port).filter(|port| !port.is_empty()), Some(protocol)),
            None => match Protocol::from_text(text) {
                Protocol::Name(name) if Protocol::NAMES.iter().any(|(known, _)| *known == name) => (None, Some(text)),
                Protocol::Name(_) | Protocol::Number(_) => (Some(text), None),
            },
        };
        let Some(number) = Protocol::from_text(protocol.unwrap_or("TCP")).number() else {
            return Err(refuse(
                "has no protocol that is known; it is one of TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6, or /1 to /255",
            ));
        };
        match (number, port) {
            (ICMP | ICMP_V6, None) => Ok(Traffic::Icmp(None)),
            (ICMP | ICMP_V6, Some(kind)) => match kind.parse() {
                Ok(kind) => Ok(Traffic::Icmp(Some((kind, 0)))),
                Err(_) => Err(refuse("must have a type of ICMP from 0 to 254, as 8/icmp")),
            },
            (number, None) if PORTED.contains(&number) => Err(refuse("needs a port, as 53/udp")),
            (number, None) => Ok(Traffic::Protocol(number)),
            (number, Some(_)) if !PORTED.contains(&number) => Err(refuse("has a port, but its protocol has none")),
            (number, Some(port)) => match port.parse::<u16>() {
                Ok(0) => Err(refuse("must have a port from 1 to 65535")),
                Ok(port) => Ok(Traffic::Port(number, PortName::Number(port))),
                Err(_) if port.bytes().all(|byte| byte.is_ascii_digit() || b"+-".contains(&byte)) => {
                    Err(refuse("must have a port from 1 to 65535"))
                }
                Err(_) => Ok(Traffic::Port(number, PortName::Named(port.to_owned()))),
            },
        }
    }
}

impl Question {
    /// Works out the packet. `v6`: IPv6, if both families are possible.
    pub fn new(
        world: &World,
        from: Place,
        to: Place,
        traffic: &Traffic,
        source_port: Option<u16>,
        v6: bool,
    ) -> Result<Self, CtlError> {
        let (source, destination) = addresses(&from, &to, v6)?;
        let mut packet = Packet {
            source,
            destination,
            protocol: 0,
            source_port: None,
            destination_port: None,
            icmp: None,
        };
        match traffic {
            Traffic::Any | Traffic::Icmp(_) => {
                let (protocol, echo) = match source {
                    IpAddr::V4(_) => (ICMP, 8),
                    IpAddr::V6(_) => (ICMP_V6, 128),
                };
                let given = match traffic {
                    Traffic::Icmp(given) => *given,
                    Traffic::Any | Traffic::Port(..) | Traffic::Protocol(_) => None,
                };
                packet.protocol = protocol;
                packet.icmp = Some(given.unwrap_or((echo, 0)));
            }
            Traffic::Port(protocol, port) => {
                packet.protocol = *protocol;
                packet.source_port = Some(source_port.unwrap_or(SOURCE_PORT));
                packet.destination_port = Some(match port {
                    PortName::Number(port) => *port,
                    PortName::Named(name) => named_port(world, &to, *protocol, name)?,
                });
            }
            Traffic::Protocol(protocol) => packet.protocol = *protocol,
        }
        Ok(Self {
            from,
            to,
            packet,
            any: *traffic == Traffic::Any,
        })
    }
}

/// An address of each, of one family.
fn addresses(from: &Place, to: &Place, v6: bool) -> Result<(IpAddr, IpAddr), CtlError> {
    let of = |place: &Place, v6: bool| place.addresses.iter().copied().find(|address| address.is_ipv6() == v6);
    for family in [v6, !v6] {
        if let (Some(source), Some(destination)) = (of(from, family), of(to, family)) {
            return Ok((source, destination));
        }
    }
    let list = |place: &Place| {
        let addresses: Vec<String> = place.addresses.iter().map(ToString::to_string).collect();
        addresses.join(", ")
    };
    Err(CtlError::Invalid(vec![format!(
        "FROM and TO have no family in common: {} has {}, {} has {}",
        from.name,
        list(from),
        to.name,
        list(to)
    )]))
}

fn named_port(world: &World, to: &Place, protocol: u8, name: &str) -> Result<u16, CtlError> {
    let mut known = Vec::new();
    match &to.whose {
        Whose::Pod { key, .. } => {
            if let Some(Resource::WorkloadEndpoint(pod)) = world.get(key) {
                let ports = pod.spec.ports.iter();
                known.extend(ports.map(|port| (port.name.clone(), port.protocol.number(), port.port)));
            }
        }
        Whose::Host {
            endpoint: Some(endpoint),
            ..
        } => {
            if let Some(Resource::HostEndpoint(host)) = world.get(&Key::cluster(api::Kind::HostEndpoint, endpoint)) {
                let ports = host.spec.ports.iter();
                known.extend(ports.map(|port| (port.name.clone(), port.protocol.number(), port.port)));
            }
        }
        Whose::Host { endpoint: None, .. } | Whose::Elsewhere => {}
    }
    let found = known
        .iter()
        .find(|(known, number, _)| known == name && *number == Some(protocol));
    let names: Vec<&str> = known
        .iter()
        .map(|(name, ..)| name.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    let has = match names.is_empty() {
        true => "has no named ports".to_owned(),
        false => format!("has {}", names.join(", ")),
    };
    found.map(|(_, _, port)| *port).ok_or_else(|| {
        let protocol = policy::protocol_name(protocol);
        CtlError::Invalid(vec![format!(
            "TO: `{name}` is neither a port, nor a protocol, nor a {protocol} port of {}, which {has}",
            to.name
        )])
    })
}
