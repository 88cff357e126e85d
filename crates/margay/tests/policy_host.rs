//! What the packet filter does besides policies of pods: sources that are not the pod's, tunnels in pods, and the host itself.
//! (Translated addresses: `policy_nat`.)

mod common;

use std::net::{IpAddr, SocketAddr};

use api::Key;
use common::Lab;
use common::cluster::{Datastore, Pod, resource};
use common::net::{self, L4, Receiver, Servers};
use common::told::{self, dropped};

/// The host's end of the fabric.
const UNDERLAY: &str = "ens33";

/// Two nodes with a pod each, and a machine outside of the cluster that can reach both.
struct Setup {
    lab: Lab,
    store: Datastore,
    nodes: Vec<String>,
    near: Pod,
    far: Pod,
    /// Network namespaces of the nodes and of the machine outside, and their addresses.
    places: Vec<String>,
    addresses: Vec<IpAddr>,
    _servers: Servers,
}

const NEAR: usize = 0;
const FAR: usize = 1;
const OUTSIDE: usize = 2;

impl Setup {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0"])?;
        let nodes = lab.nodes();
        let near = lab.add_pod("default", "near", &nodes[NEAR], &[]);
        let far = lab.add_pod("default", "far", &nodes[FAR], &[]);
        lab.lab(&["node", "add", "outside", "--no-agent"]);
        let places: Vec<String> = nodes
            .iter()
            .map(String::as_str)
            .chain(["outside"])
            .map(|node| lab.node_place(node))
            .collect();
        let addresses: Vec<IpAddr> = nodes
            .iter()
            .map(String::as_str)
            .chain(["outside"])
            .map(|node| lab.first_address(node, UNDERLAY, false))
            .collect();
        for (pod, node) in [(&near, NEAR), (&far, FAR)] {
            let (to, via) = (pod.address(false).to_string(), addresses[node].to_string());
            lab.exec("outside", &["ip", "route", "add", &to, "via", &via]);
        }
        let host = vec![(L4::Udp, 7777), (L4::Udp, 7778), (L4::Tcp, 7777), (L4::Tcp, 22)];
        let pod = vec![(L4::Udp, 80), (L4::Udp, 81), (L4::Tcp, 80)];
        let mut served: Vec<_> = places.iter().map(|place| (place.clone(), host.clone())).collect();
        served.extend([&near, &far].map(|it| (it.place.clone(), pod.clone())));
        let servers = Servers::start(&served);
        let store = Datastore::of(&lab);
        Some(Self {
            lab,
            store,
            nodes,
            near,
            far,
            places,
            addresses,
            _servers: servers,
        })
    }

    fn host(&self, node: usize, port: u16) -> SocketAddr {
        (self.addresses[node], port).into()
    }

    /// Waits until a probe is answered, or until it is not any more.
    fn becomes(&self, what: &str, from: &str, to: SocketAddr, l4: L4, reached: bool) {
        self.lab
            .eventually(what, || net::reaches(from, to, l4, false) == reached);
    }

    /// Packets that a node has dropped for a cause.
    fn dropped(&self, node: usize, cause: &str) -> u64 {
        dropped(&self.lab, &self.nodes[node], cause, None)
    }

    fn felix(&self, spec: &str) {
        self.store.put(resource(&format!(
            "{{kind: FelixConfiguration, metadata: {{name: default}}, spec: {{{spec}}}}}"
        )));
    }

    fn put(&self, yaml: &str) -> Key {
        let resource = resource(yaml);
        let key = resource.key();
        self.store.put(resource);
        key
    }
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    (pod.address(false), port).into()
}

#[test]
fn sources_are_never_forged() {
    let Some(it) = Setup::up("t-pol-forged") else { return };
    let pod = it.near.address(false);
    // Whoever claims another source is not heard: an address of nobody, another pod's, the node's.
    let receiver = Receiver::start(&it.far.place, 90);
    let neighbour = it.lab.add_pod("default", "neighbour", &it.nodes[NEAR], &[]);
    let forged = [
        "192.0.2.77".parse().unwrap(),
        neighbour.address(false),
        it.addresses[NEAR],
    ];
    for source in forged {
        net::inside(&it.near.place, || {
            common::run(&["ip", "address", "add", &format!("{source}/32"), "dev", "lo"]);
        });
        net::send_as(&it.near.place, source, at(&it.far, 90));
    }
    // The packet behind them.
    net::send_as(&it.near.place, pod, at(&it.far, 90));
    it.lab
        .eventually("the pod's own packet", || !receiver.heard(pod).is_empty());
    for source in forged {
        assert!(receiver.heard(source).is_empty(), "{source} is not the pod's");
    }
    assert_eq!(it.dropped(NEAR, "spoofed"), 3);
}

#[test]
fn tunnels_of_pods_are_refused_unless_they_are_allowed() {
    let Some(it) = Setup::up("t-pol-tunnel") else { return };
    let pod = it.near.address(false);
    let (sender, heard) = (net::raw(&it.near.place, 4), net::raw(&it.far.place, 4));
    let vxlan = Receiver::start(&it.far.place, 4789);
    let last = Receiver::start(&it.far.place, 90);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 256];
    let mut send = |allowed: bool| {
        vxlan.forget();
        last.forget();
        let _ = sender.send_to(&[0x45; 40], &SocketAddr::from((it.far.address(false), 0)).into());
        net::send_as(&it.near.place, pod, at(&it.far, 4789));
        net::send_as(&it.near.place, pod, at(&it.far, 90));
        it.lab
            .eventually("the packet behind them", || !last.heard(pod).is_empty());
        let ipip = heard.recv(&mut buffer).is_ok();
        (ipip, !vxlan.heard(pod).is_empty()) == (allowed, allowed)
    };
    assert!(send(false), "refused by default");
    assert_eq!(it.dropped(NEAR, "tunnel-from-pod"), 2);
    it.felix("allowIPIPPacketsFromWorkloads: true, allowVXLANPacketsFromWorkloads: true");
    it.lab.eventually("allowed", || send(true));
    it.felix("");
    it.lab.eventually("refused again", || send(false));

    // A tunnel that no node has begun. Where BPF takes packets out of tunnels, it is the one that refuses this.
    let stranger = net::raw(&it.places[OUTSIDE], 4);
    let inner = [0x45; 40];
    let sent = stranger.send_to(&inner, &SocketAddr::from((it.addresses[NEAR], 0)).into());
    assert_eq!(sent.expect("it has a route"), inner.len());
    it.lab.eventually("a stranger's tunnel", || {
        let status = told::status(&it.lab, &it.nodes[NEAR]);
        let by_bpf = status["ipip"]["counters"]["dropped_unknown_source"].as_u64();
        it.dropped(NEAR, "tunnel-from-stranger") + by_bpf.unwrap_or_default() == 1
    });
}

#[test]
fn pods_and_their_host() {
    let Some(it) = Setup::up("t-pol-host") else { return };
    let (pod, own) = (it.near.place.as_str(), it.host(NEAR, 7777));
    let before = it.dropped(NEAR, "to-host");
    assert!(!net::reaches(pod, own, L4::Udp, false), "Drop is the default");
    assert_eq!(it.dropped(NEAR, "to-host"), before + 1);
    assert!(
        net::reaches(&it.places[NEAR], at(&it.near, 80), L4::Udp, true),
        "hosts reach their pods"
    );
    assert!(
        net::reaches(pod, it.host(OUTSIDE, 7777), L4::Udp, true),
        "it is about the pod's own host"
    );
    for (action, reached) in [("Accept", true), ("Drop", false), ("Return", true)] {
        it.felix(&format!("defaultEndpointToHostAction: {action}"));
        for l4 in [L4::Udp, L4::Tcp] {
            it.becomes(action, pod, own, l4, reached);
        }
    }
    // The pod's own policy is asked before.
    let deny = it.put(
        "{kind: NetworkPolicy, metadata: {name: deny, namespace: default}, spec: {selector: all(), types: [Egress]}}",
    );
    it.becomes("the pod's policy", pod, own, L4::Udp, false);
    assert!(dropped(&it.lab, &it.nodes[NEAR], "end-of-tier", Some("default")) > 0);
    it.store.delete(&deny);
    it.becomes("the pod's policy is gone", pod, own, L4::Udp, true);
}

#[test]
fn host_endpoints() {
    let Some(it) = Setup::up("t-pol-hep") else { return };
    let outside = it.places[OUTSIDE].as_str();
    let host = |port| it.host(NEAR, port);
    let reaches = |to, l4| net::reaches(outside, to, l4, true);
    assert!(reaches(host(7777), L4::Udp) && reaches(host(7777), L4::Tcp));
    let endpoint = |name: &str, node: usize, interface: &str| {
        it.put(&format!(
            "{{kind: HostEndpoint, metadata: {{name: on-{name}, labels: {{host: is-{name}}}}}, spec: {{node: {}, interfaceName: '{interface}'}}}}",
            it.nodes[node]
        ))
    };
    let policy = |name: &str, spec: &str| {
        it.put(&format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{selector: \"host == 'is-n'\", {spec}}}}}"
        ))
    };
    let others_are_fine = |what: &str| {
        assert!(reaches(host(22), L4::Tcp), "{what}: failsafe ports stay open");
        assert!(
            net::reaches(&it.near.place, at(&it.far, 80), L4::Udp, true),
            "{what}: pods are another matter"
        );
        assert!(
            net::reaches(&it.far.place, at(&it.near, 80), L4::Udp, true),
            "{what}: pods are another matter"
        );
        let status = it.lab.lab(&["status"]);
        let rows: Vec<&str> = status
            .lines()
            .filter(|line| it.nodes.iter().any(|node| line.starts_with(node.as_str())))
            .collect();
        assert!(
            rows.iter().all(|row| row.contains("yes") && row.contains("1/1")),
            "{what}: {status}"
        );
    };

    // Named.
    let named = endpoint("n", NEAR, UNDERLAY);
    it.becomes("closed without policy", outside, host(7777), L4::Udp, false);
    it.becomes(
        "out of it too",
        &it.places[NEAR],
        it.host(OUTSIDE, 7777),
        L4::Udp,
        false,
    );
    assert!(
        reaches(at(&it.near, 80), L4::Udp),
        "what is forwarded is another matter"
    );
    others_are_fine("a named host endpoint");
    policy(
        "hosts",
        "ingress: [{action: Allow, protocol: UDP, destination: {ports: [7777]}}], egress: [{action: Allow}]",
    );
    it.becomes("what policy allows", outside, host(7777), L4::Udp, true);
    it.becomes(
        "what policy allows, outwards",
        &it.places[NEAR],
        it.host(OUTSIDE, 7777),
        L4::Udp,
        true,
    );
    assert!(!net::reaches(outside, host(7777), L4::Tcp, false));

    // Forwarded.
    let forward = policy(
        "forward",
        "order: 1, applyOnForward: true, types: [Ingress], ingress: [{action: Deny, protocol: UDP, destination: {ports: [80]}}, {action: Allow}]",
    );
    it.becomes("forwarded, denied", outside, at(&it.near, 80), L4::Udp, false);
    assert!(reaches(at(&it.near, 81), L4::Udp), "forwarded, allowed");
    others_are_fine("a policy with applyOnForward");
    it.store.delete(&forward);
    it.becomes("forwarded, as before", outside, at(&it.near, 80), L4::Udp, true);

    // Before translation.
    it.store.change_pod(&it.near, |endpoint| {
        let ports = serde_json::json!([{"name": "web", "protocol": "TCP", "port": 80, "hostPort": 8080}]);
        endpoint.spec.ports = serde_json::from_value(ports).expect("ports");
    });
    it.becomes("a port of the host", outside, host(8080), L4::Tcp, true);
    let early = policy(
        "early",
        "preDNAT: true, applyOnForward: true, ingress: [{action: Deny, protocol: TCP, destination: {ports: [8080]}}]",
    );
    it.becomes("before translation, denied", outside, host(8080), L4::Tcp, false);
    assert!(reaches(at(&it.near, 80), L4::Tcp), "the pod itself can be reached");
    others_are_fine("a policy before translation");
    it.store.delete(&early);
    it.becomes("before translation, as before", outside, host(8080), L4::Tcp, true);

    // Without connection tracking: allowed in both directions, and nobody remembers it.
    let tracked = |port: u16| {
        let flows = it.lab.exec(
            &it.nodes[NEAR],
            &["conntrack", "-L", "-p", "udp", "--orig-port-dst", &port.to_string()],
        );
        flows.contains("udp")
    };
    assert!(!net::reaches(outside, host(7778), L4::Udp, false));
    policy(
        "untracked",
        "order: 0, doNotTrack: true, applyOnForward: true, ingress: [{action: Allow, protocol: UDP, destination: {ports: [7778]}}], \
         egress: [{action: Allow, protocol: UDP, source: {ports: [7778]}}]",
    );
    it.becomes("without tracking", outside, host(7778), L4::Udp, true);
    assert!(reaches(host(7777), L4::Udp), "others are judged as before");
    assert!(tracked(7777) && !tracked(7778));
    others_are_fine("a policy without tracking");

    // All devices.
    it.store.delete(&named);
    it.becomes("no host endpoint", outside, host(7777), L4::Tcp, true);
    endpoint("all", FAR, "*");
    it.becomes("all devices", outside, it.host(FAR, 7777), L4::Udp, false);
    it.becomes(
        "all devices, outwards",
        &it.places[FAR],
        it.host(OUTSIDE, 7777),
        L4::Udp,
        false,
    );
    assert!(
        net::reaches(&it.places[FAR], "127.0.0.1:7777".parse().unwrap(), L4::Udp, true),
        "lo is left alone"
    );
    assert!(
        net::reaches(&it.places[FAR], at(&it.far, 80), L4::Udp, true),
        "hosts reach their pods"
    );
    others_are_fine("a host endpoint for all devices");
    assert!(
        net::reaches(outside, it.host(FAR, 22), L4::Tcp, true),
        "failsafe ports stay open"
    );
}
