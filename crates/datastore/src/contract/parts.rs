//! What the checks are made of.

use std::future::poll_fn;
use std::task::Poll;

use api::{Key, Kind, Object, ProfileSpec, Resource, WorkloadEndpointSpec};
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
            let counter = profile("counter", &count.to_string());
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
        endpoint("ns", "b"),
        profile("b", "1"),
        endpoint("ns-1", "a"),
        profile("a", "1"),
        endpoint("ns", "a"),
        profile("a.b", "1"),
        profile("a-b", "1"),
        endpoint("n", "s-a"),
        profile("ab", "1"),
        Object::new("a", api::NodeSpec::default()).into(),
        endpoint("ns", "a-b"),
        Object::new("default", api::ClusterInformationSpec::default()).into(),
    ]
}

/// Scopes that each contain something of [`population`].
pub(super) fn scopes() -> Vec<Scope> {
    vec![
        Scope::All,
        Scope::Kind(Kind::Profile),
        Scope::Kind(Kind::WorkloadEndpoint),
        Scope::Kind(Kind::Node),
        Scope::Namespace(Kind::WorkloadEndpoint, "ns".into()),
        Scope::Namespace(Kind::WorkloadEndpoint, "n".into()),
        Scope::Key(key("a")),
        Scope::Key(Key::namespaced(Kind::WorkloadEndpoint, "ns", "a")),
        Scope::Namespace(Kind::WorkloadEndpoint, "none".into()),
        Scope::Kind(Kind::IPPool),
    ]
}

pub(super) fn key(name: &str) -> Key {
    Key::cluster(Kind::Profile, name)
}

pub(super) fn profile(name: &str, count: &str) -> Resource {
    let mut profile = Object::new(name, ProfileSpec::default());
    profile.spec.labels_to_apply.insert("count".into(), count.into());
    profile.into()
}

pub(super) fn count(resource: &Resource) -> usize {
    let Resource::Profile(profile) = resource else { return 0 };
    profile
        .spec
        .labels_to_apply
        .get("count")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

pub(super) fn endpoint(namespace: &str, name: &str) -> Resource {
    let mut endpoint = Object::new(name, WorkloadEndpointSpec::default());
    endpoint.metadata.namespace = Some(namespace.into());
    endpoint.into()
}

pub(super) fn version(stored: &Stored) -> Option<&String> {
    stored.resource.metadata().resource_version.as_ref()
}

pub(super) fn without_version(mut resource: Resource) -> Resource {
    resource.metadata_mut().resource_version = None;
    resource
}

pub(super) fn appeared(stored: &Stored) -> WatchEvent {
    let update = Update {
        key: stored.resource.key(),
        value: Some(stored.resource.clone()),
    };
    WatchEvent::Update(update, stored.revision.clone())
}

pub(super) fn event_key(event: &WatchEvent) -> Option<&Key> {
    match event {
        WatchEvent::Update(update, _) => Some(&update.key),
        WatchEvent::InSync(_) => None,
    }
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
