//! The dataplane: what it is told, and what that makes it want.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use bgp::{FibChange, FibRoute};
use calc::{NodeChange, NodeState};
use ipnet::IpNet;
use kernel::{
    IfName, IpFamily, IpipTunnel, KernelError, PROTOCOL_OURS, Route, RouteKey, RouteTarget, Sysctl, TABLE_MAIN,
};

use crate::config::Config;
use crate::decide::{MtuDecision, TunnelDecision, TunnelOff};
use crate::ledger::Ledger;
use crate::resolve::{Surroundings, Unresolved};
use crate::status::RouteClass;
use crate::view::View;

/// A pod's host side, from the CNI journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The host's device that leads to the pod.
    pub device: IfName,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whoever tells of it has just made the device, with its settings.
    pub fresh: bool,
}

/// What makes it certain that something unwanted is really stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// The datastore has delivered everything.
    Datastore,
    /// Every BGP peer has delivered everything, or has had its time.
    Bgp,
    /// The journal of local endpoints is loaded.
    Endpoints,
}

/// Knows what the kernel should have and what it has, and says what to do.
///
/// Inputs are [`set`](Self::set), [`endpoint`](Self::endpoint), [`fib`](Self::fib), [`observed`](Self::observed),
/// [`event`](Self::event), [`allow_cleanup`](Self::allow_cleanup), [`retry`](Self::retry), in any order. After any of them
/// call [`plan`](Self::plan), do the operations, report each with [`done`](Self::done), and plan again until the plan is
/// empty: some steps wait for others to have succeeded.
///
/// A dataplane that has just started adopts what an earlier one left: it adds what is missing, but changes and removes
/// nothing until [`Cleanup`] says that its picture is complete. Local endpoints are the exception: the journal rules.
#[derive(Debug)]
pub struct Dataplane {
    pub(crate) config: Config,
    pub(crate) state: NodeState,
    pub(crate) endpoints: BTreeMap<String, LocalEndpoint>,
    /// By pod address: the endpoints that have it, first come first. The first one has the route.
    pub(crate) claims: BTreeMap<IpAddr, Vec<String>>,
    pub(crate) fib: BTreeMap<IpNet, FibRoute>,
    /// By next hop: the prefixes that use it.
    fib_via: BTreeMap<IpAddr, BTreeSet<IpNet>>,
    /// Devices of pods that may send from more than their own addresses.
    sources: BTreeSet<IfName>,
    /// IPv4 addresses of other nodes; counted, because an address may move between nodes in either order.
    pub(crate) node_addresses: BTreeMap<Ipv4Addr, usize>,

    pub(crate) view: View,
    pub(crate) observed: bool,
    pub(crate) ever_observed: bool,
    pub(crate) resync: bool,
    pub(crate) permitted: Permitted,
    pub(crate) switch: Switch,

    connected: Vec<(IpNet, IfName)>,
    pub(crate) tunnel_decision: TunnelDecision,
    pub(crate) mtu: MtuDecision,
    pub(crate) unresolved: BTreeMap<IpNet, Unresolved>,

    placed: BTreeMap<(RouteClass, IpNet), RouteKey>,
    wishes: BTreeMap<RouteKey, BTreeMap<RouteClass, Route>>,
    pub(crate) routes: Ledger<RouteKey, Route>,
    pub(crate) tunnel: Ledger<IfName, IpipTunnel>,
    pub(crate) peers: Ledger<Ipv4Addr, ()>,
    pub(crate) links: Ledger<IfName, bool>,
    pub(crate) sysctls: Ledger<String, String>,
    todo: Todo,
}

/// What has been permitted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Permitted {
    pub datastore: bool,
    pub bgp: bool,
    pub endpoints: bool,
}

/// Moving traffic into a tunnel that has just been made, or giving up one that nobody here uses any more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switch {
    /// Such moves wait for a word.
    pub held: bool,
    /// The tunnel was made by us since the last word.
    pub young: bool,
    /// The word to remove the tunnel was given.
    pub may_retire: bool,
    /// Something waited when last planned.
    pub waiting: bool,
}

/// What to work out again before the next answer.
#[derive(Clone, Debug, Default)]
struct Todo {
    decisions: bool,
    all_prefixes: bool,
    prefixes: BTreeSet<IpNet>,
}

impl Dataplane {
    /// A dataplane that has been told nothing and has seen nothing.
    pub fn new(config: Config) -> Self {
        let (state, view) = (NodeState::default(), View::default());
        let tunnel_decision = TunnelDecision::Off(TunnelOff::NoPool);
        let mtu = MtuDecision::make(&config, &state, &view, &tunnel_decision);
        Self {
            config,
            state,
            endpoints: BTreeMap::new(),
            claims: BTreeMap::new(),
            fib: BTreeMap::new(),
            fib_via: BTreeMap::new(),
            sources: BTreeSet::new(),
            node_addresses: BTreeMap::new(),
            view,
            observed: false,
            ever_observed: false,
            resync: false,
            permitted: Permitted::default(),
            switch: Switch::default(),
            connected: Vec::new(),
            tunnel_decision,
            mtu,
            unresolved: BTreeMap::new(),
            placed: BTreeMap::new(),
            wishes: BTreeMap::new(),
            routes: Ledger::new(),
            tunnel: Ledger::new(),
            peers: Ledger::new(),
            links: Ledger::new(),
            sysctls: Ledger::new(),
            todo: Todo::default(),
        }
    }

    /// Takes one change of the desired state.
    pub fn set(&mut self, change: NodeChange) {
        match change {
            NodeChange::Settings(settings) => {
                let metrics = (settings.ipv4_metric, settings.ipv6_metric);
                let moved = metrics != (self.state.settings.ipv4_metric, self.state.settings.ipv6_metric);
                self.state.settings = settings;
                self.todo.decisions = true;
                if moved {
                    self.state
                        .blocks
                        .clone()
                        .into_iter()
                        .for_each(|block| self.place_block(block));
                    let addresses: Vec<IpAddr> = self.claims.keys().copied().collect();
                    addresses
                        .into_iter()
                        .for_each(|address| self.place_endpoint_address(address));
                }
            }
            NodeChange::ThisNode(this) => {
                self.state.this_node = this;
                self.surroundings_changed();
            }
            NodeChange::Peer(name, peer) => {
                let old = match &peer {
                    Some(peer) => self.state.peers.insert(name, peer.clone()),
                    None => self.state.peers.remove(&name),
                };
                self.count_node(peer.and_then(|peer| peer.ipv4).map(|net| net.addr()), true);
                self.count_node(old.and_then(|peer| peer.ipv4).map(|net| net.addr()), false);
            }
            NodeChange::Pool(range, pool) => {
                match pool {
                    Some(pool) => self.state.pools.insert(range, pool),
                    None => self.state.pools.remove(&range),
                };
                self.surroundings_changed();
            }
            NodeChange::Block(block, present) => {
                match present {
                    true => self.state.blocks.insert(block),
                    false => self.state.blocks.remove(&block),
                };
                self.place_block(block);
                self.todo.all_prefixes = true;
            }
            // The speaker's business, and the packet filter's.
            NodeChange::Bgp(_) | NodeChange::Services(_) => {}
        }
    }

    /// Takes a local endpoint, or forgets it. Of endpoints with the same address the one that was there first has the
    /// route; load a journal oldest first.
    pub fn endpoint(&mut self, id: String, endpoint: Option<LocalEndpoint>) {
        let old = match &endpoint {
            Some(endpoint) => self.endpoints.insert(id.clone(), endpoint.clone()),
            None => self.endpoints.remove(&id),
        };
        if old == endpoint {
            return;
        }
        let before: BTreeSet<IpAddr> = old.iter().flat_map(|old| old.addresses.iter().copied()).collect();
        let after: BTreeSet<IpAddr> = endpoint.iter().flat_map(|new| new.addresses.iter().copied()).collect();
        for gone in before.difference(&after) {
            if let Some(ids) = self.claims.get_mut(gone) {
                ids.retain(|claimant| *claimant != id);
                if ids.is_empty() {
                    self.claims.remove(gone);
                }
            }
        }
        for new in after.difference(&before) {
            self.claims.entry(*new).or_default().push(id.clone());
        }
        before
            .union(&after)
            .for_each(|address| self.place_endpoint_address(*address));
        let devices: BTreeSet<IfName> = old
            .iter()
            .chain(&endpoint)
            .map(|endpoint| endpoint.device.clone())
            .collect();
        devices.iter().for_each(|device| self.want_device(device));
        match endpoint {
            Some(endpoint) if endpoint.fresh => self.sysctls_are_set(&endpoint),
            Some(endpoint) if self.ever_observed => self.trust_sysctls_of(&endpoint),
            _ => {}
        }
    }

    /// Says which pods' devices may send from more addresses than are routed to them. The kernel must not ask for a route back
    /// there; the packet filter keeps other sources away.
    pub fn granted_sources(&mut self, devices: BTreeSet<IfName>) {
        let old = std::mem::replace(&mut self.sources, devices);
        let changed: Vec<IfName> = old.symmetric_difference(&self.sources).cloned().collect();
        changed.iter().for_each(|device| self.want_device(device));
    }

    /// Takes BGP's wish for one prefix.
    pub fn fib(&mut self, change: FibChange) {
        let prefix = change.prefix.trunc();
        let old = match &change.route {
            Some(route) => self.fib.insert(prefix, route.clone()),
            None => self.fib.remove(&prefix),
        };
        for hop in old.iter().flat_map(|route| &route.next_hops) {
            if let Some(prefixes) = self.fib_via.get_mut(hop) {
                prefixes.remove(&prefix);
                if prefixes.is_empty() {
                    self.fib_via.remove(hop);
                }
            }
        }
        for hop in change.route.iter().flat_map(|route| &route.next_hops) {
            self.fib_via.entry(*hop).or_default().insert(prefix);
        }
        self.todo.prefixes.insert(prefix);
    }

    /// From now on what the named part answers for is removed if nobody wants it.
    pub fn allow_cleanup(&mut self, what: Cleanup) {
        match what {
            Cleanup::Datastore => self.permitted.datastore = true,
            Cleanup::Bgp => self.permitted.bgp = true,
            Cleanup::Endpoints => self.permitted.endpoints = true,
        }
    }

    /// From now on, moving packets from plain routes into a tunnel that was just made, and removing a tunnel, wait for
    /// [`switch`](Self::switch). When a pool changes its mode, every node changes its tunnel at about the same time: the others
    /// must be ready to take what this one sends.
    pub fn hold_switches(&mut self) {
        self.switch.held = true;
    }

    /// Whether, as of the last plan, something waits for [`switch`](Self::switch). Give the other nodes a second or two.
    pub fn wants_switch(&self) -> bool {
        self.switch.waiting
    }

    /// The other nodes have had their time: what waits may go on.
    pub fn switch(&mut self) {
        self.switch.young = false;
        self.switch.may_retire = self.switch.waiting && self.tunnel_decision.is_off();
    }

    /// Addresses of local endpoints and of the tunnel that lie in none of this node's blocks (borrowed ones, mostly). Nobody
    /// finds them by a block route: BGP has to announce each by itself.
    pub fn addresses_outside_blocks(&self) -> BTreeSet<IpNet> {
        let inside = |net: &IpNet| self.state.blocks.iter().any(|block| block.contains(net));
        let tunnel = self.state.this_node.as_ref().and_then(|this| this.ipip_tunnel);
        self.claims
            .keys()
            .copied()
            .chain(tunnel.map(IpAddr::V4))
            .map(IpNet::from)
            .filter(|net| !inside(net))
            .collect()
    }

    /// Whether a device is a pod's, by its name.
    pub fn is_pod_device(&self, device: &IfName) -> bool {
        self.config.is_pod_device(device)
    }

    /// MTU for pods' devices, bytes.
    pub fn pod_mtu(&mut self) -> u32 {
        self.settle();
        self.mtu.pod
    }

    /// Whether the routes of an endpoint are in the kernel: `None` for not yet, or for an endpoint that is not known.
    pub fn is_programmed(&self, id: &str) -> Option<Result<(), KernelError>> {
        let endpoint = self.endpoints.get(id)?;
        for address in &endpoint.addresses {
            if let Some(error) = self.claim_lost(id, *address) {
                return Some(Err(error));
            }
            let key = self.placed.get(&(RouteClass::Local, IpNet::from(*address)))?;
            if let Some(error) = self.route_error(key) {
                return Some(Err(error));
            }
            if !self.is_in_place(key) {
                return None;
            }
        }
        Some(Ok(()))
    }

    /// Why the endpoint does not have the route to one of its addresses, if another one has it.
    pub(crate) fn claim_lost(&self, id: &str, address: IpAddr) -> Option<KernelError> {
        let holder = self.claims.get(&address)?.first()?;
        (holder != id).then(|| KernelError::Foreign {
            what: format!("the route to {address} of endpoint {holder}"),
        })
    }

    /// Why a wanted route is not in the kernel.
    pub(crate) fn route_error(&self, key: &RouteKey) -> Option<KernelError> {
        if let Some(error) = self.routes.failed().get(key) {
            return Some(error.clone());
        }
        let foreign = self.in_the_way(key)?;
        let (net, metric, protocol) = (key.destination, key.metric, foreign.protocol);
        Some(KernelError::Foreign {
            what: format!("a route to {net} with metric {metric} and protocol {protocol}"),
        })
    }

    /// Another's route in the place of a wanted one. One that leads to the same place is as good as ours.
    pub(crate) fn in_the_way(&self, key: &RouteKey) -> Option<&Route> {
        let wanted = self.routes.wanted(key)?;
        self.view
            .foreign
            .get(key)
            .filter(|foreign| foreign.target != wanted.target)
    }

    /// Whether a wanted route is in the kernel, by whomever.
    pub(crate) fn is_in_place(&self, key: &RouteKey) -> bool {
        let by_another = || self.view.foreign.contains_key(key) && self.in_the_way(key).is_none();
        self.routes.wanted(key).is_some() && (self.routes.agrees(key) || by_another())
    }

    /// Which part wants the route.
    pub(crate) fn class_of(&self, key: &RouteKey) -> Option<RouteClass> {
        self.wishes.get(key)?.keys().next().copied()
    }

    /// Something that all of BGP's routes depend on changed.
    pub(crate) fn surroundings_changed(&mut self) {
        self.todo.decisions = true;
        self.todo.all_prefixes = true;
    }

    /// Works out what is marked.
    pub(crate) fn settle(&mut self) {
        if std::mem::take(&mut self.todo.decisions) {
            self.decide();
        }
        let some = std::mem::take(&mut self.todo.prefixes);
        let prefixes: Vec<IpNet> = match std::mem::take(&mut self.todo.all_prefixes) {
            true => self.fib.keys().copied().chain(some).collect(),
            false => some.into_iter().collect(),
        };
        for prefix in prefixes {
            let resolved = self
                .fib
                .get(&prefix)
                .map(|wish| self.surroundings().route(prefix, wish));
            let route = match resolved {
                None => {
                    self.unresolved.remove(&prefix);
                    None
                }
                Some(Ok(route)) => {
                    self.unresolved.remove(&prefix);
                    Some(route)
                }
                Some(Err(why)) => {
                    self.unresolved.insert(prefix, why);
                    None
                }
            };
            self.place(RouteClass::Bgp, prefix, route);
        }
    }

    fn decide(&mut self) {
        self.connected = self.view.connected(&self.config);
        let decision = TunnelDecision::make(&self.config, &self.state, &self.view);
        self.mtu = MtuDecision::make(&self.config, &self.state, &self.view, &decision);
        let was_off = self.tunnel_decision.is_off();
        match &decision {
            TunnelDecision::On(tunnel) => self.tunnel.want(self.config.tunnel.clone(), Some(tunnel.clone())),
            TunnelDecision::Off(_) => self.tunnel.want(self.config.tunnel.clone(), None),
            TunnelDecision::Waiting(_) => {}
        }
        self.tunnel_decision = decision;
        let is_off = self.tunnel_decision.is_off();
        if is_off != was_off {
            self.switch.may_retire = false;
            let addresses: Vec<Ipv4Addr> = self.node_addresses.keys().copied().collect();
            addresses
                .into_iter()
                .for_each(|address| self.peers.want(address, (!is_off).then_some(())));
            self.todo.all_prefixes = true;
        }
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            state: &self.state,
            view: &self.view,
            connected: &self.connected,
            tunnel: &self.tunnel_decision,
            tunnel_device: &self.config.tunnel,
            nodes: &self.node_addresses,
        }
    }

    /// A node took an address, or left it.
    fn count_node(&mut self, address: Option<Ipv4Addr>, taken: bool) {
        let Some(address) = address else { return };
        let count = self.node_addresses.entry(address).or_default();
        *count = if taken { *count + 1 } else { count.saturating_sub(1) };
        let present = *count > 0;
        if !present {
            self.node_addresses.remove(&address);
        }
        let wanted = present && !self.tunnel_decision.is_off();
        self.peers.want(address, wanted.then_some(()));
        let prefixes = self.fib_via.get(&IpAddr::V4(address)).into_iter().flatten().copied();
        self.todo.prefixes.extend(prefixes);
    }

    fn place_endpoint_address(&mut self, address: IpAddr) {
        let holder = self.claims.get(&address).and_then(|ids| ids.first());
        let device = holder
            .and_then(|id| self.endpoints.get(id))
            .map(|endpoint| endpoint.device.clone());
        let route = device.map(|device| self.route(IpNet::from(address), RouteTarget::Link { device }));
        self.place(RouteClass::Local, IpNet::from(address), route);
    }

    fn place_block(&mut self, block: IpNet) {
        // A block of one address has no rest to refuse: the blackhole would hide the pod.
        let wanted = self.state.blocks.contains(&block) && block.prefix_len() < block.max_prefix_len();
        let route = wanted.then(|| self.route(block, RouteTarget::Blackhole));
        self.place(RouteClass::Block, block, route);
    }

    fn route(&self, destination: IpNet, target: RouteTarget) -> Route {
        let metric = match destination {
            IpNet::V4(_) => self.state.settings.ipv4_metric,
            IpNet::V6(_) => self.state.settings.ipv6_metric,
        };
        let key = RouteKey {
            table: TABLE_MAIN,
            destination,
            metric,
        };
        Route {
            key,
            target,
            protocol: PROTOCOL_OURS,
            source: None,
        }
    }

    /// Makes `route` the one that a part wants for a destination. Where two parts want one key, the first class has it.
    fn place(&mut self, class: RouteClass, destination: IpNet, route: Option<Route>) {
        let slot = (class, destination);
        let old = match &route {
            Some(route) => self.placed.insert(slot, route.key.clone()),
            None => self.placed.remove(&slot),
        };
        if let Some(old) = old.filter(|old| route.as_ref().is_none_or(|route| route.key != *old))
            && let Some(wishes) = self.wishes.get_mut(&old)
        {
            wishes.remove(&class);
            let next = wishes.values().next().cloned();
            if wishes.is_empty() {
                self.wishes.remove(&old);
            }
            self.routes.want(old, next);
        }
        if let Some(route) = route {
            let key = route.key.clone();
            let family = IpFamily::of(&destination.addr());
            let wishes = self.wishes.entry(key.clone()).or_default();
            wishes.insert(class, route);
            self.routes.want(key, wishes.values().next().cloned());
            let forwarding = Sysctl::forwarding(family, true);
            // A node that has a route of ours forwards packets of that family.
            self.sysctls.want(forwarding.path, Some(forwarding.value));
        }
    }

    /// Wants a pod's device up and set, or nothing any more.
    fn want_device(&mut self, device: &IfName) {
        let users: Vec<&LocalEndpoint> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.device == *device)
            .collect();
        let families: BTreeSet<IpFamily> = users
            .iter()
            .flat_map(|endpoint| endpoint.addresses.iter().map(IpFamily::of))
            .collect();
        self.links.want(device.clone(), (!users.is_empty()).then_some(true));
        for family in IpFamily::BOTH {
            for sysctl in device_sysctls(device, family) {
                let wanted = families.contains(&family);
                if !wanted {
                    self.sysctls.saw(sysctl.path.clone(), None);
                }
                let is_loose = self.sources.contains(device) && sysctl.path.ends_with("/rp_filter");
                let value = if is_loose { UNCHECKED.to_owned() } else { sysctl.value };
                self.sysctls.want(sysctl.path, wanted.then_some(value));
            }
        }
    }

    /// Sysctls are written before routes. Routes that were there when we first looked prove that an earlier run of the agent
    /// wrote the sysctls, so that a restart changes nothing.
    pub(crate) fn trust_sysctls_of(&mut self, endpoint: &LocalEndpoint) {
        let there = |address: &IpAddr| {
            let key = self.placed.get(&(RouteClass::Local, IpNet::from(*address)));
            key.is_some_and(|key| self.routes.agrees(key))
        };
        if endpoint.addresses.iter().all(there) {
            self.sysctls_are_set(endpoint);
        }
    }

    fn sysctls_are_set(&mut self, endpoint: &LocalEndpoint) {
        let families: BTreeSet<IpFamily> = endpoint.addresses.iter().map(IpFamily::of).collect();
        let sysctls = families
            .into_iter()
            .flat_map(|family| device_sysctls(&endpoint.device, family));
        sysctls.for_each(|sysctl| self.sysctls.saw(sysctl.path, Some(sysctl.value)));
    }
}

/// `rp_filter` of a device whose packets may have sources that no route leads to. Not 2: on a device without an address the
/// kernel treats that as 1 (`__fib_validate_source`). It takes the larger one of the device's and `all`, which is 0 by default.
const UNCHECKED: &str = "0";

/// What the host side of a pod needs, as upstream sets it: it answers ARP and ND for everything at once, forwards, and takes
/// only packets that could come from there.
pub(crate) fn device_sysctls(device: &IfName, family: IpFamily) -> Vec<Sysctl> {
    let (folder, settings): (&str, &[(&str, &str)]) = match family {
        IpFamily::V4 => (
            "ipv4",
            &[
                ("conf/{}/route_localnet", "1"),
                ("neigh/{}/proxy_delay", "0"),
                ("conf/{}/proxy_arp", "1"),
                ("conf/{}/forwarding", "1"),
                ("conf/{}/rp_filter", "1"),
            ],
        ),
        IpFamily::V6 => (
            "ipv6",
            &[
                ("conf/{}/disable_ipv6", "0"),
                ("conf/{}/accept_dad", "0"),
                ("conf/{}/accept_ra", "0"),
                ("conf/{}/proxy_ndp", "1"),
                ("conf/{}/forwarding", "1"),
            ],
        ),
    };
    let sysctl = |(path, value): &(&str, &str)| Sysctl {
        path: format!("{folder}/{}", path.replace("{}", &device.0)),
        value: (*value).to_owned(),
    };
    settings.iter().map(sysctl).collect()
}
