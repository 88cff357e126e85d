//! Does what was decided: looks at the store once more, then writes by compare-and-swap.
//!
//! A decision may be old by the time it is carried out. Whatever takes something away from somebody therefore reads first
//! whether its reason still holds, past every cache, and then writes at the revision that it has read.

use std::sync::Mutex;

use api::{
    BuiltInTier, Condition, IP_POOL_FINALIZER, IpPoolStatus, Key, Kind, KubeControllersConfiguration,
    KubeControllersConfigurationSpec, Metadata, Object, Resource, Spec, TIER_FINALIZER,
};
use datastore::{SharedStore, StoreError};
use futures::future::{BoxFuture, FutureExt};
use ipam::{Ipam, IpamError};
use jiff::Timestamp;

use crate::action::Action;
use crate::tiers::READY;
use addresses::Listed;

mod addresses;
mod endpoints;
mod hold;
mod say;

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something was written.
    Done,
    /// There was nothing to do any more, and why.
    Nothing(&'static str),
}

/// Why an action was not done. All of them are tried again.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The datastore did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// IPAM did not do it.
    #[error(transparent)]
    Ipam(#[from] IpamError),
}

type Done = Result<Outcome, ExecuteError>;

/// Writes to a store.
pub struct Executor {
    store: SharedStore,
    ipam: Ipam,
    listed: Mutex<Option<Listed>>,
}

impl Executor {
    /// Writes to this store.
    pub fn new(store: SharedStore) -> Self {
        Self {
            ipam: Ipam::new(store.clone()),
            store,
            listed: Mutex::new(None),
        }
    }

    /// Does one action. `now` is the wall clock's time.
    pub fn perform<'a>(&'a self, now: Timestamp, action: &'a Action) -> BoxFuture<'a, Done> {
        async move {
            match action {
                Action::CreateConfiguration => self.create_configuration(now).await,
                Action::WriteConfigurationStatus(status) => self.write_configuration_status(status).await,
                Action::FreeAddresses(doomed) => self.free_addresses(now, doomed).await,
                Action::DeleteIdleHandle(handle) => {
                    let gone = self.ipam.release_idle_handle(now, handle).await?;
                    Ok(if gone {
                        Outcome::Done
                    } else {
                        Outcome::Nothing("it holds something")
                    })
                }
                Action::ReleaseIdleBlock(owner, cidr) => self.release_idle_block(now, owner, *cidr).await,
                Action::ReleaseNode(node) => self.release_node(now, node).await,
                Action::CollectBlock(cidr) => {
                    self.ipam.collect_cold(now, *cidr).await?;
                    Ok(Outcome::Done)
                }
                Action::DeleteEndpoint { key, node } => self.delete_endpoint(key, node).await,
                Action::PutHostEndpoint(endpoint) => self.put_host_endpoint(now, endpoint).await,
                Action::DeleteHostEndpoint { name, gone } => self.delete_host_endpoint(name, gone.as_deref()).await,
                Action::JudgePool {
                    name,
                    generation,
                    allocatable,
                } => {
                    let key = Key::cluster(Kind::IPPool, name);
                    self.say(now, &key, IpPoolStatus::ALLOCATABLE, allocatable, *generation)
                        .await
                }
                Action::HoldPool { name, hold } => {
                    let key = Key::cluster(Kind::IPPool, name);
                    self.hold(&key, IP_POOL_FINALIZER, *hold).await
                }
                Action::RetirePool { cidr, .. } => {
                    self.ipam.release_pool_affinities(now, *cidr).await?;
                    Ok(Outcome::Done)
                }
                Action::CreateTier(tier) => self.create_tier(now, *tier).await,
                Action::JudgeTier {
                    name,
                    generation,
                    ready,
                } => {
                    let key = Key::cluster(Kind::Tier, name);
                    self.say(now, &key, READY, ready, *generation).await
                }
                Action::Judge { key, revision, valid } => self.judge(now, key, revision.as_deref(), valid).await,
                Action::ForgetNode { key, node } => self.forget_node(key, node).await,
                Action::HoldTier { name, hold } => {
                    self.hold(&Key::cluster(Kind::Tier, name), TIER_FINALIZER, *hold).await
                }
            }
        }
        .boxed()
    }

    async fn create_configuration(&self, now: Timestamp) -> Done {
        let mut config = KubeControllersConfiguration::new("default", KubeControllersConfigurationSpec::initial());
        stamp(&mut config.metadata, now);
        created(self.store.create(config.into()).await)
    }

    /// What agents say of their kernels, nobody takes back once they are gone.
    async fn forget_node(&self, key: &Key, node: &str) -> Done {
        if self.is_there(node).await? {
            return Ok(Outcome::Nothing("the node is there again"));
        }
        let Some(stored) = self.store.get(key).await? else {
            return Ok(Outcome::Nothing("it is not there any more"));
        };
        let mut next = stored.resource;
        if !next.remove_condition(&Condition::enforced(node)) {
            return Ok(Outcome::Nothing("it does not say so any more"));
        }
        self.store.update_status(next, &stored.revision).await?;
        Ok(Outcome::Done)
    }

    async fn create_tier(&self, now: Timestamp, tier: BuiltInTier) -> Done {
        let mut tier = tier.object();
        stamp(&mut tier.metadata, now);
        created(self.store.create(tier.into()).await)
    }

    /// Whether a node's Node exists, as the store says now.
    async fn is_there(&self, node: &str) -> Result<bool, StoreError> {
        Ok(self.store.get(&Key::cluster(Kind::Node, node)).await?.is_some())
    }

    async fn get<S: Spec>(&self, key: &Key) -> Result<Option<Object<S>>, StoreError>
    where
        Object<S>: TryFrom<Resource>,
    {
        let stored = self.store.get(key).await?;
        Ok(stored.and_then(|stored| Object::try_from(stored.resource).ok()))
    }

    /// Deletes a resource at the revision at which it was found to be the right one.
    async fn delete_if(&self, key: &Key, is_it: impl Fn(&Resource) -> bool) -> Done {
        let Some(stored) = self.store.get(key).await? else {
            return Ok(Outcome::Nothing("it is not there any more"));
        };
        if !is_it(&stored.resource) {
            return Ok(Outcome::Nothing("it is another one now"));
        }
        match self.store.delete(key, Some(&stored.revision)).await {
            Ok(_) => Ok(Outcome::Done),
            Err(StoreError::NotFound(_)) => Ok(Outcome::Nothing("it is not there any more")),
            Err(other) => Err(other.into()),
        }
    }
}

fn created<T>(answer: Result<T, StoreError>) -> Done {
    match answer {
        Ok(_) => Ok(Outcome::Done),
        Err(StoreError::Exists(_)) => Ok(Outcome::Nothing("it is there already")),
        Err(other) => Err(other.into()),
    }
}

fn stamp(metadata: &mut Metadata, now: Timestamp) {
    metadata.creation_timestamp = Some(now);
    metadata.uid = Some(uuid::Uuid::new_v4().to_string());
}
