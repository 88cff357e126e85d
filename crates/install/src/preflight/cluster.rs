//! The API server: whether it answers, and whether these credentials may do what the agent has to.

use std::collections::BTreeMap;

use backend::kubernetes::{Action, Api, ApiError};
use serde_json::{Value, json};

use super::Check;
use super::Outcome::{Failed, Ok as Fine, Warning};
use crate::manifest::{AGENT, LABEL, domain};
use crate::roles::{Rule, roles};
use crate::settings::{Crds, Settings, Work};

/// Kubernetes that our definitions' rules need.
const RULES_SINCE: u32 = 25;

/// All of them; after the first that fails the others cannot be asked.
pub(super) async fn checks(settings: &Settings) -> Vec<Check> {
    let version = async {
        let api = Api::connect(None).await?;
        let version = api.ask("version", "/version", Action::Get).await?;
        Ok::<_, ApiError>((api, version))
    };
    match version.await {
        Err(error) => vec![Check::new("api", Failed, error.to_string())],
        Ok((api, version)) => {
            let ours = domain(settings);
            let definitions = definitions(&api, ours, settings.crds).await;
            let mut checks = vec![
                server(&version, settings.crds),
                definitions,
                access(&api, ours, settings.work).await,
            ];
            checks.extend(calico(&api).await);
            checks
        }
    }
}

fn server(version: &Value, crds: Crds) -> Check {
    let said = version["gitVersion"].as_str().unwrap_or("of no known version");
    // Some servers write `27+`.
    let minor = version["minor"]
        .as_str()
        .and_then(|minor| minor.trim_end_matches('+').parse::<u32>().ok());
    match minor {
        Some(minor) if minor < RULES_SINCE && crds == Crds::All => {
            let reason =
                format!("Kubernetes {said} does not know the rules of our definitions: install with --crds no-rules");
            Check::new("api", Failed, reason)
        }
        Some(_) => Check::new("api", Fine, format!("Kubernetes {said} answers")),
        None => Check::new("api", Warning, format!("an API server {said} answers")),
    }
}

/// Definitions that somebody else brought are not ours to change, nor to delete afterwards.
async fn definitions(api: &Api, ours: &str, crds: Crds) -> Check {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let resource = "customresourcedefinitions.apiextensions.k8s.io";
    match api.ask(resource, path, Action::List).await {
        Ok(list) => judge(
            list["items"].as_array().map(Vec::as_slice).unwrap_or_default(),
            ours,
            crds,
        ),
        Err(error) => Check::new("definitions", Warning, error.to_string()),
    }
}

fn judge(list: &[Value], ours: &str, crds: Crds) -> Check {
    let there: Vec<&Value> = list.iter().filter(|crd| crd["spec"]["group"] == ours).collect();
    let foreign = there
        .iter()
        .filter(|crd| crd["metadata"]["labels"][LABEL.0] != LABEL.1)
        .count();
    let (outcome, reason) = match crds {
        Crds::None if there.is_empty() => (Failed, format!("there are none of {ours}: install with --crds all")),
        Crds::None => (Fine, format!("{} of {ours} are there", there.len())),
        _ if foreign > 0 => (
            Failed,
            format!("{foreign} of {ours} are there that `margay install` did not bring: leave them with --crds none"),
        ),
        _ => (Fine, format!("none of {ours} are there but ours")),
    };
    Check::new("definitions", outcome, reason)
}

/// A Calico that runs already; nothing is said if these credentials cannot see.
async fn calico(api: &Api) -> Option<Check> {
    let list = async |resource: &str| {
        let (path, name) = (format!("/apis/apps/v1/{resource}"), format!("{resource}.apps"));
        let list = api.ask(&name, &path, Action::List).await.ok()?;
        list["items"].as_array().cloned()
    };
    let (sets, deployments) = (list("daemonsets").await?, list("deployments").await?);
    running(&sets, &deployments)
}

fn running(sets: &[Value], deployments: &[Value]) -> Option<Check> {
    let called = |list: &[Value], name: &str| -> Option<String> {
        let found = list.iter().find(|object| object["metadata"]["name"] == name)?;
        let namespace = found["metadata"]["namespace"].as_str().unwrap_or_default();
        Some(format!("{namespace}/{name}"))
    };
    let advice = "where both run, both write routes, policy and 10-calico.conflist: take it off a node before the agent comes \
                  (docs/calico.md)";
    let said = match (called(deployments, "tigera-operator"), called(sets, "calico-node")) {
        (None, None) => return None,
        (Some(operator), _) => {
            format!(
                "Calico's operator {operator} puts calico-node back wherever it is taken away: scale it to 0 first; {advice}"
            )
        }
        (None, Some(set)) => format!("Calico runs by DaemonSet {set}; {advice}"),
    };
    Some(Check::new("calico", Warning, said))
}

/// Asks about every verb on every resource of the agent's role. Who asks is whoever runs this: in a Pod its account, on a node
/// the owner of the kubeconfig.
async fn access(api: &Api, ours: &str, work: Work) -> Check {
    let agent = roles(ours, work)
        .into_iter()
        .filter(|role| role.name == AGENT)
        .flat_map(|role| role.rules);
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (group, resource, verb) in agent.flat_map(questions) {
        match allowed(api, &group, resource, verb).await {
            Ok(true) => {}
            Ok(false) => {
                let name = format!("{resource}.{group}");
                missing
                    .entry(name.trim_end_matches('.').to_owned())
                    .or_default()
                    .push(verb);
            }
            Err(error) => return Check::new("access", Failed, error.to_string()),
        }
    }
    rights(&missing)
}

fn rights(missing: &BTreeMap<String, Vec<&str>>) -> Check {
    if missing.is_empty() {
        return Check::new("access", Fine, "these credentials may do what the agent has to");
    }
    let lacking = |(resource, verbs): (&String, &Vec<&str>)| format!("{} {resource}", verbs.join("/"));
    let lacking: Vec<String> = missing.iter().map(lacking).collect();
    Check::new(
        "access",
        Failed,
        format!("these credentials may not {}", lacking.join(", ")),
    )
}

fn questions(rule: Rule) -> Vec<(String, &'static str, &'static str)> {
    let of = |resource: &&'static str| {
        let resource = *resource;
        rule.verbs.iter().map(move |verb| (resource, *verb))
    };
    let pairs: Vec<_> = rule.resources.iter().flat_map(of).collect();
    pairs
        .into_iter()
        .map(|(resource, verb)| (rule.group.clone(), resource, verb))
        .collect()
}

async fn allowed(api: &Api, group: &str, resource: &str, verb: &str) -> Result<bool, ApiError> {
    let (name, part) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": { "group": group, "resource": name, "subresource": part, "verb": verb } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let resource = "selfsubjectaccessreviews.authorization.k8s.io";
    let answer = api.ask(resource, path, Action::Create(review)).await?;
    Ok(answer["status"]["allowed"].as_bool().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_for_the_rules_is_named() {
        let check = |minor: &str, crds: Crds, expected: super::super::Outcome| {
            let version = json!({ "gitVersion": format!("v1.{minor}.0"), "minor": minor });
            assert_eq!(server(&version, crds).outcome, expected, "{minor} {crds:?}");
        };
        check("33", Crds::All, Fine);
        check("27+", Crds::All, Fine);
        check("20", Crds::All, Failed);
        check("20", Crds::NoRules, Fine);
        check("", Crds::All, Warning);
    }

    #[test]
    fn definitions_of_others_are_named() {
        let check = |groups: &[(&str, bool)], crds: Crds, expected: super::super::Outcome| {
            let crd = |(group, ours): &(&str, bool)| {
                let labels = if *ours { json!({ LABEL.0: LABEL.1 }) } else { json!({}) };
                json!({ "metadata": { "labels": labels }, "spec": { "group": group } })
            };
            let list: Vec<Value> = groups.iter().map(crd).collect();
            assert_eq!(judge(&list, "g", crds).outcome, expected, "{groups:?} {crds:?}");
        };
        check(&[], Crds::All, Fine);
        check(&[("g", true), ("other", false)], Crds::All, Fine);
        check(&[("g", false)], Crds::NoRules, Failed);
        check(&[("g", false)], Crds::None, Fine);
        check(&[("other", false)], Crds::None, Failed);
    }

    #[test]
    fn a_calico_that_runs_is_named() {
        let object = |namespace: &str, name: &str| json!({ "metadata": { "namespace": namespace, "name": name } });
        let check = |sets: &[Value], deployments: &[Value], expected: Option<&str>| {
            let said = running(sets, deployments).map(|check| check.reason);
            match expected {
                None => assert_eq!(said, None),
                Some(part) => assert!(said.as_ref().is_some_and(|said| said.contains(part)), "{said:?}"),
            }
        };
        let (node, operator) = (
            object("kube-system", "calico-node"),
            object("tigera-operator", "tigera-operator"),
        );
        check(&[object("kube-system", "kube-proxy")], &[], None);
        check(
            std::slice::from_ref(&node),
            &[],
            Some("DaemonSet kube-system/calico-node"),
        );
        check(&[node], &[operator], Some("scale it to 0 first"));
    }

    #[test]
    fn what_is_lacking_is_said_by_resource() {
        assert_eq!(rights(&BTreeMap::new()).outcome, Fine);
        let missing = BTreeMap::from([
            ("pods".to_owned(), vec!["get", "list"]),
            ("ippools.g".to_owned(), vec!["get"]),
        ]);
        let said = rights(&missing);
        assert_eq!(said.outcome, Failed);
        assert!(said.reason.ends_with("get ippools.g, get/list pods"), "{}", said.reason);
    }

    #[test]
    fn every_verb_on_every_resource_is_asked() {
        let rule = Rule {
            group: "g".into(),
            resources: vec!["a", "b/status"],
            verbs: vec!["get", "patch"],
            names: Vec::new(),
        };
        let asked: Vec<String> = questions(rule)
            .iter()
            .map(|(group, what, verb)| format!("{verb} {what} {group}"))
            .collect();
        assert_eq!(asked, ["get a g", "patch a g", "get b/status g", "patch b/status g"]);
    }
}
