//! The fake kernel's tables and what Linux does to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::object::*;
use crate::port::*;
use crate::shaper::*;

/// `RTPROT_KERNEL`: routes that come with an address.
const PROTOCOL_KERNEL: u8 = 2;
/// Metric of the route that comes with an IPv6 address.
const METRIC_CONNECTED_V6: u32 = 256;
/// Metric of an IPv6 route that names none.
const METRIC_DEFAULT_V6: u32 = 1024;

const EINVAL: i32 = 22;
const ENETDOWN: i32 = 100;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

/// Tables, and events that have not been told yet.
#[derive(Default)]
pub(super) struct State {
    pub observation: Observation,
    /// Written sysctls by path.
    pub sysctls: BTreeMap<String, String>,
    last_index: u32,
    events: Vec<KernelEvent>,
}

impl State {
    pub fn take_events(&mut self) -> Vec<KernelEvent> {
        std::mem::take(&mut self.events)
    }

    pub fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::SetLink { device, up, mtu } => self.set_link(device, *up, *mtu),
            Op::RemoveLink(device) => {
                self.remove_link(device);
                Ok(())
            }
            Op::PutAddress(address) => self.put_address(address),
            Op::RemoveAddress(address) => {
                self.remove_address(address);
                Ok(())
            }
            Op::PutRoute(route) => self.put_route(route),
            Op::RemoveRoute(key, protocol) => {
                let key = canonical(key);
                if self
                    .observation
                    .routes
                    .get(&key)
                    .is_some_and(|route| route.protocol == *protocol)
                {
                    self.delete_route(&key);
                }
                Ok(())
            }
            Op::PutRule(rule) => {
                if self.observation.rules.insert(rule.clone()) {
                    self.events.push(KernelEvent::Rule(rule.clone(), true));
                }
                Ok(())
            }
            Op::RemoveRule(rule) => {
                if self.observation.rules.remove(rule) {
                    self.events.push(KernelEvent::Rule(rule.clone(), false));
                }
                Ok(())
            }
            Op::PutNeighbor(neighbor) => self.put_neighbor(neighbor),
            Op::RemoveNeighbor(device, address) => {
                self.remove_neighbors(|neighbor| neighbor.device == *device && neighbor.address == *address);
                Ok(())
            }
            Op::PutSysctl(sysctl) => self.put_sysctl(sysctl),
            Op::PutTunnel(tunnel) => self.put_tunnel(tunnel),
            Op::RemoveTunnel(name) => {
                if self.has_tunnel(name) {
                    self.remove_link(name);
                }
                Ok(())
            }
            Op::PutTunnelPeer(name, peer) => match &mut self.observation.tunnel {
                Some((tunnel, peers)) if tunnel.name == *name => {
                    peers.insert(*peer);
                    Ok(())
                }
                _ => Err(KernelError::NoDevice(name.clone())),
            },
            Op::RemoveTunnelPeer(name, peer) => {
                if let Some((tunnel, peers)) = &mut self.observation.tunnel
                    && tunnel.name == *name
                {
                    peers.remove(peer);
                }
                Ok(())
            }
            Op::PutShaper(key, shaper) => self.put_shaper(key, *shaper),
            Op::RemoveShaper(key) => {
                self.remove_shaper(key);
                Ok(())
            }
        }
    }

    // === devices ===

    pub fn add_link(&mut self, name: IfName, kind: String) -> u32 {
        self.remove_link(&name);
        self.last_index += 1;
        let index = self.last_index;
        let [.., high, low] = index.to_be_bytes();
        let link = Link {
            index,
            name: name.clone(),
            kind,
            mtu: 1500,
            up: false,
            carrier: false,
            mac: Some(Mac([2, 0, 0, 0, high, low])),
            alias: None,
            master: None,
        };
        self.events.push(KernelEvent::Link(link.clone()));
        self.observation.links.insert(name, link);
        index
    }

    pub fn change_link(&mut self, name: &IfName, change: impl FnOnce(&mut Link)) {
        let Some(old) = self.observation.links.get(name).cloned() else {
            return;
        };
        let mut link = old.clone();
        change(&mut link);
        link.index = old.index;
        link.name = old.name.clone();
        if link == old {
            return;
        }
        self.observation.links.insert(name.clone(), link.clone());
        if old.up && !link.up {
            self.down(name);
        }
        self.events.push(KernelEvent::Link(link.clone()));
        if !old.up && link.up {
            for address in self.addresses_of(name) {
                self.connect(&address);
            }
        }
    }

    pub fn remove_link(&mut self, name: &IfName) {
        if !self.observation.links.contains_key(name) {
            return;
        }
        self.change_link(name, |link| (link.up, link.carrier) = (false, false));
        for address in self.addresses_of(name) {
            self.remove_address(&address);
        }
        // What survived the device's going down: routes with another way.
        for route in self.observation.routes.values_mut() {
            if let RouteTarget::Via(hops) = &mut route.target {
                hops.retain(|hop| hop.device != *name);
            }
        }
        if self.has_tunnel(name) {
            self.observation.tunnel = None;
        }
        self.shapers_lose(name);
        self.observation.links.remove(name);
        self.sysctls.retain(|path, _| device_of(path) != Some(&name.0));
        self.events.push(KernelEvent::LinkGone(name.clone()));
    }

    fn set_link(&mut self, device: &IfName, up: bool, mtu: Option<u32>) -> Result<(), KernelError> {
        self.link(device)?;
        if mtu.is_some_and(|mtu| mtu < 68) {
            return Err(refused(
                format!("device {device}"),
                "mtu less than device minimum",
                EINVAL,
            ));
        }
        self.change_link(device, |link| {
            link.up = up;
            link.carrier = up;
            link.mtu = mtu.unwrap_or(link.mtu);
        });
        Ok(())
    }

    /// What goes when a device goes down: its routes, its IPv6 addresses, its neighbours.
    fn down(&mut self, name: &IfName) {
        for family in IpFamily::BOTH {
            self.disable(name, family);
        }
        for address in self.addresses_of(name) {
            if address.net.addr().is_ipv6() {
                self.remove_address(&address);
            }
        }
    }

    /// Routes (the IPv4 ones without a word) and neighbours of one family.
    fn disable(&mut self, name: &IfName, family: IpFamily) {
        let links = &self.observation.links;
        let usable = |device: &IfName| device != name && links.get(device).is_some_and(|link| link.up);
        let dead: Vec<RouteKey> = self
            .observation
            .routes
            .values()
            .filter(|route| IpFamily::of(&route.key.destination.addr()) == family)
            .filter(|route| match &route.target {
                RouteTarget::Link { device } => device == name,
                RouteTarget::Via(hops) => {
                    hops.iter().any(|hop| hop.device == *name) && !hops.iter().any(|hop| usable(&hop.device))
                }
                _ => false,
            })
            .map(|route| route.key.clone())
            .collect();
        for key in dead {
            match family {
                IpFamily::V4 => drop(self.observation.routes.remove(&key)),
                IpFamily::V6 => self.delete_route(&key),
            }
        }
        self.remove_neighbors(|neighbor| neighbor.device == *name && IpFamily::of(&neighbor.address) == family);
    }

    fn link(&self, device: &IfName) -> Result<&Link, KernelError> {
        self.observation
            .links
            .get(device)
            .ok_or_else(|| KernelError::NoDevice(device.clone()))
    }

    // === addresses ===

    fn put_address(&mut self, address: &Address) -> Result<(), KernelError> {
        self.link(&address.device)?;
        if self.observation.addresses.insert(address.clone()) {
            self.events.push(KernelEvent::Address(address.clone(), true));
            self.connect(address);
        }
        Ok(())
    }

    fn remove_address(&mut self, address: &Address) {
        if !self.observation.addresses.remove(address) {
            return;
        }
        self.events.push(KernelEvent::Address(address.clone(), false));
        let own = address.net.addr();
        if let Some(key) = connected(address).map(|route| route.key)
            && self
                .observation
                .routes
                .get(&key)
                .is_some_and(|route| route.protocol == PROTOCOL_KERNEL)
        {
            self.delete_route(&key);
        }
        if !self.observation.addresses.iter().any(|other| other.net.addr() == own) {
            // Routes that prefer this source go without a word.
            self.observation.routes.retain(|_, route| route.source != Some(own));
        }
        let rest = self.addresses_of(&address.device);
        if own.is_ipv4() && !rest.iter().any(|other| other.net.addr().is_ipv4()) {
            // With its last address a device loses IPv4.
            self.disable(&address.device, IpFamily::V4);
        }
    }

    /// The route that comes with an address, if its device is up.
    fn connect(&mut self, address: &Address) {
        let up = self.observation.links.get(&address.device).is_some_and(|link| link.up);
        if let Some(route) = connected(address).filter(|_| up)
            && !self.observation.routes.contains_key(&route.key)
        {
            self.insert_route(route);
        }
    }

    fn addresses_of(&self, device: &IfName) -> Vec<Address> {
        self.observation
            .addresses
            .iter()
            .filter(|address| address.device == *device)
            .cloned()
            .collect()
    }

    // === routes ===

    fn put_route(&mut self, route: &Route) -> Result<(), KernelError> {
        let mut route = Route {
            key: canonical(&route.key),
            ..route.clone()
        };
        let what = format!("route {}", route.key.destination);
        match &mut route.target {
            RouteTarget::Link { device } => self.usable(&what, device)?,
            RouteTarget::Via(hops) => {
                if hops.is_empty() {
                    return Err(refused(what, "a route through no gateway", EINVAL));
                }
                hops.sort();
                for hop in hops.iter() {
                    self.link(&hop.device)?;
                    // Linux looks at the gateway before it looks at the device.
                    if !hop.onlink && !self.reaches(hop, route.key.table) {
                        return Err(unreachable_gateway(what, &hop.gateway));
                    }
                    self.usable(&what, &hop.device)?;
                }
            }
            RouteTarget::Blackhole | RouteTarget::Unreachable | RouteTarget::Prohibit => {}
            RouteTarget::Other(kind) => {
                let reason = format!("a route of kind {kind} cannot be written");
                return Err(refused(what, &reason, EINVAL));
            }
        }
        if let Some(source) = route.source
            && !self
                .observation
                .addresses
                .iter()
                .any(|address| address.net.addr() == source)
        {
            return Err(refused(what, "Invalid prefsrc address", EINVAL));
        }
        match self.observation.routes.get(&route.key) {
            Some(there) if *there == route => Ok(()),
            Some(there) if there.protocol != PROTOCOL_OURS && there.protocol != route.protocol => {
                Err(KernelError::Foreign {
                    what: format!("{what} of protocol {}", there.protocol),
                })
            }
            _ => {
                self.insert_route(route);
                Ok(())
            }
        }
    }

    pub fn delete_route(&mut self, key: &RouteKey) {
        if let Some(route) = self.observation.routes.remove(key) {
            self.events.push(KernelEvent::RouteGone(route));
        }
    }

    fn insert_route(&mut self, route: Route) {
        self.events.push(KernelEvent::Route(route.clone()));
        self.observation.routes.insert(route.key.clone(), route);
    }

    fn usable(&self, what: &str, device: &IfName) -> Result<(), KernelError> {
        if self.link(device)?.up {
            return Ok(());
        }
        Err(refused(what.to_string(), "Device for nexthop is not up", ENETDOWN))
    }

    /// A gateway is reachable if the longest route to it is a link route of its device.
    fn reaches(&self, hop: &NextHop, table: u32) -> bool {
        if let IpAddr::V6(gateway) = hop.gateway
            && gateway.is_unicast_link_local()
        {
            return true;
        }
        let candidates = self.observation.routes.values().filter(|route| {
            (route.key.table == TABLE_MAIN || route.key.table == table) && route.key.destination.contains(&hop.gateway)
        });
        let longest = candidates.max_by_key(|route| (route.key.destination.prefix_len(), u32::MAX - route.key.metric));
        longest.is_some_and(|route| matches!(&route.target, RouteTarget::Link { device } if *device == hop.device))
    }

    // === shapers ===

    fn put_shaper(&mut self, key: &ShaperKey, shaper: Shaper) -> Result<(), KernelError> {
        self.link(&key.device)?;
        if key.direction == Direction::Egress {
            let detour = ShaperKey::detour(&key.device);
            let alias = Some(ShaperKey::alias(&key.device));
            match self.observation.links.get(&detour) {
                Some(link) if link.alias != alias => {
                    return Err(KernelError::Foreign {
                        what: format!("device {detour}"),
                    });
                }
                Some(_) => {}
                None => drop(self.add_link(detour.clone(), "ifb".into())),
            }
            self.change_link(&detour, |link| {
                (link.up, link.carrier, link.alias) = (true, true, alias)
            });
        }
        if self.observation.shapers.insert(key.clone(), Some(shaper)) != Some(Some(shaper)) {
            self.events.push(KernelEvent::Shaper(key.clone(), Some(shaper)));
        }
        Ok(())
    }

    fn remove_shaper(&mut self, key: &ShaperKey) {
        if self.observation.shapers.remove(key).is_some() {
            match key.direction {
                Direction::Ingress => self.events.push(KernelEvent::Shaper(key.clone(), None)),
                Direction::Egress => self.remove_link(&ShaperKey::detour(&key.device)),
            }
        }
    }

    /// A device goes: its own queue with it, and the way to a detour, or the detour itself.
    fn shapers_lose(&mut self, name: &IfName) {
        self.observation.shapers.retain(|key, state| {
            let is_detour = key.direction == Direction::Egress && ShaperKey::detour(&key.device) == *name;
            if key.device == *name && key.direction == Direction::Egress {
                *state = None;
                return true;
            }
            key.device != *name && !is_detour
        });
    }

    // === neighbours, sysctls, the tunnel ===

    fn put_neighbor(&mut self, neighbor: &Neighbor) -> Result<(), KernelError> {
        self.link(&neighbor.device)?;
        if self.observation.neighbors.contains(neighbor) {
            return Ok(());
        }
        self.observation
            .neighbors
            .retain(|other| other.device != neighbor.device || other.address != neighbor.address);
        self.observation.neighbors.insert(neighbor.clone());
        self.events.push(KernelEvent::Neighbor(neighbor.clone(), true));
        Ok(())
    }

    fn remove_neighbors(&mut self, picks: impl Fn(&Neighbor) -> bool) {
        for neighbor in self.observation.neighbors.extract_if(.., |neighbor| picks(neighbor)) {
            self.events.push(KernelEvent::Neighbor(neighbor, false));
        }
    }

    fn put_sysctl(&mut self, sysctl: &Sysctl) -> Result<(), KernelError> {
        if let Some(device) = device_of(&sysctl.path)
            && device != "all"
            && device != "default"
        {
            self.link(&IfName::from(device))?;
        }
        if sysctl
            .path
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return Err(refused(format!("sysctl {}", sysctl.path), "Invalid argument", EINVAL));
        }
        self.sysctls.insert(sysctl.path.clone(), sysctl.value.clone());
        for family in IpFamily::BOTH {
            if sysctl.path != Sysctl::forwarding(family, true).path {
                continue;
            }
            let forwarding = &mut self.observation.forwarding;
            let on = sysctl.value != "0";
            let changed = if on {
                forwarding.insert(family)
            } else {
                forwarding.remove(&family)
            };
            if changed {
                self.events.push(KernelEvent::Forwarding(family, on));
            }
        }
        Ok(())
    }

    fn put_tunnel(&mut self, tunnel: &IpipTunnel) -> Result<(), KernelError> {
        if tunnel.name.0.is_empty() || tunnel.name.0.len() > 15 {
            return Err(refused(
                format!("device {}", tunnel.name),
                "device name is no name",
                EINVAL,
            ));
        }
        self.link(&tunnel.underlay)?;
        if !self.has_tunnel(&tunnel.name) && self.observation.links.contains_key(&tunnel.name) {
            return Err(KernelError::Foreign {
                what: format!("device {}", tunnel.name),
            });
        }
        if !self.has_tunnel(&tunnel.name) {
            self.add_link(tunnel.name.clone(), "ipip".into());
        }
        let mtu = tunnel.mtu;
        self.change_link(&tunnel.name, |link| {
            (link.up, link.carrier, link.mtu) = (true, true, mtu)
        });
        let wanted = tunnel.address.map(|address| Address {
            device: tunnel.name.clone(),
            net: IpAddr::V4(address).into(),
        });
        for address in self.addresses_of(&tunnel.name) {
            if wanted.as_ref() != Some(&address) {
                self.remove_address(&address);
            }
        }
        if let Some(address) = wanted {
            self.put_address(&address)?;
        }
        let peers = self
            .observation
            .tunnel
            .take()
            .map(|(_, peers)| peers)
            .unwrap_or_default();
        self.observation.tunnel = Some((tunnel.clone(), peers));
        Ok(())
    }

    fn has_tunnel(&self, name: &IfName) -> bool {
        self.observation
            .tunnel
            .as_ref()
            .is_some_and(|(tunnel, _)| tunnel.name == *name)
    }
}

/// A key as the kernel reports it.
fn canonical(key: &RouteKey) -> RouteKey {
    let metric = if key.destination.addr().is_ipv6() && key.metric == 0 {
        METRIC_DEFAULT_V6
    } else {
        key.metric
    };
    RouteKey {
        table: key.table,
        destination: key.destination.trunc(),
        metric,
    }
}

/// The route that comes with an address; an IPv4 host address brings none.
fn connected(address: &Address) -> Option<Route> {
    let (metric, source) = match address.net {
        IpNet::V4(net) if net.prefix_len() == 32 => return None,
        IpNet::V4(_) => (0, Some(address.net.addr())),
        IpNet::V6(_) => (METRIC_CONNECTED_V6, None),
    };
    Some(Route {
        key: RouteKey {
            table: TABLE_MAIN,
            destination: address.net.trunc(),
            metric,
        },
        target: RouteTarget::Link {
            device: address.device.clone(),
        },
        protocol: PROTOCOL_KERNEL,
        source,
    })
}

/// The device in `ipv4/conf/DEVICE/…` and `ipv4/neigh/DEVICE/…`.
fn device_of(path: &str) -> Option<&str> {
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("conf" | "neigh") => parts.next(),
        _ => None,
    }
}

fn unreachable_gateway(what: String, gateway: &IpAddr) -> KernelError {
    match gateway {
        IpAddr::V4(_) => refused(what, "Nexthop has invalid gateway", ENETUNREACH),
        IpAddr::V6(gateway) if *gateway == Ipv6Addr::UNSPECIFIED => refused(what, "Invalid gateway address", EINVAL),
        IpAddr::V6(_) => refused(what, "No route to host", EHOSTUNREACH),
    }
}

fn refused(what: String, reason: &str, errno: i32) -> KernelError {
    KernelError::Refused {
        what,
        reason: reason.to_string(),
        errno,
    }
}
