//! Turns lists and watches that may break into one stream of batches that never ends.
//!
//! Each scope lists, then watches from that list. After any error it waits, lists again, and says only what differs from
//! what it said before, deletions included. Consumers therefore see current state, not history: several changes of one
//! key between two polls come as the last one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::{Key, Resource};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, Stream, StreamExt};

use crate::store::{Listing, Revision, Scope, SharedStore, StoreError, Stored, Update, WatchEvent};

/// How many changes go into one batch at most, when a consumer is slower than the store. A list is one batch.
const BATCH: usize = 4096;

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
    known: BTreeMap<Key, Option<Revision>>,
    /// Failures since the last success.
    failures: u32,
    /// What went wrong, until it has been listed again.
    trouble: Option<StoreError>,
}

enum State {
    Waiting(BoxFuture<'static, ()>),
    Listing(BoxFuture<'static, Result<Listing, StoreError>>),
    Watching(BoxStream<'static, Result<WatchEvent, StoreError>>),
}

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
        let feeds = scopes.into_iter().map(|scope| Feed::new(&store, scope)).collect();
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
    fn new(store: &SharedStore, scope: Scope) -> Self {
        Self {
            state: State::list(store, &scope),
            scope,
            known: BTreeMap::new(),
            failures: 0,
            trouble: None,
        }
    }

    /// Moves on as far as possible, at most [`BATCH`] steps. Answers whether there may be more at once.
    fn poll(&mut self, cx: &mut Context<'_>, store: &SharedStore, backoff: &Backoff, batch: &mut Batch) -> bool {
        for _ in 0..BATCH {
            let error = match &mut self.state {
                State::Waiting(wait) => match wait.poll_unpin(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(()) => {
                        self.state = State::list(store, &self.scope);
                        continue;
                    }
                },
                State::Listing(list) => match list.poll_unpin(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(listing)) => {
                        let from = listing.revision.clone();
                        self.trouble = None;
                        self.adopt(listing, batch);
                        self.state = State::Watching(store.watch(self.scope.clone(), Some(from)));
                        continue;
                    }
                    Poll::Ready(Err(error)) => error,
                },
                State::Watching(watch) => match watch.poll_next_unpin(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Some(Ok(event))) => {
                        self.failures = 0;
                        if let WatchEvent::Update(update, _) = event {
                            self.change(update, batch);
                        }
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) => error,
                    Poll::Ready(None) => StoreError::Unavailable("the watch ended".into()),
                },
            };
            self.failures = self.failures.saturating_add(1);
            if error == StoreError::WentBack {
                // A revision may now stand for other content.
                self.known.values_mut().for_each(|revision| *revision = None);
            }
            // A reader that was too slow is not disconnected: it lists again at once, but does not spin.
            if matches!(error, StoreError::Compacted | StoreError::WentBack) && self.failures == 1 {
                self.state = State::list(store, &self.scope);
                continue;
            }
            self.trouble = Some(error);
            self.state = State::Waiting(backoff(self.failures));
        }
        true
    }

    /// Says how a fresh list differs from what was said so far.
    fn adopt(&mut self, listing: Listing, batch: &mut Batch) {
        let mut vanished = std::mem::take(&mut self.known);
        for Stored { resource, revision } in listing.items {
            let key = resource.key();
            let known = vanished.remove(&key).flatten();
            if known.as_ref() != Some(&revision) {
                batch.push(Update {
                    key: key.clone(),
                    value: Some(resource),
                });
            }
            self.known.insert(key, Some(revision));
        }
        vanished
            .into_keys()
            .for_each(|key| batch.push(Update { key, value: None }));
    }

    fn change(&mut self, update: Update, batch: &mut Batch) {
        match &update.value {
            Some(resource) => {
                self.known.insert(update.key.clone(), revision_of(resource));
            }
            None => {
                self.known.remove(&update.key);
            }
        }
        batch.push(update);
    }
}

impl State {
    fn list(store: &SharedStore, scope: &Scope) -> Self {
        let (store, scope) = (Arc::clone(store), scope.clone());
        State::Listing(async move { store.list(&scope).await }.boxed())
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
