//! Pods' bandwidths: whatever happens, the kernel has the shapers that are wanted, and no other device of ours.

use std::collections::BTreeMap;

use api::{EncapMode, QosControls};
use kernel::{Direction, FakeKernel, IfName, KernelError, KernelEvent, Op, Shaper, ShaperKey};

use super::property::Random;
use super::shared_fake::{Agent, machine, up};
use crate::filter::Limits;

fn limits(of: &[(&str, u64, u64)]) -> Limits {
    let controls = |ingress: u64, egress: u64| QosControls {
        ingress_bandwidth: ingress,
        egress_bandwidth: egress,
        ..QosControls::default()
    };
    of.iter()
        .map(|(device, ingress, egress)| ((*device).to_owned(), controls(*ingress, *egress)))
        .collect()
}

/// What should be in the kernel, slowly and plainly.
fn expected(limits: &Limits, kernel: &FakeKernel) -> BTreeMap<ShaperKey, Option<Shaper>> {
    let mut expected = BTreeMap::new();
    for (device, controls) in limits {
        let device = IfName::from(device.as_str());
        for (direction, bits) in [
            (Direction::Ingress, controls.ingress_bandwidth),
            (Direction::Egress, controls.egress_bandwidth),
        ] {
            if bits != 0 && kernel.seen().links.contains_key(&device) {
                let key = ShaperKey {
                    device: device.clone(),
                    direction,
                };
                expected.insert(key, Some(Shaper::new(bits / 8, 1 << 29, None)));
            }
        }
    }
    expected
}

fn check(agent: &Agent, limits: &Limits) {
    let seen = agent.kernel.seen();
    let expected = expected(limits, &agent.kernel);
    // A detour whose pod is away for a moment may wait for it.
    let waits = |key: &&ShaperKey| seen.links.contains_key(&key.device);
    let there: BTreeMap<_, _> = seen
        .shapers
        .iter()
        .filter(|(key, _)| waits(key))
        .map(|(key, state)| (key.clone(), *state))
        .collect();
    assert_eq!(there, expected);
    let detours = seen.links.values().filter(|link| link.kind == "ifb").count();
    let egress = seen
        .shapers
        .keys()
        .filter(|key| key.direction == Direction::Egress)
        .count();
    assert_eq!(detours, egress, "no detour without a shaper: {:?}", seen.links);
}

#[test]
fn bandwidths_follow_what_pods_ask_for() {
    let mut agent = Agent::start(machine()).told(EncapMode::Never);
    for wanted in [
        limits(&[("cali1", 8_000_000, 0)]),
        limits(&[("cali1", 8_000_000, 16_000_000)]),
        limits(&[("cali1", 800_000_000, 16_000_000)]),
        limits(&[("cali1", 0, 16_000_000)]),
        limits(&[]),
    ] {
        agent.dataplane.bandwidths(&wanted);
        assert!(
            wanted.is_empty() || agent.dataplane.is_programmed("pod1").is_none(),
            "not yet"
        );
        agent.settle();
        check(&agent, &wanted);
        assert_eq!(agent.dataplane.is_programmed("pod1"), Some(Ok(())));
        let mut again = Agent::start(agent.kernel.clone()).told(EncapMode::Never);
        again.dataplane.bandwidths(&wanted);
        assert_eq!(again.settle(), [], "a restart changes nothing");
    }
}

#[test]
fn a_bandwidth_that_the_kernel_cannot_hold_keeps_no_pod_from_starting() {
    let mut agent = Agent::start(machine()).told(EncapMode::Never);
    let lacks = KernelError::Unsupported("ifb".into());
    agent
        .kernel
        .fail(usize::MAX, lacks.clone(), |op| matches!(op, Op::PutShaper(..)));
    agent.dataplane.bandwidths(&limits(&[("cali1", 0, 8_000)]));
    agent.settle();
    assert_eq!(agent.dataplane.is_programmed("pod1"), Some(Ok(())));
    let status = agent.dataplane.status();
    assert!(status.failed.is_empty(), "the node does its work: {:?}", status.failed);
    let [item] = &status.unshaped[..] else {
        panic!("{:?}", status.unshaped)
    };
    assert_eq!((item.what.as_str(), &item.why), ("bandwidth from cali1", &lacks));
    assert!(agent.dataplane.has_failures());
    agent.kernel.heal();
    agent.dataplane.retry();
    agent.settle();
    assert_eq!(agent.kernel.seen().shapers.len(), 1);
}

#[test]
fn a_queue_that_no_packet_reaches_is_not_taken_for_a_shaper() {
    let mut agent = Agent::start(machine()).told(EncapMode::Never);
    let lacks = KernelError::Unsupported("act_mirred".into());
    agent
        .kernel
        .fail(usize::MAX, lacks, |op| matches!(op, Op::PutShaper(..)));
    agent.dataplane.bandwidths(&limits(&[("cali1", 0, 8_000)]));
    agent.settle();
    // The kernel tells of the detour's queue, which was made before its way was refused, and of the detour's end.
    let key = ShaperKey {
        device: "cali1".into(),
        direction: Direction::Egress,
    };
    let shaper = Shaper::new(1_000, 1 << 29, None);
    agent.dataplane.event(KernelEvent::Shaper(key.clone(), Some(shaper)));
    agent
        .dataplane
        .event(KernelEvent::LinkGone(ShaperKey::detour(&key.device)));
    assert_eq!(agent.settle(), [], "it is not tried again at once");
    assert_eq!(agent.dataplane.status().unshaped.len(), 1);
}

#[test]
fn nothing_is_removed_before_it_is_certain() {
    let mut agent = Agent::start(machine()).told(EncapMode::Never);
    agent.dataplane.bandwidths(&limits(&[("cali1", 8_000, 8_000)]));
    agent.settle();
    let mut again = Agent::start(agent.kernel.clone());
    assert_eq!(again.settle(), []);
    assert_eq!(again.kernel.seen().shapers.len(), 2);
    let purged = again.dataplane.purge();
    let removed = purged.iter().filter(|op| matches!(op, Op::RemoveShaper(_))).count();
    assert_eq!(removed, 2, "{purged:?}");
}

#[test]
fn any_history_ends_with_the_shapers_that_are_wanted() {
    let only = std::env::var("MARGAY_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..2_000, |seed| seed..seed + 1) {
        println!("MARGAY_SEED={seed}");
        history(&mut Random(seed));
    }
}

fn history(random: &mut Random) {
    const DEVICES: [&str; 3] = ["cali1", "cali2", "cali3"];
    let mut agent = Agent::start(machine()).told(EncapMode::Never);
    let mut wanted = limits(&[]);
    for _ in 0..random.below(25) {
        let device = random.pick(&DEVICES);
        match random.below(9) {
            0..=3 => {
                let bits = [0, 8_000, 80_000, 8_000_000];
                let (ingress, egress) = (random.pick(&bits), random.pick(&bits));
                wanted.remove(device);
                wanted.extend(limits(&[(device, ingress, egress)]));
                agent.dataplane.bandwidths(&wanted);
            }
            4 => {
                wanted.remove(device);
                agent.dataplane.bandwidths(&wanted);
            }
            5 => agent.kernel.remove_link(&device.into()),
            6 => {
                agent.kernel.add_link(device, "veth");
                up(&agent.kernel, device);
            }
            7 => {
                let detour = ShaperKey::detour(&device.into());
                agent.kernel.remove_link(&detour);
            }
            _ => match random.below(3) {
                0 => agent.kernel.lose_events(),
                1 => {
                    let refused = KernelError::Unsupported("now".into());
                    agent.kernel.fail(2, refused, |op| matches!(op, Op::PutShaper(..)));
                }
                _ => {
                    agent = Agent::start(agent.kernel.clone()).told(EncapMode::Never);
                    agent.dataplane.bandwidths(&wanted);
                }
            },
        }
        if random.below(2) == 0 {
            agent.settle();
        }
    }
    agent.kernel.heal();
    agent.dataplane.retry();
    agent.settle();
    check(&agent, &wanted);
    // Everybody goes.
    agent.dataplane.bandwidths(&limits(&[]));
    agent.settle();
    check(&agent, &limits(&[]));
    assert!(agent.kernel.seen().shapers.is_empty());
}
