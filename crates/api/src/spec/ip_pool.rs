//! IPPool: a range of addresses, how packets to it travel, who may use it.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Condition, ConditionStatus, is_false};
use crate::problem::Problems;
use crate::resource::{Object, Spec};
use crate::selector::Selector;
use crate::value::{check, net};
use crate::{Kind, Metadata};

/// Spec of an IPPool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// The range; canonical (no host bits), immutable.
    #[serde(with = "net::one")]
    pub cidr: IpNet,
    /// VXLAN encapsulation; exclusive with `ipip_mode`.
    #[serde(default)]
    pub vxlan_mode: EncapMode,
    /// IP-in-IP encapsulation, IPv4 only.
    #[serde(default)]
    pub ipip_mode: EncapMode,
    /// Masquerade traffic that leaves the pools.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nat_outgoing: bool,
    /// No new allocations.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// Do not export the pool's blocks by BGP.
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "is_false")]
    pub disable_bgp_export: bool,
    /// Prefix length of blocks; default 26 or 122; 20 to 32 or 116 to 128; immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Nodes that may allocate from it; default `all()`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// Namespaces whose pods may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<String>,
    /// What it may be used for; empty means workloads and tunnels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<AllowedUse>,
    /// Whether it is used without being asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_mode: Option<AssignmentMode>,
}

/// When packets are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncapMode {
    /// Never.
    #[default]
    Never,
    /// To every other node.
    Always,
    /// Only to nodes in another subnet.
    CrossSubnet,
}

/// What a pool's addresses may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowedUse {
    /// Pods.
    Workload,
    /// Tunnel devices of nodes.
    Tunnel,
    /// Load balancer addresses; exclusive.
    LoadBalancer,
}

/// Whether a pool is used without being asked for by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentMode {
    /// For any request that its selectors allow.
    #[default]
    Automatic,
    /// Only where it is named.
    Manual,
}

impl fmt::Display for EncapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for AllowedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl IpPoolSpec {
    /// A pool with defaults for this range.
    pub fn new(cidr: IpNet) -> Self {
        Self {
            cidr,
            vxlan_mode: EncapMode::Never,
            ipip_mode: EncapMode::Never,
            nat_outgoing: false,
            disabled: false,
            disable_bgp_export: false,
            block_size: None,
            node_selector: None,
            namespace_selector: None,
            allowed_uses: Vec::new(),
            assignment_mode: None,
        }
    }

    /// The effective block prefix length.
    pub fn block_len(&self) -> u8 {
        self.block_size.unwrap_or(match self.cidr {
            IpNet::V4(_) => 26,
            IpNet::V6(_) => 122,
        })
    }

    /// Whether its addresses may be used for `wanted`.
    pub fn allows(&self, wanted: AllowedUse) -> bool {
        match self.allowed_uses.as_slice() {
            [] => wanted != AllowedUse::LoadBalancer,
            uses => uses.contains(&wanted),
        }
    }
}

/// Status of an IPPool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpPoolStatus {
    /// `Allocatable`, with the reasons in [`IpPoolStatus`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

super::condition::judged!(IpPoolStatus);

impl IpPoolStatus {
    /// Type of the condition that says whether addresses may be allocated.
    pub const ALLOCATABLE: &'static str = "Allocatable";
    /// Reason: nothing stands in the way.
    pub const OK: &'static str = "OK";
    /// Reason: another pool has some of the addresses.
    pub const CIDR_OVERLAP: &'static str = "CIDROverlap";
    /// Reason: the pool is being deleted.
    pub const TERMINATING: &'static str = "Terminating";
    /// Reason: the spec says `disabled`.
    pub const POOL_DISABLED: &'static str = "PoolDisabled";
}

/// Finalizer that holds the deletion of a pool until its blocks are gone.
pub const IP_POOL_FINALIZER: &str = "projectcalico.org/ippool-finalizer";

impl Object<IpPoolSpec> {
    /// Whether addresses may be allocated: it is neither disabled nor being deleted, nor was it found to overlap another pool.
    pub fn is_allocatable(&self) -> bool {
        !self.spec.disabled && self.metadata.deletion_timestamp.is_none() && !self.overlaps()
    }

    /// Whether a condition says that another pool, which is in force, has some of its addresses. (What other conditions say is
    /// seen in the pool itself, and they may be from before it was changed.)
    pub fn overlaps(&self) -> bool {
        let mut conditions = self.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| {
            condition.kind == IpPoolStatus::ALLOCATABLE
                && condition.status == ConditionStatus::False
                && condition.reason == IpPoolStatus::CIDR_OVERLAP
        })
    }
}

impl IpPoolSpec {
    fn check_range(&self, problems: &mut Problems) {
        check::masked("cidr", self.cidr, problems);
        let (least, most, link_local) = match self.cidr {
            IpNet::V4(_) => (20, 32, "169.254.0.0/16"),
            IpNet::V6(_) => (116, 128, "fe80::/10"),
        };
        let link_local_net: IpNet = link_local.parse().expect("a literal prefix parses");
        if overlap(self.cidr, link_local_net) {
            problems.report(
                "cidr",
                self.cidr,
                format!("must not overlap the link-local addresses {link_local}"),
            );
        }
        let size = self.block_len();
        if !(least..=most).contains(&size) {
            problems.report("blockSize", size, format!("must be from {least} to {most}"));
        } else if !self.disabled && self.cidr.prefix_len() > size {
            problems.report(
                "cidr",
                self.cidr,
                format!("must hold at least one block: /{size} or larger"),
            );
        }
    }

    fn check_modes(&self, problems: &mut Problems) {
        let ipip = self.ipip_mode != EncapMode::Never;
        let vxlan = self.vxlan_mode != EncapMode::Never;
        if ipip && vxlan {
            problems.report(
                "ipipMode",
                self.ipip_mode,
                "must be Never with vxlanMode: a pool has one encapsulation",
            );
        }
        if ipip && matches!(self.cidr, IpNet::V6(_)) {
            problems.report(
                "ipipMode",
                self.ipip_mode,
                "must be Never in an IPv6 pool: IPIP carries IPv4",
            );
        }
    }

    fn check_uses(&self, problems: &mut Problems) {
        check::at_most("allowedUses", self.allowed_uses.len(), 10, problems);
        let uses = |wanted| self.allowed_uses.contains(&wanted);
        for (index, one) in self.allowed_uses.iter().enumerate() {
            if self.allowed_uses[..index].contains(one) {
                problems.report(&format!("allowedUses[{index}]"), one, "must occur once");
            }
        }
        if uses(AllowedUse::Tunnel)
            && let Some(selector) = self.namespace_selector.as_ref().filter(|selector| !selector.is_empty())
        {
            problems.report(
                "namespaceSelector",
                selector,
                "must be absent with the use Tunnel: tunnels have no namespace",
            );
        }
        if !uses(AllowedUse::LoadBalancer) {
            return;
        }
        if uses(AllowedUse::Workload) || uses(AllowedUse::Tunnel) {
            problems.missing("allowedUses", "must be LoadBalancer alone, or not at all");
        }
        for (field, mode) in [("ipipMode", self.ipip_mode), ("vxlanMode", self.vxlan_mode)] {
            if mode != EncapMode::Never {
                problems.report(field, mode, "must be Never with the use LoadBalancer");
            }
        }
        if self.disable_bgp_export {
            problems.report("disableBGPExport", true, "must be false with the use LoadBalancer");
        }
        let selector = self.node_selector.as_deref().unwrap_or_default();
        if Selector::parse(selector).is_ok_and(|selector| selector != Selector::ALL) {
            problems.report("nodeSelector", selector, "must be all() with the use LoadBalancer");
        }
    }
}

/// Whether two prefixes share addresses.
fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

impl Spec for IpPoolSpec {
    const KIND: Kind = Kind::IPPool;
    type Status = IpPoolStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        self.check_range(problems);
        self.check_modes(problems);
        self.check_uses(problems);
        check::selector(
            "nodeSelector",
            self.node_selector.as_deref().unwrap_or_default(),
            problems,
        );
        check::selector(
            "namespaceSelector",
            self.namespace_selector.as_deref().unwrap_or_default(),
            problems,
        );
    }

    fn check_update(&self, old: &Self, problems: &mut Problems) {
        // Another spelling of the same range is no change.
        if self.cidr.trunc() != old.cidr.trunc() {
            problems.report(
                "cidr",
                self.cidr,
                format!("must stay {}: make a new pool instead", old.cidr),
            );
        }
        if self.block_len() != old.block_len() {
            problems.report(
                "blockSize",
                self.block_len(),
                format!("must stay {}: make a new pool instead", old.block_len()),
            );
        }
        if old.allows(AllowedUse::LoadBalancer) && !self.allows(AllowedUse::LoadBalancer) {
            problems.missing("allowedUses", "must stay LoadBalancer: make a new pool instead");
        }
    }

    fn apply_defaults(&mut self, _: &mut Metadata) {
        self.block_size = Some(self.block_len());
        if self.node_selector.as_deref().unwrap_or_default().is_empty() {
            self.node_selector = Some("all()".to_owned());
        }
        if self.allowed_uses.is_empty() {
            // Tunnels have no namespace, so a pool for some namespaces is not for them.
            let only_some = self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty());
            self.allowed_uses = match only_some {
                true => vec![AllowedUse::Workload],
                false => vec![AllowedUse::Workload, AllowedUse::Tunnel],
            };
        }
        self.assignment_mode.get_or_insert(AssignmentMode::Automatic);
    }

    fn stand_in(field: &str, wrong: &serde_json::Value) -> Option<serde_json::Value> {
        let is_v6 = wrong.as_str().is_some_and(|text| text.contains(':'));
        (field == "spec.cidr").then(|| if is_v6 { "2000::/3".into() } else { "10.0.0.0/8".into() })
    }
}
