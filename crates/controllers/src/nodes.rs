//! Which nodes are gone, and what they have left behind.
//!
//! An agent whose Node is deleted registers it again at once, so a Node that stays away for a while has no agent that talks
//! to the datastore. A node counts as gone only then; until it does, it counts as alive. Whoever acts on it reads once more
//! whether it is still gone.
//!
//! What people wrote about a node stays: host endpoints that are not automatic, BGPPeers, `node.<name>` configurations. A
//! node that comes back under its name finds them.

use std::collections::{BTreeMap, BTreeSet};

use api::{BlockAffinitySpec, HostEndpointSpec, IpamBlockSpec, Kind, WorkloadEndpointSpec};
use ipam::Owner;
use jiff::{SignedDuration, Timestamp};

use crate::action::Action;
use crate::host_endpoints::is_automatic;
use crate::world::World;

/// How long a Node must be away before its node counts as gone.
pub const SETTLE: SignedDuration = SignedDuration::from_secs(10);

/// Remembers since when nodes are away that something in the datastore still names.
#[derive(Clone, Debug, Default)]
pub struct Absences {
    since: BTreeMap<String, Timestamp>,
}

/// Who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// Nodes that exist, or have been away for too short a time to say.
    pub alive: BTreeSet<String>,
    /// Nodes that are gone, and since when they are away.
    pub gone: BTreeMap<String, Timestamp>,
    /// When the next one counts as gone.
    pub next: Option<Timestamp>,
}

impl Absences {
    /// Looks who is there.
    pub fn look(&mut self, now: Timestamp, world: &World) -> Attendance {
        // One that cannot be read is there all the same.
        let nodes = world.of_kind(Kind::Node);
        let present: BTreeSet<String> = nodes.map(|node| node.metadata().name.clone()).collect();
        let away = named(world).into_iter().filter(|name| !present.contains(name));
        let since: BTreeMap<String, Timestamp> = away
            .map(|name| {
                let first = self.since.get(&name).copied().unwrap_or(now);
                (name, first)
            })
            .collect();
        self.since = since;
        let mut attendance = Attendance {
            alive: present,
            ..Attendance::default()
        };
        for (name, first) in &self.since {
            let due = first.checked_add(SETTLE).unwrap_or(Timestamp::MAX);
            if now >= due {
                attendance.gone.insert(name.clone(), *first);
            } else {
                attendance.alive.insert(name.clone());
                attendance.next = Some(attendance.next.map_or(due, |next: Timestamp| next.min(due)));
            }
        }
        attendance
    }
}

/// Every node that something names that goes with its node.
fn named(world: &World) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for block in world.all::<IpamBlockSpec>() {
        if let Some(Ok(Owner::Host(host))) = block.spec.affinity.as_deref().map(str::parse) {
            names.insert(host);
        }
        let holders = block.spec.attributes.iter();
        names.extend(holders.filter_map(|holder| holder.secondary.get("node").cloned()));
    }
    for affinity in world.all::<BlockAffinitySpec>() {
        if let Owner::Host(host) = Owner::of(&affinity.spec) {
            names.insert(host);
        }
    }
    names.extend(
        world
            .all::<WorkloadEndpointSpec>()
            .map(|endpoint| endpoint.spec.node.clone()),
    );
    let automatic = world
        .all::<HostEndpointSpec>()
        .filter(|endpoint| is_automatic(endpoint));
    names.extend(automatic.map(|endpoint| endpoint.spec.node.clone()));
    names
}

/// Where WorkloadEndpoints are objects of the datastore, and not Kubernetes' pods, those of a node that is gone go with it
/// once it has been away for the grace period: nobody else would ever delete them, and their addresses with them.
pub fn endpoints(now: Timestamp, grace: SignedDuration, world: &World, attendance: &Attendance) -> Vec<Action> {
    let of_the_gone = world.all::<WorkloadEndpointSpec>().filter(|endpoint| {
        let since = attendance.gone.get(&endpoint.spec.node);
        since.is_some_and(|since| now.duration_since(*since) >= grace.max(SETTLE))
    });
    of_the_gone
        .map(|endpoint| Action::DeleteEndpoint {
            key: endpoint.key(),
            node: endpoint.spec.node.clone(),
        })
        .collect()
}

/// Nodes that are gone and have claims of which the block is another's or not there: nothing else would find them.
pub fn stray_claims(world: &World, attendance: &Attendance) -> BTreeSet<String> {
    let owners: BTreeSet<&str> = world
        .all::<IpamBlockSpec>()
        .filter_map(|block| block.spec.affinity.as_deref()?.strip_prefix("host:"))
        .collect();
    world
        .all::<BlockAffinitySpec>()
        .filter_map(|affinity| match Owner::of(&affinity.spec) {
            Owner::Host(host) => Some(host),
            Owner::Virtual(_) => None,
        })
        .filter(|host| attendance.gone.contains_key(host) && !owners.contains(host.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use api::{AffinityState, BlockAffinity, HostEndpoint, Key, Kind, Node, NodeSpec, WorkloadEndpoint};
    use datastore::Update;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn endpoint(node: &str) -> WorkloadEndpoint {
        let spec = WorkloadEndpointSpec {
            node: node.into(),
            pod: "p".into(),
            ..WorkloadEndpointSpec::default()
        };
        let mut endpoint = WorkloadEndpoint::new(format!("{node}-k8s-p-eth0"), spec);
        endpoint.metadata.namespace = Some("default".into());
        endpoint
    }

    #[test]
    fn a_node_is_gone_only_after_it_has_been_away_for_a_while() {
        let mut world: World = [Node::new("n1", NodeSpec::default()).into(), endpoint("n2").into()]
            .into_iter()
            .collect();
        let mut absences = Absences::default();
        let mut check = |seconds: i64, world: &World, alive: &str, gone: &str| {
            let attendance = absences.look(at(seconds), world);
            let names = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>().join(" ");
            assert_eq!(names(attendance.alive.iter().collect()), alive, "at {seconds}");
            assert_eq!(names(attendance.gone.keys().collect()), gone, "at {seconds}");
            attendance.next.map(|next| next.duration_since(at(0)).as_secs())
        };
        assert_eq!(check(0, &world, "n1 n2", ""), Some(10));
        assert_eq!(check(9, &world, "n1 n2", ""), Some(10));
        assert_eq!(check(10, &world, "n1", "n2"), None);
        // It comes back for a moment: the time starts anew.
        let back = Node::new("n2", NodeSpec::default());
        let (key, value) = (back.key(), Some(back.into()));
        world.apply(Update {
            key: key.clone(),
            value,
        });
        assert_eq!(check(11, &world, "n1 n2", ""), None);
        world.apply(Update { key, value: None });
        assert_eq!(check(12, &world, "n1 n2", ""), Some(22));
        // What nobody names any more is forgotten.
        let key = Key::namespaced(Kind::WorkloadEndpoint, "default", "n2-k8s-p-eth0");
        world.apply(Update { key, value: None });
        assert_eq!(check(30, &world, "n1", ""), None);
    }

    #[test]
    fn endpoints_of_a_node_that_is_gone_go_after_the_grace_period() {
        let world: World = [
            Node::new("n1", NodeSpec::default()).into(),
            endpoint("n1").into(),
            endpoint("n2").into(),
        ]
        .into_iter()
        .collect();
        let mut absences = Absences::default();
        let mut check = |seconds: i64, grace: i64, expected: usize| {
            let attendance = absences.look(at(seconds), &world);
            let actions = endpoints(at(seconds), SignedDuration::from_secs(grace), &world, &attendance);
            assert_eq!(actions.len(), expected, "at {seconds}");
            actions
        };
        check(0, 60, 0);
        check(10, 60, 0);
        check(10, 1, 1);
        let actions = check(60, 60, 1);
        let key = endpoint("n2").key();
        assert_eq!(actions, [Action::DeleteEndpoint { key, node: "n2".into() }]);
    }

    #[test]
    fn claims_without_a_block_are_found_and_hand_made_host_endpoints_are_nobodys_sign() {
        let affinity = |node: &str, kind: &str| {
            let spec = BlockAffinitySpec {
                state: AffinityState::Pending,
                node: node.into(),
                affinity_type: Some(kind.into()),
                cidr: "10.0.0.0/26".parse().unwrap(),
                deleted: false,
            };
            BlockAffinity::new(format!("{node}-10-0-0-0-26"), spec)
        };
        let by_hand = HostEndpointSpec {
            node: "n4".into(),
            interface_name: "*".into(),
            ..HostEndpointSpec::default()
        };
        let world: World = [
            Node::new("n1", NodeSpec::default()).into(),
            affinity("n1", "host").into(),
            affinity("n2", "host").into(),
            affinity("load-balancer", "virtual").into(),
            HostEndpoint::new("h", by_hand).into(),
        ]
        .into_iter()
        .collect();
        let mut absences = Absences::default();
        absences.look(at(0), &world);
        let attendance = absences.look(at(10), &world);
        assert_eq!(attendance.gone.keys().collect::<Vec<_>>(), ["n2"]);
        assert_eq!(stray_claims(&world, &attendance), ["n2".to_owned()].into());
    }
}
