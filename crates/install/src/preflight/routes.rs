//! A pool's range against the routes of the host.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Check;
use super::Outcome::{Failed, Ok as Fine};

/// A route: where to, and by which device.
pub(super) type Route = (IpNet, String);

/// A pool must not share addresses with networks of the host.
pub(super) fn check(pool: IpNet, routes: &[Route]) -> Check {
    let overlaps = |net: &IpNet| net.contains(&pool.network()) || pool.contains(&net.network());
    // The default route leads everywhere; ours lead to pods.
    let foreign = |(net, device): &&Route| {
        net.prefix_len() > 0 && !device.starts_with("cali") && device != "tunl0" && device != "lo"
    };
    match routes.iter().filter(foreign).find(|(net, _)| overlaps(net)) {
        Some((net, device)) => {
            let reason = format!("{pool} overlaps {net} on {device}: choose another with --pod-cidr");
            Check::new("pod-cidr", Failed, reason)
        }
        None => Check::new("pod-cidr", Fine, format!("{pool} overlaps no route of this host")),
    }
}

/// From `/proc/net/route`. Routes to this node's peers' blocks without encapsulation have a device of the host: they are taken
/// for foreign only if they are larger than a block can be.
pub(super) fn ipv4(table: &str) -> Vec<Route> {
    let line = |line: &str| -> Option<Route> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |text: &str| {
            u32::from_str_radix(text, 16)
                .ok()
                .map(|raw| Ipv4Addr::from(raw.swap_bytes()))
        };
        let net = Ipv4Net::with_netmask(hex(fields.get(1)?)?, hex(fields.get(7)?)?).ok()?;
        Some((net.into(), (*fields.first()?).to_owned()))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// From `/proc/net/ipv6_route`.
pub(super) fn ipv6(table: &str) -> Vec<Route> {
    let line = |line: &str| -> Option<Route> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
        let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        Some((Ipv6Net::new(address, length).ok()?.into(), (*fields.get(9)?).to_owned()))
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ip route add 192.168.7.0/24 dev eth0`, a default route, and a block of our own; `cat /proc/net/route`.
    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0007A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        tunl0\t0000640A\t0100000A\t0003\t0\t0\t0\tC0FFFFFF\t0\t0\t0\n";

    #[test]
    fn a_pool_must_not_overlap_networks_of_the_host() {
        let routes = ipv4(TABLE);
        assert_eq!(routes.len(), 3);
        let outcome = |pool: &str| check(pool.parse().unwrap(), &routes);
        assert_eq!(outcome("192.168.0.0/16").outcome, Failed);
        assert!(outcome("192.168.0.0/16").reason.contains("192.168.7.0/24 on eth0"));
        assert_eq!(outcome("192.168.7.128/25").outcome, Failed);
        assert_eq!(outcome("10.244.0.0/16").outcome, Fine);
        assert_eq!(outcome("10.100.0.0/16").outcome, Fine, "our own");
    }

    #[test]
    fn so_for_ipv6() {
        let table = "fd000000000000000000000000000000 30 00000000000000000000000000000000 00 \
            00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";
        let routes = ipv6(table);
        assert_eq!(check("fd00::/64".parse().unwrap(), &routes).outcome, Failed);
        assert_eq!(check("fd01::/64".parse().unwrap(), &routes).outcome, Fine);
    }
}
