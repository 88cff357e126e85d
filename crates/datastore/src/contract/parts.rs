//! What the checks are made of.

use std::future::poll_fn;
use std::task::Poll;

use api::{GlobalNetworkSetSpec, Key, Kind, NetworkSetSpec, Object, Resource};
use futures::stream::{BoxStream, StreamExt};

use super::Outcome;
use crate::store::{Revision, Scope, Store, StoreError, Stored, Update, WatchEvent};

/// Adds one to the shared counter, `times` times, and lets others run between reading and writing.
pub(super) async fn increment(store: &dyn Store, times: usize) -> Outcome {
    for _ in 0..times {
        loop {
            let read = ok(store.get(&key("counter")).await)?;
            pause().await;
            let count = read.as_ref().map_or(0, |stored| count(&stored.resource)) + 1;
            let counter = set("counter", &count.to_string());
            let written = match &read {
                None => store.create(counter).await,
                Some(read) => store.update(counter, &read.revision).await,
            };
            match written {
                Ok(_) => break,
                Err(StoreError::Conflict(_) | StoreError::Exists(_)) => {}
                Err(other) => return Err(format!("an increment gave {other}")),
            }
        }
    }
    Ok(())
}

pub(super) async fn collect_counts(
    mut watch: BoxStream<'static, WatchResult>,
    until: usize,
) -> Result<Vec<usize>, String> {
    let mut seen = Vec::new();
    while seen.last() != Some(&until) {
        match next(&mut watch).await? {
            WatchEvent::Update(Update { value: Some(value), .. }, _) => seen.push(count(&value)),
            WatchEvent::Update(update, _) => return Err(format!("{} was never deleted", update.key)),
            WatchEvent::InSync(_) => {}
        }
    }
    Ok(seen)
}

/// The annotation that differs from write to write.
const COUNT: &str = "example.org/count";

pub(super) type WatchResult = Result<WatchEvent, StoreError>;

pub(super) async fn next(watch: &mut BoxStream<'static, WatchResult>) -> Result<WatchEvent, String> {
    watch
        .next()
        .await
        .ok_or("the watch ended")?
        .map_err(|error| format!("the watch gave {error:?}"))
}

pub(super) async fn in_sync(watch: &mut BoxStream<'static, WatchResult>) -> Result<Revision, String> {
    match next(watch).await? {
        WatchEvent::InSync(revision) => Ok(revision),
        other => Err(format!("not in sync but {other:?}")),
    }
}

/// Lets everything else run once.
pub(super) async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Resources whose names and namespaces begin like each other's, in no particular order.
pub(super) fn population() -> Vec<Resource> {
    vec![
        namespaced_set("ns", "b"),
        set("b", "1"),
        namespaced_set("ns-1", "a"),
        set("a", "1"),
        namespaced_set("ns", "a"),
        set("a.b", "1"),
        set("a-b", "1"),
        namespaced_set("n", "s-a"),
        set("ab", "1"),
        Object::new("a", handle("a")).into(),
        namespaced_set("ns", "a-b"),
        Object::new("default", api::ClusterInformationSpec::default()).into(),
    ]
}

/// Scopes that each contain something of [`population`].
pub(super) fn scopes() -> Vec<Scope> {
    vec![
        Scope::All,
        Scope::Kind(Kind::GlobalNetworkSet),
        Scope::Kind(Kind::NetworkSet),
        Scope::Kind(Kind::IPAMHandle),
        Scope::Namespace(Kind::NetworkSet, "ns".into()),
        Scope::Namespace(Kind::NetworkSet, "n".into()),
        Scope::Key(key("a")),
        Scope::Key(Key::namespaced(Kind::NetworkSet, "ns", "a")),
        Scope::Namespace(Kind::NetworkSet, "none".into()),
        Scope::Kind(Kind::IPPool),
    ]
}

pub(super) fn key(name: &str) -> Key {
    Key::cluster(Kind::GlobalNetworkSet, name)
}

pub(super) fn set(name: &str, count: &str) -> Resource {
    let mut set = Object::new(name, GlobalNetworkSetSpec::default());
    set.metadata.annotations.insert(COUNT.into(), count.into());
    set.into()
}

pub(super) fn count(resource: &Resource) -> usize {
    let count = resource.metadata().annotations.get(COUNT);
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

pub(super) fn namespaced_set(namespace: &str, name: &str) -> Resource {
    let mut set = Object::new(name, NetworkSetSpec::default());
    set.metadata.namespace = Some(namespace.into());
    set.into()
}

pub(super) fn version(stored: &Stored) -> Option<&String> {
    stored.resource.metadata().resource_version.as_ref()
}

fn handle(id: &str) -> api::IpamHandleSpec {
    api::IpamHandleSpec {
        handle_id: id.into(),
        ..Default::default()
    }
}

/// What its writer said: without the version, and without UID, creation time and generation if the writer said none.
pub(super) fn as_written(mut resource: Resource, written: &Resource) -> Resource {
    let (metadata, written) = (resource.metadata_mut(), written.metadata());
    metadata.resource_version = None;
    if written.uid.is_none() {
        metadata.uid = None;
    }
    if written.creation_timestamp.is_none() {
        metadata.creation_timestamp = None;
    }
    if written.generation.is_none() {
        metadata.generation = None;
    }
    resource
}

/// The next change, without the revision: from which a watch continues after it is the store's own matter.
pub(super) async fn update(watch: &mut BoxStream<'static, WatchResult>) -> Result<(Key, Option<Resource>), String> {
    next(watch).await.map(without_revision)
}

/// The next changes.
pub(super) async fn updates(
    watch: &mut BoxStream<'static, WatchResult>,
    count: usize,
) -> Result<Vec<(Key, Option<Resource>)>, String> {
    let mut updates = Vec::new();
    for _ in 0..count {
        updates.push(update(watch).await?);
    }
    Ok(updates)
}

/// Changes of one kind come in their order; which kind comes first is the store's own matter.
pub(super) fn by_kind(mut changes: Vec<(Key, Option<Resource>)>) -> Vec<(Key, Option<Resource>)> {
    changes.sort_by_key(|(key, _)| key.kind);
    changes
}

pub(super) fn appeared(stored: &Stored) -> (Key, Option<Resource>) {
    (stored.resource.key(), Some(stored.resource.clone()))
}

pub(super) fn without_revision(event: WatchEvent) -> (Key, Option<Resource>) {
    match event {
        WatchEvent::Update(update, _) => (update.key, update.value),
        WatchEvent::InSync(revision) => (key(&format!("an in-sync mark at {revision}")), None),
    }
}

pub(super) fn ok<T>(result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| format!("the store answered {error:?}"))
}

pub(super) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Outcome {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{what}: expected {expected:?}, got {got:?}"))
    }
}
