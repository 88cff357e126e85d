//! What an operator wants told and believed beside the protocol's own rules (upstream BGPFilter).
//!
//! Rules are in order; the first whose conditions all hold decides. If none does, things are as without a filter.

use std::sync::Arc;

use ipnet::IpNet;

use crate::attributes::{Attributes, Community, METRIC_MIRROR, Segment};
use crate::config::Family;

/// A list of rules.
pub type Filter = Arc<[FilterRule]>;

/// Conditions, all of which must hold, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRule {
    /// Prefixes of this family.
    pub family: Family,
    /// Prefixes that compare so.
    pub prefix: Option<PrefixMatch>,
    /// Routes that a peer told; otherwise also what this speaker originates.
    pub remote: bool,
    /// Towards or from peers of another AS (true), or of ours (false).
    pub external: Option<bool>,
    /// Routes with this community.
    pub community: Option<FilterCommunity>,
    /// Routes whose AS_PATH begins so.
    pub as_path_prefix: Vec<u32>,
    /// Routes of this metric.
    pub metric: Option<u32>,
    /// What becomes of a route; `None`: it is rejected.
    pub accept: Option<Vec<FilterOperation>>,
}

/// How a prefix compares with a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixMatch {
    /// It is the range (or, with `false`, is not).
    Is(IpNet, bool),
    /// It lies in the range, and is so long (or, with `false`, does not).
    In(IpNet, std::ops::RangeInclusive<u8>, bool),
}

/// A community of either size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterCommunity {
    /// RFC 1997.
    Standard(Community),
    /// RFC 8092.
    Large([u32; 3]),
}

/// What is done to a route that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterOperation {
    /// It gets a community.
    AddCommunity(FilterCommunity),
    /// Its AS_PATH gets these before it; they stand in this order afterwards.
    Prepend(Vec<u32>),
    /// It gets a metric, carried by LOCAL_PREF.
    SetMetric(u32),
}

/// A route that a filter looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub prefix: &'a IpNet,
    pub attributes: &'a Attributes,
    /// A peer told it.
    pub remote: bool,
    /// The session's peer is in another AS.
    pub external: bool,
}

/// The first rule that a route meets, with its place.
pub(crate) fn first<'a>(filter: &'a [FilterRule], subject: &Subject<'_>) -> Option<(usize, &'a FilterRule)> {
    filter.iter().enumerate().find(|(_, rule)| rule.holds(subject))
}

impl FilterRule {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        let attributes = subject.attributes;
        self.family == Family::of(subject.prefix)
            && self.prefix.as_ref().is_none_or(|wanted| wanted.holds(subject.prefix))
            && (subject.remote || !self.remote)
            && self.external.is_none_or(|external| external == subject.external)
            && self.community.is_none_or(|community| community.is_on(attributes))
            && begins_with(attributes, &self.as_path_prefix)
            && self.metric.is_none_or(|metric| metric == attributes.metric())
    }

    /// Does to a route what is to be done to it.
    pub(crate) fn change(&self, attributes: &mut Attributes) {
        for operation in self.accept.iter().flatten() {
            match operation {
                FilterOperation::AddCommunity(community) if community.is_on(attributes) => {}
                FilterOperation::AddCommunity(FilterCommunity::Standard(community)) => {
                    attributes.communities.push(*community);
                }
                FilterOperation::AddCommunity(FilterCommunity::Large(community)) => {
                    attributes.large_communities.push(*community);
                }
                FilterOperation::Prepend(ases) => ases.iter().rev().for_each(|asn| attributes.as_path.prepend(*asn)),
                FilterOperation::SetMetric(metric) => {
                    attributes.local_pref = Some(METRIC_MIRROR.saturating_sub(*metric));
                }
            }
        }
    }
}

impl PrefixMatch {
    fn holds(&self, prefix: &IpNet) -> bool {
        match self {
            PrefixMatch::Is(range, wanted) => (range == prefix) == *wanted,
            PrefixMatch::In(range, lengths, wanted) => {
                (range.contains(prefix) && lengths.contains(&prefix.prefix_len())) == *wanted
            }
        }
    }
}

impl FilterCommunity {
    fn is_on(self, attributes: &Attributes) -> bool {
        match self {
            FilterCommunity::Standard(community) => attributes.communities.contains(&community),
            FilterCommunity::Large(community) => attributes.large_communities.contains(&community),
        }
    }
}

fn begins_with(attributes: &Attributes, wanted: &[u32]) -> bool {
    let ordered = attributes.as_path.0.iter().map_while(|segment| match segment {
        Segment::Sequence(ases) => Some(ases),
        Segment::Set(_) => None,
    });
    let begins: Vec<u32> = ordered.flatten().copied().take(wanted.len()).collect();
    begins == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::{AsPath, Origin};

    const ANY: FilterRule = FilterRule {
        family: Family::Ipv4,
        prefix: None,
        remote: false,
        external: None,
        community: None,
        as_path_prefix: Vec::new(),
        metric: None,
        accept: None,
    };

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn path() -> Attributes {
        Attributes {
            as_path: AsPath(vec![Segment::Sequence(vec![65001, 65002]), Segment::Set(vec![65003])]),
            communities: vec![Community(65000 << 16 | 1)],
            large_communities: vec![[1, 2, 3]],
            local_pref: Some(METRIC_MIRROR - 512),
            ..Attributes::new(Origin::Igp, [10, 0, 0, 1].into())
        }
    }

    #[test]
    fn a_rule_holds_if_all_its_conditions_do() {
        let check = |rule: FilterRule, prefix: &str, expected: bool| {
            let (prefix, attributes) = (net(prefix), path());
            let subject = Subject {
                prefix: &prefix,
                attributes: &attributes,
                remote: false,
                external: true,
            };
            assert_eq!(rule.holds(&subject), expected, "{rule:?} {prefix}");
        };
        let prefix = |prefix: PrefixMatch| FilterRule {
            prefix: Some(prefix),
            ..ANY
        };
        check(ANY, "10.0.0.0/8", true);
        check(ANY, "fd00::/8", false);
        let range = net("10.0.0.0/16");
        check(prefix(PrefixMatch::Is(range, true)), "10.0.0.0/16", true);
        check(prefix(PrefixMatch::Is(range, true)), "10.0.0.0/24", false);
        check(prefix(PrefixMatch::Is(range, false)), "10.0.0.0/24", true);
        check(prefix(PrefixMatch::In(range, 16..=32, true)), "10.0.7.0/26", true);
        check(prefix(PrefixMatch::In(range, 24..=25, true)), "10.0.7.0/26", false);
        check(prefix(PrefixMatch::In(range, 16..=32, true)), "10.1.0.0/26", false);
        check(prefix(PrefixMatch::In(range, 16..=32, false)), "10.1.0.0/26", true);
        check(FilterRule { remote: true, ..ANY }, "10.0.0.0/8", false);
        check(
            FilterRule {
                external: Some(true),
                ..ANY
            },
            "10.0.0.0/8",
            true,
        );
        check(
            FilterRule {
                external: Some(false),
                ..ANY
            },
            "10.0.0.0/8",
            false,
        );
        let community = |community| FilterRule {
            community: Some(community),
            ..ANY
        };
        check(
            community(FilterCommunity::Standard(Community(65000 << 16 | 1))),
            "10.0.0.0/8",
            true,
        );
        check(
            community(FilterCommunity::Standard(Community(65000 << 16 | 2))),
            "10.0.0.0/8",
            false,
        );
        check(community(FilterCommunity::Large([1, 2, 3])), "10.0.0.0/8", true);
        check(community(FilterCommunity::Large([1, 2, 4])), "10.0.0.0/8", false);
        let ases = |ases: &[u32]| FilterRule {
            as_path_prefix: ases.to_vec(),
            ..ANY
        };
        check(ases(&[65001]), "10.0.0.0/8", true);
        check(ases(&[65001, 65002]), "10.0.0.0/8", true);
        check(ases(&[65002]), "10.0.0.0/8", false);
        // A set has no order.
        check(ases(&[65001, 65002, 65003]), "10.0.0.0/8", false);
        check(
            FilterRule {
                metric: Some(512),
                ..ANY
            },
            "10.0.0.0/8",
            true,
        );
        check(
            FilterRule {
                metric: Some(1024),
                ..ANY
            },
            "10.0.0.0/8",
            false,
        );
    }

    #[test]
    fn operations_follow_each_other() {
        let mut attributes = path();
        let add = |community| FilterOperation::AddCommunity(community);
        let rule = FilterRule {
            accept: Some(vec![
                add(FilterCommunity::Large([1, 2, 3])),
                add(FilterCommunity::Standard(Community(7))),
                FilterOperation::Prepend(vec![1, 2]),
                FilterOperation::SetMetric(100),
            ]),
            ..ANY
        };
        rule.change(&mut attributes);
        assert_eq!(attributes.large_communities, [[1, 2, 3]], "once is enough");
        assert_eq!(attributes.communities.last(), Some(&Community(7)));
        assert_eq!(attributes.as_path.0[0], Segment::Sequence(vec![1, 2, 65001, 65002]));
        assert_eq!(attributes.metric(), 100);
    }
}
