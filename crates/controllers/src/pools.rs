//! Which pools may hand out addresses, and the deletion of pools.
//!
//! Of pools that overlap one is in force: the one that is in force already, otherwise the older one. One that is being
//! deleted stands in the way of others until it is gone.
//!
//! Where the datastore honours finalizers, a pool's deletion waits until its blocks are gone. Elsewhere deletion takes place
//! at once, and `calicoctl delete` looks first; there we set none, because it would promise what nobody keeps.

use std::cmp::Reverse;

use api::names::parse_block_name;
use api::{Condition, ConditionStatus, IP_POOL_FINALIZER, IpPool, IpPoolSpec, IpPoolStatus, Kind, Resource};
use ipnet::IpNet;

use crate::action::{Action, Judgement};
use crate::world::World;

/// What to do about pools.
pub fn decide(world: &World, finalizers: bool) -> Vec<Action> {
    let mut pools: Vec<&IpPool> = world.all::<IpPoolSpec>().collect();
    pools.sort_by_key(|pool| {
        let metadata = &pool.metadata;
        (
            rank(pool),
            Reverse(metadata.creation_timestamp.is_some()),
            metadata.creation_timestamp,
            &metadata.name,
        )
    });
    // One that cannot be read as a whole may have addresses in use.
    let unread = world.of_kind(Kind::IPPool).filter_map(|resource| match resource {
        Resource::Wrong(wrong) if !wrong.is_in_doubt("spec.cidr") => wrong.readable()?.try_into().ok(),
        _ => None,
    });
    let mut taken: Vec<&IpPool> = unread.collect();
    let mut actions = Vec::new();
    for pool in pools {
        let judgement = judge(pool, &taken);
        let in_force = judgement.status == ConditionStatus::True;
        if in_force || judgement.reason == IpPoolStatus::TERMINATING {
            taken.push(pool);
        }
        let name = &pool.metadata.name;
        let conditions = pool.status.iter().flat_map(|status| &status.conditions);
        if !is_said(conditions, IpPoolStatus::ALLOCATABLE, &judgement) {
            actions.push(Action::JudgePool {
                name: name.clone(),
                allocatable: judgement,
            });
        }
        if finalizers {
            actions.extend(finalize(pool, in_force, world));
        }
    }
    actions
}

/// Whether conditions say so already.
pub fn is_said<'a>(mut conditions: impl Iterator<Item = &'a Condition>, kind: &str, judgement: &Judgement) -> bool {
    conditions.any(|condition| {
        condition.kind == kind
            && condition.status == judgement.status
            && condition.reason == judgement.reason
            && condition.message == judgement.message
    })
}

/// Who comes first: in force, being deleted, not in force, new.
fn rank(pool: &IpPool) -> u8 {
    let conditions = pool.status.iter().flat_map(|status| &status.conditions);
    let said = conditions
        .filter(|condition| condition.kind == IpPoolStatus::ALLOCATABLE)
        .map(|condition| condition.status)
        .next();
    match (pool.metadata.deletion_timestamp, said) {
        (Some(_), _) => 1,
        (None, Some(ConditionStatus::True)) => 0,
        (None, Some(ConditionStatus::False)) => 2,
        (None, _) => 3,
    }
}

fn judge(pool: &IpPool, taken: &[&IpPool]) -> Judgement {
    let no = |reason, message: String| Judgement {
        status: ConditionStatus::False,
        reason,
        message,
    };
    if pool.metadata.deletion_timestamp.is_some() {
        return no(IpPoolStatus::TERMINATING, "the pool is being deleted".into());
    }
    if pool.spec.disabled {
        return no(IpPoolStatus::POOL_DISABLED, "spec.disabled is true".into());
    }
    let overlaps = |other: &&&IpPool| {
        let (a, b) = (pool.spec.cidr, other.spec.cidr);
        a.contains(&b) || b.contains(&a)
    };
    match taken.iter().find(overlaps) {
        Some(other) => no(
            IpPoolStatus::CIDR_OVERLAP,
            format!(
                "{} overlaps {} of IPPool({})",
                pool.spec.cidr, other.spec.cidr, other.metadata.name
            ),
        ),
        None => Judgement {
            status: ConditionStatus::True,
            reason: IpPoolStatus::OK,
            message: "addresses may be handed out".into(),
        },
    }
}

/// A pool in force is held; one that another stands in the way of is not, so that deleting it is easy. One that is being
/// deleted gives its claims back and goes when its last block has gone.
fn finalize(pool: &IpPool, in_force: bool, world: &World) -> Option<Action> {
    let name = pool.metadata.name.clone();
    let held = pool
        .metadata
        .finalizers
        .iter()
        .any(|finalizer| finalizer == IP_POOL_FINALIZER);
    let hold = |hold| Action::HoldPool {
        name: name.clone(),
        hold,
    };
    match (pool.metadata.deletion_timestamp.is_some(), held) {
        (false, false) if in_force => Some(hold(true)),
        (false, true) if !in_force && !pool.spec.disabled => Some(hold(false)),
        (true, true) if has_blocks(pool.spec.cidr, world) => Some(Action::RetirePool {
            name,
            cidr: pool.spec.cidr,
        }),
        (true, true) => Some(hold(false)),
        _ => None,
    }
}

fn has_blocks(cidr: IpNet, world: &World) -> bool {
    world.of_kind(Kind::IPAMBlock).any(|block| is_block_in(cidr, block))
}

/// Whether a block is one of a pool with this range. One that cannot be read is where its name says.
pub fn is_block_in(cidr: IpNet, block: &Resource) -> bool {
    let range = match block {
        Resource::IPAMBlock(block) => Some(block.spec.cidr),
        other => parse_block_name(&other.metadata().name),
    };
    range.is_none_or(|range| cidr.contains(&range))
}

#[cfg(test)]
mod tests {
    use api::{IpamBlock, IpamBlockSpec};
    use ipam::{Block, Owner};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    /// Pools as lines `name cidr created [disabled] [deleting] [held] [active|inactive]`.
    fn world(lines: &[&str]) -> World {
        let pool = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let has = |word| words.contains(&word);
            let mut spec = IpPoolSpec::new(words[1].parse().unwrap());
            spec.disabled = has("disabled");
            let mut pool = IpPool::new(words[0], spec);
            let at = |second: &str| Timestamp::from_second(second.parse().unwrap()).unwrap();
            pool.metadata.creation_timestamp = Some(at(words[2]));
            pool.metadata.deletion_timestamp = has("deleting").then(|| at("9"));
            if has("held") {
                pool.metadata.finalizers.push(IP_POOL_FINALIZER.to_owned());
            }
            if has("active") || has("inactive") {
                let status = if has("active") {
                    ConditionStatus::True
                } else {
                    ConditionStatus::False
                };
                let condition = Condition {
                    kind: IpPoolStatus::ALLOCATABLE.into(),
                    status,
                    observed_generation: None,
                    last_transition_time: at("1"),
                    reason: "OK".into(),
                    message: "addresses may be handed out".into(),
                };
                pool.status = Some(IpPoolStatus {
                    conditions: vec![condition],
                });
            }
            pool.into()
        };
        lines.iter().map(pool).collect()
    }

    #[track_caller]
    fn check(finalizers: bool, world: &World, expected: &[&str]) {
        let mut lines: Vec<String> = decide(world, finalizers).iter().map(ToString::to_string).collect();
        lines.sort();
        assert_eq!(lines, expected);
    }

    #[test]
    fn of_overlapping_pools_the_one_in_force_stays_then_the_oldest() {
        let pools = [
            "a 10.0.0.0/16 3",
            "b 10.0.1.0/24 2",
            "c 10.1.0.0/16 5",
            "v6 fd00::/48 1",
        ];
        let expected = [
            "judge-pool a CIDROverlap",
            "judge-pool b OK",
            "judge-pool c OK",
            "judge-pool v6 OK",
        ];
        check(false, &world(&pools), &expected);
        let pools = ["a 10.0.0.0/16 3 active", "b 10.0.1.0/24 2"];
        check(false, &world(&pools), &["judge-pool b CIDROverlap"]);
        let pools = ["a 10.0.0.0/16 3 active disabled", "b 10.0.1.0/24 2 inactive"];
        check(false, &world(&pools), &["judge-pool a PoolDisabled", "judge-pool b OK"]);
        let pools = ["a 10.0.0.0/16 3 deleting", "b 10.0.1.0/24 2 inactive"];
        check(
            false,
            &world(&pools),
            &["judge-pool a Terminating", "judge-pool b CIDROverlap"],
        );
        check(false, &world(&["a 10.0.0.0/16 3 active"]), &[]);
    }

    #[test]
    fn a_pool_is_held_while_it_is_in_force_and_until_its_blocks_are_gone() {
        check(true, &world(&["a 10.0.0.0/16 3 active"]), &["hold-pool a true"]);
        check(true, &world(&["a 10.0.0.0/16 3 active held"]), &[]);
        let overlap = ["a 10.0.0.0/16 3 active held", "b 10.0.0.0/24 4 held"];
        check(
            true,
            &world(&overlap),
            &["hold-pool b false", "judge-pool b CIDROverlap"],
        );
        let mut deleting = world(&["a 10.0.0.0/16 3 held deleting"]);
        check(true, &deleting, &["hold-pool a false", "judge-pool a Terminating"]);
        let owner = Owner::Host("n".into());
        let cidr = "10.0.0.0/26".parse().unwrap();
        let block = IpamBlock::new("b", IpamBlockSpec::create(cidr, &owner, Timestamp::UNIX_EPOCH));
        deleting.apply(datastore::Update {
            key: block.key(),
            value: Some(block.into()),
        });
        check(true, &deleting, &["judge-pool a Terminating", "retire-pool a"]);
        // One that cannot be read is there all the same.
        let wrong = |name: &str| -> World {
            let block = json!({ "kind": "IPAMBlock", "metadata": { "name": name }, "spec": 5 });
            let block: Resource = serde_json::from_value(block).unwrap();
            let mut world = world(&["a 10.0.0.0/16 3 held deleting"]);
            world.apply(datastore::Update {
                key: block.key(),
                value: Some(block),
            });
            world
        };
        let waits = ["judge-pool a Terminating", "retire-pool a"];
        check(true, &wrong("10-0-0-0-26"), &waits);
        let elsewhere = ["hold-pool a false", "judge-pool a Terminating"];
        check(true, &wrong("10-9-0-0-26"), &elsewhere);
    }
}
