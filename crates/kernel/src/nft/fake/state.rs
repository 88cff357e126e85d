//! Tables in memory, and what a transaction does to them.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::*;

/// All tables. Chains and sets are shared until they change, so that a copy to work on is cheap.
#[derive(Clone, Default)]
pub(super) struct Tables(BTreeMap<TableName, Arc<Table>>);

#[derive(Clone, Default)]
pub(super) struct Table {
    pub chains: BTreeMap<ChainName, Arc<ChainHere>>,
    pub sets: BTreeMap<SetName, Arc<SetHere>>,
    last_handle: u64,
}

#[derive(Clone)]
pub(super) struct ChainHere {
    pub base: Option<BaseChain>,
    pub rules: Vec<RuleHere>,
}

#[derive(Clone)]
pub(super) struct RuleHere {
    handle: u64,
    pub rule: Rule,
    count: Count,
}

#[derive(Clone)]
pub(super) struct SetHere {
    pub spec: SetSpec,
    pub elements: BTreeMap<Vec<Span>, Element>,
}

/// Why a change is refused.
type Refusal = (Cause, &'static str);

const NO_CHAIN: Refusal = (Cause::Absent, "no such chain");
const NO_SET: Refusal = (Cause::Absent, "no such set");

impl Tables {
    /// Does all changes or none; whether anything changed.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<bool, NftError> {
        let mut work = self.work_on(transaction, false)?;
        if work.jumps
            && let Some(table) = &work.table
            && graph::validate(table).is_err()
        {
            // Like Linux: all once more, looking after each change, to say which one it is.
            work = self.work_on(transaction, true)?;
        }
        if work.changed {
            match work.table {
                Some(table) => self.0.insert(transaction.table.clone(), Arc::new(table)),
                None => self.0.remove(&transaction.table),
            };
        }
        Ok(work.changed)
    }

    fn work_on(&self, transaction: &Transaction, validate_each: bool) -> Result<Work, NftError> {
        let mut work = Work {
            table: self.0.get(&transaction.table).map(|table| Table::clone(table)),
            changed: false,
            jumps: false,
        };
        if !matches!(transaction.changes.first(), Some(Change::DeleteTable)) {
            work.table();
        }
        for (at, change) in transaction.changes.iter().enumerate() {
            let mut result = work.apply(change);
            if validate_each && let Some(table) = &work.table {
                result = result.and_then(|()| graph::validate(table));
            }
            result.map_err(|refusal| refused(at, change.to_string(), refusal))?;
        }
        Ok(work)
    }

    pub fn read(&self, table: &TableName, generation: Generation) -> Option<TableState> {
        let here = self.0.get(table)?;
        let mut rules = self.rules(table);
        let chains = here.chains.iter().map(|(name, chain)| {
            let state = ChainState {
                base: chain.base,
                strange: false,
                rules: rules.remove(name).unwrap_or_default(),
            };
            (name.clone(), state)
        });
        let sets = here.sets.iter().map(|(name, set)| {
            let state = SetState {
                spec: Some(set.spec.clone()),
                elements: set.elements.values().cloned().collect(),
                strange: 0,
            };
            (name.clone(), state)
        });
        Some(TableState {
            generation,
            chains: chains.collect(),
            sets: sets.collect(),
        })
    }

    pub fn rules(&self, table: &TableName) -> BTreeMap<ChainName, Vec<RuleState>> {
        let chains = self.0.get(table).into_iter().flat_map(|table| &table.chains);
        let states = chains.map(|(name, chain)| (name.clone(), chain.rules.iter().map(RuleHere::state).collect()));
        states.collect()
    }

    pub fn count(&mut self, table: &TableName, handle: u64, count: Count) {
        let Some(table) = self.0.get_mut(table) else {
            return;
        };
        for chain in Arc::make_mut(table).chains.values_mut() {
            if chain.rules.iter().any(|rule| rule.handle == handle) {
                let rules = Arc::make_mut(chain).rules.iter_mut();
                rules
                    .filter(|rule| rule.handle == handle)
                    .for_each(|rule| rule.count = count);
            }
        }
    }
}

fn refused(change: usize, what: String, (cause, reason): Refusal) -> NftError {
    let errno = match cause {
        Cause::Absent => 2,
        Cause::Exists => 17,
        Cause::InUse => 16,
        Cause::TooDeep => 31,
        Cause::Malformed => 22,
        Cause::Unsupported => 95,
        Cause::Resources => 12,
        Cause::Forbidden | Cause::Other => 1,
    };
    NftError::Refused {
        change: Some(change),
        what,
        cause,
        reason: reason.into(),
        errno,
    }
}

impl RuleHere {
    fn state(&self) -> RuleState {
        let counted = self.rule.actions.contains(&Statement::Counter);
        RuleState {
            handle: self.handle,
            rule: Some(self.rule.clone()),
            comment: self.rule.comment.clone(),
            count: counted.then_some(self.count),
        }
    }
}

/// A table under change.
struct Work {
    table: Option<Table>,
    changed: bool,
    /// A way from chain to chain was added, or something that not every chain may have.
    jumps: bool,
}

impl Work {
    /// The table, which is made if it is not there.
    fn table(&mut self) -> &mut Table {
        self.changed |= self.table.is_none();
        self.table.get_or_insert_default()
    }

    fn apply(&mut self, change: &Change) -> Result<(), Refusal> {
        if let Change::DeleteTable = change {
            self.changed |= self.table.is_some();
            self.table = None;
            return Ok(());
        }
        let table = self.table();
        let changed = match change {
            Change::DeleteTable => false,
            Change::AddChain(chain) => table.add_chain(chain)?,
            Change::FlushChain(name) => {
                let rules = &mut table.chain(name)?.rules;
                !std::mem::take(rules).is_empty()
            }
            Change::DeleteChain(name) => table.delete_chain(name)?,
            Change::AddRule(name, rule) => {
                table.add_rule(name, rule)?;
                self.jumps = true;
                true
            }
            Change::AddSet(spec) => table.add_set(spec)?,
            Change::FlushSet(name) => {
                let elements = &mut table.set(name)?.elements;
                !std::mem::take(elements).is_empty()
            }
            Change::DeleteSet(name) => table.delete_set(name)?,
            Change::AddElements(name, elements) => {
                let added = table.add_elements(name, elements)?;
                self.jumps |= elements.iter().any(|element| element.target().is_some());
                added
            }
            Change::DeleteElements(name, elements) => {
                let set = table.set(name)?;
                for element in elements {
                    set.fits(element)?;
                    let gone = set.elements.remove(&element.spans());
                    gone.ok_or((Cause::Absent, "no such element"))?;
                }
                !elements.is_empty()
            }
        };
        self.changed |= changed;
        Ok(())
    }
}

impl Table {
    fn chain(&mut self, name: &ChainName) -> Result<&mut ChainHere, Refusal> {
        self.chains.get_mut(name).map(Arc::make_mut).ok_or(NO_CHAIN)
    }

    fn set(&mut self, name: &SetName) -> Result<&mut SetHere, Refusal> {
        self.sets.get_mut(name).map(Arc::make_mut).ok_or(NO_SET)
    }

    fn add_chain(&mut self, chain: &Chain) -> Result<bool, Refusal> {
        if let Some(base) = &chain.base {
            graph::may_exist(base)?;
        }
        match self.chains.entry(chain.name.clone()) {
            Entry::Vacant(place) => {
                place.insert(Arc::new(ChainHere {
                    base: chain.base,
                    rules: Vec::new(),
                }));
                Ok(true)
            }
            Entry::Occupied(there) => match (there.get().base, chain.base) {
                // Linux asks nothing about a chain that is named without a hook.
                (_, None) => Ok(false),
                (None, Some(_)) => Err((Cause::Exists, "the chain exists and is no base chain")),
                (Some(old), Some(new)) if old == new => Ok(false),
                (Some(old), Some(new)) if BaseChain { drop: new.drop, ..old } == new => {
                    Arc::make_mut(there.into_mut()).base = Some(new);
                    Ok(true)
                }
                (Some(_), Some(_)) => Err((Cause::Exists, "the chain exists in another place")),
            },
        }
    }

    fn delete_chain(&mut self, name: &ChainName) -> Result<bool, Refusal> {
        if !self.chains.contains_key(name) {
            return Err(NO_CHAIN);
        }
        let others = self.chains.iter().filter(|(other, _)| *other != name);
        let by_rule = others
            .flat_map(|(_, chain)| &chain.rules)
            .any(|here| here.rule.chains().any(|target| target == name));
        if by_rule || self.sets.values().any(|set| set.leads_to(name)) {
            return Err((Cause::InUse, "something refers to the chain"));
        }
        self.chains.remove(name);
        Ok(true)
    }

    fn add_rule(&mut self, name: &ChainName, rule: &Rule) -> Result<(), Refusal> {
        if !self.chains.contains_key(name) {
            return Err(NO_CHAIN);
        }
        for target in rule.chains() {
            self.may_be_called(target)?;
        }
        for part in &rule.matches {
            if let Match::InSet { key, set, .. } = part {
                self.may_be_asked(set, key, false)?;
            }
        }
        if let Some(Verdict::Map { key, map }) = &rule.verdict {
            self.may_be_asked(map, key, true)?;
        }
        self.last_handle += 1;
        let handle = self.last_handle;
        self.chain(name)?.rules.push(RuleHere {
            handle,
            rule: rule.clone(),
            count: Count::default(),
        });
        Ok(())
    }

    fn may_be_called(&self, target: &ChainName) -> Result<(), Refusal> {
        match self.chains.get(target) {
            None => Err(NO_CHAIN),
            Some(chain) if chain.base.is_some() => Err((Cause::Unsupported, "a base chain cannot be called")),
            Some(_) => Ok(()),
        }
    }

    fn may_be_asked(&self, set: &SetName, key: &[Field], verdicts: bool) -> Result<(), Refusal> {
        let spec = &self.sets.get(set).ok_or(NO_SET)?.spec;
        if spec.verdicts != verdicts {
            return Err((Cause::Malformed, "a set is no map, and a map no set"));
        }
        // Linux compares lengths alone; what is meant is compared here.
        match key.iter().map(Field::key_type).eq(spec.key.iter().copied()) {
            true => Ok(()),
            false => Err((Cause::Malformed, "the key is not the set's")),
        }
    }

    fn add_set(&mut self, spec: &SetSpec) -> Result<bool, Refusal> {
        match self.sets.entry(spec.name.clone()) {
            Entry::Vacant(place) => {
                place.insert(Arc::new(SetHere {
                    spec: spec.clone(),
                    elements: BTreeMap::new(),
                }));
                Ok(true)
            }
            Entry::Occupied(there) if there.get().spec == *spec => Ok(false),
            Entry::Occupied(_) => Err((Cause::Exists, "the set exists with other properties")),
        }
    }

    fn delete_set(&mut self, name: &SetName) -> Result<bool, Refusal> {
        if !self.sets.contains_key(name) {
            return Err(NO_SET);
        }
        let mut rules = self.chains.values().flat_map(|chain| &chain.rules);
        if rules.any(|here| here.rule.sets().any(|set| set == name)) {
            return Err((Cause::InUse, "a rule looks into the set"));
        }
        self.sets.remove(name);
        Ok(true)
    }

    fn add_elements(&mut self, name: &SetName, elements: &[Element]) -> Result<bool, Refusal> {
        self.set(name)?;
        for target in elements.iter().filter_map(Element::target) {
            self.may_be_called(target)?;
        }
        let set = self.set(name)?;
        let mut added = false;
        for element in elements {
            set.fits(element)?;
            if set.spec.verdicts != element.verdict.is_some() {
                return Err((Cause::Malformed, "elements of maps have verdicts, others have none"));
            }
            let (spans, element) = (element.spans(), element.canonical());
            match set.elements.get(&spans) {
                Some(there) if *there == element => {}
                Some(_) => return Err((Cause::Exists, "the element is there with another verdict")),
                None if set.spec.interval && set.overlaps(&spans) => {
                    return Err((Cause::Exists, "the interval overlaps another"));
                }
                None => {
                    set.elements.insert(spans, element);
                    added = true;
                }
            }
        }
        Ok(added)
    }
}

impl SetHere {
    fn leads_to(&self, chain: &ChainName) -> bool {
        self.elements.values().any(|element| element.target() == Some(chain))
    }

    fn fits(&self, element: &Element) -> Result<(), Refusal> {
        if !element
            .key
            .iter()
            .map(Value::key_type)
            .eq(self.spec.key.iter().copied())
        {
            return Err((Cause::Malformed, "the element's key is not the set's"));
        }
        let single = element.spans().iter().all(|span| span.low == span.high);
        match single || self.spec.interval {
            true => Ok(()),
            false => Err((Cause::Malformed, "a range in a set without intervals")),
        }
    }

    fn overlaps(&self, spans: &[Span]) -> bool {
        if let [span] = spans {
            let from = vec![Span { low: 0, high: 0 }]..=vec![Span {
                low: span.high,
                high: u128::MAX,
            }];
            // Those there do not overlap each other: the last that begins before our end is the one to look at.
            let last = self.elements.range(from).next_back();
            return last.is_some_and(|(there, _)| there[0].overlaps(span));
        }
        let all = |there: &Vec<Span>| there.iter().zip(spans).all(|(a, b)| a.overlaps(b));
        self.elements.keys().any(all)
    }
}

impl Element {
    fn spans(&self) -> Vec<Span> {
        self.key.iter().map(Value::span).collect()
    }

    /// The chain that it leads to.
    pub fn target(&self) -> Option<&ChainName> {
        match &self.verdict {
            Some(ElementVerdict::Jump(chain) | ElementVerdict::Goto(chain)) => Some(chain),
            Some(ElementVerdict::Accept | ElementVerdict::Drop) | None => None,
        }
    }
}
