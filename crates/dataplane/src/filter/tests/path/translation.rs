//! Translated sources and destinations, and services.

use super::*;

#[test]
fn what_leaves_the_pools_gets_another_source() {
    let mut filter = filter(&open_pods());
    let pool = |text: &str, nat_outgoing: bool| NatPool {
        net: net(text),
        nat_outgoing,
    };
    filter.cluster(Cluster {
        pools: vec![
            pool("10.0.0.0/16", true),
            pool("10.0.0.0/24", true),
            pool("10.9.0.0/16", false),
            pool("fd00::/64", true),
        ],
        nodes: [ip("192.0.2.1")].into(),
        tunnels: vec![Tunnel {
            device: IfName::from("tunl0"),
            address: Some(ip("10.0.5.1")),
        }],
        ..Cluster::default()
    });
    let source = |filter: &mut Filter, packet: &Packet| {
        let outcome = journey(&filter.table(), packet);
        assert_eq!(outcome.decision, ACCEPTED);
        outcome.source_nat.map(|statement| statement.to_string())
    };
    let masquerade = Some("masquerade fully-random".to_owned());
    let out = |destination: &str| packet("cali1", "10.0.0.1", "eth0", destination, 80);
    assert_eq!(source(&mut filter, &out("198.51.100.1")), masquerade);
    assert_eq!(
        source(&mut filter, &packet("cali1", "fd00::1", "eth0", "2001:db8::1", 80)),
        masquerade
    );
    assert_eq!(source(&mut filter, &out("10.9.0.1")), None);
    assert_eq!(source(&mut filter, &out("192.0.2.1")), masquerade);
    assert_eq!(
        source(&mut filter, &packet("cali1", "10.0.0.1", "tunl0", "198.51.100.1", 80)),
        None
    );
    assert_eq!(
        source(&mut filter, &packet("eth1", "10.9.0.1", "eth0", "198.51.100.1", 80)),
        None
    );
    let from_host = packet("", "192.0.2.1", "tunl0", "10.0.1.1", 80);
    assert_eq!(source(&mut filter, &from_host), Some("masquerade".to_owned()));
    assert_eq!(
        source(&mut filter, &packet("", "10.0.5.1", "tunl0", "10.0.1.1", 80)),
        None
    );

    filter.settings(Settings {
        nat_exclusions: NatExclusions::PoolsAndHosts,
        nat_ports: Some((30000, 40000)),
        nat_outgoing_address: Some("203.0.113.9".parse().unwrap()),
        nat_interface: Some("eth0".into()),
        ..Settings::default()
    });
    assert_eq!(source(&mut filter, &out("192.0.2.1")), None);
    let snat = Some("snat ip to 203.0.113.9:30000-40000 fully-random".to_owned());
    assert_eq!(source(&mut filter, &out("198.51.100.1")), snat);
    let ping = Packet {
        protocol: 1,
        ports: None,
        icmp: Some((8, 0)),
        ..out("198.51.100.1")
    };
    assert_eq!(
        source(&mut filter, &ping),
        Some("snat ip to 203.0.113.9 fully-random".to_owned())
    );
    assert_eq!(
        source(&mut filter, &packet("cali1", "10.0.0.1", "eth1", "198.51.100.1", 80)),
        None
    );
}

#[test]
fn floating_ips_and_host_ports_lead_to_pods() {
    let mut filter = filter(&open_pods());
    filter.settings(Settings {
        floating_ips: true,
        ..Settings::default()
    });
    let nat = Nat {
        floating_ips: vec![FloatingIp {
            external: ip("203.0.113.1"),
            pod: ip("10.0.0.1"),
        }],
        host_ports: vec![HostPort {
            host: None,
            protocol: 6,
            port: 8080,
            pod: ip("10.0.0.2"),
            pod_port: 80,
        }],
    };
    filter.nat(nat.clone());
    let destination = |filter: &mut Filter, packet: &Packet| {
        let outcome = journey(&filter.table(), packet);
        (
            outcome.packet.destination,
            outcome.packet.ports.map(|ports| ports.1),
            outcome.source_nat.is_some(),
        )
    };
    let floating = packet("eth0", "192.0.2.6", "cali1", "203.0.113.1", 80);
    assert_eq!(destination(&mut filter, &floating), (ip("10.0.0.1"), Some(80), false));
    let own = packet("cali1", "10.0.0.1", "cali1", "203.0.113.1", 80);
    assert_eq!(destination(&mut filter, &own), (ip("10.0.0.1"), Some(80), true));
    let host_port = Packet {
        to_here: true,
        ..packet("eth0", "192.0.2.6", "cali2", "10.1.0.1", 8080)
    };
    assert_eq!(destination(&mut filter, &host_port), (ip("10.0.0.2"), Some(80), false));
    let elsewhere = packet("eth0", "192.0.2.6", "cali2", "10.1.0.9", 8080);
    assert_eq!(
        destination(&mut filter, &elsewhere),
        (ip("10.1.0.9"), Some(8080), false)
    );
    let hairpin = Packet {
        to_here: true,
        ..packet("cali2", "10.0.0.2", "cali2", "10.1.0.1", 8080)
    };
    assert_eq!(destination(&mut filter, &hairpin), (ip("10.0.0.2"), Some(80), true));
    let loopback = Packet {
        to_here: true,
        ..packet("", "127.0.0.1", "cali2", "127.0.0.1", 8080)
    };
    assert_eq!(destination(&mut filter, &loopback), (ip("10.0.0.2"), Some(80), true));
    filter.settings(Settings::default());
    assert_eq!(destination(&mut filter, &floating).0, ip("203.0.113.1"));
}

#[test]
fn a_translated_packet_of_the_host_is_judged_by_the_device_it_takes() {
    let mut filter = filter(&guarded_host());
    let to_pod = HostPort {
        host: None,
        protocol: 6,
        port: 8080,
        pod: ip("10.0.0.2"),
        pod_port: 80,
    };
    filter.nat(Nat {
        floating_ips: Vec::new(),
        host_ports: vec![to_pod],
    });
    let own_port = |device: &str| Packet {
        to_here: true,
        ..packet("", "10.1.0.1", device, "10.1.0.1", 8080)
    };
    check(&mut filter, &own_port("cali2"), ACCEPTED, "");
    check(&mut filter, &own_port("eth0"), DROPPED, "end of tier default");
    filter.settings(Settings {
        deny: DenyAction::Reject,
        ..Settings::default()
    });
    // The device is not known where packets can be refused, but the pod is.
    check(&mut filter, &own_port("eth0"), ACCEPTED, "");
    check(
        &mut filter,
        &packet("", "10.1.0.1", "eth0", "192.0.2.6", 80),
        DROPPED,
        "end of tier default",
    );
}

#[test]
fn services_that_nobody_translated_do_not_go_round_in_circles() {
    let mut filter = filter(&open_pods());
    filter.cluster(Cluster {
        services: vec![net("10.96.0.0/12")],
        ..Cluster::default()
    });
    let lost = packet("eth0", "192.0.2.6", "eth0", "10.96.0.1", 80);
    check(&mut filter, &lost, DROPPED, "service loop");
    filter.settings(Settings {
        service_loop: ServiceLoop::Reject,
        ..Settings::default()
    });
    chain(
        &mut filter,
        "cali-cidr-block",
        &[
            "ip daddr @cali-services4 counter reject comment \"service loop\"",
            "ip6 daddr @cali-services6 counter reject comment \"service loop\"",
        ],
    );
    filter.settings(Settings {
        service_loop: ServiceLoop::Disabled,
        ..Settings::default()
    });
    check(&mut filter, &lost, ACCEPTED, "");
}
