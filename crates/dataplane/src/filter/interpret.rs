//! What a table does to a packet: a slow, plain reading of nf_tables, to compare with policy and with the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::*;

use super::table::Table;

/// A packet as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it came from; `None`: from this host.
    pub in_device: Option<String>,
    /// Where it goes; `None`: to this host.
    pub out_device: Option<String>,
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source and destination port, if the protocol has ports.
    pub ports: Option<(u16, u16)>,
    /// ICMP or ICMPv6 type and code.
    pub icmp: Option<(u8, u8)>,
    /// State of its flow.
    pub state: CtState,
    /// The flow's destination was translated.
    pub translated: bool,
    /// The packet mark.
    pub mark: u32,
    /// The source is an address of this host.
    pub from_here: bool,
    /// The destination is an address of this host.
    pub to_here: bool,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It passes.
    Accepted,
    /// It is dropped, without or with a word to the sender.
    Dropped,
}

/// What happened to a packet, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The end.
    pub decision: Decision,
    /// Rules that matched, in order, each as `chain: rule`.
    pub path: Vec<String>,
    /// The packet as it is now.
    pub packet: Packet,
    /// The new source, if it is translated: the statement that did it.
    pub source_nat: Option<Statement>,
}

/// Lets a packet pass all hooks on its way: which ones, its devices say.
pub fn journey(table: &Table, packet: &Packet) -> Outcome {
    let hooks: &[Hook] = match (&packet.in_device, &packet.out_device) {
        (Some(_), Some(_)) => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        (Some(_), None) => &[Hook::Prerouting, Hook::Input],
        (None, _) => &[Hook::Output, Hook::Postrouting],
    };
    let mut walk = Walk::new(table, packet);
    for hook in hooks {
        // The outgoing device is known after routing.
        walk.knows_out = *hook != Hook::Prerouting;
        if walk.hook(*hook) == Decision::Dropped {
            return walk.end(Decision::Dropped);
        }
    }
    walk.end(Decision::Accepted)
}

struct Walk<'a> {
    table: &'a Table,
    packet: Packet,
    path: Vec<String>,
    source_nat: Option<Statement>,
    knows_out: bool,
}

/// How a chain ended.
enum Ending {
    Decided(Decision),
    /// No rule decided, or one said so: the calling chain goes on.
    Returned,
}

impl<'a> Walk<'a> {
    fn new(table: &'a Table, packet: &Packet) -> Self {
        Self {
            table,
            packet: packet.clone(),
            path: Vec::new(),
            source_nat: None,
            knows_out: true,
        }
    }

    fn end(self, decision: Decision) -> Outcome {
        Outcome {
            decision,
            path: self.path,
            packet: self.packet,
            source_nat: self.source_nat,
        }
    }

    /// Every base chain of the hook must accept; those of nat see the first packet of a flow only.
    fn hook(&mut self, hook: Hook) -> Decision {
        let table = self.table;
        let chains = table
            .chains
            .iter()
            .filter_map(|(name, chain)| chain.base.map(|base| (base, name)));
        let mut chains: Vec<(BaseChain, &ChainName)> = chains.filter(|(base, _)| base.hook == hook).collect();
        chains.sort_by_key(|(base, name)| (base.priority, (*name).clone()));
        for (base, name) in chains {
            let is_first = self.packet.state == CtState::New;
            if base.kind == ChainKind::Nat && !is_first {
                continue;
            }
            let dropped = match self.chain(name) {
                Ending::Decided(decision) => decision == Decision::Dropped,
                Ending::Returned => base.drop,
            };
            if dropped {
                return Decision::Dropped;
            }
        }
        Decision::Accepted
    }

    fn chain(&mut self, name: &ChainName) -> Ending {
        let table = self.table;
        let rules = table
            .chains
            .get(name)
            .map(|chain| chain.rules.as_slice())
            .unwrap_or_default();
        for rule in rules {
            if !rule.matches.iter().all(|part| self.matches(part)) {
                continue;
            }
            // The interpreter's packets are few: within every limit.
            if rule.actions.iter().any(|action| matches!(action, Statement::Over(_))) {
                continue;
            }
            self.path.push(format!("{name}: {rule}"));
            if let Some(decision) = rule.actions.iter().find_map(|action| self.act(action)) {
                return Ending::Decided(decision);
            }
            let Some(verdict) = &rule.verdict else { continue };
            let verdict = match verdict {
                Verdict::Map { key, map } => match self.look_up(key, map) {
                    Some(ElementVerdict::Accept) => Verdict::Accept,
                    Some(ElementVerdict::Drop) => Verdict::Drop,
                    Some(ElementVerdict::Jump(chain)) => Verdict::Jump(chain),
                    Some(ElementVerdict::Goto(chain)) => Verdict::Goto(chain),
                    None => continue,
                },
                other => other.clone(),
            };
            match verdict {
                Verdict::Accept => return Ending::Decided(Decision::Accepted),
                Verdict::Drop => return Ending::Decided(Decision::Dropped),
                Verdict::Return | Verdict::Map { .. } => return Ending::Returned,
                Verdict::Goto(chain) => return self.chain(&chain),
                Verdict::Jump(chain) => match self.chain(&chain) {
                    Ending::Returned => {}
                    decided => return decided,
                },
            }
        }
        Ending::Returned
    }

    /// Does what a rule does besides; some of it decides.
    fn act(&mut self, action: &Statement) -> Option<Decision> {
        match action {
            Statement::Counter
            | Statement::Limit { .. }
            | Statement::Over(_)
            | Statement::SetDscp { .. }
            | Statement::Log { .. }
            | Statement::Nflog { .. } => None,
            Statement::SetMark { mask, value } => {
                self.packet.mark = (self.packet.mark & !mask) | value;
                None
            }
            Statement::Notrack => {
                self.packet.state = CtState::Untracked;
                None
            }
            Statement::Masquerade { .. } | Statement::SourceNat { .. } => {
                self.source_nat.get_or_insert_with(|| action.clone());
                Some(Decision::Accepted)
            }
            Statement::DestinationNat { address, port } => {
                if !self.packet.translated {
                    self.packet.destination = *address;
                    self.packet.translated = true;
                    let ports = self.packet.ports.zip(*port);
                    self.packet.ports = ports.map(|((source, _), port)| (source, port)).or(self.packet.ports);
                }
                Some(Decision::Accepted)
            }
            Statement::Reject => Some(Decision::Dropped),
        }
    }

    fn matches(&self, part: &Match) -> bool {
        let packet = &self.packet;
        match part {
            Match::Interface { way, negate, name } => {
                let device = self.device(*way).unwrap_or_default();
                let same = match name.strip_suffix('*') {
                    Some(prefix) => device.starts_with(prefix),
                    None => device == name,
                };
                same != *negate
            }
            Match::NoInterface(way) => self.device(*way).is_none(),
            Match::Family(family) => self.family() == *family,
            Match::Protocol { negate, number } => (packet.protocol == *number) != *negate,
            Match::Net { end, negate, net } => {
                IpFamily::of(&net.addr()) == self.family() && net.contains(&self.address(*end)) != *negate
            }
            Match::Port { end, negate, ranges } => packet.ports.is_some_and(|ports| {
                let port = port(ports, *end);
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)) != *negate
            }),
            Match::Icmp { negate, kind, code } => packet.icmp.is_some_and(|(there, there_code)| {
                let same = there == *kind && code.is_none_or(|code| code == there_code);
                same != *negate
            }),
            Match::InSet { key, negate, set } => self
                .key(key)
                .is_some_and(|key| self.find(&key, set).is_some() != *negate),
            Match::Conntrack(states) => states.contains(&packet.state),
            Match::Translated => packet.translated,
            // The interpreter's packets are of flows that nobody has ended.
            Match::Ended => false,
            Match::Mark { mask, value, negate } => (packet.mark & mask == *value) != *negate,
            Match::DestinationIsLocal => packet.to_here,
            Match::SourceIsLocal => packet.from_here,
        }
    }

    fn look_up(&self, key: &[Field], map: &SetName) -> Option<ElementVerdict> {
        let key = self.key(key)?;
        self.find(&key, map)?.verdict
    }

    /// The element that a key lies in.
    fn find(&self, key: &[Value], set: &SetName) -> Option<Element> {
        let set = self.table.sets.get(set)?;
        set.elements.iter().find(|element| {
            element.key.len() == key.len()
                && element
                    .key
                    .iter()
                    .zip(key)
                    .all(|(element, value)| lies_in(value, element))
        })
    }

    /// The packet's fields; `None`: it is of another family.
    fn key(&self, fields: &[Field]) -> Option<Vec<Value>> {
        let value = |field: &Field| match field {
            Field::Interface(way) => Some(Value::Interface(self.device(*way).unwrap_or_default().to_owned())),
            Field::Address(family, end) => (*family == self.family()).then(|| Value::Address(self.address(*end))),
            Field::Protocol => Some(Value::Protocol(self.packet.protocol)),
            Field::Port(end) => Some(Value::Port(
                self.packet.ports.map(|ports| port(ports, *end)).unwrap_or_default(),
            )),
        };
        fields.iter().map(value).collect()
    }

    fn family(&self) -> IpFamily {
        IpFamily::of(&self.packet.source)
    }

    fn address(&self, end: End) -> IpAddr {
        match end {
            End::Source => self.packet.source,
            End::Destination => self.packet.destination,
        }
    }

    fn device(&self, way: Way) -> Option<&str> {
        match way {
            Way::In => self.packet.in_device.as_deref(),
            Way::Out => self.packet.out_device.as_deref().filter(|_| self.knows_out),
        }
    }
}

fn port(ports: (u16, u16), end: End) -> u16 {
    match end {
        End::Source => ports.0,
        End::Destination => ports.1,
    }
}

fn lies_in(value: &Value, element: &Value) -> bool {
    match (value, element) {
        (Value::Address(address), Value::Net(net)) => net.contains(&IpNet::from(*address)),
        (Value::Port(port), Value::Ports(first, last)) => (first..=last).contains(&port),
        (value, element) => value == element,
    }
}
