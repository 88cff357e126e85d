//! Random histories on the fake and on the live kernel: the same answers, and the same objects after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::FutureExt;
use ipnet::IpNet;
use kernel::{
    Address, FakeKernel, IfName, IpFamily, Kernel, KernelError, Mac, Neighbor, NextHop, Observation, Op, PROTOCOL_OURS,
    PolicyRule, Route, RouteKey, RouteTarget, TABLE_MAIN,
};
use linux::LiveKernel;
use testkit::netns::{in_netns, tool};

const HISTORIES: u64 = 25;
const STEPS: usize = 60;

#[test]
fn the_fake_answers_and_remembers_as_the_live_kernel_does() {
    for seed in 1..=HISTORIES {
        in_netns(move || async move {
            let mut fake = FakeKernel::new();
            // A namespace that never had an IPv4 address refuses some routes for want of a table `local`.
            tool("ip link set lo up");
            for device in ["a0", "b0"] {
                fake.add_link(device, "veth");
                tool(&format!("ip link add {device} type veth peer name {device}-peer"));
                tool(&format!("ip link set {device}-peer up"));
            }
            let mut live = LiveKernel::open().expect("opens");
            let mut dice = Dice {
                state: seed,
                up: BTreeSet::new(),
            };
            let mut history = Vec::new();
            for _ in 0..STEPS {
                let ops: Vec<Op> = (0..=dice.below(3)).map(|_| dice.op()).collect();
                history.extend(ops.iter().cloned());
                let real = live.apply(&ops).await;
                let faked = fake.apply(&ops).now_or_never().expect("the fake never waits");
                let kinds = |results: &[Result<(), KernelError>]| results.iter().map(kind).collect::<Vec<_>>();
                assert_eq!(
                    kinds(&faked),
                    kinds(&real),
                    "seed {seed}, fake and live after {history:#?}: {real:?}"
                );
                let real = live.observe(&"tunl0".into()).await.expect("observes");
                let (faked, real) = (essence(&fake.seen()), essence(&real));
                assert_eq!(faked, real, "seed {seed}, fake and live after {history:#?}");
            }
        });
    }
}

/// What the caller does next, with the error number where there is one.
fn kind(result: &Result<(), KernelError>) -> (&'static str, i32) {
    match result {
        Ok(()) => ("ok", 0),
        Err(KernelError::NoDevice(_)) => ("no device", 0),
        Err(KernelError::Foreign { .. }) => ("foreign", 0),
        Err(KernelError::Unsupported(_)) => ("unsupported", 0),
        Err(KernelError::Refused { errno, .. }) => ("refused", *errno),
        Err(KernelError::Broken(_)) => ("broken", 0),
    }
}

type Essence = (
    BTreeMap<IfName, bool>,
    BTreeSet<Address>,
    BTreeMap<RouteKey, Route>,
    BTreeSet<PolicyRule>,
    BTreeSet<Neighbor>,
);

/// Without what a live kernel makes by itself.
fn essence(seen: &Observation) -> Essence {
    let ours = |device: &IfName| device.0 == "a0" || device.0 == "b0";
    let is_own = |net: &IpNet| match net.addr() {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_multicast() && !address.is_loopback(),
    };
    (
        seen.links
            .values()
            .filter(|link| ours(&link.name))
            .map(|link| (link.name.clone(), link.up))
            .collect(),
        seen.addresses
            .iter()
            .filter(|address| ours(&address.device) && is_own(&address.net))
            .cloned()
            .collect(),
        seen.routes
            .iter()
            .filter(|(key, _)| is_own(&key.destination))
            .map(|(key, route)| (key.clone(), route.clone()))
            .collect(),
        seen.rules
            .iter()
            .filter(|rule| rule.protocol == PROTOCOL_OURS)
            .cloned()
            .collect(),
        seen.neighbors
            .iter()
            .filter(|neighbor| ours(&neighbor.device))
            .cloned()
            .collect(),
    )
}

/// A deterministic source of operations (xorshift64*).
struct Dice {
    state: u64,
    up: BTreeSet<IfName>,
}

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn op(&mut self) -> Op {
        let family = self.pick(&IpFamily::BOTH);
        let device: IfName = self.pick(&["a0", "b0"]).into();
        match self.below(16) {
            0 => {
                self.up.remove(&device);
                Op::SetLink {
                    device,
                    up: false,
                    mtu: None,
                }
            }
            1..4 => {
                self.up.insert(device.clone());
                Op::SetLink {
                    device,
                    up: true,
                    mtu: None,
                }
            }
            // The routes of an IPv6 address that was added to a device that is down come some time after the carrier.
            4..6 if family == IpFamily::V6 && !self.up.contains(&device) => self.op(),
            4..6 => Op::PutAddress(self.address(family, device)),
            6 => Op::RemoveAddress(self.address(family, device)),
            7..12 => Op::PutRoute(self.route(family)),
            12 => Op::RemoveRoute(self.key(family), PROTOCOL_OURS),
            13 => Op::PutNeighbor(Neighbor {
                device,
                address: gateway(family, "a0"),
                mac: Mac([2; 6]),
            }),
            14 => Op::RemoveNeighbor(device, gateway(family, "a0")),
            _ if self.below(2) == 0 => Op::PutRule(self.rule(family)),
            _ => Op::RemoveRule(self.rule(family)),
        }
    }

    /// Each device has its network, and a host address of its own.
    fn address(&mut self, family: IpFamily, device: IfName) -> Address {
        let a = device.0 == "a0";
        let net = match (family, self.below(2), a) {
            (IpFamily::V4, 0, true) => "192.0.2.1/24",
            (IpFamily::V4, 0, false) => "198.51.100.1/24",
            (IpFamily::V4, _, true) => "203.0.113.1/32",
            (IpFamily::V4, _, false) => "203.0.113.2/32",
            (IpFamily::V6, 0, true) => "2001:db8:a::1/64",
            (IpFamily::V6, 0, false) => "2001:db8:b::1/64",
            (IpFamily::V6, _, true) => "2001:db8:c::1/128",
            (IpFamily::V6, _, false) => "2001:db8:c::2/128",
        };
        Address {
            device,
            net: net.parse().expect("a prefix"),
        }
    }

    fn key(&mut self, family: IpFamily) -> RouteKey {
        let destination = match family {
            IpFamily::V4 => self.pick(&["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/25"]),
            IpFamily::V6 => self.pick(&["2001:db8:1::/122", "2001:db8:2::/122", "2001:db8:3::/122"]),
        };
        RouteKey {
            table: self.pick(&[TABLE_MAIN, 1000]),
            destination: destination.parse().expect("a prefix"),
            metric: 0,
        }
    }

    fn route(&mut self, family: IpFamily) -> Route {
        let device = self.pick(&["a0", "b0"]);
        let onlink = self.below(2) == 0;
        let hop = |device: &str| NextHop {
            gateway: gateway(family, device),
            device: device.into(),
            onlink,
        };
        let target = match self.below(5) {
            0 => RouteTarget::Blackhole,
            1 => RouteTarget::Unreachable,
            2 => RouteTarget::Link { device: device.into() },
            _ => RouteTarget::Via(vec![hop(device)]),
        };
        Route {
            key: self.key(family),
            target,
            protocol: PROTOCOL_OURS,
            source: None,
        }
    }

    fn rule(&mut self, family: IpFamily) -> PolicyRule {
        let priority = self.pick(&[90, 91]);
        PolicyRule {
            family,
            priority,
            mark: Some((0x10, 0x30)),
            invert: false,
            table: 1000,
            protocol: PROTOCOL_OURS,
        }
    }
}

fn gateway(family: IpFamily, device: &str) -> IpAddr {
    let text = match (family, device) {
        (IpFamily::V4, "a0") => "192.0.2.9",
        (IpFamily::V4, _) => "198.51.100.9",
        (IpFamily::V6, "a0") => "2001:db8:a::9",
        (IpFamily::V6, _) => "2001:db8:b::9",
    };
    text.parse().expect("an address")
}
