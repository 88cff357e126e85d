//! One object of a row to one resource.

use api::{Key, Resource};
use datastore::{Revision, Stored};
use serde_json::Value;

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

/// The resource that an object is; `None` if it is none now. One that cannot be understood is none, and that is logged: half
/// a policy or pool could do more harm.
pub fn resource(row: Row, groups: &Groups, object: Value) -> Option<Resource> {
    let key = key(row, &object)?;
    let read = match row.source {
        Source::Custom => custom::read(row.kind, groups.calico, object),
        Source::Pods => pod::read(object),
        Source::Nodes => node::read(object).map(Some),
        other => derived::read(other, object).map(|(resource, problems)| {
            for problem in problems {
                tracing::warn!(%key, %problem, "part of a Kubernetes policy cannot be converted");
            }
            resource
        }),
    };
    read.unwrap_or_else(|why| {
        tracing::error!(%key, why, "an object in Kubernetes cannot be understood, and counts as absent");
        None
    })
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
