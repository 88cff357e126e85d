//! The graph agrees with the oracle after any sequence of updates, however they are ordered, repeated or coalesced.

use std::collections::{BTreeMap, BTreeSet};

use api::{AffinityState, EncapMode, Key, Kind, Resource};
use datastore::Update;

use super::build;
use crate::{Graph, GraphConfig, NodeChange, NodeState, Problem, compute_with};

const SEQUENCES: u64 = 20_000;
const US: &str = "n1";

#[test]
fn incremental_agrees_with_from_scratch() {
    // A failure names its sequence: run only that one with MARGAY_SEED.
    let only = std::env::var("MARGAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEQUENCES, |seed| seed..seed + 1);
    for seed in seeds {
        sequence(seed);
    }
}

fn sequence(seed: u64) {
    let mut random = Random(seed);
    let config = GraphConfig::new(US);
    let mut graph = Graph::with_config(config.clone());
    let mut store: BTreeMap<Key, Resource> = BTreeMap::new();
    let mut follower = NodeState::default();
    // What the graph was told last, and what of it is wrong where a good version stays.
    let mut told: BTreeMap<Key, Option<Resource>> = BTreeMap::new();
    let mut kept: BTreeSet<Key> = BTreeSet::new();

    for round in 0..1 + random.below(6) {
        let mut burst = Vec::new();
        for _ in 0..random.below(8) {
            let resource = resource(&mut random);
            let key = resource.key();
            let value = (random.below(4) != 0).then_some(resource);
            let value = value.map(|resource| match random.below(8) {
                0 => spoilt(&mut random, &resource),
                _ => resource,
            });
            let was_good = store.get(&key).is_some_and(|held| !matches!(held, Resource::Wrong(_)));
            match &value {
                // The last good version stays.
                Some(Resource::Wrong(_)) if was_good && counts(&store[&key]) => drop(kept.insert(key.clone())),
                Some(resource) => {
                    kept.remove(&key);
                    store.insert(key.clone(), resource.clone());
                }
                None => {
                    kept.remove(&key);
                    store.remove(&key);
                }
            }
            told.insert(key.clone(), value.clone());
            burst.push(Update { key, value });
        }
        disturb(&mut random, &mut burst, &told);
        burst.into_iter().for_each(|update| graph.apply(update));
        let changes = graph.flush();
        assert_ordered(seed, &changes);
        changes.into_iter().for_each(|change| follow(&mut follower, change));

        let (wanted, problems) = compute_with(&config, store.values());
        assert_eq!(graph.state(), &wanted, "MARGAY_SEED={seed} round {round}");
        assert_eq!(
            follower, wanted,
            "the changes add up to the state: MARGAY_SEED={seed} round {round}"
        );
        let is_kept = |problem: &Problem| problem.text.ends_with(": the last good version stays in force");
        let (stays, others): (Vec<Problem>, _) = graph.problems().into_iter().partition(is_kept);
        assert_eq!(others, problems, "MARGAY_SEED={seed} round {round}");
        let stays: BTreeSet<Key> = stays.into_iter().map(|problem| problem.key).collect();
        assert_eq!(stays, kept, "MARGAY_SEED={seed} round {round}");
        assert_exports(seed, &wanted);
        assert!(
            graph.flush().is_empty(),
            "MARGAY_SEED={seed}: a second flush has nothing to say"
        );
    }
}

/// Reorders updates of different keys, repeats some, deletes what never was. The last word on each key stays.
fn disturb(random: &mut Random, burst: &mut Vec<Update>, told: &BTreeMap<Key, Option<Resource>>) {
    for _ in 0..random.below(4) {
        if burst.len() > 1 {
            let at = random.below(burst.len() as u64 - 1) as usize;
            if burst[at].key != burst[at + 1].key {
                burst.swap(at, at + 1);
            }
        }
    }
    for (key, value) in told.iter().filter(|_| random.below(8) == 0) {
        burst.push(Update {
            key: key.clone(),
            value: value.clone(),
        });
    }
    let ghosts = [
        Kind::Node,
        Kind::IPPool,
        Kind::BlockAffinity,
        Kind::BGPPeer,
        Kind::FelixConfiguration,
    ];
    if random.below(3) == 0 {
        let kind = ghosts[random.below(ghosts.len() as u64) as usize];
        burst.push(Update {
            key: Key::cluster(kind, "never-was"),
            value: None,
        });
    }
}

/// Whether there is something of it that could stay: another node's claims leave nothing.
fn counts(resource: &Resource) -> bool {
    match resource {
        Resource::BlockAffinity(affinity) => {
            let spec = &affinity.spec;
            let of_a_host = spec
                .affinity_type
                .as_deref()
                .is_none_or(|kind| ["", "host"].contains(&kind));
            of_a_host && spec.node == US && spec.state.is_confirmed() && !spec.deleted
        }
        _ => true,
    }
}

/// The same with something in it that cannot be read.
fn spoilt(random: &mut Random, resource: &Resource) -> Resource {
    let fields: &[&str] = match resource.kind() {
        Kind::Node => &["bgp", "addresses"],
        Kind::IPPool => &["cidr", "natOutgoing", "ipipMode"],
        Kind::BlockAffinity => &["node", "cidr", "state"],
        Kind::BGPPeer => &["asNumber", "peerIP"],
        Kind::BGPConfiguration => &["asNumber", "nodeToNodeMeshEnabled"],
        _ => &["ipipEnabled", "ipipMTU", "nodeSelector"],
    };
    let field = fields[random.below(fields.len() as u64) as usize];
    let mut json = serde_json::to_value(resource).expect("it has a JSON form");
    json["spec"][field] = serde_json::json!(["x"]);
    serde_json::from_value(json).expect("it says what it is")
}

fn resource(random: &mut Random) -> Resource {
    let name = ["n1", "n2", "n3", "n4"][random.below(4) as usize];
    match random.below(10) {
        0..=2 => {
            let v4 = format!("10.0.{}.{}/24", random.below(2), 1 + random.below(5));
            let v6 = format!("fd00::{}/64", 1 + random.below(4));
            let addresses: Vec<&str> = [v4.as_str(), v6.as_str()]
                .into_iter()
                .filter(|_| random.below(4) != 0)
                .collect();
            let mut node = build::node(name, &addresses);
            if random.below(8) == 0 {
                node.spec.bgp = None;
            } else if random.below(4) == 0 {
                build::bgp_of(&mut node).route_reflector_cluster_id = Some("224.0.0.1".parse().unwrap());
            } else if random.below(4) == 0 {
                build::bgp_of(&mut node).as_number = build::asn(64500 + random.below(2) as u32);
            }
            let node = build::labelled(node, &[("rack", ["a", "b"][random.below(2) as usize])]);
            aged(random, node).into()
        }
        3..=4 => {
            let cidr = ["192.168.0.0/16", "192.168.0.0/17", "192.168.128.0/17", "fd01::/48"][random.below(4) as usize];
            let mode = [EncapMode::Never, EncapMode::Always, EncapMode::CrossSubnet][random.below(3) as usize];
            let mut pool = build::pool(["p1", "p2", "p3"][random.below(3) as usize], cidr, mode);
            pool.spec.disable_bgp_export = random.below(4) == 0;
            pool.spec.disabled = random.below(4) == 0;
            aged(random, pool).into()
        }
        5..=6 => {
            let cidrs = [
                "192.168.1.0/26",
                "192.168.200.0/26",
                "192.168.1.7/32",
                "fd01::/122",
                "172.16.0.0/26",
            ];
            let states = [AffinityState::Confirmed, AffinityState::Pending, AffinityState::Legacy];
            let cidr = cidrs[random.below(5) as usize];
            let mut affinity = build::affinity(
                ["n1", "n1", "n2"][random.below(3) as usize],
                cidr,
                states[random.below(3) as usize],
            );
            affinity.spec.deleted = random.below(8) == 0;
            affinity.spec.affinity_type = (random.below(6) == 0).then(|| "virtual".to_owned());
            affinity.into()
        }
        7 => {
            let config = ["default", "node.n1", "node.n2"][random.below(3) as usize];
            build::bgp(config, |spec| {
                spec.node_to_node_mesh_enabled = [None, Some(true), Some(false)][random.below(3) as usize];
                spec.listen_port = [None, Some(1179)][random.below(2) as usize];
                spec.as_number = [None, build::asn(64500)][random.below(2) as usize];
                spec.service_cluster_ips = build::ranges(&["10.96.0.0/16"][random.below(2) as usize..]);
            })
        }
        8 => build::peer(["x", "y"][random.below(2) as usize], |spec| {
            spec.node = ["", "", "n1", "n2"][random.below(4) as usize].into();
            spec.node_selector = ["", "", "rack == 'a'", "rack in"][random.below(4) as usize].into();
            spec.peer_ip =
                ["", "10.0.0.2", "10.0.0.3:1179", "[fd00::2]:179", "nonsense"][random.below(5) as usize].into();
            spec.peer_selector = ["", "rack == 'b'"][random.below(2) as usize].into();
            spec.as_number = [None, build::asn(64500), build::asn(64512)][random.below(3) as usize];
        }),
        _ => {
            let config = ["default", "node.n1", "node.n2", "odd", "odder"][random.below(5) as usize];
            let config = build::felix(config, |spec| {
                let selector = [None, Some("rack == 'a'"), Some("has(rack)"), Some("has(")][random.below(4) as usize];
                spec.node_selector = selector.map(str::to_owned);
                spec.ipip_mtu = [None, Some(0), Some(1400)][random.below(3) as usize];
                spec.ipip_enabled = [None, Some(false)][random.below(2) as usize];
                spec.ipv4_normal_route_priority = [None, Some(512)][random.below(2) as usize];
            });
            aged(random, config).into()
        }
    }
}

fn aged<S: api::resource::Spec>(random: &mut Random, object: api::Object<S>) -> api::Object<S> {
    match random.below(4) {
        0 => object,
        second => build::created(object, second as i64),
    }
}

/// Removals come after everything that is put, pools and nodes before blocks, the other way round for removals.
fn assert_ordered(seed: u64, changes: &[NodeChange]) {
    let rank = |change: &NodeChange| match change {
        NodeChange::Settings(_) => 0,
        NodeChange::ThisNode(Some(_)) => 1,
        NodeChange::Pool(_, Some(_)) => 2,
        NodeChange::Peer(_, Some(_)) => 3,
        NodeChange::Block(_, true) => 4,
        NodeChange::Services(_) => 5,
        NodeChange::Bgp(_) => 6,
        NodeChange::Block(_, false) => 7,
        NodeChange::Peer(_, None) => 8,
        NodeChange::Pool(_, None) => 9,
        NodeChange::ThisNode(None) => 10,
    };
    assert!(changes.is_sorted_by_key(rank), "MARGAY_SEED={seed}: {changes:?}");
}

/// What others announce is passed on in every pool that is exported, and in no other.
fn assert_exports(seed: u64, state: &NodeState) {
    let Some(bgp) = &state.bgp else { return };
    for (range, pool) in &state.pools {
        let passed_on = bgp.exportable.iter().any(|exported| exported.contains(range));
        assert_eq!(passed_on, pool.exported, "MARGAY_SEED={seed}: {range}");
    }
}

/// What a receiver of the changes knows.
fn follow(state: &mut NodeState, change: NodeChange) {
    match change {
        NodeChange::Settings(settings) => state.settings = settings,
        NodeChange::ThisNode(this) => state.this_node = this,
        NodeChange::Peer(name, Some(peer)) => drop(state.peers.insert(name, peer)),
        NodeChange::Peer(name, None) => assert!(state.peers.remove(&name).is_some()),
        NodeChange::Pool(range, Some(pool)) => drop(state.pools.insert(range, pool)),
        NodeChange::Pool(range, None) => assert!(state.pools.remove(&range).is_some()),
        NodeChange::Block(block, true) => assert!(state.blocks.insert(block)),
        NodeChange::Block(block, false) => assert!(state.blocks.remove(&block)),
        NodeChange::Services(services) => state.services = services,
        NodeChange::Bgp(bgp) => state.bgp = bgp,
    }
}

/// SplitMix64: the same sequence for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
