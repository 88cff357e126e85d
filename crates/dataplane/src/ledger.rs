//! Wanted and seen side by side; what is to be done falls out, in time proportional to what changed.

use std::collections::{BTreeMap, BTreeSet};

use kernel::KernelError;

/// Objects of one kind: what should be there, what is there, and what could not be done.
///
/// An item whose operation failed is parked with its reason. It comes back when its wish or its state in the kernel changes,
/// or when someone asks for it; never by itself, so a lasting failure costs nothing and hides nothing.
#[derive(Clone, Debug)]
pub struct Ledger<K, V> {
    wanted: BTreeMap<K, V>,
    seen: BTreeMap<K, V>,
    pending: BTreeSet<K>,
    /// Wanted items that were in place and that somebody else changed.
    drifted: BTreeSet<K>,
    failed: BTreeMap<K, KernelError>,
}

/// What would make one item as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a, V> {
    /// Add or replace it.
    Put(&'a V),
    /// Remove what is there.
    Remove(&'a V),
}

impl<K: Ord + Clone, V: PartialEq> Ledger<K, V> {
    /// Nothing wanted, nothing seen.
    pub fn new() -> Self {
        Self {
            wanted: BTreeMap::new(),
            seen: BTreeMap::new(),
            pending: BTreeSet::new(),
            drifted: BTreeSet::new(),
            failed: BTreeMap::new(),
        }
    }

    /// The item should be so; `None`: it should not be there.
    pub fn want(&mut self, key: K, value: Option<V>) {
        if change(&mut self.wanted, &key, value) {
            self.drifted.remove(&key);
            self.settle(key);
        }
    }

    /// The kernel has the item so; `None`: it is not there.
    pub fn saw(&mut self, key: K, value: Option<V>) {
        let in_place = self.is_in_place(&key);
        if change(&mut self.seen, &key, value) {
            if in_place {
                self.drifted.insert(key.clone());
            }
            self.settle(key);
        }
    }

    /// What the item is like is not known any more: it is to be put again. Nobody is to blame for that.
    pub fn forget(&mut self, key: K) {
        if self.seen.remove(&key).is_some() {
            self.settle(key);
        }
    }

    /// The kernel has exactly these. Everything that failed is tried again.
    pub fn saw_all(&mut self, seen: BTreeMap<K, V>) {
        let in_place = self.wanted.keys().filter(|key| self.is_in_place(key));
        let changed = in_place.filter(|key| self.wanted.get(*key) != seen.get(*key));
        let changed: Vec<K> = changed.cloned().collect();
        self.drifted.extend(changed);
        self.seen = seen;
        self.failed.clear();
        let keys = self.wanted.keys().chain(self.seen.keys());
        let differing = keys.filter(|key| self.wanted.get(key) != self.seen.get(key));
        self.pending = differing.cloned().collect();
        self.drifted.retain(|key| self.pending.contains(key));
    }

    /// What is to be done, apart from what failed.
    pub fn pending(&self) -> impl Iterator<Item = (&K, Step<'_, V>)> {
        self.pending
            .iter()
            .filter_map(|key| match (self.wanted.get(key), self.seen.get(key)) {
                (Some(wanted), _) => Some((key, Step::Put(wanted))),
                (None, Some(seen)) => Some((key, Step::Remove(seen))),
                (None, None) => None,
            })
    }

    /// The item's operation failed: parks it.
    pub fn fail(&mut self, key: &K, why: KernelError) {
        if self.pending.remove(key) || self.failed.contains_key(key) {
            self.failed.insert(key.clone(), why);
        }
    }

    /// Takes up again those parked items that `chosen` picks.
    pub fn retry(&mut self, mut chosen: impl FnMut(&K, Option<&V>) -> bool) {
        let Self {
            wanted,
            pending,
            failed,
            ..
        } = self;
        failed.retain(|key, _| {
            let again = chosen(key, wanted.get(key));
            if again {
                pending.insert(key.clone());
            }
            !again
        });
    }

    /// How the item should be.
    pub fn wanted(&self, key: &K) -> Option<&V> {
        self.wanted.get(key)
    }

    /// How the item is.
    pub fn seen(&self, key: &K) -> Option<&V> {
        self.seen.get(key)
    }

    /// Whether the item is as it should be.
    pub fn agrees(&self, key: &K) -> bool {
        self.wanted.get(key) == self.seen.get(key)
    }

    /// Whether the item is wanted, was in place, and is not any more through no doing of ours: to put it is a repair.
    pub fn has_drifted(&self, key: &K) -> bool {
        self.drifted.contains(key)
    }

    /// Everything that should be there.
    pub fn all_wanted(&self) -> &BTreeMap<K, V> {
        &self.wanted
    }

    /// Everything that is there.
    pub fn all_seen(&self) -> &BTreeMap<K, V> {
        &self.seen
    }

    /// What is parked, and why.
    pub fn failed(&self) -> &BTreeMap<K, KernelError> {
        &self.failed
    }

    fn is_in_place(&self, key: &K) -> bool {
        self.wanted.contains_key(key) && self.agrees(key)
    }

    fn settle(&mut self, key: K) {
        self.failed.remove(&key);
        if self.agrees(&key) {
            self.drifted.remove(&key);
            self.pending.remove(&key);
        } else {
            self.pending.insert(key);
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Default for Ledger<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the map hold `value`; answers whether that is news.
fn change<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    if map.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ledger: &Ledger<&'static str, u8>) -> Vec<String> {
        let step = |step: Step<'_, u8>| match step {
            Step::Put(value) => format!("={value}"),
            Step::Remove(_) => "-".into(),
        };
        ledger
            .pending()
            .map(|(key, what)| format!("{key}{}", step(what)))
            .collect()
    }

    #[test]
    fn the_difference_is_pending() {
        let mut ledger = Ledger::new();
        ledger.want("a", Some(1));
        ledger.want("b", Some(2));
        ledger.saw("b", Some(2));
        ledger.saw("c", Some(3));
        assert_eq!(shown(&ledger), ["a=1", "c-"]);
        ledger.saw("a", Some(1));
        ledger.saw("c", None);
        assert!(shown(&ledger).is_empty());
        ledger.saw("a", Some(9));
        assert_eq!(shown(&ledger), ["a=1"], "drift");
    }

    #[test]
    fn what_was_in_place_and_is_not_any_more_has_drifted() {
        let drifted = |ledger: &Ledger<&str, u8>| ["a", "b", "c"].map(|key| ledger.has_drifted(&key));
        let mut ledger = Ledger::new();
        for key in ["a", "b", "c"] {
            ledger.want(key, Some(1));
        }
        assert_eq!(drifted(&ledger), [false; 3], "never there");
        ledger.saw_all(BTreeMap::from([("a", 1), ("b", 1), ("c", 1)]));
        ledger.saw("a", None);
        ledger.saw("b", Some(9));
        ledger.forget("c");
        assert_eq!(
            drifted(&ledger),
            [true, true, false],
            "what is only forgotten is no drift"
        );
        assert_eq!(shown(&ledger), ["a=1", "b=1", "c=1"]);
        ledger.saw("a", Some(1));
        ledger.want("b", Some(2));
        assert_eq!(drifted(&ledger), [false; 3], "repaired; and another wish");
        ledger.saw_all(BTreeMap::from([("b", 2)]));
        assert_eq!(drifted(&ledger), [true, false, false]);
        ledger.want("a", None);
        assert_eq!(drifted(&ledger), [false; 3], "not wanted any more");
    }

    #[test]
    fn a_failure_waits_for_a_reason_to_try_again() {
        let mut ledger = Ledger::new();
        let why = || KernelError::Unsupported("x".into());
        ledger.want("a", Some(1));
        ledger.fail(&"a", why());
        assert!(shown(&ledger).is_empty());
        ledger.want("a", Some(1));
        assert!(shown(&ledger).is_empty(), "the same wish again is no news");
        ledger.want("a", Some(2));
        assert_eq!(shown(&ledger), ["a=2"]);
        ledger.fail(&"a", why());
        ledger.retry(|key, _| *key == "b");
        assert!(shown(&ledger).is_empty());
        ledger.retry(|key, wanted| *key == "a" && wanted == Some(&2));
        assert_eq!(shown(&ledger), ["a=2"]);
        ledger.fail(&"a", why());
        ledger.saw_all(BTreeMap::from([("b", 1)]));
        assert_eq!(shown(&ledger), ["a=2", "b-"]);
        assert!(ledger.failed().is_empty());
    }

    #[test]
    fn a_failure_of_what_is_done_is_none() {
        let mut ledger = Ledger::new();
        ledger.want("a", Some(1));
        ledger.saw("a", Some(1));
        ledger.fail(&"a", KernelError::Unsupported("late".into()));
        assert!(ledger.failed().is_empty());
    }
}
