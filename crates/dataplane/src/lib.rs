//! Turns node state, local endpoints and BGP's wishes into kernel objects, and into the operations that make the kernel agree.
//!
//! Same inputs, same plan. The only writer of routes: which part owns which route is decided here and nowhere else.
//! Touches nothing that is not ours. Opens no socket, reads no clock; `agent` runs plans, `linux` speaks netlink.

mod config;
mod dataplane;
mod decide;
pub mod filter;
mod ledger;
mod observe;
mod plan;
mod resolve;
mod shaping;
mod status;
#[cfg(test)]
mod tests;
mod view;

pub use config::Config;
pub use dataplane::{Cleanup, Dataplane, LocalEndpoint};
pub use decide::{Encap, MtuDecision, TunnelDecision, TunnelOff, TunnelWait, encap};
pub use ledger::{Ledger, Step};
pub use resolve::Unresolved;
pub use status::{Counts, FailedItem, RouteClass, Status, UnresolvedRoute};
