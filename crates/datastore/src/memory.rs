//! A [`Store`] in memory: the reference implementation, for tests and for what need not outlive its process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{Key, Resource};
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::{self, BoxStream, StreamExt};

use crate::changes::{Change, ChangeLog, Limits};
use crate::store::{Listing, Revision, Scope, Store, StoreError, Stored, Update, WatchEvent, check_key, check_new};

/// How many changes a store keeps for its watchers unless told otherwise.
pub const DEFAULT_LOG: usize = 4096;

/// A store in memory. Clones share it. Needs no runtime: all futures are ready at once, only watches wait.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    log: ChangeLog<Arc<Resource>>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with its revision in `metadata.resource_version`.
    items: BTreeMap<Key, (u64, Arc<Resource>)>,
    revision: u64,
}

impl MemoryStore {
    /// An empty store that keeps the last [`DEFAULT_LOG`] changes for its watchers.
    pub fn new() -> Self {
        Self::with_log(DEFAULT_LOG)
    }

    /// An empty store that keeps the last `changes` changes for its watchers.
    pub fn with_log(changes: usize) -> Self {
        let limits = Limits {
            changes,
            size: usize::MAX,
        };
        Self {
            state: Arc::default(),
            log: ChangeLog::new(0, limits),
        }
    }

    /// Forgets all changes so far: watchers that have not read them, and watches from older revisions, get
    /// [`StoreError::Compacted`].
    pub fn compact(&self) {
        self.log.compact();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every mutation completes before the lock is released, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create_now(&self, resource: Resource) -> Result<Stored, StoreError> {
        let key = resource.key();
        check_key(&key)?;
        check_new(&resource)?;
        let mut state = self.state();
        if state.items.contains_key(&key) {
            return Err(StoreError::Exists(key));
        }
        Ok(self.commit(&mut state, key, resource))
    }

    fn update_now(&self, resource: Resource, expected: &Revision) -> Result<Stored, StoreError> {
        let key = resource.key();
        let mut state = self.state();
        match state.items.get(&key) {
            None => Err(StoreError::NotFound(key)),
            Some((revision, _)) if revision.to_string() != expected.0 => Err(StoreError::Conflict(key)),
            Some(_) => Ok(self.commit(&mut state, key, resource)),
        }
    }

    fn delete_now(&self, key: &Key, expected: Option<&Revision>) -> Result<Stored, StoreError> {
        let mut state = self.state();
        let Some((revision, resource)) = state.items.get(key).cloned() else {
            return Err(StoreError::NotFound(key.clone()));
        };
        if expected.is_some_and(|expected| expected.0 != revision.to_string()) {
            return Err(StoreError::Conflict(key.clone()));
        }
        state.items.remove(key);
        state.revision += 1;
        self.log.append(vec![Change {
            revision: state.revision,
            key: key.clone(),
            value: None,
            size: 1,
        }]);
        Ok(stored(revision, &resource))
    }

    /// Puts the resource at a new revision. The log is written under the state's lock: same order in both.
    fn commit(&self, state: &mut State, key: Key, mut resource: Resource) -> Stored {
        state.revision += 1;
        let revision = state.revision;
        resource.metadata_mut().resource_version = Some(revision.to_string());
        let resource = Arc::new(resource);
        state.items.insert(key.clone(), (revision, Arc::clone(&resource)));
        let stored = stored(revision, &resource);
        self.log.append(vec![Change {
            revision,
            key,
            value: Some(resource),
            size: 1,
        }]);
        stored
    }

    fn list_now(&self, scope: &Scope) -> Listing {
        let state = self.state();
        let items = state.items.iter().filter(|(key, _)| scope.contains(key));
        Listing {
            items: items
                .map(|(_, (revision, resource))| stored(*revision, resource))
                .collect(),
            revision: Revision(state.revision.to_string()),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        let found = self
            .state()
            .items
            .get(key)
            .map(|(revision, resource)| stored(*revision, resource));
        ready(Ok(found)).boxed()
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        ready(Ok(self.list_now(scope))).boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        ready(self.create_now(resource)).boxed()
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        ready(self.update_now(resource, expected)).boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        ready(self.delete_now(key, expected)).boxed()
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let Some(from) = from else {
            let listing = self.list_now(&scope);
            let start = listing.revision.0.parse().unwrap_or_default();
            return stream::iter(listing.into_events().map(Ok))
                .chain(self.follow(scope, start))
                .boxed();
        };
        // A revision that is not ours, or not yet, belongs to another store: only a list can help.
        match from.0.parse() {
            Ok(from) if from <= self.state().revision => self.follow(scope, from),
            _ => stream::iter([Err(StoreError::Compacted)]).boxed(),
        }
    }
}

impl MemoryStore {
    fn follow(&self, scope: Scope, from: u64) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.log.follow(scope, from).map(|change| change.map(event)).boxed()
    }
}

fn event(change: Change<Arc<Resource>>) -> WatchEvent {
    let value = change.value.map(Arc::unwrap_or_clone);
    WatchEvent::Update(Update { key: change.key, value }, Revision(change.revision.to_string()))
}

fn stored(revision: u64, resource: &Resource) -> Stored {
    Stored {
        resource: resource.clone(),
        revision: Revision(revision.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use crate::block_on::block_on;

    use super::*;
    use crate::contract::{Subject, all};

    #[test]
    fn keeps_the_contract() {
        for (name, check) in all() {
            let store = MemoryStore::new();
            let compact = store.clone();
            let subject = Subject::new(Arc::new(store)).with_compact(move || {
                compact.compact();
                ready(()).boxed()
            });
            block_on(check(subject)).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }
}
