//! What is made of namespaces, accounts, policies and slices.

use serde_json::json;

use super::*;

fn made(source: Source, object: &Value) -> Resource {
    let (resource, problems) = read(source, object.clone()).expect("it is right");
    assert_eq!(problems, []);
    let resource = resource.expect("it is something");
    // Its key is what its object's key was, and leads back to it.
    let key = key(source, object).expect("it has a key");
    assert_eq!(resource.key(), key);
    let (namespace, name) = of_key(source, &key).expect("it leads back");
    assert_eq!(object["metadata"]["name"], name);
    assert_eq!(object["metadata"]["namespace"].as_str(), namespace.as_deref());
    resource
}

#[test]
fn a_namespace_allows_and_hands_on_its_labels() {
    let object = json!({ "metadata": { "name": "shop", "labels": { "team": "a" }, "resourceVersion": "3" } });
    let Resource::Profile(profile) = made(Source::Namespaces, &object) else {
        panic!("a profile")
    };
    assert_eq!(profile.metadata.name, "kns.shop");
    assert_eq!((profile.spec.ingress.len(), profile.spec.egress.len()), (1, 1));
    let labels: Vec<(&str, &str)> = profile
        .spec
        .labels_to_apply
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(labels, [("pcns.projectcalico.org/name", "shop"), ("pcns.team", "a")]);
}

#[test]
fn an_account_hands_on_its_labels_and_allows_nothing() {
    let object = json!({ "metadata": { "name": "robot.x", "namespace": "shop", "labels": { "team": "a" } } });
    let Resource::Profile(profile) = made(Source::ServiceAccounts, &object) else {
        panic!("a profile")
    };
    assert_eq!(profile.metadata.name, "ksa.shop.robot.x");
    assert!(profile.spec.ingress.is_empty() && profile.spec.egress.is_empty());
    assert_eq!(profile.spec.labels_to_apply.len(), 2);
    let long = "a".repeat(63);
    let object = json!({ "metadata": { "name": long, "namespace": "shop" } });
    let Resource::Profile(profile) = made(Source::ServiceAccounts, &object) else {
        panic!("a profile")
    };
    assert!(profile.spec.labels_to_apply.is_empty(), "it is too long for a label");
}

#[test]
fn a_network_policy_is_converted() {
    let object = json!({ "metadata": { "name": "deny", "namespace": "shop" }, "spec": { "podSelector": {} } });
    let Resource::NetworkPolicy(policy) = made(Source::NetworkPolicies, &object) else {
        panic!("a policy")
    };
    assert_eq!(policy.metadata.name, "knp.default.deny");
}

#[test]
fn a_cluster_network_policy_is_converted() {
    for (tier, name) in [
        ("Admin", "kcnp.kube-admin.deny"),
        ("Baseline", "kcnp.kube-baseline.deny"),
    ] {
        let spec = json!({ "tier": tier, "priority": 10, "subject": { "namespaces": {} } });
        let object = json!({ "metadata": { "name": "deny" }, "spec": spec });
        let Resource::GlobalNetworkPolicy(policy) = made(Source::ClusterNetworkPolicies, &object) else {
            panic!("a policy")
        };
        assert_eq!(policy.metadata.name, name);
    }
}

#[test]
fn a_slice_is_read_in_both_versions() {
    let slice = |endpoint: Value| {
        json!({
            "metadata": { "name": "web-1", "namespace": "shop", "labels": { SERVICE: "web" } },
            "endpoints": [endpoint, { "addresses": ["name.example"] }],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }, { "name": "all", "port": null }],
        })
    };
    let v1beta1 = json!({ "addresses": ["10.0.0.2", "10.0.0.1"], "topology": { "kubernetes.io/hostname": "n1" } });
    let v1 = json!({ "addresses": ["10.0.0.2", "10.0.0.1"], "nodeName": "n1", "zone": "a" });
    for endpoint in [v1beta1, v1] {
        let Resource::KubernetesEndpointSlice(slice) = made(Source::EndpointSlices, &slice(endpoint)) else {
            panic!("a slice")
        };
        assert_eq!(slice.problems(), []);
        assert_eq!(slice.spec.addresses.len(), 2);
        assert_eq!(slice.spec.ports.len(), 1);
    }
    let nobodys = json!({ "metadata": { "name": "x", "namespace": "shop" }, "endpoints": null, "ports": null });
    assert_eq!(read(Source::EndpointSlices, nobodys), Ok((None, Vec::new())));
}
