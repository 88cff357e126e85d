//! Which sessions this node has: BGPPeers for every node, those for some nodes, their mirror images, and the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::{BgpPeerSpec, Key, Kind, NextHopMode, ReversePeering, SourceAddress};
use bgp::config::{Family, PeerConfig, PeerId};

use bgp::filter::Filter;

use crate::bgp_config::BGP_PORT;
use crate::facts::Facts;
use crate::filters;
use crate::problem::Problem;
use crate::selector::Selector;

/// The cluster's nodes as routers, by name.
pub(crate) type Routers<'a> = BTreeMap<&'a str, Router<'a>>;

/// A node of the cluster as a BGP router.
#[derive(Debug)]
pub(crate) struct Router<'a> {
    pub labels: &'a BTreeMap<String, String>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub asn: u32,
    /// The port it listens on, if anyone configured one.
    pub configured_port: Option<u16>,
    pub cluster_id: Option<Ipv4Addr>,
}

/// All sessions of `this` node. Two wishes for one address and port are one session: peers of every node come first, then
/// peers of some nodes, then mirror images, then the mesh; within one group the first by name.
pub(crate) fn peers(
    this: &str,
    facts: &Facts,
    routers: &Routers<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<PeerId, PeerConfig> {
    let mut peerings = Vec::new();
    for (name, spec) in &facts.peers {
        match Peering::admit(spec, facts) {
            Ok(peering) => peerings.push(peering),
            Err((field, why)) => {
                let text = format!("{why}: the peering is ignored");
                problems.push(Problem::new(Key::cluster(Kind::BGPPeer, name.as_str()), field, text));
            }
        }
    }
    let Some(us) = routers.get(this) else {
        return BTreeMap::new();
    };
    let mut sessions = Sessions {
        this,
        us,
        routers,
        found: BTreeMap::new(),
    };

    for peering in peerings
        .iter()
        .filter(|peering| matches!(peering.local, Local::Everyone))
    {
        sessions.forward(peering, Kinship::Global);
    }
    for peering in peerings
        .iter()
        .filter(|peering| !matches!(peering.local, Local::Everyone))
    {
        if peering.local.includes(this, us) {
            sessions.forward(peering, Kinship::Node);
        }
    }
    for peering in peerings
        .iter()
        .filter(|peering| peering.mirrored && peering.remote.includes(us))
    {
        sessions.mirror(peering);
    }
    if mesh_enabled(facts) && us.cluster_id.is_none() {
        for (_, other) in routers
            .iter()
            .filter(|(name, other)| **name != this && other.cluster_id.is_none())
        {
            if let Some(session) = Session::between(us, other) {
                sessions.add(session, Kinship::Mesh, Options::usual());
            }
        }
    }
    sessions.found
}

fn mesh_enabled(facts: &Facts) -> bool {
    facts
        .bgp
        .get("default")
        .and_then(|default| default.node_to_node_mesh_enabled)
        .unwrap_or(true)
}

/// A BGPPeer that makes sense.
struct Peering {
    local: Local,
    remote: Remote,
    /// Nodes on the other side get the same session from their end.
    mirrored: bool,
    options: Options,
}

/// How to peer.
#[derive(Clone, Default)]
struct Options {
    /// What is believed and what is told, on our end.
    filters: [Filter; 2],
    from_node_address: bool,
    next_hop: bgp::NextHopMode,
    /// `keepOriginalNextHop`, the older way: acts on eBGP only.
    keep_next_hop_of_ebgp: bool,
    hold_time: Option<Duration>,
}

/// Which nodes peer.
enum Local {
    Everyone,
    Node(String),
    Selected(Selector),
}

/// With whom.
enum Remote {
    Selected(Selector),
    Address { ip: IpAddr, port: Option<u16>, asn: u32 },
}

impl Peering {
    /// Reads one BGPPeer; answers the field that is wrong and why.
    fn admit(spec: &BgpPeerSpec, facts: &Facts) -> Result<Self, (&'static str, String)> {
        if let Some(field) = unavailable(spec) {
            return Err((field, "not available yet".into()));
        }
        let local = match (spec.node.as_str(), spec.node_selector.as_str()) {
            ("", "") => Local::Everyone,
            (node, "") => Local::Node(node.to_owned()),
            ("", selector) => Local::Selected(Selector::parse(selector).map_err(|why| ("spec.nodeSelector", why))?),
            _ => return Err(("spec.nodeSelector", "node and nodeSelector exclude each other".into())),
        };
        let remote = match (spec.peer_ip.as_str(), spec.peer_selector.as_str()) {
            ("", "") => return Err(("spec.peerIP", "neither peerIP nor peerSelector says with whom".into())),
            ("", selector) => Remote::Selected(Selector::parse(selector).map_err(|why| ("spec.peerSelector", why))?),
            (address, "") => {
                let (ip, port) = spec.peer_address().ok_or_else(|| {
                    (
                        "spec.peerIP",
                        format!("`{address}` is not an address, `v4:port` or `[v6]:port`"),
                    )
                })?;
                let asn = spec.as_number.filter(|asn| asn.0 != 0);
                let asn = asn
                    .ok_or_else(|| ("spec.asNumber", "peerIP needs asNumber".to_owned()))?
                    .0;
                Remote::Address { ip, port, asn }
            }
            _ => return Err(("spec.peerSelector", "peerIP and peerSelector exclude each other".into())),
        };
        let mirrored = spec.reverse_peering != Some(ReversePeering::Manual);
        Ok(Self {
            local,
            remote,
            mirrored,
            options: Options {
                filters: filters::of(spec, &facts.filters)?,
                ..Options::of(spec)
            },
        })
    }
}

/// What the speaker cannot do. A session without it would be another one than was asked for: it is left out.
fn unavailable(spec: &BgpPeerSpec) -> Option<&'static str> {
    let asked = [
        (!spec.local_workload_selector.is_empty(), "spec.localWorkloadSelector"),
        (spec.local_as_number.is_some(), "spec.localASNumber"),
        (spec.password.is_some(), "spec.password"),
        (
            spec.num_allowed_local_as_numbers.is_some_and(|count| count != 0),
            "spec.numAllowedLocalASNumbers",
        ),
        (spec.ttl_security.is_some(), "spec.ttlSecurity"),
        (spec.reachable_by.is_some(), "spec.reachableBy"),
    ];
    asked.into_iter().find_map(|(asked, field)| asked.then_some(field))
}

impl Options {
    /// As mesh sessions have it.
    fn usual() -> Self {
        Options {
            from_node_address: true,
            ..Options::default()
        }
    }

    fn of(spec: &BgpPeerSpec) -> Self {
        let next_hop = match spec.next_hop_mode {
            None | Some(NextHopMode::Auto) => bgp::NextHopMode::Auto,
            Some(NextHopMode::SelfAddress) => bgp::NextHopMode::OwnAddress,
            Some(NextHopMode::Keep) => bgp::NextHopMode::Keep,
        };
        Self {
            from_node_address: spec.source_address != Some(SourceAddress::None),
            next_hop,
            keep_next_hop_of_ebgp: spec.keep_original_next_hop && spec.next_hop_mode.is_none(),
            // RFC 4271 4.4: a keepalive is due three times in a hold time, which is 3 s at least and 16 bits long.
            hold_time: spec
                .keepalive_time
                .map(|time| (time.0 * 3).clamp(Duration::from_secs(3), Duration::from_secs(65535))),
            filters: Default::default(),
        }
    }
}

impl Local {
    fn includes(&self, name: &str, router: &Router<'_>) -> bool {
        match self {
            Local::Everyone => true,
            Local::Node(node) => node == name,
            Local::Selected(selector) => selector.matches(router.labels),
        }
    }
}

impl Remote {
    /// Whether the other side is this node, as far as its AS and port tell.
    fn includes(&self, router: &Router<'_>) -> bool {
        match self {
            Remote::Selected(selector) => selector.matches(router.labels),
            Remote::Address { ip, port, asn } => {
                let listens = port.is_none_or(|port| port == router.configured_port.unwrap_or(BGP_PORT));
                router.has(*ip) && router.asn == *asn && listens
            }
        }
    }
}

/// Why a session is there: decides its name and who opens the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kinship {
    Mesh,
    Global,
    Node,
}

/// One session as seen from here, before anyone says why it is there.
struct Session<'a> {
    own: IpAddr,
    peer: IpAddr,
    families: BTreeSet<Family>,
    /// The port, if anyone configured one.
    port: Option<u16>,
    asn: u32,
    /// The node that it leads to.
    node: Option<&'a Router<'a>>,
}

impl<'a> Session<'a> {
    /// The session of two nodes: over IPv4 if both have it, carrying IPv6 too if both have that, else over IPv6.
    fn between(us: &Router<'_>, other: &'a Router<'a>) -> Option<Self> {
        let v4 = us
            .ipv4
            .zip(other.ipv4)
            .map(|(own, peer)| (IpAddr::V4(own), IpAddr::V4(peer)));
        let v6 = us
            .ipv6
            .zip(other.ipv6)
            .map(|(own, peer)| (IpAddr::V6(own), IpAddr::V6(peer)));
        let (own, peer) = v4.or(v6)?;
        let carried = [v4.map(|_| Family::Ipv4), v6.map(|_| Family::Ipv6)];
        let families = carried.into_iter().flatten().collect();
        Some(Self {
            own,
            peer,
            families,
            port: other.configured_port,
            asn: other.asn,
            node: Some(other),
        })
    }

    /// The session of two nodes over the family of `address`, carrying that family only.
    fn over(family: Family, us: &Router<'_>, other: &'a Router<'a>) -> Option<Self> {
        let (own, peer) = (us.address(family)?, other.address(family)?);
        let families = BTreeSet::from([family]);
        Some(Self {
            own,
            peer,
            families,
            port: other.configured_port,
            asn: other.asn,
            node: Some(other),
        })
    }
}

impl Router<'_> {
    fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
}

/// The sessions found so far; the first wish for an address and port stands.
struct Sessions<'a> {
    this: &'a str,
    us: &'a Router<'a>,
    routers: &'a Routers<'a>,
    found: BTreeMap<PeerId, PeerConfig>,
}

impl<'a> Sessions<'a> {
    /// The sessions that a BGPPeer asks this node for.
    fn forward(&mut self, peering: &Peering, kinship: Kinship) {
        let routers = self.routers;
        match &peering.remote {
            Remote::Selected(selector) => {
                for (_, other) in routers.iter().filter(|(_, other)| selector.matches(other.labels)) {
                    if let Some(session) = Session::between(self.us, other) {
                        self.add(session, kinship, peering.options.clone());
                    }
                }
            }
            Remote::Address { ip, port, asn } => {
                let family = family_of(*ip);
                let node = routers.values().find(|router| router.has(*ip));
                // Without a port, a node of the cluster is met where it listens, if its AS is the expected one.
                let listens = || {
                    node.filter(|node| node.asn == *asn)
                        .and_then(|node| node.configured_port)
                };
                if let Some(own) = self.us.address(family) {
                    let families = BTreeSet::from([family]);
                    let port = port.or_else(listens);
                    let session = Session {
                        own,
                        peer: *ip,
                        families,
                        port,
                        asn: *asn,
                        node,
                    };
                    self.add(session, kinship, peering.options.clone());
                }
            }
        }
    }

    /// The sessions that a BGPPeer asks other nodes for with this one, from this end.
    fn mirror(&mut self, peering: &Peering) {
        let (this, routers) = (self.this, self.routers);
        let partners = routers
            .iter()
            .filter(|(name, other)| **name != this && peering.local.includes(name, other));
        for (_, other) in partners {
            let session = match &peering.remote {
                Remote::Selected(_) => Session::between(self.us, other),
                Remote::Address { ip, .. } => Session::over(family_of(*ip), self.us, other),
            };
            if let Some(session) = session {
                self.add(session, Kinship::Node, peering.options.clone());
            }
        }
    }

    fn add(&mut self, session: Session<'_>, kinship: Kinship, options: Options) {
        if session.peer == session.own || self.us.has(session.peer) {
            return;
        }
        let mut config = PeerConfig::new(session.name(kinship), session.asn, session.families.clone());
        config.source = options.from_node_address.then_some(session.own);
        let keep = options.keep_next_hop_of_ebgp && session.asn != self.us.asn;
        config.next_hop = if keep { bgp::NextHopMode::Keep } else { options.next_hop };
        config.hold_time = options.hold_time.unwrap_or(config.hold_time);
        [config.import, config.export] = options.filters;
        config.passive = session.waits(kinship);
        let same_cluster = session.node.is_some_and(|node| node.cluster_id == self.us.cluster_id);
        config.reflector_client = self.us.cluster_id.is_some() && session.asn == self.us.asn && !same_cluster;
        let id = PeerId(SocketAddr::new(session.peer, session.port.unwrap_or(BGP_PORT)));
        self.found.entry(id).or_insert(config);
    }
}

impl Session<'_> {
    /// Upstream's name: `Mesh_10_0_0_1`, `Node_10_0_0_1_port_1179`.
    fn name(&self, kinship: Kinship) -> String {
        let address = self.peer.to_string().replace(['.', ':'], "_");
        let (prefix, with_port) = match kinship {
            Kinship::Mesh => ("Mesh", false),
            Kinship::Global => ("Global", true),
            Kinship::Node => ("Node", true),
        };
        match self.port.filter(|_| with_port) {
            Some(port) => format!("{prefix}_{address}_port_{port}"),
            None => format!("{prefix}_{address}"),
        }
    }

    /// Whether the other side opens the connection. Of two nodes it is the one whose address is the higher one *as text*
    /// (`10.0.0.2` is higher than `10.0.0.10`), as upstream decides it; where both ends may connect, collision resolution
    /// keeps one connection.
    fn waits(&self, kinship: Kinship) -> bool {
        let higher = self.peer.to_string() > self.own.to_string();
        match kinship {
            Kinship::Mesh => higher,
            Kinship::Global => self.node.is_some() && higher,
            Kinship::Node => false,
        }
    }
}
