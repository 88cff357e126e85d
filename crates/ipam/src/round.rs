//! One round of an allocation: the requests on their way, and the blocks that addresses were taken from in memory.

use std::collections::{BTreeMap, BTreeSet};

use api::IpamBlockSpec;
use datastore::StoreError;
use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::Family;
use crate::assign::{Assigned, AutoAssign, holder_of, holds};
use crate::fetch::At;
use crate::search::Candidate;
use crate::{Block, IpamError, Ordinal, Reservations};

/// One request on its way.
pub(crate) struct Job<'a> {
    pub request: &'a AutoAssign,
    pub got: BTreeMap<IpNet, Vec<Got>>,
    pub assigned: Assigned,
    pub failed: Option<IpamError>,
    /// Whether the handle has been written.
    pub raised: bool,
    /// What the handle counts beyond `got`.
    pub credit: BTreeMap<IpNet, u32>,
    /// Blocks of which it is not known whether they were written: the handle keeps counting them.
    pub unknown: BTreeSet<IpNet>,
}

/// An address that was got, and when.
pub(crate) struct Got {
    pub ordinal: Ordinal,
    pub sequence: u64,
}

impl<'a> Job<'a> {
    pub fn new(request: &'a AutoAssign) -> Self {
        Self {
            request,
            got: BTreeMap::new(),
            assigned: Assigned::default(),
            failed: None,
            raised: false,
            credit: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// The handle counts at least so many addresses, by block.
    pub fn has_raised(&mut self, counts: BTreeMap<IpNet, u32>) {
        self.raised = true;
        for (cidr, count) in counts {
            let credit = self.credit.entry(cidr).or_default();
            *credit = (*credit).max(count);
        }
    }

    pub fn lacks(&self, family: Family) -> usize {
        let (wanted, got) = match family {
            Family::V4 => (self.request.ipv4, self.assigned.v4.len()),
            Family::V6 => (self.request.ipv6, self.assigned.v6.len()),
        };
        if self.failed.is_some() {
            0
        } else {
            (wanted as usize).saturating_sub(got)
        }
    }

    pub fn lacks_in_all(&self) -> usize {
        Family::BOTH.into_iter().map(|family| self.lacks(family)).sum()
    }

    pub fn answer(self) -> Result<Assigned, IpamError> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(self.assigned),
        }
    }
}

/// A block with addresses taken, not yet written. Before [`Block::bump`], so that sequence numbers can be compared.
pub(crate) struct Swap {
    pub family: Family,
    pub at: At<IpamBlockSpec>,
    pub borrowed: bool,
    /// By index of the job.
    pub taken: BTreeMap<usize, Vec<Ordinal>>,
    /// The block as it was read.
    before: IpamBlockSpec,
}

impl Swap {
    pub fn take(family: Family, found: Candidate, jobs: &[&mut Job<'_>], reserved: &Reservations) -> Self {
        let Candidate { mut at, borrowed } = found;
        let before = at.object.spec.clone();
        let mut taken = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            if job.lacks(family) > 0 {
                let holder = holder_of(&job.request.handle, &job.request.attributes);
                let ordinals = at.object.spec.take(job.lacks(family), &holder, reserved);
                if !ordinals.is_empty() {
                    taken.insert(index, ordinals);
                }
            }
        }
        Self {
            family,
            at,
            borrowed,
            taken,
            before,
        }
    }

    /// The block to write.
    pub fn bumped(&self) -> At<IpamBlockSpec> {
        let mut at = self.at.clone();
        at.object.spec.bump();
        at
    }

    /// Undoes what a job took.
    pub fn drop_job(&mut self, index: usize) {
        let Some(ordinals) = self.taken.remove(&index) else {
            return;
        };
        // Back to their old places in the queue, and without a trace in the attributes.
        let taken: BTreeSet<u32> = self.taken.values().flatten().map(|ordinal| ordinal.0).collect();
        let block = &mut self.at.object.spec;
        block.give_back(&ordinals, Timestamp::UNIX_EPOCH, jiff::SignedDuration::ZERO);
        block.unallocated = self
            .before
            .unallocated
            .iter()
            .copied()
            .filter(|ordinal| !taken.contains(ordinal))
            .collect();
        for Ordinal(ordinal) in ordinals {
            let ordinal = ordinal.to_string();
            match self.before.sequence_number_for_allocation.get(&ordinal) {
                Some(old) => block.sequence_number_for_allocation.insert(ordinal, *old),
                None => block.sequence_number_for_allocation.remove(&ordinal),
            };
        }
    }

    /// Whether a block shows all that was taken.
    pub fn is_in(&self, seen: &IpamBlockSpec, jobs: &[&mut Job<'_>]) -> bool {
        let sequence = self.at.object.spec.sequence_number;
        self.taken.iter().all(|(index, ordinals)| {
            ordinals
                .iter()
                .all(|ordinal| holds(seen, *ordinal, &jobs[*index].request.handle, sequence))
        })
    }

    pub fn succeed(self, jobs: &mut [&mut Job<'_>]) {
        let (block, sequence) = (&self.at.object.spec, self.at.object.spec.sequence_number);
        for (index, ordinals) in &self.taken {
            let job = &mut jobs[*index];
            let credit = job.credit.entry(block.cidr).or_default();
            *credit = credit.saturating_sub(ordinals.len() as u32);
            for ordinal in ordinals {
                let address = block.address(*ordinal);
                job.got.entry(block.cidr).or_default().push(Got {
                    ordinal: *ordinal,
                    sequence,
                });
                // The prefix length is that of a block of the same family.
                let Ok(net) = IpNet::new(address, block.cidr.prefix_len()) else {
                    continue;
                };
                match self.family {
                    Family::V4 => job.assigned.v4.push(net),
                    Family::V6 => job.assigned.v6.push(net),
                }
            }
        }
    }

    pub fn fail(&self, jobs: &mut [&mut Job<'_>], error: &StoreError) {
        for index in self.taken.keys() {
            jobs[*index].failed = Some(error.clone().into());
        }
    }
}
