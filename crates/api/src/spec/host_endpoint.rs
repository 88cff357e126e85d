//! HostEndpoint: an interface of a host, or all of them (upstream `hostendpoint.go`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ConditionsStatus;
use super::workload_endpoint::is_port_name;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{Protocol, check};
use crate::{Kind, Metadata};

/// Spec of a HostEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostEndpointSpec {
    /// The node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The interface; `*` for all; empty for the one that has one of `expected_ips`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface_name: String,
    /// The addresses by which selectors of rules match it, and by which it is found without `interface_name`.
    #[serde(rename = "expectedIPs", skip_serializing_if = "Vec::is_empty")]
    pub expected_ips: Vec<IpAddr>,
    /// Profiles, asked in this order after all tiers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Named ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostEndpointPort>,
}

/// A named port of a host endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEndpointPort {
    /// Its name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

impl HostEndpointSpec {
    /// Interface name that means all interfaces.
    pub const ALL_INTERFACES: &'static str = "*";
}

impl Spec for HostEndpointSpec {
    const KIND: Kind = Kind::HostEndpoint;
    type Status = ConditionsStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.node.is_empty() {
            problems.missing("node", "is required");
        }
        check::name("node", &self.node, problems);
        if self.interface_name != Self::ALL_INTERFACES {
            check::interface("interfaceName", &self.interface_name, problems);
        }
        if self.interface_name.is_empty() && self.expected_ips.is_empty() {
            problems.missing(
                "expectedIPs",
                "is required without interfaceName (an interface, or `*` for all)",
            );
        }
        problems.each("profiles", &self.profiles, |problems, profile| {
            check::name("", profile, problems);
        });
        problems.each("ports", &self.ports, |problems, port| {
            if !port.protocol.has_ports() {
                problems.report("protocol", &port.protocol, "must be TCP, UDP or SCTP");
            }
            if port.port == 0 {
                problems.report("port", 0, "must be from 1 to 65535");
            }
            if !is_port_name(&port.name) {
                problems.report(
                    "name",
                    &port.name,
                    "must be a port name: at most 15 lower-case letters, digits and single inner dashes, one letter at least",
                );
            }
        });
    }
}
