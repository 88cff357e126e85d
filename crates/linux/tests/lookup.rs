//! Look-ups of single routes and neighbours, in a namespace whose routes were made with iproute2.

use std::net::IpAddr;

use kernel::IfName;
use linux::lookup::{self, Query};
use linux::request::Socket;
use testkit::netns::{in_netns, tool};

/// A destination, the device that the packet came in by, and what is found: prefix, next hop and device, or why not.
fn check(cases: &[(&str, Option<&str>, &str)]) {
    let mut socket = Socket::open().expect("a socket");
    for (destination, arrives, expected) in cases {
        let query = Query {
            source: arrives.map(|_| "10.9.0.1".parse().expect("an address")),
            destination: destination.parse().expect("an address"),
            arrives: arrives.map(IfName::from),
        };
        let got = match lookup::route(&mut socket, &query).expect("an answer") {
            Err(why) => format!("{why:?}"),
            Ok(found) if found.local => "local".to_owned(),
            Ok(found) => format!(
                "{} via {} dev {}{} protocol {}",
                found.prefix.map(|net| net.to_string()).unwrap_or_default(),
                found.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
                found.device.map(|device| device.0).unwrap_or_default(),
                if found.onlink { " onlink" } else { "" },
                found.protocol.unwrap_or_default()
            ),
        };
        assert_eq!(got, *expected, "{destination} by {arrives:?}");
    }
}

fn devices() {
    for line in [
        "ip link add pod0 type veth peer name pod1",
        "ip link add up0 type veth peer name up1",
        "ip address add 192.0.2.1/24 dev up0",
        "ip -6 address add fd00::1/64 dev up0 nodad",
        "ip link set pod0 up",
        "ip link set pod1 up",
        "ip link set up0 up",
        "ip link set up1 up",
        "ip link set lo up",
        "sysctl -qw net.ipv4.ip_forward=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0",
        "sysctl -qw net.ipv4.conf.pod0.rp_filter=1",
        "ip route add 10.9.0.1/32 dev pod0 proto 80",
        "ip route add 10.8.0.0/26 via 192.0.2.9 dev up0 onlink proto 80",
        "ip route add blackhole 10.9.0.0/26 proto 80",
        "ip route add prohibit 10.7.0.0/24",
        "ip route add unreachable 10.6.0.0/24",
        "ip -6 route add blackhole fd01::/122",
        "ip -6 route add fd02::/122 via fd00::9 proto 80",
    ] {
        tool(line);
    }
}

#[test]
fn a_look_up_finds_what_the_kernel_would_do() {
    in_netns(|| async {
        devices();
        check(&[
            (
                "10.8.0.7",
                Some("pod0"),
                "10.8.0.0/26 via 192.0.2.9 dev up0 onlink protocol 80",
            ),
            ("10.8.0.7", None, "10.8.0.0/26 via 192.0.2.9 dev up0 onlink protocol 80"),
            ("192.0.2.77", Some("pod0"), "192.0.2.0/24 via  dev up0 protocol 2"),
            ("192.0.2.1", Some("pod0"), "local"),
            ("10.9.0.1", None, "10.9.0.1/32 via  dev pod0 protocol 80"),
            ("10.9.0.2", Some("pod0"), "Blackhole"),
            ("10.9.0.2", None, "Blackhole"),
            ("10.7.0.2", None, "Prohibited"),
            ("10.6.0.2", None, "Unreachable"),
            ("203.0.113.1", None, "Missing"),
            ("203.0.113.1", Some("pod0"), "Missing"),
            ("fd01::1", None, "Blackhole"),
            ("fd02::1", None, "fd02::/122 via fd00::9 dev up0 protocol 80"),
            ("fd03::1", None, "Missing"),
        ]);
        // 10.9.0.1 is expected on pod0 alone.
        tool("sysctl -qw net.ipv4.conf.up0.rp_filter=1");
        check(&[("10.9.0.1", Some("up0"), "Source")]);
        let mut socket = Socket::open().expect("a socket");
        let longest = |socket: &mut Socket, address: &str| {
            let address: IpAddr = address.parse().expect("an address");
            lookup::longest(socket, address)
                .expect("an answer")
                .map(|net| net.to_string())
        };
        assert_eq!(longest(&mut socket, "10.9.0.2").as_deref(), Some("10.9.0.0/26"));
        assert_eq!(longest(&mut socket, "fd01::1").as_deref(), Some("fd01::/122"));
        assert_eq!(longest(&mut socket, "203.0.113.1"), None);
    });
}

#[test]
fn a_path_that_is_narrower_than_its_device_says_so() {
    in_netns(|| async {
        devices();
        tool("ip route add 10.5.0.0/24 via 192.0.2.9 dev up0 mtu 1400");
        let mut socket = Socket::open().expect("a socket");
        let query = Query {
            source: None,
            destination: "10.5.0.1".parse().expect("an address"),
            arrives: None,
        };
        let found = lookup::route(&mut socket, &query).expect("an answer").expect("a route");
        assert_eq!(found.mtu, Some(1400));
    });
}

#[test]
fn neighbours_are_known_by_state() {
    in_netns(|| async {
        devices();
        tool("ip neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev up0 nud permanent");
        let mut socket = Socket::open().expect("a socket");
        let mut of = |address: &str| {
            let address = address.parse().expect("an address");
            lookup::neighbor(&mut socket, &IfName::from("up0"), address).expect("an answer")
        };
        let known = of("192.0.2.9").expect("it is known");
        let mac = known.mac.map(|mac| mac.to_string());
        assert_eq!((mac.as_deref(), known.state), (Some("02:00:00:00:00:09"), "permanent"));
        assert_eq!(of("192.0.2.8"), None);
    });
}
