//! What counts of a resource that cannot be read as a whole, if it is no policy.
//!
//! Labels, addresses and rules that can be read count. What could leave something open counts as the most it may have been: a
//! host endpoint and whoever has a profile are closed. A tier whose place or end is in doubt is none, so its policies deny.

use api::{BuiltInTier, Key, Kind, Resource, Wrong};

use crate::policy_facts::problems;
use crate::problem::{Effect, Problem};
use crate::rules::Fault;

/// The resource to go by, and what is wrong with it. Policies are left as they are.
pub(crate) fn usable<'a>(key: &Key, value: Option<&'a Resource>) -> (Option<&'a Resource>, Vec<Problem>) {
    let Some(Resource::Wrong(wrong)) = value else {
        return (value, Vec::new());
    };
    if matches!(
        key.kind,
        Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
    ) || wrong.kind() != key.kind
    {
        return (None, Vec::new());
    }
    let readable = wrong.readable().filter(|_| is_enough(key.kind, wrong));
    let effect = match (key.kind, readable) {
        (Kind::Profile, _) | (Kind::HostEndpoint, Some(_)) => Effect::Closed,
        (_, Some(_)) => Effect::NotEnforced,
        (_, None) => Effect::Absent,
    };
    let problems = problems(key, wrong.problems().iter().map(Fault::from).collect(), effect);
    (readable, problems)
}

/// Whether a tier that is there counts: one whose place or end cannot be read counts as absent, but for those that always exist.
pub fn is_usable_tier(tier: &Resource) -> bool {
    match tier {
        Resource::Tier(_) => true,
        Resource::Wrong(wrong) => {
            BuiltInTier::named(&wrong.metadata().name).is_some()
                || wrong.readable().is_some() && is_enough(Kind::Tier, wrong)
        }
        _ => false,
    }
}

/// Whether what can be read says what the resource is for.
fn is_enough(kind: Kind, wrong: &Wrong) -> bool {
    let needed: &[&str] = match kind {
        Kind::Tier => &["spec.order", "spec.defaultAction"],
        Kind::HostEndpoint => &["spec.node"],
        Kind::WorkloadEndpoint => &["spec.node", "spec.ipNetworks"],
        Kind::KubernetesEndpointSlice => &["spec.service"],
        _ => &[],
    };
    !needed.iter().any(|field| wrong.is_in_doubt(field))
}
