//! What endpoints have from the policies that select them, worked out once for all that have the same ones.

use std::collections::BTreeSet;
use std::hash::Hash;

use crate::assemble::{Applied, Role, Selecting, is_asked};
use crate::policies::Policies;
use crate::table::{ByNo, No, Table};
use crate::tiers::Tiers;

/// By the number that an endpoint holds.
#[derive(Debug, Default)]
pub(super) struct AppliedLists {
    lists: Table<List>,
    /// By how many of them a policy is asked.
    uses: ByNo<No, u32>,
}

/// Policies that select an endpoint, sorted, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Selected {
    pub role: Role,
    pub policies: Box<[No]>,
}

#[derive(Debug)]
struct List {
    selected: Selected,
    applied: Applied,
    /// Policies that are asked.
    asked: Box<[No]>,
}

/// What lists are worked out from. Policies that begin or cease to be used are noted.
pub(super) struct Sources<'a> {
    pub policies: &'a Policies,
    pub tiers: &'a Tiers,
    pub noted: &'a mut BTreeSet<No>,
}

impl AppliedLists {
    /// What an endpoint has that these policies select.
    pub fn hold(&mut self, selected: Selected, sources: &mut Sources<'_>) -> No {
        let make = || List::new(selected.clone(), sources);
        let (no, is_new) = self.lists.hold_or(&selected, make);
        if is_new {
            for policy in &self.lists.get(no).asked {
                up(&mut self.uses, *policy, sources.noted);
            }
        }
        no
    }

    /// An endpoint does not have it any more.
    pub fn release(&mut self, no: No, noted: &mut BTreeSet<No>) {
        if let Some(list) = self.lists.release(no) {
            list.asked
                .iter()
                .for_each(|policy| down(&mut self.uses, *policy, noted));
        }
    }

    /// Works out again what is concerned; answers what is different then.
    pub fn refresh(&mut self, is_concerned: impl Fn(&Selected) -> bool, sources: &mut Sources<'_>) -> BTreeSet<No> {
        let lists = self.lists.iter();
        let concerned = lists.filter(|(_, list)| is_concerned(&list.selected));
        let concerned: Vec<No> = concerned.map(|(no, _)| no).collect();
        let mut different = BTreeSet::new();
        for no in concerned {
            let list = self.lists.get_mut(no);
            let new = List::new(list.selected.clone(), sources);
            new.asked
                .iter()
                .for_each(|policy| up(&mut self.uses, *policy, sources.noted));
            list.asked
                .iter()
                .for_each(|policy| down(&mut self.uses, *policy, sources.noted));
            if new.applied != list.applied {
                different.insert(no);
                list.applied = new.applied;
            }
            list.asked = new.asked;
        }
        different
    }

    pub fn selected(&self, no: No) -> &Selected {
        &self.lists.get(no).selected
    }

    pub fn applied(&self, no: No) -> &Applied {
        &self.lists.get(no).applied
    }

    /// Whether an endpoint asks a policy.
    pub fn uses(&self, policy: No) -> bool {
        self.uses.contains_key(&policy)
    }
}

impl List {
    fn new(selected: Selected, Sources { policies, tiers, .. }: &Sources<'_>) -> Self {
        let known = selected.policies.iter();
        let known = known.filter_map(|no| Some((*no, policies.get(*no)?)));
        let asked = known
            .clone()
            .filter(|(_, policy)| is_asked(&policy.facts, selected.role, tiers));
        let asked = asked.map(|(no, _)| no).collect();
        let selecting = known.map(|(_, policy)| Selecting {
            key: &policy.key,
            facts: &policy.facts,
        });
        Self {
            applied: Applied::new(selected.role, selecting.collect(), tiers),
            selected,
            asked,
        }
    }
}

impl std::borrow::Borrow<Selected> for List {
    fn borrow(&self) -> &Selected {
        &self.selected
    }
}

impl Hash for List {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.selected.hash(state);
    }
}

fn up(uses: &mut ByNo<No, u32>, policy: No, noted: &mut BTreeSet<No>) {
    let count = uses.entry(policy).or_default();
    *count += 1;
    if *count == 1 {
        noted.insert(policy);
    }
}

fn down(uses: &mut ByNo<No, u32>, policy: No, noted: &mut BTreeSet<No>) {
    let Some(count) = uses.get_mut(&policy) else { return };
    *count -= 1;
    if *count == 0 {
        uses.remove(&policy);
        noted.insert(policy);
    }
}
