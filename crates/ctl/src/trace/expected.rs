//! Which route there ought to be, by what the datastore says.

use std::net::IpAddr;

use api::{EncapMode, Key, Kind, Resource};
use ipnet::IpNet;

use crate::why::world::World;

/// How packets to an address of a node's pods should leave another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The node's address.
    pub gateway: IpAddr,
    /// Through the IP-in-IP tunnel.
    pub ipip: bool,
    /// Which pool says so.
    pub why: String,
}

impl Expected {
    /// From `near` to an address on `far`. `None`: no pool has the address, or a node's address is not known.
    pub fn new(world: &World, near: &str, far: &str, address: IpAddr) -> Option<Self> {
        let (near, far) = (net_of(world, near, address)?, net_of(world, far, address)?);
        let pools = world.resources().filter_map(|(key, resource)| match resource {
            Resource::IPPool(pool) if pool.spec.cidr.contains(&address) => Some((key, &pool.spec)),
            _ => None,
        });
        let (key, pool) = pools.max_by_key(|(_, pool)| pool.cidr.prefix_len())?;
        let ipip = match pool.ipip_mode {
            EncapMode::Always => true,
            EncapMode::CrossSubnet => near.trunc() != far.trunc(),
            EncapMode::Never => false,
        };
        Some(Self {
            gateway: far.addr(),
            ipip: ipip && address.is_ipv4(),
            why: format!("{key}: ipipMode {:?}", pool.ipip_mode),
        })
    }

    /// For people.
    pub fn text(&self, address: IpAddr) -> String {
        let device = match self.ipip {
            true => " dev tunl0 onlink",
            false => "",
        };
        format!("a route to {address} via {}{device} ({})", self.gateway, self.why)
    }
}

/// The node's address of the family, with its subnet.
fn net_of(world: &World, node: &str, family: IpAddr) -> Option<IpNet> {
    let Some(Resource::Node(node)) = world.get(&Key::cluster(Kind::Node, node)) else {
        return None;
    };
    let bgp = node.spec.bgp.as_ref()?;
    match family {
        IpAddr::V4(_) => bgp.ipv4_address.map(IpNet::from),
        IpAddr::V6(_) => bgp.ipv6_address.map(IpNet::from),
    }
}
