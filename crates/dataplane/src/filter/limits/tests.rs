use api::Dscp;

use super::super::{Cluster, Filter, NatPool};
use super::*;

fn filter(pods: &[(&str, QosControls)]) -> Filter {
    let mut filter = Filter::default();
    filter.cluster(Cluster {
        pools: vec![NatPool {
            net: "10.0.0.0/16".parse().unwrap(),
            nat_outgoing: false,
        }],
        ..Cluster::default()
    });
    filter.limits(
        pods.iter()
            .map(|(device, controls)| ((*device).to_owned(), controls.clone()))
            .collect(),
    );
    filter
}

/// The chains about limits, as text.
fn shown(pods: &[(&str, QosControls)]) -> Vec<String> {
    let table = filter(pods).table();
    let mut lines = Vec::new();
    for (name, chain) in &table.chains {
        let ours = ["limits-", "dscp-", "cali-lf-", "cali-lt-", "cali-df-"];
        if ours.iter().any(|prefix| name.0.starts_with(prefix)) {
            lines.extend(chain.rules.iter().map(|rule| format!("{name}: {rule}")));
        }
    }
    for map in [LIMIT_FROM, LIMIT_TO, MARK_FROM] {
        let set = table.sets.get(&SetName::from(map));
        let elements = set.into_iter().flat_map(|set| set.elements.iter());
        lines.extend(elements.map(|element| format!("{map}: {element}")));
    }
    lines
}

#[test]
fn without_limits_no_packet_is_looked_at() {
    assert_eq!(shown(&[]), Vec::<String>::new());
    assert_eq!(shown(&[("cali1", QosControls::default())]), Vec::<String>::new());
}

#[test]
fn every_limit_has_a_rule_in_its_direction() {
    let controls = QosControls {
        ingress_packet_rate: 100,
        ingress_max_connections: 7,
        egress_packet_rate: 8_000,
        egress_packet_burst: 50,
        egress_max_connections: 3,
        // Queues have these.
        ingress_bandwidth: 8_000_000,
        egress_bandwidth: 8_000,
        ..QosControls::default()
    };
    let expected = [
        "cali-lf-cali1: limit rate over 8000/second burst 50 packets counter drop comment \"limit egressPacketRate\"",
        "cali-lf-cali1: ct state new ct count over 3 counter drop comment \"limit egressMaxConnections\"",
        "cali-lt-cali1: limit rate over 100/second burst 5 packets counter drop comment \"limit ingressPacketRate\"",
        "cali-lt-cali1: ct state new ct count over 7 counter drop comment \"limit ingressMaxConnections\"",
        "limits-POSTROUTING: oifname vmap @cali-limit-to",
        "limits-PREROUTING: iifname vmap @cali-limit-from",
        "cali-limit-from: \"cali1\" : goto cali-lf-cali1",
        "cali-limit-to: \"cali1\" : goto cali-lt-cali1",
    ];
    assert_eq!(shown(&[("cali1", controls)]), expected);
}

#[test]
fn marks_are_for_what_leaves_the_cluster() {
    let controls = QosControls {
        dscp: Dscp::new(46),
        ..QosControls::default()
    };
    let expected = [
        "cali-df-cali1: ip daddr != @cali-all-ipam-pools4 ip daddr != @cali-nodes4 ip dscp set 46",
        "cali-df-cali1: ip6 daddr != @cali-all-ipam-pools6 ip6 daddr != @cali-nodes6 ip6 dscp set 46",
        "dscp-FORWARD: iifname vmap @cali-dscp-from",
        "cali-dscp-from: \"cali1\" : goto cali-df-cali1",
    ];
    assert_eq!(shown(&[("cali1", controls)]), expected);
}

#[test]
fn a_change_of_one_pods_limits_leaves_the_other_pods_chains_alone() {
    let limit = |packets: u64| QosControls {
        ingress_packet_rate: packets,
        ..QosControls::default()
    };
    let mut filter = filter(&[("cali1", limit(1_000)), ("cali2", limit(1_000))]);
    filter.observed(None);
    filter.in_sync();
    assert!(filter.transaction().is_some());
    filter.done(Ok(()));
    filter.limits([("cali1".to_owned(), limit(2_000)), ("cali2".to_owned(), limit(1_000))].into());
    let changes = filter.transaction().expect("there is a change").changes;
    let concerned: Vec<String> = changes.iter().map(|change| format!("{change:?}")).collect();
    assert!(
        concerned.iter().any(|change| change.contains("cali-lt-cali1")),
        "{concerned:?}"
    );
    assert!(
        !concerned.iter().any(|change| change.contains("cali2")),
        "{concerned:?}"
    );
}
