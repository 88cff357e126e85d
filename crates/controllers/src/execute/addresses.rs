//! Addresses, blocks and claims that are given back: whoever may need them is looked for once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use api::{IpamBlockSpec, Key, Kind, Resource, WorkloadEndpoint};
use datastore::{Scope, StoreError};
use ipam::{Block, Doomed, Evidence, IpamError, Owner, Pod, Reason, ReleaseAddress, ReleaseOutcome, still_leaked};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{Done, Executor, Outcome};
use crate::ipam_gc::pods;

/// How old a list of a namespace's pods may be that a release is based on, when many are released in a row.
const FRESH: Duration = Duration::from_secs(1);

/// Pods of a namespace, and when they were read.
pub(super) type Listed = (String, Instant, BTreeMap<(String, String), Vec<Pod>>);

impl Executor {
    /// All of a handle or nothing: the pod, the node and the block's sequence number are read once more.
    pub(super) async fn free_addresses(&self, now: Timestamp, doomed: &[Doomed]) -> Done {
        let mut blocks = Vec::new();
        for cidr in doomed.iter().map(|doomed| doomed.block).collect::<BTreeSet<IpNet>>() {
            if let Some(block) = self.get::<IpamBlockSpec>(&Key::block(cidr)).await? {
                blocks.push(block.spec);
            }
        }
        let mut evidence = Evidence {
            // Where they are not known, nothing has been judged by them.
            others_pods: true,
            ..Evidence::default()
        };
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

    pub(super) async fn release_idle_block(&self, now: Timestamp, owner: &Owner, cidr: IpNet) -> Done {
        let outcomes = self.ipam.release_affinity(now, owner, cidr, true).await?;
        let kept = |(_, outcome): &(IpNet, ReleaseOutcome)| {
            matches!(outcome, ReleaseOutcome::NotEmpty | ReleaseOutcome::Changed)
        };
        match outcomes.iter().all(kept) {
            true => Ok(Outcome::Nothing("it is in use again")),
            false => Ok(Outcome::Done),
        }
    }

    pub(super) async fn release_node(&self, now: Timestamp, node: &str) -> Done {
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
}
