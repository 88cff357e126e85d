//! IPAM's stored objects: block, affinity, handle, configuration (upstream `model/block.go`, `api/ipam*.go`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::is_false;
use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of an IPAMBlock: the allocations of one block. One compare-and-swap object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamBlockSpec {
    /// The block.
    pub cidr: IpNet,
    /// Whose it is: `host:<name>` or `virtual:<name>`; absent once released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    /// When the affinity was claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_claim_time: Option<Timestamp>,
    /// Only its owner may allocate from it (as stored by old versions).
    #[serde(default)]
    pub strict_affinity: bool,
    /// By ordinal: an index into `attributes`, or `null` where free.
    pub allocations: Vec<Option<usize>>,
    /// Free ordinals, first out first.
    pub unallocated: Vec<u32>,
    /// Owners of allocations, shared by equality.
    pub attributes: Vec<AllocationAttribute>,
    /// Marked for deletion where the store has no compare-and-delete.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleted: bool,
    /// Starts at creation time in nanoseconds, plus one at each write.
    #[serde(default)]
    pub sequence_number: u64,
    /// By ordinal (decimal text): `sequence_number` when last allocated or released.
    #[serde(default)]
    pub sequence_number_for_allocation: BTreeMap<String, u64>,
}

/// Who holds an allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationAttribute {
    /// The handle; absent after release while the address cools down.
    #[serde(default, rename = "handle_id", skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    /// Pod, namespace, node, … of the owner.
    #[serde(default, rename = "secondary", skip_serializing_if = "BTreeMap::is_empty")]
    pub secondary: BTreeMap<String, String>,
    /// The other owner during a live migration.
    #[serde(default, rename = "alternateOwnerAttrs", skip_serializing_if = "BTreeMap::is_empty")]
    pub alternate_owner_attrs: BTreeMap<String, String>,
    /// When it was released, while the address cools down.
    #[serde(default, rename = "releasedAt", skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Timestamp>,
}

/// Spec of a BlockAffinity: a host's claim on a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockAffinitySpec {
    /// How far the claim has come.
    #[serde(default)]
    pub state: AffinityState,
    /// The host, or the name of a virtual owner.
    pub node: String,
    /// `host` or `virtual`; absent means `host`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub affinity_type: Option<String>,
    /// The block.
    pub cidr: IpNet,
    /// Marked for deletion where the store has no compare-and-delete.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleted: bool,
}

/// How far a claim on a block has come. Anything but confirmed counts as absent for routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AffinityState {
    /// Written by versions that knew no states: as good as confirmed.
    #[default]
    #[serde(rename = "")]
    Legacy,
    /// Claimed, block not yet ours.
    Pending,
    /// The block is ours.
    Confirmed,
    /// Being given back.
    PendingDeletion,
}

impl AffinityState {
    /// Whether the block may be used and routed.
    pub fn is_confirmed(self) -> bool {
        matches!(self, AffinityState::Legacy | AffinityState::Confirmed)
    }
}

/// Spec of an IPAMHandle: how many addresses of each block a handle holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamHandleSpec {
    /// The handle's id, with its capitals.
    #[serde(rename = "handleID")]
    pub handle_id: String,
    /// Block (CIDR text) to number of addresses.
    #[serde(default)]
    pub block: BTreeMap<String, u32>,
    /// Marked for deletion where the store has no compare-and-delete.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleted: bool,
}

/// Spec of the IPAMConfiguration `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpamConfigurationSpec {
    /// Never allocate from another host's block.
    pub strict_affinity: bool,
    /// Claim blocks when needed.
    pub auto_allocate_blocks: bool,
    /// Most blocks a host may hold; 0 means the default, 20.
    pub max_blocks_per_host: u32,
    /// `Enabled` (default) or `Disabled`.
    #[serde(rename = "kubeVirtVMAddressPersistence", skip_serializing_if = "Option::is_none")]
    pub kubevirt_vm_address_persistence: Option<String>,
    /// Seconds a released address rests, 0 to 1200.
    #[serde(skip_serializing_if = "is_zero")]
    pub ip_cooldown_seconds: u32,
}

impl Default for IpamConfigurationSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            kubevirt_vm_address_persistence: None,
            ip_cooldown_seconds: 0,
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Spec for IpamBlockSpec {
    const KIND: Kind = Kind::IPAMBlock;
    type Status = NoStatus;
}

impl Spec for BlockAffinitySpec {
    const KIND: Kind = Kind::BlockAffinity;
    type Status = NoStatus;
}

impl Spec for IpamHandleSpec {
    const KIND: Kind = Kind::IPAMHandle;
    type Status = NoStatus;
}

impl Spec for IpamConfigurationSpec {
    const KIND: Kind = Kind::IPAMConfiguration;
    type Status = NoStatus;
}
