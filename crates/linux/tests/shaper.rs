//! Pods' bandwidths with packets: what comes too fast waits, nothing of it is lost as long as there is room, and what is dropped then
//! is counted.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use kernel::{Direction, KernelError, Peak, Shaper, ShaperKey};
use linux::shaper;

#[path = "ipip_support/mod.rs"]
mod ipip_support;
use ipip_support::Ns;

const SIZE: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(20);

/// A host with one pod behind `cali1`.
struct Pair {
    host: Ns,
    pod: Ns,
}

impl Pair {
    fn new() -> Self {
        let (host, pod) = (Ns::new(), Ns::new());
        host.wire("cali1", &pod, "eth0");
        for (ns, device, at) in [(&host, "cali1", 1), (&pod, "eth0", 2)] {
            ns.sh(&format!(
                "ip address add 10.9.0.{at}/24 dev {device}; ip address add fd09::{at}/64 dev {device} nodad; ip link set {device} up"
            ));
        }
        Self { host, pod }
    }

    fn counters(&self, key: &ShaperKey) -> kernel::QueueCounters {
        self.host.run(shaper::counters).unwrap()[key]
    }
}

/// All that is expected comes, and no more.
fn receive(at: &UdpSocket, expected: u64) {
    let until = Instant::now() + LIMIT;
    let mut received = 0;
    while received < expected {
        assert!(Instant::now() < until, "{received} of {expected}");
        match at.recv(&mut [0; SIZE]) {
            Ok(_) => received += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(at.recv(&mut [0; SIZE]).is_err(), "more than was sent");
}

#[test]
fn what_the_kernel_refuses_leaves_nothing_behind() {
    let pair = Pair::new();
    let state = || {
        pair.host
            .sh("tc qdisc show; ip -o link show type ifb; tc filter show dev cali1 ingress")
    };
    let before = state();
    let key = ShaperKey {
        device: "cali1".into(),
        direction: Direction::Egress,
    };
    let peak = Some(Peak {
        rate: 1,
        burst: Shaper::LEAST_BURST,
    });
    // A peak below the rate.
    let refused = Shaper {
        peak,
        ..Shaper::new(1_000_000, 0, None)
    };
    let put = |shaper: &Shaper| pair.host.run(|| shaper::put(&key, shaper));
    assert!(matches!(put(&refused), Err(KernelError::Refused { .. })));
    assert_eq!(state(), before);
    // What is in force stays.
    let fine = Shaper::new(1_000_000, 0, None);
    put(&fine).unwrap();
    assert!(matches!(put(&refused), Err(KernelError::Refused { .. })));
    assert_eq!(pair.host.run(shaper::observe).unwrap(), [(key, Some(fine))].into());
}

#[test]
fn what_comes_too_fast_waits() {
    let pair = Pair::new();
    for (direction, from, to, ends) in [
        (Direction::Ingress, &pair.host, &pair.pod, ["10.9.0.1:0", "10.9.0.2:7"]),
        (Direction::Egress, &pair.pod, &pair.host, ["10.9.0.2:0", "10.9.0.1:7"]),
        (
            Direction::Ingress,
            &pair.host,
            &pair.pod,
            ["[fd09::1]:0", "[fd09::2]:7"],
        ),
        (Direction::Egress, &pair.pod, &pair.host, ["[fd09::2]:0", "[fd09::1]:7"]),
    ] {
        let key = ShaperKey {
            device: "cali1".into(),
            direction,
        };
        let put = |rate: u64| {
            pair.host
                .run(|| shaper::put(&key, &Shaper::new(rate, 0, None)))
                .unwrap()
        };
        let (slow, fast) = (125, 1_000_000);
        let receiver = to.run(|| UdpSocket::bind(ends[1])).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // A socket's own room is small.
        let senders: Vec<UdpSocket> = (0..10)
            .map(|_| from.run(|| UdpSocket::bind(ends[0])).unwrap())
            .collect();
        let send = |count: usize| {
            for number in 0..count {
                senders[number % senders.len()].send_to(&[0; SIZE], ends[1]).unwrap();
            }
        };
        // Neighbours are known then.
        send(1);
        receive(&receiver, 1);

        put(slow);
        send(60);
        let held = pair.counters(&key);
        assert!(held.waiting > 40_000 && held.dropped == 0, "{direction:?}: {held:?}");
        // The kernel looks at its clock again when the next packet comes.
        put(fast);
        send(1);
        receive(&receiver, 61);

        put(slow);
        send(200);
        let held = pair.counters(&key);
        assert!(held.waiting > 100_000 && held.dropped > 20, "{direction:?}: {held:?}");
        put(fast);
        // There may be no room for it.
        let before = pair.counters(&key).dropped;
        send(1);
        let late = pair.counters(&key).dropped - before;
        receive(&receiver, 201 - held.dropped - late);

        // Without it packets go as they come.
        pair.host.run(|| shaper::remove(&key)).unwrap();
        send(50);
        receive(&receiver, 50);
        assert!(pair.host.run(shaper::counters).unwrap().is_empty());
    }
}
