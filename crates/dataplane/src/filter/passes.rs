//! Which policies and profiles let packets pass: the counters of their rules that do, summed by action and by whose rules they are.
//!
//! An established flow meets no rule any more, so what is counted are flows.

use kernel::nft::RuleState;

use super::drops::without_rule;
use super::totals::{Cause, OTHERS, Totals};

/// What some rules of one policy or profile do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// `allow`, `pass` or `log`.
    pub action: &'static str,
    /// Kind and full name: `NetworkPolicy default/db`, `Profile kns.default`.
    pub name: String,
}

/// What was let pass so far.
pub type Passes = Totals<Pass>;

impl Pass {
    /// What a rule's comment says.
    pub fn of(comment: Option<&str>) -> Option<Self> {
        let (word, rest) = comment?.split_once(' ')?;
        let action = ["allow", "pass", "log"].into_iter().find(|action| *action == word)?;
        Some(Self {
            action,
            name: without_rule(rest).to_owned(),
        })
    }
}

impl Cause for Pass {
    fn of_rule(state: &RuleState) -> Option<Self> {
        Self::of(state.comment.as_deref())
    }

    fn anonymous(&self) -> Self {
        Self {
            action: self.action,
            name: OTHERS.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(comment: &str, expected: Option<(&str, &str)>) {
        let pass = Pass::of(Some(comment));
        assert_eq!(pass.as_ref().map(|pass| (pass.action, pass.name.as_str())), expected);
    }

    #[test]
    fn a_comment_says_what_passes() {
        check(
            "allow NetworkPolicy default/db ingress 0",
            Some(("allow", "NetworkPolicy default/db")),
        );
        check(
            "pass GlobalNetworkPolicy a.b egress 12",
            Some(("pass", "GlobalNetworkPolicy a.b")),
        );
        check(
            "log Profile kns.default ingress 3",
            Some(("log", "Profile kns.default")),
        );
        // What every packet of the host's own flows meets is no policy's.
        check("allowed by an early policy", None);
        check("deny NetworkPolicy default/db ingress 0", None);
        check("end of tier default", None);
        assert_eq!(Pass::of(None), None);
    }
}
