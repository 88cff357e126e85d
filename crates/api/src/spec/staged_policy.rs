//! Staged policies: rehearsals that are evaluated and reported, never enforced (upstream `staged*.go`).

use serde::{Deserialize, Serialize};

use super::policy::{Global, policy_spec};
use super::{GlobalNetworkPolicySpec, NetworkPolicySpec, PerformanceHint, PolicyStatus, PolicyType, Rule, is_false};
use crate::kubernetes::{K8sEgressRule, K8sIngressRule, K8sNetworkPolicySpec, LabelSelector};
use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::Order;
use crate::{Kind, Metadata};

/// What a staged policy rehearses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StagedAction {
    /// That the policy is as written here.
    #[default]
    Set,
    /// That the policy of this name is gone.
    Delete,
    /// Nothing: it collects what would have to be allowed.
    Learn,
    /// Nothing.
    Ignore,
}

policy_spec! {
    /// Spec of a StagedNetworkPolicy.
    pub struct StagedNetworkPolicySpec {
        /// What is rehearsed.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub staged_action: Option<StagedAction>,
    }
}

policy_spec! {
    /// Spec of a StagedGlobalNetworkPolicy. For its own fields see [`GlobalNetworkPolicySpec`].
    pub struct StagedGlobalNetworkPolicySpec {
        /// What is rehearsed.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub staged_action: Option<StagedAction>,
        /// Endpoints that it applies to, by the labels of their namespaces; with one, host endpoints never.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub namespace_selector: String,
        /// Host endpoints: before connection tracking, and what it allows is not tracked.
        #[serde(skip_serializing_if = "is_false")]
        pub do_not_track: bool,
        /// Host endpoints: before destination NAT.
        #[serde(rename = "preDNAT", skip_serializing_if = "is_false")]
        pub pre_dnat: bool,
        /// Host endpoints: also for packets that are forwarded.
        #[serde(skip_serializing_if = "is_false")]
        pub apply_on_forward: bool,
    }
}

/// Spec of a StagedKubernetesNetworkPolicy: a `networking.k8s.io/v1` NetworkPolicy's, with what is rehearsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StagedKubernetesNetworkPolicySpec {
    /// What is rehearsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_action: Option<StagedAction>,
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

impl StagedNetworkPolicySpec {
    /// The policy that it rehearses.
    pub fn enforced(&self) -> NetworkPolicySpec {
        NetworkPolicySpec {
            tier: self.tier.clone(),
            order: self.order,
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            selector: self.selector.clone(),
            types: self.types.clone(),
            service_account_selector: self.service_account_selector.clone(),
            performance_hints: self.performance_hints.clone(),
        }
    }
}

impl StagedGlobalNetworkPolicySpec {
    /// The policy that it rehearses.
    pub fn enforced(&self) -> GlobalNetworkPolicySpec {
        GlobalNetworkPolicySpec {
            tier: self.tier.clone(),
            order: self.order,
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            selector: self.selector.clone(),
            types: self.types.clone(),
            service_account_selector: self.service_account_selector.clone(),
            performance_hints: self.performance_hints.clone(),
            namespace_selector: self.namespace_selector.clone(),
            do_not_track: self.do_not_track,
            pre_dnat: self.pre_dnat,
            apply_on_forward: self.apply_on_forward,
        }
    }
}

impl StagedKubernetesNetworkPolicySpec {
    /// The policy that it rehearses, in Kubernetes' terms: see [`crate::kubernetes`].
    pub fn enforced(&self) -> K8sNetworkPolicySpec {
        K8sNetworkPolicySpec {
            pod_selector: self.pod_selector.clone(),
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            policy_types: self.policy_types.clone(),
        }
    }
}

/// Reports a deletion that says what the policy would be.
fn deletes_nothing_else(is_bare: bool, problems: &mut Problems) {
    if !is_bare {
        problems.report("stagedAction", "Delete", "must stand alone, or with the tier");
    }
}

impl Spec for StagedNetworkPolicySpec {
    const KIND: Kind = Kind::StagedNetworkPolicy;
    const NAMES: NameRule = NameRule::Policy;
    type Status = PolicyStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.staged_action == Some(StagedAction::Delete) {
            let bare = NetworkPolicySpec {
                tier: self.tier.clone(),
                ..NetworkPolicySpec::default()
            };
            return deletes_nothing_else(self.enforced() == bare, problems);
        }
        self.common().check(problems);
    }

    fn apply_defaults(&mut self, metadata: &mut Metadata) {
        let action = *self.staged_action.get_or_insert_default();
        self.fill_in(metadata);
        if action == StagedAction::Delete {
            // A deletion says nothing of the policy, not even for which directions it was.
            self.types.clear();
        }
    }
}

impl Spec for StagedGlobalNetworkPolicySpec {
    const KIND: Kind = Kind::StagedGlobalNetworkPolicy;
    const NAMES: NameRule = NameRule::GlobalPolicy;
    type Status = PolicyStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.staged_action == Some(StagedAction::Delete) {
            let bare = GlobalNetworkPolicySpec {
                tier: self.tier.clone(),
                ..GlobalNetworkPolicySpec::default()
            };
            return deletes_nothing_else(self.enforced() == bare, problems);
        }
        let global = Global {
            namespace_selector: &self.namespace_selector,
            do_not_track: self.do_not_track,
            pre_dnat: self.pre_dnat,
            apply_on_forward: self.apply_on_forward,
        };
        global.check(&self.common(), problems);
    }

    fn apply_defaults(&mut self, metadata: &mut Metadata) {
        let action = *self.staged_action.get_or_insert_default();
        self.fill_in(metadata);
        if action == StagedAction::Delete {
            // A deletion says nothing of the policy, not even for which directions it was.
            self.types.clear();
        }
    }
}

impl Spec for StagedKubernetesNetworkPolicySpec {
    const KIND: Kind = Kind::StagedKubernetesNetworkPolicy;
    type Status = PolicyStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.staged_action == Some(StagedAction::Delete) {
            return deletes_nothing_else(self.enforced() == K8sNetworkPolicySpec::default(), problems);
        }
        // What cannot be converted is wrong; what it is converted to does not matter here.
        let _ = self.enforced().convert(problems);
    }

    fn apply_defaults(&mut self, _: &mut Metadata) {
        self.staged_action.get_or_insert_default();
    }
}
