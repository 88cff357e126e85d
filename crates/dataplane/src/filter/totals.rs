//! The counters of the table's rules, summed by what the rules do, over the life of an agent.
//!
//! A rule that is written again counts from nothing in the kernel; [`Totals`] keeps what it had, so that sums never go backwards
//! while an agent runs.

use std::collections::{BTreeMap, BTreeSet};

use kernel::nft::{ChainName, Count, RuleState};

/// So many causes are remembered after their rules are gone. What comes later is counted together.
pub(super) const REMEMBERED: usize = 4096;
/// What later ones are counted as.
pub(super) const OTHERS: &str = "(others)";

/// What is summed together.
pub trait Cause: Clone + Ord {
    /// What a rule counts for, if it is of interest.
    fn of_rule(state: &RuleState) -> Option<Self>;
    /// The same without saying whose rule it is.
    fn anonymous(&self) -> Self;
}

/// Sums by cause.
///
/// Before rules are thrown away tell what they have counted ([`Totals::retire`]); whoever asks reads all rules and tells them
/// ([`Totals::seen`]). What is counted between the last reading of a rule and its end is lost.
#[derive(Debug)]
pub struct Totals<C> {
    /// Of rules that are gone.
    gone: BTreeMap<C, Count>,
    /// Of rules that are there, when they were last read.
    here: BTreeMap<ChainName, BTreeMap<C, Count>>,
    /// While rules are being read: chains whose rules were thrown away since that began.
    rewritten: Option<BTreeSet<ChainName>>,
}

impl<C> Default for Totals<C> {
    fn default() -> Self {
        Self {
            gone: BTreeMap::new(),
            here: BTreeMap::new(),
            rewritten: None,
        }
    }
}

impl<C: Cause> Totals<C> {
    /// All rules of the table will be read, and told when that is done. What is thrown away meanwhile is not counted twice.
    pub fn begin(&mut self) {
        self.rewritten = Some(BTreeSet::new());
    }

    /// These chains' rules, as they were just before, have been thrown away.
    pub fn retire(&mut self, chains: &BTreeMap<ChainName, Vec<RuleState>>) {
        for (chain, rules) in chains {
            if let Some(rewritten) = &mut self.rewritten {
                rewritten.insert(chain.clone());
            }
            self.here.remove(chain);
            let last = sums(rules);
            last.into_iter().for_each(|(cause, count)| self.remember(cause, count));
        }
    }

    /// All rules of the table as they are, or were at some moment since [`Totals::begin`].
    pub fn seen(&mut self, chains: &BTreeMap<ChainName, Vec<RuleState>>) {
        // Nobody knows which rules were read of a chain that was written again: the next reading tells of the new ones.
        let rewritten = self.rewritten.take().unwrap_or_default();
        let now: BTreeMap<ChainName, BTreeMap<C, Count>> = chains
            .iter()
            .filter(|(chain, _)| !rewritten.contains(*chain))
            .map(|(chain, rules)| (chain.clone(), sums(rules)))
            .collect();
        for (chain, before) in std::mem::replace(&mut self.here, now) {
            for (cause, count) in before {
                let still = self.here.get(&chain).and_then(|sums| sums.get(&cause));
                // Less than before: somebody else has written the rules again.
                if still.is_none_or(|still| still.packets < count.packets) {
                    self.remember(cause, count);
                }
            }
        }
    }

    /// Packets and bytes so far, as of the last reading. Causes that nothing was counted for are left out.
    pub fn totals(&self) -> BTreeMap<C, Count> {
        let mut totals = self.gone.clone();
        for (cause, count) in self.here.values().flatten() {
            add(&mut totals, cause.clone(), *count);
        }
        totals.retain(|_, count| count.packets > 0);
        totals
    }

    fn remember(&mut self, cause: C, count: Count) {
        if count.packets == 0 {
            return;
        }
        let full = self.gone.len() >= REMEMBERED && !self.gone.contains_key(&cause);
        let cause = if full { cause.anonymous() } else { cause };
        add(&mut self.gone, cause, count);
    }
}

fn sums<C: Cause>(rules: &[RuleState]) -> BTreeMap<C, Count> {
    let mut sums = BTreeMap::new();
    for state in rules {
        if let Some(count) = state.count.filter(|count| count.packets > 0)
            && let Some(cause) = C::of_rule(state)
        {
            add(&mut sums, cause, count);
        }
    }
    sums
}

fn add<C: Ord>(sums: &mut BTreeMap<C, Count>, cause: C, count: Count) {
    let sum = sums.entry(cause).or_default();
    sum.packets = sum.packets.saturating_add(count.packets);
    sum.bytes = sum.bytes.saturating_add(count.bytes);
}
