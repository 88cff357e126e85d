//! Policy and SCTP: whole associations by hand between pods of two nodes, over IPv4 and IPv6.

mod common;

use api::Kind;
use common::Lab;
use common::cluster::{Datastore, k8s, resource};
use common::sctp::{End, crc32c};

#[test]
fn associations_are_allowed_and_denied_by_port() {
    let Some(lab) = Lab::up("t-pol-sctp", &["--nodes", "2", "--pods-per-node", "0", "--ipv6"]) else {
        return;
    };
    let nodes = lab.nodes();
    let client = lab.add_pod("default", "client", &nodes[0], &[("role", "client")]);
    let server = lab.add_pod("default", "server", &nodes[1], &[("role", "server")]);
    let store = Datastore::of(&lab);
    store.change_pod(&server, |endpoint| {
        let ports = serde_json::json!([{"name": "diameter", "protocol": "SCTP", "port": 3868},
            {"name": "web", "protocol": "TCP", "port": 5000}]);
        endpoint.spec.ports = serde_json::from_value(ports).expect("ports");
    });
    let ends: Vec<[End; 2]> = [false, true]
        .iter()
        .map(|ipv6| [&client, &server].map(|pod| End::new(&pod.place, pod.address(*ipv6))))
        .collect();
    let becomes = |what: &str, port: u16, expected: [bool; 2]| {
        lab.eventually(&format!("{what}, port {port}"), || {
            ends.iter()
                .zip(expected)
                .all(|([client, server], expected)| client.associate(server, port, expected).is_some() == expected)
        });
    };
    let both = |what: &str, open: &[u16], closed: &[u16]| {
        open.iter().for_each(|port| becomes(what, *port, [true; 2]));
        closed.iter().for_each(|port| becomes(what, *port, [false; 2]));
    };
    let ingress = |rules: &str| {
        store.put(resource(&format!(
            "{{kind: NetworkPolicy, metadata: {{name: p, namespace: default}}, spec: {{selector: \"role == 'server'\", types: [Ingress], ingress: [{rules}]}}}}"
        )));
    };

    both("without policy", &[5000, 5001], &[]);
    let tracked = |node: &str| lab.exec(node, &["conntrack", "-L", "-p", "sctp", "--orig-port-dst", "5000"]);
    for node in &nodes {
        assert!(tracked(node).contains("ESTABLISHED"), "{}", tracked(node));
    }
    let torn = |[client, server]: &[End; 2]| client.reaches_with_a_wrong_checksum(server, 5000);
    assert!(!ends.iter().any(torn), "what is damaged belongs to no association");

    ingress("{action: Allow, protocol: SCTP, destination: {ports: [5000, '6000:6010']}}");
    both("allowed", &[5000, 6000, 6010], &[5001, 5999, 6011]);
    ingress("{action: Deny, protocol: SCTP, destination: {ports: [5000]}}, {action: Allow, protocol: 132}");
    both("denied", &[5001], &[5000]);
    ingress("{action: Allow, protocol: SCTP, destination: {notPorts: [5000]}}");
    both("all but one", &[5001], &[5000]);
    ingress("{action: Allow, notProtocol: SCTP}");
    both("other protocols", &[], &[5000]);
    ingress("{action: Allow, protocol: TCP, destination: {ports: [5000]}}");
    both("the port of another protocol", &[], &[5000]);
    ingress("{action: Allow, protocol: SCTP, destination: {ports: [diameter]}}");
    both("a named port", &[3868], &[5000]);
    ingress("{action: Allow, protocol: SCTP, destination: {ports: [web]}}");
    both("a named port of another protocol", &[], &[5000, 3868]);
    ingress("{action: Allow, ipVersion: 6, protocol: SCTP, destination: {ports: [5000]}}");
    becomes("one family", 5000, [false, true]);
    ingress("{action: Allow, protocol: SCTP, source: {selector: \"role == 'client'\"}, destination: {ports: [5000]}}");
    both("by who it is", &[5000], &[5001]);
    ingress("{action: Allow, protocol: SCTP, source: {selector: \"role == 'nobody'\"}, destination: {ports: [5000]}}");
    both("by who it is not", &[], &[5000]);
    store.delete(&api::Key::namespaced(Kind::NetworkPolicy, "default", "p"));
    both("policy is gone", &[5000], &[]);

    // From the sender, as Kubernetes says it.
    let egress = k8s(
        "default",
        "out",
        "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{ports: [{protocol: SCTP, port: 5000}]}]}",
    );
    let key = egress.key();
    store.put(egress);
    both("egress", &[5000], &[5001]);
    store.delete(&key);
    both("egress policy is gone", &[5001], &[]);

    // Associations that a policy forbids later end, in both directions.
    let open: Vec<_> = ends
        .iter()
        .map(|[client, server]| client.associate(server, 5000, true).expect("an association"))
        .collect();
    assert!(open.iter().all(|it| it.data(true, true) && it.data(false, true)));
    ingress("{action: Deny, protocol: SCTP, destination: {ports: [5000]}}, {action: Allow}");
    lab.eventually("they are cut", || open.iter().all(|it| !it.data(true, false)));
    assert!(open.iter().all(|it| !it.data(false, false)), "the other way too");
    ingress("{action: Allow}");
    lab.eventually("a sign of life revives them", || {
        open.iter().all(|it| it.heartbeat(true))
    });
}

#[test]
fn the_checksum_is_the_standards() {
    // RFC 3720 B.4: 32 bytes of zeroes; and the usual check value.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
