//! A host that has just booted: no table of ours is in the kernel, and nobody knows yet what policy says. Its host endpoints, as
//! the last agent knew them, are closed to what comes from outside, except for failsafe ports, until policy is known. Those that
//! policies with `applyOnForward` selected let nothing through either, in the directions of these policies: `preDNAT` and
//! `doNotTrack` policies are such policies too, and what they would have let pass early meets a closed endpoint.
//!
//! What the host itself begins is let out. Otherwise an agent whose datastore is on no failsafe port could never reach it, and
//! would never hear of the policy that allows just that.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::Spec;
use api::resource::{GlobalNetworkPolicy, HostEndpoint};
use api::{Action, Key, Kind, Resource};
use calc::NodeState;
use dataplane::filter::is_made_by_an_agent;
use datastore::Update;
use kernel::nft::TableState;
use policy::{
    Direction, Endpoint, EndpointId, HostHook, Interface, Policy, PolicyChange, PolicyId, Profile, Rule, Side, Tier,
    TierEnd,
};

use super::PacketFilter;
use crate::last_known::Memory;

/// The profile of closed host endpoints, and the policy of those that let nothing through. No resource can have this name.
const CLOSED: &str = "(until policy is known)";
/// A tier that is there in any case.
const DEFAULT_TIER: &str = "default";

/// What is known of the last run.
#[derive(Debug)]
pub struct LastRun {
    /// Settings and nodes.
    state: NodeState,
    /// Its host endpoints, closed.
    hosts: Vec<(EndpointId, Endpoint)>,
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) enum Boot {
    /// The kernel has not been looked at. The node's state as it is told already is newer than the last run's, but not whole.
    Unknown {
        last: Box<LastRun>,
        told: Option<Box<NodeState>>,
    },
    /// These host endpoints are closed. The node's state as it is told meanwhile is not whole.
    Closed {
        endpoints: BTreeSet<EndpointId>,
        state: Option<Box<NodeState>>,
    },
    /// No boot, no host endpoint, or over.
    #[default]
    Over,
}

impl LastRun {
    /// Of what the last agent has written down; `None` if that is no host endpoint. If it cannot be read, every device counts
    /// as one that lets nothing through; so it does if nothing is there and `careful`.
    pub fn new(node: &str, memory: &Memory, careful: bool) -> Option<Self> {
        match memory {
            Memory::Picture(picture) => {
                let state = calc::compute(node, picture.values());
                let hosts = hosts(node, picture.values());
                (!hosts.is_empty()).then_some(Self { state, hosts })
            }
            Memory::Nothing if !careful => None,
            Memory::Nothing | Memory::Unreadable => Some(Self {
                state: calc::compute(node, std::iter::empty()),
                hosts: vec![(EndpointId::Host(CLOSED.to_owned()), closed(Interface::All, [true; 2]))],
            }),
        }
    }
}

/// Host endpoints, closed.
fn hosts<'a>(node: &str, resources: impl Iterator<Item = &'a Resource>) -> Vec<(EndpointId, Endpoint)> {
    let mut graph = policy::Graph::new(node);
    for resource in resources {
        let value: Resource = match resource {
            Resource::HostEndpoint(endpoint) => without_profiles(endpoint).into(),
            Resource::GlobalNetworkPolicy(policy) => without_rules(policy).into(),
            _ => continue,
        };
        graph.apply(Update {
            key: value.key(),
            value: Some(value),
        });
    }
    graph.flush();
    let close = |(id, known): (&EndpointId, &Arc<Endpoint>)| {
        let through = |directions: &[&Direction]| directions.iter().any(|direction| has_policies(direction));
        let (forward, untracked) = (&known.forward, &known.untracked);
        let ways = [
            through(&[&forward.ingress, &known.pre_dnat, &untracked.ingress]),
            through(&[&forward.egress, &untracked.egress]),
        ];
        // What concerns it cannot be understood: nobody knows which ways.
        let ways = ways.map(|way| way || known.closed.is_some());
        (id.clone(), closed(known.interface.clone(), ways))
    };
    graph.state().endpoints.iter().map(close).collect()
}

fn has_policies(direction: &Direction) -> bool {
    direction.tiers.iter().any(|tier| !tier.policies.is_empty())
}

/// Profiles are not in the picture.
fn without_profiles(endpoint: &HostEndpoint) -> HostEndpoint {
    let mut endpoint = endpoint.clone();
    endpoint.spec.profiles.clear();
    endpoint
}

/// Whom it selects, and for which directions. Neither tiers nor what rules name is in the picture.
fn without_rules(policy: &GlobalNetworkPolicy) -> GlobalNetworkPolicy {
    let mut policy = policy.clone();
    // Without rules nobody could tell the directions that it does not name.
    policy.spec.apply_defaults(&mut policy.metadata);
    policy.spec.tier = DEFAULT_TIER.to_owned();
    policy.spec.ingress.clear();
    policy.spec.egress.clear();
    policy
}

/// A host endpoint that lets in what is failsafe, lets out what the host begins, and lets nothing through from its device and to it
/// where `through` says so.
fn closed(interface: Interface, through: [bool; 2]) -> Endpoint {
    let direction = |closed: bool| {
        let tier = Tier {
            name: CLOSED.to_owned(),
            policies: vec![policy_id()],
            staged: Vec::new(),
            end: TierEnd::Deny,
        };
        Direction {
            tiers: closed.then_some(tier).into_iter().collect(),
        }
    };
    let [ingress, egress] = through.map(direction);
    Endpoint {
        interface,
        labels: Default::default(),
        addresses: Vec::new(),
        spoofable: Vec::new(),
        ingress: Direction::default(),
        egress: Direction::default(),
        forward: HostHook { ingress, egress },
        pre_dnat: Direction::default(),
        untracked: HostHook::default(),
        profiles: vec![CLOSED.to_owned()],
        closed: None,
    }
}

/// The policy without rules: at its tier's end everything is denied.
fn policy_id() -> PolicyId {
    Key::cluster(Kind::GlobalNetworkPolicy, CLOSED)
}

fn policy() -> Policy {
    Policy {
        tier: CLOSED.to_owned(),
        ..Policy::default()
    }
}

/// The profile that lets out what the host begins.
fn profile() -> Profile {
    let allow = Rule {
        index: 0,
        action: Action::Allow,
        family: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Side::default(),
        destination: Side::default(),
    };
    Profile {
        egress: [allow].into(),
        ..Profile::default()
    }
}

impl PacketFilter {
    /// Says what the last agent knew, before the kernel is looked at.
    pub fn remember(&mut self, last: LastRun) {
        self.boot = Boot::Unknown {
            last: Box::new(last),
            told: None,
        };
    }

    /// The kernel's table was read for the first time.
    pub(super) fn first_look(&mut self, table: Option<&TableState>) {
        let Boot::Unknown { last, told } = std::mem::take(&mut self.boot) else {
            return;
        };
        // Policy may be known already.
        if self.is_complete() {
            return;
        }
        let LastRun { state, hosts } = *last;
        let endpoints: BTreeSet<EndpointId> = hosts.iter().map(|(id, _)| id.clone()).collect();
        if let Some(table) = table.filter(|table| is_made_by_an_agent(table)) {
            // A table stays as it is until policy is known, also one that was made after a boot.
            if is_of_a_boot(table) {
                self.boot = Boot::Closed { endpoints, state: None };
            }
            return;
        }
        self.node(&state);
        self.filter
            .policy(PolicyChange::Profile(CLOSED.to_owned(), Some(Arc::new(profile()))));
        self.filter
            .policy(PolicyChange::Policy(policy_id(), Some(Arc::new(policy()))));
        for (id, endpoint) in hosts {
            let endpoint = self.on_a_device(endpoint);
            self.filter.policy(PolicyChange::Endpoint(id, Some(Arc::new(endpoint))));
        }
        tracing::warn!(
            endpoints = endpoints.len(),
            "packet filter: a boot; host endpoints are closed except for failsafe ports until the datastore has been read"
        );
        self.boot = Boot::Closed { endpoints, state: told };
    }

    /// A device that is known by its addresses, and has none of them yet, may be any.
    fn on_a_device(&self, mut endpoint: Endpoint) -> Endpoint {
        if let Interface::WithAddress(addresses) = &endpoint.interface
            && !self
                .guard
                .links
                .values()
                .any(|link| addresses.iter().any(|address| link.contains(address)))
        {
            endpoint.interface = Interface::All;
        }
        endpoint
    }

    /// Keeps a state of the node back while host endpoints are closed; answers whether it did.
    pub(super) fn keep_back(&mut self, state: &NodeState) -> bool {
        match &mut self.boot {
            Boot::Closed { state: kept, .. } => {
                *kept = Some(Box::new(state.clone()));
                true
            }
            // It counts until the kernel was looked at, and again after a boot.
            Boot::Unknown { told, .. } => {
                *told = Some(Box::new(state.clone()));
                false
            }
            Boot::Over => false,
        }
    }

    /// Policy is known, and the filter has been told of it: what it says of host endpoints counts. All of it becomes one
    /// transaction.
    pub(super) fn boot_is_over(&mut self) {
        let Boot::Closed { endpoints, state } = std::mem::take(&mut self.boot) else {
            return;
        };
        if let Some(state) = state {
            self.node(&state);
        }
        let known = &self.graph.state().endpoints;
        for id in endpoints.into_iter().filter(|id| !known.contains_key(id)) {
            self.filter.policy(PolicyChange::Endpoint(id, None));
        }
        self.filter.policy(PolicyChange::Policy(policy_id(), None));
        self.filter.policy(PolicyChange::Profile(CLOSED.to_owned(), None));
        tracing::info!("packet filter: policy is known; host endpoints are as it says");
    }

    /// What is to be said about it.
    pub(super) fn boot_problems(&self) -> impl Iterator<Item = String> + '_ {
        let closed = match &self.boot {
            Boot::Closed { endpoints, .. } => Some(endpoints),
            Boot::Unknown { .. } | Boot::Over => None,
        };
        let name = |id: &EndpointId| match id {
            EndpointId::Host(name) if name == CLOSED => "all devices".to_owned(),
            EndpointId::Host(name) => Key::cluster(Kind::HostEndpoint, name).to_string(),
            EndpointId::Workload(key) => key.to_string(),
        };
        closed.into_iter().flatten().map(move |id| {
            format!(
                "{}: after a boot, closed to what comes from outside except for failsafe ports until the datastore and the journal have been read",
                name(id)
            )
        })
    }
}

/// Whether host endpoints are closed in it.
fn is_of_a_boot(table: &TableState) -> bool {
    let mut rules = table.chains.values().flat_map(|chain| &chain.rules);
    rules.any(|rule| rule.comment.as_ref().is_some_and(|comment| comment.contains(CLOSED)))
}

#[cfg(test)]
mod tests;
