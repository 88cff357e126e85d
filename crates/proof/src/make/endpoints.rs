//! Pods, host endpoints, network sets and services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::*;
use api::*;
use ipnet::IpNet;

use super::rules::{NETS, any_net};
use super::{NAMESPACES, PORT_NAMES, SERVICES, in_namespace, labels};
use crate::packet::{NAMED_PORTS, PORTS};
use crate::random::Random;
use crate::world::{FAR_HOST, FAR_PODS, HOST_ADDRESSES, KNOWN_PODS, NODE, OUTSIDE, POD_ADDRESSES, PODS, ip};

const LABELS: [(&str, &[&str]); 3] = [
    ("role", &["web", "db"]),
    ("env", &["prod", "test"]),
    ("tint", &["red", "blue"]),
];

pub(super) fn local_pods(random: &mut Random) -> BTreeMap<Key, WorkloadEndpoint> {
    let mut pods = BTreeMap::new();
    for index in 0..KNOWN_PODS {
        // Sometimes nobody has told policy of a pod.
        if random.one_in(12) {
            continue;
        }
        let mut pod = pod(random, NODE, &format!("p{index}"), POD_ADDRESSES[index]);
        pod.spec.interface_name = PODS[index].to_owned();
        if random.one_in(4) {
            let spoofable = random.some(1, 2, |random| {
                random.pick(&["10.65.0.4/30", "fd65::4/126", "10.65.0.1", "fd65::2/128"])
            });
            pod.spec.allow_spoofed_source_prefixes = spoofable.into_iter().map(str::to_owned).collect();
        }
        pods.insert(pod.key(), pod);
    }
    pods
}

fn pod(random: &mut Random, node: &str, name: &str, addresses: [&str; 2]) -> WorkloadEndpoint {
    let namespace = random.pick(&NAMESPACES);
    let account = random.pick(&["default", "default", "other"]);
    let mut profiles = vec![format!("kns.{namespace}"), format!("ksa.{namespace}.{account}")];
    if random.one_in(3) {
        profiles.push(random.pick(&["extra", "extra", "missing"]).to_owned());
    }
    if random.one_in(8) {
        profiles.clear();
    }
    let spec = WorkloadEndpointSpec {
        orchestrator: "k8s".into(),
        node: node.into(),
        pod: name.into(),
        endpoint: "eth0".into(),
        container_id: "c1".into(),
        service_account_name: account.into(),
        ip_networks: addresses.iter().map(|address| IpNet::from(ip(address))).collect(),
        profiles,
        ports: random.some(1, 4, |random| EndpointPort {
            name: random.pick(&PORT_NAMES).into(),
            protocol: Protocol::from_text(random.pick(&["TCP", "UDP", "SCTP"])),
            port: random.pick(&NAMED_PORTS),
            host_port: None,
            host_ip: None,
        }),
        ..WorkloadEndpointSpec::default()
    };
    let mut pod = in_namespace(namespace, &format!("{node}-k8s-{name}-eth0"), spec);
    pod.metadata.labels = labels(random, &LABELS);
    pod
}

/// What is not a pod of the node.
pub(super) fn others(random: &mut Random) -> Vec<Resource> {
    let mut resources: Vec<Resource> = Vec::new();
    for (index, addresses) in FAR_PODS.iter().enumerate() {
        resources.push(pod(random, "n2", &format!("f{index}"), *addresses).into());
    }
    resources.push(host(random, "far", "n2", "eth0", &FAR_HOST).into());
    if random.one_in(2) {
        resources.push(host(random, "near-eth0", NODE, "eth0", &HOST_ADDRESSES[0]).into());
    }
    if random.one_in(2) {
        // Found by its address: `eth1`.
        resources.push(host(random, "near-by-address", NODE, "", &HOST_ADDRESSES[1]).into());
    }
    if random.one_in(3) {
        resources.push(host(random, "near-all", NODE, "*", &[]).into());
    }
    for namespace in NAMESPACES {
        let nets = random.some(1, 3, any_net);
        let mut set = in_namespace(namespace, "set", NetworkSetSpec { nets });
        set.metadata.labels = labels(random, &LABELS);
        resources.push(set.into());
    }
    for name in ["everywhere", "somewhere"] {
        let nets = random.some(1, 4, |random| random.pick(&NETS[6..]).parse().expect("a prefix"));
        let mut set = Object::new(name, GlobalNetworkSetSpec { nets });
        set.metadata.labels = labels(random, &LABELS);
        resources.push(set.into());
    }
    for (index, service) in SERVICES.iter().enumerate() {
        for namespace in NAMESPACES {
            resources.push(slice(random, namespace, &format!("s{index}"), service).into());
        }
    }
    resources
}

fn host(random: &mut Random, name: &str, node: &str, interface: &str, addresses: &[&str]) -> HostEndpoint {
    let spec = HostEndpointSpec {
        node: node.into(),
        interface_name: interface.into(),
        expected_ips: addresses.iter().map(|address| ip(address)).collect(),
        profiles: random.some(0, 2, |random| random.pick(&["kns.a", "extra", "missing"]).to_owned()),
        ports: random.some(0, 2, |random| HostEndpointPort {
            name: random.pick(&PORT_NAMES).into(),
            protocol: Protocol::from_text(random.pick(&["TCP", "UDP", "SCTP"])),
            port: random.pick(&NAMED_PORTS),
        }),
    };
    let mut host = Object::new(name, spec);
    host.metadata.labels = labels(random, &LABELS);
    host.metadata.labels.insert("host".into(), "yes".into());
    host
}

fn slice(random: &mut Random, namespace: &str, name: &str, service: &str) -> KubernetesEndpointSlice {
    let backends = POD_ADDRESSES.iter().chain(&FAR_PODS).chain(&OUTSIDE[1]);
    let backends: Vec<IpAddr> = backends.flatten().map(|address| ip(address)).collect();
    let spec = KubernetesEndpointSliceSpec {
        service: service.into(),
        addresses: random.some(2, 8, |random| random.pick(&backends)),
        ports: random.some(1, 4, |random| SlicePort {
            name: String::new(),
            protocol: Protocol::from_text(random.pick(&["TCP", "UDP", "SCTP"])),
            port: random.pick(&PORTS),
        }),
    };
    in_namespace(namespace, name, spec)
}
