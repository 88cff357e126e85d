//! The running store: the file, a thread that writes, a thread that lists, and the log that watchers follow.
//!
//! ```text
//!  callers --- write(op, reply) ---> [writer thread] --- one transaction, one sync ---> file
//!      ^                                   |  then
//!      +------------- reply ---------------+--- append ---> ChangeLog ---> watchers, each at its own pace
//! ```
//!
//! **Group commit**: all writes that wait when the writer gets to it go into one transaction; each gets its own answer,
//! after the sync. Single reads happen on the caller's thread (a few microseconds, from redb's cache); lists go to the
//! second thread. Both threads sleep until they get work.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use api::{Key, Resource};
use datastore::changes::{Change, ChangeLog, Limits};
use datastore::{Listing, Revision, Scope, Store, StoreError, Stored, Update, WatchEvent, Write, check_key, check_new};
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::value::RawValue;
use tracing::error;

use super::file::{Done, Item, Op, Snapshot, StoreFile, Tail, Value};

/// The largest resource, in bytes of JSON (etcd's default limit is 1.5 MiB per request).
pub const MAX_VALUE: usize = 1 << 20;
/// What is kept for watchers, in memory and in the file.
pub(crate) const KEPT: Limits = Limits {
    changes: 4096,
    size: 8 << 20,
};
/// The file's log is trimmed in steps of so many changes.
const TRIM_STEP: u64 = 256;
/// A transaction takes at most so many writes, and stops taking more after so many bytes.
const GROUP: usize = 1024;
const GROUP_BYTES: usize = 4 << 20;

/// How an answer gets to who asked. Runs on the store's threads: it must not block.
pub(crate) type Reply<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// What came of writes that belong together: one outcome for each that was tried.
pub(crate) type Outcomes = Vec<Result<Done, StoreError>>;

/// As [`Reply`], for writes that belong together.
pub(crate) type JobReply = Box<dyn FnOnce(Outcomes) + Send>;

/// Writes that belong together: done in order, up to the first that fails. Answered after the sync, with one outcome for each
/// that was tried.
pub(crate) struct Job {
    pub(crate) ops: Vec<Op>,
    pub(crate) reply: JobReply,
}

/// The running store. Dropping it waits for the writes under way.
pub(crate) struct Engine {
    file: Arc<StoreFile>,
    pub(crate) log: ChangeLog<Value>,
    /// Both `Some` until dropped.
    writes: Option<Sender<Job>>,
    lists: Option<Sender<(Scope, Reply<Snapshot>)>>,
    threads: Vec<JoinHandle<()>>,
}

/// What a watch delivers, unread.
pub(crate) enum RawEvent {
    Update {
        key: Key,
        value: Option<Value>,
        revision: u64,
    },
    InSync(u64),
}

impl Engine {
    /// Starts on an open file.
    pub(crate) fn start(file: StoreFile, tail: Tail) -> std::io::Result<Self> {
        let file = Arc::new(file);
        let log = ChangeLog::new(tail.floor, KEPT);
        let floor = log.append(tail.changes);
        log.advance(tail.revision);
        let (writes, to_write) = channel();
        let (lists, to_list) = channel();
        let writer = Writer {
            file: Arc::clone(&file),
            log: log.clone(),
            trimmed: tail.floor,
            floor,
        };
        let reader = Arc::clone(&file);
        let threads = vec![
            std::thread::Builder::new()
                .name("store-write".into())
                .spawn(move || writer.run(to_write))?,
            std::thread::Builder::new()
                .name("store-list".into())
                .spawn(move || serve_lists(&reader, &to_list))?,
        ];
        Ok(Self {
            file,
            log,
            writes: Some(writes),
            lists: Some(lists),
            threads,
        })
    }

    /// Reads one resource, at once.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<(u64, Value)>, StoreError> {
        self.file.get(key)
    }

    /// Hands a write to the writer.
    pub(crate) fn write(&self, op: Op, reply: Reply<Done>) {
        // One write has one outcome.
        let reply = |outcomes: Vec<_>| reply(outcomes.into_iter().next().unwrap_or_else(|| Err(stopped())));
        self.write_all(Job {
            ops: vec![op],
            reply: Box::new(reply),
        });
    }

    /// Hands several writes to the writer.
    pub(crate) fn write_all(&self, job: Job) {
        if let Err(unsent) = self.writes.as_ref().expect("set until dropped").send(job) {
            (unsent.0.reply)(vec![Err(stopped())]);
        }
    }

    /// Hands a list to the reader.
    pub(crate) fn list(&self, scope: Scope, reply: Reply<Snapshot>) {
        if let Err(unsent) = self.lists.as_ref().expect("set until dropped").send((scope, reply)) {
            (unsent.0.1)(Err(stopped()));
        }
    }

    /// The raw form of [`Store::watch`].
    pub(crate) fn watch(self: Arc<Self>, scope: Scope, from: Option<Revision>) -> RawWatch {
        match from {
            None => stream::once(self.watch_from_nothing(scope)).flatten().boxed(),
            Some(from) => match self.check_start(&from) {
                Ok(from) => self.follow(scope, from),
                Err(error) => stream::iter([Err(error)]).boxed(),
            },
        }
    }

    async fn watch_from_nothing(self: Arc<Self>, scope: Scope) -> RawWatch {
        match self.snapshot(scope.clone()).await {
            Err(error) => stream::iter([Err(error)]).boxed(),
            Ok(Snapshot { items, revision }) => {
                let there = items.into_iter().map(|Item { key, revision, value }| {
                    Ok(RawEvent::Update {
                        key,
                        value: Some(value),
                        revision,
                    })
                });
                stream::iter(there)
                    .chain(stream::iter([Ok(RawEvent::InSync(revision))]))
                    .chain(self.follow(scope, revision))
                    .boxed()
            }
        }
    }

    fn follow(&self, scope: Scope, from: u64) -> RawWatch {
        let follow = self.log.follow(scope, from);
        follow
            .map(|change| {
                change.map(
                    |Change {
                         key, value, revision, ..
                     }| RawEvent::Update { key, value, revision },
                )
            })
            .boxed()
    }

    /// A revision that was never given here belongs to another store, or to what came after a backup: only a list can help. One
    /// that was committed but is not in the log yet will be in a moment.
    fn check_start(&self, from: &Revision) -> Result<u64, StoreError> {
        let from: u64 = from.0.parse().map_err(|_| StoreError::Compacted)?;
        let is_given = match from.cmp(&self.log.head()) {
            Ordering::Less => self.log.passes(from),
            Ordering::Equal => true,
            Ordering::Greater => from <= self.file.revision()?,
        };
        is_given.then_some(from).ok_or(StoreError::Compacted)
    }

    async fn snapshot(&self, scope: Scope) -> Result<Snapshot, StoreError> {
        let (reply, answer) = awaited();
        self.list(scope, reply);
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    async fn written(&self, op: Op) -> Result<Done, StoreError> {
        let (reply, answer) = awaited();
        self.write(op, reply);
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.writes = None;
        self.lists = None;
        for thread in self.threads.drain(..) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                error!("a thread of the store has panicked");
            }
        }
        self.log.close(stopped());
    }
}

pub(crate) type RawWatch = BoxStream<'static, Result<RawEvent, StoreError>>;

struct Writer {
    file: Arc<StoreFile>,
    log: ChangeLog<Value>,
    /// The file's log has been dropped up to here.
    trimmed: u64,
    /// The memory's log has been dropped up to here.
    floor: u64,
}

impl Writer {
    fn run(mut self, writes: Receiver<Job>) {
        while let Ok(job) = writes.recv() {
            let mut bytes = job.size();
            let (mut group, mut replies) = (vec![job.ops], vec![job.reply]);
            while group.len() < GROUP && bytes < GROUP_BYTES {
                let Ok(job) = writes.try_recv() else { break };
                bytes += job.size();
                group.push(job.ops);
                replies.push(job.reply);
            }
            self.commit(&group, replies);
        }
    }

    fn commit(&mut self, group: &[Vec<Op>], replies: Vec<JobReply>) {
        let forget = (self.floor >= self.trimmed + TRIM_STEP).then_some(self.floor);
        // A panic in redb must not leave anyone without an answer; it refuses all that comes later.
        let committed = catch_unwind(AssertUnwindSafe(|| self.file.commit(group, forget)))
            .unwrap_or_else(|_| Err(StoreError::Unavailable("writing to the store's file panicked".into())));
        match committed {
            Ok(committed) => {
                // Who wrote goes on first: watchers are many, and what they do with a change takes longer.
                for (reply, outcomes) in replies.into_iter().zip(committed.outcomes) {
                    reply(outcomes);
                }
                if !committed.changes.is_empty() {
                    self.trimmed = forget.unwrap_or(self.trimmed);
                    self.floor = self.log.append(committed.changes);
                }
            }
            Err(error) => {
                error!(%error, writes = group.len(), "nothing was written");
                replies.into_iter().for_each(|reply| reply(vec![Err(error.clone())]));
            }
        }
    }
}

impl Job {
    fn size(&self) -> usize {
        self.ops.iter().map(Op::size).sum()
    }
}

fn serve_lists(file: &StoreFile, lists: &Receiver<(Scope, Reply<Snapshot>)>) {
    while let Ok((scope, reply)) = lists.recv() {
        reply(file.list(&scope));
    }
}

fn awaited<T: Send + 'static>() -> (Reply<T>, oneshot::Receiver<Result<T, StoreError>>) {
    let (answer, awaited) = oneshot::channel();
    // Who no longer waits needs no answer.
    (Box::new(move |result| drop(answer.send(result))), awaited)
}

pub(crate) fn stopped() -> StoreError {
    StoreError::Unavailable("the store has stopped".into())
}

/// The store, used within its own process.
#[derive(Clone)]
pub(crate) struct Local(pub(crate) Arc<Engine>);

impl Store for Local {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        let read = || {
            self.0
                .get(key)?
                .map(|(revision, value)| decode(key, &value, &number(revision)))
                .transpose()
        };
        std::future::ready(read()).boxed()
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async {
            let snapshot = self.0.snapshot(scope.clone()).await?;
            let items = snapshot
                .items
                .iter()
                .map(|item| decode(&item.key, &item.value, &number(item.revision)));
            Ok(Listing {
                items: items.collect::<Result<_, _>>()?,
                revision: number(snapshot.revision),
            })
        }
        .boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        if let Err(refused) = check_new(&resource) {
            return futures::future::ready(Err(refused)).boxed();
        }
        async {
            let (key, value) = encode(&resource)?;
            stored(resource, self.0.written(Op::Create { key, value }).await?)
        }
        .boxed()
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async {
            let (key, value) = encode(&resource)?;
            stored(
                resource,
                self.0
                    .written(Op::Update {
                        key,
                        value,
                        expected: expected.0.clone(),
                    })
                    .await?,
            )
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let op = Op::Delete {
                key: key.clone(),
                expected: expected.map(|expected| expected.0.clone()),
            };
            match self.0.written(op).await? {
                Done::Deleted(revision, value) => decode(key, &value, &number(revision)),
                Done::Written(revision) => Err(StoreError::Unavailable(
                    format!("a delete wrote revision {revision}").into(),
                )),
            }
        }
        .boxed()
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Stored, StoreError>>> {
        async {
            let (ops, bad) = ops(&writes);
            let (answer, awaited) = oneshot::channel();
            let job = Job {
                ops,
                // Who no longer waits needs no answer.
                reply: Box::new(|outcomes| drop(answer.send(outcomes))),
            };
            self.0.write_all(job);
            let outcomes = awaited.await.unwrap_or_else(|_| vec![Err(stopped())]);
            let failed = outcomes.iter().any(Result::is_err);
            let answers = writes.into_iter().zip(outcomes).map(|(write, outcome)| {
                outcome.and_then(|done| match (write, done) {
                    (Write::Create(resource) | Write::Update(resource, _), done) => stored(resource, done),
                    (Write::Delete(key, _), Done::Deleted(revision, value)) => decode(&key, &value, &number(revision)),
                    (Write::Delete(..), Done::Written(revision)) => Err(StoreError::Unavailable(
                        format!("a delete wrote revision {revision}").into(),
                    )),
                })
            });
            answers.chain(bad.filter(|_| !failed).map(Err)).collect()
        }
        .boxed()
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        // A resource that cannot be read ends the watch, as every error does.
        let mut ended = false;
        Arc::clone(&self.0)
            .watch(scope, from)
            .map(|event| event.and_then(decode_event))
            .take_while(move |event| std::future::ready(!std::mem::replace(&mut ended, event.is_err())))
            .boxed()
    }
}

/// The operations of writes, up to the first that cannot be stored, and why it cannot.
fn ops(writes: &[Write]) -> (Vec<Op>, Option<StoreError>) {
    let mut ops = Vec::with_capacity(writes.len());
    for write in writes {
        let op = match write {
            Write::Create(resource) => encode(resource).map(|(key, value)| Op::Create { key, value }),
            Write::Update(resource, expected) => encode(resource).map(|(key, value)| Op::Update {
                key,
                value,
                expected: expected.0.clone(),
            }),
            Write::Delete(key, expected) => Ok(Op::Delete {
                key: key.clone(),
                expected: expected.as_ref().map(|expected| expected.0.clone()),
            }),
        };
        match op {
            Ok(op) => ops.push(op),
            Err(error) => return (ops, Some(error)),
        }
    }
    (ops, None)
}

fn stored(resource: Resource, done: Done) -> Result<Stored, StoreError> {
    match done {
        Done::Written(revision) => Ok(at_revision(resource, number(revision))),
        Done::Deleted(..) => Err(StoreError::Unavailable("a write deleted".into())),
    }
}

fn decode_event(event: RawEvent) -> Result<WatchEvent, StoreError> {
    match event {
        RawEvent::InSync(revision) => Ok(WatchEvent::InSync(number(revision))),
        RawEvent::Update { key, value, revision } => {
            let revision = number(revision);
            let value = value.map(|value| decode(&key, &value, &revision)).transpose()?;
            Ok(WatchEvent::Update(
                Update {
                    key,
                    value: value.map(|stored| stored.resource),
                },
                revision,
            ))
        }
    }
}

/// A revision as others see it.
pub(crate) fn number(revision: u64) -> Revision {
    Revision(revision.to_string())
}

/// The stored form of a resource.
///
/// # Errors
/// [`StoreError::Refused`] for a resource without a name, or of more than [`MAX_VALUE`].
pub(crate) fn encode(resource: &Resource) -> Result<(Key, Value), StoreError> {
    let key = resource.key();
    check_key(&key)?;
    let json = if resource.metadata().resource_version.is_some() {
        let mut resource = resource.clone();
        resource.metadata_mut().resource_version = None;
        serde_json::value::to_raw_value(&resource)
    } else {
        serde_json::value::to_raw_value(resource)
    };
    let json = json.map_err(|error| StoreError::Refused(format!("{key} has no JSON form: {error}")))?;
    if json.get().len() > MAX_VALUE {
        let size = json.get().len();
        return Err(StoreError::Refused(format!(
            "{key} has {size} bytes of JSON, the limit is {MAX_VALUE}"
        )));
    }
    Ok((key, json.into()))
}

/// A resource from its stored form.
///
/// # Errors
/// [`StoreError::Refused`] if it is not one: a newer version wrote it, or someone else.
pub(crate) fn decode(key: &Key, json: &RawValue, revision: &Revision) -> Result<Stored, StoreError> {
    let resource: Resource = serde_json::from_str(json.get())
        .map_err(|error| StoreError::Refused(format!("{key} cannot be read: {error}")))?;
    Ok(at_revision(resource, revision.clone()))
}

/// A resource as stored at a revision.
pub(crate) fn at_revision(mut resource: Resource, revision: Revision) -> Stored {
    resource.metadata_mut().resource_version = Some(revision.0.clone());
    Stored { resource, revision }
}
