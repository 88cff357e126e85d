//! What the packet filter's calculation costs, without a kernel: from a change of policy to the transaction that says it.
//!
//! With 2,000 sets of 100 addresses and 2,000 policies of 10 rules at 110 pods in place. Prints numbers, asserts none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use api::{Action, Key, Kind};
use dataplane::filter::Filter;
use policy::*;

const POLICIES: usize = 2_000;
const PODS: usize = 110;
const TURNS: u32 = 2_000;

fn main() {
    let start = Instant::now();
    let mut filter = Filter::default();
    filter.observed(None);
    filter.in_sync();
    (0..POLICIES).for_each(|index| filter.policy(PolicyChange::Set(set(index), members(index))));
    (0..POLICIES).for_each(|index| filter.policy(PolicyChange::Policy(id(index), Some(policy(index, 0)))));
    (0..PODS).for_each(|index| filter.policy(PolicyChange::Endpoint(pod_id(index), Some(pod(index)))));
    let changes = commit(&mut filter);
    println!("all of it: {:?}, {changes} changes", start.elapsed());

    turns("one member more", &mut filter, |filter, turn| {
        let member = Member::Net(std::net::IpAddr::from([172, 16, (turn / 256) as u8, turn as u8]).into());
        filter.policy(PolicyChange::Members(set(7), [member].into(), BTreeSet::new()));
    });
    turns("one policy of 10 rules", &mut filter, |filter, turn| {
        filter.policy(PolicyChange::Policy(id(7), Some(policy(7, turn))));
    });
    turns("one pod there or gone", &mut filter, |filter, turn| {
        let there = turn % 2 == 1;
        filter.policy(PolicyChange::Endpoint(pod_id(7), there.then(|| pod(7))));
    });
}

fn turns(what: &str, filter: &mut Filter, change: impl Fn(&mut Filter, u32)) {
    let mut times: Vec<_> = (0..TURNS)
        .map(|turn| {
            let start = Instant::now();
            change(filter, turn);
            commit(filter);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "{what}: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}

/// As a kernel that takes everything.
fn commit(filter: &mut Filter) -> usize {
    let Some(transaction) = filter.transaction() else {
        return 0;
    };
    filter.done(Ok(()));
    transaction.changes.len()
}

fn set(index: usize) -> SetId {
    SetId(format!("set-{index}"))
}

fn members(index: usize) -> Set {
    let address = |host: usize| std::net::IpAddr::from([10, (index / 256) as u8, index as u8, host as u8]);
    Set {
        kind: SetKind::Nets,
        meaning: String::new(),
        members: (0..100).map(|host| Member::Net(address(host).into())).collect(),
    }
}

fn id(index: usize) -> PolicyId {
    Key::namespaced(Kind::NetworkPolicy, "default", format!("policy-{index}"))
}

fn policy(index: usize, turn: u32) -> Arc<Policy> {
    let rule = |number: usize| Rule {
        index: number,
        action: Action::Allow,
        family: Some(Family::V4),
        protocol: Some(6),
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Side {
            sets: vec![set(index)],
            ..Side::default()
        },
        destination: Side {
            ports: vec![(number as u16 + 1, turn as u16 + 100)],
            ..Side::default()
        },
    };
    Arc::new(Policy {
        tier: "default".to_owned(),
        selector: "all()".to_owned(),
        ingress: (0..10).map(rule).collect(),
        egress: Arc::default(),
    })
}

fn pod_id(index: usize) -> EndpointId {
    EndpointId::Workload(Key::namespaced(
        Kind::WorkloadEndpoint,
        "default",
        format!("pod-{index}"),
    ))
}

/// Each pod has its share of the policies.
fn pod(index: usize) -> Arc<Endpoint> {
    let tier = Tier {
        name: "default".to_owned(),
        policies: (0..POLICIES).skip(index).step_by(PODS).map(id).collect(),
        staged: Vec::new(),
        end: TierEnd::Deny,
    };
    Arc::new(Endpoint {
        interface: Interface::Named(format!("cali{index}")),
        labels: Default::default(),
        addresses: vec![std::net::IpAddr::from([192, 168, 0, index as u8])],
        spoofable: Vec::new(),
        ingress: Direction { tiers: [tier].into() },
        egress: Direction::default(),
        forward: HostHook::default(),
        pre_dnat: Direction::default(),
        untracked: HostHook::default(),
        profiles: Vec::new(),
        closed: None,
    })
}
