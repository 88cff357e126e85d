//! Network policy, NAT and host protection as one nf_tables table: what it should hold, and the transactions that make it so.
//!
//! One table, `inet calico`. A pod's two directions are two base chains of the same hook, so that `accept` ends one of them
//! and the other still decides: no mark says "allowed", and no chain of one endpoint leads to chains of another (the kernel
//! walks every path at each commit). One bit of the packet mark says that a policy passed a packet on to the next tier, a
//! second one that a host endpoint's early policy has allowed it.
//!
//! [`Filter`] is told what should be; [`Filter::transaction`] answers the smallest atomic change that makes the kernel's table
//! so. What is missing is closed. What the kernel refuses is closed too, alone, and becomes a [`Problem`]. Sends nothing, reads
//! no clock, touches no other table.

mod base;
mod comments;
mod dispatch;
mod drops;
mod early;
mod endpoint;
mod felix;
pub mod interpret;
mod items;
mod limits;
mod machine;
mod members;
mod names;
mod nat;
mod passes;
mod presence;
mod refused;
mod rule;
mod settings;
mod settle;
mod table;
#[cfg(test)]
mod tests;
mod totals;
mod wanted;

pub use comments::{endpoint_chains, policy_comment, profile_comment, short_name};
pub use drops::{DropCause, Drops, rewritten};
pub use limits::Limits;
pub use machine::{Filter, TABLE};
pub use passes::{Pass, Passes};
pub use refused::{Concerns, Problem};
pub use settings::{
    Cluster, DenyAction, Failsafe, FloatingIp, HostPort, LogLimit, Nat, NatExclusions, NatPool, ServiceLoop, Settings,
    ToHost, Tunnel,
};
pub use table::{Table, TableChain, TableSet, is_made_by_an_agent};
pub use totals::{Cause, Totals};
