//! What the kernel should have, worked out slowly from everything at once.

use std::collections::BTreeMap;

use api::EncapMode;
use bgp::FibRoute;
use calc::NodeState;
use ipnet::IpNet;
use kernel::{IfName, NextHop, PROTOCOL_OURS, Route, RouteKey, RouteTarget, TABLE_MAIN};

use super::fake::FakeKernel;
use crate::LocalEndpoint;

/// The inputs of a dataplane. Endpoints in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    pub state: NodeState,
    pub endpoints: Vec<(String, LocalEndpoint)>,
    pub fib: BTreeMap<IpNet, FibRoute>,
}

/// All routes that are wanted.
pub fn wanted(inputs: &Inputs, kernel: &FakeKernel, ipip: bool) -> BTreeMap<RouteKey, Route> {
    let state = &inputs.state;
    let mut wanted = BTreeMap::new();
    let mut add = |destination: IpNet, metric: Option<u32>, target: RouteTarget| {
        let usual = if destination.addr().is_ipv4() {
            state.settings.ipv4_metric
        } else {
            state.settings.ipv6_metric
        };
        let key = RouteKey {
            table: TABLE_MAIN,
            destination,
            metric: metric.unwrap_or(usual),
        };
        let route = Route {
            key: key.clone(),
            target,
            protocol: PROTOCOL_OURS,
            source: None,
        };
        wanted.entry(key).or_insert(route);
    };
    for (_, endpoint) in &inputs.endpoints {
        for address in &endpoint.addresses {
            add(
                IpNet::from(*address),
                None,
                RouteTarget::Link {
                    device: endpoint.device.clone(),
                },
            );
        }
    }
    for block in state
        .blocks
        .iter()
        .filter(|block| block.prefix_len() < block.max_prefix_len())
    {
        add(*block, None, RouteTarget::Blackhole);
    }
    for (prefix, wish) in &inputs.fib {
        let whole = prefix.prefix_len() == prefix.max_prefix_len();
        let ours = |block: &IpNet| block == prefix || (block.contains(prefix) && !whole);
        if state.blocks.iter().any(ours) {
            continue;
        }
        let mut hops: Vec<NextHop> = wish
            .next_hops
            .iter()
            .filter_map(|hop| reach(inputs, kernel, ipip, *prefix, *hop))
            .collect();
        hops.sort();
        if !hops.is_empty() {
            add(*prefix, Some(wish.metric), RouteTarget::Via(hops));
        }
    }
    wanted
}

/// Whether `tunl0` is wanted, as far as can be known.
pub fn tunnel_in_use(inputs: &Inputs, ipip: bool) -> bool {
    let by_pool = inputs.state.pools.values().any(|pool| pool.ipip != EncapMode::Never);
    let no_v4 = inputs.state.this_node.as_ref().is_some_and(|this| this.ipv4.is_none());
    ipip && inputs.state.settings.ipip_enabled.unwrap_or(by_pool) && !no_v4
}

fn reach(
    inputs: &Inputs,
    kernel: &FakeKernel,
    ipip: bool,
    prefix: IpNet,
    gateway: std::net::IpAddr,
) -> Option<NextHop> {
    if kernel.addresses.iter().any(|own| own.net.addr() == gateway) || gateway.is_ipv4() != prefix.addr().is_ipv4() {
        return None;
    }
    let pool = inputs
        .state
        .pools
        .iter()
        .find(|(range, _)| range.contains(&prefix))
        .map(|(_, pool)| pool.ipip);
    let this = inputs.state.this_node.as_ref();
    let neighbour = this
        .and_then(|this| this.ipv4)
        .is_some_and(|net| IpNet::V4(net).contains(&gateway));
    let tunnelled = pool == Some(EncapMode::Always) || (pool == Some(EncapMode::CrossSubnet) && !neighbour);
    if tunnelled {
        let mut nodes = inputs.state.peers.values().filter_map(|peer| peer.ipv4);
        let known = nodes.any(|net| gateway == net.addr());
        return (known && tunnel_in_use(inputs, ipip)).then(|| NextHop {
            gateway,
            device: IfName::from("tunl0"),
            onlink: true,
        });
    }
    let up = |device: &IfName| kernel.links.get(device).is_some_and(|link| link.up);
    let usable = |device: &IfName| !device.0.starts_with("cali") && device.0 != "tunl0" && up(device);
    let mut nets = kernel.addresses.iter().filter(|address| usable(&address.device));
    let through = nets.find(|address| address.net.contains(&gateway))?;
    Some(NextHop {
        gateway,
        device: through.device.clone(),
        onlink: false,
    })
}
