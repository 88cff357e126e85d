//! The packet filter's part of the loop: policy in, nf_tables transactions out.
//!
//! ```text
//!  datastore ─> policy::Graph ─ PolicyChange ─> dataplane::filter::Filter ─ Transaction ─> NftKernel
//!  journal   ─────^                                 ^        ^
//!  pools, nodes, settings, devices ─────────────────┘        └── the table as it is, and who else touched it
//! ```
//!
//! Everything is decided in the two pure machines; this feeds them and carries transactions to the kernel.

mod asked;
mod boot;
mod flows;
mod refused;
pub(crate) use flows::Counted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use api::resource::WorkloadEndpoint;
use api::{EncapMode, Key, Kind};
use calc::NodeState;
use dataplane::LocalEndpoint;
use dataplane::filter::{
    Cluster, Drops, Filter, FloatingIp, HostPort, Limits, Nat, NatPool, Passes, Settings, TABLE, Tunnel,
    is_made_by_an_agent,
};
use datastore::Update;
use futures::future::BoxFuture;
use kernel::nft::{NftError, NftEvent, NftKernel, Rules, TableName};
use kernel::{IfName, KernelEvent, Observation};
use policy::{EndpointId, PolicyState};
use tokio::sync::watch;

use crate::cut::host::Guard;
use crate::flows::Flows;
use crate::policy_view::Known;
use crate::refusals::Refusals;
use asked::Off;
use boot::Boot;
pub use boot::LastRun;
use flows::Cutting;
use refused::{Logged, shown};

/// After so many transactions in one turn the rest waits for the next event: something is wrong.
const TURNS: usize = 64;

/// Policy, and the table that enforces it.
pub struct PacketFilter {
    graph: policy::Graph,
    filter: Filter,
    kernel: Box<dyn NftKernel>,
    table: TableName,
    /// This node's name.
    name: String,
    /// By journal id: the endpoint's key, its device and its addresses.
    locals: BTreeMap<String, (Key, LocalEndpoint)>,
    /// A pod that lives here may bring other translations.
    translate: bool,
    /// Limits of pods that the dataplane has not been told yet.
    bandwidths: Option<Limits>,
    /// What pods may ask for, and is switched off here.
    off: Off,
    /// This host's devices that are not pods', with their addresses; and what else its protection depends on.
    guard: Guard,
    tunnel: IfName,
    /// The datastore has been read; the journal has.
    read: [bool; 2],
    /// What pods' devices begin with, whatever the FelixConfiguration says.
    prefix: Option<String>,
    /// There are pods that another plugin attached: nothing is enforced before all of them are known.
    patient: bool,
    /// The kernel's table has to be read again.
    look: bool,
    /// Why the kernel could not be asked or told, last.
    broken: Option<String>,
    applied: Applied,
    drops: Drops,
    passes: Passes,
    cutting: Cutting,
    /// Host endpoints of the last run.
    boot: Boot,
    /// Hears which device is whose, and what staged policies would say.
    records: Flows,
    /// Staged policies changed.
    restage: bool,
    /// Counts the changes of policy that flow records hear of.
    rehearsal: u64,
    /// Hears what the kernel refuses.
    refusals: watch::Sender<Option<Refusals>>,
    /// What the log has been told of that.
    logged: Logged,
}

/// What the packet filter counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Applied {
    /// Transactions that the kernel took.
    pub transactions: u64,
    /// Changes in them.
    pub changes: u64,
    /// Transactions that it refused.
    pub failed: u64,
    /// Times that the table was read.
    pub looks: u64,
    /// How long the last transaction took, from being asked for to being acknowledged.
    pub last: Duration,
    /// Flows cut because policy forbids them now.
    pub flows_forbidden: u64,
    /// Flows cut because their pod is gone.
    pub flows_gone: u64,
}

/// What is told of it.
#[derive(Clone, Debug, Default)]
pub struct FilterReport {
    /// Why the kernel cannot be told anything.
    pub broken: Option<String>,
    /// What is not enforced as it is said, and resources that cannot be followed.
    pub problems: Vec<String>,
    /// Local endpoints.
    pub endpoints: usize,
    /// Of these, those that the kernel has as they should be.
    pub enforced: usize,
    /// Policies that concern them.
    pub policies: usize,
    /// Sets that these use.
    pub sets: usize,
    /// Their members.
    pub members: usize,
    /// Counters.
    pub applied: Applied,
}

impl PacketFilter {
    /// Over a kernel's nf_tables. Nothing is changed before [`PacketFilter::settle`].
    pub fn new(node: &str, kernel: Box<dyn NftKernel>, tunnel: IfName) -> Self {
        Self {
            graph: policy::Graph::new(node),
            filter: Filter::new(Settings::default()),
            kernel,
            table: TableName(TABLE.to_owned()),
            name: node.to_owned(),
            locals: BTreeMap::new(),
            translate: true,
            bandwidths: None,
            off: Off::default(),
            guard: Guard::default(),
            tunnel,
            read: [false; 2],
            prefix: None,
            patient: false,
            look: true,
            broken: None,
            applied: Applied::default(),
            drops: Drops::default(),
            passes: Passes::default(),
            cutting: Cutting::default(),
            boot: Boot::default(),
            records: Flows::default(),
            restage: false,
            rehearsal: 0,
            refusals: watch::Sender::default(),
            logged: Logged::default(),
        }
    }

    /// Flow records get the pods' names.
    pub fn name_pods_for(&mut self, records: Flows) {
        self.records = records;
    }

    /// Says what pods' devices begin with.
    pub fn set_prefix(&mut self, prefix: &str) {
        self.prefix = Some(prefix.to_owned());
        let settings = self.over(Settings::default());
        self.filter.settings(settings);
    }

    fn over(&self, mut settings: Settings) -> Settings {
        if let Some(prefix) = &self.prefix {
            settings.interface_prefixes = [prefix.clone()].into();
        }
        settings
    }

    /// Says that pods run whose plugin was another: this is no boot after which pods are closed until policy is known. What
    /// enforced policy for them until now is still in the kernel.
    pub fn wait_for_strangers(&mut self) {
        self.patient = true;
    }

    /// Whether resources of this kind are policy's.
    pub fn concerns(kind: Kind) -> bool {
        match kind {
            Kind::WorkloadEndpoint
            | Kind::HostEndpoint
            | Kind::NetworkSet
            | Kind::GlobalNetworkSet
            | Kind::Profile
            | Kind::Tier
            | Kind::KubernetesEndpointSlice
            | Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy => true,
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
            | Kind::BGPFilter => false,
        }
    }

    /// Takes what one resource is now.
    pub fn apply(&mut self, update: Update) {
        self.translate |= update.key.kind == Kind::WorkloadEndpoint && self.graph.pod(&update.key).is_some();
        self.restage |= policy::rehearsal::subject(&update.key).is_some();
        self.graph.apply(update);
    }

    /// Takes a pod of this node, or forgets it.
    pub fn endpoint(&mut self, id: &str, endpoint: Option<(&LocalEndpoint, WorkloadEndpoint)>) {
        let old = self.locals.remove(id);
        self.filter
            .endpoint(id.to_owned(), endpoint.as_ref().map(|(local, _)| (*local).clone()));
        let key = endpoint.as_ref().map(|(_, resource)| resource.key());
        if let Some((old, _)) = &old
            && Some(old) != key.as_ref()
            // A new container of the same pod may have it by now.
            && !self.locals.values().any(|(other, _)| other == old)
        {
            self.graph.local(old.clone(), None);
        }
        if let Some((_, old)) = &old {
            self.records.name(&old.device, None);
        }
        if let Some((local, resource)) = endpoint {
            let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
            let name = format!("{namespace}/{}", resource.spec.pod);
            self.records.name(&local.device, Some(name));
            self.locals.insert(id.to_owned(), (resource.key(), local.clone()));
            self.graph.local(resource.key(), Some(resource));
        }
        if let Some((_, old)) = old {
            let still: BTreeSet<IpAddr> = self.local_addresses().collect();
            let gone = old.addresses.into_iter().filter(|address| !still.contains(address));
            self.cutting.gone.extend(gone);
        }
        self.translate = true;
    }

    fn local_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.locals
            .values()
            .flat_map(|(_, local)| local.addresses.iter().copied())
    }

    /// Takes the node's state: pools, nodes and settings.
    pub fn node(&mut self, state: &NodeState) {
        if self.keep_back(state) {
            return;
        }
        let this = state.this_node.clone().unwrap_or_default();
        let own = [
            this.ipv4.map(|net| IpAddr::V4(net.addr())),
            this.ipv6.map(|net| IpAddr::V6(net.addr())),
        ];
        let others = state.peers.values().flat_map(|peer| {
            [
                peer.ipv4.map(|net| IpAddr::V4(net.addr())),
                peer.ipv6.map(|net| IpAddr::V6(net.addr())),
            ]
        });
        let pools = state.pools.iter().map(|(net, pool)| NatPool {
            net: *net,
            nat_outgoing: pool.nat_outgoing,
        });
        let nodes: BTreeSet<IpAddr> = own.into_iter().chain(others).flatten().collect();
        let settings = self.over(Settings {
            cut_flows: self.cutting.forbidden,
            ..Settings::from(&*state.settings.felix)
        });
        self.filter.cluster(Cluster {
            pools: pools.collect(),
            nodes: nodes.clone(),
            tunnels: vec![Tunnel {
                device: self.tunnel.clone(),
                address: this.ipip_tunnel.map(IpAddr::V4),
            }],
            ipip: state.pools.values().any(|pool| pool.ipip != EncapMode::Never),
            vxlan: state.pools.values().any(|pool| pool.vxlan != EncapMode::Never),
            services: state.services.iter().copied().collect(),
        });
        self.off = Off {
            floating: !settings.floating_ips,
            sources: !settings.source_spoofing,
        };
        self.filter.settings(settings.clone());
        self.guard(settings, nodes);
    }

    /// Takes the host's devices as they are.
    pub fn observed(&mut self, seen: &Observation, is_pod: impl Fn(&IfName) -> bool) {
        let devices = seen.links.keys().filter(|device| !is_pod(device));
        let mut links: BTreeMap<IfName, BTreeSet<IpAddr>> =
            devices.map(|device| (device.clone(), BTreeSet::new())).collect();
        for address in &seen.addresses {
            if let Some(addresses) = links.get_mut(&address.device) {
                addresses.insert(address.net.addr());
            }
        }
        for gone in self.guard.links.keys().filter(|device| !links.contains_key(device)) {
            self.filter.link(gone.clone(), None);
        }
        for (device, addresses) in &links {
            self.filter.link(device.clone(), Some(addresses.clone()));
        }
        self.guard.links = links;
        self.name_hosts();
    }

    /// Takes a change of the host's devices.
    pub fn kernel_event(&mut self, event: &KernelEvent, is_pod: impl Fn(&IfName) -> bool) {
        let device = match event {
            KernelEvent::Link(link) if !is_pod(&link.name) => {
                self.guard.links.entry(link.name.clone()).or_default();
                &link.name
            }
            KernelEvent::LinkGone(device) => {
                if self.guard.links.remove(device).is_some() {
                    self.filter.link(device.clone(), None);
                }
                return;
            }
            KernelEvent::Address(address, there) if !is_pod(&address.device) => {
                let addresses = self.guard.links.entry(address.device.clone()).or_default();
                match there {
                    true => addresses.insert(address.net.addr()),
                    false => addresses.remove(&address.net.addr()),
                };
                &address.device
            }
            _ => return,
        };
        self.filter.link(device.clone(), self.guard.links.get(device).cloned());
        self.name_hosts();
    }

    /// Takes what others did to nf_tables.
    pub fn event(&mut self, event: NftEvent) {
        match event {
            NftEvent::Touched { program, .. } => {
                tracing::info!(program, "packet filter: somebody changed our table; looking at it");
                self.look = true;
            }
            NftEvent::Resync => self.look = true,
            NftEvent::Elsewhere { .. } => {}
        }
    }

    /// The datastore has been read.
    pub fn in_sync(&mut self) {
        self.read[0] = true;
        self.complete();
    }

    /// The journal has been read: the pods that live here are known.
    pub fn endpoints_loaded(&mut self) {
        self.read[1] = true;
        self.complete();
    }

    /// With both the picture is complete. Without the journal, pods that an earlier agent has let in would look gone.
    fn complete(&mut self) {
        if self.is_complete() {
            self.filter.in_sync();
            self.cutting.in_sync = true;
        }
    }

    fn is_complete(&self) -> bool {
        self.read == [true; 2]
    }

    /// Tries again what failed.
    pub fn retry(&mut self) {
        self.look |= self.broken.is_some();
        if !self.filter.problems().is_empty() {
            self.filter.retry();
        }
    }

    /// Pods' limits, if they may have changed since this was asked last: how many bytes a second is the dataplane's business.
    pub fn take_bandwidths(&mut self) -> Option<Limits> {
        self.bandwidths.take()
    }

    /// Brings the kernel's table to what policy says, and tells what it refuses.
    pub async fn settle(&mut self) {
        self.bring().await;
        self.tell_refusals();
    }

    async fn bring(&mut self) {
        // Half a picture may have a profile that allows, and not yet the policy that denies.
        if self.is_complete() {
            let changes = self.graph.flush();
            self.tell_records(&changes);
            if self.cutting.forbidden {
                self.cutting.changed(self.graph.state(), &changes);
            }
            for change in changes {
                self.filter.policy(change);
            }
            self.boot_is_over();
            if std::mem::take(&mut self.translate) {
                self.filter.nat(self.translations());
                let limits = self.limits();
                self.filter.limits(limits.clone());
                self.bandwidths = Some(limits);
            }
        }
        if self.patient && !self.is_complete() {
            return;
        }
        for _ in 0..TURNS {
            if (self.look || self.filter.wants_look()) && !self.read().await {
                return;
            }
            let started = Instant::now();
            let Some(transaction) = self.filter.transaction() else {
                self.logged.works();
                return;
            };
            let ending = self.ending(&transaction).await;
            let result = self.kernel.apply(&transaction).await;
            match &result {
                Ok(_) => {
                    self.drops.retire(&ending);
                    self.passes.retire(&ending);
                    self.applied.transactions += 1;
                    self.applied.changes += transaction.changes.len() as u64;
                    self.applied.last = started.elapsed();
                    self.broken = None;
                    tracing::debug!(changes = transaction.changes.len(), took = ?self.applied.last, "packet filter: done");
                }
                Err(error) => {
                    self.applied.failed += 1;
                    // What it refuses is told as a problem.
                    tracing::debug!(%error, "packet filter: the kernel did not take a change");
                }
            }
            if let Err(error @ (NftError::Broken(_) | NftError::Busy)) = &result {
                let why = error.to_string();
                if self.logged.broke(&why) {
                    tracing::warn!(why, "packet filter: the kernel did not take a change; trying again");
                }
                self.broken = Some(why);
                self.look = true;
            }
            self.filter.done(result);
            if self.broken.is_some() {
                return;
            }
        }
        tracing::error!("packet filter: it does not settle; going on later");
    }

    /// Reads the kernel's table; `false` if it cannot be read.
    async fn read(&mut self) -> bool {
        self.applied.looks += 1;
        match self.kernel.read(&self.table).await {
            Ok(table) => {
                self.look = false;
                self.broken = None;
                if self.applied.looks == 1 && table.as_ref().is_some_and(|table| !is_made_by_an_agent(table)) {
                    tracing::warn!(
                        "packet filter: no agent has made the table inet calico that is here; what is in it is removed"
                    );
                }
                self.first_look(table.as_ref());
                self.filter.observed(table.as_ref());
                true
            }
            Err(error) => {
                let text = error.to_string();
                if self.logged.broke(&text) {
                    tracing::error!(%error, "packet filter: cannot read nf_tables");
                }
                self.broken = Some(text);
                false
            }
        }
    }

    /// Whether a pod's policy is in the kernel: `None` as long as it is not known, `Err` if it will not be before something changes.
    pub fn is_enforced(&self, id: &str) -> Option<Result<(), String>> {
        if let Some(why) = &self.broken {
            return Some(Err(format!("policy cannot be enforced: {why}")));
        }
        let Some((key, _)) = self.locals.get(id) else {
            return Some(Ok(()));
        };
        let enforced = self.filter.is_enforced(&EndpointId::Workload(key.clone()));
        enforced.then_some(Ok(()))
    }

    /// Devices of pods that may send from more than their own addresses.
    pub fn granted_sources(&self) -> BTreeSet<IfName> {
        self.filter.granted_sources()
    }

    /// What policy says on this node.
    pub fn policy(&self) -> &PolicyState {
        self.graph.state()
    }

    /// Begins to read the table's rules with their counters, beside everything else; the result is for
    /// [`PacketFilter::rules_read`].
    pub fn read_rules(&mut self) -> BoxFuture<'static, Result<Rules, NftError>> {
        self.drops.begin();
        self.passes.begin();
        self.kernel.rules(&self.table)
    }

    /// Takes the rules that were read: what they have counted so far.
    pub fn rules_read(&mut self, rules: &Result<Rules, NftError>) -> Result<Counted, String> {
        let rules = rules.as_ref().map_err(ToString::to_string)?;
        self.drops.seen(rules);
        self.passes.seen(rules);
        Ok(Counted {
            drops: self.drops.totals(),
            passes: self.passes.totals(),
        })
    }

    /// What is told of it.
    pub fn report(&self) -> FilterReport {
        let state = self.graph.state();
        let enforced = state.endpoints.keys().filter(|id| self.filter.is_enforced(id));
        let refused = self.filter.problems();
        let problems = self.graph.problems().into_iter().map(|problem| problem.to_string());
        FilterReport {
            broken: self.broken.clone(),
            problems: problems
                .chain(missing_profiles(state))
                .chain(self.boot_problems())
                .chain(self.switched_off())
                .chain(refused.iter().map(shown))
                .collect(),
            endpoints: state.endpoints.len(),
            enforced: enforced.count(),
            policies: state.policies.len(),
            sets: state.sets.len(),
            members: state.sets.values().map(|set| set.members.len()).sum(),
            applied: self.applied,
        }
    }

    /// What there is to policy here, to be shown with rules of the kernel somewhere else.
    pub fn known(&self) -> Known {
        let report = self.report();
        let state = self.graph.state();
        let enforced = state.endpoints.keys().filter(|id| self.filter.is_enforced(id));
        Known::new(state, enforced.cloned().collect(), report)
    }

    /// Floating IPs and host ports of the pods that are here.
    fn translations(&self) -> Nat {
        let mut nat = Nat::default();
        // A pod whose container was replaced may be there twice, by journal id.
        let keys: BTreeSet<&Key> = self.locals.values().map(|(key, _)| key).collect();
        for resource in keys.into_iter().filter_map(|key| self.graph.pod(key)) {
            let spec = &resource.spec;
            nat.floating_ips
                .extend(spec.ip_nats.iter().map(|translation| FloatingIp {
                    external: translation.external_ip,
                    pod: translation.internal_ip,
                }));
            for port in &spec.ports {
                let host = port.host_ip.filter(|ip| !ip.is_unspecified());
                let (Some(host_port), Some(protocol)) = (port.host_port, port.protocol.number()) else {
                    continue;
                };
                nat.host_ports.extend(spec.ip_networks.iter().map(|net| HostPort {
                    host,
                    protocol,
                    port: host_port,
                    pod: net.addr(),
                    pod_port: port.port,
                }));
            }
        }
        nat
    }
}

/// Profiles that endpoints refer to in vain: these are closed as far as no policy and no other profile allows.
fn missing_profiles(state: &PolicyState) -> impl Iterator<Item = String> {
    let missing = state.profiles.iter().filter(|(_, profile)| profile.missing);
    missing.map(|(name, _)| {
        let mut users = state
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.profiles.contains(name));
        let first = users.next().map(|(id, _)| id.to_string()).unwrap_or_default();
        let more = match users.count() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        format!("profile {name} of {first}{more} does not exist, and allows nothing")
    })
}
