//! The specs of the kinds, one file each. Field names are upstream's; see their documentation for meaning.

mod bgp_configuration;
mod bgp_peer;
mod cluster_information;
mod felix_configuration;
mod ip_pool;
mod ipam;
mod node;
mod profile;
mod workload_endpoint;

pub use bgp_configuration::*;
pub use bgp_peer::*;
pub use cluster_information::*;
pub use felix_configuration::*;
pub use ip_pool::*;
pub use ipam::*;
pub use node::*;
pub use profile::*;
pub use workload_endpoint::*;

/// Serialises nothing for a flag that is off.
pub(crate) fn is_false(flag: &bool) -> bool {
    !*flag
}
