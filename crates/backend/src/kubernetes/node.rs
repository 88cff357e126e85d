//! Kubernetes' Nodes as Nodes: what Kubernetes has no field for stands in annotations (upstream `resources/node.go`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use api::names::derived_uid;
use api::{
    AsNumber, Key, Kind, Metadata, Node, NodeAddress, NodeBgp, NodeSpec, NodeStatus, NodeWireguard, OrchRef, Resource,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What all annotations start with.
const PREFIX: &str = "projectcalico.org/";
/// Labels and annotations of the resource that the Kubernetes Node has not itself, as JSON.
const LABELS: &str = "labels";
const ANNOTATIONS: &str = "annotations";

#[derive(Deserialize)]
struct KubernetesNode {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
    #[serde(rename = "type")]
    kind: String,
}

/// The key of the Node that a Kubernetes Node is.
pub fn key(node: &Value) -> Option<Key> {
    Some(Key::cluster(Kind::Node, node["metadata"]["name"].as_str()?))
}

/// The Node that a Kubernetes Node is.
///
/// # Errors
/// What is wrong with it.
pub fn read(node: Value) -> Result<Resource, String> {
    let node: KubernetesNode = serde_json::from_value(node).map_err(|error| error.to_string())?;
    let held = Held(&node.metadata.annotations);
    let bgp = NodeBgp {
        as_number: held.value::<AsNumber>("ASNumber")?,
        // A bare address stands for itself alone.
        ipv4_address: held.net::<Ipv4Net>("IPv4Address", "/32")?,
        ipv6_address: held.net::<Ipv6Net>("IPv6Address", "/128")?,
        ipv4_ipip_tunnel_addr: held.value("IPv4IPIPTunnelAddr")?,
        route_reflector_cluster_id: held.value("RouteReflectorClusterID")?,
    };
    let wireguard = NodeWireguard {
        interface_ipv4_address: held.value("IPv4WireguardInterfaceAddr")?,
        interface_ipv6_address: held.value("IPv6WireguardInterfaceAddr")?,
    };
    let mut addresses: Vec<NodeAddress> = Vec::new();
    let ours = [
        bgp.ipv4_address.map(|net| net.to_string()),
        bgp.ipv6_address.map(|net| net.to_string()),
    ];
    addresses.extend(ours.into_iter().flatten().map(|address| NodeAddress {
        address,
        kind: Some("CalicoNodeIP".into()),
    }));
    let known = |address: &&Address| ["InternalIP", "ExternalIP"].contains(&address.kind.as_str());
    addresses.extend(node.status.addresses.iter().filter(known).map(|address| NodeAddress {
        address: address.address.clone(),
        kind: Some(address.kind.clone()),
    }));
    let interfaces = held.json("Interfaces")?.unwrap_or_default();
    let spec = NodeSpec {
        bgp: (bgp != NodeBgp::default()).then_some(bgp),
        ipv4_vxlan_tunnel_addr: held.value("IPv4VXLANTunnelAddr")?,
        vxlan_tunnel_mac_addr: held.value("VXLANTunnelMACAddr")?,
        ipv6_vxlan_tunnel_addr: held.value("IPv6VXLANTunnelAddr")?,
        vxlan_tunnel_mac_addr_v6: held.value("VXLANTunnelMACAddrV6")?,
        orch_refs: vec![OrchRef {
            node_name: Some(node.metadata.name.clone()),
            orchestrator: "k8s".into(),
        }],
        wireguard: (wireguard != NodeWireguard::default()).then_some(wireguard),
        addresses,
        interfaces,
    };
    let mut pod_cidrs = node.spec.pod_cidrs;
    if pod_cidrs.is_empty() && !node.spec.pod_cidr.is_empty() {
        pod_cidrs.push(node.spec.pod_cidr);
    }
    let status = NodeStatus {
        wireguard_public_key: held.value("WireguardPublicKey")?,
        wireguard_public_key_v6: held.value("WireguardPublicKeyV6")?,
        pod_cidrs,
    };
    let mut labels: BTreeMap<String, String> = held.json(LABELS)?.unwrap_or_default();
    labels.extend(node.metadata.labels.clone());
    let annotations: BTreeMap<String, String> = held.json(ANNOTATIONS)?.unwrap_or_default();
    let metadata = Metadata {
        name: node.metadata.name,
        resource_version: node.metadata.resource_version,
        uid: node.metadata.uid.as_deref().and_then(derived_uid),
        creation_timestamp: node.metadata.creation_timestamp,
        labels,
        annotations,
        ..Metadata::default()
    };
    let node = Node {
        metadata,
        spec,
        status: (status != NodeStatus::default()).then_some(status),
    };
    Ok(node.into())
}

/// What to merge into the Kubernetes Node `held` so that it is `node`. Addresses that Kubernetes knows are Kubernetes' own.
pub fn patch(node: &Node, held: &Value, replaces: &str) -> Value {
    let bgp = node.spec.bgp.clone().unwrap_or_default();
    let wireguard = node.spec.wireguard.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let spec = &node.spec;
    let interfaces = (!spec.interfaces.is_empty()).then(|| serde_json::to_string(&spec.interfaces).unwrap_or_default());
    let kubernetes = |field: &str| held["metadata"][field].as_object().cloned().unwrap_or_default();
    let labels = beside(&node.metadata.labels, &kubernetes("labels"));
    let annotations = beside(&node.metadata.annotations, &Map::new());
    let wanted = [
        ("ASNumber", text(&bgp.as_number)),
        ("IPv4Address", text(&bgp.ipv4_address)),
        ("IPv6Address", text(&bgp.ipv6_address)),
        ("IPv4IPIPTunnelAddr", text(&bgp.ipv4_ipip_tunnel_addr)),
        ("RouteReflectorClusterID", text(&bgp.route_reflector_cluster_id)),
        ("IPv4VXLANTunnelAddr", text(&spec.ipv4_vxlan_tunnel_addr)),
        ("VXLANTunnelMACAddr", spec.vxlan_tunnel_mac_addr.clone()),
        ("IPv6VXLANTunnelAddr", text(&spec.ipv6_vxlan_tunnel_addr)),
        ("VXLANTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6.clone()),
        ("IPv4WireguardInterfaceAddr", text(&wireguard.interface_ipv4_address)),
        ("IPv6WireguardInterfaceAddr", text(&wireguard.interface_ipv6_address)),
        ("WireguardPublicKey", status.wireguard_public_key),
        ("WireguardPublicKeyV6", status.wireguard_public_key_v6),
        ("Interfaces", interfaces),
        (LABELS, labels),
        (ANNOTATIONS, annotations),
    ];
    let held = kubernetes("annotations");
    // Null removes; what is absent already needs no word.
    let change = |(name, value): (&str, Option<String>)| {
        let name = format!("{PREFIX}{name}");
        (value.is_some() || held.contains_key(&name)).then(|| (name, value.map_or(Value::Null, Value::String)))
    };
    let changes: Map<String, Value> = wanted.into_iter().filter_map(change).collect();
    json!({ "metadata": { "resourceVersion": replaces, "annotations": changes } })
}

/// What of `wanted` is not held already, as JSON.
fn beside(wanted: &BTreeMap<String, String>, held: &Map<String, Value>) -> Option<String> {
    let more = wanted
        .iter()
        .filter(|(name, value)| held.get(*name) != Some(&Value::String((*value).clone())));
    let more: BTreeMap<&String, &String> = more.collect();
    (!more.is_empty()).then(|| serde_json::to_string(&more).unwrap_or_default())
}

fn text<T: Display>(value: &Option<T>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

/// Annotations, ours by their last part.
struct Held<'a>(&'a BTreeMap<String, String>);

impl Held<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        let text = self.0.get(&format!("{PREFIX}{name}"))?;
        Some(text.as_str()).filter(|text| !text.is_empty())
    }

    fn value<T: FromStr>(&self, name: &str) -> Result<Option<T>, String>
    where
        T::Err: Display,
    {
        self.net(name, "")
    }

    /// `suffix` is what a text without a slash lacks.
    fn net<T: FromStr>(&self, name: &str, suffix: &str) -> Result<Option<T>, String>
    where
        T::Err: Display,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        let whole = match text.contains('/') {
            true => text.to_owned(),
            false => format!("{text}{suffix}"),
        };
        let wrong = |error: T::Err| format!("annotation {PREFIX}{name} is {text}: {error}");
        whole.parse().map(Some).map_err(wrong)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let wrong = |error: serde_json::Error| format!("annotation {PREFIX}{name}: {error}");
        serde_json::from_str(text).map(Some).map_err(wrong)
    }
}

#[cfg(test)]
mod tests;
