//! Names of chains and sets: readable, the same on every node and after every restart, words that nft's language can say.

use std::collections::BTreeSet;

use api::Kind;
use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::{ChainName, SetName};
use policy::{PolicyId, SetId};
use sha2::{Digest, Sha256};

/// What the kernel takes, in bytes.
const LONGEST: usize = 127;
/// Letters of a hash in a name.
const HASH: usize = 16;

/// What a chain's name begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Prefix {
    FromWorkload,
    ToWorkload,
    FromHost,
    ToHost,
    FromHostForward,
    ToHostForward,
    FromHostPreDnat,
    FromHostUntracked,
    ToHostUntracked,
    PolicyIn,
    PolicyOut,
    ProfileIn,
    ProfileOut,
    LimitFrom,
    LimitTo,
    MarkFrom,
}

impl Prefix {
    /// Upstream's, where it has such a chain (it keeps the early ones in other tables, under one name).
    fn text(self) -> &'static str {
        match self {
            Prefix::FromWorkload => "cali-fw-",
            Prefix::ToWorkload => "cali-tw-",
            Prefix::FromHost => "cali-fh-",
            Prefix::ToHost => "cali-th-",
            Prefix::FromHostForward => "cali-fhfw-",
            Prefix::ToHostForward => "cali-thfw-",
            Prefix::FromHostPreDnat => "cali-fhpd-",
            Prefix::FromHostUntracked => "cali-fhut-",
            Prefix::ToHostUntracked => "cali-thut-",
            Prefix::PolicyIn => "cali-pi-",
            Prefix::PolicyOut => "cali-po-",
            Prefix::ProfileIn => "cali-pri-",
            Prefix::ProfileOut => "cali-pro-",
            Prefix::LimitFrom => "cali-lf-",
            Prefix::LimitTo => "cali-lt-",
            Prefix::MarkFrom => "cali-df-",
        }
    }
}

/// The chain of a device, host endpoint or profile.
pub(crate) fn chain(prefix: Prefix, name: &str) -> ChainName {
    ChainName(word(prefix.text(), name))
}

/// The chain of a policy; `hook` tells those of early hooks apart.
pub(crate) fn policy_chain(prefix: Prefix, hook: &str, id: &PolicyId) -> ChainName {
    ChainName(word(prefix.text(), &format!("{hook}{}", policy_name(id))))
}

/// A kind of policy as upstream abbreviates it: `gnp`.
pub(crate) fn short_kind(kind: Kind) -> String {
    let letters: String = kind.name().chars().filter(char::is_ascii_uppercase).collect();
    letters.to_ascii_lowercase()
}

/// A policy as upstream's chains name it: `np/default/web`.
pub(crate) fn policy_name(id: &PolicyId) -> String {
    let kind = short_kind(id.kind);
    match &id.namespace {
        Some(namespace) => format!("{kind}/{namespace}/{}", id.name),
        None => format!("{kind}/{}", id.name),
    }
}

/// The set of a selector's members of one family. A set of prefixes has another name than one of addresses, because the
/// kernel keeps them differently.
pub(crate) fn set(id: &SetId, family: IpFamily, prefixes: bool) -> SetName {
    let kind = if prefixes { "nets" } else { "set" };
    SetName(word(&format!("cali-{kind}{}-", digit(family)), &id.0))
}

/// The set of a rule's own nets: equal lists share it.
pub(crate) fn rule_nets(family: IpFamily, nets: &BTreeSet<IpNet>) -> SetName {
    let text: Vec<String> = nets.iter().map(IpNet::to_string).collect();
    SetName(format!("cali-rule{}-{}", digit(family), hash(&text.join(","))))
}

/// A set of ours of one family.
pub(crate) fn of_family(name: &str, family: IpFamily) -> SetName {
    SetName(format!("cali-{name}{}", digit(family)))
}

/// Text of at most `longest` bytes: the middle of a longer one is replaced by a hash.
pub(crate) fn shortened(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let keep = longest - HASH - 2;
    let head = text.floor_char_boundary(keep / 2);
    let tail = text.ceil_char_boundary(text.len() - keep / 2);
    format!("{}~{}~{}", &text[..head], hash(text), &text[tail..])
}

fn digit(family: IpFamily) -> char {
    match family {
        IpFamily::V4 => '4',
        IpFamily::V6 => '6',
    }
}

/// Letters that are no part of nft's words are replaced, and then a hash keeps names apart that would be equal.
fn word(prefix: &str, name: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "/_.-".contains(c);
    if name.chars().all(is_word) && prefix.len() + name.len() <= LONGEST {
        return format!("{prefix}{name}");
    }
    let clean = name.chars().map(|c| if is_word(c) { c } else { '_' });
    let clean: String = clean.take(LONGEST - prefix.len() - HASH - 1).collect();
    format!("{prefix}{clean}_{}", hash(name))
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(HASH / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use api::Key;

    use super::*;

    #[test]
    fn names_are_readable_and_keep_apart_what_differs() {
        check(chain(Prefix::FromWorkload, "cali1234").0, "cali-fw-cali1234");
        check(set(&SetId("abc_-".into()), IpFamily::V6, true).0, "cali-nets6-abc_-");
        let colon = chain(Prefix::FromHost, "eth0:1").0;
        check(colon.clone(), &format!("cali-fh-eth0_1_{}", hash("eth0:1")));
        let id = Key::namespaced(Kind::NetworkPolicy, "default", "web");
        check(policy_chain(Prefix::PolicyIn, "", &id).0, "cali-pi-np/default/web");
        let long = |end: &str| chain(Prefix::ProfileIn, &format!("{}{end}", "a".repeat(300))).0;
        assert_eq!(long("b").len(), LONGEST);
        assert_ne!(long("b"), long("c"));
        assert_eq!(shortened("short", 128), "short");
        assert!(shortened(&"\u{fc}".repeat(100), 128).len() <= 128);
    }

    fn check(name: String, expected: &str) {
        assert_eq!(name, expected);
        assert!(name.len() <= LONGEST);
    }
}
