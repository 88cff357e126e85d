//! A host that has just booted: no table of ours is in the kernel, and nobody knows yet what policy says. Its host endpoints, as
//! the last agent knew them, are closed to what comes from outside, except for failsafe ports, until policy is known.
//!
//! What the host itself begins is let out. Otherwise an agent whose datastore is on no failsafe port could never reach it, and
//! would never hear of the policy that allows just that.

use std::collections::BTreeSet;

use api::resource::{HostEndpoint, Profile};
use api::{Key, Kind, Resource};
use calc::NodeState;
use datastore::Update;
use policy::{EndpointId, PolicyChange};

use super::PacketFilter;

/// The profile of closed host endpoints. No resource can have this name.
const PROFILE: &str = "(until policy is known)";

/// What is known of the last run.
#[derive(Debug)]
pub struct LastRun {
    /// Settings and nodes.
    state: NodeState,
    /// Its host endpoints, with a profile that lets out what the host begins.
    hosts: Vec<PolicyChange>,
}

/// How far it is.
#[derive(Debug, Default)]
pub(super) enum Boot {
    /// The kernel has not been looked at.
    Unknown(Box<LastRun>),
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
    /// From the resources of the last run, and what was worked out from them; `None` without a host endpoint.
    pub fn new<'a>(node: &str, state: NodeState, resources: impl Iterator<Item = &'a Resource>) -> Option<Self> {
        let mut graph = policy::Graph::new(node);
        let mut tell = |resource: Resource| {
            graph.apply(Update {
                key: resource.key(),
                value: Some(resource),
            });
        };
        tell(profile().into());
        for resource in resources {
            let Ok(endpoint) = <&HostEndpoint>::try_from(resource) else {
                continue;
            };
            let mut endpoint = endpoint.clone();
            endpoint.spec.profiles = vec![PROFILE.to_owned()];
            tell(endpoint.into());
        }
        let hosts = graph.flush();
        (!graph.state().endpoints.is_empty()).then_some(Self { state, hosts })
    }
}

fn profile() -> Profile {
    let mut profile = Profile::new(PROFILE, api::ProfileSpec::default());
    profile.spec.egress = vec![api::Rule::any(api::Action::Allow)];
    profile
}

impl PacketFilter {
    /// Says what the last agent knew, before the kernel is looked at.
    pub fn remember(&mut self, last: LastRun) {
        self.boot = Boot::Unknown(Box::new(last));
    }

    /// The kernel's table was read for the first time.
    pub(super) fn first_look(&mut self, there_is_a_table: bool) {
        let Boot::Unknown(last) = std::mem::take(&mut self.boot) else {
            return;
        };
        // With a table this is no boot: it stays as it is until policy is known. Otherwise policy may be known already.
        if there_is_a_table || self.is_complete() {
            return;
        }
        let LastRun { state, hosts } = *last;
        self.node(&state);
        let mut endpoints = BTreeSet::new();
        for change in hosts {
            if let PolicyChange::Endpoint(id, Some(_)) = &change {
                endpoints.insert(id.clone());
            }
            self.filter.policy(change);
        }
        tracing::warn!(
            endpoints = endpoints.len(),
            "packet filter: a boot; host endpoints are closed except for failsafe ports until the datastore has been read"
        );
        self.boot = Boot::Closed { endpoints, state: None };
    }

    /// Keeps a state of the node back while host endpoints are closed; answers whether it did.
    pub(super) fn keep_back(&mut self, state: &NodeState) -> bool {
        match &mut self.boot {
            Boot::Closed { state: kept, .. } => {
                *kept = Some(Box::new(state.clone()));
                true
            }
            Boot::Unknown(_) | Boot::Over => false,
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
        self.filter.policy(PolicyChange::Profile(PROFILE.to_owned(), None));
        tracing::info!("packet filter: policy is known; host endpoints are as it says");
    }

    /// What is to be said about it.
    pub(super) fn boot_problems(&self) -> impl Iterator<Item = String> + '_ {
        let closed = match &self.boot {
            Boot::Closed { endpoints, .. } => Some(endpoints),
            Boot::Unknown(_) | Boot::Over => None,
        };
        let name = |id: &EndpointId| match id {
            EndpointId::Host(name) => name.clone(),
            EndpointId::Workload(key) => key.name.clone(),
        };
        closed.into_iter().flatten().map(move |id| {
            format!(
                "{}: after a boot, closed to what comes from outside except for failsafe ports until the datastore and the journal have been read",
                Key::cluster(Kind::HostEndpoint, name(id))
            )
        })
    }
}
