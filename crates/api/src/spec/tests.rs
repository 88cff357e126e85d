//! Each kind with documents as people write them: what is wrong with which, what is filled in, what must stay.

mod bgp;
mod felix;
mod host_endpoint;
mod ip_pool;
mod ipam;
mod kube_controllers_configuration;
mod network_set;
mod node;
mod policy;
mod profile;
mod staged_policy;
mod tier;
mod workload_endpoint;

use crate::document::{read, to_json, to_yaml};
use crate::{Kind, Resource};

/// The document of a kind with this name and spec (YAML in flow style).
fn document(kind: Kind, name: &str, spec: &str) -> String {
    let namespace = if kind.is_namespaced() {
        ", namespace: default"
    } else {
        ""
    };
    format!("apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n")
}

/// The problems of a document, one a line.
#[track_caller]
fn check(kind: Kind, name: &str, spec: &str, wanted: &[&str]) {
    let found: Vec<String> = match read("-", &document(kind, name, spec)) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|problem| problem.problem.to_string()).collect(),
    };
    assert_eq!(found, wanted, "{spec}");
}

/// A document without problems.
#[track_caller]
fn good(kind: Kind, name: &str, spec: &str) -> Resource {
    let text = document(kind, name, spec);
    read("-", &text)
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
        .remove(0)
}

/// A document without problems that comes back from YAML, JSON and storage as it is, and whose spec is `spec`.
#[track_caller]
fn survives(kind: Kind, name: &str, spec: &str) {
    let resource = good(kind, name, spec);
    let alone = std::slice::from_ref(&resource);
    assert_eq!(read("-", &to_yaml(&resource)).unwrap(), alone);
    assert_eq!(read("-", &to_json(&resource).to_string()).unwrap(), alone);
    let stored = serde_json::to_string(&resource).unwrap();
    assert_eq!(serde_json::from_str::<Resource>(&stored).unwrap(), resource);
    let written: serde_json::Value = serde_saphyr::from_str(spec).unwrap();
    assert_eq!(to_json(&resource)["spec"], written);
}

#[track_caller]
fn with_defaults(kind: Kind, name: &str, spec: &str, wanted: &str) {
    let wanted: serde_json::Value = serde_saphyr::from_str(wanted).unwrap();
    let filled = good(kind, name, spec).with_defaults();
    assert_eq!(to_json(&filled)["spec"], wanted);
    assert_eq!(filled.problems(), []);
    assert_eq!(filled.clone().with_defaults(), filled, "twice is once");
}

#[track_caller]
fn update(kind: Kind, name: &str, old: &str, new: &str, wanted: &[&str]) {
    let problems = good(kind, name, new).problems_in_update(&good(kind, name, old));
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted);
}

#[test]
fn names_and_labels_are_checked_for_every_kind() {
    let check = |metadata: &str, wanted: &[&str]| {
        let text = format!("apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {metadata}\nspec: {{}}\n");
        let found = read("-", &text).err().unwrap_or_default();
        assert_eq!(
            found
                .iter()
                .map(|problem| problem.problem.field.as_str())
                .collect::<Vec<_>>(),
            wanted,
            "{metadata}"
        );
    };
    check("{name: kns.default}", &[]);
    check("{}", &["metadata.name"]);
    check("{name: A}", &["metadata.name"]);
    check("{name: a, namespace: b}", &["metadata.namespace"]);
    check("{name: a, labels: {Foo.com/bar_-.x: A_b, b: ''}}", &[]);
    check("{name: a, labels: {'a b': c}}", &["metadata.labels"]);
    check(
        "{name: a, labels: {a: 'b c', d: -e}}",
        &["metadata.labels.a", "metadata.labels.d"],
    );
    check("{name: a, labels: {a: true}}", &["metadata.labels.a"]);
    check("{name: a, annotations: {foo.com/Bar: any thing}}", &[]);
    check("{name: a, annotations: {Foo.com/bar: x}}", &["metadata.annotations"]);
    check(
        &format!("{{name: a, annotations: {{a: {}}}}}", "x".repeat(262_144)),
        &["metadata.annotations"],
    );
}

#[test]
fn another_kind_is_no_update() {
    let old = good(Kind::Profile, "a", "{}");
    let new = good(Kind::Node, "a", "{}");
    assert_eq!(
        new.problems_in_update(&old)[0].to_string(),
        "kind: `Node` must stay Profile"
    );
}

#[test]
fn cluster_information() {
    let kind = Kind::ClusterInformation;
    survives(
        kind,
        "default",
        "{clusterGUID: 0123456789abcdef0123456789ABCDEF, clusterType: 'k8s,bgp', calicoVersion: v3.33.0, datastoreReady: true, variant: Calico}",
    );
    check(kind, "other", "{}", &["metadata.name: `other` must be `default`"]);
    check(
        kind,
        "default",
        "{clusterGUID: x}",
        &["spec.clusterGUID: `x` must be 32 hexadecimal digits"],
    );
}
