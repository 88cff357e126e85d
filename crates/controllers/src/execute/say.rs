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
