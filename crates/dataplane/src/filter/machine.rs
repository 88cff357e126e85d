//! The machine: what it is told, what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Action;
use kernel::nft::{ChainName, NftError, SetName, TableName, TableState, Transaction};
use kernel::{IfName, IpFamily};
use policy::{Endpoint, EndpointId, Interface, Policy, PolicyChange, PolicyId, Profile, SetId};

use crate::dataplane::LocalEndpoint;

use super::base::{FROM_ENDPOINT, HostDispatch, TO_ENDPOINT};
use super::items::Item;
use super::limits::Limits;
use super::members::{SetMeta, SetUser};
use super::names::Prefix;
use super::refused::{ChainOwner, Doubt, Problem};
use super::rule::{Stage, Way};
use super::settings::{Cluster, Nat, Settings};
use super::table::{Table, is_made_by_an_agent};
use super::wanted::{InFlight, Wanted};

/// Name of our table, upstream's.
pub const TABLE: &str = "calico";

/// Knows what the packet filter should be and what the kernel has, and says what to change.
///
/// Inputs are [`policy`](Self::policy), [`settings`](Self::settings), [`cluster`](Self::cluster), [`nat`](Self::nat), [`limits`](Self::limits),
/// [`endpoint`](Self::endpoint), [`link`](Self::link), [`observed`](Self::observed), [`in_sync`](Self::in_sync),
/// [`retry`](Self::retry), in any order. After any of them ask for a [`transaction`](Self::transaction), do it, report it with
/// [`done`](Self::done), and ask again until there is none. If [`wants_look`](Self::wants_look), read the table and report
/// it.
///
/// A filter that has just started does nothing before it has seen the kernel. If there is a table that an agent has made, nothing is
/// changed until [`in_sync`](Self::in_sync), then all at once. If there is none, or one of our name that somebody else made, nothing was
/// enforced: pods are closed until policy is known, and what was in that table is gone.
#[derive(Debug)]
pub struct Filter {
    pub(super) settings: Settings,
    pub(super) cluster: Cluster,
    pub(super) translations: Nat,
    pub(super) limits: Limits,
    pub(super) endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    pub(super) policies: BTreeMap<PolicyId, Arc<Policy>>,
    pub(super) profiles: BTreeMap<String, Arc<Profile>>,
    pub(super) sets: BTreeMap<SetId, SetMeta>,
    pub(super) set_users: BTreeMap<SetId, BTreeSet<SetUser>>,
    pub(super) locals: BTreeMap<String, LocalEndpoint>,
    pub(super) links: BTreeMap<IfName, BTreeSet<IpAddr>>,

    /// By policy: how many endpoints ask it, where.
    pub(super) uses: BTreeMap<PolicyId, BTreeMap<(Stage, Way), usize>>,
    /// By policy, as rendered: whether it passes packets on, to and from endpoints.
    pub(super) passes: BTreeMap<PolicyId, [bool; 2]>,
    pub(super) owners: BTreeMap<ChainName, ChainOwner>,
    /// By set of a rule's nets: chains that look into it.
    pub(super) nets_users: BTreeMap<SetName, BTreeSet<ChainName>>,
    pub(super) chain_nets: BTreeMap<ChainName, BTreeSet<SetName>>,
    /// Chains and sets that the last look at the frame made.
    pub(super) frame_chains: BTreeSet<ChainName>,
    pub(super) frame_sets: BTreeSet<SetName>,
    /// As the table's own rules were last rendered.
    pub(super) around: Around,
    /// By host endpoint: its chains.
    pub(super) host_chains: BTreeMap<EndpointId, BTreeSet<ChainName>>,
    /// By pod device: the endpoint that has it.
    pub(super) devices: BTreeMap<String, EndpointId>,
    /// By the chain that a pod's direction would have: the profile's chain that decides alone, and is led to instead.
    pub(super) direct: BTreeMap<ChainName, ChainName>,

    pub(super) dirty: Dirty,
    pub(super) wanted: Wanted,
    seen: bool,
    adopted: bool,
    is_in_sync: bool,
    in_flight: Option<InFlight>,
    pub(super) doubt: Doubt,
    /// Inputs that cannot be enforced, found while rendering.
    pub(super) found: BTreeMap<String, Problem>,
}

/// What to render again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub policies: BTreeSet<PolicyId>,
    pub profiles: BTreeSet<String>,
    pub endpoints: BTreeSet<EndpointId>,
    /// What finds pods and host endpoints.
    pub frame: bool,
    /// The rules around it as well: they depend on pods only through [`Around`].
    pub rules: bool,
}

/// What the table's own rules depend on besides settings, cluster and translations; and the sets that they use.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub spoofable: BTreeSet<IpFamily>,
    pub hosts: BTreeMap<Prefix, HostDispatch>,
    pub used: BTreeSet<SetName>,
}

impl Default for Filter {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Filter {
    /// A filter that has been told nothing and has seen nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            cluster: Cluster::default(),
            translations: Nat::default(),
            limits: Limits::default(),
            endpoints: BTreeMap::new(),
            policies: BTreeMap::new(),
            profiles: BTreeMap::new(),
            sets: BTreeMap::new(),
            set_users: BTreeMap::new(),
            locals: BTreeMap::new(),
            links: BTreeMap::new(),
            uses: BTreeMap::new(),
            passes: BTreeMap::new(),
            owners: BTreeMap::new(),
            nets_users: BTreeMap::new(),
            chain_nets: BTreeMap::new(),
            frame_chains: BTreeSet::new(),
            frame_sets: BTreeSet::new(),
            around: Around::default(),
            host_chains: BTreeMap::new(),
            devices: BTreeMap::new(),
            direct: BTreeMap::new(),
            dirty: Dirty {
                frame: true,
                rules: true,
                ..Dirty::default()
            },
            wanted: Wanted::default(),
            seen: false,
            adopted: false,
            is_in_sync: false,
            in_flight: None,
            doubt: Doubt::default(),
            found: BTreeMap::new(),
        }
    }
}

// === inputs ===

impl Filter {
    /// Takes one change of policy.
    pub fn policy(&mut self, change: PolicyChange) {
        self.doubt.something_changed();
        match change {
            PolicyChange::Set(id, set) => self.put_set(id, set),
            PolicyChange::Members(id, came, went) => self.change_members(&id, &came, &went),
            PolicyChange::SetGone(id) => self.remove_set(&id),
            PolicyChange::Policy(id, policy) => {
                self.doubt.changed(&ChainOwner::Policy(id.clone()));
                let old = self.policies.get(&id).cloned();
                self.count_set_users(
                    &SetUser::Policy(id.clone()),
                    &old.iter()
                        .flat_map(|policy| [&*policy.ingress, &*policy.egress])
                        .collect::<Vec<_>>(),
                    &policy
                        .iter()
                        .flat_map(|policy| [&*policy.ingress, &*policy.egress])
                        .collect::<Vec<_>>(),
                );
                put(&mut self.policies, id.clone(), policy);
                self.dirty.policies.insert(id);
            }
            PolicyChange::Profile(name, profile) => {
                self.doubt.changed(&ChainOwner::Profile(name.clone()));
                let old = self.profiles.get(&name).cloned();
                self.count_set_users(
                    &SetUser::Profile(name.clone()),
                    &old.iter()
                        .flat_map(|profile| [&*profile.ingress, &*profile.egress])
                        .collect::<Vec<_>>(),
                    &profile
                        .iter()
                        .flat_map(|profile| [&*profile.ingress, &*profile.egress])
                        .collect::<Vec<_>>(),
                );
                if old.as_deref().map(decides) != profile.as_deref().map(decides) {
                    let users = self
                        .endpoints
                        .iter()
                        .filter(|(_, endpoint)| endpoint.profiles.contains(&name));
                    self.dirty.endpoints.extend(users.map(|(id, _)| id.clone()));
                }
                put(&mut self.profiles, name.clone(), profile);
                self.dirty.profiles.insert(name);
            }
            PolicyChange::Endpoint(id, endpoint) => self.put_endpoint(id, endpoint),
        }
    }

    /// Takes the agent's settings.
    pub fn settings(&mut self, settings: Settings) {
        self.doubt.something_changed();
        if self.settings != settings {
            self.doubt.changed(&ChainOwner::Frame);
            self.settings = settings;
            self.render_all();
        }
    }

    /// Takes facts of the cluster.
    pub fn cluster(&mut self, cluster: Cluster) {
        self.doubt.something_changed();
        if self.cluster != cluster {
            self.doubt.changed(&ChainOwner::Frame);
            (self.dirty.frame, self.dirty.rules) = (true, true);
            self.cluster = cluster;
        }
    }

    /// Takes translations.
    pub fn nat(&mut self, nat: Nat) {
        self.doubt.something_changed();
        if self.translations != nat {
            self.doubt.changed(&ChainOwner::Frame);
            (self.dirty.frame, self.dirty.rules) = (true, true);
            self.translations = nat;
        }
    }

    /// Takes limits and marks of pods.
    pub fn limits(&mut self, limits: Limits) {
        self.doubt.something_changed();
        if self.limits != limits {
            self.doubt.changed(&ChainOwner::Frame);
            (self.dirty.frame, self.dirty.rules) = (true, true);
            self.limits = limits;
        }
    }

    /// Takes a local endpoint of the journal, or forgets it: its device sends from these addresses and no others.
    pub fn endpoint(&mut self, id: String, endpoint: Option<LocalEndpoint>) {
        let place = |local: &LocalEndpoint| (local.device.clone(), local.addresses.clone());
        if self.locals.get(&id).map(place) == endpoint.as_ref().map(place) {
            return;
        }
        self.doubt.something_changed();
        put(&mut self.locals, id, endpoint);
        self.dirty.frame = true;
    }

    /// Takes a device of the host with its addresses; `None`: it is gone.
    pub fn link(&mut self, device: IfName, addresses: Option<BTreeSet<IpAddr>>) {
        if self.links.get(&device) == addresses.as_ref() {
            return;
        }
        self.doubt.something_changed();
        put(&mut self.links, device, addresses);
        self.dirty.frame = true;
    }

    /// Takes the kernel's table as it is; `None`: there is none. What differs from what it should be is put right.
    pub fn observed(&mut self, table: Option<&TableState>) {
        if !self.seen {
            self.adopted = table.is_some_and(is_made_by_an_agent);
        }
        self.seen = true;
        self.in_flight = None;
        self.doubt.looked();
        self.wanted.saw(table);
    }

    /// The datastore has delivered everything: the picture is complete.
    pub fn in_sync(&mut self) {
        self.is_in_sync = true;
    }

    /// What the kernel refused is tried again.
    pub fn retry(&mut self) {
        let refused: Vec<SetId> = self.doubt.sets.keys().cloned().collect();
        self.doubt = Doubt::default();
        refused.iter().for_each(|id| self.park(id, false));
        self.render_all();
    }

    fn put_endpoint(&mut self, id: EndpointId, endpoint: Option<Arc<Endpoint>>) {
        let old = match endpoint.clone() {
            Some(endpoint) => self.endpoints.insert(id.clone(), endpoint),
            None => self.endpoints.remove(&id),
        };
        let (before, after) = (uses_of(old.as_deref()), uses_of(endpoint.as_deref()));
        for (policy, place) in after.difference(&before) {
            let places = self.uses.entry(policy.clone()).or_default();
            let count = places.entry(*place).or_default();
            *count += 1;
            if *count == 1 {
                self.dirty.policies.insert(policy.clone());
            }
        }
        for (policy, place) in before.difference(&after) {
            let Some(places) = self.uses.get_mut(policy) else {
                continue;
            };
            let count = places.entry(*place).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                places.remove(place);
                self.dirty.policies.insert(policy.clone());
            }
            if places.is_empty() {
                self.uses.remove(policy);
            }
        }
        let is_news = match (&old, &endpoint) {
            (Some(old), Some(new)) => !self.is_known_already(old, new),
            (None, None) => false,
            (None, Some(_)) | (Some(_), None) => true,
        };
        if is_news {
            self.doubt.changed(&ChainOwner::Endpoint(id.clone()));
            self.dirty.endpoints.insert(id);
            self.dirty.frame = true;
        }
    }

    /// Whether two versions of an endpoint differ at most in labels, and in addresses that the journal has told already: what
    /// the usual pod brings when its allocation is certain.
    fn is_known_already(&self, old: &Endpoint, new: &Endpoint) -> bool {
        let rest = |endpoint: &Endpoint| {
            let Endpoint {
                interface,
                labels: _,
                addresses: _,
                spoofable,
                ingress,
                egress,
                forward,
                pre_dnat,
                untracked,
                profiles,
                closed,
            } = endpoint.clone();
            let directions = (ingress, egress, forward, pre_dnat, untracked);
            (interface, spoofable, directions, profiles, closed)
        };
        if rest(old) != rest(new) || self.found.keys().any(|key| key.starts_with("device ")) {
            return false;
        }
        let Interface::Named(device) = &new.interface else {
            return old.addresses == new.addresses;
        };
        let locals = self.locals.values().filter(|local| local.device.0 == *device);
        let known: BTreeSet<&IpAddr> = locals.flat_map(|local| &local.addresses).collect();
        let is_new = |address: &&IpAddr| !old.addresses.contains(address);
        old.addresses.iter().all(|address| new.addresses.contains(address))
            && new
                .addresses
                .iter()
                .filter(is_new)
                .all(|address| known.contains(address))
    }

    fn render_all(&mut self) {
        self.dirty.policies.extend(self.policies.keys().cloned());
        self.dirty.profiles.extend(self.profiles.keys().cloned());
        self.dirty.endpoints.extend(self.endpoints.keys().cloned());
        (self.dirty.frame, self.dirty.rules) = (true, true);
    }
}

// === outputs ===

impl Filter {
    /// The change that makes the kernel's table what it should be, all or nothing; `None`: there is nothing to do now.
    pub fn transaction(&mut self) -> Option<Transaction> {
        let may_change = self.is_in_sync || !self.adopted;
        if !self.seen || !may_change || self.in_flight.is_some() || self.doubt.waits() {
            return None;
        }
        self.settle();
        let (changes, sent) = self.wanted.difference()?;
        self.in_flight = Some(sent);
        let table = TableName(TABLE.to_owned());
        Some(Transaction { table, changes })
    }

    /// Takes the result of the last transaction.
    pub fn done(&mut self, result: Result<(), NftError>) {
        let Some(sent) = self.in_flight.take() else { return };
        match result {
            Ok(()) => {
                self.wanted.acknowledge(sent);
                self.doubt.succeeded();
            }
            Err(error) => self.refused(&sent, &error),
        }
    }

    /// Whether the picture of the kernel's table is in doubt: read it and report it with [`observed`](Self::observed).
    pub fn wants_look(&self) -> bool {
        !self.seen || self.doubt.wants_look()
    }

    /// Whether the kernel enforces what policy says about an endpoint, as far as is known now. For one that is closed this is
    /// true as well.
    pub fn is_enforced(&self, id: &EndpointId) -> bool {
        if !self.seen || self.dirty.frame || self.dirty.endpoints.contains(id) || !self.dirty.policies.is_empty() {
            return false;
        }
        match id {
            EndpointId::Host(_) => {
                let chains = self.host_chains.get(id);
                chains.is_some_and(|chains| chains.iter().all(|chain| self.wanted.is_enforced(chain)))
            }
            EndpointId::Workload(_) => self.devices.iter().any(|(device, owner)| {
                let ways = [(Prefix::FromWorkload, FROM_ENDPOINT), (Prefix::ToWorkload, TO_ENDPOINT)];
                owner == id
                    && ways.iter().all(|(prefix, map)| {
                        let chain = self.entry(*prefix, device);
                        let item = Item::device(device, kernel::nft::ElementVerdict::Goto(chain.clone()));
                        self.wanted.is_enforced(&chain) && self.wanted.has_item(&SetName::from(*map), &item)
                    })
            }),
        }
    }

    /// What cannot be enforced as it is said, and why. All of it is closed.
    pub fn problems(&self) -> Vec<Problem> {
        self.found.values().cloned().chain(self.doubt.problems()).collect()
    }

    /// The table as it should be.
    pub fn table(&mut self) -> Table {
        self.settle();
        self.wanted.table()
    }
}

/// Whether no packet gets past a profile's rules undecided, to the endpoint and from it.
pub(super) fn decides(profile: &Profile) -> [bool; 2] {
    let ends = |rule: &policy::Rule| match rule.action {
        Action::Allow | Action::Deny => rule.matches_everything(),
        Action::Pass | Action::Log => false,
    };
    [profile.ingress.iter().any(ends), profile.egress.iter().any(ends)]
}

/// Which policies an endpoint asks, where.
fn uses_of(endpoint: Option<&Endpoint>) -> BTreeSet<(PolicyId, (Stage, Way))> {
    let Some(endpoint) = endpoint else {
        return BTreeSet::new();
    };
    let (ingress, egress) = (Way::Ingress, Way::Egress);
    let places = [
        (&endpoint.ingress, Stage::Normal, ingress),
        (&endpoint.egress, Stage::Normal, egress),
        (&endpoint.forward.ingress, Stage::Normal, ingress),
        (&endpoint.forward.egress, Stage::Normal, egress),
        (&endpoint.pre_dnat, Stage::PreDnat, ingress),
        (&endpoint.untracked.ingress, Stage::Untracked, ingress),
        (&endpoint.untracked.egress, Stage::Untracked, egress),
    ];
    let uses = |(direction, stage, way): (&policy::Direction, Stage, Way)| {
        let policies = direction.tiers.iter().flat_map(|tier| tier.policies.clone());
        policies.map(move |id| (id, (stage, way))).collect::<Vec<_>>()
    };
    places.into_iter().flat_map(uses).collect()
}

pub(super) fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
