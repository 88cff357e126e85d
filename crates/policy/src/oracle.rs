//! The same from scratch, slowly and obviously: what [`Graph`](crate::Graph) must agree with.
//!
//! It shares the reading of single resources (labels, rules, selectors) with the graph, and nothing of what makes the graph
//! quick: every selector is tried on everything, every set is made member by member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource};
use ipnet::IpNet;

use crate::assemble::{Applied, Bare, Selecting, assemble, is_asked, missing_tier, replaces, why_not};
use crate::member_facts::MemberFacts;
use crate::policy_facts::PolicyFacts;
use crate::problem::Problem;
use crate::profiles::{ProfileFacts, Profiles};
use crate::rules::Rules;
use crate::services::Slice;
use crate::set_def::{Service, SetDef};
use crate::state::{EndpointId, Member, Policy, PolicyState, Profile, Set, SetId};
use crate::tiers::Tiers;
use crate::usable::usable;

/// What policy says on `node`, where the pods `locals` live.
pub fn compute<'a>(
    node: &str,
    locals: &'a BTreeMap<Key, WorkloadEndpoint>,
    resources: impl Iterator<Item = &'a Resource>,
) -> PolicyState {
    compute_with_problems(node, locals, resources).0
}

/// As [`compute`], with the problems found.
pub fn compute_with_problems<'a>(
    node: &str,
    locals: &'a BTreeMap<Key, WorkloadEndpoint>,
    resources: impl Iterator<Item = &'a Resource>,
) -> (PolicyState, Vec<Problem>) {
    let world = World::new(node, locals, resources);
    (world.state(), world.problems())
}

/// All that there is.
#[derive(Default)]
struct World<'a> {
    members: BTreeMap<Key, MemberFacts<'a>>,
    bare: BTreeMap<EndpointId, Bare>,
    inherited: BTreeMap<String, BTreeMap<String, String>>,
    profiles: Profiles,
    tiers: Tiers,
    policies: BTreeMap<Key, PolicyFacts>,
    slices: Vec<(Service, Slice)>,
    wrong: Vec<Problem>,
}

impl<'a> World<'a> {
    fn new(
        node: &str,
        locals: &'a BTreeMap<Key, WorkloadEndpoint>,
        resources: impl Iterator<Item = &'a Resource>,
    ) -> Self {
        let mut world = Self::default();
        for (key, journal) in locals {
            world.local(key, journal, &journal.spec.interface_name);
        }
        for resource in resources {
            let key = resource.key();
            if let Some(facts) = PolicyFacts::read(&key, resource) {
                world.policies.insert(key.clone(), facts);
            }
            let (resource, mut problems) = usable(&key, Some(resource));
            let broken = problems.first().map(Problem::reason);
            if key.kind == Kind::Profile && !problems.is_empty() {
                let facts = ProfileFacts::broken_for(std::mem::take(&mut problems));
                world.profiles.set(&key.name, Some(facts));
            }
            world.wrong.extend(problems);
            let Some(resource) = resource else { continue };
            match resource {
                Resource::WorkloadEndpoint(endpoint) => match locals.get(&key) {
                    Some(journal) if endpoint.spec.node == node && replaces(endpoint, journal) => {
                        world.local(&key, endpoint, &journal.spec.interface_name);
                    }
                    Some(_) => {}
                    None => world.member(key, endpoint),
                },
                Resource::HostEndpoint(endpoint) => {
                    if endpoint.spec.node == node {
                        let id = EndpointId::Host(key.name.clone());
                        let mut bare = Bare::host(&endpoint.spec);
                        bare.broken = broken;
                        world.bare.insert(id, bare);
                    }
                    world.member(key, endpoint);
                }
                Resource::NetworkSet(set) => world.member(key, set),
                Resource::GlobalNetworkSet(set) => world.member(key, set),
                Resource::Profile(profile) => {
                    let labels = profile.spec.labels_to_apply.clone();
                    world.inherited.insert(key.name.clone(), labels);
                    if broken.is_none() {
                        let facts = ProfileFacts::read(&key.name, &profile.spec);
                        world.profiles.set(&key.name, Some(facts));
                    }
                }
                Resource::Tier(tier) => {
                    world.tiers.set(&key.name, Some(&tier.spec));
                }
                Resource::KubernetesEndpointSlice(slice) => {
                    let service = Service {
                        namespace: key.namespace.unwrap_or_default(),
                        name: slice.spec.service.clone(),
                    };
                    world.slices.push((service, Slice::new(&slice.spec)));
                }
                _ => {}
            }
        }
        world
    }

    fn local(&mut self, key: &Key, endpoint: &'a WorkloadEndpoint, device: &str) {
        let id = EndpointId::Workload(key.clone());
        self.bare.insert(id, Bare::workload(&endpoint.spec, device));
        self.member(key.clone(), endpoint);
    }

    fn member(&mut self, key: Key, facts: impl Into<MemberFacts<'a>>) {
        self.members.insert(key, facts.into());
    }

    fn state(&self) -> PolicyState {
        let mut state = PolicyState::default();
        let mut used: BTreeSet<&Key> = BTreeSet::new();
        for (id, bare) in &self.bare {
            let labels = self.labels(&id.key());
            let policies = self.policies.iter();
            let selecting: Vec<Selecting<'_>> = policies
                .filter(|(_, facts)| facts.selector.evaluate(&labels))
                .map(|(key, facts)| Selecting { key, facts })
                .collect();
            let asked = selecting
                .iter()
                .filter(|policy| is_asked(policy.facts, bare.role(), &self.tiers));
            used.extend(asked.map(|policy| policy.key));
            let broken_profile = |name: &str| Some(self.profiles.get(name)?.broken()?.reason());
            let applied = Applied::new(bare.role(), selecting, &self.tiers);
            let endpoint = assemble(bare, labels, applied, broken_profile);
            state.endpoints.insert(id.clone(), Arc::new(endpoint));
        }
        let mut sets = BTreeMap::new();
        for (key, facts) in &self.policies {
            let is_used = used.contains(key) || facts.everywhere;
            let reason = why_not(key, facts, &self.tiers);
            if is_used && (reason.is_none() || !facts.staged) {
                let mut rules = facts.packed(reason.is_some()).translate(key.namespace.as_deref());
                sets.append(&mut rules.sets);
                let policy = Policy {
                    tier: facts.tier.to_string(),
                    selector: facts.selector_text(reason),
                    ingress: rules.ingress.into(),
                    egress: rules.egress.into(),
                };
                state.policies.insert(key.clone(), Arc::new(policy));
            }
        }
        for name in self.bare.values().flat_map(|bare| &bare.profiles) {
            let facts = self.profiles.get(name);
            let missing = facts.is_none();
            let mut rules = match facts {
                Some(facts) if facts.broken().is_none() => facts.rules.translate(None),
                Some(_) | None => Rules::default(),
            };
            sets.append(&mut rules.sets);
            let profile = Profile {
                ingress: rules.ingress.into(),
                egress: rules.egress.into(),
                missing,
            };
            state.profiles.insert(name.clone(), Arc::new(profile));
        }
        state.sets = self.sets(sets);
        state
    }

    /// All labels of something: implied, own, then those of its profiles, the first one winning.
    fn labels(&self, key: &Key) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let Some(facts) = self.members.get(key) else {
            return labels;
        };
        for profile in facts.profiles.iter().rev() {
            labels.extend(self.inherited.get(profile).cloned().unwrap_or_default());
        }
        labels.extend(facts.own().map(|(name, value)| (name.to_owned(), value.to_owned())));
        labels.extend(
            facts
                .implied
                .iter()
                .flatten()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        labels
    }

    fn sets(&self, defs: BTreeMap<SetId, SetDef>) -> BTreeMap<SetId, Set> {
        let labels: BTreeMap<&Key, BTreeMap<String, String>> =
            self.members.keys().map(|key| (key, self.labels(key))).collect();
        let set = |def: &SetDef| Set {
            kind: def.kind(),
            meaning: def.meaning(),
            members: without_nested(self.members_of(def, &labels)),
        };
        defs.into_iter().map(|(id, def)| (id, set(&def))).collect()
    }

    fn members_of(&self, def: &SetDef, labels: &BTreeMap<&Key, BTreeMap<String, String>>) -> BTreeSet<Member> {
        let mut members = BTreeSet::new();
        for (key, facts) in &self.members {
            match def {
                SetDef::Selected(selector) if selector.evaluate(&labels[key]) => {
                    members.extend(facts.nets.iter().map(|net| Member::Net(*net)));
                }
                SetDef::NamedPort {
                    selector,
                    name,
                    protocol,
                } if selector.evaluate(&labels[key]) => {
                    for port in facts.ports.iter().filter(|port| port.name == *name) {
                        let single = facts.nets.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
                        if port.protocol == *protocol {
                            members.extend(single.map(|net| Member::Port(net.addr(), *protocol, port.port)));
                        }
                    }
                }
                _ => {}
            }
        }
        for (service, slice) in &self.slices {
            for address in &slice.addresses {
                match def {
                    SetDef::Service(wanted) if wanted == service => {
                        members.insert(Member::Net((*address).into()));
                    }
                    SetDef::ServicePorts(wanted) if wanted == service => {
                        let ports = slice.ports.iter();
                        members.extend(ports.map(|(protocol, port)| Member::Port(*address, *protocol, *port)));
                    }
                    _ => {}
                }
            }
        }
        members
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.profiles.problems().cloned().collect();
        problems.extend(self.wrong.iter().cloned());
        for (key, facts) in &self.policies {
            problems.extend(facts.problems.iter().cloned());
            problems.extend(missing_tier(key, facts, &self.tiers));
        }
        problems.sort();
        problems
    }
}

/// Without what lies in another member.
fn without_nested(members: BTreeSet<Member>) -> BTreeSet<Member> {
    let nets = |member: &Member| match member {
        Member::Net(net) => Some(*net),
        Member::Port(..) => None,
    };
    let all: Vec<IpNet> = members.iter().filter_map(nets).collect();
    let is_nested = |net: IpNet| all.iter().any(|outer| *outer != net && outer.contains(&net));
    members
        .into_iter()
        .filter(|member| !nets(member).is_some_and(is_nested))
        .collect()
}
