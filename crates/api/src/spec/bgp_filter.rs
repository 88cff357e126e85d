//! BGPFilter: what peers are told and believed (upstream `bgpfilter.go`).
//!
//! Four ordered lists of rules. The first rule whose conditions all hold decides; if none does, things are as without a filter.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Community, ConditionsStatus};
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{AsNumber, check, choice, net};
use crate::{Kind, Metadata};

/// Most operations of a rule.
const MOST_OPERATIONS: usize = 10;
/// Most ASes that an operation puts before a path.
const MOST_PREPENDED: usize = 10;

/// Spec of a BGPFilter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpFilterSpec {
    /// Of IPv4 prefixes that a peer is told.
    #[serde(rename = "exportV4", skip_serializing_if = "Vec::is_empty")]
    pub export_v4: Vec<BgpFilterRule>,
    /// Of IPv4 prefixes that a peer tells us.
    #[serde(rename = "importV4", skip_serializing_if = "Vec::is_empty")]
    pub import_v4: Vec<BgpFilterRule>,
    /// Of IPv6 prefixes that a peer is told.
    #[serde(rename = "exportV6", skip_serializing_if = "Vec::is_empty")]
    pub export_v6: Vec<BgpFilterRule>,
    /// Of IPv6 prefixes that a peer tells us.
    #[serde(rename = "importV6", skip_serializing_if = "Vec::is_empty")]
    pub import_v6: Vec<BgpFilterRule>,
}

/// A rule: conditions, all of which must hold, and what follows. Without conditions it always holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterRule {
    /// The range that the prefix is compared with, by `matchOperator`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "net::optional")]
    pub cidr: Option<IpNet>,
    /// How it is compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_operator: Option<BgpFilterMatch>,
    /// How long the prefix is, with `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<PrefixLengths>,
    /// Where the route comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<BgpFilterSource>,
    /// The device that it leads to; `*` stands for any text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// What kind of peer it is told to, or comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<BgpFilterPeer>,
    /// A community that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<BgpFilterCommunities>,
    /// The ASes that its path begins with.
    #[serde(rename = "asPathPrefix", default, skip_serializing_if = "Vec::is_empty")]
    pub as_path_prefix: Vec<AsNumber>,
    /// Its metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// What is done to it, in this order; with `Accept` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<BgpFilterOperation>,
    /// What becomes of it.
    pub action: BgpFilterAction,
}

/// From this length to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixLengths {
    /// The least; absent: the range's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u8>,
    /// The most; absent: a single address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u8>,
}

/// Communities of which a route has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpFilterCommunities {
    /// Exactly one: `aa:nn` or `aa:nn:mm`.
    pub values: Vec<String>,
}

/// What is done to a route: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpFilterOperation {
    /// It gets a community.
    #[serde(rename = "addCommunity", skip_serializing_if = "Option::is_none")]
    pub add_community: Option<AddCommunity>,
    /// Its path gets ASes before it.
    #[serde(rename = "prependASPath", skip_serializing_if = "Option::is_none")]
    pub prepend_as_path: Option<PrependAsPath>,
    /// It gets a metric.
    #[serde(rename = "setPriority", skip_serializing_if = "Option::is_none")]
    pub set_priority: Option<SetPriority>,
}

/// A community to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddCommunity {
    /// `aa:nn` or `aa:nn:mm`.
    pub value: String,
}

/// ASes to put before a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrependAsPath {
    /// In the order in which they stand afterwards, at most ten.
    pub prefix: Vec<AsNumber>,
}

/// A metric to set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetPriority {
    /// The metric, from 1.
    pub value: u32,
}

choice! {
    /// How a prefix is compared with a range.
    pub enum BgpFilterMatch {
        /// It is the range.
        Equal = "Equal",
        /// It is another one.
        NotEqual = "NotEqual",
        /// It lies in the range.
        In = "In",
        /// It does not.
        NotIn = "NotIn",
    }
}

choice! {
    /// Where a route comes from.
    pub enum BgpFilterSource {
        /// From a peer.
        RemotePeers = "RemotePeers",
    }
}

choice! {
    /// What kind of peer.
    pub enum BgpFilterPeer {
        /// Of another AS.
        External = "eBGP",
        /// Of ours.
        Internal = "iBGP",
    }
}

choice! {
    /// What becomes of a route.
    pub enum BgpFilterAction {
        /// It is told, or believed.
        Accept = "Accept",
        /// It is not.
        Reject = "Reject",
    }
}

impl Spec for BgpFilterSpec {
    const KIND: Kind = Kind::BGPFilter;
    type Status = ConditionsStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        let lists = [
            ("exportV4", &self.export_v4, 32),
            ("importV4", &self.import_v4, 32),
            ("exportV6", &self.export_v6, 128),
            ("importV6", &self.import_v6, 128),
        ];
        for (field, rules, bits) in lists {
            problems.each(field, rules, |problems, rule| rule.check(bits, problems));
        }
    }
}

impl BgpFilterRule {
    fn check(&self, bits: u8, problems: &mut Problems) {
        match (self.cidr, self.match_operator) {
            (Some(cidr), _) if cidr.max_prefix_len() != bits => {
                problems.report("cidr", cidr, "must be of the family of its list");
            }
            (Some(_), None) => problems.missing("matchOperator", "is required with cidr: Equal, NotEqual, In or NotIn"),
            (None, Some(operator)) => problems.report("matchOperator", operator, "must be absent without cidr"),
            _ => {}
        }
        if let Some(lengths) = self.prefix_length {
            if self.cidr.is_none() {
                problems.missing("cidr", "is required with prefixLength");
            }
            for (field, length) in [("prefixLength.min", lengths.min), ("prefixLength.max", lengths.max)] {
                check::range(field, u64::from(length.unwrap_or(0)), 0, u64::from(bits), problems);
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.*-".contains(c);
        if self.interface.len() > 15 || !self.interface.chars().all(plain) {
            problems.report(
                "interface",
                &self.interface,
                "must be the name of a device, at most 15 of letters, digits, `_`, `.`, `-` and `*`",
            );
        }
        if let Some(communities) = &self.communities {
            match communities.values.as_slice() {
                [value] => community("communities.values", value, problems),
                values => problems.report("communities.values", values.join(", "), "must be exactly one"),
            }
        }
        if self.action == BgpFilterAction::Reject && !self.operations.is_empty() {
            problems.report("operations", self.operations.len(), "must be absent with action Reject");
        }
        check::at_most("operations", self.operations.len(), MOST_OPERATIONS, problems);
        problems.each("operations", &self.operations, |problems, operation| {
            operation.check(problems)
        });
    }
}

impl BgpFilterOperation {
    fn check(&self, problems: &mut Problems) {
        let said = [
            self.add_community.is_some(),
            self.prepend_as_path.is_some(),
            self.set_priority.is_some(),
        ];
        if said.into_iter().filter(|said| *said).count() != 1 {
            problems.missing("", "must be exactly one of addCommunity, prependASPath, setPriority");
        }
        if let Some(add) = &self.add_community {
            community("addCommunity.value", &add.value, problems);
        }
        if let Some(prepend) = &self.prepend_as_path {
            if prepend.prefix.is_empty() {
                problems.missing("prependASPath.prefix", "is required: one to ten ASes");
            }
            check::at_most("prependASPath.prefix", prepend.prefix.len(), MOST_PREPENDED, problems);
        }
        if let Some(set) = &self.set_priority
            && !(1..=i32::MAX as u32).contains(&set.value)
        {
            problems.report("setPriority.value", set.value, "must be from 1 to 2147483647");
        }
    }
}

fn community(field: &str, value: &str, problems: &mut Problems) {
    if let Err(right) = value.parse::<Community>() {
        problems.report(field, value, right);
    }
}
