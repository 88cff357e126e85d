//! The BGPFilters of a peering, as the speaker has them.

use std::collections::BTreeMap;

use api::{
    BgpFilterAction, BgpFilterMatch, BgpFilterPeer, BgpFilterRule, BgpFilterSpec, BgpPeerSpec, Community as Written,
};
use bgp::Family;
use bgp::attributes::Community;
use bgp::filter::{Filter, FilterCommunity, FilterOperation, FilterRule, PrefixMatch};

/// What a peering's filters say of what is believed and what is told: one after the other, so that the first rule that holds
/// decides. The error names the field of the BGPPeer: a peering without what keeps it in bounds is none.
pub(crate) fn of(
    peer: &BgpPeerSpec,
    known: &BTreeMap<String, BgpFilterSpec>,
) -> Result<[Filter; 2], (&'static str, String)> {
    let (mut import, mut export) = (Vec::new(), Vec::new());
    for name in &peer.filters {
        let wrong = |why: String| ("spec.filters", why);
        let filter = known
            .get(name)
            .ok_or_else(|| wrong(format!("there is no BGPFilter {name}")))?;
        let add = |field: &str, rules: &[BgpFilterRule], family: Family, to: &mut Vec<FilterRule>| {
            let at = |why: String| wrong(format!("BGPFilter({name}) spec.{field}{why}"));
            extend(to, rules, family).map_err(at)
        };
        add("importV4", &filter.import_v4, Family::Ipv4, &mut import)?;
        add("importV6", &filter.import_v6, Family::Ipv6, &mut import)?;
        add("exportV4", &filter.export_v4, Family::Ipv4, &mut export)?;
        add("exportV6", &filter.export_v6, Family::Ipv6, &mut export)?;
    }
    Ok([import.into(), export.into()])
}

fn extend(to: &mut Vec<FilterRule>, rules: &[BgpFilterRule], family: Family) -> Result<(), String> {
    for (at, rule) in rules.iter().enumerate() {
        let read = self::rule(rule, family).map_err(|(field, why)| format!("[{at}].{field}: {why}"))?;
        to.push(read);
    }
    Ok(())
}

fn rule(rule: &BgpFilterRule, family: Family) -> Result<FilterRule, (&'static str, String)> {
    if !rule.interface.is_empty() {
        return Err((
            "interface",
            "not available yet: BGP knows next hops, not devices".into(),
        ));
    }
    let bits = match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    let prefix = match (rule.cidr.map(|cidr| cidr.trunc()), rule.match_operator) {
        (None, None) => None,
        (Some(range), Some(operator)) => {
            let lengths = rule.prefix_length.unwrap_or_default();
            let lengths = lengths.min.unwrap_or(range.prefix_len())..=lengths.max.unwrap_or(bits);
            Some(match operator {
                BgpFilterMatch::Equal => PrefixMatch::Is(range, true),
                BgpFilterMatch::NotEqual => PrefixMatch::Is(range, false),
                BgpFilterMatch::In => PrefixMatch::In(range, lengths, true),
                BgpFilterMatch::NotIn => PrefixMatch::In(range, lengths, false),
            })
        }
        _ => return Err(("cidr", "cidr and matchOperator belong together".into())),
    };
    let community = match rule.communities.as_ref().map(|some| some.values.as_slice()) {
        None => None,
        Some([one]) => Some(community(one).map_err(|why| ("communities.values", why))?),
        Some(_) => return Err(("communities.values", "must be exactly one".into())),
    };
    let accept = match rule.action {
        BgpFilterAction::Reject => None,
        BgpFilterAction::Accept => Some(operations(rule)?),
    };
    Ok(FilterRule {
        family,
        prefix,
        remote: rule.source.is_some(),
        external: rule.peer_type.map(|peer| peer == BgpFilterPeer::External),
        community,
        as_path_prefix: rule.as_path_prefix.iter().map(|asn| asn.0).collect(),
        metric: rule.priority,
        accept,
    })
}

fn operations(rule: &BgpFilterRule) -> Result<Vec<FilterOperation>, (&'static str, String)> {
    let mut all = Vec::new();
    for operation in &rule.operations {
        if let Some(add) = &operation.add_community {
            let added = community(&add.value).map_err(|why| ("operations", why))?;
            all.push(FilterOperation::AddCommunity(added));
        }
        if let Some(prepend) = &operation.prepend_as_path {
            all.push(FilterOperation::Prepend(
                prepend.prefix.iter().map(|asn| asn.0).collect(),
            ));
        }
        all.extend(operation.set_priority.map(|set| FilterOperation::SetMetric(set.value)));
    }
    Ok(all)
}

fn community(text: &str) -> Result<FilterCommunity, String> {
    match text.parse().map_err(|right| format!("`{text}` {right}"))? {
        Written::Standard(a, b) => Ok(FilterCommunity::Standard(Community(u32::from(a) << 16 | u32::from(b)))),
        Written::Large(a, b, c) => Ok(FilterCommunity::Large([a, b, c])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn filters_follow_each_other_and_what_cannot_be_had_is_named() {
        let check = |filters: Value, names: &[&str], expected: Result<[usize; 2], &str>| {
            let known: BTreeMap<String, BgpFilterSpec> = serde_json::from_value(filters).expect("filters");
            let peer = BgpPeerSpec {
                filters: names.iter().map(|name| name.to_string()).collect(),
                ..BgpPeerSpec::default()
            };
            let got = of(&peer, &known).map(|lists| lists.map(|list| list.len()));
            assert_eq!(got, expected.map_err(|why| ("spec.filters", why.to_owned())));
        };
        let some = || {
            json!({
                "a": { "exportV4": [{ "action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "In" }],
                       "importV6": [{ "action": "Accept", "operations": [{ "addCommunity": { "value": "65000:1" } }] }] },
                "b": { "exportV4": [{ "action": "Accept" }], "exportV6": [{ "action": "Reject", "peerType": "eBGP" }] },
                "c": { "importV4": [{ "action": "Accept" }, { "action": "Reject", "interface": "eth0" }] },
            })
        };
        check(some(), &[], Ok([0, 0]));
        check(some(), &["a"], Ok([1, 1]));
        check(some(), &["a", "b"], Ok([1, 3]));
        check(some(), &["a", "z"], Err("there is no BGPFilter z"));
        check(
            some(),
            &["c"],
            Err("BGPFilter(c) spec.importV4[1].interface: not available yet: BGP knows next hops, not devices"),
        );
    }
}
