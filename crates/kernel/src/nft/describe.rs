//! Changes in words, for errors.

use std::fmt;

use super::{Change, SetSpec};

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteTable => f.write_str("delete the table"),
            Self::AddChain(chain) => write!(f, "add chain {}", chain.name),
            Self::FlushChain(chain) => write!(f, "flush chain {chain}"),
            Self::DeleteChain(chain) => write!(f, "delete chain {chain}"),
            Self::AddRule(chain, rule) => match &rule.comment {
                Some(comment) => write!(f, "add rule to chain {chain} ({comment})"),
                None => write!(f, "add rule to chain {chain}"),
            },
            Self::AddSet(SetSpec { name, verdicts, .. }) => {
                write!(f, "add {} {name}", if *verdicts { "map" } else { "set" })
            }
            Self::FlushSet(set) => write!(f, "flush set {set}"),
            Self::DeleteSet(set) => write!(f, "delete set {set}"),
            Self::AddElements(set, elements) => write!(f, "add {} elements to set {set}", elements.len()),
            Self::DeleteElements(set, elements) => write!(f, "delete {} elements from set {set}", elements.len()),
        }
    }
}
