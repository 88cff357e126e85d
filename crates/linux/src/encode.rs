//! Kernel objects to netlink messages. Device numbers come from the caller.

use std::net::IpAddr;

use kernel::{
    Address, IfName, IpFamily, KernelError, Mac, Neighbor, NextHop, PolicyRule, Route, RouteKey, RouteTarget,
};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// The metric that IPv6 gives to a route that names none.
pub(crate) const IPV6_DEFAULT_METRIC: u32 = 1024;

/// A key as the kernel reports it.
pub(crate) fn canonical(key: &RouteKey) -> RouteKey {
    let metric = match (key.destination.addr(), key.metric) {
        (IpAddr::V6(_), 0) => IPV6_DEFAULT_METRIC,
        (_, metric) => metric,
    };
    RouteKey {
        table: key.table,
        destination: key.destination.trunc(),
        metric,
    }
}

/// Settings of a device that `RTM_SETLINK` can write, by the kernel's numbers (`IPV4_DEVCONF_*`, `linux/ip.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv4Setting {
    Forwarding = 1,
    ProxyArp = 3,
    RpFilter = 8,
    RouteLocalnet = 26,
}

const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;

/// `IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { number: value, … } } }`. The codec only knows the form in which the kernel
/// answers, where the same attribute is an array of all settings.
pub(crate) fn ipv4_settings(settings: &[(Ipv4Setting, u32)]) -> LinkAttribute {
    let attribute = |kind: u16, value: &[u8]| {
        let length = value.len() as u16 + 4;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes
    };
    let values: Vec<u8> = settings
        .iter()
        .flat_map(|(setting, value)| attribute(*setting as u16, &value.to_ne_bytes()))
        .collect();
    let conf = attribute(IFLA_INET_CONF | NLA_F_NESTED, &values);
    let family = attribute(libc::AF_INET as u16 | NLA_F_NESTED, &conf);
    LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC | NLA_F_NESTED, family))
}

/// A route for `RTM_NEWROUTE`. Targets of kind `Other` cannot be written.
pub(crate) fn route<'r>(
    route: &'r Route,
    mut index: impl FnMut(&'r IfName) -> Result<u32, KernelError>,
) -> Result<RouteMessage, KernelError> {
    let mut message = route_key(&route.key);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = RouteType::Unicast;
    let v4 = route.key.destination.addr().is_ipv4();
    match &route.target {
        RouteTarget::Link { device } => {
            message.attributes.push(RouteAttribute::Oif(index(device)?));
            // IPv6 has no scopes of routes.
            message.header.scope = if v4 { RouteScope::Link } else { RouteScope::Universe };
        }
        RouteTarget::Via(hops) => match hops.as_slice() {
            [] => return Err(refused(route, "a route through no gateway")),
            [hop] => {
                if hop.onlink {
                    message.header.flags |= RouteFlags::Onlink;
                }
                message.attributes.push(gateway(route, hop));
                message.attributes.push(RouteAttribute::Oif(index(&hop.device)?));
            }
            hops => {
                let hops: Result<Vec<_>, KernelError> = hops
                    .iter()
                    .map(|hop| {
                        let mut encoded = RouteNextHop::default();
                        if hop.onlink {
                            encoded.flags = RouteNextHopFlags::Onlink;
                        }
                        encoded.interface_index = index(&hop.device)?;
                        encoded.attributes = vec![gateway(route, hop)];
                        Ok(encoded)
                    })
                    .collect();
                message.attributes.push(RouteAttribute::MultiPath(hops?));
            }
        },
        RouteTarget::Blackhole => message.header.kind = RouteType::BlackHole,
        RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
        RouteTarget::Prohibit => message.header.kind = RouteType::Prohibit,
        RouteTarget::Other(kind) => return Err(refused(route, &format!("a route of kind {kind} cannot be written"))),
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    Ok(message)
}

/// A route for `RTM_DELROUTE`: any target, only this protocol.
pub(crate) fn route_removal(key: &RouteKey, protocol: u8) -> RouteMessage {
    let mut message = route_key(key);
    message.header.protocol = RouteProtocol::from(protocol);
    // "Nowhere" and "unspecified" match whatever the route has.
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    message
}

/// All routes of one family, with strict checking.
pub(crate) fn route_dump(family: IpFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message
}

fn route_key(key: &RouteKey) -> RouteMessage {
    let key = canonical(key);
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(IpFamily::of(&key.destination.addr()));
    message.header.destination_prefix_length = key.destination.prefix_len();
    message
        .attributes
        .push(RouteAttribute::Destination(key.destination.addr().into()));
    match u8::try_from(key.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(key.table)),
    }
    if key.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    message
}

fn gateway(route: &Route, hop: &NextHop) -> RouteAttribute {
    match (route.key.destination.addr(), hop.gateway) {
        (IpAddr::V4(_), IpAddr::V6(gateway)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        (_, gateway) => RouteAttribute::Gateway(RouteAddress::from(gateway)),
    }
}

fn refused(route: &Route, reason: &str) -> KernelError {
    KernelError::Refused {
        what: format!("route {}", route.key.destination),
        reason: reason.to_string(),
        errno: libc::EINVAL,
    }
}

/// An address for `RTM_NEWADDR` and `RTM_DELADDR`. No duplicate address detection: IPAM has seen to that.
pub(crate) fn address(address: &Address, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(IpFamily::of(&address.net.addr()));
    message.header.prefix_len = address.net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.net.addr()));
    message.attributes.push(AddressAttribute::Address(address.net.addr()));
    if address.net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// A rule for `RTM_NEWRULE` and `RTM_DELRULE`.
pub(crate) fn rule(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    if rule.invert {
        message.header.flags = RuleFlags::Invert;
    }
    match u8::try_from(rule.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RuleAttribute::Table(rule.table)),
    }
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some((mark, mask)) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)));
    message
}

/// A permanent neighbour for `RTM_NEWNEIGH`.
pub(crate) fn neighbor(neighbor: &Neighbor, index: u32) -> NeighbourMessage {
    let mut message = neighbor_key(neighbor.address, index);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(neighbor.mac.0.to_vec()));
    message
}

/// A neighbour for `RTM_DELNEIGH`.
pub(crate) fn neighbor_key(address: IpAddr, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(IpFamily::of(&address));
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message
}

/// What to change about a device; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// New name.
    pub name: Option<IfName>,
    /// Administrative state.
    pub up: Option<bool>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// `ifalias`, at most 255 bytes.
    pub alias: Option<String>,
    /// Bridge to join, by its number; `Some(0)` leaves it.
    pub master: Option<u32>,
}

/// A device's settings for `RTM_NEWLINK` (0 as number) and `RTM_SETLINK`.
pub(crate) fn link(index: u32, settings: &LinkSettings) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(up) = settings.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    let attributes = &mut message.attributes;
    attributes.extend(settings.name.as_ref().map(|name| LinkAttribute::IfName(name.0.clone())));
    attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
    attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(settings.alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(settings.master.map(LinkAttribute::Controller));
    message
}

/// All devices, without their counters.
pub(crate) fn link_dump() -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

pub(crate) fn address_family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}
