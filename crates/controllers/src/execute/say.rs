//! What is said of objects: in their status, which is written alone, or as news of them.

use api::{Condition, ConditionStatus, Key, Kind, KubeControllersConfigurationStatus, Resource};
use datastore::modify::TRIES;
use datastore::{News, StoreError};
use jiff::Timestamp;

use super::{Done, Executor, Outcome};
use crate::action::Judgement;

impl Executor {
    /// In a condition where the object keeps one, else as news of it.
    pub(super) async fn judge(&self, now: Timestamp, key: &Key, revision: Option<&str>, valid: &Judgement) -> Done {
        let stored = self.store.get(key).await?;
        let Some(stored) = stored.filter(|stored| revision.is_none_or(|revision| stored.revision.0 == revision)) else {
            return Ok(Outcome::Nothing("it is another one by now"));
        };
        let mut next = stored.resource.clone();
        let can_be_written = match &next {
            Resource::Wrong(wrong) => wrong.is_whole(),
            _ => true,
        };
        let since = since(&next.conditions(), Condition::VALID, valid, now);
        let condition = valid.condition(Condition::VALID, next.metadata().generation, since);
        if can_be_written && !api::names::is_from_kubernetes(&key.name) && next.set_condition(condition.clone()) {
            let written = self.store.update_status(next, &stored.revision).await?;
            if written.resource.conditions().contains(&condition) {
                return Ok(Outcome::Done);
            }
        }
        let news = News {
            about: key.clone(),
            is_warning: valid.status == ConditionStatus::False,
            reason: valid.reason.to_owned(),
            message: valid.message.clone(),
            reporter: "margay-controllers".to_owned(),
            node: None,
        };
        self.store.tell(&news).await?;
        Ok(Outcome::Done)
    }

    /// Says something of an object, as it was at a generation.
    pub(super) async fn say(
        &self,
        now: Timestamp,
        key: &Key,
        kind: &str,
        judgement: &Judgement,
        generation: Option<i64>,
    ) -> Done {
        self.edit_status(key, |resource| {
            let since = since(&resource.conditions(), kind, judgement, now);
            resource.set_condition(judgement.condition(kind, generation, since));
        })
        .await
    }

    /// Changes what is said of an object that exists, and nothing else of it.
    async fn edit_status(&self, key: &Key, change: impl Fn(&mut Resource)) -> Done {
        for _ in 0..TRIES {
            let Some(stored) = self.store.get(key).await? else {
                return Ok(Outcome::Nothing("it is not there any more"));
            };
            let mut next = stored.resource.clone();
            change(&mut next);
            if next == stored.resource {
                return Ok(Outcome::Nothing("it is so already"));
            }
            match self.store.update_status(next, &stored.revision).await {
                Ok(written) if written.revision == stored.revision => {
                    return Ok(Outcome::Nothing("the datastore has no place for it"));
                }
                Ok(_) => return Ok(Outcome::Done),
                // Somebody has written it meanwhile, or it is gone.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key.clone()).into())
    }

    pub(super) async fn write_configuration_status(&self, status: &KubeControllersConfigurationStatus) -> Done {
        let key = Key::cluster(Kind::KubeControllersConfiguration, "default");
        self.edit_status(&key, |config| {
            if let Resource::KubeControllersConfiguration(config) = config {
                config.status = Some(status.clone());
            }
        })
        .await
    }
}

/// Since when a condition has this status. Kubernetes keeps whole seconds.
fn since(conditions: &[Condition], kind: &str, judgement: &Judgement, now: Timestamp) -> Timestamp {
    let held = conditions.iter().find(|condition| condition.kind == kind);
    match held.filter(|held| held.status == judgement.status) {
        Some(held) => held.last_transition_time,
        None => now.round(jiff::Unit::Second).unwrap_or(now),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{IpPool, IpPoolSpec, IpPoolStatus};
    use datastore::{MemoryStore, Store};
    use futures::FutureExt;

    use super::*;
    use crate::action::Action;

    #[test]
    fn a_condition_names_what_was_judged_and_leaves_the_rest() {
        let memory = MemoryStore::new();
        let executor = Executor::new(Arc::new(memory.clone()));
        let mut pool = IpPool::new("a", IpPoolSpec::new("10.0.0.0/16".parse().unwrap()));
        let other = Condition {
            kind: "Other".into(),
            status: ConditionStatus::Unknown,
            observed_generation: None,
            last_transition_time: Timestamp::UNIX_EPOCH,
            reason: "X".into(),
            message: String::new(),
        };
        pool.status = Some(IpPoolStatus {
            conditions: vec![other.clone()],
        });
        memory.create(pool.into()).now_or_never().unwrap().unwrap();
        // Second, generation, whether it may be used; what is done, and since when it is so.
        let check = |second: i64, generation: i64, status: ConditionStatus, done: Outcome, since: i64| {
            let judged = Action::JudgePool {
                name: "a".into(),
                generation: Some(generation),
                allocatable: Judgement {
                    status,
                    reason: "R",
                    message: "m".into(),
                },
            };
            let at = |second: i64| Timestamp::from_second(second).unwrap();
            let outcome = executor.perform(at(second), &judged).now_or_never().unwrap().unwrap();
            assert_eq!(outcome, done);
            let stored = memory.get(&Key::cluster(Kind::IPPool, "a")).now_or_never().unwrap();
            let expected = Condition {
                kind: IpPoolStatus::ALLOCATABLE.into(),
                status,
                observed_generation: Some(generation),
                last_transition_time: at(since),
                reason: "R".into(),
                message: "m".into(),
            };
            assert_eq!(
                stored.unwrap().unwrap().resource.conditions(),
                [other.clone(), expected]
            );
        };
        check(1, 1, ConditionStatus::True, Outcome::Done, 1);
        check(2, 1, ConditionStatus::True, Outcome::Nothing("it is so already"), 1);
        check(3, 2, ConditionStatus::True, Outcome::Done, 1);
        check(4, 2, ConditionStatus::False, Outcome::Done, 4);
    }
}
