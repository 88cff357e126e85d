//! One block: which of its addresses are taken, by whom, and which comes next. Pure functions on the stored form.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{AllocationAttribute, IpamBlockSpec};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::address::{Family, nth, number};
use crate::{IpamError, Owner};

/// Handle of addresses that Windows needs in every block; they do not count as use.
pub const WINDOWS_RESERVED_HANDLE: &str = "windows-reserved-ipam-handle";

/// The place of an address in its block, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u32);

/// Ranges that are never handed out (they may still be asked for by address).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    ranges: Vec<IpNet>,
}

impl Reservations {
    /// These ranges, joined where they touch.
    pub fn new(ranges: &[IpNet]) -> Self {
        Self {
            ranges: IpNet::aggregate(&ranges.to_vec()),
        }
    }

    /// Whether an address is reserved.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }

    /// Whether all of `net` is reserved.
    pub fn cover(&self, net: &IpNet) -> bool {
        self.ranges.iter().any(|range| range.contains(net))
    }

    /// How many addresses of `net` are reserved.
    pub fn count_in(&self, net: &IpNet) -> u128 {
        let size = |net: &IpNet| {
            1u128
                .checked_shl(u32::from(Family::of(net).bits() - net.prefix_len()))
                .unwrap_or(u128::MAX)
        };
        if self.cover(net) {
            return size(net);
        }
        self.ranges
            .iter()
            .filter(|range| net.contains(*range))
            .map(size)
            .fold(0, u128::saturating_add)
    }
}

/// The operations on a block. Implemented by its stored form.
pub trait Block {
    /// A new, free block of `owner`. Its sequence number starts at `now` in nanoseconds, so that a block that was deleted
    /// and created again never repeats a number.
    fn create(cidr: IpNet, owner: &Owner, now: Timestamp) -> Self;

    /// Whether it belongs to `owner`.
    fn belongs_to(&self, owner: &Owner) -> bool;

    /// The address at an ordinal.
    fn address(&self, ordinal: Ordinal) -> IpAddr;

    /// The ordinal of an address; `None` outside the block.
    fn ordinal(&self, address: IpAddr) -> Option<Ordinal>;

    /// Free addresses that are not reserved.
    fn free(&self, reserved: &Reservations) -> usize;

    /// Whether no address is held or cools down. Addresses that Windows reserves do not count.
    fn is_empty(&self) -> bool;

    /// Takes up to `count` free addresses, those first that have been free for longest.
    fn take(&mut self, count: usize, owner: &AllocationAttribute, reserved: &Reservations) -> Vec<Ordinal>;

    /// Takes one address; [`IpamError::AlreadyAssigned`] if it is held or cools down.
    fn take_address(&mut self, address: IpAddr, owner: &AllocationAttribute) -> Result<Ordinal, IpamError>;

    /// Gives addresses back. With a cooldown they rest (see [`Block::collect`]), otherwise they go to the end of the queue.
    fn give_back(&mut self, ordinals: &[Ordinal], now: Timestamp, cooldown: SignedDuration);

    /// Frees addresses whose rest is over, and answers how many.
    fn collect(&mut self, now: Timestamp, cooldown: SignedDuration) -> usize;

    /// Who holds an address; `None` if it is free.
    fn holder(&self, ordinal: Ordinal) -> Option<&AllocationAttribute>;

    /// The ordinals that a handle holds.
    fn held_by(&self, handle: &str) -> Vec<Ordinal>;

    /// Everything held or cooling down, with its holder.
    fn allocated(&self) -> Vec<(Ordinal, &AllocationAttribute)>;

    /// The sequence number at which an address was last taken or given back; 0 if never.
    fn sequence_of(&self, ordinal: Ordinal) -> u64;

    /// Counts one more write. To be called before each update of the stored block.
    fn bump(&mut self);
}

impl Block for IpamBlockSpec {
    fn create(cidr: IpNet, owner: &Owner, now: Timestamp) -> Self {
        let size = 1u32 << u32::from((Family::of(&cidr).bits() - cidr.prefix_len()).min(MOST_BITS));
        IpamBlockSpec {
            cidr,
            affinity: Some(owner.to_string()),
            affinity_claim_time: Some(whole_seconds(now)),
            strict_affinity: false,
            allocations: vec![None; size as usize],
            unallocated: (0..size).collect(),
            attributes: Vec::new(),
            deleted: false,
            sequence_number: u64::try_from(now.as_nanosecond()).unwrap_or(0),
            sequence_number_for_allocation: BTreeMap::new(),
        }
    }

    fn belongs_to(&self, owner: &Owner) -> bool {
        self.affinity.as_deref().and_then(|text| text.parse().ok()).as_ref() == Some(owner)
    }

    fn address(&self, ordinal: Ordinal) -> IpAddr {
        nth(&self.cidr, u128::from(ordinal.0))
    }

    fn ordinal(&self, address: IpAddr) -> Option<Ordinal> {
        if !self.cidr.contains(&address) {
            return None;
        }
        let offset = number(address) - number(self.cidr.network());
        ((offset as usize) < self.allocations.len()).then_some(Ordinal(offset as u32))
    }

    fn free(&self, reserved: &Reservations) -> usize {
        if reserved.count_in(&self.cidr) == 0 {
            return self.unallocated.len();
        }
        self.unallocated
            .iter()
            .filter(|ordinal| !reserved.contains(self.address(Ordinal(**ordinal))))
            .count()
    }

    fn is_empty(&self) -> bool {
        let counts = |attribute: &AllocationAttribute| {
            attribute
                .handle_id
                .as_deref()
                .is_none_or(|handle| !handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE))
        };
        !self.allocated().into_iter().any(|(_, attribute)| counts(attribute))
    }

    fn take(&mut self, count: usize, owner: &AllocationAttribute, reserved: &Reservations) -> Vec<Ordinal> {
        let taken: Vec<Ordinal> = (self.unallocated.iter().map(|ordinal| Ordinal(*ordinal)))
            .filter(|ordinal| !reserved.contains(self.address(*ordinal)))
            .take(count)
            .collect();
        for ordinal in &taken {
            put(self, *ordinal, owner);
        }
        let gone: BTreeSet<u32> = taken.iter().map(|ordinal| ordinal.0).collect();
        self.unallocated.retain(|ordinal| !gone.contains(ordinal));
        taken
    }

    fn take_address(&mut self, address: IpAddr, owner: &AllocationAttribute) -> Result<Ordinal, IpamError> {
        let ordinal = self.ordinal(address).ok_or(IpamError::NotInPool { ip: address })?;
        if let Some(holder) = self.holder(ordinal) {
            return Err(IpamError::AlreadyAssigned {
                ip: address,
                by: holder.handle_id.clone(),
            });
        }
        put(self, ordinal, owner);
        self.unallocated.retain(|free| *free != ordinal.0);
        Ok(ordinal)
    }

    fn give_back(&mut self, ordinals: &[Ordinal], now: Timestamp, cooldown: SignedDuration) {
        let held: Vec<Ordinal> = ordinals
            .iter()
            .copied()
            .filter(|ordinal| self.holder(*ordinal).is_some())
            .collect();
        let resting = AllocationAttribute {
            released_at: Some(next_second(now)),
            ..AllocationAttribute::default()
        };
        for ordinal in held {
            if cooldown.is_positive() {
                put(self, ordinal, &resting);
            } else {
                free(self, ordinal);
                stamp(self, ordinal);
            }
        }
        drop_unused_attributes(self);
    }

    fn collect(&mut self, now: Timestamp, cooldown: SignedDuration) -> usize {
        let rested: Vec<Ordinal> = (self.allocated().into_iter())
            .filter(|(_, holder)| holder.released_at.is_some_and(|at| cooldown <= now.duration_since(at)))
            .map(|(ordinal, _)| ordinal)
            .collect();
        for ordinal in &rested {
            free(self, *ordinal);
        }
        if !rested.is_empty() {
            drop_unused_attributes(self);
        }
        rested.len()
    }

    fn holder(&self, ordinal: Ordinal) -> Option<&AllocationAttribute> {
        let index = (*self.allocations.get(ordinal.0 as usize)?)?;
        // An index without its attribute is damage by others: held, by nobody we know.
        Some(self.attributes.get(index).unwrap_or(&NOBODY))
    }

    fn held_by(&self, handle: &str) -> Vec<Ordinal> {
        let held = |holder: &AllocationAttribute| holder.handle_id.as_deref().map(clean_handle) == Some(handle);
        self.allocated()
            .into_iter()
            .filter(|(_, holder)| held(holder))
            .map(|(ordinal, _)| ordinal)
            .collect()
    }

    fn allocated(&self) -> Vec<(Ordinal, &AllocationAttribute)> {
        let ordinals = (0..self.allocations.len() as u32).map(Ordinal);
        ordinals
            .filter_map(|ordinal| Some((ordinal, self.holder(ordinal)?)))
            .collect()
    }

    fn sequence_of(&self, ordinal: Ordinal) -> u64 {
        self.sequence_number_for_allocation
            .get(&ordinal.0.to_string())
            .copied()
            .unwrap_or(0)
    }

    fn bump(&mut self) {
        self.sequence_number = self.sequence_number.wrapping_add(1);
    }
}

/// Blocks have at most 2^12 addresses (pools' `blockSize` is 20 to 32 or 116 to 128); more would only be memory.
const MOST_BITS: u8 = 16;

static NOBODY: AllocationAttribute = AllocationAttribute {
    handle_id: None,
    secondary: BTreeMap::new(),
    alternate_owner_attrs: BTreeMap::new(),
    released_at: None,
};

/// A handle as it was meant: an old migration wrote some with a carriage return and rubbish after it (upstream
/// cni-plugin issue 821).
pub(crate) fn clean_handle(handle: &str) -> &str {
    handle.split('\r').next().unwrap_or(handle)
}

/// Writes the holder of an address; equal holders share one attribute.
fn put(block: &mut IpamBlockSpec, ordinal: Ordinal, holder: &AllocationAttribute) {
    let index = block
        .attributes
        .iter()
        .position(|known| known == holder)
        .unwrap_or_else(|| {
            block.attributes.push(holder.clone());
            block.attributes.len() - 1
        });
    if let Some(slot) = block.allocations.get_mut(ordinal.0 as usize) {
        *slot = Some(index);
    }
    stamp(block, ordinal);
}

fn free(block: &mut IpamBlockSpec, ordinal: Ordinal) {
    if let Some(slot) = block.allocations.get_mut(ordinal.0 as usize) {
        *slot = None;
    }
    block.unallocated.push(ordinal.0);
}

fn stamp(block: &mut IpamBlockSpec, ordinal: Ordinal) {
    block
        .sequence_number_for_allocation
        .insert(ordinal.0.to_string(), block.sequence_number);
}

/// Drops attributes that no allocation refers to and renumbers the others.
fn drop_unused_attributes(block: &mut IpamBlockSpec) {
    let used: BTreeSet<usize> = block.allocations.iter().flatten().copied().collect();
    if used.len() == block.attributes.len() {
        return;
    }
    let renumbered: BTreeMap<usize, usize> = used
        .iter()
        .copied()
        .filter(|old| *old < block.attributes.len())
        .enumerate()
        .map(|(new, old)| (old, new))
        .collect();
    let mut index = 0;
    block.attributes.retain(|_| {
        index += 1;
        renumbered.contains_key(&(index - 1))
    });
    for slot in block.allocations.iter_mut().flatten() {
        *slot = renumbered.get(slot).copied().unwrap_or(usize::MAX);
    }
}

/// Upstream stores times in whole seconds.
pub(crate) fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The next whole second: a rest is never shorter than configured.
fn next_second(now: Timestamp) -> Timestamp {
    let whole = whole_seconds(now);
    if whole < now {
        whole.saturating_add(SignedDuration::from_secs(1)).unwrap_or(now)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;
    const NO_REST: SignedDuration = SignedDuration::ZERO;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn block(cidr: &str) -> IpamBlockSpec {
        Block::create(cidr.parse().unwrap(), &Owner::Host("n1".into()), now())
    }

    fn by(handle: &str) -> AllocationAttribute {
        let secondary = [("node".to_owned(), "n1".to_owned())].into();
        AllocationAttribute {
            handle_id: Some(handle.into()),
            secondary,
            ..AllocationAttribute::default()
        }
    }

    /// Runs a script on a /29: `+h` takes one for a handle, `-n` gives an ordinal back, `=n:h` takes an ordinal. Answers
    /// the queue of free ordinals, then the holders.
    fn check(script: &str, queue: &str, holders: &str) {
        let mut block = block("10.0.0.0/29");
        for word in script.split_whitespace() {
            match word.split_at(1) {
                ("+", handle) => drop(block.take(1, &by(handle), &Reservations::default())),
                ("-", ordinal) => block.give_back(&[Ordinal(ordinal.parse().unwrap())], now(), NO_REST),
                (_, rest) => {
                    let (ordinal, handle) = rest.split_once(':').unwrap();
                    let address = block.address(Ordinal(ordinal.parse().unwrap()));
                    drop(block.take_address(address, &by(handle)));
                }
            }
            block.bump();
            consistent(&block);
        }
        let seen: Vec<String> = block.unallocated.iter().map(u32::to_string).collect();
        assert_eq!(seen.join(" "), queue, "queue after {script}");
        let seen: Vec<String> = (block.allocated().iter())
            .map(|(ordinal, holder)| format!("{}:{}", ordinal.0, holder.handle_id.as_deref().unwrap_or("-")))
            .collect();
        assert_eq!(seen.join(" "), holders, "holders after {script}");
    }

    fn consistent(block: &IpamBlockSpec) {
        let free: BTreeSet<u32> = block.unallocated.iter().copied().collect();
        assert_eq!(free.len(), block.unallocated.len(), "an ordinal is queued twice");
        for (ordinal, slot) in block.allocations.iter().enumerate() {
            assert_eq!(slot.is_none(), free.contains(&(ordinal as u32)), "ordinal {ordinal}");
        }
        let used: BTreeSet<usize> = block.allocations.iter().flatten().copied().collect();
        assert_eq!(
            used,
            (0..block.attributes.len()).collect(),
            "attributes are the used ones"
        );
    }

    #[test]
    fn addresses_leave_the_queue_at_its_head_and_return_at_its_tail() {
        check("+a +b +c", "3 4 5 6 7", "0:a 1:b 2:c");
        check("+a +b +c -1 -0", "3 4 5 6 7 1 0", "2:c");
        check("+a -0 +b +c", "3 4 5 6 7 0", "1:b 2:c");
        check("=5:a +b -5 +c", "2 3 4 6 7 5", "0:b 1:c");
        check("=5:a =5:b -7", "0 1 2 3 4 6 7", "5:a");
        check("+a +a +a +a +a +a +a +a +b", "", "0:a 1:a 2:a 3:a 4:a 5:a 6:a 7:a");
    }

    #[test]
    fn equal_holders_share_an_attribute_until_the_last_one_leaves() {
        let mut block = block("10.0.0.0/29");
        block.take(2, &by("a"), &Reservations::default());
        block.take(1, &by("b"), &Reservations::default());
        assert_eq!(block.allocations[..4], [Some(0), Some(0), Some(1), None]);
        block.give_back(&[Ordinal(0), Ordinal(1)], now(), NO_REST);
        assert_eq!(block.allocations[..4], [None, None, Some(0), None]);
        assert_eq!(block.attributes, [by("b")]);
    }

    #[test]
    fn reserved_addresses_keep_their_place_in_the_queue() {
        let mut block = block("10.0.0.0/29");
        let reserved = Reservations::new(&["10.0.0.0/31".parse().unwrap(), "10.0.0.6/32".parse().unwrap()]);
        assert_eq!(block.free(&reserved), 5);
        assert_eq!(block.take(2, &by("a"), &reserved), [Ordinal(2), Ordinal(3)]);
        assert_eq!(block.unallocated, [0, 1, 4, 5, 6, 7]);
        let halves = Reservations::new(&["10.0.0.0/30".parse().unwrap(), "10.0.0.4/30".parse().unwrap()]);
        assert!(halves.cover(&block.cidr));
        assert_eq!(block.take(1, &by("a"), &halves), []);
        assert_eq!(halves.count_in(&"10.0.0.0/24".parse().unwrap()), 8);
    }

    #[test]
    fn a_released_address_rests_before_it_is_free() {
        let rest = SignedDuration::from_secs(30);
        let later = |seconds| now() + SignedDuration::from_secs(seconds);
        let mut block = block("10.0.0.0/29");
        block.take(2, &by("a"), &Reservations::default());
        block.give_back(&[Ordinal(0)], now() + SignedDuration::from_millis(1), rest);
        assert_eq!(block.holder(Ordinal(0)).unwrap().handle_id, None);
        assert_eq!(block.held_by("a"), [Ordinal(1)]);
        assert_eq!(
            block.collect(later(30), rest),
            0,
            "released one millisecond later, rounded up"
        );
        assert!(!block.unallocated.contains(&0));
        assert_eq!(block.collect(later(31), rest), 1);
        assert_eq!(block.unallocated.last(), Some(&0));
        consistent(&block);
        block.give_back(&[Ordinal(1)], later(40), rest);
        assert!(!block.is_empty());
        assert_eq!(
            block.collect(later(41), NO_REST),
            1,
            "a cooldown that was switched off is over"
        );
        assert!(block.is_empty());
    }

    #[test]
    fn sequence_numbers_start_at_the_clock_and_mark_taking_and_giving_back() {
        let mut block = block("10.0.0.0/29");
        let start = (NOW as u64) * 1_000_000_000;
        assert_eq!(block.sequence_number, start);
        block.take(1, &by("a"), &Reservations::default());
        assert_eq!(block.sequence_of(Ordinal(0)), start);
        block.bump();
        block.give_back(&[Ordinal(0)], now(), NO_REST);
        assert_eq!(block.sequence_of(Ordinal(0)), start + 1);
        assert_eq!(block.sequence_of(Ordinal(1)), 0);
    }

    #[test]
    fn addresses_outside_have_no_ordinal_in_either_family() {
        for (cidr, inside, outside) in [
            ("10.0.0.64/26", "10.0.0.127", "10.0.0.128"),
            ("fd00::40/122", "fd00::7f", "fd00::80"),
            ("255.255.255.192/26", "255.255.255.255", "10.0.0.1"),
            (
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0/122",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "::1",
            ),
        ] {
            let block = block(cidr);
            assert_eq!(block.ordinal(inside.parse().unwrap()), Some(Ordinal(63)));
            assert_eq!(block.address(Ordinal(63)), inside.parse::<IpAddr>().unwrap());
            assert_eq!(block.ordinal(outside.parse().unwrap()), None);
        }
    }

    #[test]
    fn what_windows_reserves_does_not_make_a_block_used() {
        let mut block = block("10.0.0.0/29");
        block.take(3, &by("Windows-Reserved-IPAM-handle"), &Reservations::default());
        assert!(block.is_empty());
        block.take(1, &by("a"), &Reservations::default());
        assert!(!block.is_empty());
    }

    #[test]
    fn damage_by_others_is_held_by_nobody_and_survives() {
        let mut block = block("10.0.0.0/29");
        block.take(1, &by("a"), &Reservations::default());
        block.allocations[5] = Some(9);
        block.unallocated.retain(|ordinal| *ordinal != 5);
        assert_eq!(block.holder(Ordinal(5)), Some(&NOBODY));
        block.give_back(&[Ordinal(0)], now(), NO_REST);
        assert_eq!(block.holder(Ordinal(5)), Some(&NOBODY));
        block.give_back(&[Ordinal(5)], now(), NO_REST);
        consistent(&block);
    }

    #[test]
    fn a_handle_with_a_carriage_return_is_found_by_its_clean_name() {
        let mut block = block("10.0.0.0/29");
        block.take(1, &by("abc\r\neth0"), &Reservations::default());
        assert_eq!(block.held_by("abc"), [Ordinal(0)]);
    }
}
