//! Sets that rules in use name, and who is in them.
//!
//! What changes is put into the state's sets when the flush ends ([`Sets::finish`]).

use std::collections::{BTreeMap, BTreeSet};

use api::selector::Expression;
use ipnet::IpNet;

use crate::index::{self, Anchors, Index};
use crate::members::{Holders, Visible};
use crate::population::{Population, Settling, Value};
use crate::rules::NAMESPACE;
use crate::services::Slice;
use crate::set_def::{Service, SetDef};
use crate::state::{Member, PolicyChange, Set, SetId};
use crate::table::{ByNo, No};

/// From so many sets that are gone on, their numbers are swept out of groups.
const SWEEP: usize = if cfg!(test) { 2 } else { 512 };

/// Sets in use. Their numbers are never used twice, so that a stale one names nothing.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    active: ByNo<No, Active>,
    numbers: BTreeMap<SetId, No>,
    next: No,
    index: Index,
    by_service: BTreeMap<Service, BTreeSet<No>>,
    /// Sets that are new, or may not be used any more.
    fresh: Vec<No>,
    unused: Vec<No>,
    /// Sets whose members were taken out of the state for this flush.
    open: ByNo<No, Visible>,
    stale: usize,
}

#[derive(Debug)]
struct Active {
    id: SetId,
    def: SetDef,
    anchors: Anchors,
    users: u32,
    holders: Holders,
}

impl Sets {
    /// A rule uses the set. Members of a new one come with [`Sets::fill`].
    pub fn hold(&mut self, id: &SetId, def: &SetDef, population: &mut Population) -> No {
        if let Some(no) = self.numbers.get(id)
            && let Some(active) = self.active.get_mut(no)
        {
            active.users += 1;
            return *no;
        }
        let no = self.next;
        self.next += 1;
        let anchors = match def.selector() {
            Some(selector) => index::hold(selector, population.symbols()),
            None => None,
        };
        self.numbers.insert(id.clone(), no);
        self.fresh.push(no);
        let visible = Visible {
            is_new: true,
            ..Visible::default()
        };
        self.open.insert(no, visible);
        let active = Active {
            id: id.clone(),
            def: def.clone(),
            anchors,
            users: 1,
            holders: Holders::default(),
        };
        self.active.insert(no, active);
        no
    }

    /// A rule does not use the set any more.
    pub fn release(&mut self, set: No) {
        if let Some(active) = self.active.get_mut(&set) {
            active.users -= 1;
            if active.users == 0 {
                self.unused.push(set);
            }
        }
    }

    /// Brings an item's change into the sets that it concerns.
    pub fn settle(&mut self, settling: Settling, population: &mut Population, state: &mut BTreeMap<SetId, Set>) {
        let Settling { item, old, new_group } = settling;
        if let Some(group) = new_group
            && !population.is_linked(group)
        {
            let sets = self.of_group(group, population);
            population.set_sets(group, &sets);
        }
        // Who stays does not go and come back.
        if let (Some(group), Some(value)) = (new_group, population.value_of(item)) {
            for set in population.sets(group) {
                self.contribute(*set, value, population, state, Holders::add);
            }
        }
        let old_group = old.as_ref().map(|old| old.group);
        if let Some(old) = &old {
            for set in population.sets(old.group) {
                self.contribute(*set, old, population, state, Holders::remove);
            }
        }
        if old_group != new_group {
            old_group.into_iter().for_each(|group| population.unlink(item, group));
            new_group.into_iter().for_each(|group| population.link(item, group));
        }
        old.into_iter().for_each(|old| population.release(old));
    }

    /// Brings other inherited labels of a group into its sets.
    pub fn relabel(&mut self, group: No, population: &mut Population, state: &mut BTreeMap<SetId, Set>) {
        let sets = self.of_group(group, population);
        let old = population.sets(group);
        let steps: [(&[No], &[No], Step); 2] = [(&sets, old, Holders::add), (old, &sets, Holders::remove)];
        for (some, others, step) in steps {
            for set in some.iter().filter(|set| !others.contains(set)) {
                for value in population.values(group) {
                    self.contribute(*set, value, population, state, step);
                }
            }
        }
        population.set_sets(group, &sets);
    }

    /// The sets that pick a group, except those that wait to be filled.
    fn of_group(&self, group: No, population: &Population) -> Vec<No> {
        if self.index.is_empty() {
            return Vec::new();
        }
        let mut sets = self.index.candidates(population.label_numbers(group));
        sets.retain(|set| self.picks(*set, group, population));
        sets
    }

    fn picks(&self, set: No, group: No, population: &Population) -> bool {
        let selector = self.active.get(&set).and_then(|active| active.def.selector());
        selector.is_some_and(|selector| population.matches(group, selector))
    }

    fn contribute(
        &mut self,
        set: No,
        value: &Value,
        population: &Population,
        state: &mut BTreeMap<SetId, Set>,
        step: Step,
    ) {
        let Some(active) = self.active.get_mut(&set) else {
            return;
        };
        let visible = self.open.entry(set).or_insert_with(|| Visible::of(&active.id, state));
        let holders = &mut active.holders;
        population.members(value, &active.def, |member| step(holders, visible, &member));
    }

    /// Brings a change of a service into the sets that name it.
    pub fn slice(&mut self, service: &Service, slice: &Slice, comes: bool, state: &mut BTreeMap<SetId, Set>) {
        let sets = self.by_service.get(service).cloned().unwrap_or_default();
        for set in sets {
            self.contribute_slice(set, slice, comes, state);
        }
    }

    fn contribute_slice(&mut self, set: No, slice: &Slice, comes: bool, state: &mut BTreeMap<SetId, Set>) {
        let Some(active) = self.active.get_mut(&set) else {
            return;
        };
        let visible = self.open.entry(set).or_insert_with(|| Visible::of(&active.id, state));
        let step: Step = if comes { Holders::add } else { Holders::remove };
        for address in &slice.addresses {
            match &active.def {
                SetDef::ServicePorts(_) => slice.ports.iter().for_each(|(protocol, port)| {
                    step(&mut active.holders, visible, &Member::Port(*address, *protocol, *port));
                }),
                SetDef::Service(_) => step(&mut active.holders, visible, &Member::Net(IpNet::from(*address))),
                SetDef::Selected(_) | SetDef::NamedPort { .. } => {}
            }
        }
    }

    /// Finds the members of new sets. Everything must be settled.
    pub fn fill<'a>(
        &mut self,
        population: &mut Population,
        state: &mut BTreeMap<SetId, Set>,
        slices: impl Fn(&Service) -> Vec<&'a Slice>,
    ) {
        let fresh = std::mem::take(&mut self.fresh);
        // Groups, each with a set that picks it.
        let mut picked: Vec<(No, No)> = Vec::new();
        let mut anywhere = Index::default();
        for set in &fresh {
            let Some(active) = self.active.get(set) else {
                continue;
            };
            match &active.def {
                SetDef::Selected(selector) | SetDef::NamedPort { selector, .. } => {
                    self.index.insert(*set, &active.anchors);
                    match namespace_of(selector.expression()) {
                        Some(namespace) => {
                            let groups = population.groups_in(namespace);
                            let groups = groups.filter(|group| population.matches(*group, selector));
                            picked.extend(groups.map(|group| (group, *set)));
                        }
                        None => anywhere.insert(*set, &active.anchors),
                    }
                }
                SetDef::Service(service) | SetDef::ServicePorts(service) => {
                    let service = service.clone();
                    for slice in slices(&service) {
                        self.contribute_slice(*set, slice, true, state);
                    }
                    self.by_service.entry(service).or_default().insert(*set);
                }
            }
        }
        if !anywhere.is_empty() {
            population.candidates(&anywhere, |group, sets| {
                let sets = sets.iter().filter(|set| self.picks(**set, group, population));
                picked.extend(sets.map(|set| (group, *set)));
            });
        }
        picked.sort_unstable();
        let mut members: ByNo<No, Vec<Member>> = ByNo::default();
        let mut sets = Vec::new();
        for new in picked.chunk_by(|(a, _), (b, _)| a == b) {
            let group = new[0].0;
            let old = population.sets(group).iter();
            sets.clear();
            sets.extend(old.filter(|set| self.active.contains_key(*set)));
            for (_, set) in new {
                sets.push(*set);
                if let Some(active) = self.active.get(set) {
                    let members = members.entry(*set).or_default();
                    for value in population.values(group) {
                        population.members(value, &active.def, |member| members.push(member));
                    }
                }
            }
            population.set_sets(group, &sets);
        }
        for (set, members) in members {
            if let (Some(active), Some(visible)) = (self.active.get_mut(&set), self.open.get_mut(&set)) {
                active.holders.fill(visible, members);
            }
        }
    }

    /// Puts members back into the state: what appeared or changed, and what is gone.
    pub fn finish(
        &mut self,
        population: &mut Population,
        state: &mut BTreeMap<SetId, Set>,
    ) -> (Vec<PolicyChange>, Vec<PolicyChange>) {
        let (mut changes, mut removals) = (Vec::new(), Vec::new());
        for set in std::mem::take(&mut self.unused) {
            if self.active.get(&set).is_some_and(|active| active.users == 0)
                && let Some(active) = self.active.remove(&set)
            {
                let was_new = self.open.remove(&set).is_some_and(|visible| visible.is_new);
                self.drop_set(set, &active, population);
                if !was_new {
                    state.remove(&active.id);
                    removals.push(PolicyChange::SetGone(active.id));
                }
            }
        }
        for (set, visible) in std::mem::take(&mut self.open) {
            let Some(active) = self.active.get(&set) else {
                continue;
            };
            let Visible {
                members,
                came,
                went,
                is_new,
            } = visible;
            if is_new {
                let set = Set {
                    kind: active.def.kind(),
                    meaning: active.def.meaning(),
                    members,
                };
                changes.push(PolicyChange::Set(active.id.clone(), set.clone()));
                state.insert(active.id.clone(), set);
                continue;
            }
            if let Some(set) = state.get_mut(&active.id) {
                set.members = members;
            }
            if !came.is_empty() || !went.is_empty() {
                changes.push(PolicyChange::Members(active.id.clone(), came, went));
            }
        }
        self.sweep(population);
        changes.sort_by(|a, b| rank(a).cmp(&rank(b)));
        removals.sort_by(|a, b| rank(b).cmp(&rank(a)));
        (changes, removals)
    }

    fn drop_set(&mut self, set: No, active: &Active, population: &mut Population) {
        self.numbers.remove(&active.id);
        match &active.def {
            SetDef::Selected(_) | SetDef::NamedPort { .. } => self.index.remove(set, &active.anchors),
            SetDef::Service(service) | SetDef::ServicePorts(service) => {
                if let Some(sets) = self.by_service.get_mut(service) {
                    sets.remove(&set);
                    if sets.is_empty() {
                        self.by_service.remove(service);
                    }
                }
            }
        }
        index::release(&active.anchors, population.symbols());
        self.stale += 1;
    }

    fn sweep(&mut self, population: &mut Population) {
        if self.stale < SWEEP {
            return;
        }
        self.stale = 0;
        let groups: Vec<No> = population.linked_groups().collect();
        for group in groups {
            let sets = population.sets(group);
            if sets.iter().any(|set| !self.active.contains_key(set)) {
                let kept = sets.iter().copied().filter(|set| self.active.contains_key(set));
                let kept: Vec<No> = kept.collect();
                population.set_sets(group, &kept);
            }
        }
    }
}

/// [`Holders::add`] or [`Holders::remove`].
type Step = fn(&mut Holders, &mut Visible, &Member);

impl Visible {
    fn of(id: &SetId, state: &mut BTreeMap<SetId, Set>) -> Self {
        let members = state.get_mut(id).map(|set| std::mem::take(&mut set.members));
        Self {
            members: members.unwrap_or_default(),
            ..Self::default()
        }
    }
}

/// In the order of their sets, whole sets first.
fn rank(change: &PolicyChange) -> (bool, Option<&SetId>) {
    match change {
        PolicyChange::Set(id, _) => (false, Some(id)),
        PolicyChange::Members(id, ..) | PolicyChange::SetGone(id) => (true, Some(id)),
        PolicyChange::Policy(..) | PolicyChange::Profile(..) | PolicyChange::Endpoint(..) => (true, None),
    }
}

/// The only namespace that an expression can match in, if that can be seen.
fn namespace_of(expression: &Expression) -> Option<&str> {
    match expression {
        Expression::Equals(label, namespace) if label == NAMESPACE => Some(namespace),
        Expression::And(parts) => parts.iter().find_map(namespace_of),
        _ => None,
    }
}
