//! What is asked about a packet's way, and what is answered.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::IpipCounters;
use serde::{Deserialize, Serialize};

/// A packet, and how it comes to this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathQuestion {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// How it comes.
    pub by: Arrival,
    /// From which host, if one has sent it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
}

/// How a packet comes to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// The node sends it itself.
    Host,
    /// From the pod that has its source.
    Pod,
    /// Through the tunnel.
    Tunnel,
    /// As it is, from `from`.
    Wire,
}

/// What this node says about a packet's way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathView {
    /// This node.
    pub node: String,
    /// The pod of this node that has the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PodView>,
    /// The pod of this node that has the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<PodView>,
    /// Packets of this family are forwarded.
    pub forwards: bool,
    /// The device that it comes in by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrives: Option<LinkView>,
    /// Where it goes from here.
    pub way: WayView,
    /// The tunnel, if it comes or goes through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelView>,
    /// Where the encapsulated packet goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<WayView>,
    /// What the kernel would not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// `NAMESPACE/POD`, or the container.
    pub name: String,
    /// The node's end of its link, by name.
    pub host_device: String,
    /// The node's end; `None`: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<LinkView>,
    /// Its interface, by name.
    pub interface: String,
    /// Why nobody can look into the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// Its interface; `None`: it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<LinkView>,
    /// The interface has the address.
    pub has_address: bool,
    /// Where the pod sends packets for the other end.
    pub way: WayView,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier: of a veth pair, the other end is up.
    pub carrier: bool,
}

/// Where a packet goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WayView {
    /// The route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteView>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// The prefix of the route that refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<IpNet>,
    /// The device that it leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<LinkView>,
    /// Whom it is handed to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<IpAddr>,
    /// What is known of that neighbour: its Ethernet address and state; `None`: it would be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbor: Option<NeighborView>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// The packet is for this host.
    #[serde(default)]
    pub local: bool,
    /// Its destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpNet>,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its device.
    pub device: String,
    /// The gateway is taken to be on the link.
    #[serde(default)]
    pub onlink: bool,
    /// Who installed it (`RTPROT_*`); 80 is an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Its table; 254 is `main`.
    pub table: u32,
    /// The MTU of this path, if it is less than the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Why a look-up found no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// No route matches.
    Missing,
    /// The route drops silently.
    Blackhole,
    /// The route refuses, or nothing is forwarded.
    Unreachable,
    /// The route prohibits.
    Prohibited,
    /// The source is not expected by that device.
    Source,
}

/// A neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborView {
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `permanent`, `reachable`, `stale`, `failed`, …
    pub state: String,
}

/// The tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelView {
    /// `native` or `bpf`; empty: there is no working tunnel.
    pub flavour: String,
    /// The source of outer headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// The device below.
    pub underlay: String,
    /// Of the hosts at the packet's outer ends, those that the tunnel takes nothing from and sends nothing to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<IpAddr>,
    /// Packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<IpipCounters>,
}
