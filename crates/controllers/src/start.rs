//! Start-up and shutdown, in order.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::{ControllersLogSeverity, LogSeverity};
use clap::Args;
use datastore::SharedStore;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::desk::{Abilities, Desk};
use crate::http;
use crate::leadership::FileLock;
use crate::run::{self, Parts};
use crate::settings::{Environment, Settings};

/// The command line of `margay controllers`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// File whose lock makes this process the one that writes [default: controllers.lock beside the store's socket]
    #[arg(long, env = "MARGAY_CONTROLLERS_LOCK", value_name = "FILE")]
    pub lock: Option<PathBuf>,

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
    /// The lock's file unless the options name one.
    pub lock: PathBuf,
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
    let lock = options.lock.clone().unwrap_or(place.lock);
    let host = options.host;
    // One thread: controllers wait more than they work.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    let outcome = runtime.block_on(async {
        let store = open().map_err(ControllersError::Connect)?;
        let stop = stop()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), lock = %lock.display(), "controllers start");
        let (questions, inbox) = mpsc::unbounded_channel();
        let (settings, facts) = watch::channel(desk.settings().clone());
        let parts = Parts {
            store,
            leadership: Arc::new(FileLock::new(lock)),
            desk,
            questions: inbox,
            settings,
        };
        tokio::select! {
            why = run::run(parts) => Err(ControllersError::Ended(why)),
            never = http::serve(host, questions, facts.clone()) => match never {},
            () = follow_severity(facts, set_severity) => Ok(()),
            () = stop => Ok(()),
        }
    });
    runtime.shutdown_background();
    outcome
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ControllersError {
    move |source| ControllersError::Io { what, source }
}

/// Ends on SIGTERM or SIGINT.
fn stop() -> Result<impl Future<Output = ()>, ControllersError> {
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
