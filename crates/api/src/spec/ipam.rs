//! IPAM's stored objects: block, affinity, handle, configuration (upstream `model/block.go`, `api/ipam*.go`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{is_false, is_zero};
use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::{NoStatus, Spec};
use crate::value::{check, net};
use crate::{Kind, Metadata};

/// Spec of an IPAMBlock: the allocations of one block. One compare-and-swap object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamBlockSpec {
    /// The block.
    #[serde(with = "net::one")]
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
    #[serde(with = "net::one")]
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

impl Spec for IpamBlockSpec {
    const KIND: Kind = Kind::IPAMBlock;
    const NAMES: NameRule = NameRule::Derived;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        check::masked("cidr", self.cidr, problems);
        let size = 1u128.checked_shl(u32::from(self.cidr.max_prefix_len() - self.cidr.prefix_len()));
        if size != Some(self.allocations.len() as u128) {
            problems.report(
                "allocations",
                format!("{} items", self.allocations.len()),
                "must be one for each address",
            );
        }
        for (ordinal, index) in self.allocations.iter().enumerate() {
            if let Some(index) = index.filter(|index| *index >= self.attributes.len()) {
                problems.report(
                    &format!("allocations[{ordinal}]"),
                    index,
                    "must be the place of one of spec.attributes",
                );
            }
        }
        for (place, ordinal) in self.unallocated.iter().enumerate() {
            let free = self.allocations.get(*ordinal as usize).is_some_and(Option::is_none);
            if !free {
                problems.report(
                    &format!("unallocated[{place}]"),
                    ordinal,
                    "must be an address that is not allocated",
                );
            }
        }
    }
}

impl Spec for BlockAffinitySpec {
    const KIND: Kind = Kind::BlockAffinity;
    const NAMES: NameRule = NameRule::Derived;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        check::masked("cidr", self.cidr, problems);
        if self.node.is_empty() {
            problems.missing("node", "is required");
        }
        if let Some(kind) = self
            .affinity_type
            .as_ref()
            .filter(|kind| !["", "host", "virtual"].contains(&kind.as_str()))
        {
            problems.report("type", kind, "must be host or virtual");
        }
        if self.deleted {
            problems.report("deleted", true, "must be false: the datastore sets it when it deletes");
        }
    }
}

impl Spec for IpamHandleSpec {
    const KIND: Kind = Kind::IPAMHandle;
    const NAMES: NameRule = NameRule::Derived;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.handle_id.is_empty() {
            problems.missing("handleID", "is required");
        }
        for block in self.block.keys().filter(|block| block.parse::<IpNet>().is_err()) {
            problems.report("block", block, "must be a block like 10.0.0.0/26");
        }
    }
}

impl Spec for IpamConfigurationSpec {
    const KIND: Kind = Kind::IPAMConfiguration;
    const NAMES: NameRule = NameRule::Default;
    type Status = super::ConditionsStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        let known = |text: &str| ["", "Enabled", "Disabled"].contains(&text);
        if let Some(text) = self
            .kubevirt_vm_address_persistence
            .as_ref()
            .filter(|text| !known(text))
        {
            problems.report("kubeVirtVMAddressPersistence", text, "must be Enabled or Disabled");
        }
        // Hosts that may borrow would just go around the limit.
        if self.max_blocks_per_host > 0 && !self.strict_affinity {
            problems.report(
                "maxBlocksPerHost",
                self.max_blocks_per_host,
                "must be 0 unless strictAffinity is true: set strictAffinity to true, or leave this out",
            );
        }
        if !self.strict_affinity && !self.auto_allocate_blocks {
            problems.report(
                "autoAllocateBlocks",
                false,
                "must be true unless strictAffinity is true: set strictAffinity to true, or leave this out",
            );
        }
        if self.ip_cooldown_seconds > 1200 {
            problems.report("ipCooldownSeconds", self.ip_cooldown_seconds, "must be from 0 to 1200");
        }
    }
}
