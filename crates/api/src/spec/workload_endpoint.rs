//! WorkloadEndpoint: one interface of one workload (upstream `internalapi/workloadendpoint.go`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of a WorkloadEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEndpointSpec {
    /// `k8s`, `cni`, `libnetwork`, `openstack`, …
    pub orchestrator: String,
    /// Workload, for orchestrators without pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// Node that runs it.
    pub node: String,
    /// Container (sandbox) that owns the interface; DEL of another container does not remove it.
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Pod, for `k8s`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Interface in the workload, `eth0`.
    pub endpoint: String,
    /// Its service account.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account_name: String,
    /// Its addresses, /32 or /128.
    #[serde(rename = "ipNetworks", skip_serializing_if = "Vec::is_empty")]
    pub ip_networks: Vec<IpNet>,
    /// Floating addresses.
    #[serde(rename = "ipNATs", skip_serializing_if = "Vec::is_empty")]
    pub ip_nats: Vec<IpNat>,
    /// IPv4 gateway.
    #[serde(rename = "ipv4Gateway", skip_serializing_if = "Option::is_none")]
    pub ipv4_gateway: Option<IpAddr>,
    /// IPv6 gateway.
    #[serde(rename = "ipv6Gateway", skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<IpAddr>,
    /// Profiles it inherits from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Host side interface.
    pub interface_name: String,
    /// MAC of the workload's side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Named ports and host ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
    /// Sources it may send from besides its own addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_spoofed_source_prefixes: Vec<String>,
    /// Rate limits and marking.
    #[serde(rename = "qosControls", skip_serializing_if = "Option::is_none")]
    pub qos_controls: Option<serde_json::Value>,
}

/// A floating address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNat {
    /// The workload's address.
    #[serde(rename = "internalIP")]
    pub internal_ip: IpAddr,
    /// The address that others use.
    #[serde(rename = "externalIP")]
    pub external_ip: IpAddr,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP`, `SCTP` or a number.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
    /// Port on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Address on the host.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// An IP protocol, by name or number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Protocol {
    /// By number, 1 to 255.
    Number(u8),
    /// By name.
    Name(String),
}

impl Spec for WorkloadEndpointSpec {
    const KIND: Kind = Kind::WorkloadEndpoint;
    type Status = NoStatus;
}
