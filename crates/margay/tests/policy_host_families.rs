//! Host endpoints with packets of both families: named, found by their addresses, and for all devices.

mod common;

use std::net::{IpAddr, SocketAddr};

use api::Key;
use common::Lab;
use common::cluster::{Datastore, Pod, resource};
use common::net::{self, L4, Servers};

const UNDERLAY: &str = "ens33";

/// Two nodes with a pod on the first, and a machine outside of the cluster that can reach it.
struct Setup {
    lab: Lab,
    store: Datastore,
    nodes: Vec<String>,
    pod: Pod,
    /// Network namespaces of the nodes and of the machine outside, and their addresses: IPv4, IPv6.
    places: Vec<String>,
    addresses: Vec<[IpAddr; 2]>,
    _servers: Servers,
}

const NODE: usize = 0;
const PEER: usize = 1;
const OUTSIDE: usize = 2;

impl Setup {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0", "--ipv6"])?;
        let nodes = lab.nodes();
        let pod = lab.add_pod("default", "pod", &nodes[NODE], &[]);
        lab.lab(&["node", "add", "outside", "--no-agent"]);
        let names = [nodes[NODE].as_str(), nodes[PEER].as_str(), "outside"];
        let places = names.map(|node| lab.node_place(node)).to_vec();
        let addresses: Vec<[IpAddr; 2]> = names
            .iter()
            .map(|node| [false, true].map(|ipv6| lab.first_address(node, UNDERLAY, ipv6)))
            .collect();
        for (ipv6, via) in [false, true].iter().zip(addresses[NODE]) {
            let to = pod.address(*ipv6).to_string();
            lab.exec("outside", &["ip", "route", "add", &to, "via", &via.to_string()]);
        }
        let ports = [80, 81, 22].map(|port| [(L4::Tcp, port), (L4::Udp, port)]).concat();
        let served = places.iter().chain([&pod.place]);
        let servers = Servers::start(&served.map(|place| (place.clone(), ports.clone())).collect::<Vec<_>>());
        let store = Datastore::of(&lab);
        Some(Self {
            lab,
            store,
            nodes,
            pod,
            places,
            addresses,
            _servers: servers,
        })
    }

    fn put(&self, yaml: &str) -> Key {
        let resource = resource(yaml);
        let key = resource.key();
        self.store.put(resource);
        key
    }

    fn endpoint(&self, spec: &str) -> Key {
        self.put(&format!(
            "{{kind: HostEndpoint, metadata: {{name: guarded, labels: {{host: guarded}}}}, spec: {{node: {}, {spec}}}}}",
            self.nodes[NODE]
        ))
    }

    fn policy(&self, name: &str, spec: &str) -> Key {
        self.put(&format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{selector: \"host == 'guarded'\", {spec}}}}}"
        ))
    }

    /// Who is reached over IPv4 and over IPv6.
    fn reached(&self, from: usize, to: [IpAddr; 2], l4: L4, port: u16, expected: [bool; 2]) -> [bool; 2] {
        let ask = |at: usize| net::reaches(&self.places[from], SocketAddr::from((to[at], port)), l4, expected[at]);
        [ask(0), ask(1)]
    }

    /// Waits until a port of the node is reached from a place over these families, and not over the others.
    fn becomes(&self, what: &str, from: usize, port: u16, expected: [bool; 2]) {
        for l4 in [L4::Tcp, L4::Udp] {
            self.lab.eventually(&format!("{what}: {l4:?} {port}"), || {
                self.reached(from, self.addresses[NODE], l4, port, expected) == expected
            });
        }
    }

    /// Failsafe ports are open, neighbours are found, sessions are up, and what is forwarded is another matter.
    fn others_are_fine(&self, what: &str) {
        let node = &self.nodes[NODE];
        self.lab
            .exec(node, &["ip", "-6", "neighbour", "flush", "dev", UNDERLAY]);
        self.lab
            .exec("outside", &["ip", "-6", "neighbour", "flush", "dev", UNDERLAY]);
        let ssh = self.reached(OUTSIDE, self.addresses[NODE], L4::Tcp, 22, [true; 2]);
        assert_eq!(ssh, [true; 2], "{what}: failsafe ports stay open");
        let pod = [self.pod.address(false), self.pod.address(true)];
        let forwarded = self.reached(OUTSIDE, pod, L4::Tcp, 80, [true; 2]);
        assert_eq!(forwarded, [true; 2], "{what}: what is forwarded");
        let status = self.lab.exec(node, &["calicoctl", "node", "status"]);
        assert!(status.contains("Established"), "{what}: {status}");
    }
}

#[test]
fn a_named_host_endpoint_over_both_families() {
    let Some(it) = Setup::up("t-hep-named") else { return };
    let (node, outside) = (it.addresses[NODE], it.addresses[OUTSIDE]);
    it.becomes("without a host endpoint", OUTSIDE, 80, [true; 2]);
    it.endpoint(&format!("interfaceName: {UNDERLAY}"));
    it.becomes("closed", OUTSIDE, 80, [false; 2]);
    let out = it.reached(NODE, outside, L4::Udp, 80, [false; 2]);
    assert_eq!(out, [false; 2], "out of it too");
    it.others_are_fine("closed");

    // By source, one family at a time, and by what the packet is.
    for (family, expected) in [(0, [true, false]), (1, [false, true])] {
        let from = outside[family];
        it.policy(
            "hosts",
            &format!(
                "ingress: [{{action: Allow, source: {{nets: ['{from}']}}, destination: {{nets: ['{}']}}}}]",
                node[family]
            ),
        );
        it.becomes("by source", OUTSIDE, 80, expected);
        it.becomes("by source, for another", PEER, 80, [false; 2]);
    }
    it.policy("hosts", "ingress: [{action: Allow, ipVersion: 6, protocol: TCP, destination: {ports: [80]}}, {action: Allow, protocol: UDP}]");
    it.lab.eventually("by version", || {
        it.reached(OUTSIDE, node, L4::Tcp, 80, [false, true]) == [false, true]
            && it.reached(OUTSIDE, node, L4::Udp, 80, [true; 2]) == [true; 2]
    });
    let ping = |family: &str, to: IpAddr| {
        let asked = [
            "exec",
            "outside",
            "--",
            "ping",
            "-n",
            "-c",
            "1",
            "-W",
            "1",
            family,
            &to.to_string(),
        ];
        it.lab.try_lab(&asked).status.success()
    };
    assert!(!ping("-6", node[1]), "echo is not discovery");
    it.policy(
        "hosts",
        "ingress: [{action: Allow, protocol: ICMPv6, icmp: {type: 128}}]",
    );
    it.lab.eventually("echo over IPv6", || ping("-6", node[1]));
    assert!(!ping("-4", node[0]));
    it.policy(
        "hosts",
        &format!(
            "ingress: [{{action: Deny}}], egress: [{{action: Allow, destination: {{nets: ['{}']}}}}]",
            outside[1]
        ),
    );
    it.lab.eventually("outwards", || {
        it.reached(NODE, outside, L4::Udp, 80, [false, true]) == [false, true]
    });
    it.others_are_fine("by policy");
    it.policy("hosts", "ingress: [{action: Allow}], egress: [{action: Allow}]");
    it.becomes("open", OUTSIDE, 80, [true; 2]);

    // Forwarded, before translation, and without tracking.
    let pod = [it.pod.address(false), it.pod.address(true)];
    let forward = it.policy(
        "forward",
        "order: 1, applyOnForward: true, types: [Ingress], ingress: [{action: Deny, ipVersion: 6, protocol: UDP, destination: {ports: [80]}}, {action: Allow}]",
    );
    it.lab.eventually("forwarded", || {
        it.reached(OUTSIDE, pod, L4::Udp, 80, [true, false]) == [true, false]
    });
    it.store.delete(&forward);
    let early = it.policy(
        "early",
        "preDNAT: true, applyOnForward: true, ingress: [{action: Deny, protocol: TCP, destination: {ports: [81]}}]",
    );
    it.lab.eventually("before translation", || {
        it.reached(OUTSIDE, node, L4::Tcp, 81, [false; 2]) == [false; 2]
    });
    it.others_are_fine("a policy before translation");
    it.store.delete(&early);
    it.lab.eventually("as before", || {
        it.reached(OUTSIDE, node, L4::Tcp, 81, [true; 2]) == [true; 2]
    });
    it.policy("hosts", "ingress: [{action: Deny}]");
    it.becomes("closed again", OUTSIDE, 81, [false; 2]);
    it.policy(
        "untracked",
        "order: 0, doNotTrack: true, applyOnForward: true, ingress: [{action: Allow, protocol: UDP, destination: {ports: [81]}}], \
         egress: [{action: Allow, protocol: UDP, source: {ports: [81]}}]",
    );
    it.lab.eventually("without tracking", || {
        it.reached(OUTSIDE, node, L4::Udp, 81, [true; 2]) == [true; 2]
    });
    it.others_are_fine("a policy without tracking");
}

#[test]
fn a_host_endpoint_found_by_its_addresses() {
    let Some(it) = Setup::up("t-hep-found") else { return };
    let [v4, v6] = it.addresses[NODE];
    // One address is enough to find the device; packets to all of its addresses are judged.
    for (by, spec) in [
        ("both addresses", format!("expectedIPs: ['{v4}', '{v6}']")),
        ("its IPv4 address", format!("expectedIPs: ['{v4}']")),
        ("its IPv6 address", format!("expectedIPs: ['{v6}']")),
        (
            "one of many",
            format!("expectedIPs: [192.0.2.1, '2001:db8::1', '{v6}']"),
        ),
    ] {
        let endpoint = it.endpoint(&spec);
        it.becomes(&format!("closed, by {by}"), OUTSIDE, 80, [false; 2]);
        it.others_are_fine(by);
        it.store.delete(&endpoint);
        it.becomes(&format!("open, without {by}"), OUTSIDE, 80, [true; 2]);
    }
    it.endpoint("expectedIPs: [192.0.2.1]");
    let table = || {
        it.lab
            .exec(&it.nodes[NODE], &["nft", "list", "table", "inet", "calico"])
    };
    it.lab.eventually("it is known", || table().contains("guarded"));
    it.becomes("an address that is not here", OUTSIDE, 80, [true; 2]);

    // An address that comes and goes.
    let address = |verb: &str, address: &str| {
        it.lab
            .exec(&it.nodes[NODE], &["ip", "address", verb, address, "dev", UNDERLAY]);
    };
    for (new, spec) in [
        ("192.0.2.1/32", "expectedIPs: [192.0.2.1]"),
        ("2001:db8::1/128", "expectedIPs: ['2001:db8::1']"),
    ] {
        it.endpoint(spec);
        it.becomes("not yet", OUTSIDE, 80, [true; 2]);
        address("add", new);
        it.becomes(&format!("{new} has come"), OUTSIDE, 80, [false; 2]);
        address("delete", new);
        it.becomes(&format!("{new} is gone"), OUTSIDE, 80, [true; 2]);
    }

    // They are what selectors of rules find: here in a policy of another host.
    it.put(&format!(
        "{{kind: HostEndpoint, metadata: {{name: friend, labels: {{host: friend}}}}, spec: {{node: {}, expectedIPs: ['{}', '{}']}}}}",
        it.nodes[PEER], it.addresses[PEER][0], it.addresses[PEER][1]
    ));
    it.put("{kind: GlobalNetworkPolicy, metadata: {name: friend}, spec: {selector: \"host == 'friend'\", ingress: [{action: Allow}], egress: [{action: Allow}]}}");
    it.endpoint(&format!("expectedIPs: ['{v4}']"));
    it.policy(
        "hosts",
        "ingress: [{action: Allow, source: {selector: \"host == 'friend'\"}}]",
    );
    it.becomes("for friends", PEER, 80, [true; 2]);
    it.becomes("for others", OUTSIDE, 80, [false; 2]);

    // All devices, and one that is found by its address beside it.
    it.put(&format!(
        "{{kind: HostEndpoint, metadata: {{name: all}}, spec: {{node: {}, interfaceName: '*'}}}}",
        it.nodes[NODE]
    ));
    it.becomes("the device's own counts", PEER, 80, [true; 2]);
    it.store.delete(&Key::cluster(api::Kind::HostEndpoint, "guarded"));
    it.becomes("all devices", PEER, 80, [false; 2]);
    it.others_are_fine("all devices");
}
