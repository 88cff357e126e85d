//! Who may do what at the API server: one table, of which the roles are made and which preflight asks about.
//!
//! Nobody may write roles or bindings, read Secrets, or make or delete Pods and Nodes.

use serde_json::{Value, json};

use crate::manifest::{AGENT, CONTROLLERS, DEFAULTS};
use crate::settings::Work;

/// Verbs on resources of an API group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub group: String,
    pub resources: Vec<&'static str>,
    pub verbs: Vec<&'static str>,
    /// Only on the objects of these names; none: on all.
    pub names: Vec<&'static str>,
}

/// An account and what it may do.
pub(crate) struct Role {
    /// Of the ServiceAccount, the ClusterRole and the binding.
    pub name: &'static str,
    pub rules: Vec<Rule>,
    /// In our namespace only.
    pub inside: Vec<Rule>,
}

/// What controllers say something of.
const JUDGED: [&str; 18] = [
    "ippools/status",
    "bgpconfigurations/status",
    "bgppeers/status",
    "bgpfilters/status",
    "felixconfigurations/status",
    "ipamconfigurations/status",
    "ipreservations/status",
    "networkpolicies/status",
    "globalnetworkpolicies/status",
    "stagednetworkpolicies/status",
    "stagedglobalnetworkpolicies/status",
    "stagedkubernetesnetworkpolicies/status",
    "tiers/status",
    "networksets/status",
    "globalnetworksets/status",
    "hostendpoints/status",
    "kubecontrollersconfigurations/status",
    "caliconodestatuses/status",
];

/// Where agents say that their kernel refuses it.
const REFUSED: [&str; 3] = [
    "networkpolicies/status",
    "globalnetworkpolicies/status",
    "hostendpoints/status",
];

const READ: [&str; 3] = ["get", "list", "watch"];

/// All roles. `ours` is the API group of our resources without its version.
pub(crate) fn roles(ours: &str, work: Work) -> Vec<Role> {
    let rule = |group: &str, resources: &[&'static str], verbs: &[&'static str]| Rule {
        group: group.to_owned(),
        resources: resources.to_vec(),
        verbs: verbs.to_vec(),
        names: Vec::new(),
    };
    // Conditions, and news of objects that have none: in our definitions alone the status has a place of its own.
    let news = || rule("", &["events"], &["create", "get", "patch"]);
    let leases = |verbs: &[&'static str]| rule("coordination.k8s.io", &["leases"], verbs);
    let addresses = ["ipamblocks", "blockaffinities", "ipamhandles"];
    let configuration = ["ippools", "felixconfigurations", "bgpconfigurations"];
    // Where another plugin attaches pods, addresses, Nodes and Pods are not this agent's to write.
    let attaching = match work {
        Work::PolicyOnly => Vec::new(),
        Work::WithBgp | Work::WithoutBgp => vec![
            rule("", &["nodes/status", "pods/status"], &["patch"]),
            rule(ours, &addresses, &["create", "update", "delete"]),
            rule(ours, &["clusterinformations"], &["create"]),
        ],
    };
    vec![
        Role {
            name: AGENT,
            rules: vec![
                rule("", &["nodes", "pods", "namespaces", "serviceaccounts"], &READ),
                rule("networking.k8s.io", &["networkpolicies"], &READ),
                rule("discovery.k8s.io", &["endpointslices"], &READ),
                rule("policy.networking.k8s.io", &["clusternetworkpolicies"], &READ),
                rule(ours, &["*"], &READ),
                rule(ours, &["caliconodestatuses", "caliconodestatuses/status"], &["update"]),
                // That the node's kernel refuses one.
                rule(ours, &REFUSED, &["update"]),
                news(),
            ]
            .into_iter()
            .chain(attaching)
            .collect(),
            inside: Vec::new(),
        },
        Role {
            name: CONTROLLERS,
            rules: vec![
                rule("", &["nodes", "pods"], &READ),
                // Policies belong to tiers, Kubernetes' own too.
                rule("networking.k8s.io", &["networkpolicies"], &READ),
                rule("policy.networking.k8s.io", &["clusternetworkpolicies"], &READ),
                rule(ours, &["*"], &READ),
                rule(ours, &addresses, &["create", "update", "delete"]),
                rule(ours, &["hostendpoints"], &["create", "update", "delete"]),
                // Finalizers; in the v1 group what is said of them, too.
                rule(ours, &["kubecontrollersconfigurations", "tiers"], &["create", "patch"]),
                rule(ours, &["ippools"], &["patch"]),
                rule(ours, &JUDGED, &["update"]),
                news(),
            ],
            // A right to create cannot name what is created.
            inside: vec![
                leases(&["create"]),
                Rule {
                    names: vec![CONTROLLERS],
                    ..leases(&["get", "patch"])
                },
            ],
        },
        // It creates what is missing, and cannot change what somebody made of it.
        Role {
            name: DEFAULTS,
            rules: vec![rule(ours, &configuration, &["get", "list", "create"])],
            inside: Vec::new(),
        },
    ]
}

impl Role {
    /// ServiceAccount, ClusterRole and binding, and the same for our namespace.
    pub(crate) fn objects(&self, namespace: &str) -> Vec<Value> {
        let rbac = "rbac.authorization.k8s.io";
        let version = format!("{rbac}/v1");
        let both = |kind: &str, metadata: Value, rules: &[Rule]| {
            let rules: Vec<Value> = rules.iter().map(Rule::object).collect();
            [
                json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules }),
                json!({ "apiVersion": version, "kind": format!("{kind}Binding"), "metadata": metadata,
                    "roleRef": { "apiGroup": rbac, "kind": kind, "name": self.name },
                    "subjects": [{ "kind": "ServiceAccount", "name": self.name, "namespace": namespace }] }),
            ]
        };
        let here = json!({ "name": self.name, "namespace": namespace });
        let mut list = vec![json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": here })];
        list.extend(both("ClusterRole", json!({ "name": self.name }), &self.rules));
        if !self.inside.is_empty() {
            list.extend(both("Role", here, &self.inside));
        }
        list
    }
}

impl Rule {
    fn object(&self) -> Value {
        let mut rule = json!({ "apiGroups": [self.group], "resources": self.resources, "verbs": self.verbs });
        if !self.names.is_empty() {
            rule["resourceNames"] = json!(self.names);
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_can_make_itself_more() {
        for role in roles("projectcalico.org", Work::WithBgp) {
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
                let events = rule.resources == ["events"];
                assert!(!(writes && foreign) || status_only || events, "{}: {rule:?}", role.name);
                assert!(!rule.resources.contains(&"secrets"));
            }
            // In our namespace nothing but the one Lease, which has to be created first.
            for rule in &role.inside {
                assert_eq!(rule.resources, ["leases"], "{}: {rule:?}", role.name);
                assert!(rule.verbs == ["create"] || rule.names == [CONTROLLERS], "{rule:?}");
            }
        }
    }

    /// Whether the agent's role has a verb on a resource of ours or of Kubernetes.
    #[track_caller]
    fn check(work: Work, verb: &str, resource: &str, expected: bool) {
        let roles = roles("projectcalico.org", work);
        let agent = roles.iter().find(|role| role.name == AGENT).expect("the agent's role");
        let grants = |rule: &Rule| {
            let is_named = |name: &&str| *name == resource || *name == "*" && rule.group == "projectcalico.org";
            rule.verbs.contains(&verb) && rule.resources.iter().any(is_named)
        };
        assert_eq!(agent.rules.iter().any(grants), expected, "{work:?}: {verb} {resource}");
    }

    #[test]
    fn an_agent_that_attaches_no_pods_may_not_write_what_that_takes() {
        let attaching = [
            ("create", "ipamblocks"),
            ("update", "blockaffinities"),
            ("delete", "ipamhandles"),
            ("create", "clusterinformations"),
            ("patch", "nodes/status"),
            ("patch", "pods/status"),
        ];
        for (verb, resource) in attaching {
            check(Work::WithBgp, verb, resource, true);
            check(Work::WithoutBgp, verb, resource, true);
            check(Work::PolicyOnly, verb, resource, false);
        }
        for work in [Work::WithBgp, Work::PolicyOnly] {
            check(work, "watch", "pods", true);
            check(work, "watch", "ipamblocks", true);
            check(work, "update", "caliconodestatuses/status", true);
            check(work, "create", "events", true);
        }
    }

    #[test]
    fn controllers_may_say_of_all_that_people_write_what_is_wrong() {
        let status = |kind: api::Kind| format!("{}/status", kind.plural());
        let mut written: Vec<String> = api::Kind::WRITTEN.into_iter().map(status).collect();
        let mut judged = JUDGED.map(str::to_owned).to_vec();
        written.sort();
        judged.sort();
        assert_eq!(judged, written);
    }
}
