//! The addresses of this node and of the others. An address belongs to one node only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::{Key, Kind};

use crate::facts::{Facts, NodeFacts};
use crate::problem::Problem;
use crate::state::{PeerNode, ThisNode};

/// Who is where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub this: Option<ThisNode>,
    pub others: BTreeMap<String, PeerNode>,
}

/// Sorts out the nodes' addresses. Where two nodes claim one, this node's claim stands, then the older node's; the other
/// node is treated as if it had no such address, because routing to it would steal the first one's packets.
pub(crate) fn nodes(this: &str, facts: &Facts) -> (Nodes, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut nodes = Nodes::default();
    let mut claims: Vec<(&String, &NodeFacts)> = facts.nodes.iter().collect();
    claims.sort_by_key(|(name, node)| (name.as_str() != this, node.age, name.as_str()));

    for (name, node) in claims {
        let mut admit = |address: IpAddr, field: &str| -> bool {
            let why = match (unusable(address), holders.get(&address)) {
                (Some(why), _) => format!("{address} is {why}: the node is treated as having no such address"),
                (None, Some(holder)) => {
                    format!("{address} already belongs to node {holder}: packets keep going there")
                }
                (None, None) => {
                    holders.insert(address, name);
                    return true;
                }
            };
            problems.push(Problem::new(Key::cluster(Kind::Node, name.as_str()), field, why));
            false
        };
        let ipv4 = node
            .ipv4
            .filter(|net| admit(IpAddr::V4(net.addr()), "spec.bgp.ipv4Address"));
        let ipv6 = node
            .ipv6
            .filter(|net| admit(IpAddr::V6(net.addr()), "spec.bgp.ipv6Address"));
        if name.as_str() != this {
            nodes.others.insert(name.clone(), PeerNode { ipv4, ipv6 });
        } else if node.registered {
            nodes.this = Some(ThisNode {
                ipv4,
                ipv6,
                ipip_tunnel: node.ipip_tunnel,
            });
        }
    }
    (nodes, problems)
}

fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}
