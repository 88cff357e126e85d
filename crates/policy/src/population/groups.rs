//! Groups: their labels, inherited ones included, and whom selectors pick.

use std::collections::{BTreeMap, BTreeSet};

use api::{Labels, Selector};

use super::{NONE, No, Parts, Population, Value};
use crate::index::Index;
use crate::set_def::SetDef;
use crate::state::Member;
use crate::table::{ByNo, Table};

impl Population {
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
        let profiles: Vec<No> = profiles.filter_map(|name| self.symbols.find(name.as_str())).collect();
        let mut is_heir: ByNo<No, bool> = ByNo::default();
        let groups = self.linked_groups();
        groups
            .filter(|no| {
                let list = self.groups.get(*no).parts.profiles;
                *is_heir.entry(list).or_insert_with(|| {
                    let names = &self.profile_lists.get(list).list;
                    names.iter().any(|name| profiles.contains(name))
                })
            })
            .collect()
    }

    /// Groups that have items.
    pub fn linked_groups(&self) -> impl Iterator<Item = No> {
        let groups = self.groups.iter();
        groups.filter(|(_, group)| group.first != NONE).map(|(no, _)| no)
    }

    /// Groups that have items and may be in a namespace: those that say so, and those that say nothing about it.
    pub fn groups_in(&self, namespace: &str) -> impl Iterator<Item = No> {
        let namespaces = [self.symbols.find(namespace), Some(NONE)];
        let groups = namespaces.into_iter().flatten();
        groups.filter_map(|no| self.by_namespace.get(&no)).flatten().copied()
    }

    fn namespace_of(&self, group: No) -> No {
        let Parts { implied, own, .. } = self.groups.get(group).parts;
        let labels = [implied, own].into_iter();
        let mut named = labels.filter_map(|no| find_label(&self.labels.get(no).list, self.namespace));
        named.next().unwrap_or(NONE)
    }

    pub(super) fn enter_namespace(&mut self, group: No) {
        let namespace = self.namespace_of(group);
        let groups = self.by_namespace.entry(namespace).or_default();
        self.groups.get_mut(group).place = groups.len() as u32;
        groups.push(group);
    }

    pub(super) fn leave_namespace(&mut self, group: No) {
        let namespace = self.namespace_of(group);
        let Some(groups) = self.by_namespace.get_mut(&namespace) else {
            return;
        };
        let place = self.groups.get(group).place;
        groups.swap_remove(place as usize);
        match groups.get(place as usize) {
            Some(moved) => self.groups.get_mut(*moved).place = place,
            None if groups.is_empty() => drop(self.by_namespace.remove(&namespace)),
            None => {}
        }
    }

    /// Whether a group has items.
    pub fn is_linked(&self, group: No) -> bool {
        self.groups.get(group).first != NONE
    }

    /// The sets of a group.
    pub fn sets(&self, group: No) -> &[No] {
        match self.groups.get(group).sets {
            NONE => &[],
            list => self.set_lists.get(list),
        }
    }

    /// Makes these the sets of a group.
    pub fn set_sets(&mut self, group: No, sets: &[No]) {
        let new = match sets {
            [] => NONE,
            sets => self.set_lists.hold(sets).0,
        };
        let old = std::mem::replace(&mut self.groups.get_mut(group).sets, new);
        if old != NONE {
            self.set_lists.release(old);
        }
    }

    /// Values of the settled items of a group.
    pub fn values(&self, group: No) -> impl Iterator<Item = &Value> {
        let first = self.groups.get(group).first;
        let items = std::iter::successors(Some(first).filter(|no| *no != NONE), |no| {
            Some(self.items[*no as usize].next).filter(|no| *no != NONE)
        });
        items.filter_map(|no| self.items[no as usize].value.as_ref())
    }

    /// For each group with items, what an index finds by its labels, sorted, as far as it finds anything.
    pub fn candidates(&self, index: &Index, mut visit: impl FnMut(No, &[No])) {
        let of_labels = self
            .labels
            .iter()
            .map(|(no, labels)| (no, index.anchored(labels.list.iter())));
        let of_lists = self.profile_lists.iter().map(|(no, profiles)| {
            let inherited = profiles.list.iter().filter_map(|profile| self.inherited.get(profile));
            (no, index.anchored(inherited.flatten()))
        });
        let (of_labels, of_lists) = (by_number(of_labels), by_number(of_lists));
        let finds_none = |lists: &[Vec<No>]| lists.iter().all(Vec::is_empty);
        if index.always().is_empty() && finds_none(&of_labels) && finds_none(&of_lists) {
            return;
        }
        let mut candidates = Vec::new();
        for group in self.linked_groups() {
            let key = self.groups.get(group).parts;
            candidates.clear();
            for part in [
                index.always(),
                find(&of_labels, key.implied),
                find(&of_labels, key.own),
                find(&of_lists, key.profiles),
            ] {
                candidates.extend_from_slice(part);
            }
            if !candidates.is_empty() {
                candidates.sort_unstable();
                candidates.dedup();
                visit(group, &candidates);
            }
        }
    }

    /// All labels of a group by number; inherited ones that its own replace are among them.
    pub fn label_numbers(&self, group: No) -> impl Iterator<Item = (No, No)> {
        let key = self.groups.get(group).parts;
        let own = [key.implied, key.own].into_iter();
        let own = own.flat_map(|no| &self.labels.get(no).list);
        let profiles = self.profile_lists.get(key.profiles).list.iter();
        let inherited = profiles.filter_map(|profile| self.inherited.get(profile)).flatten();
        own.chain(inherited).copied()
    }

    /// All labels of a group.
    pub fn label_texts(&self, group: No) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (name, value) in self.label_numbers(group) {
            // The first one wins.
            labels
                .entry(self.symbols.get(name).to_string())
                .or_insert_with(|| self.symbols.get(value).to_string());
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
    pub fn symbols(&mut self) -> &mut Table<Box<str>> {
        &mut self.symbols
    }

    /// Members that a value puts into a set of this definition.
    pub fn members(&self, value: &Value, def: &SetDef, mut visit: impl FnMut(Member)) {
        match def {
            SetDef::Selected(_) => value.nets.each(|net| visit(Member::Net(net))),
            SetDef::NamedPort { name, protocol, .. } => {
                let ports: &[_] = match value.ports {
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
        let key = groups.get(self.group).parts;
        let own = || find_label(&labels.get(key.own).list, name);
        let from_profiles = || {
            let profiles = profile_lists.get(key.profiles).list.iter();
            profiles
                .filter_map(|profile| inherited.get(profile))
                .find_map(|labels| find_label(labels, name))
        };
        let value = find_label(&labels.get(key.implied).list, name)
            .or_else(own)
            .or_else(from_profiles)?;
        Some(symbols.get(value))
    }
}

fn find_label(labels: &[(No, No)], name: No) -> Option<No> {
    let place = labels.binary_search_by_key(&name, |(name, _)| *name).ok()?;
    Some(labels[place].1)
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
