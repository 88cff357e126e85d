//! A store that yields around every operation, counts, fails, loses and delays; a deterministic scheduler; the invariants.

// Each test uses its part; a failed expectation is a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use api::resource::IpPool;
use api::{
    AffinityState, BlockAffinitySpec, IpPoolSpec, IpamBlockSpec, IpamHandleSpec, Key, Kind, Object, Resource, Spec,
};
use datastore::{Listing, MemoryStore, Revision, Scope, SharedStore, Store, StoreError, Stored, WatchEvent};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use ipam::{Block, Owner};
use jiff::Timestamp;

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// True once in `n` times; never for 0.
    pub fn one_in(&mut self, n: usize) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// A write as data, so that it can be done later.
#[derive(Clone)]
enum Write {
    Create(Resource),
    Update(Resource, Revision),
    Delete(Key, Option<Revision>),
}

#[derive(Default)]
pub struct Control {
    random: Option<Random>,
    /// One operation in so many goes wrong; 0: none.
    pub faults: usize,
    /// Writes that arrive late.
    delayed: Vec<Write>,
    /// Set by each write that was done.
    pub changed: bool,
    /// Operations by verb and kind.
    pub log: Vec<String>,
}

/// The store under test. Each operation is three steps: asked, done, answered.
pub struct Sim {
    pub inner: MemoryStore,
    pub control: Mutex<Control>,
}

impl Sim {
    pub fn new(seed: u64, faults: usize) -> Arc<Self> {
        let control = Control {
            random: Some(Random(seed)),
            faults,
            ..Control::default()
        };
        Arc::new(Self {
            inner: MemoryStore::new(),
            control: Mutex::new(control),
        })
    }

    pub fn shared(self: &Arc<Self>) -> SharedStore {
        Arc::clone(self) as SharedStore
    }

    pub fn calm(&self) {
        self.control.lock().unwrap().faults = 0;
    }

    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.control.lock().unwrap().log)
    }

    /// Does a write that was delayed, or drops it.
    pub fn deliver(&self, random: &mut Random) {
        let write = {
            let mut control = self.control.lock().unwrap();
            if control.delayed.is_empty() {
                return;
            }
            let index = random.below(control.delayed.len());
            control.delayed.swap_remove(index)
        };
        if !random.one_in(3) {
            drop(self.perform(write));
        }
    }

    fn perform(&self, write: Write) -> Result<Stored, StoreError> {
        let done = match write {
            Write::Create(resource) => now_or_never(self.inner.create(resource)),
            Write::Update(resource, revision) => now_or_never(self.inner.update(resource, &revision)),
            Write::Delete(key, revision) => now_or_never(self.inner.delete(&key, revision.as_ref())),
        };
        self.control.lock().unwrap().changed |= done.is_ok();
        done
    }

    async fn write(&self, verb: &str, kind: Kind, write: Write) -> Result<Stored, StoreError> {
        yield_now().await;
        let fault = self.next(verb, kind);
        let lost = || StoreError::Unavailable("injected".into());
        let answer = match fault {
            None => self.perform(write),
            Some(0) => Err(lost()),
            Some(1) => {
                drop(self.perform(write));
                Err(lost())
            }
            Some(2) => {
                self.control.lock().unwrap().delayed.push(write);
                Err(lost())
            }
            Some(_) => match &write {
                Write::Update(resource, _) => Err(StoreError::Conflict(resource.key())),
                Write::Delete(key, Some(_)) => Err(StoreError::Conflict(key.clone())),
                _ => self.perform(write),
            },
        };
        yield_now().await;
        answer
    }

    /// Logs an operation and draws what goes wrong with it.
    fn next(&self, verb: &str, kind: Kind) -> Option<usize> {
        let mut control = self.control.lock().unwrap();
        control.log.push(format!("{verb} {kind}"));
        let faults = control.faults;
        let random = control.random.as_mut().unwrap();
        if random.one_in(faults) {
            Some(random.below(4))
        } else {
            None
        }
    }

    async fn read<T>(
        &self,
        verb: &str,
        kind: Kind,
        read: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        yield_now().await;
        let fault = self.next(verb, kind);
        let answer = if fault == Some(0) {
            Err(StoreError::Unavailable("injected".into()))
        } else {
            now_or_never(read)
        };
        yield_now().await;
        answer
    }

    /// All objects of a kind as they are.
    pub fn all<S: Spec>(&self) -> Vec<Object<S>>
    where
        Object<S>: TryFrom<Resource, Error = Resource>,
    {
        let listing = now_or_never(self.inner.list(&Scope::Kind(S::KIND))).unwrap();
        listing
            .items
            .into_iter()
            .map(|stored| Object::<S>::try_from(stored.resource).unwrap())
            .collect()
    }

    pub fn blocks(&self) -> Vec<IpamBlockSpec> {
        self.all::<IpamBlockSpec>()
            .into_iter()
            .map(|object| object.spec)
            .collect()
    }

    pub fn affinities(&self) -> Vec<BlockAffinitySpec> {
        self.all::<BlockAffinitySpec>()
            .into_iter()
            .map(|object| object.spec)
            .collect()
    }

    pub fn handles(&self) -> Vec<IpamHandleSpec> {
        self.all::<IpamHandleSpec>()
            .into_iter()
            .map(|object| object.spec)
            .collect()
    }

    pub fn put(&self, resource: impl Into<Resource>) {
        now_or_never(self.inner.create(resource.into())).unwrap();
    }

    pub fn pool(&self, name: &str, cidr: &str, block_size: u8) {
        let mut spec = IpPoolSpec::new(cidr.parse().unwrap());
        spec.block_size = Some(block_size);
        self.put(IpPool::new(name, spec));
    }

    /// What must be true at every moment.
    pub fn check(&self) {
        let (blocks, handles) = (self.blocks(), self.handles());
        let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
        for block in &blocks {
            check_block(block);
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for (ordinal, holder) in block.allocated() {
                assert!(
                    seen.insert(block.address(ordinal)),
                    "two blocks have {}",
                    block.address(ordinal)
                );
                match &holder.handle_id {
                    Some(handle) => *counts.entry(handle).or_default() += 1,
                    None => assert!(holder.released_at.is_some(), "held by nobody"),
                }
            }
            for (handle, held) in counts {
                let counted = handles.iter().find(|known| known.handle_id == handle);
                let counted = counted
                    .and_then(|known| known.block.get(&block.cidr.to_string()))
                    .copied()
                    .unwrap_or(0);
                assert!(
                    counted >= held,
                    "{handle} counts {counted} in {} and holds {held}",
                    block.cidr
                );
            }
        }
        for affinity in self
            .affinities()
            .iter()
            .filter(|affinity| affinity.state == AffinityState::Confirmed)
        {
            let block = blocks.iter().find(|block| block.cidr == affinity.cidr);
            let owner = Owner::of(affinity);
            assert!(
                block.is_some_and(|block| block.belongs_to(&owner)),
                "{} is confirmed for {owner}, but {:?}",
                affinity.cidr,
                block.map(|block| &block.affinity)
            );
        }
    }
}

fn check_block(block: &IpamBlockSpec) {
    let free: BTreeSet<u32> = block.unallocated.iter().copied().collect();
    assert_eq!(free.len(), block.unallocated.len(), "queued twice in {}", block.cidr);
    for (ordinal, slot) in block.allocations.iter().enumerate() {
        assert_eq!(
            slot.is_none(),
            free.contains(&(ordinal as u32)),
            "ordinal {ordinal} of {}",
            block.cidr
        );
    }
    let used: BTreeSet<usize> = block.allocations.iter().flatten().copied().collect();
    assert_eq!(
        used,
        (0..block.attributes.len()).collect(),
        "attributes of {}",
        block.cidr
    );
}

impl Store for Sim {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        Box::pin(async move { self.read("get", key.kind, async { self.inner.get(key).await }).await })
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        let Scope::Kind(kind) = scope else { panic!("{scope:?}") };
        Box::pin(async move { self.read("list", *kind, async { self.inner.list(scope).await }).await })
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(async move { self.write("create", resource.kind(), Write::Create(resource)).await })
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.write("update", resource.kind(), Write::Update(resource, expected.clone()))
                .await
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.write("delete", key.kind, Write::Delete(key.clone(), expected.cloned()))
                .await
        })
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.inner.watch(scope, from)
    }
}

/// The answer of a future that does not wait.
pub fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the future waits"),
    }
}

/// Runs one future to its end.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1_000_000 {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer;
        }
    }
    panic!("the future waits for ever");
}

/// Polls a future so many times and drops it, as a crash does. Answers whether it came to its end before.
pub fn crash_after(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    (0..polls).any(|_| future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready())
}

async fn yield_now() {
    struct Yield(bool);
    impl Future for Yield {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
    Yield(false).await;
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

pub fn host(name: &str) -> Owner {
    Owner::Host(name.into())
}
