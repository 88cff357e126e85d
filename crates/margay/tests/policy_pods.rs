//! What pods may not send, as real packets over both families: none arrives, and each is counted by its cause.

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::Lab;
use common::cluster::{Datastore, Pod, resource};
use common::frames::{Inside, Wire, packet};
use common::net;
use common::told::dropped;

const NODE: &str = "k8s-125-master";
/// The gateway's link-local address, which all pods have.
const GATEWAY: &str = "fe80::ecee:eeff:feee:eeee";
const ALL_NODES: &str = "ff02::1";

/// Causes of what pods may not send.
const CAUSES: [&str; 5] = [
    "spoofed",
    "router-advertisement",
    "dhcp-server",
    "tunnel-from-pod",
    "invalid",
];

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The other pod gets it.
    Arrives,
    /// It is dropped for this cause, and for no other.
    Dropped(&'static str),
    /// It arrives nowhere, and nobody has dropped it.
    Nowhere,
}
use Fate::{Arrives, Dropped, Nowhere};

/// A node with two pods: what one sends, the other sees.
struct Setup {
    lab: Lab,
    store: Datastore,
    pod: Pod,
    other: Pod,
    sender: Wire,
    receiver: Wire,
    numbers: u32,
}

impl Setup {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "1", "--pods-per-node", "0", "--ipv6"])?;
        let pod = lab.add_pod("default", "pod", NODE, &[]);
        let other = lab.add_pod("default", "other", NODE, &[]);
        let (sender, receiver) = (Wire::open(&pod.place), Wire::open(&other.place));
        let store = Datastore::of(&lab);
        Some(Self {
            lab,
            store,
            pod,
            other,
            sender,
            receiver,
            numbers: 0,
        })
    }

    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// Sends a packet, and one behind it that arrives; whether the first one did.
    fn send(&mut self, source: IpAddr, destination: IpAddr, carries: &Inside) -> bool {
        let (number, fence) = (self.number(), self.number());
        self.sender.send(&packet(source, destination, carries, number));
        let ipv6 = source.is_ipv6();
        let (from, to) = (self.pod.address(ipv6), self.other.address(ipv6));
        self.sender.send(&packet(from, to, &Inside::Udp(9, 9), fence));
        self.receiver.until(fence).contains(&number)
    }

    /// Until packets of a source arrive, or no longer do.
    fn until_it_passes(&mut self, source: &str, expected: bool) {
        let source = ip(source);
        let to = self.other.address(source.is_ipv6());
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.send(source, to, &Inside::Udp(1, 2)) != expected {
            assert!(Instant::now() < deadline, "{source}: it never became {expected}");
        }
    }

    /// How many packets were dropped for each cause. What pods tell their host about multicast is noise among those to the host.
    fn drops(&self) -> Vec<(&'static str, u64)> {
        let count = |cause: &&'static str| (*cause, dropped(&self.lab, NODE, cause, None));
        CAUSES.iter().map(count).collect()
    }

    fn check(&mut self, what: &str, source: IpAddr, destination: IpAddr, carries: Inside, fate: Fate) {
        let what = format!("{what}: {carries:?} from {source} to {destination}");
        let before = self.drops();
        let to_host = dropped(&self.lab, NODE, "to-host", None);
        let arrived = self.send(source, destination, &carries);
        assert_eq!(arrived, fate == Arrives, "{what}");
        let expected: Vec<_> = before
            .into_iter()
            .map(|(cause, count)| (cause, count + u64::from(fate == Dropped(cause))))
            .collect();
        assert_eq!(self.drops(), expected, "{what}");
        if fate == Dropped("to-host") {
            assert!(dropped(&self.lab, NODE, "to-host", None) > to_host, "{what}");
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// ICMPv6 of a kind that a host has taken in.
fn taken_in(lab: &Lab, counter: &str) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp6");
    let text = net::inside(&lab.node_place(NODE), read).expect("counters");
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(counter));
    let value = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0");
    value.parse().expect("a number")
}

#[test]
fn what_pods_may_not_send_goes_nowhere_and_is_counted() {
    let Some(mut it) = Setup::up("t-pol-pods") else { return };
    let third = it.lab.add_pod("default", "third", NODE, &[]);
    for ipv6 in [false, true] {
        let (own, to) = (it.pod.address(ipv6), it.other.address(ipv6));
        let nobody = ip(if ipv6 { "2001:db8::77" } else { "192.0.2.77" });
        let node = it.lab.first_address(NODE, "ens33", ipv6);
        let [server, client] = if ipv6 { [547, 546] } else { [67, 68] };
        let udp = Inside::Udp(9999, 80);
        for (what, source, destination, carries, fate) in [
            ("its own address", own, to, udp.clone(), Arrives),
            ("nobody's address", nobody, to, udp.clone(), Dropped("spoofed")),
            (
                "another pod's address",
                third.address(ipv6),
                to,
                udp.clone(),
                Dropped("spoofed"),
            ),
            ("the receiver's address", to, to, udp.clone(), Dropped("spoofed")),
            ("the node's address", node, to, udp.clone(), Dropped("spoofed")),
            (
                "a server of addresses",
                own,
                to,
                Inside::Udp(server, client),
                Dropped("dhcp-server"),
            ),
            ("a client of addresses", own, to, Inside::Udp(client, server), Arrives),
            ("IP-in-IP", own, to, Inside::Bare(4), Dropped("tunnel-from-pod")),
            ("VXLAN", own, to, Inside::Udp(9999, 4789), Dropped("tunnel-from-pod")),
            ("from VXLAN's port", own, to, Inside::Udp(4789, 9999), Arrives),
            (
                "TCP without flags",
                own,
                to,
                Inside::Tcp(9999, 80, 0),
                Dropped("invalid"),
            ),
            ("TCP's first packet", own, to, Inside::Tcp(9999, 80, 2), Arrives),
            ("its node", own, node, udp.clone(), Dropped("to-host")),
        ] {
            it.check(what, source, destination, carries, fate);
        }
    }
}

#[test]
fn pods_are_no_routers_and_link_local_addresses_go_no_further() {
    let Some(mut it) = Setup::up("t-pol-ra") else { return };
    let (own, to) = (it.pod.address(true), it.other.address(true));
    let (link_local, gateway, all) = (ip("fe80::1"), ip(GATEWAY), ip(ALL_NODES));
    let advertisement = || Inside::IcmpV6(134, vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let refused = Dropped("router-advertisement");
    it.check("to all nodes", link_local, all, advertisement(), refused);
    it.check("to the gateway", link_local, gateway, advertisement(), refused);
    it.check("to another pod", own, to, advertisement(), refused);
    it.check("from nobody", ip("::"), all, advertisement(), refused);
    assert_eq!(taken_in(&it.lab, "Icmp6InRouterAdvertisements"), 0);

    // Discovery of neighbours works from whatever link-local address, and before there is one.
    let IpAddr::V6(target) = gateway else { panic!("IPv6") };
    let solicitation = || Inside::IcmpV6(135, [&[0; 4][..], &target.octets()].concat());
    for source in [link_local, own] {
        let before = taken_in(&it.lab, "Icmp6InNeighborSolicits");
        it.check(
            "who has the gateway's address",
            source,
            gateway,
            solicitation(),
            Nowhere,
        );
        assert!(taken_in(&it.lab, "Icmp6InNeighborSolicits") > before, "from {source}");
    }

    // A link-local source is the sender's own link's, and stays there.
    let udp = || Inside::Udp(9999, 80);
    it.check("to another pod", link_local, to, udp(), Nowhere);
    it.check("the receiver's", ip("fe80::2"), to, Inside::Tcp(9999, 80, 2), Nowhere);
    it.check("to the host", link_local, gateway, udp(), Dropped("to-host"));
    it.check("no link's", ip("fe80:0:0:1::1"), to, udp(), Dropped("spoofed"));
    it.check("no address", ip("::"), to, udp(), Dropped("spoofed"));
}

#[test]
fn what_policy_and_limits_drop_is_counted_by_name() {
    let Some(mut it) = Setup::up("t-pol-cause") else { return };
    let (own, to) = (it.pod.address(false), it.other.address(false));
    let counted = |it: &Setup, cause: &str, name: Option<&str>| dropped(&it.lab, NODE, cause, name);
    let mut ports = 10_000..;
    let mut fresh = move || Inside::Udp(ports.next().expect("they never end"), 80);
    assert!(it.send(own, to, &fresh()), "at first");

    // A profile that denies.
    let profile = |egress: &str| {
        resource(&format!(
            "{{kind: Profile, metadata: {{name: kns.default}}, spec: {{ingress: [{{action: Allow}}], egress: [{{action: {egress}}}]}}}}"
        ))
    };
    it.store.put(profile("Deny"));
    let sent = |it: &Setup| net::reaches(&it.pod.place, (to, 80).into(), net::L4::Udp, false);
    it.lab.eventually("denied by its profile", || {
        sent(&it);
        counted(&it, "profile", Some("kns.default")) > 0
    });
    it.store.put(profile("Allow"));
    it.lab.eventually("its profile allows again", || {
        let before = counted(&it, "profile", Some("kns.default"));
        sent(&it);
        counted(&it, "profile", Some("kns.default")) == before
    });

    // As many flows as a pod may have at one time.
    it.store.change_pod(&it.pod, |endpoint| {
        let controls = serde_json::json!({ "egressMaxConnections": 1 });
        endpoint.spec.qos_controls = Some(serde_json::from_value(controls).expect("limits"));
    });
    let table = |it: &Setup| it.lab.exec(NODE, &["nft", "list", "table", "inet", "calico"]);
    it.lab.eventually("the limit is there", || {
        table(&it).contains("limit egressMaxConnections")
    });
    let (first, second) = (Inside::Udp(9001, 80), Inside::Udp(9002, 80));
    let numbers: Vec<u32> = (0..2).map(|_| it.number()).collect();
    it.sender.send(&packet(own, to, &first, numbers[0]));
    it.receiver.until(numbers[0]);
    assert_eq!(counted(&it, "limit", None), 0);
    it.sender.send(&packet(own, to, &second, numbers[1]));
    it.lab
        .eventually("one flow too many", || counted(&it, "limit", None) == 1);
    it.store
        .change_pod(&it.pod, |endpoint| endpoint.spec.qos_controls = None);
    it.lab
        .eventually("no limit", || !table(&it).contains("limit egressMaxConnections"));
    assert!(it.send(own, to, &fresh()), "without the limit");
    assert_eq!(counted(&it, "limit", None), 1, "the sum goes on when its rule is gone");

    // A pod of which nobody says what it may: closed, and open again as soon as an agent is there.
    it.lab.lab(&["agent", "kill", NODE]);
    for map in ["cali-from-endpoint", "cali-to-endpoint"] {
        it.lab.exec(NODE, &["nft", "flush", "map", "inet", "calico", map]);
    }
    let lost = it.number();
    it.sender.send(&packet(own, to, &fresh(), lost));
    assert!(!net::reaches(&it.pod.place, (to, 80).into(), net::L4::Udp, false));
    it.lab.lab(&["agent", "start", NODE]);
    it.lab.eventually("its policy is back", || {
        let listed = it
            .lab
            .exec(NODE, &["nft", "list", "map", "inet", "calico", "cali-to-endpoint"]);
        listed.matches("cali").count() > 2
    });
    assert!(it.send(own, to, &fresh()), "with its policy");
    assert!(counted(&it, "no-policy", None) >= 2);
}

/// Sources that a pod was granted pass the packet filter and the kernel's own check of the way back.
#[test]
fn pods_may_send_from_what_they_were_granted() {
    let Some(mut setup) = Setup::up("t-pol-granted") else {
        return;
    };
    setup.store.change_pod(&setup.pod, |endpoint| {
        endpoint.spec.allow_spoofed_source_prefixes = vec!["10.88.0.0/16".into(), "fd00:88::/32".into()];
    });
    for (granted, other) in [("10.88.0.5", "10.89.0.5"), ("fd00:88::5", "fd00:89::5")] {
        for (word, expected) in [("Disabled", false), ("Any", true), ("Disabled", false)] {
            setup.store.put(resource(&format!(
                "{{kind: FelixConfiguration, metadata: {{name: default}}, spec: {{workloadSourceSpoofing: {word}}}}}"
            )));
            setup.until_it_passes(granted, expected);
            let to = setup.other.address(ip(other).is_ipv6());
            assert!(!setup.send(ip(other), to, &Inside::Udp(1, 2)), "{other}: {word}");
        }
    }
}
