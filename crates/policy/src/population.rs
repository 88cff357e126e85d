//! Everything that selectors of rules can pick, anywhere in the cluster, in a compact form.
//!
//! What has the same labels and profiles is one [`Group`]: selectors are tried on groups, and a replica of a workload that
//! is known costs no evaluation at all. Texts, label sets, lists of profiles and of ports are kept once each.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use api::{Key, Labels, Selector};

use crate::facts::{MemberFacts, NamedPort};
use crate::index::Index;
use crate::nets::Nets;
use crate::rules::NAMESPACE;
use crate::set_def::SetDef;
use crate::state::Member;
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
    group_numbers: ByNo<GroupKey, No>,
    free_groups: Vec<No>,
    items: Vec<Item>,
    numbers: ByNo<ItemKey, No>,
    /// Keys of the hashes in item keys.
    keys: [RandomState; 2],
    free_items: Vec<No>,
    /// Groups that have items, by namespace.
    by_namespace: ByNo<No, Vec<No>>,
    /// What changed items were when they were last settled.
    before: ByNo<No, Value>,
    /// Items that are not settled, each once.
    unsettled: Vec<No>,
    /// Items that were without a value at some time since then.
    gone: Vec<(ItemKey, No)>,
    /// Room for labels that are being looked up.
    scratch: Vec<(No, No)>,
    /// The label whose value is the namespace.
    namespace: No,
}

/// What is picked or not picked together.
#[derive(Debug)]
pub(crate) struct Group {
    key: GroupKey,
    /// Values that name it.
    holders: u32,
    /// Its first settled item.
    first: No,
    /// Its place among those of its namespace.
    place: u32,
    /// Sets that its settled items are in; numbers of sets that are gone may be among them.
    sets: Box<[No]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
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

/// Stands for the key of an item: 128 bits of keyed hashes. Names would take more memory than all else. That any two of a
/// million agree is less likely than 1 to 10^26, and nobody outside knows the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ItemKey([u32; 4]);

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
            keys: [RandomState::new(), RandomState::new()],
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
    pub fn value(&mut self, facts: &MemberFacts) -> Value {
        let implied = facts.implied.iter().flatten();
        let implied = self.hold_labels(implied.map(|(name, value)| (*name, value.as_str())));
        let own = self.hold_labels(facts.own());
        let profiles = self.hold_profiles(&facts.profiles);
        let ports = match facts.ports.as_slice() {
            [] => NONE,
            ports => self.port_lists.hold(ports).0,
        };
        Value {
            group: self.hold_group(GroupKey { own, implied, profiles }),
            ports,
            nets: Nets::new(&facts.nets),
        }
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

    /// The group of a key whose parts the caller holds and hands on.
    fn hold_group(&mut self, key: GroupKey) -> No {
        if let Some(no) = self.group_numbers.get(&key).copied() {
            self.groups[no as usize].holders += 1;
            self.release_parts(key);
            return no;
        }
        let group = Group {
            key,
            holders: 1,
            first: NONE,
            place: 0,
            sets: Box::default(),
        };
        let no = put(&mut self.groups, &mut self.free_groups, group);
        self.group_numbers.insert(key, no);
        no
    }

    fn release_parts(&mut self, key: GroupKey) {
        for labels in [key.own, key.implied] {
            if let Some(labels) = self.labels.release(labels) {
                self.release_symbols(&labels);
            }
        }
        if let Some(names) = self.profile_lists.release(key.profiles) {
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
            let key = group.key;
            group.sets = Box::default();
            self.group_numbers.remove(&key);
            self.free_groups.push(value.group);
            self.release_parts(key);
        }
    }

    /// Makes a value the one of `key`; `None`: there is no such thing.
    pub fn set(&mut self, key: &Key, value: Option<Value>) {
        let key = self.item_key(key);
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
        self.numbers.get(&self.item_key(key)).copied()
    }

    fn item_key(&self, key: &Key) -> ItemKey {
        let [a, b] = self.keys.each_ref().map(|hash| hash.hash_one(key));
        ItemKey([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
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

    /// Makes labels the ones that a profile gives; answers whether that is news.
    pub fn set_inherited(&mut self, profile: &str, labels: &BTreeMap<String, String>) -> bool {
        let mut numbers: Vec<(No, No)> = labels
            .iter()
            .map(|(name, value)| (self.symbols.hold(name).0, self.symbols.hold(value).0))
            .collect();
        numbers.sort_unstable();
        let known = self.symbols.find(profile).filter(|no| self.inherited.contains_key(no));
        let old = known.and_then(|no| self.inherited.get(&no));
        if old.map_or(&[][..], |labels| labels) == numbers {
            self.release_symbols(&numbers);
            return false;
        }
        if let Some(no) = known
            && let Some(old) = self.inherited.remove(&no)
        {
            self.release_symbols(&old);
            self.symbols.release(no);
        }
        if !numbers.is_empty() {
            let (no, _) = self.symbols.hold(profile);
            self.inherited.insert(no, numbers.into());
        }
        true
    }

    /// Groups with items that inherit from one of these profiles.
    pub fn heirs<'a>(&self, profiles: impl Iterator<Item = &'a String>) -> Vec<No> {
        let profiles: Vec<No> = profiles.filter_map(|name| self.symbols.find(name)).collect();
        let mut is_heir: ByNo<No, bool> = ByNo::default();
        let groups = self.linked_groups();
        groups
            .filter(|no| {
                let list = self.groups[*no as usize].key.profiles;
                *is_heir.entry(list).or_insert_with(|| {
                    let names = self.profile_lists.get(list);
                    names.iter().any(|name| profiles.contains(name))
                })
            })
            .collect()
    }

    /// Groups that have items.
    pub fn linked_groups(&self) -> impl Iterator<Item = No> {
        let groups = self.groups.iter().enumerate();
        groups.filter(|(_, group)| group.first != NONE).map(|(no, _)| no as No)
    }

    /// Groups that have items and may be in a namespace: those that say so, and those that say nothing about it.
    pub fn groups_in(&self, namespace: &str) -> impl Iterator<Item = No> {
        let namespaces = [self.symbols.find(namespace), Some(NONE)];
        let groups = namespaces.into_iter().flatten();
        groups.filter_map(|no| self.by_namespace.get(&no)).flatten().copied()
    }

    fn namespace_of(&self, group: No) -> No {
        let GroupKey { implied, own, .. } = self.groups[group as usize].key;
        let labels = [implied, own].into_iter();
        let mut named = labels.filter_map(|no| find_label(self.labels.get(no), self.namespace));
        named.next().unwrap_or(NONE)
    }

    fn enter_namespace(&mut self, group: No) {
        let namespace = self.namespace_of(group);
        let groups = self.by_namespace.entry(namespace).or_default();
        self.groups[group as usize].place = groups.len() as u32;
        groups.push(group);
    }

    fn leave_namespace(&mut self, group: No) {
        let namespace = self.namespace_of(group);
        let Some(groups) = self.by_namespace.get_mut(&namespace) else {
            return;
        };
        let place = self.groups[group as usize].place;
        groups.swap_remove(place as usize);
        match groups.get(place as usize) {
            Some(moved) => self.groups[*moved as usize].place = place,
            None if groups.is_empty() => drop(self.by_namespace.remove(&namespace)),
            None => {}
        }
    }

    /// Whether a group has items.
    pub fn is_linked(&self, group: No) -> bool {
        self.groups[group as usize].first != NONE
    }

    /// The sets of a group.
    pub fn sets(&self, group: No) -> &[No] {
        &self.groups[group as usize].sets
    }

    /// Makes these the sets of a group.
    pub fn set_sets(&mut self, group: No, sets: Vec<No>) {
        self.groups[group as usize].sets = sets.into();
    }

    /// Values of the settled items of a group.
    pub fn values(&self, group: No) -> impl Iterator<Item = &Value> {
        let first = self.groups[group as usize].first;
        let items = std::iter::successors(Some(first).filter(|no| *no != NONE), |no| {
            Some(self.items[*no as usize].next).filter(|no| *no != NONE)
        });
        items.filter_map(|no| self.items[no as usize].value.as_ref())
    }

    /// For each group with items, what an index finds by its labels, as far as it finds anything.
    pub fn candidates(&self, index: &Index) -> Vec<(No, Vec<No>)> {
        let of_labels: Vec<(No, Vec<No>)> = self
            .labels
            .iter()
            .map(|(no, labels)| (no, index.anchored(labels)))
            .collect();
        let of_lists = self.profile_lists.iter().map(|(no, profiles)| {
            let inherited = profiles.iter().filter_map(|profile| self.inherited.get(profile));
            (no, inherited.flat_map(|labels| index.anchored(labels)).collect())
        });
        let (of_labels, of_lists) = (by_number(of_labels.into_iter()), by_number(of_lists));
        let always = index.always();
        let mut found = Vec::new();
        for group in self.linked_groups() {
            let key = self.groups[group as usize].key;
            let parts = [
                always,
                find(&of_labels, key.implied),
                find(&of_labels, key.own),
                find(&of_lists, key.profiles),
            ];
            if parts.iter().any(|part| !part.is_empty()) {
                let mut candidates = parts.concat();
                candidates.sort_unstable();
                candidates.dedup();
                found.push((group, candidates));
            }
        }
        found
    }

    /// All labels of a group by number; inherited ones that its own replace are among them.
    pub fn label_numbers(&self, group: No) -> impl Iterator<Item = (No, No)> {
        let key = self.groups[group as usize].key;
        let own = [key.implied, key.own].into_iter().flat_map(|no| self.labels.get(no));
        let profiles = self.profile_lists.get(key.profiles).iter();
        let inherited = profiles.filter_map(|profile| self.inherited.get(profile)).flatten();
        own.chain(inherited).copied()
    }

    /// All labels of a group.
    pub fn label_texts(&self, group: No) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (name, value) in self.label_numbers(group) {
            // The first one wins.
            labels
                .entry(self.symbols.get(name).to_owned())
                .or_insert_with(|| self.symbols.get(value).to_owned());
        }
        labels
    }

    /// Whether a selector picks a group.
    pub fn matches(&self, group: No, selector: &Selector) -> bool {
        selector.evaluate(&GroupLabels {
            population: self,
            group,
        })
    }

    /// The texts, for anchors of selectors.
    pub fn symbols(&mut self) -> &mut Table<str> {
        &mut self.symbols
    }

    /// Members that a value puts into a set of this definition.
    pub fn members(&self, value: &Value, def: &SetDef, mut visit: impl FnMut(Member)) {
        match def {
            SetDef::Selected(_) => value.nets.each(|net| visit(Member::Net(net))),
            SetDef::NamedPort { name, protocol, .. } => {
                let ports = match value.ports {
                    NONE => &[],
                    list => self.port_lists.get(list),
                };
                let named = ports
                    .iter()
                    .filter(|port| port.name == *name && port.protocol == *protocol);
                let numbers: BTreeSet<u16> = named.map(|port| port.port).collect();
                for number in numbers {
                    value.nets.each(|net| {
                        if net.prefix_len() == net.max_prefix_len() {
                            visit(Member::Port(net.addr(), *protocol, number));
                        }
                    });
                }
            }
            SetDef::Service(_) | SetDef::ServicePorts(_) => {}
        }
    }
}

/// The labels of a group, as selectors see them.
struct GroupLabels<'a> {
    population: &'a Population,
    group: No,
}

impl Labels for GroupLabels<'_> {
    fn label(&self, name: &str) -> Option<&str> {
        let Population {
            symbols,
            labels,
            profile_lists,
            inherited,
            groups,
            ..
        } = self.population;
        let name = symbols.find(name)?;
        let key = groups[self.group as usize].key;
        let own = || find_label(labels.get(key.own), name);
        let from_profiles = || {
            let profiles = profile_lists.get(key.profiles).iter();
            profiles
                .filter_map(|profile| inherited.get(profile))
                .find_map(|labels| find_label(labels, name))
        };
        let value = find_label(labels.get(key.implied), name)
            .or_else(own)
            .or_else(from_profiles)?;
        Some(symbols.get(value))
    }
}

fn find_label(labels: &[(No, No)], name: No) -> Option<No> {
    let place = labels.binary_search_by_key(&name, |(name, _)| *name).ok()?;
    Some(labels[place].1)
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

fn find(list: &[Vec<No>], no: No) -> &[No] {
    list.get(no as usize).map_or(&[], Vec::as_slice)
}

/// A list in which the place of a value is its number.
fn by_number<T: Default>(values: impl Iterator<Item = (No, T)>) -> Vec<T> {
    let mut list = Vec::new();
    for (no, value) in values {
        // Numbers come in their order.
        list.resize_with(no as usize, T::default);
        list.push(value);
    }
    list
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
