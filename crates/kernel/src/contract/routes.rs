//! Clauses about routes.

use futures::future::BoxFuture;

use super::*;

/// `ENETDOWN`, and the route is not there.
pub fn a_route_over_a_device_that_is_down_is_refused(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        bench.add_device(&"a0".into());
        for family in IpFamily::BOTH {
            let net = example(family);
            for target in [
                RouteTarget::Link { device: "a0".into() },
                RouteTarget::Via(vec![hop(net.on_a, "a0", true)]),
            ] {
                let route = ours(net.dst, target);
                assert_eq!(refusal(bench, Op::PutRoute(route.clone())).await, 100, "{route:?}");
                assert!(!observe(bench).await.routes.contains_key(&route.key));
            }
        }
    })
}

/// A gateway outside of all link routes is refused, unless declared to be on the link.
pub fn a_gateway_is_reachable_or_declared_onlink(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for (family, errno) in [(IpFamily::V4, 101), (IpFamily::V6, 113)] {
            let net = example(family);
            let route = |gateway, onlink| ours(net.dst, RouteTarget::Via(vec![hop(gateway, "a0", onlink)]));
            assert_eq!(refusal(bench, Op::PutRoute(route(net.nowhere, false))).await, errno);
            assert_eq!(
                refusal(bench, Op::PutRoute(route(net.on_b, false))).await,
                errno,
                "through the wrong device"
            );
            for fine in [route(net.on_a, false), route(net.nowhere, true)] {
                all_fine(bench, &[Op::PutRoute(fine.clone())]).await;
                assert_eq!(observe(bench).await.routes.get(&fine.key), Some(&fine));
            }
        }
    })
}

/// A route that prefers a source that is no address of the node is refused.
pub fn a_preferred_source_is_an_own_address(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let target = RouteTarget::Via(vec![hop(net.on_a, "a0", false)]);
            let route = |source| Route {
                source: Some(source),
                ..ours(net.dst, target.clone())
            };
            assert_eq!(refusal(bench, Op::PutRoute(route(net.nowhere))).await, 22);
            let fine = route(net.own_a.addr());
            all_fine(bench, &[Op::PutRoute(fine.clone())]).await;
            assert_eq!(observe(bench).await.routes.get(&fine.key), Some(&fine));
        }
    })
}

/// A taken key is `Foreign` unless the holder's protocol is ours or the wanted one, and its holder keeps it.
pub fn a_foreign_route_is_refused_and_stays(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let wanted = ours(example(family).dst, RouteTarget::Link { device: "a0".into() });
            let foreign = Route {
                target: RouteTarget::Link { device: "b0".into() },
                protocol: 99,
                ..wanted.clone()
            };
            bench.add_route(&foreign);
            let results = apply(bench, &[Op::PutRoute(wanted.clone())]).await;
            assert!(
                matches!(results.as_slice(), [Err(KernelError::Foreign { .. })]),
                "{results:?}"
            );
            assert_eq!(observe(bench).await.routes.get(&foreign.key), Some(&foreign));
            // Somebody who owns that protocol may.
            let theirs = Route {
                protocol: 99,
                ..wanted.clone()
            };
            all_fine(bench, &[Op::PutRoute(theirs.clone())]).await;
            assert_eq!(observe(bench).await.routes.get(&theirs.key), Some(&theirs));
            bench.delete_route(&theirs);
            all_fine(bench, &[Op::PutRoute(wanted.clone())]).await;
            assert_eq!(observe(bench).await.routes.get(&wanted.key), Some(&wanted));
        }
    })
}

/// Removing at another protocol succeeds and does nothing.
pub fn a_route_is_removed_only_at_its_protocol(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        for family in IpFamily::BOTH {
            let route = Route {
                protocol: 99,
                ..ours(example(family).dst, RouteTarget::Blackhole)
            };
            bench.add_route(&route);
            all_fine(bench, &[Op::RemoveRoute(route.key.clone(), PROTOCOL_OURS)]).await;
            assert_eq!(observe(bench).await.routes.get(&route.key), Some(&route));
            all_fine(bench, &[Op::RemoveRoute(route.key.clone(), 99)]).await;
            assert!(!observe(bench).await.routes.contains_key(&route.key));
        }
    })
}

/// Any target follows any other under one key; several gateways come back sorted.
pub fn a_route_of_ours_is_replaced_whatever_it_was(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let (a, b) = (hop(net.on_a, "a0", false), hop(net.on_b, "b0", false));
            let targets = [
                RouteTarget::Blackhole,
                RouteTarget::Link { device: "a0".into() },
                RouteTarget::Via(vec![a.clone()]),
                RouteTarget::Via(vec![a.clone(), b.clone()]),
                RouteTarget::Unreachable,
                RouteTarget::Prohibit,
            ];
            for from in &targets {
                for to in &targets {
                    let (from, to) = (ours(net.dst, from.clone()), ours(net.dst, to.clone()));
                    all_fine(bench, &[Op::PutRoute(from)]).await;
                    all_fine(bench, &[Op::PutRoute(to.clone())]).await;
                    assert_eq!(observe(bench).await.routes.get(&to.key), Some(&to));
                }
            }
        }
    })
}

/// IPv4 takes 0 as it is; IPv6 makes it 1024; a key with 0 means the same route ever after.
pub fn a_metric_that_is_not_given_is_the_kernels(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        for (family, metric) in [(IpFamily::V4, 0), (IpFamily::V6, 1024)] {
            let mut route = ours(example(family).dst, RouteTarget::Blackhole);
            let reported = RouteKey {
                metric,
                ..route.key.clone()
            };
            route.key.metric = 0;
            let other = Route {
                key: RouteKey {
                    metric: 77,
                    ..route.key.clone()
                },
                ..route.clone()
            };
            all_fine(
                bench,
                &[
                    Op::PutRoute(route.clone()),
                    Op::PutRoute(route.clone()),
                    Op::PutRoute(other.clone()),
                ],
            )
            .await;
            let seen = observe(bench).await;
            assert!(seen.routes.contains_key(&reported) && seen.routes.contains_key(&other.key));
            all_fine(bench, &[Op::RemoveRoute(route.key, PROTOCOL_OURS)]).await;
            let seen = observe(bench).await;
            assert!(!seen.routes.contains_key(&reported) && seen.routes.contains_key(&other.key));
        }
    })
}

/// Numbers beyond a byte too.
pub fn tables_of_any_number_are_apart(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        for family in IpFamily::BOTH {
            let tables = [TABLE_MAIN, 100, 256, 70_000];
            let route = |table| {
                let route = ours(example(family).dst, RouteTarget::Blackhole);
                Route {
                    key: RouteKey {
                        table,
                        ..route.key.clone()
                    },
                    ..route
                }
            };
            let puts: Vec<Op> = tables.iter().map(|table| Op::PutRoute(route(*table))).collect();
            all_fine(bench, &puts).await;
            all_fine(bench, &[Op::RemoveRoute(route(100).key, PROTOCOL_OURS)]).await;
            let seen = observe(bench).await;
            let left: Vec<bool> = tables
                .iter()
                .map(|table| seen.routes.contains_key(&route(*table).key))
                .collect();
            assert_eq!(left, [true, false, true, true]);
        }
    })
}

/// IPv4 routes go without a word (only the device is announced); what does not use the device stays.
pub fn routes_go_when_their_device_goes_down(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for family in IpFamily::BOTH {
            let net = example(family);
            let over = ours(net.dst, RouteTarget::Via(vec![hop(net.on_a, "a0", true)]));
            let black = ours(net.second, RouteTarget::Blackhole);
            let beside = ours(net.third, RouteTarget::Link { device: "b0".into() });
            let puts = [over.clone(), black.clone(), beside.clone()].map(Op::PutRoute);
            all_fine(bench, &puts).await;
            all_fine(
                bench,
                &[Op::SetLink {
                    device: "a0".into(),
                    up: false,
                    mtu: None,
                }],
            )
            .await;
            let seen = observe(bench).await;
            assert!(!seen.routes.contains_key(&over.key));
            assert!(seen.routes.contains_key(&black.key) && seen.routes.contains_key(&beside.key));
            all_fine(
                bench,
                &[Op::SetLink {
                    device: "a0".into(),
                    up: true,
                    mtu: None,
                }],
            )
            .await;
            assert!(
                !observe(bench).await.routes.contains_key(&over.key),
                "and do not come back by themselves"
            );
        }
    })
}

/// The connected route, of protocol 2; it goes with the address.
pub fn a_network_address_brings_its_route(bench: &mut dyn Bench) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        prepare(bench).await;
        for (family, metric) in [(IpFamily::V4, 0), (IpFamily::V6, 256)] {
            let own = example(family).own_a;
            let key = RouteKey {
                table: TABLE_MAIN,
                destination: own.trunc(),
                metric,
            };
            let seen = observe(bench).await;
            let route = seen.routes.get(&key).expect("the connected route");
            assert_eq!(
                (route.protocol, &route.target),
                (2, &RouteTarget::Link { device: "a0".into() })
            );
            all_fine(
                bench,
                &[Op::RemoveAddress(Address {
                    device: "a0".into(),
                    net: own,
                })],
            )
            .await;
            assert!(!observe(bench).await.routes.contains_key(&key));
        }
    })
}
