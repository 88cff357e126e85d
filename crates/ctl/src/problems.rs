//! What is wrong with policies that are shown: beside them, so that nobody has to know which command would have said it.
//!
//! Three sources. What the resource itself says is worked out here as every agent does it, so it does not matter where one looks.
//! What became of it on nodes (the kernel refused a rule, say) their agents write on the resource. Of this node, and of what has no
//! place for that, this node's agent is asked, if one answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use api::{Condition, ConditionStatus, Key, Kind, Resource};
use datastore::{Scope, SharedStore, Update};
use policy::{Effect, Graph};

use crate::CtlError;

/// Problems by resource.
pub type Problems = BTreeMap<Key, Vec<Note>>;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// In a word, for a table.
    pub word: &'static str,
    /// A sentence that begins with the resource.
    pub text: String,
}

/// Whether there is anything to say of resources of this kind.
pub fn concerns(kind: Kind) -> bool {
    is_policys(kind) || Kind::WRITTEN.contains(&kind)
}

/// Whether agents have anything to say of them.
fn is_policys(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
            | Kind::Profile
            | Kind::HostEndpoint
    )
}

/// What is wrong with these resources.
///
/// # Errors
/// The datastore's. An agent that does not answer is no error.
pub async fn of(resources: &[Resource], store: &SharedStore, run_dir: &Path) -> Result<Problems, CtlError> {
    if !resources.iter().any(|resource| concerns(resource.kind())) {
        return Ok(Problems::new());
    }
    let mut problems = said(resources);
    if !resources.iter().any(|resource| is_policys(resource.kind())) {
        return Ok(problems);
    }
    let tiers = store.list(&Scope::Kind(Kind::Tier)).await?;
    let tiers: Vec<Resource> = tiers.items.into_iter().map(|stored| stored.resource).collect();
    problems.extend(written(resources, &tiers));
    let report = agent::http::ask(&agent::http::socket(run_dir)).ok();
    refused(resources, report.as_ref().map(|report| &*report.node), &mut problems);
    if let Some(report) = report {
        told(resources, &report.node, &report.problems, &mut problems);
    }
    Ok(problems)
}

/// What is wrong with resources that are no matter of policy, and what their conditions say.
fn said(resources: &[Resource]) -> Problems {
    let mut problems = Problems::new();
    for resource in resources.iter().filter(|resource| !is_policys(resource.kind())) {
        let key = resource.key();
        let wrong = resource.problems().into_iter().map(|problem| Note {
            word: "invalid",
            text: format!("{key} {problem}"),
        });
        let mut notes: Vec<Note> = wrong.collect();
        let is_known = !notes.is_empty();
        for condition in resource.conditions() {
            let is_valid = condition.kind == Condition::VALID;
            if condition.status == ConditionStatus::False && !(is_valid && is_known) {
                let (word, text) = match is_valid {
                    true => ("invalid", format!("{key} {}", condition.message)),
                    false => (
                        "not in use",
                        format!("{key}: {}: {}", condition.reason, condition.message),
                    ),
                };
                notes.push(Note { word, text });
            }
        }
        if !notes.is_empty() {
            problems.insert(key, notes);
        }
    }
    problems
}

/// What the resources themselves say, as every agent reads them.
fn written(resources: &[Resource], tiers: &[Resource]) -> Problems {
    let mut graph = Graph::new("");
    for resource in tiers.iter().chain(resources) {
        graph.apply(Update {
            key: resource.key(),
            value: Some(resource.clone()),
        });
    }
    let mut problems = Problems::new();
    let shown: BTreeSet<Key> = resources.iter().map(Resource::key).collect();
    for problem in graph
        .problems()
        .into_iter()
        .filter(|problem| shown.contains(&problem.key))
    {
        let word = match problem.effect {
            Effect::Closed => "closed",
            Effect::Denies => "denies",
            Effect::Absent => "absent",
            Effect::NotReported => "left out",
            Effect::NotEnforced => "in part",
        };
        let text = problem.to_string();
        problems.entry(problem.key).or_default().push(Note { word, text });
    }
    problems
}

/// What agents have written of their nodes, but for one that says it itself.
fn refused(resources: &[Resource], but: Option<&str>, problems: &mut Problems) {
    for resource in resources.iter().filter(|resource| is_policys(resource.kind())) {
        let key = resource.key();
        for condition in resource.conditions() {
            if condition.refused_by().is_some_and(|node| Some(node) != but) {
                let text = format!("{key}: {}", condition.message);
                let note = Note { word: "refused", text };
                problems.entry(key.clone()).or_default().push(note);
            }
        }
    }
}

/// What the agent of `node` says of them besides.
fn told(resources: &[Resource], node: &str, said: &[String], problems: &mut Problems) {
    for key in resources.iter().map(Resource::key).filter(|key| is_policys(key.kind)) {
        let name = key.to_string();
        let is_about = |text: &&String| {
            text.strip_prefix(&name)
                .is_some_and(|rest| rest.starts_with([' ', ':']))
        };
        let notes = problems.entry(key).or_default();
        for text in said.iter().filter(is_about) {
            if !notes.iter().any(|note| note.text == *text) {
                let text = format!("{text} (on node {node})");
                notes.push(Note { word: "refused", text });
            }
        }
    }
    problems.retain(|_, notes| !notes.is_empty());
}

/// A cell of a table: how a resource is.
pub fn cell(problems: &Problems, key: &Key) -> String {
    let notes = problems.get(key).map(Vec::as_slice).unwrap_or_default();
    match notes.iter().min() {
        Some(worst) => worst.word.to_owned(),
        None => "ok".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(json: &str) -> Resource {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    const GOOD: &str =
        r#"{"kind":"NetworkPolicy","metadata":{"name":"good","namespace":"shop"},"spec":{"selector":"all()"}}"#;
    const BAD: &str =
        r#"{"kind":"NetworkPolicy","metadata":{"name":"bad","namespace":"shop"},"spec":{"selector":"role =="}}"#;
    const LOST: &str =
        r#"{"kind":"StagedNetworkPolicy","metadata":{"name":"lost.p","namespace":"shop"},"spec":{"tier":"lost"}}"#;

    #[track_caller]
    fn check(json: &str, said: &[&str], word: &str, expected: &[&str]) {
        let resources = [resource(json)];
        let mut problems = written(&resources, &[]);
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        told(&resources, "n1", &said, &mut problems);
        let key = resources[0].key();
        let texts: Vec<&str> = problems.values().flatten().map(|note| note.text.as_str()).collect();
        assert_eq!(texts.len(), expected.len(), "{texts:?}");
        for (text, expected) in texts.iter().zip(expected) {
            assert!(text.contains(expected), "{text} does not say {expected}");
        }
        assert_eq!(cell(&problems, &key), word);
    }

    #[test]
    fn nodes_that_refuse_are_named_wherever_one_looks() {
        let condition = |node: &str| {
            format!(
                r#"{{"type":"{node}/Enforced","status":"False","reason":"RulesRefused","message":"on node {node}, it denies","lastTransitionTime":"2026-01-01T00:00:00Z"}}"#
            )
        };
        let status = format!(r#"{{"conditions":[{},{}]}}"#, condition("n1"), condition("n2"));
        let json = format!("{},\"status\":{status}}}", &GOOD[..GOOD.len() - 1]);
        let resources = [resource(&json)];
        let check = |but: Option<&str>, expected: &[&str]| {
            let mut problems = Problems::new();
            refused(&resources, but, &mut problems);
            let texts: Vec<&str> = problems.values().flatten().map(|note| note.text.as_str()).collect();
            assert_eq!(texts, expected);
            assert_eq!(cell(&problems, &resources[0].key()), "refused");
        };
        let (one, two) = (
            "NetworkPolicy(shop/good): on node n1, it denies",
            "NetworkPolicy(shop/good): on node n2, it denies",
        );
        check(None, &[one, two]);
        // Of its own node the agent knows it better.
        check(Some("n1"), &[two]);
    }

    #[test]
    fn problems_stand_beside_their_resource() {
        let refused = "NetworkPolicy(shop/good): it denies what reaches it: no memory";
        check(GOOD, &[], "ok", &[]);
        check(GOOD, &["NetworkPolicy(shop/good2): other", "a route"], "ok", &[]);
        check(
            GOOD,
            &[refused],
            "refused",
            &["it denies what reaches it: no memory (on node n1)"],
        );
        check(BAD, &[refused], "denies", &["spec.selector: `role ==`"]);
        check(LOST, &[], "left out", &["spec.tier: `lost` is no tier that exists"]);
        // What the agent says of the resource as written is said once.
        let same = written(&[resource(BAD)], &[]);
        let same = &same.values().next().expect("a problem")[0].text;
        check(BAD, &[same], "denies", &["spec.selector: `role ==`"]);
    }
}
