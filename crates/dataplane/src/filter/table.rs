//! The content of a table: what the machine wants, what a kernel has, and what a transaction makes of it.
//!
//! [`Table::apply`] refuses what the kernel refuses, so a table is also the kernel of the tests.

use std::collections::{BTreeMap, BTreeSet};

use kernel::nft::*;

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
    pub elements: BTreeSet<Element>,
}

/// A transaction that a table did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which change, from 0; `None`: the result of all of them.
    pub change: Option<usize>,
    /// Why.
    pub reason: String,
}

impl Table {
    /// Makes the changes, all or none.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), Rejected> {
        let mut after = self.clone();
        for (index, change) in transaction.changes.iter().enumerate() {
            after.change(change).map_err(|reason| Rejected {
                change: Some(index),
                reason,
            })?;
        }
        after.check_references().map_err(|reason| Rejected { change: None, reason })?;
        *self = after;
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::DeleteTable => *self = Table::default(),
            Change::AddChain(chain) => match self.chains.get(&chain.name) {
                Some(there) if there.base != chain.base => return Err(format!("chain {} is another", chain.name)),
                Some(_) => {}
                None => {
                    let (base, rules) = (chain.base, Vec::new());
                    self.chains.insert(chain.name.clone(), TableChain { base, rules });
                }
            },
            Change::FlushChain(name) => self.chain(name)?.rules.clear(),
            Change::DeleteChain(name) => {
                if !self.chain(name)?.rules.is_empty() || self.uses_chain(name) {
                    return Err(format!("chain {name} is in use"));
                }
                self.chains.remove(name);
            }
            Change::AddRule(name, rule) => {
                if let Some(chain) = rule.chains().find(|chain| !self.chains.contains_key(chain)) {
                    return Err(format!("no chain {chain}"));
                }
                if let Some(set) = rule.sets().find(|set| !self.sets.contains_key(set)) {
                    return Err(format!("no set {set}"));
                }
                self.chain(name)?.rules.push(rule.clone());
            }
            Change::AddSet(spec) => match self.sets.get(&spec.name) {
                Some(there) if there.spec != *spec => return Err(format!("set {} is another", spec.name)),
                Some(_) => {}
                None => {
                    let (spec, elements) = (spec.clone(), BTreeSet::new());
                    self.sets.insert(spec.name.clone(), TableSet { spec, elements });
                }
            },
            Change::FlushSet(name) => self.set(name)?.elements.clear(),
            Change::DeleteSet(name) => {
                self.set(name)?;
                let rules = self.chains.values().flat_map(|chain| &chain.rules);
                if rules.flat_map(Rule::sets).any(|set| set == name) {
                    return Err(format!("set {name} is in use"));
                }
                self.sets.remove(name);
            }
            Change::AddElements(name, elements) => {
                for element in elements {
                    if let Some(chain) = goes_to(element).filter(|chain| !self.chains.contains_key(chain)) {
                        return Err(format!("no chain {chain}"));
                    }
                    let set = self.set(name)?;
                    let clash = |there: &&Element| **there != *element && overlap(there, element);
                    if let Some(there) = set.elements.iter().find(clash) {
                        return Err(format!("{element} is in the way of {there} in {name}"));
                    }
                    set.elements.insert(element.clone());
                }
            }
            Change::DeleteElements(name, elements) => {
                let set = self.set(name)?;
                if let Some(missing) = elements.iter().find(|element| !set.elements.remove(element)) {
                    return Err(format!("no element {missing} in {name}"));
                }
            }
        }
        Ok(())
    }

    fn chain(&mut self, name: &ChainName) -> Result<&mut TableChain, String> {
        self.chains.get_mut(name).ok_or_else(|| format!("no chain {name}"))
    }

    fn set(&mut self, name: &SetName) -> Result<&mut TableSet, String> {
        self.sets.get_mut(name).ok_or_else(|| format!("no set {name}"))
    }

    fn uses_chain(&self, name: &ChainName) -> bool {
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        let elements = self.sets.values().flat_map(|set| &set.elements);
        rules.flat_map(Rule::chains).chain(elements.filter_map(goes_to)).any(|chain| chain == name)
    }

    /// The kernel walks all chains at the end: none may lead back to itself, nor too deep.
    fn check_references(&self) -> Result<(), String> {
        let bases = self.chains.iter().filter(|(_, chain)| chain.base.is_some());
        bases.map(|(name, _)| name).try_for_each(|name| self.check_depth(name, 1))
    }

    fn check_depth(&self, name: &ChainName, depth: usize) -> Result<(), String> {
        if depth > 16 {
            return Err(format!("too many links: {name}"));
        }
        let chain = self.chains.get(name).ok_or_else(|| format!("no chain {name}"))?;
        for rule in &chain.rules {
            rule.chains().try_for_each(|chain| self.check_depth(chain, depth + 1))?;
            if let Some(Verdict::Map { map, .. }) = &rule.verdict {
                let elements = self.sets.get(map).into_iter().flat_map(|set| &set.elements);
                elements.filter_map(goes_to).try_for_each(|chain| self.check_depth(chain, depth + 1))?;
            }
        }
        Ok(())
    }
}

/// The chain that an element of a verdict map leads to.
fn goes_to(element: &Element) -> Option<&ChainName> {
    element.verdict.as_ref().and_then(|verdict| match verdict {
        ElementVerdict::Jump(chain) | ElementVerdict::Goto(chain) => Some(chain),
        ElementVerdict::Accept | ElementVerdict::Drop => None,
    })
}

/// Whether some packet matches both.
fn overlap(one: &Element, other: &Element) -> bool {
    one.key.len() == other.key.len() && one.key.iter().zip(&other.key).all(|(one, other)| values_overlap(one, other))
}

fn values_overlap(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Net(one), Value::Net(other)) => one.contains(other) || other.contains(one),
        (Value::Net(net), Value::Address(address)) | (Value::Address(address), Value::Net(net)) => net.contains(address),
        (Value::Ports(a, b), Value::Ports(c, d)) => a <= d && c <= b,
        (Value::Ports(a, b), Value::Port(port)) | (Value::Port(port), Value::Ports(a, b)) => (a..=b).contains(&port),
        (one, other) => one == other,
    }
}
