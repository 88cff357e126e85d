//! Handles: how many addresses of each block a container, tunnel or service holds.
//!
//! A handle counts at least the addresses it holds: it is raised before the block is written and lowered after.

use std::collections::BTreeMap;

use api::resource::IpamHandle;
use api::{IpamHandleSpec, Key};
use datastore::{Store, StoreError};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::fetch::{ATTEMPTS, At, create, read_live, update};

/// Makes a handle count `wanted` addresses more, of which it may count `credit` already, after a lost race. Always writes,
/// even if there is nothing to add: that makes a release that has read the handle before start again. A handle that was
/// released meanwhile counts all of them anew.
pub(crate) async fn raise(
    store: &dyn Store,
    id: &str,
    wanted: &BTreeMap<IpNet, u32>,
    credit: &BTreeMap<IpNet, u32>,
    now: Timestamp,
    probably_new: bool,
) -> Result<(), StoreError> {
    let key = Key::handle(id);
    let mut probably_new = probably_new;
    for _ in 0..ATTEMPTS {
        let known = if probably_new {
            None
        } else {
            read_live::<IpamHandleSpec>(store, &key).await?
        };
        probably_new = false;
        let written = match known {
            Some(mut at) => {
                for (block, count) in wanted {
                    let missing = count.saturating_sub(credit.get(block).copied().unwrap_or(0));
                    let counted = at.object.spec.block.entry(block.to_string()).or_default();
                    *counted = counted.saturating_add(missing).max(*count);
                }
                update(store, at).await.map(drop)
            }
            None => create(store, new(id, wanted, now)).await.map(drop),
        };
        match written {
            Err(StoreError::Exists(_) | StoreError::Conflict(_) | StoreError::NotFound(_)) => continue,
            other => return other,
        }
    }
    Err(StoreError::Conflict(key))
}

/// A handle that counts so many addresses, by block.
pub(crate) fn new(id: &str, counts: &BTreeMap<IpNet, u32>, now: Timestamp) -> IpamHandle {
    let block = counts
        .iter()
        .map(|(block, count)| (block.to_string(), *count))
        .collect();
    let mut handle = IpamHandle::new(
        Key::handle(id).name,
        IpamHandleSpec {
            handle_id: id.to_owned(),
            block,
            deleted: false,
        },
    );
    handle.metadata.creation_timestamp = Some(now);
    handle
}

/// Subtracts from a handle, and deletes it if nothing remains.
pub(crate) async fn lower(store: &dyn Store, id: &str, by: &BTreeMap<IpNet, u32>) -> Result<(), StoreError> {
    let key = Key::handle(id);
    for _ in 0..ATTEMPTS {
        let Some(mut at) = read_live::<IpamHandleSpec>(store, &key).await? else {
            return Ok(());
        };
        for (block, count) in by {
            if let Some(counted) = at.object.spec.block.get_mut(&block.to_string()) {
                *counted = counted.saturating_sub(*count);
            }
        }
        at.object.spec.block.retain(|_, count| *count > 0);
        match write_or_delete(store, at).await {
            Err(StoreError::Conflict(_)) => continue,
            Ok(()) | Err(StoreError::NotFound(_)) => return Ok(()),
            Err(other) => return Err(other),
        }
    }
    Err(StoreError::Conflict(key))
}

/// Writes a handle back at its revision, or deletes it there if it counts nothing.
pub(crate) async fn write_or_delete(store: &dyn Store, at: At<IpamHandleSpec>) -> Result<(), StoreError> {
    if at.object.spec.block.is_empty() {
        store.delete(&at.object.key(), Some(&at.revision)).await.map(drop)
    } else {
        update(store, at).await.map(drop)
    }
}
