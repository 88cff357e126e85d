//! The resources that policy follows from, of the store, of files or of both, and what they come to at some endpoints.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use api::resource::WorkloadEndpoint;
use api::{Action, Key, Kind, Resource, Rule};
use dataplane::filter::Settings;
use datastore::{Scope, SharedStore};
use policy::rehearsal::{rehearsed, subject};
use policy::{EndpointId, PolicyState, Problem};

use crate::CtlError;

/// What policy follows from, and what is needed to know whose an address is.
const KINDS: [Kind; 15] = [
    Kind::WorkloadEndpoint,
    Kind::HostEndpoint,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
    Kind::Profile,
    Kind::Tier,
    Kind::KubernetesEndpointSlice,
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::Node,
    Kind::IPPool,
    Kind::FelixConfiguration,
];

/// Resources by key.
#[derive(Clone, Debug, Default)]
pub struct World {
    resources: BTreeMap<Key, Resource>,
}

impl World {
    /// What the store has.
    pub async fn read(store: &SharedStore) -> Result<Self, CtlError> {
        let mut world = Self::default();
        for kind in KINDS {
            let listing = store.list(&Scope::Kind(kind)).await?;
            world.put(listing.items.into_iter().map(|stored| stored.resource));
        }
        Ok(world)
    }

    /// Adds resources, in place of what has their keys.
    pub fn put(&mut self, resources: impl IntoIterator<Item = Resource>) {
        for mut resource in resources {
            resource.apply_defaults();
            self.resources.insert(resource.key(), resource);
        }
    }

    /// Takes resources away; `false` for those that are not there.
    pub fn take(&mut self, key: &Key) -> bool {
        self.resources.remove(key).is_some()
    }

    /// Makes every staged policy real.
    pub fn promote(&mut self) {
        let promoted: Vec<_> = self.resources.values().filter_map(rehearsed).collect();
        for (subject, policy) in promoted {
            match policy {
                Some(policy) => self.put([policy]),
                None => drop(self.take(&subject)),
            }
        }
        self.resources.retain(|key, _| subject(key).is_none());
    }

    /// One resource.
    pub fn get(&self, key: &Key) -> Option<&Resource> {
        self.resources.get(key)
    }

    /// All of them, by key.
    pub fn resources(&self) -> impl Iterator<Item = (&Key, &Resource)> {
        self.resources.iter()
    }

    /// Pods' endpoints, by key.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Key, &WorkloadEndpoint)> {
        self.resources.iter().filter_map(|(key, resource)| match resource {
            Resource::WorkloadEndpoint(endpoint) => Some((key, endpoint)),
            _ => None,
        })
    }

    /// Whether a node has a host endpoint.
    pub fn has_host_endpoint(&self, node: &str) -> bool {
        let mut hosts = self.resources.values().filter_map(|resource| match resource {
            Resource::HostEndpoint(endpoint) => Some(&endpoint.spec.node),
            _ => None,
        });
        hosts.any(|of| of == node)
    }

    /// What policy says on `node` about these endpoints, as its agent would have it: what the node's kernel refuses is closed.
    pub fn policy(&self, node: &str, locals: &BTreeMap<Key, WorkloadEndpoint>) -> (PolicyState, Vec<Problem>) {
        let denying = self.resources.iter().filter_map(|(key, resource)| {
            refusal(node, resource)?;
            Some((key, denying(resource)?))
        });
        let denying: BTreeMap<&Key, Resource> = denying.collect();
        let resources = self.resources.iter();
        let resources = resources.map(|(key, resource)| denying.get(key).unwrap_or(resource));
        let (mut state, problems) = policy::compute_with_problems(node, locals, resources);
        for (id, endpoint) in &mut state.endpoints {
            let EndpointId::Host(name) = id else { continue };
            let host = self.get(&Key::cluster(Kind::HostEndpoint, name));
            if let Some(why) = host.and_then(|host| refusal(node, host)) {
                Arc::make_mut(endpoint).closed = Some(why);
            }
        }
        (state, problems)
    }

    /// What nodes' kernels refuse, by node, in words.
    fn refusals(&self) -> BTreeMap<String, Vec<(Key, String)>> {
        let mut refusals: BTreeMap<String, Vec<(Key, String)>> = BTreeMap::new();
        for (key, resource) in self.resources.iter().filter(|(key, _)| is_refused_by_nodes(key.kind)) {
            for condition in resource.conditions() {
                if let Some(node) = condition.refused_by() {
                    let refused = (key.clone(), condition.message.clone());
                    refusals.entry(node.to_owned()).or_default().push(refused);
                }
            }
        }
        refusals
    }

    /// The packet filter's settings on a node.
    pub fn settings(&self, node: &str) -> Settings {
        let configured = self.resources.values();
        let configured = configured.filter(|resource| resource.kind() == Kind::FelixConfiguration);
        Settings::from(&*calc::compute(node, configured).settings.felix)
    }
}

/// Kinds that say themselves which nodes' kernels refuse them.
fn is_refused_by_nodes(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NetworkPolicy | Kind::GlobalNetworkPolicy | Kind::HostEndpoint
    )
}

/// Why a node's kernel refuses what an object asks for, if it does.
fn refusal(node: &str, resource: &Resource) -> Option<String> {
    if !is_refused_by_nodes(resource.kind()) {
        return None;
    }
    let mut conditions = resource.conditions().into_iter();
    let refused = conditions.find(|condition| condition.refused_by() == Some(node));
    refused.map(|condition| condition.message)
}

/// A policy that denies what reaches it, in place of this one.
fn denying(resource: &Resource) -> Option<Resource> {
    let deny = || vec![Rule::any(Action::Deny)];
    let mut denying = resource.clone();
    match &mut denying {
        Resource::NetworkPolicy(policy) => (policy.spec.ingress, policy.spec.egress) = (deny(), deny()),
        Resource::GlobalNetworkPolicy(policy) => (policy.spec.ingress, policy.spec.egress) = (deny(), deny()),
        _ => return None,
    }
    Some(denying)
}

/// Policy of the nodes asked about, each worked out once.
pub struct States<'a> {
    /// The resources.
    pub world: &'a World,
    locals: BTreeMap<Key, WorkloadEndpoint>,
    by_node: BTreeMap<String, Rc<PolicyState>>,
    problems: Vec<Problem>,
    /// What nodes' kernels refuse.
    refusals: BTreeMap<String, Vec<(Key, String)>>,
}

impl<'a> States<'a> {
    /// Over the endpoints with these keys: an endpoint's policy does not depend on which others are asked about.
    pub fn new(world: &'a World, asked: impl IntoIterator<Item = Key>) -> Self {
        let locals = asked.into_iter().filter_map(|key| match world.get(&key) {
            Some(Resource::WorkloadEndpoint(endpoint)) => Some((key, endpoint.clone())),
            _ => None,
        });
        Self {
            world,
            locals: locals.collect(),
            by_node: BTreeMap::new(),
            problems: Vec::new(),
            refusals: world.refusals(),
        }
    }

    /// Policy on a node. Nodes without host endpoints, whose kernels refuse nothing, all say the same.
    pub fn of(&mut self, node: &str) -> Rc<PolicyState> {
        let node = match self.world.has_host_endpoint(node) || self.refusals.contains_key(node) {
            true => node,
            false => "",
        };
        if let Some(state) = self.by_node.get(node) {
            return state.clone();
        }
        let (state, problems) = self.world.policy(node, &self.locals);
        let state = Rc::new(state);
        self.problems = problems;
        self.by_node.insert(node.to_owned(), state.clone());
        state
    }

    /// What is wrong with the policies that were asked; known after the first [`States::of`]. One that closes an endpoint is
    /// not among them: its verdict says so.
    pub fn problems(&self) -> Vec<String> {
        let is_asked = |problem: &&Problem| {
            let mut states = self.by_node.values();
            states.any(|state| state.policies.contains_key(&problem.key))
        };
        let wrong = self.problems.iter().filter(is_asked).map(ToString::to_string);
        let asked = self
            .by_node
            .iter()
            .filter_map(|(node, state)| Some((state, self.refusals.get(node)?)));
        let refused = asked.flat_map(|(state, refused)| {
            let refused = refused.iter().filter(|(key, _)| state.policies.contains_key(key));
            refused.map(|(key, text)| format!("{key}: {text}"))
        });
        wrong.chain(refused).collect()
    }
}
