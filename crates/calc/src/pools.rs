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
        let key = || Key::cluster(Kind::IPPool, name.as_str());
        if let Some((range, other)) = overlap {
            let text = format!("{} overlaps {range} of pool {other}: the pool is ignored", spec.cidr);
            problems.push(Problem::new(key(), "spec.cidr", text));
            continue;
        }
        let (spec, wrong) = made_consistent(spec);
        problems.extend(wrong.map(|(field, text)| Problem::new(key(), field, text)));
        if spec.vxlan_mode != EncapMode::Never {
            let text = "VXLAN is not available yet: routes that need it are left out";
            problems.push(Problem::new(key(), "spec.vxlanMode", text));
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

/// A pool as it counts. Validation refuses what contradicts itself; where it came in all the same, no route goes because of it.
fn made_consistent(spec: &IpPoolSpec) -> (IpPoolSpec, Option<(&'static str, String)>) {
    let mut counts = spec.clone();
    let cidr = spec.cidr.trunc();
    if cidr != spec.cidr {
        counts.cidr = cidr;
        return (
            counts,
            Some(("spec.cidr", format!("{} has host bits: {cidr} counts", spec.cidr))),
        );
    }
    let wrong = match (spec.ipip_mode, spec.vxlan_mode, cidr) {
        (EncapMode::Never, ..) | (_, EncapMode::Never, IpNet::V4(_)) => None,
        (_, _, IpNet::V4(_)) => {
            counts.vxlan_mode = EncapMode::Never;
            let text = "ipipMode and vxlanMode exclude each other: ipipMode counts";
            Some(("spec.vxlanMode", text.to_owned()))
        }
        (_, _, IpNet::V6(_)) => {
            counts.ipip_mode = EncapMode::Never;
            Some(("spec.ipipMode", "IP-in-IP carries IPv4 only: Never counts".to_owned()))
        }
    };
    (counts, wrong)
}
