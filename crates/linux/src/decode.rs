//! Netlink payloads to kernel objects: a lazy walk that reads what we look at and skips the rest, so that newer kernels
//! with longer attributes are understood. Every read is checked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kernel::{Address, IfName, IpFamily, Link, Mac, Neighbor, NextHop, PolicyRule, Route, RouteKey, RouteTarget};

// What crate `libc` lacks of linux/rtnetlink.h and linux/fib_rules.h.
const RTNH_F_ONLINK: u8 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

/// The attributes of a message or of a nest: type without flag bits, and value. What is malformed ends the walk.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// `RTM_NEWNETCONF`: whether a family is forwarded, if the message is about the switch for all devices and says so.
pub(crate) fn forwarding(payload: &[u8]) -> Option<(IpFamily, bool)> {
    // linux/netconf.h
    const NETCONFA_IFINDEX: u16 = 1;
    const NETCONFA_FORWARDING: u16 = 2;
    const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
    let family = match i32::from(*payload.first()?) {
        libc::AF_INET => IpFamily::V4,
        libc::AF_INET6 => IpFamily::V6,
        _ => return None,
    };
    // The header is the family, padded to 4 bytes.
    let attributes = || payload.get(4..).map(Attributes).into_iter().flatten();
    let value = |wanted| {
        let mut found = attributes().filter(|(kind, _)| *kind == wanted);
        found.next().and_then(|(_, value)| read_u32(value, 0))
    };
    (value(NETCONFA_IFINDEX)? == NETCONFA_IFINDEX_ALL).then_some(())?;
    Some((family, value(NETCONFA_FORWARDING)? != 0))
}

/// Names of devices by number, for decoding what refers to a device by number.
pub(crate) type Names = HashMap<u32, IfName>;

/// `RTM_*LINK`. `None` for messages of other families: a bridge port that leaves its bridge is no device that goes.
pub(crate) fn link(payload: &[u8]) -> Option<Link> {
    const IFF_UP: u32 = 1;
    const IFF_LOWER_UP: u32 = 1 << 16;
    if i32::from(*payload.first()?) != libc::AF_UNSPEC {
        return None;
    }
    let flags = read_u32(payload, 8)?;
    let mut link = Link {
        index: read_u32(payload, 4)?,
        name: IfName(String::new()),
        kind: String::new(),
        mtu: 0,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        mac: None,
        alias: None,
        master: None,
    };
    for (kind, value) in Attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_IFNAME => link.name = IfName(text(value)),
            libc::IFLA_MTU => link.mtu = read_u32(value, 0)?,
            libc::IFLA_MASTER => link.master = read_u32(value, 0),
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            libc::IFLA_LINKINFO => {
                link.kind = Attributes(value)
                    .find(|(kind, _)| *kind == libc::IFLA_INFO_KIND)
                    .map(|(_, v)| text(v))?;
            }
            _ => {}
        }
    }
    (!link.name.0.is_empty()).then_some(link)
}

/// The number of the device that an end of a veth pair is tied to (`IFLA_LINK`), in whatever namespace that is.
pub(crate) fn peer_index(payload: &[u8]) -> Option<u32> {
    let (_, value) = Attributes(payload.get(16..)?).find(|(kind, _)| *kind == libc::IFLA_LINK)?;
    read_u32(value, 0)
}

/// `RTM_*ADDR`. `None` if the device is not known.
pub(crate) fn address(payload: &[u8], names: &Names) -> Option<Address> {
    let family = *payload.first()?;
    let prefix = *payload.get(1)?;
    let device = names.get(&read_u32(payload, 4)?)?.clone();
    let (mut local, mut peer) = (None, None);
    for (kind, value) in Attributes(payload.get(8..)?) {
        match kind {
            libc::IFA_LOCAL => local = ip(family, value),
            libc::IFA_ADDRESS => peer = ip(family, value),
            _ => {}
        }
    }
    Some(Address {
        device,
        net: IpNet::new(local.or(peer)?, prefix).ok()?,
    })
}

/// `RTM_*ROUTE`. `None` for the table `local`, for cached clones, and for routes that a key cannot name (TOS).
pub(crate) fn route(payload: &[u8], names: &Names) -> Option<Route> {
    const RTM_F_CLONED: u32 = 0x200;
    let family = *payload.first()?;
    let header = payload.get(..12)?;
    let (prefix, tos, protocol, kind) = (header[1], header[3], header[5], header[7]);
    let flags = read_u32(payload, 8)?;
    let mut table = u32::from(header[4]);
    let (mut destination, mut source, mut gateway, mut oif, mut metric) = (None, None, None, None, 0);
    let (mut multipath, mut encap) = (None, false);
    for (kind, value) in Attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_TABLE => table = read_u32(value, 0)?,
            libc::RTA_DST => destination = ip(family, value),
            libc::RTA_PREFSRC => source = ip(family, value),
            libc::RTA_GATEWAY => gateway = ip(family, value),
            libc::RTA_VIA => gateway = via(value),
            libc::RTA_OIF => oif = read_u32(value, 0),
            libc::RTA_PRIORITY => metric = read_u32(value, 0)?,
            libc::RTA_MULTIPATH => multipath = Some(value),
            libc::RTA_ENCAP => encap = true,
            _ => {}
        }
    }
    if table == u32::from(libc::RT_TABLE_LOCAL) || tos != 0 || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let destination = IpNet::new(destination.or_else(|| unspecified(family))?, prefix).ok()?;
    let target = match kind {
        _ if encap => RouteTarget::Other("encap".into()),
        libc::RTN_UNICAST => match (
            multipath,
            gateway,
            oif.map(|index| names.get(&index).cloned().ok_or(index)),
        ) {
            (Some(hops), _, _) => next_hops(family, hops, names),
            (None, Some(gateway), Some(Ok(device))) => RouteTarget::Via(vec![NextHop {
                gateway,
                device,
                onlink: flags & u32::from(RTNH_F_ONLINK) != 0,
            }]),
            (None, None, Some(Ok(device))) => RouteTarget::Link { device },
            (None, _, Some(Err(index))) => RouteTarget::Other(format!("device {index}")),
            (None, _, None) => RouteTarget::Other("no device".into()),
        },
        libc::RTN_BLACKHOLE => RouteTarget::Blackhole,
        libc::RTN_UNREACHABLE => RouteTarget::Unreachable,
        libc::RTN_PROHIBIT => RouteTarget::Prohibit,
        libc::RTN_LOCAL => RouteTarget::Other("local".into()),
        libc::RTN_BROADCAST => RouteTarget::Other("broadcast".into()),
        libc::RTN_MULTICAST => RouteTarget::Other("multicast".into()),
        libc::RTN_THROW => RouteTarget::Other("throw".into()),
        other => RouteTarget::Other(format!("type {other}")),
    };
    Some(Route {
        key: RouteKey {
            table,
            destination,
            metric,
        },
        target,
        protocol,
        source,
    })
}

/// The gateways of `RTA_MULTIPATH`: each a length, flags, weight, device and attributes.
fn next_hops(family: u8, mut bytes: &[u8], names: &Names) -> RouteTarget {
    let mut hops = Vec::new();
    while let (Some(length), Some(&flags), Some(index)) = (read_u16(bytes, 0), bytes.get(2), read_u32(bytes, 4)) {
        let Some(attributes) = bytes.get(8..usize::from(length)) else {
            break;
        };
        let gateway = Attributes(attributes).find_map(|(kind, value)| match kind {
            libc::RTA_GATEWAY => ip(family, value),
            libc::RTA_VIA => via(value),
            _ => None,
        });
        let (Some(gateway), Some(device)) = (gateway, names.get(&index).cloned()) else {
            return RouteTarget::Other("multipath without gateways".into());
        };
        hops.push(NextHop {
            gateway,
            device,
            onlink: flags & RTNH_F_ONLINK != 0,
        });
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    hops.sort();
    RouteTarget::Via(hops)
}

/// `RTM_*RULE`. `None` for rules with selectors or actions that [`PolicyRule`] does not have.
pub(crate) fn rule(payload: &[u8]) -> Option<PolicyRule> {
    const TO_TABLE: u8 = 1;
    const INVERT: u32 = 2;
    let header = payload.get(..12)?;
    let family = match i32::from(header[0]) {
        libc::AF_INET => IpFamily::V4,
        libc::AF_INET6 => IpFamily::V6,
        _ => return None,
    };
    if header[1] != 0 || header[2] != 0 || header[3] != 0 || header[7] != TO_TABLE {
        return None;
    }
    let (mut priority, mut mark, mut mask, mut table, mut protocol) = (0, None, None, u32::from(header[4]), 0);
    for (kind, value) in Attributes(payload.get(12..)?) {
        match kind {
            FRA_PRIORITY => priority = read_u32(value, 0)?,
            FRA_FWMARK => mark = read_u32(value, 0),
            FRA_FWMASK => mask = read_u32(value, 0),
            FRA_TABLE => table = read_u32(value, 0)?,
            FRA_PROTOCOL => protocol = *value.first()?,
            // Always reported; all ones where not set.
            FRA_SUPPRESS_PREFIXLEN | FRA_SUPPRESS_IFGROUP if read_u32(value, 0) == Some(u32::MAX) => {}
            FRA_PAD => {}
            _ => return None,
        }
    }
    Some(PolicyRule {
        family,
        priority,
        mark: mask.map(|mask| (mark.unwrap_or(0), mask)),
        invert: read_u32(payload, 8)? & INVERT != 0,
        table,
        protocol,
    })
}

/// One neighbour entry of a device.
pub(crate) struct NeighborEntry {
    pub index: u32,
    pub address: IpAddr,
    /// Its Ethernet address if the entry is permanent.
    pub permanent: Option<Mac>,
}

/// `RTM_*NEIGH`. `None` for bridge forwarding entries and proxies.
pub(crate) fn neighbor(payload: &[u8]) -> Option<NeighborEntry> {
    let family = *payload.first()?;
    let index = read_u32(payload, 4)?;
    let state = read_u16(payload, 8)?;
    let flags = *payload.get(10)?;
    if flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in Attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => address = ip(family, value),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(NeighborEntry {
        index,
        address: address?,
        permanent: mac.filter(|_| state & libc::NUD_PERMANENT != 0),
    })
}

impl NeighborEntry {
    /// As a kernel object, if permanent and of a known device.
    pub fn object(&self, names: &Names) -> Option<Neighbor> {
        Some(Neighbor {
            device: names.get(&self.index)?.clone(),
            address: self.address,
            mac: self.permanent?,
        })
    }
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string()
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// `struct rtvia`: a gateway of another family than the route.
fn via(bytes: &[u8]) -> Option<IpAddr> {
    ip(u8::try_from(read_u16(bytes, 0)?).ok()?, bytes.get(2..)?)
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}
