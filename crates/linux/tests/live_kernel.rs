//! [`linux::LiveKernel`] in fresh network namespaces, checked with iproute2.

use std::time::Duration;

use futures::StreamExt;
use kernel::{
    Address, IfName, IpFamily, Kernel, KernelError, KernelEvent, NextHop, Op, PROTOCOL_OURS, PolicyRule, Route,
    RouteKey, RouteTarget, Sysctl, TABLE_MAIN,
};
use linux::LiveKernel;
use testkit::netns::{in_netns, tool, try_tool};

const OURS: u8 = PROTOCOL_OURS;

#[test]
fn a_thousand_routes_are_written_and_read_back() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        let routes: Vec<Route> = (0..1000)
            .map(|i| via(&format!("10.{}.{}.0/26", i / 250, i % 250), "192.0.2.9", "a0", true))
            .collect();
        let ops: Vec<Op> = routes.iter().cloned().map(Op::PutRoute).collect();
        for _ in 0..2 {
            assert!(
                kernel.apply(&ops).await.iter().all(Result::is_ok),
                "putting twice is fine"
            );
        }
        let seen = kernel.observe(&IfName::from("tunl0")).await.expect("observes");
        for route in &routes {
            assert_eq!(seen.routes.get(&route.key), Some(route));
        }
        assert_eq!(tool("ip route show proto 80").lines().count(), 1000);
        let removals: Vec<Op> = routes
            .iter()
            .map(|route| Op::RemoveRoute(route.key.clone(), OURS))
            .collect();
        for _ in 0..2 {
            assert!(
                kernel.apply(&removals).await.iter().all(Result::is_ok),
                "removing twice is fine"
            );
        }
        assert_eq!(tool("ip route show proto 80"), "");
    });
}

#[test]
fn a_foreign_route_is_refused_and_untouched() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        for family in IpFamily::BOTH {
            let (flag, net) = both(family, ("-4", "10.9.0.0/24"), ("-6", "2001:db8:9::/64"));
            tool(&format!("ip {flag} route add {net} dev b0 proto 99"));
            let before = tool(&format!("ip {flag} route show {net}"));
            let ours = Route {
                target: RouteTarget::Link { device: "a0".into() },
                ..blackhole(net)
            };
            // IPv6 writes a metric where none is given: the same key either way.
            let results = kernel
                .apply(&[Op::PutRoute(ours.clone()), Op::RemoveRoute(ours.key.clone(), OURS)])
                .await;
            assert!(
                matches!(&results[0], Err(KernelError::Foreign { what }) if what.contains(net)),
                "{results:?}"
            );
            assert_eq!(results[1], Ok(()));
            assert_eq!(tool(&format!("ip {flag} route show {net}")), before);
            // Once it is gone the key is free, however it went.
            tool("ip link set b0 down");
            tool("ip link set b0 up");
            let (_, left) = try_tool(&format!("ip {flag} route flush {net}"));
            assert_eq!(kernel.apply(&[Op::PutRoute(ours)]).await, [Ok(())], "{left}");
            tool(&format!("ip {flag} route show {net} proto 80 dev a0"));
        }
    });
}

#[test]
fn a_route_of_ours_is_replaced_in_place_whatever_it_was() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        for family in IpFamily::BOTH {
            let net = both(family, "10.8.0.0/24", "2001:db8:8::/64");
            let (one, two) = both(
                family,
                ("192.0.2.2", "198.51.100.2"),
                ("2001:db8:a::2", "2001:db8:b::2"),
            );
            let (a, b) = (hop(one, "a0", false), hop(two, "b0", false));
            let targets = [
                RouteTarget::Blackhole,
                RouteTarget::Link { device: "a0".into() },
                RouteTarget::Via(vec![a.clone()]),
                RouteTarget::Via(vec![a.clone(), b.clone()]),
                RouteTarget::Via(vec![b.clone()]),
                RouteTarget::Link { device: "b0".into() },
                RouteTarget::Unreachable,
                RouteTarget::Via(vec![a, b]),
                RouteTarget::Prohibit,
            ];
            for target in targets {
                let route = Route {
                    target,
                    ..blackhole(net)
                };
                assert_eq!(
                    kernel.apply(&[Op::PutRoute(route.clone())]).await,
                    [Ok(())],
                    "{route:?}"
                );
                let seen = kernel.observe(&"tunl0".into()).await.expect("observes");
                assert_eq!(seen.routes.get(&route.key), Some(&route));
            }
        }
    });
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        let results = kernel
            .apply(&[Op::PutRoute(via("10.7.0.0/24", "203.0.113.1", "a0", false))])
            .await;
        let Err(KernelError::Refused { reason, errno, .. }) = &results[0] else {
            panic!("{results:?}")
        };
        assert_eq!(
            (reason.as_str(), *errno),
            ("Nexthop has invalid gateway", libc_enetunreach())
        );
    });
}

#[test]
fn changes_by_others_arrive_as_events() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        let mut events = kernel.events().expect("subscribes");
        let route = via("10.6.0.0/26", "192.0.2.9", "a0", true);
        assert_eq!(kernel.apply(&[Op::PutRoute(route.clone())]).await, [Ok(())]);
        wait(&mut events, |event| *event == KernelEvent::Route(route.clone())).await;
        tool("ip route del 10.6.0.0/26");
        wait(&mut events, |event| *event == KernelEvent::RouteGone(route.clone())).await;
        tool("ip addr add 10.5.0.1/32 dev b0");
        let address = Address {
            device: "b0".into(),
            net: "10.5.0.1/32".parse().expect("a prefix"),
        };
        wait(&mut events, |event| {
            *event == KernelEvent::Address(address.clone(), true)
        })
        .await;
        tool("ip rule add fwmark 0x10/0xf0 lookup 100 pref 50 protocol 80");
        let rule = PolicyRule {
            family: IpFamily::V4,
            priority: 50,
            mark: Some((0x10, 0xf0)),
            invert: false,
            table: 100,
            protocol: OURS,
        };
        wait(&mut events, |event| *event == KernelEvent::Rule(rule.clone(), true)).await;
        assert_eq!(
            kernel
                .apply(&[Op::PutRule(rule.clone()), Op::RemoveRule(rule.clone())])
                .await,
            [Ok(()), Ok(())]
        );
        wait(&mut events, |event| *event == KernelEvent::Rule(rule.clone(), false)).await;
        tool("ip neigh add 192.0.2.77 dev a0 lladdr ee:ee:ee:ee:ee:ee");
        wait(
            &mut events,
            |event| matches!(event, KernelEvent::Neighbor(n, true) if n.address.to_string() == "192.0.2.77"),
        )
        .await;
        tool("ip neigh del 192.0.2.77 dev a0");
        wait(
            &mut events,
            |event| matches!(event, KernelEvent::Neighbor(n, false) if n.mac.0 == [0xee; 6]),
        )
        .await;
        tool("ip link set b0 down");
        tool("ip link set b0 name c0");
        wait(&mut events, |event| *event == KernelEvent::LinkGone("b0".into())).await;
        wait(
            &mut events,
            |event| matches!(event, KernelEvent::Link(link) if link.name.0 == "c0"),
        )
        .await;
        tool("ip link del c0");
        wait(&mut events, |event| *event == KernelEvent::LinkGone("c0".into())).await;
    });
}

#[test]
fn sysctls_reach_the_namespace_and_name_what_is_missing() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        let put = |path: &str| {
            Op::PutSysctl(Sysctl {
                path: path.into(),
                value: "1".into(),
            })
        };
        let results = kernel
            .apply(&[
                put("ipv4/conf/a0/proxy_arp"),
                put("ipv4/conf/nope/proxy_arp"),
                put("ipv4/conf/a0/nope"),
                put("../kernel/nope"),
            ])
            .await;
        assert_eq!(results[0], Ok(()));
        assert_eq!(results[1], Err(KernelError::NoDevice("nope".into())));
        assert!(matches!(results[2], Err(KernelError::Unsupported(_))));
        assert!(matches!(results[3], Err(KernelError::Refused { .. })));
        assert_eq!(linux::sysctl::read("ipv4/conf/a0/proxy_arp"), Ok(Some("1".into())));
    });
}

/// Prints the figures; the limit only catches what would be felt.
#[test]
fn twenty_thousand_routes_take_a_fraction_of_a_second() {
    in_netns(|| async {
        devices();
        let mut kernel = LiveKernel::open().expect("opens");
        let put = |gateway: &str| -> Vec<Op> {
            let net = |i: u32| format!("10.{}.{}.{}/26", i >> 10, (i >> 2) & 255, (i & 3) << 6);
            (0..20_000)
                .map(|i| Op::PutRoute(via(&net(i), gateway, "a0", true)))
                .collect()
        };
        let (add, replace) = (put("192.0.2.9"), put("192.0.2.8"));
        let remove: Vec<Op> = add
            .iter()
            .filter_map(|op| match op {
                Op::PutRoute(route) => Some(Op::RemoveRoute(route.key.clone(), OURS)),
                _ => None,
            })
            .collect();
        for (what, ops) in [("add", &add), ("replace", &replace), ("remove", &remove)] {
            let start = std::time::Instant::now();
            assert!(kernel.apply(ops).await.iter().all(Result::is_ok));
            let took = start.elapsed();
            println!("{what} 20,000 routes: {took:?}");
            if what == "replace" {
                let start = std::time::Instant::now();
                let seen = kernel.observe(&"tunl0".into()).await.expect("observes");
                println!("read back {} routes: {:?}", seen.routes.len(), start.elapsed());
                let start = std::time::Instant::now();
                assert_eq!(kernel.apply(&add[..1]).await, [Ok(())]);
                println!("replace one of 20,000: {:?}", start.elapsed());
            }
            assert!(took < Duration::from_secs(10));
        }
    });
}

/// Two devices that are up and have addresses.
fn devices() {
    for (device, peer, v4, v6) in [
        ("a0", "a1", "192.0.2.1/24", "2001:db8:a::1/64"),
        ("b0", "b1", "198.51.100.1/24", "2001:db8:b::1/64"),
    ] {
        tool(&format!("ip link add {device} type veth peer name {peer}"));
        tool(&format!("ip link set {device} up"));
        tool(&format!("ip link set {peer} up"));
        tool(&format!("ip addr add {v4} dev {device}"));
        tool(&format!("ip addr add {v6} dev {device} nodad"));
    }
}

async fn wait(events: &mut (impl futures::Stream<Item = KernelEvent> + Unpin), wanted: impl Fn(&KernelEvent) -> bool) {
    let mut others = Vec::new();
    let found = async {
        while let Some(event) = events.next().await {
            if wanted(&event) {
                return;
            }
            others.push(event);
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), found).await.is_err() {
        panic!("only these came: {others:#?}");
    }
}

fn blackhole(net: &str) -> Route {
    let destination: ipnet::IpNet = net.parse().expect("a prefix");
    let metric = if destination.addr().is_ipv6() { 1024 } else { 0 };
    let key = RouteKey {
        table: TABLE_MAIN,
        destination,
        metric,
    };
    Route {
        key,
        target: RouteTarget::Blackhole,
        protocol: OURS,
        source: None,
    }
}

fn via(net: &str, gateway: &str, device: &str, onlink: bool) -> Route {
    Route {
        target: RouteTarget::Via(vec![hop(gateway, device, onlink)]),
        ..blackhole(net)
    }
}

fn hop(gateway: &str, device: &str, onlink: bool) -> NextHop {
    NextHop {
        gateway: gateway.parse().expect("an address"),
        device: device.into(),
        onlink,
    }
}

fn both<T>(family: IpFamily, v4: T, v6: T) -> T {
    match family {
        IpFamily::V4 => v4,
        IpFamily::V6 => v6,
    }
}

const fn libc_enetunreach() -> i32 {
    101
}
