//! What can go wrong, sorted by what the caller does next.

use std::fmt;
use std::net::IpAddr;

use datastore::StoreError;
use ipnet::IpNet;

/// Why IPAM did not do it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IpamError {
    /// The request itself is wrong: tell who made it.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// No pool may serve the request: somebody must change a pool or the request. One reason for each pool.
    #[error("no IP pool can be used: {}", list(why))]
    NoPools {
        /// Every pool that was looked at, and what speaks against it.
        why: Vec<PoolProblem>,
    },
    /// All pools that may serve the request are full: wait for releases, or add a pool.
    #[error("no address is free in {}: {detail}", pools.join(", "))]
    Exhausted {
        /// Names of the pools that were searched.
        pools: Vec<String>,
        /// How far the search went.
        detail: String,
    },
    /// The host holds as many blocks as it may and they are full: wait for releases, or raise `maxBlocksPerHost`.
    #[error("the host already has {limit} blocks, the most that it may have, and all are full")]
    BlockLimit {
        /// The limit in force.
        limit: u32,
    },
    /// Somebody has the address: choose another one.
    #[error("{ip} is already assigned{}", by.as_ref().map(|by| format!(" to {by}")).unwrap_or_else(|| " (cooling down)".into()))]
    AlreadyAssigned {
        /// The address.
        ip: IpAddr,
        /// The handle that holds it; `None` while the address cools down.
        by: Option<String>,
    },
    /// The address lies in no enabled pool that allows the use: choose another one.
    #[error("{ip} is not in an enabled IP pool that allows this use")]
    NotInPool {
        /// The address.
        ip: IpAddr,
    },
    /// Another owner has the block and addresses may not be borrowed.
    #[error("block {block} belongs to {}", owner.as_deref().unwrap_or("nobody, but is in use"))]
    BlockTaken {
        /// The block.
        block: IpNet,
        /// `host:<name>` or `virtual:<name>`; `None` for a block that was given up and still holds addresses.
        owner: Option<String>,
    },
    /// The address changed hands since the caller looked: look again.
    #[error("{ip} changed since it was looked at")]
    SequenceMismatch {
        /// The address.
        ip: IpAddr,
    },
    /// The datastore did not do it. After `Unavailable` the outcome is unknown; releasing the handle is always safe.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What speaks against a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolProblem {
    /// There is no pool of this family at all.
    None,
    /// No pool has the requested name or CIDR.
    NotFound(String),
    /// The pool is disabled or being deleted.
    Disabled(String),
    /// A pool that another one stands in the way of has no new addresses.
    Overlaps(String),
    /// The requested pool is of the other family.
    OtherFamily(String),
    /// The pool is used only where it is named.
    Manual(String),
    /// Its node selector does not match this node.
    NodeSelector(String),
    /// Its namespace selector does not match the namespace, or there is none.
    NamespaceSelector(String),
    /// A selector does not parse: pool, error.
    BadSelector(String, String),
    /// The pool is not for this use.
    Use(String),
}

impl fmt::Display for PoolProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolProblem::None => write!(f, "there is none of this address family"),
            PoolProblem::NotFound(pool) => write!(f, "{pool} does not exist"),
            PoolProblem::Disabled(pool) => write!(f, "{pool} is disabled"),
            PoolProblem::Overlaps(pool) => write!(f, "{pool} overlaps another pool, which is in force"),
            PoolProblem::OtherFamily(pool) => write!(f, "{pool} is of the other address family"),
            PoolProblem::Manual(pool) => write!(f, "{pool} is used only where it is named"),
            PoolProblem::NodeSelector(pool) => write!(f, "the nodeSelector of {pool} does not match this node"),
            PoolProblem::NamespaceSelector(pool) => {
                write!(f, "the namespaceSelector of {pool} does not match the namespace")
            }
            PoolProblem::BadSelector(pool, why) => write!(f, "a selector of {pool} is invalid: {why}"),
            PoolProblem::Use(pool) => write!(f, "{pool} does not allow this use"),
        }
    }
}

fn list(why: &[PoolProblem]) -> String {
    why.iter().map(PoolProblem::to_string).collect::<Vec<_>>().join("; ")
}
