//! What is said of pods that are about to be attached, and of their namespaces: by what the watches have seen, so that attaching
//! a pod reads nothing; what they have not seen is read.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::annotations::is_ours;
use api::{Key, Kind};
use datastore::{StoreError, Workload};
use serde::Deserialize;
use serde_json::Value;

use super::table::{ROWS, Row, Source};
use super::{Shared, pod};

/// What the watches and the lists that they began with have seen.
///
/// A list may be older than what a watch of the same row has told while it was being read. Versions of one row can be compared, so
/// the newer of the two counts, as a whole.
#[derive(Default)]
pub struct Seen {
    /// Pods that are on a node and have no address yet: those that are being attached now.
    pods: Mutex<Table<(String, String), Pod>>,
    namespaces: Mutex<Table<String, Namespace>>,
}

/// A row at a version.
struct Table<K, V> {
    at: u64,
    known: HashMap<K, V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            at: 0,
            known: HashMap::new(),
        }
    }
}

/// A list of a row as it comes, page by page.
#[derive(Default)]
pub struct Sight {
    pods: HashMap<(String, String), Pod>,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Clone, Debug, PartialEq)]
struct Pod {
    uid: String,
    node: String,
    version: String,
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
    /// A watch of a row begins after version `from`. What happened between what is known and then, nobody has seen.
    pub fn begin(&self, row: Row, from: u64) {
        match row.source {
            Source::Pods => locked(&self.pods).begin(from),
            Source::Namespaces => locked(&self.namespaces).begin(from),
            _ => {}
        }
    }

    /// A watch says what an object of a row is at `version`, or that it is gone.
    pub fn note(&self, row: Row, object: &Value, version: u64, gone: bool) {
        match row.source {
            Source::Pods => {
                if let Some((id, pod)) = Pod::of_object(object) {
                    locked(&self.pods).change(version, id, pod.filter(|_| !gone));
                }
            }
            Source::Namespaces => {
                if let Some((name, namespace)) = Namespace::of_object(object) {
                    locked(&self.namespaces).change(version, name, Some(namespace).filter(|_| !gone));
                }
            }
            _ => {}
        }
    }

    /// A row was read as a whole, as it was at `version`; whether a watch of it is running.
    pub fn listed(&self, row: Row, version: u64, sight: Sight, is_followed: bool) {
        match row.source {
            Source::Pods => locked(&self.pods).replace(version, sight.pods, is_followed),
            Source::Namespaces => locked(&self.namespaces).replace(version, sight.namespaces, is_followed),
            _ => {}
        }
    }

    /// The server went back to older data: versions mean something else from now on.
    pub fn forget(&self, row: Row) {
        match row.source {
            Source::Pods => *locked(&self.pods) = Table::default(),
            Source::Namespaces => *locked(&self.namespaces) = Table::default(),
            _ => {}
        }
    }

    fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<Pod> {
        let id = (namespace.to_owned(), name.to_owned());
        let pods = locked(&self.pods);
        pods.known.get(&id).filter(|pod| pod.uid == uid).cloned()
    }

    /// The version at which a pod of a node was last seen waiting for its addresses.
    pub fn version(&self, namespace: &str, name: &str, node: &str) -> Option<String> {
        let id = (namespace.to_owned(), name.to_owned());
        let pods = locked(&self.pods);
        let pod = pods
            .known
            .get(&id)
            .filter(|pod| pod.node == node && !pod.version.is_empty())?;
        Some(pod.version.clone())
    }

    fn namespace(&self, name: &str) -> Option<Namespace> {
        locked(&self.namespaces).known.get(name).cloned()
    }
}

fn locked<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs while this is locked.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash, V> Table<K, V> {
    fn begin(&mut self, from: u64) {
        if from > self.at {
            self.replace(from, HashMap::new(), false);
        }
    }

    fn change(&mut self, version: u64, id: K, value: Option<V>) {
        if version <= self.at {
            return;
        }
        self.at = version;
        match value {
            Some(value) => drop(self.known.insert(id, value)),
            None => drop(self.known.remove(&id)),
        }
    }

    fn replace(&mut self, version: u64, known: HashMap<K, V>, is_followed: bool) {
        // Without a watch nobody keeps what is known up to date, whatever its version.
        if version >= self.at || !is_followed {
            (self.at, self.known) = (version, known);
        }
    }
}

impl Sight {
    /// An object of the list.
    pub fn add(&mut self, row: Row, object: &Value) {
        match row.source {
            Source::Pods => {
                if let Some((id, Some(pod))) = Pod::of_object(object) {
                    self.pods.insert(id, pod);
                }
            }
            Source::Namespaces => self.namespaces.extend(Namespace::of_object(object)),
            _ => {}
        }
    }
}

impl Pod {
    /// Which pod an object is, and what is known of it while it is being attached.
    fn of_object(object: &Value) -> Option<((String, String), Option<Self>)> {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let id = (namespace.to_owned(), metadata["name"].as_str()?.to_owned());
        Some((id, pod::is_waiting(object).then(|| Self::of(object))))
    }

    fn of(object: &Value) -> Self {
        let Metadata { uid, annotations, .. } = read(&object["metadata"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            uid,
            node: text(&object["spec"]["nodeName"]),
            version: text(&object["metadata"]["resourceVersion"]),
            annotations: ours(annotations),
        }
    }
}

impl Namespace {
    fn of_object(object: &Value) -> Option<(String, Self)> {
        let metadata = &object["metadata"];
        Some((metadata["name"].as_str()?.to_owned(), Self::of(metadata)))
    }

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
        // Of a server that is away nothing else could be had either: who asks is to know that before he begins.
        let is_current = self.is_current(Source::Pods);
        let seen = uid.and_then(|uid| self.seen.pod(namespace, name, uid));
        if let Some(seen) = seen.filter(|_| is_current) {
            return Ok(seen);
        }
        if is_current {
            tracing::info!(
                namespace,
                name,
                "the watch has not seen this pod waiting for its addresses: it is read"
            );
        }
        let object = self.read_one(Source::Pods, Some(namespace), name).await?;
        let pod = Pod::of(&object);
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

    /// Whether what was seen is what there is now, as far as anybody can know.
    fn is_current(&self, source: Source) -> bool {
        let mut places = (0..ROWS.len()).filter(|place| ROWS[*place].source == source);
        let is_broken = self
            .link
            .outage(|outage, _| places.any(|place| outage.is_broken(place)));
        self.is_followed(source) && !is_broken
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
        let mut version = 0;
        let mut check = |object: Value, gone: bool, known: bool| {
            version += 1;
            seen.note(row(Source::Pods), &object, version, gone);
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
    }

    #[test]
    fn only_annotations_that_are_read_are_kept() {
        let seen = Seen::default();
        seen.note(row(Source::Pods), &pod("1", json!({})), 1, false);
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
        seen.note(row(Source::Namespaces), &object, 1, false);
        let known = seen.namespace("ns").expect("it was seen");
        assert_eq!(known.labels["team"], "a");
        assert_eq!(known.annotations["cni.projectcalico.org/ipv4pools"], "[]");
        seen.note(row(Source::Namespaces), &object, 2, true);
        assert_eq!(seen.namespace("ns"), None);
    }

    /// Something that is seen of the namespace.
    enum Of {
        /// A watch begins.
        Begin(u64),
        /// A watch says what `team` is, or that the namespace is gone.
        Watch(u64, Option<&'static str>),
        /// The same of a list, while a watch is running or none is.
        List(u64, Option<&'static str>, bool),
        /// The server went back.
        Back,
    }

    #[track_caller]
    fn check(all: &[Of], expected: Option<&str>) {
        let seen = Seen::default();
        let row = row(Source::Namespaces);
        let object =
            |team: Option<&str>| json!({ "metadata": { "name": "ns", "labels": { "team": team.unwrap_or("") } } });
        for one in all {
            match one {
                Of::Begin(from) => seen.begin(row, *from),
                Of::Watch(at, team) => seen.note(row, &object(*team), *at, team.is_none()),
                Of::List(at, team, is_followed) => {
                    let mut sight = Sight::default();
                    if team.is_some() {
                        sight.add(row, &object(*team));
                    }
                    seen.listed(row, *at, sight, *is_followed);
                }
                Of::Back => seen.forget(row),
            }
        }
        let known = seen.namespace("ns").map(|known| known.labels["team"].clone());
        assert_eq!(known.as_deref(), expected);
    }

    #[test]
    fn the_newer_of_a_list_and_a_watch_counts() {
        let (a, b) = (Some("a"), Some("b"));
        let began = || vec![Of::List(10, a, false), Of::Begin(10)];
        let and = |more: Vec<Of>| began().into_iter().chain(more).collect::<Vec<_>>();
        check(&began(), a);
        // A list of before that comes late, and one that is ahead of the watch.
        check(&and(vec![Of::Watch(12, b), Of::List(11, a, true)]), b);
        check(&and(vec![Of::Watch(12, None), Of::List(11, a, true)]), None);
        check(&and(vec![Of::List(13, b, true), Of::Watch(12, a), Of::Watch(13, a)]), b);
        check(&and(vec![Of::List(13, None, true), Of::Watch(12, a)]), None);
        check(&and(vec![Of::List(13, b, true), Of::Watch(14, a)]), a);
    }

    #[test]
    fn what_nobody_saw_is_not_known() {
        let (a, b) = (Some("a"), Some("b"));
        // A watch that begins later than the last one ended.
        check(&[Of::List(10, a, false), Of::Begin(12)], None);
        check(
            &[Of::List(10, a, false), Of::Begin(10), Of::Watch(11, b), Of::Begin(10)],
            b,
        );
        // Older data, with a watch that noticed and without one.
        let noticed = [Of::List(10, a, false), Of::Begin(10), Of::Back, Of::List(5, b, true)];
        check(&noticed, b);
        check(&noticed[..3], None);
        check(
            &[
                Of::List(10, a, false),
                Of::List(5, b, false),
                Of::Begin(5),
                Of::Watch(6, a),
            ],
            a,
        );
    }
}
