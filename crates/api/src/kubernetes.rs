//! Kubernetes' own policies: their types, as far as they say something about packets, and what they are in ours.
//!
//! Asks no API server. What cannot be converted is a [`FieldProblem`](crate::FieldProblem) beside the policy, never silent.

mod network_policy;
mod selector;

pub use network_policy::{IntOrText, IpBlock, K8sEgressRule, K8sIngressRule, K8sNetworkPolicySpec, K8sPeer, K8sPort};
pub use selector::{LabelOperator, LabelRequirement, LabelSelector};
