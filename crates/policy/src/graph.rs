//! The incremental calculation: what is recorded when something changes. What follows from it is in `flush`.

mod active;
mod applied;
mod flush;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::resource::{HostEndpoint, WorkloadEndpoint};
use api::{
    GlobalNetworkSetSpec, Key, Kind, KubernetesEndpointSliceSpec, NetworkSetSpec, Object, ProfileSpec, Resource, Spec,
    TierSpec,
};
use datastore::Update;

use crate::assemble::{Bare, missing_tier, replaces};
use crate::member_facts::MemberFacts;
use crate::policies::{Change, Policies};
use crate::policy_facts::PolicyFacts;
use crate::population::{Population, Value};
use crate::problem::Problem;
use crate::profiles::{ProfileFacts, Profiles};
use crate::rehearsal::Rehearsed;
use crate::services::Services;
use crate::sets::Sets;
use crate::state::{EndpointId, PolicyState};
use crate::table::{No, Seed};
use crate::tiers::Tiers;
use crate::usable::usable;

/// Turns updates of resources into changes of what policy says on this node.
///
/// Updates may come in any order, repeatedly, and for things that never were. [`Graph::apply`] and [`Graph::local`] only
/// record; what depends on it is worked out in [`Graph::flush`], so a burst costs one calculation.
#[derive(Debug)]
pub struct Graph {
    node: String,
    population: Population,
    sets: Sets,
    policies: Policies,
    tiers: Tiers,
    profiles: Profiles,
    services: Services,
    /// Pods that live here.
    locals: HashMap<Key, Local, Seed>,
    /// WorkloadEndpoints that the store has for this node.
    stored: HashMap<Key, WorkloadEndpoint, Seed>,
    /// HostEndpoints of this node, each with why it cannot be followed, if so.
    hosts: BTreeMap<String, (HostEndpoint, Option<String>)>,
    /// What is wrong with what is neither a policy nor a profile.
    wrong: BTreeMap<Key, Vec<Problem>>,
    here: BTreeMap<EndpointId, Here>,
    used: flush::Used,
    dirty: Dirty,
    rehearsed: Rehearsed,
    state: PolicyState,
}

/// A pod that lives here, as the journal has it.
#[derive(Debug)]
struct Local {
    journal: WorkloadEndpoint,
    /// What the store has of the same key for another node: it counts again when the pod is gone.
    shadowed: Option<Value>,
}

/// What is known of an endpoint of this node besides its state.
#[derive(Debug)]
struct Here {
    /// Its number in the population.
    item: No,
    bare: Bare,
    /// What it has from the policies that select it.
    applied: No,
}

/// What changed since the last flush.
#[derive(Debug, Default)]
struct Dirty {
    endpoints: BTreeSet<EndpointId>,
    policies: BTreeMap<No, Change>,
    tiers: bool,
    /// Profiles with other labels.
    labels: BTreeSet<String>,
    /// Profiles with other rules.
    profiles: BTreeSet<String>,
}

impl Graph {
    /// A graph for the node of this name, which knows nothing yet.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            population: Population::new(),
            sets: Sets::default(),
            policies: Policies::default(),
            tiers: Tiers::default(),
            profiles: Profiles::default(),
            services: Services::default(),
            locals: HashMap::default(),
            stored: HashMap::default(),
            hosts: BTreeMap::new(),
            wrong: BTreeMap::new(),
            here: BTreeMap::new(),
            used: flush::Used::default(),
            dirty: Dirty::default(),
            rehearsed: Rehearsed::default(),
            state: PolicyState::default(),
        }
    }

    /// Records what one resource is now. A value of another kind than its key says counts as gone.
    pub fn apply(&mut self, update: Update) {
        let Update { key, value } = &update;
        let given = value.as_ref();
        let (value, problems) = usable(key, given);
        let broken = problems.first().map(Problem::reason);
        match key.kind {
            Kind::WorkloadEndpoint => self.workload(key, of(value)),
            Kind::HostEndpoint => self.host(key, of(value), broken),
            Kind::NetworkSet => self.member(key, of::<NetworkSetSpec>(value).map(MemberFacts::from)),
            Kind::GlobalNetworkSet => self.member(key, of::<GlobalNetworkSetSpec>(value).map(MemberFacts::from)),
            Kind::Profile => {
                let spec = of::<ProfileSpec>(value).map(|profile| &profile.spec);
                self.profile(&key.name, spec, &problems);
            }
            Kind::Tier => {
                let tier = of::<TierSpec>(value).map(|tier| &tier.spec);
                self.dirty.tiers |= self.tiers.set(&key.name, tier);
            }
            Kind::KubernetesEndpointSlice => {
                let slice = of::<KubernetesEndpointSliceSpec>(value).map(|slice| &slice.spec);
                self.services
                    .set(key.namespace.as_deref().unwrap_or_default(), &key.name, slice);
            }
            Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy => self.policy(key, given),
            Kind::IPPool
            | Kind::BGPConfiguration
            | Kind::BGPPeer
            | Kind::FelixConfiguration
            | Kind::Node
            | Kind::ClusterInformation
            | Kind::IPAMBlock
            | Kind::BlockAffinity
            | Kind::IPAMHandle
            | Kind::IPAMConfiguration
            | Kind::KubeControllersConfiguration
            | Kind::IPReservation
            | Kind::CalicoNodeStatus
            | Kind::BGPFilter => return,
        }
        match problems.is_empty() || key.kind == Kind::Profile {
            true => drop(self.wrong.remove(key)),
            false => drop(self.wrong.insert(key.clone(), problems)),
        }
    }

    /// Records that a pod lives on this node (with the WorkloadEndpoint that its journal entry amounts to), or no longer
    /// does. Only this decides whether it has policy; what the store has of the same key for this node replaces its labels,
    /// profiles, addresses and ports, unless that is about another container or has no addresses yet.
    pub fn local(&mut self, key: Key, endpoint: Option<WorkloadEndpoint>) {
        self.dirty.endpoints.insert(EndpointId::Workload(key.clone()));
        match endpoint {
            Some(journal) => {
                let shadowed = match self.locals.remove(&key) {
                    Some(local) => local.shadowed,
                    None if self.stored.contains_key(&key) => None,
                    None => self.population.copy_of(&key),
                };
                self.locals.insert(key.clone(), Local { journal, shadowed });
                self.place_local(&key);
            }
            None => {
                let Some(local) = self.locals.remove(&key) else {
                    return;
                };
                let stored = self.stored.get(&key);
                let stored = stored.map(|stored| self.population.value(&stored.into()));
                self.population.set(&key, stored.or(local.shadowed));
            }
        }
    }

    /// What counts of a pod that lives here: what the store has of it for this node, else what the journal says.
    pub fn pod(&self, key: &Key) -> Option<&WorkloadEndpoint> {
        self.locals.get(key).map(|local| counting(&self.stored, key, local))
    }

    /// What policy says as of the last flush.
    pub fn state(&self) -> &PolicyState {
        &self.state
    }

    /// Policies that staged ones would replace or remove, as of the last update.
    pub fn rehearsed(&self) -> &Rehearsed {
        &self.rehearsed
    }

    /// What cannot be followed, by resource. Not only what this node needs: whoever writes a policy looks on any node.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.profiles.problems().cloned().collect();
        problems.extend(self.wrong.values().flatten().cloned());
        for policy in self.policies.iter() {
            problems.extend(policy.facts.problems.iter().cloned());
            problems.extend(missing_tier(&policy.key, &policy.facts, &self.tiers));
        }
        problems.sort();
        problems
    }

    fn workload(&mut self, key: &Key, endpoint: Option<&WorkloadEndpoint>) {
        let is_here = endpoint.is_some_and(|endpoint| endpoint.spec.node == self.node);
        match endpoint.filter(|_| is_here) {
            Some(endpoint) => drop(self.stored.insert(key.clone(), endpoint.clone())),
            None => drop(self.stored.remove(key)),
        }
        let Some(local) = self.locals.get_mut(key) else {
            return self.member(key, endpoint.map(MemberFacts::from));
        };
        let elsewhere = endpoint.filter(|_| !is_here).map(MemberFacts::from);
        let shadowed = elsewhere.map(|facts| self.population.value(&facts));
        let old = std::mem::replace(&mut local.shadowed, shadowed);
        old.into_iter().for_each(|old| self.population.release(old));
        self.place_local(key);
        self.dirty.endpoints.insert(EndpointId::Workload(key.clone()));
    }

    fn host(&mut self, key: &Key, endpoint: Option<&HostEndpoint>, broken: Option<String>) {
        let here = endpoint.filter(|endpoint| endpoint.spec.node == self.node);
        let concerns_us = match here {
            Some(endpoint) => {
                self.hosts.insert(key.name.clone(), (endpoint.clone(), broken));
                true
            }
            None => self.hosts.remove(&key.name).is_some(),
        };
        if concerns_us {
            self.dirty.endpoints.insert(EndpointId::Host(key.name.clone()));
        }
        self.member(key, endpoint.map(MemberFacts::from));
    }

    /// Counts a pod that lives here as what the store says, else as what the journal says.
    fn place_local(&mut self, key: &Key) {
        if let Some(local) = self.locals.get(key) {
            let facts = counting(&self.stored, key, local).into();
            let value = self.population.value(&facts);
            self.population.set(key, Some(value));
        }
    }

    fn member(&mut self, key: &Key, facts: Option<MemberFacts<'_>>) {
        let value = facts.map(|facts| self.population.value(&facts));
        self.population.set(key, value);
    }

    fn profile(&mut self, name: &str, profile: Option<&ProfileSpec>, problems: &[Problem]) {
        let none = BTreeMap::new();
        let labels = profile.map_or(&none, |profile| &profile.labels_to_apply);
        if self.population.set_inherited(name, labels) {
            self.dirty.labels.insert(name.to_owned());
        }
        let facts = match problems {
            [] => profile.map(|profile| ProfileFacts::read(name, profile)),
            problems => Some(ProfileFacts::broken_for(problems.to_vec())),
        };
        if self.profiles.set(name, facts) {
            self.dirty.profiles.insert(name.to_owned());
        }
    }

    fn policy(&mut self, key: &Key, value: Option<&Resource>) {
        let value = value.filter(|value| value.kind() == key.kind);
        self.rehearsed.set(key, value);
        let facts = value.and_then(|value| PolicyFacts::read(key, value));
        if let Some((no, change)) = self.policies.set(key, facts, &mut self.population) {
            let known = self.dirty.policies.entry(no).or_default();
            *known = known.and(change);
        }
    }
}

/// The object of this kind.
fn of<S: Spec>(value: Option<&Resource>) -> Option<&Object<S>>
where
    for<'a> &'a Object<S>: TryFrom<&'a Resource>,
{
    value.and_then(|value| value.try_into().ok())
}

/// What the store has of a pod that lives here, if that counts, else what the journal says.
fn counting<'a>(stored: &'a HashMap<Key, WorkloadEndpoint, Seed>, key: &Key, local: &'a Local) -> &'a WorkloadEndpoint {
    let stored = stored.get(key).filter(|stored| replaces(stored, &local.journal));
    stored.unwrap_or(&local.journal)
}
