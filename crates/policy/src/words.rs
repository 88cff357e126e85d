//! A rule over sets as a sentence for people.

use crate::misses::{icmp_name, list, protocol_name, range};
use crate::state::*;

/// What a rule says: `Allow TCP from role == "api" to port 5432`.
pub fn rule_text(state: &PolicyState, rule: &Rule) -> String {
    let mut text = format!("{:?}", rule.action);
    let mut say = |part: String| {
        text.push(' ');
        text.push_str(&part);
    };
    match (rule.family, rule.protocol) {
        (_, Some(protocol)) => say(protocol_name(protocol)),
        (Some(Family::V4), None) => say("IPv4".into()),
        (Some(Family::V6), None) => say("IPv6".into()),
        (None, None) => {}
    }
    if let Some(protocol) = rule.not_protocol {
        say(format!("all but {}", protocol_name(protocol)));
    }
    if let Some(kind) = rule.icmp {
        say(icmp_name(kind));
    }
    if let Some(kind) = rule.not_icmp {
        say(format!("not {}", icmp_name(kind)));
    }
    for (word, side) in [("from", &rule.source), ("to", &rule.destination)] {
        let parts = side_text(state, side);
        if !parts.is_empty() {
            say(format!("{word} {}", parts.join(", ")));
        }
    }
    text
}

fn side_text(state: &PolicyState, side: &Side) -> Vec<String> {
    let meaning = |id: &SetId| match state.sets.get(id) {
        Some(set) => set.meaning.clone(),
        None => format!("set {}", id.0),
    };
    let ports = |numbers: &[(u16, u16)], named: &[SetId]| {
        let numbers = numbers.iter().map(range);
        let all: Vec<String> = numbers.chain(named.iter().map(meaning)).collect();
        (!all.is_empty()).then(|| format!("port {}", all.join(" or ")))
    };
    let mut parts: Vec<String> = side.sets.iter().map(meaning).collect();
    parts.extend(side.not_sets.iter().map(|id| format!("not {}", meaning(id))));
    if !side.nets.is_empty() {
        parts.push(list(&side.nets));
    }
    if !side.not_nets.is_empty() {
        parts.push(format!("not {}", list(&side.not_nets)));
    }
    parts.extend(ports(&side.ports, &side.named_ports));
    parts.extend(ports(&side.not_ports, &side.not_named_ports).map(|ports| format!("not {ports}")));
    parts.extend(side.services.iter().map(meaning));
    parts
}
