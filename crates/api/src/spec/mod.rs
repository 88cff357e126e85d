//! The specs of the kinds, one file each. Field names are upstream's; see their documentation for meaning.

mod bgp_configuration;
mod bgp_filter;
mod bgp_peer;
mod calico_node_status;
mod cluster_information;
mod condition;
mod felix_check;
mod felix_configuration;
mod felix_values;
mod host_endpoint;
mod ip_pool;
mod ip_reservation;
mod ipam;
mod kube_controllers_configuration;
mod kubernetes_endpoint_slice;
mod network_set;
mod node;
mod policy;
mod profile;
mod qos;
mod rule;
mod staged_policy;
mod tier;
mod workload_endpoint;

pub use bgp_configuration::*;
pub use bgp_filter::*;
pub use bgp_peer::*;
pub use calico_node_status::*;
pub use cluster_information::*;
pub use condition::*;
pub use felix_configuration::*;
pub use felix_values::*;
pub use host_endpoint::*;
pub use ip_pool::*;
pub use ip_reservation::*;
pub use ipam::*;
pub use kube_controllers_configuration::*;
pub use kubernetes_endpoint_slice::*;
pub use network_set::*;
pub use node::*;
pub use policy::*;
pub use profile::*;
pub use qos::*;
pub use rule::*;
pub use staged_policy::*;
pub use tier::*;
pub use workload_endpoint::*;

/// Serialises nothing for a flag that is off.
pub(crate) fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Serialises nothing for a number that is not set.
pub(crate) fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

#[cfg(test)]
mod tests;
