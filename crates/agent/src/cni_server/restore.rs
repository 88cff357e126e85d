//! What the node's pods have in the datastore is kept: a WorkloadEndpoint that vanishes although its pod lives is written again.
//!
//! Others take an endpoint that is not there as a sign that its pod is gone: the garbage collection of addresses frees what
//! the pod has, policies of other nodes forget it. The journal knows better. What the datastore refuses (with Kubernetes the
//! pod itself is gone) is left to the DEL that is on its way.

use std::collections::BTreeSet;
use std::time::Duration;

use api::{Key, Kind};
use cni::journal::{Endpoint, Id};
use datastore::StoreError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::patience::within;
use super::reclaim::Reclaimed;
use super::{CniServer, LocalEndpoint, Lost};

/// How long to wait before what could not be done is tried again, at first.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest of these pauses, each of which is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What has to be seen to.
#[derive(Default)]
struct ToDo {
    /// Whose WorkloadEndpoint may be gone.
    open: BTreeSet<Id>,
    /// Whose addresses may be forgotten.
    forgotten: BTreeSet<Id>,
}

impl ToDo {
    fn len(&self) -> usize {
        self.open.len() + self.forgotten.len()
    }
}

impl CniServer {
    /// Takes over the pods of other plugins ([`CniServer::adopt`]), says when that is `done`, then keeps what all pods have in the
    /// datastore: sees to their WorkloadEndpoints once, then to what is lost. Never ends.
    pub(super) async fn keep_endpoints(
        &self,
        mut lost: mpsc::UnboundedReceiver<Lost>,
        program: impl FnMut(String, LocalEndpoint),
        done: impl FnOnce(),
    ) {
        // What is told of blocks waits meanwhile: it may be about these pods.
        self.adopt(program).await;
        done();
        let mut now = ToDo {
            open: self.endpoints().iter().map(Endpoint::id).collect(),
            ..ToDo::default()
        };
        let (mut later, mut left) = (ToDo::default(), 0);
        let (mut pause, mut again) = (PAUSE, None);
        loop {
            // Addresses first: others could be given them.
            for id in std::mem::take(&mut now.forgotten) {
                // Whoever detaches the container right now comes first: its addresses are not forgotten, but given back.
                let _attachment = self.hold_attachment(&id).await;
                match self.reclaim(&id).await {
                    Reclaimed::Whole => drop(later.forgotten.remove(&id)),
                    Reclaimed::Contested | Reclaimed::NotNow => drop(later.forgotten.insert(id)),
                }
            }
            for id in std::mem::take(&mut now.open) {
                match self.restore(&id).await {
                    true => drop(later.open.remove(&id)),
                    false => drop(later.open.insert(id)),
                }
            }
            // One more than there was is a new trouble.
            if later.len() > left {
                (pause, again) = (PAUSE, None);
            }
            left = later.len();
            let at = *again.get_or_insert_with(|| Instant::now() + pause);
            tokio::select! {
                told = lost.recv() => match told {
                    Some(Lost::Block(block)) => now.forgotten.extend(self.forgotten_in(&block)),
                    Some(Lost::Outside(blocks)) => now.forgotten.extend(self.outside_of(&blocks)),
                    Some(Lost::Endpoint(key)) => {
                        let endpoints = self.endpoints();
                        now.open.extend(endpoints.iter().filter(|one| key_of(one) == key).map(Endpoint::id));
                    }
                    Some(Lost::Nothing(endpoint)) => self.note_known(*endpoint).await,
                    // The datastore's watch has ended, and with it soon the agent.
                    None => std::future::pending().await,
                },
                () = tokio::time::sleep_until(at), if left > 0 => {
                    now = std::mem::take(&mut later);
                    (pause, again) = (LONGEST_PAUSE.min(pause * 2), None);
                }
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
        let written = async {
            match store.get(&key).await? {
                Some(_) => Ok(false),
                None => {
                    self.check_its_pod(&endpoint).await?;
                    let created = store.create(self.new_workload_endpoint(&endpoint).into()).await;
                    created.map(|_| true)
                }
            }
        };
        match within(self.shared.settings.store_wait, written).await {
            Ok(true) => {
                tracing::warn!(%key, "cni: the pod lives, but its WorkloadEndpoint was gone: written again");
                true
            }
            Ok(false) | Err(StoreError::Exists(_)) => true,
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

    /// A pod that was made again under the same name has an endpoint of its own, maybe on another node. Where nobody knows pods,
    /// any is the same.
    async fn check_its_pod(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let (Some((namespace, pod)), Some(uid)) = (endpoint.args.pod(), &endpoint.args.pod_uid) else {
            return Ok(());
        };
        let known = self.shared.parts.store.workload(namespace, pod, Some(uid)).await;
        known.map(drop)
    }

    /// Whether an endpoint is one that others are to see.
    pub(super) fn has_endpoint(&self, endpoint: &Endpoint) -> bool {
        !endpoint.displaced && !endpoint.wep_name.is_empty() && self.stays(endpoint)
    }
}

pub(super) fn key_of(endpoint: &Endpoint) -> Key {
    Key::namespaced(Kind::WorkloadEndpoint, &endpoint.wep_namespace, &endpoint.wep_name)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::net::IpAddr;
    use std::pin::pin;
    use std::sync::Arc;

    use api::Resource;
    use cni::protocol::{Reply, Verb};
    use datastore::{Scope, SharedStore, Store};
    use ipam::{Block, Ipam};
    use jiff::Timestamp;
    use serde_json::json;

    use super::super::fakes::World;
    use super::super::ipam_allocator::{IpamAllocator, NodeLabels};
    use super::super::lost::tests::block;
    use super::super::{OwnBlocks, Parts, Settings};
    use super::*;

    /// Lets the keeper run until it waits for something to happen.
    pub async fn settle(keeper: &mut (impl Future<Output = ()> + Unpin)) {
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
        let mut keeper = pin!(server.keep_endpoints(lost, |_, _| {}, || {}));
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
    async fn a_pod_that_was_made_again_elsewhere_is_left_alone() {
        let world = World::new(4);
        let server = world.server().await;
        let mut request = world.request(Verb::Add, "a", "p");
        request.args.pod_uid = Some("first".into());
        server.handle(request).await;
        let key = world.weps().await["n1-k8s-p-eth0"].key();
        world.store.delete(&key, None).await.unwrap();
        for (uid, expected) in [("second", 0), ("first", 1)] {
            world.state().pod_uid = Some(uid.into());
            let (_tell, lost) = mpsc::unbounded_channel();
            let mut keeper = pin!(server.keep_endpoints(lost, |_, _| {}, || {}));
            settle(&mut keeper).await;
            assert_eq!(world.weps().await.len(), expected, "{uid}");
        }
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
        let mut keeper = pin!(second.keep_endpoints(lost, |_, _| {}, || {}));
        settle(&mut keeper).await;
        assert_eq!(world.weps().await.len(), 1);
        world.assert_consistent(&second).await;
    }

    #[tokio::test]
    async fn a_block_that_is_missing_at_the_agents_start_is_claimed_again_with_what_the_journal_has() {
        let world = World::new(0);
        for pool in [
            json!({"cidr": "10.0.0.0/28", "blockSize": 29}),
            json!({"cidr": "fd00::/124", "blockSize": 125}),
        ] {
            let name = pool["cidr"].as_str().unwrap().replace(['.', '/', ':'], "-");
            let pool = json!({"kind": "IPPool", "metadata": {"name": name}, "spec": pool});
            world.store.create(serde_json::from_value(pool).unwrap()).await.unwrap();
        }
        let first = server_with_ipam(&world).await;
        for pod in ["p", "q", "r"] {
            let mut request = world.request(Verb::Add, pod, pod);
            request.config.ipam.assign_ipv6 = true;
            assert!(matches!(first.handle(request).await, Reply::Ok(_)), "{pod}");
        }
        world.del(&first, "q", "q").await;
        let taken = allocations(&world).await;
        assert_eq!(taken.len(), 4, "{taken:?}");
        forget_ipam(&world).await;

        // What the watch has read has no block of this node.
        let second = server_with_ipam(&world).await;
        let (tell, lost) = mpsc::unbounded_channel();
        tell.send(OwnBlocks::default().outside()).unwrap();
        let mut keeper = pin!(second.keep_endpoints(lost, |_, _| {}, || {}));
        settle(&mut keeper).await;
        assert_eq!(allocations(&world).await, taken);
        assert_eq!(world.state().problems, Vec::<String>::new());
        let claims = world.store.list(&Scope::Kind(Kind::BlockAffinity)).await.unwrap();
        assert_eq!(claims.items.len(), 2);

        // The same, but another node was quicker, and nobody may borrow.
        let Resource::BlockAffinity(claim) = claims.items[0].resource.clone() else {
            panic!("{claims:?}")
        };
        forget_ipam(&world).await;
        let strict =
            json!({"kind": "IPAMConfiguration", "metadata": {"name": "default"}, "spec": {"strictAffinity": true}});
        world
            .store
            .create(serde_json::from_value(strict).unwrap())
            .await
            .unwrap();
        let other = Ipam::new(Arc::new(world.store.clone()));
        let range = claim.spec.cidr;
        other.claim_affinity(Timestamp::now(), "n2", range).await.unwrap();
        let third = server_with_ipam(&world).await;
        let (tell, lost) = mpsc::unbounded_channel();
        tell.send(OwnBlocks::default().outside()).unwrap();
        let mut keeper = pin!(third.keep_endpoints(lost, |_, _| {}, || {}));
        settle(&mut keeper).await;
        let said = |endpoint: &Endpoint| {
            format!(
                "pod ns/{} has {}, {}, but not by the datastore: block {range} belongs to host:n2; \
                 delete it, or whatever has its address now",
                endpoint.container_id, endpoint.addresses[0], endpoint.addresses[1]
            )
        };
        let expected: Vec<String> = third.endpoints().iter().map(said).collect();
        assert_eq!(world.state().problems, expected);
        world.del(&third, "p", "p").await;
        assert_eq!(world.state().problems, expected[1..]);
    }

    async fn server_with_ipam(world: &Arc<World>) -> CniServer {
        let store: SharedStore = Arc::new(world.store.clone());
        let allocator = IpamAllocator {
            ipam: Ipam::new(store.clone()),
            node: "n1".into(),
            labels: NodeLabels::new(store, "n1".into()),
        };
        let parts = Parts {
            allocator: Arc::new(allocator),
            ..world.parts()
        };
        world.server_of(world.settings(), parts).await
    }

    /// Who has which address, by the blocks.
    async fn allocations(world: &World) -> Vec<(IpAddr, String)> {
        let mut all = Vec::new();
        for stored in world.store.list(&Scope::Kind(Kind::IPAMBlock)).await.unwrap().items {
            let Resource::IPAMBlock(block) = stored.resource else {
                panic!("{stored:?}")
            };
            for (ordinal, holder) in block.spec.allocated() {
                all.push((block.spec.address(ordinal), holder.handle_id.clone().unwrap()));
            }
        }
        all.sort();
        all
    }

    /// The datastore as it was before anybody had an address.
    async fn forget_ipam(world: &World) {
        for kind in [Kind::IPAMBlock, Kind::BlockAffinity, Kind::IPAMHandle] {
            for stored in world.store.list(&Scope::Kind(kind)).await.unwrap().items {
                world.store.delete(&stored.resource.key(), None).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn what_is_told_of_blocks_before_pods_are_taken_over_is_not_lost_on_them() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let a = server.endpoints()[0].clone();
        drop(server);
        // The journal is lost, and the block does not know the address.
        std::fs::remove_dir_all(world.journal().dir()).unwrap();
        let server = world.server().await;
        world.forget(&a.handle);
        world.stick(&["devices"]);
        let (tell, lost) = mpsc::unbounded_channel();
        let is_done = Cell::new(false);
        let mut keeper = pin!(server.keep_endpoints(lost, |_, _| {}, || is_done.set(true)));
        settle(&mut keeper).await;
        tell.send(Lost::Block(Box::new(block("n1", &[])))).unwrap();
        settle(&mut keeper).await;
        assert!(!is_done.get());
        world.stick(&[]);
        settle(&mut keeper).await;
        assert!(is_done.get());
        assert_eq!(server.endpoints()[0].id(), a.id());
        assert!(world.holder(a.addresses[0]).is_some());
    }

    #[tokio::test]
    async fn a_container_is_detached_although_the_datastore_does_not_answer() {
        for stuck in ["store", "held", "assign"] {
            let world = World::new(4);
            let settings = Settings {
                store_wait: Duration::from_millis(10),
                ..world.settings()
            };
            let server = world.server_with(settings).await;
            world.add(&server, "a", "p").await.unwrap();
            let a = server.endpoints()[0].clone();
            world.forget(&a.handle);
            world.stick(&[stuck]);
            let (tell, lost) = mpsc::unbounded_channel();
            tell.send(Lost::Block(Box::new(block("n1", &[])))).unwrap();
            let mut keeper = pin!(server.keep_endpoints(lost, |_, _| {}, || {}));
            settle(&mut keeper).await;
            let detached = async {
                world.del(&server, "a", "p").await;
                world.stick(&[]);
                server.finish_deletions().await
            };
            let late = tokio::time::sleep(Duration::from_secs(20));
            tokio::select! {
                () = keeper => panic!("it ended"),
                left = detached => assert_eq!(left, 0, "{stuck}"),
                () = late => panic!("{stuck}: it waits"),
            }
            world.assert_empty(&server).await;
        }
    }
}
