use super::*;
use crate::{NetworkPolicy, Order, PolicyType};

const BOTH: [Kind; 2] = [Kind::NetworkPolicy, Kind::GlobalNetworkPolicy];

#[test]
fn all_fields_survive() {
    let common = "tier: security, order: 10.5, selector: \"a == 'b'\", types: [Ingress, Egress], serviceAccountSelector: has(sa), \
                  performanceHints: [AssumeNeededOnEveryNode], ingress: [{action: Allow}], egress: [{action: Pass}, \
                  {action: Log, destination: {services: {name: s, namespace: ns}}}]";
    survives(Kind::NetworkPolicy, "a", &format!("{{{common}}}"));
    let more = "namespaceSelector: has(ns), applyOnForward: true, doNotTrack: true";
    survives(Kind::GlobalNetworkPolicy, "a", &format!("{{{common}, {more}}}"));
    survives(
        Kind::GlobalNetworkPolicy,
        "a",
        "{preDNAT: true, applyOnForward: true, order: -7, types: [Ingress]}",
    );
    for kind in BOTH {
        survives(kind, "a", "{}");
        // A policy that nobody understood before it had a status has none; one with a status keeps it.
        let text = document(kind, "a", "{}")
            + "status: {conditions: [{type: Valid, status: 'False', reason: Selector, message: x, lastTransitionTime: \
               2026-01-02T03:04:05Z}]}\n";
        let read = read("-", &text).unwrap();
        assert_eq!(crate::document::read("-", &to_yaml(&read[0])).unwrap(), read);
    }
}

#[test]
fn tier_types_and_label_are_filled_in() {
    for kind in BOTH {
        let check = |spec: &str, tier: &str, types: &str| {
            let filled = good(kind, "a", spec).with_defaults();
            let document = to_json(&filled);
            assert_eq!(document["spec"]["tier"], tier, "{spec}");
            let types: serde_json::Value = serde_saphyr::from_str(types).unwrap();
            assert_eq!(document["spec"]["types"], types, "{spec}");
            assert_eq!(document["metadata"]["labels"]["projectcalico.org/tier"], tier);
            assert_eq!(filled.clone().with_defaults(), filled, "twice is once");
            assert_eq!(filled.problems(), []);
        };
        check("{}", "default", "[Ingress]");
        check("{ingress: [{action: Deny}]}", "default", "[Ingress]");
        check("{egress: [{action: Deny}]}", "default", "[Egress]");
        check(
            "{egress: [{action: Deny}], ingress: [{action: Deny}]}",
            "default",
            "[Ingress, Egress]",
        );
        check("{tier: a-1, types: [Egress]}", "a-1", "[Egress]");
        check("{egress: [{action: Deny}], types: [Ingress]}", "default", "[Ingress]");
    }
}

#[test]
fn what_is_not_filled_in_is_answered_as_if_it_were() {
    let policy = |spec| {
        NetworkPolicy::try_from(good(Kind::NetworkPolicy, "a", spec))
            .unwrap()
            .spec
    };
    let both = |spec| [PolicyType::Ingress, PolicyType::Egress].map(|kind| policy(spec).applies_to(kind));
    assert_eq!(both("{}"), [true, false]);
    assert_eq!(both("{egress: [{action: Deny}]}"), [false, true]);
    assert_eq!(both("{types: [Egress, Ingress]}"), [true, true]);
    assert_eq!(policy("{}").tier(), "default");
    assert!(policy("{order: 5}").order < policy("{}").order);
    assert_eq!(policy("{order: 5.0}").order, Order::whole(5));
}

#[test]
fn names_have_one_dot_at_most() {
    let right = "must be lower-case letters, digits and inner `-`, with one dot at most, 253 characters together";
    for kind in BOTH {
        for name in ["a", "security.a"] {
            check(kind, name, "{}", &[]);
        }
        check(kind, "a.b.c", "{}", &[&format!("metadata.name: `a.b.c` {right}")]);
        check(kind, "A", "{}", &[&format!("metadata.name: `A` {right}")]);
    }
    check(Kind::NetworkPolicy, "knp.default.a.b", "{}", &[]);
    check(
        Kind::GlobalNetworkPolicy,
        "knp.default.a",
        "{}",
        &[&format!("metadata.name: `knp.default.a` {right}")],
    );
}

#[test]
fn what_is_wrong_with_a_policy() {
    for kind in BOTH {
        check(
            kind,
            "a",
            "{tier: a.b, selector: global(), serviceAccountSelector: '(', types: [Ingress, Ingress], performanceHints: \
             [AssumeNeededOnEveryNode, AssumeNeededOnEveryNode]}",
            &[
                "spec.tier: `a.b` must be a DNS label: at most 63 lower-case letters, digits and inner `-`, no dots",
                "spec.selector: `global()` must not use global(): that is for the namespaceSelector of a rule",
                "spec.serviceAccountSelector: `(` is no selector: at character 2: expected the name of a label, \
                 `has(`, `all()`, `!` or `(`, found the end",
                "spec.types[1]: `Ingress` must occur once",
                "spec.performanceHints[1]: `AssumeNeededOnEveryNode` must occur once",
            ],
        );
        check(
            kind,
            "a",
            "{types: [Both], order: first}",
            &[
                "spec.order: `first` must be a number",
                "spec.types[0]: `Both` must be one of Ingress, Egress",
            ],
        );
        check(
            kind,
            "a",
            &format!("{{egress: [{}]}}", vec!["{action: Allow}"; 1025].join(", ")),
            &["spec.egress: `1025 items` must have at most 1024 items"],
        );
        check(
            kind,
            "a",
            "{ingress: [{action: Allow, destination: {services: {name: s, namespace: ns}}}], egress: [{action: Allow, source: \
             {services: {name: s, namespace: ns}}, http: {methods: [GET]}}, {action: Allow, protocol: TCP, source: {ports: [0]}}]}",
            &[
                "spec.egress[1].source.ports[0]: `0` must be a port from 1 to 65535, a range like 8000:8999, or a name",
                "spec.egress[0].http: must be absent: only ingress rules may look at HTTP",
                "spec.egress[0].source.services: must be absent: egress rules may have it in destination",
                "spec.ingress[0].destination.services: must be absent: ingress rules may have it in source",
            ],
        );
    }
    check(
        Kind::NetworkPolicy,
        "a",
        "{namespaceSelector: all(), preDNAT: true}",
        &[
            "spec.namespaceSelector: no such field; there are tier, order, ingress, egress, selector, types, \
             serviceAccountSelector, performanceHints",
            "spec.preDNAT: no such field; there are tier, order, ingress, egress, selector, types, serviceAccountSelector, \
             performanceHints",
        ],
    );
}

#[test]
fn services_need_a_namespace_where_the_policy_has_none() {
    let spec = "{ingress: [{action: Allow, source: {services: {name: s}}}], egress: [{action: Allow, destination: {services: {name: s}}}]}";
    check(Kind::NetworkPolicy, "a", spec, &[]);
    check(
        Kind::GlobalNetworkPolicy,
        "a",
        spec,
        &[
            "spec.ingress[0].source.services.namespace: is required: a global policy has no namespace of its own",
            "spec.egress[0].destination.services.namespace: is required: a global policy has no namespace of its own",
        ],
    );
}

#[test]
fn what_policies_for_hosts_may_combine() {
    let check = |spec: &str, wanted: &[&str]| check(Kind::GlobalNetworkPolicy, "a", spec, wanted);
    check(
        "{applyOnForward: true, doNotTrack: true, egress: [{action: Allow}]}",
        &[],
    );
    check("{applyOnForward: true, preDNAT: true, types: [Ingress]}", &[]);
    check("{applyOnForward: true}", &[]);
    check(
        "{doNotTrack: true, preDNAT: true}",
        &[
            "spec.doNotTrack: `true` must not go together with preDNAT",
            "spec.doNotTrack: `true` needs applyOnForward: true",
            "spec.preDNAT: `true` needs applyOnForward: true",
        ],
    );
    check(
        "{applyOnForward: true, preDNAT: true, egress: [{action: Allow}], types: [Ingress, Egress]}",
        &[
            "spec.egress: must be absent with preDNAT, which is for ingress",
            "spec.types[1]: `Egress` must be Ingress with preDNAT, which is for ingress",
        ],
    );
    check(
        "{namespaceSelector: global()}",
        &["spec.namespaceSelector: `global()` must not use global(): that is for the namespaceSelector of a rule"],
    );
}
