//! Node: a member of the cluster as the network sees it (upstream `internalapi/node.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::AsNumber;
use crate::Kind;
use crate::resource::Spec;

/// Spec of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Addresses and AS number; absent while the node has not been set up for routing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgp>,
    /// Address of its VXLAN device.
    #[serde(rename = "ipv4VXLANTunnelAddr", skip_serializing_if = "Option::is_none")]
    pub ipv4_vxlan_tunnel_addr: Option<Ipv4Addr>,
    /// MAC of its VXLAN device, if not derived from the name.
    #[serde(rename = "vxlanTunnelMACAddr", skip_serializing_if = "Option::is_none")]
    pub vxlan_tunnel_mac_addr: Option<String>,
    /// Address of its IPv6 VXLAN device.
    #[serde(rename = "ipv6VXLANTunnelAddr", skip_serializing_if = "Option::is_none")]
    pub ipv6_vxlan_tunnel_addr: Option<Ipv6Addr>,
    /// MAC of its IPv6 VXLAN device.
    #[serde(rename = "vxlanTunnelMACAddrV6", skip_serializing_if = "Option::is_none")]
    pub vxlan_tunnel_mac_addr_v6: Option<String>,
    /// Names of this node with orchestrators.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orch_refs: Vec<OrchRef>,
    /// Addresses of its WireGuard devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<NodeWireguard>,
    /// All addresses by which the node is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<NodeAddress>,
}

/// Routing identity of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeBgp {
    /// AS number, if not the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// Address with the subnet's prefix length, `10.211.55.7/24`; a bare address means /32.
    #[serde(
        rename = "ipv4Address",
        skip_serializing_if = "Option::is_none",
        with = "super::node::net_or_addr"
    )]
    pub ipv4_address: Option<Ipv4Net>,
    /// Address with the subnet's prefix length.
    #[serde(
        rename = "ipv6Address",
        skip_serializing_if = "Option::is_none",
        with = "super::node::net_or_addr"
    )]
    pub ipv6_address: Option<Ipv6Net>,
    /// Address of `tunl0`.
    #[serde(rename = "ipv4IPIPTunnelAddr", skip_serializing_if = "Option::is_none")]
    pub ipv4_ipip_tunnel_addr: Option<Ipv4Addr>,
    /// Makes the node a route reflector of this cluster (IPv4 form).
    #[serde(rename = "routeReflectorClusterID", skip_serializing_if = "Option::is_none")]
    pub route_reflector_cluster_id: Option<Ipv4Addr>,
}

/// A node's name with an orchestrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrchRef {
    /// Its name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `k8s`, `openstack`, …
    pub orchestrator: String,
}

/// Addresses of a node's WireGuard devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeWireguard {
    /// IPv4.
    #[serde(rename = "interfaceIPv4Address", skip_serializing_if = "Option::is_none")]
    pub interface_ipv4_address: Option<Ipv4Addr>,
    /// IPv6.
    #[serde(rename = "interfaceIPv6Address", skip_serializing_if = "Option::is_none")]
    pub interface_ipv6_address: Option<Ipv6Addr>,
}

/// One address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The address, bare or with a prefix length.
    pub address: String,
    /// `CalicoNodeIP`, `InternalIP`, `ExternalIP`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// Status of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// WireGuard public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard_public_key: Option<String>,
    /// WireGuard public key for IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard_public_key_v6: Option<String>,
    /// Ranges that Kubernetes gave the node.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
}

impl NodeBgp {
    /// The node's own address of each family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4_address.map(|net| IpAddr::V4(net.addr()));
        let v6 = self.ipv6_address.map(|net| IpAddr::V6(net.addr()));
        v4.into_iter().chain(v6)
    }
}

impl Spec for NodeSpec {
    const KIND: Kind = Kind::Node;
    type Status = NodeStatus;
}

/// Accepts `10.0.0.1` for `10.0.0.1/32`, as upstream does.
pub(crate) mod net_or_addr {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<T: Display, S: Serializer>(net: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match net {
            Some(net) => serializer.collect_str(net),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        if text.is_empty() {
            return Ok(None);
        }
        let full = match (text.contains('/'), text.contains(':')) {
            (true, _) => text.clone(),
            (false, true) => format!("{text}/128"),
            (false, false) => format!("{text}/32"),
        };
        full.parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format!("`{text}` is not an address with a prefix length")))
    }
}
