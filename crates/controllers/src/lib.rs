//! What one process does for the whole cluster: frees what deleted nodes and lost pods leave behind, makes automatic host
//! endpoints, judges pools and tiers, and says on objects what is wrong with them.
//!
//! Decisions are pure: [`desk::Desk`] takes the datastore's changes and a time, and answers with actions. A thin shell
//! ([`run`]) watches, asks it, and does what it says, after one more look at the store and by compare-and-swap. Only the
//! process that leads writes ([`leadership`], [`election`], [`fence`]). Never frees what may be in use: doubt keeps.
//!
//! # Questions to ask of a change
//!
//! - What if the picture is old by the time it is acted upon? What is read again before something is taken away?
//! - What if this process stops leading right here?
//! - What does the next leader know of what was in doubt? (Nothing: its grace period starts anew.)
//! - Whose object is it? How does one see that it is ours?

pub mod action;
pub mod desk;
pub mod election;
pub mod execute;
pub mod fence;
pub mod host_endpoints;
pub mod http;
pub mod ipam_gc;
pub mod leadership;
pub mod lease;
pub mod metrics;
pub mod nodes;
pub mod pools;
pub mod refusals;
pub mod report;
pub mod run;
pub mod settings;
pub mod start;
pub mod tiers;
pub mod validity;
pub mod world;

pub use desk::{Abilities, Desk};
pub use start::{Agreement, ControllersError, Options, Place, start};
