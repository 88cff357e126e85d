//! `/liveness`, `/readiness`, `/status`, `/policy` and `/metrics`, on the health port and on the agent's unix socket;
//! `/flows`, `/path` and `/watch` on the socket alone.
//!
//! Every answer asks the loops themselves: a loop that hangs is not live, whatever it last said.

mod client;
mod private;

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
use datastore::SharedStore;
use kernel::{IfName, Kernel, KernelError, Route};
use linux::LiveKernel;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

pub use self::client::{ask, ask_flows, ask_path, ask_policy, follow_watch, socket};
use crate::AgentError;
use crate::flows::Flows;
use crate::metrics;
use crate::path::Here;
use crate::run::Event;
use crate::speaker::{Command, Learnt};
use crate::status::{DropReport, Identity, PassReport, Report};

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
    /// What flows there were.
    pub flows: Flows,
    /// The journal: where pods are found.
    pub journal: PathBuf,
    /// The datastore, for what is wrong with it just now.
    pub store: SharedStore,
}

impl Sources {
    /// Asks every loop and puts the answers together; the error names the loop that does not answer.
    pub async fn report(&self) -> Result<Report, String> {
        self.report_within(PATIENCE).await
    }

    /// The same with what the rules have counted. A kernel that does not say them is no reason
    /// to say nothing.
    pub async fn full_report(&self) -> Result<Report, String> {
        let (reply, counted) = oneshot::channel();
        let _ = self.events.send(Event::Counted(reply));
        let (mut report, counted) = futures::try_join!(
            self.report_within(PATIENCE),
            within(PATIENCE, counted, "the dataplane loop")
        )?;
        match counted {
            Ok(counted) => {
                report.policy.drops = DropReport::of(&counted.drops);
                report.policy.passes = PassReport::of(&counted.passes);
            }
            Err(error) => report.problems.push(format!("counters of rules: {error}")),
        }
        Ok(report)
    }

    /// What BGP's peers have told.
    pub async fn learnt(&self) -> Result<Vec<Learnt>, String> {
        let (reply, learnt) = oneshot::channel();
        let _ = self.bgp.send(Command::Learnt(reply));
        within(PATIENCE, learnt, "the BGP loop").await
    }

    /// The kernel's routes, of whomever.
    pub async fn kernel_routes(&self) -> Result<Vec<Route>, String> {
        let read = async { LiveKernel::open()?.observe(&self.tunnel).await };
        let seen = read.await.map_err(|error: KernelError| error.to_string())?;
        Ok(seen.routes.into_values().collect())
    }

    fn here(&self) -> Result<Here, String> {
        let identity = self.identity.lock().map_err(|_| "start-up failed".to_string())?;
        Ok(Here {
            node: identity.node.clone(),
            journal: self.journal.clone(),
            tunnel: self.tunnel.clone(),
        })
    }

    async fn report_within(&self, patience: Duration) -> Result<Report, String> {
        let (loop_reply, loops) = oneshot::channel();
        let (bgp_reply, bgp) = oneshot::channel();
        let _ = self.events.send(Event::Report(loop_reply));
        let _ = self.bgp.send(Command::Report(bgp_reply));
        let (loops, bgp) = futures::try_join!(
            within(patience, loops, "the dataplane loop"),
            within(patience, bgp, "the BGP loop")
        )?;
        let counters = linux::ipip::counters(&self.tunnel).ok().flatten();
        let identity = self.identity.lock().map_err(|_| "start-up failed".to_string())?.clone();
        let trouble = self.store.trouble();
        // Who has no limits is not asked for queues.
        let shaped = loops.dataplane.shapers.wanted > 0;
        let queues = shaped
            .then(|| linux::shaper::counters().ok())
            .flatten()
            .unwrap_or_default();
        let report = Report::assemble(&identity, loops, bgp, counters, trouble.as_ref());
        Ok(report.with_queues(queues))
    }
}

async fn within<T>(patience: Duration, answer: oneshot::Receiver<T>, who: &str) -> Result<T, String> {
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(format!("{who} has ended")),
        Err(_) => Err(format!("{who} has not answered for {patience:?}")),
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/liveness", get(liveness))
        .route("/readiness", get(readiness))
        .route("/status", get(status))
        .route("/policy", get(policy))
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
    let code = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, health::lines(&report.conditions, 10)).into_response()
}

async fn status(State(sources): State<Sources>) -> Response {
    match sources.full_report().await {
        Ok(report) => Json(report).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn policy(State(sources): State<Sources>) -> Response {
    let (reply, view) = oneshot::channel();
    let _ = sources.events.send(Event::Policy(reply));
    match within(PATIENCE, view, "the dataplane loop").await {
        Ok(view) => Json(view).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn prometheus(State(sources): State<Sources>) -> Response {
    match sources.full_report().await {
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
        return Err(AgentError::Io {
            what: format!("another agent answers on {}", path.display()),
            source,
        });
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(AgentError::io(format!("socket {}", path.display())))?;
    let all = router(sources.clone()).merge(private::router(sources));
    Ok(axum::serve(listener, all).into_future())
}

#[cfg(test)]
mod tests {
    use dataplane::filter::{DropCause, Pass};
    use jiff::Timestamp;
    use kernel::nft::Count;

    use super::*;
    use crate::packet_filter::Counted;
    use crate::policy_view::PolicyView;
    use crate::status::ProbeSummary;
    use crate::status::tests::parts;

    /// Loops that are played by the test.
    struct Played {
        sources: Sources,
        events: mpsc::UnboundedReceiver<Event>,
        bgp: mpsc::UnboundedReceiver<Command>,
    }

    fn played() -> Played {
        let (events, events_in) = mpsc::unbounded_channel();
        let (bgp, bgp_in) = mpsc::unbounded_channel();
        let identity = Identity::new("me", Timestamp::UNIX_EPOCH, ProbeSummary::default());
        let sources = Sources {
            events,
            bgp,
            identity: Arc::new(Mutex::new(identity)),
            tunnel: IfName::from("none0"),
            flows: Flows::default(),
            journal: PathBuf::from("/nonexistent"),
            store: Arc::new(datastore::MemoryStore::new()),
        };
        Played {
            sources,
            events: events_in,
            bgp: bgp_in,
        }
    }

    async fn answer_loop(mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Report(reply) => drop(reply.send(parts(|_, _, _| {}).1)),
                Event::Policy(reply) => drop(reply.send(PolicyView::default())),
                Event::Counted(reply) => {
                    let count = Count { packets: 3, bytes: 180 };
                    let name = "NetworkPolicy default/db".to_owned();
                    let pass = Pass {
                        action: "allow",
                        name: name.clone(),
                    };
                    drop(reply.send(Ok(Counted {
                        drops: [(DropCause::Policy(name), count)].into(),
                        passes: [(pass, count)].into(),
                    })));
                }
                _ => {}
            }
        }
    }

    async fn answer_bgp(mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            if let Command::Report(reply) = command {
                let _ = reply.send(parts(|_, _, _| {}).2);
            }
        }
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test)
    }

    /// Asks over the socket as the command line does; every path answers with its code and beginning.
    #[test]
    fn the_socket_answers_the_command_line_and_probes() {
        run(async {
            let folder = tempfile::tempdir().expect("a folder");
            let path = socket(folder.path());
            let Played { sources, events, bgp } = played();
            tokio::spawn(answer_loop(events));
            tokio::spawn(answer_bgp(bgp));
            let identity = sources.identity.clone();
            tokio::spawn(serve_unix(&path, sources.clone()).expect("it listens"));
            let ask_there = |path: std::path::PathBuf| tokio::task::spawn_blocking(move || ask(&path));
            let report = ask_there(path.clone()).await.expect("no panic").expect("an answer");
            assert_eq!(
                (report.node.as_str(), report.ready, report.bgp.routes),
                ("me", false, 5)
            );

            let get =
                |what: &'static str, path: std::path::PathBuf| tokio::task::spawn_blocking(move || raw(&path, what));
            for (what, code, part) in [
                ("/liveness", "200", "live\n"),
                (
                    "/readiness",
                    "503",
                    "Registered NOT READY NotRegistered: not registered yet\n",
                ),
                ("/metrics", "200", "margay_ready 0\n"),
                ("/policy", "200", "{\"endpoints\":[],"),
                (
                    "/metrics",
                    "200",
                    "margay_policy_dropped_packets_total{cause=\"policy\",name=\"NetworkPolicy default/db\"} 3\n",
                ),
                (
                    "/metrics",
                    "200",
                    "margay_policy_passed_packets_total{action=\"allow\",name=\"NetworkPolicy default/db\"} 3\n",
                ),
                (
                    "/status",
                    "200",
                    "\"drops\":[{\"cause\":\"policy\",\"name\":\"NetworkPolicy default/db\",",
                ),
                (
                    "/path?source=192.0.2.1&destination=127.0.0.1&by=host",
                    "200",
                    "{\"node\":\"me\",\"forwards\":",
                ),
                ("/path?source=192.0.2.1&destination=127.0.0.1&by=air", "400", ""),
                (
                    "/watch?source=192.0.2.1&destination=192.0.2.2&protocol=17&seconds=0",
                    "200",
                    "{\"ready\":{\"node\":\"me\",\"problems\":",
                ),
                (
                    "/watch?source=192.0.2.1&destination=fd00::2&protocol=17&ends=[fd00::2]:53,[fd00::3]:0&seconds=0",
                    "200",
                    "{\"ready\":{\"node\":\"me\",\"problems\":",
                ),
                (
                    "/watch?source=192.0.2.1&destination=192.0.2.2&protocol=17&ends=192.0.2.2&seconds=0",
                    "400",
                    "must be ADDRESS:PORT",
                ),
                ("/flows?after=7", "200", "\"enabled\":false,\"number\":0,"),
                ("/nothing", "404", ""),
            ] {
                let answer = get(what, path.clone()).await.expect("no panic");
                assert!(
                    answer.starts_with(&format!("HTTP/1.0 {code}")) && answer.contains(part),
                    "{what}: {answer}"
                );
            }
            crate::start::set(&identity, |identity| {
                (identity.addresses, identity.registered, identity.cni) = (Ok(Default::default()), Ok(()), Ok(()));
            });
            let answer = get("/readiness", path.clone()).await.expect("no panic");
            assert!(
                answer.starts_with("HTTP/1.0 200") && answer.contains("BGP        warning   PeersDown"),
                "{answer}"
            );

            // The second agent of a run directory is refused; what a dead one left is replaced.
            let Err(refused) = serve_unix(&path, sources.clone()) else {
                panic!("two agents")
            };
            assert!(refused.to_string().starts_with("another agent answers on"), "{refused}");
            let dead = folder.path().join("dead.sock");
            drop(std::os::unix::net::UnixListener::bind(&dead).expect("it listens"));
            assert!(serve_unix(&dead, sources).is_ok());
        });
    }

    fn raw(path: &Path, what: &str) -> String {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(path).expect("somebody listens");
        write!(stream, "GET {what} HTTP/1.0\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }

    #[test]
    fn without_an_agent_the_error_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = ask(&socket(folder.path())).expect_err("nobody listens").to_string();
        assert!(
            error.starts_with("no agent answers on ") && error.contains("is it running on this node?"),
            "{error}"
        );
    }

    #[test]
    fn a_loop_that_hangs_or_ended_is_named() {
        let patience = Duration::from_millis(20);
        run(async {
            let Played { sources, events, bgp } = played();
            tokio::spawn(answer_loop(events));
            let hangs = sources.report_within(patience).await.map(|_| ());
            assert_eq!(hangs, Err("the BGP loop has not answered for 20ms".to_string()));
            drop(bgp);
            let ended = sources.report_within(patience).await.map(|_| ());
            assert_eq!(ended, Err("the BGP loop has ended".to_string()));
        });
        run(async {
            let Played { sources, events, bgp } = played();
            tokio::spawn(answer_bgp(bgp));
            let hangs = sources.report_within(patience).await.map(|_| ());
            assert_eq!(hangs, Err("the dataplane loop has not answered for 20ms".to_string()));
            drop(events);
        });
    }
}
