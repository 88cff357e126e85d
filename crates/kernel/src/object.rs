//! Kernel objects as values. Devices are named, not numbered: a number is the live kernel's business.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Name of a network device, at most 15 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IfName(pub String);

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

/// A network device as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Kernel driver as `rtnetlink` names it (`veth`, `ipip`, `vxlan`, `bridge`); empty for hardware.
    pub kind: String,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
    /// `ifalias`.
    pub alias: Option<String>,
    /// Bridge or bond above it.
    pub master: Option<u32>,
}

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The device.
    pub device: IfName,
    /// Address with prefix length.
    pub net: IpNet,
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTarget {
    /// To a neighbour on the device's link.
    Link {
        /// The device.
        device: IfName,
    },
    /// Through gateways; several make ECMP. Kept sorted.
    Via(Vec<NextHop>),
    /// Dropped silently.
    Blackhole,
    /// Dropped with an ICMP unreachable.
    Unreachable,
    /// Dropped with ICMP administratively prohibited.
    Prohibit,
    /// Something that we never write (local, broadcast, throw, …) or cannot express.
    Other(String),
}

/// One gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The gateway.
    pub gateway: IpAddr,
    /// The device towards it.
    pub device: IfName,
    /// The gateway is taken to be on the link (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

/// A route is identified by table, destination and metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// 254 is `main`.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Priority; 0 first. IPv6 reports 1024 where none was given.
    pub metric: u32,
}

/// A route of the FIB.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Identity.
    pub key: RouteKey,
    /// Where it leads.
    pub target: RouteTarget,
    /// Who installed it (`RTPROT_*`); 80 is ours.
    pub protocol: u8,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// Main table.
pub const TABLE_MAIN: u32 = 254;
/// Protocol number of routes that the agent owns (upstream's choice).
pub const PROTOCOL_OURS: u8 = 80;
/// Protocol number of BIRD's routes, upstream's BGP daemon among them.
pub const PROTOCOL_BIRD: u8 = 12;

/// A rule of the routing policy database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRule {
    /// IPv4 or IPv6.
    pub family: IpFamily,
    /// Lower first.
    pub priority: u32,
    /// Packets with this mark (value, mask).
    pub mark: Option<(u32, u32)>,
    /// `not`: packets that do *not* match.
    pub invert: bool,
    /// Table to look up.
    pub table: u32,
    /// Who installed it (`FRA_PROTOCOL`).
    pub protocol: u8,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    /// The device.
    pub device: IfName,
    /// The neighbour.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// A sysctl below `/proc/sys/net`, by its path there: `ipv4/conf/cali0/proxy_arp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sysctl {
    /// Path below `/proc/sys/net`.
    pub path: String,
    /// Value, without newline.
    pub value: String,
}

impl Sysctl {
    /// Switches the forwarding of a family's packets on or off, on all devices.
    pub fn forwarding(family: IpFamily, on: bool) -> Self {
        let path = match family {
            IpFamily::V4 => "ipv4/ip_forward",
            IpFamily::V6 => "ipv6/conf/all/forwarding",
        };
        Self {
            path: path.into(),
            value: if on { "1" } else { "0" }.into(),
        }
    }
}

/// How `tunl0` encapsulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpipFlavour {
    /// The kernel's `ipip` driver.
    Native,
    /// Two BPF programs on a device of the same name.
    Bpf,
}

/// The IP-in-IP tunnel device of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpipTunnel {
    /// `tunl0`.
    pub name: IfName,
    /// How it encapsulates.
    pub flavour: IpipFlavour,
    /// Outer source: this node's address.
    pub local: Ipv4Addr,
    /// Device that carries the outer packets.
    pub underlay: IfName,
    /// Address of the tunnel device itself (/32), for traffic from the host.
    pub address: Option<Ipv4Addr>,
    /// Bytes.
    pub mtu: u32,
}

/// Counters of the tunnel since it was set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpipCounters {
    /// Packets encapsulated.
    pub encapsulated: u64,
    /// Packets decapsulated.
    pub decapsulated: u64,
    /// Protocol-4 packets dropped because their outer source is no known node.
    pub dropped_unknown_source: u64,
    /// Packets dropped because no peer is known for their next hop.
    pub dropped_no_peer: u64,
    /// Packets dropped because they could not be encapsulated or decapsulated: outer fragments, broken headers, no IPv4
    /// inside, congestion that the inner packet cannot be told of (RFC 6040).
    #[serde(default)]
    pub dropped_malformed: u64,
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<&str> for IfName {
    fn from(name: &str) -> Self {
        Self(name.to_string())
    }
}

impl IpFamily {
    /// Both, in order.
    pub const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }
}
