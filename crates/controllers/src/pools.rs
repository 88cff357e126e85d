//! Which pools may hand out addresses, and the deletion of pools.
//!
//! Of pools that overlap one is in force: the one that is in force already, otherwise the older one. One that is being
//! deleted stands in the way of others until it is gone.
//!
//! Where the datastore honours finalizers, a pool's deletion waits until its blocks are gone. Elsewhere deletion takes place
//! at once, and `calicoctl delete` looks first; there we set none, because it would promise what nobody keeps.

use std::cmp::Reverse;

use api::names::parse_block_name;
use api::{Condition, ConditionStatus, IP_POOL_FINALIZER, IpPool, IpPoolSpec, IpPoolStatus, Kind, Metadata, Resource};
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
    let unread = world
        .of_kind(Kind::IPPool)
        .filter(|pool| matches!(pool, Resource::Wrong(_)));
    let mut taken: Vec<(IpNet, &str)> = unread
        .filter_map(|pool| Some((range(pool)?, pool.metadata().name.as_str())))
        .collect();
    let mut actions = Vec::new();
    for pool in pools {
        let judgement = judge(pool, &taken);
        let in_force = judgement.status == ConditionStatus::True;
        if in_force || judgement.reason == IpPoolStatus::TERMINATING {
            taken.push((pool.spec.cidr, &pool.metadata.name));
        }
        let (name, generation) = (&pool.metadata.name, pool.metadata.generation);
        let conditions = pool.status.iter().flat_map(|status| &status.conditions);
        if !is_said(conditions, IpPoolStatus::ALLOCATABLE, &judgement, generation) {
            actions.push(Action::JudgePool {
                name: name.clone(),
                generation,
                allocatable: judgement,
            });
        }
        if finalizers {
            actions.extend(hold(pool, in_force));
        }
    }
    if finalizers {
        actions.extend(world.of_kind(Kind::IPPool).filter_map(|pool| let_go(pool, world)));
    }
    actions
}

/// Whether conditions say so already, of this generation.
pub fn is_said<'a>(
    mut conditions: impl Iterator<Item = &'a Condition>,
    kind: &str,
    judgement: &Judgement,
    generation: Option<i64>,
) -> bool {
    conditions.any(|condition| condition.kind == kind && judgement.is_said_by(condition, generation))
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

fn judge(pool: &IpPool, taken: &[(IpNet, &str)]) -> Judgement {
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
    let range = pool.spec.cidr;
    let overlaps = |(other, _): &&(IpNet, &str)| range.contains(other) || other.contains(&range);
    match taken.iter().find(overlaps) {
        Some((other, name)) => no(
            IpPoolStatus::CIDR_OVERLAP,
            format!("{range} overlaps {other} of IPPool({name})"),
        ),
        None => Judgement {
            status: ConditionStatus::True,
            reason: IpPoolStatus::OK,
            message: "addresses may be handed out".into(),
        },
    }
}

/// A pool in force is held; one that another stands in the way of is not, so that deleting it is easy.
fn hold(pool: &IpPool, in_force: bool) -> Option<Action> {
    let metadata = &pool.metadata;
    let held = is_held(metadata, IP_POOL_FINALIZER);
    let is_wanted = in_force || held && pool.spec.disabled;
    (metadata.deletion_timestamp.is_none() && held != is_wanted).then(|| Action::HoldPool {
        name: metadata.name.clone(),
        hold: is_wanted,
    })
}

/// A pool that is being deleted gives its claims back and goes when its last block has gone, whether it can be read or not.
fn let_go(pool: &Resource, world: &World) -> Option<Action> {
    let metadata = pool.metadata();
    if metadata.deletion_timestamp.is_none() || !is_held(metadata, IP_POOL_FINALIZER) {
        return None;
    }
    let name = metadata.name.clone();
    match has_blocks(pool, world.of_kind(Kind::IPPool), world.of_kind(Kind::IPAMBlock)) {
        true => range(pool).map(|cidr| Action::RetirePool { name, cidr }),
        false => Some(Action::HoldPool { name, hold: false }),
    }
}

/// Whether somebody's finalizer is on an object.
pub fn is_held(metadata: &Metadata, finalizer: &str) -> bool {
    metadata.finalizers.iter().any(|held| held == finalizer)
}

/// Whether blocks of a pool are there. Those of one whose range cannot be read may be whatever no other pool has.
pub fn has_blocks<'a>(
    pool: &Resource,
    pools: impl Iterator<Item = &'a Resource>,
    mut blocks: impl Iterator<Item = &'a Resource>,
) -> bool {
    let is_in = |range: &IpNet, block: Option<IpNet>| block.is_none_or(|block| range.contains(&block));
    match range(pool) {
        Some(range) => blocks.any(|block| is_in(&range, block_range(block))),
        None => {
            let others: Vec<IpNet> = pools.filter_map(range).collect();
            blocks.any(|block| {
                let block = block_range(block);
                block.is_none() || !others.iter().any(|range| is_in(range, block))
            })
        }
    }
}

/// A pool's range, unless it cannot be read.
fn range(pool: &Resource) -> Option<IpNet> {
    match pool {
        Resource::IPPool(pool) => Some(pool.spec.cidr),
        Resource::Wrong(wrong) if !wrong.is_in_doubt("spec.cidr") => wrong.readable().and_then(range),
        _ => None,
    }
}

/// Where a block is. One that cannot be read is where its name says.
fn block_range(block: &Resource) -> Option<IpNet> {
    match block {
        Resource::IPAMBlock(block) => Some(block.spec.cidr),
        other => parse_block_name(&other.metadata().name),
    }
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

    #[test]
    fn a_pool_that_cannot_be_read_goes_like_another_one() {
        // What its spec is, whether it is being deleted, where a block is, and what is done.
        let case = |spec: serde_json::Value, deleting: bool, block: Option<&str>, expected: &[&str]| {
            let mut metadata = json!({ "name": "w", "finalizers": [IP_POOL_FINALIZER] });
            if deleting {
                metadata["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
            }
            let pool: Resource =
                serde_json::from_value(json!({ "kind": "IPPool", "metadata": metadata, "spec": spec })).unwrap();
            assert!(matches!(pool, Resource::Wrong(_)), "{pool:?}");
            let block = block.map(|cidr| {
                let spec =
                    IpamBlockSpec::create(cidr.parse().unwrap(), &Owner::Host("n".into()), Timestamp::UNIX_EPOCH);
                IpamBlock::new("b", spec).into()
            });
            let other = world(&["a 10.0.0.0/16 3 active held"]);
            let other = other.of_kind(Kind::IPPool).cloned().collect::<Vec<_>>();
            let all: World = [pool].into_iter().chain(block).chain(other).collect();
            check(true, &all, expected);
        };
        let known = json!({ "cidr": "10.9.0.0/16", "blockSize": "big" });
        case(known.clone(), false, None, &[]);
        case(known.clone(), true, None, &["hold-pool w false"]);
        case(known.clone(), true, Some("10.0.0.0/26"), &["hold-pool w false"]);
        case(known, true, Some("10.9.0.0/26"), &["retire-pool w"]);
        let unknown = json!({ "cidr": "10.9.0.0/99" });
        case(unknown.clone(), true, None, &["hold-pool w false"]);
        case(unknown.clone(), true, Some("10.0.0.0/26"), &["hold-pool w false"]);
        case(unknown, true, Some("10.9.0.0/26"), &[]);
    }

    #[test]
    fn a_judgement_is_of_a_generation() {
        let mut pool = IpPool::new("a", IpPoolSpec::new("10.0.0.0/16".parse().unwrap()));
        pool.metadata.generation = Some(2);
        let mut judged = |observed: Option<i64>, expected: &[&str]| {
            pool.status = Some(IpPoolStatus {
                conditions: vec![Condition {
                    kind: IpPoolStatus::ALLOCATABLE.into(),
                    status: ConditionStatus::True,
                    observed_generation: observed,
                    last_transition_time: Timestamp::UNIX_EPOCH,
                    reason: "OK".into(),
                    message: "addresses may be handed out".into(),
                }],
            });
            check(false, &[pool.clone().into()].into_iter().collect(), expected);
        };
        judged(Some(2), &[]);
        judged(Some(1), &["judge-pool a OK"]);
        judged(None, &["judge-pool a OK"]);
    }
}
