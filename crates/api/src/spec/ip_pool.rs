//! IPPool: a range of addresses, how packets to it travel, who may use it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::is_false;
use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of an IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// The range; canonical (no host bits), immutable.
    pub cidr: IpNet,
    /// VXLAN encapsulation; exclusive with `ipip_mode`.
    #[serde(default)]
    pub vxlan_mode: EncapMode,
    /// IP-in-IP encapsulation, IPv4 only.
    #[serde(default)]
    pub ipip_mode: EncapMode,
    /// Masquerade traffic that leaves the pools.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nat_outgoing: bool,
    /// No new allocations.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// Do not export the pool's blocks by BGP.
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "is_false")]
    pub disable_bgp_export: bool,
    /// Prefix length of blocks; default 26 or 122; 20 to 32 or 116 to 128; immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Nodes that may allocate from it; default `all()`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// Namespaces whose pods may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<String>,
    /// What it may be used for; empty means workloads and tunnels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<AllowedUse>,
    /// Whether it is used without being asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_mode: Option<AssignmentMode>,
}

/// When packets are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncapMode {
    /// Never.
    #[default]
    Never,
    /// To every other node.
    Always,
    /// Only to nodes in another subnet.
    CrossSubnet,
}

/// What a pool's addresses may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowedUse {
    /// Pods.
    Workload,
    /// Tunnel devices of nodes.
    Tunnel,
    /// Load balancer addresses; exclusive.
    LoadBalancer,
}

/// Whether a pool is used without being asked for by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentMode {
    /// For any request that its selectors allow.
    #[default]
    Automatic,
    /// Only where it is named.
    Manual,
}

impl IpPoolSpec {
    /// A pool with defaults for this range.
    pub fn new(cidr: IpNet) -> Self {
        Self {
            cidr,
            vxlan_mode: EncapMode::Never,
            ipip_mode: EncapMode::Never,
            nat_outgoing: false,
            disabled: false,
            disable_bgp_export: false,
            block_size: None,
            node_selector: None,
            namespace_selector: None,
            allowed_uses: Vec::new(),
            assignment_mode: None,
        }
    }

    /// The effective block prefix length.
    pub fn block_len(&self) -> u8 {
        self.block_size.unwrap_or(match self.cidr {
            IpNet::V4(_) => 26,
            IpNet::V6(_) => 122,
        })
    }

    /// Whether its addresses may be used for `wanted`.
    pub fn allows(&self, wanted: AllowedUse) -> bool {
        match self.allowed_uses.as_slice() {
            [] => wanted != AllowedUse::LoadBalancer,
            uses => uses.contains(&wanted),
        }
    }
}

impl Spec for IpPoolSpec {
    const KIND: Kind = Kind::IPPool;
    type Status = NoStatus;
}
