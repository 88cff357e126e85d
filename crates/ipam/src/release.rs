//! Giving back: addresses, everything of a handle, blocks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::IpPool;
use api::{IpamBlockSpec, IpamHandleSpec, Key, Kind, NodeSpec};
use datastore::StoreError;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::affinity::{self, Claim, ReleaseIf, blocks_and_claims_of};
use crate::block::clean_handle;
use crate::cache::Facts;
use crate::fetch::{ATTEMPTS, At, list_live, read, read_live, update};
use crate::handle::{self, write_or_delete};
use crate::pools::{block_of, pool_of, selects_every_node, selects_node};
use crate::search::{Search, Terms};
use crate::{Block, Family, Ipam, IpamError, Ordinal, Owner, PoolChoice, ReleaseOutcome, Reservations, choose};

/// An address to release, and what must be true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseAddress {
    /// The address.
    pub ip: IpAddr,
    /// Only if this handle holds it.
    pub handle: Option<String>,
    /// Only if it was taken at this sequence number ([`Block::sequence_of`]).
    pub sequence: Option<u64>,
}

/// What became of addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Released {
    /// Were held and are free (or cool down).
    pub released: Vec<IpAddr>,
    /// Were not held.
    pub unallocated: Vec<IpAddr>,
    /// Are as before, and why. One mismatch keeps all addresses of the same block.
    pub failed: Vec<(IpAddr, IpamError)>,
}

impl Ipam {
    /// Releases addresses. A handle or sequence number that does not match means that the caller's knowledge is old.
    pub async fn release_ips(&self, now: Timestamp, addresses: &[ReleaseAddress]) -> Result<Released, IpamError> {
        let facts = self.facts().await?;
        let mut answer = Released::default();
        for (cidr, wanted) in self.by_block(&facts.pools, addresses, &mut answer).await? {
            let choose = |block: &IpamBlockSpec| matching(block, &wanted);
            match self.give_back(now, &facts, cidr, choose, false).await {
                Ok(given) => {
                    for (handle, count) in &given.handles {
                        // If this fails the handle counts too much, which its release puts right.
                        drop(handle::lower(self.store.as_ref(), handle, &[(cidr, *count)].into()).await);
                    }
                    for address in wanted {
                        let list = if given.addresses.contains(&address.ip) {
                            &mut answer.released
                        } else {
                            &mut answer.unallocated
                        };
                        list.push(address.ip);
                    }
                }
                Err(error) => answer
                    .failed
                    .extend(wanted.into_iter().map(|address| (address.ip, error.clone()))),
            }
        }
        Ok(answer)
    }

    /// Releases everything that a handle holds, and the handle. Answers the addresses. A handle that does not exist holds
    /// nothing, so this may be repeated.
    pub async fn release_handle(&self, now: Timestamp, handle: &str) -> Result<Vec<IpAddr>, IpamError> {
        let facts = self.facts().await?;
        let key = Key::handle(handle);
        let mut released = Vec::new();
        for _ in 0..ATTEMPTS {
            let Some(mut at) = read_live::<IpamHandleSpec>(self.store.as_ref(), &key).await? else {
                return Ok(released);
            };
            for (block, count) in &at.object.spec.block {
                let Ok(cidr) = block.parse::<IpNet>() else { continue };
                let choose = |block: &IpamBlockSpec| Ok(held_by_object(block, &key));
                // Fewer addresses than counted: somebody may be about to write the block. Moving its revision on makes
                // that fail; whoever it is then finds this handle changed or gone.
                let given = self
                    .give_back_counted(now, &facts, cidr, choose, *count as usize)
                    .await?;
                released.extend(given.addresses);
            }
            at.object.spec.block.clear();
            match write_or_delete(self.store.as_ref(), at).await {
                Ok(()) | Err(StoreError::NotFound(_)) => return Ok(released),
                Err(StoreError::Conflict(_)) => continue,
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key).into())
    }

    /// Deletes a handle that holds nothing. Answers whether it is gone; one that holds something stays as it is. Whoever is
    /// about to write a block of it finds that block or the handle changed.
    pub async fn release_idle_handle(&self, now: Timestamp, handle: &str) -> Result<bool, IpamError> {
        let facts = self.facts().await?;
        let key = Key::handle(handle);
        for _ in 0..ATTEMPTS {
            let Some(mut at) = read_live::<IpamHandleSpec>(self.store.as_ref(), &key).await? else {
                return Ok(true);
            };
            for block in at.object.spec.block.keys() {
                let Ok(cidr) = block.parse::<IpNet>() else { continue };
                let nothing = |block: &IpamBlockSpec| match held_by_object(block, &key).first() {
                    None => Ok(Vec::new()),
                    Some(held) => Err(IpamError::SequenceMismatch {
                        ip: block.address(*held),
                    }),
                };
                match self.give_back(now, &facts, cidr, nothing, true).await {
                    Ok(_) => {}
                    Err(IpamError::SequenceMismatch { .. }) => return Ok(false),
                    Err(other) => return Err(other),
                }
            }
            at.object.spec.block.clear();
            match write_or_delete(self.store.as_ref(), at).await {
                Ok(()) | Err(StoreError::NotFound(_)) => return Ok(true),
                Err(StoreError::Conflict(_)) => continue,
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key).into())
    }

    /// The handle that holds an address; `None` if nobody does, or if it is in no pool.
    pub async fn handle_of(&self, address: IpAddr) -> Result<Option<String>, IpamError> {
        let facts = self.facts().await?;
        let Some(cidr) = pool_of(&facts.pools, address).and_then(|pool| block_of(pool, address)) else {
            return Ok(None);
        };
        let Some(at) = read_live::<IpamBlockSpec>(self.store.as_ref(), &Key::block(cidr)).await? else {
            return Ok(None);
        };
        let block = &at.object.spec;
        let holder = block.ordinal(address).and_then(|ordinal| block.holder(ordinal));
        Ok(holder.and_then(|holder| holder.handle_id.clone()))
    }

    /// The addresses that a handle holds, in order.
    pub async fn ips_by_handle(&self, handle: &str) -> Result<Vec<IpAddr>, IpamError> {
        let key = Key::handle(handle);
        let Some(at) = read_live::<IpamHandleSpec>(self.store.as_ref(), &key).await? else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        for cidr in at
            .object
            .spec
            .block
            .keys()
            .filter_map(|block| block.parse::<IpNet>().ok())
        {
            if let Some(at) = read_live::<IpamBlockSpec>(self.store.as_ref(), &Key::block(cidr)).await? {
                let block = &at.object.spec;
                held.extend(
                    held_by_object(block, &key)
                        .into_iter()
                        .map(|ordinal| block.address(ordinal)),
                );
            }
        }
        held.sort();
        Ok(held)
    }

    async fn by_block(
        &self,
        pools: &[IpPool],
        addresses: &[ReleaseAddress],
        answer: &mut Released,
    ) -> Result<BTreeMap<IpNet, Vec<ReleaseAddress>>, StoreError> {
        let mut by_block: BTreeMap<IpNet, Vec<ReleaseAddress>> = BTreeMap::new();
        // Outside all pools, or in a pool whose block size has been another: found among all blocks.
        let mut all: Option<Vec<IpNet>> = None;
        for address in addresses {
            let mut cidr = pool_of(pools, address.ip).and_then(|pool| block_of(pool, address.ip));
            if let Some(expected) = cidr
                && read::<IpamBlockSpec>(self.store.as_ref(), &Key::block(expected))
                    .await?
                    .is_none()
            {
                cidr = None;
            }
            if cidr.is_none() {
                if all.is_none() {
                    let blocks = list_live::<IpamBlockSpec>(self.store.as_ref()).await?;
                    all = Some(blocks.into_iter().map(|at| at.object.spec.cidr).collect());
                }
                cidr = all.iter().flatten().copied().find(|cidr| cidr.contains(&address.ip));
            }
            match cidr {
                Some(cidr) => {
                    let known = by_block.entry(cidr).or_default();
                    if !known.iter().any(|other| other.ip == address.ip) {
                        known.push(address.clone());
                    }
                }
                None => answer.unallocated.push(address.ip),
            }
        }
        Ok(by_block)
    }

    /// Frees the addresses of a block whose rest is over, and deletes the block if it is empty and nobody's.
    pub async fn collect_cold(&self, now: Timestamp, cidr: IpNet) -> Result<(), IpamError> {
        let facts = self.facts().await?;
        let Some(at) = read_live::<IpamBlockSpec>(self.store.as_ref(), &Key::block(cidr)).await? else {
            return Ok(());
        };
        let mut block = at.object.spec;
        if block.collect(now, facts.cooldown()) > 0 || block.affinity.is_none() && block.is_empty() {
            self.give_back(now, &facts, cidr, |_| Ok(Vec::new()), true).await?;
        }
        Ok(())
    }

    /// Gives back what a failed allocation had got, and answers how many of them were still held.
    pub(crate) async fn give_back_exactly(
        &self,
        now: Timestamp,
        facts: &Facts,
        cidr: IpNet,
        handle: &str,
        held: &[(Ordinal, u64)],
    ) -> Result<u32, IpamError> {
        let choose = |block: &IpamBlockSpec| {
            let mine = block.held_by(clean_handle(handle));
            let still = held
                .iter()
                .filter(|(ordinal, sequence)| mine.contains(ordinal) && block.sequence_of(*ordinal) == *sequence);
            Ok(still.map(|(ordinal, _)| *ordinal).collect())
        };
        Ok(self.give_back(now, facts, cidr, choose, false).await?.addresses.len() as u32)
    }

    async fn give_back_counted(
        &self,
        now: Timestamp,
        facts: &Facts,
        cidr: IpNet,
        choose: impl Fn(&IpamBlockSpec) -> Result<Vec<Ordinal>, IpamError>,
        count: usize,
    ) -> Result<Given, IpamError> {
        let given = self.give_back(now, facts, cidr, &choose, false).await?;
        if given.addresses.is_empty() && count > 0 {
            return self.give_back(now, facts, cidr, &choose, true).await;
        }
        Ok(given)
    }

    /// Swaps a block for one without the chosen addresses. Writes it only if there is something to give back, or always.
    async fn give_back(
        &self,
        now: Timestamp,
        facts: &Facts,
        cidr: IpNet,
        choose: impl Fn(&IpamBlockSpec) -> Result<Vec<Ordinal>, IpamError>,
        always: bool,
    ) -> Result<Given, IpamError> {
        let store = self.store.as_ref();
        let key = Key::block(cidr);
        let turn = self.turn().await;
        let mut remembered = self.remembered_block(cidr);
        for _ in 0..ATTEMPTS {
            let from_memory = remembered.is_some();
            let found = match remembered.take() {
                Some(at) => Some(at),
                None => read_live::<IpamBlockSpec>(store, &key).await?,
            };
            let Some(mut at) = found else {
                return Ok(Given::default());
            };
            let block = &mut at.object.spec;
            let chosen = match choose(block) {
                // What is remembered may be old: only the store's word counts for "no".
                Err(_) if from_memory => continue,
                Ok(chosen) if chosen.is_empty() && from_memory => continue,
                Ok(chosen) if chosen.is_empty() && !always => return Ok(Given::default()),
                chosen => chosen?,
            };
            let given = Given::new(block, &chosen);
            block.give_back(&chosen, now, facts.cooldown());
            block.collect(now, facts.cooldown());
            match self.write_or_delete_block(at).await {
                Ok(Some(owner)) => {
                    drop(turn);
                    self.release_if_unselected(now, facts, owner, cidr).await;
                    return Ok(given);
                }
                Ok(None) => return Ok(given),
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => self.forget(cidr),
                Err(other) => {
                    self.forget(cidr);
                    return Err(other.into());
                }
            }
        }
        Err(StoreError::Conflict(key).into())
    }

    /// Writes a block back, or deletes it if it is empty and nobody's. Answers the owner of a block that is empty now.
    async fn write_or_delete_block(&self, mut at: At<IpamBlockSpec>) -> Result<Option<Owner>, StoreError> {
        let block = &mut at.object.spec;
        if block.affinity.is_none() && block.is_empty() {
            self.forget(block.cidr);
            return self
                .store
                .delete(&at.object.key(), Some(&at.revision))
                .await
                .map(|_| None);
        }
        block.bump();
        let at = update(self.store.as_ref(), at).await?;
        self.refresh(&at);
        let block = &at.object.spec;
        Ok(if block.is_empty() {
            block.affinity.as_deref().and_then(|owner| owner.parse().ok())
        } else {
            None
        })
    }

    /// A block that has become empty goes back if its pool no longer selects its node. A failure is left to the next time.
    async fn release_if_unselected(&self, now: Timestamp, facts: &Facts, owner: Owner, cidr: IpNet) {
        let pool =
            pool_of(&facts.pools, cidr.network()).filter(|pool| pool.is_allocatable() && !selects_every_node(pool));
        let (Owner::Host(host), Some(pool)) = (&owner, pool) else {
            return;
        };
        let node = read::<NodeSpec>(self.store.as_ref(), &Key::cluster(Kind::Node, host.as_str())).await;
        let Ok(Some(node)) = node else { return };
        if !selects_node(pool, &node.object.metadata.labels) {
            let claims = std::iter::once(cidr);
            drop(
                self.release_unselected(now, &owner, &node.object.metadata.labels, facts, claims)
                    .await,
            );
        }
    }

    /// Claims every block in `range` for a host. Answers the blocks it has, then those that others have.
    pub async fn claim_affinity(
        &self,
        now: Timestamp,
        host: &str,
        range: IpNet,
    ) -> Result<(Vec<IpNet>, Vec<IpNet>), IpamError> {
        let facts = self.facts().await?;
        let owner = crate::assign::owner_of(host, api::AllowedUse::Workload)?;
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for cidr in blocks_of(&facts.pools, range)? {
            match affinity::claim(self.store.as_ref(), &owner, cidr, now).await? {
                Claim::Ours(_) => ours.push(cidr),
                Claim::Lost(_) => others.push(cidr),
            }
        }
        Ok((ours, others))
    }

    /// Gives back a host's claims on every block in `range`, if `must_be_empty` only where no address is held.
    pub async fn release_affinity(
        &self,
        now: Timestamp,
        owner: &Owner,
        range: IpNet,
        must_be_empty: bool,
    ) -> Result<Vec<(IpNet, ReleaseOutcome)>, IpamError> {
        let claims = blocks_and_claims_of(self.store.as_ref(), owner).await?;
        self.release_claims(
            now,
            owner,
            claims.into_iter().filter(|cidr| range.contains(cidr)),
            must_be_empty,
        )
        .await
    }

    /// Gives back all claims of an owner, as when a node leaves the cluster.
    pub async fn release_host_affinities(
        &self,
        now: Timestamp,
        owner: &Owner,
        must_be_empty: bool,
    ) -> Result<Vec<(IpNet, ReleaseOutcome)>, IpamError> {
        let claims = blocks_and_claims_of(self.store.as_ref(), owner).await?;
        self.release_claims(now, owner, claims.into_iter(), must_be_empty).await
    }

    /// Gives back all owners' claims in a pool.
    pub async fn release_pool_affinities(
        &self,
        now: Timestamp,
        pool: IpNet,
    ) -> Result<Vec<(IpNet, ReleaseOutcome)>, IpamError> {
        let mut outcomes = Vec::new();
        for claim in list_live::<api::BlockAffinitySpec>(self.store.as_ref()).await? {
            let (owner, cidr) = (Owner::of(&claim.object.spec), claim.object.spec.cidr);
            if pool.contains(&cidr) {
                outcomes.extend(self.release_claims(now, &owner, std::iter::once(cidr), false).await?);
            }
        }
        Ok(outcomes)
    }

    async fn release_claims(
        &self,
        now: Timestamp,
        owner: &Owner,
        claims: impl Iterator<Item = IpNet>,
        must_be_empty: bool,
    ) -> Result<Vec<(IpNet, ReleaseOutcome)>, IpamError> {
        let cooldown = self.facts().await?.cooldown();
        let condition = ReleaseIf {
            empty: must_be_empty,
            sequence: None,
            cooldown,
        };
        let mut outcomes = Vec::new();
        for cidr in claims {
            let outcome = affinity::release(self.store.as_ref(), owner, cidr, condition, now).await?;
            self.forget(cidr);
            outcomes.push((cidr, outcome));
        }
        Ok(outcomes)
    }

    /// Makes sure that a host has a block with a free address in each of these families, and answers it.
    pub async fn ensure_block(
        &self,
        now: Timestamp,
        host: &str,
        host_labels: &BTreeMap<String, String>,
        families: &[Family],
    ) -> Result<Vec<IpNet>, IpamError> {
        let facts = self.facts().await?;
        let owner = crate::assign::owner_of(host, api::AllowedUse::Workload)?;
        let reserved = Reservations::new(&facts.reserved);
        let mut blocks = Vec::new();
        let _turn = self.turn().await;
        for family in families {
            let choice = PoolChoice {
                family: *family,
                intended_use: api::AllowedUse::Workload,
                requested: &[],
                host_labels: Some(host_labels),
                namespace_labels: None,
            };
            let pools = choose(&facts.pools, &choice).map_err(|why| IpamError::NoPools { why })?;
            let limit = crate::assign::block_limit(0, &facts);
            let terms = Terms {
                now,
                owner: &owner,
                facts: &facts,
                pools: &pools,
                reserved: &reserved,
                limit,
                labels: Some(host_labels),
            };
            let found = Search::new(self, terms).next().await?;
            if found.borrowed {
                let pools = pools.iter().map(|pool| pool.metadata.name.clone()).collect();
                return Err(IpamError::Exhausted {
                    pools,
                    detail: "no block is left to claim".into(),
                });
            }
            blocks.push(found.at.object.spec.cidr);
        }
        Ok(blocks)
    }

    /// Finishes or undoes what an owner's interrupted claims and releases have left. Answers the blocks it has. To be
    /// called when an agent starts, and when a claim of its node turns up that is not confirmed.
    pub async fn repair(&self, now: Timestamp, owner: &Owner) -> Result<Vec<IpNet>, IpamError> {
        let mut ours = Vec::new();
        for cidr in blocks_and_claims_of(self.store.as_ref(), owner).await? {
            let claim = match affinity::resume(self.store.as_ref(), owner, cidr, now).await? {
                Some(claim) => claim,
                None => affinity::claim(self.store.as_ref(), owner, cidr, now).await?,
            };
            match claim {
                Claim::Ours(at) => {
                    self.remember(owner, &at);
                    ours.push(cidr);
                }
                Claim::Lost(_) => self.forget(cidr),
            }
        }
        Ok(ours)
    }
}

/// What a block gave back.
#[derive(Default)]
struct Given {
    addresses: Vec<IpAddr>,
    handles: BTreeMap<String, u32>,
}

impl Given {
    fn new(block: &IpamBlockSpec, chosen: &[Ordinal]) -> Self {
        let mut given = Given::default();
        for ordinal in chosen {
            given.addresses.push(block.address(*ordinal));
            if let Some(handle) = block.holder(*ordinal).and_then(|holder| holder.handle_id.as_deref()) {
                *given.handles.entry(clean_handle(handle).to_owned()).or_default() += 1;
            }
        }
        given
    }
}

/// The ordinals whose handle is stored in this handle object: several ids may share one, as names have no capitals.
fn held_by_object(block: &IpamBlockSpec, handle: &Key) -> Vec<Ordinal> {
    let held = |id: &str| Key::handle(clean_handle(id)) == *handle;
    let allocated = block.allocated().into_iter();
    allocated
        .filter(|(_, holder)| holder.handle_id.as_deref().is_some_and(held))
        .map(|(ordinal, _)| ordinal)
        .collect()
}

/// The ordinals of the wanted addresses that are held.
fn matching(block: &IpamBlockSpec, wanted: &[ReleaseAddress]) -> Result<Vec<Ordinal>, IpamError> {
    let mut chosen = Vec::new();
    for address in wanted {
        let mismatch = IpamError::SequenceMismatch { ip: address.ip };
        let Some(ordinal) = block.ordinal(address.ip) else {
            continue;
        };
        if address
            .sequence
            .is_some_and(|sequence| sequence != block.sequence_of(ordinal))
        {
            return Err(mismatch);
        }
        let Some(holder) = block.holder(ordinal).filter(|holder| holder.released_at.is_none()) else {
            continue;
        };
        let handle = holder.handle_id.as_deref().map(clean_handle);
        if address
            .handle
            .as_deref()
            .map(clean_handle)
            .is_some_and(|wanted| handle != Some(wanted))
        {
            return Err(mismatch);
        }
        chosen.push(ordinal);
    }
    Ok(chosen)
}

/// Blocks that one range may hold; more are surely a mistake.
const MOST_IN_RANGE: usize = 65_536;

/// The blocks in `range`, which must lie in a pool and be no smaller than one of its blocks.
fn blocks_of(pools: &[IpPool], range: IpNet) -> Result<Vec<IpNet>, IpamError> {
    let pool = pool_of(pools, range.network()).filter(|pool| pool.is_allocatable() && pool.spec.cidr.contains(&range));
    let pool = pool.ok_or(IpamError::NotInPool { ip: range.network() })?;
    let too_small = || IpamError::InvalidRequest(format!("{range} is smaller than a block of {}", pool.metadata.name));
    let blocks = range.trunc().subnets(pool.spec.block_len()).map_err(|_| too_small())?;
    let blocks: Vec<IpNet> = blocks.take(MOST_IN_RANGE + 1).collect();
    if blocks.len() > MOST_IN_RANGE {
        return Err(IpamError::InvalidRequest(format!(
            "{range} has more than {MOST_IN_RANGE} blocks"
        )));
    }
    Ok(blocks)
}
