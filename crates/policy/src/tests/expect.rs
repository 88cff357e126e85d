//! Expectations about a cluster, and what a change of it changes.

use api::{Action, EntityRule, Key, Kind, Port, Protocol, Resource, Rule};

use super::build::{self, Parts};
use crate::expect::{Cluster, Expectation, Found, Party, Service};

#[test]
fn expectations_hold_or_say_what_was_found() {
    let cluster = Cluster::new(resources(Some("role == 'web'")).iter());
    let expect = |from: &str, to: &str, port: u16, allowed: bool| Expectation {
        from: party(from),
        to: party(to),
        service: Service::Port(6, port),
        allowed,
    };
    let right = [
        expect("web", "db", 5432, true),
        expect("web", "db", 5433, false),
        expect("other", "db", 5432, false),
        expect("db", "web", 80, true),
    ];
    assert_eq!(cluster.check(&right), []);
    let failures = cluster.check(&[expect("other", "db", 5432, true), expect("web", "nobody", 1, true)]);
    let [denied, unknown] = failures.try_into().unwrap();
    let Found::Verdict(connection) = denied.found else {
        panic!("both are workloads");
    };
    assert!(connection.to_string().contains("end of the tier"), "{connection}");
    assert_eq!(unknown.found, Found::NoWorkload(key("nobody")));
    let address = Party::Address("fd00::1".parse().unwrap());
    let found = cluster.ask(&party("web"), &address, Service::Icmp(128, 0));
    assert_eq!(found, Found::NoCommonFamily);
}

#[test]
fn a_change_of_policy_names_the_pairs_that_it_concerns() {
    let [before, after] =
        ["role == 'web'", "role in {'web', 'other'}"].map(|from| Cluster::new(resources(Some(from)).iter()));
    check(&before, &after, "other>db Port(6, 5432) true");
    check(&after, &before, "other>db Port(6, 5432) false");
    check(&before, &before, "");
    let open = Cluster::new(resources(None).iter());
    let differences = before.differences(&open);
    assert!(
        differences
            .iter()
            .all(|difference| difference.allowed && difference.to == key("db"))
    );
    // Both sides of the port, one beyond, two other protocols, echo: from either of the two.
    assert_eq!(differences.len(), 13);
}

fn check(before: &Cluster, after: &Cluster, wanted: &str) {
    let shown: Vec<String> = before
        .differences(after)
        .iter()
        .map(|it| format!("{}>{} {:?} {}", it.from.name, it.to.name, it.service, it.allowed))
        .collect();
    assert_eq!(shown.join(", "), wanted);
}

/// Three pods; to `db`, port 5432 is open for what `from` selects.
fn resources(from: Option<&str>) -> Vec<Resource> {
    let allow = vec![Rule::any(Action::Allow)];
    let mut resources: Vec<Resource> = vec![build::profile("open", Default::default(), allow.clone(), allow).into()];
    for (name, address) in [("web", "10.0.0.1"), ("db", "10.0.0.2"), ("other", "10.0.0.3")] {
        let mut endpoint = build::workload(&format!("node-of-{name}"), "a", name);
        endpoint.metadata.labels.insert("role".into(), name.into());
        endpoint.spec.profiles = vec!["open".into()];
        endpoint.spec.ip_networks = vec![address.parse::<std::net::IpAddr>().unwrap().into()];
        resources.push(endpoint.into());
    }
    if let Some(from) = from {
        let mut rule = Rule::any(Action::Allow);
        rule.protocol = Some(Protocol::from_text("TCP"));
        rule.destination.ports = vec![Port::Range(5432, 5432)];
        rule.source = EntityRule {
            selector: from.into(),
            ..EntityRule::default()
        };
        let parts = Parts {
            selector: "role == 'db'".into(),
            ingress: vec![rule],
            ..Parts::default()
        };
        resources.push(parts.namespaced("a", "p"));
    }
    resources
}

fn party(name: &str) -> Party {
    Party::Workload(key(name))
}

fn key(name: &str) -> Key {
    Key::namespaced(Kind::WorkloadEndpoint, "a", name)
}
