//! The same dataplane on the kernel crate's fake, through the port: that fake takes the live kernel's examination.

use api::EncapMode;
use futures::FutureExt;
use futures::StreamExt;
use futures::stream::BoxStream;
use kernel::{Address, FakeKernel, IfName, IpipFlavour, Kernel, KernelEvent, Op};

use super::build::*;
use crate::{Cleanup, Config, Dataplane};

/// What the agent's loop does, without waiting.
pub(super) struct Agent {
    pub kernel: FakeKernel,
    events: BoxStream<'static, KernelEvent>,
    pub dataplane: Dataplane,
}

impl Agent {
    pub fn start(mut kernel: FakeKernel) -> Self {
        let events = kernel.events().expect("a channel");
        let dataplane = Dataplane::new(Config::new("n1", Some(IpipFlavour::Native)));
        let mut agent = Self {
            kernel,
            events,
            dataplane,
        };
        agent.observe();
        agent
    }

    /// The inputs of a node with one pod, one block and two other nodes.
    pub fn told(mut self, mode: EncapMode) -> Self {
        let dataplane = &mut self.dataplane;
        dataplane.set(this_node());
        dataplane.set(pool("192.168.0.0/16", mode));
        dataplane.set(node("n2", "10.0.0.2/24"));
        dataplane.set(node("n3", "10.0.1.3/24"));
        dataplane.set(block("192.168.1.0/26"));
        dataplane.endpoint("pod1".into(), endpoint("cali1", &["192.168.1.5", "fd01::5"]));
        dataplane.fib(fib("192.168.2.0/26", "10.0.0.2"));
        dataplane.fib(fib("192.168.3.0/26", "10.0.1.3"));
        dataplane.fib(fib("fd01:2::/122", "fd00::2"));
        let all = [Cleanup::Datastore, Cleanup::Bgp, Cleanup::Endpoints];
        all.into_iter().for_each(|what| dataplane.allow_cleanup(what));
        self
    }

    pub fn observe(&mut self) {
        let seen = self.kernel.observe(&IfName::from("tunl0")).now_or_never();
        self.dataplane
            .observed(seen.expect("the fake answers at once").expect("a channel"));
    }

    pub fn settle(&mut self) -> Vec<Op> {
        let mut done = Vec::new();
        for round in 0.. {
            assert!(round < 50, "no rest: {done:?}");
            while let Some(Some(event)) = self.events.next().now_or_never() {
                self.dataplane.event(event);
            }
            if self.dataplane.wants_observation() {
                self.observe();
            }
            let plan = self.dataplane.plan();
            if plan.is_empty() {
                break;
            }
            let results = self
                .kernel
                .apply(&plan)
                .now_or_never()
                .expect("the fake answers at once");
            plan.iter()
                .zip(results)
                .for_each(|(op, result)| self.dataplane.done(op, result));
            done.extend(plan);
        }
        done
    }

    /// Our routes as text, and those of others apart.
    fn routes(&self) -> Vec<String> {
        let routes = self.kernel.seen().routes;
        routes
            .values()
            .filter(|route| route.protocol == kernel::PROTOCOL_OURS)
            .map(shown)
            .collect()
    }
}

pub(super) fn machine() -> FakeKernel {
    let kernel = FakeKernel::new();
    for device in ["eth0", "cali1"] {
        kernel.add_link(device, "veth");
        up(&kernel, device);
    }
    addresses(&kernel);
    kernel
}

pub(super) fn up(kernel: &FakeKernel, device: &str) {
    kernel
        .by_others(&Op::SetLink {
            device: device.into(),
            up: true,
            mtu: None,
        })
        .expect("a device");
}

fn addresses(kernel: &FakeKernel) {
    for net in ["10.0.0.1/24", "fd00::1/64"] {
        let address = Address {
            device: "eth0".into(),
            net: net.parse().expect("a net"),
        };
        kernel.by_others(&Op::PutAddress(address)).expect("a device");
    }
}

const WANTED: [&str; 6] = [
    "192.168.1.0/26 blackhole",
    "192.168.1.5/32 dev cali1",
    "192.168.2.0/26 via 10.0.0.2 dev tunl0 onlink",
    "192.168.3.0/26 via 10.0.1.3 dev tunl0 onlink",
    "fd01::5/128 dev cali1",
    "fd01:2::/122 via fd00::2 dev eth0",
];

#[test]
fn the_node_is_programmed_and_a_restart_is_silent() {
    let mut agent = Agent::start(machine()).told(EncapMode::Always);
    agent.settle();
    assert_eq!(agent.routes(), WANTED);
    assert!(agent.dataplane.status().in_sync, "{:?}", agent.dataplane.status());
    assert_eq!(
        agent.settle(),
        [],
        "our own changes come back as events and are no news"
    );

    let mut again = Agent::start(agent.kernel.clone()).told(EncapMode::Always);
    assert_eq!(again.settle(), []);
    assert!(again.dataplane.status().in_sync);
}

#[test]
fn drift_is_repaired_from_events() {
    let drift: [fn(&FakeKernel); 6] = [
        |kernel| {
            // The routes through it go too, without a word.
            let held = kernel
                .seen()
                .addresses
                .into_iter()
                .find(|held| held.device == "tunl0".into());
            let address = held.expect("the tunnel has its address");
            kernel.by_others(&Op::RemoveAddress(address)).expect("a device");
        },
        |kernel| kernel.seen().routes.keys().for_each(|key| kernel.delete_route(key)),
        |kernel| kernel.remove_link(&"tunl0".into()),
        |kernel| kernel.change_link(&"tunl0".into(), |link| link.up = false),
        |kernel| kernel.change_link(&"cali1".into(), |link| link.up = false),
        |kernel| {
            kernel.seen().routes.keys().for_each(|key| kernel.delete_route(key));
            kernel.lose_events();
        },
    ];
    for (number, happen) in drift.into_iter().enumerate() {
        let mut agent = Agent::start(machine()).told(EncapMode::Always);
        agent.settle();
        happen(&agent.kernel);
        // Not ours to repair: the subnet's own routes.
        agent.kernel.change_link(&"eth0".into(), |link| link.up = false);
        up(&agent.kernel, "eth0");
        addresses(&agent.kernel);
        agent.settle();
        assert_eq!(agent.routes(), WANTED, "drift {number}");
        assert!(
            agent.dataplane.status().in_sync,
            "drift {number}: {:?}",
            agent.dataplane.status()
        );
    }
}
