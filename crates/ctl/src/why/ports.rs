//! All packets of a policy's point of view: every port that makes a difference, once.
//!
//! Rules cut the ports of a protocol into ranges within which no rule tells two ports apart. One packet of each range stands for
//! all of it, so what is said about ranges holds for every port.

use std::collections::{BTreeMap, BTreeSet};

use policy::evaluate::Packet;
use policy::{Member, PolicyState, Rule, SetId, protocol_name};

use super::question::SOURCE_PORT;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const PORTED: [u8; 4] = [TCP, UDP, 132, 136];

/// Packets that no rule tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// Destination ports of a protocol, both ends included.
    Ports(u8, u16, u16),
    /// ICMP (or ICMPv6, as the family has it): a type and code, for IPv4 and for IPv6.
    Icmp((u8, u8), (u8, u8)),
    /// A protocol without ports.
    Protocol(u8),
}

impl Probe {
    /// Everything that rules of these states tell apart: TCP, UDP and echo requests always, other protocols if mentioned.
    pub fn all(states: &[&PolicyState]) -> Vec<Probe> {
        let mut cuts = Cuts::default();
        cuts.starts.entry(TCP).or_default();
        cuts.starts.entry(UDP).or_default();
        for state in states {
            state.rules().for_each(|rule| cuts.protocols(rule));
        }
        for state in states {
            state.rules().for_each(|rule| cuts.rule(state, rule));
        }
        cuts.probes()
    }

    /// The packet that stands for it, between the ends of `like`.
    pub fn packet(self, like: &Packet) -> Packet {
        let mut packet = Packet {
            protocol: 0,
            source_port: None,
            destination_port: None,
            icmp: None,
            ..like.clone()
        };
        match self {
            Probe::Ports(protocol, first, _) => {
                packet.protocol = protocol;
                packet.source_port = Some(like.source_port.unwrap_or(SOURCE_PORT));
                packet.destination_port = Some(first);
            }
            Probe::Icmp(v4, v6) => {
                (packet.protocol, packet.icmp) = match like.source.is_ipv4() {
                    true => (ICMP, Some(v4)),
                    false => (ICMP_V6, Some(v6)),
                };
            }
            Probe::Protocol(protocol) => packet.protocol = protocol,
        }
        packet
    }
}

#[derive(Default)]
struct Cuts {
    /// First ports of ranges, by protocol.
    starts: BTreeMap<u8, BTreeSet<u16>>,
    icmp: BTreeSet<(u8, u8)>,
    others: BTreeSet<u8>,
}

impl Cuts {
    fn protocols(&mut self, rule: &Rule) {
        for protocol in rule.protocol.into_iter().chain(rule.not_protocol) {
            match protocol {
                ICMP | ICMP_V6 => {}
                ported if PORTED.contains(&ported) => {
                    self.starts.entry(ported).or_default();
                }
                other => {
                    self.others.insert(other);
                }
            }
        }
        let types = rule.icmp.into_iter().chain(rule.not_icmp);
        self.icmp.extend(types.map(|(kind, code)| (kind, code.unwrap_or(0))));
    }

    fn rule(&mut self, state: &PolicyState, rule: &Rule) {
        let side = &rule.destination;
        for (first, last) in side.ports.iter().chain(&side.not_ports) {
            match rule.protocol {
                Some(protocol) => self.cut(protocol, *first, *last),
                None => PORTED.iter().for_each(|protocol| self.cut(*protocol, *first, *last)),
            }
        }
        let sets = side
            .named_ports
            .iter()
            .chain(&side.not_named_ports)
            .chain(&side.services);
        for member in sets
            .filter_map(|id: &SetId| state.sets.get(id))
            .flat_map(|set| &set.members)
        {
            if let Member::Port(_, protocol, port) = member {
                self.cut(*protocol, *port, *port);
            }
        }
    }

    /// A range begins, and the one after it.
    fn cut(&mut self, protocol: u8, first: u16, last: u16) {
        let Some(starts) = self.starts.get_mut(&protocol) else {
            return;
        };
        starts.insert(first);
        starts.extend(last.checked_add(1));
    }

    fn probes(self) -> Vec<Probe> {
        let mut probes = vec![Probe::Icmp((8, 0), (128, 0))];
        let echo = [(8, 0), (128, 0)];
        let types = self.icmp.into_iter().filter(|kind| !echo.contains(kind));
        probes.extend(types.map(|kind| Probe::Icmp(kind, kind)));
        for (protocol, mut starts) in self.starts {
            starts.insert(1);
            starts.remove(&0);
            let starts: Vec<u16> = starts.into_iter().collect();
            for (position, first) in starts.iter().enumerate() {
                let last = starts.get(position + 1).map_or(u16::MAX, |next| next - 1);
                probes.push(Probe::Ports(protocol, *first, last));
            }
        }
        probes.extend(self.others.into_iter().map(Probe::Protocol));
        probes
    }
}

/// Which of all packets between two ends may pass.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    all: Vec<Probe>,
    open: BTreeSet<Probe>,
}

impl Overview {
    /// Asks about every probe.
    pub fn new(all: Vec<Probe>, mut is_allowed: impl FnMut(Probe) -> bool) -> Self {
        let open = all.iter().copied().filter(|probe| is_allowed(*probe)).collect();
        Self { all, open }
    }

    /// What is allowed, in words.
    pub fn allowed(&self) -> Vec<String> {
        words(&self.all, &self.open)
    }

    /// What is denied, in words.
    pub fn denied(&self) -> Vec<String> {
        let all: BTreeSet<Probe> = self.all.iter().copied().collect();
        words(&self.all, &all.difference(&self.open).copied().collect())
    }
}

/// Probes of `all` in words, a protocol each: `TCP 80, 8000-8999`, `TCP except 80`, `UDP`.
pub fn words(all: &[Probe], chosen: &BTreeSet<Probe>) -> Vec<String> {
    let mut said = Vec::new();
    let kinds: Vec<&Probe> = all.iter().filter(|probe| matches!(probe, Probe::Icmp(..))).collect();
    let icmp: Vec<&Probe> = kinds.iter().copied().filter(|probe| chosen.contains(probe)).collect();
    match (icmp.len(), kinds.len()) {
        (0, _) => {}
        (some, every) if some == every => said.push("ICMP".to_owned()),
        _ => {
            let kind = |probe: &&Probe| match probe {
                Probe::Icmp((8, 0), _) => "echo request".to_owned(),
                Probe::Icmp((kind, code), _) => format!("type {kind} code {code}"),
                Probe::Ports(..) | Probe::Protocol(_) => String::new(),
            };
            said.push(format!("ICMP {}", icmp.iter().map(kind).collect::<Vec<_>>().join(", ")));
        }
    }
    let protocols: BTreeSet<u8> = all
        .iter()
        .filter_map(|probe| match probe {
            Probe::Ports(protocol, ..) | Probe::Protocol(protocol) => Some(*protocol),
            Probe::Icmp(..) => None,
        })
        .collect();
    for protocol in protocols {
        let name = protocol_name(protocol);
        if chosen.contains(&Probe::Protocol(protocol)) {
            said.push(format!("protocol {name}"));
        }
        let of = |wanted: bool| {
            let ranges = all.iter().filter_map(|probe| match probe {
                Probe::Ports(of, first, last) if *of == protocol && chosen.contains(probe) == wanted => {
                    Some((*first, *last))
                }
                Probe::Ports(..) | Probe::Icmp(..) | Probe::Protocol(_) => None,
            });
            merged(ranges)
        };
        let (inside, outside) = (of(true), of(false));
        let has_last = |ranges: &[(u16, u16)]| ranges.last().is_some_and(|(_, last)| *last == u16::MAX);
        match (inside.is_empty(), outside.is_empty()) {
            (true, _) => {}
            (false, true) => said.push(name),
            (false, false) if has_last(&inside) => said.push(format!("{name} except {}", list(&outside))),
            (false, false) => said.push(format!("{name} {}", list(&inside))),
        }
    }
    said
}

fn merged(ranges: impl Iterator<Item = (u16, u16)>) -> Vec<(u16, u16)> {
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, before)) if before.checked_add(1) == Some(first) => *before = last,
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn list(ranges: &[(u16, u16)]) -> String {
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}
