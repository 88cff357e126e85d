//! One node with random resources, seen from both sides.

use std::collections::BTreeMap;

use api::resource::WorkloadEndpoint;
use api::{Key, Resource};
use dataplane::filter::{DenyAction, Filter, Settings, ToHost};
use datastore::Update;
use kernel::IfName;
use kernel::nft::TableState;
use policy::{Graph, PolicyState, compute};

use crate::make;
use crate::random::Random;
use crate::world::{self, NODE};

/// One node with random resources.
#[derive(Clone, Debug)]
pub struct Case {
    /// Everything that is stored.
    pub resources: BTreeMap<Key, Resource>,
    /// Pods of the node.
    pub locals: BTreeMap<Key, WorkloadEndpoint>,
    /// The agent's settings.
    pub settings: Settings,
    /// What policy says: from scratch.
    pub state: PolicyState,
}

impl Case {
    /// The case of a seed; `random` goes on where it ended.
    pub fn any(random: &mut Random) -> Self {
        let (resources, locals) = make::resources(random);
        let settings = Settings {
            endpoint_to_host: random.pick(&[ToHost::Accept, ToHost::Accept, ToHost::Return, ToHost::Drop]),
            deny: random.pick(&[DenyAction::Drop, DenyAction::Drop, DenyAction::Drop, DenyAction::Reject]),
            flow_logs: random.one_in(4),
            source_spoofing: random.one_in(2),
            cut_flows: random.one_in(2),
            ..Settings::default()
        };
        let state = compute(NODE, &locals, resources.values());
        Self {
            resources,
            locals,
            settings,
            state,
        }
    }

    /// A filter that was told all of it by the incremental calculation, and has seen the kernel's table (`None`: there is none).
    pub fn filter(&self, seen: Option<&TableState>) -> Filter {
        let mut graph = Graph::new(NODE);
        for (key, endpoint) in &self.locals {
            graph.local(key.clone(), Some(endpoint.clone()));
        }
        for (key, resource) in &self.resources {
            graph.apply(Update {
                key: key.clone(),
                value: Some(resource.clone()),
            });
        }
        let mut filter = Filter::new(self.settings.clone());
        filter.observed(seen);
        filter.in_sync();
        for (index, device) in world::UPLINKS.iter().enumerate() {
            filter.link(IfName((*device).to_owned()), Some(world::uplink_addresses(index)));
        }
        graph.flush().into_iter().for_each(|change| filter.policy(change));
        filter
    }
}
