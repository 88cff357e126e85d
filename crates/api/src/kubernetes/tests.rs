//! Policies as Kubernetes' documentation has them, and what they are in ours.

mod cluster_network_policy;
mod network_policy;
mod properties;

use serde_json::{Value, json};

use super::{ClusterNetworkPolicy, K8sNetworkPolicy};
use crate::FieldProblem;

/// Converts the spec (YAML) of a NetworkPolicy `shop/a` and compares spec (YAML, without tier and order) and problems.
#[track_caller]
fn network_policy(spec: &str, wanted: &str, problems: &[&str]) {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    let document = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": spec,
    });
    let policy: K8sNetworkPolicy = serde_json::from_value(document).unwrap();
    let (converted, found) = policy.to_network_policy();
    assert_eq!(
        (
            converted.metadata.namespace.as_deref(),
            converted.metadata.name.as_str()
        ),
        (Some("shop"), "knp.default.a")
    );
    assert_eq!(converted.problems(), [], "what comes out is right in itself");
    let mut spec = serde_json::to_value(&converted.spec).unwrap();
    let fields = spec.as_object_mut().unwrap();
    assert_eq!(fields.remove("tier"), Some(json!("default")));
    assert_eq!(fields.remove("order"), Some(json!(1000)));
    compare(&spec, wanted, &found, problems);
}

/// The same for a ClusterNetworkPolicy `a` of tier Admin and priority 7.
#[track_caller]
fn cluster_network_policy(spec: &str, wanted: &str, problems: &[&str]) {
    let mut spec: Value = serde_saphyr::from_str(spec).unwrap();
    let fields = spec.as_object_mut().unwrap();
    fields.insert("tier".to_owned(), "Admin".into());
    fields.insert("priority".to_owned(), 7.into());
    let document = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "a"},
        "spec": spec,
    });
    let policy: ClusterNetworkPolicy = serde_json::from_value(document).unwrap();
    let (converted, found) = policy.to_global_network_policy();
    assert_eq!(converted.metadata.name, "kcnp.kube-admin.a");
    assert_eq!(converted.problems(), [], "what comes out is right in itself");
    let mut spec = serde_json::to_value(&converted.spec).unwrap();
    let fields = spec.as_object_mut().unwrap();
    assert_eq!(fields.remove("tier"), Some(json!("kube-admin")));
    assert_eq!(fields.remove("order"), Some(json!(7)));
    compare(&spec, wanted, &found, problems);
}

#[track_caller]
fn compare(spec: &Value, wanted: &str, found: &[FieldProblem], problems: &[&str]) {
    // What only pods have stands as PODS.
    let wanted = wanted.replace("PODS", "projectcalico.org/orchestrator == 'k8s'");
    let wanted: Value = serde_saphyr::from_str(&wanted).unwrap();
    assert_eq!(*spec, wanted, "\n{spec:#}\n");
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, problems);
}
