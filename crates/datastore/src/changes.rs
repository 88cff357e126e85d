//! A bounded log of committed changes that any number of watchers follow, each at its own pace.
//!
//! Watchers pull: the log keeps one cursor per watcher and no queue, so a slow watcher costs nothing and blocks nobody.
//! Once the log has dropped changes that a watcher has not read, that watcher ends with [`StoreError::Compacted`].
//! Stores share this type; what a change carries (`V`) is theirs.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use api::Key;
use futures::Stream;

use crate::{Scope, StoreError};

/// One committed change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<V> {
    /// The store's counter at this change; grows by at least one from change to change.
    pub revision: u64,
    /// Which resource.
    pub key: Key,
    /// What it is now; `None`: it is gone.
    pub value: Option<V>,
    /// What keeping it costs, in bytes or in any unit that [`Limits::size`] counts.
    pub size: usize,
}

/// How much a log keeps. The oldest changes go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At most so many changes.
    pub changes: usize,
    /// At most so much of [`Change::size`] together.
    pub size: usize,
}

/// The log. Clones share it.
#[derive(Debug)]
pub struct ChangeLog<V> {
    shared: Arc<Mutex<Inner<V>>>,
}

/// A watcher of a [`ChangeLog`]: the changes in one scope, in order and without gaps. Ends after its first error.
#[derive(Debug)]
pub struct Follow<V> {
    shared: Arc<Mutex<Inner<V>>>,
    /// `None` once it has ended.
    id: Option<u64>,
}

#[derive(Debug)]
struct Inner<V> {
    limits: Limits,
    /// Oldest first.
    changes: VecDeque<Change<V>>,
    size: usize,
    /// Following may start here or later: no change after it has been dropped.
    floor: u64,
    /// The newest change that was appended, or the revision at the start.
    head: u64,
    followers: BTreeMap<u64, Follower>,
    next_follower: u64,
    closed: Option<StoreError>,
}

#[derive(Debug)]
struct Follower {
    scope: Scope,
    /// It has seen everything up to and including this revision.
    cursor: u64,
    /// Set exactly while it is caught up and waits.
    waker: Option<Waker>,
}

impl<V> Clone for ChangeLog<V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<V: Clone> ChangeLog<V> {
    /// An empty log of a store that stands at `revision`.
    pub fn new(revision: u64, limits: Limits) -> Self {
        let inner = Inner {
            limits,
            changes: VecDeque::new(),
            size: 0,
            floor: revision,
            head: revision,
            followers: BTreeMap::new(),
            next_follower: 0,
            closed: None,
        };
        Self {
            shared: Arc::new(Mutex::new(inner)),
        }
    }

    /// Adds committed changes, oldest first, and wakes the watchers they concern. Answers the floor: the oldest revision
    /// that can still be followed from.
    pub fn append(&self, changes: Vec<Change<V>>) -> u64 {
        let mut inner = lock(&self.shared);
        let wakers = inner.wake_for(&changes);
        for change in changes {
            debug_assert!(
                change.revision > inner.head,
                "changes are appended in the order of their commits"
            );
            inner.head = change.revision;
            inner.size += change.size;
            inner.changes.push_back(change);
        }
        inner.trim();
        let floor = inner.floor;
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
        floor
    }

    /// Follows a scope after revision `from`. A revision from before the floor gives [`StoreError::Compacted`]; one that is
    /// still to come is waited for.
    pub fn follow(&self, scope: Scope, from: u64) -> Follow<V> {
        let mut inner = lock(&self.shared);
        let id = inner.next_follower;
        inner.next_follower += 1;
        inner.followers.insert(
            id,
            Follower {
                scope,
                cursor: from,
                waker: None,
            },
        );
        Follow {
            shared: Arc::clone(&self.shared),
            id: Some(id),
        }
    }

    /// The newest revision that was appended.
    pub fn head(&self) -> u64 {
        lock(&self.shared).head
    }

    /// The oldest revision that can still be followed from.
    pub fn floor(&self) -> u64 {
        lock(&self.shared).floor
    }

    /// The store stands at `revision` now, if that is newer, without having changed.
    pub fn advance(&self, revision: u64) {
        let mut inner = lock(&self.shared);
        inner.head = inner.head.max(revision);
        if inner.changes.is_empty() {
            inner.floor = inner.head;
        }
    }

    /// Whether the log says by itself that the store has stood at `revision`: a change in it led there, or on from there.
    pub fn passes(&self, revision: u64) -> bool {
        let inner = lock(&self.shared);
        let at = inner.changes.partition_point(|change| change.revision < revision);
        let next = inner.changes.get(at);
        next.is_some_and(|change| change.revision - revision <= 1)
    }

    /// Drops everything there is: who has not read it must list again.
    pub fn compact(&self) {
        let mut inner = lock(&self.shared);
        inner.changes.clear();
        inner.size = 0;
        inner.floor = inner.head;
    }

    /// Ends all watchers, now and later, with `reason`, once they have read what is there.
    pub fn close(&self, reason: StoreError) {
        let mut inner = lock(&self.shared);
        inner.closed = Some(reason);
        let wakers: Vec<Waker> = inner
            .followers
            .values_mut()
            .filter_map(|follower| follower.waker.take())
            .collect();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<V> Inner<V> {
    /// The wakers of the waiting followers that want one of `changes`. The other waiting ones move on at once, so that a
    /// quiet scope does not fall behind while others are busy.
    fn wake_for(&mut self, changes: &[Change<V>]) -> Vec<Waker> {
        let Some(newest) = changes.last().map(|change| change.revision) else {
            return Vec::new();
        };
        let mut wakers = Vec::new();
        for follower in self.followers.values_mut().filter(|follower| follower.waker.is_some()) {
            if changes
                .iter()
                .any(|change| change.revision > follower.cursor && follower.scope.contains(&change.key))
            {
                wakers.extend(follower.waker.take());
            } else {
                follower.cursor = follower.cursor.max(newest);
            }
        }
        wakers
    }

    fn trim(&mut self) {
        while self.changes.len() > self.limits.changes || self.size > self.limits.size {
            let Some(oldest) = self.changes.pop_front() else { return };
            self.size -= oldest.size;
            self.floor = oldest.revision;
        }
    }
}

impl<V: Clone> Stream for Follow<V> {
    type Item = Result<Change<V>, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(id) = self.id else { return Poll::Ready(None) };
        let polled = lock(&self.shared).poll(id, cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.end();
        }
        polled
    }
}

impl<V: Clone> Inner<V> {
    fn poll(&mut self, id: u64, cx: &mut Context<'_>) -> Poll<Option<Result<Change<V>, StoreError>>> {
        let Some(follower) = self.followers.get_mut(&id) else {
            return Poll::Ready(None);
        };
        if follower.cursor < self.floor {
            return Poll::Ready(Some(Err(StoreError::Compacted)));
        }
        let unread = self
            .changes
            .partition_point(|change| change.revision <= follower.cursor);
        for change in self.changes.range(unread..) {
            follower.cursor = change.revision;
            if follower.scope.contains(&change.key) {
                return Poll::Ready(Some(Ok(change.clone())));
            }
        }
        if let Some(reason) = &self.closed {
            return Poll::Ready(Some(Err(reason.clone())));
        }
        follower.cursor = follower.cursor.max(self.head);
        follower.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<V> Follow<V> {
    fn end(&mut self) {
        if let Some(id) = self.id.take() {
            lock(&self.shared).followers.remove(&id);
        }
    }
}

impl<V> Drop for Follow<V> {
    fn drop(&mut self) {
        self.end();
    }
}

/// A panic elsewhere cannot leave the log half changed: every mutation completes before the lock is released.
fn lock<V>(shared: &Mutex<Inner<V>>) -> MutexGuard<'_, Inner<V>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use api::Kind;
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[test]
    fn a_follower_sees_what_comes_after_its_revision() {
        let log = log(10, 2..6);
        check(&mut log.follow(Scope::All, 3), "4 5");
        check(&mut log.follow(Scope::All, 1), "2 3 4 5");
        check(&mut log.follow(Scope::Key(key(4)), 1), "4");
    }

    #[test]
    fn a_revision_from_before_the_floor_is_compacted_and_the_stream_ends() {
        let log = log(3, 2..8);
        check(&mut log.follow(Scope::All, 4), "5 6 7");
        check(&mut log.follow(Scope::All, 3), "compacted end");
        assert_eq!(log.floor(), 4);
    }

    #[test]
    fn the_size_limit_counts_too() {
        let log = ChangeLog::new(0, Limits { changes: 100, size: 10 });
        log.append(
            (1..4)
                .map(|revision| Change {
                    size: 5,
                    ..change(revision)
                })
                .collect(),
        );
        check(&mut log.follow(Scope::All, 1), "2 3");
        check(&mut log.follow(Scope::All, 0), "compacted end");
    }

    #[test]
    fn a_quiet_scope_does_not_fall_behind_a_busy_one() {
        let log = log(3, 2..3);
        let mut quiet = log.follow(Scope::Key(key(50)), 2);
        let mut lagging = log.follow(Scope::Key(key(3)), 2);
        check(&mut quiet, "");
        for revision in 3..50 {
            log.append(vec![change(revision)]);
        }
        check(&mut lagging, "compacted end");
        log.append(vec![change(50)]);
        check(&mut quiet, "50");
    }

    #[test]
    fn a_revision_still_to_come_is_waited_for() {
        let log = log(10, 2..3);
        let mut early = log.follow(Scope::All, 3);
        check(&mut early, "");
        log.append(vec![change(3)]);
        check(&mut early, "");
        log.append(vec![change(4)]);
        check(&mut early, "4");
    }

    #[test]
    fn revisions_that_a_store_never_stood_at_do_not_pass() {
        let log = log(10, 2..4);
        log.advance(8);
        log.append(vec![change(9)]);
        let passing: Vec<u64> = (0..12).filter(|revision| log.passes(*revision)).collect();
        assert_eq!(passing, [1, 2, 3, 8, 9]);
        check(&mut log.follow(Scope::All, 3), "9");
        let empty = ChangeLog::<()>::new(3, Limits { changes: 1, size: 1 });
        empty.advance(8);
        assert_eq!((empty.head(), empty.floor()), (8, 8));
    }

    #[test]
    fn closing_ends_followers_after_what_is_there() {
        let log = log(10, 2..4);
        let mut follower = log.follow(Scope::All, 2);
        log.close(StoreError::Compacted);
        check(&mut follower, "3 compacted end");
    }

    #[test]
    fn dropped_followers_leave_nothing_behind() {
        let log = log(10, 2..3);
        drop(log.follow(Scope::All, 2));
        assert!(lock(&log.shared).followers.is_empty());
    }

    /// Polls until the follower waits or ends, and compares what it said.
    fn check(follower: &mut Follow<()>, expected: &str) {
        let mut seen = Vec::new();
        while let Some(next) = follower.next().now_or_never() {
            match next {
                Some(Ok(change)) => seen.push(change.revision.to_string()),
                Some(Err(error)) => {
                    assert_eq!(error, StoreError::Compacted);
                    seen.push("compacted".into());
                }
                None => {
                    seen.push("end".into());
                    break;
                }
            }
        }
        assert_eq!(seen.join(" "), expected);
    }

    fn log(changes: usize, revisions: std::ops::Range<u64>) -> ChangeLog<()> {
        let log = ChangeLog::new(revisions.start - 1, Limits { changes, size: 100_000 });
        log.append(revisions.map(change).collect());
        log
    }

    fn change(revision: u64) -> Change<()> {
        Change {
            revision,
            key: key(revision),
            value: Some(()),
            size: 1,
        }
    }

    fn key(n: u64) -> Key {
        Key::cluster(Kind::Profile, format!("p{n}"))
    }
}
