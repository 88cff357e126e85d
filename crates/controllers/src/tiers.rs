//! The tiers that always exist are stored, so that everybody sees them; a tier in use stays.
//!
//! Where the datastore honours finalizers, a tier's deletion waits until no policy belongs to it. Elsewhere `calicoctl
//! delete` refuses, and a built-in tier that was deleted all the same is written again.

use std::collections::BTreeSet;

use api::{BuiltInTier, ConditionStatus, Kind, TIER_FINALIZER, Tier, TierSpec};

use crate::action::{Action, Judgement};
use crate::pools::is_said;
use crate::world::World;

/// The condition.
pub const READY: &str = "Ready";

/// The kinds that belong to tiers.
const POLICIES: [Kind; 5] = [
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
];

/// What to do about tiers.
pub fn decide(world: &World, finalizers: bool) -> Vec<Action> {
    // One that cannot be read is there, and cannot be created.
    let there: BTreeSet<&str> = world
        .of_kind(Kind::Tier)
        .map(|tier| tier.metadata().name.as_str())
        .collect();
    let missing = BuiltInTier::ALL.into_iter().filter(|tier| !there.contains(tier.name));
    let mut actions: Vec<Action> = missing.map(Action::CreateTier).collect();
    let used: BTreeSet<&str> = POLICIES
        .into_iter()
        .flat_map(|kind| world.of_kind(kind))
        .filter_map(|policy| policy.tier())
        .collect();
    for tier in world.all::<TierSpec>() {
        let name = &tier.metadata.name;
        let is_used = used.contains(name.as_str());
        let ready = judge(tier, is_used);
        let conditions = tier.status.iter().flat_map(|status| &status.conditions);
        if !is_said(conditions, READY, &ready) {
            actions.push(Action::JudgeTier {
                name: name.clone(),
                ready,
            });
        }
        if finalizers {
            let held = tier
                .metadata
                .finalizers
                .iter()
                .any(|finalizer| finalizer == TIER_FINALIZER);
            let hold = tier.metadata.deletion_timestamp.is_none() || is_used || BuiltInTier::named(name).is_some();
            if held != hold && (hold || tier.metadata.deletion_timestamp.is_some()) {
                actions.push(Action::HoldTier {
                    name: name.clone(),
                    hold,
                });
            }
        }
    }
    actions
}

fn judge(tier: &Tier, is_used: bool) -> Judgement {
    if tier.metadata.deletion_timestamp.is_none() {
        return Judgement {
            status: ConditionStatus::True,
            reason: "OK",
            message: "policies may belong to the tier".into(),
        };
    }
    let message = match (BuiltInTier::named(&tier.metadata.name), is_used) {
        (Some(_), _) => "the tier is built in and cannot be deleted",
        (None, true) => "the tier is being deleted and waits for its policies to go",
        (None, false) => "the tier is being deleted",
    };
    Judgement {
        status: ConditionStatus::False,
        reason: "Terminating",
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use api::{GlobalNetworkPolicy, GlobalNetworkPolicySpec, Resource};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn tier(name: &str, deleting: bool, held: bool) -> Resource {
        let spec = TierSpec::default();
        let mut tier = BuiltInTier::named(name).map_or_else(|| Tier::new(name, spec), BuiltInTier::object);
        tier.metadata.deletion_timestamp = deleting.then_some(Timestamp::UNIX_EPOCH);
        tier.metadata.finalizers.extend(held.then(|| TIER_FINALIZER.to_owned()));
        tier.into()
    }

    fn policy(tier: &str) -> Resource {
        let spec = GlobalNetworkPolicySpec {
            tier: tier.to_owned(),
            ..GlobalNetworkPolicySpec::default()
        };
        GlobalNetworkPolicy::new("p", spec).into()
    }

    #[track_caller]
    fn check(finalizers: bool, resources: Vec<Resource>, expected: &[&str]) {
        let world: World = resources.into_iter().collect();
        let actions = decide(&world, finalizers);
        assert_eq!(actions.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_built_in_tiers_are_written_if_they_are_not_there() {
        check(
            false,
            vec![tier("default", false, false)],
            &[
                "create-tier kube-admin",
                "create-tier kube-baseline",
                "judge-tier default OK",
            ],
        );
        let wrong = json!({ "kind": "Tier", "metadata": { "name": "kube-admin" }, "spec": { "order": "first" } });
        let wrong: Resource = serde_json::from_value(wrong).unwrap();
        assert!(matches!(wrong, Resource::Wrong(_)));
        check(
            false,
            vec![wrong],
            &["create-tier default", "create-tier kube-baseline"],
        );
    }

    #[test]
    fn a_tier_is_held_while_policies_belong_to_it() {
        let all = |more: Vec<Resource>| {
            let built_in = BuiltInTier::ALL.map(|fixed| {
                let mut tier = fixed.object();
                tier.metadata.finalizers.push(TIER_FINALIZER.to_owned());
                tier.status = Some(api::TierStatus {
                    conditions: vec![api::Condition {
                        kind: READY.into(),
                        status: ConditionStatus::True,
                        observed_generation: None,
                        last_transition_time: Timestamp::UNIX_EPOCH,
                        reason: "OK".into(),
                        message: "policies may belong to the tier".into(),
                    }],
                });
                Resource::from(tier)
            });
            built_in.into_iter().chain(more).collect::<Vec<_>>()
        };
        check(true, all(vec![]), &[]);
        check(
            true,
            all(vec![tier("t", false, false)]),
            &["judge-tier t OK", "hold-tier t true"],
        );
        check(
            true,
            all(vec![tier("t", true, true), policy("t")]),
            &["judge-tier t Terminating"],
        );
        check(
            true,
            all(vec![tier("t", true, true), policy("default")]),
            &["judge-tier t Terminating", "hold-tier t false"],
        );
        check(false, all(vec![tier("t", true, false)]), &["judge-tier t Terminating"]);
    }
}
