use super::*;
use crate::{GlobalNetworkPolicySpec, NetworkPolicySpec, StagedGlobalNetworkPolicy, StagedNetworkPolicy};

const OURS: [Kind; 2] = [Kind::StagedNetworkPolicy, Kind::StagedGlobalNetworkPolicy];

#[test]
fn all_fields_survive() {
    for action in ["Set", "Learn", "Ignore"] {
        survives(
            Kind::StagedNetworkPolicy,
            "a",
            &format!(
                "{{stagedAction: {action}, tier: t, order: 1, selector: has(a), types: [Ingress], serviceAccountSelector: has(b), \
                 performanceHints: [AssumeNeededOnEveryNode], ingress: [{{action: Deny}}], egress: [{{action: Allow}}]}}"
            ),
        );
    }
    survives(
        Kind::StagedGlobalNetworkPolicy,
        "a",
        "{stagedAction: Set, tier: t, order: 1, selector: has(a), types: [Ingress], namespaceSelector: has(n), \
         serviceAccountSelector: has(b), applyOnForward: true, preDNAT: true, ingress: [{action: Deny}]}",
    );
    survives(
        Kind::StagedKubernetesNetworkPolicy,
        "a",
        "{stagedAction: Set, podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}, \
         policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}], ports: [{protocol: \
         UDP, port: 53}, {port: http}, {port: 80, endPort: 90}]}, {}], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: \
         [10.1.0.0/16]}}]}]}",
    );
}

#[test]
fn what_is_filled_in_is_as_for_the_policy_and_the_action() {
    for kind in OURS {
        with_defaults(kind, "a", "{}", "{stagedAction: Set, tier: default, types: [Ingress]}");
        with_defaults(
            kind,
            "a",
            "{stagedAction: Delete, tier: t}",
            "{stagedAction: Delete, tier: t}",
        );
    }
    with_defaults(
        Kind::StagedKubernetesNetworkPolicy,
        "a",
        "{podSelector: {}}",
        "{stagedAction: Set, podSelector: {}}",
    );
}

#[test]
fn a_rehearsal_is_checked_like_the_policy() {
    for kind in OURS {
        check(kind, "security.a", "{}", &[]);
        check(
            kind,
            "a",
            "{stagedAction: Undo, selector: '('}",
            &[
                "spec.stagedAction: `Undo` must be one of Set, Delete, Learn, Ignore",
                "spec.selector: `(` is no selector: at character 2: expected the name of a label, \
                 `has(`, `all()`, `!` or `(`, found the end",
            ],
        );
    }
    check(
        Kind::StagedGlobalNetworkPolicy,
        "a",
        "{preDNAT: true, ingress: [{action: Allow, source: {services: {name: s}}}]}",
        &[
            "spec.ingress[0].source.services.namespace: is required: a global policy has no namespace of its own",
            "spec.preDNAT: `true` needs applyOnForward: true",
        ],
    );
    check(
        Kind::StagedKubernetesNetworkPolicy,
        "a",
        "{podSelector: {matchLabels: {'a b': c}}, ingress: [{ports: [{port: 0}]}, {from: [{ipBlock: {cidr: x}}]}]}",
        &[
            "spec.ingress[0].ports[0].port: `0` must be a port from 1 to 65535, or a port's name",
            "spec.ingress[1].from[0].ipBlock.cidr: `x` must be an address range like 10.0.0.0/16 or fd00::/64",
            "spec.podSelector.matchLabels: `a b` must be a label's key",
        ],
    );
}

#[test]
fn a_rehearsed_deletion_says_nothing_else() {
    for kind in OURS {
        check(kind, "a", "{stagedAction: Delete}", &[]);
        check(kind, "a", "{stagedAction: Delete, tier: t}", &[]);
        check(
            kind,
            "a",
            "{stagedAction: Delete, selector: has(a)}",
            &["spec.stagedAction: `Delete` must stand alone, or with the tier"],
        );
    }
    let kind = Kind::StagedKubernetesNetworkPolicy;
    check(kind, "a", "{stagedAction: Delete}", &[]);
    check(
        kind,
        "a",
        "{stagedAction: Delete, ingress: [{}]}",
        &["spec.stagedAction: `Delete` must stand alone, or with the tier"],
    );
}

#[test]
fn what_is_rehearsed_is_the_policy_itself() {
    let ours = |spec: &str| {
        let enforced = |kind| to_json(&good(kind, "a", spec))["spec"].clone();
        let staged = StagedNetworkPolicy::try_from(good(Kind::StagedNetworkPolicy, "a", spec)).unwrap();
        let policy: NetworkPolicySpec = serde_json::from_value(enforced(Kind::NetworkPolicy)).unwrap();
        assert_eq!(staged.spec.enforced(), policy);
        let staged = StagedGlobalNetworkPolicy::try_from(good(Kind::StagedGlobalNetworkPolicy, "a", spec)).unwrap();
        let policy: GlobalNetworkPolicySpec = serde_json::from_value(enforced(Kind::GlobalNetworkPolicy)).unwrap();
        assert_eq!(staged.spec.enforced(), policy);
    };
    ours("{}");
    ours(
        "{tier: t, order: 1, selector: has(a), types: [Ingress], serviceAccountSelector: has(b), performanceHints: \
         [AssumeNeededOnEveryNode], ingress: [{action: Deny}], egress: [{action: Allow}]}",
    );
}
