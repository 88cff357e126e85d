//! What a rehearsal says is what happens when staged policies are made real.

use std::collections::BTreeMap;

use api::resource::WorkloadEndpoint;
use api::{Key, Resource};

use super::misses::packet;
use super::random::{Random, resource, workload};
use crate::compute;
use crate::evaluate::{Hook, Step, Verdict, Way, evaluate_at, evaluate_rehearsed};
use crate::rehearsal::{Rehearsed, rehearsed};
use crate::state::Tier;

const NODE: &str = "n1";

/// The resources with every staged policy become what it says.
fn promoted(store: &BTreeMap<Key, Resource>) -> BTreeMap<Key, Resource> {
    let mut promoted = store.clone();
    for (key, resource) in store {
        let Some((subject, policy)) = rehearsed(resource) else {
            continue;
        };
        promoted.remove(key);
        match policy {
            Some(policy) => {
                assert_eq!(policy.key(), subject);
                promoted.insert(subject, policy);
            }
            None => drop(promoted.remove(&subject)),
        }
    }
    promoted
}

/// The outcome, and how far it went: names of staged policies are others.
fn shown(verdict: &Verdict) -> String {
    let last = verdict.trace.last();
    let closed = matches!(last, Some(Step::Closed(_)));
    assert!(!closed, "endpoints that are closed are not compared");
    format!("{} after {} steps", verdict.outcome, verdict.trace.len())
}

#[test]
fn a_rehearsal_is_true() {
    let (mut compared, mut differing, mut forwarded) = (0, 0, 0);
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut store: BTreeMap<Key, Resource> = BTreeMap::new();
        let mut locals: BTreeMap<Key, WorkloadEndpoint> = BTreeMap::new();
        for _ in 0..60 {
            let resource = resource(&mut random);
            store.insert(resource.key(), resource);
        }
        locals.extend((0..3).map(|_| workload(&mut random)));
        let now = compute(NODE, &locals, store.values());
        let then = compute(NODE, &locals, promoted(&store).values());
        let rehearsed = Rehearsed::of(store.values());
        for (id, endpoint) in &now.endpoints {
            // A rehearsal that cannot be followed is left out; if it were enforced, it would deny.
            let cannot_be_followed = |tier: &Tier| {
                let mut policies = tier.policies.iter().filter_map(|key| then.policies.get(key));
                policies.any(|policy| policy.selector.contains("cannot be followed"))
            };
            let ways = &then.endpoints[id];
            let ways = [&ways.ingress, &ways.egress, &ways.forward.ingress, &ways.forward.egress];
            if endpoint.closed.is_some() || ways.iter().any(|way| way.tiers.iter().any(cannot_be_followed)) {
                continue;
            }
            for _ in 0..10 {
                let packet = packet(&mut random);
                let asked = [Hook::Normal, Hook::Forward].map(|hook| [(hook, Way::Ingress), (hook, Way::Egress)]);
                for (hook, way) in asked.into_iter().flatten() {
                    let said = evaluate_rehearsed(&now, &rehearsed, id, hook, way, &packet);
                    let real = evaluate_at(&then, id, hook, way, &packet);
                    assert_eq!(
                        shown(&said),
                        shown(&real),
                        "seed {seed}, {id}: {packet:?}\n{said}\n{real}"
                    );
                    compared += 1;
                    let differs = said.outcome != evaluate_at(&now, id, hook, way, &packet).outcome;
                    differing += usize::from(differs);
                    forwarded += usize::from(differs && hook == Hook::Forward);
                }
            }
        }
    }
    assert!(
        compared > 1000 && differing > 20 && forwarded > 5,
        "{compared} compared, {differing} differ from what is enforced, {forwarded} of these are forwarded"
    );
}
