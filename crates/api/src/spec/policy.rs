//! NetworkPolicy and GlobalNetworkPolicy: ordered rules behind a selector (upstream `networkpolicy.go`,
//! `globalnetworkpolicy.go`). What all policy kinds have in common is written here once; staged ones are in
//! `staged_policy.rs`.

use serde::{Deserialize, Serialize};

use super::{Condition, Rule, ServiceMatch, is_false};
use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{Order, check};
use crate::{Kind, Metadata};

/// Makes the spec of a policy kind: the fields that all have, and its own.
macro_rules! policy_spec {
    ($(#[$doc:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            /// The tier it belongs to; `default` if empty.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub tier: String,
            /// Its place in the tier: lower first, none last, equal ones by name.
            #[serde(skip_serializing_if = "Order::is_last")]
            pub order: Order,
            /// Rules for packets to the endpoints, at most 1024.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub ingress: Vec<Rule>,
            /// Rules for packets from the endpoints, at most 1024.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub egress: Vec<Rule>,
            /// Endpoints that it applies to, by their labels; all if empty.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub selector: String,
            /// Directions that it applies to; from its rules if empty.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub types: Vec<PolicyType>,
            /// Endpoints that it applies to, by the labels of their service accounts; all if empty.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub service_account_selector: String,
            /// Hints that change no decision.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub performance_hints: Vec<PerformanceHint>,
            $($own)*
        }

        impl $name {
            /// The tier that it belongs to.
            pub fn tier(&self) -> &str {
                $crate::spec::policy::tier_or_default(&self.tier)
            }

            /// Whether it applies to a direction.
            pub fn applies_to(&self, direction: PolicyType) -> bool {
                $crate::spec::policy::types_or_default(&self.types, &self.ingress, &self.egress).contains(&direction)
            }

            /// What all policy kinds have in common.
            pub(in $crate::spec) fn common(&self) -> $crate::spec::policy::Common<'_> {
                $crate::spec::policy::Common {
                    tier: &self.tier,
                    ingress: &self.ingress,
                    egress: &self.egress,
                    selector: &self.selector,
                    types: &self.types,
                    service_account_selector: &self.service_account_selector,
                    performance_hints: &self.performance_hints,
                }
            }

            /// Fills in tier, types and the tier's label.
            pub(in $crate::spec) fn fill_in(&mut self, metadata: &mut Metadata) {
                self.tier = self.tier().to_owned();
                if self.types.is_empty() {
                    self.types = $crate::spec::policy::types_or_default(&[], &self.ingress, &self.egress);
                }
                metadata.labels.insert($crate::names::TIER_LABEL.to_owned(), self.tier.clone());
            }
        }
    };
}

pub(super) use policy_spec;

policy_spec! {
    /// Spec of a NetworkPolicy. It applies to endpoints of its namespace alone.
    pub struct NetworkPolicySpec {}
}

policy_spec! {
    /// Spec of a GlobalNetworkPolicy.
    pub struct GlobalNetworkPolicySpec {
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

/// A direction that a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyType {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// A hint that changes no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PerformanceHint {
    /// Every node prepares the policy before it has an endpoint for it.
    AssumeNeededOnEveryNode,
}

/// Status of the policy kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// `Valid`: whether the policy can be enforced as written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

super::condition::judged!(PolicyStatus);

/// What all policy kinds have in common, borrowed from one.
pub(super) struct Common<'a> {
    pub tier: &'a str,
    pub ingress: &'a [Rule],
    pub egress: &'a [Rule],
    pub selector: &'a str,
    pub types: &'a [PolicyType],
    pub service_account_selector: &'a str,
    pub performance_hints: &'a [PerformanceHint],
}

/// Most rules that a policy may have in one direction.
const MOST_RULES: usize = 1024;

impl Common<'_> {
    /// Reports what is wrong; paths start below `spec`.
    pub fn check(&self, problems: &mut Problems) {
        if !self.tier.is_empty() && !crate::names::is_label(self.tier) {
            problems.report("tier", self.tier, NameRule::LABEL);
        }
        for (field, rules) in [("ingress", self.ingress), ("egress", self.egress)] {
            check::at_most(field, rules.len(), MOST_RULES, problems);
            problems.each(field, rules, |problems, rule| rule.check(problems));
        }
        problems.each("egress", self.egress, |problems, rule| {
            if rule.http.is_some() {
                problems.missing("http", "must be absent: only ingress rules may look at HTTP");
            }
            if rule.source.services.is_some() {
                problems.missing(
                    "source.services",
                    "must be absent: egress rules may have it in destination",
                );
            }
        });
        problems.each("ingress", self.ingress, |problems, rule| {
            if rule.destination.services.is_some() {
                problems.missing(
                    "destination.services",
                    "must be absent: ingress rules may have it in source",
                );
            }
        });
        check::selector("selector", self.selector, problems);
        check::selector("serviceAccountSelector", self.service_account_selector, problems);
        once("types", self.types, problems);
        once("performanceHints", self.performance_hints, problems);
    }
}

/// Reports services without a namespace, which a global policy has none of its own for; paths start below `spec`.
fn check_global_services(common: &Common<'_>, problems: &mut Problems) {
    let nameless =
        |services: &Option<ServiceMatch>| services.as_ref().is_some_and(|services| services.namespace.is_empty());
    const RIGHT: &str = "is required: a global policy has no namespace of its own";
    problems.each("ingress", common.ingress, |problems, rule| {
        if nameless(&rule.source.services) {
            problems.missing("source.services.namespace", RIGHT);
        }
    });
    problems.each("egress", common.egress, |problems, rule| {
        if nameless(&rule.destination.services) {
            problems.missing("destination.services.namespace", RIGHT);
        }
    });
}

/// Reports items that occur before in the list.
fn once<T: PartialEq + std::fmt::Debug>(field: &str, items: &[T], problems: &mut Problems) {
    for (index, item) in items.iter().enumerate() {
        if items[..index].contains(item) {
            problems.report(
                &format!("{field}[{index}]"),
                format_args!("{item:?}"),
                "must occur once",
            );
        }
    }
}

/// The tier that an empty name means.
pub(super) fn tier_or_default(tier: &str) -> &str {
    match tier {
        "" => "default",
        tier => tier,
    }
}

/// The directions that no types mean: those that have rules, or ingress.
pub(super) fn types_or_default(types: &[PolicyType], ingress: &[Rule], egress: &[Rule]) -> Vec<PolicyType> {
    match (types, ingress, egress) {
        ([], _, []) => vec![PolicyType::Ingress],
        ([], [], _) => vec![PolicyType::Egress],
        ([], _, _) => vec![PolicyType::Ingress, PolicyType::Egress],
        (types, _, _) => types.to_vec(),
    }
}

/// What global policies have besides.
#[derive(Clone, Copy)]
pub(super) struct Global<'a> {
    pub namespace_selector: &'a str,
    pub do_not_track: bool,
    pub pre_dnat: bool,
    pub apply_on_forward: bool,
}

impl Global<'_> {
    /// Reports what is wrong; paths start below `spec`.
    pub fn check(self, common: &Common<'_>, problems: &mut Problems) {
        common.check(problems);
        check_global_services(common, problems);
        check::selector("namespaceSelector", self.namespace_selector, problems);
        if self.do_not_track && self.pre_dnat {
            problems.report("doNotTrack", true, "must not go together with preDNAT");
        }
        for (field, set) in [("doNotTrack", self.do_not_track), ("preDNAT", self.pre_dnat)] {
            if set && !self.apply_on_forward {
                problems.report(field, true, "needs applyOnForward: true");
            }
        }
        if !self.pre_dnat {
            return;
        }
        if !common.egress.is_empty() {
            problems.missing("egress", "must be absent with preDNAT, which is for ingress");
        }
        if let Some(place) = common.types.iter().position(|kind| *kind == PolicyType::Egress) {
            problems.report(
                &format!("types[{place}]"),
                "Egress",
                "must be Ingress with preDNAT, which is for ingress",
            );
        }
    }
}

impl Spec for NetworkPolicySpec {
    const KIND: Kind = Kind::NetworkPolicy;
    const NAMES: NameRule = NameRule::Policy;
    type Status = PolicyStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        self.common().check(problems);
    }

    fn apply_defaults(&mut self, metadata: &mut Metadata) {
        self.fill_in(metadata);
    }
}

impl Spec for GlobalNetworkPolicySpec {
    const KIND: Kind = Kind::GlobalNetworkPolicy;
    const NAMES: NameRule = NameRule::GlobalPolicy;
    type Status = PolicyStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        let global = Global {
            namespace_selector: &self.namespace_selector,
            do_not_track: self.do_not_track,
            pre_dnat: self.pre_dnat,
            apply_on_forward: self.apply_on_forward,
        };
        global.check(&self.common(), problems);
    }

    fn apply_defaults(&mut self, metadata: &mut Metadata) {
        self.fill_in(metadata);
    }
}
