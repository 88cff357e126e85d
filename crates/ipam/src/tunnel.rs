//! Addresses of a node's own tunnel devices: one for each kind, held under a handle that everybody can derive.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::AllowedUse;
use jiff::Timestamp;

use crate::{AssignIp, AutoAssign, Family, Ipam, IpamError};

/// A kind of tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelKind {
    /// `tunl0`.
    Ipip,
    /// `vxlan.calico`.
    Vxlan,
    /// `vxlan-v6.calico`.
    VxlanV6,
    /// `wireguard.cali`.
    Wireguard,
    /// `wg-v6.cali`.
    WireguardV6,
}

impl TunnelKind {
    /// All of them.
    pub const ALL: [TunnelKind; 5] = [
        TunnelKind::Ipip,
        TunnelKind::Vxlan,
        TunnelKind::VxlanV6,
        TunnelKind::Wireguard,
        TunnelKind::WireguardV6,
    ];

    /// The handle of a node's address (upstream's names).
    pub fn handle(self, node: &str) -> String {
        let prefix = match self {
            TunnelKind::Ipip => "ipip-tunnel-addr",
            TunnelKind::Vxlan => "vxlan-tunnel-addr",
            TunnelKind::VxlanV6 => "vxlan-v6-tunnel-addr",
            TunnelKind::Wireguard => "wireguard-tunnel-addr",
            TunnelKind::WireguardV6 => "wireguard-v6-tunnel-addr",
        };
        format!("{prefix}-{node}")
    }

    /// The `type` attribute of the allocation.
    pub fn attribute(self) -> &'static str {
        match self {
            TunnelKind::Ipip => "ipipTunnelAddress",
            TunnelKind::Vxlan => "vxlanTunnelAddress",
            TunnelKind::VxlanV6 => "vxlanV6TunnelAddress",
            TunnelKind::Wireguard => "wireguardTunnelAddress",
            TunnelKind::WireguardV6 => "wireguardV6TunnelAddress",
        }
    }

    /// The family of its address.
    pub fn family(self) -> Family {
        match self {
            TunnelKind::Ipip | TunnelKind::Vxlan | TunnelKind::Wireguard => Family::V4,
            TunnelKind::VxlanV6 | TunnelKind::WireguardV6 => Family::V6,
        }
    }
}

/// A node's wish for a tunnel address.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunnel {
    /// Which device.
    pub kind: TunnelKind,
    /// The node.
    pub node: String,
    /// Labels of the node.
    pub node_labels: BTreeMap<String, String>,
    /// The address that the node has now, as its Node says.
    pub current: Option<IpAddr>,
    /// The pools that use this tunnel, by name or CIDR. Those that are disabled, that do not allow [`AllowedUse::Tunnel`] or
    /// that do not select the node are left out; if none remains the node needs no address.
    pub pools: Vec<String>,
}

impl Ipam {
    /// Makes a node hold exactly the tunnel address that it needs: keeps the one it has if it is its own and in one of the
    /// pools, takes the current one if it is free, otherwise any; releases what is not needed.
    pub async fn settle_tunnel(&self, now: Timestamp, tunnel: &Tunnel) -> Result<Option<IpAddr>, IpamError> {
        let handle = tunnel.kind.handle(&tunnel.node);
        let held = self.ips_by_handle(&handle).await?;
        let facts = self.facts().await?;
        let pools: Vec<_> = facts
            .pools
            .iter()
            .filter(|pool| {
                let named = |wanted: &String| *wanted == pool.metadata.name || *wanted == pool.spec.cidr.to_string();
                tunnel.pools.iter().any(named)
                    && pool.is_allocatable()
                    && crate::pools::selects_node(pool, &tunnel.node_labels)
                    && pool.spec.allows(AllowedUse::Tunnel)
            })
            .collect();
        let names = || pools.iter().map(|pool| pool.metadata.name.clone()).collect::<Vec<_>>();
        let fits = |address: &IpAddr| pools.iter().any(|pool| pool.spec.cidr.contains(address));
        let keep = tunnel.current.filter(|current| held.contains(current) && fits(current));
        let keep = keep.or_else(|| held.iter().copied().find(fits));
        if held.len() == 1 && keep.is_some() {
            return Ok(keep);
        }
        if !held.is_empty() {
            self.release_handle(now, &handle).await?;
        }
        if pools.is_empty() {
            return Ok(None);
        }
        let attributes = BTreeMap::from([
            ("node".to_owned(), tunnel.node.clone()),
            ("type".to_owned(), tunnel.kind.attribute().to_owned()),
        ]);
        if let Some(ip) = keep.or(tunnel.current.filter(fits)) {
            let request = AssignIp {
                ip,
                host: tunnel.node.clone(),
                handle: handle.clone(),
                attributes: attributes.clone(),
                intended_use: AllowedUse::Tunnel,
            };
            match self.assign_ip(now, &request).await {
                Ok(_) => return Ok(Some(ip)),
                Err(error @ IpamError::Store(_)) => return Err(error),
                // Somebody else has it: any other will do.
                Err(_) => {}
            }
        }
        let (v4, v6) = match tunnel.kind.family() {
            Family::V4 => (1, 0),
            Family::V6 => (0, 1),
        };
        let request = AutoAssign {
            host: tunnel.node.clone(),
            handle,
            attributes,
            ipv4: v4,
            ipv6: v6,
            pools_v4: if v4 == 1 { names() } else { Vec::new() },
            pools_v6: if v6 == 1 { names() } else { Vec::new() },
            intended_use: AllowedUse::Tunnel,
            host_labels: tunnel.node_labels.clone(),
            ..AutoAssign::default()
        };
        let assigned = self.auto_assign(now, &request).await?;
        Ok(assigned.v4.first().or(assigned.v6.first()).map(|net| net.addr()))
    }
}
