//! Where the next address comes from: a block that the owner has, a new one, an idle one, or somebody else's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use api::IpamBlockSpec;
use api::resource::IpPool;
use datastore::StoreError;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::address::{Family, Walk, fnv1_32};
use crate::affinity::{self, Claim, ReleaseIf};
use crate::cache::Facts;
use crate::fetch::{ATTEMPTS, At, list_live, read_live};
use crate::pools::{pool_of, selects_node};
use crate::{Block, Ipam, IpamError, Owner, ReleaseOutcome, Reservations};

/// A block is left alone for so long after it was claimed, so that two owners do not take it from each other before
/// either has used it (upstream's `EmptyBlockMinReclaimAge`).
pub(crate) const IDLE_BEFORE_RECLAIM: SignedDuration = SignedDuration::from_secs(60);

/// What a search goes by.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub now: Timestamp,
    pub owner: &'a Owner,
    pub facts: &'a Facts,
    /// The pools that may serve, in order.
    pub pools: &'a [&'a IpPool],
    pub reserved: &'a Reservations,
    /// Most blocks that the owner may hold in these pools.
    pub limit: u32,
    /// The owner's labels, if it is a node.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

/// A search for blocks with a free address, in the order of preference.
pub(crate) struct Search<'a> {
    ipam: &'a Ipam,
    terms: Terms<'a>,
    stage: Stage,
    /// How many blocks the owner has in these pools.
    owned: usize,
    /// The block to look at again after a lost race.
    again: Option<Lost>,
}

enum Stage {
    /// Blocks that are remembered.
    Remembered,
    /// Claims that the store knows, one after the other.
    Own(VecDeque<IpNet>),
    Claim,
    Borrow(VecDeque<At<IpamBlockSpec>>),
}

struct Lost {
    cidr: IpNet,
    borrowed: bool,
}

/// A block with a free address.
pub(crate) struct Candidate {
    pub at: At<IpamBlockSpec>,
    /// Whether it is another owner's, or nobody's.
    pub borrowed: bool,
}

impl<'a> Search<'a> {
    pub fn new(ipam: &'a Ipam, terms: Terms<'a>) -> Self {
        Self {
            ipam,
            terms,
            stage: Stage::Remembered,
            owned: 0,
            again: None,
        }
    }

    /// The candidate changed before it could be written: it is looked at again before the search goes on.
    pub fn lost(&mut self, cidr: IpNet, borrowed: bool) {
        self.ipam.forget(cidr);
        self.again = Some(Lost { cidr, borrowed });
    }

    /// The next block with at least one free address.
    ///
    /// # Errors
    ///
    /// [`IpamError::BlockLimit`], [`IpamError::Exhausted`], or the store's.
    pub async fn next(&mut self) -> Result<Candidate, IpamError> {
        if let Some(lost) = self.again.take()
            && let Some(candidate) = self.look_again(lost).await?
        {
            return Ok(candidate);
        }
        loop {
            match &mut self.stage {
                Stage::Remembered => match self.remembered() {
                    Some(at) => return Ok(Candidate { at, borrowed: false }),
                    None => self.stage = Stage::Own(self.own_claims().await?),
                },
                Stage::Own(claims) => match claims.pop_front() {
                    Some(cidr) => {
                        if let Some(at) = self.own(cidr).await? {
                            return Ok(Candidate { at, borrowed: false });
                        }
                    }
                    None => self.stage = Stage::Claim,
                },
                Stage::Claim => match self.claim().await? {
                    Some(at) => return Ok(Candidate { at, borrowed: false }),
                    None => self.stage = Stage::Borrow(self.lenders().await?),
                },
                Stage::Borrow(lenders) => match lenders.pop_front() {
                    Some(at) => return Ok(Candidate { at, borrowed: true }),
                    None => return Err(self.exhausted()),
                },
            }
        }
    }

    async fn look_again(&mut self, lost: Lost) -> Result<Option<Candidate>, StoreError> {
        let at = match lost.borrowed {
            false => self.own(lost.cidr).await?,
            true => {
                let key = api::Key::block(lost.cidr);
                read_live(self.ipam.store.as_ref(), &key)
                    .await?
                    .and_then(|at| self.usable(at))
            }
        };
        Ok(at.map(|at| Candidate {
            at,
            borrowed: lost.borrowed,
        }))
    }

    fn remembered(&self) -> Option<At<IpamBlockSpec>> {
        let wanted = |block: &IpamBlockSpec| {
            // Cheap first; collecting needs a copy.
            self.in_pools(&block.cidr)
                && (block.free(self.terms.reserved) > 0
                    || block.attributes.iter().any(|holder| holder.released_at.is_some()) && {
                        let mut copy = block.clone();
                        copy.collect(self.terms.now, self.terms.facts.cooldown());
                        copy.free(self.terms.reserved) > 0
                    })
        };
        self.ipam
            .remembered(self.terms.owner, wanted)
            .and_then(|at| self.usable(at))
    }

    /// The owner's claims in these pools. Gives back, on the way, empty blocks of pools that no longer select the node.
    async fn own_claims(&mut self) -> Result<VecDeque<IpNet>, StoreError> {
        let claims = affinity::claims_of(self.ipam.store.as_ref(), self.terms.owner).await?;
        if let Some(labels) = self.terms.labels {
            let others = claims.iter().copied().filter(|cidr| !self.in_pools(cidr));
            self.ipam
                .release_unselected(self.terms.now, self.terms.owner, labels, self.terms.facts, others)
                .await?;
        }
        let claims: VecDeque<IpNet> = claims.into_iter().filter(|cidr| self.in_pools(cidr)).collect();
        self.owned = claims.len();
        Ok(claims)
    }

    /// A block of the owner, repaired if its claim was interrupted; `None` if it is full or not the owner's after all.
    async fn own(&mut self, cidr: IpNet) -> Result<Option<At<IpamBlockSpec>>, StoreError> {
        if self.terms.reserved.cover(&cidr) {
            return Ok(None);
        }
        match affinity::resume(self.ipam.store.as_ref(), self.terms.owner, cidr, self.terms.now).await? {
            Some(Claim::Ours(at)) => {
                self.ipam.remember(self.terms.owner, &at);
                Ok(self.usable(at))
            }
            Some(Claim::Lost(_)) | None => {
                self.ipam.forget(cidr);
                self.owned = self.owned.saturating_sub(1);
                Ok(None)
            }
        }
    }

    /// A block that the owner did not have; `None` if there is none to be had.
    async fn claim(&mut self) -> Result<Option<At<IpamBlockSpec>>, IpamError> {
        if self.owned >= self.terms.limit as usize {
            return Err(IpamError::BlockLimit {
                limit: self.terms.limit,
            });
        }
        if !self.terms.facts.config.auto_allocate_blocks {
            return Ok(None);
        }
        let store = self.ipam.store.as_ref();
        for _ in 0..ATTEMPTS {
            let blocks = list_live::<IpamBlockSpec>(store).await?;
            let cidr = match find(&self.terms, &blocks) {
                Found::Block(cidr) => cidr,
                Found::Idle(idle) => match self.reclaim(idle).await? {
                    Some(cidr) => cidr,
                    None => return Ok(None),
                },
            };
            if let Claim::Ours(at) = affinity::claim(store, self.terms.owner, cidr, self.terms.now).await? {
                self.ipam.remember(self.terms.owner, &at);
                if let Some(at) = self.usable(at) {
                    self.owned += 1;
                    return Ok(Some(at));
                }
            }
        }
        Err(StoreError::Conflict(api::Key::cluster(api::Kind::IPAMBlock, "")).into())
    }

    /// Takes an idle block away from its owner; the first one that lets itself be taken.
    async fn reclaim(&self, idle: Vec<Idle>) -> Result<Option<IpNet>, StoreError> {
        let store = self.ipam.store.as_ref();
        for idle in idle {
            let Some(owner) = &idle.owner else {
                let gone = store.delete(&idle.at.object.key(), Some(&idle.at.revision)).await;
                match gone {
                    Ok(_) => return Ok(Some(idle.at.object.spec.cidr)),
                    Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => continue,
                    Err(other) => return Err(other),
                }
            };
            let condition = ReleaseIf {
                empty: true,
                sequence: Some(idle.at.object.spec.sequence_number),
                cooldown: self.terms.facts.cooldown(),
            };
            match affinity::release(store, owner, idle.at.object.spec.cidr, condition, self.terms.now).await {
                Ok(ReleaseOutcome::Deleted) => return Ok(Some(idle.at.object.spec.cidr)),
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    /// Blocks of others with free addresses, in the order of the owner's walk.
    async fn lenders(&self) -> Result<VecDeque<At<IpamBlockSpec>>, StoreError> {
        if self.terms.facts.config.strict_affinity {
            return Ok(VecDeque::new());
        }
        let blocks = list_live::<IpamBlockSpec>(self.ipam.store.as_ref()).await?;
        let mut lenders: Vec<(usize, u128, At<IpamBlockSpec>)> = (blocks.into_iter())
            .filter(|at| !at.object.spec.belongs_to(self.terms.owner))
            .filter_map(|at| {
                let (index, position) = self.terms.place(&at.object.spec.cidr)?;
                Some((index, position, self.usable(at)?))
            })
            .collect();
        lenders.sort_by_key(|(index, position, _)| (*index, *position));
        Ok(lenders.into_iter().map(|(_, _, at)| at).collect())
    }

    /// The block with rested addresses freed, if it has a free one.
    fn usable(&self, mut at: At<IpamBlockSpec>) -> Option<At<IpamBlockSpec>> {
        at.object.spec.collect(self.terms.now, self.terms.facts.cooldown());
        (at.object.spec.free(self.terms.reserved) > 0).then_some(at)
    }

    fn in_pools(&self, cidr: &IpNet) -> bool {
        self.terms.pools.iter().any(|pool| pool.spec.cidr.contains(cidr))
    }

    fn exhausted(&self) -> IpamError {
        let config = &self.terms.facts.config;
        let detail = match (config.auto_allocate_blocks, config.strict_affinity) {
            (false, _) => "the node's blocks are full and autoAllocateBlocks is off",
            (true, true) => {
                "the node's blocks are full, no block is left to claim, and strictAffinity forbids to borrow"
            }
            (true, false) => "all blocks of all nodes are full",
        };
        let pools = self.terms.pools.iter().map(|pool| pool.metadata.name.clone()).collect();
        IpamError::Exhausted {
            pools,
            detail: detail.to_owned(),
        }
    }
}

impl Terms<'_> {
    fn walk(&self, pool: &IpPool) -> Walk {
        let block_len = pool.spec.block_len();
        // Blocks of one address: the owner need not find the same block again, and starting elsewhere each time makes
        // races rare.
        let seed = if block_len == Family::of(&pool.spec.cidr).bits() {
            self.now.as_nanosecond() as u64
        } else {
            u64::from(fnv1_32(self.owner.name()))
        };
        Walk::new(pool.spec.cidr, block_len, seed)
    }

    /// Where a block lies in the owner's walk through the pools.
    fn place(&self, cidr: &IpNet) -> Option<(usize, u128)> {
        let index = self.pools.iter().position(|pool| pool.spec.cidr.contains(cidr))?;
        Some((index, self.walk(self.pools[index]).position(cidr)))
    }
}

/// What there is to claim.
enum Found {
    /// A block that does not exist, or one of the owner's own with a free address.
    Block(IpNet),
    /// Only blocks that others hold and do not use.
    Idle(Vec<Idle>),
}

struct Idle {
    at: At<IpamBlockSpec>,
    owner: Option<Owner>,
}

fn find(terms: &Terms<'_>, blocks: &[At<IpamBlockSpec>]) -> Found {
    let by_cidr: BTreeMap<IpNet, &At<IpamBlockSpec>> = blocks.iter().map(|at| (at.object.spec.cidr, at)).collect();
    let lengths: BTreeSet<u8> = by_cidr.keys().map(IpNet::prefix_len).collect();
    let mut idle = Vec::new();
    for pool in terms.pools {
        for cidr in terms.walk(pool) {
            if terms.reserved.cover(&cidr) {
                continue;
            }
            let Some(at) = by_cidr.get(&cidr) else {
                if overlaps(&cidr, &by_cidr, &lengths) {
                    continue;
                }
                return Found::Block(cidr);
            };
            let mut block = at.object.spec.clone();
            block.collect(terms.now, terms.facts.cooldown());
            if block.free(terms.reserved) == 0 {
                continue;
            }
            if block.belongs_to(terms.owner) {
                return Found::Block(cidr);
            }
            let age = block
                .affinity_claim_time
                .map(|claimed| terms.now.duration_since(claimed));
            if block.is_empty() && age.is_none_or(|age| age >= IDLE_BEFORE_RECLAIM) {
                let owner = block.affinity.as_deref().and_then(|owner| owner.parse().ok());
                if owner.is_some() || block.affinity.is_none() {
                    idle.push(Idle {
                        at: At {
                            object: at.object.clone(),
                            revision: at.revision.clone(),
                        },
                        owner,
                    });
                }
            }
        }
    }
    Found::Idle(idle)
}

/// Whether a block of another size lies across `cidr`, as after a change of a pool's block size. Its addresses must not be
/// handed out twice.
fn overlaps(cidr: &IpNet, blocks: &BTreeMap<IpNet, &At<IpamBlockSpec>>, lengths: &BTreeSet<u8>) -> bool {
    let around = lengths
        .range(..cidr.prefix_len())
        .filter_map(|length| crate::address::around(cidr.network(), *length));
    if around.into_iter().any(|wider| blocks.contains_key(&wider)) {
        return true;
    }
    lengths.range(cidr.prefix_len() + 1..).next().is_some() && blocks.keys().any(|known| cidr.contains(known))
}

impl Ipam {
    /// Gives back empty blocks of enabled pools that do not select a node with these labels.
    pub(crate) async fn release_unselected(
        &self,
        now: Timestamp,
        owner: &Owner,
        labels: &BTreeMap<String, String>,
        facts: &Facts,
        claims: impl Iterator<Item = IpNet>,
    ) -> Result<(), StoreError> {
        let condition = ReleaseIf {
            empty: true,
            sequence: None,
            cooldown: facts.cooldown(),
        };
        for cidr in claims {
            let pool = pool_of(&facts.pools, cidr.network()).filter(|pool| pool.is_allocatable());
            if pool.is_none_or(|pool| selects_node(pool, labels)) {
                continue;
            }
            if affinity::release(self.store.as_ref(), owner, cidr, condition, now).await? != ReleaseOutcome::NotEmpty {
                self.forget(cidr);
            }
        }
        Ok(())
    }
}
