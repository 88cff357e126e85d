//! The kinds of resources, with the names users and datastores know them by.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::nearest;

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
    /// Rules for the endpoints of one namespace.
    NetworkPolicy,
    /// Rules for endpoints anywhere.
    GlobalNetworkPolicy,
    /// A rehearsal of a NetworkPolicy.
    StagedNetworkPolicy,
    /// A rehearsal of a GlobalNetworkPolicy.
    StagedGlobalNetworkPolicy,
    /// A rehearsal of a Kubernetes NetworkPolicy.
    StagedKubernetesNetworkPolicy,
    /// An ordered group of policies.
    Tier,
    /// Named address ranges of one namespace.
    NetworkSet,
    /// Named address ranges.
    GlobalNetworkSet,
    /// An interface of a host, or all of them.
    HostEndpoint,
    /// Internal: addresses and ports behind a Kubernetes Service, for rules that match services.
    KubernetesEndpointSlice,
    /// What the cluster-wide controllers do (`default`).
    KubeControllersConfiguration,
    /// Addresses that are never handed out.
    IPReservation,
    /// What a node says of itself, on request.
    CalicoNodeStatus,
    /// What peers are told and believed.
    BGPFilter,
}

impl Kind {
    /// Every kind, in a fixed order.
    pub const ALL: [Kind; 26] = [
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
        Kind::NetworkPolicy,
        Kind::GlobalNetworkPolicy,
        Kind::StagedNetworkPolicy,
        Kind::StagedGlobalNetworkPolicy,
        Kind::StagedKubernetesNetworkPolicy,
        Kind::Tier,
        Kind::NetworkSet,
        Kind::GlobalNetworkSet,
        Kind::HostEndpoint,
        Kind::KubernetesEndpointSlice,
        Kind::KubeControllersConfiguration,
        Kind::IPReservation,
        Kind::CalicoNodeStatus,
        Kind::BGPFilter,
    ];

    /// Kinds that people write: controllers say of each object whether it can be followed as it is written.
    pub const WRITTEN: [Kind; 18] = [
        Kind::IPPool,
        Kind::BGPConfiguration,
        Kind::BGPPeer,
        Kind::BGPFilter,
        Kind::FelixConfiguration,
        Kind::IPAMConfiguration,
        Kind::IPReservation,
        Kind::NetworkPolicy,
        Kind::GlobalNetworkPolicy,
        Kind::StagedNetworkPolicy,
        Kind::StagedGlobalNetworkPolicy,
        Kind::StagedKubernetesNetworkPolicy,
        Kind::Tier,
        Kind::NetworkSet,
        Kind::GlobalNetworkSet,
        Kind::HostEndpoint,
        Kind::KubeControllersConfiguration,
        Kind::CalicoNodeStatus,
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
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Kind::StagedNetworkPolicy => "StagedNetworkPolicy",
            Kind::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Kind::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Kind::Tier => "Tier",
            Kind::NetworkSet => "NetworkSet",
            Kind::GlobalNetworkSet => "GlobalNetworkSet",
            Kind::HostEndpoint => "HostEndpoint",
            Kind::KubernetesEndpointSlice => "KubernetesEndpointSlice",
            Kind::KubeControllersConfiguration => "KubeControllersConfiguration",
            Kind::IPReservation => "IPReservation",
            Kind::CalicoNodeStatus => "CalicoNodeStatus",
            Kind::BGPFilter => "BGPFilter",
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
            Kind::NetworkPolicy => "networkpolicies",
            Kind::GlobalNetworkPolicy => "globalnetworkpolicies",
            Kind::StagedNetworkPolicy => "stagednetworkpolicies",
            Kind::StagedGlobalNetworkPolicy => "stagedglobalnetworkpolicies",
            Kind::StagedKubernetesNetworkPolicy => "stagedkubernetesnetworkpolicies",
            Kind::Tier => "tiers",
            Kind::NetworkSet => "networksets",
            Kind::GlobalNetworkSet => "globalnetworksets",
            Kind::HostEndpoint => "hostendpoints",
            Kind::KubernetesEndpointSlice => "kubernetesendpointslices",
            Kind::KubeControllersConfiguration => "kubecontrollersconfigurations",
            Kind::IPReservation => "ipreservations",
            Kind::CalicoNodeStatus => "caliconodestatuses",
            Kind::BGPFilter => "bgpfilters",
        }
    }

    /// Every other name that people may call it by, in lower case: plurals and upstream's short forms.
    pub fn aliases(self) -> &'static [&'static str] {
        match self {
            Kind::IPPool => &["ippool", "ippools", "ipp", "ipps", "pool", "pools"],
            Kind::BGPConfiguration => &["bgpconfiguration", "bgpconfigurations", "bgpconfig", "bgpconfigs"],
            Kind::BGPPeer => &["bgppeer", "bgppeers", "bgpp", "bgpps", "bp", "bps"],
            Kind::FelixConfiguration => &[
                "felixconfiguration",
                "felixconfigurations",
                "felixconfig",
                "felixconfigs",
                "fconfig",
                "fconfigs",
            ],
            Kind::Node => &["node", "nodes", "no", "nos"],
            Kind::WorkloadEndpoint => &["workloadendpoint", "workloadendpoints", "wep", "weps"],
            Kind::Profile => &["profile", "profiles", "pro", "pros"],
            Kind::ClusterInformation => &[
                "clusterinformation",
                "clusterinformations",
                "clusterinfo",
                "clusterinfos",
            ],
            Kind::IPAMBlock => &["ipamblock", "ipamblocks"],
            Kind::BlockAffinity => &["blockaffinity", "blockaffinities"],
            Kind::IPAMHandle => &["ipamhandle", "ipamhandles"],
            Kind::IPAMConfiguration => &["ipamconfiguration", "ipamconfigurations", "ipamconfig", "ipamconfigs"],
            Kind::NetworkPolicy => &[
                "networkpolicy",
                "networkpolicies",
                "policy",
                "np",
                "policies",
                "pol",
                "pols",
            ],
            Kind::GlobalNetworkPolicy => &["globalnetworkpolicy", "globalnetworkpolicies", "gnp", "gnps"],
            Kind::StagedNetworkPolicy => &[
                "stagednetworkpolicy",
                "stagednetworkpolicies",
                "stagedpolicy",
                "snp",
                "stagedpolicies",
                "spol",
                "spols",
            ],
            Kind::StagedGlobalNetworkPolicy => &[
                "stagedglobalnetworkpolicy",
                "stagedglobalnetworkpolicies",
                "sgnp",
                "sgnps",
            ],
            Kind::StagedKubernetesNetworkPolicy => &[
                "stagedkubernetesnetworkpolicy",
                "stagedkubernetesnetworkpolicies",
                "stagedkubernetespolicy",
                "sknp",
                "stagedkubernetespolicies",
                "skpol",
                "skpols",
            ],
            Kind::Tier => &["tier", "tiers"],
            Kind::NetworkSet => &["networkset", "networksets", "netsets"],
            Kind::GlobalNetworkSet => &["globalnetworkset", "globalnetworksets", "gnetsets"],
            Kind::HostEndpoint => &["hostendpoint", "hostendpoints", "hep", "heps"],
            Kind::KubernetesEndpointSlice => &["kubernetesendpointslice", "kubernetesendpointslices"],
            Kind::KubeControllersConfiguration => &[
                "kubecontrollersconfiguration",
                "kubecontrollersconfigurations",
                "kubecontrollersconfig",
                "kubecontrollersconfigs",
                "kcc",
                "kccs",
            ],
            Kind::IPReservation => &["ipreservation", "ipreservations", "reservation", "reservations"],
            Kind::CalicoNodeStatus => &["caliconodestatus", "caliconodestatuses", "nodestatus", "nodestatuses"],
            Kind::BGPFilter => &["bgpfilter", "bgpfilters"],
        }
    }

    /// The kind that a user means by `name`, in any case: `ippool`, `ipPools`, `pool`, `wep`.
    pub fn parse_name(name: &str) -> Result<Kind, UnknownKind> {
        let lower = name.to_lowercase();
        let known = |kind: &Kind| kind.aliases().contains(&lower.as_str());
        Kind::ALL
            .into_iter()
            .find(known)
            .ok_or_else(|| UnknownKind { name: name.to_owned() })
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(
            self,
            Kind::WorkloadEndpoint
                | Kind::NetworkPolicy
                | Kind::StagedNetworkPolicy
                | Kind::StagedKubernetesNetworkPolicy
                | Kind::NetworkSet
                | Kind::KubernetesEndpointSlice
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind {
    /// The name.
    pub name: String,
}

impl std::error::Error for UnknownKind {}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no kind of resource.", self.name)?;
        let all = Kind::ALL.iter().flat_map(|kind| kind.aliases()).copied();
        if let Some(meant) = nearest(&self.name, all).and_then(|alias| Kind::parse_name(alias).ok()) {
            write!(f, " Did you mean {meant}?")?;
        }
        write!(f, " There are {}", Kind::ALL.map(Kind::name).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_kind_is_found_by_any_of_its_names() {
        for kind in Kind::ALL {
            for name in [kind.name(), kind.plural(), &kind.name().to_uppercase()]
                .into_iter()
                .chain(kind.aliases().iter().copied())
            {
                assert_eq!(Kind::parse_name(name), Ok(kind), "{name}");
            }
        }
        for (name, kind) in [
            ("workloadEndpoint", Kind::WorkloadEndpoint),
            ("Pool", Kind::IPPool),
            ("wep", Kind::WorkloadEndpoint),
        ] {
            assert_eq!(Kind::parse_name(name), Ok(kind));
        }
    }

    #[test]
    fn no_two_kinds_share_a_name() {
        let all: Vec<_> = Kind::ALL.iter().flat_map(|kind| kind.aliases()).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn an_unknown_kind_lists_the_known() {
        let shown = Kind::parse_name("ipool").unwrap_err().to_string();
        assert!(
            shown.starts_with(
                "`ipool` is no kind of resource. Did you mean IPPool? There are IPPool, BGPConfiguration, "
            ),
            "{shown}"
        );
        let shown = Kind::parse_name("deployment").unwrap_err().to_string();
        assert!(
            shown.starts_with("`deployment` is no kind of resource. There are IPPool, "),
            "{shown}"
        );
    }
}
