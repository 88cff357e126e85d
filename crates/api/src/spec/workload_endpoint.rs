//! WorkloadEndpoint: one interface of one workload (upstream `internalapi/workloadendpoint.go`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{QosControls, is_zero};
use crate::names::{NameError, WorkloadEndpointIds, workload_endpoint_name};
use crate::problem::Problems;
use crate::resource::{NoStatus, Spec};
use crate::value::{Protocol, check, net};
use crate::{Kind, Metadata};

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
    #[serde(rename = "ipNetworks", skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub ip_networks: Vec<IpNet>,
    /// Floating addresses.
    #[serde(rename = "ipNATs", skip_serializing_if = "Vec::is_empty")]
    pub ip_nats: Vec<IpNat>,
    /// IPv4 gateway.
    #[serde(
        rename = "ipv4Gateway",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub ipv4_gateway: Option<IpAddr>,
    /// IPv6 gateway.
    #[serde(
        rename = "ipv6Gateway",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
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
    pub qos_controls: Option<QosControls>,
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
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "zero_is_none")]
    pub host_port: Option<u16>,
    /// Address on the host.
    #[serde(
        default,
        rename = "hostIP",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub host_ip: Option<IpAddr>,
}

/// Upstream writes 0 where there is no port.
fn zero_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    Ok(Option::<u16>::deserialize(deserializer)?.filter(|port| !is_zero(port)))
}

impl WorkloadEndpointSpec {
    /// The name that the endpoint must have.
    pub fn name(&self) -> Result<String, NameError> {
        workload_endpoint_name(&WorkloadEndpointIds::from(self))
    }

    fn check_name(&self, metadata: &Metadata, problems: &mut Problems) {
        match self.name() {
            Ok(name) if metadata.name.is_empty() || metadata.name == name => {}
            Ok(name) => {
                problems.report_elsewhere(
                    "metadata.name",
                    &metadata.name,
                    format!("must be {name}, which follows from the spec"),
                );
            }
            Err(NameError::Missing(field)) => problems.missing(field, "is required: it is part of the name"),
            Err(NameError::Dash(field, value)) => problems.report(field, value, "must not start or end with a dash"),
            // Only reading a name ends like this.
            Err(NameError::NotAName(_)) => {}
        }
        let names = [
            ("orchestrator", &self.orchestrator),
            ("workload", &self.workload),
            ("node", &self.node),
            ("pod", &self.pod),
            ("endpoint", &self.endpoint),
            ("serviceAccountName", &self.service_account_name),
        ];
        for (field, name) in names {
            check::name(field, name, problems);
        }
        if !self
            .container_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            problems.report("containerID", &self.container_id, "must be letters, digits and `-`");
        }
    }

    fn check_addresses(&self, problems: &mut Problems) {
        problems.each("ipNetworks", &self.ip_networks, |problems, network| {
            if network.prefix_len() != network.max_prefix_len() {
                problems.report("", network, "must be one address: /32 or /128");
            }
        });
        problems.each("ipNATs", &self.ip_nats, |problems, nat| {
            if nat.internal_ip.is_ipv4() != nat.external_ip.is_ipv4() {
                problems.report(
                    "externalIP",
                    nat.external_ip,
                    "must be of the same family as internalIP",
                );
            }
            if !self
                .ip_networks
                .iter()
                .any(|network| network.contains(&nat.internal_ip))
            {
                problems.report("internalIP", nat.internal_ip, "must be one of spec.ipNetworks");
            }
        });
        if let Some(gateway) = self.ipv4_gateway.filter(|gateway| !gateway.is_ipv4()) {
            problems.report("ipv4Gateway", gateway, "must be an IPv4 address");
        }
        if let Some(gateway) = self.ipv6_gateway.filter(|gateway| !gateway.is_ipv6()) {
            problems.report("ipv6Gateway", gateway, "must be an IPv6 address");
        }
        problems.each(
            "allowSpoofedSourcePrefixes",
            &self.allow_spoofed_source_prefixes,
            |problems, prefix| {
                if <IpNet as net::Text>::parse(prefix).is_none() {
                    problems.report("", prefix, <IpNet as net::Text>::RIGHT);
                }
            },
        );
    }
}

impl EndpointPort {
    fn check(&self, problems: &mut Problems) {
        if !self.protocol.has_ports() {
            problems.report("protocol", &self.protocol, "must be TCP, UDP or SCTP");
        }
        if self.port == 0 {
            problems.report("port", 0, "must be from 1 to 65535");
        }
        match self.name.as_str() {
            "" if self.host_port.is_none() => problems.missing("name", "is required without hostPort"),
            "" => {}
            name if !is_port_name(name) => problems.report(
                "name",
                name,
                "must be a port name: at most 15 lower-case letters, digits and single inner dashes, one letter at least",
            ),
            _ => {}
        }
    }
}

/// RFC 6335 section 5.1, as Kubernetes has it.
pub(super) fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && crate::names::is_label(name)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
}

impl Spec for WorkloadEndpointSpec {
    const KIND: Kind = Kind::WorkloadEndpoint;
    type Status = NoStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        self.check_name(metadata, problems);
        self.check_addresses(problems);
        problems.each("profiles", &self.profiles, |problems, profile| {
            check::name("", profile, problems)
        });
        if self.interface_name.is_empty() {
            problems.missing("interfaceName", "is required");
        }
        if self.interface_name != "*" {
            check::interface("interfaceName", &self.interface_name, problems);
        }
        check::mac("mac", &self.mac, problems);
        problems.each("ports", &self.ports, |problems, port| port.check(problems));
        if let Some(controls) = &self.qos_controls {
            problems.within("qosControls", |problems| controls.check(problems));
        }
    }
}
