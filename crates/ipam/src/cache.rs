//! [`Ipam`] itself, and what it remembers so that the usual allocation reads nothing.
//!
//! Blocks are remembered with their revision: a block that somebody else has written since is found out by the
//! compare-and-swap, never by a wrong answer. Pools and configuration have no such guard, so they are remembered only once
//! the holder of this `Ipam` feeds it the store's changes, and forgotten with each change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::resource::{BlockAffinity, IpPool, IpamBlock};
use api::{IpPoolSpec, IpReservationSpec, IpamBlockSpec, IpamConfigurationSpec, Key, Kind, Resource};
use datastore::{Scope, SharedStore, StoreError, Update};
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::fetch::{At, readable};
use crate::{Block, Owner};

/// Allocates and releases addresses. Clones share what they remember and take turns at writing blocks.
#[derive(Clone)]
pub struct Ipam {
    pub(crate) store: SharedStore,
    shared: Arc<Shared>,
}

struct Shared {
    cache: Mutex<Cache>,
    /// One writer of blocks at a time in this process: waiting is cheaper than losing races against oneself.
    gate: futures::lock::Mutex<()>,
}

#[derive(Default)]
struct Cache {
    /// Whether changes are being fed.
    fed: bool,
    /// Counts the changes of pools and configuration, so that a read that was overtaken by one is not remembered.
    generation: u64,
    facts: Option<Facts>,
    /// Blocks with a confirmed affinity, by owner.
    blocks: BTreeMap<Owner, BTreeMap<IpNet, At<IpamBlockSpec>>>,
}

/// What decides about requests beside blocks.
#[derive(Clone)]
pub(crate) struct Facts {
    pub pools: Arc<Vec<IpPool>>,
    pub config: IpamConfigurationSpec,
    /// Ranges that are never handed out.
    pub reserved: Arc<Vec<IpNet>>,
}

impl Facts {
    /// How long a released address rests.
    pub fn cooldown(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.config.ip_cooldown_seconds))
    }
}

impl Ipam {
    /// Allocates in this store.
    pub fn new(store: SharedStore) -> Self {
        let shared = Shared {
            cache: Mutex::new(Cache::default()),
            gate: futures::lock::Mutex::new(()),
        };
        Self {
            store,
            shared: Arc::new(shared),
        }
    }

    /// Takes notice of a change in the store. Who calls this for every change of pools, IPAM configuration, reservations, blocks and
    /// affinities gets allocations without reads; until the first call pools and configuration are read each time.
    pub fn note(&self, update: &Update) {
        let mut cache = self.cache();
        cache.fed = true;
        match update.key.kind {
            Kind::IPPool | Kind::IPAMConfiguration | Kind::IPReservation => {
                cache.generation += 1;
                cache.facts = None;
            }
            Kind::BlockAffinity => {
                let affinity = update
                    .value
                    .as_ref()
                    .and_then(|value| <&BlockAffinity>::try_from(value).ok());
                if !affinity.is_some_and(|affinity| affinity.spec.state.is_confirmed()) {
                    for (owner, blocks) in &mut cache.blocks {
                        blocks.retain(|cidr, _| Key::affinity(owner.name(), *cidr) != update.key);
                    }
                }
            }
            Kind::IPAMBlock => {
                let noted = update
                    .value
                    .as_ref()
                    .and_then(|value| <&IpamBlock>::try_from(value).ok());
                // Changes arrive late: an older one than what we know is our own, or of before.
                let stale = |known: &At<IpamBlockSpec>| {
                    noted.is_none_or(|noted| noted.spec.sequence_number > known.object.spec.sequence_number)
                };
                for blocks in cache.blocks.values_mut() {
                    blocks.retain(|_, known| known.object.metadata.name != update.key.name || !stale(known));
                }
            }
            _ => {}
        }
    }

    /// Pools, configuration and reservations: as remembered, or from the store.
    pub(crate) async fn facts(&self) -> Result<Facts, StoreError> {
        let generation = {
            let cache = self.cache();
            if let Some(facts) = &cache.facts {
                return Ok(facts.clone());
            }
            cache.generation
        };
        let facts = self.read_facts().await?;
        let mut cache = self.cache();
        if cache.fed && cache.generation == generation {
            cache.facts = Some(facts.clone());
        }
        Ok(facts)
    }

    async fn read_facts(&self) -> Result<Facts, StoreError> {
        let listing = self.store.list(&Scope::Kind(Kind::IPPool)).await?;
        // A pool that cannot be read as a whole hands out nothing: whom it is for may be what cannot be read.
        let pools = listing.items.into_iter().map(|stored| stored.resource);
        let pools: Result<Vec<Option<IpPool>>, StoreError> = pools
            .filter(|resource| !matches!(resource, Resource::Wrong(_)))
            .map(readable::<IpPoolSpec>)
            .collect();
        let config = self
            .store
            .get(&Key::cluster(Kind::IPAMConfiguration, "default"))
            .await?;
        let config = config.map(|stored| readable::<IpamConfigurationSpec>(stored.resource));
        let config = config
            .transpose()?
            .flatten()
            .map(|object| object.spec)
            .unwrap_or_default();
        let mut reserved = Vec::new();
        for stored in self.store.list(&Scope::Kind(Kind::IPReservation)).await?.items {
            let object = readable::<IpReservationSpec>(stored.resource)?;
            reserved.extend(object.into_iter().flat_map(|object| object.spec.reserved_cidrs));
        }
        Ok(Facts {
            pools: Arc::new(pools?.into_iter().flatten().collect()),
            config,
            reserved: Arc::new(reserved),
        })
    }

    /// Waits for this process's turn at writing blocks.
    pub(crate) async fn turn(&self) -> futures::lock::MutexGuard<'_, ()> {
        self.shared.gate.lock().await
    }

    /// The remembered blocks of an owner for which `wanted` holds, the first one in order.
    pub(crate) fn remembered(
        &self,
        owner: &Owner,
        wanted: impl Fn(&IpamBlockSpec) -> bool,
    ) -> Option<At<IpamBlockSpec>> {
        let cache = self.cache();
        cache
            .blocks
            .get(owner)?
            .values()
            .find(|at| wanted(&at.object.spec))
            .cloned()
    }

    /// A remembered block, whoever owns it.
    pub(crate) fn remembered_block(&self, cidr: IpNet) -> Option<At<IpamBlockSpec>> {
        self.cache()
            .blocks
            .values()
            .find_map(|blocks| blocks.get(&cidr))
            .cloned()
    }

    /// Remembers a block whose owner's affinity is confirmed.
    pub(crate) fn remember(&self, owner: &Owner, at: &At<IpamBlockSpec>) {
        self.forget(at.object.spec.cidr);
        self.cache()
            .blocks
            .entry(owner.clone())
            .or_default()
            .insert(at.object.spec.cidr, at.clone());
    }

    /// Replaces what is remembered of a block, if anything is and it still has the same owner.
    pub(crate) fn refresh(&self, at: &At<IpamBlockSpec>) {
        let cidr = at.object.spec.cidr;
        for (owner, blocks) in &mut self.cache().blocks {
            if !at.object.spec.belongs_to(owner) {
                blocks.remove(&cidr);
            } else if let Some(known) = blocks.get_mut(&cidr) {
                known.clone_from(at);
            }
        }
    }

    /// Forgets a block.
    pub(crate) fn forget(&self, cidr: IpNet) {
        for blocks in self.cache().blocks.values_mut() {
            blocks.remove(&cidr);
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Nothing panics while it is locked; and what is remembered is only ever a hint.
        self.shared.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
