//! The rules of a chain as they were said: where the kernel has two for one, one again.

use kernel::nft::{Match, Rule, RuleState};

use super::compile::{TCP, is_tcp};
use super::expr::{Expr, REJECT_ICMPX, REJECT_RESET};
use super::parse::{self, PortSets};

/// One rule of the kernel, read back.
pub(super) struct Parsed {
    pub handle: u64,
    pub comment: Option<String>,
    /// `None`: not of ours.
    pub exprs: Option<Vec<Expr>>,
}

/// The rules of a chain; two become one again where one had become two.
pub(super) fn rules(rules: Vec<Parsed>, ports: &PortSets<'_>) -> Vec<RuleState> {
    let mut states: Vec<(RuleState, Option<u32>)> = Vec::with_capacity(rules.len());
    for Parsed { handle, comment, exprs } in rules {
        let count = exprs.iter().flatten().find_map(|expr| match expr {
            Expr::Counter(count) => Some(*count),
            _ => None,
        });
        let parsed = exprs.and_then(|exprs| parse::rule(&exprs, ports));
        let (rule, refuses) = parsed.map_or((None, None), |(rule, refuses)| (Some(rule), refuses));
        let state = RuleState {
            handle,
            rule: rule.map(|rule| Rule {
                comment: comment.clone(),
                ..rule
            }),
            comment,
            count,
        };
        match states.last_mut() {
            Some((before, Some(REJECT_RESET))) if refuses == Some(REJECT_ICMPX) && is_pair(before, &state) => {
                before.rule = state.rule;
                if let (Some(sum), Some(more)) = (&mut before.count, state.count) {
                    sum.packets += more.packets;
                    sum.bytes += more.bytes;
                }
                if let Some((_, refuses)) = states.last_mut() {
                    *refuses = None;
                }
            }
            _ => states.push((state, refuses)),
        }
    }
    states
        .into_iter()
        .map(|(mut state, refuses)| {
            // Alone, each must be what one rule had become.
            let tcp = state.rule.as_ref().and_then(|rule| is_tcp(&rule.matches));
            let whole = match refuses {
                None => true,
                Some(REJECT_RESET) => tcp == Some(true),
                Some(_) => tcp == Some(false),
            };
            state.rule.take_if(|_| !whole);
            state
        })
        .collect()
}

/// Is the first the part for TCP of what the second is the rest of?
fn is_pair(first: &RuleState, second: &RuleState) -> bool {
    let (Some(first), Some(second)) = (&first.rule, &second.rule) else {
        return false;
    };
    let only_tcp = Match::Protocol {
        negate: false,
        number: TCP,
    };
    is_tcp(&second.matches).is_none()
        && first.matches.split_last() == Some((&only_tcp, &second.matches[..]))
        && (&first.actions, &first.verdict, &first.comment) == (&second.actions, &second.verdict, &second.comment)
}
