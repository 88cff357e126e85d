//! An API server that can be told what to do wrong, over loopback, or in memory where time is not real.
//!
//! What it does right it does as a real one: the checks of `tests/api_contract` examine both. It is one of Kubernetes 1.20, with our
//! definitions; [`FakeApi::knows_where_it_is`] makes it a later one.
//!
//! What it does wrong cannot be had from a server that is well. Where that is shown with a real one:
//!
//! | here | with a real server |
//! |---|---|
//! | [`Fault::Refuses`], [`FakeApi::becomes`] | `tools/kube/outage`, `outage-installed`, `outage-hours`: it is killed |
//! | [`Fault::Tarpit`] | `outage-reasons`: it is stopped |
//! | [`Fault::Cuts`], [`Fault::Truncates`] | `outage-reasons`: the program `relay` ends its answers after some bytes |
//! | [`Fault::Page`] | `outage-reasons`: `relay` answers like a gateway |
//! | [`Fault::Status`] | 401: `outage-reasons`, and the contract; 429 and 500 have no counterpart |
//! | [`Fault::Forbids`], [`FakeApi::wants`] | the contract; `outage-reasons`: a role that is missing, a token that expires |
//! | [`Fault::Undefined`], [`FakeApi::lacks`] | the contract (an unknown resource); `half-installed`, `outage-reasons`: no definitions |
//! | [`Fault::Starts`] | whenever a real one is started, for a third of a second (looked at by hand, Kubernetes 1.20) |
//! | [`FakeApi::hides`] | 1.20 does not: a definition that is deleted leaves discovery first |
//! | [`FakeApi::forgets`] | the contract (a version from before the server was started); whenever a real one is started |
//! | [`FakeApi::forget`] | that a watch which is well ends so has no counterpart |
//! | [`FakeApi::restore`] | `outage-restore` |
//! | [`Fault::Old`] | none: older than any that is supported |

mod answer;
mod data;
mod request;
mod serve;
mod served;
mod state;
mod status;
mod wire;
mod write;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::serve::connection;
use self::state::{State, data_with, place, pool};
pub use self::wire::Wire;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens.
    Refuses,
    /// It accepts, reads, and says nothing.
    Tarpit,
    /// It closes connections without an answer.
    Cuts,
    /// Answers break off in the middle.
    Truncates,
    /// It is no API server but something that shows a page, with this code.
    Page(u16),
    /// A `Status` with this code and reason, for whatever is asked.
    Status(u16, &'static str, &'static str),
    /// Lists and watches of pools are refused by RBAC.
    Forbids,
    /// It has just been started: it names next to no groups yet, and says of our resources that it is starting.
    Starts,
    /// Our resources are not defined.
    Undefined,
    /// It has no nodes: an old Kubernetes.
    Old,
}

/// The server.
pub struct FakeApi {
    pub address: SocketAddr,
    pub folder: tempfile::TempDir,
    wire: Wire,
    serving: Option<JoinHandle<()>>,
    tls: bool,
}

impl FakeApi {
    pub async fn start(fault: Fault) -> Self {
        Self::with(fault, false).await
    }

    /// One that speaks TLS with a certificate for elsewhere.example that has signed itself.
    pub async fn with_tls() -> Self {
        Self::with(Fault::None, true).await
    }

    async fn with(fault: Fault, tls: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let mut api = Self {
            address,
            folder: tempfile::tempdir().expect("a folder"),
            wire: Wire::to(State::new(fault)),
            serving: None,
            tls,
        };
        if fault != Fault::Refuses {
            api.serve(listener);
        }
        api
    }

    /// From now on it does this wrong. Connections end.
    pub async fn becomes(&mut self, fault: Fault) {
        self.change(|state| state.fault = fault).await;
    }

    /// Changes something as if it had been started again in between.
    async fn change(&mut self, change: impl FnOnce(&mut State)) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        *self.wire.connections.lock().expect("not poisoned") = JoinSet::new();
        let fault = {
            let mut state = self.state();
            change(&mut state);
            state.fault
        };
        if fault != Fault::Refuses {
            let listener = TcpListener::bind(self.address).await.expect("the port is still ours");
            self.serve(listener);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.wire.state.lock().expect("not poisoned")
    }

    /// The way to it in memory.
    pub fn wire(&self) -> Wire {
        self.wire.clone()
    }

    /// It does not have these kinds, and tells nobody.
    pub fn lacks(&self, plurals: &[&'static str]) {
        self.state().lacks = plurals.to_vec();
    }

    /// Of these kinds it says that they are not there, while discovery names them.
    pub fn hides(&self, plurals: &[&'static str]) {
        self.state().hides = plurals.to_vec();
    }

    /// Watches of quiet kinds too hear every minute where it is: so do servers from 1.21 on.
    pub fn knows_where_it_is(&self) {
        self.state().knows_where_it_is = true;
    }

    /// Objects of other kinds have changed so many times.
    pub fn passes(&self, changes: u64) {
        self.state().data.version += changes;
    }

    /// Forgets what was before its version less this, as a server does that was started then.
    pub fn forgets(&self, left: u64) {
        let mut state = self.state();
        state.data.remembered = state.data.version - left;
    }

    /// What it stores is compacted to this version.
    pub fn compacts(&self, version: u64) {
        self.state().data.compacted = version;
    }

    /// Before each of so many next writes of an object somebody else writes it.
    pub fn contests(&self, writes: usize) {
        self.state().contested = writes;
    }

    /// How many watches of one path there were at the same time, at most.
    pub fn most_watches(&self) -> usize {
        self.state().watches.values().map(|(_, most)| *most).max().unwrap_or(0)
    }

    /// When somebody wanted to connect, in memory.
    pub fn dialled(&self) -> Vec<Instant> {
        self.state().dialled.clone()
    }

    /// Another pool, of which watches hear.
    pub fn add_pool(&self, name: &str) {
        self.add("ippools", pool(name));
    }

    /// Another object of one of its resources, of which watches hear.
    pub fn add(&self, plural: &str, object: Value) {
        let place = place(plural, &object);
        self.state().data.change("ADDED", place, object);
        self.wire.changes.send_modify(|count| *count += 1);
    }

    /// An object as it is now.
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = place(plural, &json!({ "metadata": { "namespace": namespace, "name": name } }));
        self.state().data.get(&place).cloned()
    }

    /// The watches of pools hear that their version is forgotten.
    pub fn forget(&self) {
        self.state().forgotten = true;
        self.wire.changes.send_modify(|count| *count += 1);
    }

    /// Data as they were at this version, with another pool.
    pub async fn restore(&mut self, version: u64) {
        self.change(|state| {
            state.data = data_with("restored", 30, version);
        })
        .await;
    }

    pub async fn wants(&mut self, token: &str) {
        self.change(|state| state.token = Some(token.to_owned())).await;
    }

    /// Who comes with this token is let in, and may do nothing.
    pub fn knows_powerless(&self, token: &str) {
        self.state().powerless = Some(token.to_owned());
    }

    /// What was asked so far and has this in it.
    pub fn asked(&self, part: &str) -> Vec<String> {
        let asked = self.asked_at(part).into_iter();
        asked.map(|(_, asked)| asked).collect()
    }

    /// The same, and when.
    pub fn asked_at(&self, part: &str) -> Vec<(Instant, String)> {
        let state = self.state();
        let asked = state.asked.iter().filter(|(_, asked)| asked.contains(part));
        asked.cloned().collect()
    }

    /// What was written so far: method, path, and body.
    pub fn written(&self) -> Vec<(String, String, Value)> {
        self.state().written.clone()
    }

    /// A kubeconfig with these lines for the cluster and the user.
    pub fn kubeconfig(&self, cluster: &str, user: &str) -> PathBuf {
        let scheme = if self.tls { "https" } else { "http" };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: \"{scheme}://{}\"{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.address
        );
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, text).expect("it is written");
        path
    }

    fn serve(&mut self, listener: TcpListener) {
        let (state, changes) = (Arc::clone(&self.wire.state), self.wire.changes.clone());
        let tls = self.tls.then(acceptor);
        self.serving = Some(tokio::spawn(async move {
            // Connections end with whoever accepts them.
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (state, changes, tls) = (Arc::clone(&state), changes.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => connection(stream, state, changes).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, state, changes).await;
                            }
                        }
                    }
                });
            }
        }));
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

fn acceptor() -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_slice(include_bytes!("server.crt")).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("server.key")).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("it has some")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

/// A port of loopback on which nobody listens.
pub async fn deaf_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("it has one")
}

/// Until something is as it should be, or it has taken too long.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
