//! Does what was decided: looks at the store once more, then writes by compare-and-swap.
//!
//! A decision may be old by the time it is carried out. Whatever takes something away from somebody therefore reads first
//! whether its reason still holds, past every cache, and then writes at the revision that it has read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use api::{
    BuiltInTier, Condition, ConditionStatus, HostEndpoint, HostEndpointSpec, IP_POOL_FINALIZER, IpPoolStatus,
    IpamBlockSpec, Key, Kind, KubeControllersConfiguration, KubeControllersConfigurationSpec,
    KubeControllersConfigurationStatus, Metadata, Object, Resource, Spec, TIER_FINALIZER, WorkloadEndpoint,
};
use datastore::modify::TRIES;
use datastore::{Edit, News, Scope, SharedStore, StoreError, modify};
use futures::future::{BoxFuture, FutureExt};
use ipam::{
    Block, Doomed, Evidence, Ipam, IpamError, Owner, Pod, Reason, ReleaseAddress, ReleaseOutcome, still_leaked,
};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::action::{Action, Judgement};
use crate::host_endpoints::{differs, is_automatic};
use crate::ipam_gc::pods;
use crate::tiers::READY;

mod hold;

/// How old a list of a namespace's pods may be that a release is based on, when many are released in a row.
const FRESH: Duration = Duration::from_secs(1);

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

/// Pods of a namespace, and when they were read.
type Listed = (String, Instant, BTreeMap<(String, String), Vec<Pod>>);

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

    async fn write_configuration_status(&self, status: &KubeControllersConfigurationStatus) -> Done {
        let key = Key::cluster(Kind::KubeControllersConfiguration, "default");
        self.edit_status(&key, |config| {
            if let Resource::KubeControllersConfiguration(config) = config {
                config.status = Some(status.clone());
            }
        })
        .await
    }

    /// All of a handle or nothing: the pod, the node and the block's sequence number are read once more.
    async fn free_addresses(&self, now: Timestamp, doomed: &[Doomed]) -> Done {
        let mut blocks = Vec::new();
        for cidr in doomed.iter().map(|doomed| doomed.block).collect::<BTreeSet<IpNet>>() {
            if let Some(block) = self.get::<IpamBlockSpec>(&Key::block(cidr)).await? {
                blocks.push(block.spec);
            }
        }
        let mut evidence = Evidence::default();
        for one in doomed {
            let block = blocks.iter().find(|block| block.cidr == one.block);
            let holder = block.and_then(|block| block.holder(block.ordinal(one.address.ip)?));
            let Some(holder) = holder else {
                return Ok(Outcome::Nothing("it is not held any more"));
            };
            if let Some(node) = holder
                .secondary
                .get("node")
                .filter(|node| !evidence.nodes.contains(*node))
                && self.is_there(node).await?
            {
                if one.reason == Reason::NodeGone {
                    return Ok(Outcome::Nothing("its node is there again"));
                }
                evidence.nodes.insert(node.clone());
            }
            let attribute = |name: &str| holder.secondary.get(name).cloned();
            if let (Some(namespace), Some(pod)) = (attribute("namespace"), attribute("pod")) {
                let found = self.pods_called(&namespace, &pod).await?;
                if !found.is_empty() {
                    evidence.pods.insert((namespace, pod), found);
                }
            }
        }
        if !still_leaked(&blocks, doomed, &evidence) {
            return Ok(Outcome::Nothing("it is no leak any more"));
        }
        let addresses: Vec<ReleaseAddress> = doomed.iter().map(|doomed| doomed.address.clone()).collect();
        let released = self.ipam.release_ips(now, &addresses).await?;
        match released.failed.into_iter().next() {
            Some((_, IpamError::SequenceMismatch { .. })) => Ok(Outcome::Nothing("it changed hands")),
            Some((_, error)) => Err(error.into()),
            None if released.released.is_empty() => Ok(Outcome::Nothing("it is not held any more")),
            None => Ok(Outcome::Done),
        }
    }

    /// Where a pod is, as the store says now; empty if it is nowhere.
    async fn pods_called(&self, namespace: &str, pod: &str) -> Result<Vec<Pod>, StoreError> {
        let name = (namespace.to_owned(), pod.to_owned());
        if let Ok(listed) = self.listed.lock()
            && let Some((known, at, pods)) = listed.as_ref()
            && known == namespace
            && at.elapsed() < FRESH
        {
            return Ok(pods.get(&name).cloned().unwrap_or_default());
        }
        // Older than what is read, so that the list never looks fresher than it is.
        let at = Instant::now();
        let scope = Scope::Namespace(Kind::WorkloadEndpoint, namespace.to_owned());
        let items = self.store.list(&scope).await?.items;
        if let Some(wrong) = items
            .iter()
            .find(|stored| matches!(stored.resource, Resource::Wrong(_)))
        {
            let key = wrong.resource.key();
            return Err(StoreError::Refused(format!(
                "{key} cannot be read: it may have the address"
            )));
        }
        let items = items.into_iter();
        let endpoints: Vec<WorkloadEndpoint> = items
            .filter_map(|stored| WorkloadEndpoint::try_from(stored.resource).ok())
            .collect();
        let all = pods(endpoints.iter());
        let found = all.get(&name).cloned().unwrap_or_default();
        if let Ok(mut listed) = self.listed.lock() {
            *listed = Some((namespace.to_owned(), at, all));
        }
        Ok(found)
    }

    /// To be called between decisions: what was read for an earlier one is too old for the next.
    pub fn forget(&self) {
        if let Ok(mut listed) = self.listed.lock() {
            *listed = None;
        }
    }

    async fn release_idle_block(&self, now: Timestamp, owner: &Owner, cidr: IpNet) -> Done {
        let outcomes = self.ipam.release_affinity(now, owner, cidr, true).await?;
        let kept = |(_, outcome): &(IpNet, ReleaseOutcome)| {
            matches!(outcome, ReleaseOutcome::NotEmpty | ReleaseOutcome::Changed)
        };
        match outcomes.iter().all(kept) {
            true => Ok(Outcome::Nothing("it is in use again")),
            false => Ok(Outcome::Done),
        }
    }

    async fn release_node(&self, now: Timestamp, node: &str) -> Done {
        if self.is_there(node).await? {
            return Ok(Outcome::Nothing("the node is there again"));
        }
        let owner = Owner::Host(node.to_owned());
        let outcomes = self.ipam.release_host_affinities(now, &owner, false).await?;
        match outcomes.is_empty() {
            true => Ok(Outcome::Nothing("it has no claims any more")),
            false => Ok(Outcome::Done),
        }
    }

    async fn delete_endpoint(&self, key: &Key, node: &str) -> Done {
        if self.is_there(node).await? {
            return Ok(Outcome::Nothing("the node is there again"));
        }
        self.delete_if(key, |resource| match resource {
            Resource::WorkloadEndpoint(endpoint) => endpoint.spec.node == node,
            _ => false,
        })
        .await
    }

    async fn put_host_endpoint(&self, now: Timestamp, wanted: &HostEndpoint) -> Done {
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

    async fn delete_host_endpoint(&self, name: &str, gone: Option<&str>) -> Done {
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

    /// In a condition where the object keeps one, else as news of it.
    async fn judge(&self, now: Timestamp, key: &Key, revision: Option<&str>, valid: &Judgement) -> Done {
        let stored = self.store.get(key).await?;
        let Some(stored) = stored.filter(|stored| revision.is_none_or(|revision| stored.revision.0 == revision)) else {
            return Ok(Outcome::Nothing("it is another one by now"));
        };
        let mut next = stored.resource.clone();
        let can_be_written = match &next {
            Resource::Wrong(wrong) => wrong.is_whole(),
            _ => true,
        };
        let since = since(&next.conditions(), Condition::VALID, valid, now);
        let condition = valid.condition(Condition::VALID, next.metadata().generation, since);
        if can_be_written && !api::names::is_from_kubernetes(&key.name) && next.set_condition(condition.clone()) {
            let written = self.store.update_status(next, &stored.revision).await?;
            if written.resource.conditions().contains(&condition) {
                return Ok(Outcome::Done);
            }
        }
        let news = News {
            about: key.clone(),
            is_warning: valid.status == ConditionStatus::False,
            reason: valid.reason.to_owned(),
            message: valid.message.clone(),
            reporter: "margay-controllers".to_owned(),
            node: None,
        };
        self.store.tell(&news).await?;
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

    /// Says something of an object, as it was at a generation.
    async fn say(&self, now: Timestamp, key: &Key, kind: &str, judgement: &Judgement, generation: Option<i64>) -> Done {
        self.edit_status(key, |resource| {
            let since = since(&resource.conditions(), kind, judgement, now);
            resource.set_condition(judgement.condition(kind, generation, since));
        })
        .await
    }

    /// Changes what is said of an object that exists, and nothing else of it.
    async fn edit_status(&self, key: &Key, change: impl Fn(&mut Resource)) -> Done {
        for _ in 0..TRIES {
            let Some(stored) = self.store.get(key).await? else {
                return Ok(Outcome::Nothing("it is not there any more"));
            };
            let mut next = stored.resource.clone();
            change(&mut next);
            if next == stored.resource {
                return Ok(Outcome::Nothing("it is so already"));
            }
            match self.store.update_status(next, &stored.revision).await {
                Ok(written) if written.revision == stored.revision => {
                    return Ok(Outcome::Nothing("the datastore has no place for it"));
                }
                Ok(_) => return Ok(Outcome::Done),
                Err(StoreError::Conflict(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key.clone()).into())
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

/// Since when a condition has this status. Kubernetes keeps whole seconds.
fn since(conditions: &[Condition], kind: &str, judgement: &Judgement, now: Timestamp) -> Timestamp {
    let held = conditions.iter().find(|condition| condition.kind == kind);
    match held.filter(|held| held.status == judgement.status) {
        Some(held) => held.last_transition_time,
        None => now.round(jiff::Unit::Second).unwrap_or(now),
    }
}
