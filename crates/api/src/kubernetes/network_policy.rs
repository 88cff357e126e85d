//! `networking.k8s.io/v1` NetworkPolicy.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

use super::LabelSelector;
use crate::{Metadata, PolicyType};

/// A Kubernetes NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct K8sNetworkPolicy {
    /// Identity.
    pub metadata: Metadata,
    /// What is wanted.
    #[serde(default)]
    pub spec: K8sNetworkPolicySpec,
}

/// Spec of a Kubernetes NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct K8sNetworkPolicySpec {
    /// Pods of its namespace that it applies to; all if empty.
    pub pod_selector: LabelSelector,
    /// What may come to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<K8sIngressRule>,
    /// Where they may send to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<K8sEgressRule>,
    /// Directions that it applies to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<PolicyType>,
}

/// Packets that may come in: from one of the peers, to one of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct K8sIngressRule {
    /// Ports of the pods; any if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<K8sPort>,
    /// Senders; any if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<K8sPeer>,
}

/// Packets that may go out: to one of the peers, at one of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct K8sEgressRule {
    /// Ports of the peers; any if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<K8sPort>,
    /// Receivers; any if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<K8sPeer>,
}

/// One port, or a range of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct K8sPort {
    /// `TCP` (if absent), `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Number or name; every port of the protocol if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<IntOrText>,
    /// Last port of a range that starts at `port`, which is a number then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}

/// The other side: an address range, or pods by their labels and those of their namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct K8sPeer {
    /// Pods; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces of the pods: the policy's if absent, all if it has no term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses; stands alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// An address range with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpBlock {
    /// The range.
    pub cidr: String,
    /// Ranges within it that do not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// A number or a name (`util/intstr.IntOrString`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum IntOrText {
    /// A number.
    Int(i32),
    /// A name, or a number as text.
    Text(String),
}

impl fmt::Display for IntOrText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IntOrText::Int(number) => number.fmt(f),
            IntOrText::Text(text) => text.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = IntOrText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<IntOrText, E> {
                i32::try_from(number)
                    .map(IntOrText::Int)
                    .map_err(|_| E::custom("must be a number of 32 bits"))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<IntOrText, E> {
                i32::try_from(number)
                    .map(IntOrText::Int)
                    .map_err(|_| E::custom("must be a number of 32 bits"))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<IntOrText, E> {
                Ok(IntOrText::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
