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
