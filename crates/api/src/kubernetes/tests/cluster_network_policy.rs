//! ClusterNetworkPolicy: the stories of its documentation, then what is not right.

use super::{ClusterNetworkPolicy, cluster_network_policy as check};

#[test]
fn everything_of_a_namespace_may_be_denied() {
    check(
        "
subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: sensitive-ns}}}
ingress:
- {name: select-all-deny-all, action: Deny, from: [{namespaces: {}}]}
",
        "
namespaceSelector: kubernetes.io/metadata.name == 'sensitive-ns'
selector: PODS
types: [Ingress]
ingress:
- {action: Deny, source: {namespaceSelector: all()}, metadata: {annotations: {name: select-all-deny-all}}}
",
        &[],
    );
}

#[test]
fn monitoring_may_be_allowed_everywhere_and_the_rest_be_left_to_others() {
    check(
        "
subject: {namespaces: {}}
ingress:
- {action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: monitoring-ns}}}]}
- {action: Pass, from: [{pods: {namespaceSelector: {matchLabels: {user: a}}, podSelector: {matchLabels: {role: b}}}}]}
",
        "
namespaceSelector: all()
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, source: {namespaceSelector: kubernetes.io/metadata.name == 'monitoring-ns'}}
- {action: Pass, source: {namespaceSelector: user == 'a', selector: PODS && role == 'b'}}
",
        &[],
    );
}

#[test]
fn egress_goes_to_pods_ports_and_networks() {
    check(
        "
subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
egress:
- action: Accept
  to: [{pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}}]
  protocols: [{tcp: {destinationPort: {number: 53}}}, {udp: {destinationPort: {number: 53}}}]
- action: Deny
  to: [{networks: [0.0.0.0/0, '::/0', 10.1.2.3/8]}]
  protocols: [{sctp: {}}, {tcp: {destinationPort: {range: {start: 1, end: 1023}}}}, {tcp: {destinationPort: {number: 1024}}}]
- action: Accept
  to: [{pods: {namespaceSelector: {}, podSelector: {}}}]
  protocols: [{destinationNamedPort: web}]
",
        "
namespaceSelector: all()
selector: PODS && app == 'web'
types: [Egress]
egress:
- action: Allow
  protocol: TCP
  destination: {namespaceSelector: kubernetes.io/metadata.name == 'kube-system', selector: PODS && k8s-app == 'kube-dns', ports: [53]}
- action: Allow
  protocol: UDP
  destination: {namespaceSelector: kubernetes.io/metadata.name == 'kube-system', selector: PODS && k8s-app == 'kube-dns', ports: [53]}
- {action: Deny, protocol: SCTP, destination: {nets: [0.0.0.0/0, 10.0.0.0/8]}}
- {action: Deny, protocol: SCTP, destination: {nets: ['::/0']}}
- {action: Deny, protocol: TCP, destination: {nets: [0.0.0.0/0, 10.0.0.0/8], ports: ['1:1024']}}
- {action: Deny, protocol: TCP, destination: {nets: ['::/0'], ports: ['1:1024']}}
- {action: Allow, destination: {namespaceSelector: all(), selector: PODS, ports: [web]}}
",
        &[],
    );
}

/// A rule that is wrong, of each action: one that denies denies everything, the others are gone.
#[track_caller]
fn closed(rule: &str, problems: &[&str]) {
    for action in ["Accept", "Deny", "Pass"] {
        let rules = match action {
            "Deny" | "Pass" => "types: [Egress]\negress: [{action: Deny}]",
            _ => "types: []",
        };
        let rules = rules.replace("types: []", "");
        check(
            &format!("{{subject: {{namespaces: {{}}}}, egress: [{{name: rule, action: {action}, {rule}}}]}}"),
            &format!("namespaceSelector: all()\nselector: PODS\n{rules}"),
            problems,
        );
    }
}

#[test]
fn a_rule_that_cannot_be_understood_denies_everything_or_is_gone() {
    let at = "spec.egress[0]";
    let peer = "must have one of namespaces, pods and (in `to`) networks";
    closed("to: []", &[&format!("{at}.to: is required: at least one")]);
    closed("to: [{nodes: {}}]", &[&format!("{at}.to[0]: {peer}")]);
    closed("to: [{domainNames: [a.example]}]", &[&format!("{at}.to[0]: {peer}")]);
    closed(
        "to: [{namespaces: {}, networks: [10.0.0.0/8]}]",
        &[&format!("{at}.to[0]: {peer}")],
    );
    closed(
        "to: [{networks: [10.0.0.0/8, x]}]",
        &[&format!(
            "{at}.to[0].networks[1]: `x` must be an address range like 10.0.0.0/16 or fd00::/64"
        )],
    );
    closed(
        "to: [{namespaces: {matchLabels: {'a b': c}}}]",
        &[&format!(
            "{at}.to[0].namespaces.matchLabels: `a b` must be a label's key"
        )],
    );
    // An unknown protocol is not every protocol.
    closed(
        "to: [{namespaces: {}}], protocols: [{icmp: {}}]",
        &[&format!(
            "{at}.protocols[0]: must have one of tcp, udp, sctp and destinationNamedPort"
        )],
    );
    for (port, problem) in [
        ("{number: 0}", ".number: `0` must be a port from 1 to 65535"),
        ("{number: 65536}", ".number: `65536` must be a port from 1 to 65535"),
        (
            "{range: {start: 9, end: 8}}",
            ".range: `9-8` must be ports from 1 to 65535, start not above end",
        ),
        ("{}", ": must have one of number and range"),
    ] {
        closed(
            &format!("to: [{{namespaces: {{}}}}], protocols: [{{tcp: {{destinationPort: {port}}}}}]"),
            &[&format!("{at}.protocols[0].tcp.destinationPort{problem}")],
        );
    }
    closed(
        "to: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]",
        &[&format!(
            "{at}.protocols[0].destinationNamedPort: `80` must be a port's name"
        )],
    );
}

#[test]
fn a_rule_of_a_later_version_does_not_take_the_policy_along() {
    check(
        "
subject: {namespaces: {}}
ingress:
- {action: Mirror, from: [{namespaces: {}}]}
- {action: Deny, from: [{namespaces: {}}]}
",
        "
namespaceSelector: all()
selector: PODS
types: [Ingress]
ingress: [{action: Deny, source: {namespaceSelector: all()}}]
",
        &["spec.ingress[0].action: must be one of Accept, Deny, Pass"],
    );
}

#[test]
fn for_pods_that_are_not_known_what_is_denied_is_denied_to_all_and_what_is_accepted_to_none() {
    check(
        "
subject: {}
ingress:
- {action: Accept, from: [{namespaces: {}}]}
- {action: Pass, from: [{namespaces: {}}]}
- {action: Deny, from: [{namespaces: {matchLabels: {a: b}}}]}
",
        "
namespaceSelector: all()
selector: PODS
types: [Ingress]
ingress: [{action: Deny, source: {namespaceSelector: a == 'b'}}]
",
        &["spec.subject: must have one of namespaces and pods"],
    );
}

#[test]
fn the_baseline_is_another_tier() {
    let policy: ClusterNetworkPolicy = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "default"},
        "spec": {"tier": "Baseline", "priority": 1000, "subject": {"namespaces": {}}},
    }))
    .unwrap();
    let (converted, problems) = policy.to_global_network_policy();
    assert_eq!(converted.metadata.name, "kcnp.kube-baseline.default");
    assert_eq!(
        (converted.spec.tier.as_str(), converted.spec.order),
        ("kube-baseline", crate::Order::whole(1000))
    );
    assert!(converted.spec.types.is_empty() && problems.is_empty());
}
