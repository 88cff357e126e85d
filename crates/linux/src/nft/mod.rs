//! The port to nf_tables on a live network namespace, over netlink: no program runs.
//!
//! A [`Transaction`] becomes one batch in one datagram, which the kernel does as a whole or not at all. Touches no table but
//! the one that it is told.

mod chain;
mod compile;
mod dump;
mod encode;
mod events;
mod expr;
mod parse;
mod set;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kernel::nft::*;

use crate::netns::{self, Netns};
use crate::nfnetlink::Socket;
use crate::request::Failure;
use dump::Unread;
use encode::{Batch, Sets};
use set::Shape;

/// nf_tables of the network namespace of the thread that opened it.
///
/// A small transaction is done inside the call, on the calling thread: it takes some ten microseconds. Large ones and reading
/// go to a thread of the runtime's that may block.
#[derive(Clone)]
pub struct LiveNft {
    inner: Arc<Mutex<Inner>>,
    /// A socket of its own, so that counting rules keeps no transaction waiting. Opened when it is first needed.
    reader: Arc<Mutex<Option<Socket>>>,
    netns: Arc<Netns>,
}

struct Inner {
    socket: Socket,
    /// What is known of sets that are there, so that elements are written as they need it.
    sets: HashMap<TableName, Sets>,
}

/// Work of so many bytes is done where others do not wait for it.
const LARGE: usize = 256 * 1024;
/// The rules of so many chains are read on the calling thread.
const FEW: usize = 16;
/// A transaction that the kernel wants again is sent so often.
const ATTEMPTS: usize = 5;

impl LiveNft {
    /// Opens nf_tables of the calling thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let open = || -> io::Result<Self> {
            Ok(Self {
                netns: Arc::new(Netns::current()?),
                inner: Arc::new(Mutex::new(Inner {
                    socket: Socket::open()?,
                    sets: HashMap::new(),
                })),
                reader: Arc::default(),
            })
        };
        open().map_err(|error| NftError::Broken(error.to_string()))
    }

    /// Does all changes or none, on the calling thread.
    pub fn apply_now(&self, transaction: &Transaction) -> Result<(), NftError> {
        let mut inner = self.lock();
        let batch = inner.encode(transaction)?;
        inner.send(batch, transaction.table.clone(), &Words::of(transaction))
    }

    /// Reads a table on the calling thread; `None`: there is no such table.
    pub fn read_now(&self, table: &TableName) -> Result<Option<TableState>, NftError> {
        self.lock().read(table)
    }

    /// The datagram of a transaction as it would be sent, for measuring what the kernel takes without us.
    #[doc(hidden)]
    pub fn prepare(&self, transaction: &Transaction) -> Result<Prepared, NftError> {
        let batch = self.lock().encode(transaction)?;
        Ok(Prepared {
            bytes: batch.bytes,
            last: batch.last,
        })
    }

    /// Sends what was prepared and drops the answers; how many failures there were.
    #[doc(hidden)]
    pub fn send_prepared(&self, prepared: &Prepared) -> Result<usize, NftError> {
        let answer = self.lock().socket.batch(&prepared.bytes, prepared.last, |_| ());
        answer.map(|answer| answer.failures.len()).map_err(broken)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked here has lost at most answers that are asked for again.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read_rules(&self, table: &TableName) -> Result<Rules, NftError> {
        let mut reader = self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut socket = match reader.take() {
            Some(socket) => socket,
            None => {
                let opened = self.netns.run(Socket::open).and_then(|opened| opened);
                opened.map_err(|error| NftError::Broken(error.to_string()))?
            }
        };
        let rules = dump::rules(&mut socket, table).map_err(|unread| unread.about(table))?;
        *reader = Some(socket);
        Ok(rules)
    }

    /// Does what may take long on a thread that may block.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, NftError> + Send + 'static,
    ) -> Result<T, NftError> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut own.lock())).await;
        done.unwrap_or_else(|error| Err(NftError::Broken(error.to_string())))
    }
}

/// A transaction as bytes.
#[doc(hidden)]
pub struct Prepared {
    bytes: Vec<u8>,
    last: u32,
}

impl NftKernel for LiveNft {
    fn apply<'a>(&'a mut self, transaction: &'a Transaction) -> BoxFuture<'a, Result<(), NftError>> {
        Box::pin(async move {
            let batch = self.lock().encode(transaction)?;
            let table = transaction.table.clone();
            if batch.bytes.len() < LARGE {
                return self.lock().send(batch, table, &Words::of(transaction));
            }
            let words = Words::of(transaction).owned();
            self.aside(move |inner| inner.send(batch, table, &Words::Owned(words)))
                .await
        })
    }

    fn read<'a>(&'a mut self, table: &'a TableName) -> BoxFuture<'a, Result<Option<TableState>, NftError>> {
        Box::pin(async move {
            let table = table.clone();
            self.aside(move |inner| inner.read(&table)).await
        })
    }

    fn rules(&mut self, table: &TableName) -> BoxFuture<'static, Result<Rules, NftError>> {
        let (own, table) = (self.clone(), table.clone());
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || own.read_rules(&table)).await;
            done.unwrap_or_else(|error| Err(NftError::Broken(error.to_string())))
        })
    }

    fn rules_of<'a>(
        &'a mut self,
        table: &'a TableName,
        chains: &'a BTreeSet<ChainName>,
    ) -> BoxFuture<'a, Result<Rules, NftError>> {
        Box::pin(async move {
            if chains.len() <= FEW {
                return dump::rules_of_chains(&mut self.lock().socket, table, chains).map_err(broken);
            }
            let (table, chains) = (table.clone(), chains.clone());
            self.aside(move |inner| dump::rules_of_chains(&mut inner.socket, &table, &chains).map_err(broken))
                .await
        })
    }

    fn generation(&mut self) -> BoxFuture<'_, Result<Generation, NftError>> {
        Box::pin(async move { dump::generation(&mut self.lock().socket).map_err(broken) })
    }

    fn events(&mut self, table: &TableName) -> Result<BoxStream<'static, NftEvent>, NftError> {
        let own = self.lock().socket.port();
        let here = self.netns.inode().and_then(|inode| Ok(inode == netns::current()?));
        let opened = match here {
            Ok(true) => events::open(own),
            Ok(false) => self.netns.run(|| events::open(own)).and_then(|opened| opened),
            Err(error) => Err(error),
        };
        let listener = opened.map_err(|error| NftError::Broken(error.to_string()))?;
        events::stream(listener, table.clone()).map_err(|error| NftError::Broken(error.to_string()))
    }
}

impl Inner {
    fn encode(&mut self, transaction: &Transaction) -> Result<Batch, NftError> {
        transaction.check()?;
        let table = &transaction.table;
        let known = self.sets.get(table);
        let first = self.socket.sequences(1);
        let socket = &mut self.socket;
        let batch = encode::transaction(transaction, first, known, |set| dump::shape(socket, table, set));
        let batch = batch.map_err(broken)?;
        self.socket.sequences(batch.owners.len() as u32);
        Ok(batch)
    }

    fn read(&mut self, table: &TableName) -> Result<Option<TableState>, NftError> {
        let state = dump::table(&mut self.socket, table).map_err(|unread| unread.about(table))?;
        let sets = state.iter().flat_map(|state| &state.sets);
        let known = sets.filter_map(|(name, set)| {
            let interval = set.spec.as_ref()?.interval;
            Some((name.clone(), Some(Shape { interval })))
        });
        self.sets.insert(table.clone(), known.collect());
        Ok(state)
    }

    fn send(&mut self, batch: Batch, table: TableName, words: &Words<'_>) -> Result<(), NftError> {
        for _ in 0..ATTEMPTS {
            let answer = self.socket.batch(&batch.bytes, batch.last, |_| ());
            let answer = answer.map_err(broken)?;
            if let Some((sequence, failure)) = answer.failures.into_iter().next() {
                if matches!(failure.errno(), Some(libc::EINTR | libc::EAGAIN | libc::ERESTART)) {
                    continue;
                }
                // What was known may be what was wrong.
                self.sets.remove(&table);
                return Err(refused(failure, batch.change(sequence), words));
            }
            if !answer.acknowledged {
                self.sets.remove(&table);
                return Err(NftError::Broken(match answer.lost {
                    true => "the kernel's answers did not fit".into(),
                    false => "the kernel did not answer".into(),
                }));
            }
            let known = self.sets.entry(table).or_default();
            if batch.learned.anew {
                known.clear();
            }
            for (set, shape) in batch.learned.sets {
                match shape {
                    Some(_) => known.insert(set, shape),
                    // Names come and go for ever: of one that went nothing is kept.
                    None => known.remove(&set),
                };
            }
            return Ok(());
        }
        Err(NftError::Busy)
    }
}

/// Changes in words, made when they are needed.
enum Words<'t> {
    Transaction(&'t Transaction),
    Owned(Vec<String>),
}

impl<'t> Words<'t> {
    fn of(transaction: &'t Transaction) -> Self {
        Self::Transaction(transaction)
    }

    /// For when the transaction cannot be kept: long ones are not said in full.
    fn owned(self) -> Vec<String> {
        match self {
            Self::Transaction(transaction) => transaction.changes.iter().map(ToString::to_string).collect(),
            Self::Owned(words) => words,
        }
    }

    fn get(&self, change: usize) -> Option<String> {
        match self {
            Self::Transaction(transaction) => transaction.changes.get(change).map(ToString::to_string),
            Self::Owned(words) => words.get(change).cloned(),
        }
    }
}

fn refused(failure: Failure, change: Option<usize>, words: &Words<'_>) -> NftError {
    match failure {
        Failure::Broken(reason) => NftError::Broken(reason),
        Failure::Refused { errno, reason } => NftError::Refused {
            change,
            what: change
                .and_then(|change| words.get(change))
                .unwrap_or_else(|| "the transaction as a whole".into()),
            cause: Cause::of(errno),
            reason,
            errno,
        },
    }
}

impl Unread {
    fn about(self, table: &TableName) -> NftError {
        match self {
            Self::Busy => NftError::Busy,
            Self::Failed(Failure::Broken(reason)) => NftError::Broken(reason),
            Self::Failed(Failure::Refused { errno, reason }) => NftError::Refused {
                change: None,
                what: format!("reading table {table}"),
                cause: Cause::of(errno),
                reason,
                errno,
            },
        }
    }
}

fn broken(failure: Failure) -> NftError {
    NftError::Broken(failure.to_string())
}
