//! A dataplane and its kernel, driven together; every step is watched.

use std::collections::{BTreeMap, BTreeSet};

use bgp::FibChange;
use calc::NodeChange;
use ipnet::IpNet;
use kernel::{IpipFlavour, KernelEvent, Op, PROTOCOL_OURS, Route, RouteKey};

use super::build::shown;
use super::fake::FakeKernel;
use super::oracle::{Inputs, wanted};
use crate::{Cleanup, Config, Dataplane, LocalEndpoint};

pub struct World {
    pub kernel: FakeKernel,
    pub dataplane: Dataplane,
    pub inputs: Inputs,
    /// What was put back since somebody last looked.
    pub repairs: Vec<String>,
    /// Destinations that were wanted and there when things last came to rest.
    at_rest: BTreeSet<IpNet>,
}

impl World {
    /// A machine whose agent has started and knows everything there is: nothing.
    pub fn new() -> Self {
        let mut world = Self::with_kernel(FakeKernel::new());
        world.permit();
        world
    }

    pub fn with_kernel(kernel: FakeKernel) -> Self {
        let mut dataplane = Dataplane::new(Config::new("n1", Some(IpipFlavour::Bpf)));
        dataplane.observed(kernel.observe());
        Self {
            kernel,
            dataplane,
            inputs: Inputs::default(),
            repairs: Vec::new(),
            at_rest: BTreeSet::new(),
        }
    }

    pub fn permit(&mut self) {
        [Cleanup::Datastore, Cleanup::Bgp, Cleanup::Endpoints]
            .into_iter()
            .for_each(|what| self.dataplane.allow_cleanup(what));
    }

    pub fn set(&mut self, change: NodeChange) {
        let state = &mut self.inputs.state;
        match change.clone() {
            NodeChange::Settings(settings) => state.settings = settings,
            NodeChange::ThisNode(this) => state.this_node = this,
            NodeChange::Peer(name, Some(peer)) => drop(state.peers.insert(name, peer)),
            NodeChange::Peer(name, None) => drop(state.peers.remove(&name)),
            NodeChange::Pool(range, Some(pool)) => drop(state.pools.insert(range, pool)),
            NodeChange::Pool(range, None) => drop(state.pools.remove(&range)),
            NodeChange::Block(block, true) => drop(state.blocks.insert(block)),
            NodeChange::Block(block, false) => drop(state.blocks.remove(&block)),
            NodeChange::Bgp(_) | NodeChange::Services(_) => {}
        }
        self.dataplane.set(change);
    }

    pub fn endpoint(&mut self, id: &str, endpoint: Option<LocalEndpoint>) {
        // An address that the endpoint keeps keeps its place in the queue, which the oracle does not model: take it anew.
        self.inputs.endpoints.retain(|(known, _)| known != id);
        self.dataplane.endpoint(id.into(), None);
        if let Some(endpoint) = endpoint {
            self.inputs.endpoints.push((id.into(), endpoint.clone()));
            self.dataplane.endpoint(id.into(), Some(endpoint));
        }
    }

    pub fn fib(&mut self, change: FibChange) {
        match change.route.clone() {
            Some(route) => self.inputs.fib.insert(change.prefix, route),
            None => self.inputs.fib.remove(&change.prefix),
        };
        self.dataplane.fib(change);
    }

    /// Hands the kernel's events to the dataplane.
    pub fn tell(&mut self) {
        while let Some(event) = self.kernel.events.pop_front() {
            if event == KernelEvent::Resync {
                self.dataplane.observed(self.kernel.observe());
            }
            self.dataplane.event(event);
        }
    }

    /// Plans, does and reports until there is nothing to do. Answers what was done.
    pub fn settle(&mut self) -> Vec<Op> {
        let wanted: BTreeSet<IpNet> = self.wanted().into_keys().map(|key| key.destination).collect();
        let kept: BTreeSet<IpNet> = self.at_rest.intersection(&wanted).copied().collect();
        let kept: BTreeSet<IpNet> = kept.intersection(&self.destinations()).copied().collect();
        let mut all = Vec::new();
        for round in 0.. {
            assert!(round < 50, "no rest: {all:?}");
            self.tell();
            let plan = self.dataplane.plan();
            if plan.is_empty() {
                break;
            }
            for op in plan {
                let result = self.kernel.apply(&op);
                self.repairs.extend(self.dataplane.repairs(&op));
                self.dataplane.done(&op, result);
                let lost: Vec<_> = kept.difference(&self.destinations()).copied().collect();
                assert!(lost.is_empty(), "{op:?} loses the way to {lost:?}");
                all.push(op);
            }
        }
        self.at_rest = wanted.intersection(&self.destinations()).copied().collect();
        all
    }

    pub fn wanted(&self) -> BTreeMap<RouteKey, Route> {
        wanted(&self.inputs, &self.kernel, true)
    }

    pub fn ours(&self) -> BTreeMap<RouteKey, Route> {
        let ours = self
            .kernel
            .routes
            .iter()
            .filter(|(_, route)| route.protocol == PROTOCOL_OURS);
        ours.map(|(key, route)| (key.clone(), route.clone())).collect()
    }

    /// The kernel's routes as text.
    pub fn routes(&self) -> Vec<String> {
        self.kernel.routes.values().map(shown).collect()
    }

    fn destinations(&self) -> BTreeSet<IpNet> {
        self.ours().into_keys().map(|key| key.destination).collect()
    }
}
