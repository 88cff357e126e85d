//! What a large cluster costs the calculation of one node: CPU time until it is in sync, memory, and single changes.
//!
//!     cargo bench -p policy --bench graph [-- SHAPE]
//!
//! Every shape runs in a process of its own, so that the memory is its own. Updates are made in small batches outside of the
//! time that is measured, as a store delivers them. CPU time is the thread's, which other work on the machine inflates (caches)
//! but never deflates: each shape runs several times, and the least of each figure counts. Ends with exit code 1 if a bar is missed.
#![allow(clippy::unwrap_used, reason = "not production code")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use api::resource::{NetworkPolicy, WorkloadEndpoint};
use api::{
    Action, EntityRule, GlobalNetworkPolicySpec, HostEndpointSpec, Metadata, NetworkPolicySpec, Object, Order,
    ProfileSpec, Resource, Rule, WorkloadEndpointSpec,
};
use datastore::Update;
use nix::time::{ClockId, clock_gettime};
use policy::Graph;

const NODE: &str = "node-0";
const BATCH: usize = 32;
const CHANGES: usize = 2_000;
const MIB: f64 = 1024.0 * 1024.0;
const RUNS: usize = 3;

/// A cluster.
struct Shape {
    name: &'static str,
    about: &'static str,
    endpoints: usize,
    local: usize,
    policies: usize,
    hosts: usize,
    namespaces: usize,
    endpoint: fn(usize, &Shape) -> WorkloadEndpoint,
    policy: fn(usize, &Shape) -> Resource,
    /// Bars; `None` is only shown.
    sync_seconds: Option<f64>,
    mib: Option<f64>,
    label_micros: Option<f64>,
    local_micros: Option<f64>,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "namespaces",
        about: "250,000 endpoints of 25,000 workloads in 2,500 namespaces, 10,000 policies of namespaces",
        endpoints: 250_000,
        local: 200,
        policies: 10_000,
        hosts: 0,
        namespaces: 2_500,
        endpoint: of_workload,
        policy: of_namespace,
        sync_seconds: Some(1.0),
        mib: Some(120.0),
        label_micros: Some(20.0),
        local_micros: Some(20.0),
    },
    Shape {
        name: "unique",
        about: "the same, but every endpoint has a label that no other has",
        endpoints: 250_000,
        local: 200,
        policies: 10_000,
        hosts: 0,
        namespaces: 2_500,
        endpoint: with_own_label,
        policy: of_namespace,
        // Without a bar: no two endpoints share a label set.
        sync_seconds: None,
        mib: Some(120.0),
        label_micros: Some(20.0),
        local_micros: None,
    },
    Shape {
        name: "markers",
        about: "250,000 endpoints with labels of upstream's benchmark, 10,000 global policies of 5 rules, all of them active",
        endpoints: 250_000,
        local: 200,
        policies: 10_000,
        hosts: 0,
        namespaces: 100,
        endpoint: with_marker,
        policy: for_markers,
        sync_seconds: Some(1.0),
        mib: Some(120.0),
        label_micros: Some(20.0),
        // 330 policies begin and end to select it.
        local_micros: Some(20.0),
    },
    Shape {
        name: "nodes",
        about: "5,000 nodes with a host endpoint each, 150,000 pods, 2,000 policies",
        endpoints: 150_000,
        local: 30,
        policies: 2_000,
        hosts: 5_000,
        namespaces: 500,
        endpoint: of_workload,
        policy: of_namespace,
        sync_seconds: Some(1.0),
        mib: Some(100.0),
        label_micros: Some(20.0),
        local_micros: Some(20.0),
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    if let [run, name] = arguments.as_slice()
        && run == "run"
    {
        let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
        return measure(shape);
    }
    println!("{:<12}{:<34}{:>10}{:>10}", "shape", "figure", "least", "bar");
    let is_wanted = |shape: &&Shape| arguments.is_empty() || arguments.iter().any(|name| name == shape.name);
    let mut missed = false;
    for shape in SHAPES.iter().filter(is_wanted) {
        println!("{:<12}{}", shape.name, shape.about);
        let runs: Vec<Vec<f64>> = (0..RUNS).map(|_| run(shape)).collect();
        for (place, (figure, bar)) in figures(shape).into_iter().enumerate() {
            let least = runs.iter().map(|run| run[place]).fold(f64::INFINITY, f64::min);
            let misses = bar.is_some_and(|bar| least > bar);
            let bar = bar.map(|bar| format!("<= {bar}")).unwrap_or_default();
            let note = if misses { "  MISSED" } else { "" };
            println!("{:<12}{figure:<34}{least:>10.2}{bar:>10}{note}", "");
            missed |= misses;
        }
    }
    match missed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// What is measured, with the bars.
fn figures(shape: &Shape) -> [(&'static str, Option<f64>); 7] {
    [
        ("in sync, CPU s", shape.sync_seconds),
        ("  of it the flush", None),
        ("resident MiB", shape.mib),
        ("  at its highest", None),
        ("label of a remote endpoint, us", shape.label_micros),
        ("label of a local endpoint, us", shape.local_micros),
        ("a policy rewritten, us", None),
    ]
}

/// The figures of one run, in a process of its own.
fn run(shape: &Shape) -> Vec<f64> {
    let own = std::env::current_exe().unwrap();
    let output = Command::new(own)
        .args(["run", shape.name])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Measures a shape, and prints the figures.
fn measure(shape: &Shape) -> ExitCode {
    let mut graph = Graph::new(NODE);
    let mut cpu = Duration::ZERO;
    for index in 0..shape.local {
        let endpoint = (shape.endpoint)(index, shape);
        graph.local(endpoint.key(), Some(endpoint));
    }
    feed(&mut graph, &mut cpu, shape.policies, |index| {
        (shape.policy)(index, shape)
    });
    feed(&mut graph, &mut cpu, shape.namespaces, profile);
    feed(&mut graph, &mut cpu, shape.hosts, host);
    feed(&mut graph, &mut cpu, shape.endpoints, |index| {
        (shape.endpoint)(index, shape).into()
    });
    let before = cpu_time();
    let changes = graph.flush();
    let flush = cpu_time() - before;
    cpu += flush;
    drop(changes);
    let memory = resident("VmRSS:");
    let peak = resident("VmHWM:");

    let state = graph.state();
    let members: usize = state.sets.values().map(|set| set.members.len()).sum();
    let (endpoints, policies, sets) = (state.endpoints.len(), state.policies.len(), state.sets.len());
    eprintln!(
        "{:<12}{endpoints} endpoints, {policies} policies, {sets} sets with {members} members are active",
        ""
    );
    let far = changed(&mut graph, shape, shape.endpoints / 2);
    let near = changed(&mut graph, shape, 0);
    let rewritten = rewritten(&mut graph, shape);
    let (cpu, flush) = (cpu.as_secs_f64(), flush.as_secs_f64());
    println!("{cpu} {flush} {} {} {far} {near} {rewritten}", memory / MIB, peak / MIB);
    ExitCode::SUCCESS
}

/// Hands over resources in batches, and counts the time that taking them needs.
fn feed(graph: &mut Graph, cpu: &mut Duration, count: usize, make: impl Fn(usize) -> Resource) {
    // One list for all batches: giving large blocks back makes the allocator tidy up, which is not what is measured.
    let mut batch = Vec::with_capacity(BATCH);
    for start in (0..count).step_by(BATCH) {
        batch.extend((start..count.min(start + BATCH)).map(|index| update(make(index))));
        let before = cpu_time();
        batch.drain(..).for_each(|update| graph.apply(update));
        *cpu += cpu_time() - before;
    }
}

/// Microseconds for one change of a label, with its flush: endpoints from `first` on get each other's labels and their own
/// back.
fn changed(graph: &mut Graph, shape: &Shape, first: usize) -> f64 {
    let span = 50.min(shape.local);
    let updates: Vec<Update> = (0..CHANGES)
        .map(|index| {
            let at = first + index % span;
            let mut endpoint = (shape.endpoint)(at, shape);
            if index / span % 2 == 0 {
                endpoint.metadata.labels = (shape.endpoint)(at + 1, shape).metadata.labels;
            }
            update(endpoint.into())
        })
        .collect();
    let before = cpu_time();
    for update in updates {
        graph.apply(update);
        graph.flush();
    }
    (cpu_time() - before).as_secs_f64() * 1e6 / CHANGES as f64
}

/// Microseconds for one policy that gets another rule and loses it again, with its flush.
fn rewritten(graph: &mut Graph, shape: &Shape) -> f64 {
    let updates: Vec<Update> = (0..200)
        .map(|index| {
            let mut policy = (shape.policy)(index / 2, shape);
            if index % 2 == 0 {
                let rule = allow_from(&format!("app == 'app-{index}'"));
                match &mut policy {
                    Resource::NetworkPolicy(policy) => policy.spec.ingress.push(rule),
                    Resource::GlobalNetworkPolicy(policy) => policy.spec.ingress.push(rule),
                    _ => {}
                }
            }
            update(policy)
        })
        .collect();
    let count = updates.len();
    let before = cpu_time();
    for update in updates {
        graph.apply(update);
        graph.flush();
    }
    (cpu_time() - before).as_secs_f64() * 1e6 / count as f64
}

fn update(resource: Resource) -> Update {
    Update {
        key: resource.key(),
        value: Some(resource),
    }
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Bytes, as the kernel counts them.
fn resident(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024.0
}

// --- resources ---

/// The first ones are local; of every namespace at most a few.
fn workload(index: usize, shape: &Shape, labels: BTreeMap<String, String>) -> WorkloadEndpoint {
    let namespace = format!("namespace-{}", index % shape.namespaces);
    let node = match index < shape.local {
        true => NODE.to_owned(),
        false => format!("node-{}", 1 + index % 5_000),
    };
    let pod = format!("app-{}-7d4b9c6f5d-{index:05x}", index / shape.namespaces % 10);
    let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index as u32));
    let spec = WorkloadEndpointSpec {
        orchestrator: "k8s".into(),
        endpoint: "eth0".into(),
        service_account_name: "default".into(),
        ip_networks: vec![address.into()],
        profiles: vec![format!("kns.{namespace}"), format!("ksa.{namespace}.default")],
        interface_name: format!("cali{index:011x}"),
        mac: "ee:ee:ee:ee:ee:ee".into(),
        container_id: format!("{index:064x}"),
        pod: pod.clone(),
        node: node.clone(),
        ..WorkloadEndpointSpec::default()
    };
    let name = format!("{}-k8s-{}-eth0", node.replace('-', "--"), pod.replace('-', "--"));
    let metadata = Metadata {
        labels,
        ..Metadata::namespaced(namespace, name)
    };
    WorkloadEndpoint {
        metadata,
        spec,
        status: None,
    }
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Ten workloads in every namespace.
fn of_workload(index: usize, shape: &Shape) -> WorkloadEndpoint {
    let (app, namespace) = (index / shape.namespaces % 10, index % shape.namespaces);
    let labels = labels([
        ("app", format!("app-{app}")),
        ("tier", ["front", "back"][app % 2].to_owned()),
        ("pod-template-hash", format!("{:08x}", namespace * 10 + app)),
        ("projectcalico.org/namespace", format!("namespace-{namespace}")),
        ("projectcalico.org/orchestrator", "k8s".to_owned()),
        ("projectcalico.org/serviceaccount", "default".to_owned()),
    ]);
    workload(index, shape, labels)
}

fn with_own_label(index: usize, shape: &Shape) -> WorkloadEndpoint {
    let mut endpoint = of_workload(index, shape);
    let name = ("statefulset.kubernetes.io/pod-name".to_owned(), format!("app-{index}"));
    endpoint.metadata.labels.extend([name]);
    endpoint
}

/// Upstream: one of 31 markers, and five labels with 10 to 40 values.
fn with_marker(index: usize, shape: &Shape) -> WorkloadEndpoint {
    let mut labels = BTreeMap::new();
    for n in [10, 11, 20, 30, 40] {
        labels.insert(format!("one-in-{n}"), format!("value-{}", index % n));
    }
    labels.insert(format!("marker-{}", index % 31), "true".to_owned());
    workload(index, shape, labels)
}

fn profile(index: usize) -> Resource {
    let name = format!("namespace-{index}");
    let labels_to_apply = labels([
        ("pcns.projectcalico.org/name", name.clone()),
        ("pcns.kubernetes.io/metadata.name", name.clone()),
        ("pcns.team", format!("team-{}", index % 50)),
    ]);
    let spec = ProfileSpec {
        ingress: vec![Rule::any(Action::Allow)],
        egress: vec![Rule::any(Action::Allow)],
        labels_to_apply,
    };
    Object::new(format!("kns.{name}"), spec).into()
}

fn host(index: usize) -> Resource {
    let spec = HostEndpointSpec {
        node: format!("node-{}", index + 1),
        interface_name: "*".into(),
        expected_ips: vec![IpAddr::V4(Ipv4Addr::from(0xac10_0000 + index as u32))],
        profiles: vec!["projectcalico-default-allow".into()],
        ..HostEndpointSpec::default()
    };
    let mut endpoint = Object::new(format!("node-{}-auto-hep", index + 1), spec);
    endpoint.metadata.labels = labels([
        ("kubernetes.io/hostname", format!("node-{}", index + 1)),
        ("kubernetes.io/os", "linux".to_owned()),
        ("topology.kubernetes.io/zone", format!("zone-{}", index % 3)),
    ]);
    endpoint.into()
}

/// Four policies in every namespace: workloads of the same one, and namespaces of a team.
fn of_namespace(index: usize, shape: &Shape) -> Resource {
    let (namespace, app) = (index % shape.namespaces, index / shape.namespaces % 10);
    let mut ingress = vec![
        allow_from(&format!("app == 'app-{}'", (app + 1) % 10)),
        allow_from(&format!("app == 'app-{}' && tier == 'front'", (app + 2) % 10)),
        allow_from("tier == 'back'"),
    ];
    let source = EntityRule {
        namespace_selector: format!("team == 'team-{}'", (namespace + 1) % 50),
        selector: format!("app == 'app-{app}'"),
        ..EntityRule::default()
    };
    ingress.push(Rule {
        source,
        ..Rule::any(Action::Allow)
    });
    let spec = NetworkPolicySpec {
        order: Order::whole(1_000),
        selector: format!("app == 'app-{app}'"),
        ingress,
        ..NetworkPolicySpec::default()
    };
    let metadata = Metadata::namespaced(format!("namespace-{namespace}"), format!("policy-{app}"));
    let policy: NetworkPolicy = Object {
        metadata,
        spec,
        status: None,
    };
    policy.into()
}

fn for_markers(index: usize, _: &Shape) -> Resource {
    let rule = |rule: usize| allow_from(&format!("has(marker-{})", (index + rule) % 31));
    let spec = GlobalNetworkPolicySpec {
        selector: format!("has(marker-{})", index % 31),
        ingress: (0..5).map(rule).collect(),
        ..GlobalNetworkPolicySpec::default()
    };
    Object::new(format!("tag-pol-{index}"), spec).into()
}

fn allow_from(selector: &str) -> Rule {
    let source = EntityRule {
        selector: selector.to_owned(),
        ..EntityRule::default()
    };
    Rule {
        source,
        ..Rule::any(Action::Allow)
    }
}
