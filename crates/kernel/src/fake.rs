//! A kernel in memory that refuses what Linux refuses, and forgets what Linux forgets.
//!
//! It takes the same examination as the live one ([`crate::contract`]). Beyond the port it lets a test play everybody
//! else (methods that take `&self`), make operations fail, and read what has been done.

use std::sync::{Arc, Mutex, MutexGuard};

use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::object::*;
use crate::port::*;

mod state;

use state::State;

/// A stateful stand-in for the kernel. Clones are handles to the same kernel.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    state: State,
    listeners: Vec<UnboundedSender<KernelEvent>>,
    applied: Vec<(Op, Result<(), KernelError>)>,
    failures: Vec<Failure>,
    broken: Option<String>,
}

/// An error for the operations that a predicate picks, so many times.
struct Failure {
    picks: Box<dyn Fn(&Op) -> bool + Send>,
    error: KernelError,
    times: usize,
}

impl FakeKernel {
    /// A kernel without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device, down, as `ip link add` would; replaces one of the same name. Returns its number.
    pub fn add_link(&self, name: impl Into<IfName>, kind: &str) -> u32 {
        let (name, kind) = (name.into(), kind.to_string());
        self.act(|state| state.add_link(name, kind))
    }

    /// Changes a device in any way; its number and name stay. Addresses and routes go if it goes down.
    pub fn change_link(&self, name: &IfName, change: impl FnOnce(&mut Link)) {
        self.act(|state| state.change_link(name, change));
    }

    /// Deletes a device with everything on it.
    pub fn remove_link(&self, name: &IfName) {
        self.act(|state| state.remove_link(name));
    }

    /// Does an operation as somebody else: it meets the same refusals, but no injected failure and no record.
    pub fn by_others(&self, op: &Op) -> Result<(), KernelError> {
        self.act(|state| state.apply(op))
    }

    /// Deletes a route whoever's it is, as `ip route del` would.
    pub fn delete_route(&self, key: &RouteKey) {
        self.act(|state| state.delete_route(key));
    }

    /// The operations that `picks` picks fail with `error`, the next `times` times (`usize::MAX`: for good).
    pub fn fail(&self, times: usize, error: KernelError, picks: impl Fn(&Op) -> bool + Send + 'static) {
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

    /// The channel to the kernel fails: every call answers [`KernelError::Broken`] until [`FakeKernel::heal`], and event
    /// streams end.
    pub fn break_channel(&self, reason: &str) {
        let mut inner = self.lock();
        inner.broken = Some(reason.to_string());
        inner.listeners.clear();
    }

    /// Events since some moment were lost: listeners are told to observe again.
    pub fn lose_events(&self) {
        self.lock().tell(vec![KernelEvent::Resync]);
    }

    /// The operations done through the port so far with their results; forgets them.
    pub fn take_applied(&self) -> Vec<(Op, Result<(), KernelError>)> {
        std::mem::take(&mut self.lock().applied)
    }

    /// What is in the kernel now.
    pub fn seen(&self) -> Observation {
        self.lock().state.observation.clone()
    }

    /// The value of a sysctl that has been written.
    pub fn sysctl(&self, path: &str) -> Option<String> {
        self.lock().state.sysctls.get(path).cloned()
    }

    fn act<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut inner = self.lock();
        let answer = work(&mut inner.state);
        let events = inner.state.take_events();
        inner.tell(events);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked elsewhere has said what is wrong; the state is only data.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        if let Some(reason) = &self.broken {
            return Err(KernelError::Broken(reason.clone()));
        }
        let injected = self
            .failures
            .iter_mut()
            .find(|failure| failure.times > 0 && (failure.picks)(op));
        let result = match injected {
            Some(failure) => {
                failure.times -= 1;
                Err(failure.error.clone())
            }
            None => self.state.apply(op),
        };
        self.applied.push((op.clone(), result.clone()));
        let events = self.state.take_events();
        self.tell(events);
        result
    }

    fn tell(&mut self, events: Vec<KernelEvent>) {
        for event in events {
            self.listeners
                .retain(|listener| listener.unbounded_send(event.clone()).is_ok());
        }
    }
}

impl Kernel for FakeKernel {
    fn apply<'a>(&'a mut self, ops: &'a [Op]) -> BoxFuture<'a, Vec<Result<(), KernelError>>> {
        Box::pin(async move {
            let mut inner = self.lock();
            ops.iter().map(|op| inner.apply(op)).collect()
        })
    }

    fn observe<'a>(&'a mut self, tunnel: &'a IfName) -> BoxFuture<'a, Result<Observation, KernelError>> {
        Box::pin(async move {
            let inner = self.lock();
            if let Some(reason) = &inner.broken {
                return Err(KernelError::Broken(reason.clone()));
            }
            let mut seen = inner.state.observation.clone();
            seen.tunnel.take_if(|(there, _)| there.name != *tunnel);
            Ok(seen)
        })
    }

    fn events(&mut self) -> Result<BoxStream<'static, KernelEvent>, KernelError> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.broken {
            return Err(KernelError::Broken(reason.clone()));
        }
        let (sender, receiver) = unbounded();
        inner.listeners.push(sender);
        Ok(Box::pin(receiver))
    }
}
