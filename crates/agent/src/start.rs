//! Start-up and shutdown, in order: a table of contents of the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::LogSeverity;
use calc::{Graph, GraphConfig};
use dataplane::Dataplane;
use datastore::SharedStore;
use futures::StreamExt;
use ipam::Ipam;
use jiff::Timestamp;
use kernel::nft::{NftKernel, TableName};
use kernel::{IfName, Kernel, PROTOCOL_BIRD, PROTOCOL_OURS};
use linux::LiveKernel;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::announce::{Announce, Announcer};
use crate::cni_server::{self, Deps};
use crate::config::{Config, PREFIX, Work};
use crate::flows::Flows;
use crate::http::{self, Sources};
use crate::last_known;
use crate::membership::Membership;
use crate::nft::Nft;
use crate::packet_filter::{LastRun, PacketFilter};
use crate::refusals;
use crate::register::OwnAddresses;
use crate::run::{Event, Facts, Listeners, Loop};
use crate::status::{Identity, ProbeSummary};
use crate::{AgentError, Options, claims, cut, flows, node_status, policy_only, speaker};

mod follow;
mod small;
mod tasks;

use follow::{Readers, follow};
use small::{feed, follow_severity, retry, wait_for_datastore};
use tasks::{Tasks, never_fails};

/// The IPIP device.
pub(crate) const TUNNEL: &str = "tunl0";
/// How long pods that are being attached or detached may take once the agent is told to stop.
const FAREWELL: Duration = Duration::from_secs(6);

/// Runs an agent until it is told to stop (SIGTERM, SIGINT). What it programmed stays in the kernel.
///
/// `open` opens the datastore; it is called inside the agent's runtime and need not reach anything yet. `set_severity` is
/// called whenever `logSeverityScreen` changes what is to be logged, with `None` when nothing asks for anything any more.
/// `announce` is told when pods get a network here, where somebody wants to know.
///
/// # Errors
/// What the operator has to correct, and [`AgentError::Ended`] if a part of the agent failed: then it is best started again.
pub fn start(
    options: &Options,
    open: impl FnOnce() -> Result<SharedStore, String>,
    announce: Option<Arc<dyn Announce>>,
    set_severity: impl Fn(Option<LogSeverity>) + Send + 'static,
) -> Result<(), AgentError> {
    let hostname = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let config = Config::from_options(options, &hostname)?;
    linux::sysctl::are_below(options.proc_sys.clone());
    // One thread: the agent waits more than it works.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::io("starting the runtime"))?;
    let outcome = runtime.block_on(serve(config, open, announce, set_severity));
    // Readers of sockets and files may still wait; the process ends now.
    runtime.shutdown_background();
    outcome
}

/// The agent, within a runtime; the rest as [`start`].
pub(crate) async fn serve(
    config: Config,
    open: impl FnOnce() -> Result<SharedStore, String>,
    announce: Option<Arc<dyn Announce>>,
    set_severity: impl Fn(Option<LogSeverity>) + Send + 'static,
) -> Result<(), AgentError> {
    let mut stop = stop_signals()?;
    make_directories(&config)?;
    let tunnel = IfName::from(TUNNEL);

    // First of all, and without the datastore: after a boot this host is closed until policy is known.
    let mut kernel = LiveKernel::open()?;
    let seen = kernel.observe(&tunnel).await?;
    // BIRD leaves its routes when it ends: a node that ran Calico has kept forwarding too.
    let kept = |route: &kernel::Route| matches!(route.protocol, PROTOCOL_OURS | PROTOCOL_BIRD);
    let restarted = seen.routes.values().any(kept);
    let strange = |link: &kernel::Link| link.kind == "veth" && link.up && link.alias.is_none();
    let prefix = &config.interface_prefix;
    let strangers = seen
        .links
        .values()
        .any(|link| strange(link) && link.name.0.starts_with(prefix));
    let mut nft = Nft::default();
    let table = TableName(dataplane::filter::TABLE.to_owned());
    // Without nf_tables there is nobody else in it either.
    let nft_events = nft.events(&table).unwrap_or_else(|error| {
        tracing::error!(%error, "nf_tables cannot be used: policy cannot be enforced on this node");
        futures::stream::pending().boxed()
    });
    let flows = Flows::default();
    let mut filter = PacketFilter::new(&config.node_name, Box::new(nft), tunnel.clone());
    filter.cut_forbidden_flows(config.cut_forbidden_flows);
    filter.name_pods_for(flows.clone());
    if config.interface_prefix != PREFIX {
        filter.set_prefix(&config.interface_prefix);
    }
    if strangers && config.work != Work::PolicyOnly {
        tracing::info!("pods of another plugin run here: they are taken over when the datastore has been read");
        filter.wait_for_strangers();
    }
    filter.observed(&seen, |device| device.0.starts_with(prefix));
    let memory = last_known::read(&config.state_dir);
    if let Some(last) = LastRun::new(&config.node_name, &memory, false) {
        filter.remember(last);
    }
    filter.settle().await;
    let store = open().map_err(AgentError::Connect)?;

    // What the kernel can do.
    let (flavour, why) = match config.ipip {
        // Nothing to find out; probing holds the kernel's one lock for devices, which all agents of a machine share.
        Some(forced) => (Some(forced), "forced by MARGAY_IPIP".to_string()),
        None => {
            let probe = linux::ipip::probe();
            (probe.chosen, probe.why)
        }
    };
    let summary = ProbeSummary {
        flavour: flavour.map_or("none".into(), |flavour| format!("{flavour:?}").to_lowercase()),
        why,
    };
    tracing::info!(flavour = summary.flavour, why = summary.why, "IPIP probed");
    let kernel_events = kernel.events()?;
    tracing::info!(
        node = config.node_name,
        version = env!("CARGO_PKG_VERSION"),
        restarted,
        "agent starts"
    );

    // The loops.
    let mut tasks = Tasks::default();
    let (events, inbox) = mpsc::unbounded_channel();
    let (bgp, bgp_commands) = mpsc::unbounded_channel();
    let (facts_out, facts) = watch::channel(Facts::default());
    let graph_config = GraphConfig {
        node: config.node_name.clone(),
        router_id: config.router_id,
    };
    let dataplane = Dataplane::new(dataplane::Config {
        node: config.node_name.clone(),
        interface_prefix: config.interface_prefix.clone(),
        tunnel: tunnel.clone(),
        ipip_flavour: flavour,
    });
    let (cutter, flows_to_cut) = mpsc::unbounded_channel();
    let listeners = Listeners {
        bgp: bgp.clone(),
        facts: facts_out,
        myself: events.clone(),
        cutter,
    };
    let graph = Graph::with_config(graph_config);
    let refused = filter.refusals();
    let mut main_loop = Loop::new(graph, dataplane, filter, kernel, tunnel.clone(), listeners);
    main_loop.remember(memory.picture());
    main_loop.does(&config.node_name, config.work);
    tasks.spawn("the dataplane loop", never_fails(main_loop.run(inbox)));
    tasks.spawn(
        "the BGP loop",
        never_fails(speaker::run(bgp_commands, events.clone(), restarted)),
    );
    tasks.spawn(
        "the kernel's events",
        never_fails(feed(kernel_events.map(Event::Kernel), events.clone())),
    );
    tasks.spawn(
        "nf_tables' events",
        never_fails(feed(nft_events.map(Event::Filter), events.clone())),
    );
    tasks.spawn(
        "the flow records",
        never_fails(flows::run(flows.clone(), facts.clone(), events.clone())),
    );
    tasks.spawn(
        "the cutting of flows",
        never_fails(cut::run(flows_to_cut, events.clone())),
    );
    tasks.spawn(
        "the log level",
        never_fails(follow_severity(facts.clone(), set_severity)),
    );
    tasks.spawn("the retry timer", never_fails(retry(events.clone())));
    tasks.spawn(
        "the datastore's deadline",
        never_fails(wait_for_datastore(events.clone())),
    );

    // From here on it can be asked why it is not ready.
    let identity = Arc::new(Mutex::new(Identity::new(&config.node_name, Timestamp::now(), summary)));
    let sources = Sources {
        events: events.clone(),
        bgp: bgp.clone(),
        identity: identity.clone(),
        tunnel,
        flows,
        journal: cni_server::live::journal(&config),
        store: store.clone(),
    };
    // Where another plugin attaches the pods, it says whether they get a network.
    let announce = announce.filter(|_| config.work != Work::PolicyOnly);
    let announcer = announce.map(|to| Announcer::new(to, &config.node_name));
    if let Some(announcer) = announcer.clone() {
        tasks.spawn("the node's condition", never_fails(announcer.up(sources.clone())));
    }
    let socket = http::serve_unix(&http::socket(&config.run_dir), sources.clone())?;
    tasks.spawn("the agent's socket", async {
        socket.await.map_err(AgentError::io("the agent's socket"))
    });
    if let Some(address) = config.health {
        let port = http::serve_tcp(address, sources.clone()).await?;
        tasks.spawn("the health port", async {
            port.await.map_err(AgentError::io("the health port"))
        });
    }

    // The datastore, its cache for IPAM, and this node's entry in it.
    let ipam = Ipam::new(store.clone());
    let (claims_out, claims_in) = mpsc::unbounded_channel();
    let (changes_out, changes) = watch::channel(0);
    let (news_out, news) = mpsc::unbounded_channel();
    let (lost_out, lost) = mpsc::unbounded_channel();
    let (said_out, said) = mpsc::unbounded_channel();
    let (wishes_out, wishes) = mpsc::unbounded_channel();
    let readers = Readers {
        node: config.node_name.clone(),
        ipam: ipam.clone(),
        claims: claims_out,
        changes: changes_out,
        news: news_out,
        lost: lost_out,
        wishes: wishes_out,
        said: said_out,
        events: events.clone(),
    };
    tasks.spawn(
        "the node's status",
        never_fails(node_status::keep(store.clone(), sources.clone(), wishes)),
    );
    tasks.spawn(
        "what the kernel refuses",
        never_fails(refusals::tell(config.node_name.clone(), store.clone(), refused, said)),
    );
    tasks.spawn("the datastore's watch", never_fails(follow(store.clone(), readers)));
    tasks.spawn(
        "the last known state",
        never_fails(last_known::keep(config.state_dir.clone(), news)),
    );
    if config.work == Work::PolicyOnly {
        // Nobody reads these here: what is sent is not to pile up.
        drop((claims_in, lost));
        let pods = policy_only::follow(config.node_name, config.interface_prefix, store, events);
        tasks.spawn("the pods", never_fails(pods));
        return tokio::select! {
            _ = stop.recv() => Ok(()),
            error = tasks.first_end() => Err(error),
        };
    }
    tasks.spawn(
        "the repair of claims",
        never_fails(claims::keep(config.node_name.clone(), ipam.clone(), claims_in)),
    );
    let membership = Membership {
        config: config.clone(),
        store: store.clone(),
        ipam: ipam.clone(),
        kernel: LiveKernel::open()?,
        facts: facts.clone(),
        changes,
        identity: identity.clone(),
    };
    tasks.spawn("the registration", membership.keep());

    // Pods: what the journal knows is programmed before anything is swept.
    let (stopping, stopped) = watch::channel(false);
    let note = identity.clone();
    let problems: cni_server::Tell =
        Arc::new(move |problems| set(&note, |identity| identity.pod_problems.clone_from(&problems)));
    let deps = Deps {
        config,
        store,
        ipam,
        events,
        facts,
        lost,
        problems,
        stop: stopped,
    };
    let note = identity.clone();
    let cni = cni_server::serve(deps, move |outcome| set(&note, |identity| identity.cni = outcome));
    let cni = tasks.spawn("the CNI server", never_fails(cni));

    tokio::select! {
        _ = stop.recv() => {}
        error = tasks.first_end() => return Err(error),
    }
    tracing::info!("told to stop; routes and pods stay as they are");
    stopping.send_replace(true);
    // Pods that are half attached get the chance to become whole; the journal has the others.
    let attached = async {
        if identity.lock().is_ok_and(|identity| identity.cni.is_ok()) {
            let _ = tokio::time::timeout(FAREWELL, tasks.end_of(cni)).await;
        }
    };
    let told = async {
        if let Some(announcer) = announcer {
            announcer.down().await;
        }
    };
    tokio::join!(attached, told);
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

/// 50 ms, doubling up to 5 s, spread so that many agents do not come at once.
pub(crate) fn wait(attempt: u32) -> Duration {
    let base = Duration::from_millis(50) * 2u32.saturating_pow(attempt.saturating_sub(1).min(7));
    let base = base.min(Duration::from_secs(5));
    base.mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds() {
        for (attempt, base) in [(1, 50.0), (2, 100.0), (5, 800.0), (8, 5000.0), (1000, 5000.0)] {
            let waited = wait(attempt).as_secs_f64() * 1000.0;
            assert!((base * 0.74..=base * 1.26).contains(&waited), "{attempt}: {waited}");
        }
    }
}
