//! Namespaces and links: the fabric, and nodes as machines on it.

use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::{Address, IfName, IpFamily, Mac, Neighbor, NextHop, Route, RouteKey, RouteTarget, Sysctl, TABLE_MAIN};
use linux::link::{self, LinkSettings, VethEnd};
use linux::netns::{self, Netns};
use linux::request::Socket;

use crate::LabError;
use crate::record::{NodeRecord, Record};
use crate::spec::family_of;

/// The nodes' device on the fabric, as in the walk-through.
pub const UNDERLAY: &str = "ens33";
const BRIDGE: &str = "fabric0";
/// From so many nodes on they know each other's hardware addresses beforehand.
///
/// All namespaces of a machine share one table of neighbours, of 1024 entries (`gc_thresh3`) unless its administrator said
/// otherwise. Every node of a full mesh needs one for every other; permanent entries do not count.
const CROWD: usize = 16;
/// RTPROT_STATIC: what an administrator would have set up.
const PROTOCOL_STATIC: u8 = 4;

/// Makes the fabric: a bridge with the gateways' addresses, in a namespace of its own.
pub fn make_fabric(record: &Record) -> Result<(), LabError> {
    let netns = create_netns(&record.fabric)?;
    let make = || {
        let mut socket = open_socket()?;
        let bridge = IfName::from(BRIDGE);
        link::up(&mut socket, &IfName::from("lo")).map_err(refused)?;
        link::create_bridge(&mut socket, &bridge).map_err(refused)?;
        add_addresses(&mut socket, &bridge, &record.gateways)?;
        link::up(&mut socket, &bridge).map_err(refused)
    };
    netns.run(make).map_err(LabError::io("fabric"))?
}

/// Makes a node: a namespace with one network card on the fabric, and a default route of each family.
pub fn make_node(record: &Record, node: &NodeRecord) -> Result<(), LabError> {
    let what = || format!("node {}", node.name);
    let inside = create_netns(&node.netns)?;
    let outside = Netns::open(&netns::path(&record.fabric)).map_err(LabError::io(record.fabric.clone()))?;
    let underlay = IfName::from(UNDERLAY);
    let connect = || {
        let mut socket = open_socket()?;
        let (port, far) = (
            port(node),
            VethEnd {
                netns: Some(inside.as_fd()),
                mac: mac(node),
                ..end(&underlay)
            },
        );
        link::create_veth(&mut socket, &end(&port), &far).map_err(refused)?;
        let bridge = link::index(&socket, &IfName::from(BRIDGE)).map_err(refused)?;
        let settings = LinkSettings {
            up: Some(true),
            master: Some(bridge),
            ..LinkSettings::default()
        };
        link::set(&mut socket, &port, &settings).map_err(refused)
    };
    outside.run(connect).map_err(LabError::io(what()))??;
    let set_up = || {
        let mut socket = open_socket()?;
        link::up(&mut socket, &IfName::from("lo")).map_err(refused)?;
        if node.address(IpFamily::V6).is_some() {
            // The lab gives out every address itself: nobody has to ask whether one is taken, for seconds.
            let path = format!("ipv6/conf/{underlay}/accept_dad");
            linux::sysctl::write(&Sysctl {
                path,
                value: "0".into(),
            })
            .map_err(refused)?;
        }
        add_addresses(&mut socket, &underlay, &node.addresses)?;
        link::up(&mut socket, &underlay).map_err(refused)?;
        if record.nodes.len() > CROWD {
            introduce(&mut socket, &underlay, record, node)?;
        }
        for gateway in &record.gateways {
            link::put_route(&mut socket, &default_route(gateway, &underlay)).map_err(refused)?;
        }
        Ok(())
    };
    inside.run(set_up).map_err(LabError::io(what()))?
}

/// Finds out, in a namespace that nobody sees, whether devices of the lab's kinds can be made.
pub fn try_devices() -> Result<(), LabError> {
    let attempt = || {
        let mut socket = open_socket()?;
        let (a, b, bridge) = (IfName::from("a"), IfName::from("b"), IfName::from("c"));
        let lacks = |what: &'static str| {
            move |error: kernel::KernelError| LabError::Kernel(format!("it makes no {what} devices: {error}"))
        };
        link::create_veth(&mut socket, &end(&a), &end(&b)).map_err(lacks("veth"))?;
        link::create_bridge(&mut socket, &bridge).map_err(lacks("bridge"))
    };
    let netns =
        Netns::unnamed().map_err(|error| LabError::Kernel(format!("it makes no network namespaces: {error}")))?;
    netns.run(attempt).map_err(LabError::io("a network namespace"))?
}

/// Unique in the fabric and at most 15 bytes: from the end of the node's first address.
fn port(node: &NodeRecord) -> IfName {
    IfName(match node.addresses.first().map(IpNet::addr) {
        Some(IpAddr::V4(v4)) => format!("port-{}-{}", v4.octets()[2], v4.octets()[3]),
        Some(IpAddr::V6(v6)) => format!("port-{:x}", u128::from(v6) & 0xffff_ffff),
        None => "port".into(),
    })
}

/// A hardware address that is the node's alone on the fabric: locally administered, then the end of its first address.
fn mac(node: &NodeRecord) -> Option<Mac> {
    let tail = match node.addresses.first()?.addr() {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => (u128::from(v6) & 0xffff_ffff) as u32,
    };
    let [a, b, c, d] = tail.to_be_bytes();
    Some(Mac([0x02, 0, a, b, c, d]))
}

/// Tells a node all others' hardware addresses.
fn introduce(socket: &mut Socket, device: &IfName, record: &Record, node: &NodeRecord) -> Result<(), LabError> {
    for other in record.nodes.iter().filter(|other| other.name != node.name) {
        let Some(mac) = mac(other) else { continue };
        for net in &other.addresses {
            let neighbor = Neighbor {
                device: device.clone(),
                address: net.addr(),
                mac,
            };
            link::put_neighbor(socket, &neighbor).map_err(refused)?;
        }
    }
    Ok(())
}

fn end(name: &IfName) -> VethEnd<'_> {
    VethEnd {
        name,
        netns: None,
        mac: None,
        mtu: None,
    }
}

fn add_addresses(socket: &mut Socket, device: &IfName, addresses: &[IpNet]) -> Result<(), LabError> {
    addresses.iter().try_for_each(|net| {
        let address = Address {
            device: device.clone(),
            net: *net,
        };
        link::add_address(socket, &address).map_err(refused)
    })
}

fn default_route(gateway: &IpNet, device: &IfName) -> Route {
    let destination = match family_of(gateway) {
        IpFamily::V4 => IpNet::V4(Ipv4Net::default()),
        IpFamily::V6 => IpNet::V6(Ipv6Net::default()),
    };
    let next_hop = NextHop {
        gateway: gateway.addr(),
        device: device.clone(),
        onlink: false,
    };
    Route {
        key: RouteKey {
            table: TABLE_MAIN,
            destination,
            metric: 0,
        },
        target: RouteTarget::Via(vec![next_hop]),
        protocol: PROTOCOL_STATIC,
        source: None,
    }
}

pub(crate) fn create_netns(name: &str) -> Result<Netns, LabError> {
    netns::create(name).map_err(LabError::io(format!("network namespace {name}")))
}

/// Runs work in a named namespace.
pub(crate) fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    netns::run_in(&netns::path(netns), work).map_err(LabError::io(format!("network namespace {netns}")))
}

pub(crate) fn open_socket() -> Result<Socket, LabError> {
    Socket::open().map_err(LabError::io("netlink"))
}

pub(crate) fn refused(error: kernel::KernelError) -> LabError {
    LabError::Refused(error.to_string())
}
