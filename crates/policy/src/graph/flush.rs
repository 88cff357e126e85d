//! What follows from the changes that were recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::Key;

use super::active::{ActiveRules, SharedRules, Written};
use super::applied::{AppliedLists, Selected, Sources};
use super::{Dirty, Graph, Here};
use crate::assemble::{Bare, Role, assemble, why_not};
use crate::policy_facts::PolicyFacts;
use crate::state::{Endpoint, EndpointId, Policy, PolicyChange, Profile};
use crate::table::{ByNo, No};

/// With more policies changed than this, endpoints look for theirs; with fewer, policies for their endpoints.
const FEW: usize = 4;

/// What endpoints of this node use.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub applied: AppliedLists,
    /// By how many endpoints.
    profiles: BTreeMap<String, u32>,
    rules: ActiveRules,
    /// What is in the state, with the rules that it holds.
    active_policies: ByNo<No, (Arc<Key>, Written)>,
    active_profiles: BTreeMap<String, Option<Written>>,
}

/// Who has to be looked at again in a flush.
#[derive(Debug, Default)]
struct Again {
    /// Endpoints that are new, gone, or have other policies or policies that changed.
    endpoints: BTreeSet<EndpointId>,
    policies: BTreeSet<No>,
    profiles: BTreeSet<String>,
}

/// Changes in the order in which they must be made.
#[derive(Debug, Default)]
struct Changes {
    changed: Vec<PolicyChange>,
    gone: Vec<PolicyChange>,
}

impl Graph {
    /// Works out what the changes since the last flush come to. Sets come before the policies and profiles that use them,
    /// these before endpoints; removals are last and the other way round.
    pub fn flush(&mut self) -> Vec<PolicyChange> {
        let dirty = std::mem::take(&mut self.dirty);
        let heirs = self.settle(&dirty);
        let mut again = self.look_again(&dirty, &heirs);
        if dirty.tiers {
            // Whether a policy's tier exists decides whether it can be followed.
            again.policies.extend(self.used.active_policies.keys());
            again.policies.extend(self.policies.everywhere());
        }
        let (mut policies, mut profiles, mut endpoints) = (Changes::default(), Changes::default(), Changes::default());
        for id in std::mem::take(&mut again.endpoints) {
            self.endpoint(id, &mut again, &mut endpoints);
        }
        for no in again.policies {
            self.active_policy(no, &mut policies);
        }
        self.policies.forget_gone();
        for name in again.profiles {
            self.active_profile(name, &mut profiles);
        }
        let services = &self.services;
        self.sets.fill(&mut self.population, &mut self.state.sets, |service| {
            services.slices(service)
        });
        let (sets, gone_sets) = self.sets.finish(&mut self.population, &mut self.state.sets);
        let changed = [sets, policies.changed, profiles.changed, endpoints.changed];
        let gone = [endpoints.gone, profiles.gone, policies.gone, gone_sets];
        changed.into_iter().chain(gone).flatten().collect()
    }

    /// Brings members and inherited labels up to date; answers which groups inherit other ones.
    fn settle(&mut self, dirty: &Dirty) -> BTreeSet<No> {
        let state = &mut self.state.sets;
        for item in self.population.take_unsettled() {
            let settling = self.population.settle(item);
            self.sets.settle(settling, &mut self.population, state);
        }
        self.population.forget_gone();
        let mut heirs = BTreeSet::new();
        if !dirty.labels.is_empty() {
            heirs.extend(self.population.heirs(dirty.labels.iter()));
            for group in &heirs {
                self.sets.relabel(*group, &mut self.population, state);
            }
        }
        for [old, new] in self.services.take_changes() {
            for (change, comes) in [(new, true), (old, false)] {
                if let Some((service, slice)) = change {
                    self.sets.slice(&service, &slice, comes, state);
                }
            }
        }
        heirs
    }

    /// Finds out for which endpoints something may be different, and works out anew which policies select them.
    fn look_again(&mut self, dirty: &Dirty, heirs: &BTreeSet<No>) -> Again {
        let mut again = Again {
            endpoints: dirty.endpoints.clone(),
            policies: dirty.policies.keys().copied().collect(),
            profiles: dirty.profiles.clone(),
        };
        for id in &dirty.endpoints {
            // One that is gone gives back what it used in `endpoint`.
            if let (Some(bare), Some(item)) = (self.bare(id), self.population.item_of(&id.key())) {
                let policies = self.selecting(item);
                let applied = self.apply_to(bare.role(), policies, &mut again.policies);
                let here = Here { item, bare, applied };
                if let Some(old) = self.here.insert(id.clone(), here) {
                    self.used.applied.release(old.applied, &mut again.policies);
                }
            }
        }
        self.reselect(dirty, heirs, &mut again);
        let moved = dirty.policies.iter().filter(|(_, change)| change.place);
        let moved: Vec<No> = moved.map(|(no, _)| *no).collect();
        let is_concerned = |selected: &Selected| {
            let mut moved = moved.iter();
            dirty.tiers || moved.any(|no| selected.policies.binary_search(no).is_ok())
        };
        let mut sources = Sources {
            policies: &self.policies,
            tiers: &self.tiers,
            noted: &mut again.policies,
        };
        let different = match dirty.tiers || !moved.is_empty() {
            true => self.used.applied.refresh(is_concerned, &mut sources),
            false => BTreeSet::new(),
        };
        if !different.is_empty() || !again.profiles.is_empty() {
            for (id, here) in &self.here {
                let mut profiles = here.bare.profiles.iter();
                if different.contains(&here.applied) || profiles.any(|name| again.profiles.contains(name)) {
                    again.endpoints.insert(id.clone());
                }
            }
        }
        again
    }

    /// Works out anew which policies select endpoints that did not change themselves.
    fn reselect(&mut self, dirty: &Dirty, heirs: &BTreeSet<No>, again: &mut Again) {
        let changed = dirty.policies.iter().filter(|(_, change)| change.selector);
        let changed: Vec<No> = changed.map(|(no, _)| *no).collect();
        if changed.is_empty() && heirs.is_empty() {
            return;
        }
        let mut found = Vec::new();
        for (id, here) in &self.here {
            let Some(group) = self.population.group_of(here.item) else {
                continue;
            };
            if dirty.endpoints.contains(id) {
                continue;
            }
            let old = &self.used.applied.selected(here.applied).policies;
            let new = if changed.len() > FEW || heirs.contains(&group) {
                self.policies.selecting(group, &self.population)
            } else {
                let mut new = old.to_vec();
                for no in &changed {
                    let selects = self.policies.selects(*no, group, &self.population);
                    match (new.binary_search(no), selects) {
                        (Ok(place), false) => drop(new.remove(place)),
                        (Err(place), true) => new.insert(place, *no),
                        (Ok(_), true) | (Err(_), false) => {}
                    }
                }
                new
            };
            // One that inherits other labels has them, whatever its policies are.
            if **old != *new || heirs.contains(&group) {
                found.push((id.clone(), new));
            }
        }
        for (id, policies) in found {
            if let Some(here) = self.here.get(&id) {
                let (role, old) = (here.bare.role(), here.applied);
                let applied = self.apply_to(role, policies, &mut again.policies);
                self.used.applied.release(old, &mut again.policies);
                if let Some(here) = self.here.get_mut(&id) {
                    here.applied = applied;
                }
            }
            again.endpoints.insert(id);
        }
    }

    /// What an endpoint has from policies.
    fn apply_to(&mut self, role: Role, policies: Vec<No>, noted: &mut BTreeSet<No>) -> No {
        let selected = Selected {
            role,
            policies: policies.into(),
        };
        let mut sources = Sources {
            policies: &self.policies,
            tiers: &self.tiers,
            noted,
        };
        self.used.applied.hold(selected, &mut sources)
    }

    /// The policies that select an item.
    fn selecting(&self, item: No) -> Vec<No> {
        let group = self.population.group_of(item);
        group
            .map(|group| self.policies.selecting(group, &self.population))
            .unwrap_or_default()
    }

    /// An endpoint of this node as it is before policy; `None`: there is no such endpoint here.
    fn bare(&self, id: &EndpointId) -> Option<Bare> {
        match id {
            EndpointId::Workload(key) => {
                let local = self.locals.get(key)?;
                let endpoint = super::counting(&self.stored, key, local);
                Some(Bare::workload(&endpoint.spec, &local.journal.spec.interface_name))
            }
            EndpointId::Host(name) => {
                let (endpoint, broken) = self.hosts.get(name)?;
                let mut bare = Bare::host(&endpoint.spec);
                bare.broken.clone_from(broken);
                Some(bare)
            }
        }
    }

    /// Puts an endpoint together again, and counts what it uses.
    fn endpoint(&mut self, id: EndpointId, again: &mut Again, changes: &mut Changes) {
        let old = self.state.endpoints.get(&id).cloned();
        if !self.exists(&id)
            && let Some(here) = self.here.remove(&id)
        {
            self.used.applied.release(here.applied, &mut again.policies);
        }
        let new = self.assembled(&id);
        let profiles = |endpoint: Option<&Endpoint>| endpoint.map(|it| it.profiles.clone()).unwrap_or_default();
        let (new_profiles, old_profiles) = (profiles(new.as_ref()), profiles(old.as_deref()));
        count(
            &mut self.used.profiles,
            &new_profiles,
            &old_profiles,
            &mut again.profiles,
        );
        match new {
            Some(new) if old.is_some_and(|old| *old == new) => {}
            Some(new) => {
                let new = Arc::new(new);
                self.state.endpoints.insert(id.clone(), new.clone());
                changes.changed.push(PolicyChange::Endpoint(id, Some(new)));
            }
            None => {
                if self.state.endpoints.remove(&id).is_some() {
                    changes.gone.push(PolicyChange::Endpoint(id, None));
                }
            }
        }
    }

    /// Whether there is such an endpoint here.
    fn exists(&self, id: &EndpointId) -> bool {
        match id {
            EndpointId::Workload(key) => self.locals.contains_key(key),
            EndpointId::Host(name) => self.hosts.contains_key(name),
        }
    }

    /// An endpoint with its policies.
    fn assembled(&self, id: &EndpointId) -> Option<Endpoint> {
        let here = self.here.get(id)?;
        let group = self.population.group_of(here.item);
        let labels = group
            .map(|group| self.population.label_texts(group))
            .unwrap_or_default();
        let applied = self.used.applied.applied(here.applied).clone();
        let broken_profile = |name: &str| Some(self.profiles.get(name)?.broken()?.reason());
        Some(assemble(&here.bare, labels, applied, broken_profile))
    }

    /// Brings a policy into the state, or out of it.
    fn active_policy(&mut self, no: No, changes: &mut Changes) {
        let is_used = self.used.applied.uses(no);
        let policy = self.policies.get(no);
        let reason = policy.and_then(|policy| why_not(&policy.key, &policy.facts, &self.tiers));
        let is_wanted = |facts: &PolicyFacts| (is_used || facts.everywhere) && (reason.is_none() || !facts.staged);
        let policy = policy.filter(|policy| is_wanted(&policy.facts));
        let old = self.used.active_policies.remove(&no);
        let Some(policy) = policy else {
            if let Some((id, written)) = old {
                self.used.rules.release(&written, &mut self.sets);
                self.state.policies.remove(&*id);
                changes.gone.push(PolicyChange::Policy((*id).clone(), None));
            }
            return;
        };
        let id = policy.key.clone();
        let written = Written {
            rules: policy.facts.packed(reason.is_some()),
            namespace: id.namespace.clone(),
        };
        let rules = self.used.rules.hold(&written, &mut self.sets, &mut self.population);
        if let Some((_, old)) = old {
            self.used.rules.release(&old, &mut self.sets);
        }
        self.used.active_policies.insert(no, (id.clone(), written));
        let new = Policy {
            tier: policy.facts.tier.to_string(),
            selector: policy.facts.selector_text(reason),
            ingress: rules.ingress,
            egress: rules.egress,
        };
        if self.state.policies.get(&*id).is_none_or(|old| **old != new) {
            let new = Arc::new(new);
            self.state.policies.insert((*id).clone(), new.clone());
            changes.changed.push(PolicyChange::Policy((*id).clone(), Some(new)));
        }
    }

    /// Brings a profile into the state, or out of it.
    fn active_profile(&mut self, name: String, changes: &mut Changes) {
        let old = self.used.active_profiles.remove(&name);
        if !self.used.profiles.contains_key(&name) {
            if let Some(written) = old {
                self.release_rules(written);
                self.state.profiles.remove(&name);
                changes.gone.push(PolicyChange::Profile(name, None));
            }
            return;
        }
        let facts = self.profiles.get(&name);
        let missing = facts.is_none();
        let written = facts.filter(|facts| facts.broken().is_none()).map(|facts| Written {
            rules: facts.rules,
            namespace: None,
        });
        let rules = match &written {
            Some(written) => self.used.rules.hold(written, &mut self.sets, &mut self.population),
            None => SharedRules::default(),
        };
        self.release_rules(old.flatten());
        self.used.active_profiles.insert(name.clone(), written);
        let new = Profile {
            ingress: rules.ingress,
            egress: rules.egress,
            missing,
        };
        if self.state.profiles.get(&name).is_none_or(|old| **old != new) {
            let new = Arc::new(new);
            self.state.profiles.insert(name.clone(), new.clone());
            changes.changed.push(PolicyChange::Profile(name, Some(new)));
        }
    }

    fn release_rules(&mut self, written: Option<Written>) {
        if let Some(written) = written {
            self.used.rules.release(&written, &mut self.sets);
        }
    }
}

impl EndpointId {
    /// The key of its resource.
    pub fn key(&self) -> Key {
        match self {
            EndpointId::Workload(key) => key.clone(),
            EndpointId::Host(name) => Key::cluster(api::Kind::HostEndpoint, name),
        }
    }
}

/// Counts by how many profiles are used; what began or ceased to be is noted.
fn count(counts: &mut BTreeMap<String, u32>, new: &[String], old: &[String], noted: &mut BTreeSet<String>) {
    for name in new {
        let count = counts.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 {
            noted.insert(name.clone());
        }
    }
    for name in old {
        let Some(count) = counts.get_mut(name) else { continue };
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
            noted.insert(name.clone());
        }
    }
}
