//! Says on objects themselves whether they can be followed as they are written.
//!
//! An object gets the condition `Valid` when it is wrong, and keeps it, as true, when it is put right; one that never was wrong has
//! none, so that good objects cost no writes. Where objects have no place for conditions (Kubernetes' own, and those of upstream's
//! API group), the same is told as news, and told again from time to time, because news are forgotten.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use api::{BuiltInTier, Condition, ConditionStatus, FieldProblem, Key, Kind, Resource};
use jiff::{SignedDuration, Timestamp};
use policy::Effect;

use crate::action::{Action, Judgement};
use crate::world::World;

/// Reason of a condition that is true.
pub const VALID: &str = "Valid";
/// Reason of one that is false.
pub const INVALID: &str = "Invalid";
/// News are told again after this time; Kubernetes forgets them after an hour.
const AGAIN: SignedDuration = SignedDuration::from_mins(40);
/// Longest message, bytes: an event takes as much.
const LONGEST: usize = 1000;

/// What has been found out and said before.
#[derive(Clone, Debug, Default)]
pub struct Validity {
    /// What is wrong with objects by themselves, at a revision.
    known: BTreeMap<Key, (Option<String>, Vec<String>)>,
    /// What was said of objects that show nothing of it, and when.
    said: BTreeMap<Key, (Judgement, Timestamp)>,
}

impl Validity {
    /// What to say now.
    pub fn decide(&mut self, now: Timestamp, world: &World) -> Vec<Action> {
        let tiers = world.of_kind(Kind::Tier);
        let tiers = tiers.map(|tier| (tier.metadata().name.as_str(), policy::is_usable_tier(tier)));
        let tiers: BTreeMap<&str, bool> = tiers.collect();
        let mut actions = Vec::new();
        let mut seen = BTreeSet::new();
        for resource in Kind::WRITTEN.into_iter().flat_map(|kind| world.of_kind(kind)) {
            let key = resource.key();
            actions.extend(self.judge(now, &key, resource, &tiers));
            seen.insert(key);
        }
        self.known.retain(|key, _| seen.contains(key));
        self.said.retain(|key, _| seen.contains(key));
        actions
    }

    /// When something is to be told again; `None`: never.
    pub fn next(&self) -> Option<Timestamp> {
        let wrong = self.said.values().filter(|(said, _)| said.reason == INVALID);
        wrong.filter_map(|(_, at)| at.checked_add(AGAIN).ok()).min()
    }

    /// Something was not said after all.
    pub fn failed(&mut self, key: &Key) {
        self.said.remove(key);
    }

    fn judge(
        &mut self,
        now: Timestamp,
        key: &Key,
        resource: &Resource,
        tiers: &BTreeMap<&str, bool>,
    ) -> Option<Action> {
        let metadata = resource.metadata();
        let known = self
            .known
            .get(key)
            .filter(|(revision, _)| *revision == metadata.resource_version);
        let mut problems = match known {
            Some((_, problems)) => problems.clone(),
            None => {
                let problems = problems(resource);
                let revision = metadata.resource_version.clone();
                self.known.insert(key.clone(), (revision, problems.clone()));
                problems
            }
        };
        problems.extend(missing_tier(resource, tiers));
        let valid = judgement(&problems);
        let conditions = resource.conditions();
        let held = conditions.iter().find(|condition| condition.kind == Condition::VALID);
        let is_wrong = valid.reason == INVALID;
        match (held, self.said.get(key)) {
            // It says so itself.
            (Some(held), _) if valid.is_said_by(held, metadata.generation) => {
                self.said.remove(key);
                return None;
            }
            (None, None) if !is_wrong => return None,
            (_, Some((said, at))) if *said == valid => {
                let is_fresh = !is_wrong || at.checked_add(AGAIN).is_ok_and(|again| now < again);
                if is_fresh {
                    return None;
                }
            }
            _ => {}
        }
        self.said.insert(key.clone(), (valid.clone(), now));
        Some(Action::Judge {
            key: key.clone(),
            revision: metadata.resource_version.clone(),
            valid,
        })
    }
}

/// What is wrong with an object by itself, and what follows.
fn problems(resource: &Resource) -> Vec<String> {
    let mut found: Vec<(String, String)> = Vec::new();
    let policy = policy::problems_of(resource);
    for problem in policy.into_iter().flatten() {
        let follows = match problem.effect {
            Effect::Closed => "everything is denied for the endpoints concerned",
            Effect::Denies => "the policy denies what reaches it",
            Effect::Absent => "it counts as absent",
            Effect::NotReported => "this staged policy is left out",
            Effect::NotEnforced => "this part is not enforced",
        };
        let shown = FieldProblem {
            field: problem.field.clone(),
            value: Some(problem.value).filter(|value| !value.is_empty()),
            message: problem.text,
        };
        found.push((problem.field, format!("{shown}: {follows}")));
    }
    let follows = match resource {
        Resource::Wrong(wrong) => match wrong.kind() {
            Kind::HostEndpoint => ": all but failsafe ports is closed",
            Kind::NetworkSet | Kind::GlobalNetworkSet | Kind::IPReservation => ": the rest is in force",
            Kind::IPPool => ": what was in force stays so, and no new addresses are handed out of it",
            Kind::Tier if BuiltInTier::named(&wrong.metadata().name).is_some() => ": the tier is as it always is",
            Kind::Tier if policy::is_usable_tier(resource) => ": the rest is in force",
            Kind::Tier => ": its policies deny",
            Kind::BGPFilter => ": what was in force stays so; without that, peers that name it are left out",
            Kind::CalicoNodeStatus => ": no node says anything in it",
            _ => ": what was in force stays so",
        },
        _ => "",
    };
    // What Kubernetes' own are converted to is not what people wrote.
    let written = match api::names::is_from_kubernetes(&resource.metadata().name) {
        true => Vec::new(),
        false => resource.problems(),
    };
    for problem in written {
        // A policy's place and what lies in it are one problem.
        let is_told = |(field, _): &(String, String)| {
            problem.field.starts_with(field.as_str()) || field.starts_with(problem.field.as_str())
        };
        if !found.iter().any(is_told) {
            found.push((problem.field.clone(), format!("{problem}{follows}")));
        }
    }
    found.into_iter().map(|(_, text)| text).collect()
}

/// What is wrong with the tier that a policy names. `tiers`: whether those that are there count.
fn missing_tier(resource: &Resource, tiers: &BTreeMap<&str, bool>) -> Option<String> {
    let tier = resource.tier()?;
    let lacks = match tiers.get(tier) {
        _ if BuiltInTier::named(tier).is_some() => return None,
        Some(true) => return None,
        Some(false) => format!("the tier `{tier}` cannot be read"),
        None => format!("`{tier}` is no tier that exists"),
    };
    let follows = match resource.kind() {
        Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => "the policy denies what reaches it",
        _ => "this staged policy is left out",
    };
    Some(format!("spec.tier: {lacks}: {follows}"))
}

fn judgement(problems: &[String]) -> Judgement {
    if problems.is_empty() {
        return Judgement {
            status: ConditionStatus::True,
            reason: VALID,
            message: "it can be followed as it is written".into(),
        };
    }
    let mut message = String::new();
    for (at, problem) in problems.iter().enumerate() {
        let left = problems.len() - at;
        let problem = shortened(problem);
        if at > 0 && message.len() + problem.len() > LONGEST {
            message.push_str(&format!("; {left} more"));
            break;
        }
        if at > 0 {
            message.push_str("; ");
        }
        message.push_str(&problem);
    }
    Judgement {
        status: ConditionStatus::False,
        reason: INVALID,
        message,
    }
}

/// Of a problem that is too long the beginning, which names the field, and the end, which says what would be right and what
/// follows.
fn shortened(problem: &str) -> Cow<'_, str> {
    const GAP: &str = " … ";
    if problem.len() <= LONGEST {
        return problem.into();
    }
    let half = (LONGEST - GAP.len()) / 2;
    let head = &problem[..problem.floor_char_boundary(half)];
    let tail = &problem[problem.ceil_char_boundary(problem.len() - half)..];
    format!("{head}{GAP}{tail}").into()
}

#[cfg(test)]
mod tests;
