//! All policies of the cluster in a compact form, and which of them select an endpoint of this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Key;

use crate::index::{self, Anchors, Index};
use crate::policy_facts::PolicyFacts;
use crate::population::Population;
use crate::table::{ByNo, No};

/// Policies by number. A number is never given to another policy.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    policies: ByNo<No, Policy>,
    numbers: BTreeMap<Key, No>,
    next: No,
    index: Index,
    /// Keys of policies that went away since the last flush. One that comes back has its number again.
    gone: Vec<Key>,
}

/// One policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub key: Key,
    pub facts: Arc<PolicyFacts>,
    anchors: Anchors,
}

impl Policies {
    /// Makes `facts` those of the policy `key`. Answers its number if that is news.
    pub fn set(&mut self, key: &Key, facts: Option<PolicyFacts>, population: &mut Population) -> Option<No> {
        let known = self.numbers.get(key).copied();
        let old = known.and_then(|no| self.policies.get(&no));
        if old.map(|policy| &*policy.facts) == facts.as_ref() {
            return None;
        }
        if let Some(no) = known
            && let Some(old) = self.policies.remove(&no)
        {
            self.index.remove(no, &old.anchors);
            index::release(&old.anchors, population.symbols());
        }
        let Some(facts) = facts else {
            self.gone.push(key.clone());
            return known;
        };
        let no = known.unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.numbers.insert(key.clone(), no);
        let anchors = index::hold(&facts.selector, population.symbols());
        self.index.insert(no, &anchors);
        let policy = Policy {
            key: key.clone(),
            facts: Arc::new(facts),
            anchors,
        };
        self.policies.insert(no, policy);
        Some(no)
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
        let mut found = self.index.candidates(population.label_numbers(group));
        found.retain(|no| self.selects(*no, group, population));
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
