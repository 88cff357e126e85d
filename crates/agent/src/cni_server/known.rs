//! What the datastore says of an attachment beside what ADD has made: labels, profiles and what else counts for policy.
//!
//! The record keeps it for the time when the datastore says nothing: when somebody has deleted the WorkloadEndpoint, or spoilt it.
//! A live pod is then judged, and its endpoint written again, by what was known last.

use api::WorkloadEndpointSpec;
use api::resource::WorkloadEndpoint;
use cni::journal::Endpoint;
use serde_json::Value;

use super::CniServer;
use super::restore::key_of;

impl CniServer {
    /// Notes what the datastore says of an attachment now. If it cannot be noted, the next news are.
    pub(super) async fn note_known(&self, stored: WorkloadEndpoint) {
        let (key, container) = (stored.key(), stored.spec.container_id.clone());
        let known = known(stored);
        let is_news = |endpoint: &&Endpoint| {
            let is_its = container.is_empty() || endpoint.container_id == container;
            is_its && key_of(endpoint) == key && endpoint.known != known
        };
        let Some(id) = self.memory().values().find(is_news).map(Endpoint::id) else {
            return;
        };
        // Whoever attaches or detaches the container right now comes first.
        let _attachment = self.hold_attachment(&id).await;
        let is_still_news = |endpoint: &Endpoint| self.has_endpoint(endpoint) && is_news(&endpoint);
        let Some(mut endpoint) = self.recorded(&id).filter(is_still_news) else {
            return;
        };
        endpoint.known = known;
        match self.records().and_then(|records| records.begin(&endpoint)) {
            // Nobody waits for the disk: the next start hears of it again.
            Ok(begun) => drop(begun),
            Err(error) => return tracing::warn!(%id, %error, "cni: what the datastore says of a pod cannot be noted"),
        }
        self.remember(&endpoint);
        self.settle_records();
    }
}

/// What is to be noted of an endpoint; which of its versions it is does not matter.
pub(super) fn known(mut stored: WorkloadEndpoint) -> Option<Value> {
    let metadata = &mut stored.metadata;
    (metadata.uid, metadata.resource_version, metadata.creation_timestamp) = (None, None, None);
    serde_json::to_value(stored).ok()
}

/// An endpoint as ADD has made it, with what else is known of it.
pub(super) fn complete(made: WorkloadEndpoint, known: Option<&Value>) -> WorkloadEndpoint {
    // Another version of this program may have noted it in another way.
    let known = known.and_then(|known| serde_json::from_value::<WorkloadEndpoint>(known.clone()).ok());
    let Some(known) = known else { return made };
    let mut metadata = made.metadata;
    metadata.labels.extend(known.metadata.labels);
    let spec = WorkloadEndpointSpec {
        orchestrator: made.spec.orchestrator,
        node: made.spec.node,
        container_id: made.spec.container_id,
        pod: made.spec.pod,
        endpoint: made.spec.endpoint,
        ip_networks: made.spec.ip_networks,
        interface_name: made.spec.interface_name,
        mac: made.spec.mac,
        ..known.spec
    };
    WorkloadEndpoint {
        metadata,
        spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use cni::protocol::{Reply, Verb};
    use datastore::{Store, Update};
    use tokio::sync::mpsc;

    use super::super::OwnBlocks;
    use super::super::fakes::World;
    use super::super::restore::tests::settle;

    #[tokio::test]
    async fn a_pod_keeps_its_labels_when_its_endpoint_is_lost() {
        let world = World::new(4);
        let server = world.server().await;
        world.state().pod_labels.insert("role".into(), "db".into());
        world.add(&server, "a", "p").await.unwrap();
        let role = |of: &api::WorkloadEndpoint| of.metadata.labels.get("role").cloned();
        let told = || role(&world.state().routes["a/eth0"].resource);
        assert_eq!(told().as_deref(), Some("db"));

        // They change, and the agent hears of it.
        let (tell, lost) = mpsc::unbounded_channel();
        let mut keeper = pin!(server.keep_endpoints(lost, |_, _| {}, || {}));
        settle(&mut keeper).await;
        let mut stored = world.weps().await["n1-k8s-p-eth0"].clone();
        stored.metadata.labels.insert("role".into(), "web".into());
        stored.spec.profiles.push("ksa.ns.robot".into());
        let key = stored.key();
        let update = Update {
            key: key.clone(),
            value: Some(stored.into()),
        };
        let heard = OwnBlocks::default().lost("n1", &update).expect("it is this node's");
        tell.send(heard).unwrap();
        settle(&mut keeper).await;

        // It vanishes while nobody looks; CHECK goes by what is known.
        world.state().pod_labels.clear();
        world.store.delete(&key, None).await.unwrap();
        let check = world.request(Verb::Check, "a", "p");
        assert_eq!(server.handle(check).await, Reply::Ok(None));
        assert_eq!(told().as_deref(), Some("web"));

        // So does the next agent, and it writes the same again.
        let next = world.server().await;
        assert_eq!(told().as_deref(), Some("web"));
        let (_tell, lost) = mpsc::unbounded_channel();
        let mut keeper = pin!(next.keep_endpoints(lost, |_, _| {}, || {}));
        settle(&mut keeper).await;
        let written = world.weps().await["n1-k8s-p-eth0"].clone();
        assert_eq!(role(&written).as_deref(), Some("web"));
        assert_eq!(written.spec.profiles, ["kns.ns", "ksa.ns.default", "ksa.ns.robot"]);
        world.assert_consistent(&next).await;
    }
}
