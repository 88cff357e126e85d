//! From a prefix and its next hops to a route, or to the reason why there is none.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use bgp::FibRoute;
use calc::{NodeState, PoolState};
use ipnet::IpNet;
use kernel::{IfName, NextHop, PROTOCOL_OURS, Route, RouteKey, RouteTarget, TABLE_MAIN};

use crate::decide::{Encap, TunnelDecision, encap};
use crate::view::View;

/// Why a prefix that BGP knows has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// It is one of this node's blocks, or a part of one: nobody else announces that.
    OwnBlock(IpNet),
    /// BGP named no next hop.
    NoNextHop,
    /// The next hop is this host.
    NextHopIsUs(IpAddr),
    /// Prefix and next hop are of different families.
    OtherFamily(IpAddr),
    /// No device that is up has a subnet with the next hop in it.
    NotConnected(IpAddr),
    /// It should go through the tunnel, but the next hop is not an address of a node.
    NotANode(IpAddr),
    /// It should go through the tunnel, but there is none.
    NoTunnel,
    /// It should go through VXLAN, which this agent does not do yet.
    Vxlan,
}

/// What routes are resolved against.
pub(crate) struct Surroundings<'a> {
    pub state: &'a NodeState,
    pub view: &'a View,
    pub connected: &'a [(IpNet, IfName)],
    pub tunnel: &'a TunnelDecision,
    pub tunnel_device: &'a IfName,
    /// IPv4 addresses of other nodes.
    pub nodes: &'a BTreeMap<Ipv4Addr, usize>,
}

impl Surroundings<'_> {
    /// The route that BGP's wish becomes. Of several next hops those that can be reached count.
    pub fn route(&self, prefix: IpNet, wish: &FibRoute) -> Result<Route, Unresolved> {
        if let Some(block) = self.shadowing_block(prefix) {
            return Err(Unresolved::OwnBlock(block));
        }
        let pool = pool_of(&self.state.pools, prefix);
        let mut hops = Vec::new();
        let mut reason = Unresolved::NoNextHop;
        for gateway in &wish.next_hops {
            match self.hop(prefix, pool, *gateway) {
                Ok(hop) => hops.push(hop),
                Err(why) => reason = why,
            }
        }
        if hops.is_empty() {
            return Err(reason);
        }
        hops.sort();
        hops.dedup();
        let key = RouteKey {
            table: TABLE_MAIN,
            destination: prefix.trunc(),
            metric: wish.metric,
        };
        Ok(Route {
            key,
            target: RouteTarget::Via(hops),
            protocol: PROTOCOL_OURS,
            source: None,
        })
    }

    /// The local block that `prefix` equals or cuts a piece out of. A single address is not refused: that is an address of
    /// our block that another node borrowed, or a pod that moves.
    fn shadowing_block(&self, prefix: IpNet) -> Option<IpNet> {
        let host = prefix.prefix_len() == prefix.max_prefix_len();
        let shadows = |block: &&IpNet| **block == prefix || (!host && block.contains(&prefix));
        self.state.blocks.iter().find(shadows).copied()
    }

    fn hop(&self, prefix: IpNet, pool: Option<&PoolState>, gateway: IpAddr) -> Result<NextHop, Unresolved> {
        if self.view.is_own(gateway) {
            return Err(Unresolved::NextHopIsUs(gateway));
        }
        if gateway.is_ipv4() != prefix.addr().is_ipv4() {
            return Err(Unresolved::OtherFamily(gateway));
        }
        let this = self.state.this_node.as_ref();
        let subnet = match gateway {
            IpAddr::V4(_) => this.and_then(|this| this.ipv4).map(IpNet::V4),
            IpAddr::V6(_) => this.and_then(|this| this.ipv6).map(IpNet::V6),
        };
        match (encap(pool, gateway, subnet), gateway) {
            (Encap::None, _) => {
                let through = self.connected.iter().find(|(net, _)| net.contains(&gateway));
                let (_, device) = through.ok_or(Unresolved::NotConnected(gateway))?;
                Ok(NextHop {
                    gateway,
                    device: device.clone(),
                    onlink: false,
                })
            }
            (Encap::Ipip, IpAddr::V4(_)) if self.tunnel.is_off() => Err(Unresolved::NoTunnel),
            (Encap::Ipip, IpAddr::V4(node)) if self.nodes.contains_key(&node) => Ok(NextHop {
                gateway,
                device: self.tunnel_device.clone(),
                onlink: true,
            }),
            (Encap::Ipip, _) => Err(Unresolved::NotANode(gateway)),
            (Encap::Vxlan, _) => Err(Unresolved::Vxlan),
        }
    }
}

/// The pool that a prefix lies in.
fn pool_of(pools: &BTreeMap<IpNet, PoolState>, prefix: IpNet) -> Option<&PoolState> {
    let mut range = Some(prefix.trunc());
    while let Some(candidate) = range {
        if let Some(pool) = pools.get(&candidate) {
            return Some(pool);
        }
        range = candidate.supernet();
    }
    None
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnBlock(block) => write!(f, "lies in this node's own block {block}"),
            Self::NoNextHop => f.write_str("no next hop"),
            Self::NextHopIsUs(hop) => write!(f, "next hop {hop} is this host"),
            Self::OtherFamily(hop) => write!(f, "next hop {hop} is of the other family"),
            Self::NotConnected(hop) => write!(f, "next hop {hop} is on no connected subnet"),
            Self::NotANode(hop) => write!(
                f,
                "next hop {hop} is not a node's address, so the tunnel cannot reach it"
            ),
            Self::NoTunnel => f.write_str("needs the IP-in-IP tunnel, which is off"),
            Self::Vxlan => f.write_str("needs VXLAN, which is not available"),
        }
    }
}
