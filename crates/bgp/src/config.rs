//! What a speaker is told: itself, its peers, the routes it originates. Comparable, so that a change is a difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::filter::Filter;

/// Identifies a configured peer by its address (a speaker never has two peers on one address and port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub SocketAddr);

/// The whole configuration of a speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// BGP identifier (RFC 4271 4.2), unique among neighbours.
    pub router_id: Ipv4Addr,
    /// Local AS.
    pub asn: u32,
    /// TCP port that the shell listens on; 179 unless BGPConfiguration's `listenPort` says otherwise.
    pub listen_port: u16,
    /// On which addresses the shell listens.
    pub bind: Bind,
    /// Local IPv4 address: next hop of what we originate.
    pub address_v4: Option<Ipv4Addr>,
    /// Local IPv6 address: next hop of what we originate.
    pub address_v6: Option<Ipv6Addr>,
    /// Set on a route reflector (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Restart time that we announce (RFC 4724), 0 to 4095 s; `None` leaves the capability out.
    pub graceful_restart: Option<Duration>,
    /// The peers.
    pub peers: BTreeMap<PeerId, PeerConfig>,
    /// Ranges within which what we learnt may be told on. What lies elsewhere, a default route above all, stays with us: a
    /// node with two upstream routers must not become the way from one to the other. What we originate is told regardless.
    pub exportable: BTreeSet<IpNet>,
    /// Routes that we originate.
    pub originated: BTreeMap<IpNet, LocalRoute>,
}

/// On which addresses a speaker listens (upstream `bindMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    /// On all addresses of the families that it has an address of.
    #[default]
    All,
    /// On its own addresses only, so that another speaker on the host can have the others.
    OwnAddresses,
}

/// A route that this speaker originates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// Kernel metric; exported as LOCAL_PREF = 2147483647 − metric, as upstream does.
    pub metric: u32,
}

/// One configured peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name in status and logs, `Mesh_10_0_0_1`.
    pub name: String,
    /// Its AS; equal to ours means iBGP.
    pub asn: u32,
    /// Local address of the connection.
    pub source: Option<IpAddr>,
    /// Only the other side opens connections.
    pub passive: bool,
    /// Families to negotiate.
    pub families: BTreeSet<Family>,
    /// Hold time offered; 0 or at least 3 s (RFC 4271 4.2). Default 90 s.
    pub hold_time: Duration,
    /// Wait before another attempt to connect. Default 5 s.
    pub connect_retry: Duration,
    /// We reflect to it (RFC 4456).
    pub reflector_client: bool,
    /// What next hop it is told.
    pub next_hop: NextHopMode,
    /// What of it is believed.
    pub import: Filter,
    /// What it is told.
    pub export: Filter,
}

/// An address family (SAFI is always unicast).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// AFI 1.
    Ipv4,
    /// AFI 2.
    Ipv6,
}

/// What next hop a peer is told (upstream `nextHopMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHopMode {
    /// As RFC 4271 5.1.3: own address to eBGP peers, unchanged to iBGP peers.
    #[default]
    Auto,
    /// Always our own address.
    OwnAddress,
    /// Never changed.
    Keep,
}

/// Some of the families, small enough to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilySet {
    ipv4: bool,
    ipv6: bool,
}

impl FamilySet {
    /// Both families.
    pub const BOTH: FamilySet = FamilySet { ipv4: true, ipv6: true };

    /// Whether a family is in it.
    pub fn contains(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }

    /// Adds a family.
    pub fn insert(&mut self, family: Family) {
        match family {
            Family::Ipv4 => self.ipv4 = true,
            Family::Ipv6 => self.ipv6 = true,
        }
    }

    /// Takes a family out.
    pub fn remove(&mut self, family: Family) {
        match family {
            Family::Ipv4 => self.ipv4 = false,
            Family::Ipv6 => self.ipv6 = false,
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Those in it, in order.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(move |family| self.contains(*family))
    }
}

impl FromIterator<Family> for FamilySet {
    fn from_iter<I: IntoIterator<Item = Family>>(families: I) -> Self {
        let mut set = Self::default();
        families.into_iter().for_each(|family| set.insert(family));
        set
    }
}

impl Family {
    /// Both, in order.
    pub const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of a prefix.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Family::Ipv4,
            IpNet::V6(_) => Family::Ipv6,
        }
    }
}

impl PeerConfig {
    /// A peer with the defaults of its fields.
    pub fn new(name: impl Into<String>, asn: u32, families: BTreeSet<Family>) -> Self {
        Self {
            name: name.into(),
            asn,
            source: None,
            passive: false,
            families,
            hold_time: Duration::from_secs(90),
            connect_retry: Duration::from_secs(5),
            reflector_client: false,
            next_hop: NextHopMode::Auto,
            import: Filter::default(),
            export: Filter::default(),
        }
    }
}
