//! A store that refuses writes as soon as this process does not lead any more, and gives up those that are under way.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use api::{Key, Resource};
use datastore::{Listing, News, Revision, Scope, SharedStore, Store, StoreError, Stored, WatchEvent, Write};
use futures::future::{BoxFuture, FutureExt, ready};
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::leadership::Left;

/// The gate in front of a store's writes. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate {
    left: Arc<RwLock<Option<Left>>>,
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
    /// Lets writes through for as long as this term lasts.
    pub fn open(&self, left: Left) {
        *self.left.write().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }

    /// Lets nothing through any more. Writes under way have the rest of their term, which is answered if there was one.
    pub fn close(&self) -> Option<Left> {
        self.left.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a write may pass now: the term itself is asked, each time.
    pub fn is_open(&self) -> bool {
        self.term().is_some()
    }

    /// The term that lasts.
    fn term(&self) -> Option<Left> {
        let left = self.left.read().unwrap_or_else(PoisonError::into_inner).clone();
        left.filter(|left| left().is_some())
    }

    /// Waits until no write is under way. The gate is to be closed before.
    pub async fn quiet(&self) {
        // The sender lives as long as this gate does.
        let _ = self.passing.subscribe().wait_for(|count| *count == 0).await;
    }

    fn pass(&self) -> Option<(Passing, Left)> {
        self.passing.send_modify(|count| *count += 1);
        let passing = Passing(self.passing.clone());
        self.term().map(|left| (passing, left))
    }
}

/// What a write answers, if it does so while its term lasts; a term that is renewed meanwhile lasts longer. Afterwards it does
/// not do another step.
async fn within<T>(left: &Left, write: impl Future<Output = T>) -> Option<T> {
    let mut write = pin!(write);
    loop {
        let time = left()?;
        let answer = poll_fn(|context| match left() {
            None => Poll::Ready(None),
            Some(_) => write.as_mut().poll(context).map(Some),
        });
        // The clock of a timer may stand still where that of the term does not; then each step finds out.
        if time == Duration::MAX {
            return answer.await;
        }
        if let Ok(answer) = tokio::time::timeout(time, answer).await {
            return answer;
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

    /// A write, if the gate is open now, and for as long as the term lasts in which it was.
    fn through<'a, T: Send + 'a>(
        &self,
        write: impl FnOnce() -> BoxFuture<'a, T>,
        refused: impl FnOnce(StoreError) -> T + Send + 'a,
    ) -> BoxFuture<'a, T> {
        let Some((passing, left)) = self.gate.pass() else {
            return ready(refused(StoreError::Unavailable("this process does not lead".into()))).boxed();
        };
        let write = write();
        async move {
            let answer = within(&left, write).await;
            drop(passing);
            answer.unwrap_or_else(|| {
                let why = "this process leads no more, and nobody knows whether the write was done";
                refused(StoreError::Unavailable(why.into()))
            })
        }
        .boxed()
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

    fn set_finalizers<'a>(
        &'a self,
        key: &'a Key,
        finalizers: Vec<String>,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.through(|| self.below.set_finalizers(key, finalizers, expected), Err)
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
    use std::sync::Mutex;
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
                fenced
                    .set_finalizers(&key, vec!["x/y".into()], &revision)
                    .now_or_never()
                    .unwrap(),
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
            assert_eq!(answers.iter().filter(refused).count(), if expected { 0 } else { 5 });
            assert!(fenced.get(&key).now_or_never().unwrap().unwrap().is_some());
        };
        write(false);
        let holds = Arc::new(AtomicBool::new(true));
        let term = Arc::clone(&holds);
        gate.open(Arc::new(move || term.load(Ordering::SeqCst).then_some(Duration::MAX)));
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
        gate.open(Arc::new(|| Some(Duration::MAX)));
        let write = fenced.create(Node::new("n", NodeSpec::default()).into());
        assert!(gate.close().is_some());
        assert!(gate.quiet().now_or_never().is_none(), "a write is under way");
        assert!(write.now_or_never().unwrap().is_ok());
        assert!(gate.quiet().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_write_does_no_step_after_its_term() {
        const HOUR: Option<u64> = Some(3_600_000);
        // How long the term lasts whenever it is asked, ms; whether the write asks to go on by itself; at which step it is done;
        // whether it was, and steps.
        let check = async |script: &[Option<u64>], awake: bool, done: usize, expected: (bool, usize)| {
            let script = Mutex::new(script.to_vec());
            let left: Left = Arc::new(move || {
                let mut script = script.lock().unwrap();
                let next = if script.len() > 1 { script.remove(0) } else { script[0] };
                next.map(Duration::from_millis)
            });
            let mut steps = 0;
            let write = poll_fn(|context| {
                steps += 1;
                if awake {
                    context.waker().wake_by_ref();
                }
                if steps == done { Poll::Ready(()) } else { Poll::Pending }
            });
            let answered = within(&left, write).await.is_some();
            assert_eq!((answered, steps), expected);
        };
        check(&[HOUR], false, 1, (true, 1)).await;
        check(&[None], false, 1, (false, 0)).await;
        // It waits when the time is over.
        check(&[Some(1), Some(1), None], false, 2, (false, 1)).await;
        // It waits, and the term was renewed.
        check(&[Some(1), Some(1), HOUR], false, 2, (true, 2)).await;
        // The machine was suspended: no timer has noticed.
        check(&[HOUR, HOUR, HOUR, None], true, 9, (false, 2)).await;
    }

    #[tokio::test]
    async fn what_was_given_up_is_told() {
        let gate = Gate::default();
        let fenced = Fenced::new(Arc::new(MemoryStore::new()), gate.clone());
        let asked = Mutex::new(0);
        gate.open(Arc::new(move || {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            (*asked < 2).then_some(Duration::MAX)
        }));
        let Err(StoreError::Unavailable(why)) = fenced.create(Node::new("n", NodeSpec::default()).into()).await else {
            panic!("it was written")
        };
        assert!(why.to_string().contains("nobody knows"), "{why}");
        assert!(gate.quiet().now_or_never().is_some());
    }
}
