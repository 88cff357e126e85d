//! What is said of pods that are about to be attached, and of their namespaces: by what the watches have seen, so that attaching
//! a pod reads nothing; what they have not seen is read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::annotations::is_ours;
use api::{Key, Kind};
use datastore::{Scope, StoreError, Workload};
use serde::Deserialize;
use serde_json::Value;

use super::table::{ROWS, Row, Source};
use super::{Shared, pod};

/// What the watches have seen.
#[derive(Default)]
pub struct Seen(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Pods that are on a node and have no address yet: those that are being attached now.
    pods: HashMap<(String, String), Pod>,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Clone, Debug, PartialEq)]
struct Pod {
    uid: String,
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Namespace {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    uid: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Seen {
    /// Notes an object of a row as it is now, or that it is gone.
    pub fn note(&self, row: Row, object: &Value, gone: bool) {
        let metadata = &object["metadata"];
        let Some(name) = metadata["name"].as_str() else { return };
        match row.source {
            Source::Pods => {
                let namespace = metadata["namespace"].as_str().unwrap_or_default();
                let id = (namespace.to_owned(), name.to_owned());
                let waits = !gone && pod::is_waiting(object);
                match waits.then(|| Pod::of(metadata)) {
                    Some(pod) => drop(self.known().pods.insert(id, pod)),
                    None => drop(self.known().pods.remove(&id)),
                }
            }
            Source::Namespaces => match gone {
                true => drop(self.known().namespaces.remove(name)),
                false => drop(self.known().namespaces.insert(name.to_owned(), Namespace::of(metadata))),
            },
            _ => {}
        }
    }

    /// A row is about to be listed as a whole: what was known of it may be wrong.
    pub fn begin(&self, row: Row, scope: &Scope) {
        match (row.source, scope) {
            (Source::Pods, Scope::All | Scope::Kind(_)) => self.known().pods.clear(),
            (Source::Namespaces, Scope::All | Scope::Kind(_)) => self.known().namespaces.clear(),
            _ => {}
        }
    }

    fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<Pod> {
        let id = (namespace.to_owned(), name.to_owned());
        self.known().pods.get(&id).filter(|pod| pod.uid == uid).cloned()
    }

    fn namespace(&self, name: &str) -> Option<Namespace> {
        self.known().namespaces.get(name).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code that can panic runs while this is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    fn of(metadata: &Value) -> Self {
        let Metadata { uid, annotations, .. } = read(metadata);
        Self {
            uid,
            annotations: ours(annotations),
        }
    }
}

impl Namespace {
    fn of(metadata: &Value) -> Self {
        let Metadata {
            labels, annotations, ..
        } = read(metadata);
        Self {
            labels,
            annotations: ours(annotations),
        }
    }
}

fn read(metadata: &Value) -> Metadata {
    // What the API server says has these types.
    Metadata::deserialize(metadata).unwrap_or_default()
}

fn ours(mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.retain(|name, _| is_ours(name));
    annotations
}

impl Shared {
    /// See [`datastore::Store::workload`].
    pub async fn workload(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Workload, StoreError> {
        let (pod, within) = futures::try_join!(self.pod(namespace, name, uid), self.namespace(namespace))?;
        Ok(Workload {
            annotations: pod.annotations,
            namespace_labels: within.labels,
            namespace_annotations: within.annotations,
        })
    }

    async fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Pod, StoreError> {
        if let Some(seen) = uid.and_then(|uid| self.seen.pod(namespace, name, uid)) {
            return Ok(seen);
        }
        tracing::info!(
            namespace,
            name,
            "the watch has not seen this pod waiting for its addresses: it is read"
        );
        let object = self.read_one(Source::Pods, Some(namespace), name).await?;
        let pod = Pod::of(&object["metadata"]);
        if let Some(uid) = uid.filter(|uid| *uid != pod.uid) {
            return Err(StoreError::Refused(format!(
                "pod {namespace}/{name} is another one by now: its UID is {}, not {uid}",
                pod.uid
            )));
        }
        Ok(pod)
    }

    async fn namespace(&self, name: &str) -> Result<Namespace, StoreError> {
        // What was seen is old as soon as nobody looks any more.
        let seen = self.is_followed(Source::Namespaces).then(|| self.seen.namespace(name));
        if let Some(seen) = seen.flatten() {
            return Ok(seen);
        }
        let object = self.read_one(Source::Namespaces, None, name).await?;
        Ok(Namespace::of(&object["metadata"]))
    }

    async fn read_one(&self, source: Source, namespace: Option<&str>, name: &str) -> Result<Value, StoreError> {
        let row = ROWS.iter().find(|row| row.source == source).copied();
        let row = row.ok_or_else(|| StoreError::Refused(format!("{source:?} are not read here")))?;
        let read = self.link.ask(row, namespace, name, "", super::Action::Get).await;
        read.map_err(|error| match StoreError::from(error) {
            StoreError::NotFound(_) => StoreError::NotFound(Key {
                kind: Kind::WorkloadEndpoint,
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
            }),
            other => other,
        })
    }

    fn is_followed(&self, source: Source) -> bool {
        let mut feeds = ROWS.iter().zip(&self.feeds).filter(|(row, _)| row.source == source);
        feeds.all(|(_, feed)| feed.is_running())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(source: Source) -> Row {
        *ROWS.iter().find(|row| row.source == source).expect("it has a row")
    }

    fn pod(uid: &str, more: Value) -> Value {
        let mut pod = json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": uid,
                "annotations": { "cni.projectcalico.org/hwAddr": "x", "kubectl.kubernetes.io/other": "y" } },
            "spec": { "nodeName": "n1" }, "status": {},
        });
        for (name, value) in more.as_object().expect("an object") {
            pod[name] = value.clone();
        }
        pod
    }

    #[test]
    fn pods_are_known_from_their_node_to_their_address() {
        let seen = Seen::default();
        let check = |object: Value, gone: bool, known: bool| {
            seen.note(row(Source::Pods), &object, gone);
            assert_eq!(seen.pod("ns", "p", "1").is_some(), known, "{object} {gone}");
        };
        check(pod("1", json!({ "spec": {} })), false, false);
        check(
            pod("1", json!({ "spec": { "nodeName": "n1", "hostNetwork": true } })),
            false,
            false,
        );
        check(pod("1", json!({})), false, true);
        check(pod("1", json!({ "status": { "podIP": "10.0.0.1" } })), false, false);
        check(pod("1", json!({})), false, true);
        check(pod("2", json!({})), false, false);
        check(pod("1", json!({})), false, true);
        check(pod("1", json!({})), true, false);
        check(pod("1", json!({})), false, true);
        seen.begin(row(Source::Pods), &Scope::Key(Key::cluster(Kind::Node, "n1")));
        assert!(seen.pod("ns", "p", "1").is_some());
        seen.begin(row(Source::Pods), &Scope::All);
        assert!(seen.pod("ns", "p", "1").is_none());
    }

    #[test]
    fn only_annotations_that_are_read_are_kept() {
        let seen = Seen::default();
        seen.note(row(Source::Pods), &pod("1", json!({})), false);
        let kept = seen.pod("ns", "p", "1").expect("it was seen").annotations;
        assert_eq!(
            kept,
            BTreeMap::from([("cni.projectcalico.org/hwAddr".into(), "x".into())])
        );
    }

    #[test]
    fn namespaces_are_known_until_they_are_gone() {
        let seen = Seen::default();
        let object = json!({ "metadata": { "name": "ns", "labels": { "team": "a" },
            "annotations": { "cni.projectcalico.org/ipv4pools": "[]" } } });
        seen.note(row(Source::Namespaces), &object, false);
        let known = seen.namespace("ns").expect("it was seen");
        assert_eq!(known.labels["team"], "a");
        assert_eq!(known.annotations["cni.projectcalico.org/ipv4pools"], "[]");
        seen.note(row(Source::Namespaces), &object, true);
        assert_eq!(seen.namespace("ns"), None);
    }
}
