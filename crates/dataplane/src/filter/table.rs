//! The content of a table, without numbers and counters.

use std::collections::BTreeMap;

use kernel::nft::*;

use super::base::FORWARD;

/// A table with everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Chains by name.
    pub chains: BTreeMap<ChainName, TableChain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<SetName, TableSet>,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableChain {
    /// Where the kernel calls it.
    pub base: Option<BaseChain>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A set with its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSet {
    /// What it is.
    pub spec: SetSpec,
    /// What is in it.
    pub elements: Elements,
}

/// Whether an agent made this table, so that something is enforced. One that is empty, or that somebody else made under our name,
/// enforces nothing of ours.
pub fn is_made_by_an_agent(state: &TableState) -> bool {
    let forward = state.chains.get(&ChainName::from(FORWARD));
    forward.is_some_and(|chain| chain.base.is_some() && !chain.rules.is_empty())
}

impl Table {
    /// The content of a table as the kernel has it; `None`: somebody else put things into it that cannot be said here.
    pub fn seen(state: &TableState) -> Option<Self> {
        if state.is_strange() {
            return None;
        }
        let chain = |(name, chain): (&ChainName, &ChainState)| {
            let rules = chain.rules.iter().filter_map(|rule| rule.rule.clone()).collect();
            let base = chain.base;
            (name.clone(), TableChain { base, rules })
        };
        let set = |(name, set): (&SetName, &SetState)| {
            let (spec, elements) = (set.spec.clone()?, set.elements.clone());
            Some((name.clone(), TableSet { spec, elements }))
        };
        Some(Self {
            chains: state.chains.iter().map(chain).collect(),
            sets: state.sets.iter().map(set).collect::<Option<_>>()?,
        })
    }
}
