//! What one can say to Linux, as data: links, addresses, routes, policy rules, neighbours, sysctls, shapers, the IPIP tunnel.
//!
//! [`Kernel`] is the port; crate `linux` implements it on a live network namespace, [`FakeKernel`] in memory, and both pass
//! [`contract`]. Sends nothing, reads no clock.

pub mod contract;
pub mod fake;
pub mod nft;
pub mod object;
pub mod port;
pub mod shaper;

pub use fake::FakeKernel;
pub use object::*;
pub use port::*;
pub use shaper::*;
