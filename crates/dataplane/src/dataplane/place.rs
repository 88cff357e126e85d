//! What is wanted of the kernel for a pod, a block or a prefix: routes, devices, sysctls.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{IfName, IpFamily, PROTOCOL_OURS, Route, RouteKey, RouteTarget, Sysctl, TABLE_MAIN};

use super::{Dataplane, LocalEndpoint};
use crate::status::RouteClass;

impl Dataplane {
    pub(super) fn place_endpoint_address(&mut self, address: IpAddr) {
        let holder = self.claims.get(&address).and_then(|ids| ids.first());
        let device = holder
            .and_then(|id| self.endpoints.get(id))
            .map(|endpoint| endpoint.device.clone());
        let route = device.map(|device| self.route(IpNet::from(address), RouteTarget::Link { device }));
        self.place(RouteClass::Local, IpNet::from(address), route);
    }

    pub(super) fn place_block(&mut self, block: IpNet) {
        // A block of one address has no rest to refuse: the blackhole would hide the pod.
        let wanted = self.state.blocks.contains(&block) && block.prefix_len() < block.max_prefix_len();
        let route = wanted.then(|| self.route(block, RouteTarget::Blackhole));
        self.place(RouteClass::Block, block, route);
    }

    fn route(&self, destination: IpNet, target: RouteTarget) -> Route {
        let metric = match destination {
            IpNet::V4(_) => self.state.settings.ipv4_metric,
            IpNet::V6(_) => self.state.settings.ipv6_metric,
        };
        let key = RouteKey {
            table: TABLE_MAIN,
            destination,
            metric,
        };
        Route {
            key,
            target,
            protocol: PROTOCOL_OURS,
            source: None,
        }
    }

    /// Makes `route` the one that a part wants for a destination. Where two parts want one key, the first class has it.
    pub(super) fn place(&mut self, class: RouteClass, destination: IpNet, route: Option<Route>) {
        let slot = (class, destination);
        let old = match &route {
            Some(route) => self.placed.insert(slot, route.key.clone()),
            None => self.placed.remove(&slot),
        };
        if let Some(old) = old.filter(|old| route.as_ref().is_none_or(|route| route.key != *old))
            && let Some(wishes) = self.wishes.get_mut(&old)
        {
            wishes.remove(&class);
            let next = wishes.values().next().cloned();
            if wishes.is_empty() {
                self.wishes.remove(&old);
            }
            self.routes.want(old, next);
        }
        if let Some(route) = route {
            let key = route.key.clone();
            let family = IpFamily::of(&destination.addr());
            let wishes = self.wishes.entry(key.clone()).or_default();
            wishes.insert(class, route);
            self.routes.want(key, wishes.values().next().cloned());
            let forwarding = Sysctl::forwarding(family, true);
            // A node that has a route of ours forwards packets of that family.
            self.sysctls.want(forwarding.path, Some(forwarding.value));
        }
    }

    /// Wants a pod's device up and set, or nothing any more.
    pub(super) fn want_device(&mut self, device: &IfName) {
        let users: Vec<&LocalEndpoint> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.device == *device)
            .collect();
        let families: BTreeSet<IpFamily> = users
            .iter()
            .flat_map(|endpoint| endpoint.addresses.iter().map(IpFamily::of))
            .collect();
        self.links.want(device.clone(), (!users.is_empty()).then_some(true));
        for family in IpFamily::BOTH {
            for sysctl in device_sysctls(device, family) {
                let wanted = families.contains(&family);
                if !wanted {
                    self.sysctls.saw(sysctl.path.clone(), None);
                }
                let is_loose = self.sources.contains(device) && sysctl.path.ends_with("/rp_filter");
                let value = if is_loose { UNCHECKED.to_owned() } else { sysctl.value };
                self.sysctls.want(sysctl.path, wanted.then_some(value));
            }
        }
    }

    /// Sysctls are written before routes. Routes that were there when we first looked prove that an earlier run of the agent
    /// wrote the sysctls, so that a restart changes nothing.
    pub(crate) fn trust_sysctls_of(&mut self, endpoint: &LocalEndpoint) {
        let there = |address: &IpAddr| {
            let key = self.placed.get(&(RouteClass::Local, IpNet::from(*address)));
            key.is_some_and(|key| self.routes.agrees(key))
        };
        if endpoint.addresses.iter().all(there) {
            self.sysctls_are_set(endpoint);
        }
    }

    pub(super) fn sysctls_are_set(&mut self, endpoint: &LocalEndpoint) {
        let families: BTreeSet<IpFamily> = endpoint.addresses.iter().map(IpFamily::of).collect();
        let sysctls = families
            .into_iter()
            .flat_map(|family| device_sysctls(&endpoint.device, family));
        sysctls.for_each(|sysctl| self.sysctls.saw(sysctl.path, Some(sysctl.value)));
    }
}

/// `rp_filter` of a device whose packets may have sources that no route leads to. Not 2: on a device without an address the
/// kernel treats that as 1 (`__fib_validate_source`). It takes the larger one of the device's and `all`, which is 0 by default.
const UNCHECKED: &str = "0";

/// What the host side of a pod needs, as upstream sets it: it answers ARP and ND for everything at once, forwards, and takes
/// only packets that could come from there.
pub(crate) fn device_sysctls(device: &IfName, family: IpFamily) -> Vec<Sysctl> {
    let (folder, settings): (&str, &[(&str, &str)]) = match family {
        IpFamily::V4 => (
            "ipv4",
            &[
                ("conf/{}/route_localnet", "1"),
                ("neigh/{}/proxy_delay", "0"),
                ("conf/{}/proxy_arp", "1"),
                ("conf/{}/forwarding", "1"),
                ("conf/{}/rp_filter", "1"),
            ],
        ),
        IpFamily::V6 => (
            "ipv6",
            &[
                ("conf/{}/disable_ipv6", "0"),
                ("conf/{}/accept_dad", "0"),
                ("conf/{}/accept_ra", "0"),
                ("conf/{}/proxy_ndp", "1"),
                ("conf/{}/forwarding", "1"),
            ],
        ),
    };
    let sysctl = |(path, value): &(&str, &str)| Sysctl {
        path: format!("{folder}/{}", path.replace("{}", &device.0)),
        value: (*value).to_owned(),
    };
    settings.iter().map(sysctl).collect()
}
