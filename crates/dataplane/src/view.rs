//! What the kernel has apart from our own objects: devices, addresses, and others' routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{Address, IfName, Link, PROTOCOL_OURS, Route, RouteKey, RouteTarget, TABLE_MAIN};

use crate::config::Config;

/// The surroundings of our objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub links: BTreeMap<IfName, Link>,
    pub addresses: BTreeSet<Address>,
    /// Routes of the main table that are not ours.
    pub foreign: BTreeMap<RouteKey, Route>,
}

impl View {
    /// The subnets through which next hops are reached: those of devices that are up and lead neither to pods nor into the
    /// tunnel. Longest prefix first.
    pub fn connected(&self, config: &Config) -> Vec<(IpNet, IfName)> {
        let usable = |address: &&Address| {
            let device = &address.device;
            let host = address.net.prefix_len() == address.net.max_prefix_len();
            !host && !config.is_pod_device(device) && *device != config.tunnel && self.carries(device)
        };
        let mut connected: Vec<(IpNet, IfName)> = self
            .addresses
            .iter()
            .filter(usable)
            .map(|address| (address.net.trunc(), address.device.clone()))
            .filter(|(net, _)| !is_link_local(net.addr()))
            .collect();
        connected.sort_by_key(|(net, device)| (std::cmp::Reverse(net.prefix_len()), *net, device.clone()));
        connected.dedup();
        connected
    }

    /// The device that holds this node's own address.
    pub fn underlay(&self, config: &Config, own: IpAddr) -> Option<&Link> {
        let holds = |address: &&Address| {
            let device = &address.device;
            address.net.addr() == own && !config.is_pod_device(device) && *device != config.tunnel && device.0 != "lo"
        };
        self.addresses
            .iter()
            .filter(holds)
            .find_map(|address| self.links.get(&address.device))
    }

    /// Whether an address is this host's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.net.addr() == address)
    }

    fn carries(&self, device: &IfName) -> bool {
        device.0 != "lo" && self.links.get(device).is_some_and(|link| link.up)
    }
}

/// Whether a route is one that this agent answers for.
pub(crate) fn is_ours(route: &Route) -> bool {
    route.key.table == TABLE_MAIN && route.protocol == PROTOCOL_OURS
}

/// Whether a route leads through a device.
pub(crate) fn uses(route: &Route, device: &IfName) -> bool {
    match &route.target {
        RouteTarget::Link { device: through } => through == device,
        RouteTarget::Via(hops) => hops.iter().any(|hop| hop.device == *device),
        _ => false,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
