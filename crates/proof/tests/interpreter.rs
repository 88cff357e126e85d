//! Policy from scratch, asked about a packet, and rules from the incremental calculation, run by the interpreter, say the same.
//!
//! `MARGAY_PROOF` is how many states are tried, `MARGAY_SEED` runs the one state that a failure names.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use dataplane::filter::interpret::{self, Decision, journey};
use kernel::nft::CtState;
use proof::{Case, Coverage, Packet, Plain, Random, journey::expected, packet, seeds};

const STATES: u64 = 800;
const PACKETS: usize = 150;

#[test]
fn rules_decide_as_policy_does() {
    let seeds = seeds(STATES);
    let is_whole = seeds.end - seeds.start >= STATES;
    let coverage = everywhere(seeds);
    println!("{coverage}");
    if is_whole {
        assert_eq!(coverage.missing(true), Vec::<String>::new());
    }
}

/// All states, on all processors.
fn everywhere(seeds: Range<u64>) -> Coverage {
    let next = AtomicU64::new(seeds.start);
    let some = || {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return coverage;
            }
            one_state(seed, &mut coverage);
        }
    };
    let threads = available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        let mut all = Coverage::default();
        for thread in running {
            match thread.join() {
                Ok(coverage) => all.merge(coverage),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

fn one_state(seed: u64, coverage: &mut Coverage) {
    let mut random = Random::new(seed);
    let case = Case::any(&mut random);
    let mut filter = case.filter(None);
    let table = filter.table();
    assert_eq!(filter.problems(), Vec::new(), "MARGAY_SEED={seed}");
    let plain = Plain::new(&case);
    for _ in 0..PACKETS {
        let packet = packet::any(&mut random, &case);
        let expected = expected(&case, &packet);
        for verdict in &expected.verdicts {
            let outcome = plain.outcome(&verdict.endpoint, verdict.hook, verdict.way, &packet.seen);
            assert_eq!(
                outcome,
                Some(verdict.outcome),
                "MARGAY_SEED={seed}\n{packet:#?}\n{verdict:#?}"
            );
        }
        let outcome = journey(&table, &seen_by_rules(&mut random, &packet));
        let arrives = outcome.decision == Decision::Accepted;
        assert_eq!(
            arrives,
            expected.arrives,
            "MARGAY_SEED={seed}\n{packet:#?}\n{expected:#?}\n{}",
            outcome.path.join("\n")
        );
        coverage.add(&case, &packet, &expected);
    }
}

fn seen_by_rules(random: &mut Random, packet: &Packet) -> interpret::Packet {
    let device = |place: proof::world::Place| place.device().map(str::to_owned);
    let (from, to) = (device(packet.from), device(packet.to));
    interpret::Packet {
        from_here: from.is_none(),
        to_here: to.is_none(),
        in_device: from,
        out_device: to,
        source: packet.seen.source,
        destination: packet.seen.destination,
        protocol: packet.seen.protocol,
        ports: packet.seen.source_port.zip(packet.seen.destination_port),
        icmp: packet.seen.icmp,
        state: CtState::New,
        translated: false,
        // Others' marks, and bits that look like ours.
        mark: random.pick(&[0, 0xffff_ffff]),
    }
}
