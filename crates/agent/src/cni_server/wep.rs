//! The WorkloadEndpoint of an attachment in the datastore.

use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource, WorkloadEndpointSpec};
use cni::journal::Endpoint;
use cni::{Code, Error};
use datastore::{Revision, StoreError, Stored};

use super::CniServer;
use super::patience::within;

/// How often to try against others who write the same object.
const ATTEMPTS: usize = 16;

impl CniServer {
    /// Creates the WorkloadEndpoint, or makes an older container's ours. Answers what the datastore has then: others may
    /// have put labels on it. An attachment without a device has none.
    pub(super) async fn write_workload_endpoint(&self, endpoint: &Endpoint) -> Result<Option<WorkloadEndpoint>, Error> {
        if endpoint.wep_name.is_empty() {
            return Ok(None);
        }
        let put = self.put(self.new_workload_endpoint(endpoint));
        let written = within(self.shared.settings.store_wait * 3, put).await;
        written.map(Some).map_err(|error| match error {
            StoreError::Refused(_) => Error::new(
                Code::Datastore,
                "the datastore refused the WorkloadEndpoint",
                error.to_string(),
            ),
            _ => Error::new(
                Code::TryAgain,
                "the WorkloadEndpoint cannot be written now",
                error.to_string(),
            ),
        })
    }

    /// As it is created.
    pub(super) fn new_workload_endpoint(&self, endpoint: &Endpoint) -> WorkloadEndpoint {
        let mut wanted = self.naming().workload_endpoint(endpoint);
        wanted.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        wanted.metadata.creation_timestamp = Some(jiff::Timestamp::now());
        wanted
    }

    /// Deletes the WorkloadEndpoint if it is this container's.
    pub(super) async fn delete_workload_endpoint(&self, endpoint: &Endpoint) -> Result<(), String> {
        if endpoint.wep_name.is_empty() {
            return Ok(());
        }
        let key = Key::namespaced(Kind::WorkloadEndpoint, &endpoint.wep_namespace, &endpoint.wep_name);
        let deleted = self.delete_if_of(&key, &endpoint.container_id);
        within(self.shared.settings.store_wait, deleted)
            .await
            .map_err(|error| format!("{key}: {error}"))
    }

    async fn put(&self, wanted: WorkloadEndpoint) -> Result<WorkloadEndpoint, StoreError> {
        let store = &self.shared.parts.store;
        for _ in 0..ATTEMPTS {
            match store.create(wanted.clone().into()).await {
                Err(StoreError::Exists(_)) => {}
                other => return other.map(|stored| typed(stored, wanted)),
            }
            let Some((current, revision)) = self.get(&wanted.key()).await? else {
                continue;
            };
            let next = adopt(current, &wanted);
            match store.update(next.clone().into(), &revision).await {
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {}
                other => return other.map(|stored| typed(stored, next)),
            }
        }
        Err(StoreError::Conflict(wanted.key()))
    }

    async fn delete_if_of(&self, key: &Key, container_id: &str) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let Some((current, revision)) = self.get(key).await? else {
                return Ok(());
            };
            if current.spec.container_id != container_id {
                return Ok(());
            }
            match self.shared.parts.store.delete(key, Some(&revision)).await {
                Err(StoreError::NotFound(_)) => return Ok(()),
                Err(StoreError::Conflict(_)) => {}
                other => return other.map(drop),
            }
        }
        Err(StoreError::Conflict(key.clone()))
    }

    async fn get(&self, key: &Key) -> Result<Option<(WorkloadEndpoint, Revision)>, StoreError> {
        let Some(stored) = self.shared.parts.store.get(key).await? else {
            return Ok(None);
        };
        Ok(Some((readable(stored.resource, key)?, stored.revision)))
    }
}

/// What can be read of an endpoint: also one that is partly wrong, whose pod comes and goes like any other.
fn readable(resource: Resource, key: &Key) -> Result<WorkloadEndpoint, StoreError> {
    let resource = match resource {
        Resource::Wrong(wrong) => match wrong.readable() {
            Some(readable) => readable.clone(),
            None => {
                // There is nothing of it that could be kept, nor a container that it could be another's of.
                let mut empty = WorkloadEndpoint::new(&key.name, WorkloadEndpointSpec::default());
                empty.metadata.namespace.clone_from(&key.namespace);
                return Ok(empty);
            }
        },
        other => other,
    };
    resource
        .try_into()
        .map_err(|other: Resource| StoreError::Refused(format!("{key} is stored as a {}", other.kind())))
}

/// What the datastore answers to a write of `written`: with what it, or whoever owns the object there, adds.
fn typed(stored: Stored, written: WorkloadEndpoint) -> WorkloadEndpoint {
    WorkloadEndpoint::try_from(stored.resource).unwrap_or(written)
}

/// The stored object with our spec. Labels and annotations that others put on it stay: they may be newer than what is known.
fn adopt(mut current: WorkloadEndpoint, wanted: &WorkloadEndpoint) -> WorkloadEndpoint {
    current.spec = wanted.spec.clone();
    let own = wanted.metadata.labels.clone();
    let others = std::mem::replace(&mut current.metadata.labels, own);
    current.metadata.labels.extend(others);
    current
}
