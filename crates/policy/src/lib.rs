//! What network policy says for the endpoints of one node: resources in, [`PolicyState`] out.
//!
//! Only what local endpoints need is in it: policies that select one of them, profiles they name, sets their rules use.
//! Whatever is missing or wrong fails closed, for the endpoints concerned alone, and becomes a problem that status shows.
//! Output is a function of the current resources, never of their history. Opens no socket, reads no clock, knows no kernel.

pub mod evaluate;
pub mod state;

pub use state::*;
