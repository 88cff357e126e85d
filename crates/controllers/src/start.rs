//! Start-up and shutdown, in order.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use api::{ControllersLogSeverity, LogSeverity};
use clap::Args;
use datastore::SharedStore;
use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::desk::{Abilities, Desk};
use crate::http;
use crate::leadership::{FileLock, Leadership};
use crate::lease::{LeaseLock, LeaseName};
use crate::run::{self, Parts};
use crate::settings::{Environment, Settings};

/// The command line of `margay controllers`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// File whose lock makes this process the one that writes; not on Kubernetes [default: controllers.lock beside the store's socket]
    #[arg(long, env = "MARGAY_CONTROLLERS_LOCK", value_name = "FILE")]
    pub lock: Option<PathBuf>,

    /// On Kubernetes: the Lease whose holder is the one process that writes
    #[arg(
        long,
        env = "MARGAY_CONTROLLERS_LEASE",
        default_value = "margay-system/margay-controllers",
        value_name = "NAMESPACE/NAME"
    )]
    pub lease: LeaseName,

    /// On Kubernetes: how this process is called in the Lease; a random part is added [default: the host's name]
    #[arg(long, env = "MARGAY_CONTROLLERS_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,

    /// Address and port that answer /liveness, /readiness and /status whatever the configuration says; none without
    #[arg(long, env = "MARGAY_CONTROLLERS_HEALTH", value_name = "ADDRESS:PORT")]
    pub health: Option<SocketAddr>,

    /// Address that answers /metrics, /liveness, /readiness and /status (the port is prometheusMetricsPort)
    #[arg(
        long,
        env = "MARGAY_CONTROLLERS_HOST",
        default_value = "0.0.0.0",
        value_name = "ADDRESS"
    )]
    pub host: IpAddr,
}

/// What somebody has to correct, or why the process is best started again.
#[derive(Debug, thiserror::Error)]
pub enum ControllersError {
    /// Correct the environment.
    #[error("{}", .0.join("\n"))]
    Environment(Vec<String>),
    /// Correct how the datastore is named.
    #[error("datastore: {0}")]
    Connect(String),
    /// The system did not do it.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Start again.
    #[error("the controllers ended: {0}")]
    Ended(String),
}

/// What is known of the datastore.
pub struct Place {
    /// What it can do.
    pub abilities: Abilities,
    /// How it is agreed upon who writes.
    pub leadership: Agreement,
}

/// How it is agreed upon who writes.
pub enum Agreement {
    /// By the lock on this file, unless the options name another one.
    File(PathBuf),
    /// By the Lease that the options name.
    Lease,
}

/// Runs the controllers until the process is told to stop (SIGTERM, SIGINT).
///
/// `open` opens the datastore; it is called inside the runtime and need not reach anything yet. `set_severity` is called
/// whenever `logSeverityScreen` changes what is to be logged.
///
/// # Errors
/// See [`ControllersError`].
pub fn start(
    options: &Options,
    place: Place,
    env: &dyn Fn(&str) -> Option<String>,
    open: impl FnOnce() -> Result<SharedStore, String>,
    set_severity: impl Fn(Option<LogSeverity>) + Send + 'static,
) -> Result<(), ControllersError> {
    let environment = Environment::read(env).map_err(ControllersError::Environment)?;
    let desk = Desk::new(place.abilities, environment);
    let host = options.host;
    let (leadership, by) = leadership(options, place.leadership);
    // One thread: controllers wait more than they work.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    let outcome = runtime.block_on(async {
        let store = open().map_err(ControllersError::Connect)?;
        let stop = stop()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), by, "controllers start");
        let (questions, inbox) = mpsc::unbounded_channel();
        let (settings, facts) = watch::channel(desk.settings().clone());
        let parts = Parts {
            store,
            leadership,
            desk,
            questions: inbox,
            settings,
            stop: stop.boxed(),
        };
        let health = async {
            match options.health {
                Some(address) => http::serve_health(address, questions.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = run::run(parts) => ended.map_err(ControllersError::Ended),
            never = http::serve(host, questions.clone(), facts.clone()) => match never {},
            never = health => match never {},
            () = follow_severity(facts, set_severity) => Ok(()),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// How leaders are made, and its name.
fn leadership(options: &Options, agreement: Agreement) -> (Arc<dyn Leadership>, String) {
    match agreement {
        Agreement::File(default) => {
            let lock = options.lock.clone().unwrap_or(default);
            let by = format!("the lock on {}", lock.display());
            (Arc::new(FileLock::new(lock)), by)
        }
        Agreement::Lease => {
            let name = options.identity.clone().unwrap_or_else(|| {
                let name = nix::unistd::gethostname().unwrap_or_default();
                name.to_string_lossy().into_owned()
            });
            let by = format!("the Lease {}", options.lease);
            (Arc::new(LeaseLock::new(options.lease.clone(), &name)), by)
        }
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ControllersError {
    move |source| ControllersError::Io { what, source }
}

/// Ends on SIGTERM or SIGINT.
fn stop() -> Result<impl Future<Output = ()> + Send + 'static, ControllersError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io("listening for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listening for signals"))?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

/// Tells what `logSeverityScreen` asks for, whenever that changes.
async fn follow_severity(mut settings: watch::Receiver<Settings>, set: impl Fn(Option<LogSeverity>)) {
    let mut current = ControllersLogSeverity::Info;
    loop {
        let wanted = settings.borrow_and_update().log_severity;
        if wanted != current {
            current = wanted;
            set(Some(level(wanted)));
        }
        if settings.changed().await.is_err() {
            // The loop is gone, and with it soon the process.
            return std::future::pending().await;
        }
    }
}

fn level(severity: ControllersLogSeverity) -> LogSeverity {
    match severity {
        ControllersLogSeverity::Debug => LogSeverity::Debug,
        ControllersLogSeverity::Info => LogSeverity::Info,
        ControllersLogSeverity::Warning => LogSeverity::Warning,
        ControllersLogSeverity::Error => LogSeverity::Error,
        ControllersLogSeverity::None | ControllersLogSeverity::Fatal | ControllersLogSeverity::Panic => {
            LogSeverity::Fatal
        }
    }
}
