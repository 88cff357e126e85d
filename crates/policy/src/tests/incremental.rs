//! The graph agrees with the oracle after any sequence of updates, however they are ordered, repeated or coalesced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource};
use datastore::Update;

use super::random::{Random, resource, workload};
use crate::rehearsal::Rehearsed;
use crate::{Graph, PolicyChange, PolicyState, SetId, compute_with_problems};

const NODE: &str = "n1";

/// `MARGAY_SEQUENCES` runs more of them, `MARGAY_SEED` only one: a failure names it.
#[test]
fn incremental_agrees_with_from_scratch() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("MARGAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MARGAY_SEQUENCES").unwrap_or(20_000),
    };
    let seeds = Mutex::new(seeds.chain(FAILED_ONCE));
    let next = || seeds.lock().expect("nobody panics while it is held").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| std::iter::from_fn(next).for_each(sequence));
        }
    });
}

/// A staged policy and the one that it is about, in a history that numbers the staged one first.
const FAILED_ONCE: [u64; 1] = [1497];

/// One thing that the graph is told.
enum Told {
    Update(Update),
    Local(Key, Option<WorkloadEndpoint>),
}

/// What it is about.
fn key_of(told: &Told) -> (Key, bool) {
    match told {
        Told::Update(update) => (update.key.clone(), true),
        Told::Local(key, _) => (key.clone(), false),
    }
}

fn sequence(seed: u64) {
    let mut random = Random(seed);
    let mut graph = Graph::new(NODE);
    let mut store: BTreeMap<Key, Resource> = BTreeMap::new();
    let mut locals: BTreeMap<Key, WorkloadEndpoint> = BTreeMap::new();
    let mut follower = PolicyState::default();
    // Some sequences begin with a full cluster, others grow.
    let mut most = if random.one_in(3) { 60 } else { 8 };
    for round in 0..1 + random.below(6) {
        let mut burst = Vec::new();
        for _ in 0..random.below(most) {
            burst.push(match random.one_in(5) {
                true => pod(&mut random, &mut locals),
                false => update(&mut random, &mut store),
            });
        }
        most = 8;
        disturb(&mut random, &mut burst, &store);
        for told in burst {
            match told {
                Told::Update(update) => graph.apply(update),
                Told::Local(key, endpoint) => graph.local(key, endpoint),
            }
        }
        let at = format!("MARGAY_SEED={seed} round {round}");
        let changes = graph.flush();
        assert_ordered(&at, &changes);
        for change in changes {
            follow(&at, &mut follower, change);
            assert_no_dangling(&at, &follower);
        }
        let (wanted, problems) = compute_with_problems(NODE, &locals, store.values());
        assert_eq!(graph.state(), &wanted, "{at}");
        assert_eq!(follower, wanted, "the changes add up to the state: {at}");
        assert_eq!(graph.problems(), problems, "{at}");
        assert_eq!(graph.rehearsed(), &Rehearsed::of(store.values()), "{at}");
        assert!(graph.flush().is_empty(), "a second flush has nothing to say: {at}");
    }
}

fn update(random: &mut Random, store: &mut BTreeMap<Key, Resource>) -> Told {
    let resource = resource(random);
    let key = resource.key();
    let value = (!random.one_in(4)).then_some(resource);
    match &value {
        Some(resource) => drop(store.insert(key.clone(), resource.clone())),
        None => drop(store.remove(&key)),
    }
    Told::Update(Update { key, value })
}

fn pod(random: &mut Random, locals: &mut BTreeMap<Key, WorkloadEndpoint>) -> Told {
    let (key, endpoint) = workload(random);
    let endpoint = (!random.one_in(4)).then_some(endpoint);
    match &endpoint {
        Some(endpoint) => drop(locals.insert(key.clone(), endpoint.clone())),
        None => drop(locals.remove(&key)),
    }
    Told::Local(key, endpoint)
}

/// Reorders what concerns different keys, repeats some, deletes what never was, and keeps to itself what was said in between.
/// The last word on each key stays.
fn disturb(random: &mut Random, burst: &mut Vec<Told>, store: &BTreeMap<Key, Resource>) {
    if random.one_in(3) {
        let mut said = BTreeSet::new();
        let mut last: Vec<Told> = burst.drain(..).rev().filter(|told| said.insert(key_of(told))).collect();
        last.reverse();
        *burst = last;
    }
    for _ in 0..random.below(4) {
        if burst.len() > 1 {
            let at = random.below(burst.len() as u64 - 1) as usize;
            if key_of(&burst[at]) != key_of(&burst[at + 1]) {
                burst.swap(at, at + 1);
            }
        }
    }
    for (key, value) in store.iter().filter(|_| random.one_in(8)) {
        burst.push(Told::Update(Update {
            key: key.clone(),
            value: Some(value.clone()),
        }));
    }
    if random.one_in(3) {
        let kind = random.pick(&[Kind::GlobalNetworkPolicy, Kind::Profile, Kind::HostEndpoint, Kind::Tier]);
        burst.push(Told::Update(Update {
            key: Key::cluster(kind, "never-was"),
            value: None,
        }));
        let key = Key::namespaced(Kind::WorkloadEndpoint, "a", "never-was");
        burst.push(Told::Local(key, None));
    }
}

/// What is referred to comes before what refers to it, removals the other way round and last.
fn assert_ordered(at: &str, changes: &[PolicyChange]) {
    let rank = |change: &PolicyChange| match change {
        PolicyChange::Set(..) => 0,
        PolicyChange::Members(..) => 1,
        PolicyChange::Policy(_, Some(_)) => 2,
        PolicyChange::Profile(_, Some(_)) => 3,
        PolicyChange::Endpoint(_, Some(_)) => 4,
        PolicyChange::Endpoint(_, None) => 5,
        PolicyChange::Profile(_, None) => 6,
        PolicyChange::Policy(_, None) => 7,
        PolicyChange::SetGone(_) => 8,
    };
    assert!(changes.is_sorted_by_key(rank), "{at}: {changes:?}");
}

/// At no time does anything refer to what is not there.
fn assert_no_dangling(at: &str, state: &PolicyState) {
    for rule in state.rules() {
        for side in [&rule.source, &rule.destination] {
            let sets: [&[SetId]; 5] = [
                &side.sets,
                &side.not_sets,
                &side.named_ports,
                &side.not_named_ports,
                &side.services,
            ];
            for set in sets.into_iter().flatten() {
                assert!(state.sets.contains_key(set), "{at}: {set:?}");
            }
        }
    }
    for endpoint in state.endpoints.values() {
        let hooks = [
            &endpoint.ingress,
            &endpoint.egress,
            &endpoint.forward.ingress,
            &endpoint.forward.egress,
            &endpoint.pre_dnat,
            &endpoint.untracked.ingress,
            &endpoint.untracked.egress,
        ];
        for tier in hooks.into_iter().flat_map(|direction| direction.tiers.iter()) {
            for id in tier.policies.iter().chain(tier.staged.iter().map(|staged| &staged.id)) {
                assert!(state.policies.contains_key(id), "{at}: {id}");
            }
        }
        for profile in &endpoint.profiles {
            assert!(state.profiles.contains_key(profile), "{at}: {profile}");
        }
    }
}

/// What a receiver of the changes knows.
fn follow(at: &str, state: &mut PolicyState, change: PolicyChange) {
    match change {
        PolicyChange::Set(id, set) => assert!(state.sets.insert(id, set).is_none(), "{at}"),
        PolicyChange::Members(id, came, went) => {
            let set = state.sets.get_mut(&id).expect("a set that changes is known");
            for member in went {
                assert!(set.members.remove(&member), "{at}: {member:?}");
            }
            for member in came {
                assert!(set.members.insert(member), "{at}");
            }
        }
        PolicyChange::SetGone(id) => assert!(state.sets.remove(&id).is_some(), "{at}"),
        PolicyChange::Policy(id, Some(policy)) => drop(state.policies.insert(id, policy)),
        PolicyChange::Policy(id, None) => assert!(state.policies.remove(&id).is_some(), "{at}"),
        PolicyChange::Profile(name, Some(profile)) => drop(state.profiles.insert(name, profile)),
        PolicyChange::Profile(name, None) => assert!(state.profiles.remove(&name).is_some(), "{at}"),
        PolicyChange::Endpoint(id, Some(endpoint)) => drop(state.endpoints.insert(id, endpoint)),
        PolicyChange::Endpoint(id, None) => assert!(state.endpoints.remove(&id).is_some(), "{at}"),
    }
}
