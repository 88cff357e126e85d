//! The rules of a chain as they were said: where the kernel has two for one, one again.

use kernel::nft::{Match, Rule, RuleState};

use super::compile::{TCP, is_tcp};
use super::expr::{Expr, REJECT_ICMPX, REJECT_RESET};
use super::parse::{self, PortSets};

/// One rule of the kernel, read back.
pub(super) struct Parsed<'a> {
    pub handle: u64,
    pub comment: Option<String>,
    /// `None`: not of ours.
    pub exprs: Option<Vec<Expr<'a>>>,
}

/// The rules of a chain as they are read.
#[derive(Default)]
pub(super) struct Reader {
    rules: Vec<RuleState>,
    /// How each refuses, if it does.
    refusals: Vec<Option<u32>>,
}

impl Reader {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next one; two become one again where one had become two.
    pub fn add(&mut self, Parsed { handle, comment, exprs }: Parsed<'_>, ports: &PortSets<'_>) {
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
        match (self.rules.last_mut(), self.refusals.last_mut()) {
            (Some(before), Some(refusal @ Some(REJECT_RESET)))
                if refuses == Some(REJECT_ICMPX) && is_pair(before, &state) =>
            {
                before.rule = state.rule;
                if let (Some(sum), Some(more)) = (&mut before.count, state.count) {
                    sum.packets += more.packets;
                    sum.bytes += more.bytes;
                }
                *refusal = None;
            }
            _ => {
                self.rules.push(state);
                self.refusals.push(refuses);
            }
        }
    }

    /// All of them, as they were said.
    pub fn rules(mut self) -> Vec<RuleState> {
        for (state, refuses) in self.rules.iter_mut().zip(self.refusals) {
            // Alone, each must be what one rule had become.
            let tcp = || state.rule.as_ref().and_then(|rule| is_tcp(&rule.matches));
            let whole = match refuses {
                None => true,
                Some(REJECT_RESET) => tcp() == Some(true),
                Some(_) => tcp() == Some(false),
            };
            state.rule.take_if(|_| !whole);
        }
        self.rules
    }
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
