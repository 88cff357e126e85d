//! `trace`: the way over nodes whose answers are given, with one thing wrong at a time; passages put together from sightings.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent::path::*;
use agent::policy_view::{DropView, EndpointView, PolicyView, RuleView, RulesView};
use common::Cluster;
use ctl::trace::agents::Agents;
use ctl::trace::hop::{Outcome, outcome};
use ctl::trace::{show, walk};
use ctl::why::explain::explain;
use ctl::why::place::Place;
use ctl::why::question::{Question, Traffic};
use ctl::why::world::{States, World};

/// `web` on n1, `db` and `cache` on n2, which lets no UDP in to `db`; n3 has no pods.
const SHOP: &str = r#"
Node n1 {bgp: {ipv4Address: 10.0.0.1/24}}
Node n2 {bgp: {ipv4Address: 10.0.0.2/24}}
Node n3 {bgp: {ipv4Address: 10.0.0.3/24}}
IPPool pool {cidr: 192.168.0.0/16, ipipMode: Always, natOutgoing: true}
Profile kns.shop {ingress: [{action: Allow}], egress: [{action: Allow}]}
WorkloadEndpoint shop/n1-k8s-web-eth0 {orchestrator: k8s, node: n1, pod: web, endpoint: eth0, ipNetworks: [192.168.1.10/32], profiles: [kns.shop], interfaceName: cali1}
WorkloadEndpoint shop/n1-k8s-api-eth0 {orchestrator: k8s, node: n1, pod: api, endpoint: eth0, ipNetworks: [192.168.1.11/32], profiles: [kns.shop], interfaceName: cali2}
WorkloadEndpoint shop/n2-k8s-db-eth0 {orchestrator: k8s, node: n2, pod: db, endpoint: eth0, ipNetworks: [192.168.2.10/32], profiles: [kns.shop], interfaceName: cali3}
NetworkPolicy shop/db {order: 100, selector: "projectcalico.org/name == 'none' || all()", types: [Ingress], ingress: [{action: Deny, protocol: UDP}, {action: Allow}]}
"#;

/// What nodes answer.
#[derive(Clone, Default)]
struct Nodes {
    paths: BTreeMap<String, PathView>,
    policies: BTreeMap<String, PolicyView>,
    asked: Vec<(String, Arrival, Option<IpAddr>)>,
}

impl Agents for Nodes {
    fn path(&mut self, node: &str, question: &PathQuestion) -> Result<PathView, String> {
        self.asked.push((node.to_owned(), question.by, question.from));
        self.paths.get(node).cloned().ok_or_else(|| "nobody answers".to_owned())
    }

    fn policy(&mut self, node: &str) -> Result<PolicyView, String> {
        self.policies
            .get(node)
            .cloned()
            .ok_or_else(|| "nobody answers".to_owned())
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn link(name: &str, mtu: u32) -> LinkView {
    LinkView {
        name: name.to_owned(),
        mtu,
        up: true,
        carrier: true,
    }
}

fn way(prefix: &str, gateway: Option<&str>, device: LinkView, destination: &str, neighbor: &str) -> WayView {
    WayView {
        route: Some(RouteView {
            prefix: Some(prefix.parse().expect("a prefix")),
            gateway: gateway.map(ip),
            device: device.name.clone(),
            onlink: device.name == "tunl0",
            protocol: Some(if device.name == "ens33" { 2 } else { 80 }),
            table: 254,
            ..RouteView::default()
        }),
        device: Some(device),
        next: Some(ip(gateway.unwrap_or(destination))),
        neighbor: Some(NeighborView {
            mac: Some("02:00:00:00:00:01".into()),
            state: neighbor.to_owned(),
        }),
        ..WayView::default()
    }
}

fn pod(name: &str, host: &str, other: &str) -> PodView {
    PodView {
        name: name.to_owned(),
        host_device: host.to_owned(),
        host: Some(link(host, 1480)),
        interface: "eth0".into(),
        inside: Some(link("eth0", 1480)),
        has_address: true,
        way: way("0.0.0.0/0", Some("169.254.1.1"), link("eth0", 1480), other, "permanent"),
        ..PodView::default()
    }
}

fn tunnel(local: &str) -> TunnelView {
    TunnelView {
        flavour: "bpf".into(),
        local: Some(ip(local)),
        underlay: "ens33".into(),
        ..TunnelView::default()
    }
}

fn policy(endpoint: &str, counted: u64, dropped: u64) -> PolicyView {
    let rule = |way: &str, index: usize, packets: u64| RuleView {
        way: way.to_owned(),
        index,
        packets: Some(packets),
        ..RuleView::default()
    };
    PolicyView {
        endpoints: vec![EndpointView {
            id: format!("WorkloadEndpoint(shop/{endpoint})"),
            enforced: true,
            ..EndpointView::default()
        }],
        policies: vec![RulesView {
            id: "NetworkPolicy(shop/db)".into(),
            rules: vec![rule("ingress", 0, dropped), rule("ingress", 1, counted)],
            ..RulesView::default()
        }],
        profiles: vec![RulesView {
            id: "Profile(kns.shop)".into(),
            rules: vec![rule("egress", 0, counted)],
            ..RulesView::default()
        }],
        drops: vec![DropView {
            why: "invalid".into(),
            packets: 2,
            bytes: 80,
        }],
        ..PolicyView::default()
    }
}

/// Everything is fine from `web` to `db`.
fn fine() -> Nodes {
    let n1 = PathView {
        node: "n1".into(),
        source: Some(pod("shop/web", "cali1", "192.168.2.10")),
        forwards: true,
        arrives: Some(link("cali1", 1480)),
        way: way("192.168.2.0/26", Some("10.0.0.2"), link("tunl0", 1480), "", "permanent"),
        tunnel: Some(tunnel("10.0.0.1")),
        outer: Some(way("10.0.0.0/24", None, link("ens33", 1500), "10.0.0.2", "reachable")),
        ..PathView::default()
    };
    let n2 = PathView {
        node: "n2".into(),
        destination: Some(pod("shop/db", "cali3", "192.168.1.10")),
        forwards: true,
        arrives: Some(link("tunl0", 1480)),
        way: way(
            "192.168.2.10/32",
            None,
            link("cali3", 1480),
            "192.168.2.10",
            "reachable",
        ),
        tunnel: Some(tunnel("10.0.0.2")),
        ..PathView::default()
    };
    Nodes {
        paths: [("n1".into(), n1), ("n2".into(), n2)].into(),
        policies: [
            ("n1".into(), policy("n1-k8s-web-eth0", 7, 0)),
            ("n2".into(), policy("n2-k8s-db-eth0", 5, 3)),
        ]
        .into(),
        asked: Vec::new(),
    }
}

struct Traced {
    text: String,
    json: serde_json::Value,
    outcome: Outcome,
    points: Vec<String>,
}

fn trace(from: &str, to: &str, traffic: Option<&str>, nodes: &mut Nodes) -> Traced {
    let store = Cluster::with(SHOP).shared();
    let world = common::block_on(World::read(&store)).expect("memory answers");
    let place = |word: &str| Place::find(&world, "PLACE", word, "shop").expect("it is there");
    let traffic = Traffic::read("TO", traffic).expect("it is right");
    let question = Question::new(&world, place(from), place(to), &traffic, None, false).expect("a packet");
    let mut states = States::new(&world, world.endpoints().map(|(key, _)| key.clone()));
    let explanation = explain(&mut states, &question);
    let walked = walk::walk(&world, &explanation, nodes);
    let mut text = Vec::new();
    show::text(&explanation, &walked.hops, &[], &mut text).expect("memory takes everything");
    let points = walked.hops.iter().flat_map(|hop| &hop.points);
    let point = |point: &ctl::trace::hop::Point| {
        let direction = if point.outgoing { "out" } else { "in" };
        format!("{} {direction}", ctl::trace::passage::name(point))
    };
    Traced {
        text: String::from_utf8(text).expect("text"),
        json: serde_json::to_value(show::shown(&explanation, &walked.hops, None)).expect("it has a JSON form"),
        outcome: outcome(&walked.hops).0,
        points: points.map(point).collect(),
    }
}

#[test]
fn every_hop_says_what_is_there() {
    let mut nodes = fine();
    let traced = trace("web", "db", Some("5432"), &mut nodes);
    assert_eq!(
        traced.text,
        r#"TCP 192.168.1.10 -> 192.168.2.10:5432
  from pod shop/web (192.168.1.10) on node n1
  to   pod shop/db (192.168.2.10) on node n2

1. pod shop/web on node n1
   eth0 192.168.1.10, MTU 1480, up
   route default via 169.254.1.1 dev eth0
   next hop 169.254.1.1 on eth0 is 02:00:00:00:00:01 (permanent)

2. node n1
   cali1, MTU 1480, up: the node's end of the pod's link
   from pod shop/web on node n1: allowed
     profile kns.shop egress rule 0: Allow [7 packets so far]
   route 192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink (by the agent)
   tunl0 (BPF), MTU 1480: outer header 10.0.0.1 -> 10.0.0.2, IP-in-IP
   outer route 10.0.0.0/24 dev ens33 (by the kernel, for the device's address)
   next hop 10.0.0.2 on ens33 is 02:00:00:00:00:01 (reachable)
   a full-size packet has 1480 bytes, 1500 with its outer header: fits ens33 (MTU 1500)
   other drops on this node so far: 2 invalid

3. node n2
   tunl0 (BPF) takes it out of IP-in-IP from 10.0.0.1, over ens33
   route 192.168.2.10/32 dev cali3 (by the agent)
   next hop 192.168.2.10 on cali3 is 02:00:00:00:00:01 (reachable)
   a full-size packet has 1480 bytes: fits cali3 (MTU 1480)
   to pod shop/db on node n2: allowed
     tier default: NetworkPolicy(shop/db) ingress rule 1: Allow; selects (projectcalico.org/namespace == "shop" && (projectcalico.org/name == "none" || all())) [5 packets so far]
   other drops on this node so far: 2 invalid

4. pod shop/db on node n2
   eth0 192.168.2.10, MTU 1480, up

ARRIVES
"#
    );
    assert_eq!(
        nodes.asked,
        [
            ("n1".into(), Arrival::Pod, None),
            ("n2".into(), Arrival::Tunnel, Some(ip("10.0.0.1")))
        ]
    );
    assert_eq!(
        traced.points,
        [
            "eth0 of pod shop/web out",
            "cali1 of node n1 in",
            "tunl0 of node n1 out",
            "ens33 of node n1 out",
            "ens33 of node n2 in",
            "tunl0 of node n2 in",
            "cali3 of node n2 out",
            "eth0 of pod shop/db in",
        ]
    );
    assert_eq!(
        (&traced.json["outcome"], &traced.json["at"]),
        (&"Arrives".into(), &serde_json::Value::Null)
    );
    assert_eq!(traced.json["hops"][1]["lines"][1]["policy"]["steps"][0]["packets"], 7);
    assert_eq!(traced.json["hops"][2]["view"]["tunnel"]["flavour"], "bpf");
}

/// One thing is wrong; the last line of the text, and what would be right.
#[track_caller]
fn check(spoil: impl FnOnce(&mut Nodes), last: &str, right: &str) {
    let mut nodes = fine();
    spoil(&mut nodes);
    let traced = trace("web", "db", Some("5432"), &mut nodes);
    assert_eq!(traced.text.trim_end().lines().last(), Some(last), "{}", traced.text);
    let finding = &traced.json["finding"]["right"];
    assert_eq!(finding.as_str().unwrap_or_default(), right, "{}", traced.text);
}

fn n1(nodes: &mut Nodes) -> &mut PathView {
    nodes.paths.get_mut("n1").expect("it answers")
}

fn n2(nodes: &mut Nodes) -> &mut PathView {
    nodes.paths.get_mut("n2").expect("it answers")
}

fn web(nodes: &mut Nodes) -> &mut PodView {
    n1(nodes).source.as_mut().expect("it is there")
}

fn refused(why: Refusal, by: Option<&str>) -> WayView {
    WayView {
        refused: Some(why),
        refused_by: by.map(|net| net.parse().expect("a prefix")),
        ..WayView::default()
    }
}

#[test]
fn what_is_wrong_in_a_pod_is_named() {
    check(
        |nodes| web(nodes).inside.as_mut().expect("it is there").up = false,
        "BROKEN at pod shop/web: eth0 is down",
        "`ip link set eth0 up` in the pod (its routes went with it: attach it again)",
    );
    check(
        |nodes| web(nodes).inside = None,
        "BROKEN at pod shop/web: it has no eth0",
        "the other end of cali1 on the node",
    );
    check(
        |nodes| web(nodes).has_address = false,
        "BROKEN at pod shop/web: eth0 does not have the address 192.168.1.10",
        "`ip address add 192.168.1.10 dev eth0` in the pod, as the CNI plugin did",
    );
    check(
        |nodes| web(nodes).way = refused(Refusal::Missing, None),
        "BROKEN at pod shop/web: no route to the destination",
        "the default route of the CNI plugin: via 169.254.1.1 (IPv6: the node's link-local address)",
    );
    check(
        |nodes| web(nodes).closed = Some("/run/netns/web: No such file".into()),
        "BROKEN at pod shop/web: its network namespace cannot be entered: /run/netns/web: No such file",
        "its container must run",
    );
    check(
        |nodes| web(nodes).host = None,
        "BROKEN at node n1: cali1 is not there: the pod hangs off nothing",
        "the CNI plugin makes it: the pod must be attached again",
    );
    let gone = "the pod must be attached by that node's CNI plugin; if it is gone, its WorkloadEndpoint should be too";
    check(
        |nodes| n1(nodes).source = None,
        "BROKEN at pod shop/web: node n1 has no pod with 192.168.1.10, though the datastore says so",
        gone,
    );
    check(
        |nodes| n2(nodes).destination = None,
        "BROKEN at pod shop/db: node n2 has no pod with 192.168.2.10, though the datastore says so",
        gone,
    );
    check(
        |nodes| n2(nodes).destination.as_mut().expect("it is there").way = refused(Refusal::Missing, None),
        "BROKEN at pod shop/db: no route for the answer",
        "the default route of the CNI plugin: via 169.254.1.1 (IPv6: the node's link-local address)",
    );
}

#[test]
fn what_is_wrong_with_routes_is_named() {
    let expected = "a route to 192.168.2.10 via 10.0.0.2 dev tunl0 onlink (IPPool(pool): ipipMode Always)";
    for (why, by, said) in [
        (Refusal::Missing, None, "there is no route to the destination"),
        (
            Refusal::Blackhole,
            Some("192.168.2.0/26"),
            "the route 192.168.2.0/26 is a blackhole: it drops what has no route of its own",
        ),
        (
            Refusal::Unreachable,
            Some("192.168.0.0/16"),
            "the route 192.168.0.0/16 says unreachable",
        ),
        (Refusal::Prohibited, None, "the route prohibits it"),
        (
            Refusal::Source,
            None,
            "its source is not expected by the device that it comes in by (rp_filter)",
        ),
    ] {
        check(
            |nodes| n1(nodes).way = refused(why, by),
            &format!("BROKEN at node n1: {said}"),
            expected,
        );
    }
    check(
        |nodes| n2(nodes).way = refused(Refusal::Missing, None),
        "BROKEN at node n2: there is no route to the destination",
        "a route to 192.168.2.10 dev cali…, by the agent",
    );
    check(
        |nodes| {
            n2(nodes).way = way(
                "192.168.2.10/32",
                None,
                link("cali9", 1480),
                "192.168.2.10",
                "reachable",
            )
        },
        "BROKEN at node n2: the route leads to cali9, not to the pod",
        "a route to 192.168.2.10 dev cali3",
    );
    check(
        |nodes| n2(nodes).way = way("192.168.2.0/26", Some("10.0.0.1"), link("tunl0", 1480), "", "permanent"),
        "BROKEN at node n2: the route leads to tunl0, not to the pod",
        "a route to 192.168.2.10 dev cali3",
    );
    check(
        |nodes| n1(nodes).forwards = false,
        "BROKEN at node n1: it does not forward IPv4 packets",
        "sysctl net.ipv4.ip_forward=1, which the agent sets",
    );
    // n1 sends it to n3, which sends it back.
    check(
        |nodes| {
            n1(nodes).way.next = Some(ip("10.0.0.3"));
            let mut n3 = n1(nodes).clone();
            (n3.node, n3.source, n3.way.next) = ("n3".into(), None, Some(ip("10.0.0.1")));
            nodes.paths.insert("n3".into(), n3);
        },
        "BROKEN at node n1: the packet comes here again: the routes lead in a circle",
        "see the route of each node above",
    );
}

#[test]
fn what_is_wrong_with_the_tunnel_is_named() {
    check(
        |nodes| n1(nodes).tunnel = Some(TunnelView::default()),
        "BROKEN at node n1: tunl0 is no working IP-in-IP tunnel",
        "the agent makes it: see tunl0 and the problems in `margay node status` there",
    );
    let node = "it must be the address of a registered node (`margay get nodes -o wide`)";
    check(
        |nodes| n1(nodes).tunnel.as_mut().expect("it is there").strangers = vec![ip("10.0.0.2")],
        "BROKEN at node n1: tunl0 does not know 10.0.0.2: it sends nothing there",
        node,
    );
    check(
        |nodes| n2(nodes).tunnel.as_mut().expect("it is there").strangers = vec![ip("10.0.0.1")],
        "BROKEN at node n2: tunl0 takes nothing from 10.0.0.1: it is no node that this one knows",
        node,
    );
    check(
        |nodes| n1(nodes).outer = Some(refused(Refusal::Missing, None)),
        "BROKEN at node n1: no route for the outer header",
        "a route to 10.0.0.2 over ens33",
    );
    check(
        |nodes| {
            let outer = n1(nodes).outer.as_mut().expect("it is there");
            outer.neighbor.as_mut().expect("it is there").state = "failed".into();
        },
        "BROKEN at node n1: next hop 10.0.0.2 does not answer on ens33 (failed)",
        "a host with 10.0.0.2 on the link of ens33",
    );
    let too_long = "small packets pass, large ones must be fragmented or are refused";
    check(
        |nodes| n1(nodes).outer.as_mut().expect("it is there").device = Some(link("ens33", 1400)),
        &format!(
            "BROKEN at node n1: ens33 has MTU 1400, a full-size packet has 1500 bytes with its outer header: {too_long}"
        ),
        "an MTU of at least 1500 there, or of at most 1380 in the pod",
    );
    check(
        |nodes| n1(nodes).way.route.as_mut().expect("it is there").mtu = Some(1300),
        &format!(
            "BROKEN at node n1: the path through tunl0 has MTU 1300, a full-size packet has 1480 bytes: {too_long}"
        ),
        "an MTU of at least 1480 there, or of at most 1300 in the pod",
    );
    check(
        |nodes| n2(nodes).way.device = Some(link("cali3", 1400)),
        &format!("BROKEN at node n2: cali3 has MTU 1400, a full-size packet has 1480 bytes: {too_long}"),
        "an MTU of at least 1480 there, or of at most 1400 in the pod",
    );
    check(
        |nodes| n2(nodes).way.device.as_mut().expect("it is there").carrier = false,
        "BROKEN at node n2: cali3 has no carrier: its other end is down",
        "",
    );
}

#[test]
fn policy_that_is_not_enforced_is_named() {
    check(
        |nodes| nodes.policies.get_mut("n2").expect("it is there").endpoints[0].enforced = false,
        "BROKEN at node n2: WorkloadEndpoint(shop/n2-k8s-db-eth0): the kernel does not have its policy as it should be, and drops its packets until it has",
        "see `margay node policy` and the problems in `margay node status` there",
    );
    check(
        |nodes| nodes.policies.get_mut("n1").expect("it is there").endpoints.clear(),
        "BROKEN at node n1: WorkloadEndpoint(shop/n1-k8s-web-eth0) is unknown to the agent of this node, which drops the packets of pods that it does not know",
        "the pod is attached by the CNI plugin of this node; see the agent's log",
    );
}

#[test]
fn a_denied_packet_names_the_rule_and_its_counter() {
    let traced = trace("web", "db", Some("53/udp"), &mut fine());
    assert_eq!(traced.outcome, Outcome::Denied);
    let rule = "tier default: NetworkPolicy(shop/db) ingress rule 0: Deny; selects (projectcalico.org/namespace == \"shop\" && (projectcalico.org/name == \"none\" || all()))";
    assert!(
        traced.text.contains(&format!("     {rule} [3 packets so far]\n")),
        "{}",
        traced.text
    );
    assert!(
        traced
            .text
            .ends_with(&format!("\nDENIED at node n2: to pod shop/db: {rule}\n")),
        "{}",
        traced.text
    );
}

#[test]
fn of_nodes_that_cannot_be_asked_the_datastore_tells() {
    check(
        |nodes| drop(nodes.paths.remove("n2")),
        "UNKNOWN: nothing is wrong where one can look; node n2: its agent cannot be asked: nobody answers",
        "run it there, or say with --agents where the sockets of other nodes' agents are",
    );
    let mut nodes = fine();
    nodes.paths.remove("n1");
    let traced = trace("web", "db", Some("5432"), &mut nodes);
    let there =
        "   there should be a route to 192.168.2.10 via 10.0.0.2 dev tunl0 onlink (IPPool(pool): ipipMode Always)\n";
    assert!(traced.text.contains(there), "{}", traced.text);
    // The other end is asked as if the packet came as it should.
    assert_eq!(
        nodes.asked.last(),
        Some(&("n2".into(), Arrival::Tunnel, Some(ip("10.0.0.1"))))
    );
    // Nothing that is wrong where one can look is hidden by what one cannot see; what policy says is known in any case.
    check(
        |nodes| {
            nodes.paths.remove("n1");
            n2(nodes).way = refused(Refusal::Missing, None);
        },
        "BROKEN at node n2: there is no route to the destination",
        "a route to 192.168.2.10 dev cali…, by the agent",
    );
    let mut none = Nodes::default();
    assert_eq!(trace("web", "db", Some("53/udp"), &mut none).outcome, Outcome::Denied);
    assert_eq!(trace("web", "db", Some("53"), &mut none).outcome, Outcome::Unknown);
}

#[test]
fn ends_of_other_kinds_are_followed_as_far_as_nodes_go() {
    let mut nodes = fine();
    // Out of the cluster.
    n1(&mut nodes).way = way("0.0.0.0/0", Some("10.0.0.254"), link("ens33", 1500), "", "reachable");
    (n1(&mut nodes).tunnel, n1(&mut nodes).outer) = (None, None);
    let traced = trace("web", "203.0.113.9", Some("80"), &mut nodes);
    assert_eq!(traced.outcome, Outcome::Leaves);
    assert!(
        traced
            .text
            .contains("   its source becomes 10.0.0.1 (IPPool(pool): natOutgoing)\n"),
        "{}",
        traced.text
    );
    let last = "LEAVES at node n1: handed to 10.0.0.254 on ens33; what happens beyond is not known here";
    assert!(traced.text.contains(last), "{}", traced.text);
    // Through a router to the other node, against what the pool says.
    let traced = trace("web", "db", Some("80"), &mut nodes);
    assert_eq!(traced.outcome, Outcome::Arrives, "{}", traced.text);
    assert!(
        traced.text.contains("3. 10.0.0.254\n   a router without an agent"),
        "{}",
        traced.text
    );
    assert!(
        traced
            .text
            .contains("note: it does not go through the tunnel, though the pool asks for it"),
        "{}",
        traced.text
    );
    assert_eq!(nodes.asked.last(), Some(&("n2".into(), Arrival::Wire, None)));
    // From outside, and to itself.
    let traced = trace("203.0.113.9", "db", Some("80"), &mut fine());
    assert!(
        traced.text.contains("   how it comes to node n2 is not known here\n"),
        "{}",
        traced.text
    );
    assert_eq!(traced.outcome, Outcome::Arrives);
    let traced = trace("web", "web", Some("80"), &mut Nodes::default());
    assert!(traced.text.contains("the packet never leaves it"), "{}", traced.text);
    // A node's own address.
    let mut nodes = fine();
    n2(&mut nodes).way.route = Some(RouteView {
        local: true,
        ..RouteView::default()
    });
    let traced = trace("n1", "n2", Some("80"), &mut nodes);
    assert_eq!(traced.outcome, Outcome::Arrives, "{}", traced.text);
    assert!(
        traced.text.contains("   the address is this node's own\n"),
        "{}",
        traced.text
    );
}
