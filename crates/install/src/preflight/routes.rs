//! A pool's range against the routes of the host.

use ipnet::IpNet;
use kernel::{IfName, KernelError, PROTOCOL_OURS, Route, RouteTarget, TABLE_MAIN};
use linux::LiveKernel;

use super::Check;
use super::Outcome::{Failed, Ok as Fine};

/// Routes that BIRD wrote: on a node of Calico's they lead to pods, as ours do.
const PROTOCOL_BIRD: u8 = 12;

/// The host's routes, both families.
pub(super) fn read() -> Result<Vec<Route>, KernelError> {
    let seen = LiveKernel::open()?.observe_now(&IfName::from("tunl0"))?;
    Ok(seen.routes.into_values().collect())
}

/// A pool must not share addresses with networks of the host.
pub(super) fn check(pool: IpNet, routes: &[Route]) -> Check {
    match routes
        .iter()
        .filter(is_foreign)
        .find(|route| overlap(pool, route.key.destination))
    {
        Some(route) => {
            let (net, device) = (route.key.destination, device(&route.target).unwrap_or("no device"));
            let reason = format!("{pool} overlaps {net} on {device}: choose another with --pod-cidr");
            Check::new("pod-cidr", Failed, reason)
        }
        None => Check::new("pod-cidr", Fine, format!("{pool} overlaps no route of this host")),
    }
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Neither the default route, which leads everywhere, nor one that leads to pods.
fn is_foreign(route: &&Route) -> bool {
    let to_pods = device(&route.target).is_some_and(|device| device.starts_with("cali") || device == "tunl0");
    route.key.table == TABLE_MAIN
        && route.key.destination.prefix_len() > 0
        && ![PROTOCOL_OURS, PROTOCOL_BIRD].contains(&route.protocol)
        && !to_pods
}

fn device(target: &RouteTarget) -> Option<&str> {
    match target {
        RouteTarget::Link { device } => Some(device.0.as_str()),
        RouteTarget::Via(hops) => hops.first().map(|hop| hop.device.0.as_str()),
        RouteTarget::Blackhole | RouteTarget::Unreachable | RouteTarget::Prohibit | RouteTarget::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Outcome;
    use kernel::RouteKey;

    /// A route of the kernel itself, 2, on a device.
    fn route(destination: &str, device: &str, protocol: u8) -> Route {
        Route {
            key: RouteKey {
                table: TABLE_MAIN,
                destination: destination.parse().unwrap(),
                metric: 0,
            },
            target: RouteTarget::Link {
                device: IfName::from(device),
            },
            protocol,
            source: None,
        }
    }

    #[test]
    fn a_pool_must_not_overlap_networks_of_the_host() {
        let routes = [
            route("0.0.0.0/0", "eth0", 3),
            route("192.168.7.0/24", "eth0", 2),
            route("10.100.0.0/26", "eth0", PROTOCOL_OURS),
            route("10.101.0.0/26", "eth0", PROTOCOL_BIRD),
            route("10.102.0.1/32", "cali12345678901", 3),
            route("fd00::/48", "eth0", 2),
        ];
        let outcome = |pool: &str, expected: Outcome| {
            let got = check(pool.parse().unwrap(), &routes);
            assert_eq!(got.outcome, expected, "{pool}: {}", got.reason);
        };
        outcome("192.168.0.0/16", Failed);
        outcome("192.168.7.128/25", Failed);
        outcome("10.244.0.0/16", Fine);
        outcome("10.100.0.0/14", Fine);
        outcome("fd00::/64", Failed);
        outcome("fd01::/64", Fine);
        let said = check("192.168.0.0/16".parse().unwrap(), &routes).reason;
        assert!(said.contains("192.168.7.0/24 on eth0"), "{said}");
    }
}
