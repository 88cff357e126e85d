//! The BPF flavour of `tunl0` on the live kernel: real packets between namespaces, seen by tcpdump. Needs root.
//!
//! Since Linux 6.6 the programs are attached by TCX, before by filters: run this on an older kernel, too (see
//! `ipip_native.rs` for how).
#![allow(clippy::unwrap_used, reason = "test code")]

mod ipip_support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipip_support::*;
use kernel::{IfName, IpipFlavour, KernelError};
use linux::ipip;
use socket2::{Domain, Protocol, Socket, Type};

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
fn a_removed_peer_is_a_stranger_at_once() {
    let [a, b] = two_nodes(BPF, 1480);
    for round in 1..=20 {
        // The programs have just met it.
        assert_ping(&a.pod, b.pod_address, "-c 1");
        b.ns.run(|| ipip::remove_peer(&tunl0(), A)).unwrap();
        let (answered, text) = ping(&a.pod, b.pod_address, "-c 1 -W 0.05");
        assert!(!answered, "{text}");
        assert_eq!(b.counters().dropped_unknown_source, round);
        b.ns.run(|| ipip::put_peer(&tunl0(), A)).unwrap();
    }
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
    let show = || (a.ns.sh("ip -d link show tunl0"), a.programs());
    let before = show();
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
    assert_eq!(before, show(), "not even a program was replaced");
    assert_eq!(before.1.len(), 2);
}

#[test]
fn a_changed_configuration_replaces_the_programs_and_loses_no_packet() {
    let [a, b] = two_nodes(BPF, 1480);
    // A second address of node A, known to B: packets from either are welcome. B's answers go to the first only.
    let second = Ipv4Addr::new(10, 1, 0, 77);
    a.ns.sh(&format!("ip addr add {second}/24 dev eth0"));
    b.ns.run(|| ipip::put_peer(&tunl0(), second)).unwrap();
    assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.01");
    let before = b.counters().decapsulated;

    let (pod, target) = (&a.pod, b.pod_address);
    let mut moved = a.tunnel();
    let mut changes = 0;
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| ping(pod, target, "-c 100 -i 0.01 -W 0.1"));
        while !pinging.is_finished() {
            moved.local = if moved.local == A { second } else { A };
            a.ns.run(|| ipip::put(&moved)).unwrap();
            changes += 1;
        }
    });
    assert!(changes > 10, "{changes}");
    assert_eq!(b.counters().decapsulated - before, 100, "each echo request arrived");
    assert_eq!(
        a.observe(),
        Some((moved, BTreeSet::from([B]))),
        "peers are carried over"
    );
    assert!(a.counters().encapsulated >= 102, "and counters");
}

#[test]
fn a_peer_whose_mac_address_changed_is_found_again() {
    let [a, b] = two_nodes(BPF, 1480);
    assert_ping(&a.pod, b.pod_address, "-c 3 -i 0.01");
    b.ns.sh("ip link set eth0 address 02:aa:bb:cc:dd:ee");
    // Its first packet tells A's neighbour table; the programs follow within a tenth of a second.
    assert_ping(&b.ns, A, "-c 1");
    let (_, text) = ping(&a.pod, b.pod_address, "-c 20 -i 0.02");
    let answered = text.matches("icmp_seq=").count();
    assert!(answered >= 12, "{text}");
    assert_ping(&a.pod, b.pod_address, "-c 3 -i 0.01");
}

/// What A's stack sends to B by hand: `(outer type of service, inner, outer options, outer fragment field, inner
/// version)`, and the type of service that arrives in B's pod.
type ByHand = ((u8, u8, &'static [u8], u16, u8), Option<u8>);

#[test]
fn outer_headers_of_every_kind_are_taken_off_or_dropped() {
    const NOTHING: &[u8] = &[];
    let cases: [ByHand; 11] = [
        ((0, 0, NOTHING, 0, 4), Some(0)),
        ((0xb8, 0x28, NOTHING, 0, 4), Some(0x28)),
        // Congestion, RFC 6040: not capable, capable in both codings, known already.
        ((3, 0, NOTHING, 0, 4), None),
        ((3, 1, NOTHING, 0, 4), Some(3)),
        ((3, 0xba, NOTHING, 0, 4), Some(0xbb)),
        ((0, 3, NOTHING, 0, 4), Some(3)),
        ((2, 2, NOTHING, 0, 4), Some(2)),
        // Options, fragments, another protocol inside.
        ((3, 2, &[1, 1, 1, 0], 0, 4), Some(3)),
        ((0, 0, &[1; 40], 0, 4), Some(0)),
        ((0, 0, NOTHING, 0x2000, 4), None),
        ((0, 0, NOTHING, 0, 6), None),
    ];
    let [a, b] = two_nodes(BPF, 1480);
    let arriving: Vec<u8> = cases.iter().filter_map(|(_, arriving)| *arriving).collect();
    let capture = b.pod.capture("eth0", arriving.len() as u32, "udp dst port 4444");
    a.ns.run(|| {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
        for ((outer_tos, inner_tos, options, fragment, version), _) in cases {
            let mut inner = header(version, inner_tos, &[], 0, 17, [a.pod_address, b.pod_address], 12);
            // UDP from 4443 to 4444, four bytes, no checksum.
            inner.extend([0x11, 0x5b, 0x11, 0x5c, 0, 12, 0, 0, 1, 2, 3, 4]);
            let mut packet = header(4, outer_tos, options, fragment, 4, [A, B], inner.len());
            packet.extend(inner);
            raw.send_to(&packet, &SocketAddrV4::new(B, 0).into()).unwrap();
        }
    });
    let text = capture.text();
    let seen: Vec<u8> = text
        .split("(tos 0x")
        .skip(1)
        .map(|rest| u8::from_str_radix(rest.split([',', ' ']).next().unwrap(), 16).unwrap())
        .collect();
    assert_eq!(seen, arriving, "{text}");
    assert_eq!(
        (b.counters().decapsulated, b.counters().dropped_malformed),
        (arriving.len() as u64, (cases.len() - arriving.len()) as u64)
    );
    assert!(!text.contains("bad cksum"), "{text}");
}

/// An IPv4 header with its checksum.
fn header(
    version: u8,
    tos: u8,
    options: &[u8],
    fragment: u16,
    protocol: u8,
    ends: [Ipv4Addr; 2],
    payload: usize,
) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let length = (words * 4 + payload) as u16;
    let mut bytes = vec![version << 4 | words as u8, tos];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    bytes.extend(ends.iter().flat_map(|end| end.octets()));
    bytes.extend(options);
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
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
        "ip link del tunl0.p",
    ] {
        if damage.contains("clsact") && !a.has_clsact() {
            continue;
        }
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
    // A kernel with the driver has a tunl0 of its own.
    assert_eq!(a.ns.sh("ip -o link show type veth | grep -c tunl0 || true").trim(), "0");
    assert!(!a.has_clsact());
    assert_eq!(a.observe(), None);
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    a.ns.run(|| ipip::remove_peer(&tunl0(), B)).unwrap();
    assert_eq!(
        a.ns.run(|| ipip::put_peer(&tunl0(), B)),
        Err(KernelError::NoDevice(tunl0())),
        "a peer needs a tunnel"
    );

    // Somebody's filter beside ours keeps the queueing discipline alive, and itself.
    b.ns.sh("tc qdisc add dev eth0 clsact || true; tc filter add dev eth0 ingress protocol all prio 7 u32 match u32 0 0 classid 1:1");
    b.ns.run(|| ipip::remove(&tunl0())).unwrap();
    let filters = b.ns.sh("tc filter show dev eth0 ingress");
    assert!(filters.contains("pref 7") && !filters.contains("margay"), "{filters}");

    // And a queueing discipline that was there before stays, empty or not.
    a.ns.sh("tc qdisc add dev eth0 clsact");
    a.put();
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    assert!(a.has_clsact());
}

#[test]
fn a_foreign_device_or_filter_in_the_way_is_left_alone() {
    let node = Node::new(1, A, IpipFlavour::Bpf, 1480);
    node.ns
        .sh("ip link add eth0 type veth peer name other; ip link set eth0 up");
    node.ns
        .sh("ip link set tunl0 name spare 2>/dev/null || true; ip link add tunl0 type bridge");
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
    assert!(!a.has_clsact());
    assert_eq!(a.programs().len(), 2);
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
