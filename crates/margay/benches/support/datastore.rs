//! The lab's datastore, written to by the benchmark.

use std::path::Path;

use api::Resource;
use backend::embedded::Client;
use datastore::{Scope, Store, Stored};
use futures::StreamExt;

use super::Lab;

/// A resource from YAML.
pub fn resource(yaml: &str) -> Resource {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    let resource: Resource = serde_json::from_value(value).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    resource.with_defaults()
}

/// The lab's datastore, written to as other programs do.
pub struct Datastore {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Datastore {
    /// Of a lab that is up.
    pub fn of(lab: &Lab) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let socket = format!("/run/margay-lab/{}/store.sock", lab.folder.name);
        let client = runtime
            .block_on(Client::connect(Path::new(&socket)))
            .expect("the store");
        Self { runtime, client }
    }

    /// Writes one, which may be there.
    pub fn put(&self, resource: Resource) {
        let key = resource.key();
        let done = self.runtime.block_on(async {
            match self.client.get(&key).await? {
                Some(Stored { revision, .. }) => self.client.update(resource, &revision).await,
                None => self.client.create(resource).await,
            }
        });
        done.unwrap_or_else(|error| panic!("{key}: {error}"));
    }

    /// Writes many that are not there, some hundred at a time.
    pub fn create(&self, resources: impl Iterator<Item = Resource>) {
        let written = futures::stream::iter(resources).for_each_concurrent(256, async |resource| {
            let key = resource.key();
            let done = self.client.create(resource).await;
            done.unwrap_or_else(|error| panic!("{key}: {error}"));
        });
        self.runtime.block_on(written);
    }

    /// What is in a scope.
    pub fn list(&self, scope: &Scope) -> Vec<Resource> {
        let listed = self.runtime.block_on(self.client.list(scope)).expect("a list");
        listed.items.into_iter().map(|stored| stored.resource).collect()
    }
}
