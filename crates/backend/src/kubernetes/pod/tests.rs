//! Pods and what they are for us.

use serde_json::json;

use super::*;

/// A pod on a node, with more merged into it.
fn pod(more: Value) -> Value {
    let mut pod = json!({
        "metadata": {
            "name": "web-0", "namespace": "shop", "resourceVersion": "9",
            "uid": "30316465-6365-4463-ad63-3564622d3638",
            "labels": { "app": "web" },
        },
        "spec": { "nodeName": "n1", "serviceAccountName": "default", "containers": [] },
        "status": { "phase": "Running" },
    });
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn endpoint(more: Value) -> Option<WorkloadEndpoint> {
    let resource = read(pod(more)).expect("it is right")?;
    WorkloadEndpoint::try_from(resource).ok()
}

#[test]
fn addresses_come_from_kubelet_then_from_cni() {
    let check = |more: Value, expected: &str| {
        let nets = endpoint(more)
            .map(|endpoint| endpoint.spec.ip_networks)
            .unwrap_or_default();
        let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(nets.join(" "), expected);
    };
    let cni = json!({ POD_IP: "10.0.0.1/32", POD_IPS: "10.0.0.1/32,fd00::1/128" });
    check(json!({}), "");
    check(json!({ "metadata": { "annotations": cni } }), "10.0.0.1/32 fd00::1/128");
    check(
        json!({ "metadata": { "annotations": { POD_IP: "10.0.0.1" } } }),
        "10.0.0.1/32",
    );
    check(
        json!({ "metadata": { "annotations": cni }, "status": { "podIP": "10.0.0.2" } }),
        "10.0.0.2/32",
    );
    check(
        json!({ "metadata": { "annotations": cni },
                "status": { "podIP": "10.0.0.2", "podIPs": [{ "ip": "10.0.0.3" }, { "ip": "fd00::3" }] } }),
        "10.0.0.3/32 fd00::3/128",
    );
    check(json!({ "status": { "podIP": "10.0.0.2", "phase": "Succeeded" } }), "");
    check(json!({ "status": { "podIP": "10.0.0.2", "phase": "Failed" } }), "");
    let deleting = json!({ "deletionTimestamp": "2026-01-02T03:04:05Z", "annotations": { POD_IP: "" } });
    check(json!({ "metadata": deleting, "status": { "podIP": "10.0.0.2" } }), "");
    check(json!({ "metadata": { "annotations": { POD_IP: "nonsense" } } }), "");
}

#[test]
fn what_is_in_no_network_of_ours_has_no_key() {
    let check = |more: Value, expected: Option<&str>| {
        let key = key(&pod(more));
        assert_eq!(key.map(|key| key.name).as_deref(), expected);
    };
    check(json!({}), Some("n1-k8s-web--0-eth0"));
    check(json!({ "spec": { "nodeName": "" } }), None);
    check(json!({ "spec": { "hostNetwork": true } }), None);
}

#[test]
fn the_endpoint_is_what_upstream_makes_of_a_pod() {
    let ports = json!([
        { "name": "http", "containerPort": 80 },
        { "containerPort": 81 },
        { "containerPort": 82, "hostPort": 8082, "protocol": "UDP", "hostIP": "127.0.0.1" },
    ]);
    let annotations = json!({ POD_IP: "10.0.0.1/32", CONTAINER_ID: "c0ffee" });
    let more = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [{ "ports": ports }] } });
    let endpoint = endpoint(more).expect("it has an address");
    assert_eq!(endpoint.problems(), []);
    assert_eq!(endpoint.metadata.resource_version.as_deref(), Some("9"));
    assert_eq!(
        endpoint.metadata.uid.as_deref(),
        Some("0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c")
    );
    let label = |name: &str| endpoint.metadata.labels.get(name).map(String::as_str);
    assert_eq!(label("app"), Some("web"));
    assert_eq!(label("projectcalico.org/namespace"), Some("shop"));
    assert_eq!(label("projectcalico.org/orchestrator"), Some("k8s"));
    assert_eq!(label("projectcalico.org/serviceaccount"), Some("default"));
    assert_eq!(endpoint.spec.profiles, ["kns.shop", "ksa.shop.default"]);
    assert_eq!(endpoint.spec.container_id, "c0ffee");
    let ports: Vec<String> = endpoint
        .spec
        .ports
        .iter()
        .map(|port| format!("{} {} {:?}", port.protocol, port.port, port.host_port))
        .collect();
    assert_eq!(ports, ["TCP 80 None", "UDP 82 Some(8082)"]);
}

#[test]
fn a_patch_writes_what_reading_finds() {
    let annotations = json!({ POD_IP: "10.0.0.1/32", POD_IPS: "10.0.0.1/32,fd00::1/128", CONTAINER_ID: "c0ffee" });
    let written = endpoint(json!({ "metadata": { "annotations": annotations } })).expect("it has addresses");
    assert!(is_pods(&written));
    assert_eq!(
        patch(&written, "9"),
        json!({ "metadata": { "annotations": annotations, "resourceVersion": "9" } })
    );
    let mut other = written;
    other.spec.orchestrator = "cni".into();
    assert!(!is_pods(&other));
}

#[test]
fn a_key_leads_back_to_the_pod() {
    let key = key(&pod(json!({}))).expect("it has one");
    assert_eq!(of_key(&key), Some(("shop", "web-0".to_owned())));
    let other = Key::namespaced(Kind::WorkloadEndpoint, "shop", "n1-cni-c0ffee-eth0");
    assert_eq!(of_key(&other), None);
}

#[test]
fn annotations_that_may_change_while_a_pod_runs_are_in_its_endpoint() {
    let with = |annotations: Value| {
        let more = json!({ "metadata": { "annotations": annotations }, "status": { "podIP": "10.0.0.1" } });
        endpoint(more).expect("it has an address").spec
    };
    let spec = with(json!({
        "cni.projectcalico.org/floatingIPs": "[\"172.16.0.1\", \"fd01::1\"]",
        "cni.projectcalico.org/allowedSourcePrefixes": "[\"10.9.0.0/16\"]",
        "kubernetes.io/ingress-bandwidth": "10M",
        "qos.projectcalico.org/dscp": "EF",
    }));
    assert_eq!(spec.ip_nats.len(), 1, "the pod has no IPv6 address");
    assert_eq!(spec.ip_nats[0].external_ip, IpAddr::from([172, 16, 0, 1]));
    assert_eq!(spec.allow_spoofed_source_prefixes, ["10.9.0.0/16"]);
    let limits = spec.qos_controls.expect("there are limits");
    assert_eq!(limits.ingress_bandwidth, 10_000_000);
    assert_eq!(limits.dscp.map(|dscp| dscp.value()), Some(46));
    // What cannot be understood is left out, and the rest of the pod is there.
    let spec = with(json!({ "kubernetes.io/ingress-bandwidth": "fast", "cni.projectcalico.org/floatingIPs": "x" }));
    assert_eq!((spec.qos_controls, spec.ip_nats), (None, Vec::new()));
}
