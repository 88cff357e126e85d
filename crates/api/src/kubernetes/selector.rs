//! Label selectors (`meta/v1.LabelSelector`) and the selector texts that they are.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::metadata::{is_label_key, is_label_value};
use crate::problem::Problems;

/// Labels that an object must have. Without a term it matches every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// These labels with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// And all of this.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// What one label must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// How it is judged.
    pub operator: LabelOperator,
    /// The values that it is compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LabelOperator {
    /// It has one of the values.
    In,
    /// It is absent or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

/// Pods alone: no host endpoint, no network set, no workload of another orchestrator.
const IS_POD: &str = "projectcalico.org/orchestrator == 'k8s'";

/// The selector text for pods: all of them if absent; `None` if it cannot be understood.
pub(super) fn pods(field: &str, selector: Option<&LabelSelector>, problems: &mut Problems) -> Option<String> {
    let terms = selector.map_or(Some(Vec::new()), |selector| selector.terms(field, problems))?;
    let all = std::iter::once(IS_POD.to_owned()).chain(terms);
    Some(all.collect::<Vec<_>>().join(" && "))
}

/// The selector text for all pods.
pub(super) fn all_pods() -> String {
    IS_POD.to_owned()
}

/// The selector text for namespaces: empty if absent (the policy's own), `all()` without a term; `None` if it cannot be
/// understood.
pub(super) fn namespaces(field: &str, selector: Option<&LabelSelector>, problems: &mut Problems) -> Option<String> {
    let Some(selector) = selector else {
        return Some(String::new());
    };
    let terms = selector.terms(field, problems)?;
    Some(match terms.as_slice() {
        [] => "all()".to_owned(),
        terms => terms.join(" && "),
    })
}

impl LabelSelector {
    /// One text for each term, or problems: a key or value that no label can have could mean anything as a text.
    fn terms(&self, field: &str, problems: &mut Problems) -> Option<Vec<String>> {
        problems.within(field, |problems| {
            let labels: Vec<Option<String>> = problems.within("matchLabels", |problems| {
                let term = |(key, value): (&String, &String)| equals(key, value, problems);
                self.match_labels.iter().map(term).collect()
            });
            let mut terms: Vec<Option<String>> = labels;
            problems.each("matchExpressions", &self.match_expressions, |problems, term| {
                terms.push(term.text(problems));
            });
            terms.into_iter().collect()
        })
    }
}

fn equals(key: &str, value: &str, problems: &mut Problems) -> Option<String> {
    let is_right = key_is_right(key, problems) & value_is_right(key, value, problems);
    is_right.then(|| format!("{key} == '{value}'"))
}

impl LabelRequirement {
    fn text(&self, problems: &mut Problems) -> Option<String> {
        let Self { key, operator, values } = self;
        let mut is_right = problems.within("key", |problems| key_is_right(key, problems));
        for (index, value) in values.iter().enumerate() {
            is_right &= value_is_right(&format!("values[{index}]"), value, problems);
        }
        let needs_values = matches!(operator, LabelOperator::In | LabelOperator::NotIn);
        if needs_values && values.is_empty() {
            problems.missing("values", "is required with In and NotIn");
            is_right = false;
        }
        if !needs_values && !values.is_empty() {
            problems.missing("values", "must be absent with Exists and DoesNotExist");
            is_right = false;
        }
        let list = values.join("', '");
        is_right.then(|| match operator {
            LabelOperator::In => format!("{key} in {{ '{list}' }}"),
            LabelOperator::NotIn => format!("{key} not in {{ '{list}' }}"),
            LabelOperator::Exists => format!("has({key})"),
            LabelOperator::DoesNotExist => format!("! has({key})"),
        })
    }
}

fn key_is_right(key: &str, problems: &mut Problems) -> bool {
    let is_right = is_label_key(key);
    if !is_right {
        problems.report("", key, "must be a label's key");
    }
    is_right
}

fn value_is_right(field: &str, value: &str, problems: &mut Problems) -> bool {
    let is_right = is_label_value(value);
    if !is_right {
        problems.report(field, value, "must be a label's value");
    }
    is_right
}

/// For people: `a=b,c in (d,e),f,!g`, as `kubectl` prints it; `<none>` without a term.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let judged = self.match_expressions.iter().map(|term| {
            let LabelRequirement { key, operator, values } = term;
            let values = values.join(",");
            match operator {
                LabelOperator::In => format!("{key} in ({values})"),
                LabelOperator::NotIn => format!("{key} notin ({values})"),
                LabelOperator::Exists => key.clone(),
                LabelOperator::DoesNotExist => format!("!{key}"),
            }
        });
        let terms: Vec<String> = equal.chain(judged).collect();
        f.write_str(if terms.is_empty() { "<none>" } else { "" })?;
        f.write_str(&terms.join(","))
    }
}
