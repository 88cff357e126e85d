//! The native flavour, and both flavours talking to each other. Needs root and a kernel with the `ipip` driver: on one
//! without, every test says so and passes.
//!
//! On a stock Debian kernel, in a virtual machine that runs a host's binaries:
//!
//!     CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="vm run --" cargo test -p linux --test ipip_native -- --test-threads 1
#![allow(clippy::unwrap_used, reason = "test code")]

mod ipip_support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipip_support::*;
use kernel::IpipFlavour;
use linux::ipip;

const FLAVOURS: [[IpipFlavour; 2]; 4] = [
    [IpipFlavour::Native, IpipFlavour::Bpf],
    [IpipFlavour::Bpf, IpipFlavour::Native],
    [IpipFlavour::Native, IpipFlavour::Native],
    [IpipFlavour::Bpf, IpipFlavour::Bpf],
];

/// Whether the driver is there; says it loudly if not.
fn driver() -> bool {
    let probe = ipip::probe();
    if let Err(why) = &probe.native {
        eprintln!("SKIPPED: this kernel has no ipip driver: {why}");
        return false;
    }
    assert_eq!(probe.chosen, Some(IpipFlavour::Native), "{}", probe.why);
    true
}

#[test]
fn both_flavours_understand_each_other() {
    if !driver() {
        return;
    }
    for flavours in FLAVOURS {
        let [a, b] = two_nodes(flavours, 1480);
        let wire = b.ns.capture("eth0", 4, "ip proto 4");
        assert_ping(&a.pod, b.pod_address, "-c 2 -i 0.2");
        let wire = wire.text();
        assert!(wire.contains("192.168.1.2 > 192.168.2.2: ICMP echo request"), "{wire}");
        assert!(wire.contains("192.168.2.2 > 192.168.1.2: ICMP echo reply"), "{wire}");
        assert_ping(&b.pod, a.pod_address, "-c 2 -i 0.2");
        assert_ping(&a.ns, b.pod_address, "-c 1");
        assert_ping(&a.pod, b.pod_address, "-c 1 -M do -s 1452");
        assert_ping(&a.pod, b.pod_address, "-c 1 -M dont -s 4000");
        for node in [&a, &b] {
            let counters = node.counters();
            assert!(
                counters.encapsulated >= 4 && counters.decapsulated >= 4,
                "{flavours:?} {counters:?}"
            );
        }
    }
}

#[test]
fn bulk_tcp_passes_between_flavours() {
    if !driver() {
        return;
    }
    for flavours in FLAVOURS {
        let [a, b] = two_nodes(flavours, 1480);
        for direction in ["", "-R"] {
            transfer(&a.pod, &b.pod, b.pod_address, direction, 8);
        }
    }
}

#[test]
fn native_is_observed_as_put_and_putting_it_again_changes_nothing() {
    if !driver() {
        return;
    }
    let [a, b] = two_nodes(FLAVOURS[2], 1480);
    assert_eq!(a.observe(), Some((a.tunnel(), BTreeSet::from([B]))));
    let show = || (a.ns.sh("ip -d link show tunl0; ip addr show tunl0"), a.programs());
    let before = show();
    a.put();
    assert_eq!(before, show());
    for damage in [
        "ip link set tunl0 down",
        "ip link set tunl0 mtu 1400",
        "tc qdisc del dev eth0 clsact",
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
fn strangers_do_not_reach_the_driver() {
    if !driver() {
        return;
    }
    let [a, b] = two_nodes(FLAVOURS[2], 1480);
    b.ns.run(|| ipip::remove_peer(&tunl0(), A)).unwrap();
    assert!(!ping(&a.pod, b.pod_address, "-c 2 -i 0.2 -W 1").0);
    assert_eq!(b.counters().dropped_unknown_source, 2);
    // Nor by way of another address of the node: the driver would take it.
    let other = Ipv4Addr::new(10, 1, 0, 99);
    b.ns.sh(&format!("ip addr add {other}/24 dev eth0"));
    a.ns.sh(&format!(
        "ip route replace 192.168.2.0/26 via {other} dev tunl0 onlink proto 80"
    ));
    assert!(!ping(&a.pod, b.pod_address, "-c 2 -i 0.2 -W 1").0);
    assert_eq!(b.counters().dropped_unknown_source, 4);
}

#[test]
fn a_node_can_change_its_flavour_and_back() {
    if !driver() {
        return;
    }
    let [mut a, b] = two_nodes(FLAVOURS[3], 1480);
    for flavour in [IpipFlavour::Native, IpipFlavour::Bpf, IpipFlavour::Native] {
        a.flavour = flavour;
        a.put();
        a.join(&b);
        assert_eq!(a.observe(), Some((a.tunnel(), BTreeSet::from([B]))));
        assert_ping(&a.pod, b.pod_address, "-c 1");
    }
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    assert_eq!(a.observe(), None);
    assert!(!a.has_clsact());

    // The driver's own device is back as it was born, also from under the other flavour.
    a.flavour = IpipFlavour::Bpf;
    a.put();
    a.ns.run(|| ipip::remove(&tunl0())).unwrap();
    let left = a.ns.sh("ip -d -o link show | grep tunl0");
    assert!(
        left.contains(": tunl0@NONE: <NOARP> ") && left.contains(" ipip ") && left.lines().count() == 1,
        "{left}"
    );
}
