//! What a rule becomes in the kernel's words.

use super::*;

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
        ingress: [not_web].into(),
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
