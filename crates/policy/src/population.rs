//! Everything that selectors of rules can pick, anywhere in the cluster, in a compact form.
//!
//! What has the same labels and profiles is one [`Group`]: selectors are tried on groups, and a replica of a workload that
//! is known costs no evaluation at all. Texts, label sets, lists of profiles, ports and sets are kept once each; label sets
//! and lists of profiles are found by their prints, so that what is known already has none of its texts looked up.

mod groups;

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};

use api::Key;
use hashbrown::HashTable;

use crate::member_facts::{MemberFacts, NamedPort};
use crate::nets::Nets;
use crate::print::{Print, Printed, Prints};
use crate::rules::NAMESPACE;
use crate::table::{ByNo, No, Table};

/// No item, no group, no list.
pub(crate) const NONE: No = No::MAX;

/// All members that could be in a set.
#[derive(Debug)]
pub(crate) struct Population {
    symbols: Table<Box<str>>,
    /// Sorted by the numbers of their names.
    labels: Table<Printed<(No, No)>>,
    profile_lists: Table<Printed<No>>,
    port_lists: Table<Box<[NamedPort]>>,
    /// Sets that groups are in.
    set_lists: Table<Box<[No]>>,
    /// Labels that profiles give, by profile.
    inherited: ByNo<No, Box<[(No, No)]>>,
    /// Held by the values that name them.
    groups: Table<Group>,
    items: Vec<Item>,
    /// Items by their prints.
    numbers: HashTable<No>,
    prints: Prints,
    free_items: Vec<No>,
    /// Groups that have items, by namespace.
    by_namespace: ByNo<No, Vec<No>>,
    /// What changed items were when they were last settled.
    before: ByNo<No, Value>,
    /// Items that are not settled, each once.
    unsettled: Vec<No>,
    /// Items that were without a value at some time since then.
    gone: Vec<No>,
    /// The label whose value is the namespace.
    namespace: No,
}

/// What is picked or not picked together.
#[derive(Debug)]
pub(crate) struct Group {
    parts: Parts,
    /// Its first settled item.
    first: No,
    /// Its place among those of its namespace.
    place: u32,
    /// The list of sets that its settled items are in; numbers of sets that are gone may be among them.
    sets: No,
}

/// Label sets and the list of profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Parts {
    own: No,
    implied: No,
    profiles: No,
}

#[derive(Debug)]
struct Item {
    print: Print,
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
        let mut symbols: Table<Box<str>> = Table::default();
        let (namespace, _) = symbols.hold(NAMESPACE);
        Self {
            symbols,
            labels: Table::default(),
            profile_lists: Table::default(),
            port_lists: Table::default(),
            set_lists: Table::default(),
            inherited: ByNo::default(),
            groups: Table::default(),
            items: Vec::new(),
            numbers: HashTable::new(),
            prints: Prints::default(),
            free_items: Vec::new(),
            by_namespace: ByNo::default(),
            before: ByNo::default(),
            unsettled: Vec::new(),
            gone: Vec::new(),
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
        let parts = Parts {
            implied: self.hold_labels(facts.implied.iter().flatten().copied()),
            own: self.hold_labels(facts.own()),
            profiles: self.hold_profiles(&facts.profiles),
        };
        let (no, is_new) = self.groups.hold_or(&parts, || Group {
            parts,
            first: NONE,
            place: 0,
            sets: NONE,
        });
        if !is_new {
            self.release_parts(parts);
        }
        no
    }

    fn hold_labels<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> No {
        let print = self
            .prints
            .of(|printing| labels.clone().for_each(|label| label.hash(printing)));
        let Self {
            symbols, labels: known, ..
        } = self;
        let make = || {
            let numbers = labels.map(|(name, value)| (symbols.hold(name).0, symbols.hold(value).0));
            let mut list: Box<[(No, No)]> = numbers.collect();
            list.sort_unstable();
            Printed { print, list }
        };
        known.hold_or(&print, make).0
    }

    fn hold_profiles(&mut self, profiles: &[String]) -> No {
        let print = self.prints.of_value(&profiles);
        let Self {
            symbols, profile_lists, ..
        } = self;
        let make = || Printed {
            print,
            list: profiles.iter().map(|name| symbols.hold(name.as_str()).0).collect(),
        };
        profile_lists.hold_or(&print, make).0
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
                self.release_symbols(&labels.list);
            }
        }
        if let Some(names) = self.profile_lists.release(parts.profiles) {
            names.list.iter().for_each(|name| drop(self.symbols.release(*name)));
        }
    }

    /// Lets go of a value.
    pub fn release(&mut self, value: Value) {
        if value.ports != NONE {
            self.port_lists.release(value.ports);
        }
        if let Some(group) = self.groups.release(value.group) {
            self.release_parts(group.parts);
        }
    }

    /// Makes a value the one of `key`; `None`: there is no such thing.
    pub fn set(&mut self, key: &Key, value: Option<Value>) {
        let print = self.prints.of_value(key);
        match value {
            Some(value) => {
                let no = self.place(print).unwrap_or_else(|| self.new_item(print));
                self.change(no, Some(value));
            }
            None => {
                if let Some(no) = self.place(print)
                    && self.change(no, None)
                {
                    self.gone.push(no);
                }
            }
        }
    }

    fn new_item(&mut self, print: Print) -> No {
        let item = Item {
            print,
            value: None,
            next: NONE,
            previous: NONE,
            is_unsettled: false,
            was_settled: false,
        };
        let no = match self.free_items.pop() {
            Some(no) => {
                self.items[no as usize] = item;
                no
            }
            None => {
                self.items.push(item);
                (self.items.len() - 1) as No
            }
        };
        let Self { numbers, items, .. } = self;
        numbers.insert_unique(print.bits(), no, |no| items[*no as usize].print.bits());
        no
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
        self.groups.hold_again(copy.group);
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
        self.place(self.prints.of_value(key))
    }

    fn place(&self, print: Print) -> Option<No> {
        let is_it = |no: &No| self.items[*no as usize].print == print;
        self.numbers.find(print.bits(), is_it).copied()
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
        let first = self.groups.get(group).first;
        if first == NONE {
            self.enter_namespace(group);
        } else {
            self.items[first as usize].previous = item;
        }
        self.items[item as usize].next = first;
        self.items[item as usize].previous = NONE;
        self.groups.get_mut(group).first = item;
    }

    /// Takes an item out of its former group. Call before it is linked to another one.
    pub fn unlink(&mut self, item: No, group: No) {
        let Item { next, previous, .. } = self.items[item as usize];
        match previous {
            NONE => self.groups.get_mut(group).first = next,
            previous => self.items[previous as usize].next = next,
        }
        if next != NONE {
            self.items[next as usize].previous = previous;
        }
        if next == NONE && previous == NONE {
            self.set_sets(group, &[]);
            self.leave_namespace(group);
        }
    }

    /// Forgets items that are gone. All must be settled.
    pub fn forget_gone(&mut self) {
        for no in std::mem::take(&mut self.gone) {
            let item = &self.items[no as usize];
            if item.value.is_some() {
                continue;
            }
            // It may be in the list twice.
            if let Ok(place) = self.numbers.find_entry(item.print.bits(), |other| *other == no) {
                place.remove();
                self.free_items.push(no);
            }
        }
    }
}

impl Borrow<Parts> for Group {
    fn borrow(&self) -> &Parts {
        &self.parts
    }
}

impl Hash for Group {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts.hash(state);
    }
}
