//! What a lab should look like: decided wholly before anything is made.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{Action, EncapMode, IpPool, IpPoolSpec, Node, NodeBgp, NodeSpec, Profile, ProfileSpec, Resource, Rule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::IpFamily;

use crate::LabError;
use crate::record::DEFAULT_NAMESPACE;
use crate::topology::Topology;

/// Most nodes that fit into the fabric's /24 above `.6`.
pub const MAX_NODES: usize = 240;

/// The whole cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSpec {
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// The pods.
    pub pods: Vec<PodPlan>,
    /// What is written into the datastore before the agents start.
    pub resources: Vec<Resource>,
    /// Things the user should know about choices that were made.
    pub notes: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Name of the node and its namespace.
    pub name: String,
    /// Addresses on the fabric, one of each family that the lab has.
    pub addresses: Vec<IpNet>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// Its name, in namespace `default`.
    pub name: String,
    /// Its node.
    pub node: String,
}

/// Which address families nodes and pods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4; IPv6 beside it if the file or `--pool` has something of it.
    #[default]
    Ipv4,
    /// Both.
    Both,
    /// IPv6 alone.
    Ipv6,
}

/// What `up` was asked for.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Number of nodes, if not given by a file.
    pub nodes: Option<usize>,
    /// Pods on every node, instead of the tour's three.
    pub pods_per_node: Option<usize>,
    /// Encapsulation of the IPv4 pool.
    pub ipip_mode: EncapMode,
    /// Address families.
    pub families: Families,
    /// The pools' ranges, if the user insists; at most one of a family.
    pub pools: Vec<IpNet>,
    /// Resources of a file.
    pub topology: Topology,
}

impl ClusterSpec {
    /// Decides everything. `host_routes` are the machine's own routes: a pool that overlaps one is refused if asked for,
    /// avoided if not. A file's problems all come at once.
    pub fn decide(wishes: Wishes, host_routes: &[IpNet]) -> Result<Self, LabError> {
        let families = wishes.families_in_use()?;
        let mut notes = Vec::new();
        let nodes = nodes(&wishes, &families)?;
        let overlap = |cidr| overlapping(cidr, host_routes);
        let problems = wishes.topology.problems(&families, overlap);
        if !problems.is_empty() {
            return Err(LabError::Resources(problems));
        }
        let mut resources = wishes.topology.resources();
        for family in families {
            if wishes.topology.pools(family).next().is_none() {
                resources.push(pool(&wishes, family, host_routes, &mut notes)?.into());
            }
        }
        // Nodes of the file are written too: an agent adopts the entry that it finds under its name.
        for node in &nodes {
            if wishes.topology.node(&node.name).is_none() {
                resources.push(resource_of(node).into());
            }
        }
        for profile in profiles(DEFAULT_NAMESPACE) {
            if !resources.iter().any(|resource| resource.key() == profile.key()) {
                resources.push(profile.into());
            }
        }
        let pods = pods(&wishes, &nodes);
        Ok(Self {
            nodes,
            pods,
            resources,
            notes,
        })
    }

    /// Whether a pool has its packets travel in IP-in-IP.
    pub fn needs_ipip(&self) -> bool {
        let pools = self
            .resources
            .iter()
            .filter_map(|resource| <&IpPool>::try_from(resource).ok());
        pools.into_iter().any(|pool| pool.spec.ipip_mode != EncapMode::Never)
    }

    /// The addresses of the fabric's bridge, the nodes' default gateways: the first of each range.
    pub fn gateways(&self) -> Vec<IpNet> {
        let families: BTreeSet<IpFamily> = self
            .nodes
            .iter()
            .flat_map(|node| node.addresses.iter().map(family_of))
            .collect();
        families.into_iter().map(gateway).collect()
    }
}

/// What a Kubernetes cluster has for a namespace and its service account `default`: the pods' profiles. A pod whose profile is
/// missing may talk to nobody.
pub(crate) fn profiles(name: &str) -> [Profile; 2] {
    let mut namespace = Profile::new(format!("kns.{name}"), ProfileSpec::default());
    namespace.spec.ingress = vec![Rule::any(Action::Allow)];
    namespace.spec.egress = vec![Rule::any(Action::Allow)];
    for label in ["projectcalico.org/name", "kubernetes.io/metadata.name"] {
        let label = format!("pcns.{label}");
        namespace.spec.labels_to_apply.insert(label, name.to_owned());
    }
    let mut account = Profile::new(format!("ksa.{name}.default"), ProfileSpec::default());
    let label = "pcsa.projectcalico.org/name".to_owned();
    account.spec.labels_to_apply.insert(label, "default".into());
    [namespace, account]
}

impl Wishes {
    fn families_in_use(&self) -> Result<Vec<IpFamily>, LabError> {
        let of_pools = |family| self.pools.iter().filter(|pool| family_of(pool) == family).count();
        for (family, name) in [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")] {
            if of_pools(family) > 1 {
                let all = self
                    .pools
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(usage("--pool", &all, &format!("has more than one {name} range")));
            }
        }
        match self.families {
            Families::Ipv6 if of_pools(IpFamily::V4) > 0 => {
                let pool = self.pools.iter().find(|pool| family_of(pool) == IpFamily::V4);
                let pool = pool.map(ToString::to_string).unwrap_or_default();
                Err(usage(
                    "--pool",
                    &pool,
                    "is of no use with --ipv6=only: give an IPv6 range",
                ))
            }
            Families::Ipv6 => Ok(vec![IpFamily::V6]),
            Families::Ipv4 if of_pools(IpFamily::V6) == 0 && !self.topology.mentions_ipv6() => Ok(vec![IpFamily::V4]),
            Families::Ipv4 | Families::Both => Ok(IpFamily::BOTH.to_vec()),
        }
    }
}

/// The walk-through's underlay.
pub const FABRIC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 211, 55, 0), 24);
/// The same for IPv6, in a range for private use (RFC 4193).
pub const FABRIC_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x211, 0x55, 0, 0, 0, 0), 64);
const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16);
const DEFAULT_POOL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x192, 0x168, 0, 0, 0, 0, 0), 48);
/// Host number of the first node, as in the walk-through.
const FIRST_HOST: u32 = 7;

/// The fabric's range of a family.
pub fn fabric(family: IpFamily) -> IpNet {
    match family {
        IpFamily::V4 => IpNet::V4(FABRIC),
        IpFamily::V6 => IpNet::V6(FABRIC_V6),
    }
}

/// An address on the fabric, with the fabric's length. The number looks the same in both families: host 12 is `.12` and
/// `::12`.
pub fn fabric_address(family: IpFamily, host: u32) -> IpNet {
    let address: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::from(u32::from(FABRIC.network()) + host).into(),
        IpFamily::V6 => {
            let digits = u128::from_str_radix(&host.to_string(), 16).unwrap_or_default();
            Ipv6Addr::from(u128::from(FABRIC_V6.network()) + digits).into()
        }
    };
    // The length is the fabric's own, which fits its family.
    IpNet::new(address, fabric(family).prefix_len()).unwrap_or(IpNet::from(address))
}

fn gateway(family: IpFamily) -> IpNet {
    fabric_address(family, 1)
}

/// The family of a range or address.
pub fn family_of(net: &IpNet) -> IpFamily {
    IpFamily::of(&net.addr())
}

fn nodes(wishes: &Wishes, families: &[IpFamily]) -> Result<Vec<NodePlan>, LabError> {
    let named: Vec<&Node> = wishes.topology.nodes().collect();
    if named.is_empty() {
        let count = wishes.nodes.unwrap_or(3);
        if !(1..=MAX_NODES).contains(&count) {
            let problem = format!("is out of range: 1 to {MAX_NODES}");
            return Err(usage("--nodes", &count.to_string(), &problem));
        }
        let plan = |position: usize| NodePlan {
            name: match position {
                0 => "k8s-125-master".to_string(),
                _ => format!("k8s-125-node{position}"),
            },
            addresses: families
                .iter()
                .map(|family| fabric_address(*family, FIRST_HOST + position as u32))
                .collect(),
        };
        return Ok((0..count).map(plan).collect());
    }
    if let Some(count) = wishes.nodes {
        let problem = "contradicts the Nodes in the file; leave it out";
        return Err(usage("--nodes", &count.to_string(), problem));
    }
    if named.len() > MAX_NODES {
        let problem = format!("are too many Nodes: {MAX_NODES} fit on the fabric");
        return Err(usage("--from", &named.len().to_string(), &problem));
    }
    // Addresses of the file come first: those that are given out must not be among them.
    let mut taken: BTreeSet<IpAddr> = named
        .iter()
        .flat_map(|node| given(node))
        .map(|net| net.addr())
        .collect();
    let plan = |node: &Node| NodePlan {
        name: node.metadata.name.clone(),
        addresses: families
            .iter()
            .filter_map(|family| address_for(node, *family, &mut taken))
            .collect(),
    };
    Ok(named.into_iter().map(plan).collect())
}

fn address_for(node: &Node, family: IpFamily, taken: &mut BTreeSet<IpAddr>) -> Option<IpNet> {
    let given = given(node).into_iter().find(|net| family_of(net) == family);
    let address = match given {
        Some(given) => IpNet::new(given.addr(), fabric(family).prefix_len()).ok(),
        None => free_address(family, taken),
    };
    taken.extend(address.map(|net| net.addr()));
    address
}

/// The lowest address of the fabric, from the first node's on, that is not taken.
pub fn free_address(family: IpFamily, taken: &BTreeSet<IpAddr>) -> Option<IpNet> {
    let hosts = FIRST_HOST..FIRST_HOST + MAX_NODES as u32 + 8;
    hosts
        .map(|host| fabric_address(family, host))
        .find(|net| !taken.contains(&net.addr()))
}

/// The addresses that a Node of a file asks for.
pub fn given(node: &Node) -> Vec<IpNet> {
    let bgp = node.spec.bgp.as_ref();
    let v4 = bgp.and_then(|bgp| bgp.ipv4_address).map(IpNet::V4);
    let v6 = bgp.and_then(|bgp| bgp.ipv6_address).map(IpNet::V6);
    v4.into_iter().chain(v6).collect()
}

fn resource_of(plan: &NodePlan) -> Node {
    let mut bgp = NodeBgp::default();
    for address in &plan.addresses {
        match address {
            IpNet::V4(net) => bgp.ipv4_address = Some(*net),
            IpNet::V6(net) => bgp.ipv6_address = Some(*net),
        }
    }
    let spec = NodeSpec {
        bgp: Some(bgp),
        ..NodeSpec::default()
    };
    Node::new(&plan.name, spec)
}

/// The tour needs two pods on different nodes and one beside the first; otherwise so many a node.
fn pods(wishes: &Wishes, nodes: &[NodePlan]) -> Vec<PodPlan> {
    if let Some(count) = wishes.pods_per_node {
        let of = |(i, node): (usize, &NodePlan)| {
            let node = node.name.clone();
            (1..=count)
                .map(move |k| PodPlan {
                    name: format!("pod-{i}-{k}"),
                    node: node.clone(),
                })
                .collect::<Vec<_>>()
        };
        return nodes.iter().enumerate().flat_map(of).collect();
    }
    let node = |i: usize| nodes[i.min(nodes.len() - 1)].name.clone();
    let pod = |name: &str, node: String| PodPlan {
        name: name.to_string(),
        node,
    };
    vec![pod("cni-1", node(1)), pod("cni-2", node(2)), pod("c1", node(1))]
}

fn pool(wishes: &Wishes, family: IpFamily, host_routes: &[IpNet], notes: &mut Vec<String>) -> Result<IpPool, LabError> {
    let default = default_pool(family, 0);
    let cidr = match wishes.pools.iter().find(|pool| family_of(pool) == family) {
        Some(cidr) => {
            refuse_overlap(*cidr, host_routes)?;
            *cidr
        }
        None => {
            let free = |cidr: &IpNet| overlapping(*cidr, host_routes).is_none();
            let mut candidates = (0..=16).map(|number| default_pool(family, number));
            let cidr = candidates.find(free).ok_or_else(|| LabError::InUse {
                what: "every default pool".into(),
                by: "routes of this machine".into(),
                remedy: "choose a range with --pool".into(),
            })?;
            if cidr != default {
                notes.push(format!(
                    "this machine has routes into {default}; the pool is {cidr} instead"
                ));
            }
            cidr
        }
    };
    let mut spec = IpPoolSpec::new(cidr);
    spec.block_size = Some(spec.block_len());
    spec.node_selector = Some("all()".into());
    let name = match family {
        IpFamily::V4 => {
            // IP-in-IP and NAT are for IPv4: pods' IPv6 addresses travel as they are.
            spec.ipip_mode = wishes.ipip_mode;
            "default-ipv4-ippool"
        }
        IpFamily::V6 => "default-ipv6-ippool",
    };
    Ok(IpPool::new(name, spec))
}

/// 192.168.0.0/16, then 172.16.0.0/16 to 172.31.0.0/16; for IPv6 the same digits.
fn default_pool(family: IpFamily, number: u8) -> IpNet {
    match (family, number) {
        (IpFamily::V4, 0) => IpNet::V4(DEFAULT_POOL),
        (IpFamily::V6, 0) => IpNet::V6(DEFAULT_POOL_V6),
        (IpFamily::V4, n) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 15 + n, 0, 0), 16)),
        (IpFamily::V6, n) => {
            let digits = u16::from_str_radix(&(15 + n).to_string(), 16).unwrap_or_default();
            IpNet::V6(Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd00, 0x172, digits, 0, 0, 0, 0, 0),
                48,
            ))
        }
    }
}

/// The machine's route, or the fabric, that a pool would be in the way of.
fn overlapping(pool: IpNet, host_routes: &[IpNet]) -> Option<IpNet> {
    let fabrics = IpFamily::BOTH.map(fabric);
    let overlaps = |route: &&IpNet| route.prefix_len() > 0 && (pool.contains(*route) || route.contains(&pool));
    host_routes.iter().chain(&fabrics).find(overlaps).copied()
}

fn refuse_overlap(pool: IpNet, host_routes: &[IpNet]) -> Result<(), LabError> {
    match overlapping(pool, host_routes) {
        None => Ok(()),
        Some(route) => Err(LabError::InUse {
            what: format!("pool {pool}"),
            by: whose(route),
            remedy: "choose another range with --pool".into(),
        }),
    }
}

/// How a route that is in the way is called.
pub fn whose(route: IpNet) -> String {
    if IpFamily::BOTH.map(fabric).contains(&route) {
        format!("the lab's fabric {route}")
    } else {
        format!("route {route} of this machine")
    }
}

/// A wrong flag or field.
pub fn usage(field: &str, value: &str, problem: &str) -> LabError {
    LabError::Usage {
        field: field.into(),
        value: value.into(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lab with `flags` and a file's text on a machine with `routes`: pools, nodes, pods, or part of the error.
    fn check(flags: &str, file: &str, routes: &[&str], expected: Result<&str, &str>) {
        let topology = match file {
            "" => Ok(Topology::default()),
            text => Topology::read("my.yaml", text),
        };
        let routes: Vec<IpNet> = routes.iter().map(|route| route.parse().unwrap()).collect();
        let decided = topology.and_then(|topology| ClusterSpec::decide(wishes(flags, topology), &routes));
        match (decided.map(|spec| shown(&spec)), expected) {
            (Ok(shown), Ok(expected)) => assert_eq!(shown, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (shown, expected) => panic!("{shown:?} instead of {expected:?}"),
        }
    }

    fn wishes(flags: &str, topology: Topology) -> Wishes {
        let mut wishes = Wishes {
            nodes: None,
            pods_per_node: None,
            ipip_mode: EncapMode::Always,
            families: Families::Ipv4,
            pools: Vec::new(),
            topology,
        };
        for flag in flags.split_whitespace() {
            match flag.split_once('=').unwrap_or((flag, "")) {
                ("--ipv6", "") => wishes.families = Families::Both,
                ("--ipv6", _) => wishes.families = Families::Ipv6,
                ("--nodes", count) => wishes.nodes = Some(count.parse().unwrap()),
                ("--pods", count) => wishes.pods_per_node = Some(count.parse().unwrap()),
                ("--pool", cidr) => wishes.pools.push(cidr.parse().unwrap()),
                (other, _) => panic!("{other}"),
            }
        }
        wishes
    }

    fn shown(spec: &ClusterSpec) -> String {
        let pools = spec.resources.iter().filter_map(|r| <&IpPool>::try_from(r).ok());
        let pools: Vec<String> = pools
            .map(|pool| format!("{} {} {}", pool.spec.cidr, pool.spec.block_len(), pool.spec.ipip_mode))
            .collect();
        let node = |node: &NodePlan| {
            let addresses: Vec<String> = node.addresses.iter().map(|net| net.addr().to_string()).collect();
            format!("{} {}", node.name, addresses.join(" "))
        };
        let nodes: Vec<String> = spec.nodes.iter().map(node).collect();
        let pods: Vec<String> = spec
            .pods
            .iter()
            .map(|pod| format!("{}@{}", pod.name, pod.node))
            .collect();
        format!("{} | {} | {}", pools.join(", "), nodes.join(", "), pods.join(" "))
    }

    #[test]
    fn the_default_is_the_walk_through() {
        check(
            "",
            "",
            &["0.0.0.0/0", "10.0.2.0/24", "fe80::/64"],
            Ok(
                "192.168.0.0/16 26 Always | k8s-125-master 10.211.55.7, k8s-125-node1 10.211.55.8, k8s-125-node2 10.211.55.9 | \
                cni-1@k8s-125-node1 cni-2@k8s-125-node2 c1@k8s-125-node1",
            ),
        );
    }

    #[test]
    fn ipv6_comes_beside_ipv4_or_alone() {
        check(
            "--ipv6 --nodes=1 --pods=1",
            "",
            &[],
            Ok(
                "192.168.0.0/16 26 Always, fd00:192:168::/48 122 Never | k8s-125-master 10.211.55.7 fd00:10:211:55::7 | \
                pod-0-1@k8s-125-master",
            ),
        );
        check(
            "--ipv6=only --nodes=1 --pods=0",
            "",
            &["fd00:192:168:9::/64"],
            Ok("fd00:172:16::/48 122 Never | k8s-125-master fd00:10:211:55::7 | "),
        );
        check(
            "--nodes=1 --pods=0 --pool=fd00:7::/48",
            "",
            &[],
            Ok("192.168.0.0/16 26 Always, fd00:7::/48 122 Never | k8s-125-master 10.211.55.7 fd00:10:211:55::7 | "),
        );
        for (flags, words) in [
            (
                "--ipv6=only --pool=10.0.0.0/16",
                "`10.0.0.0/16` is of no use with --ipv6=only",
            ),
            (
                "--pool=10.0.0.0/16 --pool=10.1.0.0/16",
                "`10.0.0.0/16, 10.1.0.0/16` has more than one IPv4 range",
            ),
            (
                "--pool=fd00:10:211::/48",
                "is already in use by the lab's fabric fd00:10:211:55::/64",
            ),
        ] {
            check(flags, "", &[], Err(words));
        }
    }

    #[test]
    fn the_hundredth_node_looks_the_same_in_both_families() {
        for (host, v4, v6) in [
            (7, "10.211.55.7/24", "fd00:10:211:55::7/64"),
            (12, "10.211.55.12/24", "fd00:10:211:55::12/64"),
            (246, "10.211.55.246/24", "fd00:10:211:55::246/64"),
        ] {
            assert_eq!(fabric_address(IpFamily::V4, host).to_string(), v4);
            assert_eq!(fabric_address(IpFamily::V6, host).to_string(), v6);
        }
    }

    #[test]
    fn a_home_network_moves_the_default_pool() {
        let one = "--nodes=1 --pods=1";
        let all = Err("every default pool is already in use");
        check(one, "", &["192.168.1.0/24", "172.16.0.0/12"], all);
        let moved = Ok("172.16.0.0/16 26 Always | k8s-125-master 10.211.55.7 | pod-0-1@k8s-125-master");
        check(one, "", &["192.168.1.0/24", "172.17.0.0/16"], moved);
    }

    #[test]
    fn an_explicit_pool_is_refused_where_it_overlaps() {
        check(
            "--pool=10.0.0.0/8",
            "",
            &[],
            Err("pool 10.0.0.0/8 is already in use by the lab's fabric 10.211.55.0/24"),
        );
        let words = "pool 192.168.1.0/24 is already in use by route 192.168.0.0/16 of this machine";
        check("--pool=192.168.1.0/24", "", &["192.168.0.0/16"], Err(words));
    }

    #[test]
    fn too_many_nodes_are_refused() {
        check("--nodes=0", "", &[], Err("--nodes: `0` is out of range: 1 to 240"));
        check("--nodes=241", "", &[], Err("`241` is out of range"));
    }

    fn node(name: &str, bgp: &str) -> String {
        format!("{{apiVersion: projectcalico.org/v3, kind: Node, metadata: {{name: {name}}}, spec: {{{bgp}}}}}\n---\n")
    }

    fn pool_of(name: &str, cidr: &str) -> String {
        format!(
            "{{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {{name: {name}}}, spec: {{cidr: {cidr}}}}}\n---\n"
        )
    }

    #[test]
    fn a_file_brings_nodes_and_pools() {
        let left = node("left", "bgp: {ipv4Address: 10.211.55.8/24}");
        let file = left.clone() + &node("right", "") + &node("third", "") + &pool_of("small", "10.65.0.0/16");
        let planned = "10.65.0.0/16 26 Never | left 10.211.55.8, right 10.211.55.7, third 10.211.55.9 | ";
        check("--pods=0", &file, &[], Ok(planned));
        let planned = "fd00:5::/48 122 Never, 192.168.0.0/16 26 Always | left 10.211.55.8 fd00:10:211:55::7 | ";
        check("--pods=0", &(left + &pool_of("six", "fd00:5::/48")), &[], Ok(planned));
        let six = node("six", "bgp: {ipv6Address: 'fd00:10:211:55::a/64'}");
        let planned = "fd00:192:168::/48 122 Never | six fd00:10:211:55::a | ";
        check("--pods=0 --ipv6=only", &six, &[], Ok(planned));
    }

    #[test]
    fn a_files_problems_name_file_document_field_and_value() {
        for (flags, file, words) in [
            (
                "",
                node("a", "bgp: {ipv4Address: 10.0.0.300/24}"),
                "my.yaml, document 1 (Node a): spec.bgp.ipv4Address: `10.0.0.300/24`",
            ),
            (
                "",
                node("a", "speling: 1"),
                "my.yaml, document 1 (Node a): spec.speling",
            ),
            (
                "",
                node("a", "") + &node("b", "bgp: {ipv4Address: 10.9.0.1/24}"),
                "my.yaml, document 2 (Node b): spec.bgp.ipv4Address: `10.9.0.1/24` is outside the lab's fabric 10.211.55.0/24",
            ),
            (
                "",
                node("a", "bgp: {ipv4Address: 10.211.55.1/24}"),
                "(Node a): spec.bgp.ipv4Address: `10.211.55.1/24` is the fabric's own address",
            ),
            (
                "",
                node("a", "bgp: {ipv4Address: 10.211.55.8/24}") + &node("b", "bgp: {ipv4Address: 10.211.55.8/24}"),
                "document 2 (Node b): spec.bgp.ipv4Address: `10.211.55.8/24` is Node a's already",
            ),
            (
                "",
                node("a", "") + &node("a", ""),
                "my.yaml, document 2 (Node a): metadata.name: `a` stands in document 1 too",
            ),
            (
                "",
                node("margay-fabric", ""),
                "(Node margay-fabric): metadata.name: `margay-fabric` is how the lab calls",
            ),
            (
                "",
                pool_of("p", "10.211.0.0/16"),
                "my.yaml, document 1 (IPPool p): spec.cidr: `10.211.0.0/16` overlaps the lab's fabric 10.211.55.0/24",
            ),
            (
                "",
                pool_of("p", "172.16.0.0/16"),
                "(IPPool p): spec.cidr: `172.16.0.0/16` overlaps route 172.16.0.0/12 of this machine",
            ),
            (
                "--ipv6=only",
                node("a", "bgp: {ipv4Address: 10.211.55.8/24}"),
                "(Node a): spec.bgp.ipv4Address: `10.211.55.8/24` is of a family that --ipv6=only leaves out",
            ),
            (
                "--nodes=2",
                node("a", ""),
                "--nodes: `2` contradicts the Nodes in the file",
            ),
        ] {
            check(flags, &file, &["172.16.0.0/12"], Err(words));
        }
        // All at once.
        let both = node("a", "bgp: {ipv4Address: 10.9.0.1/24}") + &pool_of("p", "10.211.0.0/16");
        for words in ["document 1 (Node a)", "document 2 (IPPool p)"] {
            check("", &both, &[], Err(words));
        }
    }
}
