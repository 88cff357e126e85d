//! The report as Prometheus text (format 0.0.4). Names that upstream has keep upstream's spelling.

use health::Metrics;
use std::collections::BTreeMap;

use crate::report::{AddressCounts, Report};

/// Picks a number out of the counts of one pool and node.
type Pick = fn(&AddressCounts) -> u64;

/// Renders the report.
pub fn text(report: &Report) -> String {
    let mut out = Metrics::default();
    let by_pool_and_node: [(&str, &str, &str, Pick); 5] = [
        ("ipam_allocations_in_use", "gauge", "Addresses in use.", |one| {
            one.in_use
        }),
        (
            "ipam_allocations_borrowed",
            "gauge",
            "Addresses in use that come from another node's blocks.",
            |one| one.borrowed,
        ),
        (
            "ipam_allocations_gc_candidates",
            "gauge",
            "Addresses that look leaked.",
            |one| one.candidates,
        ),
        (
            "ipam_allocations_gc_reclamations",
            "counter",
            "Leaked addresses that were freed.",
            |one| one.reclaimed,
        ),
        ("ipam_blocks", "gauge", "Blocks.", |one| one.blocks),
    ];
    for (name, kind, help, value) in by_pool_and_node {
        out.family(name, kind, help);
        for one in &report.addresses {
            out.sample(
                name,
                &[("ippool", &one.pool), ("node", &one.node)],
                u128::from(value(one)),
            );
        }
    }
    out.family("ipam_ippool_size", "gauge", "Addresses of a pool.");
    for pool in &report.pools {
        out.sample("ipam_ippool_size", &[("ippool", &pool.pool)], pool.size);
    }
    out.family(
        "ipam_ippool_reserved",
        "gauge",
        "Addresses of a pool that are reserved and not in use.",
    );
    for pool in &report.pools {
        out.sample("ipam_ippool_reserved", &[("ippool", &pool.pool)], pool.reserved);
    }

    // What upstream had before there were pools in the labels.
    let by_node: [(&str, &str, Pick); 3] = [
        ("ipam_allocations_per_node", "Addresses in use, by node.", |one| {
            one.in_use
        }),
        (
            "ipam_allocations_borrowed_per_node",
            "Addresses in use from others' blocks, by node.",
            |one| one.borrowed,
        ),
        ("ipam_blocks_per_node", "Blocks, by node.", |one| one.blocks),
    ];
    for (name, help, value) in by_node {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for one in &report.addresses {
            *sums.entry(&one.node).or_default() += value(one);
        }
        out.family(name, "gauge", help);
        for (node, sum) in sums {
            out.sample(name, &[("node", node)], u128::from(sum));
        }
    }

    out.family("margay_controllers_leader", "gauge", "1 if this process leads.");
    out.sample("margay_controllers_leader", &[], u128::from(report.leads));
    out.family("margay_controllers_ready", "gauge", "1 if this process is ready.");
    out.sample("margay_controllers_ready", &[], u128::from(report.ready));
    out.conditions("margay_controllers_condition", &report.conditions);
    out.family(
        "margay_controllers_actions_total",
        "counter",
        "What was decided, by what became of it.",
    );
    for (verb, counts) in &report.actions {
        for (result, count) in [
            ("done", counts.done),
            ("nothing", counts.nothing),
            ("failed", counts.failed),
        ] {
            let labels = [("action", verb.as_str()), ("result", result)];
            out.sample("margay_controllers_actions_total", &labels, u128::from(count));
        }
    }
    out.into_text()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;

    use super::*;
    use crate::report::{Condition, Counts, PoolCounts};

    #[test]
    fn the_text_is_what_a_scraper_reads() {
        let address = |pool: &str, node: &str, in_use| AddressCounts {
            pool: pool.into(),
            node: node.into(),
            in_use,
            borrowed: 1,
            candidates: 2,
            reclaimed: 3,
            blocks: 4,
        };
        let report = Report {
            version: "1".into(),
            pid: 1,
            started: Timestamp::UNIX_EPOCH,
            ready: true,
            leads: true,
            hung: None,
            conditions: vec![Condition {
                name: "Datastore".into(),
                ok: true,
                required: true,
                reason: "InSync".into(),
                message: String::new(),
            }],
            problems: Vec::new(),
            actions: BTreeMap::from([(
                "free-addresses".to_owned(),
                Counts {
                    done: 5,
                    nothing: 6,
                    failed: 7,
                },
            )]),
            addresses: vec![
                address("p", "n", 10),
                address("q", "n", 20),
                address("no_ippool", "quo\"te", 30),
            ],
            pools: vec![PoolCounts {
                pool: "p".into(),
                size: u128::MAX,
                reserved: 8,
            }],
        };
        let got = text(&report);
        for line in [
            "# TYPE ipam_allocations_in_use gauge\nipam_allocations_in_use{ippool=\"p\",node=\"n\"} 10\n",
            "ipam_allocations_in_use{ippool=\"no_ippool\",node=\"quo\\\"te\"} 30\n",
            "ipam_allocations_borrowed{ippool=\"p\",node=\"n\"} 1\n",
            "ipam_allocations_gc_candidates{ippool=\"p\",node=\"n\"} 2\n",
            "# TYPE ipam_allocations_gc_reclamations counter\nipam_allocations_gc_reclamations{ippool=\"p\",node=\"n\"} 3\n",
            "ipam_blocks{ippool=\"q\",node=\"n\"} 4\n",
            "ipam_ippool_size{ippool=\"p\"} 340282366920938463463374607431768211455\n",
            "ipam_ippool_reserved{ippool=\"p\"} 8\n",
            "ipam_allocations_per_node{node=\"n\"} 30\n",
            "ipam_blocks_per_node{node=\"n\"} 8\n",
            "margay_controllers_leader 1\n",
            "margay_controllers_condition{condition=\"Datastore\",reason=\"InSync\"} 1\n",
            "margay_controllers_actions_total{action=\"free-addresses\",result=\"nothing\"} 6\n",
        ] {
            assert!(got.contains(line), "no {line} in\n{got}");
        }
        // Every sample belongs to the family above it, every family has help, and there is no family twice.
        let mut family = "";
        let mut seen = BTreeSet::new();
        for line in got.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap_or_default();
                assert!(seen.insert(family), "{family} twice");
            } else if !line.starts_with('#') {
                assert_eq!(line.split(['{', ' ']).next(), Some(family), "{line}");
            }
        }
    }
}
