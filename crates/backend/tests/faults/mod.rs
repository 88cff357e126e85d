//! An API server that can be told what to do wrong: enough of one for lists and watches of pools, over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    /// Our resources are not defined.
    Undefined,
    /// It has no nodes: an old Kubernetes.
    Old,
}

/// The server.
pub struct FakeApi {
    pub address: SocketAddr,
    pub folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
    serving: Option<JoinHandle<()>>,
    tls: bool,
}

struct State {
    fault: Fault,
    version: u64,
    /// Names and versions.
    pools: Vec<(String, u64)>,
    /// The next watch of pools hears that its version is forgotten.
    forgotten: bool,
    /// Who is let in; everybody without.
    token: Option<String>,
    /// What was asked, as path and query.
    asked: Vec<String>,
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
        let state = State {
            fault,
            version: 100,
            pools: vec![("first".into(), 50)],
            forgotten: false,
            token: None,
            asked: Vec::new(),
        };
        let mut api = Self {
            address,
            folder: tempfile::tempdir().expect("a folder"),
            state: Arc::new(Mutex::new(state)),
            changes: watch::channel(0).0,
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
        let fault = {
            let mut state = self.state.lock().expect("not poisoned");
            change(&mut state);
            state.fault
        };
        if fault != Fault::Refuses {
            let listener = TcpListener::bind(self.address).await.expect("the port is still ours");
            self.serve(listener);
        }
    }

    /// Another pool, of which watches hear.
    pub fn add_pool(&self, name: &str) {
        let mut state = self.state.lock().expect("not poisoned");
        state.version += 1;
        let version = state.version;
        state.pools.push((name.into(), version));
        drop(state);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The watches of pools hear that their version is forgotten.
    pub fn forget(&self) {
        self.state.lock().expect("not poisoned").forgotten = true;
        self.changes.send_modify(|count| *count += 1);
    }

    /// Data as they were at this version, with another pool.
    pub async fn restore(&mut self, version: u64) {
        self.change(|state| {
            state.version = version;
            state.pools = vec![("restored".into(), 30)];
        })
        .await;
    }

    pub async fn wants(&mut self, token: &str) {
        self.change(|state| state.token = Some(token.to_owned())).await;
    }

    /// What was asked so far and has this in it.
    pub fn asked(&self, part: &str) -> Vec<String> {
        let state = self.state.lock().expect("not poisoned");
        state
            .asked
            .iter()
            .filter(|asked| asked.contains(part))
            .cloned()
            .collect()
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
        let (state, changes) = (Arc::clone(&self.state), self.changes.clone());
        let tls = self.tls.then(acceptor);
        self.serving = Some(tokio::spawn(async move {
            // Connections end with whoever accepts them.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (state, changes, tls) = (Arc::clone(&state), changes.subscribe(), tls.clone());
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

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
) {
    while let Some(head) = head(&mut stream).await {
        let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let answer = {
            let mut state = state.lock().expect("not poisoned");
            state.asked.push(path.clone());
            state.answer(&path, &head)
        };
        let outcome = match answer {
            Answer::Nothing => std::future::pending().await,
            Answer::End => return,
            Answer::Half(text) => {
                let _ = write(&mut stream, 200, &text, text.len() + 500).await;
                return;
            }
            Answer::Whole(code, text) => write(&mut stream, code, &text, text.len()).await,
            Answer::Watch(from) => return follow(&mut stream, &state, changes, &path, from).await,
        };
        if outcome.is_err() {
            return;
        }
    }
}

enum Answer {
    Nothing,
    End,
    Half(String),
    Whole(u16, String),
    Watch(u64),
}

impl State {
    fn answer(&self, path: &str, head: &str) -> Answer {
        let status = |code: u16, reason: &str, message: &str| {
            let status = json!({
                "kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code, "details": {}
            });
            Answer::Whole(code, status.to_string())
        };
        match self.fault {
            Fault::Tarpit => return Answer::Nothing,
            Fault::Cuts => return Answer::End,
            Fault::Truncates => return Answer::Half("{\"metadata\": {\"resourceVer".into()),
            Fault::Page(code) => return Answer::Whole(code, "<html><body>Please log in</body></html>".into()),
            Fault::Status(code, reason, message) => return status(code, reason, message),
            _ => {}
        }
        let let_in = |token: &String| head.contains(&format!("Bearer {token}\r\n"));
        if !self.token.as_ref().is_none_or(let_in) {
            return status(401, "Unauthorized", "Unauthorized");
        }
        let pools = path.contains("/ippools");
        match self.fault {
            Fault::Forbids if pools => {
                let message = "ippools is forbidden: User \"agent\" cannot list resource \"ippools\"";
                return status(403, "Forbidden", message);
            }
            Fault::Undefined if path.contains("/projectcalico.org/") => {
                return Answer::Whole(404, "404 page not found\n".into());
            }
            Fault::Old if path.contains("/nodes") => return Answer::Whole(404, "404 page not found\n".into()),
            _ => {}
        }
        if path == "/apis" {
            let groups = json!({ "groups": [{ "name": "projectcalico.org", "versions": [{ "version": "v3" }] }] });
            return Answer::Whole(200, groups.to_string());
        }
        if path.contains("watch=true") {
            let from = path.split("resourceVersion=").nth(1).and_then(|text| text.parse().ok());
            return Answer::Watch(from.unwrap_or_default());
        }
        let items: Vec<Value> = match pools {
            true => self.pools.iter().map(|(name, version)| pool(name, *version)).collect(),
            false => Vec::new(),
        };
        let list = json!({ "metadata": { "resourceVersion": self.version.to_string() }, "items": items });
        Answer::Whole(200, list.to_string())
    }

    /// The events of a watch of pools after a version.
    fn events(&mut self, after: &mut u64) -> Vec<Value> {
        if std::mem::take(&mut self.forgotten) {
            let status = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
            return vec![json!({ "type": "ERROR", "object": status })];
        }
        let newer = self.pools.iter().filter(|(_, version)| *version > *after);
        let events = newer.map(|(name, version)| json!({ "type": "ADDED", "object": pool(name, *version) }));
        let events = events.collect();
        *after = (*after).max(self.version);
        events
    }
}

fn pool(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": { "name": name, "resourceVersion": version.to_string(), "uid": name },
        "spec": { "cidr": "192.168.0.0/16" },
    })
}

async fn follow<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    state: &Mutex<State>,
    mut changes: watch::Receiver<u64>,
    path: &str,
    from: u64,
) {
    let begin = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    if stream.write_all(begin.as_bytes()).await.is_err() {
        return;
    }
    let mut after = from;
    loop {
        let events = match path.contains("/ippools") {
            true => state.lock().expect("not poisoned").events(&mut after),
            false => Vec::new(),
        };
        for event in events {
            let line = format!("{event}\n");
            let chunk = format!("{:x}\r\n{line}\r\n", line.len());
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The head of the next request; its body is none of ours.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, code: u16, text: &str, length: usize) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {code} X\r\nContent-Length: {length}\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
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
