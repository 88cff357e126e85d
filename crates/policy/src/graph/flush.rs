//! What follows from the changes that were recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Dirty, Graph, Here};
use crate::assemble::{Bare, Selecting, assemble, is_asked, why_not};
use crate::policy_facts::PolicyFacts;
use crate::rules::Rules;
use crate::state::{Endpoint, EndpointId, Policy, PolicyChange, PolicyId, Profile};
use crate::table::{ByNo, No};

/// With more policies changed than this, endpoints look for theirs; with fewer, policies for their endpoints.
const FEW: usize = 4;

/// What endpoints of this node use.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// By how many endpoints.
    policies: ByNo<No, u32>,
    profiles: BTreeMap<String, u32>,
    /// What is in the state, with the sets that its rules hold.
    active_policies: ByNo<No, (PolicyId, Box<[No]>)>,
    active_profiles: BTreeMap<String, Box<[No]>>,
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
        let tiers = dirty.tiers;
        let mut again = self.look_again(dirty, &heirs);
        if tiers {
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
    fn look_again(&mut self, dirty: Dirty, heirs: &BTreeSet<No>) -> Again {
        let mut again = Again {
            endpoints: dirty.endpoints,
            policies: dirty.policies,
            profiles: dirty.profiles,
        };
        for id in &again.endpoints {
            // One that is gone gives back what it used in `endpoint`.
            if let (Some(bare), Some(item)) = (self.bare(id), self.population.item_of(&id.key())) {
                let selecting = self.selecting(item);
                match self.here.get_mut(id) {
                    Some(here) => {
                        here.bare = bare;
                        here.item = item;
                        here.selecting = selecting;
                    }
                    None => {
                        let asked = Vec::new();
                        let here = Here {
                            item,
                            bare,
                            selecting,
                            asked,
                        };
                        self.here.insert(id.clone(), here);
                    }
                }
            }
        }
        let all = again.policies.len() > FEW;
        if again.policies.is_empty() && again.profiles.is_empty() && heirs.is_empty() && !dirty.tiers {
            return again;
        }
        let Self {
            here,
            population,
            policies,
            ..
        } = self;
        for (id, here) in here {
            let Some(group) = population.group_of(here.item).filter(|_| !again.endpoints.contains(id)) else {
                continue;
            };
            let mut is_other = dirty.tiers || here.bare.profiles.iter().any(|name| again.profiles.contains(name));
            if all || heirs.contains(&group) {
                here.selecting = policies.selecting(group, population);
                is_other = true;
            } else {
                for no in &again.policies {
                    let place = here.selecting.binary_search(no);
                    match (place, policies.selects(*no, group, population)) {
                        (Ok(place), false) => drop(here.selecting.remove(place)),
                        (Err(place), true) => here.selecting.insert(place, *no),
                        (Ok(_), true) => {}
                        (Err(_), false) => continue,
                    }
                    is_other = true;
                }
            }
            if is_other {
                again.endpoints.insert(id.clone());
            }
        }
        again
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
        let old_asked = self.here.get_mut(&id).map(|here| std::mem::take(&mut here.asked));
        if !self.exists(&id) {
            self.here.remove(&id);
        }
        let (new, asked) = self.assembled(&id).unzip();
        let asked = asked.unwrap_or_default();
        let policies = &mut self.used.policies;
        count(policies, &asked, &old_asked.unwrap_or_default(), &mut again.policies);
        let profiles = |endpoint: Option<&Endpoint>| endpoint.map(|it| it.profiles.clone()).unwrap_or_default();
        let (new_profiles, old_profiles) = (profiles(new.as_ref()), profiles(old.as_deref()));
        count(
            &mut self.used.profiles,
            &new_profiles,
            &old_profiles,
            &mut again.profiles,
        );
        if let Some(here) = self.here.get_mut(&id) {
            here.asked = asked;
        }
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

    /// An endpoint with its policies, and those that are asked.
    fn assembled(&self, id: &EndpointId) -> Option<(Endpoint, Vec<No>)> {
        let here = self.here.get(id)?;
        let policies = here
            .selecting
            .iter()
            .filter_map(|no| Some((*no, self.policies.get(*no)?)));
        let asked = policies
            .clone()
            .filter(|(_, policy)| is_asked(&policy.facts, &here.bare, &self.tiers));
        let asked = asked.map(|(no, _)| no).collect();
        let selecting = policies.map(|(_, policy)| Selecting {
            key: &policy.key,
            facts: &policy.facts,
        });
        let group = self.population.group_of(here.item);
        let labels = group
            .map(|group| self.population.label_texts(group))
            .unwrap_or_default();
        let broken_profile = |name: &str| Some(self.profiles.get(name)?.broken()?.reason());
        let endpoint = assemble(&here.bare, labels, selecting.collect(), &self.tiers, broken_profile);
        Some((endpoint, asked))
    }

    /// Brings a policy into the state, or out of it.
    fn active_policy(&mut self, no: No, changes: &mut Changes) {
        let is_used = self.used.policies.contains_key(&no);
        let policy = self.policies.get(no);
        let reason = policy.and_then(|policy| why_not(&policy.key, &policy.facts, &self.tiers));
        let is_wanted = |facts: &PolicyFacts| (is_used || facts.everywhere) && (reason.is_none() || !facts.staged);
        let policy = policy.filter(|policy| is_wanted(&policy.facts));
        let old = self.used.active_policies.remove(&no);
        let Some(policy) = policy else {
            if let Some((id, sets)) = old {
                sets.iter().for_each(|set| self.sets.release(*set));
                self.state.policies.remove(&id);
                changes.gone.push(PolicyChange::Policy(id, None));
            }
            return;
        };
        let id = policy.key.clone();
        let rules = policy.facts.rules(id.namespace.as_deref(), reason.is_some());
        let (tier, selector) = (policy.facts.tier.to_string(), policy.facts.selector_text(reason));
        let sets = self.hold(&rules);
        let old_sets = old.map(|(_, sets)| sets).unwrap_or_default();
        old_sets.iter().for_each(|set| self.sets.release(*set));
        self.used.active_policies.insert(no, (id.clone(), sets));
        let new = Policy {
            tier,
            selector,
            ingress: rules.ingress,
            egress: rules.egress,
        };
        if self.state.policies.get(&id).is_none_or(|old| **old != new) {
            let new = Arc::new(new);
            self.state.policies.insert(id.clone(), new.clone());
            changes.changed.push(PolicyChange::Policy(id, Some(new)));
        }
    }

    /// Brings a profile into the state, or out of it.
    fn active_profile(&mut self, name: String, changes: &mut Changes) {
        let old = self.used.active_profiles.remove(&name);
        if !self.used.profiles.contains_key(&name) {
            if let Some(sets) = old {
                sets.iter().for_each(|set| self.sets.release(*set));
                self.state.profiles.remove(&name);
                changes.gone.push(PolicyChange::Profile(name, None));
            }
            return;
        }
        let facts = self.profiles.get(&name);
        let missing = facts.is_none();
        let facts = facts.filter(|facts| facts.broken().is_none());
        let rules = facts.map(|facts| facts.rules()).unwrap_or_default();
        let sets = self.hold(&rules);
        old.unwrap_or_default().iter().for_each(|set| self.sets.release(*set));
        self.used.active_profiles.insert(name.clone(), sets);
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

    fn hold(&mut self, rules: &Rules) -> Box<[No]> {
        let sets = rules.sets.iter();
        sets.map(|(id, def)| self.sets.hold(id, def, &mut self.population))
            .collect()
    }
}

impl EndpointId {
    /// The key of its resource.
    pub fn key(&self) -> api::Key {
        match self {
            EndpointId::Workload(key) => key.clone(),
            EndpointId::Host(name) => api::Key::cluster(api::Kind::HostEndpoint, name),
        }
    }
}

/// Counts by how many something is used; what began or ceased to be is noted.
fn count<K: Clone + Ord>(counts: &mut impl Counts<K>, new: &[K], old: &[K], noted: &mut BTreeSet<K>) {
    for key in new {
        if counts.up(key) == 1 {
            noted.insert(key.clone());
        }
    }
    for key in old {
        if counts.down(key) == 0 {
            noted.insert(key.clone());
        }
    }
}

/// Numbers that are kept while they are not 0.
trait Counts<K> {
    fn up(&mut self, key: &K) -> u32;
    fn down(&mut self, key: &K) -> u32;
}

macro_rules! counts {
    ($key:ty, $map:ty) => {
        impl Counts<$key> for $map {
            fn up(&mut self, key: &$key) -> u32 {
                let count = self.entry(key.clone()).or_default();
                *count += 1;
                *count
            }

            fn down(&mut self, key: &$key) -> u32 {
                let Some(count) = self.get_mut(key) else { return 0 };
                *count -= 1;
                let left = *count;
                if left == 0 {
                    self.remove(key);
                }
                left
            }
        }
    };
}

counts!(No, ByNo<No, u32>);
counts!(String, BTreeMap<String, u32>);
