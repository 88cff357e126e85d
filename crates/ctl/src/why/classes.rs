//! Pods that policy does not tell apart, put together: so a cluster of thousands of pods is compared as a few dozen classes.
//!
//! Two addresses are in one class if they have the same policies and profiles, and are in the same sets and networks that any
//! rule names, before and after. Then evaluation cannot tell them apart, whatever the packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::Key;
use ipnet::IpNet;
use policy::{Direction, EndpointId, Member, PolicyState, Rule, SetId, SetKind};

/// Addresses of pods that behave the same.
#[derive(Clone, Debug)]
pub struct Class {
    /// The pods' endpoints, each with its address.
    pub members: Vec<(Key, IpAddr)>,
    /// What an endpoint of it sends is judged otherwise than before, by some rule at least.
    pub egress_differs: bool,
    /// The same for what it receives.
    pub ingress_differs: bool,
}

impl Class {
    /// Of IPv6 addresses.
    pub fn is_v6(&self) -> bool {
        self.members.iter().any(|(_, address)| address.is_ipv6())
    }

    /// All its addresses are one pod's.
    pub fn is_one_pod(&self) -> bool {
        self.members.windows(2).all(|two| two[0].0 == two[1].0)
    }
}

/// What evaluation may depend on, of an endpoint and one of its addresses.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Signature {
    is_v6: bool,
    /// In each state: tiers with policies and ends, both directions, profiles, the reason why it is closed.
    policies: Vec<String>,
    /// In each state: sets that it is in, with ports where there are any.
    sets: Vec<(SetId, Vec<(u8, u16)>)>,
    nets: Vec<IpNet>,
}

/// The classes of all pods of two states.
pub fn classes(before: &PolicyState, after: &PolicyState) -> Vec<Class> {
    let states = [before, after];
    let nets: Vec<BTreeSet<IpNet>> = states.iter().map(|state| literal_nets(state)).collect();
    let changed = Changed::new(before, after);
    let mut classes: BTreeMap<Signature, Class> = BTreeMap::new();
    for (id, endpoint) in &before.endpoints {
        let (EndpointId::Workload(key), Some(other)) = (id, after.endpoints.get(id)) else {
            continue;
        };
        let described = [endpoint, other].map(|endpoint| {
            format!(
                "{:?} {:?} {:?} {:?}",
                endpoint.ingress, endpoint.egress, endpoint.profiles, endpoint.closed
            )
        });
        let whole = endpoint.closed != other.closed
            || endpoint.profiles != other.profiles
            || endpoint.profiles.iter().any(|name| changed.profiles.contains(name));
        let ingress_differs = whole || changed.direction(&endpoint.ingress, &other.ingress);
        let egress_differs = whole || changed.direction(&endpoint.egress, &other.egress);
        for address in &endpoint.addresses {
            let signature = Signature {
                is_v6: address.is_ipv6(),
                policies: described.to_vec(),
                sets: states.iter().flat_map(|state| sets_of(state, *address)).collect(),
                nets: nets
                    .iter()
                    .flatten()
                    .filter(|net| net.contains(address))
                    .copied()
                    .collect(),
            };
            let class = classes.entry(signature).or_insert_with(|| Class {
                members: Vec::new(),
                egress_differs,
                ingress_differs,
            });
            class.members.push((key.clone(), *address));
        }
    }
    classes.into_values().collect()
}

fn sets_of(state: &PolicyState, address: IpAddr) -> Vec<(SetId, Vec<(u8, u16)>)> {
    let mut found = Vec::new();
    for (id, set) in &state.sets {
        match set.kind {
            SetKind::Nets if set.contains(address) => found.push((id.clone(), Vec::new())),
            SetKind::Nets => {}
            SetKind::Ports => {
                let first = Member::Port(address, 0, 0);
                let members = set.members.range(first..=Member::Port(address, u8::MAX, u16::MAX));
                let ports = members.filter_map(|member| match member {
                    Member::Port(_, protocol, port) => Some((*protocol, *port)),
                    Member::Net(_) => None,
                });
                let ports: Vec<(u8, u16)> = ports.collect();
                if !ports.is_empty() {
                    found.push((id.clone(), ports));
                }
            }
        }
    }
    found
}

fn literal_nets(state: &PolicyState) -> BTreeSet<IpNet> {
    let sides = state.rules().flat_map(|rule| [&rule.source, &rule.destination]);
    sides
        .flat_map(|side| side.nets.iter().chain(&side.not_nets))
        .copied()
        .collect()
}

/// What is not the same in both states.
struct Changed {
    policies: BTreeSet<Key>,
    profiles: BTreeSet<String>,
}

impl Changed {
    fn new(before: &PolicyState, after: &PolicyState) -> Self {
        let sets: BTreeSet<&SetId> = before
            .sets
            .iter()
            .filter(|(id, set)| after.sets.get(id).is_some_and(|other| other != *set))
            .map(|(id, _)| id)
            .collect();
        let uses = |rules: &[Rule]| {
            let sides = rules.iter().flat_map(|rule| [&rule.source, &rule.destination]);
            let mut used = sides.flat_map(|side| {
                let nets = side.sets.iter().chain(&side.not_sets);
                let ports = side.named_ports.iter().chain(&side.not_named_ports);
                nets.chain(ports).chain(&side.services)
            });
            used.any(|id| sets.contains(id))
        };
        let policies = before.policies.iter().filter(|(id, policy)| {
            after.policies.get(id) != Some(policy) || uses(&policy.ingress) || uses(&policy.egress)
        });
        let profiles = before.profiles.iter().filter(|(name, profile)| {
            after.profiles.get(*name) != Some(profile) || uses(&profile.ingress) || uses(&profile.egress)
        });
        Self {
            policies: policies.map(|(id, _)| id.clone()).collect(),
            profiles: profiles.map(|(name, _)| name.clone()).collect(),
        }
    }

    fn direction(&self, before: &Direction, after: &Direction) -> bool {
        let mut named = before.tiers.iter().flat_map(|tier| &tier.policies);
        before != after || named.any(|id| self.policies.contains(id))
    }
}
