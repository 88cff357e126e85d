//! Single behaviours, as data.

use std::net::Ipv4Addr;

use api::EncapMode;
use calc::{NodeChange, Settings};
use kernel::{KernelError, KernelEvent, Op};

use super::build::*;
use super::fake::FakeKernel;
use super::world::World;
use crate::{Cleanup, TunnelDecision, Unresolved};

/// A node with a pool, a peer in its subnet, one behind a router, a block and a pod.
fn cluster(mode: EncapMode) -> World {
    let mut world = World::new();
    world.kernel.add_link("cali1", "veth", 1480, true);
    world.set(this_node());
    world.set(pool("192.168.0.0/16", mode));
    world.set(node("n2", "10.0.0.2/24"));
    world.set(node("n3", "10.0.1.3/24"));
    world.set(block("192.168.1.0/26"));
    world.endpoint("pod1", endpoint("cali1", &["192.168.1.5"]));
    world.fib(fib("192.168.2.0/26", "10.0.0.2"));
    world.fib(fib("192.168.3.0/26", "10.0.1.3"));
    world.settle();
    world
}

fn check(mode: EncapMode, wanted: &[&str]) {
    let world = cluster(mode);
    assert_eq!(world.routes(), wanted, "{mode:?}");
}

#[test]
fn routes_follow_the_mode_of_the_pool() {
    let local = ["192.168.1.0/26 blackhole", "192.168.1.5/32 dev cali1"];
    check(
        EncapMode::Never,
        &[local[0], local[1], "192.168.2.0/26 via 10.0.0.2 dev eth0"],
    );
    check(
        EncapMode::CrossSubnet,
        &[
            local[0],
            local[1],
            "192.168.2.0/26 via 10.0.0.2 dev eth0",
            "192.168.3.0/26 via 10.0.1.3 dev tunl0 onlink",
        ],
    );
    check(
        EncapMode::Always,
        &[
            local[0],
            local[1],
            "192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink",
            "192.168.3.0/26 via 10.0.1.3 dev tunl0 onlink",
        ],
    );
}

#[test]
fn a_pool_switches_to_ipip_and_back_without_a_gap() {
    let mut world = cluster(EncapMode::Never);
    world.set(pool("192.168.0.0/16", EncapMode::Always));
    // `settle` checks after each operation that no route was lost.
    let ops = world.settle();
    let at = |wanted: fn(&Op) -> bool| ops.iter().position(wanted).expect("it was done");
    let tunnel = at(|op| matches!(op, Op::PutTunnel(_)));
    let last_peer = ops
        .iter()
        .rposition(|op| matches!(op, Op::PutTunnelPeer(..)))
        .expect("it was done");
    let route = at(|op| matches!(op, Op::PutRoute(_)));
    assert!(tunnel < last_peer && last_peer < route, "{ops:?}");
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink");
    assert_eq!(world.dataplane.pod_mtu(), 1480);

    world.set(pool("192.168.0.0/16", EncapMode::Never));
    let ops = world.settle();
    assert_eq!(
        ops.last(),
        Some(&Op::RemoveTunnel("tunl0".into())),
        "the fake refuses to remove a tunnel in use"
    );
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev eth0");
    assert_eq!(world.dataplane.pod_mtu(), 1500);
}

#[test]
fn other_nodes_get_time_before_packets_move_into_a_new_tunnel() {
    let mut world = cluster(EncapMode::Never);
    world.dataplane.hold_switches();
    world.set(pool("192.168.0.0/16", EncapMode::Always));
    world.settle();
    assert!(world.kernel.tunnel.is_some(), "ready to receive");
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev eth0");
    assert_eq!(
        world.routes()[3],
        "192.168.3.0/26 via 10.0.1.3 dev tunl0 onlink",
        "there was no way before"
    );
    assert!(world.dataplane.wants_switch());
    world.dataplane.switch();
    world.settle();
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink");
    assert!(!world.dataplane.wants_switch());

    world.set(pool("192.168.0.0/16", EncapMode::Never));
    world.settle();
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev eth0");
    assert!(world.kernel.tunnel.is_some(), "the others may still send through it");
    assert!(world.dataplane.wants_switch());
    world.dataplane.switch();
    world.settle();
    assert_eq!(world.kernel.tunnel, None);
    assert!(!world.dataplane.wants_switch());
}

#[test]
fn a_tunnel_that_cannot_be_made_leaves_the_old_routes() {
    let mut world = cluster(EncapMode::Never);
    world.kernel.broken.insert("PutTunnel(".into());
    world.set(pool("192.168.0.0/16", EncapMode::Always));
    world.settle();
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev eth0");
    let status = world.dataplane.status();
    assert_eq!(status.failed[0].what, "tunnel tunl0");
    assert!(!status.in_sync && !status.tunnel_programmed);
    assert!(world.dataplane.plan().is_empty(), "no hot loop");

    world.kernel.broken.clear();
    world.dataplane.retry();
    world.settle();
    assert_eq!(world.routes()[2], "192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink");
    assert!(world.dataplane.status().in_sync);
}

#[test]
fn what_cannot_be_resolved_says_why_and_comes_back() {
    let mut world = cluster(EncapMode::Never);
    let reason = |world: &World| world.dataplane.status().unresolved.first().map(|route| route.why);
    assert_eq!(reason(&world), Some(Unresolved::NotConnected(ip("10.0.1.3"))));
    world.kernel.add_link("eth1", "", 1500, true);
    world.kernel.add_address("eth1", "10.0.1.1/24");
    world.settle();
    assert_eq!(reason(&world), None);
    assert_eq!(world.routes()[3], "192.168.3.0/26 via 10.0.1.3 dev eth1");

    world.fib(fib("192.168.9.0/26", "10.0.0.1"));
    world.settle();
    assert_eq!(reason(&world), Some(Unresolved::NextHopIsUs(ip("10.0.0.1"))));
    world.fib(fib("192.168.9.0/26", "10.0.0.77"));
    world.set(pool("192.168.0.0/16", EncapMode::Always));
    world.settle();
    assert_eq!(reason(&world), Some(Unresolved::NotANode(ip("10.0.0.77"))));
    world.set(NodeChange::Settings(Settings {
        ipip_enabled: Some(false),
        ..Settings::default()
    }));
    world.settle();
    assert_eq!(reason(&world), Some(Unresolved::NoTunnel));
}

#[test]
fn nobody_announces_our_blocks_to_us() {
    let mut world = cluster(EncapMode::Always);
    for prefix in ["192.168.1.0/26", "192.168.1.16/28", "192.168.1.5/32"] {
        world.fib(fib(prefix, "10.0.0.2"));
    }
    world.fib(fib("192.168.1.60/32", "10.0.0.2"));
    world.settle();
    assert_eq!(
        world.routes()[..3],
        [
            "192.168.1.0/26 blackhole",
            "192.168.1.5/32 dev cali1",
            "192.168.1.60/32 via 10.0.0.2 dev tunl0 onlink", // an address that node 2 borrowed
        ]
    );
    let reasons: Vec<_> = world
        .dataplane
        .status()
        .unresolved
        .iter()
        .map(|route| route.why)
        .collect();
    assert_eq!(reasons, [Unresolved::OwnBlock(net("192.168.1.0/26")); 2]);
}

#[test]
fn addresses_outside_our_blocks_need_an_announcement_of_their_own() {
    let mut world = cluster(EncapMode::Always);
    world.endpoint("pod2", endpoint("cali2", &["192.168.2.9", "fd01::9"]));
    let outside = |world: &World| -> Vec<String> {
        world
            .dataplane
            .addresses_outside_blocks()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(outside(&world), ["192.168.2.9/32", "fd01::9/128"]);
    // What the host itself sends through the tunnel has the tunnel's address: answers must find back.
    let this = world.dataplane.state.this_node.clone();
    world.set(NodeChange::ThisNode(this.map(|this| calc::ThisNode {
        ipip_tunnel: Some("192.168.2.8".parse().unwrap()),
        ..this
    })));
    assert_eq!(outside(&world), ["192.168.2.8/32", "192.168.2.9/32", "fd01::9/128"]);
}

#[test]
fn an_endpoint_is_programmed_when_its_routes_are_there() {
    let mut world = World::new();
    world.endpoint("pod", endpoint("cali9", &["192.168.1.5", "fd01::5"]));
    assert_eq!(world.dataplane.is_programmed("pod"), None);
    world.settle();
    let missing = KernelError::NoDevice("cali9".into());
    assert_eq!(world.dataplane.is_programmed("pod"), Some(Err(missing)));
    world.kernel.add_link("cali9", "veth", 1480, true);
    world.settle();
    assert_eq!(world.dataplane.is_programmed("pod"), Some(Ok(())));
    assert_eq!(world.kernel.sysctls["ipv4/conf/cali9/proxy_arp"], "1");
    assert_eq!(world.kernel.sysctls["ipv4/neigh/cali9/proxy_delay"], "0");
    assert_eq!(world.kernel.sysctls["ipv4/ip_forward"], "1");
    assert_eq!(world.kernel.sysctls["ipv6/conf/all/forwarding"], "1");
    assert_eq!(world.dataplane.is_programmed("nobody"), None);
}

#[test]
fn an_address_stays_with_the_endpoint_that_was_first() {
    let mut world = cluster(EncapMode::Always);
    world.kernel.add_link("cali0", "veth", 1480, true);
    world.endpoint("intruder", endpoint("cali0", &["192.168.1.5"]));
    world.settle();
    assert!(matches!(
        world.dataplane.is_programmed("intruder"),
        Some(Err(KernelError::Foreign { .. }))
    ));
    assert_eq!(world.dataplane.is_programmed("pod1"), Some(Ok(())));
    assert!(world.dataplane.status().failed[0].what.contains("intruder"));
    world.endpoint("pod1", None);
    world.settle();
    assert_eq!(world.dataplane.is_programmed("intruder"), Some(Ok(())));
    assert_eq!(world.routes()[1], "192.168.1.5/32 dev cali0");
}

#[test]
fn a_foreign_route_in_the_way_is_reported_not_touched() {
    let mut world = World::new();
    world.kernel.add_link("cali1", "veth", 1480, true);
    world.kernel.meddle(foreign("192.168.1.5/32", "eth0"));
    world.endpoint("pod1", endpoint("cali1", &["192.168.1.5"]));
    world.settle();
    assert_eq!(world.routes(), ["192.168.1.5/32 dev eth0 (foreign)"]);
    assert!(matches!(
        world.dataplane.is_programmed("pod1"),
        Some(Err(KernelError::Foreign { .. }))
    ));

    world.kernel.meddle(foreign("192.168.1.5/32", "cali1"));
    world.settle();
    assert_eq!(
        world.dataplane.is_programmed("pod1"),
        Some(Ok(())),
        "it leads where ours would"
    );

    let key = foreign("192.168.1.5/32", "cali1").key;
    world.kernel.delete_route(&key);
    world.settle();
    assert_eq!(world.routes(), ["192.168.1.5/32 dev cali1"]);
}

#[test]
fn drift_is_repaired_at_once() {
    let healthy = cluster(EncapMode::Always);
    type Drift = (&'static str, fn(&mut FakeKernel));
    let drift: [Drift; 9] = [
        ("a route goes", |kernel| {
            let key = kernel.routes.keys().next().unwrap().clone();
            kernel.delete_route(&key);
        }),
        ("all routes go", |kernel| {
            kernel
                .routes
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .iter()
                .for_each(|key| kernel.delete_route(key));
        }),
        ("the tunnel goes", |kernel| kernel.remove_link("tunl0")),
        ("the tunnel is down", |kernel| kernel.set_up("tunl0", false)),
        ("the tunnel loses its address", |kernel| {
            kernel.remove_address("tunl0", "192.168.1.1/32")
        }),
        ("the tunnel has another MTU", |kernel| {
            let link = kernel.links.get_mut(&"tunl0".into()).unwrap();
            link.mtu = 1000;
            let link = link.clone();
            kernel.tunnel.as_mut().unwrap().0.mtu = 1000;
            kernel.events.push_back(KernelEvent::Link(link));
        }),
        ("a pod's device is down", |kernel| kernel.set_up("cali1", false)),
        ("the underlay flaps", |kernel| {
            kernel.set_up("eth0", false);
            kernel.set_up("eth0", true);
        }),
        ("events are lost", |kernel| {
            kernel.routes.clear();
            kernel.events.push_back(KernelEvent::Resync);
        }),
    ];
    for (what, happen) in drift {
        let mut world = cluster(EncapMode::Always);
        happen(&mut world.kernel);
        world.settle();
        assert_eq!(world.routes(), healthy.routes(), "{what}");
        assert_eq!(world.kernel.tunnel, healthy.kernel.tunnel, "{what}");
        assert!(world.kernel.links[&"cali1".into()].up, "{what}");
        assert!(
            world.dataplane.status().in_sync,
            "{what}: {:?}",
            world.dataplane.status()
        );
    }
}

#[test]
fn forwarding_that_somebody_switches_off_is_switched_on_again() {
    let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
    let switched_off = |world: &mut World| forwarding.map(|path| world.kernel.put_sysctl(path, "0"));
    let on = |world: &World| forwarding.map(|path| world.kernel.sysctls[path].clone());

    let mut world = cluster(EncapMode::Always);
    world.endpoint("both", endpoint("cali1", &["192.168.1.9", "fd01::9"]));
    world.settle();
    switched_off(&mut world);
    world.settle();
    assert_eq!(on(&world), ["1", "1"]);

    // Also if that happened while no agent was there, or its announcement was lost.
    switched_off(&mut world);
    world.kernel.events.clear();
    world.kernel.events.push_back(KernelEvent::Resync);
    world.settle();
    assert_eq!(on(&world), ["1", "1"]);
}

#[test]
fn a_repair_is_told_from_a_wish() {
    let mut world = cluster(EncapMode::Always);
    assert_eq!(world.repairs, [""; 0], "nothing was there before");
    world.fib(fib("192.168.9.0/26", "10.0.0.2"));
    world.settle();
    assert_eq!(world.repairs, [""; 0]);

    world.kernel.set_up("cali1", false);
    world.settle();
    world.kernel.put_sysctl("ipv4/ip_forward", "0");
    world.settle();
    let repairs = std::mem::take(&mut world.repairs);
    assert_eq!(
        repairs,
        ["device cali1", "route to 192.168.1.5/32", "sysctl ipv4/ip_forward"]
    );

    world.fib(fib("192.168.9.0/26", ""));
    world.endpoint("pod1", None);
    world.settle();
    assert_eq!(world.repairs, [""; 0]);
}

#[test]
fn a_device_that_comes_back_gets_its_sysctls_again() {
    let mut world = cluster(EncapMode::Always);
    world.kernel.remove_link("cali1");
    world.kernel.sysctls.clear();
    world.settle();
    world.kernel.add_link("cali1", "veth", 1480, true);
    world.settle();
    assert_eq!(world.kernel.sysctls["ipv4/conf/cali1/proxy_arp"], "1");
    assert_eq!(world.dataplane.is_programmed("pod1"), Some(Ok(())));
}

#[test]
fn the_kernel_does_not_check_the_sources_of_a_pod_that_was_granted_more() {
    let mut world = cluster(EncapMode::Always);
    let check = |world: &World, expected: &str| {
        let is = |device: &str| world.kernel.sysctls[&format!("ipv4/conf/{device}/rp_filter")].clone();
        assert_eq!(is("cali1"), expected);
    };
    check(&world, "1");
    world
        .dataplane
        .granted_sources(["cali1".into(), "nobody".into()].into());
    world.settle();
    check(&world, "0");
    assert!(!world.kernel.sysctls.contains_key("ipv4/conf/nobody/rp_filter"));
    world.dataplane.granted_sources([].into());
    world.settle();
    check(&world, "1");
}

#[test]
fn the_tunnel_stays_as_it_is_while_the_underlay_has_no_address() {
    let mut world = cluster(EncapMode::Always);
    let (tunnel, routes) = (world.kernel.tunnel.clone(), world.routes());
    world.kernel.remove_address("eth0", "10.0.0.1/24");
    assert!(world.settle().is_empty());
    assert!(matches!(world.dataplane.status().tunnel, TunnelDecision::Waiting(_)));
    assert_eq!((world.kernel.tunnel.clone(), world.routes()), (tunnel, routes));
}

#[test]
fn the_mtu_follows_the_underlay_and_the_setting() {
    let mut world = cluster(EncapMode::Always);
    let mtu = |world: &mut World| {
        world.settle();
        (world.kernel.tunnel.as_ref().unwrap().0.mtu, world.dataplane.pod_mtu())
    };
    assert_eq!(mtu(&mut world), (1480, 1480));
    let link = world.kernel.links.get_mut(&"eth0".into()).unwrap();
    link.mtu = 9000;
    let link = link.clone();
    world.kernel.events.push_back(KernelEvent::Link(link));
    assert_eq!(mtu(&mut world), (8980, 8980));
    world.set(NodeChange::Settings(Settings {
        ipip_mtu: Some(1400),
        ..Settings::default()
    }));
    assert_eq!(mtu(&mut world), (1400, 1400));
}

#[test]
fn an_address_that_moves_between_nodes_stays_a_peer() {
    let mut world = cluster(EncapMode::Always);
    world.set(node("new", "10.0.0.2/24"));
    world.set(NodeChange::Peer("n2".into(), None));
    assert!(world.settle().is_empty());
    let peers = world.kernel.tunnel.as_ref().unwrap().1.clone();
    assert!(peers.contains(&Ipv4Addr::new(10, 0, 0, 2)));
}

#[test]
fn a_metric_changes_without_a_gap() {
    let mut world = cluster(EncapMode::Always);
    world.set(NodeChange::Settings(Settings {
        ipv4_metric: 512,
        ..Settings::default()
    }));
    world.settle();
    assert_eq!(world.ours(), world.wanted());
    assert!(world.ours().keys().any(|key| key.metric == 512));
}

#[test]
fn stale_objects_go_only_with_permission() {
    let old = cluster(EncapMode::Always);
    let before = old.routes();
    let mut world = World::with_kernel(old.kernel.clone());
    let mut after = |what: Cleanup| {
        world.dataplane.allow_cleanup(what);
        world.settle();
        (world.routes().len(), world.kernel.tunnel.is_some())
    };
    assert_eq!(before.len(), 4);
    assert_eq!(after(Cleanup::Bgp), (4, true), "alone it permits nothing");
    assert_eq!(after(Cleanup::Endpoints), (3, true), "the pod's route");
    assert_eq!(after(Cleanup::Datastore), (0, false), "blackhole, BGP's routes, tunnel");
}

#[test]
fn a_restart_changes_nothing() {
    let old = cluster(EncapMode::Always);
    let mut world = World::with_kernel(old.kernel.clone());
    // Until the picture is complete, half of it must not do harm: BGP speaks before the pools are known.
    world.fib(fib("192.168.2.0/26", "10.0.0.2"));
    world.endpoint("pod1", endpoint("cali1", &["192.168.1.5"]));
    world.set(this_node());
    assert_eq!(world.settle(), []);
    world.set(node("n3", "10.0.1.3/24"));
    world.set(block("192.168.1.0/26"));
    world.fib(fib("192.168.3.0/26", "10.0.1.3"));
    world.set(pool("192.168.0.0/16", EncapMode::Always));
    world.set(node("n2", "10.0.0.2/24"));
    assert_eq!(world.settle(), []);
    world.permit();
    assert_eq!(world.settle(), []);
    assert!(world.dataplane.status().in_sync);
}

#[test]
fn purge_removes_exactly_what_is_ours() {
    let mut world = cluster(EncapMode::Always);
    let theirs = foreign("172.16.0.0/24", "eth0");
    world.kernel.meddle(theirs.clone());
    world.tell();
    for op in world.dataplane.purge() {
        world.kernel.apply(&op).unwrap();
    }
    assert_eq!(world.routes(), [shown(&theirs)]);
    assert_eq!(world.kernel.tunnel, None);
}

#[test]
fn a_broken_channel_asks_for_a_fresh_look() {
    let mut world = World::new();
    world.set(block("192.168.1.0/26"));
    let plan = world.dataplane.plan();
    world
        .dataplane
        .done(&plan[0], Err(KernelError::Broken("socket".into())));
    assert!(world.dataplane.wants_observation());
    assert!(world.dataplane.plan().is_empty());
    world.dataplane.observed(world.kernel.observe());
    assert_eq!(world.dataplane.plan(), plan);
}

#[test]
fn several_next_hops_make_one_route() {
    let mut world = cluster(EncapMode::CrossSubnet);
    world.fib(fib("192.168.4.0/26", "10.0.0.2 10.0.1.3"));
    world.settle();
    assert_eq!(
        world.routes().last().map(String::as_str),
        Some("192.168.4.0/26 via 10.0.0.2 dev eth0 via 10.0.1.3 dev tunl0 onlink")
    );
}
