//! The store on the Kubernetes API.
//!
//! Our own resources are custom resources ([`custom`]); Nodes, WorkloadEndpoints, Profiles, Kubernetes' policies and slices of
//! endpoints are made of Kubernetes' objects. [`table`] has a row for each kind of object that is read. Writes are
//! compare-and-swap by `resourceVersion`. docs/kubernetes.md is the page for users.

mod bulk;
mod client;
mod connect;
mod convert;
mod custom;
mod derived;
mod error;
mod event;
mod feed;
mod group;
#[cfg(test)]
mod hours;
mod link;
mod lookout;
mod node;
mod node_network;
mod outage;
mod patience;
mod pod;
mod position;
mod proxy;
mod read;
mod table;
mod token;
mod workload;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use api::{Key, Kind, Resource};
use datastore::{Listing, News, Revision, Scope, Store, StoreError, Stored, Trouble, WatchEvent, Workload, Write};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;

pub use client::{Action, Api};
pub use error::ApiError;
pub use group::CalicoGroup;
pub use node_network::{NodeNetwork, without_ended_agent};

use feed::Feed;
use link::Link;
use table::ROWS;
use workload::Seen;

/// The store on the Kubernetes API. Clones share the connection and the watches.
#[derive(Clone)]
pub struct KubernetesStore {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<Link>,
    /// A watch for each of [`ROWS`].
    feeds: Vec<Feed>,
    /// How many rows are listed at once.
    lists: Arc<Semaphore>,
    /// What the watches have seen of pods and namespaces, besides resources.
    seen: Arc<Seen>,
}

impl KubernetesStore {
    /// Without connecting yet: that happens when it is asked for something, and again until it works. Access is taken from
    /// KUBECONFIG, `~/.kube/config` or the pod's service account; `group` is what `CALICO_API_GROUP` wants, `None` asks the
    /// server.
    pub fn new(group: Option<CalicoGroup>) -> Self {
        Self::over(Link::new(group, Box::new(|| Api::connect(None).boxed())))
    }

    /// The same with access from this file and from nowhere else.
    pub fn with_kubeconfig(group: Option<CalicoGroup>, file: PathBuf) -> Self {
        let connect = move || Api::connect(Some(file.clone())).boxed();
        Self::over(Link::new(group, Box::new(connect)))
    }

    fn over(link: Link) -> Self {
        let seen = Arc::new(Seen::default());
        let shared = Shared {
            link: Arc::new(link),
            feeds: ROWS.iter().map(|_| Feed::new(Arc::clone(&seen))).collect(),
            seen,
            lists: Arc::new(Semaphore::new(read::AT_ONCE)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Connects now, and finds out what the server has.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn connect(&self) -> Result<(), ApiError> {
        self.shared.link.ready().await.map(|_| ())
    }
}

impl Store for KubernetesStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.shared.get(key).boxed()
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.shared.list(scope).boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        async move { self.shared.create(&resource).await }.boxed()
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move { self.shared.update(&resource, expected).await }.boxed()
    }

    fn update_status<'a>(
        &'a self,
        resource: Resource,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move { self.shared.update_status(&resource, expected).await }.boxed()
    }

    fn set_finalizers<'a>(
        &'a self,
        key: &'a Key,
        finalizers: Vec<String>,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.shared.set_finalizers(key, finalizers, expected).boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.shared.delete(key, expected).boxed()
    }

    fn tell<'a>(&'a self, news: &'a News) -> BoxFuture<'a, Result<(), StoreError>> {
        self.shared.tell(news).boxed()
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Stored, StoreError>>> {
        self.write_in_runs(writes).boxed()
    }

    fn workload<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Workload>, StoreError>> {
        async move { self.shared.workload(namespace, name, uid).await.map(Some) }.boxed()
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        Shared::watch(Arc::clone(&self.shared), scope, from)
    }

    /// Each kind for itself: one whose version the server has forgotten, or that a role may not read, is nothing to the others.
    fn whole(&self) -> Vec<Scope> {
        Kind::ALL.into_iter().map(Scope::Kind).collect()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.shared.link.outage(|outage, now| outage.trouble(now))
    }
}
