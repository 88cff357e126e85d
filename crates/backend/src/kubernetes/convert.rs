//! One object of a row to one resource.

use api::{Key, Resource, Wrong};
use datastore::{Revision, Stored};
use serde_json::{Map, Value, json};

use super::group::Groups;
use super::table::{Row, Source};
use super::{custom, derived, node, pod};

/// The key of what an object is, was or may become; `None` if it is nothing to us.
pub fn key(row: Row, object: &Value) -> Option<Key> {
    match row.source {
        Source::Custom => {
            let metadata = &object["metadata"];
            Some(Key {
                kind: row.kind,
                namespace: metadata["namespace"].as_str().map(str::to_owned),
                name: metadata["name"].as_str()?.to_owned(),
            })
        }
        Source::Pods => pod::key(object),
        Source::Nodes => node::key(object),
        other => derived::key(other, object),
    }
}

/// The resource that an object is; `None` if it is none now. One that cannot be understood is a wrong one.
pub fn resource(row: Row, groups: &Groups, object: Value) -> Option<Resource> {
    let key = key(row, &object)?;
    let identity = identity(&object);
    let read = match row.source {
        Source::Custom => custom::read(row.kind, groups.calico, object),
        Source::Pods => pod::read(object),
        Source::Nodes => node::read(object).map(Some),
        other => derived::read(other, object).map(|(mut resource, problems)| {
            if let Some(resource) = &mut resource {
                resource.metadata_mut().left_out = problems;
            }
            resource
        }),
    };
    read.unwrap_or_else(|why| Some(Wrong::unreadable(&key, &why, identity).into()))
}

/// Which object it is, and which version of it.
fn identity(object: &Value) -> Value {
    let fields = ["uid", "resourceVersion", "generation"];
    let fields = fields.map(|field| (field.to_owned(), object["metadata"][field].clone()));
    json!({ "metadata": Map::from_iter(fields) })
}

/// The same with its version.
pub fn stored(row: Row, groups: &Groups, object: Value) -> Option<Stored> {
    let revision = Revision(version(&object)?.to_owned());
    let resource = resource(row, groups, object)?;
    Some(Stored { resource, revision })
}

/// What makes `to` of `from` by RFC 7386; nothing, `{}`, if they say the same.
pub fn merge(from: &Value, to: &Value) -> Value {
    let none = Map::new();
    let (from, to) = match (from, to) {
        (Value::Object(from), Value::Object(to)) => (from, to),
        (Value::Null, Value::Object(to)) => (&none, to),
        (Value::Object(from), Value::Null) => (from, &none),
        (Value::Null, Value::Null) => (&none, &none),
        (_, to) => return to.clone(),
    };
    let gone = from.keys().filter(|field| !to.contains_key(*field));
    let mut change: Map<String, Value> = gone.map(|field| (field.clone(), Value::Null)).collect();
    let differing = to.iter().filter(|(field, value)| from.get(*field) != Some(*value));
    change.extend(differing.map(|(field, value)| {
        let before = from.get(field).unwrap_or(&Value::Null);
        (field.clone(), merge(before, value))
    }));
    Value::Object(change)
}

/// An object's version as text.
pub fn version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

/// An object's version as the API server counts: a number, by which changes of one kind are ordered.
pub fn number(object: &Value) -> Option<u64> {
    version(object)?.parse().ok()
}

/// Where the object that a key stands for is: namespace and name.
pub fn place(row: Row, key: &Key) -> Option<(Option<String>, String)> {
    match row.source {
        Source::Custom | Source::Nodes => Some((key.namespace.clone(), key.name.clone())),
        Source::Pods => pod::of_key(key).map(|(namespace, name)| (Some(namespace.to_owned()), name)),
        other => derived::of_key(other, key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_has_what_differs() {
        let check = |from: Value, to: Value, expected: Value| assert_eq!(merge(&from, &to), expected);
        check(json!({ "a": 1, "b": [1] }), json!({ "a": 1, "b": [1] }), json!({}));
        check(Value::Null, json!({ "a": { "b": 1 } }), json!({ "a": { "b": 1 } }));
        check(json!({ "a": 1 }), Value::Null, json!({ "a": null }));
        check(Value::Null, Value::Null, json!({}));
        check(
            json!({ "a": { "b": 1, "c": 2 }, "d": [1, 2] }),
            json!({ "a": { "b": 1, "e": 3 }, "d": [2] }),
            json!({ "a": { "c": null, "e": 3 }, "d": [2] }),
        );
    }
}
