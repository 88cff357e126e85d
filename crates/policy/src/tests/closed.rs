//! What is missing or wrong closes the endpoints concerned, and says why.

use api::{Action, PolicyType, Resource};
use datastore::Update;

use super::build::{self, Parts};
use crate::{Effect, EndpointId, Graph, TierEnd};

#[test]
fn an_unreadable_selector_closes_the_namespace() {
    check(
        Parts {
            selector: "role ==".into(),
            ..Parts::default()
        }
        .namespaced("a", "p"),
        &["a/web", "a/db"],
        "spec.selector",
    );
    check(
        Parts {
            account_selector: "!".into(),
            selector: "role == 'web'".into(),
            ..Parts::default()
        }
        .namespaced("a", "p"),
        &["a/web"],
        "spec.serviceAccountSelector",
    );
}

#[test]
fn an_unreadable_selector_of_a_global_policy_closes_what_the_others_leave() {
    check(
        Parts {
            selector: "global()".into(),
            namespace_selector: "all()".into(),
            ..Parts::default()
        }
        .global("p"),
        &["a/web", "a/db", "b/web"],
        "spec.selector",
    );
    check(
        Parts {
            selector: "global()".into(),
            ..Parts::default()
        }
        .global("p"),
        &["a/web", "a/db", "b/web", "host"],
        "spec.selector",
    );
}

#[test]
fn an_unreadable_rule_closes_whom_the_policy_selects() {
    let mut rule = api::Rule::any(Action::Allow);
    rule.source.selector = "a in".into();
    check(
        Parts {
            selector: "role == 'web'".into(),
            egress: vec![api::Rule::any(Action::Allow), rule.clone()],
            ..Parts::default()
        }
        .global("p"),
        &["a/web", "b/web"],
        "spec.egress[1].source.selector",
    );
    check(
        build::profile("extra", Default::default(), vec![rule], vec![]).into(),
        &["b/web"],
        "spec.ingress[0].source.selector",
    );
}

#[test]
fn a_rule_that_upstream_would_refuse_is_not_guessed_at() {
    let rule = |change: fn(&mut api::Rule)| {
        let mut rule = api::Rule::any(Action::Allow);
        change(&mut rule);
        rule
    };
    type Change = fn(&mut api::Rule);
    let cases: [(Change, &str); 6] = [
        (|rule| rule.ip_version = Some(5), "ipVersion"),
        (
            |rule| rule.protocol = Some(api::Protocol::from_text("quic")),
            "protocol",
        ),
        (
            |rule| rule.destination.ports = vec![api::Port::Range(80, 80)],
            "destination.ports[0]",
        ),
        (
            |rule| {
                rule.icmp = Some(api::IcmpMatch {
                    kind: Some(8),
                    code: None,
                });
            },
            "icmp",
        ),
        (
            |rule| rule.source.namespace_selector = "a == 'b' || global()".into(),
            "source.namespaceSelector",
        ),
        (
            |rule| {
                rule.source.services = Some(api::ServiceMatch {
                    name: "x".into(),
                    namespace: String::new(),
                });
            },
            "source.services",
        ),
    ];
    for (change, field) in cases {
        check(
            Parts {
                selector: "role == 'db'".into(),
                ingress: vec![rule(change)],
                ..Parts::default()
            }
            .global("p"),
            &["a/db"],
            &format!("spec.ingress[0].{field}"),
        );
    }
}

#[test]
fn a_tier_that_does_not_exist_closes_whom_the_policy_selects() {
    check(
        Parts {
            tier: "nowhere".into(),
            selector: "role == 'db'".into(),
            types: vec![PolicyType::Egress],
            ..Parts::default()
        }
        .global("p"),
        &["a/db"],
        "spec.tier",
    );
}

#[test]
fn a_rehearsal_closes_nobody() {
    let graph = graph(
        Parts {
            selector: "role ==".into(),
            ..Parts::default()
        }
        .staged_global("p", false),
    );
    assert_eq!(graph.problems()[0].effect, Effect::NotReported);
    assert!(
        graph
            .state()
            .endpoints
            .values()
            .all(|endpoint| endpoint.closed.is_none())
    );
}

#[test]
fn http_is_reported_and_the_rest_of_the_rule_holds() {
    let mut rule = api::Rule::any(Action::Allow);
    rule.http = Some(api::HttpMatch::default());
    let graph = graph(
        Parts {
            ingress: vec![rule],
            ..Parts::default()
        }
        .global("p"),
    );
    let problems = graph.problems();
    assert_eq!((problems.len(), problems[0].effect), (1, Effect::NotEnforced));
    assert!(
        graph
            .state()
            .endpoints
            .values()
            .all(|endpoint| endpoint.closed.is_none())
    );
}

#[test]
fn a_missing_profile_is_there_and_denies() {
    let graph = graph(build::tier("t", None, None).into());
    assert!(graph.state().profiles["gone"].missing);
}

#[test]
fn policies_of_host_endpoints_have_their_hooks() {
    let parts = |change: fn(&mut Parts)| {
        let mut parts = Parts {
            apply_on_forward: true,
            types: vec![PolicyType::Ingress, PolicyType::Egress],
            ..Parts::default()
        };
        change(&mut parts);
        parts.global("p")
    };
    let hooks = |resource: Resource| {
        let graph = graph(resource);
        let host = graph.state().endpoints[&EndpointId::Host("host".into())].clone();
        let tiers = [
            &host.ingress,
            &host.egress,
            &host.forward.ingress,
            &host.forward.egress,
            &host.pre_dnat,
            &host.untracked.ingress,
            &host.untracked.egress,
        ];
        tiers.map(|direction| direction.tiers.first().map(|tier| tier.end))
    };
    let (deny, pass) = (Some(TierEnd::Deny), Some(TierEnd::Pass));
    assert_eq!(hooks(parts(|_| {})), [deny, deny, deny, deny, None, None, None]);
    let normal = hooks(parts(|parts| parts.apply_on_forward = false));
    assert_eq!(normal, [deny, deny, None, None, None, None, None]);
    let pre_dnat = hooks(parts(|parts| parts.pre_dnat = true));
    assert_eq!(pre_dnat, [None, None, None, None, pass, None, None]);
    let untracked = hooks(parts(|parts| parts.do_not_track = true));
    assert_eq!(untracked, [None, None, None, None, None, pass, pass]);
}

#[test]
fn nobody_claims_another_namespace() {
    let mut liar = build::workload("n1", "b", "liar");
    liar.metadata.labels.extend([
        ("projectcalico.org/namespace".to_owned(), "a".to_owned()),
        ("pcns.team".to_owned(), "x".to_owned()),
        ("pcsa.trusted".to_owned(), "yes".to_owned()),
        ("role".to_owned(), "web".to_owned()),
    ]);
    let mut graph = graph(build::tier("t", None, None).into());
    let id = EndpointId::Workload(liar.key());
    graph.local(liar.key(), Some(liar));
    graph.flush();
    let labels: Vec<_> = graph.state().endpoints[&id].labels.iter().collect();
    let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        shown.join(" "),
        "projectcalico.org/namespace=b projectcalico.org/orchestrator=k8s role=web"
    );
}

/// For which endpoints a resource denies all in a direction, and which field the reason names.
fn check(resource: Resource, closed: &[&str], field: &str) {
    let policy = resource.key();
    let effect = match policy.kind {
        api::Kind::Profile | api::Kind::HostEndpoint => Effect::Closed,
        _ => Effect::Denies,
    };
    let graph = graph(resource);
    let name = |id: &EndpointId| match id {
        EndpointId::Workload(key) => format!("{}/{}", key.namespace.as_ref().unwrap(), key.name),
        EndpointId::Host(name) => name.clone(),
    };
    let mut seen: Vec<String> = Vec::new();
    for (id, endpoint) in &graph.state().endpoints {
        if let Some(why) = &endpoint.closed {
            assert_eq!(effect, Effect::Closed);
            assert!(why.contains(&format!(" {field}: `")), "{why}");
            seen.push(name(id));
        }
        let mut tiers = endpoint.ingress.tiers.iter().chain(endpoint.egress.tiers.iter());
        if tiers.any(|tier| tier.policies.contains(&policy)) {
            seen.push(name(id));
        }
    }
    if let Some(policy) = graph.state().policies.get(&policy) {
        assert!(policy.selector.contains(&format!("{field}: `")), "{}", policy.selector);
        for rules in [&policy.ingress, &policy.egress] {
            assert!(rules[0].matches_everything() && rules[0].action == Action::Deny);
        }
    }
    seen.sort();
    let mut wanted: Vec<&str> = closed.to_vec();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "{field}");
    let problems = graph.problems();
    assert_eq!((problems.len(), problems[0].field.as_str()), (1, field));
    assert_eq!(problems[0].effect, effect);
}

/// Three pods and a host endpoint of our node, and one more resource.
fn graph(resource: Resource) -> Graph {
    let mut graph = Graph::new("n1");
    for (namespace, name, profile) in [("a", "web", "gone"), ("a", "db", "gone"), ("b", "web", "extra")] {
        let mut endpoint = build::workload("n1", namespace, name);
        endpoint.metadata.labels.insert("role".into(), name.into());
        endpoint.spec.profiles = vec![profile.into()];
        graph.local(endpoint.key(), Some(endpoint));
    }
    let resources: [Resource; 3] = [
        build::profile("extra", Default::default(), vec![], vec![]).into(),
        build::host("host", "n1", "eth0").into(),
        resource,
    ];
    for resource in resources {
        graph.apply(Update {
            key: resource.key(),
            value: Some(resource),
        });
    }
    graph.flush();
    graph
}

/// What happens at each hook to a packet to a host endpoint that no policy allows.
#[track_caller]
fn check_hooks(resources: [Resource; 2], expected: &str) {
    use crate::evaluate::{Hook, Packet, Way, evaluate_at};
    let mut graph = Graph::new("n1");
    for resource in resources {
        graph.apply(Update {
            key: resource.key(),
            value: Some(resource),
        });
    }
    graph.flush();
    let packet = Packet {
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        protocol: 99,
        source_port: None,
        destination_port: None,
        icmp: None,
    };
    let hooks = [Hook::Normal, Hook::Forward, Hook::PreDnat, Hook::Untracked];
    let id = EndpointId::Host("host".into());
    let outcome = |hook| evaluate_at(graph.state(), &id, hook, Way::Ingress, &packet).outcome;
    assert_eq!(hooks.map(|hook| outcome(hook).to_string()).join(", "), expected);
}

#[test]
fn a_policy_that_cannot_be_followed_denies_where_it_would_be_asked() {
    let host = || Resource::from(build::host("host", "n1", "eth0"));
    let broken = |change: fn(&mut Parts)| {
        let mut parts = Parts {
            selector: "global()".into(),
            ..Parts::default()
        };
        change(&mut parts);
        [parts.global("p"), host()]
    };
    check_hooks(broken(|_| {}), "denied, goes on, goes on, goes on");
    check_hooks(
        broken(|parts| parts.apply_on_forward = true),
        "denied, denied, goes on, goes on",
    );
    check_hooks(
        broken(|parts| parts.pre_dnat = true),
        "denied, goes on, denied, goes on",
    );
    check_hooks(
        broken(|parts| parts.do_not_track = true),
        "denied, goes on, goes on, denied",
    );
    check_hooks(
        broken(|parts| parts.types = vec![PolicyType::Egress]),
        "denied, goes on, goes on, goes on",
    );
}

/// A resource of which something cannot be read.
fn spoilt(resource: impl Into<Resource>, field: &str, value: serde_json::Value) -> Resource {
    let mut json = serde_json::to_value(resource.into()).unwrap();
    json["spec"][field] = value;
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_host_endpoint_that_cannot_be_read_is_closed_where_failsafe_ports_are_known() {
    let host = spoilt(build::host("host", "n1", "eth0"), "expectedIPs", "10.0.0".into());
    let open = Parts {
        ingress: vec![api::Rule::any(Action::Allow)],
        ..Parts::default()
    };
    check_hooks([open.global("p"), host], "denied, denied, goes on, goes on");
}

#[test]
fn a_policy_that_may_be_for_forwarded_packets_denies_them() {
    let host = || Resource::from(build::host("host", "n1", "eth0"));
    let policy = |field: &str, value: serde_json::Value| spoilt(Parts::default().global("p"), field, value);
    for field in ["applyOnForward", "preDNAT", "doNotTrack"] {
        check_hooks([policy(field, 5.into()), host()], "denied, denied, goes on, goes on");
    }
    check_hooks(
        [policy("order", serde_json::json!({})), host()],
        "denied, goes on, goes on, goes on",
    );
    let key = api::Key::cluster(api::Kind::GlobalNetworkPolicy, "p");
    let nothing = api::Wrong::unreadable(&key, "no JSON", serde_json::Value::Null);
    check_hooks([nothing.into(), host()], "denied, denied, goes on, goes on");
}

#[test]
fn a_policy_that_cannot_be_read_denies_whom_it_may_select_in_its_directions() {
    let parts = || Parts {
        selector: "role == 'db'".into(),
        types: vec![PolicyType::Egress],
        ..Parts::default()
    };
    let graph = graph(spoilt(
        parts().global("p"),
        "egress",
        serde_json::json!([{ "action": "Alow" }]),
    ));
    let denied = |graph: &Graph, id: &str, way: fn(&crate::Endpoint) -> &crate::Direction| {
        let mut endpoints = graph.state().endpoints.iter();
        let endpoint = endpoints.find(|(known, _)| known.key().to_string() == id).unwrap().1;
        let mut tiers = way(endpoint).tiers.iter();
        tiers.any(|tier| !tier.policies.is_empty())
    };
    for (id, egress) in [
        ("WorkloadEndpoint(a/db)", true),
        ("WorkloadEndpoint(a/web)", false),
        ("HostEndpoint(host)", false),
    ] {
        assert_eq!(denied(&graph, id, |endpoint| &endpoint.egress), egress, "{id}");
        assert!(!denied(&graph, id, |endpoint| &endpoint.ingress), "{id}");
    }
    let problem = &graph.problems()[0];
    assert_eq!(
        (problem.field.as_str(), problem.effect),
        ("spec.egress[0].action", Effect::Denies)
    );
    // In which direction is not known.
    let graph = self::graph(spoilt(parts().global("p"), "types", serde_json::json!(["Out"])));
    assert!(denied(&graph, "WorkloadEndpoint(a/db)", |endpoint| &endpoint.ingress));
    // Nothing is.
    let key = api::Key::namespaced(api::Kind::NetworkPolicy, "a", "p");
    let nothing = api::Wrong::unreadable(&key, "no JSON", serde_json::Value::Null);
    let graph = self::graph(nothing.into());
    assert!(denied(&graph, "WorkloadEndpoint(a/web)", |endpoint| &endpoint.egress));
    assert!(!denied(&graph, "WorkloadEndpoint(b/web)", |endpoint| &endpoint.egress));
}
