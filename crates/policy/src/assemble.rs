//! Puts an endpoint together: which of the policies that select it are asked where, in which order.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::WorkloadEndpoint;
use api::{HostEndpointSpec, Key, WorkloadEndpointSpec};
use ipnet::IpNet;

use crate::policy_facts::{PolicyFacts, PolicyHook};
use crate::problem::{Effect, Problem};
use crate::rehearsal::subject_of;
use crate::state::{Direction, Endpoint, HostHook, Interface, Staged, Tier, TierEnd};
use crate::tiers::Tiers;

/// An endpoint of this node before policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bare {
    pub interface: Interface,
    pub addresses: Vec<IpAddr>,
    pub spoofable: Vec<IpNet>,
    pub profiles: Vec<String>,
    pub is_host: bool,
    /// Why its resource cannot be followed, if so.
    pub broken: Option<String>,
}

impl Bare {
    /// A workload's endpoint. Where the journal says which device it is, that is the one.
    pub fn workload(endpoint: &WorkloadEndpointSpec, device: &str) -> Self {
        let device = if device.is_empty() {
            &endpoint.interface_name
        } else {
            device
        };
        let prefix = |text: &String| -> Option<IpNet> {
            let address = || text.parse().ok().map(|address: IpAddr| address.into());
            text.parse().ok().or_else(address)
        };
        let spoofable = endpoint.allow_spoofed_source_prefixes.iter();
        Self {
            interface: Interface::Named(device.to_owned()),
            addresses: endpoint.ip_networks.iter().map(IpNet::addr).collect(),
            spoofable: spoofable.filter_map(prefix).map(|net| net.trunc()).collect(),
            profiles: endpoint.profiles.clone(),
            is_host: false,
            broken: None,
        }
    }

    /// A host's endpoint.
    pub fn host(endpoint: &HostEndpointSpec) -> Self {
        let interface = match endpoint.interface_name.as_str() {
            "" => Interface::WithAddress(endpoint.expected_ips.clone()),
            HostEndpointSpec::ALL_INTERFACES => Interface::All,
            name => Interface::Named(name.to_owned()),
        };
        Self {
            interface,
            addresses: Vec::new(),
            spoofable: Vec::new(),
            profiles: endpoint.profiles.clone(),
            is_host: true,
            broken: None,
        }
    }

    /// What kind of endpoint it is.
    pub fn role(&self) -> Role {
        match (self.is_host, &self.interface) {
            (false, _) => Role::Workload,
            (true, Interface::All) => Role::AllInterfaces,
            (true, Interface::Named(_) | Interface::WithAddress(_)) => Role::Host,
        }
    }
}

/// Kinds of endpoints, as far as other policies are asked there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Workload,
    Host,
    /// A host's, for all its interfaces.
    AllInterfaces,
}

/// What an endpoint has from the policies that select it. It is the same for all endpoints of a role that have the same ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Applied {
    ingress: Direction,
    egress: Direction,
    forward: HostHook,
    pre_dnat: Direction,
    untracked: HostHook,
}

/// A policy that selects an endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Selecting<'a> {
    pub key: &'a Key,
    pub facts: &'a PolicyFacts,
}

/// Whether what the store has of a pod replaces what the journal says. Not if it is about another container, such as the one
/// before: the store tells the news later than the runtime. Nor if it has no addresses yet.
pub(crate) fn replaces(stored: &WorkloadEndpoint, journal: &WorkloadEndpoint) -> bool {
    let containers = [&stored.spec.container_id, &journal.spec.container_id];
    let is_same = containers[0] == containers[1] || containers.iter().any(|id| id.is_empty());
    is_same && !stored.spec.ip_networks.is_empty()
}

/// The problem of a policy whose tier does not exist. Nobody knows where in the order it would come: it is asked before all others.
pub(crate) fn missing_tier(key: &Key, facts: &PolicyFacts, tiers: &Tiers) -> Option<Problem> {
    let is_said = || {
        facts
            .problems
            .iter()
            .any(|problem| ["", "spec.tier"].contains(&&*problem.field))
    };
    if tiers.get(&facts.tier).is_some() || is_said() {
        return None;
    }
    Some(Problem {
        key: key.clone(),
        field: "spec.tier".to_owned(),
        value: facts.tier.to_string(),
        text: "is no tier that exists".to_owned(),
        effect: Effect::of_policy(facts.staged),
    })
}

/// Why a policy cannot be followed, if so.
pub(crate) fn why_not(key: &Key, facts: &PolicyFacts, tiers: &Tiers) -> Option<String> {
    let problem = facts.broken().cloned().or_else(|| missing_tier(key, facts, tiers));
    problem.map(|problem| problem.what().trim_start().to_owned())
}

impl Applied {
    /// Where which of the policies that select an endpoint are asked.
    pub fn new(role: Role, mut selecting: Vec<Selecting<'_>>, tiers: &Tiers) -> Self {
        selecting.retain(|policy| is_asked(policy.facts, role, tiers));
        selecting.sort_by_cached_key(|policy| place(tiers, policy));
        let directions = |hooks: &[PolicyHook], gate: Gate| HostHook {
            ingress: direction(&selecting, tiers, gate, &|facts| {
                facts.ingress && hooks.contains(&facts.hook)
            }),
            egress: direction(&selecting, tiers, gate, &|facts| {
                facts.egress && hooks.contains(&facts.hook)
            }),
        };
        let normal = directions(&[PolicyHook::Normal, PolicyHook::NormalAndForward], Gate::Final);
        let on_hosts = |hook: PolicyHook, gate: Gate| match role {
            Role::Host | Role::AllInterfaces => directions(&[hook], gate),
            Role::Workload => HostHook::default(),
        };
        Self {
            ingress: normal.ingress,
            egress: normal.egress,
            forward: on_hosts(PolicyHook::NormalAndForward, Gate::Final),
            pre_dnat: on_hosts(PolicyHook::PreDnat, Gate::Early).ingress,
            untracked: on_hosts(PolicyHook::Untracked, Gate::Early),
        }
    }
}

/// The endpoint with what policies say. `broken_profile` tells why a profile's rules cannot be understood.
pub(crate) fn assemble(
    bare: &Bare,
    labels: BTreeMap<String, String>,
    applied: Applied,
    broken_profile: impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let Applied {
        ingress,
        egress,
        forward,
        pre_dnat,
        untracked,
    } = applied;
    Endpoint {
        interface: bare.interface.clone(),
        labels,
        addresses: bare.addresses.clone(),
        spoofable: bare.spoofable.clone(),
        ingress,
        egress,
        forward,
        pre_dnat,
        untracked,
        profiles: bare.profiles.clone(),
        closed: bare
            .broken
            .clone()
            .or_else(|| bare.profiles.iter().find_map(|name| broken_profile(name))),
    }
}

/// Whether a policy that selects an endpoint is asked there. One that cannot be followed is, unless it is a rehearsal.
pub(crate) fn is_asked(facts: &PolicyFacts, role: Role, tiers: &Tiers) -> bool {
    let can_be_followed = || facts.broken().is_none() && tiers.get(&facts.tier).is_some();
    is_for(facts, role) && (!facts.staged || can_be_followed()) && (facts.ingress || facts.egress)
}

/// Whether the endpoint is one for which the policy can be asked at all.
fn is_for(facts: &PolicyFacts, role: Role) -> bool {
    match facts.hook {
        PolicyHook::Normal | PolicyHook::NormalAndForward => true,
        PolicyHook::PreDnat => role != Role::Workload,
        // Upstream: what is for all interfaces has no untracked policy.
        PolicyHook::Untracked => role == Role::Host,
    }
}

/// By tier, those that do not exist first; then by policy. A staged one has the place of the policy that it would be, right after
/// that one.
fn place<'a>(tiers: &Tiers, policy: &Selecting<'a>) -> impl Ord + use<'a> {
    let tier = tiers.get(&policy.facts.tier).map(|tier| tier.order);
    let namespace = &policy.key.namespace;
    let (kind, name) = subject_of(policy.key);
    let place = (tier, &*policy.facts.tier, policy.facts.order, name, namespace, kind);
    (place, policy.facts.staged, policy.key)
}

/// Whether the end of a tier may deny.
#[derive(Clone, Copy)]
enum Gate {
    /// Something else decides later.
    Early,
    /// Nothing else does.
    Final,
}

/// The tiers with the policies, sorted, that are asked.
fn direction(
    sorted: &[Selecting<'_>],
    tiers: &Tiers,
    gate: Gate,
    is_asked: &dyn Fn(&PolicyFacts) -> bool,
) -> Direction {
    let mut found: Vec<Tier> = Vec::new();
    for policy in sorted.iter().filter(|policy| is_asked(policy.facts)) {
        let name = &*policy.facts.tier;
        if found.last().is_none_or(|tier| tier.name != name) {
            found.push(Tier {
                name: name.to_owned(),
                policies: Vec::new(),
                staged: Vec::new(),
                end: TierEnd::Pass,
            });
        }
        let Some(tier) = found.last_mut() else {
            continue;
        };
        let end = match (gate, tiers.get(name)) {
            (Gate::Final, Some(facts)) => facts.end,
            (Gate::Final, None) => TierEnd::Deny,
            (Gate::Early, _) => TierEnd::Pass,
        };
        match policy.facts.staged {
            true => tier.staged.push(Staged {
                id: policy.key.clone(),
                after: tier.policies.len(),
                end,
            }),
            false => {
                tier.policies.push(policy.key.clone());
                tier.end = end;
            }
        }
    }
    Direction { tiers: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_says_of_another_container_or_of_no_address_does_not_count() {
        let endpoint = |container: &str, net: &str| {
            let mut endpoint = WorkloadEndpoint::new("p", api::WorkloadEndpointSpec::default());
            endpoint.spec.container_id = container.into();
            endpoint.spec.ip_networks = net.parse().into_iter().collect();
            endpoint
        };
        for (container, net, counts) in [
            ("c1", "10.0.0.1/32", true),
            ("", "10.0.0.1/32", true),
            ("c2", "10.0.0.1/32", false),
            ("c1", "", false),
        ] {
            let stored = endpoint(container, net);
            assert_eq!(
                replaces(&stored, &endpoint("c1", "10.0.0.2/32")),
                counts,
                "{container} {net}"
            );
        }
    }
}
