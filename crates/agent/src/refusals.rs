//! Says on objects themselves that this node's kernel refuses what they ask for, and takes it back when it does no more.
//!
//! ```text
//!  packet filter ─ refused: key, why ─┐
//!                                     ├─> what differs ─> condition NODE/Enforced, or news
//!  datastore's watch ─ said: key, why ┘
//! ```
//!
//! The condition is there only while it is false, so a node that refuses nothing writes nothing. What an earlier agent of this node said
//! is read from the datastore, and taken back as soon as the packet filter knows better. At most [`MOST`] nodes say so on one
//! object: where every node refuses the same, its writes stay few and its status small; the others' `node status` says it in any
//! case. Objects without a place for conditions (Kubernetes' own, those of upstream's API group, profiles) get news instead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::{Condition, ConditionStatus, Key, Kind, Resource};
use datastore::{News, SharedStore, StoreError, Update};
use jiff::{Timestamp, Unit};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::start::wait;

/// What the kernel refuses: resources, with what follows and its reason.
pub type Refusals = BTreeMap<Key, String>;

/// Reason of the condition, and of news.
pub const REFUSED: &str = "RulesRefused";
/// Reason of news that it is over.
const ACCEPTED: &str = "RulesAccepted";
/// Nodes that say so on one object, at most.
const MOST: usize = 16;
/// Longest text, bytes: news take not much more.
const LONGEST: usize = 800;
/// How often a write is tried at once that others come before.
const TRIES: u32 = 8;
/// Pause after something could not be said; doubled up to [`AGAIN`] as long as nothing can.
const PAUSE: Duration = Duration::from_secs(5);
/// After this time it is tried again to find a place on an object, and news are told again, which are forgotten after an hour.
const AGAIN: Duration = Duration::from_secs(40 * 60);

/// What an object says of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    key: Key,
    text: Option<String>,
}

impl Said {
    /// What an update says; `None`: nothing, its kind has no place for it.
    pub fn of(node: &str, update: &Update) -> Option<Self> {
        has_place(&update.key).then(|| Self {
            key: update.key.clone(),
            text: update.value.as_ref().and_then(|value| text_of(node, value)),
        })
    }
}

/// Kinds that agents may have something to say of, and that may have a place for it.
fn has_place(key: &Key) -> bool {
    let kind = matches!(
        key.kind,
        Kind::NetworkPolicy | Kind::GlobalNetworkPolicy | Kind::HostEndpoint
    );
    kind && !api::names::is_from_kubernetes(&key.name)
}

fn text_of(node: &str, resource: &Resource) -> Option<String> {
    let mut conditions = resource.conditions().into_iter();
    let ours = conditions.find(|condition| condition.refused_by() == Some(node));
    ours.map(|condition| condition.message)
}

/// Says what is refused until the agent ends. `refused` is `None` as long as policy has not been tried.
pub async fn tell(
    node: String,
    store: SharedStore,
    mut refused: watch::Receiver<Option<Refusals>>,
    mut said: mpsc::UnboundedReceiver<Said>,
) {
    let mut teller = Teller {
        node,
        store,
        said: BTreeMap::new(),
        told: BTreeMap::new(),
        full: BTreeSet::new(),
    };
    let mut pause = PAUSE;
    let mut again = Instant::now() + AGAIN;
    // What failed is not tried again because something else was heard.
    let mut rest_until: Option<Instant> = None;
    loop {
        let now = refused.borrow_and_update().clone();
        let rests = rest_until.is_some_and(|until| Instant::now() < until);
        if let Some(now) = now.filter(|_| !rests) {
            (rest_until, pause) = match teller.say(&now).await {
                true => (None, PAUSE),
                false => (Some(Instant::now() + pause), (pause * 2).min(AGAIN)),
            };
        }
        let next = rest_until.map_or(again, |until| until.min(again));
        tokio::select! {
            changed = refused.changed() => match changed {
                Ok(()) => rest_until = None,
                Err(_) => return,
            },
            Some(one) = said.recv() => {
                teller.take(one);
                while let Ok(one) = said.try_recv() {
                    teller.take(one);
                }
            }
            () = tokio::time::sleep_until(next) => {}
        }
        if Instant::now() >= again {
            again = Instant::now() + AGAIN;
            teller.told.clear();
            teller.full.clear();
        }
    }
}

struct Teller {
    node: String,
    store: SharedStore,
    /// What objects say of this node.
    said: Refusals,
    /// What was told as news.
    told: Refusals,
    /// Objects on which enough nodes say so, or that have no place for it.
    full: BTreeSet<Key>,
}

/// What became of a condition.
enum Written {
    /// The object says so, or is not there.
    Done,
    /// Enough nodes say so.
    Full,
    /// The object has no place for it.
    NoPlace,
}

impl Teller {
    fn take(&mut self, said: Said) {
        match said.text {
            Some(text) => drop(self.said.insert(said.key, text)),
            None => drop(self.said.remove(&said.key)),
        }
    }

    /// Makes what is said what is so; `false` if something could not be said.
    async fn say(&mut self, refused: &Refusals) -> bool {
        let keys = refused.keys().chain(self.said.keys()).chain(self.told.keys());
        let keys: BTreeSet<Key> = keys.cloned().collect();
        let mut done = true;
        for key in keys {
            let text = refused.get(&key).map(|why| self.text(why));
            if let Err(error) = self.say_one(&key, text).await {
                tracing::debug!(about = %key, %error, "what the kernel refuses could not be said");
                done = false;
            }
        }
        done
    }

    fn text(&self, why: &str) -> String {
        let text = format!("on node {}, {why}", self.node);
        let end = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = end.take_while(|end| *end <= LONGEST).last().unwrap_or(0);
        text[..end].to_owned()
    }

    async fn say_one(&mut self, key: &Key, text: Option<String>) -> Result<(), StoreError> {
        if has_place(key) {
            if self.said.get(key) == text.as_ref() || text.is_some() && self.full.contains(key) {
                return self.news(key, text).await;
            }
            match self.write(key, text.as_deref()).await? {
                Written::Done => {
                    self.take(Said { key: key.clone(), text });
                    return Ok(());
                }
                Written::Full | Written::NoPlace => drop(self.full.insert(key.clone())),
            }
        }
        self.news(key, text).await
    }

    /// Tells what the object itself does not say.
    async fn news(&mut self, key: &Key, text: Option<String>) -> Result<(), StoreError> {
        let is_said = text.is_some() && self.said.get(key) == text.as_ref();
        if is_said || self.told.get(key) == text.as_ref() {
            return Ok(());
        }
        let news = News {
            about: key.clone(),
            is_warning: text.is_some(),
            reason: if text.is_some() { REFUSED } else { ACCEPTED }.to_owned(),
            message: match &text {
                Some(text) => text.clone(),
                None => format!("on node {}, the kernel has taken it again", self.node),
            },
            reporter: "margay-agent".to_owned(),
            node: Some(self.node.clone()),
        };
        self.store.tell(&news).await?;
        match text {
            Some(text) => drop(self.told.insert(key.clone(), text)),
            None => drop(self.told.remove(key)),
        }
        Ok(())
    }

    async fn write(&self, key: &Key, text: Option<&str>) -> Result<Written, StoreError> {
        let mut attempt = 0;
        loop {
            match self.write_once(key, text).await {
                Err(StoreError::Conflict(_)) if attempt < TRIES => {
                    attempt += 1;
                    tokio::time::sleep(wait(attempt)).await;
                }
                Err(StoreError::NotFound(_)) => return Ok(Written::Done),
                other => return other,
            }
        }
    }

    async fn write_once(&self, key: &Key, text: Option<&str>) -> Result<Written, StoreError> {
        let Some(stored) = self.store.get(key).await? else {
            return Ok(Written::Done);
        };
        let mut next = stored.resource;
        if matches!(&next, Resource::Wrong(wrong) if !wrong.is_whole()) {
            return Ok(Written::NoPlace);
        }
        let kind = Condition::enforced(&self.node);
        match text {
            None => {
                if !next.remove_condition(&kind) {
                    return Ok(Written::Done);
                }
            }
            Some(text) => {
                let conditions = next.conditions();
                let others = conditions.iter().filter(|held| held.kind != kind);
                if others.filter(|held| held.refused_by().is_some()).count() >= MOST {
                    return Ok(Written::Full);
                }
                if !next.set_condition(self.condition(kind, &conditions, text)) {
                    return Ok(Written::NoPlace);
                }
            }
        }
        let written = self.store.update_status(next, &stored.revision).await?;
        Ok(match text_of(&self.node, &written.resource).as_deref() == text {
            true => Written::Done,
            false => Written::NoPlace,
        })
    }

    fn condition(&self, kind: String, held: &[Condition], text: &str) -> Condition {
        let now = Timestamp::now();
        let since = held.iter().find(|held| held.kind == kind);
        Condition {
            kind,
            status: ConditionStatus::False,
            // It is about what the node has, not about a version of the object.
            observed_generation: None,
            last_transition_time: match since {
                Some(held) => held.last_transition_time,
                None => now.round(Unit::Second).unwrap_or(now),
            },
            reason: REFUSED.to_owned(),
            message: text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
