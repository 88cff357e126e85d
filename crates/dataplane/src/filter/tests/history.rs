//! Any sequence of changes, with refusals, strangers, lost answers and restarts in between, leaves the table that a fresh
//! filter makes of the last state.

use std::collections::BTreeSet;
use std::sync::Arc;

use kernel::IfName;
use kernel::nft::{Cause, ChainName, Change, FakeNft, NftError, SetName, Transaction};
use policy::*;

use super::agree::text;
use super::build::*;
use super::random::*;
use crate::LocalEndpoint;
use crate::filter::{Cluster, DenyAction, Filter, FloatingIp, HostPort, Nat, NatPool, Settings, Table};

const HISTORIES: u64 = 60;

#[test]
fn any_history_ends_as_a_fresh_start() {
    // A failure names its history: run only that one with MARGAY_SEED.
    let only = std::env::var("MARGAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..HISTORIES, |seed| seed..seed + 1);
    for seed in seeds {
        println!("MARGAY_SEED={seed}");
        history(seed);
    }
}

/// A kernel that refuses some chains' rules and some sets.
pub struct Refusing {
    pub fake: FakeNft,
    pub chains: BTreeSet<ChainName>,
    pub sets: BTreeSet<SetName>,
}

impl Refusing {
    pub fn new(random: &mut Random) -> Self {
        let chains = [
            "cali-pi-np/default/a",
            "cali-po-np/default/b",
            "cali-pri-kns.default",
            "cali-fw-cali2",
        ];
        let sets = ["cali-set4-nets-a", "cali-nets6-nets-b", "cali-set4-ports-c"];
        let rarely = |random: &mut Random| random.one_in(6);
        Self {
            fake: FakeNft::new(),
            chains: chains
                .iter()
                .filter(|_| rarely(random))
                .map(|name| ChainName::from(*name))
                .collect(),
            sets: sets
                .iter()
                .filter(|_| rarely(random))
                .map(|name| SetName::from(*name))
                .collect(),
        }
    }

    fn another(&self) -> Self {
        Self {
            fake: FakeNft::new(),
            chains: self.chains.clone(),
            sets: self.sets.clone(),
        }
    }

    fn apply(&self, transaction: &Transaction) -> Result<(), NftError> {
        let is_refused = |change: &Change| match change {
            Change::AddRule(chain, rule) => {
                let stands_in = rule
                    .comment
                    .as_ref()
                    .is_some_and(|comment| comment.starts_with("refused: "));
                self.chains.contains(chain) && !stands_in
            }
            Change::AddSet(spec) => self.sets.contains(&spec.name),
            _ => false,
        };
        match transaction.changes.iter().position(is_refused) {
            Some(index) => Err(NftError::Refused {
                change: Some(index),
                what: transaction.changes[index].to_string(),
                cause: Cause::Malformed,
                reason: "Invalid argument".to_owned(),
                errno: 22,
            }),
            None => self.fake.apply_now(transaction),
        }
    }

    pub fn settle(&self, filter: &mut Filter) {
        for _ in 0..100 {
            if filter.wants_look() {
                filter.observed(self.fake.seen(&table()).as_ref());
            }
            let Some(transaction) = filter.transaction() else {
                return;
            };
            filter.done(self.apply(&transaction));
        }
        panic!("no end of transactions; problems: {:?}", filter.problems());
    }

    fn table(&self) -> Table {
        let seen = self.fake.seen(&table()).expect("our table");
        Table::seen(&seen).expect("only our things")
    }
}

/// All that a filter is told.
#[derive(Default)]
struct World {
    state: PolicyState,
    settings: Settings,
    cluster: Cluster,
    nat: Nat,
    locals: Vec<(String, LocalEndpoint)>,
}

impl World {
    fn tell(&self, filter: &mut Filter) {
        filter.settings(self.settings.clone());
        filter.cluster(self.cluster.clone());
        filter.nat(self.nat.clone());
        self.locals
            .iter()
            .for_each(|(id, local)| filter.endpoint(id.clone(), Some(local.clone())));
        changes(&self.state)
            .into_iter()
            .for_each(|change| filter.policy(change));
    }
}

fn history(seed: u64) {
    let mut random = Random(seed);
    let kernel = Refusing::new(&mut random);
    let mut world = World {
        state: state(&mut random),
        ..World::default()
    };
    let mut filter = Filter::default();
    world.tell(&mut filter);
    filter.in_sync();
    for _ in 0..random.below(25) {
        step(&mut world, &mut filter, &kernel, &mut random);
        if random.one_in(2) {
            kernel.settle(&mut filter);
            same(&kernel.table(), &filter.table());
        }
    }
    kernel.settle(&mut filter);
    ends_as_a_fresh_start(&world, &mut filter, &kernel);
}

fn ends_as_a_fresh_start(world: &World, filter: &mut Filter, kernel: &Refusing) {
    let there = kernel.table();
    same(&there, &filter.table());

    let another = kernel.another();
    let mut fresh = Filter::default();
    world.tell(&mut fresh);
    fresh.in_sync();
    another.settle(&mut fresh);
    same(&there, &another.table());
    let (mut ours, mut others) = (filter.problems(), fresh.problems());
    // Which change was refused depends on the transaction.
    ours.iter_mut()
        .chain(&mut others)
        .for_each(|problem| problem.reason.clear());
    assert_eq!(ours, others);
}

/// Fails with the lines in which two tables differ.
fn same(one: &Table, other: &Table) {
    let (one, other) = (text(one), text(other));
    if one != other {
        let of = |text: &str, without: &str| -> Vec<String> {
            let there: BTreeSet<&str> = without.lines().collect();
            text.lines()
                .filter(|line| !there.contains(line))
                .map(str::to_owned)
                .collect()
        };
        panic!(
            "only here: {:#?}\nonly there: {:#?}",
            of(&one, &other),
            of(&other, &one)
        );
    }
}

fn step(world: &mut World, filter: &mut Filter, kernel: &Refusing, random: &mut Random) {
    match random.below(16) {
        0..=2 => change_members(world, filter, random),
        3 => {
            let id = random.pick(&[NET_SETS, PORT_SETS].concat());
            let new = set_of(random, id);
            world.state.sets.insert(set(id), new.clone());
            filter.policy(PolicyChange::Set(set(id), new));
        }
        4 | 5 => {
            let (id, new) = (random.pick(&policies()), Arc::new(policy_of(random)));
            world.state.policies.insert(id.clone(), new.clone());
            filter.policy(PolicyChange::Policy(id, Some(new)));
        }
        // A policy that somebody still asks: closed until it is there.
        6 => {
            let id = random.pick(&policies());
            world.state.policies.remove(&id);
            filter.policy(PolicyChange::Policy(id, None));
        }
        7 => {
            let name = random.pick(&PROFILES).to_owned();
            let new = (!random.one_in(3)).then(|| Arc::new(profile_of(random)));
            crate::filter::machine::put(&mut world.state.profiles, name.clone(), new.clone());
            filter.policy(PolicyChange::Profile(name, new));
        }
        8 | 9 => {
            let index = random.below(4);
            let new = (!random.one_in(3)).then(|| Arc::new(pod_of(random, index)));
            let id = wep(DEVICES[index]);
            crate::filter::machine::put(&mut world.state.endpoints, id.clone(), new.clone());
            filter.policy(PolicyChange::Endpoint(id, new));
        }
        10 => {
            let (id, interface) = match random.one_in(2) {
                true => (hep("eth0"), Interface::Named("eth0".into())),
                false => (hep("all"), Interface::All),
            };
            let new = (!random.one_in(3)).then(|| Arc::new(host_of(random, interface)));
            crate::filter::machine::put(&mut world.state.endpoints, id.clone(), new.clone());
            filter.policy(PolicyChange::Endpoint(id, new));
        }
        11 => {
            world.settings = Settings {
                flow_logs: random.one_in(2),
                deny: random.pick(&[DenyAction::Drop, DenyAction::Reject]),
                mark_mask: random.pick(&[0xffff_0000, 0xf000]),
                ..Settings::default()
            };
            filter.settings(world.settings.clone());
        }
        12 => {
            world.cluster = Cluster {
                pools: random.some(2, |random| NatPool {
                    net: net(random.pick(&["10.0.0.0/16", "10.0.1.0/24", "fd00::/48"])),
                    nat_outgoing: random.one_in(2),
                }),
                nodes: random.some(3, address).into_iter().collect(),
                ipip: random.one_in(2),
                vxlan: random.one_in(2),
                services: random.some(1, |_| net("10.96.0.0/12")),
                ..Cluster::default()
            };
            filter.cluster(world.cluster.clone());
        }
        13 => {
            world.nat = Nat {
                floating_ips: random.some(1, |_| FloatingIp {
                    external: ip("192.0.2.1"),
                    pod: ip("10.0.0.1"),
                }),
                host_ports: random.some(2, |random| HostPort {
                    host: None,
                    protocol: 6,
                    port: random.pick(&[80, 8080]),
                    pod: ip("10.0.0.2"),
                    pod_port: 80,
                }),
            };
            filter.nat(world.nat.clone());
        }
        14 => {
            let index = random.below(4);
            let local = LocalEndpoint {
                device: IfName::from(DEVICES[index]),
                addresses: vec![ip(ADDRESSES[index])],
                fresh: false,
            };
            let id = format!("pod{index}");
            world.locals.retain(|(there, _)| *there != id);
            let present = !random.one_in(3);
            if present {
                world.locals.push((id.clone(), local.clone()));
            }
            filter.endpoint(id, present.then_some(local));
        }
        _ => accident(world, filter, kernel, random),
    }
}

/// The kernel's side of things going wrong.
fn accident(world: &World, filter: &mut Filter, kernel: &Refusing, random: &mut Random) {
    let delete = |changes: Vec<Change>| Transaction {
        table: table(),
        changes,
    };
    match random.below(4) {
        // Somebody deletes the table, or writes into it.
        0 => {
            kernel
                .fake
                .stranger()
                .apply_now(&delete(vec![Change::DeleteTable]))
                .unwrap();
            filter.observed(None);
        }
        1 => {
            let chain = kernel::nft::Chain {
                name: "strange".into(),
                base: None,
            };
            kernel
                .fake
                .stranger()
                .apply_now(&delete(vec![Change::AddChain(chain)]))
                .unwrap();
            filter.observed(kernel.fake.seen(&table()).as_ref());
        }
        // The answer is lost: nobody knows whether it was done.
        2 => {
            if let Some(transaction) = filter.transaction() {
                if random.one_in(2) {
                    let _ = kernel.apply(&transaction);
                }
                filter.done(Err(NftError::Broken("end of file".to_owned())));
            }
        }
        // A new agent with an empty memory.
        _ => {
            *filter = Filter::default();
            filter.observed(kernel.fake.seen(&table()).as_ref());
            world.tell(filter);
            filter.in_sync();
        }
    }
}

fn change_members(world: &mut World, filter: &mut Filter, random: &mut Random) {
    let id = set(random.pick(&[NET_SETS, PORT_SETS].concat()));
    let Some(there) = world.state.sets.get_mut(&id) else {
        return;
    };
    let after = set_of(random, &id.0).members;
    // Often one member more or less.
    let after: BTreeSet<Member> = match random.one_in(2) {
        true => after,
        false => there.members.iter().skip(1).cloned().collect(),
    };
    let came: BTreeSet<Member> = after.difference(&there.members).cloned().collect();
    let went: BTreeSet<Member> = there.members.difference(&after).cloned().collect();
    there.members = after;
    filter.policy(PolicyChange::Members(id, came, went));
}
