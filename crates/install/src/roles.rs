//! Who may do what at the API server: one table, of which the roles are made and which preflight asks about.
//!
//! Nobody may write roles or bindings, read Secrets, or make or delete Pods and Nodes.

use serde_json::{Value, json};

use crate::manifest::{AGENT, DEFAULTS};

/// Verbs on resources of an API group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub group: String,
    pub resources: Vec<&'static str>,
    pub verbs: Vec<&'static str>,
}

/// An account and what it may do.
pub(crate) struct Role {
    /// Of the ServiceAccount, the ClusterRole and the binding.
    pub name: &'static str,
    pub rules: Vec<Rule>,
}

const READ: [&str; 3] = ["get", "list", "watch"];

/// All roles. `ours` is the API group of our resources without its version.
pub(crate) fn roles(ours: &str) -> Vec<Role> {
    let rule = |group: &str, resources: &[&'static str], verbs: &[&'static str]| Rule {
        group: group.to_owned(),
        resources: resources.to_vec(),
        verbs: verbs.to_vec(),
    };
    let configuration = ["ippools", "felixconfigurations", "bgpconfigurations"];
    vec![
        Role {
            name: AGENT,
            rules: vec![
                rule("", &["nodes", "pods", "namespaces", "serviceaccounts"], &READ),
                rule("networking.k8s.io", &["networkpolicies"], &READ),
                rule("discovery.k8s.io", &["endpointslices"], &READ),
                rule("policy.networking.k8s.io", &["clusternetworkpolicies"], &READ),
                rule(ours, &["*"], &READ),
                rule("", &["nodes/status", "pods/status"], &["patch"]),
                rule(
                    ours,
                    &["ipamblocks", "blockaffinities", "ipamhandles"],
                    &["create", "update", "delete"],
                ),
                rule(ours, &["clusterinformations"], &["create"]),
            ],
        },
        // It creates what is missing, and cannot change what somebody made of it.
        Role {
            name: DEFAULTS,
            rules: vec![rule(ours, &configuration, &["get", "list", "create"])],
        },
    ]
}

impl Role {
    /// ServiceAccount, ClusterRole and binding.
    pub(crate) fn objects(&self, namespace: &str) -> [Value; 3] {
        let metadata = json!({ "name": self.name });
        let rules: Vec<Value> = self.rules.iter().map(Rule::object).collect();
        let rbac = "rbac.authorization.k8s.io";
        let version = format!("{rbac}/v1");
        [
            json!({ "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": { "name": self.name, "namespace": namespace } }),
            json!({ "apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": rules }),
            json!({ "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": metadata,
                "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": self.name },
                "subjects": [{ "kind": "ServiceAccount", "name": self.name, "namespace": namespace }] }),
        ]
    }
}

impl Rule {
    fn object(&self) -> Value {
        json!({ "apiGroups": [self.group], "resources": self.resources, "verbs": self.verbs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_can_make_itself_more() {
        for role in roles("projectcalico.org") {
            for rule in &role.rules {
                let writes = rule.verbs.iter().any(|verb| !READ.contains(verb));
                assert!(
                    !rule
                        .verbs
                        .iter()
                        .any(|verb| ["*", "escalate", "bind", "impersonate"].contains(verb))
                );
                assert!(!(writes && rule.resources.contains(&"*")), "{}: {rule:?}", role.name);
                assert!(!["rbac.authorization.k8s.io", "apps", "*"].contains(&rule.group.as_str()));
                let foreign = rule.group != "projectcalico.org";
                let status_only = rule.resources.iter().all(|resource| resource.ends_with("/status"));
                assert!(!(writes && foreign) || status_only, "{}: {rule:?}", role.name);
                assert!(!rule.resources.contains(&"secrets"));
            }
        }
    }
}
