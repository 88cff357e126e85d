//! The world's datastore.

use std::sync::Arc;

use api::{Key, Resource};
use datastore::{Listing, Revision, Scope, Store, StoreError, Stored, WatchEvent, Workload};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::World;

/// The world's store: a memory store with outages.
pub(super) struct FakeStore(pub(super) Arc<World>);

impl FakeStore {
    async fn step(&self) -> Result<(), StoreError> {
        self.0
            .step("store")
            .await
            .map_err(|why| StoreError::Unavailable(why.into()))
    }

    async fn after<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        let _ = self.0.step("stored").await;
        outcome
    }
}

impl Store for FakeStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.0.store.get(key).await
        })
    }

    fn workload<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Workload>, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            let state = self.0.state();
            match (&state.pod_uid, uid) {
                (Some(known), Some(uid)) if known != uid => Err(StoreError::Refused("it is another one".into())),
                _ => Ok(state.workload.clone()),
            }
        })
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.0.store.list(scope)
    }

    fn create(&self, mut resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            let more = self.0.state().pod_labels.clone();
            resource.metadata_mut().labels.extend(more);
            self.after(self.0.store.create(resource).await).await
        })
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.after(self.0.store.update(resource, expected).await).await
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.after(self.0.store.delete(key, expected).await).await
        })
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.0.store.watch(scope, from)
    }
}
