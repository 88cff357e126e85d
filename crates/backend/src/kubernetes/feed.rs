//! One watch a row, shared by everybody who follows the row, for as long as anybody does.
//!
//! It goes on from the last version after the server ended it (it does so every few minutes) and after trouble that passes.
//! Trouble that does not pass within a minute, or never will by itself, ends the followers with its reason.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::{Key, Resource};
use bytes::Bytes;
use datastore::changes::{Change, ChangeLog, Limits};
use datastore::{Scope, StoreError};
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::client::Action;
use super::convert;
use super::error::{ApiError, Asked};
use super::group::Groups;
use super::link::{History, Link, wait};
use super::outage::Outage;
use super::patience::Patience;
use super::position::ABSENT;
use super::table::{ROWS, Row, Source};
use super::workload::Seen;

/// What followers may lag behind: changes, and bytes of JSON.
const LIMITS: Limits = Limits {
    changes: 1024,
    size: 2 << 20,
};
/// How much later than it promised the server may end a watch.
const GRACE: Duration = Duration::from_secs(20);
/// A watch that lived shorter counts as a failure however it ended.
const SHORT: Duration = Duration::from_secs(1);

/// The lines of a watch.
type Lines = BoxStream<'static, Result<Bytes, ApiError>>;

/// What a follower gets.
pub type Follow = BoxStream<'static, Result<Change<Resource>, StoreError>>;

/// A row's watch.
pub struct Feed {
    running: Mutex<Weak<Running>>,
    seen: Arc<Seen>,
}

struct Running {
    log: ChangeLog<Resource>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Nobody follows the row yet. What its watch sees of pods and namespaces is noted in `seen`.
    pub fn new(seen: Arc<Seen>) -> Self {
        Self {
            running: Mutex::default(),
            seen,
        }
    }

    /// Whether the row is watched now.
    pub fn is_running(&self) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().is_some_and(|running| !running.task.is_finished())
    }

    /// Follows what changes in a row within `scope` after version `from`. Call it inside a tokio runtime.
    pub fn follow(&self, link: &Arc<Link>, row: usize, scope: Scope, from: u64) -> Follow {
        if from == ABSENT {
            return absent(Arc::clone(link), row);
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match running.upgrade().filter(|running| !running.task.is_finished()) {
            Some(found) => found,
            None => {
                let log = ChangeLog::new(from, LIMITS);
                self.seen.begin(ROWS[row], from);
                let reader = Reader::new(from, Arc::clone(&self.seen));
                let task = tokio::spawn(run(Arc::clone(link), row, log.clone(), reader)).abort_handle();
                let started = Arc::new(Running { log, task });
                *running = Arc::downgrade(&started);
                started
            }
        };
        let follow = running.log.follow(scope, from);
        // The watch lives as long as one of its followers.
        let held = stream::unfold((follow, running), |(mut follow, running)| async move {
            let next = follow.next().await?;
            Some((next, (follow, running)))
        });
        held.boxed()
    }
}

/// Follows a row that the server does not have: until it has.
fn absent(link: Arc<Link>, row: usize) -> Follow {
    let appears = async move {
        while !link.has_come(ROWS[row]).await {}
        Err(StoreError::Compacted)
    };
    stream::once(appears).boxed()
}

async fn run(link: Arc<Link>, row: usize, log: ChangeLog<Resource>, reader: Reader) {
    let _said = Said {
        link: Arc::clone(&link),
        row,
    };
    let link_history = link.history();
    let count = link_history.borrow().count;
    let mut watch = Watch {
        link,
        row,
        log,
        suspicious: false,
        opened: None,
        history: link_history,
        count,
        reader,
    };
    let mut patience = Patience::default();
    let reason = loop {
        let before = watch.reader.at;
        watch.opened = None;
        let ended = watch.once().await;
        let lived = watch.opened.is_some_and(|opened| opened.elapsed() > SHORT);
        let failures = patience.ended(Instant::now(), watch.reader.at != before || lived);
        if ended.is_ok() && lived {
            // As watches end: it goes on.
            tokio::time::sleep(wait(1)).await;
            continue;
        }
        let error = match ended {
            Ok(()) => ApiError::Half("watches end at once".into()),
            Err(error) => error,
        };
        let Some(failures) = failures.filter(|_| error.passes()) else {
            break error;
        };
        tracing::debug!(row = ROWS[row].id, %error, failures, "a watch ended; going on");
        watch.suspicious = true;
        watch.link.outage(|outage, now| outage.watch(row, now, Some(&error)));
        tokio::time::sleep(wait(failures)).await;
    };
    if let ApiError::WentBack { .. } = reason {
        watch.reader.seen.forget(ROWS[row]);
    }
    // One kind is enough to know it of all: of another one the versions may not show it, and yet mean something else now.
    if let ApiError::WentBack { to, .. } = reason
        && watch.link.went_back(count, to)
    {
        tracing::warn!(row = ROWS[row].id, error = %reason, "everything is read again");
    }
    watch.log.close(reason.into());
}

/// One line of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// What is said of a row's watch ends with it.
struct Said {
    link: Arc<Link>,
    row: usize,
}

impl Drop for Said {
    fn drop(&mut self) {
        self.link.outage(|outage, now| outage.watch(self.row, now, None));
    }
}

struct Watch {
    link: Arc<Link>,
    row: usize,
    log: ChangeLog<Resource>,
    /// The last request did not end as it should have: the server may have been started again, with data from a backup.
    suspicious: bool,
    /// When the server began to answer the request.
    opened: Option<Instant>,
    /// Changes when somebody finds that the server's data are from before.
    history: watch::Receiver<History>,
    /// In which history the versions here were read.
    count: u64,
    reader: Reader,
}

/// What was last said of what is made of Kubernetes' objects. These change far more often than what is made of them: kubelet
/// writes a heartbeat into its Node, and a Pod's status passes through many states.
#[derive(Default)]
struct News(HashMap<Key, Option<u64>>);

impl News {
    /// Whether this was not said last time. Versions do not count.
    fn is_news(&mut self, key: &Key, value: Option<&Resource>) -> bool {
        let Some(value) = value else {
            return self.0.insert(key.clone(), None) != Some(None);
        };
        let mut value = value.clone();
        value.metadata_mut().resource_version = None;
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(&value).unwrap_or_default().hash(&mut hasher);
        let now = Some(hasher.finish());
        self.0.insert(key.clone(), now) != Some(now)
    }
}

impl Watch {
    /// One request, to its end.
    async fn once(&mut self) -> Result<(), ApiError> {
        self.link.outage(Outage::may_ask)?;
        let opened = self.open().await;
        let (mut lines, groups, until) = self.link.outage(|outage, now| outage.heard(now, opened))?;
        self.opened = Some(Instant::now());
        self.link.outage(|outage, now| outage.watch(self.row, now, None));
        loop {
            let line = tokio::select! {
                line = lines.try_next() => line?,
                history = self.history.wait_for(|history| history.count != self.count) => {
                    let to = history.map_or(0, |history| history.at);
                    return Err(ApiError::WentBack { from: self.reader.at, to });
                }
            };
            let Some(line) = line else { break };
            if let Some(change) = self.reader.take(ROWS[self.row], &groups, &line)? {
                self.log.append(vec![change]);
            }
        }
        self.suspicious = Instant::now() + GRACE < until;
        Ok(())
    }

    /// Lines of a watch that goes on where the last one ended, and when the server will end it.
    async fn open(&mut self) -> Result<(Lines, Groups, Instant), ApiError> {
        let (api, groups) = self.link.ready().await?;
        let row = ROWS[self.row];
        let resource = row.resource(&groups);
        let history = *self.history.borrow();
        if history.count != self.count {
            let to = history.at;
            return Err(ApiError::WentBack {
                from: self.reader.at,
                to,
            });
        }
        self.look_back(row).await?;
        let path = row
            .path(&groups, None, "")
            .ok_or_else(|| ApiError::Gone(resource.clone()))?;
        let seconds = rand::random_range(180..300);
        let query = format!(
            "?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.reader.at
        );
        // Quiet rows get no bookmarks: only the end of the watch, which does not come, shows that the server is gone.
        let silence = Duration::from_secs(seconds) + GRACE;
        let until = Instant::now() + Duration::from_secs(seconds);
        match api.watch(&resource, &format!("{path}{query}"), silence).await {
            // It was there when it was listed: list again, and say then what is missing.
            Err(ApiError::ResourceMissing(what)) => {
                self.link.look_again().await;
                Err(ApiError::Gone(what))
            }
            Err(error) => {
                if error.is_about_access() {
                    self.link.read_access_again(&api).await;
                }
                Err(error)
            }
            Ok(lines) => Ok((lines, groups, until)),
        }
    }

    /// A server whose data are from before what we have read would let us wait, deaf, until its versions come to where we are.
    /// So it is asked where it is, after every end that was none of its usual ones.
    async fn look_back(&mut self, row: Row) -> Result<(), ApiError> {
        if !self.suspicious {
            return Ok(());
        }
        let page = self.link.ask(row, None, "", "?limit=1", Action::List).await;
        let page = page.map_err(|error| match error {
            ApiError::ResourceMissing(what) => ApiError::Gone(what),
            error => error,
        })?;
        let version = convert::number(&page);
        let to = version.ok_or_else(|| ApiError::Half("a list without a resourceVersion".into()))?;
        match to < self.reader.at {
            true => Err(ApiError::WentBack {
                from: self.reader.at,
                to,
            }),
            false => {
                self.suspicious = false;
                Ok(())
            }
        }
    }
}

/// What is known between the lines of a watch, and from one request to the next.
struct Reader {
    /// Everything up to this version has been seen.
    at: u64,
    news: News,
    seen: Arc<Seen>,
}

impl Reader {
    fn new(at: u64, seen: Arc<Seen>) -> Self {
        Self {
            at,
            news: News::default(),
            seen,
        }
    }

    /// What a line says, if it says something new.
    fn take(&mut self, row: Row, groups: &Groups, line: &[u8]) -> Result<Option<Change<Resource>>, ApiError> {
        let event: Event =
            serde_json::from_slice(line).map_err(|error| ApiError::Half(format!("an event of a watch: {error}")))?;
        if event.kind == "ERROR" {
            let asked = Asked {
                verb: "watch",
                resource: row.resource(groups),
            };
            let code = event.object["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            let body = event.object.to_string();
            return Err(ApiError::from_answer(&asked, code.unwrap_or(500), body.as_bytes()));
        }
        let number = convert::number(&event.object);
        let number = number.ok_or_else(|| ApiError::Half("an event without a resourceVersion".into()))?;
        if number < self.at {
            // The server's data are from an older snapshot: what we hold is from a future that never was.
            return Err(ApiError::WentBack {
                from: self.at,
                to: number,
            });
        }
        if number == self.at {
            return Ok(None);
        }
        self.at = number;
        if event.kind == "BOOKMARK" {
            return Ok(None);
        }
        let deleted = event.kind == "DELETED";
        self.seen.note(row, &event.object, number, deleted);
        let Some(key) = convert::key(row, &event.object) else {
            return Ok(None);
        };
        let value = match deleted {
            true => None,
            false => convert::resource(row, groups, event.object),
        };
        let is_news = row.source == Source::Custom || self.news.is_news(&key, value.as_ref());
        // Also what had become nothing before it was deleted.
        if deleted {
            self.news.0.remove(&key);
        }
        if !is_news {
            return Ok(None);
        }
        Ok(Some(Change {
            revision: number,
            key,
            value,
            size: line.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use api::{Kind, Node, NodeSpec};
    use serde_json::json;

    use super::super::group::CalicoGroup;
    use super::*;

    /// What a reader at version 10 makes of lines: keys with `+` or `-`, or how it ended.
    fn check(place: Key, lines: &[Value], expected: &str) {
        let row = Row::of_key(&place).expect("it has a row");
        let groups = Groups {
            calico: CalicoGroup::V3,
            endpoint_slices: None,
            cluster_policies: false,
        };
        let mut reader = Reader::new(10, Arc::default());
        let mut said = Vec::new();
        for line in lines {
            match reader.take(*row, &groups, line.to_string().as_bytes()) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    let sign = if change.value.is_some() { '+' } else { '-' };
                    said.push(format!("{sign}{}@{}", change.key.name, change.revision));
                }
                Err(error) => {
                    said.push(error.to_string());
                    break;
                }
            }
        }
        assert_eq!(said.join(" "), expected);
    }

    fn event(kind: &str, name: &str, version: u64) -> Value {
        let metadata = json!({ "name": name, "resourceVersion": version.to_string() });
        json!({ "type": kind, "object": { "metadata": metadata, "spec": { "nets": [] } } })
    }

    #[test]
    fn lines_become_changes() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let lines = [
            event("ADDED", "a", 11),
            event("BOOKMARK", "", 15),
            event("MODIFIED", "a", 16),
            event("DELETED", "a", 17),
        ];
        check(place, &lines, "+a@11 +a@16 -a@17");
    }

    #[test]
    fn what_came_already_comes_only_once() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        check(place, &[event("MODIFIED", "a", 10), event("BOOKMARK", "", 10)], "");
        let lines = [
            event("ADDED", "n1", 11),
            event("MODIFIED", "n1", 12),
            event("DELETED", "n1", 13),
        ];
        check(Key::cluster(Kind::Node, "n1"), &lines, "+n1@11 -n1@13");
    }

    #[test]
    fn a_server_that_went_back_means_list_again() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let gone = "the API server went back from version 12 to 7: its data are from before";
        check(
            place.clone(),
            &[event("BOOKMARK", "", 12), event("ADDED", "a", 7)],
            gone,
        );
        check(
            place.clone(),
            &[event("BOOKMARK", "", 12), event("BOOKMARK", "", 7)],
            gone,
        );
        let status = json!({ "code": 410, "reason": "Expired", "message": "too old resource version: 10 (90)" });
        let lines = [json!({ "type": "ERROR", "object": status })];
        check(
            place,
            &lines,
            "the revision is no longer available: too old resource version: 10 (90)",
        );
    }

    #[test]
    fn what_is_no_event_is_half_an_answer() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let lines = [json!({ "type": "ADDED", "object": { "metadata": { "name": "a" } } })];
        let half = "the API server answered only half, or something else: an event without a resourceVersion";
        check(place.clone(), &lines, half);
        let half = "the API server answered only half, or something else: an event of a watch: ";
        check(
            place,
            &[json!("<html>")],
            &format!("{half}invalid type: string \"<html>\", expected struct Event at line 1 column 8"),
        );
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let mut news = News::default();
        let node = |version: &str, label: &str| {
            let mut node = Node::new("n1", NodeSpec::default());
            node.metadata.resource_version = Some(version.into());
            node.metadata.labels.insert("zone".into(), label.into());
            Resource::from(node)
        };
        let key = Key::cluster(Kind::Node, "n1");
        let mut check = |value: Option<Resource>, expected: bool| {
            assert_eq!(news.is_news(&key, value.as_ref()), expected, "{value:?}");
        };
        check(Some(node("1", "a")), true);
        check(Some(node("2", "a")), false);
        check(Some(node("3", "b")), true);
        check(None, true);
        check(None, false);
        check(Some(node("4", "b")), true);
    }
}
