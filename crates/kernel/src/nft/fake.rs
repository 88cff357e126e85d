//! nf_tables in memory: refuses what Linux refuses, all or nothing.
//!
//! It takes the same examination as the live one ([`super::contract`]). Beyond the port a test can be somebody else
//! ([`FakeNft::stranger`]), make transactions fail, count packets, and read what has been done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::*;

mod graph;
mod state;

use state::Tables;

/// A stateful stand-in for the kernel's nf_tables. Clones are the same user of the same kernel.
#[derive(Clone)]
pub struct FakeNft {
    kernel: Arc<Mutex<Inner>>,
    me: u32,
}

struct Inner {
    tables: Tables,
    generation: Generation,
    listeners: Vec<Listener>,
    applied: Vec<(Transaction, Result<(), NftError>)>,
    failures: Vec<Failure>,
    broken: Option<String>,
    users: AtomicU32,
}

struct Listener {
    user: u32,
    table: TableName,
    sender: UnboundedSender<NftEvent>,
}

/// An error for the transactions that a predicate picks, so many times.
struct Failure {
    picks: Box<dyn Fn(&Transaction) -> bool + Send>,
    error: NftError,
    times: usize,
}

impl Default for FakeNft {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeNft {
    /// A kernel without tables.
    pub fn new() -> Self {
        Self {
            kernel: Arc::new(Mutex::new(Inner {
                tables: Tables::default(),
                generation: Generation(1),
                listeners: Vec::new(),
                applied: Vec::new(),
                failures: Vec::new(),
                broken: None,
                users: AtomicU32::new(1),
            })),
            me: 0,
        }
    }

    /// Another user of the same kernel: what it does is a foreign hand's work, meets no injected failure and leaves no record.
    pub fn stranger(&self) -> Self {
        Self {
            kernel: self.kernel.clone(),
            me: self.lock().users.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The transactions that `picks` picks fail with `error`, the next `times` times (`usize::MAX`: for good).
    pub fn fail(&self, times: usize, error: NftError, picks: impl Fn(&Transaction) -> bool + Send + 'static) {
        self.lock().failures.push(Failure {
            picks: Box::new(picks),
            error,
            times,
        });
    }

    /// Everything works again.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.failures.clear();
        inner.broken = None;
    }

    /// The channel to the kernel fails: every call answers [`NftError::Broken`] until [`FakeNft::heal`], and event streams end.
    pub fn break_channel(&self, reason: &str) {
        let mut inner = self.lock();
        inner.broken = Some(reason.to_string());
        inner.listeners.clear();
    }

    /// Events since some moment were lost: listeners are told to read again.
    pub fn lose_events(&self) {
        let mut inner = self.lock();
        inner
            .listeners
            .retain(|listener| listener.sender.unbounded_send(NftEvent::Resync).is_ok());
    }

    /// The transactions done by this user through the port so far with their results; forgets them.
    pub fn take_applied(&self) -> Vec<(Transaction, Result<(), NftError>)> {
        std::mem::take(&mut self.lock().applied)
    }

    /// The table as it is.
    pub fn seen(&self, table: &TableName) -> Option<TableState> {
        let inner = self.lock();
        inner.tables.read(table, inner.generation)
    }

    /// The rule of that number saw packets: its counter says so from now on. Nothing happens if it has none.
    pub fn count(&self, table: &TableName, handle: u64, count: Count) {
        self.lock().tables.count(table, handle, count);
    }

    /// Does a transaction now.
    pub fn apply_now(&self, transaction: &Transaction) -> Result<(), NftError> {
        self.lock().apply(self.me, transaction)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere has said what is wrong; the state is only data.
        self.kernel.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn apply(&mut self, user: u32, transaction: &Transaction) -> Result<(), NftError> {
        if let Some(reason) = &self.broken {
            return Err(NftError::Broken(reason.clone()));
        }
        if user != 0 {
            return self.commit(user, transaction);
        }
        let injected = self
            .failures
            .iter_mut()
            .find(|failure| failure.times > 0 && (failure.picks)(transaction));
        let result = match injected {
            Some(failure) => {
                failure.times -= 1;
                Err(failure.error.clone())
            }
            None => self.commit(user, transaction),
        };
        self.applied.push((transaction.clone(), result.clone()));
        result
    }

    fn commit(&mut self, user: u32, transaction: &Transaction) -> Result<(), NftError> {
        transaction.check()?;
        if !self.tables.apply(transaction)? {
            return Ok(());
        }
        self.generation = self.generation.next();
        let generation = self.generation;
        self.listeners.retain(|listener| {
            let event = match listener.table == transaction.table {
                true => NftEvent::Touched {
                    generation,
                    program: None,
                },
                false => NftEvent::Elsewhere { generation },
            };
            listener.user == user || listener.sender.unbounded_send(event).is_ok()
        });
        Ok(())
    }

    fn ask<T>(&self, answer: impl FnOnce(&Self) -> T) -> Result<T, NftError> {
        match &self.broken {
            Some(reason) => Err(NftError::Broken(reason.clone())),
            None => Ok(answer(self)),
        }
    }
}

impl NftKernel for FakeNft {
    fn apply<'a>(&'a mut self, transaction: &'a Transaction) -> BoxFuture<'a, Result<(), NftError>> {
        Box::pin(async move { self.apply_now(transaction) })
    }

    fn read<'a>(&'a mut self, table: &'a TableName) -> BoxFuture<'a, Result<Option<TableState>, NftError>> {
        Box::pin(async move { self.lock().ask(|inner| inner.tables.read(table, inner.generation)) })
    }

    fn rules(&mut self, table: &TableName) -> BoxFuture<'static, Result<Rules, NftError>> {
        let rules = self.lock().ask(|inner| inner.tables.rules(table));
        Box::pin(std::future::ready(rules))
    }

    fn rules_of<'a>(
        &'a mut self,
        table: &'a TableName,
        chains: &'a BTreeSet<ChainName>,
    ) -> BoxFuture<'a, Result<Rules, NftError>> {
        Box::pin(async move {
            let mut rules = self.lock().ask(|inner| inner.tables.rules(table))?;
            rules.retain(|chain, _| chains.contains(chain));
            Ok(rules)
        })
    }

    fn generation(&mut self) -> BoxFuture<'_, Result<Generation, NftError>> {
        Box::pin(async move { self.lock().ask(|inner| inner.generation) })
    }

    fn events(&mut self, table: &TableName) -> Result<BoxStream<'static, NftEvent>, NftError> {
        let mut inner = self.lock();
        inner.ask(|_| ())?;
        let (sender, receiver) = unbounded();
        inner.listeners.push(Listener {
            user: self.me,
            table: table.clone(),
            sender,
        });
        Ok(Box::pin(receiver))
    }
}
