//! Who may talk to whom in a whole cluster: expectations, and what a change of its resources would change.
//!
//! All workloads are looked at as if they lived on one node, so both ends of every connection between them are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{Key, Protocol, Resource};
use datastore::Update;

use crate::Graph;
use crate::evaluate::{Connection, Packet, connection};
use crate::problem::Problem;
use crate::state::{EndpointId, Member, PolicyState, SetKind, Side};

/// A cluster as its resources describe it.
#[derive(Debug)]
pub struct Cluster {
    state: PolicyState,
    problems: Vec<Problem>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// The key of a WorkloadEndpoint.
    Workload(Key),
    /// An address, of a workload or of anything else.
    Address(IpAddr),
}

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// A protocol with ports (TCP, UDP, SCTP), by number, and the destination port.
    Port(u8, u16),
    /// ICMP or ICMPv6, as the family is: type and code.
    Icmp(u8, u8),
    /// Any other protocol.
    Protocol(u8),
}

/// An expectation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expectation {
    /// Who opens the connection.
    pub from: Party,
    /// Whom with.
    pub to: Party,
    /// What for.
    pub service: Service,
    /// Whether that is allowed.
    pub allowed: bool,
}

/// An expectation that does not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The expectation.
    pub expectation: Expectation,
    /// What was found instead.
    pub found: Found,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Policy says this, with its reasons.
    Verdict(Connection),
    /// There is no such workload.
    NoWorkload(Key),
    /// The parties have no addresses of one family.
    NoCommonFamily,
}

/// A pair of workloads that a change concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Who opens the connection.
    pub from: Key,
    /// Whom with.
    pub to: Key,
    /// What for.
    pub service: Service,
    /// Whether it is allowed after the change; before, it was the opposite.
    pub allowed: bool,
}

impl Cluster {
    /// The cluster that has these resources.
    pub fn new<'a>(resources: impl Iterator<Item = &'a Resource>) -> Self {
        let mut graph = Graph::new("");
        for resource in resources {
            match resource {
                Resource::WorkloadEndpoint(endpoint) => graph.local(endpoint.key(), Some(endpoint.clone())),
                other => graph.apply(Update {
                    key: other.key(),
                    value: Some(other.clone()),
                }),
            }
        }
        graph.flush();
        Self {
            state: graph.state().clone(),
            problems: graph.problems(),
        }
    }

    /// What policy says, for all workloads.
    pub fn state(&self) -> &PolicyState {
        &self.state
    }

    /// What cannot be followed.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Asks about the first packet of a connection. Where both parties have addresses of both families, IPv4 is asked.
    pub fn ask(&self, from: &Party, to: &Party, service: Service) -> Found {
        let (sources, destinations) = match (self.addresses(from), self.addresses(to)) {
            (Ok(sources), Ok(destinations)) => (sources, destinations),
            (Err(key), _) | (_, Err(key)) => return Found::NoWorkload(key),
        };
        let pair = [true, false].into_iter().find_map(|v4| {
            let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv4() == v4);
            of_family(&sources).zip(of_family(&destinations))
        });
        match pair {
            Some((source, destination)) => {
                Found::Verdict(connection(&self.state, &service.packet(source, destination)))
            }
            None => Found::NoCommonFamily,
        }
    }

    /// The expectations that do not hold.
    pub fn check(&self, expectations: &[Expectation]) -> Vec<Failure> {
        let failure = |expectation: &Expectation| {
            let found = self.ask(&expectation.from, &expectation.to, expectation.service);
            let holds = found.is_allowed() == Some(expectation.allowed);
            (!holds).then(|| Failure {
                expectation: expectation.clone(),
                found,
            })
        };
        expectations.iter().filter_map(failure).collect()
    }

    /// What may come to be allowed or denied between workloads that are in both, if this cluster becomes `after`. Every pair
    /// is asked about every port at which a rule of either makes a difference, and one that no rule names.
    pub fn differences(&self, after: &Cluster) -> Vec<Difference> {
        let services: BTreeSet<Service> = probes(&self.state).into_iter().chain(probes(&after.state)).collect();
        let keys = self.workloads().filter(|key| after.workload(key).is_some());
        let keys: Vec<&Key> = keys.collect();
        let mut differences = Vec::new();
        for from in &keys {
            for to in keys.iter().filter(|to| *to != from) {
                let (from, to) = (Party::Workload((*from).clone()), Party::Workload((*to).clone()));
                for service in &services {
                    let [old, new] = [self, after].map(|cluster| cluster.ask(&from, &to, *service).is_allowed());
                    if let (Some(old), Some(new), Party::Workload(from), Party::Workload(to)) = (old, new, &from, &to)
                        && old != new
                    {
                        differences.push(Difference {
                            from: from.clone(),
                            to: to.clone(),
                            service: *service,
                            allowed: new,
                        });
                    }
                }
            }
        }
        differences
    }

    fn workloads(&self) -> impl Iterator<Item = &Key> {
        self.state.endpoints.keys().filter_map(|id| match id {
            EndpointId::Workload(key) => Some(key),
            EndpointId::Host(_) => None,
        })
    }

    fn workload(&self, key: &Key) -> Option<&[IpAddr]> {
        let endpoint = self.state.endpoints.get(&EndpointId::Workload(key.clone()))?;
        Some(&endpoint.addresses)
    }

    fn addresses(&self, party: &Party) -> Result<Vec<IpAddr>, Key> {
        match party {
            Party::Workload(key) => self.workload(key).map(<[IpAddr]>::to_vec).ok_or_else(|| key.clone()),
            Party::Address(address) => Ok(vec![*address]),
        }
    }
}

impl Found {
    /// Whether it is allowed, if there is an answer.
    pub fn is_allowed(&self) -> Option<bool> {
        match self {
            Found::Verdict(connection) => Some(connection.is_allowed()),
            Found::NoWorkload(_) | Found::NoCommonFamily => None,
        }
    }
}

impl Service {
    /// The first packet of a connection.
    pub fn packet(self, source: IpAddr, destination: IpAddr) -> Packet {
        /// Where connections usually come from (RFC 6335 section 6: dynamic ports).
        const SOURCE_PORT: u16 = 50_000;
        let icmp = if source.is_ipv4() { ICMP } else { ICMP_V6 };
        let (protocol, port, icmp) = match self {
            Service::Port(protocol, port) => (protocol, Some(port), None),
            Service::Icmp(kind, code) => (icmp, None, Some((kind, code))),
            Service::Protocol(protocol) => (protocol, None, None),
        };
        Packet {
            source,
            destination,
            protocol,
            source_port: port.map(|_| SOURCE_PORT),
            destination_port: port,
            icmp,
        }
    }
}

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// What makes a difference to the rules of a state: both sides of every boundary between ports, echo requests, the ICMP types
/// and the protocols that are named.
fn probes(state: &PolicyState) -> BTreeSet<Service> {
    let mut ports: BTreeMap<u8, BTreeSet<u16>> = WITH_PORTS.map(|protocol| (protocol, BTreeSet::new())).into();
    let mut probes = BTreeSet::from([Service::Icmp(8, 0)]);
    for rule in state.rules() {
        for number in [rule.protocol, rule.not_protocol].into_iter().flatten() {
            if !Protocol::Number(number).has_ports() && ![ICMP, ICMP_V6].contains(&number) {
                probes.insert(Service::Protocol(number));
            }
        }
        for (kind, code) in [rule.icmp, rule.not_icmp].into_iter().flatten() {
            probes.insert(Service::Icmp(kind, code.unwrap_or_default()));
        }
        let Side {
            ports: own, not_ports, ..
        } = &rule.destination;
        for (first, last) in own.iter().chain(not_ports) {
            for (protocol, ports) in &mut ports {
                if rule.protocol.is_none_or(|wanted| wanted == *protocol) {
                    ports.extend([first.saturating_sub(1), *first, *last, last.saturating_add(1)]);
                }
            }
        }
    }
    for set in state.sets.values().filter(|set| set.kind == SetKind::Ports) {
        for member in &set.members {
            if let Member::Port(_, protocol, port) = member {
                ports.entry(*protocol).or_default().insert(*port);
            }
        }
    }
    for (protocol, mut numbers) in ports {
        numbers.remove(&0);
        // One that nothing names.
        let other = (1..=u16::MAX).rev().find(|port| !numbers.contains(port));
        numbers.extend(other);
        probes.extend(numbers.into_iter().map(|port| Service::Port(protocol, port)));
    }
    probes
}
