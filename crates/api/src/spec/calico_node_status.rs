//! CalicoNodeStatus: what a node says of itself, on request (upstream `nodestatus.go`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{check, choice};
use crate::{Kind, Metadata};

/// Spec of a CalicoNodeStatus: which node is to say what, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusSpec {
    /// The node.
    pub node: String,
    /// What it is to say.
    pub classes: Vec<NodeStatusClass>,
    /// Seconds from one saying to the next, at most a day; 0: once; default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_period_seconds: Option<u32>,
}

/// Status of a CalicoNodeStatus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusStatus {
    /// When the node last said this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<Timestamp>,
    /// Class `Agent`. Set apart because it is large, and resources are moved a lot.
    pub agent: Box<NodeAgentStatus>,
    /// Class `BGP`.
    pub bgp: NodeBgpStatus,
    /// Class `Routes`.
    pub routes: NodeRouteStatus,
}

/// The routing daemons, one for each family. We have one for both, and say it of each that the node has an address of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAgentStatus {
    /// IPv4.
    #[serde(rename = "birdV4", skip_serializing_if = "BgpDaemonStatus::is_nothing")]
    pub bird_v4: BgpDaemonStatus,
    /// IPv6.
    #[serde(rename = "birdV6", skip_serializing_if = "BgpDaemonStatus::is_nothing")]
    pub bird_v6: BgpDaemonStatus,
}

/// A routing daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpDaemonStatus {
    /// `Ready` or `NotReady`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Its version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Its BGP identifier.
    #[serde(rename = "routerID", skip_serializing_if = "String::is_empty")]
    pub router_id: String,
    /// When it started.
    #[serde(rename = "lastBootTime", skip_serializing_if = "String::is_empty")]
    pub last_boot_time: String,
    /// When it was last configured.
    #[serde(rename = "lastReconfigurationTime", skip_serializing_if = "String::is_empty")]
    pub last_reconfiguration_time: String,
}

/// Sessions, by family of the peer's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeBgpStatus {
    /// IPv4 sessions that are up.
    #[serde(rename = "numberEstablishedV4")]
    pub established_v4: u32,
    /// IPv4 sessions that are not.
    #[serde(rename = "numberNotEstablishedV4")]
    pub not_established_v4: u32,
    /// IPv6 sessions that are up.
    #[serde(rename = "numberEstablishedV6")]
    pub established_v6: u32,
    /// IPv6 sessions that are not.
    #[serde(rename = "numberNotEstablishedV6")]
    pub not_established_v6: u32,
    /// IPv4 sessions.
    #[serde(rename = "peersV4", skip_serializing_if = "Vec::is_empty")]
    pub peers_v4: Vec<NodePeerStatus>,
    /// IPv6 sessions.
    #[serde(rename = "peersV6", skip_serializing_if = "Vec::is_empty")]
    pub peers_v6: Vec<NodePeerStatus>,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePeerStatus {
    /// The peer's address.
    #[serde(rename = "peerIP", skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
    /// `NodeMesh`, `NodePeer` or `GlobalPeer`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// RFC 4271's state.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Since when.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
}

/// Routes, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRouteStatus {
    /// IPv4.
    #[serde(rename = "routesV4", skip_serializing_if = "Vec::is_empty")]
    pub routes_v4: Vec<NodeRoute>,
    /// IPv6.
    #[serde(rename = "routesV6", skip_serializing_if = "Vec::is_empty")]
    pub routes_v6: Vec<NodeRoute>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRoute {
    /// `FIB`: the kernel has it; `RIB`: only the routing daemon.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Where it leads.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// Next hop; `N/A` if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Device.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Who said so.
    pub learned_from: NodeRouteSource,
}

/// Where a route comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRouteSource {
    /// `Kernel`, `Static`, `Direct`, `NodeMesh` or `BGPPeer`.
    #[serde(rename = "sourceType", skip_serializing_if = "String::is_empty")]
    pub source_type: String,
    /// The peer, for the last two.
    #[serde(rename = "peerIP", skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
}

choice! {
    /// What a node is to say of itself.
    pub enum NodeStatusClass {
        /// Its routing daemons.
        Agent = "Agent",
        /// Its sessions.
        Bgp = "BGP",
        /// Its routes.
        Routes = "Routes",
    }
}

impl CalicoNodeStatusSpec {
    /// Seconds from one saying to the next; 0: once.
    pub fn period(&self) -> u32 {
        self.update_period_seconds.unwrap_or(10)
    }
}

impl BgpDaemonStatus {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl crate::Judged for CalicoNodeStatusStatus {}

impl Spec for CalicoNodeStatusSpec {
    const KIND: Kind = Kind::CalicoNodeStatus;
    type Status = CalicoNodeStatusStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        match self.node.as_str() {
            "" => problems.missing("node", "is required: the node that is to say how it is"),
            node => check::name("node", node, problems),
        }
        if self.classes.is_empty() {
            problems.missing("classes", "is required: what the node is to say, of Agent, BGP, Routes");
        }
        let twice = |(at, class): &(usize, &NodeStatusClass)| self.classes[..*at].contains(class);
        if let Some((_, class)) = self.classes.iter().enumerate().find(twice) {
            problems.report("classes", class, "must be there once");
        }
        check::range("updatePeriodSeconds", u64::from(self.period()), 0, 86400, problems);
    }
}
