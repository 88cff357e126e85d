//! Which resources the server has: Kubernetes' own that we read, and ours by their definitions.

use std::sync::LazyLock;

use api::crd::{CrdGroup, definitions};
use serde_json::{Value, json};

/// One resource.
pub struct Served {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub is_namespaced: bool,
    pub has_status: bool,
}

/// All of them. Places of objects have the index here.
pub static SERVED: LazyLock<Vec<Served>> = LazyLock::new(|| {
    let own = [
        ("", "namespaces", "Namespace", false, true),
        ("", "nodes", "Node", false, true),
        ("", "pods", "Pod", true, true),
        ("", "serviceaccounts", "ServiceAccount", true, false),
        ("networking.k8s.io", "networkpolicies", "NetworkPolicy", true, false),
    ];
    let own = own.map(|(group, plural, kind, is_namespaced, has_status)| Served {
        group: group.into(),
        version: "v1".into(),
        plural: plural.into(),
        kind: kind.into(),
        is_namespaced,
        has_status,
    });
    own.into_iter()
        .chain(definitions(CrdGroup::V3, false).iter().map(defined))
        .collect()
});

fn defined(definition: &Value) -> Served {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().expect("a definition has names").to_owned();
    let version = &spec["versions"][0];
    Served {
        group: text(&spec["group"]),
        version: text(&version["name"]),
        plural: text(&spec["names"]["plural"]),
        kind: text(&spec["names"]["kind"]),
        is_namespaced: spec["scope"] == "Namespaced",
        has_status: version["subresources"]["status"].is_object(),
    }
}

impl Served {
    /// As objects name it.
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The path of its group.
    pub fn folder(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// Whether it is there by a definition.
    pub fn is_ours(&self) -> bool {
        self.group == "projectcalico.org"
    }

    /// As messages name it.
    pub fn full_name(&self) -> String {
        match self.group.as_str() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// The `APIGroupList` of these resources.
pub fn groups(served: &[&Served]) -> Value {
    // That of the place where groups are registered is there first.
    let first = json!({ "groupVersion": "apiregistration.k8s.io/v1", "version": "v1" });
    let first = json!({ "name": "apiregistration.k8s.io", "versions": [first], "preferredVersion": first });
    let mut groups: Vec<Value> = vec![first];
    for one in served.iter().filter(|one| !one.group.is_empty()) {
        if groups.iter().all(|group| group["name"] != one.group.as_str()) {
            let version = json!({ "groupVersion": one.api_version(), "version": one.version });
            groups.push(json!({ "name": one.group, "versions": [version], "preferredVersion": version }));
        }
    }
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// The `APIResourceList` of these, which are of one group.
pub fn resources(served: &[&Served]) -> Value {
    let verbs = [
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "create",
        "update",
        "watch",
    ];
    let resources = served.iter().flat_map(|one| {
        let resource = |name: String, verbs: &[&str]| {
            json!({ "name": name, "singularName": "", "namespaced": one.is_namespaced, "kind": one.kind, "verbs": verbs })
        };
        let status = || resource(format!("{}/status", one.plural), &["get", "patch", "update"]);
        let status = one.has_status.then(status);
        [resource(one.plural.clone(), &verbs)].into_iter().chain(status)
    });
    let resources: Vec<Value> = resources.collect();
    let version = served.first().map(|one| one.api_version());
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources })
}
