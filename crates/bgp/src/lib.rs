//! A whole BGP speaker without socket or clock: codec, session FSM, RIBs, decision process, graceful restart.
//!
//! One door: [`Speaker::step`] takes the time and one input and answers with outputs; the shell moves bytes and wakes the
//! machine at [`Speaker::next_wakeup`]. Opens no socket, reads no clock, knows no resource kinds.
//!
//! ```text
//!  bytes ─► session (FSM, per peer) ─► rib (Adj-RIBs-In, decision, Loc-RIB) ─► Fib
//!           │   uses wire, message              │ changed best paths
//!  bytes ◄──┴──────── outbound ◄── export ◄─────┘
//! ```

pub mod attributes;
pub mod config;
pub mod decision;
mod export;
pub mod filter;
pub mod graceful;
pub mod message;
mod outbound;
pub mod rib;
mod session;
pub mod speaker;
pub mod status;
pub mod wire;

pub use config::{Bind, Config, Family, FamilySet, LocalRoute, NextHopMode, PeerConfig, PeerId};
pub use speaker::{ConnId, FibChange, FibRoute, Input, Output, Speaker};
pub use status::{PeerChange, PeerEvent, PeerStatus, SessionError, State};
