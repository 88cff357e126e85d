//! When policy is enforced: before a pod's first packet in either direction, while agents die and come back, and while others
//! delete our table. Over both families.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::{Key, Kind};
use common::Lab;
use common::cluster::{Datastore, Pod, k8s, resource};
use common::load::{Pulse, Spray};
use common::net::{self, L4, Receiver, Servers};
use common::told;

/// Whether it is IPv6.
const FAMILIES: [bool; 2] = [false, true];

/// A lab of two nodes with a pod on each.
fn lab(name: &'static str) -> Option<(Lab, Datastore, Vec<String>)> {
    let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0", "--ipv6"])?;
    let (store, nodes) = (Datastore::of(&lab), lab.nodes());
    Some((lab, store, nodes))
}

fn at(pod: &Pod, ipv6: bool, port: u16) -> SocketAddr {
    (pod.address(ipv6), port).into()
}

/// The 64 addresses of the block around an address.
fn block(address: IpAddr) -> Vec<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let first = u32::from(address) & !63;
            (first..first + 64).map(|it| Ipv4Addr::from(it).into()).collect()
        }
        IpAddr::V6(address) => {
            let first = u128::from(address) & !63;
            (first..first + 64).map(|it| Ipv6Addr::from(it).into()).collect()
        }
    }
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
    let targets = |ipv6: bool| -> Vec<SocketAddr> {
        let others = block(near.address(ipv6))
            .into_iter()
            .filter(|it| *it != near.address(ipv6));
        others.map(|address| (address, 53).into()).collect()
    };
    // What they hear from the new pod: it sends from its first moment on.
    let hearers = [&near, &far].map(|pod| Receiver::start(&pod.place, 54));
    for round in 0..8 {
        // The others show that the spray finds its way.
        let is_closed = round % 2 == 0;
        let (name, labels) = (
            format!("p{round}"),
            [("role", if is_closed { "closed" } else { "open" })],
        );
        hearers.iter().for_each(Receiver::forget);
        let sprays: Vec<Spray> = [&near, &far]
            .into_iter()
            .flat_map(|sender| FAMILIES.map(|ipv6| Spray::start(&sender.place, targets(ipv6))))
            .chain(FAMILIES.map(|ipv6| {
                let to = [&near, &far].map(|hearer| at(hearer, ipv6, 54));
                Spray::from_birth(&format!("{}.pod-shop.{name}", lab.name), to.to_vec())
            }))
            .collect();
        let pod = lab.add_pod("shop", &name, &nodes[0], &labels);
        sprays.iter().for_each(|spray| spray.wait_for(50));
        drop(sprays);
        let arrived = net::datagrams_in(&pod.place);
        match is_closed {
            true => assert_eq!(
                arrived, [0; 2],
                "round {round}: packets that policy forbids have arrived"
            ),
            false => assert!(
                arrived.iter().all(|count| *count > 0),
                "round {round}: {arrived:?} arrived"
            ),
        }
        for (hearer, ipv6) in hearers.iter().flat_map(|hearer| FAMILIES.map(|ipv6| (hearer, ipv6))) {
            let heard = hearer.heard(pod.address(ipv6)).len();
            assert_eq!(
                heard == 0,
                is_closed,
                "round {round}: {heard} heard of it, IPv6: {ipv6}"
            );
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
    let are = |expected: bool| {
        let reached = FAMILIES.map(|ipv6| net::reaches(&sender.place, at(&pod, ipv6, 80), L4::Udp, expected));
        reached == [expected; 2]
    };
    let problems = || lab.exec(&nodes[0], &["calicoctl", "node", "status"]);
    let counted = |cause: &str, name: &dyn Fn(&str) -> bool| {
        // What is meant for all pods stops a packet at its sender or at its receiver.
        let names: Vec<String> = nodes.iter().flat_map(|node| told::names(&lab, node, cause)).collect();
        assert!(names.iter().any(|it| name(it)), "{cause}: {names:?}");
    };
    assert!(are(true));

    let profile = |name: &str| Key::cluster(Kind::Profile, name);
    let kns = "{kind: Profile, metadata: {name: kns.q}, spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}}";
    store.delete(&profile("kns.q"));
    lab.eventually("closed without its profile", || are(false));
    counted("no-profile", &|endpoint| endpoint.starts_with("q/"));
    lab.eventually("status names the profile", || {
        problems().contains("profile kns.q of WorkloadEndpoint(q/")
    });
    store.put(resource(kns));
    lab.eventually("open again", || are(true));

    // A profile that cannot be followed closes its pods, and these alone.
    store.put(resource(&kns.replace(
        "egress: [{action: Allow}]",
        "egress: [{action: Allow, destination: {selector: \"((\"}}]",
    )));
    lab.eventually("closed by its profile", || are(false));
    counted("closed", &|why| why.starts_with("q/") && why.contains("kns.q"));
    let explained = common::text(&lab.try_lab(&[
        "exec",
        &nodes[0],
        "--",
        "calicoctl",
        "explain",
        "sender",
        "q/pod:80/udp",
    ]));
    assert!(
        explained.contains("everything is denied: ")
            && explained.contains("kns.q")
            && explained.contains("DENIED to pod q/pod"),
        "{explained}"
    );
    lab.eventually("status names the rule", || {
        problems().contains("spec.egress[0].destination.selector")
    });
    store.put(resource(kns));
    lab.eventually("open again", || are(true));

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
        lab.eventually(&format!("closed by {name}"), || are(false));
        counted("policy", &|policy| policy == format!("GlobalNetworkPolicy {name}"));
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
        lab.eventually("open again", || are(true));
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
        FAMILIES
            .iter()
            .all(|ipv6| !net::reaches(&stranger.place, at(&pod, *ipv6, 80), L4::Udp, false))
    });
    for ipv6 in FAMILIES {
        assert!(net::reaches(&friend.place, at(&pod, ipv6, 80), L4::Udp, true));
    }
    receiver.forget();

    let flows = |from: &Pod| FAMILIES.map(|ipv6| Pulse::start(&from.place, at(&pod, ipv6, 80)));
    let (allowed, denied) = (flows(&friend), flows(&stranger));
    for node in nodes.iter().cycle().take(10) {
        lab.lab(&["agent", "kill", node]);
        lab.lab(&["agent", "start", node]);
        lab.eventually("the agent is ready", || {
            lab.lab(&["status"])
                .lines()
                .any(|line| line.starts_with(node.as_str()) && line.contains("yes"))
        });
    }
    for ((ipv6, allowed), denied) in FAMILIES.into_iter().zip(allowed).zip(denied) {
        let (sent, lost) = allowed.end();
        assert!(
            lost.is_empty(),
            "of {sent} allowed ones, while agents die, IPv6: {ipv6}, lost: {lost:?}"
        );
        assert_eq!(receiver.heard(friend.address(ipv6)).len(), sent, "IPv6: {ipv6}");
        assert!(sent >= 100, "{sent} allowed flows are too few to see anything");
        let tried = denied.stop();
        let passed = receiver.heard(stranger.address(ipv6)).len();
        assert_eq!(passed, 0, "of {tried} denied flows, while agents die, IPv6: {ipv6}");
        println!(
            "agents killed and started ten times: {sent} of {sent} allowed flows answered, none of {tried} denied ones passed, IPv6: {ipv6}"
        );
    }

    // Somebody deletes our table. Until it is there again nothing is enforced on this node: that is measured, with denied flows
    // as fast as they can be sent.
    let mut open: Vec<(Duration, usize)> = Vec::new();
    for round in 0..8 {
        let ipv6 = round % 2 == 1;
        let (friend_address, stranger_address) = (friend.address(ipv6), stranger.address(ipv6));
        // What was let in the last time stays in, as long as it is remembered.
        for node in &nodes {
            lab.exec(node, &["conntrack", "-F", "-f", if ipv6 { "ipv6" } else { "ipv4" }]);
        }
        receiver.forget();
        let allowed = Pulse::start(&friend.place, at(&pod, ipv6, 81));
        let flood = Spray::of_flows(&stranger.place, at(&pod, ipv6, 80));
        flood.wait_for(100);
        assert_eq!(receiver.heard(stranger_address).len(), 0, "round {round}: before");
        lab.exec(&nodes[0], &["nft", "delete", "table", "inet", "calico"]);
        lab.eventually("closed again", || {
            !net::reaches(&stranger.place, at(&pod, ipv6, 80), L4::Udp, false)
        });
        // What was let in has been heard when as many more were sent.
        flood.wait_for(500);
        let heard = receiver.heard(stranger_address);
        flood.wait_for(500);
        assert_eq!(
            receiver.heard(stranger_address).len(),
            heard.len(),
            "round {round}: after"
        );
        drop(flood);
        let (sent, lost) = allowed.end();
        let heard_beside = beside.heard(friend_address).len();
        beside.forget();
        // One packet may be on its way through the old rules while the kernel deletes them: their maps are empty for it.
        assert!(
            lost.len() <= 1,
            "round {round}: of {sent} allowed ones, while the table is gone, lost: {lost:?}, drops: {:#?}",
            drops(&lab, &nodes[0])
        );
        assert_eq!(heard_beside, sent - lost.len(), "round {round}");
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

/// What a node's rules have dropped.
fn drops(lab: &Lab, node: &str) -> Vec<String> {
    let table = lab.exec(node, &["nft", "list", "table", "inet", "calico"]);
    let dropped = |line: &&str| line.contains("drop") && line.contains("packets") && !line.contains("packets 0 ");
    table
        .lines()
        .filter(dropped)
        .map(str::trim)
        .map(str::to_owned)
        .collect()
}
