//! What to do next, in an order that loses no packet, and what came of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use kernel::{KernelError, Op, PROTOCOL_OURS, Route, RouteKey, RouteTarget, Sysctl};

use crate::dataplane::{Dataplane, Switch};
use crate::decide::TunnelDecision;
use crate::ledger::Step;
use crate::status::{RouteClass, route_name};
use crate::view::uses;

impl Dataplane {
    /// What to do now: tunnel, its peers, links, sysctls, shapers, routes added or replaced; then removals, the other way round.
    /// Empty until the kernel has been observed, and when there is nothing to do.
    pub fn plan(&mut self) -> Vec<Op> {
        self.settle();
        if !self.observed {
            return Vec::new();
        }
        let mut ops = Vec::new();
        self.switch.waiting = false;
        self.plan_tunnel(&mut ops);
        self.plan_links(&mut ops);
        self.plan_sysctls(&mut ops);
        self.plan_shapers(&mut ops);
        self.plan_routes(&mut ops);
        self.plan_tunnel_removals(&mut ops);
        ops
    }

    /// What an operation of the last plan puts back that had been in place, as status names it. Ask before
    /// [`done`](Self::done).
    pub fn repairs(&self, op: &Op) -> Option<String> {
        match op {
            Op::PutRoute(route) if self.routes.has_drifted(&route.key) => Some(route_name(&route.key)),
            Op::PutTunnel(tunnel) if self.tunnel.has_drifted(&tunnel.name) => Some(format!("tunnel {}", tunnel.name)),
            Op::PutTunnelPeer(_, peer) if self.peers.has_drifted(peer) => Some(format!("tunnel peer {peer}")),
            Op::SetLink { device, .. } if self.links.has_drifted(device) => Some(format!("device {device}")),
            Op::PutSysctl(sysctl) if self.sysctls.has_drifted(&sysctl.path) => Some(format!("sysctl {}", sysctl.path)),
            Op::PutShaper(key, _) if self.shapers.has_drifted(key) => Some(key.to_string()),
            _ => None,
        }
    }

    /// Takes what came of an operation of the last plan. One that failed is parked until something that it depends on
    /// changes; the rest goes on.
    pub fn done(&mut self, op: &Op, result: Result<(), KernelError>) {
        match result {
            Ok(()) => self.succeeded(op),
            // Not the operation's fault: nothing is known until everything has been looked at again.
            Err(KernelError::Broken(_)) => self.observed = false,
            Err(why) => self.failed(op, why),
        }
    }

    /// Removes exactly what is ours. The tunnel stays if others' routes use it.
    pub fn purge(&mut self) -> Vec<Op> {
        let removed = self
            .routes
            .all_seen()
            .keys()
            .map(|key| Op::RemoveRoute(key.clone(), PROTOCOL_OURS));
        let mut ops: Vec<Op> = removed.collect();
        let tunnel = &self.config.tunnel;
        let shared = self.view.foreign.values().any(|route| uses(route, tunnel));
        if self.tunnel.seen(tunnel).is_some() && !shared {
            ops.push(Op::RemoveTunnel(tunnel.clone()));
        }
        ops.extend(self.shapers.all_seen().keys().cloned().map(Op::RemoveShaper));
        ops
    }

    fn plan_tunnel(&self, ops: &mut Vec<Op>) {
        let name = &self.config.tunnel;
        let seen = self.tunnel.seen(name).is_some();
        if matches!(self.tunnel_decision, TunnelDecision::On(_)) {
            for (_, step) in self.tunnel.pending() {
                if let Step::Put(tunnel) = step
                    && (!seen || self.permitted.datastore)
                {
                    ops.push(Op::PutTunnel(tunnel.clone()));
                }
            }
        }
        if seen && !self.tunnel_decision.is_off() {
            let missing = self.peers.pending().filter(|(_, step)| matches!(step, Step::Put(())));
            ops.extend(missing.map(|(peer, _)| Op::PutTunnelPeer(name.clone(), *peer)));
        }
    }

    fn plan_links(&self, ops: &mut Vec<Op>) {
        for (device, step) in self.links.pending() {
            // A device that is not there is the CNI plugin's business; one that nobody wants is not ours.
            if matches!(step, Step::Put(true)) && self.links.seen(device).is_some() {
                ops.push(Op::SetLink {
                    device: device.clone(),
                    up: true,
                    mtu: None,
                });
            }
        }
    }

    fn plan_sysctls(&self, ops: &mut Vec<Op>) {
        for (path, step) in self.sysctls.pending() {
            if let Step::Put(value) = step {
                ops.push(Op::PutSysctl(Sysctl {
                    path: path.clone(),
                    value: value.clone(),
                }));
            }
        }
    }

    fn plan_shapers(&self, ops: &mut Vec<Op>) {
        for (key, step) in self.shapers.pending() {
            match step {
                // A device that is not there is waited for.
                Step::Put(Some(shaper)) if self.view.links.contains_key(&key.device) => {
                    ops.push(Op::PutShaper(key.clone(), *shaper));
                }
                // Whose pod is not known yet may be limited.
                Step::Remove(_) if self.permitted.endpoints && self.permitted.datastore => {
                    ops.push(Op::RemoveShaper(key.clone()));
                }
                _ => {}
            }
        }
    }

    fn plan_routes(&mut self, ops: &mut Vec<Op>) {
        let mut removals = Vec::new();
        let mut held = false;
        for (key, step) in self.routes.pending() {
            match step {
                Step::Put(route) if self.may_put(key, route) => match self.is_switch(key, route) {
                    true => held = true,
                    false => ops.push(Op::PutRoute(route.clone())),
                },
                Step::Remove(route) if self.may_remove(key, route) => {
                    removals.push(Op::RemoveRoute(key.clone(), PROTOCOL_OURS));
                }
                _ => {}
            }
        }
        ops.extend(removals);
        self.switch.waiting |= held;
    }

    /// Whether a route would move packets into a tunnel that other nodes may not have yet.
    fn is_switch(&self, key: &RouteKey, route: &Route) -> bool {
        let tunnel = &self.config.tunnel;
        let Switch { held, young, .. } = self.switch;
        held && young && uses(route, tunnel) && self.routes.seen(key).is_some_and(|seen| !uses(seen, tunnel))
    }

    /// Whether a route can go in now: nobody else's is in its place, the tunnel is ready for it, and if it replaces one of
    /// an earlier run, the picture that says so is complete.
    fn may_put(&self, key: &RouteKey, route: &Route) -> bool {
        let replaces = self.routes.seen(key).is_some();
        let certain = self.permitted.datastore || self.class_of(key) == Some(RouteClass::Local);
        !self.view.foreign.contains_key(key) && self.tunnel_is_ready_for(route) && (!replaces || certain)
    }

    fn tunnel_is_ready_for(&self, route: &Route) -> bool {
        let RouteTarget::Via(hops) = &route.target else {
            return true;
        };
        let is_peer = |gateway: IpAddr| match gateway {
            IpAddr::V4(node) => self.peers.seen(&node).is_some(),
            IpAddr::V6(_) => false,
        };
        let up = self.tunnel.seen(&self.config.tunnel).is_some();
        hops.iter()
            .all(|hop| hop.device != self.config.tunnel || (up && is_peer(hop.gateway)))
    }

    /// Whether a route that nobody wants can go: the part that would know says so, and if the same destination is wanted
    /// under another metric, that route is in place.
    fn may_remove(&self, key: &RouteKey, route: &Route) -> bool {
        let permitted = match &route.target {
            RouteTarget::Link { device } if self.config.is_pod_device(device) => self.permitted.endpoints,
            RouteTarget::Blackhole => self.permitted.datastore,
            _ => self.permitted.datastore && self.permitted.bgp,
        };
        let at = |metric| RouteKey { metric, ..key.clone() };
        let mut successors = self.routes.all_wanted().range(at(0)..=at(u32::MAX));
        permitted && successors.all(|(successor, _)| self.is_in_place(successor))
    }

    fn plan_tunnel_removals(&mut self, ops: &mut Vec<Op>) {
        let name = &self.config.tunnel;
        if !self.permitted.datastore || self.tunnel.seen(name).is_none() {
            return;
        }
        let through = || {
            self.routes
                .all_seen()
                .values()
                .chain(self.view.foreign.values())
                .filter(|r| uses(r, name))
        };
        if self.tunnel_decision.is_off() {
            let removable = self.tunnel.pending().any(|(_, step)| matches!(step, Step::Remove(_)));
            if removable && through().next().is_none() {
                match self.switch.held && !self.switch.may_retire {
                    true => self.switch.waiting = true,
                    false => ops.push(Op::RemoveTunnel(name.clone())),
                }
            }
            return;
        }
        let stale: Vec<Ipv4Addr> = self
            .peers
            .pending()
            .filter(|(_, step)| matches!(step, Step::Remove(_)))
            .map(|(peer, _)| *peer)
            .collect();
        if stale.is_empty() {
            return;
        }
        let used: BTreeSet<IpAddr> = through().flat_map(gateways).collect();
        let unused = stale.into_iter().filter(|peer| !used.contains(&IpAddr::V4(*peer)));
        ops.extend(unused.map(|peer| Op::RemoveTunnelPeer(name.clone(), peer)));
    }

    fn succeeded(&mut self, op: &Op) {
        match op {
            Op::PutTunnel(tunnel) => {
                self.switch.young |= self.tunnel.seen(&tunnel.name).is_none();
                self.tunnel.saw(tunnel.name.clone(), Some(tunnel.clone()));
                self.retry_on(&tunnel.name);
            }
            Op::RemoveTunnel(_) => self.tunnel_lost(),
            Op::PutTunnelPeer(_, peer) => self.peers.saw(*peer, Some(())),
            Op::RemoveTunnelPeer(_, peer) => self.peers.saw(*peer, None),
            Op::SetLink { device, up, .. } => self.links.saw(device.clone(), Some(*up)),
            Op::PutSysctl(sysctl) => self.sysctls.saw(sysctl.path.clone(), Some(sysctl.value.clone())),
            Op::PutRoute(route) => self.routes.saw(route.key.clone(), Some(route.clone())),
            Op::RemoveRoute(key, _) => self.routes.saw(key.clone(), None),
            Op::PutShaper(key, shaper) => self.shapers.saw(key.clone(), Some(Some(*shaper))),
            Op::RemoveShaper(key) => self.shapers.saw(key.clone(), None),
            // Never planned here.
            Op::RemoveLink(_) | Op::PutAddress(_) | Op::RemoveAddress(_) => {}
            Op::PutRule(_) | Op::RemoveRule(_) | Op::PutNeighbor(_) | Op::RemoveNeighbor(..) => {}
        }
    }

    fn failed(&mut self, op: &Op, why: KernelError) {
        match op {
            Op::PutTunnel(tunnel) => self.tunnel.fail(&tunnel.name, why),
            Op::RemoveTunnel(name) => self.tunnel.fail(name, why),
            Op::PutTunnelPeer(_, peer) | Op::RemoveTunnelPeer(_, peer) => self.peers.fail(peer, why),
            Op::SetLink { device, .. } => self.links.fail(device, why),
            Op::PutSysctl(sysctl) => self.sysctls.fail(&sysctl.path, why),
            Op::PutRoute(route) => self.routes.fail(&route.key, why),
            Op::RemoveRoute(key, _) => self.routes.fail(key, why),
            Op::PutShaper(key, _) | Op::RemoveShaper(key) => self.shapers.fail(key, why),
            Op::RemoveLink(_) | Op::PutAddress(_) | Op::RemoveAddress(_) => {}
            Op::PutRule(_) | Op::RemoveRule(_) | Op::PutNeighbor(_) | Op::RemoveNeighbor(..) => {}
        }
    }
}

fn gateways(route: &Route) -> impl Iterator<Item = IpAddr> + '_ {
    let hops = match &route.target {
        RouteTarget::Via(hops) => hops.as_slice(),
        _ => &[],
    };
    hops.iter().map(|hop| hop.gateway)
}
