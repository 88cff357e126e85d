//! NetworkPolicy: the examples of Kubernetes' page on network policies and of its API reference, then what is not right.

use super::network_policy as check;

#[test]
fn the_long_example() {
    check(
        "
podSelector: {matchLabels: {role: db}}
policyTypes: [Ingress, Egress]
ingress:
- from:
  - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
  - namespaceSelector: {matchLabels: {project: myproject}}
  - podSelector: {matchLabels: {role: frontend}}
  ports: [{protocol: TCP, port: 6379}]
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/24}}]
  ports: [{protocol: TCP, port: 5978}]
",
        "
selector: PODS && role == 'db'
types: [Ingress, Egress]
ingress:
- {action: Allow, protocol: TCP, source: {nets: [172.17.0.0/16], notNets: [172.17.1.0/24]}, destination: {ports: [6379]}}
- action: Allow
  protocol: TCP
  source: {selector: PODS, namespaceSelector: project == 'myproject'}
  destination: {ports: [6379]}
- {action: Allow, protocol: TCP, source: {selector: PODS && role == 'frontend'}, destination: {ports: [6379]}}
egress:
- {action: Allow, protocol: TCP, destination: {nets: [10.0.0.0/24], ports: [5978]}}
",
        &[],
    );
}

#[test]
fn two_selectors_in_one_peer_must_both_match_in_two_peers_either() {
    check(
        "
podSelector: {}
policyTypes: [Ingress]
ingress:
- from:
  - namespaceSelector: {matchLabels: {user: alice}}
    podSelector: {matchLabels: {role: client}}
",
        "
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, source: {selector: PODS && role == 'client', namespaceSelector: user == 'alice'}}
",
        &[],
    );
    check(
        "
podSelector: {}
policyTypes: [Ingress]
ingress:
- from:
  - namespaceSelector: {matchLabels: {user: alice}}
  - podSelector: {matchLabels: {role: client}}
",
        "
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, source: {selector: PODS, namespaceSelector: user == 'alice'}}
- {action: Allow, source: {selector: PODS && role == 'client'}}
",
        &[],
    );
}

#[test]
fn default_policies() {
    // Deny all ingress, allow all ingress, deny all egress, allow all egress, deny both.
    check(
        "{podSelector: {}, policyTypes: [Ingress]}",
        "{selector: PODS, types: [Ingress]}",
        &[],
    );
    check(
        "{podSelector: {}, ingress: [{}], policyTypes: [Ingress]}",
        "{selector: PODS, types: [Ingress], ingress: [{action: Allow}]}",
        &[],
    );
    check(
        "{podSelector: {}, policyTypes: [Egress]}",
        "{selector: PODS, types: [Egress]}",
        &[],
    );
    check(
        "{podSelector: {}, egress: [{}], policyTypes: [Egress]}",
        "{selector: PODS, types: [Egress], egress: [{action: Allow}]}",
        &[],
    );
    check(
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        "{selector: PODS, types: [Ingress, Egress]}",
        &[],
    );
}

#[test]
fn types_that_are_not_given_are_ingress_and_egress_if_it_has_rules() {
    check("{podSelector: {}}", "{selector: PODS, types: [Ingress]}", &[]);
    check(
        "{podSelector: {}, egress: [{}]}",
        "{selector: PODS, types: [Ingress, Egress], egress: [{action: Allow}]}",
        &[],
    );
    // Rules for a direction that is not named are there and ask nobody.
    check(
        "{podSelector: {}, egress: [{}], policyTypes: [Ingress]}",
        "{selector: PODS, types: [Ingress], egress: [{action: Allow}]}",
        &[],
    );
}

#[test]
fn a_range_of_ports() {
    check(
        "
podSelector: {matchLabels: {role: db}}
policyTypes: [Egress]
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/24}}]
  ports: [{protocol: TCP, port: 32000, endPort: 32768}]
",
        "
selector: PODS && role == 'db'
types: [Egress]
egress: [{action: Allow, protocol: TCP, destination: {nets: [10.0.0.0/24], ports: ['32000:32768']}}]
",
        &[],
    );
}

#[test]
fn several_namespaces_by_label_and_one_by_name() {
    check(
        "
podSelector: {matchLabels: {app: myapp}}
policyTypes: [Egress]
egress:
- to:
  - namespaceSelector: {matchExpressions: [{key: namespace, operator: In, values: [frontend, backend]}]}
  - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
",
        "
selector: PODS && app == 'myapp'
types: [Egress]
egress:
- action: Allow
  destination: {selector: PODS, namespaceSelector: \"namespace in { 'frontend', 'backend' }\"}
- action: Allow
  destination: {selector: PODS, namespaceSelector: kubernetes.io/metadata.name == 'kube-system'}
",
        &[],
    );
}

#[test]
fn no_namespace_selector_is_the_own_namespace_and_an_empty_one_all() {
    check(
        "
podSelector: {}
ingress:
- from:
  - podSelector: {}
  - namespaceSelector: {}
  - {podSelector: {matchLabels: {a: b}}, namespaceSelector: {}}
",
        "
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, source: {selector: PODS}}
- {action: Allow, source: {selector: PODS, namespaceSelector: all()}}
- {action: Allow, source: {selector: PODS && a == 'b', namespaceSelector: all()}}
",
        &[],
    );
}

#[test]
fn all_operators_and_sorted_labels() {
    check(
        "
podSelector:
  matchLabels: {z: '', a.example.com/b: c}
  matchExpressions:
  - {key: k, operator: In, values: [v]}
  - {key: k, operator: NotIn, values: [v, w]}
  - {key: k, operator: Exists}
  - {key: k, operator: DoesNotExist}
",
        "
selector: \"PODS && a.example.com/b == 'c' && z == '' && k in { 'v' } && k not in { 'v', 'w' } && has(k) && ! has(k)\"
types: [Ingress]
",
        &[],
    );
}

#[test]
fn ports_are_one_rule_a_protocol_and_as_few_ranges_as_possible() {
    check(
        "
podSelector: {}
ingress:
- ports:
  - {port: 82}
  - {protocol: UDP, port: 53}
  - {protocol: TCP, port: 80}
  - {protocol: TCP, port: http}
  - {protocol: TCP, port: '81'}
  - {protocol: TCP, port: http}
  - {protocol: TCP, port: 90, endPort: 95}
  - {protocol: TCP, port: 93, endPort: 99}
  - {protocol: SCTP, port: 7777}
",
        "
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, protocol: SCTP, destination: {ports: [7777]}}
- {action: Allow, protocol: TCP, destination: {ports: [http, '80:82', '90:99']}}
- {action: Allow, protocol: UDP, destination: {ports: [53]}}
",
        &[],
    );
}

#[test]
fn a_protocol_without_a_port_is_all_of_its_ports() {
    check(
        "
podSelector: {}
ingress:
- ports: [{protocol: UDP, port: 53}, {protocol: UDP}, {protocol: UDP, port: 54}]
- ports: [{}]
",
        "
selector: PODS
types: [Ingress]
ingress: [{action: Allow, protocol: UDP}, {action: Allow, protocol: TCP}]
",
        &[],
    );
}

#[test]
fn every_peer_goes_with_every_protocol() {
    check(
        "
podSelector: {}
egress:
- to: [{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/8'}}]
  ports: [{protocol: TCP, port: 53}, {protocol: UDP, port: 53}]
policyTypes: [Egress]
",
        "
selector: PODS
types: [Egress]
egress:
- {action: Allow, protocol: TCP, destination: {nets: [10.0.0.0/8], ports: [53]}}
- {action: Allow, protocol: TCP, destination: {nets: ['fd00::/8'], ports: [53]}}
- {action: Allow, protocol: UDP, destination: {nets: [10.0.0.0/8], ports: [53]}}
- {action: Allow, protocol: UDP, destination: {nets: ['fd00::/8'], ports: [53]}}
",
        &[],
    );
}

#[test]
fn prefixes_are_masked_and_everything_may_have_holes() {
    check(
        "
podSelector: {}
ingress:
- from:
  - {ipBlock: {cidr: 10.1.2.3/8, except: [10.1.2.3/16]}}
  - {ipBlock: {cidr: 0.0.0.0/0, except: [169.254.169.254/32]}}
  - {ipBlock: {cidr: '::/0', except: ['fd00::/8']}}
",
        "
selector: PODS
types: [Ingress]
ingress:
- {action: Allow, source: {nets: [10.0.0.0/8], notNets: [10.1.0.0/16]}}
- {action: Allow, source: {nets: [0.0.0.0/0], notNets: [169.254.169.254/32]}}
- {action: Allow, source: {nets: ['::/0'], notNets: ['fd00::/8']}}
",
        &[],
    );
}

/// A rule that is wrong, beside one that is right: only the latter is left.
#[track_caller]
fn dropped(rule: &str, problems: &[&str]) {
    check(
        &format!("{{podSelector: {{}}, ingress: [{rule}, {{ports: [{{port: 1}}]}}]}}"),
        "{selector: PODS, types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [1]}}]}",
        problems,
    );
}

#[test]
fn a_rule_with_a_wrong_port_is_left_out_and_the_others_stay() {
    let at = "spec.ingress[0].ports[0]";
    for port in ["0", "65536", "-1", "'0'", "'70000'", "a b", "''"] {
        let shown = port.trim_matches('\'');
        dropped(
            &format!("{{ports: [{{port: {port}}}, {{port: 80}}]}}"),
            &[&format!(
                "{at}.port: `{shown}` must be a port from 1 to 65535, or a port's name"
            )],
        );
    }
    dropped(
        "{ports: [{port: 80, endPort: 79}]}",
        &[&format!("{at}.endPort: `79` must be a port from port to 65535")],
    );
    dropped(
        "{ports: [{port: 80, endPort: 65536}]}",
        &[&format!("{at}.endPort: `65536` must be a port from port to 65535")],
    );
    dropped(
        "{ports: [{port: http, endPort: 90}]}",
        &[&format!(
            "{at}.port: `http` must be a port from 1 to 65535 with endPort"
        )],
    );
    dropped(
        "{ports: [{endPort: 90}]}",
        &[&format!("{at}.endPort: `90` must be absent without port")],
    );
    dropped(
        "{ports: [{protocol: ICMP}, {protocol: tcp, port: 0}]}",
        &[
            "spec.ingress[0].ports[0].protocol: `ICMP` must be TCP, UDP or SCTP",
            "spec.ingress[0].ports[1].protocol: `tcp` must be TCP, UDP or SCTP",
            "spec.ingress[0].ports[1].port: `0` must be a port from 1 to 65535, or a port's name",
        ],
    );
}

#[test]
fn a_rule_with_a_wrong_peer_never_lets_everybody_in() {
    let at = "spec.ingress[0].from[0]";
    let range = "must be an address range like 10.0.0.0/16 or fd00::/64";
    dropped(
        "{from: [{ipBlock: {cidr: x}}]}",
        &[&format!("{at}.ipBlock.cidr: `x` {range}")],
    );
    dropped(
        "{from: [{ipBlock: {cidr: 10.0.0.1}}]}",
        &[&format!("{at}.ipBlock.cidr: `10.0.0.1` {range}")],
    );
    dropped(
        "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x, 11.0.0.0/16, 10.0.0.0/8, 'fd00::/8', 10.1.0.0/16]}}]}",
        &[
            &format!("{at}.ipBlock.except[0]: `x` {range}"),
            &format!("{at}.ipBlock.except[1]: `11.0.0.0/16` must lie within 10.0.0.0/8 and not be all of it"),
            &format!("{at}.ipBlock.except[2]: `10.0.0.0/8` must lie within 10.0.0.0/8 and not be all of it"),
            &format!("{at}.ipBlock.except[3]: `fd00::/8` must lie within 10.0.0.0/8 and not be all of it"),
        ],
    );
    dropped(
        "{from: [{}]}",
        &[&format!("{at}: must have ipBlock, podSelector or namespaceSelector")],
    );
    dropped(
        "{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}",
        &[&format!("{at}.ipBlock: must stand alone, without selectors")],
    );
    dropped(
        "{from: [{podSelector: {matchExpressions: [{key: a, operator: In}, {key: b, operator: Exists, values: [c]}]}}]}",
        &[
            &format!("{at}.podSelector.matchExpressions[0].values: is required with In and NotIn"),
            &format!("{at}.podSelector.matchExpressions[1].values: must be absent with Exists and DoesNotExist"),
        ],
    );
}

#[test]
fn a_label_is_never_read_as_a_part_of_the_selector() {
    dropped(
        r#"{from: [{podSelector: {matchLabels: {a: "b' || all() || c == 'd", "x y": z}}}]}"#,
        &[
            "spec.ingress[0].from[0].podSelector.matchLabels.a: `b' || all() || c == 'd` must be a label's value",
            "spec.ingress[0].from[0].podSelector.matchLabels: `x y` must be a label's key",
        ],
    );
}

#[test]
fn a_policy_for_pods_that_are_not_known_closes_the_namespace() {
    check(
        "{podSelector: {matchLabels: {'a b': c}}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}",
        "{selector: PODS, types: [Ingress, Egress]}",
        &["spec.podSelector.matchLabels: `a b` must be a label's key"],
    );
}

#[test]
fn what_is_made_of_a_policy_keeps_its_revision_and_time_and_gets_another_uid() {
    let policy: super::K8sNetworkPolicy = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": "a",
            "uid": "30316465-6365-4463-ad63-3564622d3638",
            "resourceVersion": "77",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"a": "b"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"podSelector": {}},
    }))
    .unwrap();
    let metadata = policy.to_network_policy().0.metadata;
    assert_eq!(metadata.namespace.as_deref(), Some("default"));
    assert_eq!(metadata.uid.as_deref(), Some("0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"));
    assert_eq!(metadata.resource_version.as_deref(), Some("77"));
    assert_eq!(metadata.creation_timestamp, policy.metadata.creation_timestamp);
    assert!(metadata.labels.is_empty());
}
