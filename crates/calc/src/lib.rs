//! Resources to what this node should look like, and to its BGP configuration. Incremental, with a slow oracle beside it.
//!
//! Output is a function of the current resources, never of their history. Opens no socket, reads no clock.

pub mod state;

pub use state::{NodeChange, NodeState, PeerNode, PoolState, Settings, ThisNode};
