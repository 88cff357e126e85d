//! Policy's sets in the kernel: one for each family. Sets of addresses are hashed; as soon as one member is a prefix the set
//! becomes one of intervals, under another name, and rules that look into it are written again in the same transaction.

use std::collections::{BTreeMap, BTreeSet};

use kernel::IpFamily;
use kernel::nft::SetName;
use policy::{Member, PolicyId, Set, SetId, SetKind};

use super::items::{Item, family_of, is_host, spec};
use super::machine::Filter;
use super::names;
use super::rule::Sets;

/// What there is to know about a policy's set besides its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetMeta {
    pub kind: SetKind,
    /// How many members are prefixes, by family.
    prefixes: BTreeMap<IpFamily, usize>,
}

impl SetMeta {
    fn name(&self, id: &SetId, family: IpFamily) -> SetName {
        let has_prefixes = self.prefixes.get(&family).is_some_and(|count| *count > 0);
        names::set(id, family, has_prefixes)
    }

    fn count(&mut self, member: &Member, came: bool) {
        if matches!(member, Member::Net(net) if !is_host(net)) {
            let count = self.prefixes.entry(family_of(member)).or_default();
            *count = if came { *count + 1 } else { count.saturating_sub(1) };
        }
    }
}

/// Who names a set in its rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetUser {
    Policy(PolicyId),
    Profile(String),
}

/// The sets as rules see them.
pub(super) struct KnownSets<'a> {
    pub sets: &'a BTreeMap<SetId, SetMeta>,
    /// Sets that the kernel refused, with its reason.
    pub refused: &'a BTreeMap<SetId, String>,
}

impl Sets for KnownSets<'_> {
    fn name(&self, id: &SetId, family: IpFamily) -> Result<SetName, String> {
        if let Some(reason) = self.refused.get(id) {
            return Err(format!("set {}: {reason}", id.0));
        }
        let meta = self.sets.get(id).ok_or_else(|| format!("set {} is unknown", id.0))?;
        Ok(meta.name(id, family))
    }
}

impl Filter {
    pub(super) fn put_set(&mut self, id: SetId, set: Set) {
        self.set_changed(&id);
        let mut meta = SetMeta {
            kind: set.kind,
            prefixes: BTreeMap::new(),
        };
        set.members.iter().for_each(|member| meta.count(member, true));
        let old = self.sets.get(&id).cloned();
        for family in IpFamily::BOTH {
            let name = meta.name(&id, family);
            let old_name = old.as_ref().map(|old| old.name(&id, family));
            let members = set.members.iter().filter(|member| family_of(member) == family);
            let items: BTreeSet<Item> = members.map(Item::from).collect();
            if let Some(old_name) = old_name.filter(|old_name| *old_name != name) {
                self.wanted.no_set(&old_name);
            }
            let interval = name == names::set(&id, family, true);
            self.wanted.set(spec(name.clone(), set.kind, family, interval));
            self.wanted.items(&name, &items);
        }
        if old.as_ref() != Some(&meta) {
            self.sets.insert(id.clone(), meta);
            self.render_users(&id);
        }
    }

    pub(super) fn change_members(&mut self, id: &SetId, came: &BTreeSet<Member>, went: &BTreeSet<Member>) {
        self.set_changed(id);
        let Some(mut meta) = self.sets.remove(id) else {
            return;
        };
        let before = IpFamily::BOTH.map(|family| meta.name(id, family));
        let old_name = |member: &Member| match family_of(member) {
            IpFamily::V4 => &before[0],
            IpFamily::V6 => &before[1],
        };
        for (member, present) in went
            .iter()
            .map(|member| (member, false))
            .chain(came.iter().map(|member| (member, true)))
        {
            if self.wanted.item(old_name(member), Item::from(member), present) {
                meta.count(member, present);
            }
        }
        let mut moved = false;
        for (family, old) in IpFamily::BOTH.into_iter().zip(&before) {
            let name = meta.name(id, family);
            if name != *old {
                let items: BTreeSet<Item> = self.wanted.wanted_items(old).cloned().collect();
                self.wanted.no_set(old);
                let interval = name == names::set(id, family, true);
                self.wanted.set(spec(name.clone(), meta.kind, family, interval));
                self.wanted.items(&name, &items);
                moved = true;
            }
        }
        self.sets.insert(id.clone(), meta);
        if moved {
            self.render_users(id);
        }
    }

    pub(super) fn remove_set(&mut self, id: &SetId) {
        self.set_changed(id);
        if let Some(meta) = self.sets.remove(id) {
            for family in IpFamily::BOTH {
                self.wanted.no_set(&meta.name(id, family));
            }
        }
        self.render_users(id);
    }

    /// A set that the kernel refused gets another chance when it changes.
    fn set_changed(&mut self, id: &SetId) {
        if self.doubt.sets.remove(id).is_some() {
            self.park(id, false);
            self.render_users(id);
        }
    }

    /// A parked set is not in the kernel, but its members are not forgotten.
    pub(super) fn park(&mut self, id: &SetId, parked: bool) {
        if let Some(meta) = self.sets.get(id) {
            let names = IpFamily::BOTH.map(|family| meta.name(id, family));
            names.iter().for_each(|name| self.wanted.park(name, parked));
        }
    }

    /// Policies and profiles that name a set are rendered again.
    pub(super) fn render_users(&mut self, id: &SetId) {
        for user in self.set_users.get(id).into_iter().flatten() {
            match user {
                SetUser::Policy(id) => self.dirty.policies.insert(id.clone()),
                SetUser::Profile(name) => self.dirty.profiles.insert(name.clone()),
            };
        }
    }

    /// The rules of a policy or profile are others now.
    pub(super) fn count_set_users(&mut self, user: &SetUser, old: &[&[policy::Rule]], new: &[&[policy::Rule]]) {
        for id in sets_of(old) {
            if let Some(users) = self.set_users.get_mut(id) {
                users.remove(user);
                if users.is_empty() {
                    self.set_users.remove(id);
                }
            }
        }
        for id in sets_of(new) {
            self.set_users.entry(id.clone()).or_default().insert(user.clone());
        }
    }

    /// The policy's set that an nf_tables set is for.
    pub(super) fn set_of(&self, name: &SetName) -> Option<SetId> {
        let is_named =
            |(id, meta): &(&SetId, &SetMeta)| IpFamily::BOTH.iter().any(|family| meta.name(id, *family) == *name);
        self.sets.iter().find(is_named).map(|(id, _)| id.clone())
    }
}

fn sets_of<'a>(rules: &[&'a [policy::Rule]]) -> BTreeSet<&'a SetId> {
    let sides = rules
        .iter()
        .flat_map(|rules| rules.iter())
        .flat_map(|rule| [&rule.source, &rule.destination]);
    let lists = sides.flat_map(|side| {
        [
            &side.sets,
            &side.not_sets,
            &side.named_ports,
            &side.not_named_ports,
            &side.services,
        ]
    });
    lists.flatten().collect()
}
