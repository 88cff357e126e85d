//! When policy is enforced: before a pod's first packet, while agents die and come back, and while others delete our table.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use api::{Key, Kind};
use common::Lab;
use common::cluster::{Datastore, Pod, k8s, resource};
use common::net::{self, L4, Pulse, Receiver, Servers, Spray};

/// A lab of two nodes with a pod on each.
fn lab(name: &'static str) -> Option<(Lab, Datastore, Vec<String>)> {
    let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0"])?;
    let (store, nodes) = (Datastore::of(&lab), lab.nodes());
    Some((lab, store, nodes))
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    (pod.address(false), port).into()
}

/// All addresses of the /26 around an address.
fn block(address: IpAddr) -> Vec<SocketAddr> {
    let IpAddr::V4(address) = address else {
        panic!("an IPv4 address")
    };
    let first = u32::from(address) & !63;
    (first..first + 64)
        .map(|address| (Ipv4Addr::from(address), 53).into())
        .collect()
}

#[test]
fn no_packet_reaches_a_pod_before_its_policy() {
    let Some((lab, store, nodes)) = lab("t-pol-first") else {
        return;
    };
    let near = lab.add_pod("default", "near", &nodes[0], &[]);
    let far = lab.add_pod("default", "far", &nodes[1], &[]);
    store.put(k8s(
        "shop",
        "closed",
        "{podSelector: {matchLabels: {role: closed}}, policyTypes: [Ingress, Egress]}",
    ));
    let targets = || {
        block(near.address(false))
            .into_iter()
            .filter(|to| to.ip() != near.address(false))
    };
    let sprays = [&near, &far].map(|sender| Spray::start(&sender.place, targets().collect()));
    for round in 0..8 {
        // The others show that the spray finds its way.
        let is_closed = round % 2 == 0;
        let labels = [("role", if is_closed { "closed" } else { "open" })];
        let pod = lab.add_pod("shop", &format!("p{round}"), &nodes[0], &labels);
        sprays.iter().for_each(|spray| spray.wait_for(50));
        let arrived = net::datagrams_in(&pod.place);
        match is_closed {
            true => assert_eq!(arrived, 0, "round {round}: packets that policy forbids have arrived"),
            false => assert!(arrived > 0, "round {round}: nothing arrived"),
        }
        if round % 4 == 3 {
            lab.lab(&["pod", "delete", &pod.name]);
        }
    }
}

#[test]
fn what_cannot_be_understood_is_closed_and_status_says_why() {
    let Some((lab, store, nodes)) = lab("t-pol-closed") else {
        return;
    };
    let sender = lab.add_pod("default", "sender", &nodes[1], &[]);
    let pod = lab.add_pod("q", "pod", &nodes[0], &[]);
    let _servers = Servers::start(&[(pod.place.clone(), vec![(L4::Udp, 80)])]);
    let reaches = |expected| net::reaches(&sender.place, at(&pod, 80), L4::Udp, expected);
    let problems = || lab.exec(&nodes[0], &["calicoctl", "node", "status"]);
    assert!(reaches(true));

    let profile = |name: &str| Key::cluster(Kind::Profile, name);
    let kns = "{kind: Profile, metadata: {name: kns.q}, spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}}";
    store.delete(&profile("kns.q"));
    lab.eventually("closed without its profile", || !reaches(false));
    lab.eventually("status names the profile", || {
        problems().contains("profile kns.q of WorkloadEndpoint(q/")
    });
    store.put(resource(kns));
    lab.eventually("open again", || reaches(false));

    let allow_all = |name: &str, more: &str| {
        format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{ingress: [{{action: Allow}}], {more}}}}}"
        )
    };
    for (name, more, words) in [
        ("lost.p", "tier: lost, selector: all()", "lost"),
        ("unreadable", "selector: \"role ==\"", "spec.selector"),
        (
            "unreadable-rule",
            "selector: all(), egress: [{action: Allow, destination: {selector: \"((\"}}]",
            "spec.egress[0].destination.selector",
        ),
    ] {
        let policy = resource(&allow_all(name, more));
        let key = policy.key();
        store.put(policy);
        lab.eventually(&format!("closed by {name}"), || !reaches(false));
        lab.eventually(&format!("status names {name}"), || {
            problems()
                .lines()
                .any(|line| line.contains(name) && line.contains(words))
        });
        let get = ["exec", &nodes[0], "--", "calicoctl", "get", "gnp", name, "-o", "yaml"];
        let shown = common::text(&lab.try_lab(&get));
        let mut lines = shown.lines().filter(|line| line.starts_with("problem: "));
        assert!(lines.any(|line| line.contains(words)), "{shown}");
        // What is wrong with one policy is no matter for pods that it cannot mean.
        store.delete(&key);
        lab.eventually("open again", || reaches(false));
    }
    assert!(!problems().contains("spec."), "{}", problems());
}

#[test]
fn agents_that_die_and_a_table_that_is_deleted() {
    let Some((lab, store, nodes)) = lab("t-pol-kill") else {
        return;
    };
    let friend = lab.add_pod("default", "friend", &nodes[1], &[("role", "friend")]);
    let stranger = lab.add_pod("default", "stranger", &nodes[1], &[("role", "stranger")]);
    let pod = lab.add_pod("q", "pod", &nodes[0], &[]);
    let receiver = Receiver::start(&pod.place, 80);
    // The friend is heard elsewhere while the stranger floods: that one's queue overflows when it is open to all.
    let beside = Receiver::start(&pod.place, 81);
    store.put(k8s(
        "q",
        "friends",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}]}]}",
    ));
    lab.eventually("closed for strangers", || {
        !net::reaches(&stranger.place, at(&pod, 80), L4::Udp, false)
    });
    assert!(net::reaches(&friend.place, at(&pod, 80), L4::Udp, true));
    receiver.forget();

    let (allowed, denied) = (
        Pulse::start(&friend.place, at(&pod, 80)),
        Pulse::start(&stranger.place, at(&pod, 80)),
    );
    for node in nodes.iter().cycle().take(10) {
        lab.lab(&["agent", "kill", node]);
        lab.lab(&["agent", "start", node]);
        lab.eventually("the agent is ready", || {
            lab.lab(&["status"])
                .lines()
                .any(|line| line.starts_with(node.as_str()) && line.contains("yes"))
        });
    }
    let (sent, answered) = allowed.end();
    assert_eq!(
        (sent, receiver.heard(friend.address(false)).len()),
        (answered, answered),
        "allowed, while agents die"
    );
    assert!(sent >= 100, "{sent} allowed flows are too few to see anything");
    let (tried, _) = denied.end();
    let passed = receiver.heard(stranger.address(false)).len();
    assert_eq!(passed, 0, "of {tried} denied flows, while agents die");
    println!(
        "agents killed and started ten times: {sent} of {sent} allowed flows answered, none of {tried} denied ones passed"
    );

    // Somebody deletes our table. Until it is there again nothing is enforced on this node: that is measured, with denied flows
    // as fast as they can be sent.
    let mut open: Vec<(Duration, usize)> = Vec::new();
    for round in 0..7 {
        // What was let in the last time stays in, as long as it is remembered.
        nodes.iter().for_each(|node| drop(lab.exec(node, &["conntrack", "-F"])));
        receiver.forget();
        let allowed = Pulse::start(&friend.place, at(&pod, 81));
        let flood = Spray::of_flows(&stranger.place, at(&pod, 80));
        flood.wait_for(100);
        assert_eq!(
            receiver.heard(stranger.address(false)).len(),
            0,
            "round {round}: before"
        );
        lab.exec(&nodes[0], &["nft", "delete", "table", "inet", "calico"]);
        lab.eventually("closed again", || {
            !net::reaches(&stranger.place, at(&pod, 80), L4::Udp, false)
        });
        // What was let in has been heard when as many more were sent.
        flood.wait_for(500);
        let heard = receiver.heard(stranger.address(false));
        flood.wait_for(500);
        assert_eq!(
            receiver.heard(stranger.address(false)).len(),
            heard.len(),
            "round {round}: after"
        );
        drop(flood);
        let (sent, answered) = allowed.end();
        let heard_beside = beside.heard(friend.address(false)).len();
        beside.forget();
        assert_eq!(heard_beside, answered, "round {round}: answers");
        assert_eq!(sent, answered, "round {round}: allowed, while the table is gone");
        let window = match (heard.first(), heard.last()) {
            (Some(first), Some(last)) => *last - *first,
            _ => Duration::ZERO,
        };
        open.push((window, heard.len()));
    }
    open.sort();
    println!(
        "our table deleted by somebody {} times; open for (denied flows let in): {open:?}",
        open.len()
    );
    assert!(open[open.len() / 2].0 < Duration::from_millis(200), "{open:?}");
}
