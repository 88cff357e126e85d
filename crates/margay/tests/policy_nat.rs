//! Translated sources as FelixConfiguration says, and translated destinations, over both families.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use api::{Key, Kind};
use common::Lab;
use common::cluster::{Datastore, Pod, resource};
use common::net::{self, L4, Servers};

const UNDERLAY: &str = "ens33";
/// Whether it is IPv6.
const FAMILIES: [bool; 2] = [false, true];
/// On the fabric, and nobody's.
const NOBODYS: [&str; 2] = ["10.211.55.200", "fd00:10:211:55::200"];

/// Two nodes with a pod each, and a machine outside that knows the way to the first node's pod.
struct Setup {
    lab: Lab,
    store: Datastore,
    near: Pod,
    far: Pod,
    /// Network namespaces of the nodes and of the machine outside, and their addresses: IPv4, IPv6.
    places: Vec<String>,
    addresses: Vec<[IpAddr; 2]>,
    _servers: Servers,
}

const NEAR: usize = 0;
const FAR: usize = 1;
const OUTSIDE: usize = 2;

impl Setup {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0", "--ipv6"])?;
        let nodes = lab.nodes();
        let near = lab.add_pod("default", "near", &nodes[NEAR], &[]);
        let far = lab.add_pod("default", "far", &nodes[FAR], &[]);
        lab.lab(&["node", "add", "outside", "--no-agent"]);
        let names = [nodes[NEAR].as_str(), nodes[FAR].as_str(), "outside"];
        let addresses: Vec<[IpAddr; 2]> = names
            .iter()
            .map(|node| FAMILIES.map(|ipv6| lab.first_address(node, UNDERLAY, ipv6)))
            .collect();
        for ipv6 in FAMILIES {
            let via = addresses[NEAR][usize::from(ipv6)].to_string();
            for to in [near.address(ipv6).to_string(), NOBODYS[usize::from(ipv6)].to_owned()] {
                lab.exec("outside", &["ip", "route", "add", &to, "via", &via]);
            }
        }
        let places = names.map(|node| lab.node_place(node)).to_vec();
        let pod = vec![(L4::Udp, 80), (L4::Tcp, 80)];
        let served: Vec<_> = [&near, &far].map(|it| (it.place.clone(), pod.clone())).to_vec();
        let servers = Servers::start(&served);
        let store = Datastore::of(&lab);
        Some(Self {
            lab,
            store,
            near,
            far,
            places,
            addresses,
            _servers: servers,
        })
    }

    fn felix(&self, spec: &str) {
        self.store.put(resource(&format!(
            "{{kind: FelixConfiguration, metadata: {{name: default}}, spec: {{{spec}}}}}"
        )));
    }

    fn nat_outgoing(&self, ipv6: bool, on: bool) {
        let name = if ipv6 {
            "default-ipv6-ippool"
        } else {
            "default-ipv4-ippool"
        };
        let pool = Key::cluster(Kind::IPPool, name);
        self.store.change(&pool, |pool| pool["spec"]["natOutgoing"] = on.into());
    }

    fn address(&self, node: usize, ipv6: bool) -> IpAddr {
        self.addresses[node][usize::from(ipv6)]
    }

    /// Where a packet of the pod comes from, as a machine sees it.
    fn seen(&self, node: usize, ipv6: bool) -> SocketAddr {
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let socket = net::inside(&self.places[node], || UdpSocket::bind(any)).expect("a free port");
        let patience = Some(Duration::from_secs(5));
        socket.set_read_timeout(patience).expect("a socket");
        let port = socket.local_addr().expect("it is bound").port();
        let to = SocketAddr::from((self.address(node, ipv6), port));
        let sender = net::inside(&self.near.place, || net::socket(&self.near.place, L4::Udp, to.ip()));
        sender.send_to(b"from whom?", &to.into()).expect("it has a route");
        let (_, from) = socket.recv_from(&mut [0; 64]).expect("it arrives");
        from
    }

    /// Waits until the pod is seen so.
    fn becomes(&self, what: &str, node: usize, ipv6: bool, expected: IpAddr) {
        self.lab.eventually(&format!("{what}, IPv6: {ipv6}"), || {
            self.seen(node, ipv6).ip() == expected
        });
    }
}

#[test]
fn sources_are_translated_as_the_configuration_says() {
    let Some(it) = Setup::up("t-pol-snat") else { return };
    let pod = |ipv6: bool| it.near.address(ipv6);
    let node = |ipv6: bool| it.address(NEAR, ipv6);
    for ipv6 in FAMILIES {
        for (on, outside) in [
            (false, pod(ipv6)),
            (true, node(ipv6)),
            (false, pod(ipv6)),
            (true, node(ipv6)),
        ] {
            it.nat_outgoing(ipv6, on);
            it.becomes(&format!("natOutgoing: {on}"), OUTSIDE, ipv6, outside);
            it.becomes(&format!("natOutgoing: {on}, a node"), FAR, ipv6, outside);
            let to = (it.far.address(ipv6), 80).into();
            let between = net::seen_as(&it.near.place, to, Duration::from_secs(3));
            assert_eq!(between, Some(pod(ipv6)), "between pods, natOutgoing: {on}");
        }
    }

    it.felix("natOutgoingExclusions: IPPoolsAndHostIPs");
    for ipv6 in FAMILIES {
        it.becomes("nodes are no outside", FAR, ipv6, pod(ipv6));
        it.becomes("others are", OUTSIDE, ipv6, node(ipv6));
    }
    it.felix("natOutgoingExclusions: IPPoolsOnly");
    for ipv6 in FAMILIES {
        it.becomes("nodes are outside", FAR, ipv6, node(ipv6));
    }

    it.felix("natPortRange: '50000:50099'");
    for ipv6 in FAMILIES {
        let is_one = |from: &SocketAddr| from.ip() == node(ipv6) && (50000..=50099).contains(&from.port());
        it.lab
            .eventually("a port of the range", || is_one(&it.seen(OUTSIDE, ipv6)));
        let ten: Vec<SocketAddr> = (0..10).map(|_| it.seen(OUTSIDE, ipv6)).collect();
        assert!(ten.iter().all(is_one), "{ten:?}");
        let ping = ["ping", "-n", "-c1", "-W2", &it.address(OUTSIDE, ipv6).to_string()];
        it.lab.exec("near", &ping);
    }

    // IPv4 alone has such an address.
    it.felix(&format!("natOutgoingAddress: {}", NOBODYS[0]));
    it.becomes(
        "an address of its own",
        OUTSIDE,
        false,
        NOBODYS[0].parse().expect("an address"),
    );
    it.becomes("the node's", OUTSIDE, true, node(true));

    for (filter, translated) in [("ens33", true), ("eth+", false), ("ens+", true), ("ens3", false)] {
        it.felix(&format!("iptablesNATOutgoingInterfaceFilter: {filter}"));
        for ipv6 in FAMILIES {
            let expected = if translated { node(ipv6) } else { pod(ipv6) };
            it.becomes(&format!("through {filter}"), OUTSIDE, ipv6, expected);
        }
    }
}

#[test]
fn destinations_are_translated() {
    let Some(it) = Setup::up("t-pol-dnat") else { return };
    it.felix("floatingIPs: Enabled");
    it.store.change_pod(&it.near, |endpoint| {
        let ports = serde_json::json!([{"name": "web", "protocol": "TCP", "port": 80, "hostPort": 8080},
            {"name": "dns", "protocol": "UDP", "port": 80, "hostPort": 8053}]);
        endpoint.spec.ports = serde_json::from_value(ports).expect("ports");
        let nat = |ipv6: bool| {
            let external = NOBODYS[usize::from(ipv6)];
            serde_json::json!({"internalIP": it.near.address(ipv6), "externalIP": external})
        };
        let nats = serde_json::json!(FAMILIES.map(nat));
        endpoint.spec.ip_nats = serde_json::from_value(nats).expect("addresses");
    });
    let (outside, host, near) = (&it.places[OUTSIDE], &it.places[NEAR], &it.near.place);
    let port = |ipv6: bool, port: u16| SocketAddr::from((it.address(NEAR, ipv6), port));
    let floating = |ipv6: bool| -> SocketAddr {
        let address: IpAddr = NOBODYS[usize::from(ipv6)].parse().expect("an address");
        (address, 80).into()
    };
    let becomes = |what: &str, from: &str, to: &dyn Fn(bool) -> SocketAddr, l4: L4, reached: bool| {
        for to in FAMILIES.map(to) {
            it.lab.eventually(&format!("{what}: {l4:?} {to}"), || {
                net::reaches(from, to, l4, false) == reached
            });
        }
    };
    let all = |why: &str| {
        let (tcp, udp) = (|ipv6| port(ipv6, 8080), |ipv6| port(ipv6, 8053));
        becomes(&format!("from outside, {why}"), outside, &tcp, L4::Tcp, true);
        becomes(&format!("from outside, {why}"), outside, &udp, L4::Udp, true);
        becomes(&format!("from outside, {why}"), outside, &floating, L4::Udp, true);
        becomes(&format!("from another pod, {why}"), &it.far.place, &tcp, L4::Tcp, true);
        becomes(&format!("from the host itself, {why}"), host, &tcp, L4::Tcp, true);
        becomes(&format!("from the pod itself, {why}"), near, &udp, L4::Udp, true);
        becomes(&format!("from the pod itself, {why}"), near, &floating, L4::Udp, true);
    };
    all("at first");
    it.lab.lab(&["agent", "restart", &it.lab.nodes()[NEAR]]);
    all("after a restart");
    // The pod's policy knows the packet as it arrives at the pod.
    let deny = resource(
        "{kind: NetworkPolicy, metadata: {name: deny, namespace: default}, spec: {ingress: [{action: Allow, protocol: UDP}]}}",
    );
    let key = deny.key();
    it.store.put(deny);
    let (tcp, udp) = (|ipv6| port(ipv6, 8080), |ipv6| port(ipv6, 8053));
    becomes("behind policy", outside, &tcp, L4::Tcp, false);
    for ipv6 in FAMILIES {
        assert!(net::reaches(outside, udp(ipv6), L4::Udp, true));
    }
    it.store.delete(&key);
    becomes("policy is gone", outside, &tcp, L4::Tcp, true);
    it.felix("floatingIPs: Disabled");
    becomes("switched off", outside, &floating, L4::Udp, false);
    it.felix("floatingIPs: Enabled");
    becomes("switched on", outside, &floating, L4::Udp, true);
    it.store.change_pod(&it.near, |endpoint| {
        endpoint.spec.ports.clear();
        endpoint.spec.ip_nats.clear();
    });
    becomes("no port of the host", outside, &tcp, L4::Tcp, false);
    becomes("no floating address", outside, &floating, L4::Udp, false);
}
