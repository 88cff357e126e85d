//! Everything that selectors of rules can pick, anywhere in the cluster, in a compact form.
//!
//! What has the same labels and profiles is one [`Group`]: selectors are tried on groups, and a replica of a workload that
//! is known costs no evaluation at all. Texts, label sets, lists of profiles and of ports are kept once each.

mod groups;

use std::hash::Hash;

use api::Key;

use crate::member_facts::{MemberFacts, NamedPort};
use crate::nets::Nets;
use crate::print::{Print, Prints};
use crate::rules::NAMESPACE;
use crate::table::{ByNo, No, Table};

/// No item, no group, no list.
pub(crate) const NONE: No = No::MAX;

/// All members that could be in a set.
#[derive(Debug)]
pub(crate) struct Population {
    symbols: Table<str>,
    /// Sorted by name.
    labels: Table<[(No, No)]>,
    profile_lists: Table<[No]>,
    port_lists: Table<[NamedPort]>,
    /// Labels that profiles give, by profile.
    inherited: ByNo<No, Box<[(No, No)]>>,
    groups: Vec<Group>,
    group_numbers: ByNo<Print, No>,
    free_groups: Vec<No>,
    items: Vec<Item>,
    numbers: ByNo<Print, No>,
    prints: Prints,
    free_items: Vec<No>,
    /// Groups that have items, by namespace.
    by_namespace: ByNo<No, Vec<No>>,
    /// What changed items were when they were last settled.
    before: ByNo<No, Value>,
    /// Items that are not settled, each once.
    unsettled: Vec<No>,
    /// Items that were without a value at some time since then.
    gone: Vec<(Print, No)>,
    /// Room for labels that are being looked up.
    scratch: Vec<(No, No)>,
    /// The label whose value is the namespace.
    namespace: No,
}

/// What is picked or not picked together.
#[derive(Debug)]
pub(crate) struct Group {
    print: Print,
    parts: Parts,
    /// Values that name it.
    holders: u32,
    /// Its first settled item.
    first: No,
    /// Its place among those of its namespace.
    place: u32,
    /// Sets that its settled items are in; numbers of sets that are gone may be among them.
    sets: Box<[No]>,
}

/// Label sets and the list of profiles.
#[derive(Clone, Copy, Debug)]
struct Parts {
    own: No,
    implied: No,
    profiles: No,
}

#[derive(Debug)]
struct Item {
    value: Option<Value>,
    next: No,
    previous: No,
    is_unsettled: bool,
    was_settled: bool,
}

/// What an item is worth.
#[derive(Debug, PartialEq)]
pub(crate) struct Value {
    pub group: No,
    ports: No,
    nets: Nets,
}

/// An item that changed since it was last settled.
pub(crate) struct Settling {
    pub item: No,
    pub old: Option<Value>,
    pub new_group: Option<No>,
}

impl Population {
    pub fn new() -> Self {
        let mut symbols = Table::default();
        let (namespace, _) = symbols.hold(NAMESPACE);
        Self {
            symbols,
            labels: Table::default(),
            profile_lists: Table::default(),
            port_lists: Table::default(),
            inherited: ByNo::default(),
            groups: Vec::new(),
            group_numbers: ByNo::default(),
            free_groups: Vec::new(),
            items: Vec::new(),
            numbers: ByNo::default(),
            prints: Prints::default(),
            free_items: Vec::new(),
            by_namespace: ByNo::default(),
            before: ByNo::default(),
            unsettled: Vec::new(),
            gone: Vec::new(),
            scratch: Vec::new(),
            namespace,
        }
    }

    /// Facts in compact form. The caller hands the value on, or lets go of it by [`Population::release`].
    pub fn value(&mut self, facts: &MemberFacts<'_>) -> Value {
        let ports = match facts.ports.as_slice() {
            [] => NONE,
            ports => self.port_lists.hold(ports).0,
        };
        Value {
            group: self.hold_group(facts),
            ports,
            nets: Nets::new(&facts.nets),
        }
    }

    /// The group of what has these labels and profiles.
    fn hold_group(&mut self, facts: &MemberFacts<'_>) -> No {
        let print = self.prints.of(|hash| {
            facts.implied.hash(hash);
            facts.own().for_each(|label| Some(label).hash(hash));
            None::<(&str, &str)>.hash(hash);
            facts.profiles.hash(hash);
        });
        if let Some(no) = self.group_numbers.get(&print).copied() {
            self.groups[no as usize].holders += 1;
            return no;
        }
        let implied = facts.implied.iter().flatten();
        let parts = Parts {
            implied: self.hold_labels(implied.copied()),
            own: self.hold_labels(facts.own()),
            profiles: self.hold_profiles(&facts.profiles),
        };
        let group = Group {
            print,
            parts,
            holders: 1,
            first: NONE,
            place: 0,
            sets: Box::default(),
        };
        let no = put(&mut self.groups, &mut self.free_groups, group);
        self.group_numbers.insert(print, no);
        no
    }

    fn hold_labels<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> No {
        let mut numbers = std::mem::take(&mut self.scratch);
        numbers.clear();
        // As a rule such labels are known, and hold their texts already.
        let known = labels
            .clone()
            .map(|(name, value)| Some((self.symbols.find(name)?, self.symbols.find(value)?)));
        let all_known = known.into_iter().all(|known| {
            numbers.extend(known);
            known.is_some()
        });
        numbers.sort_unstable();
        let set = match all_known.then(|| self.labels.find(&numbers)).flatten() {
            Some(set) => {
                self.labels.hold_again(set);
                set
            }
            None => {
                numbers.clear();
                numbers.extend(labels.map(|(name, value)| (self.symbols.hold(name).0, self.symbols.hold(value).0)));
                numbers.sort_unstable();
                self.labels.hold(&numbers).0
            }
        };
        self.scratch = numbers;
        set
    }

    fn hold_profiles(&mut self, profiles: &[String]) -> No {
        let names: Vec<No> = profiles.iter().map(|name| self.symbols.hold(name).0).collect();
        let (list, new) = self.profile_lists.hold(&names);
        if !new {
            names.iter().for_each(|name| drop(self.symbols.release(*name)));
        }
        list
    }

    fn release_symbols(&mut self, labels: &[(No, No)]) {
        for (name, value) in labels {
            self.symbols.release(*name);
            self.symbols.release(*value);
        }
    }

    fn release_parts(&mut self, parts: Parts) {
        for labels in [parts.own, parts.implied] {
            if let Some(labels) = self.labels.release(labels) {
                self.release_symbols(&labels);
            }
        }
        if let Some(names) = self.profile_lists.release(parts.profiles) {
            names.iter().for_each(|name| drop(self.symbols.release(*name)));
        }
    }

    /// Lets go of a value.
    pub fn release(&mut self, value: Value) {
        if value.ports != NONE {
            self.port_lists.release(value.ports);
        }
        let group = &mut self.groups[value.group as usize];
        group.holders -= 1;
        if group.holders == 0 {
            let (print, parts) = (group.print, group.parts);
            group.sets = Box::default();
            self.group_numbers.remove(&print);
            self.free_groups.push(value.group);
            self.release_parts(parts);
        }
    }

    /// Makes a value the one of `key`; `None`: there is no such thing.
    pub fn set(&mut self, key: &Key, value: Option<Value>) {
        let key = self.prints.of_value(key);
        match value {
            Some(value) => {
                let (items, free) = (&mut self.items, &mut self.free_items);
                let number = self.numbers.entry(key);
                let no = *number.or_insert_with(|| put(items, free, Item::default()));
                self.change(no, Some(value));
            }
            None => {
                if let Some(no) = self.numbers.get(&key).copied()
                    && self.change(no, None)
                {
                    self.gone.push((key, no));
                }
            }
        }
    }

    /// Gives an item another value; answers whether it is another one.
    fn change(&mut self, no: No, value: Option<Value>) -> bool {
        let item = &mut self.items[no as usize];
        if item.value == value {
            value.into_iter().for_each(|value| self.release(value));
            return false;
        }
        let old = std::mem::replace(&mut item.value, value);
        let first_change = !std::mem::replace(&mut item.is_unsettled, true);
        let was_settled = item.was_settled;
        if first_change {
            self.unsettled.push(no);
        }
        match old {
            Some(old) if first_change && was_settled => drop(self.before.insert(no, old)),
            Some(old) => self.release(old),
            None => {}
        }
        true
    }

    /// The value of `key` once more, for the caller to keep.
    pub fn copy_of(&mut self, key: &Key) -> Option<Value> {
        let no = self.find(key)?;
        let value = self.items[no as usize].value.as_ref()?;
        let copy = Value {
            group: value.group,
            ports: value.ports,
            nets: value.nets.clone(),
        };
        self.groups[copy.group as usize].holders += 1;
        if copy.ports != NONE {
            self.port_lists.hold_again(copy.ports);
        }
        Some(copy)
    }

    /// The number of an item. It stays the same as long as there is such a thing.
    pub fn item_of(&self, key: &Key) -> Option<No> {
        self.find(key)
    }

    /// The group of an item, if it has a value.
    pub fn group_of(&self, item: No) -> Option<No> {
        Some(self.items[item as usize].value.as_ref()?.group)
    }

    fn find(&self, key: &Key) -> Option<No> {
        self.numbers.get(&self.prints.of_value(key)).copied()
    }

    /// What changed since the last time: to be settled one by one, then [`Population::forget_gone`].
    pub fn take_unsettled(&mut self) -> Vec<No> {
        std::mem::take(&mut self.unsettled)
    }

    /// Begins to settle an item: what it was, and what it is.
    pub fn settle(&mut self, item: No) -> Settling {
        let entry = &mut self.items[item as usize];
        entry.is_unsettled = false;
        entry.was_settled = entry.value.is_some();
        let new_group = entry.value.as_ref().map(|value| value.group);
        let old = self.before.remove(&item);
        Settling { item, old, new_group }
    }

    /// The current value of an item.
    pub fn value_of(&self, item: No) -> Option<&Value> {
        self.items[item as usize].value.as_ref()
    }

    /// Makes a settled item one of its group's.
    pub fn link(&mut self, item: No, group: No) {
        let first = self.groups[group as usize].first;
        if first == NONE {
            self.enter_namespace(group);
        } else {
            self.items[first as usize].previous = item;
        }
        self.items[item as usize].next = first;
        self.items[item as usize].previous = NONE;
        self.groups[group as usize].first = item;
    }

    /// Takes an item out of its former group. Call before it is linked to another one.
    pub fn unlink(&mut self, item: No, group: No) {
        let Item { next, previous, .. } = self.items[item as usize];
        match previous {
            NONE => self.groups[group as usize].first = next,
            previous => self.items[previous as usize].next = next,
        }
        if next != NONE {
            self.items[next as usize].previous = previous;
        }
        if self.groups[group as usize].first == NONE {
            self.groups[group as usize].sets = Box::default();
            self.leave_namespace(group);
        }
    }

    /// Forgets items that are gone. All must be settled.
    pub fn forget_gone(&mut self) {
        for (key, no) in std::mem::take(&mut self.gone) {
            // It may have come back, or be in the list twice.
            if self.numbers.get(&key) != Some(&no) || self.items[no as usize].value.is_some() {
                continue;
            }
            self.numbers.remove(&key);
            self.free_items.push(no);
        }
    }
}

impl Default for Item {
    fn default() -> Self {
        Self {
            value: None,
            next: NONE,
            previous: NONE,
            is_unsettled: false,
            was_settled: false,
        }
    }
}

fn put<T>(list: &mut Vec<T>, free: &mut Vec<No>, value: T) -> No {
    match free.pop() {
        Some(no) => {
            list[no as usize] = value;
            no
        }
        None => {
            list.push(value);
            (list.len() - 1) as No
        }
    }
}
