use super::*;

/// Annotations from lines `name: value`; names without a `/` are upstream's for CNI.
fn annotations(lines: &[&str]) -> BTreeMap<String, String> {
    let pair = |line: &&str| {
        let (name, value) = line.split_once(": ").expect("a name and a value");
        let name = match name.contains('/') {
            true => name.to_owned(),
            false => format!("cni.projectcalico.org/{name}"),
        };
        (name, value.to_owned())
    };
    lines.iter().map(pair).collect()
}

fn told(problems: Vec<FieldProblem>) -> String {
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    told.join("; ").replace("cni.projectcalico.org/", "")
}

#[test]
fn a_pod_says_how_it_wants_to_be_attached() {
    let lines = [
        r#"ipAddrs: ["10.0.0.7", "fd00::7"]"#,
        r#"ipv4pools: ["a", "10.1.0.0/16"]"#,
        r#"ipv6pools: ["b"]"#,
        r#"ipFamilies: ["IPv6"]"#,
        "hwAddr: 1C-0c-0a-c0-ff-ee",
    ];
    let (asked, problems) = attachment(&annotations(&lines));
    assert_eq!(told(problems), "");
    let expected = Attachment {
        addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        addresses_no_ipam: Vec::new(),
        ipv4_pools: Some(vec!["a".into(), "10.1.0.0/16".into()]),
        ipv6_pools: Some(vec!["b".into()]),
        families: Some((false, true)),
        mac: Some([0x1c, 0x0c, 0x0a, 0xc0, 0xff, 0xee]),
    };
    assert_eq!(asked, expected);
    assert_eq!(attachment(&annotations(&[])), Default::default());
}

#[test]
fn what_is_wrong_is_named_with_its_value_and_what_would_be_right() {
    let check = |line: &str, expected: &str| {
        let (_, problems) = attachment(&annotations(&[line]));
        let (_, more) = running(&annotations(&[line]));
        let told = told(problems) + &told(more);
        assert!(told.starts_with(expected), "{line}: {told}");
        assert!(expected.is_empty() == told.is_empty(), "{line}: {told}");
    };
    check(
        "ipAddrs: 10.0.0.1",
        "ipAddrs: `10.0.0.1` must be a JSON list of addresses",
    );
    check(r#"ipAddrs: ["10.0.0.1", "10.0.0.2"]"#, "ipAddrs: `[");
    check(r#"ipAddrs: ["fd00::1", "fd00::2"]"#, "ipAddrs: `[");
    check(r#"ipAddrs: ["10.0.0.256"]"#, "ipAddrs: `[");
    check(r#"ipAddrs: ["127.0.0.1"]"#, "ipAddrs: `[");
    check("ipAddrs: []", "ipAddrs: `[]` must be");
    check("ipAddrs: ", "");
    check(r#"ipAddrsNoIpam: {"a": 1}"#, "ipAddrsNoIpam: ");
    check(
        r#"ipv4pools: "a""#,
        "ipv4pools: `\"a\"` must be a JSON list of names of pools",
    );
    check(r#"ipv4pools: ["fd00::/64"]"#, "ipv4pools: ");
    check(r#"ipv6pools: ["10.0.0.0/16"]"#, "ipv6pools: ");
    check(r#"ipv6pools: ["fd00::/64", "b"]"#, "");
    check(
        r#"ipFamilies: ["IPv5"]"#,
        "ipFamilies: `[\"IPv5\"]` must be a JSON list of families",
    );
    check("ipFamilies: []", "ipFamilies: ");
    check(
        "hwAddr: 01:00:5e:00:00:01",
        "hwAddr: `01:00:5e:00:00:01` must be the MAC address",
    );
    check("hwAddr: 02:00", "hwAddr: ");
    check("hwAddr: 02:00:00:00:00:+1", "hwAddr: ");
    check(r#"floatingIPs: ["x"]"#, "floatingIPs: ");
    check(r#"allowedSourcePrefixes: ["10.0.0.0/33"]"#, "allowedSourcePrefixes: ");
    check(
        "kubernetes.io/ingress-bandwidth: fast",
        "kubernetes.io/ingress-bandwidth: `fast` must be a quantity",
    );
    check(
        "qos.projectcalico.org/dscp: 64",
        "qos.projectcalico.org/dscp: `64` must be a DSCP value",
    );
    let both = [r#"ipAddrs: ["10.0.0.1"]"#, r#"ipAddrsNoIpam: ["10.0.0.1"]"#];
    assert!(told(attachment(&annotations(&both)).1).contains("cannot stand beside ipAddrs"));
}

#[test]
fn limits_are_kept_within_their_ranges_and_the_more_special_name_counts() {
    let lines = [
        "kubernetes.io/ingress-bandwidth: 10M",
        "kubernetes.io/egress-bandwidth: 20M",
        "qos.projectcalico.org/egressBandwidth: 1",
        "qos.projectcalico.org/ingressPacketRate: 2k",
        "qos.projectcalico.org/egressPacketBurst: 7",
        "qos.projectcalico.org/dscp: EF",
    ];
    let (asked, problems) = running(&annotations(&lines));
    assert_eq!(told(problems), "");
    let expected = QosControls {
        ingress_bandwidth: 10_000_000,
        egress_bandwidth: 1_000,
        ingress_packet_rate: 2_000,
        egress_packet_burst: 7,
        dscp: Dscp::new(46),
        ..QosControls::default()
    };
    assert_eq!(asked.qos, Some(expected));
    assert_eq!(
        told(asked.notes),
        "qos.projectcalico.org/egressBandwidth: `1` must be from 1000 to 1000000000000000; 1000 counts; \
         qos.projectcalico.org/egressPacketBurst: `7` means nothing without qos.projectcalico.org/egressPacketRate"
    );
}

#[test]
fn a_floating_address_leads_to_the_pods_address_of_its_family() {
    let (asked, _) = running(&annotations(&[
        r#"floatingIPs: ["172.16.0.1", "fd01::1", "172.16.0.2"]"#,
    ]));
    let inside: IpAddr = "10.0.0.1".parse().unwrap();
    let pairs: Vec<String> = asked
        .translations(&[inside])
        .iter()
        .map(|nat| format!("{}>{}", nat.external_ip, nat.internal_ip))
        .collect();
    assert_eq!(pairs, ["172.16.0.1>10.0.0.1", "172.16.0.2>10.0.0.1"]);
}

#[test]
fn sources_are_prefixes_in_canonical_form() {
    let (asked, problems) = running(&annotations(&[r#"allowedSourcePrefixes: ["10.0.0.0/24", "10.1.0.1"]"#]));
    assert_eq!(told(problems), "");
    assert_eq!(asked.sources, ["10.0.0.0/24", "10.1.0.1/32"]);
}
