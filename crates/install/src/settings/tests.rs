use super::*;

fn settings(answers: &[(&str, &str)]) -> Result<Settings, Vec<FieldProblem>> {
    let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    Settings::from_answers(answers.iter().map(pair).collect())
}

#[test]
fn what_is_wrong_names_field_value_and_what_would_be_right() {
    let check = |name: &str, value: &str, expected: &str| {
        let problems = settings(&[(name, value)]).expect_err(name);
        let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(said.starts_with(&format!("{name}: `{value}` ")), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    check("pod-cidr", "192.168.0.0", "write it like");
    check("pod-cidr", "192.168.7.0/16", "did you mean 192.168.0.0/16?");
    check("pod-cidr", "10.0.0.0/8,10.0.0.0/8", "one range of each family");
    check("pod-cidr", "fd00::/48", "add an IPv4 range");
    check("pod-cidr", "10.0.0.0/31", "too small");
    check("block-size", "19", "20 to 32");
    check("block-size", "x", "20 to 32");
    check("encapsulation", "VXLAN", "no VXLAN tunnels yet");
    check("encapsulation", "GRE", "must be IPIP, IPIPCrossSubnet or None");
    check("bgp", "off", "Enabled or Disabled");
    check("datastore", "etcdv3", "must be kubernetes");
    check("datastore", "embedded", "must be kubernetes");
    check("registry", "https://a.example", "must be like");
    check("image", "margay", "needs a tag");
    check("image", "margay:latest", "needs a tag");
    check("policy-only", "yes", "true or false");
    check("interface-prefix", "eni", "without policy-only");
    check("node-selector", "margay", "KEY=VALUE");
    check("api-group", "v3", "must be projectcalico.org/v3");
    check("crds", "some", "no-rules");
    check("kubernetes-service-host", "https://10.0.0.1:6443", "without port");
    check("kubernetes-service-port", "6443", "needs kubernetes-service-host");
    check("ip-autodetection-method", "interface=", "cidr=CIDR");
    check(
        "cni-features",
        "floating_ips, dns",
        "some of ip_addrs_no_ipam, floating_ips",
    );
    check("controllers", "ten", "0 to 9");
    check("controllers", "10", "0 to 9");
}

#[test]
fn all_problems_are_reported_together() {
    let problems = settings(&[
        ("encapsulation", "VXLAN"),
        ("pod-cidr", "10.0.0.0/24"),
        ("block-size", "20"),
    ]);
    let fields: Vec<String> = problems.unwrap_err().into_iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["encapsulation", "block-size"]);
}

#[test]
fn with_policy_alone_another_plugin_does_the_rest() {
    let given = [("policy-only", "true"), ("interface-prefix", "eni")];
    let plain = settings(&given).unwrap();
    assert_eq!(
        (plain.work, plain.interface_prefix.as_str(), plain.ipv4),
        (Work::PolicyOnly, "eni", None)
    );
    let check = |name: &'static str, value: &'static str| {
        let problems = settings(&[given[0], (name, value)]).expect_err(name);
        let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(said.starts_with(&format!("{name}: ")), "{said}");
    };
    check("pod-cidr", "10.0.0.0/8");
    check("encapsulation", "IPIP");
    check("bgp", "Disabled");
    check("cni-features", "floating_ips");
    check("interface-prefix", "toolong");
    assert_eq!(settings(&[("bgp", "Disabled")]).unwrap().work, Work::WithoutBgp);
}

#[test]
fn defaults_and_what_follows_from_what() {
    let plain = settings(&[]).unwrap();
    let pool = plain.ipv4.unwrap();
    assert_eq!(
        (pool.cidr.to_string().as_str(), pool.block_size),
        ("192.168.0.0/16", 26)
    );
    assert_eq!(plain.image, concat!("localhost/margay:", env!("CARGO_PKG_VERSION")));
    assert_eq!((plain.crds, plain.ipv6, &plain.api_server), (Crds::All, None, &None));
    let other = settings(&[
        ("api-group", "crd.projectcalico.org/v1"),
        ("pod-cidr", "10.0.0.0/8, fd00::/48"),
        ("encapsulation", "IPIPCrossSubnet"),
        ("kubernetes-service-host", "10.0.0.1"),
        ("registry", "r.example:5000/net/"),
    ])
    .unwrap();
    assert_eq!(other.crds, Crds::None);
    assert_eq!(other.ipv6.unwrap().to_string(), "fd00::/48");
    assert_eq!(other.api_server, Some(("10.0.0.1".into(), 6443)));
    assert!(other.image.starts_with("r.example:5000/net/margay:"));
    assert_eq!(settings(&[("pod-cidr", "none")]).unwrap().ipv4, None);
}
