//! Addresses as numbers: one arithmetic for both families, and the order in which an owner walks a pool's blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of a range.
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// The family of an address.
    pub fn of_address(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

/// The address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address `offset` places after the first one of `net`. The caller stays inside the range.
pub(crate) fn nth(net: &IpNet, offset: u128) -> IpAddr {
    match net {
        IpNet::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.network().to_bits().wrapping_add(offset as u32))),
        IpNet::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.network().to_bits().wrapping_add(offset))),
    }
}

/// The range of `prefix_len` around `address`; `None` if the family has no such length.
pub(crate) fn around(address: IpAddr, prefix_len: u8) -> Option<IpNet> {
    IpNet::new(address, prefix_len).ok().map(|net| net.trunc())
}

/// The block-sized ranges of a pool, each once, from a start that depends on the seed and wrapping at the end.
pub(crate) struct Walk {
    pool: IpNet,
    block_len: u8,
    /// How many block-sized ranges there are, minus one (a count of 2^128 does not fit).
    last: u128,
    start: u128,
    done: Option<u128>,
}

impl Walk {
    /// A walk over `pool` in steps of `block_len`. An impossible length makes it empty.
    pub fn new(pool: IpNet, block_len: u8, seed: u64) -> Self {
        let pool = pool.trunc();
        let bits = Family::of(&pool).bits();
        let possible = block_len >= pool.prefix_len() && block_len <= bits;
        let last = if possible {
            ones(block_len - pool.prefix_len())
        } else {
            0
        };
        // Two independent halves, so that pools of more than 2^64 blocks spread as well.
        let spread = (u128::from(mix(seed)) << 64) | u128::from(mix(mix(seed)));
        let start = if last < 1 << 64 {
            ((spread >> 64) * (last + 1)) >> 64
        } else {
            spread & last
        };
        Self {
            pool,
            block_len,
            last,
            start,
            done: possible.then_some(0),
        }
    }

    /// How far from the start of the walk a block lies: sorting by it gives the walk's order.
    pub fn position(&self, block: &IpNet) -> u128 {
        let step = u32::from(Family::of(&self.pool).bits() - self.block_len);
        let offset = number(block.network()).wrapping_sub(number(self.pool.network()));
        let index = offset.checked_shr(step).unwrap_or(0);
        if index >= self.start {
            index - self.start
        } else {
            (self.last - self.start).saturating_add(index).saturating_add(1)
        }
    }
}

impl Iterator for Walk {
    type Item = IpNet;

    fn next(&mut self) -> Option<IpNet> {
        let done = self.done?;
        let to_end = self.last - self.start;
        let index = if done <= to_end {
            self.start + done
        } else {
            done - to_end - 1
        };
        self.done = (done < self.last).then(|| done + 1);
        let step = u32::from(Family::of(&self.pool).bits() - self.block_len);
        around(nth(&self.pool, index.checked_shl(step).unwrap_or(0)), self.block_len)
    }
}

/// A number of `bits` ones.
fn ones(bits: u8) -> u128 {
    1u128.checked_shl(u32::from(bits)).map_or(u128::MAX, |power| power - 1)
}

/// FNV-1, 32 bits: the seed of an owner's walk, so that all its processes look for blocks at the same place.
pub(crate) fn fnv1_32(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        hash.wrapping_mul(0x0100_0193) ^ u32::from(byte)
    })
}

/// Spreads similar seeds (`node1`, `node2`) over the whole range (the finaliser of SplitMix64).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_walk_visits_every_block_once_and_wraps_once() {
        for (pool, len) in [
            ("10.0.0.0/24", 26),
            ("10.0.0.0/24", 24),
            ("10.0.0.0/28", 32),
            ("fd00::/120", 122),
        ] {
            for seed in 0..50 {
                let blocks: Vec<IpNet> = Walk::new(net(pool), len, seed).collect();
                let expected: BTreeSet<IpNet> = net(pool).subnets(len).unwrap().collect();
                assert_eq!(blocks.len(), expected.len());
                assert_eq!(blocks.iter().copied().collect::<BTreeSet<_>>(), expected);
                let walk = Walk::new(net(pool), len, seed);
                let positions: Vec<u128> = blocks.iter().map(|block| walk.position(block)).collect();
                assert_eq!(positions, (0..expected.len() as u128).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn huge_pools_have_a_start_inside_and_similar_hosts_start_far_apart() {
        for (pool, len) in [("fd00::/8", 122), ("::/0", 128), ("::/0", 116), ("fd00::/58", 122)] {
            for seed in 0..20 {
                let first: Vec<IpNet> = Walk::new(net(pool), len, seed).take(3).collect();
                assert!(first.iter().all(|block| net(pool).contains(block)), "{first:?}");
            }
        }
        let start = |host: &str| Walk::new(net("10.0.0.0/8"), 26, fnv1_32(host).into()).next().unwrap();
        let (a, b) = (number(start("node1").network()), number(start("node2").network()));
        assert!(a.abs_diff(b) > 64 * 100);
        assert_eq!(Walk::new(net("10.0.0.0/26"), 24, 0).next(), None);
    }

    #[test]
    fn the_seed_is_fnv_1_not_fnv_1a() {
        assert_eq!(fnv1_32(""), 0x811c_9dc5);
        assert_eq!(fnv1_32("a"), 0x050c_5d7e);
        assert_eq!(fnv1_32("foobar"), 0x31f0_b262);
    }
}
