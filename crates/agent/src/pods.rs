//! The CNI server's place in the agent: who it works with, when it is ready.

use std::sync::{Arc, Mutex};

use datastore::SharedStore;
use futures::future::{BoxFuture, FutureExt};
use ipam::Ipam;
use kernel::IfName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::AgentError;
use crate::cni_server::adapters::{IpamAllocator, LinuxPods};
use crate::cni_server::{self, CniServer, Dataplane, LocalEndpoint, Parts, Readiness, Settings};
use crate::config::Config;
use crate::run::{Event, Facts};
use crate::start::set;
use crate::status::Identity;

/// Starts the server. The task ends after the sender's word, once requests under way are done.
pub fn start(
    config: &Config,
    store: SharedStore,
    ipam: Ipam,
    events: mpsc::UnboundedSender<Event>,
    facts: watch::Receiver<Facts>,
    identity: Arc<Mutex<Identity>>,
) -> Result<(JoinHandle<()>, oneshot::Sender<()>), AgentError> {
    let socket = config.run_dir.join("cni.sock");
    // Bound first: a plugin that comes while the journal is read waits instead of failing.
    let listener = cni_server::serve::bind(&socket).map_err(AgentError::io(format!("socket {}", socket.display())))?;
    let (readiness, ready) = watch::channel(Readiness::Waiting("the agent is starting".into()));
    tokio::spawn(follow_readiness(facts, readiness));
    let mut settings = Settings::new(&config.node_name, config.state_dir.join("cni"));
    settings.naming.prefix = config.interface_prefix.clone();
    let parts = Parts {
        allocator: Arc::new(IpamAllocator::new(ipam, &config.node_name, store.clone())),
        pods: Arc::new(LinuxPods),
        dataplane: Arc::new(LoopHandle(events.clone())),
        store,
        readiness: ready,
    };
    let server = CniServer::new(settings, parts);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        match server.recover().await {
            Ok(recovered) => {
                for (id, endpoint) in recovered.endpoints {
                    let (done, _) = oneshot::channel();
                    let _ = events.send(Event::Endpoint { id, endpoint: Some(endpoint.into()), done });
                }
                let _ = events.send(Event::EndpointsLoaded);
                set(&identity, |identity| identity.cni = Ok(()));
            }
            Err(error) => {
                // Without its journal the server would forget pods: it answers no ADD, and readiness says why.
                set(&identity, |identity| identity.cni = Err(format!("the CNI journal cannot be read: {error}")));
                return;
            }
        }
        server.serve(listener, stopped.map(|_| ())).await;
    });
    Ok((task, stop))
}

/// ADD waits until the datastore was read and the node is registered.
async fn follow_readiness(mut facts: watch::Receiver<Facts>, readiness: watch::Sender<Readiness>) {
    loop {
        let now = {
            let facts = facts.borrow_and_update();
            match (facts.synced, &facts.state.this_node) {
                (false, _) => Readiness::Waiting("the datastore has not been read yet".into()),
                (true, None) => Readiness::Waiting("this node is not registered yet".into()),
                (true, Some(_)) => Readiness::Ready { pod_mtu: facts.pod_mtu },
            }
        };
        readiness.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        if facts.changed().await.is_err() {
            return;
        }
    }
}

/// The agent's loop, as the CNI server sees it.
struct LoopHandle(mpsc::UnboundedSender<Event>);

impl Dataplane for LoopHandle {
    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (done, answer) = oneshot::channel();
            let endpoint = endpoint.map(Into::into);
            let stopping = || "the agent is stopping".to_string();
            self.0.send(Event::Endpoint { id, endpoint, done }).map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        }
        .boxed()
    }
}

impl From<LocalEndpoint> for dataplane::LocalEndpoint {
    fn from(endpoint: LocalEndpoint) -> Self {
        Self { device: IfName(endpoint.device), addresses: endpoint.addresses }
    }
}
