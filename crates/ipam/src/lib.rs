//! Hands out addresses: blocks, affinities, handles, reservations, over any [`datastore::Store`].
//!
//! Everything is stored in upstream's formats and with upstream's two-phase claim, so nodes of both kinds may share a
//! datastore. Every write is a compare-and-swap on one object; a crash or a lost answer between two writes leaves
//! something that the next operation on the same host, block or handle repairs. Opens no socket, reads no clock (`now`
//! is an argument), draws no random number.
//!
//! # What holds at every moment
//!
//! - An allocated address is counted by its handle. Writers go *block read, handle written, block written* to allocate, and
//!   *handle read, block written, handle written* to release; whoever loses a race finds a conflict on one of the two.
//! - A confirmed affinity has its block, and the block names the same owner. An owner confirms only at the revision of its
//!   own pending write, and only after it has written the block since; who releases marks the affinity before it touches
//!   the block.
//!
//! # Claims
//!
//! | found | meaning | what the next operation does |
//! |---|---|---|
//! | affinity, no block | claim or release was interrupted | pending again, create the block, confirm |
//! | affinity not confirmed, our block | claim or release was interrupted | pending again, write the block, confirm |
//! | affinity, block of another or of nobody | the claim was lost, or the release was interrupted | delete the affinity |
//!
//! # Questions to ask of a change
//!
//! - Which write comes first, and what does a crash right after it leave behind? Who repairs that?
//! - A store that answers `Unavailable` may have done the write. Is that still safe?
//! - Can the cache be the reason for a wrong answer, or only for a conflict?
//! - Does a steady-state allocation still cost one handle and one block write, and no read?

mod address;
mod affinity;
mod assign;
mod block;
mod cache;
mod error;
mod fetch;
mod gc;
mod handle;
mod pools;
mod preview;
mod release;
mod round;
mod search;
mod tunnel;
mod utilization;

pub use address::Family;
pub use affinity::{Owner, ReleaseOutcome};
pub use assign::{AssignIp, Assigned, AutoAssign};
pub use block::{Block, Ordinal, Reservations, WINDOWS_RESERVED_HANDLE};
pub use cache::Ipam;
pub use error::{IpamError, PoolProblem};
pub use gc::{ADDRESS_ALONE, Collector, Decision, Doomed, Evidence, Pod, Reason, Snapshot, Suspect, still_leaked};
pub use pools::{PoolChoice, choose};
pub use preview::Preview;
pub use release::{ReleaseAddress, Released};
pub use tunnel::{Tunnel, TunnelKind};
pub use utilization::{BlockUse, PoolUse, utilization};
