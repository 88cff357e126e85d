//! Connections to the server, one request after the other, and the watches that they become.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::State;
use super::answer::Answer;
use super::request::{Request, Target};
use super::served::SERVED;
use super::status::expired;

/// How often a bookmark comes.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// One comes so long before the end too.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// Answers what is asked on a connection until it ends.
pub async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
) {
    while let Some(request) = Request::read(&mut stream).await {
        let answer = {
            let mut state = state.lock().expect("not poisoned");
            state.asked.push((Instant::now(), request.path.clone()));
            if request.method != "GET" {
                let written = (request.method.clone(), request.path.clone(), request.body.clone());
                state.written.push(written);
            }
            state.answer(&request)
        };
        if request.method != "GET" {
            changes.send_modify(|count| *count += 1);
        }
        let goes_on = match answer {
            // Until they leave.
            Answer::Nothing => {
                while stream.read_u8().await.is_ok() {}
                false
            }
            Answer::End => false,
            Answer::Half(text) => {
                let _ = write(&mut stream, 200, "application/json", &text, text.len() + 500).await;
                false
            }
            Answer::Whole(answer) => {
                let (text, length) = (&answer.text, answer.text.len());
                write(&mut stream, answer.code, answer.content, text, length)
                    .await
                    .is_ok()
            }
            Answer::Watch(target, from) => {
                let watch = Watch::new(&request, target, from);
                watch.follow(&mut stream, &state, changes.subscribe()).await
            }
        };
        if !goes_on {
            return;
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    code: u16,
    content: &str,
    text: &str,
    length: usize,
) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {code} X\r\nContent-Type: {content}\r\nContent-Length: {length}\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}

/// An event of a watch.
async fn chunk<S: AsyncWrite + Unpin>(stream: &mut S, event: &Value) -> std::io::Result<()> {
    let line = format!("{event}\n");
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(chunk.as_bytes()).await
}

/// A watch under way.
struct Watch {
    path: String,
    target: Target,
    from: u64,
    /// Everything up to here was said.
    after: u64,
    life: Duration,
    takes_bookmarks: bool,
}

impl Watch {
    fn new(request: &Request, target: Target, from: u64) -> Self {
        Self {
            path: request.place().to_owned(),
            target,
            from,
            after: from,
            life: Duration::from_secs(request.number("timeoutSeconds").unwrap_or(3600)),
            takes_bookmarks: request.parameter("allowWatchBookmarks").as_deref() == Some("true"),
        }
    }

    /// To its end; whether the connection can be used for another request.
    async fn follow<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        stream: &mut S,
        state: &Mutex<State>,
        mut changes: watch::Receiver<u64>,
    ) -> bool {
        let begin = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        if stream.write_all(begin.as_bytes()).await.is_err() {
            return false;
        }
        let _counted = Counted::new(state, &self.path);
        let (began, end) = (Instant::now(), tokio::time::sleep(self.life));
        tokio::pin!(end);
        let mut bookmark = began + BOOKMARKS.min(self.life.saturating_sub(BEFORE_THE_END));
        let mut is_due = false;
        // Who has begun goes on, whatever is forgotten meanwhile.
        let too_old = self.too_old(&state.lock().expect("not poisoned"));
        if let Some(event) = too_old {
            return chunk(stream, &event).await.is_ok() && stream.write_all(b"0\r\n\r\n").await.is_ok();
        }
        loop {
            let (events, is_over) = self.events(&mut state.lock().expect("not poisoned"), is_due);
            for event in events {
                if chunk(stream, &event).await.is_err() {
                    return false;
                }
            }
            if is_over {
                return stream.write_all(b"0\r\n\r\n").await.is_ok();
            }
            is_due = false;
            tokio::select! {
                () = &mut end => return stream.write_all(b"0\r\n\r\n").await.is_ok(),
                () = tokio::time::sleep_until(bookmark), if self.takes_bookmarks => {
                    is_due = true;
                    let last = began + self.life.saturating_sub(BEFORE_THE_END);
                    let next = bookmark + BOOKMARKS;
                    bookmark = if bookmark < last { next.min(last) } else { next };
                }
                changed = changes.changed() => if changed.is_err() { return false },
                // They leave.
                _ = stream.read_u8() => return false,
            }
        }
    }

    /// What is said of a watch from a version that is forgotten.
    fn too_old(&self, state: &State) -> Option<Value> {
        (self.from < state.data.remembered).then(|| self.expired(state))
    }

    fn expired(&self, state: &State) -> Value {
        let message = format!("too old resource version: {} ({})", self.from, state.data.remembered);
        json!({ "type": "ERROR", "object": expired(&message) })
    }

    /// What is to be said now, and whether nothing comes after it.
    fn events(&mut self, state: &mut State, is_due: bool) -> (Vec<Value>, bool) {
        let served = &SERVED[self.target.resource];
        if served.plural == "ippools" && std::mem::take(&mut state.forgotten) {
            return (vec![self.expired(state)], true);
        }
        let news = state
            .data
            .after(self.after)
            .filter(|change| self.target.has(&change.place));
        let mut events: Vec<Value> = news
            .map(|change| json!({ "type": change.word, "object": change.object }))
            .collect();
        self.after = self.after.max(state.data.version);
        // Where the server knows of its kind alone where it is, there is none for a kind in which nothing changed.
        let is_at = match state.knows_where_it_is {
            true => state.data.version,
            false => state.data.last_of(self.target.resource),
        };
        if is_due && is_at > self.from {
            let metadata = json!({ "resourceVersion": is_at.to_string(), "creationTimestamp": null });
            let object = json!({ "kind": served.kind, "apiVersion": served.api_version(), "metadata": metadata });
            events.push(json!({ "type": "BOOKMARK", "object": object }));
        }
        (events, false)
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
