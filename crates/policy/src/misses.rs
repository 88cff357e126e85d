//! Why a rule does not match a packet, in words: the counterpart of [`evaluate::matches`](crate::evaluate::matches).

use std::net::IpAddr;

use api::Protocol;

use crate::evaluate::Packet;
use crate::state::*;

/// The parts of a rule that do not match a packet, for people. Empty exactly if the rule matches.
pub fn misses(state: &PolicyState, rule: &Rule, packet: &Packet) -> Vec<String> {
    let mut found = Vec::new();
    let family = match packet.source {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    match rule.family {
        Some(Family::V4) if family != Family::V4 => found.push("it is about IPv4".to_owned()),
        Some(Family::V6) if family != Family::V6 => found.push("it is about IPv6".to_owned()),
        Some(_) | None => {}
    }
    let protocol = protocol_name(packet.protocol);
    if let Some(wanted) = rule.protocol.filter(|wanted| *wanted != packet.protocol) {
        found.push(format!("protocol {protocol} is not {}", protocol_name(wanted)));
    }
    if rule.not_protocol == Some(packet.protocol) {
        found.push(format!("protocol {protocol} is excluded"));
    }
    let is_icmp = |(kind, code): (u8, Option<u8>)| {
        packet
            .icmp
            .is_some_and(|(seen, seen_code)| seen == kind && code.is_none_or(|code| code == seen_code))
    };
    if let Some(wanted) = rule.icmp.filter(|wanted| !is_icmp(*wanted)) {
        found.push(format!("it is not ICMP {}", icmp_name(wanted)));
    }
    if let Some(unwanted) = rule.not_icmp.filter(|unwanted| is_icmp(*unwanted)) {
        found.push(format!("ICMP {} is excluded", icmp_name(unwanted)));
    }
    let sides = [
        ("source", packet.source, packet.source_port, &rule.source),
        (
            "destination",
            packet.destination,
            packet.destination_port,
            &rule.destination,
        ),
    ];
    for (word, address, port, side) in sides {
        let end = End {
            state,
            word,
            address,
            port,
            protocol: packet.protocol,
        };
        end.misses(side, &mut found);
    }
    found
}

/// A protocol by its name, if it has one: `TCP`, `47`.
pub fn protocol_name(number: u8) -> String {
    let known = Protocol::NAMES.iter().find(|(_, known)| *known == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

pub(crate) fn icmp_name((kind, code): (u8, Option<u8>)) -> String {
    match code {
        Some(code) => format!("type {kind} code {code}"),
        None => format!("type {kind}"),
    }
}

/// One end of a packet, and its name.
struct End<'a> {
    state: &'a PolicyState,
    word: &'static str,
    address: IpAddr,
    port: Option<u16>,
    protocol: u8,
}

impl End<'_> {
    fn misses(&self, side: &Side, found: &mut Vec<String>) {
        let (word, address) = (self.word, self.address);
        if !side.nets.is_empty() && !side.nets.iter().any(|net| net.contains(&address)) {
            found.push(format!("{word} {address} is not in {}", list(&side.nets)));
        }
        for net in side.not_nets.iter().filter(|net| net.contains(&address)) {
            found.push(format!("{word} {address} is in {net}, which is excluded"));
        }
        for set in side.sets.iter().filter(|set| !self.is_in(set)) {
            found.push(format!("{word} {address} is not in: {}", self.meaning(set)));
        }
        for set in side.not_sets.iter().filter(|set| self.is_in(set)) {
            found.push(format!(
                "{word} {address} is in what is excluded: {}",
                self.meaning(set)
            ));
        }
        let has_ports = !side.ports.is_empty() || !side.named_ports.is_empty();
        if has_ports && !self.is_within(&side.ports) && !side.named_ports.iter().any(|set| self.has_port_in(set)) {
            let ranges = side.ports.iter().map(range);
            let named = side.named_ports.iter().map(|set| self.meaning(set));
            let wanted: Vec<String> = ranges.chain(named).collect();
            found.push(match self.port {
                Some(port) => format!("{word} port {port} is not {}", wanted.join(", ")),
                None => format!("it has no {word} port, which should be {}", wanted.join(", ")),
            });
        }
        if self.is_within(&side.not_ports) || side.not_named_ports.iter().any(|set| self.has_port_in(set)) {
            let port = self.port.unwrap_or_default();
            found.push(format!("{word} port {port} is excluded"));
        }
        if !side.services.is_empty() && !side.services.iter().any(|set| self.has_port_in(set)) {
            let wanted: Vec<String> = side.services.iter().map(|set| self.meaning(set)).collect();
            found.push(match self.port {
                Some(port) => format!("{word} {address} port {port} is not {}", wanted.join(", ")),
                None => format!("it has no {word} port, which {} has", wanted.join(", ")),
            });
        }
    }

    fn is_in(&self, id: &SetId) -> bool {
        self.state.sets.get(id).is_some_and(|set| set.contains(self.address))
    }

    fn has_port_in(&self, id: &SetId) -> bool {
        let Some(port) = self.port else { return false };
        let member = Member::Port(self.address, self.protocol, port);
        self.state.sets.get(id).is_some_and(|set| set.members.contains(&member))
    }

    fn is_within(&self, ranges: &[(u16, u16)]) -> bool {
        let port = |port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
        self.port.is_some_and(port)
    }

    fn meaning(&self, id: &SetId) -> String {
        match self.state.sets.get(id) {
            Some(set) => set.meaning.clone(),
            None => format!("set {}, which is not there", id.0),
        }
    }
}

pub(crate) fn range((first, last): &(u16, u16)) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

pub(crate) fn list(nets: &[ipnet::IpNet]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = nets.iter().take(SHOWN).map(ToString::to_string).collect();
    match nets.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", shown.join(", ")),
        None => shown.join(", "),
    }
}
