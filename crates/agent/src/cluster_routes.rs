//! Routes to the other nodes' blocks without BGP: worked out from blocks and nodes, as the datastore has them.
//!
//! A block leads to the node that owns it. An address in it that another node has borrowed leads to that node, by itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::resource::{IpamBlock, Node};
use api::{Key, Kind};
use bgp::{FibChange, FibRoute};
use datastore::Update;
use ipam::{Block, Owner};
use ipnet::IpNet;

/// What of the datastore routes follow from, and what the dataplane was told.
#[derive(Debug)]
pub struct ClusterRoutes {
    node: String,
    nodes: BTreeMap<String, Addresses>,
    /// Where each prefix of a block leads: to a node, by name.
    blocks: BTreeMap<Key, BTreeMap<IpNet, String>>,
    told: BTreeMap<IpNet, FibRoute>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Addresses {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl ClusterRoutes {
    /// Of this node.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            nodes: BTreeMap::new(),
            blocks: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Takes what one resource is now.
    pub fn apply(&mut self, update: &Update) {
        match update.key.kind {
            Kind::Node => {
                let node = update.value.as_ref().and_then(|value| <&Node>::try_from(value).ok());
                match node {
                    Some(node) => drop(self.nodes.insert(update.key.name.clone(), addresses(node))),
                    None => drop(self.nodes.remove(&update.key.name)),
                }
            }
            Kind::IPAMBlock => {
                let block = update
                    .value
                    .as_ref()
                    .and_then(|value| <&IpamBlock>::try_from(value).ok());
                match block {
                    Some(block) => drop(self.blocks.insert(update.key.clone(), leads_to(block))),
                    None => drop(self.blocks.remove(&update.key)),
                }
            }
            _ => {}
        }
    }

    /// What changed since the last time. Metrics for IPv4 and IPv6.
    pub fn flush(&mut self, metrics: [u32; 2]) -> Vec<FibChange> {
        let mut wanted = BTreeMap::new();
        for (prefix, node) in self.blocks.values().flatten().filter(|(_, node)| **node != self.node) {
            let to = self.nodes.get(node).copied().unwrap_or_default();
            let (hop, metric) = match prefix {
                IpNet::V4(_) => (to.ipv4.map(IpAddr::V4), metrics[0]),
                IpNet::V6(_) => (to.ipv6.map(IpAddr::V6), metrics[1]),
            };
            if let Some(hop) = hop {
                let next_hops = vec![hop];
                wanted.insert(*prefix, FibRoute { next_hops, metric });
            }
        }
        let gone = self.told.keys().filter(|prefix| !wanted.contains_key(*prefix));
        let gone = gone.map(|prefix| FibChange {
            prefix: *prefix,
            route: None,
        });
        let changed = wanted
            .iter()
            .filter(|(prefix, route)| self.told.get(*prefix) != Some(*route));
        let changed = changed.map(|(prefix, route)| FibChange {
            prefix: *prefix,
            route: Some(route.clone()),
        });
        let changes = changed.chain(gone).collect();
        self.told = wanted;
        changes
    }
}

fn addresses(node: &Node) -> Addresses {
    let bgp = node.spec.bgp.clone().unwrap_or_default();
    Addresses {
        ipv4: bgp.ipv4_address.map(|net| net.addr()),
        ipv6: bgp.ipv6_address.map(|net| net.addr()),
    }
}

fn leads_to(block: &IpamBlock) -> BTreeMap<IpNet, String> {
    let spec = &block.spec;
    let owner = spec.affinity.as_deref().and_then(|text| text.parse().ok());
    let owner = match owner {
        Some(Owner::Host(name)) => Some(name),
        _ => None,
    };
    let mut leads = BTreeMap::new();
    for (ordinal, holder) in spec.allocated() {
        if let Some(node) = holder
            .secondary
            .get("node")
            .filter(|node| owner.as_ref() != Some(*node))
        {
            leads.insert(IpNet::from(spec.address(ordinal)), node.clone());
        }
    }
    leads.extend(owner.map(|owner| (spec.cidr, owner)));
    leads
}

#[cfg(test)]
mod tests {
    use api::{AllocationAttribute, IpamBlockSpec};
    use serde_json::json;

    use super::*;

    fn node(name: &str, address: Option<&str>) -> Update {
        let spec = address.map_or(json!({}), |address| json!({ "bgp": { "ipv4Address": address } }));
        let node = json!({ "kind": "Node", "metadata": { "name": name }, "spec": spec });
        Update {
            key: Key::cluster(Kind::Node, name),
            value: Some(serde_json::from_value(node).expect("a node")),
        }
    }

    /// A block of an owner, with addresses that nodes have.
    fn block(cidr: &str, owner: &str, held: &[(&str, &str)]) -> Update {
        let cidr: IpNet = cidr.parse().expect("a range");
        let mut spec = IpamBlockSpec::create(cidr, &Owner::Host(owner.into()), jiff::Timestamp::UNIX_EPOCH);
        for (address, node) in held {
            let holder = AllocationAttribute {
                secondary: [("node".to_owned(), node.to_string())].into(),
                ..AllocationAttribute::default()
            };
            spec.take_address(address.parse().expect("an address"), &holder)
                .expect("it is free");
        }
        if owner.is_empty() {
            spec.affinity = None;
        }
        let key = Key::block(cidr);
        Update {
            value: Some(IpamBlock::new(key.name.clone(), spec).into()),
            key,
        }
    }

    fn gone(update: Update) -> Update {
        Update { value: None, ..update }
    }

    #[test]
    fn blocks_lead_to_their_owners_and_borrowed_addresses_to_who_has_them() {
        let mut routes = ClusterRoutes::new("n1");
        let mut check = |updates: Vec<Update>, expected: &[&str]| {
            updates.iter().for_each(|update| routes.apply(update));
            let line = |change: FibChange| match change.route {
                Some(route) => format!("{} via {:?} metric {}", change.prefix, route.next_hops, route.metric),
                None => format!("{} gone", change.prefix),
            };
            let said: Vec<String> = routes.flush([1024, 1024]).into_iter().map(line).collect();
            assert_eq!(said, expected);
        };
        let nodes = || vec![node("n1", Some("10.0.0.1/24")), node("n2", Some("10.0.0.2/24"))];
        check(nodes(), &[]);
        check(vec![block("192.168.1.0/26", "n1", &[])], &[]);
        let second = |held: &[(&str, &str)]| block("192.168.2.0/26", "n2", held);
        check(vec![second(&[])], &["192.168.2.0/26 via [10.0.0.2] metric 1024"]);
        check(vec![second(&[("192.168.2.1", "n2"), ("192.168.2.2", "n1")])], &[]);
        check(
            vec![block("192.168.1.0/26", "n1", &[("192.168.1.5", "n2")])],
            &["192.168.1.5/32 via [10.0.0.2] metric 1024"],
        );
        check(
            vec![node("n2", Some("10.0.0.9/24"))],
            &[
                "192.168.1.5/32 via [10.0.0.9] metric 1024",
                "192.168.2.0/26 via [10.0.0.9] metric 1024",
            ],
        );
        // A block that nobody owns: its addresses lead to who has them.
        check(
            vec![block("192.168.2.0/26", "", &[("192.168.2.1", "n2")])],
            &["192.168.2.1/32 via [10.0.0.9] metric 1024", "192.168.2.0/26 gone"],
        );
        check(
            vec![gone(second(&[])), gone(block("192.168.1.0/26", "n1", &[]))],
            &["192.168.1.5/32 gone", "192.168.2.1/32 gone"],
        );
        check(vec![second(&[]), gone(node("n2", None))], &[]);
        check(nodes(), &["192.168.2.0/26 via [10.0.0.2] metric 1024"]);
    }
}
