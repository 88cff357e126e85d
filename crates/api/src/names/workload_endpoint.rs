//! Names of workload endpoints: what identifies one, joined by dashes (upstream `lib/names/workloadendpoint.go`).
//!
//! `<node>-k8s-<pod>-<endpoint>`, `<node>-cni-<container>-<endpoint>`, `<node>-libnetwork-libnetwork-<endpoint>`,
//! otherwise `<node>-<orchestrator>-<workload>-<endpoint>`. A dash inside a part is doubled.

use crate::WorkloadEndpointSpec;

/// What identifies a workload endpoint. Empty means not known: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadEndpointIds {
    /// Node that runs the workload.
    pub node: String,
    /// `k8s`, `cni`, `libnetwork`, …
    pub orchestrator: String,
    /// Workload, where the orchestrator is none of these three.
    pub workload: String,
    /// Pod, for `k8s`.
    pub pod: String,
    /// Container, for `cni`.
    pub container_id: String,
    /// Interface in the workload.
    pub endpoint: String,
}

/// Why there is no name, or no identifiers in a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The field is part of the name, but empty.
    #[error("`{0}` is required: it is part of the name")]
    Missing(&'static str),
    /// The field starts or ends with a dash, which cannot be told from the dashes between parts.
    #[error("`{0}` must not start or end with a dash: {1}")]
    Dash(&'static str, String),
    /// The name is empty or has more parts than there are identifiers.
    #[error(
        "`{0}` is no name of a workload endpoint: <node>-<orchestrator>-<workload>-<endpoint>, inner dashes doubled"
    )]
    NotAName(String),
}

/// The name of the endpoint with these identifiers.
pub fn workload_endpoint_name(ids: &WorkloadEndpointIds) -> Result<String, NameError> {
    let parts: Result<Vec<String>, NameError> = ids
        .parts()
        .into_iter()
        .map(|(field, part)| escape(field, part))
        .collect();
    Ok(parts?.join("-"))
}

/// What the names of all endpoints with these identifiers start with: it ends in a dash before the first unknown part.
///
/// Endpoints of other workloads may start with it too: check each with [`WorkloadEndpointIds::matches`].
pub fn workload_endpoint_prefix(ids: &WorkloadEndpointIds) -> Result<String, NameError> {
    let mut prefix = String::new();
    for (field, part) in ids.parts() {
        if part.is_empty() && field != "node" {
            return Ok(prefix + "-");
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(&escape(field, part)?);
    }
    Ok(prefix)
}

/// The identifiers in a name. A name with fewer parts leaves the rest empty.
pub fn parse_workload_endpoint_name(name: &str) -> Result<WorkloadEndpointIds, NameError> {
    let mut parts = split(name).into_iter();
    let mut next = || parts.next().unwrap_or_default();
    let mut ids = WorkloadEndpointIds {
        node: next(),
        orchestrator: next(),
        ..WorkloadEndpointIds::default()
    };
    let third = next();
    match ids.orchestrator.as_str() {
        "k8s" => ids.pod = third,
        "cni" => ids.container_id = third,
        "libnetwork" => {}
        _ => ids.workload = third,
    }
    ids.endpoint = next();
    if name.is_empty() || parts.next().is_some() {
        return Err(NameError::NotAName(name.to_owned()));
    }
    Ok(ids)
}

impl WorkloadEndpointIds {
    /// Whether the endpoint called `name` has these identifiers; empty ones match any.
    pub fn matches(&self, name: &str) -> bool {
        let parts = split(name);
        let wanted = self.parts();
        parts.len() == wanted.len()
            && wanted
                .iter()
                .zip(&parts)
                .all(|((_, part), held)| part.is_empty() || part == held)
    }

    /// The parts of the name with the fields they come from.
    fn parts(&self) -> [(&'static str, &str); 4] {
        let third = match self.orchestrator.as_str() {
            "k8s" => ("pod", self.pod.as_str()),
            "cni" => ("containerID", self.container_id.as_str()),
            "libnetwork" => ("orchestrator", self.orchestrator.as_str()),
            _ => ("workload", self.workload.as_str()),
        };
        [
            ("node", &self.node),
            ("orchestrator", &self.orchestrator),
            third,
            ("endpoint", &self.endpoint),
        ]
    }
}

impl From<&WorkloadEndpointSpec> for WorkloadEndpointIds {
    fn from(spec: &WorkloadEndpointSpec) -> Self {
        Self {
            node: spec.node.clone(),
            orchestrator: spec.orchestrator.clone(),
            workload: spec.workload.clone(),
            pod: spec.pod.clone(),
            container_id: spec.container_id.clone(),
            endpoint: spec.endpoint.clone(),
        }
    }
}

fn escape(field: &'static str, part: &str) -> Result<String, NameError> {
    match part {
        "" => Err(NameError::Missing(field)),
        _ if part.starts_with('-') || part.ends_with('-') => Err(NameError::Dash(field, part.to_owned())),
        _ => Ok(part.replace('-', "--")),
    }
}

/// The parts of a name, at every dash that is not one of two.
fn split(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = name.chars().peekable();
    while let Some(c) = rest.next() {
        match parts.last_mut() {
            Some(part) if c != '-' || rest.next_if_eq(&'-').is_some() => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(node: &str, orchestrator: &str, third: &str, endpoint: &str) -> WorkloadEndpointIds {
        let (node, orchestrator, endpoint) = (node.to_owned(), orchestrator.to_owned(), endpoint.to_owned());
        let mut ids = WorkloadEndpointIds {
            node,
            orchestrator,
            endpoint,
            ..Default::default()
        };
        match ids.orchestrator.as_str() {
            "k8s" => ids.pod = third.to_owned(),
            "cni" => ids.container_id = third.to_owned(),
            "libnetwork" => {}
            _ => ids.workload = third.to_owned(),
        }
        ids
    }

    #[test]
    fn names_are_built_and_taken_apart() {
        let check = |node: &str, orchestrator: &str, third: &str, endpoint: &str, name: &str| {
            let ids = ids(node, orchestrator, third, endpoint);
            assert_eq!(workload_endpoint_name(&ids).as_deref(), Ok(name));
            assert_eq!(parse_workload_endpoint_name(name), Ok(ids.clone()));
            assert!(ids.matches(name));
        };
        check(
            "k8s-125-node1",
            "k8s",
            "cni-0",
            "eth0",
            "k8s--125--node1-k8s-cni--0-eth0",
        );
        check("n", "cni", "c0ffee", "eth0", "n-cni-c0ffee-eth0");
        check("n", "libnetwork", "", "a-b", "n-libnetwork-libnetwork-a--b");
        check("n", "open-stack", "w", "e", "n-open--stack-w-e");
    }

    #[test]
    fn a_name_needs_every_part() {
        let check = |node: &str, third: &str, endpoint: &str, wanted: NameError| {
            assert_eq!(workload_endpoint_name(&ids(node, "k8s", third, endpoint)), Err(wanted));
        };
        check("", "p", "e", NameError::Missing("node"));
        check("n", "", "e", NameError::Missing("pod"));
        check("n", "p", "", NameError::Missing("endpoint"));
        check("n-", "p", "e", NameError::Dash("node", "n-".to_owned()));
        check("n", "-p", "e", NameError::Dash("pod", "-p".to_owned()));
    }

    #[test]
    fn a_prefix_ends_in_a_dash() {
        let check = |node: &str, orchestrator: &str, third: &str, endpoint: &str, wanted: &str| {
            assert_eq!(
                workload_endpoint_prefix(&ids(node, orchestrator, third, endpoint)).as_deref(),
                Ok(wanted)
            );
        };
        check("n-1", "", "", "", "n--1-");
        check("n", "k8s", "", "", "n-k8s-");
        check("n", "k8s", "p", "", "n-k8s-p-");
        check("n", "k8s", "", "eth0", "n-k8s-");
        check("n", "k8s", "p", "eth0", "n-k8s-p-eth0");
        assert_eq!(
            workload_endpoint_prefix(&ids("", "k8s", "p", "")),
            Err(NameError::Missing("node"))
        );
    }

    #[test]
    fn a_prefix_may_catch_others_and_matching_sorts_them_out() {
        let wanted = ids("node1", "k8s", "pod", "");
        assert!("node1-k8s-pod--1-eth0".starts_with(&workload_endpoint_prefix(&wanted).unwrap()));
        assert!(!wanted.matches("node1-k8s-pod--1-eth0"));
        assert!(wanted.matches("node1-k8s-pod-eth0"));
        assert!(!wanted.matches("node1-k8s-pod"));
    }

    #[test]
    fn a_name_with_fewer_parts_still_parses() {
        assert_eq!(parse_workload_endpoint_name("n"), Ok(ids("n", "", "", "")));
        assert_eq!(parse_workload_endpoint_name("n-k8s"), Ok(ids("n", "k8s", "", "")));
        assert_eq!(parse_workload_endpoint_name("n-k8s-p"), Ok(ids("n", "k8s", "p", "")));
        for name in ["", "a-b-c-d-e"] {
            assert_eq!(
                parse_workload_endpoint_name(name),
                Err(NameError::NotAName(name.to_owned()))
            );
        }
    }

    proptest! {
        #[test]
        fn any_identifiers_come_back(
            node in "[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?",
            orchestrator in prop_oneof![Just("k8s".to_owned()), Just("cni".to_owned()), "[a-z]{1,5}(-[a-z]{1,3})?"],
            third in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
            endpoint in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
        ) {
            prop_assume!(orchestrator != "libnetwork");
            let ids = ids(&node, &orchestrator, &third, &endpoint);
            let name = workload_endpoint_name(&ids).unwrap();
            prop_assert!(ids.matches(&name));
            prop_assert_eq!(parse_workload_endpoint_name(&name), Ok(ids));
        }
    }
}
