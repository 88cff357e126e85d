//! What the datastore may have lost of this node's pods, by its watch.

use std::collections::{BTreeMap, BTreeSet};

use api::resource::{IpamBlock, WorkloadEndpoint};
use api::{Key, Kind, Resource};
use datastore::Update;
use ipam::{Block, Owner};
use ipnet::IpNet;

/// What was said to be gone although somebody may still have it.
#[derive(Debug, PartialEq)]
pub enum Lost {
    /// A WorkloadEndpoint.
    Endpoint(Key),
    /// Addresses that this block, as it is now, does not know of.
    Block(Box<IpamBlock>),
    /// Addresses outside of these blocks: there are no others in which this node has a part.
    Outside(BTreeSet<IpNet>),
    /// Nothing yet: a WorkloadEndpoint of this node as it is now, to be known when it is lost.
    Nothing(Box<WorkloadEndpoint>),
}

/// The blocks in which this node's pods may have addresses.
#[derive(Debug, Default)]
pub struct OwnBlocks(BTreeMap<Key, IpNet>);

impl OwnBlocks {
    /// What an update says may be lost of this node's.
    pub fn lost(&mut self, node: &str, update: &Update) -> Option<Lost> {
        match (update.key.kind, &update.value) {
            (Kind::WorkloadEndpoint, None) => Some(Lost::Endpoint(update.key.clone())),
            (Kind::WorkloadEndpoint, Some(Resource::WorkloadEndpoint(endpoint))) => {
                (endpoint.spec.node == node).then(|| Lost::Nothing(Box::new(endpoint.clone())))
            }
            (Kind::IPAMBlock, Some(Resource::IPAMBlock(block))) => {
                if has_part_in(node, block) {
                    self.0.insert(update.key.clone(), block.spec.cidr);
                }
                let is_or_was_ours = self.0.contains_key(&update.key);
                is_or_was_ours.then(|| Lost::Block(Box::new(block.clone())))
            }
            // Gone, or nothing that could be read.
            (Kind::IPAMBlock, _) => self.0.remove(&update.key).map(|_| self.outside()),
            _ => None,
        }
    }

    /// What may be lost once the datastore has been read as a whole: blocks that are not there are told by nobody.
    pub fn outside(&self) -> Lost {
        Lost::Outside(self.0.values().copied().collect())
    }
}

fn has_part_in(node: &str, block: &IpamBlock) -> bool {
    let named = |of: &BTreeMap<String, String>| of.get("node").is_some_and(|name| name == node);
    block.spec.belongs_to(&Owner::Host(node.to_owned()))
        || block.spec.attributes.iter().any(|one| named(&one.secondary))
}

#[cfg(test)]
pub mod tests {
    use api::{AllocationAttribute, IpamBlockSpec};
    use jiff::Timestamp;

    use super::*;

    /// 10.0.0.0/29 of an owner, with who holds what in it on node n1.
    pub fn block(owner: &str, holders: &[(&str, &str)]) -> IpamBlock {
        let cidr: IpNet = "10.0.0.0/29".parse().unwrap();
        let mut spec = IpamBlockSpec::create(cidr, &Owner::Host(owner.to_owned()), Timestamp::UNIX_EPOCH);
        for (address, handle) in holders {
            let holder = AllocationAttribute {
                handle_id: Some((*handle).to_owned()),
                secondary: [("node".to_owned(), "n1".to_owned())].into(),
                ..AllocationAttribute::default()
            };
            spec.take_address(address.parse().unwrap(), &holder).unwrap();
        }
        IpamBlock::new(Key::block(cidr).name, spec)
    }

    #[test]
    fn blocks_concern_a_node_that_has_or_had_a_part_in_them() {
        let mut own = OwnBlocks::default();
        let nothing = Lost::Outside(BTreeSet::new());
        let mut check = |value: Option<IpamBlock>, is_told: bool| {
            let expected = is_told.then(|| match &value {
                Some(block) => Lost::Block(Box::new(block.clone())),
                None => Lost::Outside(BTreeSet::new()),
            });
            let update = Update {
                key: block("n1", &[]).key(),
                value: value.map(Resource::from),
            };
            assert_eq!(own.lost("n1", &update), expected, "{update:?}");
            own.outside() == nothing
        };
        assert!(check(Some(block("n2", &[])), false));
        assert!(check(None, false));
        assert!(!check(Some(block("n2", &[("10.0.0.1", "net.a")])), true));
        check(Some(block("n1", &[])), true);
        check(Some(block("n2", &[])), true);
        check(None, true);
        assert!(check(None, false));
    }
}
