use api::document;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::nodes::Absences;

const NODES: &str = "
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1, labels: {rack: a}}
spec:
  bgp: {ipv4Address: 10.0.0.1/24, ipv6Address: 'fd00::1/64', ipv4IPIPTunnelAddr: 192.168.0.1}
  addresses: [{address: 10.0.0.1/24, type: InternalIP}, {address: 172.16.0.1, type: InternalIP}, {address: 8.8.8.8, type: ExternalIP}]
  interfaces: [{name: eth0, addresses: [10.0.0.1/24, 'fd00::1']}, {name: Eth_1, addresses: [172.16.0.1/16]}, {name: lo}]
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {}
";

fn settings(json: serde_json::Value) -> NodeSettings {
    let config: api::AutoHostEndpointConfig = serde_json::from_value(json).unwrap();
    NodeSettings {
        period: SignedDuration::from_secs(300),
        grace: None,
        auto_create: config.auto_create == Some(api::Switch::Enabled),
        default_host_endpoint: config.create_default_host_endpoint != Some(api::Switch::Disabled),
        templates: config.templates,
    }
}

fn resources(more: &str) -> Vec<Resource> {
    document::read("-", &format!("{NODES}{more}")).unwrap()
}

/// What is done, a line each: `put NAME interface=… ips=… labels=…` or `delete NAME`, then problems.
#[track_caller]
fn check(config: serde_json::Value, more: &str, expected: &[&str]) -> Vec<Action> {
    let world: World = resources(more).into_iter().collect();
    let mut absences = Absences::default();
    let now = Timestamp::UNIX_EPOCH;
    absences.look(now, &world);
    let attendance = absences.look(now + crate::nodes::SETTLE, &world);
    let (actions, problems) = decide(&settings(config), &world, &attendance);
    let line = |action: &Action| match action {
        Action::PutHostEndpoint(endpoint) => {
            assert_eq!(endpoint.problems(), []);
            let ips: Vec<String> = endpoint.spec.expected_ips.iter().map(ToString::to_string).collect();
            let mut labels = endpoint.metadata.labels.clone();
            assert_eq!(labels.remove(CREATED_BY.0).as_deref(), Some(CREATED_BY.1));
            assert_eq!(endpoint.spec.profiles, ["projectcalico-default-allow"]);
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let (name, interface) = (&endpoint.metadata.name, &endpoint.spec.interface_name);
            format!("put {name} {interface:?} {} {}", ips.join(","), labels.join(","))
        }
        Action::DeleteHostEndpoint { name, gone } => format!("delete {name} {gone:?}"),
        other => panic!("{other}"),
    };
    let mut lines: Vec<String> = actions.iter().map(line).collect();
    lines.extend(problems);
    assert_eq!(lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>(), expected);
    actions
}

const OWN: &str = "10.0.0.1,fd00::1,192.168.0.1,172.16.0.1";

#[test]
fn every_node_has_one_for_all_its_interfaces() {
    let on = serde_json::json!({"autoCreate": "Enabled"});
    let n1 = format!("put n1-auto-hep \"*\" {OWN} rack=a");
    let actions = check(on.clone(), "", &[&n1, "put n2-auto-hep \"*\""]);
    // Once they are there, nothing is to be done.
    let mut world: World = resources("").into_iter().collect();
    for action in actions {
        let Action::PutHostEndpoint(endpoint) = action else {
            panic!()
        };
        world.apply(datastore::Update {
            key: endpoint.key(),
            value: Some((*endpoint).into()),
        });
    }
    assert_eq!(decide(&settings(on), &world, &Attendance::default()), (vec![], vec![]));
}

const AUTOMATIC: &str = "
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n2-auto-hep, labels: {projectcalico.org/created-by: calico-kube-controllers}}
spec: {node: n2, interfaceName: '*', expectedIPs: [10.9.9.9], profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: old-auto-hep, labels: {projectcalico.org/created-by: calico-kube-controllers}}
spec: {node: old, interfaceName: '*'}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n1-auto-hep}
spec: {node: n1, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: mine-auto-hep, labels: {projectcalico.org/created-by: me}}
spec: {node: old, interfaceName: eth0}
";

#[test]
fn those_that_are_not_automatic_are_never_touched() {
    check(
        serde_json::json!({"autoCreate": "Enabled"}),
        AUTOMATIC,
        &[
            "put n2-auto-hep \"*\"",
            "delete old-auto-hep Some(\"old\")",
            "HostEndpoint(n1-auto-hep) is in the way of an automatic one: rename it, or give it the label \
             projectcalico.org/created-by=calico-kube-controllers",
        ],
    );
}

#[test]
fn one_that_cannot_be_read_is_not_written_over() {
    let wrong = serde_json::json!({ "kind": "HostEndpoint", "metadata": { "name": "n1-auto-hep" },
        "spec": { "node": "n1", "interfaceName": 5 } });
    let mut world: World = resources("").into_iter().collect();
    let wrong: Resource = serde_json::from_value(wrong).unwrap();
    world.apply(datastore::Update {
        key: wrong.key(),
        value: Some(wrong),
    });
    let config = settings(serde_json::json!({"autoCreate": "Enabled"}));
    let (actions, problems) = decide(&config, &world, &Attendance::default());
    let put: Vec<String> = actions.iter().map(ToString::to_string).collect();
    assert_eq!(put, ["put-host-endpoint n2-auto-hep"]);
    assert_eq!(
        problems,
        ["HostEndpoint(n1-auto-hep) cannot be read: put it right, or delete it"]
    );
}

#[test]
fn when_they_are_turned_off_the_automatic_ones_go() {
    let gone = ["delete n2-auto-hep None", "delete old-auto-hep None"];
    check(serde_json::json!({"autoCreate": "Disabled"}), AUTOMATIC, &gone);
    check(serde_json::json!({}), AUTOMATIC, &gone);
}

#[test]
fn that_of_a_node_that_is_away_for_a_moment_stays() {
    let world: World = resources(AUTOMATIC).into_iter().collect();
    let attendance = Absences::default().look(Timestamp::UNIX_EPOCH, &world);
    let (actions, _) = decide(
        &settings(serde_json::json!({"autoCreate": "Enabled"})),
        &world,
        &attendance,
    );
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::DeleteHostEndpoint { .. })),
        "{actions:?}"
    );
}

#[test]
fn templates_pick_nodes_addresses_and_interfaces() {
    let config = |template: serde_json::Value| serde_json::json!({"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled", "templates": [template]});
    check(
        config(
            serde_json::json!({"generateName": "t", "interfaceCIDRs": ["10.0.0.0/8", "fd00::/8"],
            "labels": {"rack": "b", "x": "y"}}),
        ),
        "",
        &["put n1-t-auto-hep \"\" 10.0.0.1,fd00::1 rack=b,x=y"],
    );
    check(
        config(serde_json::json!({"generateName": "t", "interfacePattern": "^(eth|Eth)"})),
        "",
        &[
            "put n1-185dcad86b293c74-auto-hep \"Eth_1\" 172.16.0.1 rack=a",
            "put n1-t-eth0-auto-hep \"eth0\" 10.0.0.1,fd00::1 rack=a",
        ],
    );
    check(
        config(serde_json::json!({"generateName": "t", "interfacePattern": ".", "interfaceCIDRs": ["fd00::/8"]})),
        "",
        &["put n1-t-eth0-auto-hep \"eth0\" fd00::1 rack=a"],
    );
    check(
        config(serde_json::json!({"generateName": "t", "interfacePattern": "lo", "nodeSelector": "rack == 'a'"})),
        "",
        &["put n1-t-lo-auto-hep \"lo\"  rack=a"],
    );
    check(
        config(serde_json::json!({"generateName": "t", "interfacePattern": "lo", "nodeSelector": "!has(rack)"})),
        "",
        &[],
    );
}

#[test]
fn names_are_legal_and_differ_however_long_the_parts_are() {
    let long = "n".repeat(253);
    let names = [
        endpoint_name(&[&long]),
        endpoint_name(&[&long, "t"]),
        endpoint_name(&[&long, "t", "eth0"]),
        endpoint_name(&["n", "t", "A_b"]),
        endpoint_name(&["n", "t", "a_b"]),
    ];
    for (index, name) in names.iter().enumerate() {
        assert!(is_subdomain(name) && name.len() <= 253, "{name}");
        assert!(!names[..index].contains(name), "{name}");
    }
    assert_eq!(endpoint_name(&["n", "t", "eth0"]), "n-t-eth0-auto-hep");
}
