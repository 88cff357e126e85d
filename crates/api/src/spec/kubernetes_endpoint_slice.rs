//! KubernetesEndpointSlice: addresses and ports behind a Service, as far as rules that match services need them.
//!
//! Internal: it mirrors Kubernetes' `discovery.k8s.io/v1` EndpointSlice of the same namespace and name, and nobody writes
//! it by hand. A Service may have several; what belongs to it is what any of them has.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::problem::Problems;
use crate::resource::{NoStatus, Spec};
use crate::value::{Protocol, check};
use crate::{Kind, Metadata};

/// Spec of a KubernetesEndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesEndpointSliceSpec {
    /// The Service, in the same namespace (label `kubernetes.io/service-name`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Addresses of its endpoints, ready or not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Ports at which every one of them listens; a port without a number is left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<SlicePort>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlicePort {
    /// Its name, if it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

impl Spec for KubernetesEndpointSliceSpec {
    const KIND: Kind = Kind::KubernetesEndpointSlice;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.service.is_empty() {
            problems.missing("service", "is required");
        }
        check::name("service", &self.service, problems);
        problems.each("ports", &self.ports, |problems, port| {
            if !port.protocol.has_ports() {
                problems.report("protocol", &port.protocol, "must be TCP, UDP or SCTP");
            }
            if port.port == 0 {
                problems.report("port", 0, "must be from 1 to 65535");
            }
        });
    }
}
