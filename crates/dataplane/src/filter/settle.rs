//! Renders what changed: policies and profiles first, then endpoints, then what finds them.

use std::collections::{BTreeMap, BTreeSet};

use kernel::IpFamily;
use kernel::nft::*;
use policy::{Direction, Endpoint, EndpointId, Interface, PolicyId};

use super::base::{HOST_DISCOVERY, ICMP_V6, protocol, regular};
use super::dispatch::Shape;
use super::endpoint::{EndpointChain, Policies, drop, failsafes, jump, mark_forwarded, policy_chain};
use super::items::Item;
use super::machine::{Filter, decides};
use super::members::KnownSets;
use super::names::{self, Prefix};
use super::refused::{ChainOwner, Concerns, Problem};
use super::rule::{self, Owner, Renderer, Stage};

/// Directions and stages of host endpoints.
pub(super) const HOST: [Prefix; 7] = [
    Prefix::FromHost,
    Prefix::ToHost,
    Prefix::FromHostForward,
    Prefix::ToHostForward,
    Prefix::FromHostPreDnat,
    Prefix::FromHostUntracked,
    Prefix::ToHostUntracked,
];

const PLACES: [(Stage, rule::Way); 6] = [
    (Stage::Normal, rule::Way::Ingress),
    (Stage::Normal, rule::Way::Egress),
    (Stage::PreDnat, rule::Way::Ingress),
    (Stage::PreDnat, rule::Way::Egress),
    (Stage::Untracked, rule::Way::Ingress),
    (Stage::Untracked, rule::Way::Egress),
];

type Nets = BTreeMap<SetName, (IpFamily, BTreeSet<ipnet::IpNet>)>;

impl Policies for Filter {
    fn passes(&self, id: &PolicyId, way: rule::Way) -> Option<bool> {
        let [ingress, egress] = self.passes.get(id)?;
        Some(match way {
            rule::Way::Ingress => *ingress,
            rule::Way::Egress => *egress,
        })
    }

    fn has_profile(&self, name: &str) -> bool {
        self.profiles.contains_key(name)
    }
}

impl Filter {
    pub(super) fn settle(&mut self) {
        for name in std::mem::take(&mut self.dirty.profiles) {
            self.render_profile(&name);
        }
        let policies = std::mem::take(&mut self.dirty.policies);
        let mut others: BTreeSet<PolicyId> = BTreeSet::new();
        for id in policies {
            if self.render_policy(&id) {
                others.insert(id);
            }
        }
        if !others.is_empty() {
            let asks = |endpoint: &Endpoint| {
                directions(endpoint)
                    .iter()
                    .any(|direction| asks_one_of(direction, &others))
            };
            let users = self.endpoints.iter().filter(|(_, endpoint)| asks(endpoint));
            self.dirty.endpoints.extend(users.map(|(id, _)| id.clone()));
        }
        if self.dirty.frame {
            self.find_devices();
        }
        for id in std::mem::take(&mut self.dirty.endpoints) {
            self.render_endpoint(&id);
        }
        if std::mem::take(&mut self.dirty.frame) {
            self.render_frame();
        }
    }

    /// Answers whether endpoints that ask the policy have to look at it in another way.
    fn render_policy(&mut self, id: &PolicyId) -> bool {
        let policy = self.policies.get(id).cloned();
        for (stage, way) in PLACES {
            let name = policy_chain(stage, way, id);
            let is_asked = self
                .uses
                .get(id)
                .is_some_and(|places| places.contains_key(&(stage, way)));
            let Some(policy) = policy.as_ref().filter(|_| is_asked) else {
                self.drop_chain(&name);
                continue;
            };
            let rules = match way {
                rule::Way::Ingress => &policy.ingress,
                rule::Way::Egress => &policy.egress,
            };
            let owner = Owner::Policy(id, &policy.tier);
            let concerns = Concerns::Policy(id.clone());
            self.render_rules(
                name,
                &owner,
                ChainOwner::Policy(id.clone()),
                concerns,
                rules,
                (stage, way),
            );
        }
        let has_pass = |rules: &[policy::Rule]| rules.iter().any(|rule| rule.action == api::Action::Pass);
        let passes = policy.map(|policy| [has_pass(&policy.ingress), has_pass(&policy.egress)]);
        let before = match passes {
            Some(passes) => self.passes.insert(id.clone(), passes),
            None => self.passes.remove(id),
        };
        before != passes
    }

    fn render_profile(&mut self, name: &str) {
        let profile = self.profiles.get(name).cloned();
        let chains = [
            (Prefix::ProfileIn, rule::Way::Ingress),
            (Prefix::ProfileOut, rule::Way::Egress),
        ];
        for (prefix, way) in chains {
            let chain = names::chain(prefix, name);
            let Some(profile) = &profile else {
                self.drop_chain(&chain);
                continue;
            };
            let rules = match way {
                rule::Way::Ingress => &profile.ingress,
                rule::Way::Egress => &profile.egress,
            };
            let (owner, concerns) = (ChainOwner::Profile(name.to_owned()), Concerns::Profile(name.to_owned()));
            self.render_rules(
                chain,
                &Owner::Profile(name),
                owner,
                concerns,
                rules,
                (Stage::Normal, way),
            );
        }
    }

    fn render_rules(
        &mut self,
        name: ChainName,
        owner: &Owner<'_>,
        chain_owner: ChainOwner,
        concerns: Concerns,
        rules: &[policy::Rule],
        (stage, way): (Stage, rule::Way),
    ) {
        let sets = KnownSets {
            sets: &self.sets,
            refused: &self.doubt.sets,
        };
        let mut renderer = Renderer {
            settings: &self.settings,
            sets: &sets,
            stage,
            way,
            nets: BTreeMap::new(),
        };
        let rendered: Result<Vec<Vec<Rule>>, String> = rules.iter().map(|rule| renderer.rule(owner, rule)).collect();
        let (rules, nets) = match rendered {
            Ok(rules) => {
                let nets = renderer.nets;
                self.found.remove(&name.0);
                (rules.into_iter().flatten().collect(), nets)
            }
            Err(reason) => {
                let rules = vec![drop(
                    &self.settings,
                    stage,
                    Vec::new(),
                    &format!("{chain_owner}: {reason}"),
                )];
                self.found.insert(name.0.clone(), Problem { concerns, reason });
                (rules, BTreeMap::new())
            }
        };
        self.put_chain(chain_owner, Chain { name, base: None }, rules, nets);
    }

    /// Which endpoint has which pod's device.
    fn find_devices(&mut self) {
        let mut devices: BTreeMap<String, EndpointId> = BTreeMap::new();
        self.found.retain(|key, _| !key.starts_with("device "));
        let addresses = |device: &str| {
            let locals = self.locals.values().filter(|local| local.device.0 == device);
            locals
                .flat_map(|local| local.addresses.iter().copied())
                .collect::<BTreeSet<_>>()
        };
        for (id, endpoint) in &self.endpoints {
            let EndpointId::Workload(_) = id else { continue };
            let (who, reason) = match &endpoint.interface {
                Interface::Named(device) if device.len() > 15 || device.is_empty() => {
                    (id.clone(), format!("{device:?} is no name of a device"))
                }
                Interface::Named(device) if !self.settings.is_pod_device(device) => {
                    (id.clone(), format!("{device} is no pod's device by its name"))
                }
                Interface::Named(device) => {
                    let Some(there) = devices.get(device).cloned() else {
                        devices.insert(device.clone(), id.clone());
                        continue;
                    };
                    // Of two that claim one device, the one with the journal's addresses has it.
                    let known = addresses(device);
                    let is_it = !known.is_empty() && known == endpoint.addresses.iter().copied().collect();
                    let (winner, loser) = match is_it {
                        true => (id.clone(), there),
                        false => (there, id.clone()),
                    };
                    let reason = format!("{device} is {}'s", ChainOwner::Endpoint(winner.clone()));
                    devices.insert(device.clone(), winner);
                    (loser, reason)
                }
                Interface::All | Interface::WithAddress(_) => (id.clone(), "a workload has no named device".to_owned()),
            };
            let concerns = Concerns::Endpoint(who.clone());
            self.found
                .insert(format!("device {who:?}"), Problem { concerns, reason });
        }
        let old = std::mem::replace(&mut self.devices, devices);
        for (device, id) in &old {
            if self.devices.get(device) != Some(id) {
                for prefix in [Prefix::FromWorkload, Prefix::ToWorkload] {
                    let own = names::chain(prefix, device);
                    self.direct.remove(&own);
                    self.drop_chain(&own);
                }
            }
        }
        let moved = self.devices.iter().filter(|(device, id)| old.get(*device) != Some(*id));
        self.dirty.endpoints.extend(moved.map(|(_, id)| id.clone()));
    }

    fn render_endpoint(&mut self, id: &EndpointId) {
        let endpoint = self.endpoints.get(id).cloned();
        match id {
            EndpointId::Workload(key) => {
                let devices: Vec<String> = self
                    .devices
                    .iter()
                    .filter(|(_, owner)| *owner == id)
                    .map(|(device, _)| device.clone())
                    .collect();
                for device in devices {
                    let Some(endpoint) = &endpoint else { continue };
                    let name = format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name);
                    for (prefix, way, direction) in [
                        (Prefix::FromWorkload, rule::Way::Egress, &endpoint.egress),
                        (Prefix::ToWorkload, rule::Way::Ingress, &endpoint.ingress),
                    ] {
                        let own = names::chain(prefix, &device);
                        let alone = self.decides_alone(endpoint, direction, way);
                        let before = match &alone {
                            Some(profile) => self.direct.insert(own.clone(), profile.clone()),
                            None => self.direct.remove(&own),
                        };
                        self.dirty.frame |= before != alone;
                        if alone.is_some() {
                            self.drop_chain(&own);
                            continue;
                        }
                        let chain = self.chain_of(endpoint, &name, Stage::Normal, way);
                        let rules = chain.normal(direction, &endpoint.profiles);
                        let (chain, _) = regular(&own.0, Vec::new());
                        self.put_chain(ChainOwner::Endpoint(id.clone()), chain, rules, BTreeMap::new());
                    }
                }
            }
            EndpointId::Host(name) => {
                let mut chains = BTreeSet::new();
                for prefix in HOST {
                    let chain = names::chain(prefix, name);
                    match endpoint
                        .as_ref()
                        .and_then(|endpoint| self.host_chain(name, endpoint, prefix))
                    {
                        Some(rules) => {
                            chains.insert(chain.clone());
                            let chain = Chain {
                                name: chain,
                                base: None,
                            };
                            self.put_chain(ChainOwner::Endpoint(id.clone()), chain, rules, BTreeMap::new());
                        }
                        None => self.drop_chain(&chain),
                    }
                }
                match endpoint {
                    Some(_) => self.host_chains.insert(id.clone(), chains),
                    None => self.host_chains.remove(id),
                };
            }
        }
    }

    /// The profile's chain that decides about everything: no policy comes before it, and nothing gets past it. The usual pod has
    /// no chains of its own, then.
    fn decides_alone(&self, endpoint: &Endpoint, direction: &Direction, way: rule::Way) -> Option<ChainName> {
        let has_policies = direction.tiers.iter().any(|tier| !tier.policies.is_empty());
        if has_policies || endpoint.closed.is_some() {
            return None;
        }
        let known = |name: &String| Some((name.clone(), decides(self.profiles.get(name)?)));
        let (name, [ingress, egress]) = endpoint.profiles.iter().find_map(known)?;
        let (prefix, alone) = match way {
            rule::Way::Ingress => (Prefix::ProfileIn, ingress),
            rule::Way::Egress => (Prefix::ProfileOut, egress),
        };
        alone.then(|| names::chain(prefix, &name))
    }

    /// Where a pod's device leads to.
    pub(super) fn entry(&self, prefix: Prefix, device: &str) -> ChainName {
        let own = names::chain(prefix, device);
        self.direct.get(&own).cloned().unwrap_or(own)
    }

    fn chain_of<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        name: &'a str,
        stage: Stage,
        way: rule::Way,
    ) -> EndpointChain<'a> {
        EndpointChain {
            settings: &self.settings,
            policies: self,
            stage,
            way,
            name,
            closed: endpoint.closed.as_deref(),
        }
    }

    /// The rules of a host endpoint at one stage; `None`: it has nothing to say there.
    fn host_chain(&self, name: &str, endpoint: &Endpoint, prefix: Prefix) -> Option<Vec<Rule>> {
        if !speaks(endpoint, prefix) {
            return None;
        }
        let (stage, way) = place(prefix);
        let chain = self.chain_of(endpoint, name, stage, way);
        let direction = direction_of(endpoint, prefix);
        let mut rules = Vec::new();
        let is_forward = matches!(prefix, Prefix::FromHostForward | Prefix::ToHostForward);
        if is_forward {
            rules.extend(mark_forwarded(&self.settings, true));
        } else {
            if stage == Stage::Normal && !self.settings.disable_invalid_check {
                let invalid = Match::Conntrack([CtState::Invalid].into());
                rules.push(drop(&self.settings, Stage::Untracked, vec![invalid], "invalid"));
            }
            rules.push(jump(vec![protocol(ICMP_V6)], HOST_DISCOVERY.into()));
            rules.extend(failsafes(&self.settings, way, stage == Stage::Untracked));
        }
        rules.extend(match stage {
            Stage::Normal if !is_forward => chain.normal(direction, &endpoint.profiles),
            Stage::Normal | Stage::PreDnat | Stage::Untracked => chain.policies_alone(direction),
        });
        Some(rules)
    }

    pub(super) fn put_chain(&mut self, owner: ChainOwner, chain: Chain, mut rules: Vec<Rule>, mut nets: Nets) {
        if self.doubt.chains.contains_key(&chain.name) {
            rules = self.stand_in(&chain, &owner);
            nets.clear();
        }
        self.use_nets(&chain.name, nets);
        self.owners.insert(chain.name.clone(), owner);
        self.wanted.chain(chain, rules);
    }

    pub(super) fn drop_chain(&mut self, name: &ChainName) {
        if self.owners.remove(name).is_some() {
            self.use_nets(name, BTreeMap::new());
            self.found.remove(&name.0);
            self.doubt.chains.remove(name);
            self.wanted.no_chain(name);
        }
    }

    /// Sets of rules' nets are there as long as some chain looks into them.
    fn use_nets(&mut self, chain: &ChainName, nets: Nets) {
        let new: BTreeSet<SetName> = nets.keys().cloned().collect();
        let old = match new.is_empty() {
            true => self.chain_nets.remove(chain),
            false => self.chain_nets.insert(chain.clone(), new.clone()),
        };
        for (name, (family, nets)) in nets {
            let users = self.nets_users.entry(name.clone()).or_default();
            users.insert(chain.clone());
            if users.len() == 1 {
                let (key, interval, verdicts) = Shape::Address(family, true).parts();
                self.wanted.set(SetSpec {
                    name: name.clone(),
                    key,
                    interval,
                    verdicts,
                });
                self.wanted.items(&name, &nets.into_iter().map(Item::Net).collect());
            }
        }
        for gone in old.unwrap_or_default().difference(&new) {
            if let Some(users) = self.nets_users.get_mut(gone) {
                users.remove(chain);
                if users.is_empty() {
                    self.nets_users.remove(gone);
                    self.wanted.no_set(gone);
                }
            }
        }
    }
}

fn directions(endpoint: &Endpoint) -> [&Direction; 7] {
    HOST.map(|prefix| direction_of(endpoint, prefix))
}

fn asks_one_of(direction: &Direction, policies: &BTreeSet<PolicyId>) -> bool {
    direction
        .tiers
        .iter()
        .flat_map(|tier| &tier.policies)
        .any(|id| policies.contains(id))
}

fn direction_of(endpoint: &Endpoint, prefix: Prefix) -> &Direction {
    match prefix {
        Prefix::ToHost => &endpoint.egress,
        Prefix::FromHostForward => &endpoint.forward.ingress,
        Prefix::ToHostForward => &endpoint.forward.egress,
        Prefix::FromHostPreDnat => &endpoint.pre_dnat,
        Prefix::FromHostUntracked => &endpoint.untracked.ingress,
        Prefix::ToHostUntracked => &endpoint.untracked.egress,
        _ => &endpoint.ingress,
    }
}

/// Whether a host endpoint decides anything there: always about the host's own packets; about others only with policies.
pub(super) fn speaks(endpoint: &Endpoint, prefix: Prefix) -> bool {
    let has_policies = !direction_of(endpoint, prefix).tiers.is_empty();
    match prefix {
        Prefix::FromHostForward | Prefix::ToHostForward => has_policies || endpoint.closed.is_some(),
        Prefix::FromHostPreDnat | Prefix::FromHostUntracked | Prefix::ToHostUntracked => {
            has_policies && endpoint.closed.is_none()
        }
        _ => true,
    }
}

fn place(prefix: Prefix) -> (Stage, rule::Way) {
    match prefix {
        Prefix::ToHost | Prefix::ToHostForward => (Stage::Normal, rule::Way::Egress),
        Prefix::FromHostPreDnat => (Stage::PreDnat, rule::Way::Ingress),
        Prefix::FromHostUntracked => (Stage::Untracked, rule::Way::Ingress),
        Prefix::ToHostUntracked => (Stage::Untracked, rule::Way::Egress),
        _ => (Stage::Normal, rule::Way::Ingress),
    }
}
