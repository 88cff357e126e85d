//! What network policy says for the endpoints of one node: resources in, [`PolicyState`] out.
//!
//! Only what local endpoints need is in it: policies that select one of them, profiles they name, sets their rules use.
//! Whatever is missing or wrong fails closed, for the endpoints concerned alone, and becomes a problem that status shows.
//! Output is a function of the current resources, never of their history. Opens no socket, reads no clock, knows no kernel.

mod assemble;
pub mod evaluate;
pub mod expect;
mod graph;
mod index;
mod member_facts;
mod members;
mod misses;
mod nets;
mod oracle;
mod policies;
mod policy_facts;
mod population;
mod print;
mod problem;
mod profiles;
pub mod rehearsal;
mod rules;
mod services;
mod set_def;
mod sets;
pub mod state;
mod table;
mod tiers;
mod usable;
mod words;

pub use graph::Graph;
pub use misses::{misses, protocol_name};
pub use oracle::{compute, compute_with_problems};
pub use policy_facts::problems_of;
pub use problem::{Effect, Problem};
pub use state::*;
pub use usable::is_usable_tier;
pub use words::rule_text;

#[cfg(test)]
mod tests;
