//! The chain of one endpoint and direction: its tiers in order, each with its policies, then its profiles.
//!
//! A policy's chain that decides ends the whole base chain (accept, drop). One that passes sets a bit and comes back: what is
//! left of its tier is then skipped. Tiers whose policies never pass do not look at the mark.

use kernel::nft::{End, Match, Rule, Statement, Verdict};
use policy::{Direction, PolicyId, TierEnd};

use super::names::{self, Prefix};
use super::rule::{COMMENT, Stage, Way, denied, flow_log, full_name};
use super::settings::{Failsafe, Settings};

/// What an endpoint's chain has to know about a policy.
pub(crate) trait Policies {
    /// Whether a rule of the policy passes packets on; `None`: there is no such policy.
    fn passes(&self, id: &PolicyId, way: Way) -> Option<bool>;
    /// Whether there is such a profile.
    fn has_profile(&self, name: &str) -> bool;
}

/// What is between a packet and the endpoint, at one stage.
pub(crate) struct EndpointChain<'a> {
    pub settings: &'a Settings,
    pub policies: &'a dyn Policies,
    pub stage: Stage,
    pub way: Way,
    /// Whose it is, for people.
    pub name: &'a str,
    /// Everything is denied, for this reason.
    pub closed: Option<&'a str>,
}

impl EndpointChain<'_> {
    /// Policies, then profiles; what nobody has allowed is dropped.
    pub fn normal(&self, direction: &Direction, profiles: &[String]) -> Vec<Rule> {
        if let Some(rules) = self.all_denied() {
            return rules;
        }
        let mut rules = self.tiers(direction);
        for profile in profiles {
            // One that does not exist allows nothing: the next one is asked.
            if self.policies.has_profile(profile) {
                let prefix = match self.way {
                    Way::Ingress => Prefix::ProfileIn,
                    Way::Egress => Prefix::ProfileOut,
                };
                rules.push(jump(Vec::new(), names::chain(prefix, profile)));
            }
        }
        let letter = self.way.letter();
        rules.push(self.logged_drop(
            Vec::new(),
            &format!("no profile allows: {}", self.name),
            &format!("DR{letter}-1|"),
        ));
        rules
    }

    /// Policies alone; what they leave goes on.
    pub fn policies_alone(&self, direction: &Direction) -> Vec<Rule> {
        self.all_denied().unwrap_or_else(|| self.tiers(direction))
    }

    fn all_denied(&self) -> Option<Vec<Rule>> {
        let reason = self.closed?;
        Some(vec![self.drop(Vec::new(), &format!("{}: {reason}", self.name))])
    }

    fn tiers(&self, direction: &Direction) -> Vec<Rule> {
        let bit = self.settings.passed_bit();
        let not_passed = |may_have_passed: bool| {
            let unmarked = Match::Mark {
                mask: bit,
                value: 0,
                negate: false,
            };
            may_have_passed.then_some(unmarked).into_iter().collect::<Vec<_>>()
        };
        let mut rules = Vec::new();
        for tier in direction.tiers.iter().filter(|tier| !tier.policies.is_empty()) {
            let passes = |id: &PolicyId| self.policies.passes(id, self.way).unwrap_or_default();
            if tier.policies.iter().any(passes) {
                rules.push(Rule {
                    actions: vec![Statement::SetMark { mask: bit, value: 0 }],
                    comment: Some(names::shortened(&format!("tier {}", tier.name), COMMENT)),
                    ..Rule::default()
                });
            }
            let mut may_have_passed = false;
            for id in &tier.policies {
                let matches = not_passed(may_have_passed);
                match self.policies.passes(id, self.way) {
                    Some(passes) => {
                        rules.push(jump(matches, policy_chain(self.stage, self.way, id)));
                        may_have_passed |= passes;
                    }
                    None => {
                        let name = full_name(id);
                        rules.push(self.drop(matches, &format!("unknown {} {name}", id.kind.name())));
                    }
                }
            }
            match (tier.end, self.stage) {
                (TierEnd::Deny, Stage::Normal) => {
                    let comment = format!("end of tier {}", tier.name);
                    let record = format!("DP{}-1|{}", self.way.letter(), tier.name);
                    rules.push(self.logged_drop(not_passed(may_have_passed), &comment, &record));
                }
                // Early policies have no default: what they leave is judged later.
                (TierEnd::Pass, _) | (TierEnd::Deny, Stage::PreDnat | Stage::Untracked) => {}
            }
        }
        rules
    }

    fn drop(&self, matches: Vec<Match>, comment: &str) -> Rule {
        drop(self.settings, self.stage, matches, comment)
    }

    fn logged_drop(&self, matches: Vec<Match>, comment: &str, record: &str) -> Rule {
        let mut rule = self.drop(matches, comment);
        if self.settings.flow_logs {
            rule.actions.insert(1, flow_log(self.way, record));
        }
        rule
    }
}

/// Which chain has a policy's rules of one direction.
pub(crate) fn policy_chain(stage: Stage, way: Way, id: &PolicyId) -> kernel::nft::ChainName {
    let prefix = match way {
        Way::Ingress => Prefix::PolicyIn,
        Way::Egress => Prefix::PolicyOut,
    };
    let hook = match stage {
        Stage::Normal => "",
        Stage::PreDnat => "predn/",
        Stage::Untracked => "untracked/",
    };
    names::policy_chain(prefix, hook, id)
}

/// Ports of host endpoints that stay open. Replies of untracked flows are packets like any other: with `replies`, the other
/// direction's ports are open for them.
pub(crate) fn failsafes(settings: &Settings, way: Way, replies: bool) -> Vec<Rule> {
    let (ours, others) = match way {
        Way::Ingress => (&settings.failsafe_inbound, &settings.failsafe_outbound),
        Way::Egress => (&settings.failsafe_outbound, &settings.failsafe_inbound),
    };
    let peer = match way {
        Way::Ingress => End::Source,
        Way::Egress => End::Destination,
    };
    let open = |port_of: End, failsafe: &Failsafe| {
        let mut matches = vec![
            Match::Protocol {
                negate: false,
                number: failsafe.protocol,
            },
            Match::Port {
                end: port_of,
                negate: false,
                ranges: vec![(failsafe.port, failsafe.port)],
            },
        ];
        matches.extend(failsafe.net.map(|net| Match::Net {
            end: peer,
            negate: false,
            net: net.trunc(),
        }));
        accept(matches, Some("failsafe"))
    };
    let requests = ours.iter().map(|failsafe| open(End::Destination, failsafe));
    let replies = others
        .iter()
        .filter(|_| replies)
        .map(|failsafe| open(End::Source, failsafe));
    requests.chain(replies).collect()
}

/// A counted drop, or refusal, that says why.
pub(crate) fn drop(settings: &Settings, stage: Stage, matches: Vec<Match>, comment: &str) -> Rule {
    let mut actions = vec![Statement::Counter];
    let verdict = denied(settings, stage, &mut actions, Some(Verdict::Drop));
    Rule {
        matches,
        actions,
        verdict,
        comment: Some(names::shortened(comment, COMMENT)),
    }
}

/// An accepting rule.
pub(crate) fn accept(matches: Vec<Match>, comment: Option<&str>) -> Rule {
    Rule {
        matches,
        verdict: Some(Verdict::Accept),
        comment: comment.map(str::to_owned),
        ..Rule::default()
    }
}

/// A rule that asks another chain.
pub(crate) fn jump(matches: Vec<Match>, chain: kernel::nft::ChainName) -> Rule {
    Rule {
        matches,
        verdict: Some(Verdict::Jump(chain)),
        ..Rule::default()
    }
}

/// Flow records have to tell host endpoints' verdicts about forwarded packets from pods': the packet is marked while the former
/// are asked.
pub(crate) fn mark_forwarded(settings: &Settings, on: bool) -> Option<Rule> {
    let bit = settings.forwarded_bit();
    let is_told = settings.flow_logs && bit != 0;
    is_told.then(|| Rule {
        actions: vec![Statement::SetMark {
            mask: bit,
            value: if on { bit } else { 0 },
        }],
        ..Rule::default()
    })
}

/// A rule that leaves the rest to another chain.
pub(crate) fn goto(matches: Vec<Match>, chain: &str) -> Rule {
    Rule {
        matches,
        verdict: Some(Verdict::Goto(chain.into())),
        ..Rule::default()
    }
}
