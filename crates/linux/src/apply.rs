//! Operations of the port as netlink requests: many to a batch, one result each, in order.

use std::collections::{HashMap, HashSet};

use kernel::{IfName, KernelError, Op, Route, RouteKey, RouteTarget, TABLE_MAIN};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;

use crate::link::{self, LinkSettings};
use crate::live::LiveKernel;
use crate::request::{Failure, Request};
use crate::{encode, ipip, shaper, sysctl};

/// Does the operations in order and answers one result for each.
pub(crate) fn run(kernel: &mut LiveKernel, ops: &[Op]) -> Vec<Result<(), KernelError>> {
    let mut run = Run {
        kernel,
        results: Vec::with_capacity(ops.len()),
        batch: Batch::default(),
    };
    for op in ops {
        run.take(op);
    }
    run.flush();
    run.results
}

/// One call: netlink requests gather in a batch, anything else flushes it first, so order is kept.
struct Run<'k, 'o> {
    kernel: &'k mut LiveKernel,
    results: Vec<Result<(), KernelError>>,
    batch: Batch<'o>,
}

#[derive(Default)]
struct Batch<'o> {
    /// In step with `requests`.
    pending: Vec<Pending<'o>>,
    requests: Vec<Request>,
    /// Numbers of devices, looked up once a batch.
    devices: HashMap<&'o IfName, Option<u32>>,
    /// Keys of the routes that are put. Whichever of them is there already is sent a second time, after the batch.
    routes: HashSet<RouteKey>,
}

impl Batch<'_> {
    /// Whether an operation may be done before the second try of the routes of this batch.
    fn takes(&self, op: &Op) -> bool {
        match op {
            Op::PutRoute(route) => !self.routes.contains(&encode::canonical(&route.key)),
            Op::SetLink { .. } | Op::PutAddress(_) | Op::RemoveAddress(_) | Op::RemoveRoute(..) => {
                self.routes.is_empty()
            }
            // Neighbours and rules are of no matter to routes; all others flush anyway.
            _ => true,
        }
    }
}

/// A request under way.
#[derive(Clone, Copy)]
struct Pending<'o> {
    /// Place among the results.
    at: usize,
    op: &'o Op,
}

impl<'o> Run<'_, 'o> {
    fn take(&mut self, op: &'o Op) {
        if !self.batch.takes(op) {
            self.flush();
        }
        if let Op::PutRoute(route) = op {
            self.batch.routes.insert(encode::canonical(&route.key));
        }
        let at = self.results.len();
        self.results.push(Ok(()));
        match self.request(op) {
            Ok(Some((message, flags))) => {
                self.batch.requests.push(Request { message, flags });
                self.batch.pending.push(Pending { at, op });
            }
            Ok(None) => {}
            Err(error) => self.results[at] = Err(error),
        }
    }

    /// The request for an operation; `None`: done, without one.
    fn request(&mut self, op: &'o Op) -> Result<Option<(Message, u16)>, KernelError> {
        const ADD: u16 = NLM_F_CREATE | NLM_F_EXCL;
        const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
        Ok(Some(match op {
            Op::SetLink { device, up, mtu } => {
                let settings = LinkSettings {
                    up: Some(*up),
                    mtu: *mtu,
                    ..LinkSettings::default()
                };
                (Message::SetLink(encode::link(self.index(device)?, &settings)), 0)
            }
            Op::PutAddress(address) => (
                Message::NewAddress(encode::address(address, self.index(&address.device)?)),
                ADD,
            ),
            Op::RemoveAddress(address) => match self.find(&address.device)? {
                Some(index) => (Message::DelAddress(encode::address(address, index)), 0),
                None => return Ok(None),
            },
            Op::PutRoute(route) => (Message::NewRoute(self.route(route)?), ADD),
            Op::RemoveRoute(key, protocol) => (Message::DelRoute(encode::route_removal(key, *protocol)), 0),
            Op::PutRule(rule) => (Message::NewRule(encode::rule(rule)), ADD),
            Op::RemoveRule(rule) => (Message::DelRule(encode::rule(rule)), 0),
            Op::PutNeighbor(neighbor) => (
                Message::NewNeighbour(encode::neighbor(neighbor, self.index(&neighbor.device)?)),
                PUT,
            ),
            Op::RemoveNeighbor(device, address) => match self.find(device)? {
                Some(index) => (Message::DelNeighbour(encode::neighbor_key(*address, index)), 0),
                None => return Ok(None),
            },
            Op::RemoveLink(name) => {
                self.flush();
                link::delete_and_go_on(&mut self.kernel.requests, name)?;
                return Ok(None);
            }
            Op::PutSysctl(sysctl) => return self.aside(|| sysctl::write(sysctl)),
            Op::PutTunnel(tunnel) => return self.aside(|| ipip::put(tunnel)),
            Op::RemoveTunnel(name) => return self.aside(|| ipip::remove(name)),
            Op::PutTunnelPeer(name, peer) => return self.aside(|| ipip::put_peer(name, *peer)),
            Op::RemoveTunnelPeer(name, peer) => return self.aside(|| ipip::remove_peer(name, *peer)),
            Op::PutShaper(key, wanted) => return self.aside(|| shaper::put(key, wanted)),
            Op::RemoveShaper(key) => return self.aside(|| shaper::remove(key)),
        }))
    }

    /// What is not a request of this batch: done at once, after all that came before.
    fn aside<T>(&mut self, work: impl FnOnce() -> Result<(), KernelError> + Send) -> Result<Option<T>, KernelError> {
        self.flush();
        self.kernel.here(work).map(|()| None)
    }

    fn route(&mut self, route: &'o Route) -> Result<netlink_packet_route::route::RouteMessage, KernelError> {
        encode::route(route, |device| self.index(device))
    }

    /// Sends what has gathered and files the results. Nothing of a batch is remembered by the next.
    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let outcome = self.send(&batch.requests);
        let (mut again, mut failed) = (Vec::new(), Vec::new());
        for ((request, pending), result) in batch.requests.into_iter().zip(batch.pending).zip(outcome) {
            match (result, pending.op) {
                (
                    Err(Failure::Refused {
                        errno: libc::EEXIST, ..
                    }),
                    Op::PutRoute(route),
                ) => match self.may_replace(route) {
                    Ok(()) => again.push((
                        Request {
                            flags: NLM_F_CREATE | NLM_F_REPLACE,
                            ..request
                        },
                        pending,
                    )),
                    Err(error) => self.results[pending.at] = Err(error),
                },
                (Err(failure), Op::PutRoute(_)) => failed.push((request, pending, failure)),
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
        for (pending, result) in pending.into_iter().zip(self.send(&requests)) {
            self.settle(pending, result);
        }
    }

    /// One result each; if the socket failed, that for all.
    fn send(&mut self, requests: &[Request]) -> Vec<Result<(), Failure>> {
        let sent = self.kernel.requests.send_all(requests);
        sent.unwrap_or_else(|broken| vec![Err(broken); requests.len()])
    }

    /// The key is taken: by a route that may be replaced?
    fn may_replace(&mut self, route: &Route) -> Result<(), KernelError> {
        match self
            .kernel
            .foreign
            .holder(&route.key, route.protocol, &mut self.kernel.requests)
        {
            Ok(None) => Ok(()),
            Ok(Some(protocol)) => Err(KernelError::Foreign {
                what: format!("{} of protocol {protocol}", route_name(&route.key)),
            }),
            Err(failure) => Err(failure.about(route_name(&route.key), None)),
        }
    }

    fn settle(&mut self, pending: Pending<'_>, result: Result<(), Failure>) {
        self.results[pending.at] = link::accept(result, already_so(pending.op))
            .map_err(|failure| failure.about(describe(pending.op), device_of(pending.op)));
    }

    fn find(&mut self, device: &'o IfName) -> Result<Option<u32>, KernelError> {
        if let Some(known) = self.batch.devices.get(device) {
            return Ok(*known);
        }
        let found = self.kernel.requests.index(device);
        let index = found.map_err(|failure| failure.about(format!("device {device}"), None))?;
        self.batch.devices.insert(device, index);
        Ok(index)
    }

    fn index(&mut self, device: &'o IfName) -> Result<u32, KernelError> {
        self.find(device)?.ok_or_else(|| KernelError::NoDevice(device.clone()))
    }
}

/// The refusals that mean that it is so already.
fn already_so(op: &Op) -> &'static [i32] {
    match op {
        Op::PutAddress(_) | Op::PutRule(_) => &[libc::EEXIST],
        Op::RemoveAddress(_) => &[libc::EADDRNOTAVAIL, libc::ENODEV],
        Op::RemoveRoute(..) => &[libc::ESRCH],
        Op::RemoveRule(_) => &[libc::ENOENT],
        Op::RemoveNeighbor(..) => &[libc::ENOENT, libc::ENODEV],
        _ => &[],
    }
}

/// The device that must be there.
fn device_of(op: &Op) -> Option<&IfName> {
    match op {
        Op::SetLink { device, .. } => Some(device),
        Op::PutAddress(address) => Some(&address.device),
        Op::PutNeighbor(neighbor) => Some(&neighbor.device),
        Op::PutRoute(Route {
            target: RouteTarget::Link { device },
            ..
        }) => Some(device),
        Op::PutRoute(Route {
            target: RouteTarget::Via(hops),
            ..
        }) => hops.first().map(|hop| &hop.device),
        _ => None,
    }
}

/// What was asked, for an error's text.
fn describe(op: &Op) -> String {
    match op {
        Op::SetLink { device, .. } => format!("device {device}"),
        Op::PutAddress(address) | Op::RemoveAddress(address) => {
            format!("address {} on {}", address.net, address.device)
        }
        Op::PutRoute(Route { key, .. }) | Op::RemoveRoute(key, _) => route_name(key),
        Op::PutRule(rule) | Op::RemoveRule(rule) => format!("rule {}", rule.priority),
        Op::PutNeighbor(neighbor) => format!("neighbour {} on {}", neighbor.address, neighbor.device),
        Op::RemoveNeighbor(device, address) => format!("neighbour {address} on {device}"),
        // These describe themselves.
        Op::RemoveLink(name) | Op::RemoveTunnel(name) => format!("device {name}"),
        Op::PutSysctl(sysctl) => format!("sysctl {}", sysctl.path),
        Op::PutTunnel(tunnel) => format!("device {}", tunnel.name),
        Op::PutTunnelPeer(name, peer) | Op::RemoveTunnelPeer(name, peer) => format!("node {peer} on {name}"),
        Op::PutShaper(key, _) | Op::RemoveShaper(key) => key.to_string(),
    }
}

fn route_name(key: &RouteKey) -> String {
    match key.table {
        TABLE_MAIN => format!("route {}", key.destination),
        table => format!("route {} in table {table}", key.destination),
    }
}
