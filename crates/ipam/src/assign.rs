//! Allocation: any free address, or a given one.
//!
//! A round obtains blocks with free addresses, takes addresses in memory, raises the handles, and swaps the blocks. Many
//! requests of one host share a round, so that a hundred pods that start together cost one block write. The order *block
//! read, handle raised, block written* is what makes every address reachable by its handle (see the crate's promise).

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::{IpPool, WorkloadEndpoint};
use api::{AllocationAttribute, AllowedUse, IpamBlockSpec, Key};
use datastore::{StoreError, Write};
use futures::future::join_all;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::Family;
use crate::affinity::{self, Claim};
use crate::cache::Facts;
use crate::fetch::{ATTEMPTS, At, read_live, typed, update};
use crate::pools::{PoolChoice, block_of, choose, pool_of};
use crate::round::{Job, Swap};
use crate::search::{Search, Terms};
use crate::{Block, Ipam, IpamError, Ordinal, Owner, Preview, Reservations, handle};

/// Blocks that a host may hold if neither the request nor the configuration says (upstream's safeguard).
const MOST_BLOCKS: u32 = 20;

/// A request for any free addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoAssign {
    /// The node's name. Ignored for load balancer addresses, which belong to no node.
    pub host: String,
    /// The handle under which the addresses are released. Should be new: then the request costs no read.
    pub handle: String,
    /// Who holds the addresses: `pod`, `namespace`, `node`, `timestamp`, `type`, …
    pub attributes: BTreeMap<String, String>,
    /// How many IPv4 addresses.
    pub ipv4: u32,
    /// How many IPv6 addresses.
    pub ipv6: u32,
    /// Pools for IPv4, by name or CIDR; empty: whichever are meant for this node and namespace.
    pub pools_v4: Vec<String>,
    /// Pools for IPv6, by name or CIDR; empty: whichever are meant for this node and namespace.
    pub pools_v6: Vec<String>,
    /// What the addresses are for.
    pub intended_use: AllowedUse,
    /// Labels of the node, for pools' node selectors.
    pub host_labels: BTreeMap<String, String>,
    /// Labels of the pod's namespace; `None` if there is none, as for tunnels.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Ranges that are not handed out, besides those of IPReservations.
    pub reserved: Vec<IpNet>,
    /// Most blocks that the host may hold; 0: as configured. The lower of the two counts.
    pub max_blocks: u32,
    /// The endpoint that the addresses are for, to be created in the same go with them filled in: if that is possible, and
    /// if it fails, nothing else does. [`Assigned::endpoint`] says whether it was.
    pub endpoint: Option<WorkloadEndpoint>,
    /// Hears what the request is about to be given.
    pub preview: Option<Preview>,
}

impl Default for AutoAssign {
    fn default() -> Self {
        Self {
            host: String::new(),
            handle: String::new(),
            attributes: BTreeMap::new(),
            ipv4: 0,
            ipv6: 0,
            pools_v4: Vec::new(),
            pools_v6: Vec::new(),
            intended_use: AllowedUse::Workload,
            host_labels: BTreeMap::new(),
            namespace_labels: None,
            reserved: Vec::new(),
            max_blocks: 0,
            endpoint: None,
            preview: None,
        }
    }
}

/// Assigned addresses, each with the prefix length of its block (host bits set), as upstream answers them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assigned {
    /// As many IPv4 addresses as were asked for.
    pub v4: Vec<IpNet>,
    /// As many IPv6 addresses as were asked for.
    pub v6: Vec<IpNet>,
    /// [`AutoAssign::endpoint`] as the datastore has it, if it was created with them: others may have put labels on it.
    pub endpoint: Option<WorkloadEndpoint>,
}

/// A request for one given address.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignIp {
    /// The address.
    pub ip: IpAddr,
    /// The node's name. Ignored for load balancer addresses.
    pub host: String,
    /// The handle under which the address is released.
    pub handle: String,
    /// Who holds the address.
    pub attributes: BTreeMap<String, String>,
    /// What the address is for; its pool must allow it.
    pub intended_use: AllowedUse,
}

impl Ipam {
    /// Assigns free addresses: all that are asked for, or none. What was assigned before a failure is given back; if
    /// giving back fails too, releasing the handle does it.
    pub async fn auto_assign(&self, now: Timestamp, request: &AutoAssign) -> Result<Assigned, IpamError> {
        let mut answers = self.auto_assign_many(now, std::slice::from_ref(request)).await;
        answers.pop().expect("there is one answer for each request")
    }

    /// Assigns for many requests. Requests of one host for the same pools share their block writes. The answers are in the
    /// order of the requests; one that fails does not hurt the others.
    pub async fn auto_assign_many(&self, now: Timestamp, requests: &[AutoAssign]) -> Vec<Result<Assigned, IpamError>> {
        let facts = match self.facts().await {
            Ok(facts) => facts,
            Err(error) => return requests.iter().map(|_| Err(error.clone().into())).collect(),
        };
        let mut jobs: Vec<Job<'_>> = requests.iter().map(Job::new).collect();
        let mut groups: Vec<(Plan<'_>, Vec<usize>)> = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            match Plan::new(request, &facts) {
                Ok(plan) => match groups.iter_mut().find(|(known, _)| *known == plan) {
                    Some((_, members)) => members.push(index),
                    None => groups.push((plan, vec![index])),
                },
                Err(error) => jobs[index].failed = Some(error),
            }
        }
        for (plan, members) in groups {
            let mut chosen: Vec<&mut Job<'_>> = Vec::new();
            for (index, job) in jobs.iter_mut().enumerate() {
                if members.contains(&index) {
                    chosen.push(job);
                }
            }
            self.assign_group(now, &facts, &plan, &mut chosen).await;
            for job in chosen {
                self.settle(now, &facts, job).await;
            }
        }
        jobs.into_iter().map(Job::answer).collect()
    }

    async fn assign_group(&self, now: Timestamp, facts: &Facts, plan: &Plan<'_>, jobs: &mut [&mut Job<'_>]) {
        let _turn = self.turn().await;
        let reserved = Reservations::new(&[plan.reserved, facts.reserved.as_slice()].concat());
        let terms = |family: Family| Terms {
            now,
            owner: &plan.owner,
            facts,
            pools: plan.pools(family),
            reserved: &reserved,
            limit: plan.limit,
            labels: plan.labels,
        };
        let mut searches = Family::BOTH.map(|family| (family, Search::new(self, terms(family))));
        for _ in 0..ATTEMPTS + jobs.iter().map(|job| job.lacks_in_all()).sum::<usize>() {
            let mut picks = Vec::new();
            for (family, search) in &mut searches {
                if !jobs.iter().any(|job| job.lacks(*family) > 0) {
                    continue;
                }
                match search.next().await {
                    Ok(candidate) => picks.push((*family, candidate)),
                    Err(error) => {
                        for job in jobs.iter_mut().filter(|job| job.lacks(*family) > 0) {
                            job.failed = Some(error.clone());
                        }
                    }
                }
            }
            if picks.is_empty() {
                return;
            }
            let swaps: Vec<Swap> = picks
                .into_iter()
                .map(|(family, found)| Swap::take(family, found, jobs, &reserved))
                .collect();
            preview(&swaps, jobs);
            let (swaps, written) = match self.write_at_once(now, &swaps, jobs).await {
                Some(written) => (swaps, written),
                None => (self.raise_handles(now, swaps, jobs).await, Vec::new()),
            };
            let mut written = written.into_iter();
            for swap in swaps {
                let (family, cidr, borrowed) = (swap.family, swap.at.object.spec.cidr, swap.borrowed);
                let written = match written.next() {
                    Some(written) => written,
                    None => update(self.store.as_ref(), swap.bumped()).await,
                };
                if !self.swapped(&plan.owner, swap, written, jobs).await {
                    for (searched, search) in &mut searches {
                        if *searched == family {
                            search.lost(cidr, borrowed);
                        }
                    }
                }
            }
        }
        let busy = StoreError::Conflict(Key::cluster(api::Kind::IPAMBlock, ""));
        for job in jobs.iter_mut().filter(|job| job.lacks_in_all() > 0) {
            job.failed = Some(busy.clone().into());
        }
    }

    /// Writes a whole round in one go: the handles, if all of them are new, then the blocks, then endpoints that want to be
    /// created with their addresses. Answers what came of the blocks,
    /// of those that were tried; `None` if none was, because a handle was in the way.
    async fn write_at_once(
        &self,
        now: Timestamp,
        swaps: &[Swap],
        jobs: &mut [&mut Job<'_>],
    ) -> Option<Vec<Result<At<IpamBlockSpec>, StoreError>>> {
        let wanted: Vec<(usize, BTreeMap<IpNet, u32>)> = (0..jobs.len())
            .map(|index| (index, counts(swaps, index)))
            .filter(|(_, counts)| !counts.is_empty())
            .collect();
        if wanted.iter().any(|(index, _)| jobs[*index].raised) {
            return None;
        }
        let handles = wanted
            .iter()
            .map(|(index, counts)| Write::Create(handle::new(&jobs[*index].request.handle, counts, now).into()));
        let blocks = swaps.iter().map(|swap| {
            let At { object, revision } = swap.bumped();
            Write::Update(object.into(), revision)
        });
        let mut endpoints = Vec::new();
        let mut complete = Vec::new();
        for (index, _) in &wanted {
            if let Some(endpoint) = endpoint_with(swaps, *index, jobs[*index]) {
                endpoints.push(Write::Create(endpoint.into()));
                complete.push(*index);
            }
        }
        let writes = handles.chain(blocks).chain(endpoints).collect();
        let mut answers = self.store.write_all(writes).await.into_iter();
        for (index, counts) in wanted {
            match answers.next() {
                Some(Ok(_)) => jobs[index].has_raised(counts),
                // Blocks come after handles: whether they were written decides.
                Some(Err(StoreError::Unavailable(why))) => {
                    return Some(
                        swaps
                            .iter()
                            .map(|_| Err(StoreError::Unavailable(why.clone())))
                            .collect(),
                    );
                }
                Some(Err(_)) | None => return None,
            }
        }
        let blocks = answers.by_ref().take(swaps.len());
        let mut written: Vec<_> = blocks.map(|answer| answer.and_then(typed)).collect();
        for (index, answer) in complete.into_iter().zip(answers) {
            let stored = answer.ok();
            jobs[index].assigned.endpoint = stored.and_then(|stored| stored.resource.try_into().ok());
        }
        if let Some(Err(StoreError::Unavailable(why))) = written.last() {
            let unknown = StoreError::Unavailable(why.clone());
            written.resize(swaps.len(), Err(unknown));
        }
        Some(written)
    }

    /// Raises the handles of all jobs that took something. Who fails loses what it took.
    async fn raise_handles(&self, now: Timestamp, mut swaps: Vec<Swap>, jobs: &mut [&mut Job<'_>]) -> Vec<Swap> {
        let writes = jobs.iter().enumerate().filter_map(|(index, job)| {
            let wanted = counts(&swaps, index);
            if wanted.is_empty() {
                return None;
            }
            let (handle, credit, fresh) = (job.request.handle.as_str(), job.credit.clone(), !job.raised);
            Some(async move {
                (
                    index,
                    handle::raise(self.store.as_ref(), handle, &wanted, &credit, now, fresh).await,
                    wanted,
                )
            })
        });
        for (index, written, wanted) in join_all(writes).await {
            let job = &mut jobs[index];
            match written {
                Ok(()) => job.has_raised(wanted),
                Err(error) => {
                    job.failed = Some(error.into());
                    for swap in &mut swaps {
                        swap.drop_job(index);
                    }
                }
            }
        }
        swaps.retain(|swap| !swap.taken.is_empty());
        swaps
    }

    /// Takes what came of writing a block; `false` if the race was lost.
    async fn swapped(
        &self,
        owner: &Owner,
        swap: Swap,
        written: Result<At<IpamBlockSpec>, StoreError>,
        jobs: &mut [&mut Job<'_>],
    ) -> bool {
        let cidr = swap.at.object.spec.cidr;
        let written = match written {
            Ok(at) => Ok(Some(at)),
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => return false,
            Err(StoreError::Unavailable(why)) => {
                self.fence(&swap, jobs).await.map_err(|_| StoreError::Unavailable(why))
            }
            Err(other) => {
                swap.fail(jobs, &other);
                return true;
            }
        };
        match written {
            Ok(Some(at)) => {
                if swap.borrowed {
                    self.refresh(&at);
                } else {
                    self.remember(owner, &at);
                }
                swap.succeed(jobs);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.forget(cidr);
                for index in swap.taken.keys() {
                    jobs[*index].unknown.insert(cidr);
                }
                swap.fail(jobs, &error);
                true
            }
        }
    }

    /// Finds out whether a write whose answer was lost has happened: the block as it is now if it has, `None` if it has
    /// not and never will (the block's revision has been moved on, so a delayed write cannot land).
    async fn fence(&self, swap: &Swap, jobs: &[&mut Job<'_>]) -> Result<Option<At<IpamBlockSpec>>, StoreError> {
        let key = swap.at.object.key();
        for _ in 0..ATTEMPTS {
            let Some(mut at) = read_live::<IpamBlockSpec>(self.store.as_ref(), &key).await? else {
                return Ok(None);
            };
            if swap.is_in(&at.object.spec, jobs) {
                return Ok(Some(at));
            }
            at.object.spec.bump();
            match update(self.store.as_ref(), at).await {
                Ok(_) => return Ok(None),
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => continue,
                Err(other) => return Err(other),
            }
        }
        Err(StoreError::Conflict(key))
    }

    /// Gives back what a failed job got, and corrects the handle of a job that lost races.
    async fn settle(&self, now: Timestamp, facts: &Facts, job: &mut Job<'_>) {
        let mut lower: BTreeMap<IpNet, u32> = job.credit.clone();
        if job.failed.is_some() {
            for (cidr, ordinals) in std::mem::take(&mut job.got) {
                let held: Vec<(Ordinal, u64)> = ordinals.into_iter().map(|got| (got.ordinal, got.sequence)).collect();
                match self
                    .give_back_exactly(now, facts, cidr, &job.request.handle, &held)
                    .await
                {
                    Ok(count) => *lower.entry(cidr).or_default() += count,
                    Err(_) => drop(lower.remove(&cidr)),
                }
            }
        }
        lower.retain(|cidr, count| *count > 0 && !job.unknown.contains(cidr));
        if !lower.is_empty() {
            // If this fails the handle counts too much, which its release puts right.
            drop(handle::lower(self.store.as_ref(), &job.request.handle, &lower).await);
        }
    }

    /// Assigns one given address, in a block that the host claims if it does not exist. Reserved addresses may be asked for.
    pub async fn assign_ip(&self, now: Timestamp, request: &AssignIp) -> Result<IpNet, IpamError> {
        let facts = self.facts().await?;
        let owner = owner_of(&request.host, request.intended_use)?;
        check_handle(&request.handle)?;
        let pool = pool_of(&facts.pools, request.ip)
            .filter(|pool| pool.is_allocatable() && pool.spec.allows(request.intended_use));
        let cidr = pool
            .and_then(|pool| block_of(pool, request.ip))
            .ok_or(IpamError::NotInPool { ip: request.ip })?;
        let holder = holder_of(&request.handle, &request.attributes);
        let _turn = self.turn().await;
        let mut credit = 0;
        let answer = self
            .assign_in(now, &facts, &owner, cidr, request, &holder, &mut credit)
            .await;
        if credit > 0 {
            drop(handle::lower(self.store.as_ref(), &request.handle, &[(cidr, credit)].into()).await);
        }
        answer
    }

    /// The loop of [`Ipam::assign_ip`]. `credit` is what the handle counts too much when it returns.
    #[allow(clippy::too_many_arguments)]
    async fn assign_in(
        &self,
        now: Timestamp,
        facts: &Facts,
        owner: &Owner,
        cidr: IpNet,
        request: &AssignIp,
        holder: &AllocationAttribute,
        credit: &mut u32,
    ) -> Result<IpNet, IpamError> {
        let store = self.store.as_ref();
        let key = Key::block(cidr);
        for _ in 0..ATTEMPTS {
            let mut at = match read_live::<IpamBlockSpec>(store, &key).await? {
                Some(at) => at,
                None => match affinity::claim(store, owner, cidr, now).await? {
                    Claim::Ours(at) | Claim::Lost(at) => at,
                },
            };
            let block = &mut at.object.spec;
            if facts.config.strict_affinity && !block.belongs_to(owner) {
                return Err(IpamError::BlockTaken {
                    block: cidr,
                    owner: block.affinity.clone(),
                });
            }
            block.collect(now, facts.cooldown());
            let sequence = block.sequence_number;
            let ordinal = block.take_address(request.ip, holder)?;
            block.bump();
            let counted = [(cidr, *credit)].into();
            handle::raise(store, &request.handle, &[(cidr, 1)].into(), &counted, now, *credit == 0).await?;
            *credit = 1;
            let answer =
                IpNet::new(request.ip, cidr.prefix_len()).map_err(|_| IpamError::NotInPool { ip: request.ip })?;
            match update(store, at).await {
                Ok(at) => {
                    *credit = 0;
                    self.refresh(&at);
                    return Ok(answer);
                }
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => self.forget(cidr),
                Err(error @ StoreError::Unavailable(_)) => {
                    self.forget(cidr);
                    // Whether it was written decides the next round: it finds the address taken by us, or takes it.
                    match read_live::<IpamBlockSpec>(store, &key).await {
                        Ok(Some(seen)) if holds(&seen.object.spec, ordinal, &request.handle, sequence) => {
                            *credit = 0;
                            return Ok(answer);
                        }
                        // Not written yet; it may still be, so the handle must keep counting it.
                        Ok(_) | Err(_) => {
                            *credit = 0;
                            return Err(error.into());
                        }
                    }
                }
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key).into())
    }
}

/// What requests must have in common to share block writes.
#[derive(PartialEq)]
struct Plan<'a> {
    owner: Owner,
    v4: Vec<&'a IpPool>,
    v6: Vec<&'a IpPool>,
    reserved: &'a [IpNet],
    limit: u32,
    labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Plan<'a> {
    fn new(request: &'a AutoAssign, facts: &'a Facts) -> Result<Self, IpamError> {
        let owner = owner_of(&request.host, request.intended_use)?;
        check_handle(&request.handle)?;
        let labels = matches!(owner, Owner::Host(_)).then_some(&request.host_labels);
        let pools = |family, count, requested| {
            if count == 0 {
                return Ok(Vec::new());
            }
            let choice = PoolChoice {
                family,
                intended_use: request.intended_use,
                requested,
                host_labels: labels,
                namespace_labels: request.namespace_labels.as_ref(),
            };
            choose(&facts.pools, &choice).map_err(|why| IpamError::NoPools { why })
        };
        Ok(Self {
            owner,
            v4: pools(Family::V4, request.ipv4, &request.pools_v4)?,
            v6: pools(Family::V6, request.ipv6, &request.pools_v6)?,
            reserved: &request.reserved,
            limit: block_limit(request.max_blocks, facts),
            labels,
        })
    }

    fn pools(&self, family: Family) -> &[&'a IpPool] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The lower of the request's and the configuration's limit, where they have one.
pub(crate) fn block_limit(requested: u32, facts: &Facts) -> u32 {
    let limits = [requested, facts.config.max_blocks_per_host];
    limits
        .into_iter()
        .filter(|limit| *limit > 0)
        .min()
        .unwrap_or(MOST_BLOCKS)
}

pub(crate) fn owner_of(host: &str, intended_use: AllowedUse) -> Result<Owner, IpamError> {
    match (intended_use, host) {
        (AllowedUse::LoadBalancer, _) => Ok(Owner::load_balancer()),
        (_, "") => Err(IpamError::InvalidRequest("no host name".into())),
        (_, host) => Ok(Owner::Host(host.to_owned())),
    }
}

fn check_handle(handle: &str) -> Result<(), IpamError> {
    if handle.is_empty() {
        Err(IpamError::InvalidRequest("no handle".into()))
    } else {
        Ok(())
    }
}

/// Says what each job takes in this round.
fn preview(swaps: &[Swap], jobs: &[&mut Job<'_>]) {
    for (index, job) in jobs.iter().enumerate() {
        let Some(preview) = &job.request.preview else { continue };
        let taken: Vec<IpAddr> = taken(swaps, index).collect();
        if !taken.is_empty() {
            preview.say(&taken);
        }
    }
}

/// The addresses that a job takes in this round.
fn taken(swaps: &[Swap], index: usize) -> impl Iterator<Item = IpAddr> + '_ {
    swaps.iter().flat_map(move |swap| {
        let ordinals = swap.taken.get(&index).into_iter().flatten();
        ordinals.map(|ordinal| swap.at.object.spec.address(*ordinal))
    })
}

/// The endpoint that a job wants created, if it has all its addresses in this round.
fn endpoint_with(swaps: &[Swap], index: usize, job: &Job<'_>) -> Option<WorkloadEndpoint> {
    let mut endpoint = job.request.endpoint.clone()?;
    endpoint.spec.ip_networks = taken(swaps, index).map(IpNet::from).collect();
    let complete = job.got.is_empty() && endpoint.spec.ip_networks.len() == job.lacks_in_all();
    complete.then_some(endpoint)
}

/// How many addresses a job took, by block.
fn counts(swaps: &[Swap], job: usize) -> BTreeMap<IpNet, u32> {
    let taken = |swap: &Swap| Some((swap.at.object.spec.cidr, swap.taken.get(&job)?.len() as u32));
    swaps.iter().filter_map(taken).collect()
}

pub(crate) fn holder_of(handle: &str, attributes: &BTreeMap<String, String>) -> AllocationAttribute {
    AllocationAttribute {
        handle_id: Some(handle.to_owned()),
        secondary: attributes.clone(),
        ..AllocationAttribute::default()
    }
}

/// Whether a handle holds an address since a given sequence number.
pub(crate) fn holds(block: &IpamBlockSpec, ordinal: Ordinal, handle: &str, sequence: u64) -> bool {
    let holder = block.holder(ordinal).and_then(|holder| holder.handle_id.as_deref());
    holder == Some(handle) && block.sequence_of(ordinal) == sequence
}
