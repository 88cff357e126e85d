//! The fake keeps the contract, and does what it adds to it.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kernel::contract::Bench;
use kernel::{
    FakeKernel, IfName, IpipFlavour, IpipTunnel, Kernel, KernelError, KernelEvent, Op, PROTOCOL_OURS, Route, RouteKey,
    RouteTarget, TABLE_MAIN,
};

kernel::contract_tests!(examine);

fn examine(clause: for<'a> fn(&'a mut dyn Bench) -> BoxFuture<'a, ()>) {
    // The fake never waits: a clause that is not done at once waits for an event that does not come.
    clause(&mut Fake(FakeKernel::new()))
        .now_or_never()
        .expect("every event has come");
}

struct Fake(FakeKernel);

impl Bench for Fake {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.0
    }

    fn add_device(&mut self, name: &IfName) {
        self.0.add_link(name.clone(), "veth");
    }

    fn remove_device(&mut self, name: &IfName) {
        self.0.remove_link(name);
    }

    fn add_route(&mut self, route: &Route) {
        self.0
            .by_others(&Op::PutRoute(route.clone()))
            .expect("a route that Linux takes");
    }

    fn delete_route(&mut self, route: &Route) {
        self.0.delete_route(&route.key);
    }
}

#[test]
fn an_injected_failure_hits_what_it_picks_as_often_as_told() {
    let mut kernel = FakeKernel::new();
    let error = KernelError::Refused {
        what: "route".into(),
        reason: "No buffer space".into(),
        errno: 105,
    };
    kernel.fail(
        1,
        error.clone(),
        |op| matches!(op, Op::PutRoute(route) if route.key == blackhole("10.0.1.0/24").key),
    );
    let ops = ["10.0.0.0/24", "10.0.1.0/24", "10.0.1.0/24"].map(|net| Op::PutRoute(blackhole(net)));
    assert_eq!(apply(&mut kernel, &ops), [Ok(()), Err(error), Ok(())]);
    assert_eq!(kernel.take_applied().len(), 3);
    assert!(kernel.take_applied().is_empty());
}

#[test]
fn a_broken_channel_answers_so_and_ends_the_events_until_it_is_healed() {
    let mut kernel = FakeKernel::new();
    let mut events = kernel.events().expect("subscribes");
    kernel.break_channel("gone");
    let broken = KernelError::Broken("gone".into());
    assert_eq!(
        apply(&mut kernel, &[Op::PutRoute(blackhole("10.0.0.0/24"))]),
        [Err(broken.clone())]
    );
    assert_eq!(kernel.events().err(), Some(broken));
    assert_eq!(events.next().now_or_never(), Some(None));
    kernel.heal();
    let mut events = kernel.events().expect("subscribes again");
    kernel.lose_events();
    assert_eq!(events.next().now_or_never(), Some(Some(KernelEvent::Resync)));
}

#[test]
fn a_tunnel_brings_a_device_and_peers_need_the_tunnel() {
    let mut kernel = FakeKernel::new();
    let peer = "10.211.55.9".parse().expect("an address");
    let mut tunnel = IpipTunnel {
        name: "tunl0".into(),
        flavour: IpipFlavour::Bpf,
        local: "10.211.55.8".parse().expect("an address"),
        underlay: "eth0".into(),
        address: Some("192.168.36.64".parse().expect("an address")),
        mtu: 1480,
    };
    let put = |tunnel: &IpipTunnel| [Op::PutTunnel(tunnel.clone()), Op::PutTunnelPeer("tunl0".into(), peer)];
    let missing = |name: &str| Err(KernelError::NoDevice(name.into()));
    assert_eq!(apply(&mut kernel, &put(&tunnel)), [missing("eth0"), missing("tunl0")]);
    kernel.add_link("eth0", "");
    assert_eq!(apply(&mut kernel, &put(&tunnel)), [Ok(()), Ok(())]);
    tunnel.address = None;
    assert_eq!(apply(&mut kernel, &put(&tunnel)), [Ok(()), Ok(())]);
    let seen = kernel.seen();
    assert_eq!(seen.tunnel, Some((tunnel.clone(), [peer].into())));
    assert!(seen.addresses.is_empty(), "the former address is gone");
    assert!(seen.links[&IfName::from("tunl0")].up);
    kernel.remove_link(&"tunl0".into());
    assert_eq!(kernel.seen().tunnel, None);
    tunnel.name = "a-name-longer-than-linux-allows".into();
    assert!(matches!(
        apply(&mut kernel, &put(&tunnel)).first(),
        Some(Err(KernelError::Refused { errno: 22, .. }))
    ));
}

fn apply(kernel: &mut FakeKernel, ops: &[Op]) -> Vec<Result<(), KernelError>> {
    kernel.apply(ops).now_or_never().expect("the fake never waits")
}

fn blackhole(net: &str) -> Route {
    let key = RouteKey {
        table: TABLE_MAIN,
        destination: net.parse().expect("a prefix"),
        metric: 0,
    };
    Route {
        key,
        target: RouteTarget::Blackhole,
        protocol: PROTOCOL_OURS,
        source: None,
    }
}
