//! Three namespaces with three pods each on two nodes with kubelets, all of them servers. Pods' sockets are the test's own: a socket
//! stays in the network namespace that it was opened in.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::matrix::{self, PORTS, Pod, Square};
use crate::common::net::{self, L4, Servers};

const NODES: [&str; 2] = ["n1", "n2"];
/// Ports of the two pods that tell when a change has arrived.
const FENCES: std::ops::Range<u16> = 2000..2100;
/// How long a change may take until it is enforced, and everything else that is waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// The cluster that KUBECONFIG and KUBE_STATE name, and what is in it.
pub struct Cluster {
    pods: Vec<Pod>,
    fences: Vec<Pod>,
    _servers: Servers,
    written: BTreeSet<(&'static str, &'static str)>,
    fence: u16,
    has_end_port: bool,
    /// Matrices that were read before the kernels were as expected.
    pub early: usize,
}

impl Cluster {
    /// Makes namespaces and pods, and waits until they are ready.
    pub fn up() -> Self {
        let places = ["x", "y", "z"]
            .into_iter()
            .flat_map(|namespace| ["a", "b", "c"].map(|pod| (namespace, pod)));
        let mut wanted: Vec<_> = places
            .enumerate()
            .map(|(number, place)| (place, NODES[number % 2]))
            .collect();
        wanted.extend([(("fence", "a"), NODES[0]), (("fence", "b"), NODES[1])]);
        let namespaces = ["x", "y", "z", "fence"].map(namespace);
        apply(namespaces.to_vec());
        // A pod needs the account of its namespace, which a controller makes.
        for name in ["x", "y", "z", "fence"] {
            let deadline = Instant::now() + LIMIT;
            while !kubectl(&["-n", name, "get", "serviceaccount", "default"], "").0 {
                assert!(Instant::now() < deadline, "no account in {name}");
            }
        }
        apply(
            wanted
                .iter()
                .map(|((namespace, name), node)| pod(namespace, name, node))
                .collect(),
        );
        for name in ["x", "y", "z", "fence"] {
            run(
                &[
                    "-n",
                    name,
                    "wait",
                    "--for",
                    "condition=ready",
                    "pod",
                    "--all",
                    "--timeout",
                    "120s",
                ],
                "",
            );
        }
        let mut pods: Vec<Pod> = wanted
            .iter()
            .map(|((namespace, name), node)| found(namespace, name, node))
            .collect();
        let fences = pods.split_off(9);
        let ports: Vec<(L4, u16)> = PORTS
            .iter()
            .flat_map(|port| [(L4::Tcp, *port), (L4::Udp, *port)])
            .collect();
        let fence_ports: Vec<(L4, u16)> = FENCES.map(|port| (L4::Udp, port)).collect();
        let served: Vec<_> = pods
            .iter()
            .map(|pod| (pod.place.clone(), ports.clone()))
            .chain(fences.iter().map(|pod| (pod.place.clone(), fence_ports.clone())))
            .collect();
        Self {
            pods,
            fences,
            _servers: Servers::start(&served),
            written: BTreeSet::new(),
            fence: FENCES.start,
            // From 1.22 on; before, kubectl refuses it and the server drops it.
            has_end_port: run(&["explain", "networkpolicy.spec.ingress.ports"], "").contains("endPort"),
            early: 0,
        }
    }

    /// Whether the API server knows the fields of a policy.
    pub fn knows(&self, spec: &str) -> bool {
        self.has_end_port || !spec.contains("endPort")
    }

    /// An address of the pod called `x/a`.
    pub fn address(&self, name: &str, ipv6: bool) -> IpAddr {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.expect("a pod of the matrix").address(ipv6)
    }

    /// Makes these (namespace, name, spec) the only policies, and waits until both nodes have heard of it.
    pub fn only(&mut self, policies: &[(&'static str, &'static str, String)]) {
        let keys: BTreeSet<_> = policies
            .iter()
            .map(|(namespace, name, _)| (*namespace, *name))
            .collect();
        for (namespace, name) in std::mem::replace(&mut self.written, keys.clone()).difference(&keys) {
            run(&["-n", namespace, "delete", "networkpolicy", name], "");
        }
        self.fence += 1;
        assert!(FENCES.contains(&self.fence), "more ports for fences");
        let fence = format!(
            "{{podSelector: {{}}, ingress: [{{ports: [{{port: {}, protocol: UDP}}]}}]}}",
            self.fence
        );
        let mut objects: Vec<Value> = policies
            .iter()
            .map(|(namespace, name, spec)| policy(namespace, name, spec))
            .collect();
        // Changes of one kind are heard in their order: when this one is, the others were.
        objects.push(policy("fence", "fence", &fence));
        apply(objects);
        let deadline = Instant::now() + LIMIT;
        for [from, to] in [[0, 1], [1, 0]] {
            let to = SocketAddr::from((self.fences[to].addresses[0], self.fence));
            while net::seen_as(&self.fences[from].place, to, Duration::from_millis(2)).is_none() {
                assert!(
                    Instant::now() < deadline,
                    "a policy is not enforced within {LIMIT:?}\n{}",
                    state()
                );
            }
        }
    }

    /// Gives a pod (`x/a`) or a namespace (`z`) a label, or takes it.
    pub fn label(&self, of: &str, key: &str, value: Option<&str>) {
        let label = value.map_or(format!("{key}-"), |value| format!("{key}={value}"));
        match of.split_once('/') {
            Some((namespace, name)) => run(
                &[
                    "-n",
                    namespace,
                    "label",
                    "--overwrite",
                    "pod",
                    &unique(namespace, name),
                    &label,
                ],
                "",
            ),
            None => run(&["label", "--overwrite", "namespace", of, &label], ""),
        };
    }

    /// How many there are of them.
    pub fn squares(&self) -> usize {
        matrix::squares(&self.pods).len()
    }

    /// Compares every pair of pods, protocol, port and family with what is expected.
    pub fn check(&mut self, what: &str, expected: &dyn Fn(Square<'_>) -> bool) {
        self.early += matrix::check(what, &self.pods, expected, &state);
    }
}

/// The name of a pod in Kubernetes: its processes are found by it, so it is a pod's alone.
fn unique(namespace: &str, name: &str) -> String {
    format!("{namespace}-{name}")
}

fn namespace(name: &str) -> Value {
    // From 1.21 on the API server sets this label.
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
}

fn pod(namespace: &str, name: &str, node: &str) -> Value {
    let port =
        |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "containerPort": port});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": unique(namespace, name), "namespace": namespace, "labels": {"pod": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": "localhost/busybox:1",
                "imagePullPolicy": "Never",
                "command": ["sleep", "100000"],
                "ports": [port("serve-80-tcp", "TCP", 80), port("serve-81-tcp", "TCP", 81), port("serve-80-udp", "UDP", 80)],
            }],
        },
    })
}

fn policy(namespace: &str, name: &str, spec: &str) -> Value {
    let spec: Value = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// A pod that is ready: where it is, and its addresses.
fn found(namespace: &str, name: &str, node: &str) -> Pod {
    let unique = unique(namespace, name);
    let text = run(&["-n", namespace, "get", "pod", &unique, "-o", "json"], "");
    let seen: Value = serde_json::from_str(&text).expect("JSON");
    let addresses = seen["status"]["podIPs"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|entry| entry["ip"].as_str()?.parse().ok());
    Pod {
        name: format!("{namespace}/{name}"),
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        place: network_of(&unique, node).display().to_string(),
        addresses: addresses.collect(),
    }
}

/// The network namespace of a pod, as this machine sees it: by a process of its node whose host name is the pod's.
fn network_of(pod: &str, node: &str) -> PathBuf {
    let state = PathBuf::from(std::env::var("KUBE_STATE").expect("KUBE_STATE: tools/test-kube sets it"));
    let first = fs::read_to_string(state.join("pids").join(node)).expect("the node's first process");
    let first = first.split_whitespace().next().unwrap_or_default();
    let processes = PathBuf::from(format!("/proc/{first}/root/proc"));
    let wanted = format!("HOSTNAME={pod}");
    let is_pods = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted.as_bytes())
    };
    let entries = fs::read_dir(&processes).expect("the node's processes");
    let process = entries.filter_map(|entry| Some(entry.ok()?.path())).find(is_pods);
    process.unwrap_or_else(|| panic!("no process of {pod}")).join("ns/net")
}

fn apply(items: Vec<Value>) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    run(&["apply", "-f", "-"], &list.to_string());
}

/// kubectl, which must succeed; its standard output.
fn run(args: &[&str], input: &str) -> String {
    let (done, output) = kubectl(args, input);
    assert!(done, "kubectl {args:?}: {output}");
    output
}

fn kubectl(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("kubectl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl ends");
    let text = match output.status.success() {
        true => output.stdout,
        false => output.stderr,
    };
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn state() -> String {
    let policies = kubectl(&["get", "networkpolicies", "-A"], "").1;
    let pods = kubectl(&["get", "pods", "-A", "-o", "wide", "--show-labels"], "").1;
    format!("{policies}\n{pods}")
}
