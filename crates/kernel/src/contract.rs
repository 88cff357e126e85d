//! What every [`Kernel`] must do, as an examination that the fake and the live one take alike.
//!
//! A clause is a function over a [`Bench`]; [`contract_tests!`](crate::contract_tests) makes a test of each. Clauses look only
//! at the objects they made, since a live kernel has more (link-local addresses, multicast routes).

use std::net::IpAddr;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use ipnet::IpNet;

use crate::object::*;
use crate::port::*;

mod routes;
mod shapers;

pub use routes::*;
pub use shapers::*;

/// A kernel to examine, and the world around the agent. A bench begins without devices of the clauses' names.
pub trait Bench: Send {
    /// The kernel.
    fn kernel(&mut self) -> &mut dyn Kernel;
    /// Makes a device, down, that has a carrier when it is up.
    fn add_device(&mut self, name: &IfName);
    /// Deletes a device behind the agent's back.
    fn remove_device(&mut self, name: &IfName);
    /// Adds a route behind the agent's back.
    fn add_route(&mut self, route: &Route);
    /// Deletes a route behind the agent's back.
    fn delete_route(&mut self, route: &Route);
}

/// Makes a test of every clause. `$run` is a function `fn(fn(&mut dyn Bench) -> BoxFuture<'_, ()>)` that runs a clause on a
/// fresh bench.
#[macro_export]
macro_rules! contract_tests {
    ($run:path) => {
        $crate::contract_tests!(@each $run:
            putting_and_removing_twice_is_fine
            a_missing_device_is_named
            a_route_over_a_device_that_is_down_is_refused
            a_gateway_is_reachable_or_declared_onlink
            a_preferred_source_is_an_own_address
            a_foreign_route_is_refused_and_stays
            a_route_is_removed_only_at_its_protocol
            a_route_of_ours_is_replaced_whatever_it_was
            operations_happen_in_order_and_fail_alone
            a_metric_that_is_not_given_is_the_kernels
            tables_of_any_number_are_apart
            what_is_on_a_device_goes_with_it
            routes_go_when_their_device_goes_down
            a_network_address_brings_its_route
            a_device_is_set_up_with_its_mtu
            sysctls_belong_to_devices
            forwarding_is_seen_and_announced
            changes_are_announced
            changes_by_others_are_announced
            shapers_are_seen_as_they_were_put
            a_shaper_goes_with_its_device_and_its_detour_stays
        );
    };
    (@each $run:path: $($clause:ident)*) => {
        $(#[test] fn $clause() { $run($crate::contract::$clause); })*
    };
}

/// `Put` of what is there and `Remove` of what is gone succeed.
pub fn putting_and_removing_twice_is_fine(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let address = Address {
                device: "a0".into(),
                net: example_address(family),
            };
            let route = ours(net.dst, RouteTarget::Link { device: "a0".into() });
            let rule = rule(family);
            let neighbor = Neighbor {
                device: "a0".into(),
                address: net.on_a,
                mac: Mac([2, 0, 0, 0, 0, 9]),
            };
            let puts = [
                Op::PutAddress(address.clone()),
                Op::PutRoute(route.clone()),
                Op::PutRule(rule.clone()),
                Op::PutNeighbor(neighbor.clone()),
            ];
            for _ in 0..2 {
                all_fine(bench, &puts).await;
                let seen = observe(bench).await;
                assert!(seen.addresses.contains(&address), "{seen:#?}");
                assert_eq!(seen.routes.get(&route.key), Some(&route));
                assert!(seen.rules.contains(&rule), "{:#?}", seen.rules);
                assert!(seen.neighbors.contains(&neighbor), "{:#?}", seen.neighbors);
            }
            let removals = [
                Op::RemoveNeighbor("a0".into(), net.on_a),
                Op::RemoveRule(rule.clone()),
                Op::RemoveRoute(route.key.clone(), PROTOCOL_OURS),
                Op::RemoveAddress(address.clone()),
            ];
            for _ in 0..2 {
                all_fine(bench, &removals).await;
                let seen = observe(bench).await;
                assert!(!seen.addresses.contains(&address) && !seen.routes.contains_key(&route.key));
                assert!(!seen.rules.contains(&rule) && !seen.neighbors.contains(&neighbor));
            }
        }
    })
}

/// What needs a device says which is missing; what removes from one that is gone succeeds.
pub fn a_missing_device_is_named(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        for device in ["nope", "a-name-longer-than-linux-allows"].map(IfName::from) {
            let missing = [Err(KernelError::NoDevice(device.clone()))];
            for family in IpFamily::BOTH {
                let net = example(family);
                let address = Address {
                    device: device.clone(),
                    net: example_address(family),
                };
                let neighbor = Neighbor {
                    device: device.clone(),
                    address: net.on_a,
                    mac: Mac([2; 6]),
                };
                let hop = NextHop {
                    gateway: net.on_a,
                    device: device.clone(),
                    onlink: true,
                };
                for op in [
                    Op::SetLink {
                        device: device.clone(),
                        up: true,
                        mtu: None,
                    },
                    Op::PutAddress(address.clone()),
                    Op::PutRoute(ours(net.dst, RouteTarget::Link { device: device.clone() })),
                    Op::PutRoute(ours(net.dst, RouteTarget::Via(vec![hop]))),
                    Op::PutNeighbor(neighbor),
                ] {
                    assert_eq!(apply(bench, std::slice::from_ref(&op)).await, missing, "{op:?}");
                }
                let gone = [
                    Op::RemoveAddress(address),
                    Op::RemoveNeighbor(device.clone(), net.on_a),
                    Op::RemoveRoute(ours(net.dst, RouteTarget::Blackhole).key, PROTOCOL_OURS),
                    Op::RemoveLink(device.clone()),
                ];
                all_fine(bench, &gone).await;
            }
        }
    })
}

/// One result each, in order; a failure does not stop the others; later operations see earlier ones.
pub fn operations_happen_in_order_and_fail_alone(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let link = ours(net.dst, RouteTarget::Link { device: "a0".into() });
            let over = ours(net.second, RouteTarget::Via(vec![hop(net.in_dst, "a0", false)]));
            let nowhere = ours(net.third, RouteTarget::Link { device: "nope".into() });
            let results = apply(
                bench,
                &[
                    Op::PutRoute(over.clone()),
                    Op::PutRoute(link.clone()),
                    Op::PutRoute(nowhere),
                    Op::PutRoute(over.clone()),
                    Op::RemoveRoute(link.key.clone(), PROTOCOL_OURS),
                    Op::PutRoute(Route {
                        target: RouteTarget::Blackhole,
                        ..link.clone()
                    }),
                    Op::PutRoute(link.clone()),
                ],
            )
            .await;
            assert_eq!(
                results.iter().map(Result::is_ok).collect::<Vec<_>>(),
                [false, true, false, true, true, true, true]
            );
            let seen = observe(bench).await;
            assert_eq!(seen.routes.get(&link.key), Some(&link));
            assert_eq!(seen.routes.get(&over.key), Some(&over));
            // What is replaced is replaced in its turn: while its gateway can still be reached.
            let black = Route {
                target: RouteTarget::Blackhole,
                ..over.clone()
            };
            all_fine(bench, &[Op::PutRoute(black)]).await;
            let removal = Op::RemoveRoute(link.key.clone(), PROTOCOL_OURS);
            all_fine(bench, &[Op::PutRoute(over.clone()), removal]).await;
            assert_eq!(observe(bench).await.routes.get(&over.key), Some(&over));
        }
    })
}

/// Addresses, routes and neighbours; the announcement of the device's end stands for all of them.
pub fn what_is_on_a_device_goes_with_it(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let neighbor = Neighbor {
                device: "a0".into(),
                address: net.on_a,
                mac: Mac([2; 6]),
            };
            let route = ours(net.dst, RouteTarget::Via(vec![hop(net.on_a, "a0", true)]));
            all_fine(bench, &[Op::PutNeighbor(neighbor), Op::PutRoute(route)]).await;
        }
        let mut events = events(bench);
        all_fine(bench, &[Op::RemoveLink("a0".into())]).await;
        wait(&mut events, &KernelEvent::LinkGone("a0".into())).await;
        let seen = observe(bench).await;
        let a0 = IfName::from("a0");
        assert!(!seen.links.contains_key(&a0));
        assert!(seen.addresses.iter().all(|address| address.device != a0));
        assert!(seen.neighbors.iter().all(|neighbor| neighbor.device != a0));
        assert!(
            seen.routes.values().all(|route| !uses(route, &a0)),
            "{:#?}",
            seen.routes
        );
        bench.remove_device(&"b0".into());
        wait(&mut events, &KernelEvent::LinkGone("b0".into())).await;
    })
}

/// Both at once, and either alone.
pub fn a_device_is_set_up_with_its_mtu(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        bench.add_device(&"a0".into());
        for (up, mtu, expected) in [(true, Some(1400), 1400), (false, None, 1400), (true, Some(1300), 1300)] {
            all_fine(
                bench,
                &[Op::SetLink {
                    device: "a0".into(),
                    up,
                    mtu,
                }],
            )
            .await;
            let seen = observe(bench).await;
            let link = &seen.links[&IfName::from("a0")];
            assert_eq!((link.up, link.carrier, link.mtu), (up, up, expected));
        }
        let op = Op::SetLink {
            device: "a0".into(),
            up: true,
            mtu: Some(7),
        };
        assert_eq!(refusal(bench, op).await, 22);
    })
}

/// A sysctl of a device that is missing names it; paths do not leave their directory.
pub fn sysctls_belong_to_devices(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        bench.add_device(&"a0".into());
        let put = |path: &str| {
            Op::PutSysctl(Sysctl {
                path: path.into(),
                value: "1".into(),
            })
        };
        all_fine(bench, &[put("ipv4/conf/a0/proxy_arp"), put("ipv6/conf/all/forwarding")]).await;
        let missing = Err(KernelError::NoDevice("nope".into()));
        assert_eq!(apply(bench, &[put("ipv4/neigh/nope/proxy_delay")]).await, [missing]);
        assert_eq!(refusal(bench, put("../kernel/panic")).await, 22);
    })
}

/// The switch that decides whether a node is a router.
pub fn forwarding_is_seen_and_announced(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        let mut events = events(bench);
        for family in IpFamily::BOTH {
            let put = |on| [Op::PutSysctl(Sysctl::forwarding(family, on))];
            // A namespace may begin either way.
            all_fine(bench, &put(false)).await;
            for on in [true, false, true] {
                all_fine(bench, &put(on)).await;
                wait(&mut events, &KernelEvent::Forwarding(family, on)).await;
                assert_eq!(observe(bench).await.forwarding.contains(&family), on, "{family:?}");
            }
        }
    })
}

/// Every kind of object, when it comes and when it goes, also by our own hand.
pub fn changes_are_announced(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        let mut events = events(bench);
        for family in IpFamily::BOTH {
            let net = example(family);
            let address = Address {
                device: "a0".into(),
                net: example_address(family),
            };
            all_fine(bench, &[Op::PutAddress(address.clone())]).await;
            wait(&mut events, &KernelEvent::Address(address.clone(), true)).await;
            all_fine(bench, &[Op::RemoveAddress(address.clone())]).await;
            wait(&mut events, &KernelEvent::Address(address, false)).await;

            let route = ours(
                net.dst,
                RouteTarget::Via(vec![hop(net.on_a, "a0", true), hop(net.on_b, "b0", true)]),
            );
            let replaced = Route {
                target: RouteTarget::Blackhole,
                ..route.clone()
            };
            all_fine(bench, &[Op::PutRoute(route.clone()), Op::PutRoute(replaced.clone())]).await;
            wait(&mut events, &KernelEvent::Route(route)).await;
            wait(&mut events, &KernelEvent::Route(replaced.clone())).await;
            all_fine(bench, &[Op::RemoveRoute(replaced.key.clone(), PROTOCOL_OURS)]).await;
            wait(&mut events, &KernelEvent::RouteGone(replaced)).await;

            let rule = rule(family);
            all_fine(bench, &[Op::PutRule(rule.clone()), Op::RemoveRule(rule.clone())]).await;
            wait(&mut events, &KernelEvent::Rule(rule.clone(), true)).await;
            wait(&mut events, &KernelEvent::Rule(rule, false)).await;

            let neighbor = Neighbor {
                device: "a0".into(),
                address: net.on_a,
                mac: Mac([2; 6]),
            };
            let moved = Neighbor {
                mac: Mac([4; 6]),
                ..neighbor.clone()
            };
            all_fine(
                bench,
                &[Op::PutNeighbor(neighbor.clone()), Op::PutNeighbor(moved.clone())],
            )
            .await;
            wait(&mut events, &KernelEvent::Neighbor(neighbor, true)).await;
            wait(&mut events, &KernelEvent::Neighbor(moved.clone(), true)).await;
            all_fine(bench, &[Op::RemoveNeighbor("a0".into(), net.on_a)]).await;
            wait(&mut events, &KernelEvent::Neighbor(moved, false)).await;
        }
        all_fine(
            bench,
            &[Op::SetLink {
                device: "a0".into(),
                up: false,
                mtu: None,
            }],
        )
        .await;
        wait_for(
            &mut events,
            |event| matches!(event, KernelEvent::Link(link) if link.name.0 == "a0" && !link.up),
        )
        .await;
    })
}

/// What others do to devices and routes.
pub fn changes_by_others_are_announced(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        let mut events = events(bench);
        for family in IpFamily::BOTH {
            let route = ours(example(family).dst, RouteTarget::Link { device: "a0".into() });
            all_fine(bench, &[Op::PutRoute(route.clone())]).await;
            bench.delete_route(&route);
            wait(&mut events, &KernelEvent::RouteGone(route.clone())).await;
            assert!(!observe(bench).await.routes.contains_key(&route.key));
            let foreign = Route { protocol: 99, ..route };
            bench.add_route(&foreign);
            wait(&mut events, &KernelEvent::Route(foreign)).await;
        }
        bench.add_device(&"c0".into());
        wait_for(
            &mut events,
            |event| matches!(event, KernelEvent::Link(link) if link.name.0 == "c0"),
        )
        .await;
        bench.remove_device(&"c0".into());
        wait(&mut events, &KernelEvent::LinkGone("c0".into())).await;
    })
}

// === helpers of the clauses ===

/// Example addresses of one family.
#[derive(Clone, Copy)]
struct Example {
    /// Address with network of `a0`.
    own_a: IpNet,
    /// The same of `b0`.
    own_b: IpNet,
    /// A neighbour on the link of `a0`.
    on_a: IpAddr,
    /// A neighbour on the link of `b0`.
    on_b: IpAddr,
    /// On no link.
    nowhere: IpAddr,
    /// Destinations.
    dst: IpNet,
    second: IpNet,
    third: IpNet,
    /// Inside of `dst`.
    in_dst: IpAddr,
}

fn example(family: IpFamily) -> Example {
    let texts = match family {
        IpFamily::V4 => [
            [
                "192.0.2.1/24",
                "198.51.100.1/24",
                "10.0.0.0/26",
                "10.0.1.0/26",
                "10.0.2.0/26",
            ],
            ["192.0.2.9", "198.51.100.9", "203.0.113.9", "10.0.0.7", ""],
        ],
        IpFamily::V6 => [
            [
                "2001:db8:a::1/64",
                "2001:db8:b::1/64",
                "2001:db8:1::/122",
                "2001:db8:2::/122",
                "2001:db8:3::/122",
            ],
            ["2001:db8:a::9", "2001:db8:b::9", "2001:db8:c::9", "2001:db8:1::7", ""],
        ],
    };
    let net = |at: usize| texts[0][at].parse().expect("a prefix of the table above");
    let ip = |at: usize| texts[1][at].parse().expect("an address of the table above");
    Example {
        own_a: net(0),
        own_b: net(1),
        dst: net(2),
        second: net(3),
        third: net(4),
        on_a: ip(0),
        on_b: ip(1),
        nowhere: ip(2),
        in_dst: ip(3),
    }
}

/// A host address, as pods and tunnels have it.
fn example_address(family: IpFamily) -> IpNet {
    IpNet::from(example(family).in_dst)
}

fn rule(family: IpFamily) -> PolicyRule {
    PolicyRule {
        family,
        priority: 90,
        mark: Some((0x100, 0x300)),
        invert: true,
        table: 70_000,
        protocol: PROTOCOL_OURS,
    }
}

/// Devices `a0` and `b0`, up, with an address of each family.
async fn prepare(bench: &mut dyn Bench) {
    for device in ["a0", "b0"].map(IfName::from) {
        bench.add_device(&device);
        let mut ops = vec![Op::SetLink {
            device: device.clone(),
            up: true,
            mtu: None,
        }];
        for family in IpFamily::BOTH {
            let net = if device.0 == "a0" {
                example(family).own_a
            } else {
                example(family).own_b
            };
            ops.push(Op::PutAddress(Address {
                device: device.clone(),
                net,
            }));
        }
        all_fine(bench, &ops).await;
    }
}

fn ours(destination: IpNet, target: RouteTarget) -> Route {
    let metric = if destination.addr().is_ipv6() { 1024 } else { 0 };
    let key = RouteKey {
        table: TABLE_MAIN,
        destination,
        metric,
    };
    Route {
        key,
        target,
        protocol: PROTOCOL_OURS,
        source: None,
    }
}

fn hop(gateway: IpAddr, device: &str, onlink: bool) -> NextHop {
    NextHop {
        gateway,
        device: device.into(),
        onlink,
    }
}

fn uses(route: &Route, name: &IfName) -> bool {
    match &route.target {
        RouteTarget::Link { device } => device == name,
        RouteTarget::Via(hops) => hops.iter().any(|hop| hop.device == *name),
        _ => false,
    }
}

async fn apply(bench: &mut dyn Bench, ops: &[Op]) -> Vec<Result<(), KernelError>> {
    let results = bench.kernel().apply(ops).await;
    assert_eq!(results.len(), ops.len(), "one result for each operation");
    results
}

async fn all_fine(bench: &mut dyn Bench, ops: &[Op]) {
    for (op, result) in ops.iter().zip(apply(bench, ops).await) {
        assert_eq!(result, Ok(()), "{op:?}");
    }
}

/// The error number of a refusal; a refusal comes with words.
async fn refusal(bench: &mut dyn Bench, op: Op) -> i32 {
    match apply(bench, std::slice::from_ref(&op)).await.pop() {
        Some(Err(KernelError::Refused { errno, reason, .. })) if !reason.is_empty() => errno,
        other => panic!("{op:?} should be refused: {other:?}"),
    }
}

async fn observe(bench: &mut dyn Bench) -> Observation {
    bench.kernel().observe(&"tunl0".into()).await.expect("observing works")
}

fn events(bench: &mut dyn Bench) -> BoxStream<'static, KernelEvent> {
    bench.kernel().events().expect("subscribing works")
}

async fn wait(events: &mut BoxStream<'static, KernelEvent>, wanted: &KernelEvent) {
    wait_for(events, |event| event == wanted).await;
}

/// Skips other events. A bench bounds the time of a clause.
async fn wait_for(events: &mut BoxStream<'static, KernelEvent>, wanted: impl Fn(&KernelEvent) -> bool) {
    while let Some(event) = events.next().await {
        if wanted(&event) {
            return;
        }
    }
    panic!("the stream ended before the event came");
}
