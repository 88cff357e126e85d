//! Connections to the server: what is asked, and what it answers in the state in which it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Kind;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Fault, State};

/// How often a bookmark comes.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Answers what is asked on a connection until it ends.
pub async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
) {
    while let Some(head) = head(&mut stream).await {
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.to_owned();
        let Some(body) = body(&mut stream, &head).await else {
            return;
        };
        let answer = {
            let mut state = state.lock().expect("not poisoned");
            state.asked.push((Instant::now(), path.clone()));
            if method != "GET" {
                state.written.push((method.to_owned(), path.clone(), body));
            }
            state.answer(&path, &head)
        };
        let outcome = match answer {
            // Until they leave.
            Answer::Nothing => {
                while stream.read_u8().await.is_ok() {}
                return;
            }
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
        let plural = path.split(['/', '?']).nth(4).unwrap_or_default();
        if self.lacks.contains(&plural)
            || self.hides.contains(&plural)
            || path.starts_with("/apis/policy.networking.k8s.io/")
        {
            return Answer::Whole(404, "404 page not found\n".into());
        }
        if path == "/apis/projectcalico.org/v3" {
            let served = Kind::ALL.into_iter().map(Kind::plural);
            let served = served.filter(|plural| !self.lacks.contains(plural));
            let resources: Vec<Value> = served.map(|plural| json!({ "name": plural })).collect();
            return Answer::Whole(200, json!({ "resources": resources }).to_string());
        }
        if path == "/apis" {
            let groups = json!({ "groups": [{ "name": "projectcalico.org", "versions": [{ "version": "v3" }] }] });
            return Answer::Whole(200, groups.to_string());
        }
        if path.contains("watch=true") {
            let from = path.split("resourceVersion=").nth(1).and_then(|text| text.parse().ok());
            return Answer::Watch(from.unwrap_or_default());
        }
        // One pool: what is written of it goes nowhere.
        let one = path
            .split_once("/ippools/")
            .map(|(_, name)| name.trim_end_matches("/status"));
        if let Some((name, version)) = self.pools.iter().find(|(name, _)| one == Some(name)) {
            return Answer::Whole(200, pool(name, *version).to_string());
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
        "spec": { "cidr": "192.168.0.0/16", "natOutgoing": false, "later": 1 },
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
    let _counted = Counted::new(state, path.split('?').next().unwrap_or_default());
    let life = path
        .split("timeoutSeconds=")
        .nth(1)
        .and_then(|text| text.split('&').next()?.parse().ok());
    let end = tokio::time::sleep(Duration::from_secs(life.unwrap_or(3600)));
    let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
    let mut is_due = false;
    let is_forgotten = from < state.lock().expect("not poisoned").compacted;
    tokio::pin!(end);
    let mut after = from;
    loop {
        let events = {
            let mut state = state.lock().expect("not poisoned");
            let mut events = match path.contains("/ippools") && !is_forgotten {
                true => state.events(&mut after),
                false => Vec::new(),
            };
            if is_forgotten {
                let status = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "compacted" });
                events.push(json!({ "type": "ERROR", "object": status }));
            } else if is_due && state.bookmarks {
                let metadata = json!({ "resourceVersion": state.version.to_string() });
                events.push(json!({ "type": "BOOKMARK", "object": { "metadata": metadata } }));
            }
            events
        };
        for event in events {
            let line = format!("{event}\n");
            let chunk = format!("{:x}\r\n{line}\r\n", line.len());
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
        }
        is_due = false;
        tokio::select! {
            () = &mut end => {
                let _ = stream.write_all(b"0\r\n\r\n").await;
                return;
            }
            _ = bookmarks.tick() => is_due = true,
            changed = changes.changed() => match changed {
                Ok(()) => {}
                Err(_) => return,
            },
            // They leave.
            _ = stream.read_u8() => return,
        }
    }
}

/// A watch of a path, while it lasts.
struct Counted<'a> {
    state: &'a Mutex<State>,
    path: String,
}

impl<'a> Counted<'a> {
    fn new(state: &'a Mutex<State>, path: &str) -> Self {
        let mut held = state.lock().expect("not poisoned");
        let (now, most) = held.watches.entry(path.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self {
            state,
            path: path.to_owned(),
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock()
            && let Some((now, _)) = state.watches.get_mut(&self.path)
        {
            *now -= 1;
        }
    }
}

/// The head of the next request.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Its body; null if it has none.
async fn body<S: AsyncRead + Unpin>(stream: &mut S, head: &str) -> Option<Value> {
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    let mut bytes = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, code: u16, text: &str, length: usize) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {code} X\r\nContent-Length: {length}\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}
