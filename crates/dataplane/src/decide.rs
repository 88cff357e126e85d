//! The decisions, each made in one place: encapsulation, tunnel, MTU. Each keeps its reason.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use api::EncapMode;
use calc::{NodeState, PoolState};
use ipnet::IpNet;
use kernel::{IfName, IpipTunnel};

use crate::config::Config;
use crate::view::View;

/// Bytes that IP-in-IP adds.
const IPIP_OVERHEAD: u32 = 20;
/// Bytes that VXLAN adds over IPv4 and IPv6.
const VXLAN_OVERHEAD: [u32; 2] = [50, 70];
/// MTU to work from while the underlay is unknown.
const USUAL_MTU: u32 = 1500;

/// How a packet travels to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encap {
    /// As it is.
    None,
    /// In an IPv4 packet.
    Ipip,
    /// In an Ethernet frame in UDP.
    Vxlan,
}

/// Decides how packets to a pool's address travel to `next_hop`. `subnet` is this node's own one of that family; a next hop
/// inside it is a neighbour. Addresses outside all pools are never encapsulated.
pub fn encap(pool: Option<&PoolState>, next_hop: IpAddr, subnet: Option<IpNet>) -> Encap {
    let Some(pool) = pool else { return Encap::None };
    let neighbour = subnet.is_some_and(|subnet| subnet.contains(&next_hop));
    let applies = |mode: EncapMode| match mode {
        EncapMode::Never => false,
        EncapMode::Always => true,
        EncapMode::CrossSubnet => !neighbour,
    };
    match (applies(pool.ipip), applies(pool.vxlan)) {
        (true, _) => Encap::Ipip,
        (false, true) => Encap::Vxlan,
        (false, false) => Encap::None,
    }
}

/// Whether the IP-in-IP device should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelDecision {
    /// Yes, like this.
    On(IpipTunnel),
    /// No.
    Off(TunnelOff),
    /// It cannot be said yet: what is there stays as it is.
    Waiting(TunnelWait),
}

/// Why there is no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelOff {
    /// No pool uses IP-in-IP.
    NoPool,
    /// `ipipEnabled: false`.
    Disabled,
    /// This node has no IPv4 address.
    NoIpv4,
    /// This kernel has no IP-in-IP.
    Unsupported,
}

/// What is missing to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelWait {
    /// This node is not registered.
    ThisNode,
    /// No device has this node's address.
    Underlay(Ipv4Addr),
}

impl TunnelDecision {
    /// Decides.
    pub(crate) fn make(config: &Config, state: &NodeState, view: &View) -> Self {
        let in_pools = state.pools.values().any(|pool| pool.ipip != EncapMode::Never);
        match state.settings.ipip_enabled {
            Some(false) => return Self::Off(TunnelOff::Disabled),
            None if !in_pools => return Self::Off(TunnelOff::NoPool),
            _ => {}
        }
        let Some(flavour) = config.ipip_flavour else {
            return Self::Off(TunnelOff::Unsupported);
        };
        let Some(this) = &state.this_node else {
            return Self::Waiting(TunnelWait::ThisNode);
        };
        let Some(local) = this.ipv4.map(|net| net.addr()) else {
            return Self::Off(TunnelOff::NoIpv4);
        };
        let Some(underlay) = view.underlay(config, IpAddr::V4(local)) else {
            return Self::Waiting(TunnelWait::Underlay(local));
        };
        Self::On(IpipTunnel {
            name: config.tunnel.clone(),
            flavour,
            local,
            underlay: underlay.name.clone(),
            address: this.ipip_tunnel,
            mtu: tunnel_mtu(state, underlay.mtu),
        })
    }

    /// Whether routes may count on the tunnel.
    pub(crate) fn is_off(&self) -> bool {
        matches!(self, Self::Off(_))
    }
}

fn tunnel_mtu(state: &NodeState, underlay: u32) -> u32 {
    state
        .settings
        .ipip_mtu
        .filter(|mtu| *mtu != 0)
        .unwrap_or(underlay.saturating_sub(IPIP_OVERHEAD))
}

/// The MTU of pods and what it follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtuDecision {
    /// Bytes, for pods' devices.
    pub pod: u32,
    /// The device that carries packets to other nodes, and its MTU; `None`: not known, 1500 is assumed.
    pub underlay: Option<(IfName, u32)>,
    /// Each encapsulation in use with the MTU that it leaves.
    pub encapsulations: Vec<(&'static str, u32)>,
}

impl MtuDecision {
    /// Decides: the least that any encapsulation in use leaves of the underlay's MTU.
    pub(crate) fn make(config: &Config, state: &NodeState, view: &View, tunnel: &TunnelDecision) -> Self {
        let own = state.this_node.iter().flat_map(|this| {
            let v4 = this.ipv4.map(|net| IpAddr::V4(net.addr()));
            [v4, this.ipv6.map(|net| IpAddr::V6(net.addr()))]
        });
        let underlay = own.flatten().find_map(|own| view.underlay(config, own));
        let base = underlay.map_or(USUAL_MTU, |link| link.mtu);
        let vxlan = |v4: bool| {
            let mut pools = state.pools.iter();
            pools.any(|(range, pool)| matches!(range, IpNet::V4(_)) == v4 && pool.vxlan != EncapMode::Never)
        };
        let candidates = [
            ("IP-in-IP", !tunnel.is_off(), tunnel_mtu(state, base)),
            ("VXLAN", vxlan(true), base.saturating_sub(VXLAN_OVERHEAD[0])),
            ("VXLAN over IPv6", vxlan(false), base.saturating_sub(VXLAN_OVERHEAD[1])),
        ];
        let in_use = candidates.into_iter().filter(|(_, in_use, _)| *in_use);
        let encapsulations: Vec<(&str, u32)> = in_use.map(|(name, _, mtu)| (name, mtu)).collect();
        let pod = encapsulations
            .iter()
            .map(|(_, mtu)| *mtu)
            .chain([base])
            .min()
            .unwrap_or(base);
        Self {
            pod,
            underlay: underlay.map(|link| (link.name.clone(), link.mtu)),
            encapsulations,
        }
    }
}

impl fmt::Display for TunnelDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(tunnel) => {
                write!(
                    f,
                    "{} from {} over {}, MTU {}",
                    tunnel.name, tunnel.local, tunnel.underlay, tunnel.mtu
                )
            }
            Self::Off(TunnelOff::NoPool) => f.write_str("off: no pool uses IP-in-IP"),
            Self::Off(TunnelOff::Disabled) => f.write_str("off: ipipEnabled is false"),
            Self::Off(TunnelOff::NoIpv4) => f.write_str("off: this node has no IPv4 address"),
            Self::Off(TunnelOff::Unsupported) => f.write_str("off: this kernel has no IP-in-IP"),
            Self::Waiting(TunnelWait::ThisNode) => f.write_str("left as it is: this node is not registered yet"),
            Self::Waiting(TunnelWait::Underlay(address)) => {
                write!(f, "left as it is: no device has this node's address {address}")
            }
        }
    }
}

impl fmt::Display for MtuDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.underlay {
            Some((device, mtu)) => write!(f, "{}: {device} has {mtu}", self.pod)?,
            None => write!(f, "{}: the underlay is not known, {USUAL_MTU} is assumed", self.pod)?,
        }
        self.encapsulations
            .iter()
            .try_for_each(|(name, mtu)| write!(f, ", {name} leaves {mtu}"))
    }
}
