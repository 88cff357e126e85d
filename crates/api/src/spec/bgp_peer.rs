//! BGPPeer: a peering of some nodes with a router or with other nodes.

use serde::{Deserialize, Serialize};

use super::AsNumber;
use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of a BGPPeer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    /// The one node that peers; neither this nor `node_selector` means every node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The nodes that peer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    /// The other side: `ip`, `v4:port`, `[v6]:port`.
    #[serde(rename = "peerIP", skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
    /// The other side's AS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// The other side: nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_selector: String,
}

impl Spec for BgpPeerSpec {
    const KIND: Kind = Kind::BGPPeer;
    type Status = NoStatus;
}
