//! The CNI server: what container runtimes ask for, done in this process.
//!
//! ```text
//!   plugin ──request──> socket ─> add / del / check ──> Batcher ──> Allocator   (addresses, by compare-and-swap)
//!                                   │    │    └───────────────────> Store       (WorkloadEndpoint)
//!                                   │    └────────────────────────> Pods        (veth pair, the pod's routes)
//!                                   │                               Dataplane   (the host's routes)
//!                                   └─ Journal: intent before anything is made, attached after all of it
//! ```
//!
//! What exists on this node is decided by the journal and the kernel. ADD writes its intent first, so whatever a crash
//! interrupts is undone when the agent is back; it answers when the pod's routes are in the kernel. DEL always succeeds:
//! what cannot be done now stays in the journal and is tried again. Nothing is removed because the datastore lacks it.
//!
//! Start in this order: [`socket::bind`] (from now on requests queue up), [`CniServer::recover`], then [`CniServer::serve`].
//! A plugin that finds nobody listening writes its DEL down and tries once more, so with this order none is missed.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cni::journal::{Endpoint, Id, Journal, Phase, Records};
use cni::protocol::{Reply, Request, Verb};
use cni::{CniResult, Code, Error};
use datastore::SharedStore;
use tokio::sync::{Notify, watch};

mod add;
mod adopt;
mod asks;
mod batch;
mod check;
mod del;
mod endpoint;
mod failures;
mod gone;
mod ipam_allocator;
mod known;
mod linux_pods;
pub mod live;
mod locks;
mod loop_dataplane;
mod lost;
mod patience;
pub mod ports;
mod problems;
mod reclaim;
mod recover;
mod restore;
pub mod socket;
mod wep;

pub use endpoint::Naming;
pub use live::{Deps, serve};
pub use lost::{Lost, OwnBlocks};
pub use ports::{
    AllocError, Allocator, Dataplane, Given, HostDevice, LocalEndpoint, PodLink, Pods, Readiness, Want, Wired,
};
pub use problems::Tell;
pub use recover::Recovered;

use batch::Batcher;
use failures::Failures;
use gone::Gone;
use locks::{Held, Locks};
use patience::within;
use problems::Problems;

/// What the server is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name and the prefix of host devices.
    pub naming: Naming,
    /// Directory of the journal.
    pub state_dir: PathBuf,
    /// How long an ADD waits for the agent to become ready before it asks to try again later.
    pub ready_wait: Duration,
    /// How long a DEL waits for the datastore before it leaves the rest for later; three times as long for an ADD.
    pub store_wait: Duration,
    /// How long the kernel may take to agree to a route.
    pub kernel_wait: Duration,
}

impl Settings {
    /// The usual patience for this node and directory.
    pub fn new(node: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            naming: Naming {
                node: node.into(),
                prefix: "cali".into(),
            },
            state_dir: state_dir.into(),
            ready_wait: Duration::from_secs(30),
            store_wait: Duration::from_secs(10),
            kernel_wait: Duration::from_secs(20),
        }
    }
}

/// Those the server works with.
pub struct Parts {
    /// Hands out addresses.
    pub allocator: Arc<dyn Allocator>,
    /// Wires pods.
    pub pods: Arc<dyn Pods>,
    /// Owns the host's routes.
    pub dataplane: Arc<dyn Dataplane>,
    /// Where WorkloadEndpoints are written.
    pub store: SharedStore,
    /// Whether ADD can be served.
    pub readiness: watch::Receiver<Readiness>,
    /// Says in the node's status what is wrong with pods.
    pub problems: Tell,
}

/// The server. Clones share everything.
#[derive(Clone)]
pub struct CniServer {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    parts: Parts,
    batcher: Batcher,
    journal: Journal,
    locks: Arc<Locks>,
    /// Its endpoints; not before [`CniServer::recover`].
    records: OnceLock<Arc<Records>>,
    /// Somebody is about to give young records their files.
    settling: AtomicBool,
    /// The journal's endpoints, by attachment.
    endpoints: Mutex<BTreeMap<Id, Endpoint>>,
    /// What was detached of late.
    gone: Gone,
    /// What was said of late of pods that cannot be attached.
    failures: Failures,
    /// There is something to finish.
    unfinished: Notify,
    problems: Problems,
}

impl CniServer {
    /// A server that has not read its journal yet: call [`CniServer::recover`] before anything else.
    pub fn new(settings: Settings, parts: Parts) -> Self {
        let shared = Shared {
            batcher: Batcher::new(parts.allocator.clone()),
            journal: Journal::new(&settings.state_dir),
            locks: Arc::default(),
            records: OnceLock::new(),
            settling: AtomicBool::new(false),
            endpoints: Mutex::default(),
            gone: Gone::default(),
            failures: Failures::default(),
            unfinished: Notify::new(),
            problems: Problems::new(parts.problems.clone()),
            settings,
            parts,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The endpoints of this node, as the journal has them.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.memory().values().cloned().collect()
    }

    /// Serves one request. Not to be cancelled halfway: what was begun is then finished only after a restart.
    pub async fn handle(&self, request: Request) -> Reply {
        let (verb, id) = (request.verb, Id::new(&request.container_id, &request.ifname));
        let pod = request
            .args
            .pod()
            .map(|(namespace, name)| format!("{namespace}/{name}"));
        let answer = match verb {
            Verb::Add => self.add(request).await.map(Some),
            Verb::Del => self.del(request).await.map(|()| None),
            Verb::Check => self.check(request).await.map(|()| None),
            Verb::Gc => self.gc(request).await.map(|()| None),
            Verb::Status => self.status().map(|()| None),
            // The plugin answers this one itself.
            Verb::Version => Ok(None),
        };
        match answer {
            Ok(result) => {
                self.shared
                    .failures
                    .forget(pod.as_deref().filter(|_| verb == Verb::Add));
                log_success(verb, &id, result.as_ref());
                Reply::Ok(result)
            }
            Err(error) => {
                let code = u32::from(error.code);
                match self.shared.failures.is_news(pod.as_deref(), code, Instant::now()) {
                    true => tracing::warn!(?verb, %id, pod, code, %error, "cni: failed"),
                    false => tracing::debug!(?verb, %id, pod, code, %error, "cni: failed again"),
                }
                Reply::Error(error)
            }
        }
    }

    fn naming(&self) -> &Naming {
        &self.shared.settings.naming
    }

    fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// The journal's endpoints, to be written.
    fn records(&self) -> io::Result<&Arc<Records>> {
        let unread = || io::Error::other("the journal has not been read yet");
        self.shared.records.get().ok_or_else(unread)
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<Id, Endpoint>> {
        // No code that can panic runs while this is locked.
        self.shared.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recorded(&self, id: &Id) -> Option<Endpoint> {
        self.memory().get(id).cloned()
    }

    fn remember(&self, endpoint: &Endpoint) {
        self.shared.gone.forget(&endpoint.id());
        self.memory().insert(endpoint.id(), endpoint.clone());
    }

    /// Whether an endpoint is whole and stays so: nobody detaches it, and no deletion of it is noted.
    fn stays(&self, endpoint: &Endpoint) -> bool {
        endpoint.phase == Phase::Attached && matches!(self.journal().pending(&endpoint.id()), Ok(None))
    }

    /// Forgets an endpoint and a deletion of it: all of it is gone.
    fn forget(&self, id: &Id) -> io::Result<()> {
        self.records()?.forget(id)?;
        self.memory().remove(id);
        self.shared.problems.say(id, None);
        self.journal().forget_pending(id)
    }

    /// Holds a container's attachment; then nobody else works on it.
    async fn hold_attachment(&self, id: &Id) -> Held {
        self.shared.locks.hold(format!("container {}", id.container_id)).await
    }

    /// The same if nobody else works on it now.
    fn try_hold_attachment(&self, id: &Id) -> Option<Held> {
        self.shared.locks.try_hold(format!("container {}", id.container_id))
    }

    /// Holds a host device's name, after the attachment's: two containers of one pod share it.
    async fn hold_device(&self, device: Option<&str>) -> Option<Held> {
        match device {
            Some(device) => Some(self.shared.locks.hold(format!("device {device}")).await),
            None => None,
        }
    }

    /// Tells the dataplane and waits for the kernel, but not for ever.
    async fn program(&self, id: &Id, endpoint: Option<LocalEndpoint>) -> Result<(), String> {
        let wait = self.shared.settings.kernel_wait;
        let programmed = self.shared.parts.dataplane.program(id.to_string(), endpoint);
        match tokio::time::timeout(wait, programmed).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("the dataplane did not answer within {} s", wait.as_secs())),
        }
    }

    async fn held(&self, handle: &str) -> Result<Vec<IpAddr>, Error> {
        let held = self.shared.parts.allocator.held(handle);
        within(self.shared.settings.store_wait, held)
            .await
            .map_err(allocation_error)
    }
}

fn allocation_error(error: AllocError) -> Error {
    let details = error.to_string();
    match error {
        AllocError::TryAgain(_) => Error::new(Code::TryAgain, "no address can be assigned now", details),
        AllocError::Exhausted(_) => Error::new(Code::NoAddress, "no address is left", details),
        AllocError::NoPools(_) => Error::new(Code::NoPool, "no IP pool can be used", details),
        AllocError::Invalid(_) => Error::new(Code::InvalidConfig, "the address cannot be assigned", details),
        AllocError::Refused(_) => Error::new(Code::Datastore, "the datastore refused the allocation", details),
    }
}

fn journal_error(error: io::Error) -> Error {
    Error::new(Code::Io, "cannot write the journal", error.to_string())
}

fn log_success(verb: Verb, id: &Id, result: Option<&CniResult>) {
    match (verb, result) {
        (Verb::Add, Some(result)) => {
            let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
            let device = result.interfaces.first().map(|interface| interface.name.as_str());
            tracing::info!(%id, device, addresses = addresses.join(" "), "cni: attached");
        }
        _ => tracing::debug!(?verb, %id, "cni: done"),
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fakes;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod tests;
