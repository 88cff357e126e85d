//! The live kernel keeps the contract of the port. Everybody else is played by iproute2.

use std::time::Duration;

use futures::future::BoxFuture;
use kernel::contract::Bench;
use kernel::{IfName, Kernel, Route, RouteTarget};
use linux::LiveKernel;
use testkit::netns::{in_netns, tool};

kernel::contract_tests!(examine);

fn examine(clause: for<'a> fn(&'a mut dyn Bench) -> BoxFuture<'a, ()>) {
    in_netns(move || async move {
        let mut bench = Live(LiveKernel::open().expect("opens"));
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, clause(&mut bench))
            .await
            .expect("every event comes in time");
    });
}

struct Live(LiveKernel);

impl Bench for Live {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.0
    }

    fn add_device(&mut self, name: &IfName) {
        tool(&format!("ip link add {name} type veth peer name {name}-peer"));
        tool(&format!("ip link set {name}-peer up"));
    }

    fn remove_device(&mut self, name: &IfName) {
        tool(&format!("ip link del {name}"));
    }

    fn add_route(&mut self, route: &Route) {
        tool(&format!("ip route add {}", words(route)));
    }

    fn delete_route(&mut self, route: &Route) {
        tool(&format!("ip route del {}", words(route)));
    }
}

fn words(route: &Route) -> String {
    let (kind, device) = match &route.target {
        RouteTarget::Blackhole => ("blackhole", String::new()),
        RouteTarget::Link { device } => ("unicast", format!("dev {device}")),
        other => panic!("no clause has others add {other:?}"),
    };
    format!(
        "{kind} {} {device} proto {} metric {}",
        route.key.destination, route.protocol, route.key.metric
    )
}
