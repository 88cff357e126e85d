//! What a rule's NFLOG prefix says, as `dataplane::filter` writes it: `DPI0|default|np/default/db`.
//!
//! Verdict (A, D or P), whose rule (P policy, R profile), direction (I or E), index (-1: the end of a tier, or of all profiles),
//! then the tier, and who.

use policy::evaluate::Way;
use serde::{Deserialize, Serialize};

/// What a rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// It let the packet pass.
    Allow,
    /// It dropped it.
    Deny,
    /// It left it to the next tier.
    Pass,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub verdict: FlowVerdict,
    /// To the endpoint or from it.
    pub way: Way,
    /// The tier that decided, unless it was a profile or none.
    pub tier: Option<String>,
    /// Which rule, for people: `np/default/db rule 0`, `end of tier default`, `no profile`.
    pub policy: String,
}

/// Reads a prefix; `None`: not one of ours.
pub fn read(prefix: &str) -> Option<Decision> {
    let (head, whose) = prefix.split_once('|')?;
    let mut letters = head.chars();
    let verdict = match letters.next()? {
        'A' => FlowVerdict::Allow,
        'D' => FlowVerdict::Deny,
        'P' => FlowVerdict::Pass,
        _ => return None,
    };
    let owner = letters.next()?;
    let way = match letters.next()? {
        'I' => Way::Ingress,
        'E' => Way::Egress,
        _ => return None,
    };
    let index: i64 = letters.as_str().parse().ok()?;
    let (tier, policy) = match (owner, index) {
        ('P', -1) => (Some(whose), format!("end of tier {whose}")),
        ('P', index) => {
            let (tier, policy) = whose.split_once('|')?;
            (Some(tier), format!("{policy} rule {index}"))
        }
        ('R', -1) => (None, "no profile".to_owned()),
        ('R', index) => (None, format!("profile {whose} rule {index}")),
        _ => return None,
    };
    Some(Decision {
        verdict,
        way,
        tier: tier.map(str::to_owned),
        policy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_verdict_direction_and_rule() {
        for (prefix, expected) in [
            (
                "DPI0|default|np/default/db",
                "Deny Ingress default: np/default/db rule 0",
            ),
            ("APE12|security|gnp/a.b", "Allow Egress security: gnp/a.b rule 12"),
            ("PPI1|t|gnp/x", "Pass Ingress t: gnp/x rule 1"),
            ("DPI-1|security", "Deny Ingress security: end of tier security"),
            ("ARE0|kns.default", "Allow Egress : profile kns.default rule 0"),
            ("DRI-1|", "Deny Ingress : no profile"),
            ("DPI0|np/default/db", "-"),
            ("something else", "-"),
            ("XPI0|a", "-"),
            ("DPI|a", "-"),
            ("", "-"),
        ] {
            let shown = |it: Decision| {
                let tier = it.tier.unwrap_or_default();
                format!("{:?} {:?} {tier}: {}", it.verdict, it.way, it.policy)
            };
            let got = read(prefix).map(shown);
            assert_eq!(got.as_deref().unwrap_or("-"), expected, "{prefix}");
        }
    }
}
