//! Tier: an ordered group of policies (upstream `tier.go`). Three exist always and are as they are.

use serde::{Deserialize, Serialize};

use super::Condition;
use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::{Object, Spec};
use crate::value::Order;
use crate::{Kind, Metadata};

/// Spec of a Tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TierSpec {
    /// Its place among the tiers: lower first, none last, equal ones by name.
    #[serde(skip_serializing_if = "Order::is_last")]
    pub order: Order,
    /// What happens to a packet of an endpoint that a policy of the tier applies to, if no rule matches; default Deny.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_action: Option<TierAction>,
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TierAction {
    /// The packet is dropped.
    #[default]
    Deny,
    /// The next tier is asked; after the last one, the profiles.
    Pass,
}

/// Status of a Tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierStatus {
    /// `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

super::condition::judged!(TierStatus);

/// A tier that always exists, whether it is stored or not: its order and action cannot be changed, it cannot be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltInTier {
    /// Its name.
    pub name: &'static str,
    /// Its order.
    pub order: Order,
    /// What happens at its end.
    pub action: TierAction,
}

impl BuiltInTier {
    /// The one for ClusterNetworkPolicies that nobody in a namespace can override.
    pub const KUBE_ADMIN: BuiltInTier = BuiltInTier {
        name: "kube-admin",
        order: Order::whole(1_000),
        action: TierAction::Pass,
    };
    /// The one of policies that name none.
    pub const DEFAULT: BuiltInTier = BuiltInTier {
        name: "default",
        order: Order::whole(1_000_000),
        action: TierAction::Deny,
    };
    /// The one for ClusterNetworkPolicies that hold where no policy of a namespace does.
    pub const KUBE_BASELINE: BuiltInTier = BuiltInTier {
        name: "kube-baseline",
        order: Order::whole(10_000_000),
        action: TierAction::Pass,
    };
    /// All of them, in order.
    pub const ALL: [BuiltInTier; 3] = [Self::KUBE_ADMIN, Self::DEFAULT, Self::KUBE_BASELINE];

    /// The one with this name.
    pub fn named(name: &str) -> Option<BuiltInTier> {
        Self::ALL.into_iter().find(|tier| tier.name == name)
    }

    /// It as a resource.
    pub fn object(self) -> Object<TierSpec> {
        let spec = TierSpec {
            order: self.order,
            default_action: Some(self.action),
        };
        Object::new(self.name, spec)
    }
}

impl TierSpec {
    /// What happens at its end.
    pub fn action(&self) -> TierAction {
        self.default_action.unwrap_or_default()
    }
}

impl Spec for TierSpec {
    const KIND: Kind = Kind::Tier;
    const NAMES: NameRule = NameRule::Label;
    type Status = TierStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        let Some(fixed) = BuiltInTier::named(&metadata.name) else {
            return;
        };
        if !self.order.is_last() && self.order != fixed.order {
            let right = fixed.order.number().unwrap_or_default();
            problems.report("order", self.order, format!("must be {right} for tier {}", fixed.name));
        }
        if let Some(action) = self.default_action.filter(|action| *action != fixed.action) {
            problems.report(
                "defaultAction",
                format_args!("{action:?}"),
                format!("must be {:?} for tier {}", fixed.action, fixed.name),
            );
        }
    }

    fn apply_defaults(&mut self, metadata: &mut Metadata) {
        match BuiltInTier::named(&metadata.name) {
            Some(fixed) => {
                self.order = fixed.order;
                self.default_action = Some(fixed.action);
            }
            None => {
                self.default_action.get_or_insert_default();
            }
        }
    }
}

/// Finalizer that holds the deletion of a tier while policies belong to it.
pub const TIER_FINALIZER: &str = "projectcalico.org/tier-controller";
