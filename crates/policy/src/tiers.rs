//! Tiers in order. Three exist always and are as they are.

use std::collections::BTreeMap;

use api::{BuiltInTier, Order, TierAction, TierSpec};

use crate::state::TierEnd;

/// Tiers by name.
#[derive(Debug)]
pub(crate) struct Tiers(BTreeMap<String, TierFacts>);

/// What matters of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TierFacts {
    pub order: Order,
    pub end: TierEnd,
}

impl Default for Tiers {
    fn default() -> Self {
        let built_in = BuiltInTier::ALL.into_iter();
        Self(built_in.map(|tier| (tier.name.to_owned(), tier.into())).collect())
    }
}

impl Tiers {
    /// Makes `spec` the tier of this name; answers whether that is news.
    pub fn set(&mut self, name: &str, spec: Option<&TierSpec>) -> bool {
        if BuiltInTier::named(name).is_some() {
            return false;
        }
        let new = spec.map(|spec| TierFacts {
            order: spec.order,
            end: spec.action().into(),
        });
        let old = match new {
            Some(new) => self.0.insert(name.to_owned(), new),
            None => self.0.remove(name),
        };
        old != new
    }

    /// The tier of this name, if it exists.
    pub fn get(&self, name: &str) -> Option<TierFacts> {
        self.0.get(name).copied()
    }
}

impl From<BuiltInTier> for TierFacts {
    fn from(tier: BuiltInTier) -> Self {
        Self {
            order: tier.order,
            end: tier.action.into(),
        }
    }
}

impl From<TierAction> for TierEnd {
    fn from(action: TierAction) -> Self {
        match action {
            TierAction::Deny => TierEnd::Deny,
            TierAction::Pass => TierEnd::Pass,
        }
    }
}
