//! Finishes claims on blocks that a crash, or an answer that got lost, left half done.
//!
//! Whoever claims a block confirms it within milliseconds. A claim of this node that stays unconfirmed was interrupted: the
//! block is announced to nobody until it is confirmed or given up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::{Key, Resource};
use datastore::Update;
use ipam::{Ipam, Owner};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::start::wait;

/// How long a claim may stay unconfirmed before it counts as interrupted.
const PATIENCE: Duration = Duration::from_secs(5);

/// A change of one of this node's claims: its key, and whether it waits for somebody to finish it.
pub type Change = (Key, bool);

/// What an update says of this node's claims.
pub fn change(node: &str, update: &Update) -> Option<Change> {
    let owner = Owner::Host(node.to_owned());
    match &update.value {
        Some(Resource::BlockAffinity(affinity)) if Owner::of(&affinity.spec) == owner => {
            Some((update.key.clone(), !affinity.spec.state.is_confirmed()))
        }
        // Whose it was, nobody knows any more; forgetting one that is not known does no harm.
        None if update.key.kind == api::Kind::BlockAffinity => Some((update.key.clone(), false)),
        _ => None,
    }
}

/// Repairs at the start, and later whenever a claim has waited for too long. Ends when the changes end.
pub async fn keep(node: String, ipam: Ipam, mut changes: mpsc::UnboundedReceiver<Change>) {
    let owner = Owner::Host(node);
    let mut waiting = Waiting::default();
    // What an earlier agent left is not waited for.
    let mut due = Some(Instant::now());
    let mut failures = 0;
    let mut told = None;
    loop {
        tokio::select! {
            change = changes.recv() => {
                let Some((key, waits)) = change else { return };
                waiting.note(key, waits, Instant::now());
            }
            () = until(due) => {
                match ipam.repair(Timestamp::now(), &owner).await {
                    Ok(blocks) => {
                        tracing::debug!(blocks = blocks.len(), "claims on blocks are whole");
                        waiting.repaired(Instant::now());
                        (failures, told) = (0, None);
                    }
                    Err(error) => {
                        failures += 1;
                        let why = error.to_string();
                        // Said once, not at each attempt.
                        if told.as_ref() != Some(&why) {
                            tracing::warn!(why, "claims on blocks could not be repaired; trying again");
                        }
                        told = Some(why);
                    }
                }
            }
        }
        due = match failures {
            0 => waiting.due(),
            failures => Some(Instant::now() + wait(failures)),
        };
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Claims that wait to be confirmed, with when they count as interrupted.
#[derive(Debug, Default)]
struct Waiting(BTreeMap<Key, Instant>);

impl Waiting {
    fn note(&mut self, key: Key, waits: bool, now: Instant) {
        match waits {
            true => drop(self.0.entry(key).or_insert(now + PATIENCE)),
            false => drop(self.0.remove(&key)),
        }
    }

    /// All that were due have been seen to; what the watch has still to tell of them comes soon.
    fn repaired(&mut self, now: Instant) {
        for due in self.0.values_mut().filter(|due| **due <= now) {
            *due = now + PATIENCE;
        }
    }

    fn due(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{AffinityState, BlockAffinity, BlockAffinitySpec};
    use datastore::{MemoryStore, SharedStore, Store};
    use ipnet::IpNet;

    use super::*;

    fn affinity(node: &str, kind: Option<&str>, state: AffinityState) -> BlockAffinity {
        let cidr: IpNet = "10.0.0.0/26".parse().expect("a range");
        let spec = BlockAffinitySpec {
            state,
            node: node.into(),
            affinity_type: kind.map(str::to_owned),
            cidr,
            deleted: false,
        };
        BlockAffinity::new(Key::affinity(node, cidr).name, spec)
    }

    #[test]
    fn only_own_unconfirmed_claims_wait() {
        let check = |affinity: BlockAffinity, expected: Option<bool>| {
            let update = Update {
                key: affinity.key(),
                value: Some(affinity.into()),
            };
            assert_eq!(change("me", &update).map(|(_, waits)| waits), expected, "{update:?}");
        };
        check(affinity("me", None, AffinityState::Pending), Some(true));
        check(affinity("me", Some("host"), AffinityState::PendingDeletion), Some(true));
        check(affinity("me", None, AffinityState::Confirmed), Some(false));
        check(affinity("me", None, AffinityState::Legacy), Some(false));
        check(affinity("me", Some("virtual"), AffinityState::Pending), None);
        check(affinity("other", None, AffinityState::Pending), None);
        let gone = Update {
            key: affinity("me", None, AffinityState::Pending).key(),
            value: None,
        };
        assert_eq!(change("me", &gone), Some((gone.key.clone(), false)));
    }

    #[test]
    fn a_claim_is_due_when_it_waited_long_enough() {
        let (start, key) = (Instant::now(), |name: &str| {
            Key::cluster(api::Kind::BlockAffinity, name)
        });
        let mut waiting = Waiting::default();
        assert_eq!(waiting.due(), None);
        waiting.note(key("a"), true, start);
        waiting.note(key("b"), true, start + PATIENCE / 2);
        waiting.note(key("a"), true, start + PATIENCE / 2);
        assert_eq!(waiting.due(), Some(start + PATIENCE), "since it was first seen");
        waiting.note(key("a"), false, start + PATIENCE);
        assert_eq!(waiting.due(), Some(start + PATIENCE * 3 / 2));
        waiting.repaired(start + PATIENCE * 2);
        assert_eq!(waiting.due(), Some(start + PATIENCE * 3));
        waiting.note(key("b"), false, start + PATIENCE * 2);
        assert_eq!(waiting.due(), None);
    }

    #[test]
    fn what_an_earlier_agent_left_is_finished_at_the_start() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let memory = MemoryStore::new();
            let store: SharedStore = Arc::new(memory.clone());
            let left = affinity("me", Some("host"), AffinityState::Pending);
            let key = left.key();
            memory.create(left.into()).await.expect("it is new");
            let (changes, inbox) = mpsc::unbounded_channel();
            let keeper = tokio::spawn(keep("me".into(), Ipam::new(store), inbox));
            loop {
                let now = memory
                    .get(&key)
                    .await
                    .expect("memory answers")
                    .map(|stored| stored.resource);
                match now {
                    Some(Resource::BlockAffinity(now)) if !now.spec.state.is_confirmed() => {
                        tokio::task::yield_now().await
                    }
                    Some(_) => break,
                    None => panic!("the claim was given up"),
                }
            }
            drop(changes);
            keeper.await.expect("it ends with the changes");
        });
    }
}
