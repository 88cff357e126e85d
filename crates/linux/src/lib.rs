//! The ports of crate `kernel` on a live network namespace. The only crate with `unsafe` code.
//!
//! [`LiveKernel`] is the port of links and routes, [`nft::LiveNft`] that of nf_tables; [`conntrack`] finds and cuts flows,
//! [`nflog`] reads what rules log. Below them, and for the CNI server and the lab: a netlink [`request::Socket`], look-ups
//! of one route ([`lookup`]), what pods' [`shaper`]s did, network namespaces ([`netns`]), devices ([`link`]), sysctls, a pod's wiring ([`pod`]), packet
//! capture and TCP options.
//! Decides nothing about what should be in the kernel; runs no external program.

mod apply;
pub mod capture;
pub mod conntrack;
mod decode;
mod encode;
mod events;
mod foreign;
pub mod ipip;
pub mod link;
mod live;
pub mod lookup;
pub mod memory;
pub mod netns;
pub mod nflog;
mod nfnetlink;
pub mod nft;
mod notify;
pub mod pod;
pub mod request;
mod rtnl;
pub mod shaper;
mod sockopt;
mod stream;
pub mod sysctl;
pub mod tcp;

pub use live::LiveKernel;
