//! Start-up and shutdown, in order: a table of contents of the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calc::{Graph, GraphConfig};
use dataplane::Dataplane;
use datastore::{Scope, SharedStore, SyncEvent, Syncer};
use futures::{FutureExt, StreamExt};
use ipam::Ipam;
use jiff::Timestamp;
use kernel::{IfName, Kernel, PROTOCOL_OURS};
use linux::LiveKernel;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::cni_server::{self, Deps};
use crate::config::Config;
use crate::http::{self, Sources};
use crate::register::OwnAddresses;
use crate::run::{Event, Facts, Loop};
use crate::status::{Identity, ProbeSummary};
use crate::{AgentError, Options, membership, speaker};

/// The IPIP device.
const TUNNEL: &str = "tunl0";
/// How often operations that failed are tried again without any other cause.
const RETRY: Duration = Duration::from_secs(10);

/// Runs an agent until it is told to stop (SIGTERM, SIGINT). What it programmed stays in the kernel.
///
/// `open` opens the datastore; it is called inside the agent's runtime and need not reach anything yet.
pub fn start(options: &Options, open: impl FnOnce() -> Result<SharedStore, String>) -> Result<(), AgentError> {
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let config = Config::from_options(options, &hostname)?;
    // One thread: the agent waits more than it works.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::io("starting the runtime"))?;
    let outcome = runtime.block_on(async {
        let store = open().map_err(AgentError::Connect)?;
        serve(config, store).await
    });
    // Readers of sockets and files may still wait; the process ends now.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, store: SharedStore) -> Result<(), AgentError> {
    let mut stop = stop_signals()?;
    make_directories(&config)?;
    let tunnel = IfName::from(TUNNEL);

    // What the kernel can do and already has.
    let probe = linux::ipip::probe();
    let flavour = config.ipip.or(probe.chosen);
    let summary = ProbeSummary {
        flavour: flavour.map_or("none".into(), |flavour| format!("{flavour:?}").to_lowercase()),
        why: if config.ipip.is_some() { "forced by MARGAY_IPIP".into() } else { probe.why.clone() },
    };
    tracing::info!(flavour = summary.flavour, why = summary.why, "IPIP probed");
    let mut kernel = LiveKernel::open()?;
    let kernel_events = kernel.events()?;
    let seen = kernel.observe(&tunnel).await?;
    let restarted = seen.routes.values().any(|route| route.protocol == PROTOCOL_OURS);
    tracing::info!(node = config.node_name, version = env!("CARGO_PKG_VERSION"), restarted, "agent starts");

    // The loops.
    let (events, inbox) = mpsc::unbounded_channel();
    let (bgp, bgp_commands) = mpsc::unbounded_channel();
    let (facts_out, facts) = watch::channel(Facts::default());
    let graph = Graph::with_config(GraphConfig { node: config.node_name.clone(), router_id: config.router_id });
    let dataplane = Dataplane::new(dataplane::Config {
        node: config.node_name.clone(),
        interface_prefix: config.interface_prefix.clone(),
        tunnel: tunnel.clone(),
        ipip_flavour: flavour,
    });
    tokio::spawn(Loop::new(graph, dataplane, kernel, tunnel.clone(), bgp.clone(), facts_out, events.clone()).run(inbox));
    tokio::spawn(speaker::run(bgp_commands, events.clone(), restarted));
    tokio::spawn(feed(kernel_events.map(Event::Kernel), events.clone()));
    tokio::spawn(retry(events.clone()));

    // From here on it can be asked why it is not ready.
    let identity = Arc::new(Mutex::new(Identity {
        node: config.node_name.clone(),
        started: Timestamp::now(),
        addresses: Err("not looked for yet".into()),
        probe: summary,
        registered: Err("not registered yet".into()),
        cni: Err("not started yet".into()),
    }));
    let sources = Sources { events: events.clone(), bgp: bgp.clone(), identity: identity.clone(), tunnel };
    tokio::spawn(http::serve_unix(&http::socket(&config.run_dir), sources.clone())?);
    if let Some(address) = config.health {
        tokio::spawn(http::serve_tcp(address, sources).await?);
    }

    // The datastore, its cache for IPAM, and this node's entry in it.
    let ipam = Ipam::new(store.clone());
    tokio::spawn(follow(store.clone(), ipam.clone(), events.clone()));
    let membership = membership::keep(config.clone(), store.clone(), ipam.clone(), facts.clone(), identity.clone());
    let mut membership = tokio::spawn(membership);

    // Pods: what the journal knows is programmed before anything is swept.
    let deps = Deps { config, store, ipam, events, facts };
    let note = identity.clone();
    tokio::spawn(cni_server::serve(deps, move |outcome| set(&note, |identity| identity.cni = outcome)));

    tokio::select! {
        _ = stop.recv() => tracing::info!("told to stop; routes and pods stay as they are"),
        ended = &mut membership => match ended {
            Ok(Err(error)) => return Err(error),
            Ok(Ok(())) => {}
            Err(error) => tracing::error!(%error, "the membership task failed"),
        },
    }
    Ok(())
}

/// Changes what start-up knows.
pub(crate) fn set(identity: &Mutex<Identity>, change: impl FnOnce(&mut Identity)) {
    if let Ok(mut identity) = identity.lock() {
        change(&mut identity);
    }
}

/// Records found addresses, or why there are none.
pub(crate) fn found(identity: &Mutex<Identity>, addresses: Result<OwnAddresses, String>) {
    set(identity, |identity| identity.addresses = addresses);
}

fn make_directories(config: &Config) -> Result<(), AgentError> {
    for directory in [&config.run_dir, &config.state_dir] {
        let what = format!("directory {}", directory.display());
        fs::create_dir_all(directory).map_err(AgentError::io(what.clone()))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(AgentError::io(what))?;
    }
    Ok(())
}

/// SIGTERM and SIGINT as one.
fn stop_signals() -> Result<mpsc::Receiver<()>, AgentError> {
    let (send, receive) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(AgentError::io("listening for signals"))?;
        let send = send.clone();
        tokio::spawn(async move {
            signals.recv().await;
            let _ = send.send(()).await;
        });
    }
    Ok(receive)
}

async fn feed(stream: impl futures::Stream<Item = Event>, events: mpsc::UnboundedSender<Event>) {
    futures::pin_mut!(stream);
    while let Some(event) = stream.next().await {
        if events.send(event).is_err() {
            return;
        }
    }
}

async fn retry(events: mpsc::UnboundedSender<Event>) {
    loop {
        tokio::time::sleep(RETRY).await;
        if events.send(Event::Retry).is_err() {
            return;
        }
    }
}

/// The datastore's watch, for ever. IPAM's cache hears of a change before the loop does.
async fn follow(store: SharedStore, ipam: Ipam, events: mpsc::UnboundedSender<Event>) {
    let backoff = |attempt: u32| tokio::time::sleep(wait(attempt)).boxed();
    let mut syncer = Syncer::new(store, vec![Scope::All], backoff);
    while let Some(event) = syncer.next().await {
        if let SyncEvent::Updates(updates) = &event {
            updates.iter().for_each(|update| ipam.note(update));
        }
        if events.send(Event::Sync(event)).is_err() {
            return;
        }
    }
}

/// 50 ms, doubling up to 5 s, spread so that many agents do not come at once.
pub(crate) fn wait(attempt: u32) -> Duration {
    let base = Duration::from_millis(50) * 2u32.saturating_pow(attempt.saturating_sub(1).min(7));
    let base = base.min(Duration::from_secs(5));
    base.mul_f64(rand::random_range(0.75..1.25))
}
