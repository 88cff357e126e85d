//! A store that refuses writes as soon as this process does not lead any more.

use std::sync::{Arc, PoisonError, RwLock};

use api::{Key, Resource};
use datastore::{Listing, News, Revision, Scope, SharedStore, Store, StoreError, Stored, WatchEvent, Write};
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::leadership::Holds;

/// The gate in front of a store's writes. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate {
    holds: Arc<RwLock<Option<Holds>>>,
    /// Writes that have passed and are not answered yet.
    passing: watch::Sender<usize>,
}

/// A write that has passed, until it is answered or given up.
struct Passing(watch::Sender<usize>);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Gate {
    /// Lets writes through for as long as this term holds.
    pub fn open(&self, holds: Holds) {
        *self.holds.write().unwrap_or_else(PoisonError::into_inner) = Some(holds);
    }

    /// Lets nothing through any more.
    pub fn close(&self) {
        *self.holds.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a write may pass now: the term itself is asked, each time.
    pub fn is_open(&self) -> bool {
        let holds = self.holds.read().unwrap_or_else(PoisonError::into_inner);
        holds.as_ref().is_some_and(|holds| holds())
    }

    /// Waits until no write is under way. The gate is to be closed before.
    pub async fn quiet(&self) {
        // The sender lives as long as this gate does.
        let _ = self.passing.subscribe().wait_for(|count| *count == 0).await;
    }

    fn pass(&self) -> Result<Passing, StoreError> {
        self.passing.send_modify(|count| *count += 1);
        let passing = Passing(self.passing.clone());
        match self.is_open() {
            true => Ok(passing),
            false => Err(StoreError::Unavailable("this process does not lead".into())),
        }
    }
}

/// Reads as the store below; writes only while the gate is open.
pub struct Fenced {
    below: SharedStore,
    gate: Gate,
}

impl Fenced {
    /// Puts a gate in front of a store.
    pub fn new(below: SharedStore, gate: Gate) -> Self {
        Self { below, gate }
    }

    /// A write, if the gate is open now.
    fn through<'a, T: Send + 'a>(
        &self,
        write: impl FnOnce() -> BoxFuture<'a, T>,
        refused: impl FnOnce(StoreError) -> T,
    ) -> BoxFuture<'a, T> {
        match self.gate.pass() {
            Err(error) => ready(refused(error)).boxed(),
            Ok(passing) => {
                let write = write();
                async move {
                    let answer = write.await;
                    drop(passing);
                    answer
                }
                .boxed()
            }
        }
    }
}

impl Store for Fenced {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.below.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.below.list(scope)
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.through(|| self.below.create(resource), Err)
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.through(|| self.below.update(resource, expected), Err)
    }

    fn update_status<'a>(
        &'a self,
        resource: Resource,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.through(|| self.below.update_status(resource, expected), Err)
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.through(|| self.below.delete(key, expected), Err)
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Stored, StoreError>>> {
        self.through(|| self.below.write_all(writes), |error| vec![Err(error)])
    }

    fn tell<'a>(&'a self, news: &'a News) -> BoxFuture<'a, Result<(), StoreError>> {
        self.through(|| self.below.tell(news), Err)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.below.watch(scope, from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use api::{Kind, Node, NodeSpec};
    use datastore::MemoryStore;

    use super::*;

    #[test]
    fn writes_pass_only_while_the_term_holds() {
        let memory = MemoryStore::new();
        let gate = Gate::default();
        let fenced = Fenced::new(Arc::new(memory.clone()), gate.clone());
        let key = Key::cluster(Kind::Node, "n");
        let node = || Resource::from(Node::new("n", NodeSpec::default()));
        let write = |expected: bool| {
            let there = memory.get(&key).now_or_never().unwrap().unwrap();
            let revision = there
                .as_ref()
                .map_or(Revision(String::new()), |stored| stored.revision.clone());
            let answers = [
                fenced.update(node(), &revision).now_or_never().unwrap(),
                fenced.delete(&key, None).now_or_never().unwrap(),
                fenced.create(node()).now_or_never().unwrap(),
                fenced
                    .write_all(vec![Write::Delete(key.clone(), None)])
                    .now_or_never()
                    .unwrap()
                    .remove(0),
                memory.create(node()).now_or_never().unwrap(),
            ];
            let refused = |answer: &&Result<Stored, StoreError>| matches!(answer, Err(StoreError::Unavailable(_)));
            assert_eq!(answers.iter().filter(refused).count(), if expected { 0 } else { 4 });
            assert!(fenced.get(&key).now_or_never().unwrap().unwrap().is_some());
        };
        write(false);
        let holds = Arc::new(AtomicBool::new(true));
        let term = Arc::clone(&holds);
        gate.open(Arc::new(move || term.load(Ordering::SeqCst)));
        write(true);
        // The term ends, and nobody has closed the gate yet.
        holds.store(false, Ordering::SeqCst);
        write(false);
        holds.store(true, Ordering::SeqCst);
        gate.close();
        write(false);
    }

    #[test]
    fn it_is_quiet_when_the_last_write_was_answered() {
        let memory = MemoryStore::new();
        let gate = Gate::default();
        let fenced = Fenced::new(Arc::new(memory), gate.clone());
        gate.open(Arc::new(|| true));
        let write = fenced.create(Node::new("n", NodeSpec::default()).into());
        gate.close();
        assert!(gate.quiet().now_or_never().is_none(), "a write is under way");
        assert!(write.now_or_never().unwrap().is_ok());
        assert!(gate.quiet().now_or_never().is_some());
    }
}
