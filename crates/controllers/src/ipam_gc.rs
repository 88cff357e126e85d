//! Garbage collection of addresses: from what the datastore holds to what is to be freed.
//!
//! The judgement itself is [`ipam::Collector`]'s. Here is what it is based on: pods are WorkloadEndpoints (with Kubernetes as
//! datastore these are the pods themselves); nodes are those that are not gone ([`crate::nodes`]).

use std::collections::{BTreeMap, BTreeSet};

use api::{IpamBlockSpec, IpamConfigurationSpec, IpamHandleSpec, Kind, WorkloadEndpoint, WorkloadEndpointSpec};
use ipam::{Collector, Doomed, Evidence, Pod, Snapshot, Suspect};
use jiff::{SignedDuration, Timestamp};

use crate::action::Action;
use crate::nodes::{Attendance, stray_claims};
use crate::world::World;

/// Least time between two looks.
const LEAST_PERIOD: SignedDuration = SignedDuration::from_millis(500);
/// Time between two looks while leaks are left alone (upstream's).
const IDLE_PERIOD: SignedDuration = SignedDuration::from_mins(5);

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What looks like a leak.
    pub suspects: Vec<Suspect>,
}

/// How often to look: twice in a grace period (upstream's rule), so that what is freed has looked like a leak both times.
pub fn period(grace: Option<SignedDuration>) -> SignedDuration {
    grace.map_or(IDLE_PERIOD, |grace| (grace / 2).max(LEAST_PERIOD))
}

/// Looks for what nobody needs any more. Without a grace period only what nodes left behind that are gone. `others_pods`: also pods
/// that other plugins wire are in the world.
pub fn decide(
    collector: &mut Collector,
    now: Timestamp,
    grace: Option<SignedDuration>,
    world: &World,
    attendance: &Attendance,
    others_pods: bool,
) -> Found {
    let live = |deleted: bool| !deleted;
    let blocks: Vec<IpamBlockSpec> = (world.all::<IpamBlockSpec>())
        .filter(|block| live(block.spec.deleted))
        .map(|block| block.spec.clone())
        .collect();
    let handles: Vec<IpamHandleSpec> = (world.all::<IpamHandleSpec>())
        .filter(|handle| live(handle.spec.deleted))
        .map(|handle| handle.spec.clone())
        .collect();
    let config = world.get::<IpamConfigurationSpec>("default");
    let cooldown = config.map_or(0, |config| config.spec.ip_cooldown_seconds);
    let snapshot = Snapshot {
        blocks: &blocks,
        handles: &handles,
        cooldown: SignedDuration::from_secs(i64::from(cooldown)),
    };
    let evidence = Evidence {
        nodes: attendance.alive.clone(),
        pods: pods(world.all::<WorkloadEndpointSpec>()),
        others_pods,
        handles: BTreeSet::new(),
    };
    // A pod that cannot be read may have any address that looks like a leak.
    let grace = grace.filter(|_| !world.has_wrong(Kind::WorkloadEndpoint));
    let decision = collector.decide(now, grace.unwrap_or(SignedDuration::MAX), snapshot, &evidence);
    let mut actions: Vec<Action> = by_handle(decision.addresses)
        .into_iter()
        .map(Action::FreeAddresses)
        .collect();
    actions.extend(decision.handles.into_iter().map(Action::DeleteIdleHandle));
    let blocks = decision.blocks.into_iter();
    actions.extend(blocks.map(|(owner, cidr)| Action::ReleaseIdleBlock(owner, cidr)));
    let mut gone: BTreeSet<String> = decision.owners.iter().map(|owner| owner.name().to_owned()).collect();
    // Without a single node that is there, nothing is known.
    if !evidence.nodes.is_empty() {
        gone.extend(stray_claims(world, attendance));
    }
    actions.extend(gone.into_iter().map(Action::ReleaseNode));
    actions.extend(decision.cold.into_iter().map(Action::CollectBlock));
    Found {
        actions,
        suspects: decision.suspects,
    }
}

/// Pods, by namespace and name.
pub fn pods<'a>(endpoints: impl Iterator<Item = &'a WorkloadEndpoint>) -> BTreeMap<(String, String), Vec<Pod>> {
    let mut pods: BTreeMap<(String, String), Vec<Pod>> = BTreeMap::new();
    for endpoint in endpoints {
        let namespace = endpoint.metadata.namespace.clone().unwrap_or_default();
        let addresses = endpoint.spec.ip_networks.iter().map(|net| net.addr()).collect();
        let node = Some(endpoint.spec.node.clone()).filter(|node| !node.is_empty());
        pods.entry((namespace, endpoint.spec.pod.clone()))
            .or_default()
            .push(Pod { node, addresses });
    }
    pods
}

fn by_handle(doomed: Vec<Doomed>) -> Vec<Vec<Doomed>> {
    let mut handles: Vec<Vec<Doomed>> = Vec::new();
    for one in doomed {
        match handles.last_mut() {
            Some(last)
                if last
                    .first()
                    .is_some_and(|first| first.address.handle == one.address.handle) =>
            {
                last.push(one)
            }
            _ => handles.push(vec![one]),
        }
    }
    handles
}
