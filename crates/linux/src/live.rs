//! The `Kernel` port on a live network namespace.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kernel::{IfName, IpFamily, Kernel, KernelError, KernelEvent, Observation, Op, Sysctl};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::rule::RuleMessage;

use crate::decode::{self, Names};
use crate::foreign::ForeignRoutes;
use crate::netns::{self, Netns};
use crate::request::{Failure, Socket};
use crate::{apply, encode, events, ipip, shaper, sysctl};

/// The kernel of the network namespace of the thread that opened it.
///
/// Operations run inside the call that sends them, on the calling thread; a batch of 128 routes takes less than a
/// millisecond.
pub struct LiveKernel {
    pub(crate) requests: Socket,
    pub(crate) foreign: ForeignRoutes,
    netns: Netns,
    inode: u64,
}

impl LiveKernel {
    /// Opens the kernel of the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Self::try_open().map_err(|error| KernelError::Broken(error.to_string()))
    }

    fn try_open() -> io::Result<Self> {
        let netns = Netns::current()?;
        let inode = netns.inode()?;
        Ok(Self {
            requests: Socket::open()?,
            foreign: ForeignRoutes::open()?,
            netns,
            inode,
        })
    }

    /// Does the operations in order and answers one result for each.
    pub fn apply_now(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        apply::run(self, ops)
    }

    /// Reads everything.
    pub fn observe_now(&mut self, tunnel: &IfName) -> Result<Observation, KernelError> {
        let mut observation =
            read_netlink(&mut self.requests).map_err(|failure| failure.about("reading the kernel", None))?;
        observation.tunnel = self.here(|| ipip::observe(tunnel))?;
        observation.shapers = self.here(shaper::observe)?;
        observation.forwarding = self.here(forwarding)?;
        Ok(observation)
    }

    /// Runs work that looks at the thread's namespace in this kernel's namespace.
    pub(crate) fn here<T: Send>(&self, work: impl FnOnce() -> Result<T, KernelError> + Send) -> Result<T, KernelError> {
        let broken = |error: io::Error| KernelError::Broken(error.to_string());
        if netns::current().map_err(broken)? == self.inode {
            work()
        } else {
            self.netns.run(work).map_err(broken)?
        }
    }
}

impl Kernel for LiveKernel {
    fn apply<'a>(&'a mut self, ops: &'a [Op]) -> BoxFuture<'a, Vec<Result<(), KernelError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(ops.len());
            // Other tasks of this thread get their turn between slices of some milliseconds.
            for slice in ops.chunks(SLICE) {
                results.extend(self.apply_now(slice));
                if slice.len() == SLICE {
                    tokio::task::yield_now().await;
                }
            }
            results
        })
    }

    fn observe<'a>(&'a mut self, tunnel: &'a IfName) -> BoxFuture<'a, Result<Observation, KernelError>> {
        Box::pin(async move { self.observe_now(tunnel) })
    }

    fn events(&mut self) -> Result<BoxStream<'static, KernelEvent>, KernelError> {
        self.here(events::open)?.into_stream()
    }
}

/// Families that the thread's namespace forwards. A family that the kernel does not have has no such file.
fn forwarding() -> Result<BTreeSet<IpFamily>, KernelError> {
    let mut on = BTreeSet::new();
    for family in IpFamily::BOTH {
        let value = sysctl::read(&Sysctl::forwarding(family, true).path)?;
        on.extend(value.filter(|value| value != "0").map(|_| family));
    }
    Ok(on)
}

/// All but the tunnel and sysctls.
pub(crate) fn read_netlink(requests: &mut Socket) -> Result<Observation, Failure> {
    let seen = RefCell::new(Observation::default());
    let names = RefCell::new(Names::new());
    requests.dump(
        Message::GetLink(encode::link_dump()),
        || {
            seen.borrow_mut().links.clear();
            names.borrow_mut().clear();
        },
        |_, payload| {
            let Some(link) = decode::link(payload) else { return };
            names.borrow_mut().insert(link.index, link.name.clone());
            seen.borrow_mut().links.insert(link.name.clone(), link);
        },
    )?;
    let names = names.into_inner();
    requests.dump(
        Message::GetAddress(AddressMessage::default()),
        || seen.borrow_mut().addresses.clear(),
        |_, payload| seen.borrow_mut().addresses.extend(decode::address(payload, &names)),
    )?;
    for family in IpFamily::BOTH {
        requests.dump(
            Message::GetRoute(encode::route_dump(family)),
            || {
                seen.borrow_mut()
                    .routes
                    .retain(|key, _| IpFamily::of(&key.destination.addr()) != family)
            },
            |_, payload| {
                if let Some(route) = decode::route(payload, &names) {
                    // IPv6 may hold one key per device (fe80::/64): the first stands for all.
                    seen.borrow_mut().routes.entry(route.key.clone()).or_insert(route);
                }
            },
        )?;
    }
    requests.dump(
        Message::GetRule(RuleMessage::default()),
        || seen.borrow_mut().rules.clear(),
        |_, payload| seen.borrow_mut().rules.extend(decode::rule(payload)),
    )?;
    requests.dump(
        Message::GetNeighbour(NeighbourMessage::default()),
        || seen.borrow_mut().neighbors.clear(),
        |_, payload| {
            seen.borrow_mut()
                .neighbors
                .extend(decode::neighbor(payload).and_then(|entry| entry.object(&names)));
        },
    )?;
    Ok(seen.into_inner())
}

/// Operations between two turns of other tasks.
const SLICE: usize = 512;
