//! The command line: `get create apply replace delete validate`, `explain`, `trace`, `policy test`, `policy diff`, `ipam show`,
//! `node status`, `node policy`, `version`.
//!
//! The same commands under the names `margay` and `calicoctl`. Words, columns and messages are upstream's where upstream
//! has them. Everything is checked before anything is written.
//!
//! Exit codes: 0 done; 1 refused or failed (the reason is on standard error); 2 the command line is wrong; 3 `explain`, `trace`:
//! the packet is denied; 4 `trace`: it does not arrive for another reason; 5 `trace`: not all of its way could be seen.

pub mod command;
pub mod delete;
pub mod error;
pub mod get;
pub mod input;
pub mod ipam_show;
pub mod node_checksystem;
pub mod node_flows;
pub mod node_policy;
pub mod node_status;
pub mod output;
pub mod packet;
pub mod problems;
pub mod tier;
pub mod trace;
pub mod version;
pub mod why;
pub mod write;

pub use command::{Command, Connect, Global, run};
pub use error::CtlError;
