//! Which allocations, handles and blocks nobody needs any more: a pure decision over a snapshot and evidence.
//!
//! An address that a live pod uses must never be freed, so doubt keeps it: what has no attributes, what belongs to a pod
//! that has no address yet, anything while no node is known at all. A leak is confirmed when it has looked like one for the
//! whole grace period with the same sequence number; a minute is enough if its node is gone. A handle goes as a whole or not
//! at all. Addresses are compared as addresses, never as text. The caller looks at the pod once more before it releases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{AllocationAttribute, IpamBlockSpec, IpamHandleSpec};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::block::clean_handle;
use crate::{Block, Ordinal, Owner, ReleaseAddress, TunnelKind, WINDOWS_RESERVED_HANDLE};

/// Most addresses to release at a time (upstream's number).
const MOST_AT_ONCE: usize = 10_000;
/// Least grace for addresses of virtual machines, whose pods come and go (upstream's number).
const VM_GRACE: SignedDuration = SignedDuration::from_mins(5);

/// Most grace for addresses of nodes that are gone. (Upstream gives none. But who looks may have an old picture, in which a
/// node is still away that has come back and is just giving a pod its address.)
const GONE_GRACE: SignedDuration = SignedDuration::from_mins(1);

/// The attribute of an address that another plugin wires a pod with, who has asked for nothing else. The pod may have no
/// endpoint, and other addresses besides.
pub const ADDRESS_ALONE: &str = "address-alone";

/// Everything that IPAM has stored.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// All blocks.
    pub blocks: &'a [IpamBlockSpec],
    /// All handles.
    pub handles: &'a [IpamHandleSpec],
    /// How long released addresses rest.
    pub cooldown: SignedDuration,
}

/// Who lives. To be complete: what is missing here counts as dead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Names of all nodes. While this is empty nothing is collected.
    pub nodes: BTreeSet<String>,
    /// All pods that have not ended, by namespace and name. One that moves may be in two places for a while.
    pub pods: BTreeMap<(String, String), Vec<Pod>>,
    /// Pods that other plugins wire are among them, too.
    pub others_pods: bool,
    /// Handles that are in use for another reason, such as services' addresses.
    pub handles: BTreeSet<String>,
}

/// A live pod, on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Where it runs; `None` before it is scheduled.
    pub node: Option<String>,
    /// What its endpoints and its status say; empty before it has an address.
    pub addresses: Vec<IpAddr>,
}

/// What to do. Each part may be done or not without the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Addresses to release, all of a handle next to each other.
    pub addresses: Vec<Doomed>,
    /// Handles that hold nothing, to be released by name.
    pub handles: Vec<String>,
    /// Empty blocks to give back (only if still empty).
    pub blocks: Vec<(Owner, IpNet)>,
    /// Owners that are gone: all their claims are to be given back.
    pub owners: Vec<Owner>,
    /// Blocks with rested addresses, or empty and nobody's: see [`crate::Ipam::collect_cold`].
    pub cold: Vec<IpNet>,
    /// Everything that looks like a leak, also what is not released yet.
    pub suspects: Vec<Suspect>,
}

/// An address that looks like a leak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The address.
    pub ip: IpAddr,
    /// Why it looks so.
    pub reason: Reason,
    /// Since when.
    pub since: Timestamp,
}

/// An address to release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Its address, handle and sequence number, so that only what was judged is released.
    pub address: ReleaseAddress,
    /// Its block.
    pub block: IpNet,
    /// The node for which it is held.
    pub node: String,
    /// Why.
    pub reason: Reason,
}

/// Why an address is a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its node is not in the cluster.
    NodeGone,
    /// Its pod does not exist.
    PodGone,
    /// Its pod runs on another node.
    PodElsewhere,
    /// Its pod has other addresses.
    NotThePodsAddress,
}

/// Remembers what has looked like a leak, and since when.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    addresses: BTreeMap<(IpAddr, u64), Timestamp>,
    handles: BTreeMap<IpamHandleKey, Timestamp>,
    blocks: BTreeMap<(IpNet, u64), Timestamp>,
}

/// A handle with its counts: one that changed is another one.
type IpamHandleKey = (String, Vec<(String, u32)>);

impl Collector {
    /// Judges a snapshot. To be called regularly, at least twice in a grace period.
    pub fn decide(
        &mut self,
        now: Timestamp,
        grace: SignedDuration,
        seen: Snapshot<'_>,
        evidence: &Evidence,
    ) -> Decision {
        let mut decision = Decision {
            cold: cold(now, &seen),
            ..Decision::default()
        };
        if evidence.nodes.is_empty() {
            return decision;
        }
        let allocations: Vec<Allocation<'_>> = seen
            .blocks
            .iter()
            .flat_map(|block| allocations(block, evidence))
            .collect();
        let due = self.due_addresses(now, grace, &allocations, &mut decision.suspects);
        decision.addresses = whole_handles(&allocations, &due);
        decision.addresses.truncate(cut(&decision.addresses));
        decision.handles = self.idle_handles(now, grace, &seen, &allocations);
        decision.owners = gone_owners(&seen, &allocations, &decision.addresses, evidence);
        decision.blocks = self.idle_blocks(now, grace, &seen, evidence);
        decision
    }

    /// The suspects whose time is up.
    fn due_addresses(
        &mut self,
        now: Timestamp,
        grace: SignedDuration,
        allocations: &[Allocation<'_>],
        suspects: &mut Vec<Suspect>,
    ) -> BTreeMap<IpAddr, Reason> {
        let mut since = BTreeMap::new();
        let mut due = BTreeMap::new();
        for allocation in allocations {
            let Verdict::Leak(reason) = allocation.verdict else {
                continue;
            };
            let key = (allocation.ip, allocation.sequence);
            let first = *since
                .entry(key)
                .or_insert(self.addresses.get(&key).copied().unwrap_or(now));
            suspects.push(Suspect {
                ip: allocation.ip,
                reason,
                since: first,
            });
            let is_vm = allocation.holder.secondary.contains_key("vmi-name");
            let grace = match reason {
                Reason::NodeGone => grace.min(GONE_GRACE),
                _ if is_vm => grace.max(VM_GRACE),
                _ => grace,
            };
            if now.duration_since(first) >= grace {
                due.insert(allocation.ip, reason);
            }
        }
        self.addresses = since;
        due
    }

    /// Handles without any address, for the whole grace period.
    fn idle_handles(
        &mut self,
        now: Timestamp,
        grace: SignedDuration,
        seen: &Snapshot<'_>,
        allocations: &[Allocation<'_>],
    ) -> Vec<String> {
        let used: BTreeSet<String> = allocations
            .iter()
            .map(|allocation| allocation.handle.to_ascii_lowercase())
            .collect();
        let mut since = BTreeMap::new();
        let mut idle = Vec::new();
        for handle in seen
            .handles
            .iter()
            .filter(|handle| !used.contains(&handle.handle_id.to_ascii_lowercase()))
        {
            let counts = handle
                .block
                .iter()
                .map(|(block, count)| (block.clone(), *count))
                .collect();
            let key = (handle.handle_id.clone(), counts);
            let first = self.handles.get(&key).copied().unwrap_or(now);
            since.insert(key, first);
            if now.duration_since(first) >= grace {
                idle.push(handle.handle_id.clone());
            }
        }
        self.handles = since;
        idle
    }

    /// Blocks of living nodes that nobody wrote for the whole grace period and that are empty; never a node's last one of a
    /// family.
    fn idle_blocks(
        &mut self,
        now: Timestamp,
        grace: SignedDuration,
        seen: &Snapshot<'_>,
        evidence: &Evidence,
    ) -> Vec<(Owner, IpNet)> {
        let mut held: BTreeMap<(Owner, bool), usize> = BTreeMap::new();
        let mut empty = Vec::new();
        let mut since = BTreeMap::new();
        for block in seen.blocks {
            let Some(owner @ Owner::Host(host)) = &owner(block) else {
                continue;
            };
            *held.entry((owner.clone(), block.cidr.addr().is_ipv4())).or_default() += 1;
            if evidence.nodes.contains(host) && block.is_empty() {
                let key = (block.cidr, block.sequence_number);
                let first = self.blocks.get(&key).copied().unwrap_or(now);
                since.insert(key, first);
                if now.duration_since(first) >= grace && first < now {
                    empty.push((owner.clone(), block.cidr));
                }
            }
        }
        self.blocks = since;
        empty.retain(|(owner, cidr)| {
            let left = held.entry((owner.clone(), cidr.addr().is_ipv4())).or_default();
            let spare = *left > 1;
            *left -= usize::from(spare);
            spare
        });
        empty
    }
}

/// What of these addresses is a leak by this evidence alone, whatever was known before: the last look before a release.
/// [`Evidence::pods`] needs to have no more than the pods of the holders' namespaces, [`Evidence::nodes`] no more than their
/// nodes.
pub fn still_leaked(blocks: &[IpamBlockSpec], doomed: &[Doomed], evidence: &Evidence) -> bool {
    let allocations: Vec<Allocation<'_>> = blocks.iter().flat_map(|block| allocations(block, evidence)).collect();
    doomed.iter().all(|doomed| {
        let is_it = |allocation: &&Allocation<'_>| {
            allocation.ip == doomed.address.ip
                && doomed.address.sequence == Some(allocation.sequence)
                && doomed.address.handle.as_deref() == Some(allocation.handle)
        };
        let found = allocations.iter().find(is_it);
        found.is_some_and(|allocation| allocation.verdict != Verdict::Keep)
    })
}

/// One held address, judged.
struct Allocation<'a> {
    ip: IpAddr,
    block: IpNet,
    handle: &'a str,
    sequence: u64,
    holder: &'a AllocationAttribute,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// In use, or we do not know.
    Keep,
    /// A node's own address; goes when the node and all its pods have gone.
    Tunnel,
    Leak(Reason),
}

fn allocations<'a>(block: &'a IpamBlockSpec, evidence: &Evidence) -> Vec<Allocation<'a>> {
    let judged = |(ordinal, holder): (Ordinal, &'a AllocationAttribute)| {
        let handle = clean_handle(holder.handle_id.as_deref()?);
        let ip = block.address(ordinal);
        let verdict = judge(ip, handle, holder, evidence);
        Some(Allocation {
            ip,
            block: block.cidr,
            handle,
            sequence: block.sequence_of(ordinal),
            holder,
            verdict,
        })
    };
    block.allocated().into_iter().filter_map(judged).collect()
}

fn judge(ip: IpAddr, handle: &str, holder: &AllocationAttribute, evidence: &Evidence) -> Verdict {
    let attribute = |name: &str| holder.secondary.get(name);
    if handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE) || evidence.handles.contains(handle) {
        return Verdict::Keep;
    }
    let is_tunnel = attribute("type").is_some_and(|kind| TunnelKind::ALL.iter().any(|known| known.attribute() == kind));
    let Some(node) = attribute("node") else {
        return Verdict::Keep;
    };
    let node_lives = evidence.nodes.contains(node);
    if is_tunnel {
        return if node_lives { Verdict::Keep } else { Verdict::Tunnel };
    }
    let (Some(namespace), Some(name)) = (attribute("namespace"), attribute("pod")) else {
        return Verdict::Keep;
    };
    let pods = evidence.pods.get(&(namespace.clone(), name.clone()));
    if attribute(ADDRESS_ALONE).is_some() {
        let is_here = |pods: &Vec<Pod>| pods.iter().any(|pod| pod.node.as_ref() == Some(node));
        if node_lives && (!evidence.others_pods || pods.is_some_and(is_here)) {
            return Verdict::Keep;
        }
    }
    let reason = match pods {
        None => Reason::PodGone,
        Some(pods) => {
            let here: Vec<&Pod> = pods.iter().filter(|pod| pod.node.as_ref() == Some(node)).collect();
            // Without an address it is being set up: what it gets is not known yet.
            if here
                .iter()
                .any(|pod| pod.addresses.is_empty() || pod.addresses.contains(&ip))
            {
                return Verdict::Keep;
            }
            match here.is_empty() {
                true => Reason::PodElsewhere,
                false => Reason::NotThePodsAddress,
            }
        }
    };
    Verdict::Leak(if node_lives { reason } else { Reason::NodeGone })
}

/// The due addresses of handles of which every address is due, and tunnels of nodes that are gone with all their pods.
fn whole_handles(allocations: &[Allocation<'_>], due: &BTreeMap<IpAddr, Reason>) -> Vec<Doomed> {
    let node_of = |allocation: &Allocation<'_>| allocation.holder.secondary.get("node").cloned();
    let kept =
        |allocation: &&Allocation<'_>| allocation.verdict != Verdict::Tunnel && !due.contains_key(&allocation.ip);
    let nodes_in_use: BTreeSet<String> = allocations.iter().filter(kept).filter_map(node_of).collect();
    let mut by_handle: BTreeMap<&str, Option<Vec<Doomed>>> = BTreeMap::new();
    for allocation in allocations {
        let reason = match allocation.verdict {
            Verdict::Tunnel => node_of(allocation)
                .filter(|node| !nodes_in_use.contains(node))
                .map(|_| Reason::NodeGone),
            Verdict::Keep | Verdict::Leak(_) => due.get(&allocation.ip).copied(),
        };
        let all = by_handle.entry(allocation.handle).or_insert_with(|| Some(Vec::new()));
        match reason {
            Some(reason) => {
                let (handle, sequence) = (Some(allocation.handle.to_owned()), Some(allocation.sequence));
                let address = ReleaseAddress {
                    ip: allocation.ip,
                    handle,
                    sequence,
                };
                all.iter_mut().for_each(|all| {
                    all.push(Doomed {
                        address: address.clone(),
                        block: allocation.block,
                        node: node_of(allocation).unwrap_or_default(),
                        reason,
                    })
                });
            }
            None => *all = None,
        }
    }
    by_handle.into_values().flatten().flatten().collect()
}

/// Where to cut so that no handle is cut in two.
fn cut(doomed: &[Doomed]) -> usize {
    if doomed.len() <= MOST_AT_ONCE {
        return doomed.len();
    }
    let next = &doomed[MOST_AT_ONCE].address.handle;
    doomed[..MOST_AT_ONCE]
        .iter()
        .rposition(|one| one.address.handle != *next)
        .map_or(0, |last| last + 1)
}

/// Hosts that own blocks but are not in the cluster, once no address is held for them that is not about to be released.
fn gone_owners(
    seen: &Snapshot<'_>,
    allocations: &[Allocation<'_>],
    doomed: &[Doomed],
    evidence: &Evidence,
) -> Vec<Owner> {
    let goes: BTreeSet<IpAddr> = doomed.iter().map(|doomed| doomed.address.ip).collect();
    let kept: BTreeSet<&String> = (allocations.iter())
        .filter(|allocation| !goes.contains(&allocation.ip))
        .filter_map(|allocation| allocation.holder.secondary.get("node"))
        .collect();
    let owners: BTreeSet<Owner> = seen.blocks.iter().filter_map(owner).collect();
    let gone =
        |owner: &Owner| matches!(owner, Owner::Host(host) if !evidence.nodes.contains(host) && !kept.contains(host));
    owners.into_iter().filter(gone).collect()
}

fn owner(block: &IpamBlockSpec) -> Option<Owner> {
    block.affinity.as_deref().and_then(|owner| owner.parse().ok())
}

fn cold(now: Timestamp, seen: &Snapshot<'_>) -> Vec<IpNet> {
    let is_cold = |block: &&IpamBlockSpec| {
        let mut copy = (*block).clone();
        copy.collect(now, seen.cooldown) > 0 || block.affinity.is_none() && copy.is_empty()
    };
    seen.blocks.iter().filter(is_cold).map(|block| block.cidr).collect()
}

#[cfg(test)]
mod tests;
