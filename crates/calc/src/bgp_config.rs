//! This node's BGP configuration: who it is and what it originates. Its peers are worked out in `peering`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use api::{AsNumber, BindMode, Key, Kind, LogSeverity};
use bgp::config::{Bind, Config, LocalRoute};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::facts::Facts;
use crate::graph::GraphConfig;
use crate::nodes::Nodes;
use crate::peering::{self, Router, Routers};
use crate::problem::Problem;
use crate::state::{PoolState, Settings};

/// Port of BGP where nobody says otherwise.
pub(crate) const BGP_PORT: u16 = 179;

/// BIRD's default restart time, which upstream's nodes announce.
const RESTART_TIME: Duration = Duration::from_secs(120);

/// Where the BGP identifier comes from (upstream's `CALICO_ROUTER_ID`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterId {
    /// The node's IPv4 address; the hash of its name where it has none.
    #[default]
    NodeAddress,
    /// The hash of the node's name.
    Hash,
    /// This one.
    Literal(Ipv4Addr),
}

/// What the configuration depends on.
pub(crate) struct Inputs<'a> {
    pub config: &'a GraphConfig,
    pub facts: &'a Facts,
    pub nodes: &'a Nodes,
    pub pools: &'a BTreeMap<IpNet, PoolState>,
    pub blocks: &'a BTreeSet<IpNet>,
    pub settings: &'a Settings,
}

/// The configuration; none while this node has no address.
pub(crate) fn config(inputs: Inputs<'_>) -> (Option<Config>, Vec<Problem>) {
    let this = &inputs.config.node;
    let mut problems = without_effect(this, inputs.facts, inputs.settings);
    let routers = routers(&inputs);
    let peers = peering::peers(this, inputs.facts, &routers, &mut problems);
    let Some(us) = routers.get(this.as_str()) else {
        return (None, problems);
    };
    let config = Config {
        router_id: inputs.config.router_id.resolve(this, us.ipv4),
        asn: us.asn,
        listen_port: us.configured_port.unwrap_or(BGP_PORT),
        bind: bind(this, inputs.facts),
        address_v4: us.ipv4,
        address_v6: us.ipv6,
        cluster_id: us.cluster_id,
        graceful_restart: Some(restart_time(inputs.facts)),
        exportable: exportable(&inputs, us.cluster_id.is_some()),
        peers,
        originated: originated(&inputs, &mut problems),
    };
    (Some(config), problems)
}

/// What is asked of this node and not done. Somebody may rely on it, on the mesh's password above all, so status must say so.
fn without_effect(this: &str, facts: &Facts, settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let own = format!("node.{this}");
    for (name, spec) in facts.bgp.iter().filter(|(name, _)| *name == "default" || **name == own) {
        let asked = [
            (spec.node_mesh_password.is_some(), "spec.nodeMeshPassword"),
            (!spec.prefix_advertisements.is_empty(), "spec.prefixAdvertisements"),
            (
                spec.local_workload_peering_ipv4.is_some(),
                "spec.localWorkloadPeeringIPV4",
            ),
            (
                spec.local_workload_peering_ipv6.is_some(),
                "spec.localWorkloadPeeringIPV6",
            ),
        ];
        for (_, field) in asked.into_iter().filter(|(asked, _)| *asked) {
            let key = Key::cluster(Kind::BGPConfiguration, name.as_str());
            problems.push(Problem::new(key, field, "not available yet: it has no effect"));
        }
        let services = [
            (&spec.service_cluster_ips, "spec.serviceClusterIPs"),
            (&spec.service_external_ips, "spec.serviceExternalIPs"),
            (&spec.service_load_balancer_ips, "spec.serviceLoadBalancerIPs"),
        ];
        for (_, field) in services.into_iter().filter(|(ranges, _)| !ranges.is_empty()) {
            let key = Key::cluster(Kind::BGPConfiguration, name.as_str());
            let text = "not available yet: this node announces no services";
            problems.push(Problem::new(key, field, text));
        }
        let metric = |wish: Option<u32>, metric: u32| {
            let differs = wish.is_some_and(|wish| wish != metric);
            differs.then(|| format!("no effect: routes have FelixConfiguration's metric, {metric}"))
        };
        let elsewhere = |asked: bool, text: &str| asked.then(|| format!("no effect: {text}"));
        let done_otherwise = [
            (
                elsewhere(
                    spec.log_severity_screen
                        .is_some_and(|severity| severity != LogSeverity::Info),
                    "FelixConfiguration's logSeverityScreen sets the level",
                ),
                "spec.logSeverityScreen",
            ),
            (
                elsewhere(
                    !spec.ignored_interfaces.is_empty(),
                    "routes of interfaces are never announced",
                ),
                "spec.ignoredInterfaces",
            ),
            (
                elsewhere(
                    spec.program_cluster_routes.is_some(),
                    "the agent writes all routes to other nodes' blocks",
                ),
                "spec.programClusterRoutes",
            ),
            (
                metric(spec.ipv4_normal_route_priority, settings.ipv4_metric),
                "spec.ipv4NormalRoutePriority",
            ),
            (
                metric(spec.ipv6_normal_route_priority, settings.ipv6_metric),
                "spec.ipv6NormalRoutePriority",
            ),
        ];
        for (text, field) in done_otherwise {
            let key = Key::cluster(Kind::BGPConfiguration, name.as_str());
            problems.extend(text.map(|text| Problem::new(key, field, text)));
        }
    }
    for (name, _) in facts.peers.iter().filter(|(_, spec)| spec.max_restart_time.is_some()) {
        let key = Key::cluster(Kind::BGPPeer, name.as_str());
        let text = "not available yet: the restart time is the same for all peers";
        problems.push(Problem::new(key, "spec.maxRestartTime", text));
    }
    problems
}

fn bind(this: &str, facts: &Facts) -> Bind {
    let own = facts.bgp.get(&format!("node.{this}")).and_then(|own| own.bind_mode);
    let default = || facts.bgp.get("default").and_then(|default| default.bind_mode);
    match own.or_else(default) {
        None | Some(BindMode::None) => Bind::All,
        Some(BindMode::NodeIp) => Bind::OwnAddresses,
    }
}

/// RFC 4724 3 has 12 bits for the seconds.
fn restart_time(facts: &Facts) -> Duration {
    let configured = facts
        .bgp
        .get("default")
        .and_then(|default| default.node_mesh_max_restart_time);
    configured.map_or(RESTART_TIME, |time| Duration::from_secs(time.0.as_secs().min(4095)))
}

/// Every node that has an address, as a BGP router.
fn routers<'a>(inputs: &Inputs<'a>) -> Routers<'a> {
    let facts = inputs.facts;
    let default = facts.bgp.get("default");
    let this = inputs
        .nodes
        .this
        .as_ref()
        .map(|this| (inputs.config.node.as_str(), this.ipv4, this.ipv6));
    let others = inputs
        .nodes
        .others
        .iter()
        .map(|(name, node)| (name.as_str(), node.ipv4, node.ipv6));
    let mut routers = Routers::new();
    for (name, ipv4, ipv6) in this.into_iter().chain(others) {
        let Some(node) = facts.nodes.get(name).filter(|_| ipv4.is_some() || ipv6.is_some()) else {
            continue;
        };
        let own = facts.bgp.get(&format!("node.{name}"));
        let configured_as = || {
            own.and_then(|own| own.as_number)
                .or(default.and_then(|default| default.as_number))
        };
        let asn = node
            .asn
            .unwrap_or_else(|| configured_as().unwrap_or(AsNumber::DEFAULT).0);
        let own_port = own.and_then(|own| own.listen_port);
        routers.insert(
            name,
            Router {
                labels: &node.labels,
                ipv4: ipv4.map(|net| net.addr()),
                ipv6: ipv6.map(|net| net.addr()),
                asn,
                configured_port: own_port.or(default.and_then(|default| default.listen_port)),
                cluster_id: node.cluster_id,
            },
        );
    }
    routers
}

/// This node's blocks that may be announced. Those outside any pool stay local, as upstream's export filter has it.
fn originated(inputs: &Inputs<'_>, problems: &mut Vec<Problem>) -> BTreeMap<IpNet, LocalRoute> {
    let mut originated = BTreeMap::new();
    for block in inputs.blocks {
        let pool = inputs.pools.iter().find(|(range, _)| range.contains(block));
        let metric = match block {
            IpNet::V4(_) => inputs.settings.ipv4_metric,
            IpNet::V6(_) => inputs.settings.ipv6_metric,
        };
        match pool {
            Some((_, pool)) if pool.exported => {
                originated.insert(*block, LocalRoute { metric });
            }
            Some(_) => {}
            None => {
                let key = Key {
                    kind: Kind::BlockAffinity,
                    ..Key::affinity(&inputs.config.node, *block)
                };
                let text = format!("{block} is in no pool: it is not announced");
                problems.push(Problem::new(key, "spec.cidr", text));
            }
        }
    }
    originated
}

/// Where routes learnt from others may lie that are told on: the pools that are exported, and on a reflector also the
/// ranges of services that others announce. Upstream's export filter accepts these and rejects the rest.
fn exportable(inputs: &Inputs<'_>, reflector: bool) -> BTreeSet<IpNet> {
    let pools = inputs.pools.iter().filter(|(_, pool)| pool.exported);
    let mut ranges: BTreeSet<IpNet> = pools.map(|(range, _)| *range).collect();
    if let Some(default) = inputs.facts.bgp.get("default").filter(|_| reflector) {
        let services = default
            .service_external_ips
            .iter()
            .chain(&default.service_load_balancer_ips);
        ranges.extend(services.filter_map(|range| range.cidr).map(|range| range.trunc()));
    }
    ranges
}

impl RouterId {
    fn resolve(self, node: &str, address: Option<Ipv4Addr>) -> Ipv4Addr {
        match (self, address) {
            (RouterId::Literal(id), _) => id,
            (RouterId::NodeAddress, Some(address)) => address,
            (RouterId::NodeAddress, None) | (RouterId::Hash, _) => hashed(node),
        }
    }
}

impl FromStr for RouterId {
    type Err = String;

    /// Reads `CALICO_ROUTER_ID`: empty, `hash`, or an IPv4 address.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(RouterId::NodeAddress),
            "hash" => Ok(RouterId::Hash),
            text => match text.parse() {
                Ok(id) if id != Ipv4Addr::UNSPECIFIED => Ok(RouterId::Literal(id)),
                _ => Err(format!(
                    "`{text}` is not a router id: an IPv4 address other than 0.0.0.0, or `hash`"
                )),
            },
        }
    }
}

/// The first four bytes of SHA-256 over the name, kept below the multicast range, as upstream derives it.
fn hashed(node: &str) -> Ipv4Addr {
    let digest = Sha256::digest(node);
    let first = if digest[0] > 223 { digest[0] - 32 } else { digest[0] };
    Ipv4Addr::new(first, digest[1], digest[2], digest[3])
}

impl Router<'_> {
    /// Whether it has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4 == Some(v4),
            IpAddr::V6(v6) => self.ipv6 == Some(v6),
        }
    }
}
