//! The world that packets travel in: one node with pods and two uplinks, and what is behind these.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Name of the node whose policy is looked at.
pub const NODE: &str = "n1";
/// Devices of the pods here. The last one belongs to nobody that policy knows.
pub const PODS: [&str; 6] = ["cali1", "cali2", "cali3", "cali4", "cali5", "cali6"];
/// How many of the pods policy may know.
pub const KNOWN_PODS: usize = 5;
/// The node's devices to the world.
pub const UPLINKS: [&str; 2] = ["eth0", "eth1"];

/// IPv4 and IPv6 addresses of each pod here.
pub const POD_ADDRESSES: [[&str; 2]; 6] = [
    ["10.65.0.1", "fd65::1"],
    ["10.65.0.2", "fd65::2"],
    ["10.65.0.3", "fd65::3"],
    ["10.65.0.4", "fd65::4"],
    ["10.65.0.5", "fd65::5"],
    ["10.65.0.6", "fd65::6"],
];
/// Addresses of the node, on `eth0` and on `eth1`.
pub const HOST_ADDRESSES: [[&str; 2]; 2] = [["172.16.0.1", "fd16::1"], ["172.16.1.1", "fd16:1::1"]];
/// Pods of another node, behind `eth0`.
pub const FAR_PODS: [[&str; 2]; 3] = [
    ["10.65.1.1", "fd65:1::1"],
    ["10.65.1.2", "fd65:1::2"],
    ["10.65.1.3", "fd65:1::3"],
];
/// The other node, behind `eth0`.
pub const FAR_HOST: [&str; 2] = ["172.16.0.2", "fd16::2"];
/// Others, behind `eth0`, then behind `eth1`.
pub const OUTSIDE: [[[&str; 2]; 2]; 2] = [
    [["192.0.2.9", "2001:db8::9"], ["198.51.100.7", "2001:db8:1::7"]],
    [["203.0.113.5", "2001:db8:5::5"], ["203.0.113.130", "2001:db8:5:1::82"]],
];

/// Where a packet comes from or goes to, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod here, by its index.
    Pod(usize),
    /// Through an uplink, by its index.
    Uplink(usize),
    /// The node itself.
    Host,
}

impl Place {
    /// Every one.
    pub fn all() -> Vec<Place> {
        let pods = (0..PODS.len()).map(Place::Pod);
        let uplinks = (0..UPLINKS.len()).map(Place::Uplink);
        pods.chain(uplinks).chain([Place::Host]).collect()
    }

    /// The node's device towards it.
    pub fn device(self) -> Option<&'static str> {
        match self {
            Place::Pod(index) => Some(PODS[index]),
            Place::Uplink(index) => Some(UPLINKS[index]),
            Place::Host => None,
        }
    }

    /// Who has an address.
    pub fn of(address: IpAddr) -> Option<Place> {
        let has = |place: &Place| place.addresses().into_iter().flatten().any(|own| ip(own) == address);
        Self::all().into_iter().find(has)
    }

    /// Its addresses, IPv4 and IPv6.
    pub fn addresses(self) -> Vec<[&'static str; 2]> {
        match self {
            Place::Pod(index) => vec![POD_ADDRESSES[index]],
            Place::Uplink(0) => FAR_PODS.into_iter().chain([FAR_HOST]).chain(OUTSIDE[0]).collect(),
            Place::Uplink(index) => OUTSIDE[index].to_vec(),
            Place::Host => HOST_ADDRESSES.to_vec(),
        }
    }
}

/// An address of this world.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("the world's addresses can be read")
}

/// Both addresses of an uplink of the node.
pub fn uplink_addresses(index: usize) -> BTreeSet<IpAddr> {
    HOST_ADDRESSES[index].into_iter().map(ip).collect()
}
