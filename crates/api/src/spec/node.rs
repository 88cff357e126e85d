//! Node: a member of the cluster as the network sees it (upstream `internalapi/node.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{AsNumber, check, net};
use crate::{Kind, Metadata};

/// Spec of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Addresses and AS number; absent while the node has not been set up for routing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgp>,
    /// Address of its VXLAN device.
    #[serde(
        rename = "ipv4VXLANTunnelAddr",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub ipv4_vxlan_tunnel_addr: Option<Ipv4Addr>,
    /// MAC of its VXLAN device, if not derived from the name.
    #[serde(rename = "vxlanTunnelMACAddr", skip_serializing_if = "Option::is_none")]
    pub vxlan_tunnel_mac_addr: Option<String>,
    /// Address of its IPv6 VXLAN device.
    #[serde(
        rename = "ipv6VXLANTunnelAddr",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
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
    /// Its interfaces with their addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<NodeInterface>,
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
        with = "net::optional"
    )]
    pub ipv4_address: Option<Ipv4Net>,
    /// Address with the subnet's prefix length.
    #[serde(
        rename = "ipv6Address",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub ipv6_address: Option<Ipv6Net>,
    /// Address of `tunl0`.
    #[serde(
        rename = "ipv4IPIPTunnelAddr",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub ipv4_ipip_tunnel_addr: Option<Ipv4Addr>,
    /// Makes the node a route reflector of this cluster (IPv4 form).
    #[serde(
        rename = "routeReflectorClusterID",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
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
    #[serde(
        rename = "interfaceIPv4Address",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub interface_ipv4_address: Option<Ipv4Addr>,
    /// IPv6.
    #[serde(
        rename = "interfaceIPv6Address",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
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

/// One interface of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInterface {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its addresses, bare or with a prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
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

impl crate::Judged for NodeStatus {}

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

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.bgp == Some(NodeBgp::default()) {
            problems.missing("bgp", "must be absent rather than empty");
        }
        check::mac(
            "vxlanTunnelMACAddr",
            self.vxlan_tunnel_mac_addr.as_deref().unwrap_or_default(),
            problems,
        );
        check::mac(
            "vxlanTunnelMACAddrV6",
            self.vxlan_tunnel_mac_addr_v6.as_deref().unwrap_or_default(),
            problems,
        );
        problems.each("addresses", &self.addresses, |problems, address| {
            check_address("address", &address.address, problems);
            let known = |kind: &str| ["", "CalicoNodeIP", "InternalIP", "ExternalIP"].contains(&kind);
            if let Some(kind) = address.kind.as_ref().filter(|kind| !known(kind)) {
                problems.report("type", kind, "must be CalicoNodeIP, InternalIP or ExternalIP");
            }
        });
        problems.each("interfaces", &self.interfaces, |problems, interface| {
            problems.each("addresses", &interface.addresses, |problems, address| {
                check_address("", address, problems)
            });
        });
    }

    fn check_status(status: &NodeStatus, problems: &mut Problems) {
        let keys = [
            ("wireguardPublicKey", &status.wireguard_public_key),
            ("wireguardPublicKeyV6", &status.wireguard_public_key_v6),
        ];
        for (field, key) in keys {
            if let Some(key) = key.as_ref().filter(|key| !key.is_empty() && !is_wireguard_key(key)) {
                problems.report(field, key, "must be a WireGuard key: 44 characters of base64");
            }
        }
    }
}

fn check_address(field: &str, address: &str, problems: &mut Problems) {
    if <IpNet as net::Text>::parse(address).is_none() {
        problems.report(field, address, "must be an address, with or without a prefix length");
    }
}

/// 32 bytes in base64: 43 digits, the last of which has two bits to spare, and one `=`.
fn is_wireguard_key(key: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.len() == 44 && key.ends_with('=') && key.bytes().take(43).all(is_digit)
}
