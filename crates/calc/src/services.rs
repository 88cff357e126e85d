//! The address ranges of services: what goes there and was translated by nobody must not go round in circles.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::facts::Facts;

/// The ranges that the cluster's BGP configuration names, whether this node announces them or not: a router outside may lead
/// to them all the same. A node's own configuration cannot have any.
pub(crate) fn services(facts: &Facts) -> BTreeSet<IpNet> {
    let Some(default) = facts.bgp.get("default") else {
        return BTreeSet::new();
    };
    let ranges = [
        &default.service_cluster_ips,
        &default.service_external_ips,
        &default.service_load_balancer_ips,
    ];
    let ranges = ranges.into_iter().flatten().filter_map(|range| range.cidr);
    ranges.map(|range| range.trunc()).collect()
}
