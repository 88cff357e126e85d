//! Why packets were dropped: the counters of the table's rules, summed by cause.
//!
//! A rule's comment says why it drops, so a restarted agent goes on with what it finds.

use std::collections::BTreeSet;

use kernel::nft::{ChainName, RuleState, Statement, Verdict};

use super::passes::Pass;
use super::totals::{Cause, OTHERS, Totals};

/// Why a packet was dropped or refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropCause {
    /// A rule of this policy (kind and full name) denied it.
    Policy(String),
    /// A rule of this profile denied it.
    Profile(String),
    /// No rule of the policies of this tier matched.
    EndOfTier(String),
    /// No policy decided about packets of this endpoint, and no profile allowed them.
    NoProfile(String),
    /// The pod's policy is not known yet, or not any more.
    NoPolicy,
    /// What concerns an endpoint cannot be enforced as it is said, for this reason: it is closed.
    Closed(String),
    /// A pod sent from an address that is not its own.
    Spoofed,
    /// A pod sent what only routers send.
    RouterAdvertisement,
    /// A pod answered DHCP.
    DhcpServer,
    /// A pod sent IP-in-IP or VXLAN.
    TunnelFromPod,
    /// IP-in-IP or VXLAN from a host that is no node.
    TunnelFromStranger,
    /// Its flow was allowed once; a change of policy has ended it.
    FlowCut,
    /// Conntrack can make no sense of it.
    Invalid,
    /// From a pod to its own host (`defaultEndpointToHostAction`).
    ToHost,
    /// To an address of services that no service proxy translated.
    ServiceLoop,
    /// Beyond a limit of the pod.
    Limit,
    /// A rule without a reason: somebody else wrote it.
    Unknown,
}

impl DropCause {
    /// The cause that a rule's comment names.
    pub fn of(comment: Option<&str>) -> Self {
        let Some(comment) = comment else {
            return Self::Unknown;
        };
        if let Some(rest) = comment.strip_prefix("deny ") {
            let whose = without_rule(rest);
            return match whose.strip_prefix("Profile ") {
                Some(profile) => Self::Profile(profile.to_owned()),
                None => Self::Policy(whose.to_owned()),
            };
        }
        if let Some(tier) = comment.strip_prefix("end of tier ") {
            return Self::EndOfTier(tier.to_owned());
        }
        match comment {
            "pod without policy" => Self::NoPolicy,
            "source is not the pod's" => Self::Spoofed,
            "router advertisement from a pod" => Self::RouterAdvertisement,
            "DHCP server in a pod" | "DHCPv6 server in a pod" => Self::DhcpServer,
            "IP-in-IP from a pod" | "VXLAN from a pod" => Self::TunnelFromPod,
            "IP-in-IP from a host that is no node" | "VXLAN from a host that is no node" => Self::TunnelFromStranger,
            "flow cut by policy" => Self::FlowCut,
            "invalid" => Self::Invalid,
            "defaultEndpointToHostAction" => Self::ToHost,
            "service loop" => Self::ServiceLoop,
            other if other.starts_with("limit ") => Self::Limit,
            other => match other.strip_prefix("no profile allows: ") {
                Some(endpoint) => Self::NoProfile(endpoint.to_owned()),
                None => Self::Closed(other.to_owned()),
            },
        }
    }

    /// The cause as one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Policy(_) => "policy",
            Self::Profile(_) => "profile",
            Self::EndOfTier(_) => "end-of-tier",
            Self::NoProfile(_) => "no-profile",
            Self::NoPolicy => "no-policy",
            Self::Closed(_) => "closed",
            Self::Spoofed => "spoofed",
            Self::RouterAdvertisement => "router-advertisement",
            Self::DhcpServer => "dhcp-server",
            Self::TunnelFromPod => "tunnel-from-pod",
            Self::TunnelFromStranger => "tunnel-from-stranger",
            Self::FlowCut => "flow-cut",
            Self::Invalid => "invalid",
            Self::ToHost => "to-host",
            Self::ServiceLoop => "service-loop",
            Self::Limit => "limit",
            Self::Unknown => "unknown",
        }
    }

    /// Which policy, profile, tier or endpoint it was; why something is closed.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Policy(name)
            | Self::Profile(name)
            | Self::EndOfTier(name)
            | Self::NoProfile(name)
            | Self::Closed(name) => Some(name),
            Self::NoPolicy
            | Self::Spoofed
            | Self::RouterAdvertisement
            | Self::DhcpServer
            | Self::TunnelFromPod
            | Self::TunnelFromStranger
            | Self::FlowCut
            | Self::Invalid
            | Self::ToHost
            | Self::ServiceLoop
            | Self::Limit
            | Self::Unknown => None,
        }
    }
}

/// What was dropped so far.
pub type Drops = Totals<DropCause>;

/// The chains whose rules a transaction throws away; `None`: all.
pub fn rewritten(transaction: &kernel::nft::Transaction) -> Option<BTreeSet<ChainName>> {
    use kernel::nft::Change;
    let mut chains = BTreeSet::new();
    for change in &transaction.changes {
        match change {
            Change::DeleteTable => return None,
            Change::FlushChain(chain) | Change::DeleteChain(chain) => drop(chains.insert(chain.clone())),
            Change::AddChain(_)
            | Change::AddRule(..)
            | Change::AddSet(_)
            | Change::FlushSet(_)
            | Change::DeleteSet(_)
            | Change::AddElements(..)
            | Change::DeleteElements(..) => {}
        }
    }
    Some(chains)
}

impl Cause for DropCause {
    fn of_rule(state: &RuleState) -> Option<Self> {
        let drops = match &state.rule {
            Some(rule) => {
                let refuses = |action: &Statement| matches!(action, Statement::Reject);
                rule.verdict == Some(Verdict::Drop) || rule.actions.iter().any(refuses)
            }
            // A rule that cannot be read whole is taken by its comment.
            None => Pass::of(state.comment.as_deref()).is_none(),
        };
        drops.then(|| Self::of(state.comment.as_deref()))
    }

    /// The same cause without saying whose.
    fn anonymous(&self) -> Self {
        match self {
            Self::Policy(_) => Self::Policy(OTHERS.to_owned()),
            Self::Profile(_) => Self::Profile(OTHERS.to_owned()),
            Self::EndOfTier(_) => Self::EndOfTier(OTHERS.to_owned()),
            Self::NoProfile(_) => Self::NoProfile(OTHERS.to_owned()),
            Self::Closed(_) => Self::Closed(OTHERS.to_owned()),
            unnamed => unnamed.clone(),
        }
    }
}

/// `NetworkPolicy default/db ingress 0` without the rule. A comment that was too long may have lost it.
pub(super) fn without_rule(text: &str) -> &str {
    let Some((head, number)) = text.rsplit_once(' ') else {
        return text;
    };
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let whose = head.strip_suffix(" ingress").or_else(|| head.strip_suffix(" egress"));
    whose.filter(|_| is_number).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kernel::nft::{Count, TableName};

    use super::super::totals::REMEMBERED;
    use super::*;

    #[track_caller]
    fn check(comment: &str, word: &str, name: Option<&str>) {
        let cause = DropCause::of(Some(comment));
        assert_eq!((cause.word(), cause.name()), (word, name), "{comment}");
    }

    #[test]
    fn a_comment_says_why() {
        check(
            "deny NetworkPolicy default/db ingress 0",
            "policy",
            Some("NetworkPolicy default/db"),
        );
        check(
            "deny GlobalNetworkPolicy a.b egress 12",
            "policy",
            Some("GlobalNetworkPolicy a.b"),
        );
        check("deny Profile kns.default ingress 3", "profile", Some("kns.default"));
        check("end of tier security", "end-of-tier", Some("security"));
        check(
            "no profile allows: default/n1-k8s-cali1-eth0",
            "no-profile",
            Some("default/n1-k8s-cali1-eth0"),
        );
        check("flow cut by policy", "flow-cut", None);
        for why in [
            "unknown NetworkPolicy default/db",
            "refused: NetworkPolicy default/db",
            "default/web: tier x does not exist",
        ] {
            check(why, "closed", Some(why));
        }
        // Too long: its middle is a hash.
        check(
            "deny NetworkPolicy aaaa~00ff~bbbb ingress 4",
            "policy",
            Some("NetworkPolicy aaaa~00ff~bbbb"),
        );
        assert_eq!(DropCause::of(None), DropCause::Unknown);
    }

    /// The page is compared with what is rendered, so this holds for the rules themselves.
    #[test]
    fn every_drop_of_the_page_has_its_cause() {
        let page = include_str!("../../../../docs/packet-filter.md");
        let comments: BTreeSet<&str> = page
            .lines()
            .filter(|line| line.contains(" drop comment "))
            .filter_map(|line| line.split('"').rev().nth(1))
            .collect();
        assert!(comments.len() > 15, "{comments:?}");
        for comment in comments {
            let cause = DropCause::of(Some(comment));
            assert!(!matches!(cause, DropCause::Closed(_) | DropCause::Unknown), "{comment}");
        }
    }

    /// The counters of a kernel: chain, comment and packets, a rule each.
    fn counted(rules: &[(&str, &str, u64)]) -> BTreeMap<ChainName, Vec<RuleState>> {
        let mut chains: BTreeMap<ChainName, Vec<RuleState>> = BTreeMap::new();
        for (chain, comment, packets) in rules {
            chains.entry((*chain).into()).or_default().push(RuleState {
                handle: 0,
                rule: None,
                comment: Some((*comment).to_owned()),
                count: Some(Count {
                    packets: *packets,
                    bytes: packets * 100,
                }),
            });
        }
        chains
    }

    fn shown(drops: &Drops) -> Vec<String> {
        let totals = drops.totals();
        let line = |(cause, count): (&DropCause, &Count)| {
            format!(
                "{} {} {}/{}",
                cause.word(),
                cause.name().unwrap_or("-"),
                count.packets,
                count.bytes
            )
        };
        totals.iter().map(line).collect()
    }

    #[test]
    fn sums_go_on_when_rules_are_written_again() {
        let (invalid, deny) = ("invalid", "deny NetworkPolicy default/db ingress 0");
        let mut drops = Drops::default();
        drops.seen(&counted(&[
            ("a", invalid, 1),
            ("b", invalid, 2),
            ("p", deny, 5),
            ("p", deny, 0),
        ]));
        assert_eq!(
            shown(&drops),
            ["policy NetworkPolicy default/db 5/500", "invalid - 3/300"]
        );
        // Two more, then the chain is written again, and counts one.
        drops.retire(&counted(&[("p", deny, 7)]));
        assert_eq!(shown(&drops)[0], "policy NetworkPolicy default/db 7/700");
        drops.seen(&counted(&[("a", invalid, 1), ("b", invalid, 2), ("p", deny, 1)]));
        assert_eq!(
            shown(&drops),
            ["policy NetworkPolicy default/db 8/800", "invalid - 3/300"]
        );
        // Somebody else wrote one chain again and deleted another.
        drops.seen(&counted(&[("a", invalid, 0), ("p", deny, 1)]));
        assert_eq!(
            shown(&drops),
            ["policy NetworkPolicy default/db 8/800", "invalid - 3/300"]
        );
        drops.seen(&counted(&[("a", invalid, 4), ("p", deny, 2)]));
        assert_eq!(
            shown(&drops),
            ["policy NetworkPolicy default/db 9/900", "invalid - 7/700"]
        );
    }

    #[test]
    fn what_lets_pass_is_no_drop() {
        let mut drops = Drops::default();
        drops.seen(&counted(&[
            ("p", "allow NetworkPolicy default/db ingress 0", 4),
            ("p", "pass GlobalNetworkPolicy threats ingress 1", 4),
            ("p", "log GlobalNetworkPolicy threats ingress 0", 4),
            ("p", "deny NetworkPolicy default/db ingress 1", 1),
        ]));
        assert_eq!(shown(&drops), ["policy NetworkPolicy default/db 1/100"]);
    }

    #[test]
    fn what_is_thrown_away_while_rules_are_read_is_counted_once() {
        let deny = "deny NetworkPolicy default/db ingress 0";
        let whose = "policy NetworkPolicy default/db";
        let mut drops = Drops::default();
        // The reading may have met the old rules, or the new ones.
        for (round, count) in [(1, 5), (2, 0)] {
            drops.begin();
            drops.retire(&counted(&[("p", deny, 5)]));
            drops.seen(&counted(&[("p", deny, count)]));
            assert_eq!(shown(&drops), [format!("{whose} {0}/{0}00", 5 * round)]);
        }
        drops.seen(&counted(&[("p", deny, 1)]));
        assert_eq!(shown(&drops), [format!("{whose} 11/1100")]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut drops = Drops::default();
        for number in 0..REMEMBERED + 10 {
            let comment = format!("deny NetworkPolicy default/{number} ingress 0");
            drops.retire(&counted(&[("p", &comment, 1)]));
        }
        assert!(drops.totals().len() <= REMEMBERED + 3);
        let sum: u64 = drops.totals().values().map(|count| count.packets).sum();
        assert_eq!(sum, REMEMBERED as u64 + 10);
    }

    #[test]
    fn a_transaction_says_which_rules_it_throws_away() {
        use kernel::nft::{Change, Transaction};
        let table = TableName("t".into());
        let of = |changes: Vec<Change>| {
            rewritten(&Transaction {
                table: table.clone(),
                changes,
            })
        };
        assert_eq!(of(vec![Change::DeleteTable]), None);
        let both = of(vec![Change::FlushChain("a".into()), Change::DeleteChain("b".into())]);
        assert_eq!(both, Some(["a".into(), "b".into()].into()));
    }
}
