//! Which pools may serve a request, in which order, and why the others may not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::IpPool;
use api::selector::Selector;
use api::{AllowedUse, AssignmentMode};
use ipnet::IpNet;

use crate::PoolProblem;
use crate::address::{Family, around};

/// What a choice of pools depends on.
#[derive(Clone, Copy, Debug)]
pub struct PoolChoice<'a> {
    /// The wanted family.
    pub family: Family,
    /// What the address is for.
    pub intended_use: AllowedUse,
    /// Names or CIDRs of pools. Pools that are named are used whatever their selectors and mode say.
    pub requested: &'a [String],
    /// Labels of the node; `None` for owners that are no node, whom only pools without a node selector serve.
    pub host_labels: Option<&'a BTreeMap<String, String>>,
    /// Labels of the pod's namespace; `None` where there is none, as for tunnels.
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
}

/// The pools for a request: in the order they were asked for, otherwise by name.
///
/// # Errors
///
/// What speaks against each pool if none remains, or against a requested pool if one cannot be used.
pub fn choose<'a>(pools: &'a [IpPool], choice: &PoolChoice<'_>) -> Result<Vec<&'a IpPool>, Vec<PoolProblem>> {
    let candidates = if choice.requested.is_empty() {
        unasked(pools, choice)?
    } else {
        asked_for(pools, choice)?
    };
    let (usable, others): (Vec<&IpPool>, Vec<&IpPool>) = candidates
        .into_iter()
        .partition(|pool| pool.spec.allows(choice.intended_use));
    if usable.is_empty() {
        return Err(others.into_iter().map(|pool| PoolProblem::Use(name(pool))).collect());
    }
    Ok(usable)
}

fn asked_for<'a>(pools: &'a [IpPool], choice: &PoolChoice<'_>) -> Result<Vec<&'a IpPool>, Vec<PoolProblem>> {
    let mut found: Vec<&IpPool> = Vec::new();
    let mut problems = Vec::new();
    for wanted in choice.requested {
        let cidr = wanted.parse::<IpNet>().ok().map(|net| net.trunc());
        match pools
            .iter()
            .find(|pool| pool.metadata.name == *wanted || Some(pool.spec.cidr) == cidr)
        {
            None => problems.push(PoolProblem::NotFound(wanted.clone())),
            Some(pool) if pool.overlaps() => problems.push(PoolProblem::Overlaps(name(pool))),
            Some(pool) if !pool.is_allocatable() => problems.push(PoolProblem::Disabled(name(pool))),
            Some(pool) if Family::of(&pool.spec.cidr) != choice.family => {
                problems.push(PoolProblem::OtherFamily(name(pool)));
            }
            Some(pool) if found.iter().any(|known| known.metadata.name == pool.metadata.name) => {}
            Some(pool) => found.push(pool),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

fn unasked<'a>(pools: &'a [IpPool], choice: &PoolChoice<'_>) -> Result<Vec<&'a IpPool>, Vec<PoolProblem>> {
    let mut of_family: Vec<&IpPool> = pools
        .iter()
        .filter(|pool| Family::of(&pool.spec.cidr) == choice.family)
        .collect();
    of_family.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    if of_family.is_empty() {
        return Err(vec![PoolProblem::None]);
    }
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for pool in of_family {
        match problem(pool, choice) {
            None => found.push(pool),
            Some(problem) => problems.push(problem),
        }
    }
    if found.is_empty() { Err(problems) } else { Ok(found) }
}

fn problem(pool: &IpPool, choice: &PoolChoice<'_>) -> Option<PoolProblem> {
    if pool.overlaps() {
        return Some(PoolProblem::Overlaps(name(pool)));
    }
    if !pool.is_allocatable() {
        return Some(PoolProblem::Disabled(name(pool)));
    }
    if pool.spec.assignment_mode.unwrap_or_default() != AssignmentMode::Automatic {
        return Some(PoolProblem::Manual(name(pool)));
    }
    match selects(&pool.spec.node_selector, choice.host_labels) {
        Err(why) => return Some(PoolProblem::BadSelector(name(pool), why)),
        Ok(false) => return Some(PoolProblem::NodeSelector(name(pool))),
        Ok(true) => {}
    }
    match selects(&pool.spec.namespace_selector, choice.namespace_labels) {
        Err(why) => Some(PoolProblem::BadSelector(name(pool), why)),
        Ok(false) => Some(PoolProblem::NamespaceSelector(name(pool))),
        Ok(true) => None,
    }
}

/// Whether a pool is meant for a node with these labels. A selector that does not parse selects every node, so that
/// nothing is taken away because of a typing error.
pub(crate) fn selects_node(pool: &IpPool, labels: &BTreeMap<String, String>) -> bool {
    selects(&pool.spec.node_selector, Some(labels)).unwrap_or(true)
}

/// Whether every node may use a pool.
pub(crate) fn selects_every_node(pool: &IpPool) -> bool {
    is_everything(pool.spec.node_selector.as_deref())
}

fn selects(selector: &Option<String>, labels: Option<&BTreeMap<String, String>>) -> Result<bool, String> {
    if is_everything(selector.as_deref()) {
        return Ok(true);
    }
    let selector = Selector::parse(selector.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
    Ok(labels.is_some_and(|labels| selector.evaluate(labels)))
}

fn is_everything(selector: Option<&str>) -> bool {
    matches!(selector.map(str::trim), None | Some("" | "all()"))
}

fn name(pool: &IpPool) -> String {
    pool.metadata.name.clone()
}

/// The pool that contains an address: the one in force, or the most specific one where that has not been said.
pub(crate) fn pool_of(pools: &[IpPool], address: IpAddr) -> Option<&IpPool> {
    pools
        .iter()
        .filter(|pool| pool.spec.cidr.contains(&address))
        .max_by_key(|pool| (!pool.overlaps(), pool.spec.cidr.prefix_len()))
}

/// The block of a pool around an address.
pub(crate) fn block_of(pool: &IpPool, address: IpAddr) -> Option<IpNet> {
    around(address, pool.spec.block_len())
}

#[cfg(test)]
mod tests {
    use api::{IpPoolSpec, IpPoolStatus};
    use serde_json::json;

    use super::*;

    /// A pool from words: its CIDR, then settings.
    fn pool(text: &str) -> IpPool {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap();
        let mut spec = IpPoolSpec::new(words.next().unwrap().parse().unwrap());
        let mut status = None;
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("disabled", _) => spec.disabled = true,
                ("overlaps", _) => status = Some(overlap()),
                ("manual", _) => spec.assignment_mode = Some(AssignmentMode::Manual),
                ("node", label) => spec.node_selector = Some(format!("has({label})")),
                ("namespace", label) => spec.namespace_selector = Some(format!("has({label})")),
                ("broken", _) => spec.node_selector = Some("has(".into()),
                ("use", "tunnel") => spec.allowed_uses = vec![AllowedUse::Tunnel],
                ("use", "lb") => spec.allowed_uses = vec![AllowedUse::LoadBalancer],
                other => panic!("{other:?}"),
            }
        }
        let mut pool = IpPool::new(name, spec);
        pool.status = status;
        pool
    }

    fn overlap() -> IpPoolStatus {
        let condition = json!({ "type": "Allocatable", "status": "False", "reason": "CIDROverlap", "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z" });
        serde_json::from_value(json!({ "conditions": [condition] })).unwrap()
    }

    /// The names chosen for a workload on a node with label `rack` in a namespace with label `team`.
    fn check(pools: &[&str], requested: &[&str], expected: &str) {
        let pools: Vec<IpPool> = pools.iter().map(|text| pool(text)).collect();
        let requested: Vec<String> = requested.iter().map(|text| (*text).to_owned()).collect();
        let (rack, team) = (
            [("rack".into(), "1".into())].into(),
            [("team".into(), "x".into())].into(),
        );
        let choice = PoolChoice {
            family: Family::V4,
            intended_use: AllowedUse::Workload,
            requested: &requested,
            host_labels: Some(&rack),
            namespace_labels: Some(&team),
        };
        let seen = match choose(&pools, &choice) {
            Ok(pools) => pools
                .iter()
                .map(|pool| pool.metadata.name.as_str())
                .collect::<Vec<_>>()
                .join(" "),
            Err(problems) => format!(
                "!{}",
                problems.iter().map(|p| p.to_string()).collect::<Vec<_>>().join("; ")
            ),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn unasked_pools_are_enabled_automatic_selecting_and_in_order_of_name() {
        check(&["b 10.1.0.0/16", "a 10.2.0.0/16", "v6 fd00::/64"], &[], "a b");
        check(
            &["a 10.1.0.0/16 disabled", "b 10.2.0.0/16 manual", "c 10.3.0.0/16"],
            &[],
            "c",
        );
        check(&["a 10.3.0.0/17 overlaps", "c 10.3.0.0/16"], &[], "c");
        check(
            &["a 10.3.0.0/17 overlaps"],
            &[],
            "!a overlaps another pool, which is in force",
        );
        check(
            &["a 10.3.0.0/17 overlaps"],
            &["a"],
            "!a overlaps another pool, which is in force",
        );
        check(
            &[
                "a 10.1.0.0/16 node=rack",
                "b 10.2.0.0/16 node=gpu",
                "c 10.3.0.0/16 namespace=team",
            ],
            &[],
            "a c",
        );
        check(
            &["a 10.1.0.0/16 use=tunnel", "b 10.2.0.0/16 use=lb", "c 10.3.0.0/16"],
            &[],
            "c",
        );
        check(&["a 10.1.0.0/16 broken", "c 10.3.0.0/16"], &[], "c");
    }

    #[test]
    fn requested_pools_are_used_whatever_their_selectors_say_but_not_against_their_use() {
        let pools = [
            "a 10.1.0.0/16 node=gpu manual",
            "b 10.2.0.0/16 namespace=none",
            "t 10.3.0.0/16 use=tunnel",
        ];
        check(&pools, &["b", "10.1.0.0/16", "b"], "b a");
        check(&pools, &["t"], "!t does not allow this use");
        check(&pools, &["a", "x"], "!x does not exist");
        check(
            &["a 10.1.0.0/16 disabled", "v6 fd00::/64"],
            &["a", "v6"],
            "!a is disabled; v6 is of the other address family",
        );
    }

    #[test]
    fn every_pool_says_why_not() {
        check(&["v6 fd00::/64"], &[], "!there is none of this address family");
        check(
            &[
                "a 10.1.0.0/16 node=gpu",
                "b 10.2.0.0/16 namespace=x",
                "c 10.3.0.0/16 manual",
                "d 10.4.0.0/16 disabled",
            ],
            &[],
            "!the nodeSelector of a does not match this node; the namespaceSelector of b does not match the namespace; \
             c is used only where it is named; d is disabled",
        );
    }
}
