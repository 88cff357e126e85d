//! How full pools and blocks are.

use std::collections::BTreeMap;

use api::IpamBlockSpec;
use api::resource::IpPool;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::Family;
use crate::fetch::list_live;
use crate::pools::pool_of;
use crate::{Block, Ipam, IpamError, Owner, Reservations};

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The pool's name; `None` for blocks that lie in no pool.
    pub name: Option<String>,
    /// Its range; all addresses of a family for blocks that lie in no pool.
    pub cidr: IpNet,
    /// All its addresses (`u128::MAX` for the whole of IPv6).
    pub capacity: u128,
    /// Held or cooling down.
    pub in_use: u128,
    /// Reserved and not held.
    pub reserved: u128,
    /// Neither: what is left, whether in a block or not.
    pub available: u128,
    /// Its blocks, in order.
    pub blocks: Vec<BlockUse>,
}

/// How full a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUse {
    /// The block.
    pub cidr: IpNet,
    /// Whose it is; `None`: nobody's.
    pub owner: Option<Owner>,
    /// All its addresses.
    pub capacity: u128,
    /// Held or cooling down.
    pub in_use: u128,
    /// Of those, cooling down.
    pub cooling: u128,
    /// Of those, held for another node than the owner.
    pub borrowed: u128,
    /// Reserved and not held.
    pub reserved: u128,
    /// Neither.
    pub available: u128,
}

/// How full pools are, in order of their ranges, then what lies in no pool.
pub fn utilization(pools: &[IpPool], blocks: &[IpamBlockSpec], reserved: &Reservations) -> Vec<PoolUse> {
    let mut by_pool: BTreeMap<Option<&str>, Vec<&IpamBlockSpec>> = BTreeMap::new();
    for block in blocks {
        let pool = pool_of(pools, block.cidr.network()).map(|pool| pool.metadata.name.as_str());
        by_pool.entry(pool).or_default().push(block);
    }
    let mut sorted: Vec<&IpPool> = pools.iter().collect();
    sorted.sort_by_key(|pool| pool.spec.cidr);
    let mut uses: Vec<PoolUse> = (sorted.into_iter())
        .map(|pool| {
            let name = pool.metadata.name.as_str();
            pool_use(
                Some(name),
                pool.spec.cidr,
                by_pool.remove(&Some(name)).unwrap_or_default(),
                reserved,
            )
        })
        .collect();
    let strays = by_pool.remove(&None).unwrap_or_default();
    for (family, all) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
        let of_family: Vec<&IpamBlockSpec> = strays
            .iter()
            .copied()
            .filter(|block| Family::of(&block.cidr) == family)
            .collect();
        if let (false, Ok(all)) = (of_family.is_empty(), all.parse()) {
            uses.push(pool_use(None, all, of_family, reserved));
        }
    }
    uses
}

fn pool_use(name: Option<&str>, cidr: IpNet, mut blocks: Vec<&IpamBlockSpec>, reserved: &Reservations) -> PoolUse {
    blocks.sort_by_key(|block| block.cidr);
    let blocks: Vec<BlockUse> = blocks.into_iter().map(|block| block_use(block, reserved)).collect();
    let capacity = size(&cidr);
    let in_use = blocks.iter().map(|block| block.in_use).sum();
    let held_though_reserved: u128 = blocks
        .iter()
        .map(|block| reserved.count_in(&block.cidr).saturating_sub(block.reserved))
        .sum();
    let reserved = reserved.count_in(&cidr).saturating_sub(held_though_reserved);
    let available = capacity.saturating_sub(in_use).saturating_sub(reserved);
    PoolUse {
        name: name.map(str::to_owned),
        cidr,
        capacity,
        in_use,
        reserved,
        available,
        blocks,
    }
}

fn block_use(block: &IpamBlockSpec, reserved: &Reservations) -> BlockUse {
    let owner: Option<Owner> = block.affinity.as_deref().and_then(|owner| owner.parse().ok());
    let allocated = block.allocated();
    let elsewhere = |node: &String| match &owner {
        Some(Owner::Host(host)) => host != node,
        Some(Owner::Virtual(_)) | None => true,
    };
    let count = |condition: &dyn Fn(&api::AllocationAttribute) -> bool| {
        allocated.iter().filter(|(_, holder)| condition(holder)).count() as u128
    };
    let reserved = block.unallocated.len() as u128 - block.free(reserved) as u128;
    BlockUse {
        cidr: block.cidr,
        capacity: size(&block.cidr),
        in_use: allocated.len() as u128,
        cooling: count(&|holder| holder.released_at.is_some()),
        borrowed: count(&|holder| holder.secondary.get("node").is_some_and(elsewhere)),
        reserved,
        available: block.unallocated.len() as u128 - reserved,
        owner,
    }
}

fn size(net: &IpNet) -> u128 {
    1u128
        .checked_shl(u32::from(Family::of(net).bits() - net.prefix_len()))
        .unwrap_or(u128::MAX)
}

impl Ipam {
    /// How full the pools are now. Addresses whose rest is over count as free.
    pub async fn utilization(&self, now: Timestamp) -> Result<Vec<PoolUse>, IpamError> {
        let facts = self.facts().await?;
        let mut blocks: Vec<IpamBlockSpec> = list_live(self.store.as_ref())
            .await?
            .into_iter()
            .map(|at| at.object.spec)
            .collect();
        for block in &mut blocks {
            block.collect(now, facts.cooldown());
        }
        Ok(utilization(&facts.pools, &blocks, &Reservations::new(&facts.reserved)))
    }
}

#[cfg(test)]
mod tests {
    use api::{AllocationAttribute, IpPoolSpec};

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn holder(node: &str) -> AllocationAttribute {
        let secondary = [("node".to_owned(), node.to_owned())].into();
        AllocationAttribute {
            handle_id: Some(format!("h-{node}")),
            secondary,
            ..AllocationAttribute::default()
        }
    }

    #[test]
    fn every_address_of_a_pool_is_in_use_reserved_or_available() {
        let pools = [
            IpPool::new("v6", IpPoolSpec::new(net("fd00::/64"))),
            IpPool::new("a", IpPoolSpec::new(net("10.0.0.0/24"))),
        ];
        let mut block = IpamBlockSpec::create(net("10.0.0.64/26"), &Owner::Host("n1".into()), Timestamp::UNIX_EPOCH);
        block.take(2, &holder("n1"), &Reservations::default());
        block.take(1, &holder("n2"), &Reservations::default());
        let stray = IpamBlockSpec::create(net("192.168.0.0/26"), &Owner::load_balancer(), Timestamp::UNIX_EPOCH);
        // Reserved: .64 is held already, .72 to .79 are in the block, .128 to .159 in no block.
        let reserved = Reservations::new(&[net("10.0.0.64/32"), net("10.0.0.72/29"), net("10.0.0.128/27")]);
        let uses = utilization(&pools, &[stray, block], &reserved);
        let short: Vec<_> = (uses.iter())
            .map(|pool| {
                (
                    pool.name.as_deref(),
                    pool.capacity,
                    pool.in_use,
                    pool.reserved,
                    pool.available,
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (Some("a"), 256, 3, 40, 213),
                (Some("v6"), 1 << 64, 0, 0, 1 << 64),
                (None, 1 << 32, 0, 41, (1 << 32) - 41)
            ]
        );
        let block = &uses[0].blocks[0];
        assert_eq!(
            (block.in_use, block.borrowed, block.reserved, block.available),
            (3, 1, 8, 53)
        );
        assert_eq!(uses[2].blocks[0].owner, Some(Owner::Virtual("load-balancer".into())));
    }
}
