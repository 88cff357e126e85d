//! The API server: whether it answers, and whether these credentials may do what agents, controllers and the Job have to.

use std::collections::{BTreeMap, BTreeSet};

use backend::kubernetes::{Action, Api, ApiError};
use serde_json::{Value, json};

use super::Check;
use super::Outcome::{Failed, Ok as Fine, Warning};
use crate::manifest::{AGENT, CONTROLLERS, LABEL, NAMESPACE, domain};
use crate::roles::{Role, roles};
use crate::settings::{Crds, Settings};

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
            let mut checks = vec![server(&version, settings.crds), definitions];
            checks.extend(access(&api, settings).await);
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

/// Asks about every verb on every resource of each role: whoever applies the manifest must have what it gives. Who asks is whoever
/// runs this: in a Pod its account, on a node the owner of the kubeconfig.
async fn access(api: &Api, settings: &Settings) -> Vec<Check> {
    let mut answers: BTreeMap<Question, bool> = BTreeMap::new();
    let mut checks = Vec::new();
    for role in roles(domain(settings), settings.work) {
        if role.name == CONTROLLERS && settings.controllers == 0 {
            continue;
        }
        let mut missing = BTreeSet::new();
        for question in questions(&role) {
            let allowed = match answers.get(&question) {
                Some(allowed) => *allowed,
                None => match allowed(api, &question).await {
                    Ok(allowed) => *answers.entry(question.clone()).or_insert(allowed),
                    Err(error) => return vec![Check::new("access", Failed, error.to_string())],
                },
            };
            if !allowed {
                missing.insert(question);
            }
        }
        checks.push(rights(role.name, &missing));
    }
    checks
}

/// Something that a role allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    group: String,
    resource: &'static str,
    verb: &'static str,
    /// Only there; none: everywhere.
    namespace: Option<&'static str>,
    /// Only of this; none: of all.
    name: Option<&'static str>,
}

impl Question {
    /// As people write it: `leases.coordination.k8s.io/margay-controllers in margay-system`.
    fn place(&self) -> String {
        let mut place = format!("{}.{}", self.resource, self.group)
            .trim_end_matches('.')
            .to_owned();
        if let Some(name) = self.name {
            place = format!("{place}/{name}");
        }
        match self.namespace {
            Some(namespace) => format!("{place} in {namespace}"),
            None => place,
        }
    }
}

/// What lacks of the agent's rights is a failure; what lacks of others' may be because the agent's own account asks.
fn rights(role: &str, missing: &BTreeSet<Question>) -> Check {
    let (check, lacks) = match role {
        AGENT => ("access", Failed),
        CONTROLLERS => ("access-controllers", Warning),
        _ => ("access-defaults", Warning),
    };
    if missing.is_empty() {
        return Check::new(check, Fine, format!("these credentials may do what {role} has to"));
    }
    let mut verbs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for question in missing {
        verbs.entry(question.place()).or_default().push(question.verb);
    }
    let lacking: Vec<String> = verbs
        .iter()
        .map(|(place, verbs)| format!("{} {place}", verbs.join("/")))
        .collect();
    let reason = format!("these credentials may not {}, as {role} has to", lacking.join(", "));
    Check::new(check, lacks, reason)
}

fn questions(role: &Role) -> Vec<Question> {
    let everywhere = role.rules.iter().map(|rule| (rule, None));
    let inside = role.inside.iter().map(|rule| (rule, Some(NAMESPACE)));
    let mut all = Vec::new();
    for (rule, namespace) in everywhere.chain(inside) {
        let names: Vec<Option<&'static str>> = match rule.names.is_empty() {
            true => vec![None],
            false => rule.names.iter().copied().map(Some).collect(),
        };
        for resource in &rule.resources {
            for verb in &rule.verbs {
                all.extend(names.iter().map(|name| Question {
                    group: rule.group.clone(),
                    resource,
                    verb,
                    namespace,
                    name: *name,
                }));
            }
        }
    }
    all
}

async fn allowed(api: &Api, question: &Question) -> Result<bool, ApiError> {
    let (name, part) = question.resource.split_once('/').unwrap_or((question.resource, ""));
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": { "group": question.group, "resource": name, "subresource": part, "verb": question.verb,
            "namespace": question.namespace.unwrap_or_default(), "name": question.name.unwrap_or_default() } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let resource = "selfsubjectaccessreviews.authorization.k8s.io";
    let answer = api.ask(resource, path, Action::Create(review)).await?;
    Ok(answer["status"]["allowed"].as_bool().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Work;

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
    fn what_is_lacking_is_said_by_role_and_resource() {
        let of = |resource: &'static str, group: &str, verb: &'static str| Question {
            group: group.into(),
            resource,
            verb,
            namespace: None,
            name: None,
        };
        let check = |role: &str, missing: &[Question], expected: (&str, super::super::Outcome, &str)| {
            let said = rights(role, &missing.iter().cloned().collect());
            assert_eq!((said.check, said.outcome), (expected.0, expected.1));
            assert_eq!(said.reason, expected.2);
        };
        check(
            AGENT,
            &[],
            ("access", Fine, "these credentials may do what margay-agent has to"),
        );
        check(
            AGENT,
            &[of("pods", "", "list"), of("pods", "", "get"), of("ippools", "g", "get")],
            (
                "access",
                Failed,
                "these credentials may not get ippools.g, get/list pods, as margay-agent has to",
            ),
        );
        let lease = Question {
            namespace: Some(NAMESPACE),
            name: Some(CONTROLLERS),
            ..of("leases", "coordination.k8s.io", "patch")
        };
        check(
            CONTROLLERS,
            &[lease],
            (
                "access-controllers",
                Warning,
                "these credentials may not patch leases.coordination.k8s.io/margay-controllers in margay-system, as \
                 margay-controllers has to",
            ),
        );
    }

    #[test]
    fn every_verb_on_every_resource_of_each_role_is_asked() {
        for role in roles("g", Work::WithBgp) {
            let asked = questions(&role);
            for (rules, namespace) in [(&role.rules, None), (&role.inside, Some(NAMESPACE))] {
                for rule in rules {
                    for (resource, verb) in rule.resources.iter().flat_map(|resource| {
                        let verbs = rule.verbs.iter();
                        verbs.map(move |verb| (*resource, *verb))
                    }) {
                        let question = Question {
                            group: rule.group.clone(),
                            resource,
                            verb,
                            namespace,
                            name: rule.names.first().copied(),
                        };
                        assert!(asked.contains(&question), "{}: {question:?}", role.name);
                    }
                }
            }
        }
    }
}
