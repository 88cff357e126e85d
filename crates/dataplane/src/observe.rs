//! What the kernel shows: everything at once, or one change at a time.

use std::collections::BTreeMap;

use kernel::{
    Address, IfName, IpFamily, KernelError, KernelEvent, Link, Observation, Route, RouteKey, RouteTarget, Sysctl,
    TABLE_MAIN,
};

use crate::dataplane::{Dataplane, LocalEndpoint, device_sysctls};
use crate::view::{is_ours, uses};

impl Dataplane {
    /// Takes a full picture of the kernel. Everything that failed is tried again.
    pub fn observed(&mut self, seen: Observation) {
        let Observation {
            links,
            addresses,
            routes,
            forwarding,
            tunnel,
            shapers,
            ..
        } = seen;
        self.links
            .saw_all(links.iter().map(|(name, link)| (name.clone(), link.up)).collect());
        self.view.links = links;
        self.view.addresses = addresses;
        let main = routes.into_iter().filter(|(key, _)| key.table == TABLE_MAIN);
        let (ours, foreign): (BTreeMap<_, _>, BTreeMap<_, _>) = main.partition(|(_, route)| is_ours(route));
        self.view.foreign = foreign;
        self.routes.saw_all(ours);
        let (tunnel, peers) = tunnel.map_or((None, BTreeMap::new()), |(tunnel, peers)| {
            (Some(tunnel), peers.into_iter().map(|peer| (peer, ())).collect())
        });
        self.tunnel.saw_all(
            tunnel
                .map(|tunnel| (self.config.tunnel.clone(), tunnel))
                .into_iter()
                .collect(),
        );
        self.peers.saw_all(peers);
        for family in IpFamily::BOTH {
            self.forwarding(family, forwarding.contains(&family));
        }
        self.shapers.saw_all(shapers);
        self.sysctls.retry(|_, _| true);
        self.surroundings_changed();
        self.observed = true;
        self.resync = false;
        if !std::mem::replace(&mut self.ever_observed, true) {
            self.trust_an_earlier_run();
        }
    }

    /// Takes one change that the kernel announced.
    pub fn event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Link(link) => self.link(link),
            KernelEvent::LinkGone(device) => self.link_gone(&device),
            KernelEvent::Address(address, present) => self.address(address, present),
            KernelEvent::Route(route) if is_ours(&route) => {
                self.view.foreign.remove(&route.key);
                self.routes.saw(route.key.clone(), Some(route));
            }
            KernelEvent::Route(route) if route.key.table == TABLE_MAIN => self.foreign_route(route),
            KernelEvent::RouteGone(route) if is_ours(&route) => self.routes.saw(route.key, None),
            KernelEvent::RouteGone(route) => {
                if self.view.foreign.remove(&route.key).is_some() {
                    self.routes.retry(|parked, _| *parked == route.key);
                }
            }
            KernelEvent::Forwarding(family, on) => self.forwarding(family, on),
            KernelEvent::Shaper(key, Some(shaper)) => self.shaper_changed(key, shaper),
            KernelEvent::Shaper(key, None) => self.shaper_lost(&key),
            KernelEvent::Resync => self.resync = true,
            KernelEvent::Route(_) | KernelEvent::Rule(..) | KernelEvent::Neighbor(..) => {}
        }
    }

    /// Tries again whatever failed.
    pub fn retry(&mut self) {
        self.routes.retry(|_, _| true);
        self.tunnel.retry(|_, _| true);
        self.peers.retry(|_, _| true);
        self.links.retry(|_, _| true);
        self.sysctls.retry(|_, _| true);
        self.shapers.retry(|_, _| true);
    }

    /// Whether events were lost or the channel to the kernel broke: look at everything again.
    pub fn wants_observation(&self) -> bool {
        !self.observed || self.resync
    }

    /// What was there at the first look tells what an earlier run had finished.
    fn trust_an_earlier_run(&mut self) {
        let endpoints: Vec<LocalEndpoint> = self.endpoints.values().cloned().collect();
        endpoints.iter().for_each(|endpoint| self.trust_sysctls_of(endpoint));
    }

    /// Without it the node is no router; programs that set sysctls switch it off.
    fn forwarding(&mut self, family: IpFamily, on: bool) {
        let sysctl = Sysctl::forwarding(family, true);
        self.sysctls.saw(sysctl.path, on.then_some(sysctl.value));
    }

    fn foreign_route(&mut self, route: Route) {
        let key = route.key.clone();
        self.routes.saw(key.clone(), None);
        if self.view.foreign.insert(key.clone(), route.clone()).as_ref() == Some(&route) {
            return;
        }
        self.routes.retry(|parked, _| *parked == key);
        // A subnet that became reachable: gateways in it can be used now.
        if let RouteTarget::Link { device } = &route.target {
            self.retry_on(device);
        }
    }

    fn link(&mut self, link: Link) {
        let device = link.name.clone();
        let old = self.view.links.insert(device.clone(), link.clone());
        if old.as_ref() == Some(&link) {
            return;
        }
        let replaced = old.as_ref().is_some_and(|old| old.index != link.index);
        let went_down = old.as_ref().is_some_and(|old| old.up) && !link.up;
        let came_up = old.as_ref().is_some_and(|old| !old.up) && link.up;
        if replaced || went_down {
            // The kernel drops the routes of a device that goes down, of IPv4 without a word.
            self.forget_routes_through(&device);
        }
        self.links.saw(device.clone(), Some(link.up));
        if device == self.config.tunnel {
            self.tunnel_link(&link, old.as_ref(), replaced);
        } else if self.serves_a_pod(&device) {
            if replaced || came_up {
                self.forget_sysctls(&device);
            }
            if replaced {
                Self::shapers_of(&device).iter().for_each(|key| self.shaper_lost(key));
            }
        } else {
            self.surroundings_changed();
        }
        if link.up {
            self.retry_on(&device);
        }
    }

    /// The tunnel works as long as its device stays as we made it.
    fn tunnel_link(&mut self, link: &Link, old: Option<&Link>, replaced: bool) {
        let Some(mut seen) = self.tunnel.seen(&self.config.tunnel).cloned() else {
            return;
        };
        if replaced || !link.up {
            self.tunnel_lost();
        } else if old.is_some_and(|old| old.mtu != link.mtu) && link.mtu != seen.mtu {
            seen.mtu = link.mtu;
            self.tunnel.saw(self.config.tunnel.clone(), Some(seen));
        }
    }

    pub(crate) fn tunnel_lost(&mut self) {
        self.tunnel.saw(self.config.tunnel.clone(), None);
        self.peers.saw_all(BTreeMap::new());
    }

    fn link_gone(&mut self, device: &IfName) {
        self.view.links.remove(device);
        self.view.addresses.retain(|address| address.device != *device);
        self.forget_routes_through(device);
        self.forget_sysctls(device);
        self.links.saw(device.clone(), None);
        match self.detoured(device) {
            Some(key) => self.shapers.saw(key, None),
            None => Self::shapers_of(device).iter().for_each(|key| self.shaper_lost(key)),
        }
        // Nothing can be done on it until it is back.
        let gone = || KernelError::NoDevice(device.clone());
        let of_device = |(key, route): (&RouteKey, &Route)| uses(route, device).then(|| key.clone());
        let keys: Vec<RouteKey> = self.routes.all_wanted().iter().filter_map(of_device).collect();
        keys.iter().for_each(|key| self.routes.fail(key, gone()));
        for sysctl in IpFamily::BOTH.iter().flat_map(|family| device_sysctls(device, *family)) {
            self.sysctls.fail(&sysctl.path, gone());
        }
        if *device == self.config.tunnel {
            self.tunnel_lost();
            // Its routes come back as soon as it does.
            self.retry_on(device);
        } else if !self.serves_a_pod(device) {
            self.surroundings_changed();
        }
    }

    fn address(&mut self, address: Address, present: bool) {
        let news = match present {
            true => self.view.addresses.insert(address.clone()),
            false => self.view.addresses.remove(&address),
        };
        if !news {
            return;
        }
        let is_v4 = |address: &Address| address.net.addr().is_ipv4();
        let left = || {
            self.view
                .addresses
                .iter()
                .any(|held| held.device == address.device && is_v4(held))
        };
        if !present && is_v4(&address) && !left() {
            // With the last IPv4 address of a device the kernel drops its IPv4 routes, without a word.
            self.forget_routes(|route| route.key.destination.addr().is_ipv4() && uses(route, &address.device));
        }
        if address.device == self.config.tunnel {
            if let Some(mut seen) = self.tunnel.seen(&self.config.tunnel).cloned() {
                let wanted = self
                    .tunnel
                    .wanted(&self.config.tunnel)
                    .and_then(|tunnel| tunnel.address);
                let net = address.net.addr();
                if !present && seen.address.is_some_and(|held| net == held) {
                    seen.address = None;
                } else if present && wanted.is_some_and(|wanted| net == wanted) {
                    seen.address = wanted;
                }
                self.tunnel.saw(self.config.tunnel.clone(), Some(seen));
            }
        } else if !self.config.is_pod_device(&address.device) {
            self.surroundings_changed();
        }
        self.retry_on(&address.device);
    }

    fn forget_routes_through(&mut self, device: &IfName) {
        self.forget_routes(|route| uses(route, device));
    }

    /// Routes that the kernel dropped without announcing it.
    fn forget_routes(&mut self, gone: impl Fn(&Route) -> bool) {
        let key = |(key, route): (&RouteKey, &Route)| gone(route).then(|| key.clone());
        let keys: Vec<RouteKey> = self.routes.all_seen().iter().filter_map(key).collect();
        keys.into_iter().for_each(|key| self.routes.saw(key, None));
        self.view.foreign.retain(|_, route| !gone(route));
    }

    fn forget_sysctls(&mut self, device: &IfName) {
        for sysctl in IpFamily::BOTH.iter().flat_map(|family| device_sysctls(device, *family)) {
            self.sysctls.forget(sysctl.path);
        }
    }

    /// Something about a device changed: what failed on it may work now.
    pub(crate) fn retry_on(&mut self, device: &IfName) {
        self.routes
            .retry(|_, wanted| wanted.is_some_and(|route| uses(route, device)));
        self.links.retry(|name, _| name == device);
        let part = format!("/{device}/");
        self.sysctls.retry(|path, _| path.contains(&part));
        self.shapers.retry(|key, _| key.device == *device);
        let tunnel = &self.config.tunnel;
        self.tunnel
            .retry(|_, wanted| device == tunnel || wanted.is_some_and(|wanted| wanted.underlay == *device));
        if device == tunnel {
            self.peers.retry(|_, _| true);
        }
    }
}
