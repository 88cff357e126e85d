//! BGPPeer: a peering of some nodes with a router or with other nodes.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{BgpPassword, ConditionsStatus, is_false};
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{AsNumber, Duration, check, choice, net};
use crate::{Kind, Metadata};

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
    /// The other side's AS; required with `localWorkloadSelector`, forbidden with `peerSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// Our AS towards this peer, if not the node's.
    #[serde(rename = "localASNumber", skip_serializing_if = "Option::is_none")]
    pub local_as_number: Option<AsNumber>,
    /// The other side: nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_selector: String,
    /// The other side: workloads of the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub local_workload_selector: String,
    /// Keep the next hop; deprecated by `nextHopMode`, exclusive with it.
    #[serde(skip_serializing_if = "is_false")]
    pub keep_original_next_hop: bool,
    /// Which next hop is announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_mode: Option<NextHopMode>,
    /// TCP-MD5 password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<BgpPassword>,
    /// Whether connections come from the node's address (default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<SourceAddress>,
    /// Graceful restart time; default 120 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restart_time: Option<Duration>,
    /// Time between keepalives; default a third of the hold time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<Duration>,
    /// How often our own AS may stand in received paths.
    #[serde(rename = "numAllowedLocalASNumbers", skip_serializing_if = "Option::is_none")]
    pub num_allowed_local_as_numbers: Option<u32>,
    /// Hops to the peer; packets from further away are dropped (RFC 5082).
    #[serde(rename = "ttlSecurity", skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<u8>,
    /// Gateway of a static route to the peer; needs `peerIP` of its family.
    #[serde(skip_serializing_if = "Option::is_none", with = "net::optional")]
    pub reachable_by: Option<IpAddr>,
    /// BGPFilters, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// Whether selected nodes get the peering back by themselves (default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_peering: Option<ReversePeering>,
}

choice! {
    /// Which next hop is announced to a peer.
    pub enum NextHopMode {
        /// As BGP has it.
        Auto = "Auto",
        /// Ourselves.
        SelfAddress = "Self",
        /// The one we learnt.
        Keep = "Keep",
    }
}

choice! {
    /// Where connections to a peer come from.
    pub enum SourceAddress {
        /// The node's address.
        UseNodeIp = "UseNodeIP",
        /// Whatever the kernel chooses.
        None = "None",
    }
}

choice! {
    /// Whether selected nodes get a peering back by themselves.
    pub enum ReversePeering {
        /// They do.
        Auto = "Auto",
        /// Somebody writes it.
        Manual = "Manual",
    }
}

impl BgpPeerSpec {
    /// The address and, if given, the port of `peerIP`; `None` if it is empty or wrong.
    pub fn peer_address(&self) -> Option<(IpAddr, Option<u16>)> {
        let with_port = || self.peer_ip.parse::<SocketAddr>().ok().filter(|peer| peer.port() != 0);
        match self.peer_ip.parse() {
            Ok(address) => Some((address, None)),
            Err(_) => with_port().map(|peer| (peer.ip(), Some(peer.port()))),
        }
    }

    fn check_sides(&self, problems: &mut Problems) {
        if !self.node.is_empty() && !self.node_selector.is_empty() {
            problems.report("node", &self.node, "must be absent with nodeSelector");
        }
        let as_number = self.as_number.filter(|number| number.0 != 0);
        if !self.peer_selector.is_empty() {
            if !self.peer_ip.is_empty() {
                problems.report("peerIP", &self.peer_ip, "must be absent with peerSelector");
            }
            if let Some(number) = as_number {
                problems.report(
                    "asNumber",
                    number,
                    "must be absent with peerSelector: the nodes' is used",
                );
            }
        }
        if !self.local_workload_selector.is_empty() {
            if !self.peer_ip.is_empty() {
                problems.report("peerIP", &self.peer_ip, "must be absent with localWorkloadSelector");
            }
            if !self.peer_selector.is_empty() {
                problems.report(
                    "peerSelector",
                    &self.peer_selector,
                    "must be absent with localWorkloadSelector",
                );
            }
            if as_number.is_none() {
                problems.missing("asNumber", "is required with localWorkloadSelector");
            }
        }
    }
}

impl Spec for BgpPeerSpec {
    const KIND: Kind = Kind::BGPPeer;
    type Status = ConditionsStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        check::name("node", &self.node, problems);
        check::selector("nodeSelector", &self.node_selector, problems);
        check::selector("peerSelector", &self.peer_selector, problems);
        check::selector("localWorkloadSelector", &self.local_workload_selector, problems);
        self.check_sides(problems);
        let peer = self.peer_address();
        if !self.peer_ip.is_empty() && peer.is_none() {
            problems.report(
                "peerIP",
                &self.peer_ip,
                "must be an address, `<IPv4>:<port>` or `[<IPv6>]:<port>`",
            );
        }
        if let Some(gateway) = self.reachable_by {
            match peer {
                Some((peer, _)) if peer.is_ipv4() != gateway.is_ipv4() => {
                    problems.report("reachableBy", gateway, "must be of the same family as peerIP");
                }
                None if self.peer_ip.is_empty() => {
                    problems.report("reachableBy", gateway, "must be absent without peerIP")
                }
                Some(_) | None => {}
            }
        }
        if self.keep_original_next_hop && self.next_hop_mode.is_some() {
            problems.report(
                "keepOriginalNextHop",
                true,
                "must be absent with nextHopMode, which replaces it",
            );
        }
        problems.each("filters", &self.filters, |problems, filter| {
            check::name("", filter, problems)
        });
    }
}
