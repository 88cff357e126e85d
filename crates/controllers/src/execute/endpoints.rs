//! Endpoints: those of nodes that are gone, and automatic host endpoints.

use api::{HostEndpoint, HostEndpointSpec, Key, Kind, Resource};
use datastore::{Edit, modify};
use jiff::Timestamp;

use super::{Done, Executor, Outcome, stamp};
use crate::host_endpoints::{differs, is_automatic};

impl Executor {
    pub(super) async fn delete_endpoint(&self, key: &Key, node: &str) -> Done {
        if self.is_there(node).await? {
            return Ok(Outcome::Nothing("the node is there again"));
        }
        self.delete_if(key, |resource| match resource {
            Resource::WorkloadEndpoint(endpoint) => endpoint.spec.node == node,
            _ => false,
        })
        .await
    }

    pub(super) async fn put_host_endpoint(&self, now: Timestamp, wanted: &HostEndpoint) -> Done {
        modify(self.store.as_ref(), &wanted.key(), |current: Option<HostEndpoint>| {
            let Some(mut next) = current else {
                let mut fresh = wanted.clone();
                stamp(&mut fresh.metadata, now);
                return Ok((Edit::Put(fresh), Outcome::Done));
            };
            if !is_automatic(&next) {
                return Ok((Edit::Keep, Outcome::Nothing("one that is not automatic has its name")));
            }
            if !differs(&next, wanted) {
                return Ok((Edit::Keep, Outcome::Nothing("it is so already")));
            }
            next.metadata.labels = wanted.metadata.labels.clone();
            next.metadata.annotations.extend(wanted.metadata.annotations.clone());
            let ports = std::mem::take(&mut next.spec.ports);
            next.spec = HostEndpointSpec {
                ports,
                ..wanted.spec.clone()
            };
            Ok((Edit::Put(next), Outcome::Done))
        })
        .await
    }

    pub(super) async fn delete_host_endpoint(&self, name: &str, gone: Option<&str>) -> Done {
        if let Some(node) = gone
            && self.is_there(node).await?
        {
            return Ok(Outcome::Nothing("the node is there again"));
        }
        let key = Key::cluster(Kind::HostEndpoint, name);
        self.delete_if(&key, |resource| match resource {
            Resource::HostEndpoint(endpoint) => {
                is_automatic(endpoint) && gone.is_none_or(|node| endpoint.spec.node == node)
            }
            _ => false,
        })
        .await
    }
}
