//! Tiers and what is in them: three exist without being stored; a policy needs its tier; a tier in use stays.

use std::collections::BTreeSet;

use api::{BuiltInTier, Key, Kind, Resource};
use datastore::{Scope, SharedStore};

use crate::CtlError;

/// The kinds that belong to tiers by name.
const POLICIES: [Kind; 4] = [
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
];

/// The tier with this key, if it exists without being stored.
pub fn built_in(key: &Key) -> Option<Resource> {
    let tier = BuiltInTier::named(&key.name).filter(|_| key.kind == Kind::Tier)?;
    Some(tier.object().into())
}

/// The stored tiers and those that need not be stored, in the order in which they are asked.
pub fn all(stored: Vec<Resource>) -> Vec<Resource> {
    let mut tiers = stored;
    for tier in BuiltInTier::ALL {
        if !tiers.iter().any(|stored| stored.metadata().name == tier.name) {
            tiers.push(tier.object().into());
        }
    }
    let order = |tier: &Resource| match tier {
        Resource::Tier(tier) => tier.spec.order,
        _ => api::Order::LAST,
    };
    tiers.sort_by(|a, b| {
        order(a)
            .cmp(&order(b))
            .then_with(|| a.metadata().name.cmp(&b.metadata().name))
    });
    tiers
}

/// Policies whose tier is neither stored, nor built in, nor among what is written with them.
pub async fn unknown(resources: &[&Resource], store: &SharedStore) -> Result<Vec<String>, CtlError> {
    let named: BTreeSet<&str> = resources.iter().filter_map(|resource| resource.tier()).collect();
    let mut absent = BTreeSet::new();
    for name in named {
        let key = Key::cluster(Kind::Tier, name);
        if built_in(&key).is_none() && store.get(&key).await?.is_none() {
            absent.insert(name);
        }
    }
    for resource in resources.iter().filter(|resource| resource.kind() == Kind::Tier) {
        absent.remove(resource.metadata().name.as_str());
    }
    let text = |resource: &&Resource| {
        let tier = resource.tier().filter(|tier| absent.contains(tier))?;
        Some(format!(
            "{}: spec.tier: `{tier}` does not exist; create Tier({tier}) first",
            resource.key()
        ))
    };
    Ok(resources.iter().filter_map(text).collect())
}

/// Why tiers among these cannot be deleted: they are built in, or have policies that are not deleted with them.
pub async fn in_use(deleted: &[Key], store: &SharedStore) -> Result<Vec<String>, CtlError> {
    let tiers: Vec<&Key> = deleted.iter().filter(|key| key.kind == Kind::Tier).collect();
    if tiers.is_empty() {
        return Ok(Vec::new());
    }
    let deleted: BTreeSet<&Key> = deleted.iter().collect();
    let mut policies = Vec::new();
    for kind in POLICIES {
        let stored = store.list(&Scope::Kind(kind)).await?.items.into_iter();
        let left = stored
            .map(|stored| stored.resource)
            .filter(|policy| !deleted.contains(&policy.key()));
        policies.extend(left);
    }
    let why = |key: &Key| {
        if built_in(key).is_some() {
            return Some(format!("{key}: is built in and cannot be deleted"));
        }
        let users = policies
            .iter()
            .filter(|policy| policy.tier() == Some(key.name.as_str()));
        let users: Vec<String> = users.map(|policy| policy.key().to_string()).collect();
        let shown = users.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let (policies, more) = match users.len() {
            0 => return None,
            1 => ("1 policy".to_owned(), ""),
            count @ ..=3 => (format!("{count} policies"), ""),
            count => (format!("{count} policies"), ", …"),
        };
        Some(format!(
            "{key}: has {policies}: {shown}{more}; delete what it has or give it another tier first"
        ))
    };
    Ok(tiers.into_iter().filter_map(why).collect())
}
