//! Members of a set: who is in it several times stays until the last goes, and what lies in another member is hidden.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use crate::state::Member;

/// What is known of a set besides its visible members, which the state has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Holders {
    /// Members held more than once: how often besides the first time.
    more: HashMap<Member, u32>,
    /// Members that lie in visible ones.
    hidden: BTreeSet<Member>,
    /// Lengths of visible prefixes that are no single addresses, and how many there are.
    wide: BTreeMap<(bool, u8), u32>,
}

/// Visible members, and what changed since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Visible {
    pub members: BTreeSet<Member>,
    pub came: BTreeSet<Member>,
    pub went: BTreeSet<Member>,
    /// The set is new: what changes in it is not told apart from what is in it.
    pub is_new: bool,
}

impl Holders {
    /// Takes all members of a set that has none yet; each is there as often as it is held.
    pub fn fill(&mut self, visible: &mut Visible, mut members: Vec<Member>) {
        // In this order, what contains others comes right before them.
        members.sort_unstable();
        let mut outer: Option<IpNet> = None;
        let mut shown = Vec::new();
        for same in members.chunk_by(PartialEq::eq) {
            let member = &same[0];
            if same.len() > 1 {
                self.more.insert(member.clone(), same.len() as u32 - 1);
            }
            if let (Some(outer), Member::Net(net)) = (outer, member)
                && outer.contains(net)
            {
                self.hidden.insert(member.clone());
                continue;
            }
            if let (Some(wide), Member::Net(net)) = (wide(member), member) {
                *self.wide.entry(wide).or_default() += 1;
                outer = Some(*net);
            }
            shown.push(member.clone());
        }
        visible.members = shown.into_iter().collect();
    }

    /// One more holds `member`.
    pub fn add(&mut self, visible: &mut Visible, member: &Member) {
        if visible.members.contains(member) || self.hidden.contains(member) {
            *self.more.entry(member.clone()).or_default() += 1;
        } else if self.is_covered(visible, member) {
            self.hidden.insert(member.clone());
        } else {
            self.show(visible, member.clone());
            let inner = inner(&visible.members, member);
            for covered in inner {
                self.hide(visible, &covered);
                self.hidden.insert(covered);
            }
        }
    }

    /// One less holds `member`.
    pub fn remove(&mut self, visible: &mut Visible, member: &Member) {
        if let Some(more) = self.more.get_mut(member) {
            *more -= 1;
            if *more == 0 {
                self.more.remove(member);
            }
        } else if !self.hidden.remove(member) {
            self.hide(visible, member);
            // In this order, what contains others comes before them.
            for uncovered in inner(&self.hidden, member) {
                if !self.is_covered(visible, &uncovered) {
                    self.hidden.remove(&uncovered);
                    self.show(visible, uncovered);
                }
            }
        }
    }

    fn show(&mut self, visible: &mut Visible, member: Member) {
        if let Some(wide) = wide(&member) {
            *self.wide.entry(wide).or_default() += 1;
        }
        if !visible.is_new && !visible.went.remove(&member) {
            visible.came.insert(member.clone());
        }
        visible.members.insert(member);
    }

    fn hide(&mut self, visible: &mut Visible, member: &Member) {
        if let Some(wide) = wide(member)
            && let Some(count) = self.wide.get_mut(&wide)
        {
            *count -= 1;
            if *count == 0 {
                self.wide.remove(&wide);
            }
        }
        visible.members.remove(member);
        if !visible.is_new && !visible.came.remove(member) {
            visible.went.insert(member.clone());
        }
    }

    /// Whether a visible member contains this one.
    fn is_covered(&self, visible: &Visible, member: &Member) -> bool {
        let Member::Net(net) = member else { return false };
        let family = net.addr().is_ipv6();
        let lengths = self.wide.range((family, 0)..(family, net.prefix_len()));
        lengths.into_iter().any(|((_, length), _)| {
            let wider = IpNet::new(net.addr(), *length).map(|wider| Member::Net(wider.trunc()));
            wider.is_ok_and(|wider| visible.members.contains(&wider))
        })
    }
}

/// Family and length of a prefix that can contain others.
fn wide(member: &Member) -> Option<(bool, u8)> {
    match member {
        Member::Net(net) if net.prefix_len() < net.max_prefix_len() => Some((net.addr().is_ipv6(), net.prefix_len())),
        Member::Net(_) | Member::Port(..) => None,
    }
}

/// Members that lie in `outer`, without itself.
fn inner(members: &BTreeSet<Member>, outer: &Member) -> Vec<Member> {
    let Member::Net(net) = outer else { return Vec::new() };
    if wide(outer).is_none() || members.is_empty() {
        return Vec::new();
    }
    // Prefixes are sorted by address, then by length.
    let last = Member::Net(net.broadcast().into());
    let within = members.range(outer.clone()..=last);
    within
        .filter(|member| *member != outer && matches!(member, Member::Net(inner) if net.contains(inner)))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_members_hide_and_come_back() {
        let mut set = (Holders::default(), Visible::default());
        check(&mut set, "+10.0.0.1/32 +10.0.0.0/8", "10.0.0.0/8");
        check(
            &mut set,
            "+10.0.0.0/16 +10.0.0.0/24 +11.0.0.0/8",
            "10.0.0.0/8 11.0.0.0/8",
        );
        check(&mut set, "-10.0.0.0/8", "10.0.0.0/16 11.0.0.0/8");
        check(&mut set, "-10.0.0.0/24 -10.0.0.0/16", "10.0.0.1/32 11.0.0.0/8");
        check(&mut set, "+0.0.0.0/0 +::/0 +fd00::1/128", "0.0.0.0/0 ::/0");
        check(&mut set, "-0.0.0.0/0 -::/0", "10.0.0.1/32 11.0.0.0/8 fd00::1/128");
        assert_eq!(set.1.came, set.1.members, "all since the beginning");
        assert!(set.1.went.is_empty());
    }

    #[test]
    fn all_at_once_is_as_one_by_one() {
        let members =
            "10.0.0.1/32 10.0.0.0/8 10.0.0.1/32 10.0.0.0/16 11.0.0.1/32 12.0.0.0/8 12.1.0.0/16 ::/0 fd00::1/128";
        let mut single = (Holders::default(), Visible::default());
        let steps: Vec<String> = members.split(' ').map(|member| format!("+{member}")).collect();
        let wanted = "10.0.0.0/8 11.0.0.1/32 12.0.0.0/8 ::/0";
        check(&mut single, &steps.join(" "), wanted);
        let mut filled = (Holders::default(), Visible::default());
        let net = |text: &str| Member::Net(text.parse().unwrap());
        filled.0.fill(&mut filled.1, members.split(' ').map(net).collect());
        assert_eq!(filled.0, single.0);
        assert_eq!(filled.1.members, single.1.members);
    }

    #[test]
    fn who_is_in_twice_leaves_with_the_last() {
        let mut set = (Holders::default(), Visible::default());
        check(&mut set, "+10.0.0.1/32 +10.0.0.1/32", "10.0.0.1/32");
        check(
            &mut set,
            "+10.0.0.0/8 +10.0.0.1/32 -10.0.0.1/32 -10.0.0.1/32",
            "10.0.0.0/8",
        );
        check(&mut set, "-10.0.0.0/8", "10.0.0.1/32");
        check(&mut set, "-10.0.0.1/32", "");
    }

    fn check((holders, visible): &mut (Holders, Visible), steps: &str, wanted: &str) {
        for step in steps.split(' ') {
            let member = Member::Net(step[1..].parse().unwrap());
            match &step[..1] {
                "+" => holders.add(visible, &member),
                _ => holders.remove(visible, &member),
            }
        }
        let net = |member: &Member| match member {
            Member::Net(net) => net.to_string(),
            Member::Port(..) => unreachable!("only nets are added"),
        };
        let shown: Vec<_> = visible.members.iter().map(net).collect();
        assert_eq!(shown.join(" "), wanted, "{steps}");
    }
}
