//! What the local node should look like, apart from its pods (the journal knows them) and what BGP learns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use api::{EncapMode, FelixConfigurationSpec, LogSeverity};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The whole desired state, in upstream's terms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Agent settings that apply to this node.
    pub settings: Settings,
    /// This node; `None` until it is registered.
    pub this_node: Option<ThisNode>,
    /// The other nodes, by name.
    pub peers: BTreeMap<String, PeerNode>,
    /// The pools, by range.
    pub pools: BTreeMap<IpNet, PoolState>,
    /// Blocks whose affinity to this node is confirmed.
    pub blocks: BTreeSet<IpNet>,
    /// Address ranges of services, wherever they may lie.
    pub services: BTreeSet<IpNet>,
    /// The BGP configuration; `None` until this node is registered.
    pub bgp: Option<bgp::Config>,
}

/// One difference between two states. `None` and `false` mean gone.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeChange {
    /// Settings changed.
    Settings(Settings),
    /// This node changed.
    ThisNode(Option<ThisNode>),
    /// Another node changed.
    Peer(String, Option<PeerNode>),
    /// A pool changed.
    Pool(IpNet, Option<PoolState>),
    /// A local block came or went.
    Block(IpNet, bool),
    /// The address ranges of services changed: these are all of them.
    Services(BTreeSet<IpNet>),
    /// The BGP configuration changed.
    Bgp(Option<bgp::Config>),
}

/// Addresses of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisNode {
    /// With the subnet's prefix length.
    pub ipv4: Option<Ipv4Net>,
    /// With the subnet's prefix length.
    pub ipv6: Option<Ipv6Net>,
    /// Address of `tunl0`.
    pub ipip_tunnel: Option<Ipv4Addr>,
}

/// Another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNode {
    /// With the subnet's prefix length.
    pub ipv4: Option<Ipv4Net>,
    /// With the subnet's prefix length.
    pub ipv6: Option<Ipv6Net>,
}

/// What matters of a pool here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// IP-in-IP.
    pub ipip: EncapMode,
    /// VXLAN.
    pub vxlan: EncapMode,
    /// Masquerade traffic that leaves the pools.
    pub nat_outgoing: bool,
    /// Blocks in it are announced. Disabling a pool stops new allocations only: pods that are there stay reachable.
    pub exported: bool,
}

/// Agent settings after precedence (built-in, `default`, `node.<name>`).
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// MTU of `tunl0`; `None`: underlay minus 20.
    pub ipip_mtu: Option<u32>,
    /// Whether `tunl0` exists; `None`: if a pool uses IPIP.
    pub ipip_enabled: Option<bool>,
    /// Metric of IPv4 routes to pods and blocks.
    pub ipv4_metric: u32,
    /// Metric of IPv6 routes to pods and blocks.
    pub ipv6_metric: u32,
    /// `logSeverityScreen`; `None`: as the agent was started.
    pub log_severity: Option<LogSeverity>,
    /// All of it, for parts that have settings of their own.
    pub felix: Arc<FelixConfigurationSpec>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ipip_mtu: None,
            ipip_enabled: None,
            ipv4_metric: 1024,
            ipv6_metric: 1024,
            log_severity: None,
            felix: Arc::default(),
        }
    }
}
