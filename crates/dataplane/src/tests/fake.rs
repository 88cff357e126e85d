//! A kernel in memory, as strict as the real one where it matters here, and stricter about what we must not do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use kernel::{
    Address, IfName, IpFamily, IpipTunnel, KernelError, KernelEvent, Link, Observation, Op, PROTOCOL_OURS, Route,
    RouteKey, RouteTarget, Sysctl,
};

use crate::view::uses;

#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    pub links: BTreeMap<IfName, Link>,
    pub addresses: BTreeSet<Address>,
    pub routes: BTreeMap<RouteKey, Route>,
    pub sysctls: BTreeMap<String, String>,
    pub tunnel: Option<(IpipTunnel, BTreeSet<Ipv4Addr>)>,
    pub events: VecDeque<KernelEvent>,
    /// Operations that fail while this is set, by the text of the operation.
    pub broken: BTreeSet<String>,
    index: u32,
}

impl FakeKernel {
    /// A machine with `eth0` at 10.0.0.1/24 and fd00::1/64.
    pub fn new() -> Self {
        let mut kernel = Self::default();
        kernel.add_link("eth0", "", 1500, true);
        kernel.add_address("eth0", "10.0.0.1/24");
        kernel.add_address("eth0", "fd00::1/64");
        kernel.events.clear();
        kernel
    }

    pub fn observe(&self) -> Observation {
        Observation {
            links: self.links.clone(),
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            forwarding: IpFamily::BOTH
                .into_iter()
                .filter(|family| self.forwards(*family))
                .collect(),
            tunnel: self.tunnel.clone(),
            ..Observation::default()
        }
    }

    pub fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        if self.broken.iter().any(|text| format!("{op:?}").contains(text)) {
            return Err(refused("told to fail"));
        }
        match op {
            Op::SetLink { device, up, .. } => {
                if !self.links.contains_key(device) {
                    return Err(KernelError::NoDevice(device.clone()));
                }
                self.set_up(&device.0, *up);
            }
            Op::PutRoute(route) => return self.put_route(route.clone()),
            Op::RemoveRoute(key, protocol) => {
                if self.routes.get(key).is_some_and(|route| route.protocol == *protocol) {
                    let route = self.routes.remove(key).unwrap();
                    self.events.push_back(KernelEvent::RouteGone(route));
                }
            }
            Op::PutSysctl(Sysctl { path, value }) => {
                let device = path
                    .split('/')
                    .nth(2)
                    .filter(|part| part.starts_with("cali"))
                    .map(IfName::from);
                if let Some(device) = device.filter(|device| !self.links.contains_key(device)) {
                    return Err(KernelError::NoDevice(device));
                }
                self.put_sysctl(path, value);
            }
            Op::PutTunnel(tunnel) => {
                if !self.links.contains_key(&tunnel.underlay) {
                    return Err(KernelError::NoDevice(tunnel.underlay.clone()));
                }
                if !self.links.contains_key(&tunnel.name) {
                    self.add_link(&tunnel.name.0, "ipip", tunnel.mtu, true);
                }
                let link = self.links.get_mut(&tunnel.name).unwrap();
                (link.mtu, link.up) = (tunnel.mtu, true);
                self.events.push_back(KernelEvent::Link(link.clone()));
                let peers = self.tunnel.take().map_or(BTreeSet::new(), |(_, peers)| peers);
                self.tunnel = Some((tunnel.clone(), peers));
                if let Some(address) = tunnel.address {
                    let address = Address {
                        device: tunnel.name.clone(),
                        net: IpNet::from(IpAddr::V4(address)),
                    };
                    self.addresses.insert(address.clone());
                    self.events.push_back(KernelEvent::Address(address, true));
                }
            }
            Op::RemoveTunnel(name) => {
                let used = self.routes.values().find(|route| uses(route, name));
                assert!(used.is_none(), "the tunnel goes while {used:?} uses it");
                self.remove_link(&name.0);
            }
            Op::PutTunnelPeer(name, peer) => {
                let (_, peers) = self
                    .tunnel
                    .as_mut()
                    .ok_or_else(|| KernelError::NoDevice(name.clone()))?;
                peers.insert(*peer);
            }
            Op::RemoveTunnelPeer(name, peer) => {
                let via = |route: &&Route| match &route.target {
                    RouteTarget::Via(hops) => hops
                        .iter()
                        .any(|hop| hop.device == *name && hop.gateway == IpAddr::V4(*peer)),
                    _ => false,
                };
                let used = self.routes.values().find(via);
                assert!(used.is_none(), "peer {peer} goes while {used:?} uses it");
                if let Some((_, peers)) = &mut self.tunnel {
                    peers.remove(peer);
                }
            }
            other => panic!("{other:?} is never planned"),
        }
        Ok(())
    }

    /// Writes a sysctl, as anybody may.
    pub fn put_sysctl(&mut self, path: &str, value: &str) {
        let before = IpFamily::BOTH.map(|family| self.forwards(family));
        self.sysctls.insert(path.into(), value.into());
        for (family, before) in IpFamily::BOTH.into_iter().zip(before) {
            let now = self.forwards(family);
            if now != before {
                self.events.push_back(KernelEvent::Forwarding(family, now));
            }
        }
    }

    fn forwards(&self, family: IpFamily) -> bool {
        let value = self.sysctls.get(&Sysctl::forwarding(family, true).path);
        value.is_some_and(|value| value != "0")
    }

    fn put_route(&mut self, route: Route) -> Result<(), KernelError> {
        if let Some(there) = self.routes.get(&route.key) {
            assert_eq!(there.protocol, PROTOCOL_OURS, "{route:?} overwrites a foreign route");
        }
        let devices: Vec<&IfName> = match &route.target {
            RouteTarget::Link { device } => vec![device],
            RouteTarget::Via(hops) => hops.iter().map(|hop| &hop.device).collect(),
            _ => vec![],
        };
        for device in devices {
            let link = self
                .links
                .get(device)
                .ok_or_else(|| KernelError::NoDevice(device.clone()))?;
            if !link.up {
                return Err(refused("Network is down"));
            }
        }
        if let RouteTarget::Via(hops) = &route.target {
            for hop in hops.iter().filter(|hop| !hop.onlink) {
                let mut nets = self.addresses.iter().filter(|address| address.device == hop.device);
                if !nets.any(|address| address.net.contains(&hop.gateway)) {
                    return Err(refused("Network is unreachable"));
                }
            }
        }
        self.routes.insert(route.key.clone(), route.clone());
        self.events.push_back(KernelEvent::Route(route));
        Ok(())
    }

    pub fn add_link(&mut self, name: &str, kind: &str, mtu: u32, up: bool) {
        self.index += 1;
        let name = IfName::from(name);
        let link = Link {
            index: self.index,
            name: name.clone(),
            kind: kind.into(),
            mtu,
            up,
            carrier: up,
            mac: None,
            alias: None,
            master: None,
        };
        self.links.insert(name, link.clone());
        self.events.push_back(KernelEvent::Link(link));
    }

    pub fn remove_link(&mut self, name: &str) {
        let name = IfName::from(name);
        self.drop_routes(&name);
        self.addresses.retain(|address| address.device != name);
        if self.tunnel.as_ref().is_some_and(|(tunnel, _)| tunnel.name == name) {
            self.tunnel = None;
        }
        if self.links.remove(&name).is_some() {
            self.events.push_back(KernelEvent::LinkGone(name));
        }
    }

    pub fn set_up(&mut self, name: &str, up: bool) {
        let name = IfName::from(name);
        let Some(link) = self.links.get_mut(&name) else { return };
        if link.up == up {
            return;
        }
        (link.up, link.carrier) = (up, up);
        self.events.push_back(KernelEvent::Link(link.clone()));
        if !up {
            self.drop_routes(&name);
            if self.tunnel.as_ref().is_some_and(|(tunnel, _)| tunnel.name == name) {
                self.tunnel = None;
            }
        }
    }

    pub fn add_address(&mut self, device: &str, text: &str) {
        let address = Address {
            device: IfName::from(device),
            net: text.parse().unwrap(),
        };
        if self.links.contains_key(&address.device) && self.addresses.insert(address.clone()) {
            self.events.push_back(KernelEvent::Address(address, true));
        }
    }

    pub fn remove_address(&mut self, device: &str, text: &str) {
        let address = Address {
            device: IfName::from(device),
            net: text.parse().unwrap(),
        };
        if self.addresses.remove(&address) {
            let is_v4 = |net: &ipnet::IpNet| net.addr().is_ipv4();
            let left = self
                .addresses
                .iter()
                .any(|held| held.device == address.device && is_v4(&held.net));
            if is_v4(&address.net) && !left {
                // As Linux does, without a word.
                self.routes
                    .retain(|key, route| !is_v4(&key.destination) || !crate::view::uses(route, &address.device));
            }
            self.events.push_back(KernelEvent::Address(address, false));
        }
    }

    /// Somebody puts a route, whatever is there.
    pub fn meddle(&mut self, route: Route) {
        self.routes.insert(route.key.clone(), route.clone());
        self.events.push_back(KernelEvent::Route(route));
    }

    /// Somebody deletes a route.
    pub fn delete_route(&mut self, key: &RouteKey) {
        if let Some(route) = self.routes.remove(key) {
            self.events.push_back(KernelEvent::RouteGone(route));
        }
    }

    /// Routes of a device that goes: IPv4 says nothing, IPv6 does.
    fn drop_routes(&mut self, device: &IfName) {
        let (gone, kept) = std::mem::take(&mut self.routes)
            .into_iter()
            .partition(|(_, route)| uses(route, device));
        self.routes = kept;
        let gone: BTreeMap<RouteKey, Route> = gone;
        let told = gone
            .into_values()
            .filter(|route| !route.key.destination.addr().is_ipv4());
        self.events.extend(told.map(KernelEvent::RouteGone));
    }
}

fn refused(reason: &str) -> KernelError {
    KernelError::Refused {
        what: "it".into(),
        reason: reason.into(),
        errno: 100,
    }
}
