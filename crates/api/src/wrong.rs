//! Objects that are there, but not as an object of their kind must be: a value that cannot be read, a field that is missing.
//!
//! API servers and other versions of this program let such objects pass. They are not absent: a policy that cannot be read may have
//! denied something. So they travel as what they are, with what can be read of them, what is wrong, and the original.

use std::collections::BTreeSet;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::document::spoils;
use crate::{Condition, FieldProblem, Key, Kind, Metadata, Resource};

/// An object that is there and wrong. It is kept as it was: writing it back changes nothing but its metadata and conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    kind: Kind,
    metadata: Metadata,
    /// Why it cannot be read; never empty.
    problems: Vec<FieldProblem>,
    /// Paths that were left out of `readable`.
    bad: BTreeSet<String>,
    readable: Option<Resource>,
    /// The original, if `is_whole`.
    raw: Value,
    is_whole: bool,
}

impl Wrong {
    /// Finds out what is wrong with the object `raw`, and what can be read of it. `error` is the first error met.
    pub fn read(kind: Kind, raw: Value, error: &str) -> Self {
        let mut document = raw.clone();
        if let Some(fields) = document.as_object_mut() {
            for field in ["apiVersion", "kind", "status"] {
                fields.remove(field);
            }
            fields.entry("spec").or_insert_with(|| json!({}));
        }
        let decoded = Resource::decode(kind, document);
        let mut problems = decoded.problems;
        // What this version does not know is no fault of the object.
        problems.drain(..decoded.unknown);
        if problems.is_empty() {
            problems.push(whole(error));
        }
        let metadata = match &decoded.value {
            Some(readable) => readable.metadata().clone(),
            None => serde_json::from_value(raw["metadata"].clone()).unwrap_or_else(|_| identity(&raw["metadata"])),
        };
        Self {
            kind,
            metadata,
            problems,
            bad: decoded.bad,
            readable: decoded.value,
            raw,
            is_whole: true,
        }
    }

    /// An object of which nothing is known but what it is called. `raw` holds what identifies it (`metadata`), and need not be all.
    pub fn unreadable(key: &Key, why: &str, raw: Value) -> Self {
        let metadata = Metadata {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            ..identity(&raw["metadata"])
        };
        Self {
            kind: key.kind,
            metadata,
            problems: vec![whole(why)],
            bad: BTreeSet::new(),
            readable: None,
            raw,
            is_whole: false,
        }
    }

    /// What it says it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its metadata, as far as they can be read.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its metadata, to change.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// Why it cannot be read. At least one reason.
    pub fn problems(&self) -> &[FieldProblem] {
        &self.problems
    }

    /// Why it cannot be read, and what is wrong with the rest.
    pub fn all_problems(&self) -> Vec<FieldProblem> {
        let mut problems = self.problems.clone();
        let rest = self.readable.as_ref().map(Resource::problems).unwrap_or_default();
        let fair = |problem: &FieldProblem| !self.bad.iter().any(|bad| spoils(bad, &problem.field));
        problems.extend(rest.into_iter().filter(fair));
        problems
    }

    /// The object without what cannot be read; `None` if that would be no object.
    pub fn readable(&self) -> Option<&Resource> {
        self.readable.as_ref()
    }

    /// Whether all of it is here, so that it can be written back as it was.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether what [`Wrong::readable`] says about a field may not be what the object says.
    pub fn is_in_doubt(&self, field: &str) -> bool {
        self.readable.is_none() || self.bad.iter().any(|bad| spoils(bad, field))
    }

    /// Its conditions, as far as they can be read.
    pub fn conditions(&self) -> Vec<Condition> {
        let held = self.raw["status"]["conditions"].as_array();
        let read = |value: &Value| serde_json::from_value(value.clone()).ok();
        held.into_iter().flatten().filter_map(read).collect()
    }

    /// Replaces its conditions.
    pub fn set_conditions(&mut self, conditions: &[Condition]) {
        if !self.raw["status"].is_object() {
            self.raw["status"] = json!({});
        }
        self.raw["status"]["conditions"] = json!(conditions);
    }
}

impl From<Wrong> for Resource {
    fn from(wrong: Wrong) -> Self {
        Resource::Wrong(Box::new(wrong))
    }
}

/// As it was, with its metadata as they are now.
impl Serialize for Wrong {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut metadata = self.raw["metadata"].as_object().cloned().unwrap_or_default();
        if let Ok(Value::Object(now)) = serde_json::to_value(&self.metadata) {
            // What is not said any more is gone.
            let known = [
                "resourceVersion",
                "labels",
                "annotations",
                "finalizers",
                "ownerReferences",
            ];
            metadata.retain(|field, _| !known.contains(&field.as_str()));
            metadata.extend(now);
        }
        let mut fields: Map<String, Value> = self.raw.as_object().cloned().unwrap_or_default();
        fields.remove("apiVersion");
        fields.insert("kind".to_owned(), self.kind.name().into());
        fields.insert("metadata".to_owned(), Value::Object(metadata));
        fields.serialize(serializer)
    }
}

/// What is wrong where no field is known.
fn whole(why: &str) -> FieldProblem {
    FieldProblem {
        field: String::new(),
        value: None,
        message: why.to_owned(),
    }
}

/// Who an object is, of metadata that cannot be read as a whole.
fn identity(metadata: &Value) -> Metadata {
    let text = |field: &str| metadata[field].as_str().map(str::to_owned);
    Metadata {
        name: text("name").unwrap_or_default(),
        namespace: text("namespace"),
        resource_version: text("resourceVersion"),
        uid: text("uid"),
        generation: metadata["generation"].as_i64(),
        ..Metadata::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an object; what is wrong with it, and what can be read of its spec.
    #[track_caller]
    fn check(object: Value, problems: &[&str], readable: Option<Value>) {
        let resource: Resource = serde_json::from_value(object.clone()).expect("it says what it is");
        let Resource::Wrong(wrong) = &resource else {
            panic!("{object} is right");
        };
        let shown: Vec<String> = wrong.problems().iter().map(ToString::to_string).collect();
        assert_eq!(shown, problems);
        let spec = wrong.readable().map(|resource| json!(resource)["spec"].clone());
        assert_eq!(spec, readable);
        let again = serde_json::to_value(&resource).expect("it has a JSON form");
        assert_eq!(again, object, "it is kept as it was");
    }

    fn policy(spec: Value) -> Value {
        json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "p", "labels": { "a": "b" } }, "spec": spec })
    }

    #[test]
    fn what_can_be_read_is_read_and_the_rest_is_named() {
        check(
            policy(json!({ "selector": "a == 'b'", "types": ["Ingres"], "later": 1 })),
            &["spec.types[0]: `Ingres` must be one of Ingress, Egress; did you mean `Ingress`?"],
            Some(json!({ "selector": "a == 'b'" })),
        );
        let rule = json!({ "action": "Allow", "source": { "nets": ["10.0.0.0/33"] } });
        check(
            policy(json!({ "ingress": [rule] })),
            &["spec.ingress[0].source.nets[0]: `10.0.0.0/33` must be an address range like 10.0.0.0/16 or fd00::/64"],
            Some(json!({ "ingress": [{ "action": "Allow" }] })),
        );
    }

    #[test]
    fn what_nothing_can_be_read_of_keeps_its_name() {
        check(
            json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "p" }, "spec": 5 }),
            &["spec: `5` must be a mapping of fields"],
            None,
        );
        let key = Key::cluster(Kind::GlobalNetworkPolicy, "p");
        let object = json!({ "metadata": { "name": "other", "uid": "u" } });
        let wrong = Wrong::unreadable(&key, "no", object);
        assert_eq!(
            (wrong.metadata().name.as_str(), wrong.metadata().uid.as_deref()),
            ("p", Some("u"))
        );
        assert!(wrong.is_in_doubt("spec.tier"));
        let nameless = serde_json::from_value::<Resource>(json!({ "kind": "Tier", "metadata": {}, "spec": 5 }));
        assert!(nameless.is_err());
    }

    #[test]
    fn doubt_is_about_what_was_left_out() {
        let object = policy(json!({ "types": ["Ingres"], "order": 1 }));
        let Ok(Resource::Wrong(wrong)) = serde_json::from_value(object) else {
            panic!("it is wrong");
        };
        assert!(wrong.is_in_doubt("spec.types"));
        assert!(!wrong.is_in_doubt("spec.order"));
    }

    #[test]
    fn a_status_makes_nothing_wrong_and_conditions_can_be_set() {
        let mut object = policy(json!({ "selector": "all()" }));
        object["status"] = json!({ "conditions": [{ "type": "Valid" }] });
        let resource: Resource = serde_json::from_value(object.clone()).expect("a policy");
        assert!(matches!(resource, Resource::GlobalNetworkPolicy(policy) if policy.status.is_none()));
        object["spec"] = json!({ "order": "first" });
        let mut resource: Resource = serde_json::from_value(object).expect("a wrong policy");
        let condition = Condition {
            kind: Condition::VALID.into(),
            status: crate::ConditionStatus::False,
            observed_generation: Some(3),
            last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            reason: "Invalid".into(),
            message: "no".into(),
        };
        assert!(resource.set_condition(condition.clone()));
        let again: Resource = serde_json::from_value(json!(resource)).expect("a wrong policy");
        assert_eq!(again.conditions(), [condition]);
        assert_eq!(again, resource);
    }
}
