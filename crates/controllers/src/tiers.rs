//! The tiers that always exist are stored, so that everybody sees them; a tier in use stays.
//!
//! Where the datastore honours finalizers, a tier's deletion waits until no policy belongs to it. Elsewhere `calicoctl
//! delete` refuses. A built-in tier that was deleted all the same goes at once, and is written again: agents know it and enforce
//! its policies whether it is stored or not.

use std::collections::BTreeSet;

use api::{BuiltInTier, ConditionStatus, Kind, Resource, TIER_FINALIZER, Tier, TierSpec};

use crate::action::{Action, Judgement};
use crate::pools::{is_held, is_said};
use crate::world::World;

/// The condition.
pub const READY: &str = "Ready";

/// The kinds that belong to tiers.
pub const POLICIES: [Kind; 5] = [
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
    let is_used = |tier: &str| {
        let mut policies = POLICIES.into_iter().flat_map(|kind| world.of_kind(kind));
        policies.any(|policy| belongs(policy, tier))
    };
    for tier in world.all::<TierSpec>() {
        let (name, generation) = (&tier.metadata.name, tier.metadata.generation);
        let ready = judge(tier, is_used);
        let conditions = tier.status.iter().flat_map(|status| &status.conditions);
        if !is_said(conditions, READY, &ready, generation) {
            actions.push(Action::JudgeTier {
                name: name.clone(),
                generation,
                ready,
            });
        }
    }
    let held = world.of_kind(Kind::Tier).filter(|_| finalizers);
    actions.extend(held.filter_map(|tier| hold(tier, is_used)));
    actions
}

/// A tier is held once it can be read, and let go when it is being deleted and nothing needs it, whether it can be read or not.
fn hold(tier: &Resource, is_used: impl Fn(&str) -> bool) -> Option<Action> {
    let metadata = tier.metadata();
    let name = metadata.name.clone();
    match (metadata.deletion_timestamp.is_some(), is_held(metadata, TIER_FINALIZER)) {
        (false, false) if !matches!(tier, Resource::Wrong(_)) => Some(Action::HoldTier { name, hold: true }),
        (true, true) if BuiltInTier::named(&name).is_some() || !is_used(&name) => {
            Some(Action::HoldTier { name, hold: false })
        }
        _ => None,
    }
}

/// Whether a policy belongs to a tier, or may: of one that cannot be read that may be in doubt.
pub fn belongs(policy: &Resource, tier: &str) -> bool {
    match policy {
        Resource::Wrong(wrong) if wrong.is_in_doubt("spec.tier") => true,
        policy => policy.tier() == Some(tier),
    }
}

fn judge(tier: &Tier, is_used: impl Fn(&str) -> bool) -> Judgement {
    if tier.metadata.deletion_timestamp.is_none() {
        return Judgement {
            status: ConditionStatus::True,
            reason: "OK",
            message: "policies may belong to the tier".into(),
        };
    }
    let name = &tier.metadata.name;
    let message = match (BuiltInTier::named(name), is_used(name)) {
        (Some(_), _) => "the tier is built in: it is written again at once",
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
    use api::{GlobalNetworkPolicy, GlobalNetworkPolicySpec};
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
        // Nobody knows whose a policy is whose tier cannot be read.
        let wrong = json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "w" }, "spec": { "tier": 5 } });
        let wrong: Resource = serde_json::from_value(wrong).unwrap();
        assert!(matches!(wrong, Resource::Wrong(_)));
        check(
            true,
            all(vec![tier("t", true, true), wrong]),
            &["judge-tier t Terminating"],
        );
    }

    #[test]
    fn a_tier_that_cannot_be_read_goes_like_another_one() {
        let wrong = |deleting: bool, held: bool| -> Resource {
            let mut metadata = json!({ "name": "t" });
            if deleting {
                metadata["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
            }
            if held {
                metadata["finalizers"] = json!([TIER_FINALIZER]);
            }
            serde_json::from_value(json!({ "kind": "Tier", "metadata": metadata, "spec": { "order": "first" } }))
                .unwrap()
        };
        let case = |resources: Vec<Resource>, expected: &[&str]| {
            let world: World = resources.into_iter().collect();
            let actions = decide(&world, true).into_iter().map(|action| action.to_string());
            let held: Vec<String> = actions.filter(|action| action.starts_with("hold-tier")).collect();
            assert_eq!(held, expected);
        };
        case(vec![wrong(false, false)], &[]);
        case(vec![wrong(false, true)], &[]);
        case(vec![wrong(true, true), policy("t")], &[]);
        case(vec![wrong(true, true), policy("u")], &["hold-tier t false"]);
    }

    #[test]
    fn a_built_in_tier_that_is_deleted_goes_and_is_written_again() {
        let all = |default: Option<Resource>| {
            let others = ["kube-admin", "kube-baseline"].map(|name| tier(name, false, true));
            others
                .into_iter()
                .chain(default)
                .chain([policy("default")])
                .collect::<World>()
        };
        let about_default = |world: &World| {
            let actions = decide(world, true).into_iter().map(|action| action.to_string());
            actions.filter(|action| action.contains(" default")).collect::<Vec<_>>()
        };
        let deleted = all(Some(tier("default", true, true)));
        assert_eq!(
            about_default(&deleted),
            ["judge-tier default Terminating", "hold-tier default false"]
        );
        assert_eq!(about_default(&all(None)), ["create-tier default"]);
    }
}
