//! `delete`: by file or by kind and name. What hangs on a pool or a node in address management goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use api::{IpPool, IpamBlock, IpamBlockSpec, Key, Kind, Node, Resource};
use datastore::{Edit, Scope, SharedStore, StoreError, modify};
use ipam::{Block, Ipam, Owner, ReleaseOutcome, TunnelKind};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::command::DeleteArgs;
use crate::write::{Open, internal, partial, summary};
use crate::{CtlError, input, tier};

/// Deletes the resources of some files, or by kind and names.
pub async fn delete(
    args: &DeleteArgs,
    open: Open<'_>,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let keys = keys(args, stdin)?;
    let store = open().await?;
    let keys = checked(keys, args.skip_not_exists, &store).await?;
    let mut gone = Vec::new();
    for key in &keys {
        match delete_one(key, &store).await {
            Ok(()) => gone.push(key.kind),
            Err(CtlError::Store(StoreError::NotFound(_))) if args.skip_not_exists => {}
            Err(why) => return Err(partial(gone.len(), keys.len(), "deleted", why)),
        }
    }
    summary("deleted", &gone, out)
}

/// What the command line or the files name, each once.
fn keys(args: &DeleteArgs, stdin: &mut dyn Read) -> Result<Vec<Key>, CtlError> {
    let keys: Vec<Key> = match &args.kind {
        Some(kind) => input::keys(input::kind(kind)?, &args.namespace, &args.names),
        None => {
            let resources = input::read(&args.filename, args.recursive, &args.namespace, stdin)?;
            resources.iter().map(Resource::key).collect()
        }
    };
    let problems = internal(&keys);
    if !problems.is_empty() {
        return Err(CtlError::Invalid(problems));
    }
    let mut seen = BTreeSet::new();
    Ok(keys.into_iter().filter(|key| seen.insert(key.clone())).collect())
}

/// The keys that are there. All that cannot be deleted is told before anything is.
async fn checked(keys: Vec<Key>, skip_not_exists: bool, store: &SharedStore) -> Result<Vec<Key>, CtlError> {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    let mut used = tier::in_use(&keys, store).await?;
    for key in keys {
        let Some(stored) = store.get(&key).await? else {
            missing.push(key);
            continue;
        };
        if let Resource::IPPool(pool) = &stored.resource {
            used.extend(in_use(&key, &blocks(pool.spec.cidr, store).await?));
        }
        there.push(key);
    }
    if !used.is_empty() {
        return Err(CtlError::Invalid(used));
    }
    // What is in a tier before the tier, otherwise as written.
    there.sort_by_key(|key| key.kind == Kind::Tier);
    match missing.is_empty() || skip_not_exists {
        true => Ok(there),
        false => Err(CtlError::Missing(missing)),
    }
}

async fn delete_one(key: &Key, store: &SharedStore) -> Result<(), CtlError> {
    if key.kind == Kind::IPPool {
        retire_pool(key, store).await?;
    }
    let gone = store.delete(key, None).await?;
    if let Resource::Node(node) = gone.resource {
        release_node(&node, store).await?;
    }
    Ok(())
}

/// Upstream's procedure: no new allocations, then the claims are given back; what has no addresses goes with them. A pool
/// from which an address was taken meanwhile is put back to work.
async fn retire_pool(key: &Key, store: &SharedStore) -> Result<(), CtlError> {
    let now = Timestamp::now();
    let (cidr, was_disabled) = set_disabled(key, true, store).await?;
    let ipam = Ipam::new(store.clone());
    let mut kept = false;
    for owner in owners(cidr, store).await? {
        let outcomes = ipam.release_affinity(now, &owner, cidr, true).await?;
        kept |= outcomes
            .iter()
            .any(|(_, outcome)| matches!(outcome, ReleaseOutcome::NotEmpty | ReleaseOutcome::Changed));
    }
    for block in blocks(cidr, store).await? {
        ipam.collect_cold(now, block.cidr).await?;
    }
    let used = in_use(key, &blocks(cidr, store).await?);
    if !kept && used.is_none() {
        return Ok(());
    }
    if !was_disabled {
        set_disabled(key, false, store).await?;
    }
    let changed = || format!("{key}: addresses of it are being given out; try again");
    Err(CtlError::Invalid(vec![used.unwrap_or_else(changed)]))
}

/// Writes `spec.disabled`; answers the pool's range and what was there before.
async fn set_disabled(key: &Key, disabled: bool, store: &SharedStore) -> Result<(IpNet, bool), CtlError> {
    modify(store.as_ref(), key, |pool: Option<IpPool>| {
        let Some(mut pool) = pool else {
            return Err(StoreError::NotFound(key.clone()).into());
        };
        let answer = (pool.spec.cidr, pool.spec.disabled);
        if pool.spec.disabled == disabled {
            return Ok((Edit::Keep, answer));
        }
        pool.spec.disabled = disabled;
        Ok((Edit::Put(pool), answer))
    })
    .await
}

/// Whose blocks of a pool are.
async fn owners(cidr: IpNet, store: &SharedStore) -> Result<BTreeSet<Owner>, CtlError> {
    let affinities = store.list(&Scope::Kind(Kind::BlockAffinity)).await?.items;
    let affinities = affinities.into_iter().filter_map(|stored| match stored.resource {
        Resource::BlockAffinity(affinity) => Some(affinity.spec),
        _ => None,
    });
    let ours = affinities.filter(|affinity| cidr.contains(&affinity.cidr));
    let mut owners: BTreeSet<Owner> = ours.map(|affinity| Owner::of(&affinity)).collect();
    // A release that was interrupted leaves a block whose owner has no affinity any more.
    let blocks = blocks(cidr, store).await?;
    owners.extend(
        blocks
            .iter()
            .filter_map(|block| block.affinity.as_deref()?.parse().ok()),
    );
    Ok(owners)
}

async fn blocks(cidr: IpNet, store: &SharedStore) -> Result<Vec<IpamBlockSpec>, CtlError> {
    let items = store.list(&Scope::Kind(Kind::IPAMBlock)).await?.items;
    let blocks = items
        .into_iter()
        .filter_map(|stored| IpamBlock::try_from(stored.resource).ok());
    Ok(blocks
        .map(|block| block.spec)
        .filter(|block| cidr.contains(&block.cidr))
        .collect())
}

/// Why a pool cannot go: its pods would lose their routes.
fn in_use(key: &Key, blocks: &[IpamBlockSpec]) -> Option<String> {
    let mut holders: BTreeMap<bool, usize> = BTreeMap::new();
    for (_, holder) in blocks.iter().flat_map(Block::allocated) {
        // An address that cools down is nobody's any more.
        if holder.released_at.is_none() {
            let is_tunnel = holder
                .secondary
                .get("type")
                .is_some_and(|kind| kind.ends_with("TunnelAddress"));
            *holders.entry(is_tunnel).or_default() += 1;
        }
    }
    let count = |tunnel| holders.get(&tunnel).copied().unwrap_or_default();
    match (count(false), count(true)) {
        (0, 0) => None,
        (0, tunnels) => Some(format!(
            "{key}: {tunnels} of its addresses are in use by nodes' tunnels; set spec.disabled: true, then the nodes give \
             them back"
        )),
        (pods, tunnels) => Some(format!(
            "{key}: {} of its addresses are in use; set spec.disabled: true, delete the pods that have them, then delete \
             the pool",
            pods + tunnels
        )),
    }
}

/// A node that is gone needs no tunnel addresses and no blocks. Blocks in which pods have addresses stay as they are; an
/// agent that still runs registers itself again.
async fn release_node(node: &Node, store: &SharedStore) -> Result<(), CtlError> {
    let (now, name) = (Timestamp::now(), node.metadata.name.as_str());
    let ipam = Ipam::new(store.clone());
    for kind in TunnelKind::ALL {
        ipam.release_handle(now, &kind.handle(name)).await?;
    }
    ipam.release_host_affinities(now, &Owner::Host(name.to_owned()), true)
        .await?;
    Ok(())
}
