//! The pools that count. Pools never overlap: every address has at most one.

use std::collections::BTreeMap;

use api::{EncapMode, IpPoolSpec, Key, Kind};
use ipnet::IpNet;

use crate::facts::{Aged, Facts};
use crate::problem::Problem;
use crate::state::PoolState;

/// The pools by range. Of two that overlap the older one stands.
pub(crate) fn pools(facts: &Facts) -> (BTreeMap<IpNet, PoolState>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut pools: BTreeMap<IpNet, PoolState> = BTreeMap::new();
    let mut names: BTreeMap<IpNet, &str> = BTreeMap::new();
    let mut claims: Vec<(&String, &Aged<IpPoolSpec>)> = facts.pools.iter().collect();
    claims.sort_by_key(|(name, pool)| (pool.age, name.as_str()));

    for (name, Aged { spec, .. }) in claims {
        let overlap = names
            .iter()
            .find(|(range, _)| range.contains(&spec.cidr) || spec.cidr.contains(*range));
        let wrong = match overlap {
            Some((range, other)) => Some(("spec.cidr", format!("{} overlaps {range} of pool {other}", spec.cidr))),
            None => contradiction(spec),
        };
        if let Some((field, text)) = wrong {
            let text = format!("{text}: the pool is ignored");
            problems.push(Problem::new(Key::cluster(Kind::IPPool, name.as_str()), field, text));
            continue;
        }
        if spec.vxlan_mode != EncapMode::Never {
            let text = "VXLAN is not available yet: routes that need it are left out";
            problems.push(Problem::new(
                Key::cluster(Kind::IPPool, name.as_str()),
                "spec.vxlanMode",
                text,
            ));
        }
        names.insert(spec.cidr, name);
        let state = PoolState {
            ipip: spec.ipip_mode,
            vxlan: spec.vxlan_mode,
            nat_outgoing: spec.nat_outgoing,
            exported: !spec.disable_bgp_export,
        };
        pools.insert(spec.cidr, state);
    }
    (pools, problems)
}

fn contradiction(spec: &IpPoolSpec) -> Option<(&'static str, String)> {
    let cidr = spec.cidr;
    if cidr != cidr.trunc() {
        return Some(("spec.cidr", format!("{cidr} has host bits: write {}", cidr.trunc())));
    }
    match (spec.ipip_mode, spec.vxlan_mode, cidr) {
        (EncapMode::Never, ..) => None,
        (_, EncapMode::Never, IpNet::V4(_)) => None,
        (_, EncapMode::Never, IpNet::V6(_)) => Some(("spec.ipipMode", "IP-in-IP carries IPv4 only".into())),
        _ => Some(("spec.ipipMode", "ipipMode and vxlanMode exclude each other".into())),
    }
}
