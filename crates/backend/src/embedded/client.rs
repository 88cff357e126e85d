//! A store that another process serves: all requests and watches of a process share one connection.
//!
//! Requests are pipelined: each has an id, a task hands every answer to who waits for it. A connection that has broken is
//! replaced by the next request. A write that was under way then answers [`StoreError::Unavailable`], for nobody knows
//! whether it was done; reads are asked again. A server that takes too long to answer is as good as a broken connection: its
//! process hangs, and with it everything that would be asked next.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{Key, Resource};
use datastore::{Listing, Reason, Revision, Scope, Store, StoreError, Stored, Update, WatchEvent, Write, check_new};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;

use super::engine::{at_revision, decode, encode};
use super::outbox::{CROWD, Outbox, Sent};
use super::wire::{CREDIT, Frames, PROTOCOL, Reply, Request, frame};
use crate::ConnectError;

/// How long a server may take to say hello.
const HELLO: Duration = Duration::from_secs(5);
/// How long it may take for the next part of an answer. Longer than a disk that is busy.
const ANSWER: Duration = Duration::from_secs(30);

type Answer = Reply<Box<RawValue>>;

/// A connection to a [`super::Server`]. Clones share it. Lives on the runtime it was made on.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    runtime: Handle,
    link: Mutex<Option<Arc<Link>>>,
    /// Held while connecting, so that only one connection is made.
    connecting: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
    /// How long an answer is waited for.
    patience: Duration,
}

/// One connection, alive or not.
struct Link {
    outbox: Arc<Outbox>,
    waiting: Mutex<Waiting>,
    /// The tasks that read and write.
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Default)]
struct Waiting {
    closed: bool,
    calls: HashMap<u64, Caller>,
    /// How many of the calls want one answer.
    under_way: usize,
}

enum Caller {
    /// Wants one answer.
    Once(oneshot::Sender<Answer>),
    /// Wants answers until it no longer listens: a list or a watch. Bounded by the list's size and the watch's credit.
    Many(mpsc::UnboundedSender<Answer>),
}

impl Client {
    /// Connects to the server on a socket.
    ///
    /// # Errors
    /// See [`ConnectError`]. Later failures are [`StoreError::Unavailable`], until the server is back.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(socket: &Path) -> Result<Self, ConnectError> {
        let client = Self::lazy(socket);
        client.shared.link().await?;
        Ok(client)
    }

    /// A client that connects when it is first asked for something. Call it inside a tokio runtime.
    pub fn lazy(socket: &Path) -> Self {
        Self::with_patience(socket, ANSWER)
    }

    /// As [`Client::lazy`], with another deadline for answers.
    pub(super) fn with_patience(socket: &Path, patience: Duration) -> Self {
        let shared = Shared {
            socket: socket.into(),
            runtime: Handle::current(),
            link: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            next_id: AtomicU64::new(1),
            patience,
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Shared {
    /// The live connection; a new one if there is none.
    async fn link(&self) -> Result<Arc<Link>, ConnectError> {
        if let Some(link) = self.live() {
            return Ok(link);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(link) = self.live() {
            return Ok(link);
        }
        let socket = self.socket.clone();
        // On its own runtime, whichever one the caller is on.
        let opened = self.runtime.spawn(async move { Link::open(&socket).await }).await;
        let link = opened.map_err(|_| ConnectError::Stopped {
            socket: self.socket.clone(),
        })??;
        *lock(&self.link) = Some(Arc::clone(&link));
        Ok(link)
    }

    fn live(&self) -> Option<Arc<Link>> {
        lock(&self.link).as_ref().filter(|link| link.is_alive()).cloned()
    }

    async fn link_or_unavailable(&self) -> Result<Arc<Link>, StoreError> {
        self.link()
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string().into()))
    }

    /// Asks for one answer.
    async fn call(&self, request: &Request, again: Again) -> Result<Answer, StoreError> {
        let id = self.id();
        let frame = encode_request(id, request)?;
        let mut retried = false;
        loop {
            let link = self.link_or_unavailable().await?;
            let (answer, awaited) = oneshot::channel();
            if link.send(id, &frame, Caller::Once(answer)) == Sent::No {
                continue;
            }
            match self.in_time(&link, awaited).await? {
                Ok(Reply::Failed(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
                Err(_) if again == Again::IfBroken && !retried => retried = true,
                Err(_) => return Err(broken()),
            }
        }
    }

    /// Asks for many answers.
    async fn open(self: &Arc<Self>, request: &Request) -> Result<Opened, StoreError> {
        let id = self.id();
        let frame = encode_request(id, request)?;
        loop {
            let link = self.link_or_unavailable().await?;
            let (answers, awaited) = mpsc::unbounded_channel();
            if link.send(id, &frame, Caller::Many(answers)) == Sent::Yes {
                return Ok(Opened {
                    id,
                    link,
                    answers: awaited,
                    taken: 0,
                    _shared: Arc::clone(self),
                });
            }
        }
    }

    /// Waits for an answer, but not for ever: then the connection is given up, and who else waits on it hears of that.
    async fn in_time<T>(&self, link: &Link, answer: impl Future<Output = T>) -> Result<T, StoreError> {
        let deadline = {
            // The caller may be on a runtime without a clock.
            let _on_ours = self.runtime.enter();
            tokio::time::sleep(self.patience)
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = deadline => {
                link.close();
                let text = format!("the store has not answered within {} s", self.patience.as_secs_f32());
                Err(StoreError::unavailable(Reason::TooSlow, text))
            }
        }
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    async fn list(self: &Arc<Self>, scope: &Scope) -> Result<Listing, StoreError> {
        let mut retried = false;
        loop {
            let mut opened = self.open(&Request::List(scope.clone())).await?;
            let mut listed = Vec::new();
            loop {
                let link = Arc::clone(&opened.link);
                match self.in_time(&link, opened.answers.recv()).await? {
                    Some(Reply::Items { items, revision }) => {
                        for (key, revision, value) in items {
                            listed.push(decode(&key, &value, &revision)?);
                        }
                        if let Some(revision) = revision {
                            return Ok(Listing {
                                items: listed,
                                revision,
                            });
                        }
                    }
                    Some(Reply::Failed(error)) => return Err(error),
                    Some(other) => return Err(unexpected(&other)),
                    None if retried => return Err(broken()),
                    None => break,
                }
            }
            retried = true;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(link) = lock(&self.link).take() {
            link.close();
        }
    }
}

/// Whether a request may be sent again when the connection breaks before its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    IfBroken,
    Never,
}

impl Link {
    async fn open(socket: &Path) -> Result<Arc<Self>, ConnectError> {
        let failed = |error| ConnectError::from_io(socket, error);
        let stream = Arc::new(UnixStream::connect(socket).await.map_err(failed)?);
        let mut frames = Frames::new(Arc::clone(&stream));
        let link = Arc::new(Self {
            outbox: Arc::new(Outbox::new(stream)),
            waiting: Mutex::default(),
            tasks: Mutex::default(),
        });
        let outbox = Arc::clone(&link.outbox);
        let sender = tokio::spawn(async move { outbox.run().await }).abort_handle();
        lock(&link.tasks).push(sender);
        let hello = async {
            let _ = link.outbox.send(&frame(0, &Request::Hello { protocol: PROTOCOL })?);
            frames.next::<Answer>().await
        };
        match tokio::time::timeout(HELLO, hello).await {
            Ok(Ok(Some((0, Reply::Hello { protocol: PROTOCOL })))) => {}
            Ok(Ok(Some(_))) => return Err(ConnectError::Protocol { socket: socket.into() }),
            Ok(Ok(None)) => return Err(failed(io::ErrorKind::ConnectionReset.into())),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(ConnectError::Protocol { socket: socket.into() });
            }
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        }
        let reading = Arc::clone(&link);
        let reader = tokio::spawn(async move { reading.read(frames).await }).abort_handle();
        lock(&link.tasks).push(reader);
        Ok(link)
    }

    /// Hands answers to who waits for them until the connection ends.
    async fn read(&self, mut frames: Frames) {
        let ended = loop {
            match frames.next::<Answer>().await {
                Ok(Some((id, answer))) => {
                    if self.deliver(id, answer) {
                        // Who has waited goes on before what it wrote is read once more, as an event.
                        tokio::task::yield_now().await;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        debug!(
            error = ended.map(tracing::field::display),
            "the connection to the store has ended"
        );
        self.close();
    }

    /// Answers whether it was the one answer that somebody waited for.
    fn deliver(&self, id: u64, answer: Answer) -> bool {
        let mut waiting = lock(&self.waiting);
        let Some(caller) = waiting.calls.remove(&id) else {
            return false;
        };
        match caller {
            Caller::Once(caller) => {
                waiting.under_way -= 1;
                // Who no longer waits needs no answer.
                let _ = caller.send(answer);
                true
            }
            // One that no longer listens is forgotten.
            Caller::Many(caller) => {
                let listening = caller.send(answer).is_ok();
                listening.then(|| waiting.calls.insert(id, Caller::Many(caller)));
                false
            }
        }
    }

    /// Sends a request, with `caller` waiting for the answer.
    fn send(&self, id: u64, frame: &[u8], caller: Caller) -> Sent {
        let crowd = {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Sent::No;
            }
            waiting.under_way += usize::from(matches!(caller, Caller::Once(_)));
            waiting.calls.insert(id, caller);
            waiting.under_way >= CROWD
        };
        let sent = if crowd {
            self.outbox.queue_up(frame)
        } else {
            self.outbox.send(frame)
        };
        if sent == Sent::No {
            self.close();
        }
        sent
    }

    fn is_alive(&self) -> bool {
        !lock(&self.waiting).closed
    }

    /// Leaves nobody waiting.
    fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        let left = std::mem::take(&mut waiting.calls);
        drop(waiting);
        drop(left);
        self.outbox.close();
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// A list or watch under way. Dropping it ends it.
struct Opened {
    id: u64,
    link: Arc<Link>,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Changes taken since credit was last given back.
    taken: u32,
    /// Keeps the connection open.
    _shared: Arc<Shared>,
}

impl Opened {
    /// The next event of a watch.
    async fn event(&mut self) -> Result<WatchEvent, StoreError> {
        let event = match self.answers.recv().await {
            Some(Reply::Change { key, value, revision }) => {
                let value = value.map(|value| decode(&key, &value, &revision)).transpose()?;
                WatchEvent::Update(
                    Update {
                        key,
                        value: value.map(|stored| stored.resource),
                    },
                    revision,
                )
            }
            Some(Reply::InSync(revision)) => WatchEvent::InSync(revision),
            Some(Reply::Failed(error)) => return Err(error),
            Some(other) => return Err(unexpected(&other)),
            None => return Err(StoreError::Unavailable("the connection to the store was lost".into())),
        };
        self.taken += 1;
        if self.taken >= CREDIT / 2 {
            self.tell(&Request::Credit(self.taken));
            self.taken = 0;
        }
        Ok(event)
    }

    fn tell(&self, request: &Request) {
        if let Ok(frame) = frame(self.id, request) {
            // If it cannot be sent, the connection is gone, and the watch with it.
            let _ = self.link.outbox.send(&frame);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let waiting = lock(&self.link.waiting).calls.remove(&self.id);
        if waiting.is_some() {
            self.tell(&Request::Cancel);
        }
    }
}

impl Store for Client {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        async {
            match self.shared.call(&Request::Get(key.clone()), Again::IfBroken).await? {
                Reply::Found { value, revision } => decode(key, &value, &revision).map(Some),
                Reply::Absent => Ok(None),
                other => Err(unexpected(&other)),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.shared.list(scope).boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        if let Err(refused) = check_new(&resource) {
            return futures::future::ready(Err(refused)).boxed();
        }
        async {
            let (_, value) = encode(&resource)?;
            written(
                resource,
                self.shared
                    .call(&Request::Create((*value).to_owned()), Again::Never)
                    .await?,
            )
        }
        .boxed()
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async {
            let (_, value) = encode(&resource)?;
            let request = Request::Update {
                value: (*value).to_owned(),
                expected: expected.clone(),
            };
            written(resource, self.shared.call(&request, Again::Never).await?)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let request = Request::Delete {
                key: key.clone(),
                expected: expected.cloned(),
            };
            match self.shared.call(&request, Again::Never).await? {
                Reply::Found { value, revision } => decode(key, &value, &revision),
                other => Err(unexpected(&other)),
            }
        }
        .boxed()
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Stored, StoreError>>> {
        async {
            let mut requests = Vec::with_capacity(writes.len());
            let mut bad = None;
            for write in &writes {
                match request_of(write) {
                    Ok(request) => requests.push(request),
                    Err(error) => {
                        bad = Some(Err(error));
                        break;
                    }
                }
            }
            let tried = requests.len();
            let answers = match self.shared.call(&Request::WriteAll(requests), Again::Never).await {
                Ok(Reply::All(answers)) => answers,
                Ok(other) => return vec![Err(unexpected(&other))],
                Err(error) => return vec![Err(error)],
            };
            let mut done: Vec<_> = writes
                .into_iter()
                .zip(answers)
                .map(|(write, answer)| match (write, answer) {
                    (_, Reply::Failed(error)) => Err(error),
                    (Write::Create(resource) | Write::Update(resource, _), answer) => written(resource, answer),
                    (Write::Delete(key, _), Reply::Found { value, revision }) => decode(&key, &value, &revision),
                    (Write::Delete(..), other) => Err(unexpected(&other)),
                })
                .collect();
            if done.len() == tried && done.iter().all(Result::is_ok) {
                done.extend(bad);
            }
            done
        }
        .boxed()
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let start = Watching::Start(Arc::clone(&self.shared), Request::Watch { scope, from });
        stream::unfold(start, |watching| async {
            let (event, opened) = match watching {
                Watching::Ended => return None,
                Watching::On(mut opened) => (opened.event().await, Some(opened)),
                Watching::Start(shared, request) => match shared.open(&request).await {
                    Ok(mut opened) => (opened.event().await, Some(opened)),
                    Err(error) => (Err(error), None),
                },
            };
            let next = opened.filter(|_| event.is_ok()).map_or(Watching::Ended, Watching::On);
            Some((event, next))
        })
        .boxed()
    }
}

enum Watching {
    Start(Arc<Shared>, Request),
    On(Opened),
    Ended,
}

fn request_of(write: &Write) -> Result<Request, StoreError> {
    let raw = |resource| encode(resource).map(|(_, value)| (*value).to_owned());
    Ok(match write {
        Write::Create(resource) => Request::Create(raw(resource)?),
        Write::Update(resource, expected) => Request::Update {
            value: raw(resource)?,
            expected: expected.clone(),
        },
        Write::Delete(key, expected) => Request::Delete {
            key: key.clone(),
            expected: expected.clone(),
        },
    })
}

fn written(resource: Resource, answer: Answer) -> Result<Stored, StoreError> {
    match answer {
        Reply::Written(revision) => Ok(at_revision(resource, revision)),
        other => Err(unexpected(&other)),
    }
}

fn encode_request(id: u64, request: &Request) -> Result<Vec<u8>, StoreError> {
    frame(id, request).map_err(|error| StoreError::Refused(error.to_string()))
}

fn broken() -> StoreError {
    StoreError::Unavailable("the connection to the store was lost before its answer".into())
}

fn unexpected(answer: &Answer) -> StoreError {
    StoreError::Unavailable(format!("the store's answer does not fit the question: {answer:?}").into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every mutation completes before the lock is released.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
