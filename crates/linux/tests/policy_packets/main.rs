//! Random policies in the kernel, random packets between namespaces: each arrives or not as policy says, and counters show that
//! none was skipped.
//!
//! The states and packets are those of `proof`. Each state is a change of the one before, as an agent makes it that starts
//! with an empty memory. `MARGAY_PROOF` is how many states are tried, `MARGAY_SEED` runs the one that a failure names.
#![allow(clippy::unwrap_used, reason = "test code")]

mod frame;
mod net;
#[path = "../ipip_support/mod.rs"]
mod support;
mod witness;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane::filter::TABLE;
use kernel::nft::{Statement, TableName, TableState, Verdict};
use linux::conntrack::{Conntrack, FlowFilter};
use linux::nft::LiveNft;
use net::Net;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use policy::evaluate;
use proof::journey::{Journey, expected, expected_answer};
use proof::world::Place;
use proof::{Case, Coverage, Packet, Random, packet, seeds};
use witness::Witness;

const STATES: u64 = 150;
/// Fewer than a device's queue takes.
const PACKETS: usize = 300;

#[test]
fn packets_arrive_as_policy_says() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root for network namespaces");
        return;
    }
    stay_here();
    let mut lab = Lab::new();
    let mut coverage = Coverage::default();
    let mut totals = Totals::default();
    let seeds = seeds(STATES);
    let is_whole = seeds.end - seeds.start >= STATES;
    let started = Instant::now();
    for seed in seeds {
        lab.state(seed, &mut coverage, &mut totals);
    }
    println!("{coverage}{totals:?} in {:?}", started.elapsed());
    if is_whole {
        let missing = coverage.missing(false);
        assert_eq!(missing, Vec::<String>::new());
        assert!(totals.answers_arrived > 0 && totals.answers_dropped > 0, "{totals:?}");
    }
}

/// One processor, so that frames keep their order.
fn stay_here() {
    let may = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(first).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

/// What was sent besides the packets that [`Coverage`] counts.
#[derive(Debug, Default)]
struct Totals {
    answers_arrived: u64,
    answers_dropped: u64,
    /// Packets that a rule of ours has dropped, as its counter says.
    dropped: u64,
    applying: Duration,
}

struct Lab {
    net: Net,
    nft: LiveNft,
    flows: Conntrack,
    witness: Witness,
    next_id: u32,
}

/// A packet that was sent.
struct Sent {
    from: Place,
    packet: evaluate::Packet,
    /// Where it must arrive, if it must.
    at: Option<Place>,
}

impl Lab {
    fn new() -> Self {
        let net = Net::new();
        let nft = net.node.run(LiveNft::open).unwrap();
        Self {
            flows: net.node.run(Conntrack::open).unwrap(),
            witness: Witness::new(nft.clone()),
            net,
            nft,
            next_id: 1,
        }
    }

    fn state(&mut self, seed: u64, coverage: &mut Coverage, totals: &mut Totals) {
        let mut random = Random::new(seed);
        let case = Case::any(&mut random);
        let started = Instant::now();
        let before = self.program(&case, seed);
        totals.applying += started.elapsed();
        self.flows.cut(&FlowFilter::default()).unwrap();

        let mut used = HashSet::new();
        let mut firsts = Vec::new();
        let mut sent = BTreeMap::new();
        for _ in 0..PACKETS {
            let packet = packet::any(&mut random, &case);
            if !is_first(&mut used, &packet.seen) {
                continue;
            }
            let journey = expected(&case, &packet);
            coverage.add(&case, &packet, &journey);
            let id = self.id();
            self.net
                .send(packet.from, &packet.seen, &frame::first(&packet.seen, id));
            sent.insert(id, Sent::new(&packet, journey.arrives));
            firsts.push((id, packet, journey));
        }
        self.compare(seed, &case, &sent);
        let answers = self.answers(&case, &firsts);
        self.compare(seed, &case, &answers);
        let arrived = answers.values().filter(|sent| sent.at.is_some()).count();
        totals.answers_arrived += arrived as u64;
        totals.answers_dropped += (answers.len() - arrived) as u64;
        totals.dropped += self.count(seed, &before, sent.values().chain(answers.values()));
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// Makes the kernel's table what the case says; the table then.
    fn program(&mut self, case: &Case, seed: u64) -> TableState {
        let seen = self.read();
        let mut filter = case.filter(seen.as_ref());
        while let Some(transaction) = filter.transaction() {
            filter.done(self.nft.apply_now(&transaction));
        }
        assert_eq!(filter.problems(), Vec::new(), "MARGAY_SEED={seed}");
        self.read().unwrap()
    }

    fn read(&self) -> Option<TableState> {
        self.nft.read_now(&TableName(TABLE.to_owned())).unwrap()
    }

    /// Sends what the other side of each flow that has arrived would answer.
    fn answers(&mut self, case: &Case, firsts: &[(u32, Packet, Journey)]) -> BTreeMap<u32, Sent> {
        let mut answers = BTreeMap::new();
        for (first, packet, journey) in firsts {
            // Somebody who pretends gets no answer.
            let is_real = packet
                .from
                .addresses()
                .into_iter()
                .flatten()
                .any(|own| own.parse() == Ok(packet.seen.source));
            if !journey.arrives || !journey.is_tracked || !is_real {
                continue;
            }
            let id = self.id();
            let Some((seen, bytes)) = frame::answer(&packet.seen, *first, id) else {
                continue;
            };
            let answer = Packet {
                from: packet.to,
                to: packet.from,
                seen,
            };
            let arrives = expected_answer(case, &answer);
            self.net.send(answer.from, &answer.seen, &bytes);
            answers.insert(id, Sent::new(&answer, arrives));
        }
        answers
    }

    /// What has arrived must be what had to, each once.
    fn compare(&mut self, seed: u64, case: &Case, sent: &BTreeMap<u32, Sent>) {
        let mut seen = BTreeSet::new();
        for (id, place) in self.net.arrived() {
            let Some(packet) = sent.get(&id) else {
                panic!("MARGAY_SEED={seed}: packet {id} of another state has arrived");
            };
            assert!(
                seen.insert(id),
                "MARGAY_SEED={seed}: {:?} has arrived twice",
                packet.packet
            );
            if packet.at != Some(place) {
                self.disagree(seed, case, packet, &format!("has arrived at {place:?}"));
            }
        }
        for (id, packet) in sent {
            if packet.at.is_some() && !seen.contains(id) {
                self.disagree(seed, case, packet, "has not arrived");
            }
        }
    }

    fn disagree(&self, seed: u64, case: &Case, sent: &Sent, what: &str) -> ! {
        let packet = Packet {
            from: sent.from,
            to: sent.at.unwrap_or(Place::Host),
            seen: sent.packet.clone(),
        };
        let to = Place::of(sent.packet.destination).unwrap();
        let journey = expected(case, &Packet { to, ..packet });
        let rules = self.net.node.sh("nft list table inet calico");
        panic!(
            "MARGAY_SEED={seed}: {:?} from {:?} {what}\n{journey:#?}\n{rules}",
            sent.packet, sent.from
        );
    }

    /// Every packet was seen before our rules, and after them or by one that drops. How many were dropped.
    fn count<'a>(&mut self, seed: u64, before: &TableState, sent: impl Iterator<Item = &'a Sent> + Clone) -> u64 {
        let counts = self.witness.counts();
        let dropped = drops(&self.read().unwrap()) - drops(before);
        let all = sent.clone().count() as u64;
        let arrived = sent.filter(|sent| sent.at.is_some()).count() as u64;
        assert_eq!(counts.before, all, "MARGAY_SEED={seed}: packets before our rules");
        assert_eq!(counts.after, arrived, "MARGAY_SEED={seed}: packets after our rules");
        assert_eq!(
            dropped,
            all - arrived,
            "MARGAY_SEED={seed}: packets that our rules dropped"
        );
        dropped
    }
}

impl Sent {
    fn new(packet: &Packet, arrives: bool) -> Self {
        Self {
            from: packet.from,
            packet: packet.seen.clone(),
            at: arrives.then_some(packet.to),
        }
    }
}

/// Whether a packet begins a flow: not if it looks like the answer to another one.
fn is_first(used: &mut HashSet<(IpAddr, IpAddr, u8, [Option<u16>; 2])>, packet: &evaluate::Packet) -> bool {
    let ports = [packet.source_port, packet.destination_port];
    let way = (packet.source, packet.destination, packet.protocol, ports);
    let back = (packet.destination, packet.source, packet.protocol, [ports[1], ports[0]]);
    let is_first = packet.icmp.is_some() || (way != back && !used.contains(&back));
    if is_first {
        used.insert(way);
    }
    is_first
}

/// Packets that rules which drop or refuse have counted.
fn drops(table: &TableState) -> u64 {
    let rules = table.chains.values().flat_map(|chain| &chain.rules);
    let dropping = rules.filter(|state| {
        state
            .rule
            .as_ref()
            .is_some_and(|rule| rule.verdict == Some(Verdict::Drop) || rule.actions.contains(&Statement::Reject))
    });
    // A rule that drops and does not count would be missed here, and seen in the sum.
    dropping
        .filter_map(|state| state.count)
        .map(|count| count.packets)
        .sum()
}
