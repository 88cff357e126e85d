//! What an agent weighs in the largest cluster that Kubernetes is made for: 5,000 nodes, 150,000 pods; with 2,000 policies. Needs
//! root.
//!
//!     cargo bench -p margay --bench scale [-- NODES]
//!
//! Nodes, their blocks, pods and policies are written to the datastore of a lab with one node, whose agent follows; then it is
//! started again and reads all of it at once. There is no mesh: nobody is there to talk to.

mod support;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use linux::netns::{self, Netns};
use support::datastore::{Datastore, resource};
use support::memory::Memory;
use support::transactions::Transactions;
use support::{Bars, Lab, load};

const NODES: usize = 5_000;
const PODS_PER_NODE: usize = 30;
const NAMESPACES: usize = 100;
const POLICIES: usize = 2_000;
const LOCAL: &str = "20";
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    if !support::is_root() {
        return ExitCode::SUCCESS;
    }
    let nodes = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(NODES);
    let lab = Lab::up("bench-scale", &["--nodes", "1", "--pods-per-node", LOCAL]);
    let node = Netns::open(&netns::path(&lab.record.nodes[0].netns)).expect("the node's namespace");
    let watch = Transactions::start(&node);
    let store = Datastore::of(&lab);
    store.put(resource(
        "{kind: BGPConfiguration, metadata: {name: default}, spec: {nodeToNodeMeshEnabled: false}}",
    ));
    watch.quiet();
    let empty = agent(&lab);

    println!("| what | measured (load {}) |\n|---|---|", load());
    let began = Instant::now();
    store.create((0..NAMESPACES).map(|number| resource(&format!(
        "{{kind: Profile, metadata: {{name: kns.n{number}}}, spec: {{ingress: [{{action: Allow}}], egress: [{{action: Allow}}], labelsToApply: {{pcns.team: t{}}}}}}}",
        number % 10
    ))));
    store.create((0..POLICIES).map(policy));
    store.create((0..nodes).map(far_node));
    store.create((0..nodes).map(block));
    store.create((0..nodes * PODS_PER_NODE).map(pod));
    println!(
        "| {} pods, {nodes} nodes and blocks, {POLICIES} policies written in | {:.1} s |",
        nodes * PODS_PER_NODE,
        began.elapsed().as_secs_f64()
    );
    all_is_known(&store, &watch, 1);
    let followed = agent(&lab);
    let began = Instant::now();
    lab.margay(&["lab", "agent", "restart", &lab.record.nodes[0].name]);
    println!(
        "| an agent that starts: ready after | {:.1} s |",
        began.elapsed().as_secs_f64()
    );
    all_is_known(&store, &watch, 2);
    let read = agent(&lab);
    for (what, memory) in [
        ("empty", empty),
        ("it followed all of it", followed),
        ("it read all of it at its start", read),
    ] {
        println!(
            "| agent, {what}: RSS, PSS | {:.1} MiB, {:.1} MiB |",
            memory.rss, memory.pss
        );
    }
    let mut bars = Bars::default();
    bars.at_most("RSS of an agent that followed", followed.rss, 100.0, " MiB");
    bars.at_most("RSS of an agent that was started", read.rss, 100.0, " MiB");
    bars.exit()
}

fn agent(lab: &Lab) -> Memory {
    let mut all = lab::processes::find(lab.folder.path()).into_iter();
    let (_, pid) = all.find(|(role, _)| role.starts_with("agent/")).expect("an agent runs");
    Memory::of(pid.as_raw())
}

/// What comes after everything else is in the kernel.
fn all_is_known(store: &Datastore, watch: &Transactions, round: usize) {
    watch.quiet();
    watch.forget();
    let began = Instant::now();
    store.put(resource(&format!(
        "{{kind: NetworkPolicy, metadata: {{name: last, namespace: default}}, spec: {{ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [{round}]}}}}], egress: [{{action: Allow}}]}}}}"
    )));
    watch
        .last(began, LIMIT, Duration::from_millis(500))
        .expect("the last policy is enforced");
}

fn policy(number: usize) -> api::Resource {
    let namespace = match number % 20 {
        0 => "default".to_owned(),
        _ => format!("n{}", number % NAMESPACES),
    };
    resource(&format!(
        "{{kind: NetworkPolicy, metadata: {{name: p{number}, namespace: {namespace}}}, spec: {{selector: \"app == 'a{}'\", types: [Ingress, Egress], ingress: [
           {{action: Allow, protocol: TCP, source: {{selector: \"app == 'a{}'\"}}, destination: {{ports: [80, 443]}}}}], egress: [{{action: Allow}}]}}}}",
        number % 50,
        (number + 1) % 50
    ))
}

fn far_node(number: usize) -> api::Resource {
    resource(&format!(
        "{{kind: Node, metadata: {{name: far-{number}, labels: {{kubernetes.io/hostname: far-{number}}}}}, spec: {{bgp: {{ipv4Address: 172.20.{}.{}/16}}, addresses: [{{address: 172.20.{0}.{1}, type: InternalIP}}]}}}}",
        number / 250,
        number % 250 + 1
    ))
}

/// A block with as many pods as each node has.
fn block(number: usize) -> api::Resource {
    let allocations: Vec<String> = (0..64)
        .map(|at| {
            if at < PODS_PER_NODE {
                at.to_string()
            } else {
                "null".into()
            }
        })
        .collect();
    let free: Vec<String> = (PODS_PER_NODE..64).map(|at| at.to_string()).collect();
    let mut attributes = String::new();
    for at in 0..PODS_PER_NODE {
        let _ = write!(
            attributes,
            "{{handle_id: k8s-pod-network.{number:032x}{at:032x}, secondary: {{namespace: n1, node: far-{number}, pod: p{number}-{at}, timestamp: \"2026-01-02 03:04:05 UTC\"}}}},"
        );
    }
    let net = net(number);
    resource(&format!(
        "{{kind: IPAMBlock, metadata: {{name: {}-26}}, spec: {{cidr: {net}/26, affinity: 'host:far-{number}', allocations: [{}], unallocated: [{}], attributes: [{attributes}]}}}}",
        net.to_string().replace('.', "-"),
        allocations.join(","),
        free.join(",")
    ))
}

fn net(number: usize) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a80_0000 + 64 * u32::try_from(number).unwrap_or(u32::MAX))
}

fn pod(number: usize) -> api::Resource {
    let (node, at) = (number / PODS_PER_NODE, number % PODS_PER_NODE);
    let address = std::net::Ipv4Addr::from(u32::from(net(node)) + u32::try_from(at).unwrap_or_default());
    let namespace = format!("n{}", number % NAMESPACES);
    resource(&format!(
        "{{kind: WorkloadEndpoint, metadata: {{name: far--{node}-k8s-app--{}--{number}-eth0, namespace: {namespace}, labels: {{app: a{}, pod-template-hash: h{}, projectcalico.org/namespace: {namespace}, projectcalico.org/orchestrator: k8s, projectcalico.org/serviceaccount: default}}}},
           spec: {{orchestrator: k8s, node: far-{node}, pod: app-{0}-{number}, endpoint: eth0, containerID: 'c{number:063x}', interfaceName: cali{number:011x}, ipNetworks: [{address}/32], profiles: [kns.{namespace}, ksa.{namespace}.default]}}}}",
        number % 50,
        number % 50,
        number % 500,
    ))
}
