use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::block_on::block_on;
use api::{Kind, Object, ProfileSpec};
use futures::channel::oneshot;
use futures::stream;
use proptest::prelude::*;

use super::*;
use crate::{Listing, MemoryStore, Store, Stored};

#[test]
fn what_is_there_comes_first_then_in_sync_then_changes() {
    let mut bench = Bench::new(vec![Scope::All]);
    bench.put("a", 1);
    bench.put("b", 1);
    bench.check("a=1 b=1; in sync");
    bench.put("a", 2);
    bench.delete("b");
    bench.check("a=2 b=gone");
}

#[test]
fn a_large_store_is_read_no_faster_than_it_is_taken() {
    let mut bench = Bench::new(vec![Scope::All]);
    let all = 3 * BATCH + 5;
    (0..all).for_each(|n| bench.put(&n.to_string(), 1));
    let mut taken = 0;
    while taken < all {
        let event = bench.syncer.next().now_or_never().flatten();
        let Some(SyncEvent::Updates(updates)) = event else {
            panic!("{taken} of {all}, then {event:?}")
        };
        taken += updates.len();
        let read = bench.flaky.read.load(Ordering::Relaxed);
        assert!(
            updates.len() <= BATCH && read <= taken + 1,
            "{read} read, {taken} taken"
        );
    }
    bench.check("in sync");
}

#[test]
fn in_sync_waits_for_all_scopes() {
    let mut bench = Bench::new(vec![Scope::Kind(Kind::Profile), Scope::Kind(Kind::Node)]);
    bench.put("a", 1);
    bench.flaky.fail_list(Kind::Node);
    bench.check("a=1; down");
    bench.waited();
    bench.check("in sync");
}

#[test]
fn many_changes_of_a_key_come_as_the_last_one() {
    let mut bench = Bench::new(vec![Scope::All]);
    bench.check("in sync");
    (1..9).for_each(|n| bench.put("a", n));
    bench.put("b", 1);
    bench.put("a", 9);
    bench.put("c", 1);
    bench.delete("c");
    bench.check("b=1 a=9 c=gone");
}

#[test]
fn after_a_break_only_differences_are_said_deletions_included() {
    let mut bench = Bench::changed_meanwhile();
    bench.check("");
    bench.waited();
    bench.check("b=2 d=1 c=gone; in sync");
}

#[test]
fn a_reading_that_breaks_takes_nothing_away() {
    let mut bench = Bench::changed_meanwhile();
    for (after, said) in [(0, ""), (1, ""), (2, "b=2"), (1, ""), (2, "")] {
        bench.flaky.break_reading(after);
        bench.waited();
        bench.check(said);
    }
    bench.waited();
    bench.check("d=1 c=gone; in sync");
}

#[test]
fn a_deleted_and_recreated_resource_is_a_difference() {
    let mut bench = Bench::new(vec![Scope::All]);
    bench.put("a", 1);
    bench.check("a=1; in sync");
    bench.flaky.break_watches();
    bench.check("down");
    bench.delete("a");
    bench.put("a", 1);
    bench.waited();
    bench.check("a=1; in sync");
}

#[test]
fn compaction_lists_again_without_a_word() {
    let mut bench = Bench::new(vec![Scope::All]);
    ["a", "b"].into_iter().for_each(|name| bench.put(name, 1));
    bench.check("a=1 b=1; in sync");
    bench.put("a", 2);
    bench.delete("b");
    bench.flaky.inner.compact();
    bench.check("a=2 b=gone");
}

#[test]
fn a_store_that_went_back_is_said_whole_again() {
    let mut bench = Bench::new(vec![Scope::Kind(Kind::Profile), Scope::Kind(Kind::Node)]);
    ["a", "b"].into_iter().for_each(|name| bench.put(name, 1));
    bench.check("a=1 b=1; in sync");
    // Revisions are the same, and may mean something else.
    bench.flaky.break_first_watch(StoreError::WentBack);
    bench.check("a=1 b=1");
}

#[test]
fn of_several_scopes_the_first_one_says_what_is_wrong() {
    let mut bench = Bench::new(vec![Scope::Kind(Kind::Profile), Scope::Kind(Kind::Node)]);
    bench.flaky.fail_list(Kind::Node);
    bench.check("down");
    for _ in 0..3 {
        bench.flaky.fail_list(Kind::Node);
        bench.waited();
        bench.check("");
    }
    bench.flaky.break_watches();
    bench.check("");
    bench.waited();
    bench.check("in sync");
}

#[test]
fn attempts_count_up_until_something_works() {
    let mut bench = Bench::new(vec![Scope::Kind(Kind::Profile)]);
    for attempt in 1..5 {
        bench.flaky.fail_list(Kind::Profile);
        bench.check(if attempt == 1 { "down" } else { "" });
        assert_eq!(bench.attempt(), attempt);
        bench.waited();
    }
    bench.check("in sync");
    bench.put("a", 1);
    bench.check("a=1");
    bench.flaky.break_watches();
    bench.check("down");
    assert_eq!(bench.attempt(), 1);
}

proptest! {
    /// Whatever breaks and whenever the consumer looks: in the end it has what the store has.
    #[test]
    fn the_consumer_ends_with_what_the_store_has(steps in prop::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new(vec![Scope::Kind(Kind::Profile), Scope::Kind(Kind::Node)]);
        for step in steps {
            match step {
                Step::Put(name, n) => bench.put(name, n),
                Step::Delete(name) => bench.delete(name),
                Step::BreakWatches => bench.flaky.break_watches(),
                Step::FailList => bench.flaky.fail_list(Kind::Profile),
                Step::BreakReading(after) => bench.flaky.break_reading(after),
                Step::Compact => bench.flaky.inner.compact(),
                Step::Wait => bench.waited(),
                Step::Look => drop(bench.drain()),
            }
        }
        // More rounds than lists can fail.
        for _ in 0..70 {
            bench.drain();
            bench.waited();
        }
        prop_assert!(bench.in_sync);
        let listed = block_on(bench.flaky.inner.list(&Scope::All)).unwrap();
        let expected: BTreeMap<Key, Resource> =
            listed.items.into_iter().map(|stored| (stored.resource.key(), stored.resource)).collect();
        prop_assert_eq!(bench.replica, expected);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, u32),
    Delete(&'static str),
    BreakWatches,
    FailList,
    BreakReading(usize),
    Compact,
    Wait,
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || prop::sample::select(vec!["a", "b", "c", "d"]);
    prop_oneof![
        6 => (name(), 0..100u32).prop_map(|(name, n)| Step::Put(name, n)),
        3 => name().prop_map(Step::Delete),
        1 => Just(Step::BreakWatches),
        1 => Just(Step::FailList),
        1 => (0..4usize).prop_map(Step::BreakReading),
        1 => Just(Step::Compact),
        2 => Just(Step::Wait),
        4 => Just(Step::Look),
    ]
}

/// The waits that the syncer asked for: which attempt, and how to end it.
type Waits = Arc<Mutex<Vec<(u32, oneshot::Sender<()>)>>>;

/// A syncer over a store that breaks on command, and the consumer's copy.
struct Bench {
    flaky: Arc<Flaky>,
    syncer: Syncer,
    waits: Waits,
    replica: BTreeMap<Key, Resource>,
    in_sync: bool,
}

impl Bench {
    fn new(scopes: Vec<Scope>) -> Self {
        let flaky = Arc::new(Flaky::default());
        let waits = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&waits);
        let syncer = Syncer::new(flaky.clone(), scopes, move |attempt| {
            let (done, wait) = oneshot::channel();
            asked.lock().unwrap().push((attempt, done));
            wait.map(drop).boxed()
        });
        Self {
            flaky,
            syncer,
            waits,
            replica: BTreeMap::new(),
            in_sync: false,
        }
    }

    /// `a`, `b` and `c` were told; then watches broke, and `b` changed, `c` went and `d` came.
    fn changed_meanwhile() -> Self {
        let mut bench = Self::new(vec![Scope::All]);
        ["a", "b", "c"].into_iter().for_each(|name| bench.put(name, 1));
        bench.check("a=1 b=1 c=1; in sync");
        bench.flaky.break_watches();
        bench.check("down");
        bench.put("b", 2);
        bench.delete("c");
        bench.put("d", 1);
        bench
    }

    /// Everything the syncer says until it waits, against `expected`: updates, then other events, by `; `.
    fn check(&mut self, expected: &str) {
        assert_eq!(self.drain().join("; "), expected);
    }

    fn drain(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(event) = self.syncer.next().now_or_never() {
            said.push(match event.expect("a syncer never ends") {
                SyncEvent::InSync => {
                    self.in_sync = true;
                    "in sync".into()
                }
                SyncEvent::Disconnected(_) => {
                    self.in_sync = false;
                    "down".into()
                }
                SyncEvent::Updates(updates) => updates
                    .into_iter()
                    .map(|update| self.take(update))
                    .collect::<Vec<_>>()
                    .join(" "),
            });
        }
        said
    }

    fn take(&mut self, update: Update) -> String {
        let name = update.key.name.clone();
        match update.value {
            Some(resource) => {
                let label = resource.metadata().labels["n"].clone();
                self.replica.insert(update.key, resource);
                format!("{name}={label}")
            }
            None => {
                self.replica.remove(&update.key);
                format!("{name}=gone")
            }
        }
    }

    fn waited(&mut self) {
        for (_, done) in self.waits.lock().unwrap().drain(..) {
            let _ = done.send(());
        }
    }

    fn attempt(&self) -> u32 {
        self.waits.lock().unwrap().last().expect("it waits").0
    }

    fn put(&self, name: &str, n: u32) {
        let mut profile = Object::new(name, ProfileSpec::default());
        profile.metadata.labels.insert("n".into(), n.to_string());
        let key = profile.key();
        block_on(async {
            match self.flaky.inner.get(&key).await.unwrap() {
                Some(stored) => self.flaky.inner.update(profile.into(), &stored.revision).await.unwrap(),
                None => self.flaky.inner.create(profile.into()).await.unwrap(),
            }
        });
    }

    fn delete(&self, name: &str) {
        let _ = block_on(self.flaky.inner.delete(&Key::cluster(Kind::Profile, name), None));
    }
}

/// A [`MemoryStore`] whose lists fail and whose watches break when told.
#[derive(Default)]
struct Flaky {
    inner: MemoryStore,
    failing: Mutex<Vec<Kind>>,
    /// The next reading breaks after so many events.
    half: Mutex<Option<usize>>,
    watches: Mutex<Vec<oneshot::Sender<StoreError>>>,
    /// How many events of watches have been taken.
    read: Arc<AtomicUsize>,
}

impl Flaky {
    fn fail_list(&self, kind: Kind) {
        self.failing.lock().unwrap().push(kind);
    }

    fn break_reading(&self, after: usize) {
        *self.half.lock().unwrap() = Some(after);
    }

    fn break_watches(&self) {
        self.watches.lock().unwrap().clear();
    }

    fn break_first_watch(&self, error: StoreError) {
        let _ = self.watches.lock().unwrap().remove(0).send(error);
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("broken on command".into())
}

impl Store for Flaky {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.inner.list(scope)
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.inner.create(resource)
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.inner.update(resource, expected)
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.inner.delete(key, expected)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let mut failing = self.failing.lock().unwrap();
        let fails = |kind: &Kind| from.is_none() && scope == Scope::Kind(*kind);
        if let Some(at) = failing.iter().position(fails) {
            failing.remove(at);
            return stream::iter([Err(unavailable())]).boxed();
        }
        if from.is_none()
            && let Some(after) = self.half.lock().unwrap().take()
        {
            let half = self.inner.watch(scope, from).take(after);
            return half.chain(stream::iter([Err(unavailable())])).boxed();
        }
        let (alive, broken) = oneshot::channel();
        self.watches.lock().unwrap().push(alive);
        let broken = stream::once(async move { Err(broken.await.unwrap_or_else(|_| unavailable())) });
        let mut ended = false;
        let read = Arc::clone(&self.read);
        let events = self.inner.watch(scope, from);
        let counted = events.inspect(move |_| {
            read.fetch_add(1, Ordering::Relaxed);
        });
        stream::select(counted, broken)
            .take_while(move |event| std::future::ready(!std::mem::replace(&mut ended, event.is_err())))
            .boxed()
    }
}
