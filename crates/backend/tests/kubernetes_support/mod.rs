//! A cluster to test against: the API server that KUBECONFIG names, and kubectl as the independent eye.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use api::crd::CrdGroup;
use api::{Key, Kind};
use backend::kubernetes::{CalicoGroup, KubernetesStore};
use datastore::{Listing, Revision, Scope, Store, StoreError, Stored, Update, WatchEvent};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, TryStreamExt};

/// How long any check may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Runs kubectl and answers what it printed.
pub fn kubectl(args: &str, input: &str) -> String {
    let mut child = Command::new("kubectl")
        .args(args.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(input.as_bytes()).expect("kubectl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes the namespaces of the checks and installs the definitions of both groups, once.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (group, suffix) in [
            (CrdGroup::V1, "crd.projectcalico.org"),
            (CrdGroup::V3, "projectcalico.org"),
        ] {
            kubectl("apply -f -", &api::crd::to_yaml(group, false));
            for definition in api::crd::definitions(group, false) {
                let name = definition["metadata"]["name"].as_str().expect("it has a name");
                assert!(name.ends_with(suffix), "{name}");
                kubectl(
                    &format!("wait --for condition=established --timeout 60s crd/{name}"),
                    "",
                );
            }
        }
        for namespace in ["ns", "ns-1", "n", "other"] {
            let document = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: \"{namespace}\"}}\n");
            kubectl("apply -f -", &document);
        }
    });
}

/// The store in one of the groups.
pub fn store(group: CalicoGroup) -> KubernetesStore {
    prepare();
    KubernetesStore::new(Some(group))
}

/// Runs a test on a runtime of its own, with a limit.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, test).await })
        .expect("it ends in time")
}

/// A store in which only some kinds exist: the others of a cluster are never all gone.
#[derive(Clone)]
pub struct Only {
    pub store: KubernetesStore,
    pub kinds: &'static [Kind],
}

impl Only {
    /// Deletes everything of these kinds, whatever holds it.
    pub async fn clear(&self) -> Result<(), StoreError> {
        for stored in self.list(&Scope::All).await?.items {
            let mut revision = stored.revision;
            let mut resource = stored.resource;
            if !resource.metadata().finalizers.is_empty() {
                resource.metadata_mut().finalizers.clear();
                revision = self.update(resource.clone(), &revision).await?.revision;
            }
            match self.delete(&resource.key(), Some(&revision)).await {
                // Without finalizers, what was being deleted is gone.
                Ok(_) | Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has(&self, key: &Key) -> bool {
        self.kinds.contains(&key.kind)
    }
}

impl Store for Only {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async move {
            let mut listing = self.store.list(scope).await?;
            listing.items.retain(|stored| self.has(&stored.resource.key()));
            Ok(listing)
        }
        .boxed()
    }

    fn create(&self, resource: api::Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.store.create(resource)
    }

    fn update<'a>(
        &'a self,
        resource: api::Resource,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.store.update(resource, expected)
    }

    fn set_finalizers<'a>(
        &'a self,
        key: &'a Key,
        finalizers: Vec<String>,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.store.set_finalizers(key, finalizers, expected)
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.store.delete(key, expected)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        let only = self.clone();
        let events = self.store.watch(scope, from);
        let wanted = move |event: &WatchEvent| match event {
            WatchEvent::Update(Update { key, .. }, _) => only.has(key),
            WatchEvent::InSync(_) => true,
        };
        events
            .try_filter(move |event| std::future::ready(wanted(event)))
            .boxed()
    }
}
