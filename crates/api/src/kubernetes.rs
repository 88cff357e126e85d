//! Kubernetes' own policies: their types, as far as they say something about packets, and what they are in ours.
//!
//! A `networking.k8s.io/v1` NetworkPolicy is a NetworkPolicy, a `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy a
//! GlobalNetworkPolicy (upstream `lib/backend/k8s/conversion`). What cannot be converted is reported beside the policy: a rule
//! that allows or passes is left out then, a rule that denies denies everything.
//! Asks no API server, and reads leniently: fields that it does not know are another version's.

mod cluster_network_policy;
mod convert;
mod network_policy;
mod ports;
mod selector;

pub use cluster_network_policy::{
    ClusterAction, ClusterEgressPeer, ClusterEgressRule, ClusterIngressPeer, ClusterIngressRule, ClusterNetworkPolicy,
    ClusterNetworkPolicySpec, ClusterPort, ClusterPorts, ClusterProtocol, ClusterSubject, ClusterTier, NamespacedPod,
    PortRange,
};
pub use network_policy::{
    IntOrText, IpBlock, K8sEgressRule, K8sIngressRule, K8sNetworkPolicy, K8sNetworkPolicySpec, K8sPeer, K8sPort,
};
pub use selector::{LabelOperator, LabelRequirement, LabelSelector};

/// Order of every policy that comes from a NetworkPolicy.
pub const NETWORK_POLICY_ORDER: crate::Order = crate::Order::whole(1_000);

#[cfg(test)]
mod tests;
