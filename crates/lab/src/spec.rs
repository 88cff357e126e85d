//! What a lab should look like: decided wholly before anything is made.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::{EncapMode, IpPool, IpPoolSpec, Node, NodeBgp, NodeSpec, Resource};
use ipnet::{IpNet, Ipv4Net};

use crate::LabError;

/// Most nodes that fit into the fabric's /24 above `.6`.
pub const MAX_NODES: usize = 240;

/// The whole cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSpec {
    /// Range of the nodes' addresses; the fabric's bridge has its first address.
    pub fabric: Ipv4Net,
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
    /// Address on the fabric.
    pub address: Ipv4Addr,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// Its name, in namespace `default`.
    pub name: String,
    /// Its node.
    pub node: String,
}

/// What `up` was asked for.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Number of nodes, if not given by a file.
    pub nodes: Option<usize>,
    /// Pods on every node, instead of the tour's three.
    pub pods_per_node: Option<usize>,
    /// Encapsulation of the pool.
    pub ipip_mode: EncapMode,
    /// The pool's range, if the user insists.
    pub pool: Option<IpNet>,
    /// Resources of a file.
    pub resources: Vec<Resource>,
}

impl ClusterSpec {
    /// Decides everything. `host_routes` are the machine's own routes: a pool that overlaps one is refused if asked for,
    /// avoided if not.
    pub fn decide(wishes: Wishes, host_routes: &[IpNet]) -> Result<Self, LabError> {
        let fabric = FABRIC;
        let mut notes = Vec::new();
        let nodes = nodes(&wishes, fabric)?;
        let mut resources = wishes.resources.clone();
        let has_pool =
            |resources: &[Resource]| resources.iter().any(|resource| matches!(resource, Resource::IPPool(_)));
        if !has_pool(&resources) {
            resources.push(default_pool(&wishes, host_routes, &mut notes)?.into());
        }
        for resource in &resources {
            if let Resource::IPPool(pool) = resource {
                refuse_overlap(pool.spec.cidr, host_routes)?;
            }
        }
        // Nodes of the file are written too: an agent adopts the entry that it finds under its name.
        for node in &nodes {
            let known = resources
                .iter()
                .any(|r| matches!(r, Resource::Node(n) if n.metadata.name == node.name));
            if !known {
                let bgp = NodeBgp {
                    ipv4_address: Ipv4Net::new(node.address, fabric.prefix_len()).ok(),
                    ..NodeBgp::default()
                };
                resources.push(
                    Node::new(
                        &node.name,
                        NodeSpec {
                            bgp: Some(bgp),
                            ..NodeSpec::default()
                        },
                    )
                    .into(),
                );
            }
        }
        let pods = pods(&wishes, &nodes);
        Ok(Self {
            fabric,
            nodes,
            pods,
            resources,
            notes,
        })
    }

    /// First address of the fabric: its bridge, the nodes' default gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        self.fabric.hosts().next().unwrap_or(self.fabric.network())
    }
}

/// The walk-through's underlay.
pub const FABRIC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 211, 55, 0), 24);
const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16);

fn nodes(wishes: &Wishes, fabric: Ipv4Net) -> Result<Vec<NodePlan>, LabError> {
    let named: Vec<&Node> = wishes
        .resources
        .iter()
        .filter_map(|resource| <&Node>::try_from(resource).ok())
        .collect();
    if !named.is_empty() {
        if wishes.nodes.is_some() {
            return Err(usage(
                "--nodes",
                &named.len().to_string(),
                "contradicts the Nodes in the file; leave it out",
            ));
        }
        return named
            .into_iter()
            .enumerate()
            .map(|(i, node)| node_of_file(node, i, fabric))
            .collect();
    }
    let count = wishes.nodes.unwrap_or(3);
    if !(1..=MAX_NODES).contains(&count) {
        return Err(usage(
            "--nodes",
            &count.to_string(),
            &format!("is out of range: 1 to {MAX_NODES}"),
        ));
    }
    let name = |i: usize| {
        if i == 0 {
            "k8s-125-master".to_string()
        } else {
            format!("k8s-125-node{i}")
        }
    };
    Ok((0..count)
        .map(|i| NodePlan {
            name: name(i),
            address: address(fabric, i),
        })
        .collect())
}

fn node_of_file(node: &Node, position: usize, fabric: Ipv4Net) -> Result<NodePlan, LabError> {
    let name = node.metadata.name.clone();
    let given = node.spec.bgp.as_ref().and_then(|bgp| bgp.ipv4_address);
    let address = match given {
        Some(net) if fabric.contains(&net.addr()) => net.addr(),
        Some(net) => {
            let problem = format!("is outside the lab's fabric {fabric}; leave it out or choose one inside");
            return Err(usage(
                &format!("Node {name}: spec.bgp.ipv4Address"),
                &net.to_string(),
                &problem,
            ));
        }
        None => address(fabric, position),
    };
    Ok(NodePlan { name, address })
}

fn address(fabric: Ipv4Net, position: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(fabric.network()) + 7 + position as u32)
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

fn default_pool(wishes: &Wishes, host_routes: &[IpNet], notes: &mut Vec<String>) -> Result<IpPool, LabError> {
    let candidates = std::iter::once(DEFAULT_POOL)
        .chain((16..32).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16)))
        .map(IpNet::V4);
    let cidr = match wishes.pool {
        Some(cidr) => cidr,
        None => {
            let free = |cidr: &IpNet| refuse_overlap(*cidr, host_routes).is_ok();
            let cidr = candidates.into_iter().find(free).ok_or_else(|| LabError::InUse {
                what: "every default pool".into(),
                by: "routes of this machine".into(),
                remedy: "choose a range with --pool".into(),
            })?;
            if cidr != IpNet::V4(DEFAULT_POOL) {
                notes.push(format!(
                    "this machine has routes into {DEFAULT_POOL}; the pool is {cidr} instead"
                ));
            }
            cidr
        }
    };
    let mut spec = IpPoolSpec::new(cidr);
    spec.block_size = Some(spec.block_len());
    spec.ipip_mode = if matches!(cidr, IpNet::V4(_)) {
        wishes.ipip_mode
    } else {
        EncapMode::Never
    };
    spec.nat_outgoing = true;
    spec.node_selector = Some("all()".into());
    let name = if matches!(cidr, IpNet::V4(_)) {
        "default-ipv4-ippool"
    } else {
        "default-ipv6-ippool"
    };
    Ok(IpPool::new(name, spec))
}

fn refuse_overlap(pool: IpNet, host_routes: &[IpNet]) -> Result<(), LabError> {
    let overlaps = |route: &&IpNet| route.prefix_len() > 0 && (pool.contains(*route) || route.contains(&pool));
    match host_routes.iter().chain([&IpNet::V4(FABRIC)]).find(overlaps) {
        None => Ok(()),
        Some(route) => Err(LabError::InUse {
            what: format!("pool {pool}"),
            by: format!("route {route} of this machine"),
            remedy: "choose another range with --pool (or in the file)".into(),
        }),
    }
}

/// Two Nodes of a file must not share a name or an address.
pub fn duplicates(nodes: &[NodePlan]) -> Option<LabError> {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    nodes.iter().find_map(|node| {
        let twice = !names.insert(&node.name) || !addresses.insert(node.address);
        twice.then(|| {
            usage(
                "Node",
                &node.name,
                &format!("(or its address {}) stands twice in the file", node.address),
            )
        })
    })
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

    fn wishes() -> Wishes {
        Wishes {
            nodes: None,
            pods_per_node: None,
            ipip_mode: EncapMode::Always,
            pool: None,
            resources: Vec::new(),
        }
    }

    fn check(wishes: Wishes, routes: &[&str], expected: Result<&str, &str>) {
        let routes: Vec<IpNet> = routes.iter().map(|route| route.parse().unwrap()).collect();
        let shown = ClusterSpec::decide(wishes, &routes).map(|spec| {
            let pool = spec
                .resources
                .iter()
                .find_map(|r| <&IpPool>::try_from(r).ok())
                .map(|pool| pool.spec.cidr.to_string());
            let node = |node: &NodePlan| format!("{} {}", node.name, node.address);
            let pod = |pod: &PodPlan| format!("{}@{}", pod.name, pod.node);
            let nodes: Vec<_> = spec.nodes.iter().map(node).collect();
            let pods: Vec<_> = spec.pods.iter().map(pod).collect();
            format!(
                "{} | {} | {}",
                pool.unwrap_or_default(),
                nodes.join(", "),
                pods.join(" ")
            )
        });
        match (shown, expected) {
            (Ok(shown), Ok(expected)) => assert_eq!(shown, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (shown, expected) => panic!("{shown:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_default_is_the_walk_through() {
        check(
            wishes(),
            &["0.0.0.0/0", "10.0.2.0/24"],
            Ok(
                "192.168.0.0/16 | k8s-125-master 10.211.55.7, k8s-125-node1 10.211.55.8, k8s-125-node2 10.211.55.9 | \
                cni-1@k8s-125-node1 cni-2@k8s-125-node2 c1@k8s-125-node1",
            ),
        );
    }

    #[test]
    fn a_home_network_moves_the_default_pool() {
        let nodes = Wishes {
            nodes: Some(1),
            pods_per_node: Some(1),
            ..wishes()
        };
        check(
            nodes,
            &["192.168.1.0/24", "172.16.0.0/12"],
            Err("every default pool is already in use"),
        );
        let nodes = Wishes {
            nodes: Some(1),
            pods_per_node: Some(1),
            ..wishes()
        };
        check(
            nodes,
            &["192.168.1.0/24", "172.17.0.0/16"],
            Ok("172.16.0.0/16 | k8s-125-master 10.211.55.7 | pod-0-1@k8s-125-master"),
        );
    }

    #[test]
    fn an_explicit_pool_is_refused_where_it_overlaps() {
        let overlapping = Wishes {
            pool: Some("10.0.0.0/8".parse().unwrap()),
            ..wishes()
        };
        check(overlapping, &[], Err("route 10.211.55.0/24"));
        let overlapping = Wishes {
            pool: Some("192.168.1.0/24".parse().unwrap()),
            ..wishes()
        };
        check(
            overlapping,
            &["192.168.0.0/16"],
            Err("pool 192.168.1.0/24 is already in use by route 192.168.0.0/16"),
        );
    }

    #[test]
    fn too_many_nodes_are_refused() {
        check(
            Wishes {
                nodes: Some(0),
                ..wishes()
            },
            &[],
            Err("--nodes: `0` is out of range: 1 to 240"),
        );
        check(
            Wishes {
                nodes: Some(241),
                ..wishes()
            },
            &[],
            Err("`241` is out of range"),
        );
    }
}
