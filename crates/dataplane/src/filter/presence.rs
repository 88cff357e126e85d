//! Which items of a set should be there, and which are.

use std::collections::{BTreeMap, BTreeSet};

use super::items::Item;

/// The items of a set, on both sides.
#[derive(Clone, Debug, Default)]
pub(super) struct Items {
    /// Those that one side has at least.
    pub all: BTreeMap<Item, Presence>,
    /// Those that one side alone has.
    pub pending: BTreeSet<Item>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Presence {
    /// It should be there.
    pub want: bool,
    /// It is there.
    pub have: bool,
}

impl Items {
    pub fn want(&mut self, item: Item, present: bool) {
        self.change(item, |presence| presence.want = present);
    }

    pub fn have(&mut self, item: Item, present: bool) {
        self.change(item, |presence| presence.have = present);
    }

    fn change(&mut self, item: Item, change: impl FnOnce(&mut Presence)) {
        let mut presence = self.all.get(&item).copied().unwrap_or(Presence {
            want: false,
            have: false,
        });
        change(&mut presence);
        match presence.want != presence.have {
            true => self.pending.insert(item.clone()),
            false => self.pending.remove(&item),
        };
        match presence.want || presence.have {
            true => self.all.insert(item, presence),
            false => self.all.remove(&item),
        };
    }

    /// These are there and no others: one walk along both, since all of a table is read at once.
    pub fn saw(&mut self, mut seen: Vec<Item>) {
        seen.sort_unstable();
        seen.dedup();
        let mut seen = seen.into_iter().peekable();
        let mut unknown = Vec::new();
        self.all.retain(|item, presence| {
            while let Some(before) = seen.next_if(|seen| seen < item) {
                unknown.push(before);
            }
            presence.have = seen.next_if_eq(item).is_some();
            presence.want || presence.have
        });
        unknown.extend(seen);
        let unwanted = Presence {
            want: false,
            have: true,
        };
        self.all.extend(unknown.into_iter().map(|item| (item, unwanted)));
        let differ = self.all.iter().filter(|(_, presence)| presence.want != presence.have);
        self.pending = differ.map(|(item, _)| item.clone()).collect();
    }
}

#[cfg(test)]
mod tests {
    use kernel::nft::Value;

    use super::*;

    /// What was wanted and there before, by number; what is seen then.
    fn check(want: &[u8], have: &[u8], seen: &[u8]) {
        let item = |number: &u8| match number % 3 {
            0 => Item::Net(ipnet::IpNet::from(std::net::IpAddr::from([10, 0, 0, *number]))),
            1 => Item::Port([10, 0, 0, *number].into(), 6, 80),
            _ => Item::key([Value::Interface(format!("cali{number}")), Value::Port(80)]),
        };
        let of = |want: &[u8], have: &[u8]| {
            let mut items = Items::default();
            want.iter().for_each(|number| items.want(item(number), true));
            have.iter().for_each(|number| items.have(item(number), true));
            items
        };
        let mut items = of(want, have);
        items.saw(seen.iter().map(item).collect());
        let expected = of(want, seen);
        assert_eq!(items.all, expected.all, "{want:?} {have:?} {seen:?}");
        assert_eq!(items.pending, expected.pending, "{want:?} {have:?} {seen:?}");
    }

    #[test]
    fn what_was_seen_is_there_and_nothing_else() {
        check(&[], &[], &[]);
        check(&[], &[], &[7, 3, 5, 3]);
        check(&[1, 2, 3], &[1, 2, 3], &[3, 2, 1]);
        check(&[1, 2, 3], &[1, 2, 3], &[]);
        check(&[1, 2, 3], &[], &[0, 2, 9]);
        check(&[], &[4, 5, 6], &[5, 6, 7]);
        // Every way that six items can be on each side.
        for way in 0..1 << 18_u32 {
            // Ways of which neighbours differ in all three, without trying each.
            if way % 37 != 0 {
                continue;
            }
            let some = |at: u32| (0..6_u8).filter(move |bit| way >> (6 * at + u32::from(*bit)) & 1 == 1);
            let [want, have, seen] = [0, 1, 2].map(|at| some(at).collect::<Vec<u8>>());
            check(&want, &have, &seen);
        }
    }
}
