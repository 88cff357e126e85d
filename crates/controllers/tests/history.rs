//! Random histories of pods and nodes, with controllers that see them late: no address of a live pod is ever freed, and in
//! the end everything is freed that nobody needs.
//!
//! A failure names its seed: `MARGAY_GC_SEED=<seed> cargo test -p controllers --test history` runs that one alone.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::resource::{BlockAffinity, IpPool, IpamBlock, IpamHandle, Node, WorkloadEndpoint};
use api::{IpPoolSpec, Key, Kind, NodeSpec, Resource, WorkloadEndpointSpec};
use controllers::execute::Executor;
use controllers::settings::Environment;
use controllers::{Abilities, Desk};
use datastore::{MemoryStore, Scope, Store, StoreError, SyncEvent, WatchEvent};
use futures::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use ipam::{AutoAssign, Block, Ipam, Owner, Tunnel, TunnelKind};
use jiff::Timestamp;

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Seconds.
const GRACE: i64 = 60;

/// A pod that runs, or is being set up.
#[derive(Clone)]
struct Pod {
    node: &'static str,
    handle: String,
    addresses: BTreeSet<IpAddr>,
    /// When its WorkloadEndpoint is written; until then only its addresses are there.
    endpoint_at: Option<i64>,
}

/// How a node is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Up,
    /// Its Node was deleted; its agent writes it again at this time.
    Away(i64),
    /// For good, until somebody adds another machine of that name.
    Dead,
}

struct World {
    random: Random,
    memory: MemoryStore,
    /// The agents' IPAM, one for each node.
    ipams: BTreeMap<&'static str, Ipam>,
    desk: Desk,
    executor: Executor,
    changes: BoxStream<'static, Result<WatchEvent, StoreError>>,
    clock: i64,
    nodes: BTreeMap<&'static str, State>,
    pods: BTreeMap<String, Pod>,
    number: usize,
    freed: u64,
    /// Handles of WorkloadEndpoints that an earlier machine of a node's name has left. They look like its pods.
    inherited: BTreeSet<String>,
}

fn done<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a store in memory never waits")
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let memory = MemoryStore::new();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        for (name, cidr, size) in [("v4", "10.0.0.0/24", 29), ("v6", "fd00::/120", 125)] {
            let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
            spec.block_size = Some(size);
            done(memory.create(IpPool::new(name, spec).into())).unwrap();
        }
        let config = serde_json::json!({"kind": "KubeControllersConfiguration", "metadata": {"name": "default"},
            "spec": {"controllers": {"node": {"leakGracePeriod": format!("{GRACE}s"),
            "hostEndpoint": {"autoCreate": "Enabled"}}}}});
        done(memory.create(serde_json::from_value::<Resource>(config).unwrap())).unwrap();
        let abilities = Abilities {
            finalizers: random.one_in(2),
            endpoints_are_stored: true,
        };
        let mut desk = Desk::new(abilities, Environment::read(&|_| None).unwrap());
        desk.lead();
        let mut world = World {
            random,
            ipams: NODES.map(|node| (node, Ipam::new(store.clone()))).into(),
            executor: Executor::new(store),
            changes: memory.watch(Scope::All, None),
            memory,
            desk,
            clock: 0,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            number: 0,
            freed: 0,
            inherited: BTreeSet::new(),
        };
        NODES.into_iter().for_each(|node| world.start_node(node));
        world
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + self.clock).unwrap()
    }

    fn start_node(&mut self, name: &'static str) {
        done(self.memory.create(Node::new(name, NodeSpec::default()).into())).unwrap();
        let before = self.nodes.insert(name, State::Up);
        if before == Some(State::Dead) {
            let endpoints = self
                .endpoints()
                .into_iter()
                .filter(|endpoint| endpoint.spec.node == name);
            self.inherited
                .extend(endpoints.map(|endpoint| endpoint.spec.container_id));
        }
        if before.is_none_or(|state| state == State::Dead) {
            let tunnel = Tunnel {
                kind: TunnelKind::Ipip,
                node: name.into(),
                node_labels: BTreeMap::new(),
                current: None,
                pools: vec!["v4".into()],
            };
            let _ = done(self.ipams[name].settle_tunnel(self.now(), &tunnel));
        }
    }

    fn delete_node(&mut self, name: &'static str, state: State) {
        let _ = done(self.memory.delete(&Key::cluster(Kind::Node, name), None));
        self.nodes.insert(name, state);
        if state == State::Dead {
            self.pods.retain(|_, pod| pod.node != name);
        }
    }

    fn add_pod(&mut self) {
        let node = NODES[self.random.below(3)];
        if self.nodes[node] == State::Dead {
            return;
        }
        self.number += 1;
        // Names come again, as a StatefulSet's do.
        let name = format!("p{}", self.random.below(12));
        if self.pods.contains_key(&name) {
            return;
        }
        let handle = format!("net.{}", self.number);
        let attributes = [("node", node), ("namespace", "default"), ("pod", &name)];
        let request = AutoAssign {
            host: node.into(),
            handle: handle.clone(),
            attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ipv4: 1,
            ipv6: 1,
            ..AutoAssign::default()
        };
        let Ok(assigned) = done(self.ipams[node].auto_assign(self.now(), &request)) else {
            return;
        };
        let addresses = assigned.v4.iter().chain(&assigned.v6).map(|net| net.addr()).collect();
        let endpoint_at = self.clock + self.random.below(GRACE as usize - 10) as i64;
        let pod = Pod {
            node,
            handle,
            addresses,
            endpoint_at: Some(endpoint_at),
        };
        self.pods.insert(name, pod);
    }

    fn endpoint_key(node: &str, pod: &str) -> Key {
        Key::namespaced(Kind::WorkloadEndpoint, "default", format!("{node}-k8s-{pod}-eth0"))
    }

    fn write_due_endpoints(&mut self) {
        for (name, pod) in &mut self.pods {
            if pod.endpoint_at.is_none_or(|at| at > self.clock) {
                continue;
            }
            pod.endpoint_at = None;
            let key = Self::endpoint_key(pod.node, name);
            let spec = WorkloadEndpointSpec {
                orchestrator: "k8s".into(),
                node: pod.node.into(),
                pod: name.clone(),
                endpoint: "eth0".into(),
                container_id: pod.handle.clone(),
                ip_networks: pod.addresses.iter().map(|address| (*address).into()).collect(),
                ..WorkloadEndpointSpec::default()
            };
            let mut endpoint = WorkloadEndpoint::new(key.name.clone(), spec);
            endpoint.metadata.namespace = Some("default".into());
            // An older pod of this name may have left one.
            let _ = done(self.memory.delete(&key, None));
            done(self.memory.create(endpoint.into())).unwrap();
        }
    }

    /// A pod ends: as it should, or without its DEL, or with half of it.
    fn end_pod(&mut self) {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        let Some(name) = names.get(self.random.below(names.len())) else {
            return;
        };
        let pod = self.pods.remove(name).unwrap();
        let (frees, deletes) = [(true, true), (false, true), (true, false)][self.random.below(3)];
        if deletes {
            let _ = done(self.memory.delete(&Self::endpoint_key(pod.node, name), None));
        }
        if frees {
            done(self.ipams[pod.node].release_handle(self.now(), &pod.handle)).unwrap();
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=6 => self.add_pod(),
            7..=10 => self.end_pod(),
            11 => {
                let node = NODES[self.random.below(3)];
                if self.nodes[node] == State::Up {
                    let back = self.clock + 1 + self.random.below(8) as i64;
                    self.delete_node(node, State::Away(back));
                }
            }
            12 => {
                let node = NODES[self.random.below(3)];
                let state = self.nodes[node];
                // One stays: without any node nothing is known.
                let dead = self.nodes.values().filter(|state| **state == State::Dead).count();
                if state == State::Dead && self.random.one_in(2) {
                    self.start_node(node);
                } else if state == State::Up && dead < 2 {
                    self.delete_node(node, State::Dead);
                }
            }
            _ => {
                let seconds = 1 + self.random.below(20) as i64;
                (0..seconds).for_each(|_| self.tick());
            }
        }
        self.check("after a step");
        if self.random.one_in(3) {
            let late = self.random.one_in(3);
            self.control(late);
        }
    }

    fn tick(&mut self) {
        self.clock += 1;
        for node in NODES {
            if matches!(self.nodes[node], State::Away(back) if back <= self.clock) {
                self.start_node(node);
            }
        }
        self.write_due_endpoints();
    }

    /// The controllers hear what has happened, all of it or not, and do what they decide; meanwhile life goes on.
    fn control(&mut self, late: bool) {
        let mut budget = if late { self.random.below(4) } else { usize::MAX };
        while budget > 0 {
            let Some(Some(event)) = self.changes.next().now_or_never() else {
                break;
            };
            match event.unwrap() {
                WatchEvent::Update(update, _) => self.desk.sync(SyncEvent::Updates(vec![update])),
                WatchEvent::InSync(_) => self.desk.sync(SyncEvent::InSync),
            }
            budget -= 1;
        }
        for action in self.desk.decide(self.now()) {
            if self.random.one_in(8) {
                self.tick();
            }
            let outcome = done(self.executor.perform(self.now(), &action)).unwrap();
            let freed = matches!(action, controllers::action::Action::FreeAddresses(_));
            self.freed += u64::from(freed && outcome == controllers::execute::Outcome::Done);
            self.check(&action.to_string());
        }
        self.executor.forget();
    }

    fn endpoints(&self) -> Vec<WorkloadEndpoint> {
        let items = done(self.memory.list(&Scope::Kind(Kind::WorkloadEndpoint)))
            .unwrap()
            .items
            .into_iter();
        items
            .map(|stored| WorkloadEndpoint::try_from(stored.resource).unwrap())
            .collect()
    }

    fn blocks(&self) -> Vec<IpamBlock> {
        let items = done(self.memory.list(&Scope::Kind(Kind::IPAMBlock))).unwrap().items;
        items
            .into_iter()
            .map(|stored| IpamBlock::try_from(stored.resource).unwrap())
            .collect()
    }

    /// Every address that is held, with its handle.
    fn held(&self) -> BTreeMap<IpAddr, String> {
        let mut held = BTreeMap::new();
        for block in self.blocks() {
            for (ordinal, holder) in block.spec.allocated() {
                held.insert(
                    block.spec.address(ordinal),
                    holder.handle_id.clone().unwrap_or_default(),
                );
            }
        }
        held
    }

    /// What is known of a handle, for failures.
    fn about(&self, handle: &str) -> String {
        let mut all = vec![format!("suspects {:?}", self.desk.suspects())];
        for block in self.blocks() {
            let holders = block
                .spec
                .attributes
                .iter()
                .filter(|holder| holder.handle_id.as_deref() == Some(handle));
            all.extend(holders.map(|holder| format!("{} {:?}: {holder:?}", block.spec.cidr, block.spec.affinity)));
        }
        for endpoint in self.endpoints() {
            all.push(format!("{} {:?}", endpoint.metadata.name, endpoint.spec.ip_networks));
        }
        all.join("\n")
    }

    /// Live pods have their addresses.
    fn check(&self, when: &str) {
        let held = self.held();
        for (name, pod) in &self.pods {
            for address in &pod.addresses {
                assert_eq!(
                    held.get(address),
                    Some(&pod.handle),
                    "{name} on {} lost {address}: {when}",
                    pod.node
                );
            }
        }
    }

    /// After a while in which nothing happens, there is nothing that nobody needs.
    fn settle(&mut self) {
        for _ in 0..GRACE * 5 {
            self.tick();
            self.control(false);
        }
        self.check("at the end");
        let mut wanted: BTreeMap<IpAddr, String> = BTreeMap::new();
        for pod in self.pods.values() {
            wanted.extend(pod.addresses.iter().map(|address| (*address, pod.handle.clone())));
        }
        let alive = |node: &str| self.nodes[node] != State::Dead;
        let tunnels: Vec<String> = NODES
            .iter()
            .filter(|node| alive(node))
            .map(|node| TunnelKind::Ipip.handle(node))
            .collect();
        for (address, handle) in self.held() {
            let fine =
                wanted.get(&address) == Some(&handle) || tunnels.contains(&handle) || self.inherited.contains(&handle);
            assert!(fine, "{address} of {handle} is still held: {}", self.about(&handle));
        }
        for block in self.blocks() {
            let owner = block
                .spec
                .affinity
                .as_deref()
                .and_then(|owner| owner.parse::<Owner>().ok());
            let dead = owner.is_some_and(|owner| !alive(owner.name()));
            assert!(!dead, "{} still belongs to {:?}", block.spec.cidr, block.spec.affinity);
        }
        let of = |kind| done(self.memory.list(&Scope::Kind(kind))).unwrap().items.into_iter();
        for stored in of(Kind::BlockAffinity) {
            let affinity = BlockAffinity::try_from(stored.resource).unwrap();
            assert!(alive(&affinity.spec.node), "{} is still there", affinity.metadata.name);
        }
        let handles: BTreeSet<String> = self.held().into_values().collect();
        for stored in of(Kind::IPAMHandle) {
            let handle = IpamHandle::try_from(stored.resource).unwrap();
            assert!(
                handles.contains(&handle.spec.handle_id),
                "{} holds nothing",
                handle.spec.handle_id
            );
        }
        let endpoints: Vec<String> = of(Kind::HostEndpoint)
            .map(|stored| stored.resource.metadata().name.clone())
            .collect();
        let expected: Vec<String> = NODES
            .iter()
            .filter(|node| alive(node))
            .map(|node| format!("{node}-auto-hep"))
            .collect();
        assert_eq!(endpoints, expected);
    }
}

#[test]
fn no_live_pod_loses_an_address_and_every_leak_is_freed() {
    let seeds: Vec<u64> = match std::env::var("MARGAY_GC_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..150).collect(),
    };
    let mut freed = 0;
    for seed in seeds {
        eprintln!("MARGAY_GC_SEED={seed}");
        let mut world = World::new(seed);
        (0..150).for_each(|_| world.step());
        world.settle();
        freed += world.freed;
    }
    assert!(freed > 50, "only {freed} leaks were freed: the histories have too few");
}
