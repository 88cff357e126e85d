//! What wakes the loop.

use std::sync::Arc;

use api::resource::WorkloadEndpoint;
use dataplane::LocalEndpoint;
use datastore::SyncEvent;
use kernel::KernelEvent;
use kernel::nft::{NftError, NftEvent, Rules};
use linux::conntrack::Flow;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::cut;
use crate::cut::judge::Judged;
use crate::flows::Question;
use crate::packet_filter::Counted;
use crate::policy_view::PolicyView;
use crate::status::DataplaneReport;

/// Everything that can wake the loop.
pub enum Event {
    /// The datastore's watch, and the reader's turn, which ends when the event has been taken: so a large datastore is read no faster
    /// than it is understood.
    Sync(SyncEvent, OwnedSemaphorePermit),
    /// The kernel changed, by us or by others.
    Kernel(KernelEvent),
    /// Others changed nf_tables.
    Filter(NftEvent),
    /// BGP's wishes.
    Fib(Vec<bgp::FibChange>),
    /// BGP has heard from its peers: stale routes may go.
    BgpConverged,
    /// The journal was read, and its endpoints were handed over.
    EndpointsLoaded {
        /// All of it could be read: interfaces of forgotten pods may go.
        all: bool,
    },
    /// A pod came or went; answered when the kernel agrees.
    Endpoint {
        /// Journal id.
        id: String,
        /// Its device and addresses, and what it is to policy; `None`: it went.
        endpoint: Option<Box<(LocalEndpoint, WorkloadEndpoint)>>,
        /// Told when its routes and its policy are in the kernel, or why they cannot be.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// A pod is being made: its policy can be prepared while its addresses are not certain yet. `Endpoint` follows.
    Announced {
        /// Journal id.
        id: String,
        /// Its device, and what it is to policy.
        endpoint: Box<(LocalEndpoint, WorkloadEndpoint)>,
    },
    /// Somebody wants to know.
    Report(oneshot::Sender<DataplaneReport>),
    /// Somebody wants to see policy, with counters.
    Policy(oneshot::Sender<PolicyView>),
    /// Flows of pods that policy says something else about; answered with what is to happen to them.
    Flows(Vec<Flow>, Arc<cut::Devices>, oneshot::Sender<Judged>),
    /// What staged policies would have decided about a recorded packet is to be found out.
    Rehearse(Box<Question>),
    /// So many flows were cut.
    FlowsCut {
        /// Policy forbids them.
        forbidden: usize,
        /// Their pods are gone.
        gone: usize,
    },
    /// Somebody wants to know what the rules have counted.
    Counted(oneshot::Sender<Result<Counted, String>>),
    /// The kernel's rules have been read for those who wanted to know.
    Rules(Result<Rules, NftError>),
    /// The datastore has had its time to be read.
    DatastoreIsLate,
    /// Time to try failed operations again.
    Retry,
    /// Time to move packets into a new tunnel, or to give up an old one.
    Switch,
}
