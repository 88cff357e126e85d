//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.

use serde::{Deserialize, Serialize};

use super::LabelSelector;
use crate::Metadata;

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// Identity.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: ClusterNetworkPolicySpec,
}

/// Spec of a ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicySpec {
    /// Before or after the policies of namespaces.
    pub tier: ClusterTier,
    /// Its place in the tier, 0 to 1000: lower first.
    pub priority: i32,
    /// Pods that it applies to.
    pub subject: ClusterSubject,
    /// Rules for packets to them, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterIngressRule>,
    /// Rules for packets from them, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterEgressRule>,
}

/// Before or after the policies of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ClusterTier {
    /// Before: nobody can override it.
    Admin,
    /// After: it holds for pods that no NetworkPolicy applies to.
    Baseline,
}

/// Pods: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSubject {
    /// All pods of namespaces with such labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some pods of some namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// Pods by their labels and those of their namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    /// The namespaces; all without a term.
    pub namespace_selector: LabelSelector,
    /// The pods; all without a term.
    pub pod_selector: LabelSelector,
}

/// A rule for packets to the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIngressRule {
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What happens to a packet that matches.
    pub action: ClusterAction,
    /// Senders, at least one.
    #[serde(default)]
    pub from: Vec<ClusterIngressPeer>,
    /// Protocols with ports; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterProtocol>,
}

/// A rule for packets from the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEgressRule {
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What happens to a packet that matches.
    pub action: ClusterAction,
    /// Receivers, at least one.
    #[serde(default)]
    pub to: Vec<ClusterEgressPeer>,
    /// Protocols with ports; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterProtocol>,
}

/// What happens to a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ClusterAction {
    /// It may pass; nobody else is asked.
    Accept,
    /// It is dropped; nobody else is asked.
    Deny,
    /// The next tier is asked.
    Pass,
    /// What a later version has: the rest of the policy still counts.
    #[serde(other)]
    Unknown,
}

/// A sender: one of the fields. None is a kind of sender that is not known here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterIngressPeer {
    /// All pods of namespaces with such labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some pods of some namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// A receiver: one of the fields. None is a kind of receiver that is not known here (nodes, domain names).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterEgressPeer {
    /// All pods of namespaces with such labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some pods of some namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Address ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// A protocol with ports, or a named port: one of the fields. None is a protocol that is not known here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterPorts>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterPorts>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterPorts>,
    /// What the receiver calls by this name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_named_port: String,
}

/// Ports of a protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPorts {
    /// The receiver's; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
}

/// One port or a range: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPort {
    /// This one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// All of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRange {
    /// The first.
    pub start: i32,
    /// The last.
    pub end: i32,
}
