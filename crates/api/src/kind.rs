//! The kinds of resources, with the names users and datastores know them by.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of `projectcalico.org/v3` resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A range of pod addresses.
    IPPool,
    /// Cluster-wide (`default`) or per-node (`node.<name>`) BGP settings.
    BGPConfiguration,
    /// A BGP peering.
    BGPPeer,
    /// Agent settings.
    FelixConfiguration,
    /// A node: addresses, AS number, labels.
    Node,
    /// One interface of one workload.
    WorkloadEndpoint,
    /// Labels and rules that endpoints inherit.
    Profile,
    /// Facts about the cluster (`default`).
    ClusterInformation,
    /// A block of addresses: one compare-and-swap object.
    IPAMBlock,
    /// A host's claim on a block.
    BlockAffinity,
    /// Groups allocations so that they are released together.
    IPAMHandle,
    /// IPAM settings (`default`).
    IPAMConfiguration,
}

impl Kind {
    /// Every kind, in a fixed order.
    pub const ALL: [Kind; 12] = [
        Kind::IPPool,
        Kind::BGPConfiguration,
        Kind::BGPPeer,
        Kind::FelixConfiguration,
        Kind::Node,
        Kind::WorkloadEndpoint,
        Kind::Profile,
        Kind::ClusterInformation,
        Kind::IPAMBlock,
        Kind::BlockAffinity,
        Kind::IPAMHandle,
        Kind::IPAMConfiguration,
    ];

    /// The name in a document's `kind` field.
    pub fn name(self) -> &'static str {
        match self {
            Kind::IPPool => "IPPool",
            Kind::BGPConfiguration => "BGPConfiguration",
            Kind::BGPPeer => "BGPPeer",
            Kind::FelixConfiguration => "FelixConfiguration",
            Kind::Node => "Node",
            Kind::WorkloadEndpoint => "WorkloadEndpoint",
            Kind::Profile => "Profile",
            Kind::ClusterInformation => "ClusterInformation",
            Kind::IPAMBlock => "IPAMBlock",
            Kind::BlockAffinity => "BlockAffinity",
            Kind::IPAMHandle => "IPAMHandle",
            Kind::IPAMConfiguration => "IPAMConfiguration",
        }
    }

    /// The lower-case plural in datastore keys and CRD names.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::IPPool => "ippools",
            Kind::BGPConfiguration => "bgpconfigurations",
            Kind::BGPPeer => "bgppeers",
            Kind::FelixConfiguration => "felixconfigurations",
            Kind::Node => "nodes",
            Kind::WorkloadEndpoint => "workloadendpoints",
            Kind::Profile => "profiles",
            Kind::ClusterInformation => "clusterinformations",
            Kind::IPAMBlock => "ipamblocks",
            Kind::BlockAffinity => "blockaffinities",
            Kind::IPAMHandle => "ipamhandles",
            Kind::IPAMConfiguration => "ipamconfigurations",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::WorkloadEndpoint)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
