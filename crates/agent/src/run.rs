//! The agent's loop: datastore, kernel, BGP and CNI come in as events; plans go out to the kernel.

use std::collections::HashMap;
use std::time::Instant;

use calc::{Graph, NodeChange};
use dataplane::{Cleanup, Dataplane, LocalEndpoint};
use datastore::SyncEvent;
use kernel::{IfName, Kernel, KernelError, KernelEvent, Op};
use tokio::sync::{mpsc, oneshot, watch};

use crate::speaker;
use crate::status::{DataplaneReport, SyncState};

/// Everything that can wake the loop.
pub enum Event {
    /// The datastore's watch.
    Sync(SyncEvent),
    /// The kernel changed, by us or by others.
    Kernel(KernelEvent),
    /// BGP's wishes.
    Fib(Vec<bgp::FibChange>),
    /// BGP has heard from its peers: stale routes may go.
    BgpConverged,
    /// The journal was read: interfaces of forgotten pods may go.
    EndpointsLoaded,
    /// A pod came or went; answered when the kernel agrees.
    Endpoint {
        /// Journal id.
        id: String,
        /// Its device and addresses; `None`: it went.
        endpoint: Option<LocalEndpoint>,
        /// Told when its routes are in the kernel, or why they cannot be.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Somebody wants to know.
    Report(oneshot::Sender<DataplaneReport>),
    /// Time to try failed operations again.
    Retry,
}

/// What other tasks of the agent follow of the loop's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The desired state of the node.
    pub state: calc::NodeState,
    /// MTU for pods.
    pub pod_mtu: u32,
    /// The datastore has been read.
    pub synced: bool,
    /// Addresses or links changed: look again at which address is ours. Counts.
    pub address_changes: u64,
}

/// The loop and what it owns.
pub struct Loop<K> {
    graph: Graph,
    dataplane: Dataplane,
    kernel: K,
    tunnel: IfName,
    bgp: mpsc::UnboundedSender<speaker::Command>,
    bgp_wanted: Option<bgp::Config>,
    facts: watch::Sender<Facts>,
    waiting: HashMap<String, Vec<oneshot::Sender<Result<(), String>>>>,
    sync: SyncState,
    synced: bool,
    observe: bool,
    applied: Applied,
}

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
    /// A loop over these parts. `bgp` gets the configuration, `facts` what others follow.
    pub fn new(
        graph: Graph,
        dataplane: Dataplane,
        kernel: K,
        tunnel: IfName,
        bgp: mpsc::UnboundedSender<speaker::Command>,
        facts: watch::Sender<Facts>,
    ) -> Self {
        Self {
            graph,
            dataplane,
            kernel,
            tunnel,
            bgp,
            bgp_wanted: None,
            facts,
            waiting: HashMap::new(),
            sync: SyncState::Connecting,
            synced: false,
            observe: true,
            applied: Applied::default(),
        }
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
            Event::Sync(SyncEvent::Updates(updates)) => {
                self.applied.updates += updates.len() as u64;
                updates.into_iter().for_each(|update| self.graph.apply(update));
            }
            Event::Sync(SyncEvent::InSync) => {
                self.synced = true;
                self.sync = SyncState::InSync;
            }
            Event::Sync(SyncEvent::Disconnected(error)) => {
                tracing::warn!(%error, "datastore: disconnected; what is programmed stays");
                self.sync = SyncState::Disconnected(error.to_string());
            }
            Event::Kernel(KernelEvent::Resync) => self.observe = true,
            Event::Kernel(event) => {
                if let KernelEvent::Address(..) | KernelEvent::Link(_) = event {
                    self.facts.send_modify(|facts| facts.address_changes += 1);
                }
                self.dataplane.event(event);
            }
            Event::Fib(changes) => changes.into_iter().for_each(|change| self.dataplane.fib(change)),
            Event::BgpConverged => self.dataplane.allow_cleanup(Cleanup::Bgp),
            Event::EndpointsLoaded => self.dataplane.allow_cleanup(Cleanup::Endpoints),
            Event::Endpoint { id, endpoint, done } => {
                self.dataplane.endpoint(id.clone(), endpoint);
                self.waiting.entry(id).or_default().push(done);
            }
            Event::Report(reply) => {
                let _ = reply.send(self.report());
            }
            Event::Retry => self.dataplane.retry(),
        }
    }

    /// Brings the kernel to what is wanted, then tells those who wait for it.
    async fn settle(&mut self) {
        if self.observe {
            self.observe_kernel().await;
        }
        self.flush_graph();
        // A plan can open the way for another (a route after its device); it ends when nothing is left that could work.
        loop {
            let ops = self.dataplane.plan();
            if ops.is_empty() {
                break;
            }
            let results = self.kernel.apply(&ops).await;
            for (op, result) in ops.iter().zip(results) {
                self.record(op, result);
            }
            if self.observe {
                self.observe_kernel().await;
            }
        }
        self.answer_waiting();
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
                self.dataplane.observed(seen);
            }
            Err(error) => tracing::error!(%error, "cannot read the kernel's state"),
        }
    }

    fn flush_graph(&mut self) {
        let changes = self.graph.flush();
        if !changes.is_empty() {
            let state = self.graph.state().clone();
            self.facts.send_modify(|facts| facts.state = state);
        }
        for change in changes {
            match change {
                NodeChange::Bgp(config) => self.bgp_wanted = config,
                change => self.dataplane.set(change),
            }
        }
        // Both wait until the datastore was read: half a picture would withdraw blocks and remove routes that are ours.
        if self.synced {
            self.dataplane.allow_cleanup(Cleanup::Datastore);
            if let Some(config) = self.bgp_wanted.take() {
                let _ = self.bgp.send(speaker::Command::Config(Box::new(config)));
            }
        }
    }

    fn record(&mut self, op: &Op, result: Result<(), KernelError>) {
        match &result {
            Ok(()) => {
                self.applied.done += 1;
                tracing::debug!(?op, "done");
            }
            Err(error) => {
                self.applied.failed += 1;
                self.observe |= matches!(error, KernelError::Broken(_));
                tracing::warn!(?op, %error, "the kernel did not take an operation");
            }
        }
        self.dataplane.done(op, result);
    }

    fn answer_waiting(&mut self) {
        let dataplane = &self.dataplane;
        self.waiting.retain(|id, waiters| {
            let Some(outcome) = dataplane.is_programmed(id) else { return true };
            let outcome = outcome.map_err(|error| error.to_string());
            waiters.drain(..).for_each(|waiter| drop(waiter.send(outcome.clone())));
            false
        });
    }

    fn report(&self) -> DataplaneReport {
        DataplaneReport {
            sync: self.sync.clone(),
            synced: self.synced,
            dataplane: self.dataplane.status(),
            problems: self.graph.problems().iter().map(ToString::to_string).collect(),
            applied: self.applied,
            state: self.graph.state().clone(),
        }
    }
}
