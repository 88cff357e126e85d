//! Serves the store on a unix socket.
//!
//! ```text
//!  Server::serve --- accept ---> connection: reads requests, hands them to the engine in their order
//!                                  |-- replies come from the engine's threads straight into the Outbox
//!                                  `-- one task per list and per watch, which wait for room and credit
//! ```

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::Resource;
use datastore::{SharedStore, StoreError, check_new};
use futures::StreamExt;
use serde_json::value::RawValue;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use super::engine::{Engine, Job, Local, RawEvent, encode, number, stopped};
use super::file::{Done, Op, OpenError, Snapshot, StoreFile};
use super::outbox::{CROWD, Outbox};
use super::wire::{self, CREDIT, Frames, PROTOCOL, Reply, Request, reply_frame};

/// A connection has at most so many requests under way; then the server stops reading from it.
const IN_FLIGHT: u32 = 256;
/// A connection has at most so many watches.
const MAX_WATCHES: usize = 1024;
/// A list goes out in parts of about so many bytes.
const PART: usize = 128 << 10;
/// How long a stopping server waits for clients to take their last answers.
const DRAIN: Duration = Duration::from_secs(1);

/// The embedded store: one file, owned by one process, served to others on a unix socket.
pub struct Server {
    engine: Arc<Engine>,
}

/// Why a store cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Stop the other server, or use another socket.
    #[error("{socket} is already served by another process")]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Choose another path: what is there is not ours to remove.
    #[error("{socket} exists and is not a socket")]
    NotASocket {
        /// The path.
        socket: PathBuf,
    },
    /// Make the path usable.
    #[error("cannot listen on {socket}")]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Server {
    /// Opens the file, or creates it for this user alone, and keeps every other process out of it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(file: &Path) -> Result<Self, OpenError> {
        let (opened, tail) = StoreFile::open(file)?;
        let engine = Engine::start(opened, tail).map_err(|source| OpenError::Io {
            path: file.into(),
            source,
        })?;
        Ok(Self {
            engine: Arc::new(engine),
        })
    }

    /// The store for use in this process, with or without [`Server::serve`]. Needs no runtime.
    pub fn store(&self) -> SharedStore {
        Arc::new(Local(Arc::clone(&self.engine)))
    }

    /// The log, to make it forget.
    #[cfg(test)]
    pub(super) fn log(&self) -> datastore::changes::ChangeLog<super::file::Value> {
        self.engine.log.clone()
    }

    /// [`Server::bind`], then [`Bound::run`].
    ///
    /// # Errors
    /// See [`ServeError`]; only at the start.
    pub async fn serve(self, socket: &Path, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        self.bind(socket).await?.run(shutdown).await;
        Ok(())
    }

    /// Begins to listen: when it returns, clients can connect. The socket can be used by this user alone (mode 0600); one
    /// that a dead server left behind is replaced.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn bind(self, socket: &Path) -> Result<Bound, ServeError> {
        let listener = listen(socket).await?;
        info!(socket = %socket.display(), "serving the store");
        Ok(Bound {
            engine: self.engine,
            listener,
            socket: socket.into(),
        })
    }
}

/// A store that listens on its socket.
pub struct Bound {
    engine: Arc<Engine>,
    listener: UnixListener,
    socket: PathBuf,
}

impl Bound {
    /// Serves until `shutdown` is ready, then answers what is under way, removes the socket and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, Arc::clone(&self.engine), stopping.clone()));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        // Out of descriptors: the next try would fail at once.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(self.listener);
        if let Err(error) = fs::remove_file(&self.socket) {
            debug!(%error, "the socket was gone");
        }
        stop.send_replace(true);
        while connections.join_next().await.is_some() {}
        info!(socket = %self.socket.display(), "stopped serving the store");
    }
}

async fn listen(socket: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        socket: socket.into(),
        source,
    };
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NotASocket { socket: socket.into() }),
        Ok(_) => match UnixStream::connect(socket).await {
            Ok(_) => return Err(ServeError::SocketInUse { socket: socket.into() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(socket).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        },
    }
    bind(socket).map_err(failed)
}

/// Binds with mode 0600 from the first moment: Linux gives the socket's file the mode of the unbound socket.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    let unbound = UnixSocket::new_stream()?;
    fs::File::from(unbound.as_fd().try_clone_to_owned()?).set_permissions(fs::Permissions::from_mode(0o600))?;
    unbound.bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    unbound.listen(1024)
}

async fn serve_connection(stream: UnixStream, engine: Arc<Engine>, mut stopping: watch::Receiver<bool>) {
    let stream = Arc::new(stream);
    let mut frames = Frames::new(Arc::clone(&stream));
    let mut connection = Connection {
        engine,
        outbox: Arc::new(Outbox::new(stream)),
        in_flight: Arc::new(Semaphore::new(IN_FLIGHT as usize)),
        watches: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let outbox = Arc::clone(&connection.outbox);
    let sender = tokio::spawn(async move { outbox.run().await });
    let ended = tokio::select! {
        ended = connection.serve(&mut frames) => ended,
        _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the store was closed");
    }
    connection.finish().await;
    // It ends by itself: the outbox is closed.
    let _ = sender.await;
}

/// One client.
struct Connection {
    engine: Arc<Engine>,
    outbox: Arc<Outbox>,
    in_flight: Arc<Semaphore>,
    watches: HashMap<u64, Watch>,
    tasks: JoinSet<u64>,
}

struct Watch {
    credit: Arc<Semaphore>,
    task: AbortHandle,
}

impl Connection {
    /// Reads and hands on requests until the client leaves, or sends something that is not one.
    async fn serve(&mut self, frames: &mut Frames) -> io::Result<()> {
        match frames.next().await? {
            Some((id, Request::Hello { .. })) => self.reply(id, &Reply::Hello { protocol: PROTOCOL }),
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the first request is not a hello",
                ));
            }
            None => return Ok(()),
        }
        while let Some((id, request)) = frames.next().await? {
            self.reap();
            self.handle(id, request).await;
        }
        Ok(())
    }

    async fn handle(&mut self, id: u64, request: Request) {
        match request {
            Request::Hello { .. } => self.reply(id, &Reply::Hello { protocol: PROTOCOL }),
            Request::Get(key) => {
                self.outbox.room().await;
                match self.engine.get(&key) {
                    Ok(Some((revision, value))) => {
                        self.reply(
                            id,
                            &Reply::Found {
                                value: &*value,
                                revision: number(revision),
                            },
                        );
                    }
                    Ok(None) => self.reply(id, &Reply::Absent),
                    Err(error) => self.reply(id, &Reply::Failed(error)),
                }
            }
            Request::List(scope) => {
                let list = send_list(id, Arc::clone(&self.engine), Arc::clone(&self.outbox), scope);
                let permit = self.permit().await;
                self.tasks.spawn(async move {
                    list.await;
                    drop(permit);
                    id
                });
            }
            write @ (Request::Create(_) | Request::Update { .. } | Request::Delete { .. }) => {
                self.write(id, vec![write], |answers| {
                    // One write has one answer.
                    answers.into_iter().next().unwrap_or_else(|| Reply::Failed(stopped()))
                })
                .await;
            }
            Request::WriteAll(writes) => self.write(id, writes, Reply::All).await,
            Request::Watch { scope, from } => {
                if self.watches.len() >= MAX_WATCHES {
                    let refused = StoreError::Refused(format!("more than {MAX_WATCHES} watches on one connection"));
                    return self.reply(id, &Reply::Failed(refused));
                }
                let credit = Arc::new(Semaphore::new(CREDIT as usize));
                let events = Arc::clone(&self.engine).watch(scope, from);
                let sending = send_watch(id, events, Arc::clone(&self.outbox), Arc::clone(&credit));
                let task = self.tasks.spawn(async move {
                    sending.await;
                    id
                });
                self.watches.insert(id, Watch { credit, task });
            }
            Request::Credit(more) => {
                if let Some(watch) = self.watches.get(&id) {
                    let room = Semaphore::MAX_PERMITS - watch.credit.available_permits();
                    watch.credit.add_permits(room.min(more as usize));
                }
            }
            Request::Cancel => {
                if let Some(watch) = self.watches.remove(&id) {
                    watch.task.abort();
                }
            }
        }
    }

    /// Hands writes to the engine, up to the first that is none; `wrap` makes one answer of theirs.
    async fn write(
        &self,
        id: u64,
        writes: Vec<Request>,
        wrap: impl FnOnce(Vec<Reply<Box<RawValue>>>) -> Reply<Box<RawValue>> + Send + 'static,
    ) {
        let mut ops = Vec::with_capacity(writes.len());
        let mut bad = None;
        for write in writes {
            match op_of(write) {
                Ok(op) => ops.push(op),
                Err(error) => {
                    bad = Some(error);
                    break;
                }
            }
        }
        let permit = self.permit().await;
        let (outbox, in_flight) = (Arc::clone(&self.outbox), Arc::clone(&self.in_flight));
        let reply = move |outcomes: Vec<Result<Done, StoreError>>| {
            let failed = outcomes.iter().any(Result::is_err);
            let bad = bad.filter(|_| !failed).map(Err);
            let answers = outcomes.into_iter().chain(bad).map(|outcome| match outcome {
                Ok(Done::Written(revision)) => Reply::Written(number(revision)),
                Ok(Done::Deleted(revision, value)) => Reply::Found {
                    value: (*value).to_owned(),
                    revision: number(revision),
                },
                Err(error) => Reply::Failed(error),
            });
            let frame = reply_frame(id, &wrap(answers.collect()));
            let crowd = in_flight.available_permits() + CROWD <= IN_FLIGHT as usize;
            let _ = if crowd {
                outbox.queue_up(&frame)
            } else {
                outbox.send(&frame)
            };
            drop(permit);
        };
        let reply = Box::new(reply);
        self.engine.write_all(Job { ops, reply });
    }

    /// Waits until the client has taken its answers and not too many requests are under way.
    async fn permit(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.outbox.room().await;
        Arc::clone(&self.in_flight).acquire_owned().await.expect("never closed")
    }

    fn reply(&self, id: u64, reply: &Reply<&RawValue>) {
        // A client that is gone needs no answer; reading from it ends soon.
        let _ = self.outbox.send(&reply_frame(id, reply));
    }

    /// Forgets the tasks that have ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(id) = ended
                && self.watches.get(&id).is_some_and(|watch| watch.task.is_finished())
            {
                self.watches.remove(&id);
            }
        }
    }

    /// Ends the watches, and gives the client time to take the answers to what it has asked.
    async fn finish(mut self) {
        self.watches.values().for_each(|watch| watch.task.abort());
        let answered = async {
            // All permits are back: every write has its answer, every list is sent.
            let _ = self.in_flight.acquire_many(IN_FLIGHT).await;
            self.outbox.flushed().await;
        };
        let _ = tokio::time::timeout(DRAIN, answered).await;
        self.tasks.shutdown().await;
        self.outbox.close();
    }
}

/// A write as the file does it.
fn op_of(request: Request) -> Result<Op, StoreError> {
    match request {
        Request::Create(value) => {
            let resource = checked(&value)?;
            check_new(&resource)?;
            encode(&resource).map(|(key, value)| Op::Create { key, value })
        }
        Request::Update { value, expected } => encode(&checked(&value)?).map(|(key, value)| Op::Update {
            key,
            value,
            expected: expected.0,
        }),
        Request::Delete { key, expected } => Ok(Op::Delete {
            key,
            expected: expected.map(|expected| expected.0),
        }),
        other => Err(StoreError::Refused(format!("not a write: {other:?}"))),
    }
}

/// What a client sends is checked before it is stored: it must be a resource, with a name, without a resource version.
fn checked(value: &RawValue) -> Result<Resource, StoreError> {
    serde_json::from_str(value.get()).map_err(|error| StoreError::Refused(format!("not a resource: {error}")))
}

async fn send_list(id: u64, engine: Arc<Engine>, outbox: Arc<Outbox>, scope: datastore::Scope) {
    let (answer, listed) = tokio::sync::oneshot::channel();
    engine.list(scope, Box::new(move |result| drop(answer.send(result))));
    let Snapshot { items, revision } = match listed.await {
        Ok(Ok(snapshot)) => snapshot,
        Ok(Err(error)) => return queue_error(id, &outbox, error),
        Err(_) => return queue_error(id, &outbox, StoreError::Unavailable("the list was lost".into())),
    };
    let (mut part, mut size) = (Vec::new(), 0);
    for item in items {
        size += item.value.get().len();
        part.push(item);
        if size >= PART {
            send_part(id, &outbox, std::mem::take(&mut part), None).await;
            size = 0;
        }
    }
    send_part(id, &outbox, part, Some(revision)).await;
}

async fn send_part(id: u64, outbox: &Outbox, part: Vec<super::file::Item>, revision: Option<u64>) {
    outbox.room().await;
    let items = part
        .iter()
        .map(|item| (item.key.clone(), number(item.revision), &*item.value))
        .collect();
    let _ = outbox.queue_up(&reply_frame(
        id,
        &Reply::Items {
            items,
            revision: revision.map(number),
        },
    ));
}

fn queue_error(id: u64, outbox: &Outbox, error: StoreError) {
    let _ = outbox.queue_up(&reply_frame(id, &Reply::<()>::Failed(error)));
}

/// Sends a watch as fast as the client grants credit. Meanwhile the log goes on; if it goes on for too long, the watch ends
/// with `Compacted`.
async fn send_watch(id: u64, mut events: super::engine::RawWatch, outbox: Arc<Outbox>, credit: Arc<Semaphore>) {
    loop {
        match credit.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return,
        }
        let Some(event) = events.next().await else { return };
        outbox.room().await;
        let frame = match event {
            Ok(RawEvent::Update { key, value, revision }) => wire::reply_frame(
                id,
                &Reply::Change {
                    key,
                    value: value.as_deref(),
                    revision: number(revision),
                },
            ),
            Ok(RawEvent::InSync(revision)) => reply_frame(id, &Reply::<()>::InSync(number(revision))),
            Err(error) => reply_frame(id, &Reply::<()>::Failed(error)),
        };
        let _ = outbox.queue_up(&frame);
    }
}
