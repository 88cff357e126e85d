//! The dataplane: what it is told, and what that makes it want.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use bgp::{FibChange, FibRoute};
use calc::{NodeChange, NodeState};
use ipnet::IpNet;
use kernel::{IfName, IpipTunnel, Route, RouteKey, Shaper, ShaperKey};

use crate::config::Config;
use crate::decide::{MtuDecision, TunnelDecision, TunnelOff};
use crate::ledger::Ledger;
use crate::resolve::{Surroundings, Unresolved};
use crate::status::RouteClass;
use crate::view::View;
pub(crate) use place::device_sysctls;

mod place;
mod programmed;

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
    pub(crate) shapers: Ledger<ShaperKey, Option<Shaper>>,
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
            shapers: Ledger::new(),
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
}
