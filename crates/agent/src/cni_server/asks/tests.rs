use cni::config::Config;
use cni::env::Verb;
use serde_json::{Value, json};

use super::super::fakes::World;
use super::*;

/// A request of pod ns/p with more in its configuration and arguments.
fn request(more: Value, args: &str) -> Request {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "calico", "ipam": {"type": "calico-ipam"}});
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    let mut problems = Vec::new();
    let args = cni::env::Args::parse(&format!("K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;{args}"), &mut problems);
    assert_eq!(problems, Vec::<String>::new());
    Request {
        args,
        config: Config::parse(config.to_string().as_bytes(), Role::Main).unwrap(),
        ..World::new(0).request(Verb::Add, "c", "p")
    }
}

/// A workload from lines `name: value`; names of its namespace's annotations begin with `ns/`.
fn workload(lines: &[&str]) -> Workload {
    let mut workload = Workload::default();
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a name and a value");
        let (of, name) = match name.strip_prefix("ns/") {
            Some(name) => (&mut workload.namespace_annotations, name),
            None => (&mut workload.annotations, name),
        };
        of.insert(format!("cni.projectcalico.org/{name}"), value.to_owned());
    }
    workload
}

/// As text: addresses, families, pools, MAC address; or what is wrong.
fn shown(asks: Result<Asks, Vec<String>>) -> String {
    let asks = match asks {
        Ok(asks) => asks,
        Err(problems) => return problems.join("; "),
    };
    let mut words: Vec<String> = asks.addresses.iter().map(ToString::to_string).collect();
    words.extend(asks.outside_ipam.then(|| "outside".to_owned()));
    words.extend(asks.ipv4.then(|| format!("v4[{}]", asks.ipv4_pools.join(" "))));
    words.extend(asks.ipv6.then(|| format!("v6[{}]", asks.ipv6_pools.join(" "))));
    words.extend(asks.mac.map(super::super::endpoint::mac_text));
    words.join(" ")
}

#[test]
fn the_pod_counts_before_its_namespace_and_that_before_the_configuration() {
    let pools = json!({"ipam": {"type": "calico-ipam", "ipv4_pools": ["conf"]}});
    let check = |lines: &[&str], expected: &str| {
        assert_eq!(
            shown(decide(&request(pools.clone(), ""), Some(&workload(lines)))),
            expected
        );
    };
    check(&[], "v4[conf]");
    check(&[r#"ns/ipv4pools: ["space"]"#], "v4[space]");
    check(&[r#"ns/ipv4pools: ["space"]"#, r#"ipv4pools: ["pod"]"#], "v4[pod]");
    check(&[r#"ns/ipFamilies: ["IPv4", "IPv6"]"#], "v4[conf] v6[]");
    check(&[r#"ns/ipFamilies: ["IPv6"]"#, r#"ns/ipv6pools: ["six"]"#], "v6[six]");
    check(&[r#"ns/ipFamilies: ["IPv6"]"#, r#"ipFamilies: ["IPv4"]"#], "v4[conf]");
    // A namespace cannot name addresses.
    check(
        &[r#"ns/ipAddrs: ["10.0.0.1"]"#, "ns/hwAddr: 02:00:00:00:00:01"],
        "v4[conf]",
    );
    check(
        &[r#"ipAddrs: ["10.0.0.1", "fd00::1"]"#, "hwAddr: 02:00:00:00:00:01"],
        "10.0.0.1 fd00::1 v4[conf] 02:00:00:00:00:01",
    );
}

#[test]
fn the_runtime_asks_too_and_the_pod_counts_before_it() {
    let runtime = json!({"runtimeConfig": {"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:02"}});
    let older = json!({"args": {"cni": {"ips": ["10.0.0.4"]}}});
    let args = "IP=10.0.0.3;MAC=02:00:00:00:00:03";
    let check = |config: &Value, args: &str, lines: Option<&[&str]>, expected: &str| {
        let workload = lines.map(workload);
        assert_eq!(
            shown(decide(&request(config.clone(), args), workload.as_ref())),
            expected
        );
    };
    check(&json!({}), args, None, "10.0.0.3 v4[] 02:00:00:00:00:03");
    check(&runtime, args, None, "10.0.0.2 v4[] 02:00:00:00:00:02");
    check(&older, "", None, "10.0.0.4 v4[]");
    let pod: &[&str] = &[r#"ipAddrs: ["10.0.0.1"]"#, "hwAddr: 02:00:00:00:00:01"];
    check(&runtime, args, Some(pod), "10.0.0.1 v4[] 02:00:00:00:00:01");
}

#[test]
fn what_cannot_be_is_told_with_annotation_value_and_what_would_be_right() {
    let check = |config: Value, lines: &[&str], expected: &[&str]| {
        let told = shown(decide(&request(config, ""), Some(&workload(lines))));
        for part in expected {
            assert!(told.contains(part), "{part} not in {told}");
        }
        assert!(!expected.is_empty() || !told.contains("annotation"), "{told}");
    };
    let no_ipam = r#"ipAddrsNoIpam: ["10.9.0.1"]"#;
    check(
        json!({}),
        &[no_ipam],
        &[
            "annotation cni.projectcalico.org/ipAddrsNoIpam of pod ns/p: `[\"10.9.0.1\"]` needs",
            "ip_addrs_no_ipam",
        ],
    );
    check(json!({"feature_control": {"ip_addrs_no_ipam": true}}), &[no_ipam], &[]);
    let floating = r#"floatingIPs: ["172.16.0.1"]"#;
    check(json!({}), &[floating], &["floatingIPs of pod ns/p", "floating_ips"]);
    let on = json!({"feature_control": {"floating_ips": true}});
    check(on.clone(), &[floating], &[]);
    check(on, &[r#"floatingIPs: ["fd00::1"]"#], &["fd00::1 leads nowhere"]);
    check(
        json!({}),
        &[r#"ipFamilies: ["IPv6"]"#, r#"ipAddrs: ["10.0.0.1"]"#],
        &["ipFamilies of pod ns/p: `[\"IPv6\"]` must have the family of 10.0.0.1 too"],
    );
    check(
        json!({}),
        &["ns/ipv4pools: a", "ipAddrs: b", "hwAddr: c"],
        &[
            "ipv4pools of namespace ns: `a`",
            "ipAddrs of pod ns/p: `b`",
            "hwAddr of pod ns/p: `c`",
        ],
    );
}

#[tokio::test]
async fn an_add_that_cannot_be_leaves_nothing() {
    let world = World::new(4);
    let server = world.server().await;
    for (lines, wanted) in [
        (
            vec!["ipAddrs: nonsense"],
            "annotation cni.projectcalico.org/ipAddrs of pod ns/p: `nonsense`",
        ),
        (
            vec![r#"ipAddrs: ["10.9.9.9"]"#],
            "(asked for by annotation cni.projectcalico.org/ipAddrs of pod ns/p)",
        ),
    ] {
        world.state().workload = Some(workload(&lines));
        let error = world.add(&server, "c", "p").await.unwrap_err();
        assert!(error.details.contains(wanted), "{error}");
        world.assert_empty(&server).await;
    }
}

#[tokio::test]
async fn a_pod_has_the_addresses_and_the_mac_address_that_it_asks_for() {
    let world = World::new(8);
    let server = world.server().await;
    world.state().workload = Some(workload(&[r#"ipAddrs: ["10.0.0.5"]"#, "hwAddr: 02:00:00:00:00:05"]));
    let result = world.add(&server, "c", "p").await.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.5/32");
    assert_eq!(result.interfaces[1].mac, "02:00:00:00:00:05");
    assert_eq!(world.weps().await["n1-k8s-p-eth0"].spec.mac, "02:00:00:00:00:05");
    world.assert_consistent(&server).await;
    // Another server knows it from the journal.
    let restarted = world.server().await;
    assert_eq!(world.add(&restarted, "c", "p").await.unwrap(), result);
}

#[tokio::test]
async fn addresses_outside_of_ipam_are_never_released_to_it() {
    let world = World::new(2);
    let server = world.server().await;
    world.state().workload = Some(workload(&[r#"ipAddrsNoIpam: ["10.9.0.1"]"#]));
    let mut request = world.request(Verb::Add, "c", "p");
    request.config.feature_control.ip_addrs_no_ipam = true;
    for _ in 0..2 {
        let reply = server.handle(request.clone()).await;
        let cni::protocol::Reply::Ok(Some(result)) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(result.ips[0].address.to_string(), "10.9.0.1/32");
        world.assert_consistent(&server).await;
        // Broken, and made anew.
        world.state().devices.clear();
    }
    let check = Request {
        verb: Verb::Check,
        ..request
    };
    world.state().devices.clear();
    assert!(matches!(server.handle(check).await, cni::protocol::Reply::Error(_)));
    world.del(&server, "c", "p").await;
    assert_eq!(world.state().free.len(), 2);
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn limits_and_ports_of_the_runtime_are_in_the_endpoint() {
    let world = World::new(2);
    let server = world.server().await;
    let config = json!({"runtimeConfig": {
        "bandwidth": {"ingressRate": 1_000_000, "egressRate": 2_000_000, "egressBurst": 3_000_000},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}, {"hostPort": 0, "containerPort": 1}],
    }});
    let more = request(config, "").config.runtime;
    let mut request = world.request(Verb::Add, "c", "p");
    request.config.runtime = more;
    assert!(matches!(server.handle(request).await, cni::protocol::Reply::Ok(_)));
    // Restored from the journal, it has them too.
    let restarted = world.server().await;
    world.add(&restarted, "c", "p").await.unwrap();
    let spec = world.weps().await["n1-k8s-p-eth0"].spec.clone();
    let limits = spec.qos_controls.expect("there are limits");
    assert_eq!((limits.ingress_bandwidth, limits.egress_burst), (1_000_000, 3_000_000));
    assert_eq!(spec.ports.len(), 1);
    assert_eq!((spec.ports[0].host_port, spec.ports[0].port), (Some(8080), 80));
}
