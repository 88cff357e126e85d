//! The agent's loop: datastore, kernel, BGP and CNI come in as events; plans go out to the kernel.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use calc::{Graph, NodeChange};
use dataplane::{Cleanup, Dataplane};
use datastore::SyncEvent;
use kernel::{IfName, Kernel, KernelError, KernelEvent, Op};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster_routes::ClusterRoutes;
use crate::config::Work;
use crate::cut;
use crate::last_known::Picture;
use crate::packet_filter::PacketFilter;
use crate::speaker;
use crate::status::{DataplaneReport, SyncState};
use curious::Curious;
pub use event::Event;
use recall::Recall;
use refused::Refused;
use routing::Bgp;

mod curious;
mod event;
mod recall;
mod refused;
mod routing;

/// What other tasks of the agent follow of the loop's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The desired state of the node.
    pub state: calc::NodeState,
    /// MTU for pods.
    pub pod_mtu: u32,
    /// The datastore has been read.
    pub synced: bool,
    /// Addresses or links that are not pods' changed: look again at which address is ours. Counts.
    pub address_changes: u64,
}

/// The loop and what it owns.
pub struct Loop<K> {
    graph: Graph,
    dataplane: Dataplane,
    filter: PacketFilter,
    kernel: K,
    tunnel: IfName,
    work: Work,
    /// Routes to other nodes' blocks, where BGP does not tell them.
    cluster: ClusterRoutes,
    bgp: Bgp,
    facts: watch::Sender<Facts>,
    /// For events that the loop sends to itself, later.
    myself: mpsc::UnboundedSender<Event>,
    /// Hears whose flows to look at.
    cutter: mpsc::UnboundedSender<cut::Work>,
    waiting: HashMap<String, Vec<Waiter>>,
    leaving: Vec<Waiter>,
    /// Who wants to know what the kernel's rules have counted.
    curious: Curious,
    /// Whom the reading of the rules is for that is going on.
    reading: Option<Curious>,
    switch_due: bool,
    sync: SyncState,
    synced: bool,
    recall: Recall,
    observe: bool,
    applied: Applied,
    /// What the log has been told of failed operations.
    refused: Refused,
}

/// Whom the loop tells what.
pub struct Listeners {
    /// BGP's configuration.
    pub bgp: mpsc::UnboundedSender<speaker::Command>,
    /// What others follow.
    pub facts: watch::Sender<Facts>,
    /// The loop itself, later.
    pub myself: mpsc::UnboundedSender<Event>,
    /// Whose flows to look at.
    pub cutter: mpsc::UnboundedSender<cut::Work>,
}

type Waiter = oneshot::Sender<Result<(), String>>;

/// How long after a pool's mode changed packets take the new way: by then every node is ready to receive them.
/// A watch delivers in milliseconds; a node whose watch is broken for longer loses the packets in between.
const SWITCH_AFTER: Duration = Duration::from_secs(2);

/// What the loop counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Applied {
    /// Operations that the kernel accepted.
    pub done: u64,
    /// Operations that it refused.
    pub failed: u64,
    /// Full readings of the kernel.
    pub observations: u64,
    /// Updates from the datastore.
    pub updates: u64,
}

impl<K: Kernel> Loop<K> {
    /// A loop over these parts.
    pub fn new(
        graph: Graph,
        dataplane: Dataplane,
        filter: PacketFilter,
        kernel: K,
        tunnel: IfName,
        listeners: Listeners,
    ) -> Self {
        let Listeners {
            bgp,
            facts,
            myself,
            cutter,
        } = listeners;
        let mut dataplane = dataplane;
        dataplane.hold_switches();
        Self {
            graph,
            dataplane,
            filter,
            kernel,
            tunnel,
            work: Work::WithBgp,
            cluster: ClusterRoutes::new(""),
            bgp: Bgp {
                speaker: bgp,
                config: None,
                borrowed: BTreeSet::new(),
                changed: false,
            },
            facts,
            myself,
            cutter,
            waiting: HashMap::new(),
            leaving: Vec::new(),
            curious: Curious::default(),
            reading: None,
            switch_due: false,
            sync: SyncState::Connecting,
            synced: false,
            recall: Recall::default(),
            observe: true,
            applied: Applied::default(),
            refused: Refused::default(),
        }
    }

    /// Says what there is to do beside enforcing policy.
    pub fn does(&mut self, node: &str, work: Work) {
        self.work = work;
        self.cluster = ClusterRoutes::new(node);
    }

    /// Says what the last agent knew. It is used when the datastore cannot be read at the start.
    pub fn remember(&mut self, resources: Picture) {
        self.recall.resources = resources;
    }

    /// Runs until every sender of events is gone.
    pub async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        self.settle().await;
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, 1024).await > 0 {
            for event in batch.drain(..) {
                self.take(event);
            }
            self.settle().await;
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Sync(SyncEvent::Updates(updates), _turn) => {
                self.applied.updates += updates.len() as u64;
                for update in updates {
                    self.recall.resources.remove(&update.key);
                    if self.work == Work::WithoutBgp {
                        self.cluster.apply(&update);
                    }
                    match PacketFilter::concerns(update.key.kind) {
                        true => self.filter.apply(update),
                        false => self.graph.apply(update),
                    }
                }
            }
            Event::Sync(SyncEvent::InSync, _turn) => {
                self.forget_what_is_gone();
                self.filter.in_sync();
                linux::memory::give_back();
                self.synced = true;
                self.sync = SyncState::InSync;
            }
            Event::Sync(SyncEvent::Disconnected(error), _turn) => {
                let now = SyncState::Disconnected(error.clone());
                // Said once, not at each attempt.
                if self.sync != now {
                    tracing::warn!(%error, "datastore: disconnected; what is programmed stays");
                }
                self.sync = now;
                self.recall();
            }
            Event::DatastoreIsLate => self.recall(),
            Event::Kernel(KernelEvent::Resync) => self.observe = true,
            Event::Kernel(event) => {
                // A pod's device never has the node's address, and pods come and go all the time.
                let device = match &event {
                    KernelEvent::Address(address, _) => Some(&address.device),
                    KernelEvent::Link(link) => Some(&link.name),
                    _ => None,
                };
                if device.is_some_and(|device| !self.dataplane.serves_a_pod(device)) {
                    self.facts.send_modify(|facts| facts.address_changes += 1);
                }
                let dataplane = &self.dataplane;
                self.filter
                    .kernel_event(&event, |device| dataplane.is_pod_device(device));
                self.dataplane.event(event);
            }
            Event::Filter(event) => self.filter.event(event),
            Event::Fib(changes) => changes.into_iter().for_each(|change| self.dataplane.fib(change)),
            Event::BgpConverged => self.dataplane.allow_cleanup(Cleanup::Bgp),
            Event::EndpointsLoaded { all } => {
                self.filter.endpoints_loaded();
                if all {
                    self.dataplane.allow_cleanup(Cleanup::Endpoints);
                }
            }
            Event::Endpoint { id, endpoint, done } => {
                let waiting = self.waiting.entry(id.clone()).or_default();
                // They have waited long enough.
                waiting.retain(|waiter| !waiter.is_closed());
                match endpoint.is_some() {
                    true => waiting.push(done),
                    false => {
                        let gone = |waiter: Waiter| drop(waiter.send(Err("it was taken away meanwhile".into())));
                        self.waiting.remove(&id).into_iter().flatten().for_each(gone);
                        self.leaving.push(done);
                    }
                }
                let (local, resource) = match endpoint.map(|both| *both) {
                    Some((local, resource)) => (Some(local), Some(resource)),
                    None => (None, None),
                };
                self.filter.endpoint(&id, local.as_ref().zip(resource));
                if self.work != Work::PolicyOnly {
                    self.dataplane.endpoint(id, local);
                }
            }
            Event::Announced { id, endpoint } => {
                let (local, resource) = *endpoint;
                self.filter.endpoint(&id, Some((&local, resource)));
            }
            Event::Report(reply) => {
                let _ = reply.send(self.report());
            }
            Event::Policy(reply) => self.curious.viewers.push(reply),
            Event::Flows(flows, devices, reply) => drop(reply.send(self.filter.judge(flows, &devices))),
            Event::Rehearse(question) => self.filter.rehearse(&question),
            Event::FlowsCut { forbidden, gone } => self.filter.flows_cut(forbidden, gone),
            Event::Counted(reply) => self.curious.counting.push(reply),
            Event::Rules(rules) => self.answer_curious(rules),
            Event::Retry => {
                self.dataplane.retry();
                self.filter.retry();
            }
            Event::Switch => {
                self.switch_due = false;
                self.dataplane.switch();
            }
        }
    }

    /// Brings the kernel to what is wanted, then tells those who wait for it.
    async fn settle(&mut self) {
        if self.observe {
            self.observe_kernel().await;
        }
        self.flush_graph();
        // A pod's policy comes before its routes.
        self.filter.settle().await;
        self.dataplane.granted_sources(self.filter.granted_sources());
        if let Some(limits) = self.filter.take_bandwidths() {
            self.dataplane.bandwidths(&limits);
        }
        self.route_without_bgp();
        // A plan can open the way for another (a route after its device); it ends when nothing is left that could work.
        loop {
            let mut ops = self.dataplane.plan();
            // The rest is another plugin's business.
            ops.retain(|op| self.work != Work::PolicyOnly || matches!(op, Op::PutShaper(..) | Op::RemoveShaper(_)));
            if ops.is_empty() {
                break;
            }
            let results = self.kernel.apply(&ops).await;
            let mut repaired = Vec::new();
            for (op, result) in ops.iter().zip(results) {
                repaired.extend(self.dataplane.repairs(op).filter(|_| result.is_ok()));
                self.record(op, result);
            }
            log_repairs(&repaired);
            if self.observe {
                self.observe_kernel().await;
            }
        }
        if !self.dataplane.has_failures() {
            self.refused.all_is_well();
        }
        self.answer_waiting();
        let flows = self.filter.flows_to_cut();
        if !flows.is_empty() {
            let _ = self.cutter.send(flows);
        }
        self.read_rules();
        self.schedule_switch();
        self.configure_bgp();
        let (pod_mtu, synced) = (self.dataplane.pod_mtu(), self.synced);
        self.facts.send_if_modified(|facts| {
            let changed = facts.pod_mtu != pod_mtu || facts.synced != synced;
            (facts.pod_mtu, facts.synced) = (pod_mtu, synced);
            changed
        });
    }

    async fn observe_kernel(&mut self) {
        let started = Instant::now();
        match self.kernel.observe(&self.tunnel).await {
            Ok(seen) => {
                self.observe = false;
                self.applied.observations += 1;
                tracing::debug!(links = seen.links.len(), routes = seen.routes.len(), took = ?started.elapsed(), "kernel observed");
                let dataplane = &self.dataplane;
                self.filter.observed(&seen, |device| dataplane.is_pod_device(device));
                self.dataplane.observed(seen);
            }
            Err(error) => tracing::error!(%error, "cannot read the kernel's state"),
        }
    }

    fn flush_graph(&mut self) {
        let changes = self.graph.flush();
        if !changes.is_empty() {
            let state = self.graph.state().clone();
            self.filter.node(&state);
            self.facts.send_modify(|facts| facts.state = state);
        }
        for change in changes {
            match change {
                NodeChange::Bgp(config) => (self.bgp.config, self.bgp.changed) = (config, true),
                // The tunnel, blocks and sysctls are another plugin's business.
                _ if self.work == Work::PolicyOnly => {}
                change => self.dataplane.set(change),
            }
        }
        if self.synced {
            self.dataplane.allow_cleanup(Cleanup::Datastore);
        }
    }

    fn schedule_switch(&mut self) {
        if self.dataplane.wants_switch() && !std::mem::replace(&mut self.switch_due, true) {
            let myself = self.myself.clone();
            tokio::spawn(async move {
                tokio::time::sleep(SWITCH_AFTER).await;
                let _ = myself.send(Event::Switch);
            });
        }
    }

    fn record(&mut self, op: &Op, result: Result<(), KernelError>) {
        match &result {
            Ok(()) => {
                self.applied.done += 1;
                self.refused.done(op);
                tracing::debug!(?op, "done");
            }
            Err(error) => {
                self.applied.failed += 1;
                self.observe |= matches!(error, KernelError::Broken(_));
                match self.refused.failed(op, error) {
                    true => tracing::warn!(?op, %error, "the kernel did not take an operation; trying again"),
                    false => tracing::debug!(?op, %error, "the kernel did not take an operation"),
                }
            }
        }
        self.dataplane.done(op, result);
    }

    fn answer_waiting(&mut self) {
        self.leaving.drain(..).for_each(|waiter| drop(waiter.send(Ok(()))));
        let (dataplane, filter, work) = (&self.dataplane, &self.filter, self.work);
        self.waiting.retain(|id, waiters| {
            let routed = match work {
                Work::PolicyOnly => Some(Ok(())),
                Work::WithBgp | Work::WithoutBgp => dataplane.is_programmed(id),
            };
            let (Some(routed), Some(enforced)) = (routed, filter.is_enforced(id)) else {
                return true;
            };
            let outcome = routed.map_err(|error| error.to_string()).and(enforced);
            waiters.drain(..).for_each(|waiter| drop(waiter.send(outcome.clone())));
            false
        });
    }

    fn report(&self) -> DataplaneReport {
        DataplaneReport {
            sync: self.sync.clone(),
            synced: self.synced,
            recalled: self.recall.used && !self.synced,
            dataplane: self.dataplane.status(),
            filter: self.filter.report(),
            problems: self.graph.problems().iter().map(ToString::to_string).collect(),
            applied: self.applied,
            work: self.work,
            state: self.graph.state().clone(),
        }
    }
}

/// Says what others had removed or changed and is as it should be again. A link that flaps takes thousands of routes along.
fn log_repairs(repaired: &[String]) {
    const NAMED: usize = 8;
    for what in repaired.iter().take(NAMED) {
        tracing::info!(what, "repaired drift");
    }
    if let Some(more) = repaired.len().checked_sub(NAMED).filter(|more| *more > 0) {
        tracing::info!(more, "repaired drift");
    }
}

#[cfg(test)]
mod tests;
