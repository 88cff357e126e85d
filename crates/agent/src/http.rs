//! `/liveness`, `/readiness`, `/status` and `/metrics`, on the health port and on the agent's unix socket.
//!
//! Every answer asks the loops themselves: a loop that hangs is not live, whatever it last said.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kernel::IfName;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use crate::AgentError;
use crate::metrics;
use crate::run::Event;
use crate::speaker::Command;
use crate::status::{Identity, Report};

/// How long a loop may take to answer before the agent counts as hung.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the handlers ask.
#[derive(Clone)]
pub struct Sources {
    /// The dataplane loop.
    pub events: mpsc::UnboundedSender<Event>,
    /// The BGP loop.
    pub bgp: mpsc::UnboundedSender<Command>,
    /// What start-up knows.
    pub identity: Arc<Mutex<Identity>>,
    /// The tunnel, for its counters.
    pub tunnel: IfName,
}

impl Sources {
    /// Asks every loop and puts the answers together; the error names the loop that does not answer.
    pub async fn report(&self) -> Result<Report, String> {
        let (loop_reply, loops) = oneshot::channel();
        let (bgp_reply, bgp) = oneshot::channel();
        let _ = self.events.send(Event::Report(loop_reply));
        let _ = self.bgp.send(Command::Report(bgp_reply));
        let loops = within(loops, "the dataplane loop").await?;
        let bgp = within(bgp, "the BGP loop").await?;
        let counters = linux::ipip::counters(&self.tunnel).ok().flatten();
        let identity = self.identity.lock().map_err(|_| "start-up failed".to_string())?.clone();
        Ok(Report::assemble(&identity, loops, bgp, counters))
    }
}

async fn within<T>(answer: oneshot::Receiver<T>, who: &str) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(format!("{who} has ended")),
        Err(_) => Err(format!("{who} has not answered for {} s", PATIENCE.as_secs())),
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/liveness", get(liveness))
        .route("/readiness", get(readiness))
        .route("/status", get(status))
        .route("/metrics", get(prometheus))
        .with_state(sources)
}

async fn liveness(State(sources): State<Sources>) -> Response {
    match sources.report().await {
        Ok(_) => (StatusCode::OK, "live\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn readiness(State(sources): State<Sources>) -> Response {
    let report = match sources.report().await {
        Ok(report) => report,
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    };
    let code = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let line = |c: &crate::status::Condition| {
        let mark = match (c.ok, c.required) {
            (true, _) => "ok",
            (false, true) => "NOT READY",
            (false, false) => "warning",
        };
        format!("{:<10} {mark:<9} {}: {}\n", c.name, c.reason, c.message)
    };
    (code, report.conditions.iter().map(line).collect::<String>()).into_response()
}

async fn status(State(sources): State<Sources>) -> Response {
    match sources.report().await {
        Ok(report) => Json(report).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn prometheus(State(sources): State<Sources>) -> Response {
    match sources.report().await {
        Ok(report) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&report)).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Opens the health port.
pub async fn serve_tcp(
    address: SocketAddr,
    sources: Sources,
) -> Result<impl Future<Output = std::io::Result<()>> + use<>, AgentError> {
    let what = format!("health port {address} (FELIX_HEALTHHOST, FELIX_HEALTHPORT)");
    let listener = TcpListener::bind(address).await.map_err(AgentError::io(what))?;
    Ok(axum::serve(listener, router(sources)).into_future())
}

/// Opens the unix socket, in place of one that a dead agent left.
pub fn serve_unix(
    path: &Path,
    sources: Sources,
) -> Result<impl Future<Output = std::io::Result<()>> + use<>, AgentError> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let source = std::io::ErrorKind::AddrInUse.into();
        return Err(AgentError::Io { what: format!("another agent answers on {}", path.display()), source });
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(AgentError::io(format!("socket {}", path.display())))?;
    Ok(axum::serve(listener, router(sources)).into_future())
}

/// Where the agent of a run directory answers.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Asks the agent on `socket` for its report. Blocking; for command lines.
pub fn ask(socket: &Path) -> Result<Report, AgentError> {
    use std::io::{Read, Write};
    let what = format!("no agent answers on {}; is it running on this node?", socket.display());
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(AgentError::io(what.clone()))?;
    stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(2))).map_err(AgentError::io(what.clone()))?;
    // HTTP/1.0: the answer ends with the connection, so there is no chunking to undo.
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").map_err(AgentError::io(what.clone()))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(AgentError::io(what.clone()))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|_| AgentError::Io {
        what: format!("the agent on {} answered: {}", socket.display(), body.trim()),
        source: std::io::ErrorKind::InvalidData.into(),
    })
}
