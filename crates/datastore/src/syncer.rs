//! Turns watches that may break into one stream of batches that never ends.
//!
//! Each scope is watched from nothing: all that is there comes, piece by piece, then what changes. After any error it waits, watches
//! from nothing again, and says only what differs from what it said before, deletions included, once all has come. Consumers
//! therefore see current state, not history: several changes of one key between two polls come as the last one. They also set the
//! pace: no store is read faster than batches are taken, so that a large one is nowhere in memory as a whole.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::{Key, Resource};
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::{BoxStream, Stream, StreamExt};

use crate::store::{Revision, Scope, SharedStore, StoreError, Update, WatchEvent};
use known::Known;

mod known;

/// How many changes of a scope go into one batch at most.
const BATCH: usize = 1024;

/// What a [`Syncer`] delivers.
#[derive(Clone, Debug, PartialEq)]
pub enum SyncEvent {
    /// What changed, each key once, in the order of the last changes.
    Updates(Vec<Update>),
    /// All scopes have been delivered as they are in the store. Comes once at the start, and again after
    /// [`SyncEvent::Disconnected`].
    InSync,
    /// A scope lost the store and why; what was delivered stays valid. Comes once, and again when another reason comes first.
    Disconnected(StoreError),
}

/// How a [`Syncer`] waits before it tries again: given the number of attempts that failed in a row, from 1.
pub type Backoff = Arc<dyn Fn(u32) -> BoxFuture<'static, ()> + Send + Sync>;

/// Follows some scopes of a store for ever. A stream of [`SyncEvent`].
///
/// A key that lies in two of the scopes is delivered twice; the final state is the same.
pub struct Syncer {
    store: SharedStore,
    backoff: Backoff,
    feeds: Vec<Feed>,
    /// Whether `InSync` has been said since the last `Disconnected`.
    said_in_sync: bool,
    /// What was last said to be wrong.
    said: Option<StoreError>,
    ready: VecDeque<SyncEvent>,
}

/// One scope.
struct Feed {
    scope: Scope,
    state: State,
    /// What has been delivered and still exists.
    known: Known,
    /// Failures since the last success.
    failures: u32,
    /// What went wrong, until it has been read again.
    trouble: Option<StoreError>,
}

enum State {
    Waiting(BoxFuture<'static, ()>),
    /// What is there comes.
    Reading(Watch),
    /// What changes comes.
    Watching(Watch),
}

type Watch = BoxStream<'static, Result<WatchEvent, StoreError>>;

/// Updates of different feeds on their way out; the last one of a key counts.
#[derive(Default)]
struct Batch {
    at: BTreeMap<Key, usize>,
    updates: Vec<Option<Update>>,
}

impl Syncer {
    /// A syncer over `scopes`; `backoff` is asked for the wait before each further attempt.
    pub fn new(
        store: SharedStore,
        scopes: Vec<Scope>,
        backoff: impl Fn(u32) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let feeds = scopes.into_iter().map(Feed::new).collect();
        Self {
            store,
            backoff: Arc::new(backoff),
            feeds,
            said_in_sync: false,
            said: None,
            ready: VecDeque::new(),
        }
    }
}

impl Stream for Syncer {
    type Item = SyncEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SyncEvent>> {
        let this = self.get_mut();
        if let Some(event) = this.ready.pop_front() {
            return Poll::Ready(Some(event));
        }
        let mut batch = Batch::default();
        let mut more = false;
        for feed in &mut this.feeds {
            more |= feed.poll(cx, &this.store, &this.backoff, &mut batch);
        }
        let updates = batch.into_updates();
        if !updates.is_empty() {
            this.ready.push_back(SyncEvent::Updates(updates));
        }
        // Of several scopes the first one speaks, so that what is said changes only with what is wrong.
        let trouble = this.feeds.iter().find_map(|feed| feed.trouble.clone());
        this.said_in_sync &= trouble.is_none();
        if trouble != this.said {
            this.ready.extend(trouble.clone().map(SyncEvent::Disconnected));
            this.said = trouble;
        }
        if !this.said_in_sync && this.feeds.iter().all(|feed| matches!(feed.state, State::Watching(_))) {
            this.said_in_sync = true;
            this.ready.push_back(SyncEvent::InSync);
        }
        match this.ready.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => {
                if more {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl Feed {
    fn new(scope: Scope) -> Self {
        Self {
            scope,
            state: State::Waiting(ready(()).boxed()),
            known: Known::default(),
            failures: 0,
            trouble: None,
        }
    }

    /// Moves on as far as possible, at most [`BATCH`] steps. Answers whether there may be more at once.
    fn poll(&mut self, cx: &mut Context<'_>, store: &SharedStore, backoff: &Backoff, batch: &mut Batch) -> bool {
        for _ in 0..BATCH {
            let (watch, reading) = match &mut self.state {
                State::Waiting(wait) => match wait.poll_unpin(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(()) => {
                        self.read(store);
                        continue;
                    }
                },
                State::Reading(watch) => (watch, true),
                State::Watching(watch) => (watch, false),
            };
            let error = match watch.poll_next_unpin(cx) {
                Poll::Pending => return false,
                Poll::Ready(Some(Ok(event))) => {
                    match event {
                        WatchEvent::Update(update, _) => self.change(update, reading, batch),
                        WatchEvent::InSync(_) => self.all_has_come(batch),
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => error,
                Poll::Ready(None) => StoreError::Unavailable("the watch ended".into()),
            };
            self.failures = self.failures.saturating_add(1);
            if error == StoreError::WentBack {
                self.known.distrust();
            }
            // A reader that was too slow is not disconnected: it reads again at once, but does not spin.
            if matches!(error, StoreError::Compacted | StoreError::WentBack) && self.failures == 1 {
                self.read(store);
                continue;
            }
            self.trouble = Some(error);
            self.state = State::Waiting(backoff(self.failures));
        }
        true
    }

    /// From nothing.
    fn read(&mut self, store: &SharedStore) {
        self.known.begin();
        self.state = State::Reading(store.watch(self.scope.clone(), None));
    }

    fn change(&mut self, update: Update, reading: bool, batch: &mut Batch) {
        let is_news = match &update.value {
            Some(resource) => self.known.insert(&update.key, revision_of(resource).as_ref()),
            None => {
                self.known.remove(&update.key);
                true
            }
        };
        if !reading {
            self.failures = 0;
        }
        if is_news || !reading {
            batch.push(update);
        }
    }

    fn all_has_come(&mut self, batch: &mut Batch) {
        self.trouble = None;
        for key in self.known.read() {
            batch.push(Update { key, value: None });
        }
        if let State::Reading(watch) = std::mem::replace(&mut self.state, State::Waiting(ready(()).boxed())) {
            self.state = State::Watching(watch);
        }
    }
}

impl Batch {
    fn push(&mut self, update: Update) {
        if let Some(earlier) = self.at.insert(update.key.clone(), self.updates.len()) {
            self.updates[earlier] = None;
        }
        self.updates.push(Some(update));
    }

    fn into_updates(self) -> Vec<Update> {
        self.updates.into_iter().flatten().collect()
    }
}

impl fmt::Debug for Syncer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes: Vec<_> = self.feeds.iter().map(|feed| &feed.scope).collect();
        f.debug_struct("Syncer")
            .field("scopes", &scopes)
            .field("in_sync", &self.said_in_sync)
            .finish_non_exhaustive()
    }
}

/// The store repeats the revision in the resource.
fn revision_of(resource: &Resource) -> Option<Revision> {
    resource.metadata().resource_version.clone().map(Revision)
}

#[cfg(test)]
mod tests;
