//! IPAM as the CNI server's allocator.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::resource::{Node, Resource};
use api::{AllowedUse, Key, Kind};
use datastore::{Scope, SharedStore, StoreError, SyncEvent, Syncer};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use ipam::{AssignIp, Assigned, AutoAssign, Ipam, IpamError};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::watch;

use super::ports::{AllocError, Allocator, Given, Want};

/// This node's labels, which pools select by. Followed, so that an allocation need not read them.
#[derive(Clone)]
pub struct NodeLabels {
    store: SharedStore,
    key: Key,
    known: Arc<watch::Sender<Option<BTreeMap<String, String>>>>,
}

impl NodeLabels {
    /// Of this node; unknown until they are followed.
    pub fn new(store: SharedStore, node: String) -> Self {
        Self {
            store,
            key: Key::cluster(Kind::Node, node),
            known: Arc::new(watch::channel(None).0),
        }
    }

    /// Follows them, for ever.
    pub async fn follow(&self) {
        let backoff = |attempt: u32| tokio::time::sleep(crate::start::wait(attempt)).boxed();
        let mut syncer = Syncer::new(self.store.clone(), vec![Scope::Key(self.key.clone())], backoff);
        while let Some(event) = syncer.next().await {
            let SyncEvent::Updates(updates) = event else { continue };
            for update in updates {
                self.known.send_replace(update.value.map(labels_of));
            }
        }
    }

    /// As followed; before anything was heard, as stored.
    async fn get(&self) -> Result<BTreeMap<String, String>, StoreError> {
        if let Some(labels) = self.known.borrow().clone() {
            return Ok(labels);
        }
        Ok(self
            .store
            .get(&self.key)
            .await?
            .map(|stored| labels_of(stored.resource))
            .unwrap_or_default())
    }
}

fn labels_of(resource: Resource) -> BTreeMap<String, String> {
    Node::try_from(resource)
        .map(|node| node.metadata.labels)
        .unwrap_or_default()
}

/// IPAM for this node's pods.
pub struct IpamAllocator {
    /// The addresses of the cluster.
    pub ipam: Ipam,
    /// This node.
    pub node: String,
    /// Its labels.
    pub labels: NodeLabels,
}

impl IpamAllocator {
    async fn assign_all(&self, wants: Vec<Want>) -> Vec<Result<Given, AllocError>> {
        let labels = match self.labels.get().await {
            Ok(labels) => labels,
            Err(error) => return wants.iter().map(|_| Err(store_error(&error))).collect(),
        };
        let now = Timestamp::now();
        let (given, any): (Vec<_>, Vec<_>) = wants
            .iter()
            .enumerate()
            .partition(|(_, want)| !want.addresses.is_empty());
        let mut answers: Vec<_> = wants
            .iter()
            .map(|_| Err(AllocError::TryAgain("not asked".into())))
            .collect();
        let requests: Vec<_> = any
            .iter()
            .map(|(_, want)| self.any_address(now, want, &labels))
            .collect();
        if !requests.is_empty() {
            let assigned = self.ipam.auto_assign_many(now, &requests).await;
            for ((index, _), assigned) in any.into_iter().zip(assigned) {
                let given = |assigned: Assigned| Given {
                    addresses: assigned.v4.iter().chain(&assigned.v6).map(IpNet::addr).collect(),
                    endpoint: assigned.endpoint,
                };
                answers[index] = assigned.map(given).map_err(alloc_error);
            }
        }
        for (index, want) in given {
            answers[index] = self.these_addresses(now, want).await;
        }
        answers
    }

    /// All of the addresses that are asked for, or none.
    async fn these_addresses(&self, now: Timestamp, want: &Want) -> Result<Given, AllocError> {
        let mut addresses = Vec::new();
        for ip in &want.addresses {
            let request = AssignIp {
                ip: *ip,
                host: self.node.clone(),
                handle: want.handle.clone(),
                attributes: attributes(now, want),
                intended_use: AllowedUse::Workload,
            };
            match self.ipam.assign_ip(now, &request).await {
                Ok(net) => addresses.push(net.addr()),
                Err(error) => {
                    if !addresses.is_empty() {
                        self.release(&want.handle).await?;
                    }
                    return Err(alloc_error(error));
                }
            }
        }
        Ok(Given {
            addresses,
            endpoint: None,
        })
    }

    fn any_address(&self, now: Timestamp, want: &Want, labels: &BTreeMap<String, String>) -> AutoAssign {
        AutoAssign {
            host: self.node.clone(),
            handle: want.handle.clone(),
            attributes: attributes(now, want),
            ipv4: u32::from(want.ipv4),
            ipv6: u32::from(want.ipv6),
            pools_v4: want.ipv4_pools.clone(),
            pools_v6: want.ipv6_pools.clone(),
            intended_use: AllowedUse::Workload,
            host_labels: labels.clone(),
            endpoint: want.endpoint.clone(),
            preview: want.preview.clone(),
            namespace_labels: want.namespace_labels.clone(),
            ..AutoAssign::default()
        }
    }
}

impl Allocator for IpamAllocator {
    fn assign(&self, wants: Vec<Want>) -> BoxFuture<'_, Vec<Result<Given, AllocError>>> {
        self.assign_all(wants).boxed()
    }

    fn release<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), AllocError>> {
        async move {
            self.ipam
                .release_handle(Timestamp::now(), handle)
                .await
                .map(drop)
                .map_err(alloc_error)
        }
        .boxed()
    }

    fn holder(&self, address: IpAddr) -> BoxFuture<'_, Result<Option<String>, AllocError>> {
        async move { self.ipam.handle_of(address).await.map_err(alloc_error) }.boxed()
    }

    fn held<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, AllocError>> {
        async move { self.ipam.ips_by_handle(handle).await.map_err(alloc_error) }.boxed()
    }
}

/// As upstream stores them with an allocation.
fn attributes(now: Timestamp, want: &Want) -> BTreeMap<String, String> {
    let mut attributes = want.attributes.clone();
    attributes.insert("timestamp".into(), now.to_string());
    attributes
}

fn alloc_error(error: IpamError) -> AllocError {
    let text = error.to_string();
    match error {
        IpamError::NoPools { .. } => AllocError::NoPools(text),
        IpamError::Exhausted { .. } | IpamError::BlockLimit { .. } => AllocError::Exhausted(text),
        IpamError::InvalidRequest(_)
        | IpamError::AlreadyAssigned { .. }
        | IpamError::NotInPool { .. }
        | IpamError::BlockTaken { .. } => AllocError::Invalid(text),
        IpamError::SequenceMismatch { .. } => AllocError::TryAgain(text),
        IpamError::Store(error) => store_error(&error),
    }
}

fn store_error(error: &StoreError) -> AllocError {
    match error {
        StoreError::Refused(_) => AllocError::Refused(error.to_string()),
        _ => AllocError::TryAgain(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use api::resource::WorkloadEndpoint;
    use serde_json::json;

    use super::*;

    async fn allocator(pools: &[serde_json::Value]) -> IpamAllocator {
        let store: SharedStore = Arc::new(datastore::MemoryStore::new());
        for spec in pools {
            let pool = json!({"kind": "IPPool", "metadata": {"name": "pool"}, "spec": spec});
            store.create(serde_json::from_value(pool).unwrap()).await.unwrap();
        }
        let node = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "a"}}, "spec": {}});
        store.create(serde_json::from_value(node).unwrap()).await.unwrap();
        IpamAllocator {
            ipam: Ipam::new(store.clone()),
            node: "n1".into(),
            labels: NodeLabels::new(store, "n1".into()),
        }
    }

    fn want(handle: &str) -> Want {
        Want {
            handle: handle.into(),
            ipv4: true,
            ..Want::default()
        }
    }

    #[tokio::test]
    async fn addresses_come_from_ipam_and_go_back_to_it() {
        let allocator =
            allocator(&[json!({"cidr": "10.0.0.0/29", "blockSize": 30, "nodeSelector": "rack == 'a'"})]).await;
        let given = Want {
            addresses: vec![[10, 0, 0, 6].into()],
            ..want("net.c")
        };
        let answers = allocator.assign(vec![want("net.a"), given, want("net.b")]).await;
        let assigned: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().addresses).collect();
        assert_eq!(assigned[1], [IpAddr::from([10, 0, 0, 6])]);
        assert_ne!(assigned[0], assigned[2]);
        assert_eq!(allocator.held("net.a").await, Ok(assigned[0].clone()));
        let taken = Want {
            addresses: vec![[10, 0, 0, 5].into(), [10, 0, 0, 6].into()],
            ..want("net.d")
        };
        assert!(matches!(
            allocator.assign(vec![taken]).await[..],
            [Err(AllocError::Invalid(_))]
        ));
        assert_eq!(allocator.held("net.d").await, Ok(vec![]), "all or none");
        for _ in 0..2 {
            allocator.release("net.a").await.unwrap();
            assert_eq!(allocator.held("net.a").await, Ok(vec![]));
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_is_created_with_its_address_comes_back_as_the_datastore_has_it() {
        let allocator = allocator(&[json!({"cidr": "10.0.0.0/29", "blockSize": 30})]).await;
        let mut endpoint = WorkloadEndpoint::new("e", api::WorkloadEndpointSpec::default());
        endpoint.metadata.namespace = Some("ns".into());
        let with_endpoint = Want {
            endpoint: Some(endpoint),
            ..want("net.a")
        };
        let answers = allocator.assign(vec![with_endpoint]).await;
        let [Ok(given)] = &answers[..] else {
            panic!("{answers:?}")
        };
        let stored = given.endpoint.as_ref().expect("it was created");
        assert_eq!(stored.spec.ip_networks, [IpNet::from(given.addresses[0])]);
        assert!(stored.metadata.resource_version.is_some());
    }

    #[tokio::test]
    async fn why_there_is_no_address_is_told_apart() {
        let full = allocator(&[json!({"cidr": "10.0.0.0/30", "blockSize": 30})]).await;
        let wants = (0..5).map(|number| want(&format!("net.{number}"))).collect();
        let answers = full.assign(wants).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
        assert!(
            answers
                .iter()
                .any(|answer| matches!(answer, Err(AllocError::Exhausted(_)))),
            "{answers:?}"
        );
        let unselected = json!({"cidr": "10.0.0.0/30", "blockSize": 30, "nodeSelector": "rack == 'b'"});
        for pools in [&[unselected][..], &[]] {
            let answers = allocator(pools).await.assign(vec![want("net.a")]).await;
            assert!(matches!(answers[..], [Err(AllocError::NoPools(_))]), "{answers:?}");
        }
    }
}
