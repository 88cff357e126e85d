//! Whatever a policy says: what it is converted to is right in itself, and lets through no port that it does not name.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::K8sNetworkPolicy;
use crate::Port;
use crate::kubernetes::{
    IntOrText, IpBlock, K8sIngressRule, K8sNetworkPolicySpec, K8sPeer, K8sPort, LabelOperator, LabelRequirement,
    LabelSelector,
};

fn selector() -> impl Strategy<Value = LabelSelector> {
    let text = || prop::sample::select(vec!["a", "b.c/d", "", "a b", "x'", "-"]).prop_map(str::to_owned);
    let operator = prop::sample::select(vec![
        LabelOperator::In,
        LabelOperator::NotIn,
        LabelOperator::Exists,
        LabelOperator::DoesNotExist,
    ]);
    let term = (text(), operator, prop::collection::vec(text(), 0..3));
    let term = term.prop_map(|(key, operator, values)| LabelRequirement { key, operator, values });
    (
        prop::collection::btree_map(text(), text(), 0..3),
        prop::collection::vec(term, 0..3),
    )
        .prop_map(|(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
        })
}

fn peer() -> impl Strategy<Value = K8sPeer> {
    let prefix = || {
        prop::sample::select(vec!["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "::/0", "fd00::/8", "x"])
            .prop_map(str::to_owned)
    };
    let block = (prefix(), prop::collection::vec(prefix(), 0..3)).prop_map(|(cidr, except)| IpBlock { cidr, except });
    let option = |weight| prop::option::weighted(weight, selector());
    (option(0.5), option(0.5), prop::option::weighted(0.3, block)).prop_map(
        |(pod_selector, namespace_selector, ip_block)| K8sPeer {
            pod_selector,
            namespace_selector,
            ip_block,
        },
    )
}

fn port() -> impl Strategy<Value = K8sPort> {
    let number = prop_oneof![1..40i32, Just(0), Just(65_535), Just(65_536), Just(-1)];
    let named = prop_oneof![
        8 => number.prop_map(IntOrText::Int),
        1 => Just(IntOrText::Text("http".to_owned())),
        1 => Just(IntOrText::Text("17".to_owned())),
    ];
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP", "ICMP"]).prop_map(str::to_owned);
    (
        prop::option::of(protocol),
        prop::option::weighted(0.9, named),
        prop::option::weighted(0.3, 1..60i32),
    )
        .prop_map(|(protocol, port, end_port)| K8sPort {
            protocol,
            port,
            end_port,
        })
}

fn policy(rules: Vec<K8sIngressRule>, pod_selector: LabelSelector) -> K8sNetworkPolicy {
    K8sNetworkPolicy {
        metadata: crate::Metadata::namespaced("ns", "a"),
        spec: K8sNetworkPolicySpec {
            pod_selector,
            ingress: rules,
            ..K8sNetworkPolicySpec::default()
        },
    }
}

/// Protocol and number of every port that a list names, one by one; `None` if one of them is wrong.
fn named_one_by_one(ports: &[K8sPort]) -> Option<BTreeSet<(String, u16)>> {
    let mut all = BTreeSet::new();
    for port in ports {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        if protocol == "ICMP" {
            return None;
        }
        let range = match (&port.port, port.end_port) {
            (None, None) => 1..=65_535,
            (None, Some(_)) => return None,
            (Some(IntOrText::Text(name)), None) if name == "http" => continue,
            (Some(IntOrText::Text(name)), Some(_)) if name == "http" => return None,
            (Some(IntOrText::Text(_)), end) => 17..=end.unwrap_or(17),
            (Some(IntOrText::Int(first)), end) => *first..=end.unwrap_or(*first),
        };
        if range.is_empty() || *range.start() < 1 || *range.end() > 65_535 {
            return None;
        }
        all.extend(range.map(|number| (protocol.clone(), number as u16)));
    }
    Some(all)
}

proptest! {
    #[test]
    fn what_comes_out_is_right_and_what_is_wrong_is_told(
        pods in selector(),
        rules in prop::collection::vec(
            (prop::collection::vec(port(), 0..3), prop::collection::vec(peer(), 0..3))
                .prop_map(|(ports, from)| K8sIngressRule { ports, from }),
            0..4,
        ),
    ) {
        let policy = policy(rules, pods);
        let (converted, problems) = policy.to_network_policy();
        prop_assert_eq!(converted.problems(), []);
        let wanted: usize = policy.spec.ingress.iter().map(|rule| -> usize {
            let protocols: BTreeSet<&str> =
                rule.ports.iter().map(|port| port.protocol.as_deref().unwrap_or("TCP")).collect();
            protocols.len().max(1) * rule.from.len().max(1)
        }).sum();
        // Without a problem nothing is lost; with one something is, and never is anything added.
        prop_assert!(converted.spec.ingress.len() <= wanted);
        let about_pods = problems.iter().any(|problem| problem.field.starts_with("spec.podSelector"));
        prop_assert_eq!(about_pods && !converted.spec.ingress.is_empty(), false, "who is not known gets nothing");
        if !about_pods {
            prop_assert_eq!(problems.is_empty(), converted.spec.ingress.len() == wanted, "{:?}", problems);
        }
    }

    #[test]
    fn simplified_ports_are_the_same_ports(ports in prop::collection::vec(port(), 1..6)) {
        let rule = K8sIngressRule { ports: ports.clone(), from: Vec::new() };
        let (converted, problems) = policy(vec![rule], LabelSelector::default()).to_network_policy();
        let Some(wanted) = named_one_by_one(&ports) else {
            prop_assert!(!problems.is_empty() && converted.spec.ingress.is_empty());
            return Ok(());
        };
        prop_assert_eq!(problems, []);
        let mut found = BTreeSet::new();
        for rule in &converted.spec.ingress {
            let protocol = rule.protocol.as_ref().expect("every port has one").to_string();
            let mut last = 0;
            if rule.destination.ports.is_empty() {
                found.extend((1..=65_535).map(|number| (protocol.clone(), number)));
            }
            for port in &rule.destination.ports {
                if let Port::Range(first, end) = port {
                    prop_assert!(last == 0 || *first > last + 1, "ranges touch");
                    last = *end;
                    found.extend((*first..=*end).map(|number| (protocol.clone(), number)));
                }
            }
        }
        prop_assert_eq!(found, wanted);
    }
}
