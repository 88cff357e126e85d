//! The BPF flavour of `tunl0` on the live kernel: real packets between namespaces, seen by tcpdump. Needs root.
#![allow(clippy::unwrap_used, reason = "test code")]

mod ipip_support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipip_support::*;
use kernel::{IfName, IpipFlavour, KernelError};
use linux::ipip;

const BPF: [IpipFlavour; 2] = [IpipFlavour::Bpf; 2];

#[test]
fn pods_reach_each_other_in_protocol_4() {
    let [a, b] = two_nodes(BPF, 1480);
    let wire = b.ns.capture("eth0", 4, "ip proto 4");
    let arrived = b.ns.capture("tunl0", 2, "icmp");
    assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.05");

    let wire = wire.text();
    assert!(wire.contains("10.1.0.1 > 10.1.0.2: IP (tos"), "{wire}");
    assert!(wire.contains("192.168.1.2 > 192.168.2.2: ICMP echo request"), "{wire}");
    assert!(wire.contains("192.168.2.2 > 192.168.1.2: ICMP echo reply"), "{wire}");
    assert!(!wire.contains("bad cksum"), "{wire}");
    // What was taken out of a packet seems to have come in on the tunnel.
    assert!(arrived.text().contains("192.168.1.2 > 192.168.2.2: ICMP echo request"));
    assert_eq!((a.counters().encapsulated, a.counters().decapsulated), (2, 2));
}

#[test]
fn the_node_itself_reaches_pods_from_its_tunnel_address() {
    let [a, b] = two_nodes(BPF, 1480);
    let text = b.pod.capture("eth0", 1, "icmp");
    assert_ping(&a.ns, b.pod_address, "-c 2 -i 0.05");
    assert!(text.text().contains("192.168.1.1 > 192.168.2.2: ICMP echo request"));
}

#[test]
fn nodes_behind_a_router_are_reached_by_the_routing_table() {
    let ([a, b], router) = two_routed_nodes(BPF);
    let wire = router.capture("right", 1, "ip proto 4 and src 10.1.0.1");
    assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.05");
    assert!(wire.text().contains("10.1.0.1 > 10.9.0.2: IP"));
}

#[test]
fn observation_says_what_was_put() {
    let [a, b] = two_nodes(BPF, 1480);
    assert_eq!(a.observe(), Some((a.tunnel(), BTreeSet::from([B]))));
    assert_eq!(b.observe(), Some((b.tunnel(), BTreeSet::from([A]))));
    let strange = Ns::new();
    assert_eq!(strange.run(|| ipip::observe(&tunl0())), Ok(None));
    assert_eq!(strange.run(|| ipip::counters(&tunl0())), Ok(None));
}

#[test]
fn strangers_are_dropped_and_counted() {
    let [a, b] = two_nodes(BPF, 1480);
    b.ns.run(|| ipip::remove_peer(&tunl0(), A)).unwrap();
    assert_eq!(b.observe().unwrap().1, BTreeSet::new());
    let (answered, text) = ping(&a.pod, b.pod_address, "-c 3 -i 0.05 -W 0.3");
    assert!(!answered, "{text}");
    assert_eq!(b.counters().dropped_unknown_source, 3);
    assert_eq!(b.counters().decapsulated, 0);

    b.ns.run(|| ipip::put_peer(&tunl0(), A)).unwrap();
    assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.05");
}

#[test]
fn packets_for_an_unknown_next_hop_are_dropped_and_counted() {
    let [a, b] = two_nodes(BPF, 1480);
    a.ns.run(|| ipip::remove_peer(&tunl0(), B)).unwrap();
    let (answered, text) = ping(&a.pod, b.pod_address, "-c 3 -i 0.05 -W 0.3");
    assert!(!answered, "{text}");
    assert_eq!(a.counters().dropped_no_peer, 3);
    assert_eq!(a.counters().encapsulated, 0);
}

#[test]
fn putting_it_again_loses_no_packet() {
    let [a, b] = two_nodes(BPF, 1480);
    let before =
        a.ns.sh("ip -d link show tunl0; tc filter show dev tunl0 egress; tc filter show dev eth0 ingress");
    let (pod, target) = (&a.pod, b.pod_address);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| assert_ping(pod, target, "-c 150 -i 0.01"));
        while !pinging.is_finished() {
            for node in [&a, &b] {
                node.put();
                for peer in node.observe().unwrap().1 {
                    node.ns.run(|| ipip::put_peer(&tunl0(), peer)).unwrap();
                }
            }
        }
    });
    let after =
        a.ns.sh("ip -d link show tunl0; tc filter show dev tunl0 egress; tc filter show dev eth0 ingress");
    assert_eq!(before, after, "not even a program was replaced");
}

#[test]
fn a_changed_configuration_replaces_the_programs_and_loses_no_packet() {
    let [a, b] = two_nodes(BPF, 1480);
    let (pod, target) = (&a.pod, b.pod_address);
    // A second address of node A, known to B: packets from either are welcome.
    let second = Ipv4Addr::new(10, 1, 0, 77);
    a.ns.sh(&format!("ip addr add {second}/24 dev eth0"));
    b.ns.run(|| ipip::put_peer(&tunl0(), second)).unwrap();
    let program = || a.ns.sh("tc filter show dev tunl0 egress");
    let before = program();
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| assert_ping(pod, target, "-c 100 -i 0.01"));
        let mut moved = a.tunnel();
        while !pinging.is_finished() {
            moved.local = if moved.local == A { second } else { A };
            // Node B answers to A's first address all the time: only what A sends may change.
            if moved.local == second {
                continue;
            }
            a.ns.run(|| ipip::put(&moved)).unwrap();
        }
    });
    let mut moved = a.tunnel();
    moved.local = second;
    a.ns.run(|| ipip::put(&moved)).unwrap();
    assert_ne!(before, program());
    assert_eq!(
        a.observe(),
        Some((moved, BTreeSet::from([B]))),
        "peers are carried over"
    );
}

#[test]
fn whatever_is_broken_by_others_is_repaired() {
    let [a, b] = two_nodes(BPF, 1480);
    for damage in [
        "ip link set tunl0 down",
        "ip link set tunl0.p down",
        "ip link set tunl0 mtu 1400",
        "ip link set tunl0 arp on",
        "ip link set tunl0 alias nobody",
        "ip addr flush dev tunl0",
        "ip addr add 192.168.77.1/24 dev tunl0; ip addr del 192.168.1.1/32 dev tunl0",
        "ip neigh flush nud permanent dev tunl0",
        "tc qdisc del dev tunl0 clsact",
        "tc qdisc del dev eth0 clsact",
        "ip link del tunl0",
        "ip link del tunl0.p; tc qdisc del dev eth0 clsact",
    ] {
        a.ns.sh(damage);
        assert_ne!(
            a.observe(),
            Some((a.tunnel(), BTreeSet::from([B]))),
            "unnoticed: {damage}"
        );
        a.put();
        a.join(&b);
        assert_eq!(
            a.observe(),
            Some((a.tunnel(), BTreeSet::from([B]))),
            "not repaired: {damage}"
        );
        assert_ping(&a.pod, b.pod_address, "-c 1");
    }
}

#[test]
fn removal_leaves_nothing_and_touches_nothing_foreign() {
    let [a, b] = two_nodes(BPF, 1480);
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    assert_eq!(a.ns.sh("ip -o link | grep -c tunl0 || true").trim(), "0");
    assert_eq!(a.ns.sh("tc qdisc show dev eth0 | grep -c clsact || true").trim(), "0");
    assert_eq!(a.observe(), None);
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    a.ns.run(|| ipip::remove_peer(&tunl0(), B)).unwrap();
    assert_eq!(
        a.ns.run(|| ipip::put_peer(&tunl0(), B)),
        Err(KernelError::NoDevice(tunl0())),
        "a peer needs a tunnel"
    );

    // Somebody's filter beside ours keeps the queueing discipline alive, and itself.
    b.ns.sh("tc filter add dev eth0 ingress protocol all prio 7 u32 match u32 0 0 classid 1:1");
    b.ns.run(|| ipip::remove(&tunl0())).unwrap();
    let filters = b.ns.sh("tc filter show dev eth0 ingress");
    assert!(filters.contains("pref 7") && !filters.contains("margay"), "{filters}");

    // And a queueing discipline that was there before stays, empty or not.
    a.ns.sh("tc qdisc add dev eth0 clsact");
    a.put();
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    assert_eq!(a.ns.sh("tc qdisc show dev eth0 | grep -c clsact || true").trim(), "1");
}

#[test]
fn a_foreign_device_or_filter_in_the_way_is_left_alone() {
    let node = Node::new(1, A, IpipFlavour::Bpf, 1480);
    node.ns
        .sh("ip link add eth0 type veth peer name other; ip link set eth0 up");
    node.ns.sh("ip link add tunl0 type bridge");
    let error = node.ns.run(|| ipip::put(&node.tunnel())).unwrap_err();
    assert_eq!(
        error,
        KernelError::Foreign {
            what: "device tunl0".into()
        }
    );
    node.ns.run(|| ipip::remove(&tunl0())).unwrap();
    node.ns.sh("ip link show tunl0");

    let mut missing = node.tunnel();
    missing.underlay = IfName::from("nosuch0");
    assert_eq!(
        node.ns.run(|| ipip::put(&missing)),
        Err(KernelError::NoDevice(IfName::from("nosuch0")))
    );
}

#[test]
fn moving_to_another_underlay_takes_the_filter_along() {
    let [a, b] = two_nodes(BPF, 1480);
    a.ns.wire("eth1", &b.ns, "eth1");
    let mut moved = a.tunnel();
    moved.underlay = IfName::from("eth1");
    a.ns.run(|| ipip::put(&moved)).unwrap();
    assert_eq!(a.observe(), Some((moved, BTreeSet::from([B]))));
    assert_eq!(a.ns.sh("tc qdisc show dev eth0 | grep -c clsact || true").trim(), "0");
    assert!(a.ns.sh("tc filter show dev eth1 ingress").contains("margay_ipip_decap"));
}

#[test]
fn full_size_packets_pass_and_longer_ones_are_told_so() {
    let [a, b] = two_nodes(BPF, 1500);
    assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.05 -M do -s 1452");
    let told = a.pod.capture("eth0", 1, "icmp[icmptype] == icmp-unreach");
    let (fine, text) = ping(&a.pod, b.pod_address, "-c 2 -i 0.05 -W 1 -M do -s 1453");
    assert!(!fine, "{text}");
    assert!(told.text().contains("need to frag (mtu 1480)"));
}

#[test]
fn fragments_pass() {
    let [a, b] = two_nodes(BPF, 1480);
    assert_ping(&a.pod, b.pod_address, "-c 3 -i 0.05 -M dont -s 8000");
    // From a pod with a larger MTU: cut by the node.
    a.pod.sh("ip link set eth0 mtu 1500");
    a.ns.sh("ip link set cali1 mtu 1500");
    assert_ping(&a.pod, b.pod_address, "-c 3 -i 0.05 -M dont -s 8000");
}

#[test]
fn bulk_tcp_passes_with_every_mix_of_offloads() {
    let ([a, b], _router) = two_routed_nodes(BPF);
    for (pods, nodes) in [("on", "on"), ("off", "on"), ("on", "off"), ("off", "off")] {
        for (ns, device, state) in [
            (&a.pod, "eth0", pods),
            (&b.pod, "eth0", pods),
            (&a.ns, "cali1", pods),
            (&b.ns, "cali1", pods),
            (&a.ns, "eth0", nodes),
            (&b.ns, "eth0", nodes),
        ] {
            ns.sh(&format!("ethtool -K {device} tso {state} gso {state} gro {state}"));
        }
        for direction in ["", "-R"] {
            transfer(&a.pod, &b.pod, b.pod_address, direction, 32);
        }
    }
}

#[test]
fn packets_can_be_relayed_from_tunnel_to_tunnel() {
    // As after a pod moved: A still sends to B what is C's by now. What came out of one tunnel goes into the next.
    let fabric = Ns::new();
    fabric.sh("ip link add br0 type bridge; ip link set br0 up");
    let nodes = [1, 2, 3].map(|number| Node::new(number, Ipv4Addr::new(10, 1, 0, number), IpipFlavour::Bpf, 1480));
    for node in &nodes {
        let port = format!("port{}", node.address.octets()[3]);
        fabric.wire(&port, &node.ns, "eth0");
        fabric.sh(&format!("ip link set {port} master br0"));
        node.ns.sh(&format!("ip addr add {}/24 dev eth0", node.address));
        node.put();
    }
    let [a, b, c] = &nodes;
    for (node, other) in [(a, b), (a, c), (b, a), (b, c), (c, a), (c, b)] {
        node.join(other);
    }
    a.ns.sh("ip route replace 192.168.3.0/26 via 10.1.0.2 dev tunl0 onlink proto 80");
    assert_ping(&a.pod, c.pod_address, "-c 2 -i 0.05");
    transfer(&a.pod, &c.pod, c.pod_address, "", 32);
    assert!(b.counters().encapsulated > 100, "{:?}", b.counters());
}

#[test]
fn the_probe_chooses_bpf_where_there_is_no_driver() {
    let probe = ipip::probe();
    assert_eq!(probe.bpf, Ok(()));
    let expected = if probe.native.is_ok() {
        IpipFlavour::Native
    } else {
        IpipFlavour::Bpf
    };
    assert_eq!(probe.chosen, Some(expected), "{}", probe.why);
}
