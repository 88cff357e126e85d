//! Host endpoints.

use super::*;

#[test]
fn host_endpoints_decide_about_the_hosts_packets_but_not_failsafe_ports() {
    let mut filter = filter(&guarded_host());
    filter.cluster(Cluster {
        nodes: [ip("192.0.2.1"), ip("2001:db8::1")].into(),
        ipip: true,
        vxlan: true,
        ..Cluster::default()
    });
    let from = |source: &str, port: u16| packet("eth0", source, "", "10.1.0.1", port);
    let to = |destination: &str, port: u16| packet("", "10.1.0.1", "eth0", destination, port);
    check(
        &mut filter,
        &from("192.0.2.5", 80),
        ACCEPTED,
        "allow GlobalNetworkPolicy guard ingress 0",
    );
    check(&mut filter, &from("192.0.2.6", 80), DROPPED, "end of tier default");
    check(&mut filter, &from("192.0.2.6", 22), ACCEPTED, "failsafe");
    check(&mut filter, &to("192.0.2.6", 80), DROPPED, "end of tier default");
    check(&mut filter, &udp(to("192.0.2.6", 53), 40000, 53), ACCEPTED, "failsafe");
    // What keeps the cluster together.
    let tunnel = |mut packet: Packet| {
        (packet.protocol, packet.ports) = (4, None);
        packet
    };
    check(&mut filter, &tunnel(from("192.0.2.1", 0)), ACCEPTED, "");
    check(
        &mut filter,
        &tunnel(from("192.0.2.5", 0)),
        DROPPED,
        "IP-in-IP from a host that is no node",
    );
    check(&mut filter, &tunnel(to("192.0.2.1", 0)), ACCEPTED, "tunnel to a node");
    check(&mut filter, &udp(from("192.0.2.1", 0), 5, 4789), ACCEPTED, "");
    check(
        &mut filter,
        &udp(from("192.0.2.5", 0), 5, 4789),
        DROPPED,
        "VXLAN from a host that is no node",
    );
    filter.settings(Settings {
        failsafe_inbound: vec![Failsafe {
            net: Some(net("192.0.2.0/28")),
            ..Failsafe::new(6, 22)
        }],
        failsafe_outbound: Vec::new(),
        ..Settings::default()
    });
    check(&mut filter, &from("192.0.2.6", 22), ACCEPTED, "failsafe");
    check(&mut filter, &from("192.0.2.60", 22), DROPPED, "end of tier");
    check(&mut filter, &from("192.0.2.1", 179), ACCEPTED, "BGP of a node");
    check(&mut filter, &to("192.0.2.1", 179), ACCEPTED, "BGP of a node");
    // Other devices and pods are not concerned.
    check(
        &mut filter,
        &packet("eth1", "192.0.2.6", "", "10.1.0.1", 80),
        ACCEPTED,
        "",
    );
    check(
        &mut filter,
        &packet("eth0", "192.0.2.6", "cali1", "10.0.0.1", 80),
        ACCEPTED,
        "allow Profile open",
    );
    check(
        &mut filter,
        &packet("", "10.1.0.1", "cali1", "10.0.0.1", 80),
        ACCEPTED,
        "to a pod of this host",
    );
    let solicitation = icmp_v6(packet("eth0", "2001:db8::6", "", "2001:db8::2", 0), 135);
    check(&mut filter, &solicitation, ACCEPTED, "");
}

#[test]
fn host_endpoints_are_found_by_name_then_address_then_star() {
    let mut state = guarded_host();
    let mut by_address = Endpoint::clone(&state.endpoints[&hep("host")]);
    by_address.interface = Interface::WithAddress(vec![ip("198.51.100.1")]);
    by_address.ingress = Direction::default();
    state.endpoints.insert(hep("other"), Arc::new(by_address));
    let star = Endpoint {
        profiles: vec!["open".into()],
        ..endpoint(Interface::All)
    };
    state.endpoints.insert(hep("star"), Arc::new(star));
    let mut filter = filter(&state);
    let from = |device: &str| packet(device, "192.0.2.6", "", "10.1.0.1", 80);
    check(&mut filter, &from("eth0"), DROPPED, "end of tier default");
    check(&mut filter, &from("eth1"), ACCEPTED, "allow Profile open ingress 0");
    check(&mut filter, &from("lo"), ACCEPTED, "loopback");
    filter.link(IfName::from("eth1"), Some([ip("198.51.100.1")].into()));
    check(&mut filter, &from("eth1"), DROPPED, "no profile allows: other");
    filter.link(IfName::from("eth1"), None);
    check(&mut filter, &from("eth1"), ACCEPTED, "allow Profile open ingress 0");
}

#[test]
fn forwarded_packets_meet_apply_on_forward_alone() {
    let mut state = guarded_host();
    let mut host = Endpoint::clone(&state.endpoints[&hep("host")]);
    host.forward.ingress = tier("default", &[gnp("guard")], TierEnd::Deny);
    state.endpoints.insert(hep("host"), Arc::new(host));
    let mut filter = filter(&state);
    let to_pod = |source: &str| packet("eth0", source, "cali1", "10.0.0.1", 22);
    check(
        &mut filter,
        &to_pod("192.0.2.5"),
        ACCEPTED,
        "allow Profile open ingress 0",
    );
    check(&mut filter, &to_pod("192.0.2.6"), DROPPED, "end of tier default");
    check(
        &mut filter,
        &packet("eth0", "192.0.2.6", "eth1", "203.0.113.1", 22),
        DROPPED,
        "end of tier default",
    );
    check(
        &mut filter,
        &packet("eth1", "192.0.2.6", "eth0", "203.0.113.1", 22),
        ACCEPTED,
        "",
    );
}

#[test]
fn with_flow_records_packets_are_marked_while_a_host_endpoint_is_asked_whether_they_may_pass() {
    let mut state = guarded_host();
    let mut host = Endpoint::clone(&state.endpoints[&hep("host")]);
    host.forward.ingress = tier("default", &[gnp("guard")], TierEnd::Deny);
    state.endpoints.insert(hep("host"), Arc::new(host));
    let mut filter = filter(&state);
    let ends = |record: &str| format!("counter {record}drop comment \"end of tier default\"");
    let established = "ct state established,related accept";
    let to_pods = "oifname \"cali*\" goto cali-to-wl-dispatch";
    chain(&mut filter, "cali-fhfw-host", &["jump cali-pi-gnp/guard", &ends("")]);
    chain(&mut filter, "filter-FORWARD-to", &[established, to_pods]);
    filter.settings(Settings {
        flow_logs: true,
        ..Settings::default()
    });
    chain(
        &mut filter,
        "cali-fhfw-host",
        &[
            "meta mark set meta mark & 0xfffbffff | 0x00040000",
            "jump cali-pi-gnp/guard",
            &ends("log prefix \"DPI-1|default\" group 1 snaplen 80 "),
        ],
    );
    let unmark = "meta mark set meta mark & 0xfffbffff";
    chain(&mut filter, "filter-FORWARD-to", &[established, unmark, to_pods]);
}

#[test]
fn early_policies_decide_before_the_others_are_asked() {
    let mut state = guarded_host();
    let port = |action: Action, port: u16| Rule {
        protocol: Some(6),
        destination: Side {
            ports: vec![(port, port)],
            ..Side::default()
        },
        ..rule(action)
    };
    let early = vec![port(Action::Allow, 1000), port(Action::Deny, 1001)];
    put_policy(&mut state, gnp("pre"), policy(early.clone(), vec![]));
    put_policy(
        &mut state,
        gnp("raw"),
        policy(vec![port(Action::Allow, 2000), port(Action::Deny, 2001)], early),
    );
    let mut host = Endpoint::clone(&state.endpoints[&hep("host")]);
    host.pre_dnat = tier("default", &[gnp("pre")], TierEnd::Pass);
    host.untracked.ingress = tier("default", &[gnp("raw")], TierEnd::Pass);
    host.untracked.egress = tier("default", &[gnp("raw")], TierEnd::Pass);
    state.endpoints.insert(hep("host"), Arc::new(host));
    let mut filter = filter(&state);
    let from = |port: u16| packet("eth0", "192.0.2.6", "", "10.1.0.1", port);
    check(&mut filter, &from(1000), ACCEPTED, "allowed by an early policy");
    check(
        &mut filter,
        &from(1001),
        DROPPED,
        "deny GlobalNetworkPolicy pre ingress 1",
    );
    check(&mut filter, &from(2000), ACCEPTED, "allowed by an early policy");
    check(
        &mut filter,
        &from(2001),
        DROPPED,
        "deny GlobalNetworkPolicy raw ingress 1",
    );
    check(&mut filter, &from(3000), DROPPED, "end of tier default");
    let table = filter.table();
    assert_eq!(journey(&table, &from(2000)).packet.state, CtState::Untracked);
    assert_eq!(journey(&table, &from(1000)).packet.state, CtState::New);
    check(
        &mut filter,
        &packet("", "10.1.0.1", "eth0", "192.0.2.6", 1000),
        ACCEPTED,
        "allowed by an early policy",
    );
    // Whoever sets the bit before us gains nothing.
    let marked = Packet {
        mark: 0xffff_ffff,
        ..from(3000)
    };
    check(&mut filter, &marked, DROPPED, "end of tier default");
}
