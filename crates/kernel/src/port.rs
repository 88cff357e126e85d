//! The port to a kernel: operations in, results and observations out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::object::*;
use crate::shaper::*;

/// One thing to do to the kernel. All are idempotent: `Put` makes it so whatever was there, `Remove` accepts absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a device up or down and its MTU.
    SetLink {
        /// The device.
        device: IfName,
        /// Administrative state.
        up: bool,
        /// Bytes; `None`: as it is.
        mtu: Option<u32>,
    },
    /// Deletes a device.
    RemoveLink(IfName),
    /// Adds an address.
    PutAddress(Address),
    /// Deletes an address.
    RemoveAddress(Address),
    /// Adds or replaces a route; `Foreign` if the key is held at a protocol that is neither ours nor the wanted one.
    PutRoute(Route),
    /// Deletes a route, only if its protocol is this one. (To Linux an IPv4 metric of 0 means any: if that route is gone
    /// and one of this protocol with another metric is there, that one goes.)
    RemoveRoute(RouteKey, u8),
    /// Adds a policy rule.
    PutRule(PolicyRule),
    /// Deletes a policy rule.
    RemoveRule(PolicyRule),
    /// Adds or replaces a permanent neighbour.
    PutNeighbor(Neighbor),
    /// Deletes a permanent neighbour.
    RemoveNeighbor(IfName, std::net::IpAddr),
    /// Writes a sysctl.
    PutSysctl(Sysctl),
    /// Makes the IPIP device as described (creates, changes, re-attaches programs).
    PutTunnel(IpipTunnel),
    /// Removes the IPIP device and its programs.
    RemoveTunnel(IfName),
    /// Allows a node as outer source and makes it reachable as next hop on the tunnel.
    PutTunnelPeer(IfName, Ipv4Addr),
    /// Forgets a node.
    RemoveTunnelPeer(IfName, Ipv4Addr),
    /// Makes packets of a pod wait as described; what already waits stays. `Foreign` if somebody else's queue is in the place.
    PutShaper(ShaperKey, Shaper),
    /// Lets a pod's packets go as they come.
    RemoveShaper(ShaperKey),
}

/// Why the kernel did not do an operation, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The device is not there (yet): it stays pending until the device appears.
    #[error("no device {0}")]
    NoDevice(IfName),
    /// Another object that is not ours is in the way.
    #[error("{what} exists and is not ours")]
    Foreign {
        /// The object.
        what: String,
    },
    /// The kernel lacks the feature.
    #[error("this kernel cannot: {0}")]
    Unsupported(String),
    /// The kernel refused; its own words and error number.
    #[error("the kernel refused {what}: {reason} (errno {errno})")]
    Refused {
        /// What was asked.
        what: String,
        /// Extended error text, or the text of the number.
        reason: String,
        /// The number.
        errno: i32,
    },
    /// The channel to the kernel failed: start again with a fresh dump.
    #[error("talking to the kernel failed: {0}")]
    Broken(String),
}

/// All that the agent looks at, read at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Devices by name.
    pub links: BTreeMap<IfName, Link>,
    /// Addresses of all devices.
    pub addresses: BTreeSet<Address>,
    /// Routes of all tables but `local` (255), both families.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Policy rules.
    pub rules: BTreeSet<PolicyRule>,
    /// Permanent neighbours.
    pub neighbors: BTreeSet<Neighbor>,
    /// Families of which packets are forwarded, as far as the switch for the whole namespace says.
    pub forwarding: BTreeSet<IpFamily>,
    /// The IPIP tunnel, if there is one that works (for BPF: programs attached), with its peers.
    pub tunnel: Option<(IpipTunnel, BTreeSet<Ipv4Addr>)>,
    /// Our shapers. `None`: some of it is there, but packets do not go through it.
    pub shapers: BTreeMap<ShaperKey, Option<Shaper>>,
}

/// Something changed in the kernel, by us or by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A device appeared or changed. If it is no longer up, its routes went with it: IPv6 ones are announced, IPv4 ones
    /// are not (Linux drops them without a word).
    Link(Link),
    /// A device went, and everything on it: its IPv4 routes without a further event. Renaming is `LinkGone` of the old
    /// name, then `Link`.
    LinkGone(IfName),
    /// An address appeared (`true`) or went (`false`). With its last IPv4 address a device loses its IPv4 routes, and with
    /// any address go the IPv4 routes that prefer it as source: neither is announced.
    Address(Address, bool),
    /// A route appeared or was replaced.
    Route(Route),
    /// A route went (its key and protocol).
    RouteGone(Route),
    /// A policy rule appeared (`true`) or went (`false`).
    Rule(PolicyRule, bool),
    /// A permanent neighbour appeared (`true`) or went (`false`).
    Neighbor(Neighbor, bool),
    /// Somebody switched the forwarding of a family's packets on (`true`) or off, on all devices. Other sysctls change
    /// without an event.
    Forwarding(IpFamily, bool),
    /// A shaper's queue appeared or changed, or went (`None`); of the way to it nothing is said. One that goes with its device goes without a further event.
    Shaper(ShaperKey, Option<Shaper>),
    /// The tunnel's programs or device, or the way of a shaper, need another look; or events were lost: observe again.
    Resync,
}

/// A kernel that can be told and asked.
pub trait Kernel: Send {
    /// Does the operations in order and answers one result for each; a failed one does not stop the others.
    fn apply<'a>(&'a mut self, ops: &'a [Op]) -> BoxFuture<'a, Vec<Result<(), KernelError>>>;

    /// Reads everything. `tunnel` names the IPIP device to look at.
    fn observe<'a>(&'a mut self, tunnel: &'a IfName) -> BoxFuture<'a, Result<Observation, KernelError>>;

    /// What changes from now on. Lost events are announced by [`KernelEvent::Resync`].
    fn events(&mut self) -> Result<BoxStream<'static, KernelEvent>, KernelError>;
}
