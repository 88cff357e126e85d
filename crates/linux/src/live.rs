//! The `Kernel` port on a live network namespace.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kernel::{
    IfName, IpFamily, Kernel, KernelError, KernelEvent, Observation, Op, Route, RouteKey, Sysctl, TABLE_MAIN,
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::rule::RuleMessage;

use crate::decode::{self, Names};
use crate::foreign::ForeignRoutes;
use crate::link::LinkSettings;
use crate::netns::{self, Netns};
use crate::request::{Failure, Request, Socket};
use crate::{encode, events, ipip, sysctl};

/// The kernel of the network namespace of the thread that opened it.
///
/// Operations run inside the call that sends them, on the calling thread; a batch of 128 routes takes less than a
/// millisecond.
pub struct LiveKernel {
    requests: Socket,
    foreign: ForeignRoutes,
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
        let mut run = Run {
            kernel: self,
            results: Vec::with_capacity(ops.len()),
            batch: Batch::default(),
        };
        for op in ops {
            run.take(op);
        }
        run.flush();
        run.results
    }

    /// Reads everything.
    pub fn observe_now(&mut self, tunnel: &IfName) -> Result<Observation, KernelError> {
        let mut observation =
            read_netlink(&mut self.requests).map_err(|failure| failure.about("reading the kernel", None))?;
        observation.tunnel = self.here(|| ipip::observe(tunnel))?;
        Ok(observation)
    }

    /// Runs work that looks at the thread's namespace in this kernel's namespace.
    fn here<T: Send>(&self, work: impl FnOnce() -> Result<T, KernelError> + Send) -> Result<T, KernelError> {
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

/// All but the tunnel.
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

/// One call of `apply`: netlink requests gather in a batch, anything else flushes it first, so order is kept.
struct Run<'k> {
    kernel: &'k mut LiveKernel,
    results: Vec<Result<(), KernelError>>,
    batch: Batch,
}

#[derive(Default)]
struct Batch {
    /// In step with `requests`.
    pending: Vec<Pending>,
    requests: Vec<Request>,
    /// Numbers of devices, looked up once a batch.
    devices: HashMap<IfName, Option<u32>>,
    /// Two operations on one route do not share a batch: the first may need a second try.
    keys: HashSet<RouteKey>,
}

/// A request under way.
struct Pending {
    /// Place among the results.
    at: usize,
    what: String,
    device: Option<IfName>,
    /// Refusals that mean that it is so already.
    fine: &'static [i32],
    /// The wanted protocol, if a taken key calls for replacing.
    replace: Option<(RouteKey, u8)>,
}

impl Run<'_> {
    fn take(&mut self, op: &Op) {
        if let Op::PutRoute(Route { key, .. }) | Op::RemoveRoute(key, _) = op
            && !self.batch.keys.insert(encode::canonical(key))
        {
            self.flush();
            self.batch.keys.insert(encode::canonical(key));
        }
        let at = self.results.len();
        self.results.push(Ok(()));
        match self.prepare(op, at) {
            Ok(Some((request, pending))) => {
                self.batch.requests.push(request);
                self.batch.pending.push(pending);
            }
            Ok(None) => {}
            Err(error) => self.results[at] = Err(error),
        }
    }

    /// The request for an operation; `None`: done without one.
    fn prepare(&mut self, op: &Op, at: usize) -> Result<Option<(Request, Pending)>, KernelError> {
        const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
        let pending = |what: String, device: Option<&IfName>, fine: &'static [i32]| Pending {
            at,
            what,
            device: device.cloned(),
            fine,
            replace: None,
        };
        let answer = match op {
            Op::SetLink { device, up, mtu } => {
                let settings = LinkSettings {
                    up: Some(*up),
                    mtu: *mtu,
                    ..LinkSettings::default()
                };
                let message = Message::SetLink(encode::link(self.index(device)?, &settings));
                (
                    Request { message, flags: 0 },
                    pending(format!("device {device}"), Some(device), &[]),
                )
            }
            Op::PutAddress(address) => {
                let message = Message::NewAddress(encode::address(address, self.index(&address.device)?));
                let what = format!("address {} on {}", address.net, address.device);
                (
                    Request { message, flags: ADD },
                    pending(what, Some(&address.device), &[libc::EEXIST]),
                )
            }
            Op::RemoveAddress(address) => {
                let Some(index) = self.find(&address.device)? else {
                    return Ok(None);
                };
                let message = Message::DelAddress(encode::address(address, index));
                let what = format!("address {} on {}", address.net, address.device);
                (
                    Request { message, flags: 0 },
                    pending(what, None, &[libc::EADDRNOTAVAIL, libc::ENODEV]),
                )
            }
            Op::PutRoute(route) => {
                let message = Message::NewRoute(encode::route(route, |device| self.index(device))?);
                let mut pending = pending(route_name(&route.key), route_device(route), &[]);
                pending.replace = Some((route.key.clone(), route.protocol));
                (Request { message, flags: ADD }, pending)
            }
            Op::RemoveRoute(key, protocol) => {
                let message = Message::DelRoute(encode::route_removal(key, *protocol));
                (
                    Request { message, flags: 0 },
                    pending(route_name(key), None, &[libc::ESRCH]),
                )
            }
            Op::PutRule(rule) => {
                let message = Message::NewRule(encode::rule(rule));
                (
                    Request { message, flags: ADD },
                    pending(format!("rule {}", rule.priority), None, &[libc::EEXIST]),
                )
            }
            Op::RemoveRule(rule) => {
                let message = Message::DelRule(encode::rule(rule));
                (
                    Request { message, flags: 0 },
                    pending(format!("rule {}", rule.priority), None, &[libc::ENOENT]),
                )
            }
            Op::PutNeighbor(neighbor) => {
                let message = Message::NewNeighbour(encode::neighbor(neighbor, self.index(&neighbor.device)?));
                let what = format!("neighbour {} on {}", neighbor.address, neighbor.device);
                (
                    Request {
                        message,
                        flags: NLM_F_CREATE | NLM_F_REPLACE,
                    },
                    pending(what, Some(&neighbor.device), &[]),
                )
            }
            Op::RemoveNeighbor(device, address) => {
                let Some(index) = self.find(device)? else {
                    return Ok(None);
                };
                let message = Message::DelNeighbour(encode::neighbor_key(*address, index));
                let what = format!("neighbour {address} on {device}");
                (
                    Request { message, flags: 0 },
                    pending(what, None, &[libc::ENOENT, libc::ENODEV]),
                )
            }
            other => {
                self.flush();
                self.act(other)?;
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    /// What is not a netlink request of ours.
    fn act(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::PutSysctl(Sysctl { .. }) => {}
            _ => self.batch.devices.clear(),
        }
        match op {
            Op::PutSysctl(value) => self.kernel.here(|| sysctl::write(value)),
            Op::PutTunnel(tunnel) => self.kernel.here(|| ipip::put(tunnel)),
            Op::RemoveTunnel(name) => self.kernel.here(|| ipip::remove(name)),
            Op::PutTunnelPeer(name, peer) => self.kernel.here(|| ipip::put_peer(name, *peer)),
            Op::RemoveTunnelPeer(name, peer) => self.kernel.here(|| ipip::remove_peer(name, *peer)),
            Op::RemoveLink(name) => crate::link::delete_and_go_on(&mut self.kernel.requests, name).map(drop),
            // The others are netlink requests.
            _ => Ok(()),
        }
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.requests.is_empty() {
            return;
        }
        let outcome = self.kernel.requests.send_all(&batch.requests);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(broken) => {
                for pending in batch.pending {
                    self.results[pending.at] = Err(broken.clone().about(pending.what, None));
                }
                return;
            }
        };
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        for ((mut request, pending), result) in batch.requests.into_iter().zip(batch.pending).zip(outcome) {
            match (result, &pending.replace) {
                (
                    Err(Failure::Refused {
                        errno: libc::EEXIST, ..
                    }),
                    Some((key, wanted)),
                ) => match self.kernel.foreign.holder(key, *wanted, &mut self.kernel.requests) {
                    Ok(None) => {
                        request.flags = NLM_F_CREATE | NLM_F_REPLACE;
                        again.push((request, pending));
                    }
                    Ok(Some(protocol)) => {
                        let what = format!("{} of protocol {protocol}", pending.what);
                        self.results[pending.at] = Err(KernelError::Foreign { what });
                    }
                    Err(failure) => self.results[pending.at] = Err(failure.about(pending.what, None)),
                },
                (Err(failure), Some(_)) => failed.push((request, pending, failure)),
                (result, _) => self.settle(pending, result),
            }
        }
        for (request, pending, failure) in failed {
            match again.is_empty() {
                true => self.settle(pending, Err(failure)),
                // Its gateway may be reached by a route that is about to be replaced.
                false => again.push((request, pending)),
            }
        }
        let (requests, pending): (Vec<_>, Vec<_>) = again.into_iter().unzip();
        match self.kernel.requests.send_all(&requests) {
            Ok(results) => pending
                .into_iter()
                .zip(results)
                .for_each(|(pending, result)| self.settle(pending, result)),
            Err(broken) => pending
                .into_iter()
                .for_each(|pending| self.settle(pending, Err(broken.clone()))),
        }
    }

    fn settle(&mut self, pending: Pending, result: Result<(), Failure>) {
        self.results[pending.at] = crate::link::accept(result, pending.fine)
            .map_err(|failure| failure.about(pending.what, pending.device.as_ref()));
    }

    fn find(&mut self, device: &IfName) -> Result<Option<u32>, KernelError> {
        if let Some(known) = self.batch.devices.get(device) {
            return Ok(*known);
        }
        let index = self
            .kernel
            .requests
            .index(device)
            .map_err(|failure| failure.about(format!("device {device}"), None))?;
        self.batch.devices.insert(device.clone(), index);
        Ok(index)
    }

    fn index(&mut self, device: &IfName) -> Result<u32, KernelError> {
        self.find(device)?.ok_or_else(|| KernelError::NoDevice(device.clone()))
    }
}

fn route_name(key: &RouteKey) -> String {
    match key.table {
        TABLE_MAIN => format!("route {}", key.destination),
        table => format!("route {} in table {table}", key.destination),
    }
}

fn route_device(route: &Route) -> Option<&IfName> {
    match &route.target {
        kernel::RouteTarget::Link { device } => Some(device),
        kernel::RouteTarget::Via(hops) => hops.first().map(|hop| &hop.device),
        _ => None,
    }
}
