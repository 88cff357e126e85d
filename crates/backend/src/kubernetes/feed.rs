//! One watch a row, shared by everybody who follows the row, for as long as anybody does.
//!
//! It goes on from the last version after the server ended it (it does so every few minutes) and after trouble that passes.
//! Trouble that does not pass within a minute, or never will by itself, ends the followers with its reason.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::Resource;
use bytes::Bytes;
use datastore::changes::{Change, ChangeLog, Limits};
use datastore::{Scope, StoreError};
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::client::Action;
use super::convert;
use super::error::ApiError;
use super::group::Groups;
use super::link::{History, Link, wait};
use super::outage::Outage;
use super::patience::Patience;
use super::position::ABSENT;
use super::table::{ROWS, Row};
use super::workload::Seen;
use reader::Reader;

mod reader;

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
                let log = ChangeLog::new(place(from), LIMITS);
                self.seen.begin(ROWS[row], from);
                let reader = Reader::new(from, Arc::clone(&self.seen));
                let task = tokio::spawn(run(Arc::clone(link), row, log.clone(), reader)).abort_handle();
                let started = Arc::new(Running { log, task });
                *running = Arc::downgrade(&started);
                started
            }
        };
        let follow = running.log.follow(scope, place(from));
        // The watch lives as long as one of its followers.
        let held = stream::unfold((follow, running), |(mut follow, running)| async move {
            let next = follow.next().await?.map(|change| Change {
                revision: version(change.revision),
                ..change
            });
            Some((next, (follow, running)))
        });
        held.boxed()
    }
}

/// Where a version is in a feed's log. An object that gets another key leaves the one it had: that comes one place before.
/// Whoever goes on from there hears both once more.
fn place(version: u64) -> u64 {
    version.saturating_mul(2)
}

/// The version up to which everything has been heard at this place.
fn version(place: u64) -> u64 {
    place / 2
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
            let changes = self.reader.take(ROWS[self.row], &groups, &line)?;
            if !changes.is_empty() {
                self.log.append(changes);
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
