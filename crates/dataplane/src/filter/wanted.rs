//! What the table should hold beside what the kernel has acknowledged, and the change from one to the other.
//!
//! Only what was touched is looked at, so one address more in a set of a hundred thousand costs nothing but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernel::nft::*;

use super::items::Item;
use super::presence::Items;
use super::table::{Table, TableChain, TableSet};

/// Both sides of every chain and set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    chains: BTreeMap<ChainName, Both<Content>>,
    sets: BTreeMap<SetName, Members>,
    touched_chains: BTreeSet<ChainName>,
    touched_sets: BTreeSet<SetName>,
    /// Sets that the kernel has refused: they stay out of it until something about them changes.
    parked: BTreeSet<SetName>,
    /// The kernel's table holds what nobody can say: it is replaced as a whole.
    replace: bool,
    /// The kernel has the table.
    exists: bool,
}

/// A chain's place and rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub base: Option<BaseChain>,
    pub rules: Arc<Vec<Rule>>,
}

/// What should be there, and what is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Both<T> {
    want: Option<T>,
    have: Option<T>,
}

#[derive(Clone, Debug, Default)]
struct Members {
    spec: Both<SetSpec>,
    items: Items,
}

/// What a transaction that has been handed out would make true.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    chains: Vec<(ChainName, Option<Content>)>,
    sets: Vec<(SetName, Option<SetSpec>)>,
    items: Vec<(SetName, Vec<(Item, bool)>)>,
    replaced: bool,
    /// For each change, what it concerns.
    pub targets: Vec<Target>,
}

/// What a change concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Table,
    Chain(ChainName),
    Set(SetName),
}

impl<T> Default for Both<T> {
    fn default() -> Self {
        Self { want: None, have: None }
    }
}

// === what should be there ===

impl Wanted {
    pub fn chain(&mut self, chain: Chain, rules: Vec<Rule>) {
        let entry = self.chains.entry(chain.name.clone()).or_default();
        let same = entry
            .want
            .as_ref()
            .is_some_and(|want| want.base == chain.base && *want.rules == rules);
        if same {
            return;
        }
        // Both sides share one copy where they agree.
        let rules = match &entry.have {
            Some(have) if *have.rules == rules => have.rules.clone(),
            _ => Arc::new(rules),
        };
        entry.want = Some(Content {
            base: chain.base,
            rules,
        });
        self.touched_chains.insert(chain.name);
    }

    pub fn no_chain(&mut self, name: &ChainName) {
        if let Some(entry) = self.chains.get_mut(name) {
            entry.want = None;
            self.touched_chains.insert(name.clone());
        }
    }

    /// Makes the set wanted; its items are told one by one or by [`Self::items`].
    pub fn set(&mut self, spec: SetSpec) {
        let entry = self.sets.entry(spec.name.clone()).or_default();
        if entry.spec.want.as_ref() != Some(&spec) {
            self.touched_sets.insert(spec.name.clone());
            entry.spec.want = Some(spec);
        }
    }

    pub fn no_set(&mut self, name: &SetName) {
        if let Some(entry) = self.sets.get_mut(name) {
            entry.spec.want = None;
            let all: Vec<Item> = entry.items.all.keys().cloned().collect();
            all.into_iter().for_each(|item| entry.items.want(item, false));
            self.touched_sets.insert(name.clone());
        }
    }

    /// Keeps a set out of the kernel, or no longer. Its items are remembered.
    pub fn park(&mut self, name: &SetName, parked: bool) {
        match parked {
            true => self.parked.insert(name.clone()),
            false => self.parked.remove(name),
        };
        self.touched_sets.insert(name.clone());
    }

    /// One item comes or goes. Answers whether that is news.
    pub fn item(&mut self, set: &SetName, item: Item, present: bool) -> bool {
        let Some(entry) = self.sets.get_mut(set) else {
            return false;
        };
        let before = entry.items.all.get(&item).is_some_and(|presence| presence.want);
        if before != present {
            entry.items.want(item, present);
            self.touched_sets.insert(set.clone());
        }
        before != present
    }

    /// All items of a set.
    pub fn items(&mut self, set: &SetName, items: &BTreeSet<Item>) {
        let gone: Vec<Item> = self
            .wanted_items(set)
            .filter(|item| !items.contains(item))
            .cloned()
            .collect();
        for item in gone {
            self.item(set, item, false);
        }
        for item in items {
            self.item(set, item.clone(), true);
        }
    }

    pub fn wanted_items<'a>(&'a self, set: &SetName) -> impl Iterator<Item = &'a Item> + use<'a> {
        let items = self.sets.get(set).into_iter().flat_map(|entry| &entry.items.all);
        items.filter(|(_, presence)| presence.want).map(|(item, _)| item)
    }

    /// The table as it should be.
    pub fn table(&self) -> Table {
        let chain = |(name, entry): (&ChainName, &Both<Content>)| {
            let want = entry.want.as_ref()?;
            let (base, rules) = (want.base, want.rules.to_vec());
            Some((name.clone(), TableChain { base, rules }))
        };
        let set = |(name, entry): (&SetName, &Members)| {
            let spec = entry.spec.want.clone().filter(|_| !self.parked.contains(name))?;
            let wanted = entry.items.all.iter().filter(|(_, presence)| presence.want);
            let elements = wanted.map(|(item, _)| item.element()).collect();
            Some((name.clone(), TableSet { spec, elements }))
        };
        Table {
            chains: self.chains.iter().filter_map(chain).collect(),
            sets: self.sets.iter().filter_map(set).collect(),
        }
    }

    /// Chains that should look into a set.
    pub fn users(&self, set: &SetName) -> Vec<ChainName> {
        let uses = |content: &Content| content.rules.iter().flat_map(Rule::sets).any(|used| used == set);
        let wanted = self
            .chains
            .iter()
            .filter(|(_, entry)| entry.want.as_ref().is_some_and(uses));
        wanted.map(|(name, _)| name.clone()).collect()
    }

    /// Whether the kernel has a chain, everything that it leads to and everything that these look into, as it should be.
    pub fn is_enforced(&self, name: &ChainName) -> bool {
        let Some(Both { want: Some(want), have }) = self.chains.get(name) else {
            return false;
        };
        let is_ready = |set: &SetName| {
            let entry = self.sets.get(set);
            entry.is_some_and(|entry| entry.spec.want == entry.spec.have && entry.items.pending.is_empty())
        };
        have.as_ref() == Some(want)
            && !self.replace
            && want.rules.iter().flat_map(Rule::sets).all(is_ready)
            && want
                .rules
                .iter()
                .flat_map(Rule::chains)
                .all(|chain| self.is_enforced(chain))
    }

    /// Whether the kernel has an item, and should.
    pub fn has_item(&self, set: &SetName, item: &Item) -> bool {
        let presence = self.sets.get(set).and_then(|entry| entry.items.all.get(item));
        !self.replace && presence.is_some_and(|presence| presence.want && presence.have)
    }
}

// === what is there ===

impl Wanted {
    /// The kernel's table, read; `None`: there is none.
    pub fn saw(&mut self, state: Option<&TableState>) {
        self.exists = state.is_some();
        self.replace = state.is_some_and(TableState::is_strange);
        let state = state.filter(|_| !self.replace);
        self.chains.values_mut().for_each(|entry| entry.have = None);
        for (name, chain) in state.into_iter().flat_map(|state| &state.chains) {
            let entry = self.chains.entry(name.clone()).or_default();
            let seen = || chain.rules.iter().filter_map(|state| state.rule.as_ref());
            let rules = match &entry.want {
                Some(want) if want.rules.iter().eq(seen()) => want.rules.clone(),
                _ => Arc::new(seen().cloned().collect()),
            };
            let base = chain.base;
            entry.have = Some(Content { base, rules });
        }
        for (name, entry) in &mut self.sets {
            if state.is_none_or(|state| !state.sets.contains_key(name)) {
                entry.forget_kernel();
            }
        }
        for (name, set) in state.into_iter().flat_map(|state| &state.sets) {
            let entry = self.sets.entry(name.clone()).or_default();
            entry.spec.have = set.spec.clone();
            entry
                .items
                .saw(set.elements.iter().map(|element| Item::of(&element)).collect());
        }
        self.touched_chains = self.chains.keys().cloned().collect();
        self.touched_sets = self.sets.keys().cloned().collect();
    }

    /// The transaction was done.
    pub fn acknowledge(&mut self, sent: InFlight) {
        if sent.replaced {
            self.forget_kernel();
            self.touched_chains = self.chains.keys().cloned().collect();
            self.touched_sets = self.sets.keys().cloned().collect();
            self.replace = false;
        }
        self.exists = true;
        for (name, content) in sent.chains {
            let entry = self.chains.entry(name).or_default();
            entry.have = content;
        }
        for (name, spec) in sent.sets {
            let entry = self.sets.entry(name).or_default();
            if spec.is_none() {
                entry.forget_kernel();
            }
            entry.spec.have = spec;
        }
        for (name, items) in sent.items {
            let entry = self.sets.entry(name).or_default();
            items
                .into_iter()
                .for_each(|(item, present)| entry.items.have(item, present));
        }
        self.tidy();
    }

    fn forget_kernel(&mut self) {
        self.chains.values_mut().for_each(|entry| entry.have = None);
        self.sets.values_mut().for_each(Members::forget_kernel);
    }

    /// Forgets what both sides have no more, and what agrees.
    fn tidy(&mut self) {
        let chains = &mut self.chains;
        self.touched_chains.retain(|name| {
            let Some(entry) = chains.get(name) else { return false };
            if entry.want.is_none() && entry.have.is_none() {
                chains.remove(name);
                return false;
            }
            entry.want != entry.have
        });
        let (sets, parked) = (&mut self.sets, &mut self.parked);
        self.touched_sets.retain(|name| {
            let Some(entry) = sets.get(name) else { return false };
            if entry.spec.want.is_none() {
                parked.remove(name);
            }
            if parked.contains(name) {
                return entry.spec.have.is_some();
            }
            if entry.spec.want.is_none() && entry.spec.have.is_none() {
                sets.remove(name);
                return false;
            }
            entry.spec.want != entry.spec.have || !entry.items.pending.is_empty()
        });
    }
}

impl Members {
    fn forget_kernel(&mut self) {
        self.spec.have = None;
        self.items.saw(Vec::new());
    }
}

// === from one to the other ===

impl Wanted {
    /// The smallest change that makes the kernel's table what it should be, in an order that the kernel takes: what is referred
    /// to comes before what refers to it, and goes after it.
    pub fn difference(&mut self) -> Option<(Vec<Change>, InFlight)> {
        self.tidy();
        let another_kind =
            |both: &Both<SetSpec>| matches!(both, Both { want: Some(want), have: Some(have) } if want != have);
        let another_base = |both: &Both<Content>| matches!(both, Both { want: Some(want), have: Some(have) } if want.base != have.base);
        // Names say what a set is, so this is somebody else's doing.
        let foreign = self
            .touched_sets
            .iter()
            .any(|name| self.sets.get(name).is_some_and(|set| another_kind(&set.spec)))
            || self
                .touched_chains
                .iter()
                .any(|name| self.chains.get(name).is_some_and(another_base));
        self.replace |= foreign;
        let mut builder = Builder::default();
        if self.replace && self.exists {
            builder.push(Change::DeleteTable, Target::Table);
            builder.sent.replaced = true;
            for (name, entry) in &self.chains {
                let entry = Both {
                    want: entry.want.clone(),
                    have: None,
                };
                builder.chain(name, &entry);
            }
            for (name, entry) in self.sets.iter().filter(|(name, _)| !self.parked.contains(*name)) {
                let fresh = entry
                    .items
                    .all
                    .iter()
                    .filter(|(_, presence)| presence.want)
                    .map(|(item, _)| (item, true));
                let spec = Both {
                    want: entry.spec.want.clone(),
                    have: None,
                };
                builder.set(name, &spec, fresh);
            }
        } else {
            for name in &self.touched_chains {
                if let Some(entry) = self.chains.get(name) {
                    builder.chain(name, entry);
                }
            }
            for name in &self.touched_sets {
                let Some(entry) = self.sets.get(name) else { continue };
                if self.parked.contains(name) {
                    let gone = Both {
                        want: None,
                        have: entry.spec.have.clone(),
                    };
                    builder.set(name, &gone, std::iter::empty());
                } else {
                    let present = |item| entry.items.all.get(item).is_some_and(|presence| presence.want);
                    builder.set(
                        name,
                        &entry.spec,
                        entry.items.pending.iter().map(|item| (item, present(item))),
                    );
                }
            }
        }
        builder.finish()
    }
}

/// Changes by the phase they belong to.
#[derive(Default)]
struct Builder {
    phases: [Vec<(Change, Target)>; 6],
    sent: InFlight,
}

const TABLE_AND_NEW: usize = 0;
const FLUSH: usize = 1;
const DELETE_ELEMENTS: usize = 2;
const ADD_ELEMENTS: usize = 3;
const ADD_RULES: usize = 4;
const DELETE: usize = 5;

impl Builder {
    fn push(&mut self, change: Change, target: Target) {
        self.at(TABLE_AND_NEW, change, target);
    }

    fn at(&mut self, phase: usize, change: Change, target: Target) {
        self.phases[phase].push((change, target));
    }

    fn chain(&mut self, name: &ChainName, entry: &Both<Content>) {
        if entry.want == entry.have {
            return;
        }
        let target = || Target::Chain(name.clone());
        let old = entry.have.as_ref().map(|have| have.rules.as_slice());
        let mut new: &[Rule] = entry
            .want
            .as_ref()
            .map(|want| want.rules.as_slice())
            .unwrap_or_default();
        if let (None, Some(want)) = (old, &entry.want) {
            let (name, base) = (name.clone(), want.base);
            self.push(Change::AddChain(Chain { name, base }), target());
        }
        let old = old.unwrap_or_default();
        match new.strip_prefix(old) {
            // Rules were only added at the end.
            Some(added) => new = added,
            None => self.at(FLUSH, Change::FlushChain(name.clone()), target()),
        }
        for rule in new {
            self.at(ADD_RULES, Change::AddRule(name.clone(), rule.clone()), target());
        }
        if entry.want.is_none() {
            self.at(DELETE, Change::DeleteChain(name.clone()), target());
        }
        self.sent.chains.push((name.clone(), entry.want.clone()));
    }

    fn set<'a>(&mut self, name: &SetName, spec: &Both<SetSpec>, items: impl Iterator<Item = (&'a Item, bool)>) {
        let target = || Target::Set(name.clone());
        match (&spec.want, &spec.have) {
            (None, None) => return,
            (None, Some(_)) => {
                self.at(DELETE, Change::DeleteSet(name.clone()), target());
                self.sent.sets.push((name.clone(), None));
                return;
            }
            (Some(want), have) => {
                if have.is_none() {
                    self.push(Change::AddSet(want.clone()), target());
                    self.sent.sets.push((name.clone(), Some(want.clone())));
                }
            }
        }
        let items: Vec<(Item, bool)> = items.map(|(item, present)| (item.clone(), present)).collect();
        let elements = |wanted: bool| -> Vec<Element> {
            let items = items.iter().filter(|(_, present)| *present == wanted);
            items.map(|(item, _)| item.element()).collect()
        };
        let (gone, new) = (elements(false), elements(true));
        if !gone.is_empty() {
            self.at(DELETE_ELEMENTS, Change::DeleteElements(name.clone(), gone), target());
        }
        if !new.is_empty() {
            self.at(ADD_ELEMENTS, Change::AddElements(name.clone(), new), target());
        }
        self.sent.items.push((name.clone(), items));
    }

    fn finish(self) -> Option<(Vec<Change>, InFlight)> {
        let mut sent = self.sent;
        // Sets go after chains that look into them, and maps after nothing: chains that a map leads to go after the map.
        let [new, flush, delete_elements, add_elements, add_rules, delete] = self.phases;
        let (sets, chains): (Vec<_>, Vec<_>) = delete
            .into_iter()
            .partition(|(change, _)| matches!(change, Change::DeleteSet(_)));
        let phases = [new, flush, delete_elements, add_elements, add_rules, sets, chains];
        let (changes, targets): (Vec<Change>, Vec<Target>) = phases.into_iter().flatten().unzip();
        sent.targets = targets;
        (!changes.is_empty()).then_some((changes, sent))
    }
}
