//! What is told about the controllers: one report for readiness, status and metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::IpPool;
use api::{IpPoolSpec, IpReservationSpec, IpamBlockSpec};
use datastore::Trouble;
pub use health::Condition;
use ipam::{Block, Owner, Reservations, utilization};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::desk::{Desk, Sync};
use crate::leadership::Wait;

/// Everything, as `/status` answers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Whether it may be relied upon: it leads and works, or it waits to lead.
    pub ready: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Why it should be started again, if it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hung: Option<String>,
    /// Each part with its reason.
    pub conditions: Vec<Condition>,
    /// What cannot be done as it is written.
    pub problems: Vec<String>,
    /// What was done, by verb.
    pub actions: BTreeMap<String, Counts>,
    /// Addresses by pool and node.
    pub addresses: Vec<AddressCounts>,
    /// The pools.
    pub pools: Vec<PoolCounts>,
}

/// How often something was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Done.
    pub done: u64,
    /// Found that there was nothing to do any more.
    pub nothing: u64,
    /// Failed.
    pub failed: u64,
}

/// Addresses of one pool and one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressCounts {
    /// The pool's name, or [`NO_POOL`].
    pub pool: String,
    /// The node's name; for blocks of nobody [`NO_AFFINITY`], for holders without a node [`UNKNOWN_NODE`].
    pub node: String,
    /// Addresses in use.
    pub in_use: u64,
    /// Of those, from blocks of others.
    pub borrowed: u64,
    /// Of those, what looks like a leak.
    pub candidates: u64,
    /// Addresses that were freed as leaks since the start.
    pub reclaimed: u64,
    /// Blocks of the node.
    pub blocks: u64,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolCounts {
    /// Its name.
    pub pool: String,
    /// All its addresses.
    pub size: u128,
    /// Of those, reserved and not in use.
    pub reserved: u128,
}

/// In place of a pool's name.
pub const NO_POOL: &str = "no_ippool";
/// In place of a node's name, for blocks that nobody owns.
pub const NO_AFFINITY: &str = "no_affinity";
/// In place of a node's name, for addresses whose holder names none.
pub const UNKNOWN_NODE: &str = "unknown_node";

/// Freed addresses by pool and node, kept since the start.
#[derive(Clone, Debug, Default)]
pub struct Reclaimed(BTreeMap<(String, String), u64>);

impl Reclaimed {
    /// Counts an address of a node.
    pub fn count(&mut self, desk: &Desk, address: IpAddr, node: &str) {
        let pools: Vec<&IpPool> = desk.world().all::<IpPoolSpec>().collect();
        let pool = pool_name(&pools, address);
        *self.0.entry((pool, node.to_owned())).or_default() += 1;
    }
}

/// How it goes with the worker.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Counts by verb.
    pub actions: BTreeMap<String, Counts>,
    /// The last failure, if nothing has succeeded since.
    pub failure: Option<String>,
    /// What fails, each with the last reason that was logged.
    pub failing: Failing,
    /// Freed addresses.
    pub reclaimed: Reclaimed,
    /// Why this process does not lead, once that is known.
    pub waits: Option<Wait>,
    /// What is being done, and since when.
    pub busy: Option<(String, std::time::Instant)>,
}

/// What fails again and again: it is tried every few seconds, and logged when it begins and when its reason changes.
#[derive(Clone, Debug, Default)]
pub struct Failing(BTreeMap<String, (String, Timestamp)>);

impl Failing {
    /// An action that was not tried for so long is not failing any more.
    const FORGOTTEN: SignedDuration = SignedDuration::from_mins(10);

    /// An action has failed; whether that, or why, is news.
    pub fn failed(&mut self, now: Timestamp, action: &str, why: &str) -> bool {
        self.0.retain(|_, (_, at)| now.duration_since(*at) < Self::FORGOTTEN);
        let before = self.0.insert(action.to_owned(), (why.to_owned(), now));
        before.is_none_or(|(before, _)| before != why)
    }

    /// An action has succeeded, or there was nothing to do any more.
    pub fn ended(&mut self, action: &str) {
        self.0.remove(action);
    }
}

/// How long one action may take before the process counts as hung.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Puts the report together. `trouble` is what the store itself says of its watches.
pub fn assemble(desk: &Desk, work: &Work, started: Timestamp, trouble: Option<&Trouble>) -> Report {
    let conditions = conditions(desk, work, trouble);
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started,
        ready: conditions.iter().all(|condition| condition.ok || !condition.required),
        leads: desk.leads(),
        hung: hung(work),
        conditions,
        problems: desk.problems().to_vec(),
        actions: work.actions.clone(),
        addresses: addresses(desk, &work.reclaimed),
        pools: pool_counts(desk),
    }
}

fn hung(work: &Work) -> Option<String> {
    let (what, since) = work.busy.as_ref()?;
    let time = since.elapsed();
    (time > PATIENCE).then(|| format!("{what} has taken {} s", time.as_secs()))
}

fn conditions(desk: &Desk, work: &Work, trouble: Option<&Trouble>) -> Vec<Condition> {
    let condition = |name: &str, ok, required, reason: &str, message: String| Condition {
        name: name.to_owned(),
        ok,
        required,
        reason: reason.to_owned(),
        message,
    };
    let leadership = match (desk.leads(), &work.waits) {
        (true, _) => (true, "Leading", "this process writes".to_owned()),
        (false, None) => (true, "Standby", "this process does not lead".to_owned()),
        (false, Some(Wait::Other(why))) => (true, "Standby", why.clone()),
        (false, Some(Wait::Trouble(why))) => (false, "Unknown", why.clone()),
    };
    let failing = work.failure.clone();
    let worker = match (&failing, desk.idle()) {
        (Some(why), _) => (false, "Failing", why.clone()),
        (None, Some(why)) => (true, "Idle", why.to_owned()),
        (None, None) => (true, "Working", "what was decided was done".to_owned()),
    };
    let missing = desk.missing();
    let complete = match missing.is_empty() {
        true => (true, "Complete", "every controller that is on is here".to_owned()),
        false => {
            let names = missing.join(", ");
            (false, "NotInThisBuild", format!("on, but not in this build: {names}"))
        }
    };
    let problems = desk.problems();
    let written = match problems.first() {
        None => (true, "Valid", "everything can be done as it is written".to_owned()),
        Some(first) => (false, "Problems", format!("{first} ({} in all)", problems.len())),
    };
    vec![
        datastore(desk, trouble),
        condition("Leadership", leadership.0, false, leadership.1, leadership.2),
        condition("Worker", worker.0, false, worker.1, worker.2),
        condition("Configuration", written.0, false, written.1, written.2),
        condition("Controllers", complete.0, false, complete.1, complete.2),
    ]
}

/// Once all was read, watches that go on by themselves are a warning: nothing was missed yet.
fn datastore(desk: &Desk, trouble: Option<&Trouble>) -> Condition {
    let (ok, required, reason, message) = match (desk.state(), trouble) {
        (Sync::Connecting, _) => (
            false,
            true,
            "Connecting",
            "the datastore has not been read yet".to_owned(),
        ),
        (Sync::InSync, None) => (true, true, "InSync", "everything was read; changes follow".to_owned()),
        (Sync::InSync, Some(trouble)) => (
            false,
            false,
            trouble.reason.word(),
            format!("working from what was read: {trouble}"),
        ),
        (Sync::Disconnected { error, was_read }, _) => (false, true, error.loss(*was_read), error.to_string()),
    };
    Condition {
        name: "Datastore".to_owned(),
        ok,
        required,
        reason: reason.to_owned(),
        message,
    }
}

fn addresses(desk: &Desk, reclaimed: &Reclaimed) -> Vec<AddressCounts> {
    let pools: Vec<&IpPool> = desk.world().all::<IpPoolSpec>().collect();
    let mut all: BTreeMap<(String, String), AddressCounts> = BTreeMap::new();
    let suspects: std::collections::BTreeSet<IpAddr> = desk.suspects().iter().map(|suspect| suspect.ip).collect();
    for block in desk.world().all::<IpamBlockSpec>() {
        let pool = pool_name(&pools, block.spec.cidr.network());
        let owner: Option<Owner> = block.spec.affinity.as_deref().and_then(|owner| owner.parse().ok());
        let owner = owner.as_ref().map(Owner::name);
        let mut at = |node: &str, change: &dyn Fn(&mut AddressCounts)| {
            let counts = all.entry((pool.clone(), node.to_owned())).or_default();
            change(counts);
        };
        at(owner.unwrap_or(NO_AFFINITY), &|counts| counts.blocks += 1);
        for (ordinal, holder) in block.spec.allocated() {
            if holder.released_at.is_some() {
                continue;
            }
            let node = holder.secondary.get("node").map(String::as_str);
            let is_borrowed = node.is_some() && node != owner;
            let is_suspect = suspects.contains(&block.spec.address(ordinal));
            at(node.unwrap_or(UNKNOWN_NODE), &|counts| {
                counts.in_use += 1;
                counts.borrowed += u64::from(is_borrowed);
                counts.candidates += u64::from(is_suspect);
            });
        }
    }
    for (key, count) in &reclaimed.0 {
        all.entry(key.clone()).or_default().reclaimed = *count;
    }
    let named = all
        .into_iter()
        .map(|((pool, node), counts)| AddressCounts { pool, node, ..counts });
    named.collect()
}

fn pool_counts(desk: &Desk) -> Vec<PoolCounts> {
    let pools: Vec<IpPool> = desk.world().all::<IpPoolSpec>().cloned().collect();
    let blocks: Vec<IpamBlockSpec> = desk
        .world()
        .all::<IpamBlockSpec>()
        .map(|block| block.spec.clone())
        .collect();
    let reserved = desk.world().all::<IpReservationSpec>();
    let reserved: Vec<ipnet::IpNet> = reserved
        .flat_map(|one| one.spec.reserved_cidrs.iter().copied())
        .collect();
    let uses = utilization(&pools, &blocks, &Reservations::new(&reserved));
    let counts = uses.into_iter().filter_map(|pool| {
        Some(PoolCounts {
            pool: pool.name?,
            size: pool.capacity,
            reserved: pool.reserved,
        })
    });
    counts.collect()
}

fn pool_name(pools: &[&IpPool], address: IpAddr) -> String {
    let found = pools
        .iter()
        .filter(|pool| pool.spec.cidr.contains(&address))
        .max_by_key(|pool| pool.spec.cidr.prefix_len());
    found.map_or_else(|| NO_POOL.to_owned(), |pool| pool.metadata.name.clone())
}

#[cfg(test)]
mod tests {
    use datastore::{Reason, StoreError, SyncEvent};

    use super::*;
    use crate::desk::Abilities;
    use crate::settings::Environment;

    #[test]
    fn the_datastore_is_said_to_be_what_is_wrong_with_it() {
        let check = |events: &[SyncEvent], trouble: Option<Trouble>, expected: &str| {
            let environment = Environment::read(&|_| None).unwrap();
            let mut desk = Desk::new(Abilities::default(), environment);
            events.iter().cloned().for_each(|event| desk.sync(event));
            let report = assemble(&desk, &Work::default(), Timestamp::UNIX_EPOCH, trouble.as_ref());
            let said = report.conditions.iter().find(|one| one.name == "Datastore").unwrap();
            let ready = if report.ready { "ready" } else { "not ready" };
            assert_eq!(
                format!("{ready} {} {}: {}", said.ok, said.reason, said.message),
                expected
            );
        };
        let read = || SyncEvent::InSync;
        let lost = |reason, text: &str| SyncEvent::Disconnected(StoreError::unavailable(reason, text));
        let expired = || lost(Reason::Unauthorized, "expired");
        let unnamed = || lost(Reason::Unavailable, "no socket");
        let unavailable = "the datastore is not available";
        check(
            &[],
            None,
            "not ready false Connecting: the datastore has not been read yet",
        );
        check(
            &[read()],
            None,
            "ready true InSync: everything was read; changes follow",
        );
        let slow = Trouble::new(Reason::TooSlow, "no answer");
        let expected = "ready false TooSlow: working from what was read: no answer";
        check(&[read()], Some(slow), expected);
        let expected = format!("not ready false Unauthorized: {unavailable}: expired");
        check(&[expired()], None, &expected);
        check(&[read(), expired()], None, &expected);
        // Stores that name no reason.
        let expected = format!("not ready false Unreachable: {unavailable}: no socket");
        check(&[unnamed()], None, &expected);
        check(&[expired(), unnamed()], None, &expected);
        let expected = format!("not ready false Disconnected: {unavailable}: no socket");
        check(&[read(), expired(), unnamed()], None, &expected);
        check(
            &[unnamed(), read()],
            None,
            "ready true InSync: everything was read; changes follow",
        );
    }

    #[test]
    fn what_fails_is_news_once() {
        let mut failing = Failing::default();
        // Second, action, why it failed if it did, and whether that is logged.
        for (second, action, why, news) in [
            (0, "a", Some("x"), true),
            (0, "b", Some("x"), true),
            (5, "a", Some("x"), false),
            (5, "b", Some("x"), false),
            (10, "a", Some("y"), true),
            (15, "a", Some("y"), false),
            (20, "a", None, false),
            (25, "a", Some("y"), true),
            (604, "b", Some("x"), false),
            (605, "a", Some("y"), false),
            (1300, "a", Some("y"), true),
        ] {
            let now = Timestamp::from_second(second).unwrap();
            let said = match why {
                Some(why) => failing.failed(now, action, why),
                None => {
                    failing.ended(action);
                    false
                }
            };
            assert_eq!(said, news, "{action} at {second} s");
        }
        assert_eq!(failing.0.len(), 1, "what is not tried any more is forgotten");
    }
}
