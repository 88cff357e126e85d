//! Each piece of the packet's way: what a packet meets, and what the rules look like.

use std::sync::Arc;

use api::Action;
use kernel::IfName;
use kernel::nft::CtState;
use policy::*;

use super::build::*;
use crate::LocalEndpoint;
use crate::filter::interpret::{Decision, Packet, journey};
use crate::filter::{
    Cluster, DenyAction, Failsafe, Filter, FloatingIp, HostPort, Nat, NatExclusions, NatPool, ServiceLoop, Settings,
    ToHost, Tunnel,
};

const ACCEPTED: Decision = Decision::Accepted;
const DROPPED: Decision = Decision::Dropped;

/// Two pods that may do everything, `cali1` with 10.0.0.1 and fd00::1, `cali2` with 10.0.0.2 and fd00::2.
pub fn open_pods() -> PolicyState {
    let mut state = PolicyState::default();
    let open = Profile {
        ingress: vec![rule(Action::Allow)],
        egress: vec![rule(Action::Allow)],
        missing: false,
    };
    state.profiles.insert("open".into(), Arc::new(open));
    for (device, v4, v6) in [("cali1", "10.0.0.1", "fd00::1"), ("cali2", "10.0.0.2", "fd00::2")] {
        let pod = Endpoint {
            profiles: vec!["open".into()],
            ..pod(device, &[v4, v6])
        };
        state.endpoints.insert(wep(device), Arc::new(pod));
    }
    state
}

fn udp(mut packet: Packet, source: u16, destination: u16) -> Packet {
    packet.protocol = 17;
    packet.ports = Some((source, destination));
    packet
}

fn icmp_v6(mut packet: Packet, kind: u8) -> Packet {
    packet.protocol = 58;
    packet.ports = None;
    packet.icmp = Some((kind, 0));
    packet
}

/// The packet's end, and the comment of the rule that decided.
fn check(filter: &mut Filter, packet: &Packet, decision: Decision, why: &str) {
    let outcome = journey(&filter.table(), packet);
    assert_eq!(outcome.decision, decision, "{packet:?}\n{}", outcome.path.join("\n"));
    let last = outcome.path.last().cloned().unwrap_or_default();
    assert!(last.contains(why), "{last} does not say {why:?}");
}

/// The rules of a chain, one a line.
fn chain(filter: &mut Filter, name: &str, expected: &[&str]) {
    let table = filter.table();
    let chain = &table
        .chains
        .get(&name.into())
        .unwrap_or_else(|| panic!("no chain {name}"));
    let rules: Vec<String> = chain.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, expected, "{name}");
}

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

#[test]
fn a_rule_becomes_one_or_several() {
    let tcp = |source: Side, destination: Side| Rule {
        protocol: Some(6),
        source,
        destination,
        ..rule(Action::Deny)
    };
    let with_set = Side {
        sets: vec![set("web")],
        ..Side::default()
    };
    let with_ports = Side {
        ports: vec![(80, 80), (81, 90), (443, 443)],
        named_ports: vec![set("http")],
        ..Side::default()
    };
    let with_nets = Side {
        nets: vec![net("10.0.0.0/8"), net("10.1.0.0/16")],
        not_nets: vec![net("10.2.0.0/16")],
        ..Side::default()
    };
    let rules = vec![
        rule(Action::Log),
        tcp(
            Side::default(),
            Side {
                ports: vec![(80, 80)],
                ..Side::default()
            },
        ),
        tcp(with_set, with_ports),
        tcp(with_nets, Side::default()),
        Rule {
            protocol: Some(58),
            not_icmp: Some((128, None)),
            family: Some(Family::V6),
            ..rule(Action::Pass)
        },
    ];
    let mut state = open_pods();
    state.sets.insert(set("web"), nets(&["10.0.0.1"]));
    state.sets.insert(set("http"), ports(&[("10.0.0.2", 6, 8080)]));
    put_policy(&mut state, np("a"), policy(rules, vec![]));
    let mut pod = Endpoint::clone(&state.endpoints[&wep("cali1")]);
    pod.ingress = tier("default", &[np("a"), np("unknown")], TierEnd::Deny);
    state.endpoints.insert(wep("cali1"), Arc::new(pod));
    let mut filter = filter(&state);
    let say = |index: usize, action: &str| format!("comment \"{action} NetworkPolicy default/a ingress {index}\"");
    let v4 = "ip saddr @cali-set4-web";
    let v6 = "ip6 saddr @cali-set6-web";
    chain(
        &mut filter,
        "cali-pi-np/default/a",
        &[
            &format!("counter log prefix \"calico-packet: \" {}", say(0, "log")),
            &format!("tcp dport 80 counter drop {}", say(1, "deny")),
            &format!("tcp dport {{ 80-90, 443 }} {v4} counter drop {}", say(2, "deny")),
            &format!(
                "meta l4proto tcp ip daddr . meta l4proto . th dport @cali-set4-http {v4} counter drop {}",
                say(2, "deny")
            ),
            &format!("tcp dport {{ 80-90, 443 }} {v6} counter drop {}", say(2, "deny")),
            &format!(
                "meta l4proto tcp ip6 daddr . meta l4proto . th dport @cali-set6-http {v6} counter drop {}",
                say(2, "deny")
            ),
            &format!(
                "meta l4proto tcp ip saddr 10.0.0.0/8 ip saddr != 10.2.0.0/16 counter drop {}",
                say(3, "deny")
            ),
            &format!(
                "meta nfproto ipv6 icmpv6 type != 128 counter meta mark set meta mark & 0xfffdffff | 0x00020000 return {}",
                say(4, "pass")
            ),
        ],
    );
    chain(
        &mut filter,
        "cali-tw-cali1",
        &[
            "meta mark set meta mark & 0xfffdffff comment \"tier default\"",
            "jump cali-pi-np/default/a",
            "meta mark & 0x00020000 == 0x00000000 counter drop comment \"unknown NetworkPolicy default/unknown\"",
            "meta mark & 0x00020000 == 0x00000000 counter drop comment \"end of tier default\"",
            "jump cali-pri-open",
            "counter drop comment \"no profile allows: default/n1-k8s-cali1-eth0\"",
        ],
    );
}

#[test]
fn rules_without_protocol_treat_each_protocol_in_its_way() {
    let not_web = Rule {
        destination: Side {
            not_ports: vec![(80, 80)],
            ..Side::default()
        },
        ..rule(Action::Allow)
    };
    let mut state = open_pods();
    let profile = Profile {
        ingress: vec![not_web],
        ..Profile::default()
    };
    state.profiles.insert("open".into(), Arc::new(profile));
    let mut filter = filter(&state);
    let end = "counter accept comment \"allow Profile open ingress 0\"";
    let others = "meta l4proto != tcp meta l4proto != udp meta l4proto != sctp meta l4proto != udplite";
    chain(
        &mut filter,
        "cali-pri-open",
        &[
            &format!("tcp dport != 80 {end}"),
            &format!("udp dport != 80 {end}"),
            &format!("sctp dport != 80 {end}"),
            &format!("udplite dport != 80 {end}"),
            &format!("{others} {end}"),
        ],
    );
}

#[test]
fn records_of_flows_name_verdict_direction_and_rule() {
    let mut state = open_pods();
    let mut pod = Endpoint::clone(&state.endpoints[&wep("cali2")]);
    pod.profiles.insert(0, "quiet".into());
    state.endpoints.insert(wep("cali2"), Arc::new(pod));
    state.profiles.insert("quiet".into(), Arc::default());
    let mut filter = filter(&state);
    filter.settings(Settings {
        flow_logs: true,
        log_prefix: "packet %n".into(),
        ..Settings::default()
    });
    chain(
        &mut filter,
        "cali-pro-open",
        &["counter log prefix \"ARE0|open\" group 2 snaplen 80 accept comment \"allow Profile open egress 0\""],
    );
    chain(
        &mut filter,
        "cali-tw-cali2",
        &[
            "jump cali-pri-quiet",
            "jump cali-pri-open",
            "counter log prefix \"DRI-1|\" group 1 snaplen 80 drop comment \"no profile allows: default/n1-k8s-cali2-eth0\"",
        ],
    );
}

#[test]
fn lines_of_the_log_name_their_policy_and_are_limited() {
    let mut state = open_pods();
    put_policy(&mut state, np("web"), policy(vec![rule(Action::Log)], vec![]));
    let mut pod = Endpoint::clone(&state.endpoints[&wep("cali2")]);
    pod.ingress = tier("default", &[np("web")], TierEnd::Deny);
    state.endpoints.insert(wep("cali2"), Arc::new(pod));
    let mut filter = filter(&state);
    let mut check = |prefix: Option<&str>, limit: Option<(&str, Option<u16>)>, expected: &str| {
        let mut spec = api::FelixConfigurationSpec::default();
        spec.log_prefix = prefix.map(str::to_owned);
        spec.log_action_rate_limit = limit.map(|(rate, _)| rate.parse().expect("a rate"));
        spec.log_action_rate_limit_burst = limit.and_then(|(_, burst)| burst);
        filter.settings(Settings::from(&spec));
        let rule = format!("{expected} comment \"log NetworkPolicy default/web ingress 0\"");
        chain(&mut filter, "cali-pi-np/default/web", &[&rule]);
    };
    check(None, None, "counter log prefix \"calico-packet: \"");
    check(
        Some("%t %k %n %p"),
        Some(("100/minute", None)),
        "counter limit rate 100/minute log prefix \"default np web default/web: \"",
    );
    check(
        None,
        Some(("1/second", Some(0))),
        "counter limit rate 1/second burst 1 packets log prefix \"calico-packet: \"",
    );
}

/// `eth0` is a host endpoint that a policy lets nobody but 192.0.2.5 in.
fn guarded_host() -> PolicyState {
    let mut state = open_pods();
    let friend = Rule {
        source: Side {
            nets: vec![net("192.0.2.5/32")],
            ..Side::default()
        },
        ..rule(Action::Allow)
    };
    put_policy(&mut state, gnp("guard"), policy(vec![friend], vec![]));
    let mut host = endpoint(Interface::Named("eth0".into()));
    host.ingress = tier("default", &[gnp("guard")], TierEnd::Deny);
    host.egress = tier("default", &[gnp("guard")], TierEnd::Deny);
    state.endpoints.insert(hep("host"), Arc::new(host));
    state
}

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
