//! What a [`PolicyState`] says about one packet, and why.
//!
//! The plainest reading of the state: no compilation, no cache. It is what `explain` prints, and what compiled rules are
//! compared with.

mod show;

use std::net::IpAddr;

use api::Action;

use crate::rehearsal::Rehearsed;
use crate::state::*;

/// A packet, as far as policy looks at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes; of the same family.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, of protocols that have ports.
    pub source_port: Option<u16>,
    /// Destination port, of protocols that have ports.
    pub destination_port: Option<u16>,
    /// Type and code, of ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
}

/// Which way a packet passes an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// Where policy of an endpoint is asked. Workloads know only [`Hook::Normal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets to and from the endpoint itself.
    Normal,
    /// Packets that are forwarded through a host endpoint.
    Forward,
    /// Packets to a host endpoint, before their destination is translated.
    PreDnat,
    /// Packets of a host endpoint, before they are tracked.
    Untracked,
}

/// What policy of one endpoint says about one packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// To or from it.
    pub way: Way,
    /// Where.
    pub hook: Hook,
    /// The result.
    pub outcome: Outcome,
    /// What led to it, in order; the last step decided.
    pub trace: Vec<Step>,
}

/// The result of asking policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The packet may pass.
    Allow,
    /// The packet is dropped.
    Deny,
    /// Nothing here has an opinion: it goes on. Not in [`Hook::Normal`].
    Undecided,
}

/// One thing that happened to a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// No such endpoint is known here: denied.
    NoEndpoint,
    /// The endpoint is closed, for this reason.
    Closed(String),
    /// A workload sent from an address that is not its own.
    Spoofed(IpAddr),
    /// A rule matched.
    Rule(Matched),
    /// The policy is named by the endpoint, but is not there: denied.
    NoPolicy(PolicyId),
    /// No rule of the tier's policies matched.
    TierEnd {
        /// The tier.
        tier: String,
        /// What follows.
        end: TierEnd,
    },
    /// The profile does not exist, so it has no rule that could allow.
    NoProfile(String),
    /// Nothing allowed the packet, profiles included.
    NothingMatched,
    /// No policy applies in this hook.
    NothingApplies,
}

/// A rule that matched.
#[derive(Clone, Debug, PartialEq)]
pub struct Matched {
    /// Whose rule.
    pub owner: Owner,
    /// Which list of rules.
    pub way: Way,
    /// Which rule, as written, from 0.
    pub index: usize,
    /// What it says.
    pub action: Action,
    /// The sets that it found the packet in: what they stand for.
    pub found_in: Vec<String>,
}

/// Whose rule it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A policy's.
    Policy {
        /// Its tier.
        tier: String,
        /// Which.
        id: PolicyId,
        /// Whom it selects.
        selector: String,
    },
    /// A profile's.
    Profile(String),
}

/// What policy says at both ends of a connection's first packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    /// At the workload here that sends it, if it is here.
    pub from: Option<Verdict>,
    /// At the workload here that it is for, if it is here.
    pub to: Option<Verdict>,
}

/// Asks the policy of `endpoint` about a packet in [`Hook::Normal`].
pub fn evaluate(state: &PolicyState, endpoint: &EndpointId, way: Way, packet: &Packet) -> Verdict {
    evaluate_at(state, endpoint, Hook::Normal, way, packet)
}

/// Asks the policy of `endpoint` about a packet in any hook.
pub fn evaluate_at(state: &PolicyState, endpoint: &EndpointId, hook: Hook, way: Way, packet: &Packet) -> Verdict {
    let rehearsed = None;
    ask(
        Asked {
            state,
            way,
            packet,
            rehearsed,
        },
        endpoint,
        hook,
    )
}

fn ask(asked: Asked<'_>, endpoint: &EndpointId, hook: Hook) -> Verdict {
    let mut trace = Vec::new();
    let outcome = match asked.state.endpoints.get(endpoint) {
        None => decide(&mut trace, Step::NoEndpoint, Outcome::Deny),
        Some(found) => asked.at(found, hook, &mut trace),
    };
    Verdict {
        endpoint: endpoint.clone(),
        way: asked.way,
        hook,
        outcome,
        trace,
    }
}

/// As [`evaluate_at`], if all staged policies were enforced. An endpoint that is closed stays so.
pub fn evaluate_rehearsed(
    state: &PolicyState,
    rehearsed: &Rehearsed,
    endpoint: &EndpointId,
    hook: Hook,
    way: Way,
    packet: &Packet,
) -> Verdict {
    let rehearsed = Some(rehearsed);
    ask(
        Asked {
            state,
            way,
            packet,
            rehearsed,
        },
        endpoint,
        hook,
    )
}

/// Asks both ends of a packet, as far as they are workloads of this state: whose address is whose is looked up here. A
/// workload that sends from an address not its own is denied.
pub fn connection(state: &PolicyState, packet: &Packet) -> Connection {
    let holder = |address: IpAddr| {
        let mut endpoints = state.endpoints.iter();
        endpoints
            .find(|(_, endpoint)| endpoint.addresses.contains(&address))
            .map(|(id, _)| id)
    };
    Connection {
        from: holder(packet.source).map(|id| evaluate_sent(state, id, packet)),
        to: holder(packet.destination).map(|id| evaluate(state, id, Way::Ingress, packet)),
    }
}

/// As [`evaluate`] for a packet that a workload sends, which also must come from one of its addresses.
pub fn evaluate_sent(state: &PolicyState, endpoint: &EndpointId, packet: &Packet) -> Verdict {
    let spoofed = state.endpoints.get(endpoint).is_some_and(|found| {
        let own = found.addresses.contains(&packet.source);
        !own && !found.spoofable.iter().any(|net| net.contains(&packet.source))
    });
    match spoofed {
        false => evaluate(state, endpoint, Way::Egress, packet),
        true => Verdict {
            endpoint: endpoint.clone(),
            way: Way::Egress,
            hook: Hook::Normal,
            outcome: Outcome::Deny,
            trace: vec![Step::Spoofed(packet.source)],
        },
    }
}

impl Connection {
    /// Whether every end that is here allows it.
    pub fn is_allowed(&self) -> bool {
        let ends = [&self.from, &self.to];
        ends.into_iter()
            .flatten()
            .all(|verdict| verdict.outcome == Outcome::Allow)
    }
}

/// A question to an endpoint.
struct Asked<'a> {
    state: &'a PolicyState,
    way: Way,
    packet: &'a Packet,
    /// Staged policies are asked too, in place of these.
    rehearsed: Option<&'a Rehearsed>,
}

fn decide(trace: &mut Vec<Step>, step: Step, outcome: Outcome) -> Outcome {
    trace.push(step);
    outcome
}

impl Asked<'_> {
    fn at(&self, endpoint: &Endpoint, hook: Hook, trace: &mut Vec<Step>) -> Outcome {
        if let Some(why) = &endpoint.closed {
            return match hook {
                Hook::Normal | Hook::Forward => decide(trace, Step::Closed(why.clone()), Outcome::Deny),
                // What is closed is closed later, where failsafe ports and others' packets are told apart.
                Hook::PreDnat | Hook::Untracked => decide(trace, Step::NothingApplies, Outcome::Undecided),
            };
        }
        let none = Direction::default();
        let direction = match (hook, self.way) {
            (Hook::Normal, Way::Ingress) => &endpoint.ingress,
            (Hook::Normal, Way::Egress) => &endpoint.egress,
            (Hook::Forward, Way::Ingress) => &endpoint.forward.ingress,
            (Hook::Forward, Way::Egress) => &endpoint.forward.egress,
            (Hook::PreDnat, Way::Ingress) => &endpoint.pre_dnat,
            (Hook::PreDnat, Way::Egress) => &none,
            (Hook::Untracked, Way::Ingress) => &endpoint.untracked.ingress,
            (Hook::Untracked, Way::Egress) => &endpoint.untracked.egress,
        };
        if let Some(outcome) = self.tiers(direction, trace) {
            return outcome;
        }
        match hook {
            Hook::Normal => self.profiles(&endpoint.profiles, trace),
            Hook::Forward | Hook::PreDnat | Hook::Untracked => {
                // Also if the tiers have only policies that are staged, or are staged to go.
                if trace.is_empty() {
                    trace.push(Step::NothingApplies);
                }
                Outcome::Undecided
            }
        }
    }

    fn tiers(&self, direction: &Direction, trace: &mut Vec<Step>) -> Option<Outcome> {
        'tiers: for tier in direction.tiers.iter() {
            let (policies, end) = self.of_tier(tier);
            for id in policies.iter().copied() {
                let Some(policy) = self.state.policies.get(id) else {
                    return Some(decide(trace, Step::NoPolicy(id.clone()), Outcome::Deny));
                };
                let owner = || Owner::Policy {
                    tier: tier.name.clone(),
                    id: id.clone(),
                    selector: policy.selector.clone(),
                };
                match self.rules(self.of(&policy.ingress, &policy.egress), &owner, trace) {
                    Some(Action::Allow) => return Some(Outcome::Allow),
                    Some(Action::Deny) => return Some(Outcome::Deny),
                    Some(Action::Pass) => continue 'tiers,
                    Some(Action::Log) | None => {}
                }
            }
            if policies.is_empty() {
                continue;
            }
            trace.push(Step::TierEnd {
                tier: tier.name.clone(),
                end,
            });
            match end {
                TierEnd::Deny => return Some(Outcome::Deny),
                TierEnd::Pass => {}
            }
        }
        None
    }

    /// The policies of a tier that are asked, in order, and its end.
    fn of_tier<'t>(&self, tier: &'t Tier) -> (Vec<&'t PolicyId>, TierEnd) {
        let Some(rehearsed) = self.rehearsed else {
            return (tier.policies.iter().collect(), tier.end);
        };
        let mut staged = tier.staged.iter().peekable();
        let mut policies = Vec::new();
        for (place, id) in tier.policies.iter().enumerate() {
            while let Some(staged) = staged.next_if(|staged| staged.after <= place) {
                policies.push(&staged.id);
            }
            if !rehearsed.contains(id) {
                policies.push(id);
            }
        }
        policies.extend(staged.map(|staged| &staged.id));
        (policies, tier.staged.first().map_or(tier.end, |staged| staged.end))
    }

    fn profiles(&self, names: &[String], trace: &mut Vec<Step>) -> Outcome {
        for name in names {
            let profile = match self.state.profiles.get(name) {
                Some(profile) if !profile.missing => profile,
                Some(_) | None => {
                    trace.push(Step::NoProfile(name.clone()));
                    continue;
                }
            };
            let owner = || Owner::Profile(name.clone());
            match self.rules(self.of(&profile.ingress, &profile.egress), &owner, trace) {
                Some(Action::Allow) => return Outcome::Allow,
                Some(Action::Deny) => return Outcome::Deny,
                Some(Action::Pass | Action::Log) | None => {}
            }
        }
        decide(trace, Step::NothingMatched, Outcome::Deny)
    }

    fn of<'r>(&self, ingress: &'r [Rule], egress: &'r [Rule]) -> &'r [Rule] {
        match self.way {
            Way::Ingress => ingress,
            Way::Egress => egress,
        }
    }

    /// The first action that is not Log.
    fn rules(&self, rules: &[Rule], owner: &dyn Fn() -> Owner, trace: &mut Vec<Step>) -> Option<Action> {
        for rule in rules {
            if !matches(self.state, rule, self.packet) {
                continue;
            }
            let sides = [&rule.source, &rule.destination];
            let sets = sides
                .into_iter()
                .flat_map(|side| side.sets.iter().chain(&side.named_ports).chain(&side.services));
            trace.push(Step::Rule(Matched {
                owner: owner(),
                way: self.way,
                index: rule.index,
                action: rule.action,
                found_in: sets
                    .filter_map(|id| Some(self.state.sets.get(id)?.meaning.clone()))
                    .collect(),
            }));
            match rule.action {
                Action::Log => {}
                decided @ (Action::Allow | Action::Deny | Action::Pass) => return Some(decided),
            }
        }
        None
    }
}

/// Whether a rule matches a packet.
pub fn matches(state: &PolicyState, rule: &Rule, packet: &Packet) -> bool {
    let family = match packet.source {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
    let icmp = |(kind, code): (u8, Option<u8>)| {
        packet
            .icmp
            .is_some_and(|(seen, seen_code)| seen == kind && code.is_none_or(|code| code == seen_code))
    };
    let end = |address, port| End {
        state,
        address,
        port,
        protocol: packet.protocol,
    };
    rule.family.is_none_or(|wanted| wanted == family)
        && rule.protocol.is_none_or(|wanted| wanted == packet.protocol)
        && rule.not_protocol.is_none_or(|unwanted| unwanted != packet.protocol)
        && rule.icmp.is_none_or(icmp)
        && !rule.not_icmp.is_some_and(icmp)
        && end(packet.source, packet.source_port).matches(&rule.source)
        && end(packet.destination, packet.destination_port).matches(&rule.destination)
}

/// One end of a packet.
struct End<'a> {
    state: &'a PolicyState,
    address: IpAddr,
    port: Option<u16>,
    protocol: u8,
}

impl End<'_> {
    fn matches(&self, side: &Side) -> bool {
        let within = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&self.address));
        let ranges = |ranges: &[(u16, u16)]| {
            let port = |port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
            self.port.is_some_and(port)
        };
        let named = |sets: &[SetId]| sets.iter().any(|set| self.has_port_in(set));
        (side.nets.is_empty() || within(&side.nets))
            && !within(&side.not_nets)
            && side.sets.iter().all(|set| self.is_in(set))
            && !side.not_sets.iter().any(|set| self.is_in(set))
            && ((side.ports.is_empty() && side.named_ports.is_empty())
                || ranges(&side.ports)
                || named(&side.named_ports))
            && !ranges(&side.not_ports)
            && !named(&side.not_named_ports)
            && (side.services.is_empty() || named(&side.services))
    }

    fn is_in(&self, set: &SetId) -> bool {
        self.state.sets.get(set).is_some_and(|set| set.contains(self.address))
    }

    fn has_port_in(&self, set: &SetId) -> bool {
        let Some(port) = self.port else { return false };
        let member = Member::Port(self.address, self.protocol, port);
        self.state
            .sets
            .get(set)
            .is_some_and(|set| set.members.contains(&member))
    }
}

impl Set {
    /// Whether an address lies in one of the members ([`SetKind::Nets`]).
    pub fn contains(&self, address: IpAddr) -> bool {
        // Members never overlap, so only the last that begins at or before the address can have it.
        let whole = Member::Net(address.into());
        match self.members.range(..=whole).next_back() {
            Some(Member::Net(net)) => net.contains(&address),
            Some(Member::Port(..)) | None => false,
        }
    }
}
