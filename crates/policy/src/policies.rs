//! All policies of the cluster in a compact form, and which of them select an endpoint of this node.
//!
//! Equal selectors and equal rules of policies are kept once each, and a selector is tried once for all policies that have it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::{Key, Selector};

use crate::index::{self, Anchors, Index};
use crate::policy_facts::{PackedRules, PolicyFacts};
use crate::population::Population;
use crate::table::{ByNo, No, Table};

/// Policies by number. A number is never given to another policy.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    policies: ByNo<No, Policy>,
    numbers: BTreeMap<Arc<Key>, No>,
    next: No,
    /// Held by their policies.
    selectors: Table<Select>,
    /// Of the selectors.
    index: Index,
    /// Held by the policies that have them.
    rules: Table<PackedRules>,
    /// Keys of policies that went away since the last flush. One that comes back has its number again.
    gone: Vec<Arc<Key>>,
}

/// One policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub key: Arc<Key>,
    pub facts: PolicyFacts,
    selector: No,
    rules: No,
}

/// A selector, and the policies that have it.
#[derive(Debug)]
struct Select {
    selector: Arc<Selector>,
    anchors: Anchors,
    /// Sorted.
    policies: Vec<No>,
}

/// What is other about a policy than it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whom it selects.
    pub selector: bool,
    /// Where it is asked, and in which place.
    pub place: bool,
}

impl Change {
    /// Both.
    pub fn and(self, other: Change) -> Change {
        Change {
            selector: self.selector || other.selector,
            place: self.place || other.place,
        }
    }
}

impl Policies {
    /// Makes `facts` those of the policy `key`. If that is news, answers its number, and what is other about it. It always
    /// may be its rules.
    pub fn set(&mut self, key: &Key, facts: Option<PolicyFacts>, population: &mut Population) -> Option<(No, Change)> {
        let known = self.numbers.get(key).copied();
        let old = known.and_then(|no| self.policies.get(&no));
        let old_facts = old.map(|policy| &policy.facts);
        if old_facts == facts.as_ref() {
            return None;
        }
        let change = match (old_facts, &facts) {
            (Some(old), Some(new)) => Change {
                selector: old.selector != new.selector,
                place: !old.is_placed_as(new),
            },
            _ => Change {
                selector: true,
                place: true,
            },
        };
        let old = known.and_then(|no| self.policies.remove(&no));
        let Some(mut facts) = facts else {
            let old = old.zip(known);
            self.gone.extend(old.as_ref().map(|(old, _)| old.key.clone()));
            old.into_iter().for_each(|(old, no)| self.release(no, &old, population));
            return known.map(|no| (no, change));
        };
        let no = known.unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let key = match self.numbers.get_key_value(key) {
            Some((key, _)) => key.clone(),
            None => Arc::new(key.clone()),
        };
        self.numbers.entry(key.clone()).or_insert(no);
        let selector = self.hold_selector(&facts.selector, population);
        let (rules, _) = self.rules.hold(&facts.rules);
        old.into_iter().for_each(|old| self.release(no, &old, population));
        let select = self.selectors.get_mut(selector);
        if let Err(place) = select.policies.binary_search(&no) {
            select.policies.insert(place, no);
        }
        facts.selector = select.selector.clone();
        facts.rules = self.rules.get(rules).clone();
        let policy = Policy {
            key,
            facts,
            selector,
            rules,
        };
        self.policies.insert(no, policy);
        Some((no, change))
    }

    fn hold_selector(&mut self, selector: &Arc<Selector>, population: &mut Population) -> No {
        let make = || Select {
            selector: selector.clone(),
            anchors: index::hold(selector, population.symbols()),
            policies: Vec::new(),
        };
        let (no, is_new) = self.selectors.hold_or(&**selector, make);
        if is_new {
            self.index.insert(no, &self.selectors.get(no).anchors);
        }
        no
    }

    /// Lets go of what a policy held.
    fn release(&mut self, no: No, policy: &Policy, population: &mut Population) {
        self.rules.release(policy.rules);
        let policies = &mut self.selectors.get_mut(policy.selector).policies;
        if let Ok(place) = policies.binary_search(&no) {
            policies.remove(place);
        }
        if let Some(select) = self.selectors.release(policy.selector) {
            self.index.remove(policy.selector, &select.anchors);
            index::release(&select.anchors, population.symbols());
        }
    }

    /// Ends a flush.
    pub fn forget_gone(&mut self) {
        for key in std::mem::take(&mut self.gone) {
            if self.numbers.get(&key).is_some_and(|no| !self.policies.contains_key(no)) {
                self.numbers.remove(&key);
            }
        }
    }

    pub fn get(&self, no: No) -> Option<&Policy> {
        self.policies.get(&no)
    }

    /// Whether a policy selects what is in a group.
    pub fn selects(&self, no: No, group: No, population: &Population) -> bool {
        let policy = self.policies.get(&no);
        policy.is_some_and(|policy| population.matches(group, &policy.facts.selector))
    }

    /// All policies that select what is in a group, sorted.
    pub fn selecting(&self, group: No, population: &Population) -> Vec<No> {
        let mut found = Vec::new();
        for no in self.index.candidates(population.label_numbers(group)) {
            let select = self.selectors.get(no);
            if population.matches(group, &select.selector) {
                found.extend_from_slice(&select.policies);
            }
        }
        found.sort_unstable();
        found
    }

    /// Numbers of those that every node prepares.
    pub fn everywhere(&self) -> impl Iterator<Item = No> {
        let policies = self.policies.iter();
        policies
            .filter(|(_, policy)| policy.facts.everywhere)
            .map(|(no, _)| *no)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.numbers.values().filter_map(|no| self.policies.get(no))
    }
}

impl Borrow<Selector> for Select {
    fn borrow(&self) -> &Selector {
        &self.selector
    }
}

impl Hash for Select {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.selector.hash(state);
    }
}
