//! From a change in the datastore to the kernel that enforces it: one node with 110 pods and 50 policies, a real agent, 20
//! changes a second; and bursts. Needs root.
//!
//!     cargo bench -p margay --bench enforce
//!
//! The clock starts when the datastore has answered the write, which it does before it tells whoever watches, and ends when
//! the kernel has announced the agent's last transaction that follows, as heard on a netlink socket of the benchmark.
#![allow(clippy::expect_used, reason = "not production code")]

mod support;

use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use api::resource::WorkloadEndpoint;
use api::{Kind, Resource};
use datastore::Scope;
use linux::netns::{self, Netns};
use support::datastore::{Datastore, resource};
use support::transactions::Transactions;
use support::{Bars, Lab, Pod, Times, load, ms, ours};

/// As many pods as a kubelet takes by default.
const PODS: usize = 110;
/// Policies of the namespace; the first ones are for all its pods, the others for a group each.
const POLICIES: usize = 50;
const FOR_ALL: usize = 5;
const GROUPS: usize = 10;
/// Pods of another node, which rules speak of.
const PEERS: usize = 1_000;
const CHANGES: usize = 400;
const WARM_UP: usize = 20;
const PACE: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(10);

/// What is changed, by turns.
const KINDS: [&str; 4] = [
    "a rule of a policy",
    "a label of a pod elsewhere",
    "addresses of a network set",
    "a label of a pod here",
];

fn main() -> ExitCode {
    if !support::is_root() {
        return ExitCode::SUCCESS;
    }
    let load = load();
    let lab = Lab::up("bench-enforce", &["--nodes", "1", "--pods-per-node", "0"]);
    let node = Netns::open(&netns::path(&lab.record.nodes[0].netns)).expect("the node's namespace");
    let watch = Transactions::start(&node);
    let mut store = World {
        store: Datastore::of(&lab),
        local: Vec::new(),
    };
    for number in 0..POLICIES {
        store.put(policy(number, 80));
    }
    for number in 0..PEERS {
        store.put(peer(number, true));
    }
    store.put(network_set(1));
    let mut bars = Bars::default();

    let (adds, pods) = all_pods(&lab, &node);
    println!(
        "| {PODS} ADDs at once, until the last is answered, its policy in the kernel (load {load}) | {:.3} s |",
        adds.as_secs_f64()
    );
    store.group_pods();
    watch.quiet();

    let mut taken: [Times; KINDS.len()] = Default::default();
    let mut all = Times::default();
    let (mut whole, mut lost) = (Times::default(), 0);
    let started = Instant::now();
    for round in 0..WARM_UP + CHANGES {
        let due = started + PACE * u32::try_from(round).unwrap_or(u32::MAX);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let kind = round % KINDS.len();
        let resource = store.changed(kind, round / KINDS.len());
        watch.forget();
        let before = Instant::now();
        store.put(resource);
        let answered = Instant::now();
        match watch.last(answered, LIMIT, PACE / 2) {
            Some(_) if round < WARM_UP => {}
            Some(seen) => {
                let time = seen.saturating_duration_since(answered);
                taken[kind].push(time);
                all.push(time);
                whole.push(seen.saturating_duration_since(before));
            }
            None => lost += 1,
        }
    }
    println!(
        "\n| change, 20 a second, {PODS} pods (load {}) | p50, ms | p99, ms |\n|---|---|---|",
        support::load()
    );
    for (name, times) in KINDS.into_iter().chain(["all"]).zip(taken.iter().chain([&all])) {
        println!("| {name} | {:.2} | {:.2} |", ms(times.p50()), ms(times.p99()));
    }
    println!(
        "| all, with the write itself | {:.2} | {:.2} |\n",
        ms(whole.p50()),
        ms(whole.p99())
    );

    watch.quiet();
    watch.forget();
    store.put(resource(
        "{kind: NetworkPolicy, metadata: {name: burst, namespace: default}, spec: {types: [Ingress, Egress], ingress: [{action: Allow}], egress: [{action: Allow}]}}",
    ));
    let answered = Instant::now();
    let burst = watch
        .last(answered, LIMIT, PACE / 2)
        .map(|seen| seen.saturating_duration_since(answered));
    let burst = burst.unwrap_or(LIMIT).as_secs_f64();
    println!("| a new policy for all {PODS} pods, in the kernel after | {burst:.3} s |");

    bars.at_most("changes that nobody heard of", f64::from(lost), 0.0, "");
    bars.at_most("store to kernel, p50", ms(all.p50()), 2.0, " ms");
    bars.at_most("store to kernel, p99", ms(all.p99()), 10.0, " ms");
    bars.at_most("policy of 110 pods that come at once", adds.as_secs_f64(), 0.5, " s");
    bars.at_most("a policy for 110 pods", burst, 0.5, " s");
    for pod in &pods {
        ours(&lab, &lab.record.nodes[0], &node).run("DEL", pod);
    }
    bars.exit()
}

/// From the first start to the last answer of so many ADDs.
fn all_pods(lab: &Lab, node: &Netns) -> (Duration, Vec<Pod>) {
    let pods: Vec<Pod> = (0..PODS).map(|number| Pod::new("enforce", number)).collect();
    let ready = Barrier::new(PODS + 1);
    let started = std::thread::scope(|scope| {
        for pod in &pods {
            let ready = &ready;
            scope.spawn(move || {
                ready.wait();
                ours(lab, &lab.record.nodes[0], node).run("ADD", pod)
            });
        }
        ready.wait();
        Instant::now()
    });
    (started.elapsed(), pods)
}

/// A policy whose rules name a port.
fn policy(number: usize, port: usize) -> Resource {
    let selector = match number {
        0..FOR_ALL => "all()".to_owned(),
        _ => format!("group == 'g{}'", number % GROUPS),
    };
    let name = format!("p{number}");
    resource(&format!(
        "{{kind: NetworkPolicy, metadata: {{name: {name}, namespace: default}}, spec: {{selector: \"{selector}\", types: [Ingress, Egress], ingress: [
           {{action: Allow, protocol: TCP, source: {{selector: \"role == 'peer'\"}}, destination: {{ports: [{port}, 443]}}}},
           {{action: Deny, source: {{selector: \"bad == 'yes'\", namespaceSelector: global()}}}}], egress: [{{action: Allow}}]}}}}"
    ))
}

/// A pod of another node.
fn peer(number: usize, is_peer: bool) -> Resource {
    let role = if is_peer { "peer" } else { "other" };
    let (high, low) = (number / 250, number % 250 + 1);
    resource(&format!(
        "{{kind: WorkloadEndpoint, metadata: {{name: far-k8s-p{number}-eth0, namespace: default, labels: {{role: {role}}}}}, spec: {{orchestrator: k8s, node: far, pod: p{number},
           endpoint: eth0, containerID: c, interfaceName: cali{number}, ipNetworks: [10.99.{high}.{low}/32], profiles: [kns.default]}}}}"
    ))
}

fn network_set(last: usize) -> Resource {
    resource(&format!(
        "{{kind: GlobalNetworkSet, metadata: {{name: bad, labels: {{bad: 'yes'}}}}, spec: {{nets: [198.51.100.0/25, 203.0.113.{last}/32]}}}}"
    ))
}

/// The datastore, and the pods of the node as they were written last.
struct World {
    store: Datastore,
    local: Vec<WorkloadEndpoint>,
}

impl World {
    fn put(&self, resource: Resource) {
        self.store.put(resource);
    }

    /// Gives each pod of the node the label of its group.
    fn group_pods(&mut self) {
        let scope = Scope::Kind(Kind::WorkloadEndpoint);
        let listed = self.store.list(&scope);
        let endpoints = listed
            .into_iter()
            .filter_map(|resource| WorkloadEndpoint::try_from(resource).ok());
        self.local = endpoints.filter(|endpoint| endpoint.spec.node != "far").collect();
        assert_eq!(self.local.len(), PODS);
        for number in 0..PODS {
            self.regroup(number, number % GROUPS);
            self.put(self.local[number].clone().into());
        }
    }

    fn regroup(&mut self, number: usize, group: usize) {
        let labels = &mut self.local[number].metadata.labels;
        labels.insert("group".into(), format!("g{group}"));
    }

    /// What the `turn`th change of a kind writes.
    fn changed(&mut self, kind: usize, turn: usize) -> Resource {
        match kind {
            0 => policy(turn % POLICIES, 81 + turn),
            1 => peer(turn * 7 % PEERS, turn / PEERS % 2 == 1),
            2 => network_set(2 + turn % 250),
            _ => {
                let number = turn % PODS;
                self.regroup(number, (number + turn / PODS + 1) % GROUPS);
                self.local[number].clone().into()
            }
        }
    }
}
