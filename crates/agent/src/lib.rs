//! The node's one process: start-up, the dataplane loop, the BGP loop, the CNI server, health and metrics.
//!
//! ```text
//!   store ──watch──> sync ─┐                       ┌─> speaker (BGP: sockets, timers)
//!   kernel ──events────────┼──> run: graph, dataplane ──plan──> kernel
//!   CNI plugin ──socket────┘            │
//!   (cni_server: journal, IPAM)         └─> status ──> HTTP: /status /policy /readiness /liveness /metrics /flows
//!   kernel ──asked when somebody asks──> path, watch ──> HTTP: /path /watch
//! ```
//!
//! `run` owns the calculation graph, the dataplane and the kernel; everything else sends it events or reads the status
//! that it publishes. Decisions are made below, in the pure crates: nothing here compares routes or judges packets
//! (`flows` and `watch` read their heads).

pub mod announce;
pub mod autodetect;
pub mod boot;
pub mod claims;
pub mod cluster_routes;
pub mod cni_server;
pub mod config;
pub mod cut;
pub mod error;
pub mod flows;
pub mod http;
pub mod last_known;
pub mod membership;
pub mod metrics;
mod nft;
pub mod node_status;
mod packet_filter;
pub mod path;
pub mod policy_only;
pub mod policy_view;
pub mod purge;
mod refusals;
pub mod register;
pub mod run;
pub mod speaker;
pub mod start;
pub mod status;
#[cfg(test)]
mod warnings;
pub mod watch;

pub use announce::Announce;
pub use api::LogSeverity;
pub use config::Options;
pub use error::AgentError;
pub use start::start;
