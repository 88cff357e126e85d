//! The CNI server's real surroundings: IPAM, the kernel, the agent's loop.

use std::sync::Arc;
use std::time::Duration;

use datastore::SharedStore;
use ipam::Ipam;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use super::ipam_allocator::{IpamAllocator, NodeLabels};
use super::linux_pods::LinuxPods;
use super::loop_dataplane::{LoopDataplane, hand_over};
use super::ports::Readiness;
use super::{CniServer, Lost, Naming, Parts, Settings, Tell, socket};
use crate::config::Config;
use crate::run::{Event, Facts};

/// How long to wait before trying again to listen or to read the journal.
const PAUSE: Duration = Duration::from_secs(1);

/// What the server needs from the rest of the agent.
pub struct Deps {
    /// The agent's configuration.
    pub config: Config,
    /// Where WorkloadEndpoints are written.
    pub store: SharedStore,
    /// Hands out addresses.
    pub ipam: Ipam,
    /// The agent's loop.
    pub events: mpsc::UnboundedSender<Event>,
    /// What the loop knows.
    pub facts: watch::Receiver<Facts>,
    /// What the datastore may have lost of this node's pods.
    pub lost: mpsc::UnboundedReceiver<Lost>,
    /// Says in the node's status what is wrong with pods.
    pub problems: Tell,
    /// True once the agent is told to stop; also if the sender is gone.
    pub stop: watch::Receiver<bool>,
}

/// Where an agent's journal is.
pub fn journal(config: &Config) -> std::path::PathBuf {
    config.state_dir.join("cni")
}

/// Serves container runtimes until the agent is told to stop, then lets what is under way come to its end: `cni.sock` in the
/// run directory, the journal under `cni` in the state directory. Hands the journal's endpoints to the loop, then says through `ready` whether it serves, or why not yet.
pub async fn serve(deps: Deps, ready: impl Fn(Result<(), String>) + Send + Sync) {
    let Deps {
        config,
        store,
        ipam,
        events,
        facts,
        lost,
        problems,
        stop,
    } = deps;
    let path = config.run_dir.join("cni.sock");
    let state_dir = journal(&config);
    let settings = Settings {
        naming: Naming {
            node: config.node_name.clone(),
            prefix: config.interface_prefix,
        },
        ..Settings::new(config.node_name.clone(), state_dir)
    };
    let (say, readiness) = watch::channel(readiness(&facts.borrow()));
    let labels = NodeLabels::new(store.clone(), config.node_name.clone());
    let parts = Parts {
        allocator: Arc::new(IpamAllocator {
            ipam,
            node: config.node_name,
            labels: labels.clone(),
        }),
        pods: Arc::new(LinuxPods::default()),
        dataplane: Arc::new(LoopDataplane { events: events.clone() }),
        store: store.clone(),
        readiness,
        problems,
    };
    let server = CniServer::new(settings, parts);
    let start = async {
        let listener = listen(&path, &ready).await;
        let all = recover(&server, &events, &ready).await;
        ready(Ok(()));
        tracing::info!(socket = %path.display(), "cni: serving");
        let told = async move { drop(stop.clone().wait_for(|stop| *stop).await) };
        tokio::select! {
            () = server.serve(listener, told) => {}
            () = keep(&server, &events, all, lost) => {}
        }
    };
    tokio::select! {
        () = start => {}
        () = async { futures::join!(follow_readiness(facts, say), labels.follow()); } => {}
    }
}

/// Listens, as soon as nobody else does any more: the agent that this one replaces may still be on its way out.
async fn listen(path: &std::path::Path, ready: &(impl Fn(Result<(), String>) + Sync)) -> UnixListener {
    loop {
        match socket::bind(path) {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cni: cannot listen; trying again");
                ready(Err(format!("cannot listen on {}: {error}", path.display())));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Hands the journal's endpoints to the loop. Answers whether it has all of them: a record that cannot be read may be a live
/// pod's.
async fn recover(
    server: &CniServer,
    events: &mpsc::UnboundedSender<Event>,
    ready: &(impl Fn(Result<(), String>) + Sync),
) -> bool {
    let recovered = loop {
        match server.recover().await {
            Ok(recovered) => break recovered,
            Err(error) => {
                tracing::error!(%error, "cni: cannot read the journal; trying again");
                ready(Err(format!("cannot read the journal: {error}")));
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    hand_over(recovered.endpoints, events);
    recovered.damaged == 0
}

/// Takes over what other plugins attached, then lets the loop sweep and enforce: it knows all pods now. Then sees to what the
/// datastore loses. Never ends.
async fn keep(
    server: &CniServer,
    events: &mpsc::UnboundedSender<Event>,
    all: bool,
    lost: mpsc::UnboundedReceiver<Lost>,
) {
    let program = |id, endpoint| hand_over(vec![(id, endpoint)], events);
    let done = || drop(events.send(Event::EndpointsLoaded { all }));
    server.keep_endpoints(lost, program, done).await;
}

async fn follow_readiness(mut facts: watch::Receiver<Facts>, say: watch::Sender<Readiness>) {
    loop {
        let now = readiness(&facts.borrow_and_update());
        say.send_if_modified(|said| {
            let changed = *said != now;
            *said = now;
            changed
        });
        if facts.changed().await.is_err() {
            say.send_replace(Readiness::Waiting("the agent is stopping".into()));
            return;
        }
    }
}

/// ADD needs the datastore (pools, blocks) and a registered node (others must find the way to its blocks).
fn readiness(facts: &Facts) -> Readiness {
    if !facts.synced {
        return Readiness::Waiting("the datastore has not been read yet".into());
    }
    if facts.state.this_node.is_none() {
        return Readiness::Waiting("this node is not registered in the datastore yet".into());
    }
    Readiness::Ready { pod_mtu: facts.pod_mtu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_waits_for_the_datastore_and_for_the_registration() {
        let mut facts = Facts::default();
        assert!(matches!(readiness(&facts), Readiness::Waiting(why) if why.contains("datastore has not been read")));
        facts.synced = true;
        assert!(matches!(readiness(&facts), Readiness::Waiting(why) if why.contains("not registered")));
        facts.state.this_node = Some(calc::ThisNode::default());
        facts.pod_mtu = 1480;
        assert_eq!(readiness(&facts), Readiness::Ready { pod_mtu: 1480 });
    }
}
