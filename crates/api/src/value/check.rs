//! Checks that several specs share; each reports at `field` of where the walk is.

use ipnet::IpNet;

use crate::names::is_subdomain;
use crate::problem::Problems;
use crate::selector::{MOST_CHARACTERS, Selector};

/// A selector over labels; `global()` is not legal here. Empty is none.
pub fn selector(field: &str, text: &str, problems: &mut Problems) {
    if let Some(selector) = any_selector(field, text, problems)
        && selector.mentions_global()
    {
        problems.report(
            field,
            text,
            "must not use global(): that is for the namespaceSelector of a rule",
        );
    }
}

/// A selector over namespaces in a rule: may be `global()` alone. Empty is none.
pub fn namespace_selector(field: &str, text: &str, problems: &mut Problems) {
    if let Some(selector) = any_selector(field, text, problems)
        && selector.mentions_global()
        && !selector.is_global()
    {
        problems.report(field, text, "must use global() alone, not with other terms");
    }
}

fn any_selector(field: &str, text: &str, problems: &mut Problems) -> Option<Selector> {
    if text.chars().count() > MOST_CHARACTERS {
        problems.report(field, text, format!("must have at most {MOST_CHARACTERS} characters"));
        return None;
    }
    match Selector::parse(text) {
        Ok(selector) => Some(selector),
        Err(error) => {
            problems.report(field, text, error.to_string());
            None
        }
    }
}

/// A name of another object: a DNS subdomain. Empty is none.
pub fn name(field: &str, text: &str, problems: &mut Problems) {
    if !text.is_empty() && !is_subdomain(text) {
        problems.report(
            field,
            text,
            "must be a DNS name: lower-case letters, digits, `-` and `.`",
        );
    }
}

/// A Linux interface. Empty is none.
pub fn interface(field: &str, text: &str, problems: &mut Problems) {
    if !text.is_empty() && !is_interface(text, "_.-") {
        problems.report(
            field,
            text,
            "must be an interface: at most 15 letters, digits, `_`, `.` and `-`",
        );
    }
}

/// Whether a text is an interface's name of letters, digits and `others`.
pub fn is_interface(text: &str, others: &str) -> bool {
    (1..=15).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

/// A MAC address: six pairs of hex digits with `:` or `-`. Empty is none.
pub fn mac(field: &str, text: &str, problems: &mut Problems) {
    let is_mac = |separator: char| {
        let pairs: Vec<&str> = text.split(separator).collect();
        pairs.len() == 6
            && pairs
                .iter()
                .all(|pair| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if !text.is_empty() && !is_mac(':') && !is_mac('-') {
        problems.report(field, text, "must be a MAC address like ee:ee:ee:ee:ee:ee");
    }
}

/// A prefix without bits set behind its length.
pub fn masked(field: &str, net: IpNet, problems: &mut Problems) {
    if net.trunc() != net {
        problems.report(
            field,
            net,
            format!(
                "must have no bits behind the prefix length; did you mean {}?",
                net.trunc()
            ),
        );
    }
}

/// At most this many items.
pub fn at_most(field: &str, length: usize, most: usize, problems: &mut Problems) {
    if length > most {
        problems.report(
            field,
            format!("{length} items"),
            format!("must have at most {most} items"),
        );
    }
}

/// A number within a range; 0 means not set.
pub fn range(field: &str, number: u64, least: u64, most: u64, problems: &mut Problems) {
    if number != 0 && !(least..=most).contains(&number) {
        problems.report(field, number, format!("must be from {least} to {most}"));
    }
}
