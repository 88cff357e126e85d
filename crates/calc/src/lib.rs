//! Resources to what this node should look like, and to its BGP configuration. Incremental, with a slow oracle beside it.
//!
//! Output is a function of the current resources, never of their history: [`Graph`] always agrees with [`compute`].
//! A resource that is wrong is left out alone and becomes a [`Problem`]; the rest goes on.
//! Opens no socket, reads no clock.

mod bgp_config;
mod facts;
mod filters;
mod graph;
mod nodes;
mod peering;
mod pools;
mod problem;
mod selector;
mod services;
mod settings;
pub mod state;
#[cfg(test)]
mod tests;
mod unheeded;

pub use bgp_config::RouterId;
pub use graph::{Graph, GraphConfig, compute, compute_with};
pub use problem::Problem;
pub use state::{NodeChange, NodeState, PeerNode, PoolState, Settings, ThisNode};
