//! Addresses that pods have and the datastore has forgotten, as after a backup was restored: they are taken again.
//!
//! The journal says which addresses the node's pods have. A block that lacks one of them would give it to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::resource::IpamBlock;
use api::{Key, Resource};
use cni::journal::{Endpoint, Id, Phase};
use datastore::Update;
use ipam::{Block, Owner};

use super::CniServer;
use super::ports::{AllocError, Want};

/// What an update says of blocks in which this node's pods may have addresses.
#[derive(Debug, Default)]
pub struct OwnBlocks(BTreeSet<Key>);

impl OwnBlocks {
    /// Notes an update; `true` if it is of a block that is this node's or has been, or in which it has borrowed.
    pub fn note(&mut self, node: &str, update: &Update) -> bool {
        if update.key.kind != api::Kind::IPAMBlock {
            return false;
        }
        let is_ours = match &update.value {
            Some(Resource::IPAMBlock(block)) => has_part_in(node, block),
            _ => false,
        };
        match (is_ours, &update.value) {
            (true, _) => {
                self.0.insert(update.key.clone());
                true
            }
            (false, Some(_)) => self.0.contains(&update.key),
            (false, None) => self.0.remove(&update.key),
        }
    }
}

fn has_part_in(node: &str, block: &IpamBlock) -> bool {
    let named = |of: &BTreeMap<String, String>| of.get("node").is_some_and(|name| name == node);
    block.spec.belongs_to(&Owner::Host(node.to_owned()))
        || block.spec.attributes.iter().any(|one| named(&one.secondary))
}

impl CniServer {
    /// Who of this node has addresses that an update of a block does not know of. With the block gone, everybody may.
    pub(super) fn forgotten_in(&self, block: Option<&IpamBlock>) -> Vec<Id> {
        let mut endpoints = self.endpoints();
        endpoints.retain(|endpoint| endpoint.phase == Phase::Attached && !endpoint.outside_ipam);
        let is_forgotten = |endpoint: &&Endpoint| match block {
            None => true,
            Some(block) => endpoint.addresses.iter().any(|address| {
                let ordinal = block.spec.ordinal(*address);
                let holder = ordinal.map(|ordinal| block.spec.holder(ordinal));
                holder.is_some_and(|holder| {
                    holder.and_then(|holder| holder.handle_id.as_deref()) != Some(endpoint.handle.as_str())
                })
            }),
        };
        endpoints.iter().filter(is_forgotten).map(Endpoint::id).collect()
    }

    /// The pod of this node, other than the one that was given them, that has one of these addresses.
    pub(super) fn owner_among(&self, addresses: &[IpAddr], given_to: &str) -> Option<Endpoint> {
        let mut endpoints = self.endpoints().into_iter();
        endpoints.find(|endpoint| {
            endpoint.phase == Phase::Attached
                && endpoint.handle != given_to
                && endpoint.addresses.iter().any(|address| addresses.contains(address))
        })
    }

    /// Takes the addresses of one attachment again if it does not hold them. `false`: has to be tried again.
    pub(super) async fn reclaim(&self, id: &Id) -> bool {
        let Some(endpoint) = self.attached(id) else { return true };
        let allocator = &self.shared.parts.allocator;
        let held = match allocator.held(&endpoint.handle).await {
            Ok(held) => held,
            Err(error) => return !passes(&error),
        };
        for address in endpoint.addresses.iter().filter(|address| !held.contains(address)) {
            let want = self.again(&endpoint, *address);
            let taken = allocator.assign(vec![want]).await.pop();
            // A DEL that came in between has released what there was then.
            if self.attached(id).is_none() {
                return allocator.release(&endpoint.handle).await.is_ok();
            }
            match taken {
                Some(Ok(_)) => tracing::warn!(
                    %id, %address,
                    "cni: the pod lives, but the datastore had forgotten its address: taken again"
                ),
                None => return false,
                Some(Err(error)) if passes(&error) => return false,
                Some(Err(error)) => tracing::error!(
                    %id, %address, %error,
                    "cni: the datastore gives a living pod's address to somebody else; delete one of the two pods"
                ),
            }
        }
        true
    }

    /// Everybody's.
    pub(super) async fn reclaim_all(&self) {
        for id in self.forgotten_in(None) {
            self.reclaim(&id).await;
        }
    }

    /// An attachment that has its addresses for good: whole, and no deletion of it is noted.
    fn attached(&self, id: &Id) -> Option<Endpoint> {
        let endpoint = self.recorded(id)?;
        let lives = endpoint.phase == Phase::Attached && matches!(self.journal().pending(id), Ok(None));
        lives.then_some(endpoint)
    }

    fn again(&self, endpoint: &Endpoint, address: IpAddr) -> Want {
        Want {
            handle: endpoint.handle.clone(),
            attributes: self.naming().attributes(endpoint),
            ipv4: address.is_ipv4(),
            ipv6: address.is_ipv6(),
            addresses: vec![address],
            ..Want::default()
        }
    }
}

fn passes(error: &AllocError) -> bool {
    matches!(error, AllocError::TryAgain(_))
}

#[cfg(test)]
mod tests {
    use api::{AllocationAttribute, IpamBlockSpec, Kind};
    use ipnet::IpNet;
    use jiff::Timestamp;

    use super::super::fakes::World;
    use super::*;

    /// 10.0.0.0/29 of an owner, with who holds what in it on node n1.
    fn block(owner: &str, holders: &[(&str, &str)]) -> IpamBlock {
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
        let key = Key::cluster(Kind::IPAMBlock, "10-0-0-0-29");
        let mut check = |value: Option<IpamBlock>, expected: bool| {
            let update = Update {
                key: key.clone(),
                value: value.map(Resource::from),
            };
            assert_eq!(own.note("n1", &update), expected, "{update:?}");
        };
        check(Some(block("n2", &[])), false);
        check(None, false);
        check(Some(block("n2", &[("10.0.0.1", "net.a")])), true);
        check(Some(block("n1", &[])), true);
        check(Some(block("n2", &[])), true);
        check(None, true);
        check(None, false);
    }

    #[tokio::test]
    async fn what_a_block_forgot_is_taken_again() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.add(&server, "b", "q").await.unwrap();
        let (a, b) = (server.endpoints()[0].clone(), server.endpoints()[1].clone());
        let (at_a, at_b) = (a.addresses[0].to_string(), b.addresses[0].to_string());
        let forgotten = |holders: &[(&str, &str)]| server.forgotten_in(Some(&block("n1", holders)));
        assert_eq!(forgotten(&[(&at_a, &a.handle), (&at_b, &b.handle)]), []);
        assert_eq!(forgotten(&[(&at_a, &a.handle)]), [b.id()]);
        assert_eq!(forgotten(&[(&at_a, &a.handle), (&at_b, "net.other")]), [b.id()]);

        world.forget(&b.handle);
        assert!(server.reclaim(&a.id()).await && server.reclaim(&b.id()).await);
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn a_new_pod_never_gets_what_a_living_one_has() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.add(&server, "b", "q").await.unwrap();
        let handles: Vec<String> = server.endpoints().into_iter().map(|one| one.handle).collect();
        handles.iter().for_each(|handle| world.forget(handle));
        world.add(&server, "c", "r").await.unwrap();
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn what_somebody_else_has_stays_his() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let a = server.endpoints()[0].clone();
        world.forget(&a.handle);
        world.hold("net.other", a.addresses[0]);
        assert!(server.reclaim(&a.id()).await, "asking again does not help");
        assert_eq!(world.holder(a.addresses[0]).as_deref(), Some("net.other"));
    }
}
