//! What the kernel would do with one packet: the route that it takes, and the neighbour that it is handed to.
//!
//! Every function acts in the network namespace of the socket that it is given, and changes nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{IfName, IpFamily, KernelError, Mac};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use crate::decode::{Attributes, read_u16, read_u32};
use crate::encode::{address_family, route_dump};
use crate::link;
use crate::request::{Failure, Socket};

/// A packet that looks for its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where it comes from; `None`: this host sends it and chooses.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: IpAddr,
    /// The device that it came in by; `None`: this host sends it.
    pub arrives: Option<IfName>,
}

/// The route that a packet takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The packet is for this host.
    pub local: bool,
    /// The destination of the route that matched.
    pub prefix: Option<IpNet>,
    /// The next hop; `None`: the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The device.
    pub device: Option<IfName>,
    /// Who installed it (`RTPROT_*`).
    pub protocol: Option<u8>,
    /// Its table.
    pub table: u32,
    /// The gateway is taken to be on the link.
    pub onlink: bool,
    /// The MTU of this path, if it is less than the device's (`RTAX_MTU`, or a router has told).
    pub mtu: Option<u32>,
    /// The source that this host would choose.
    pub source: Option<IpAddr>,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No route matches.
    Missing,
    /// The route that matches drops silently.
    Blackhole,
    /// The route that matches refuses (unreachable), or packets are not forwarded.
    Unreachable,
    /// The route that matches prohibits.
    Prohibited,
    /// Its source is not expected on the device that it came in by (`rp_filter`), or cannot be one.
    Source,
}

/// A neighbour as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborState {
    /// Its Ethernet address, if it is known.
    pub mac: Option<Mac>,
    /// `permanent`, `reachable`, `stale`, `failed`, `incomplete`, …
    pub state: &'static str,
}

/// Which way a packet goes: a real look-up (`RTM_GETROUTE`), policy routing and reverse path filter included.
pub fn route(socket: &mut Socket, query: &Query) -> Result<Result<Found, NoRoute>, KernelError> {
    let chosen = match ask(socket, query, false)? {
        Ok(found) => found,
        // A source that is not expected there has the same error as a route that drops, since Linux 6.14. Only the first one
        // hangs on the device.
        Err(NoRoute::Blackhole) if query.arrives.is_some() => {
            let anywhere = Query {
                source: None,
                arrives: None,
                ..query.clone()
            };
            let drops = ask(socket, &anywhere, false)? == Err(NoRoute::Blackhole);
            return Ok(Err(if drops { NoRoute::Blackhole } else { NoRoute::Source }));
        }
        Err(why) => return Ok(Err(why)),
    };
    // The entry that matched knows its prefix, its owner and its table; what was chosen knows the way.
    let Ok(entry) = ask(socket, query, true)? else {
        return Ok(Ok(chosen));
    };
    Ok(Ok(Found {
        prefix: entry.prefix,
        protocol: entry.protocol,
        table: entry.table,
        onlink: entry.onlink,
        ..chosen
    }))
}

/// The device by which packets that are forwarded to an address leave; `None`: it is this host's, or no route leads there.
pub fn device_to(socket: &mut Socket, destination: IpAddr) -> Result<Option<IfName>, KernelError> {
    let query = Query {
        source: None,
        destination,
        arrives: None,
    };
    let found = ask(socket, &query, false)?;
    Ok(found.ok().filter(|found| !found.local).and_then(|found| found.device))
}

fn ask(socket: &mut Socket, query: &Query, entry: bool) -> Result<Result<Found, NoRoute>, KernelError> {
    let about = format!("route to {}", query.destination);
    let length = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(IpFamily::of(&query.destination));
    message.header.destination_prefix_length = length(&query.destination);
    // IPv6 tells the table without being asked, and refuses the question.
    if query.destination.is_ipv4() {
        message.header.flags |= RouteFlags::LookupTable;
    }
    if entry {
        message.header.flags |= RouteFlags::FibMatch;
    }
    message
        .attributes
        .push(RouteAttribute::Destination(query.destination.into()));
    if let Some(source) = query.source {
        message.header.source_prefix_length = length(&source);
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    if let Some(device) = &query.arrives {
        message
            .attributes
            .push(RouteAttribute::Iif(link::index(socket, device)?));
    }
    let answer = socket.get(Message::GetRoute(message), read_route);
    let (mut found, index) = match answer {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(Err(NoRoute::Missing)),
        Err(failure) => return no_route(failure, about).map(Err),
    };
    if let Some(index) = index {
        found.device = socket.name(index).map_err(|failure| failure.about(about, None))?;
    }
    Ok(Ok(found))
}

fn no_route(failure: Failure, about: String) -> Result<NoRoute, KernelError> {
    match failure.errno() {
        Some(libc::ENETUNREACH) => Ok(NoRoute::Missing),
        Some(libc::EINVAL) => Ok(NoRoute::Blackhole),
        Some(libc::EHOSTUNREACH) => Ok(NoRoute::Unreachable),
        Some(libc::EACCES) => Ok(NoRoute::Prohibited),
        Some(libc::EXDEV) => Ok(NoRoute::Source),
        _ => Err(failure.about(about, None)),
    }
}

/// The longest prefix of the table `main` with this address, and whether it leads nowhere: what to name when a look-up is
/// refused, which does not say by which route.
pub fn longest(socket: &mut Socket, address: IpAddr) -> Result<Option<IpNet>, KernelError> {
    let mut best: Option<IpNet> = None;
    socket
        .dump(
            Message::GetRoute(route_dump(IpFamily::of(&address))),
            || {},
            |_, payload| {
                let Some((found, _)) = read_route(payload) else { return };
                let Some(net) = found.prefix.filter(|net| net.contains(&address)) else {
                    return;
                };
                let is_main = found.table == kernel::TABLE_MAIN;
                if is_main && best.is_none_or(|best| best.prefix_len() < net.prefix_len()) {
                    best = Some(net);
                }
            },
        )
        .map_err(|failure| failure.about("routes", None))?;
    Ok(best)
}

/// What is known of a neighbour; `None`: nothing, so the next packet to it asks.
pub fn neighbor(socket: &mut Socket, device: &IfName, address: IpAddr) -> Result<Option<NeighborState>, KernelError> {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(IpFamily::of(&address));
    message.header.ifindex = link::index(socket, device)?;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    socket
        .get(Message::GetNeighbour(message), read_neighbor)
        .map_err(|failure| failure.about(format!("neighbour {address}"), Some(device)))
}

/// `RTM_NEWROUTE`, with the number of its device.
fn read_route(payload: &[u8]) -> Option<(Found, Option<u32>)> {
    let family = *payload.first()?;
    let header = payload.get(..12)?;
    let flags = read_u32(payload, 8)?;
    let mut found = Found {
        local: [libc::RTN_LOCAL, libc::RTN_BROADCAST, libc::RTN_MULTICAST].contains(&header[7]),
        prefix: None,
        gateway: None,
        device: None,
        protocol: Some(header[5]),
        table: u32::from(header[4]),
        onlink: flags & u32::from(RTNH_F_ONLINK) != 0,
        mtu: None,
        source: None,
    };
    let (mut destination, mut index) = (unspecified(family), None);
    for (kind, value) in Attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => destination = ip(value),
            libc::RTA_GATEWAY => found.gateway = ip(value),
            libc::RTA_VIA => found.gateway = ip(value.get(2..)?),
            libc::RTA_OIF => index = read_u32(value, 0),
            libc::RTA_TABLE => found.table = read_u32(value, 0)?,
            libc::RTA_PREFSRC => found.source = ip(value),
            libc::RTA_METRICS => {
                let mtu = Attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                found.mtu = mtu.and_then(|(_, value)| read_u32(value, 0)).filter(|mtu| *mtu > 0);
            }
            _ => {}
        }
    }
    found.prefix = destination.and_then(|address| IpNet::new(address, header[1]).ok());
    Some((found, index))
}

fn read_neighbor(payload: &[u8]) -> Option<NeighborState> {
    let state = read_u16(payload, 8)?;
    let mac = Attributes(payload.get(12..)?)
        .find(|(kind, _)| *kind == libc::NDA_LLADDR)
        .and_then(|(_, value)| value.try_into().ok());
    let names = [
        (libc::NUD_PERMANENT, "permanent"),
        (libc::NUD_NOARP, "noarp"),
        (libc::NUD_REACHABLE, "reachable"),
        (libc::NUD_STALE, "stale"),
        (libc::NUD_DELAY, "delay"),
        (libc::NUD_PROBE, "probe"),
        (libc::NUD_FAILED, "failed"),
        (libc::NUD_INCOMPLETE, "incomplete"),
    ];
    let name = names.into_iter().find(|(bit, _)| state & bit != 0);
    Some(NeighborState {
        mac: mac.map(Mac),
        state: name.map_or("none", |(_, name)| name),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::from([0; 4])),
        libc::AF_INET6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

// What crate `libc` lacks of linux/rtnetlink.h.
const RTNH_F_ONLINK: u8 = 4;
const RTAX_MTU: u16 = 2;
