//! An owner's claim on a block: pending, confirmed, pending deletion.
//!
//! The claim is two objects, the affinity (one for each owner and block) and the block (one). Two rules keep them in step,
//! whoever crashes and whoever else works on the same block:
//!
//! 1. **Confirm** an affinity only at the revision of one's own pending write, and only after having written the block
//!    (created it, or counted its sequence number up) after that pending write.
//! 2. **Release** in the order: read the affinity, read the block, mark the affinity (also if it is marked already), then
//!    delete or disown the block at the revision that was read.
//!
//! A release that marks before the pending write has read the block before the block write, so its write to the block
//! conflicts. A release that marks after it makes the confirmation conflict. So a confirmed affinity always has its block.

use std::fmt;
use std::str::FromStr;

use api::resource::{BlockAffinity, IpamBlock};
use api::{AffinityState, BlockAffinitySpec, IpamBlockSpec, Key};
use datastore::{Store, StoreError};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::fetch::{ATTEMPTS, At, create, list_live, read_live, update};
use crate::{Block, IpamError};

/// Whose a block is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A node, by name.
    Host(String),
    /// Something that is no node, such as `load-balancer`.
    Virtual(String),
}

impl Owner {
    /// The owner of the blocks that services' addresses come from.
    pub fn load_balancer() -> Self {
        Owner::Virtual("load-balancer".to_owned())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Owner::Host(name) | Owner::Virtual(name) => name,
        }
    }

    /// The owner in an affinity. No type means a host.
    pub fn of(affinity: &BlockAffinitySpec) -> Self {
        match affinity.affinity_type.as_deref() {
            Some("virtual") => Owner::Virtual(affinity.node.clone()),
            _ => Owner::Host(affinity.node.clone()),
        }
    }
}

/// As in a block: `host:<name>`, `virtual:<name>`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Host(name) => write!(f, "host:{name}"),
            Owner::Virtual(name) => write!(f, "virtual:{name}"),
        }
    }
}

impl FromStr for Owner {
    type Err = IpamError;

    fn from_str(text: &str) -> Result<Self, IpamError> {
        match text.split_once(':') {
            Some(("host", name)) => Ok(Owner::Host(name.to_owned())),
            Some(("virtual", name)) => Ok(Owner::Virtual(name.to_owned())),
            _ => Err(IpamError::InvalidRequest(format!(
                "`{text}` is not the owner of a block"
            ))),
        }
    }
}

/// What became of a claim.
#[derive(Debug)]
pub(crate) enum Claim {
    /// The block is ours, the affinity confirmed.
    Ours(At<IpamBlockSpec>),
    /// The block is another's or nobody's; our affinity is gone.
    Lost(At<IpamBlockSpec>),
}

/// What became of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The block was empty and is gone.
    Deleted,
    /// The block holds addresses; it belongs to nobody now.
    Disowned,
    /// There was nothing to release, or only a stale affinity, which is gone.
    NotClaimed,
    /// Kept, because it was to be released only if empty, and it is not.
    NotEmpty,
    /// Kept, because the block changed since the caller looked.
    Changed,
}

/// Conditions of a release.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReleaseIf {
    /// Only if no address is held.
    pub empty: bool,
    /// Only if the block still has this sequence number.
    pub sequence: Option<u64>,
    /// How long released addresses rest; those whose rest is over do not count as held.
    pub cooldown: SignedDuration,
}

/// Claims a block for an owner, or finishes a claim that was interrupted.
pub(crate) async fn claim(store: &dyn Store, owner: &Owner, cidr: IpNet, now: Timestamp) -> Result<Claim, StoreError> {
    for _ in 0..ATTEMPTS {
        let pending = match create(store, new_affinity(owner, cidr, now)).await {
            Ok(affinity) => Found {
                affinity,
                pending_is_ours: true,
            },
            Err(StoreError::Exists(key)) => match read_live(store, &key).await? {
                Some(affinity) => Found {
                    affinity,
                    pending_is_ours: false,
                },
                None => continue,
            },
            Err(other) => return Err(other),
        };
        match finish(store, owner, pending, now).await {
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => continue,
            other => return other,
        }
    }
    Err(StoreError::Conflict(Key::affinity(owner.name(), cidr)))
}

/// Brings an affinity that exists to a good end; `None` if it does not exist.
pub(crate) async fn resume(
    store: &dyn Store,
    owner: &Owner,
    cidr: IpNet,
    now: Timestamp,
) -> Result<Option<Claim>, StoreError> {
    let key = Key::affinity(owner.name(), cidr);
    for _ in 0..ATTEMPTS {
        let Some(affinity) = read_live(store, &key).await? else {
            return Ok(None);
        };
        match finish(
            store,
            owner,
            Found {
                affinity,
                pending_is_ours: false,
            },
            now,
        )
        .await
        {
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => continue,
            other => return other.map(Some),
        }
    }
    Err(StoreError::Conflict(key))
}

/// An affinity, and whether the pending state in it was written by this very operation.
struct Found {
    affinity: At<BlockAffinitySpec>,
    pending_is_ours: bool,
}

async fn finish(store: &dyn Store, owner: &Owner, found: Found, now: Timestamp) -> Result<Claim, StoreError> {
    let Found {
        affinity,
        pending_is_ours,
    } = found;
    let cidr = affinity.object.spec.cidr;
    let block = match read_live::<IpamBlockSpec>(store, &Key::block(cidr)).await? {
        Some(block) if !block.object.spec.belongs_to(owner) => {
            match store.delete(&affinity.object.key(), Some(&affinity.revision)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => return Ok(Claim::Lost(block)),
                Err(other) => return Err(other),
            }
        }
        Some(block) if affinity.object.spec.state.is_confirmed() => return Ok(Claim::Ours(block)),
        other => other,
    };
    let pending = if pending_is_ours {
        affinity
    } else {
        mark(store, affinity, AffinityState::Pending).await?
    };
    let block = match block {
        Some(mut block) => {
            block.object.spec.bump();
            update(store, block).await?
        }
        None => create(store, new_block(owner, cidr, now)).await?,
    };
    mark(store, pending, AffinityState::Confirmed).await?;
    Ok(Claim::Ours(block))
}

async fn mark(
    store: &dyn Store,
    mut affinity: At<BlockAffinitySpec>,
    state: AffinityState,
) -> Result<At<BlockAffinitySpec>, StoreError> {
    affinity.object.spec.state = state;
    update(store, affinity).await
}

fn new_affinity(owner: &Owner, cidr: IpNet, now: Timestamp) -> BlockAffinity {
    let (node, kind) = match owner {
        Owner::Host(name) => (name.clone(), "host"),
        Owner::Virtual(name) => (name.clone(), "virtual"),
    };
    let spec = BlockAffinitySpec {
        state: AffinityState::Pending,
        node,
        affinity_type: Some(kind.to_owned()),
        cidr,
        deleted: false,
    };
    let mut affinity = BlockAffinity::new(Key::affinity(owner.name(), cidr).name, spec);
    affinity.metadata.creation_timestamp = Some(now);
    affinity
}

fn new_block(owner: &Owner, cidr: IpNet, now: Timestamp) -> IpamBlock {
    let mut block = IpamBlock::new(Key::block(cidr).name, IpamBlockSpec::create(cidr, owner, now));
    block.metadata.creation_timestamp = Some(now);
    block
}

/// Gives a block back: deletes it if it is empty, otherwise makes it nobody's.
pub(crate) async fn release(
    store: &dyn Store,
    owner: &Owner,
    cidr: IpNet,
    condition: ReleaseIf,
    now: Timestamp,
) -> Result<ReleaseOutcome, StoreError> {
    let key = Key::affinity(owner.name(), cidr);
    // Whether we have marked the affinity, so that somebody must finish what we began.
    let mut marked = false;
    for _ in 0..ATTEMPTS {
        let affinity = match read_live::<BlockAffinitySpec>(store, &key).await? {
            Some(affinity) => affinity,
            None if !is_owned(store, owner, cidr).await? => return Ok(ReleaseOutcome::NotClaimed),
            // A block that was created after its claim had been given up (its write was delayed): claim it to give it back.
            None => match create(store, new_affinity(owner, cidr, now)).await {
                Err(StoreError::Exists(_)) => continue,
                other => other?,
            },
        };
        let block = match read_live::<IpamBlockSpec>(store, &Key::block(cidr)).await? {
            Some(mut block) if block.object.spec.belongs_to(owner) => {
                block.object.spec.collect(now, condition.cooldown);
                block
            }
            _ => match store.delete(&key, Some(&affinity.revision)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => return Ok(ReleaseOutcome::NotClaimed),
                Err(StoreError::Conflict(_)) => continue,
                Err(other) => return Err(other),
            },
        };
        if let Some(kept) = condition.refuses(&block.object.spec) {
            if marked || !affinity.object.spec.state.is_confirmed() {
                resume(store, owner, cidr, now).await?;
            }
            return Ok(kept);
        }
        let marking = match mark(store, affinity, AffinityState::PendingDeletion).await {
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => continue,
            other => other?,
        };
        marked = true;
        let outcome = match give_up(store, block).await {
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => continue,
            other => other?,
        };
        return match store.delete(&key, Some(&marking.revision)).await {
            // A conflict: the owner has begun to claim the block again. That is a claim after this release.
            Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => Ok(outcome),
            Err(other) => Err(other),
        };
    }
    Err(StoreError::Conflict(key))
}

impl ReleaseIf {
    fn refuses(&self, block: &IpamBlockSpec) -> Option<ReleaseOutcome> {
        if self.sequence.is_some_and(|wanted| wanted != block.sequence_number) {
            return Some(ReleaseOutcome::Changed);
        }
        (self.empty && !block.is_empty()).then_some(ReleaseOutcome::NotEmpty)
    }
}

async fn give_up(store: &dyn Store, mut block: At<IpamBlockSpec>) -> Result<ReleaseOutcome, StoreError> {
    if block.object.spec.is_empty() {
        store.delete(&block.object.key(), Some(&block.revision)).await?;
        return Ok(ReleaseOutcome::Deleted);
    }
    block.object.spec.affinity = None;
    block.object.spec.affinity_claim_time = None;
    block.object.spec.bump();
    update(store, block).await?;
    Ok(ReleaseOutcome::Disowned)
}

async fn is_owned(store: &dyn Store, owner: &Owner, cidr: IpNet) -> Result<bool, StoreError> {
    let block = read_live::<IpamBlockSpec>(store, &Key::block(cidr)).await?;
    Ok(block.is_some_and(|block| block.object.spec.belongs_to(owner)))
}

/// The blocks that name an owner, with or without a claim, and its claims, in order.
pub(crate) async fn blocks_and_claims_of(store: &dyn Store, owner: &Owner) -> Result<Vec<IpNet>, StoreError> {
    let mut all = claims_of(store, owner).await?;
    let blocks = list_live::<IpamBlockSpec>(store)
        .await?
        .into_iter()
        .map(|block| block.object.spec);
    all.extend(blocks.filter(|block| block.belongs_to(owner)).map(|block| block.cidr));
    all.sort();
    all.dedup();
    Ok(all)
}

/// The blocks that an owner claims, in whatever state, in order.
pub(crate) async fn claims_of(store: &dyn Store, owner: &Owner) -> Result<Vec<IpNet>, StoreError> {
    let mut claimed: Vec<IpNet> = (list_live::<BlockAffinitySpec>(store).await?.into_iter())
        .filter(|affinity| Owner::of(&affinity.object.spec) == *owner)
        .map(|affinity| affinity.object.spec.cidr)
        .collect();
    claimed.sort();
    Ok(claimed)
}
