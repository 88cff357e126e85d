//! A WorkloadEndpoint that vanishes although its pod lives is written again.
//!
//! Others take an endpoint that is not there as a sign that its pod is gone: the garbage collection of addresses frees what
//! the pod has, policies of other nodes forget it. The journal knows better. What the datastore refuses (with Kubernetes the
//! pod itself is gone) is left to the DEL that is on its way.

use std::collections::BTreeSet;
use std::time::Duration;

use api::resource::IpamBlock;
use api::{Key, Kind, Resource};
use cni::journal::{Endpoint, Id, Phase};
use datastore::{StoreError, Update};
use tokio::sync::mpsc;

use super::{CniServer, OwnBlocks};

/// What was said to be gone although somebody may still have it.
#[derive(Debug)]
pub enum Lost {
    /// A WorkloadEndpoint.
    Endpoint(Key),
    /// A block as it is now; `None`: it is gone.
    Block(Option<Box<IpamBlock>>),
}

impl Lost {
    /// What an update says may be lost of this node's.
    pub fn of(node: &str, blocks: &mut OwnBlocks, update: &Update) -> Option<Self> {
        match &update.value {
            None if update.key.kind == Kind::WorkloadEndpoint => Some(Lost::Endpoint(update.key.clone())),
            value if blocks.note(node, update) => match value {
                Some(Resource::IPAMBlock(block)) => Some(Lost::Block(Some(Box::new(block.clone())))),
                _ => Some(Lost::Block(None)),
            },
            _ => None,
        }
    }
}

/// How long to wait before what could not be done is tried again.
const PAUSE: Duration = Duration::from_secs(5);

impl CniServer {
    /// Sees to all endpoints of the journal once, then to what is lost of them. Never ends.
    pub(super) async fn keep_endpoints(&self, mut lost: mpsc::UnboundedReceiver<Lost>) {
        let mut open: BTreeSet<Id> = self.endpoints().iter().map(Endpoint::id).collect();
        let mut forgotten = BTreeSet::new();
        loop {
            // Addresses first: others could be given them.
            for id in std::mem::take(&mut forgotten) {
                // Whoever detaches the container right now comes first: its addresses are not forgotten, but given back.
                let _attachment = self.hold_attachment(&id).await;
                if !self.reclaim(&id).await {
                    forgotten.insert(id);
                }
            }
            for id in std::mem::take(&mut open) {
                if !self.restore(&id).await {
                    open.insert(id);
                }
            }
            tokio::select! {
                told = lost.recv() => match told {
                    Some(Lost::Block(block)) => forgotten.extend(self.forgotten_in(block.as_deref())),
                    Some(Lost::Endpoint(key)) => open.extend(self.endpoints().iter().filter(|one| key_of(one) == key).map(Endpoint::id)),
                    // The datastore's watch has ended, and with it soon the agent.
                    None => std::future::pending().await,
                },
                () = tokio::time::sleep(PAUSE), if !(open.is_empty() && forgotten.is_empty()) => {}
            }
        }
    }

    /// Writes an attachment's WorkloadEndpoint if it is not there and should be. `false`: has to be tried again.
    async fn restore(&self, id: &Id) -> bool {
        // Whoever attaches or detaches the container right now comes first.
        let _attachment = self.hold_attachment(id).await;
        let Some(endpoint) = self.recorded(id).filter(|endpoint| self.has_endpoint(endpoint)) else {
            return true;
        };
        let key = key_of(&endpoint);
        let store = &self.shared.parts.store;
        let written = match store.get(&key).await {
            Ok(Some(_)) => return true,
            Ok(None) => store
                .create(self.new_workload_endpoint(&endpoint).into())
                .await
                .map(drop),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                tracing::warn!(%key, "cni: the pod lives, but its WorkloadEndpoint was gone: written again");
                true
            }
            Err(StoreError::Exists(_)) => true,
            Err(
                error @ (StoreError::Unavailable(_)
                | StoreError::Conflict(_)
                | StoreError::Compacted
                | StoreError::WentBack),
            ) => {
                tracing::debug!(%key, %error, "cni: cannot see to a WorkloadEndpoint now");
                false
            }
            Err(error @ (StoreError::Refused(_) | StoreError::NotFound(_))) => {
                tracing::warn!(%key, %error, "cni: the pod lives, but its WorkloadEndpoint cannot be written");
                true
            }
        }
    }

    /// Whether an endpoint is one that others are to see: attached, and no deletion of it is noted.
    fn has_endpoint(&self, endpoint: &Endpoint) -> bool {
        let whole = endpoint.phase == Phase::Attached && !endpoint.displaced && !endpoint.wep_name.is_empty();
        whole && matches!(self.journal().pending(&endpoint.id()), Ok(None))
    }
}

fn key_of(endpoint: &Endpoint) -> Key {
    Key::namespaced(Kind::WorkloadEndpoint, &endpoint.wep_namespace, &endpoint.wep_name)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use datastore::Store;

    use super::super::fakes::World;
    use super::*;

    /// Lets the keeper run until it waits for something to happen.
    async fn settle(keeper: &mut (impl Future<Output = ()> + Unpin)) {
        for _ in 0..100 {
            assert!(futures::poll!(&mut *keeper).is_pending(), "it ended");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_vanishes_comes_back_while_its_pod_lives() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.add(&server, "b", "q").await.unwrap();
        let before = world.weps().await;
        let key = |name: &str| before[name].key();
        let (tell, lost) = mpsc::unbounded_channel();
        let mut keeper = pin!(server.keep_endpoints(lost));
        settle(&mut keeper).await;
        assert_eq!(world.weps().await, before, "what is there stays as it is");

        world.store.delete(&key("n1-k8s-p-eth0"), None).await.unwrap();
        tell.send(Lost::Endpoint(key("n1-k8s-p-eth0"))).unwrap();
        settle(&mut keeper).await;
        let after = world.weps().await;
        assert_eq!(after["n1-k8s-p-eth0"].spec, before["n1-k8s-p-eth0"].spec);

        // A pod that was detached has none, whatever is told of it.
        world.del(&server, "b", "q").await;
        tell.send(Lost::Endpoint(key("n1-k8s-q-eth0"))).unwrap();
        settle(&mut keeper).await;
        assert_eq!(world.weps().await.keys().collect::<Vec<_>>(), ["n1-k8s-p-eth0"]);
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn what_lost_while_the_agent_was_away_comes_back_at_its_start() {
        let world = World::new(4);
        let first = world.server().await;
        world.add(&first, "a", "p").await.unwrap();
        let key = world.weps().await["n1-k8s-p-eth0"].key();
        world.store.delete(&key, None).await.unwrap();
        let second = world.server().await;
        let (_tell, lost) = mpsc::unbounded_channel();
        let mut keeper = pin!(second.keep_endpoints(lost));
        settle(&mut keeper).await;
        assert_eq!(world.weps().await.len(), 1);
        world.assert_consistent(&second).await;
    }
}
