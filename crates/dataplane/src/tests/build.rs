//! Values from short texts.

use std::net::IpAddr;

use api::EncapMode;
use bgp::{FibChange, FibRoute};
use calc::{NodeChange, PeerNode, PoolState, ThisNode};
use ipnet::IpNet;
use kernel::{IfName, PROTOCOL_OURS, Route, RouteKey, RouteTarget, TABLE_MAIN};

use crate::LocalEndpoint;

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Pool range and modes.
pub fn pool(range: &str, ipip: EncapMode) -> NodeChange {
    NodeChange::Pool(
        net(range),
        Some(PoolState {
            ipip,
            vxlan: EncapMode::Never,
            nat_outgoing: false,
            exported: true,
        }),
    )
}

pub fn node(name: &str, address: &str) -> NodeChange {
    NodeChange::Peer(
        name.into(),
        Some(PeerNode {
            ipv4: Some(address.parse().unwrap()),
            ipv6: None,
        }),
    )
}

/// This node: 10.0.0.1/24 and fd00::1/64 on `eth0`, as the fake kernel has it.
pub fn this_node() -> NodeChange {
    NodeChange::ThisNode(Some(ThisNode {
        ipv4: Some("10.0.0.1/24".parse().unwrap()),
        ipv6: Some("fd00::1/64".parse().unwrap()),
        ipip_tunnel: Some("192.168.1.1".parse().unwrap()),
    }))
}

pub fn block(range: &str) -> NodeChange {
    NodeChange::Block(net(range), true)
}

/// `prefix`, next hops with spaces between; none withdraws.
pub fn fib(prefix: &str, hops: &str) -> FibChange {
    let next_hops: Vec<IpAddr> = hops.split_whitespace().map(ip).collect();
    let route = (!next_hops.is_empty()).then_some(FibRoute {
        next_hops,
        metric: 1024,
    });
    FibChange {
        prefix: net(prefix),
        route,
    }
}

pub fn endpoint(device: &str, addresses: &[&str]) -> Option<LocalEndpoint> {
    Some(LocalEndpoint {
        fresh: false,
        device: IfName::from(device),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
    })
}

/// Somebody else's route.
pub fn foreign(destination: &str, device: &str) -> Route {
    let key = RouteKey {
        table: TABLE_MAIN,
        destination: net(destination),
        metric: 1024,
    };
    Route {
        key,
        target: RouteTarget::Link {
            device: IfName::from(device),
        },
        protocol: 3,
        source: None,
    }
}

/// Our route, as `ip route` would print it.
pub fn shown(route: &Route) -> String {
    let target = match &route.target {
        RouteTarget::Link { device } => format!("dev {device}"),
        RouteTarget::Via(hops) => {
            let hop = |hop: &kernel::NextHop| {
                format!(
                    "via {} dev {}{}",
                    hop.gateway,
                    hop.device,
                    if hop.onlink { " onlink" } else { "" }
                )
            };
            hops.iter().map(hop).collect::<Vec<_>>().join(" ")
        }
        RouteTarget::Blackhole => "blackhole".into(),
        other => format!("{other:?}"),
    };
    let others = if route.protocol == PROTOCOL_OURS {
        ""
    } else {
        " (foreign)"
    };
    format!("{} {target}{others}", route.key.destination)
}
