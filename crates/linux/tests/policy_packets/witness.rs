//! A table of our own around the one that is tried: it counts what comes before it and what comes after, and keeps the node
//! itself silent.

use kernel::nft::*;
use linux::nft::LiveNft;

use super::net::SENT;

pub struct Witness {
    nft: LiveNft,
    last: Counts,
}

/// Packets of one state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub before: u64,
    pub after: u64,
}

const BEFORE: [(&str, Hook, i32); 2] = [("in", Hook::Prerouting, -450), ("out", Hook::Output, -450)];
const AFTER: [(&str, Hook, i32); 2] = [("to-host", Hook::Input, 1000), ("away", Hook::Postrouting, 1000)];

impl Witness {
    pub fn new(nft: LiveNft) -> Self {
        let mut changes = Vec::new();
        let mut chain = |name: &str, hook, priority, matches: Vec<Match>, verdict| {
            changes.push(Change::AddChain(Chain {
                name: name.into(),
                base: Some(BaseChain {
                    kind: ChainKind::Filter,
                    hook,
                    priority,
                    drop: false,
                }),
            }));
            let rule = Rule {
                matches,
                actions: vec![Statement::Counter],
                verdict,
                comment: None,
            };
            changes.push(Change::AddRule(name.into(), rule));
        };
        let others = Match::Mark {
            mask: SENT,
            value: SENT,
            negate: true,
        };
        chain("silence", Hook::Output, -500, vec![others], Some(Verdict::Drop));
        for (name, hook, priority) in BEFORE.into_iter().chain(AFTER) {
            chain(name, hook, priority, Vec::new(), None);
        }
        nft.apply_now(&Transaction {
            table: table(),
            changes,
        })
        .unwrap();
        Self {
            nft,
            last: Counts::default(),
        }
    }

    /// What was counted since the last call.
    pub fn counts(&mut self) -> Counts {
        let state = self.nft.read_now(&table()).unwrap().unwrap();
        let sum = |chains: [(&str, Hook, i32); 2]| -> u64 {
            let count = |(name, ..): (&str, Hook, i32)| state.chains[&name.into()].rules[0].count.unwrap().packets;
            chains.into_iter().map(count).sum()
        };
        let all = Counts {
            before: sum(BEFORE),
            after: sum(AFTER),
        };
        let last = std::mem::replace(&mut self.last, all);
        Counts {
            before: all.before - last.before,
            after: all.after - last.after,
        }
    }
}

fn table() -> TableName {
    TableName("witness".into())
}
