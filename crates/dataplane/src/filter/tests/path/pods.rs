//! What pods send and get, their own host included.

use super::*;

#[test]
fn pods_send_from_their_own_addresses_only() {
    let mut filter = filter(&open_pods());
    for (one, two, wrong, way_out) in [
        ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"),
        ("fd00::1", "fd00::2", "fd00::3", "2001:db8::1"),
    ] {
        check(
            &mut filter,
            &packet("cali1", one, "cali2", two, 80),
            ACCEPTED,
            "allow Profile open ingress 0",
        );
        check(
            &mut filter,
            &packet("cali1", wrong, "cali2", two, 80),
            DROPPED,
            "source is not the pod's",
        );
        check(
            &mut filter,
            &packet("cali1", two, "eth0", way_out, 80),
            DROPPED,
            "source is not the pod's",
        );
        check(
            &mut filter,
            &packet("eth0", wrong, "cali2", two, 80),
            ACCEPTED,
            "allow Profile open ingress 0",
        );
    }
    // Whoever sends so has no address yet, or one of the link alone.
    let solicitation = icmp_v6(packet("cali1", "::", "", "ff02::1", 0), 135);
    check(&mut filter, &solicitation, ACCEPTED, "");
    check(
        &mut filter,
        &icmp_v6(packet("cali1", "fe80::1", "", "fe80::2", 0), 136),
        ACCEPTED,
        "",
    );
    check(
        &mut filter,
        &packet("cali1", "::", "cali2", "fd00::2", 80),
        DROPPED,
        "source is not the pod's",
    );
}

#[test]
fn the_journal_knows_better_what_a_device_may_send() {
    let mut filter = filter(&open_pods());
    let local = LocalEndpoint {
        device: IfName::from("cali1"),
        addresses: vec![ip("10.0.0.7")],
        fresh: false,
    };
    filter.endpoint("pod".into(), Some(local));
    check(
        &mut filter,
        &packet("cali1", "10.0.0.7", "cali2", "10.0.0.2", 80),
        ACCEPTED,
        "",
    );
    check(
        &mut filter,
        &packet("cali1", "10.0.0.1", "cali2", "10.0.0.2", 80),
        DROPPED,
        "source is not the pod's",
    );
}

#[test]
fn allowed_spoofed_prefixes_need_the_setting() {
    let mut state = open_pods();
    let mut pod = Endpoint::clone(&state.endpoints[&wep("cali1")]);
    pod.spoofable = vec![net("198.51.100.0/24")];
    state.endpoints.insert(wep("cali1"), Arc::new(pod));
    let mut filter = filter(&state);
    let spoofed = packet("cali1", "198.51.100.9", "cali2", "10.0.0.2", 80);
    check(&mut filter, &spoofed, DROPPED, "source is not the pod's");
    filter.settings(Settings {
        source_spoofing: true,
        ..Settings::default()
    });
    check(&mut filter, &spoofed, ACCEPTED, "");
}

#[test]
fn pods_are_neither_routers_nor_address_servers_nor_tunnels() {
    let mut filter = filter(&open_pods());
    let to_pod = packet("cali1", "10.0.0.1", "cali2", "10.0.0.2", 80);
    let to_pod_v6 = packet("cali1", "fd00::1", "cali2", "fd00::2", 80);
    let advertisement = icmp_v6(packet("cali1", "fe80::1", "", "ff02::1", 0), 134);
    check(&mut filter, &advertisement, DROPPED, "router advertisement from a pod");
    check(
        &mut filter,
        &udp(to_pod.clone(), 67, 68),
        DROPPED,
        "DHCP server in a pod",
    );
    check(&mut filter, &udp(to_pod.clone(), 68, 67), ACCEPTED, "");
    check(
        &mut filter,
        &udp(to_pod_v6, 547, 546),
        DROPPED,
        "DHCPv6 server in a pod",
    );
    let ipip = Packet {
        protocol: 4,
        ports: None,
        ..to_pod.clone()
    };
    check(&mut filter, &ipip, DROPPED, "IP-in-IP from a pod");
    check(
        &mut filter,
        &udp(to_pod.clone(), 9999, 4789),
        DROPPED,
        "VXLAN from a pod",
    );
    filter.settings(Settings {
        allow_ipip_from_pods: true,
        allow_vxlan_from_pods: true,
        ..Settings::default()
    });
    check(&mut filter, &ipip, ACCEPTED, "");
    check(&mut filter, &udp(to_pod, 9999, 4789), ACCEPTED, "");
}

#[test]
fn what_belongs_to_a_flow_passes_and_what_belongs_to_none_does_not() {
    let mut state = open_pods();
    state.profiles.insert("open".into(), Arc::default());
    let mut filter = filter(&state);
    let packet = packet("cali1", "10.0.0.1", "cali2", "10.0.0.2", 80);
    check(&mut filter, &packet, DROPPED, "no profile allows");
    for state in [CtState::Established, CtState::Related] {
        let packet = Packet {
            state,
            ..packet.clone()
        };
        check(&mut filter, &packet, ACCEPTED, "ct state established,related accept");
    }
    let invalid = Packet {
        state: CtState::Invalid,
        ..packet
    };
    check(&mut filter, &invalid, DROPPED, "invalid");
}

#[test]
fn a_pod_without_policy_is_closed() {
    let mut filter = filter(&open_pods());
    let local = LocalEndpoint {
        device: IfName::from("cali9"),
        addresses: vec![ip("10.0.0.9")],
        fresh: false,
    };
    filter.endpoint("new".into(), Some(local));
    check(
        &mut filter,
        &packet("cali9", "10.0.0.9", "cali2", "10.0.0.2", 80),
        DROPPED,
        "pod without policy",
    );
    check(
        &mut filter,
        &packet("cali1", "10.0.0.1", "cali9", "10.0.0.9", 80),
        DROPPED,
        "pod without policy",
    );
    check(
        &mut filter,
        &packet("cali9", "10.0.0.9", "", "10.1.0.1", 80),
        DROPPED,
        "pod without policy",
    );
    filter.policy(PolicyChange::Endpoint(
        wep("cali9"),
        Some(Arc::new(pod("cali9", &["10.0.0.9"]))),
    ));
    check(
        &mut filter,
        &packet("cali9", "10.0.0.9", "eth0", "192.0.2.1", 80),
        DROPPED,
        "no profile allows",
    );
}

#[test]
fn pods_reach_their_host_as_the_setting_says() {
    let mut filter = filter(&open_pods());
    let to_host = packet("cali1", "10.0.0.1", "", "10.1.0.1", 22);
    check(&mut filter, &to_host, DROPPED, "defaultEndpointToHostAction");
    let solicitation = icmp_v6(packet("cali1", "fd00::1", "", "fd00::99", 0), 135);
    check(&mut filter, &solicitation, ACCEPTED, "");
    check(
        &mut filter,
        &packet("", "10.1.0.1", "cali1", "10.0.0.1", 80),
        ACCEPTED,
        "",
    );
    for action in [ToHost::Accept, ToHost::Return] {
        filter.settings(Settings {
            endpoint_to_host: action,
            ..Settings::default()
        });
        check(&mut filter, &to_host, ACCEPTED, "allow Profile open egress 0");
    }
}

#[test]
fn denials_can_be_told_to_the_sender() {
    let mut filter = filter(&PolicyState {
        endpoints: [(wep("cali1"), Arc::new(pod("cali1", &["10.0.0.1"])))].into(),
        ..PolicyState::default()
    });
    filter.settings(Settings {
        deny: DenyAction::Reject,
        ..Settings::default()
    });
    let name = "default/n1-k8s-cali1-eth0";
    let rule = format!("counter reject comment \"no profile allows: {name}\"");
    chain(&mut filter, "cali-fw-cali1", &[&rule]);
}
