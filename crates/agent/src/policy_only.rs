//! Policy alone: another network plugin attaches the pods, gives them addresses and routes them. Its devices must be called as
//! upstream's are, with a prefix of its own: then a pod's WorkloadEndpoint says which device is its.
//!
//! The datastore takes the journal's place here: there is no other word of which pods this node has. A device that no pod is known
//! to have yet is closed.

use std::collections::BTreeMap;

use api::names::interface_name;
use api::resource::WorkloadEndpoint;
use api::{Key, Kind};
use datastore::{Scope, SharedStore, SyncEvent, Syncer, Update};
use futures::{FutureExt, StreamExt};
use kernel::IfName;
use tokio::sync::{mpsc, oneshot};

use crate::run::Event;

/// Follows this node's pods, for as long as the agent lives.
pub async fn follow(node: String, prefix: String, store: SharedStore, events: mpsc::UnboundedSender<Event>) {
    let backoff = |attempt: u32| tokio::time::sleep(crate::start::wait(attempt)).boxed();
    let mut syncer = Syncer::new(store, vec![Scope::Kind(Kind::WorkloadEndpoint)], backoff);
    let mut pods = Pods::new(node, prefix);
    while let Some(event) = syncer.next().await {
        let told = match event {
            SyncEvent::Updates(updates) => updates.into_iter().filter_map(|update| pods.take(update)).collect(),
            SyncEvent::InSync => vec![Event::EndpointsLoaded { all: true }],
            SyncEvent::Disconnected(_) => Vec::new(),
        };
        for event in told {
            if events.send(event).is_err() {
                return;
            }
        }
    }
}

/// The pods of this node, by what they were told as.
struct Pods {
    node: String,
    prefix: String,
    known: BTreeMap<Key, String>,
}

impl Pods {
    fn new(node: String, prefix: String) -> Self {
        Self {
            node,
            prefix,
            known: BTreeMap::new(),
        }
    }

    /// What the loop is to hear of a change.
    fn take(&mut self, update: Update) -> Option<Event> {
        let endpoint = update.value.and_then(|value| WorkloadEndpoint::try_from(value).ok());
        let endpoint =
            endpoint.filter(|endpoint| endpoint.spec.node == self.node && !endpoint.spec.ip_networks.is_empty());
        // Nobody waits for an answer.
        let (done, _) = oneshot::channel();
        let Some(mut resource) = endpoint else {
            let id = self.known.remove(&update.key)?;
            return Some(Event::Endpoint {
                id,
                endpoint: None,
                done,
            });
        };
        let namespace = resource.metadata.namespace.clone().unwrap_or_default();
        let device = interface_name(&self.prefix, &namespace, &resource.spec.pod);
        resource.spec.interface_name.clone_from(&device);
        let metadata = &mut resource.metadata;
        (metadata.uid, metadata.resource_version, metadata.creation_timestamp) = (None, None, None);
        let local = dataplane::LocalEndpoint {
            device: IfName(device),
            addresses: resource.spec.ip_networks.iter().map(|net| net.addr()).collect(),
            fresh: true,
        };
        let id = update.key.to_string();
        self.known.insert(update.key, id.clone());
        Some(Event::Endpoint {
            id,
            endpoint: Some(Box::new((local, resource))),
            done,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn this_nodes_pods_have_devices_with_the_prefix() {
        let mut pods = Pods::new("n1".into(), "eni".into());
        let mut check = |node: &str, networks: &[&str], expected: Option<Option<(&str, &str)>>| {
            let endpoint = json!({ "kind": "WorkloadEndpoint", "metadata": { "name": "n1-k8s-a-eth0", "namespace": "default" },
                "spec": { "orchestrator": "k8s", "node": node, "pod": "a", "endpoint": "eth0", "ipNetworks": networks } });
            let value: api::Resource = serde_json::from_value(endpoint).expect("an endpoint");
            let update = Update {
                key: value.key(),
                value: Some(value),
            };
            let said = pods.take(update).map(|event| match event {
                Event::Endpoint { endpoint, .. } => endpoint.map(|both| {
                    let (local, resource) = *both;
                    assert_eq!(local.device.0, resource.spec.interface_name);
                    (local.device.0, local.addresses[0].to_string())
                }),
                _ => panic!("another event"),
            });
            let expected = expected.map(|one| one.map(|(device, address)| (device.to_owned(), address.to_owned())));
            assert_eq!(said, expected, "{node} {networks:?}");
        };
        check("n2", &["10.0.0.1/32"], None);
        check("n1", &[], None);
        // `printf default.a | sha1sum`
        check("n1", &["10.0.0.1/32"], Some(Some(("eniacd53aa4120", "10.0.0.1"))));
        check("n1", &[], Some(None));
        check("n1", &[], None);
    }
}
