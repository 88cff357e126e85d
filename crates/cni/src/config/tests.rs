use serde_json::json;

use super::*;

fn parse(document: Value) -> Result<Config, Error> {
    Config::parse(document.to_string().as_bytes(), Role::Main)
}

/// A right configuration with some keys replaced (`null` takes one away).
fn with(changes: Value) -> Value {
    let mut document = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "ipam": {"type": "calico-ipam"},
    });
    for (key, value) in changes.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

fn check(changes: Value, code: Code, parts: &[&str]) {
    let error = parse(with(changes.clone())).expect_err(&changes.to_string());
    assert_eq!(error.code, code, "{error}");
    for part in parts {
        assert!(error.details.contains(part), "{part:?} not in {:?}", error.details);
    }
}

#[test]
fn the_least_gets_defaults() {
    let config = parse(with(json!({}))).unwrap();
    assert_eq!(config.socket, PathBuf::from(DEFAULT_SOCKET));
    assert_eq!(config.state_dir, PathBuf::from(DEFAULT_STATE_DIR));
    assert_eq!(config.ipam, Ipam::default());
    assert_eq!(
        (config.mtu, config.nodename, config.unknown.is_empty()),
        (None, None, true)
    );
}

#[test]
fn every_key_of_upstream_is_known() {
    let all = r#"{
        "mode": "", "mtu": 1440, "num_queues": 1, "nodename": "n1", "nodename_file": "/var/lib/calico/nodename",
        "nodename_file_optional": false, "ipam_lock_file": "", "datastore_type": "kubernetes", "etcd_endpoints": "",
        "etcd_key_file": "", "etcd_cert_file": "", "etcd_ca_cert_file": "", "etcd_discovery_srv": "", "log_level": "Info",
        "log_file_path": "/var/log/calico/cni/cni.log", "log_file_max_size": 100, "log_file_max_age": 30,
        "log_file_max_count": 10, "policy": {"type": "k8s"},
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig", "node_name": "other", "k8s_api_root": ""},
        "feature_control": {"ip_addrs_no_ipam": true, "floating_ips": true},
        "container_settings": {"allow_ip_forwarding": true}, "include_default_routes": true,
        "dataplane_options": {"type": "linux"}, "device_type": "veth", "readiness_gates": ["http://localhost:9099/readiness"],
        "policy_setup_timeout_seconds": 0, "endpoint_status_dir": "/var/run/calico/endpoint-status",
        "require_mtu_file": false, "calico_api_group": "", "qps": 20, "burst": 30, "args": {"org.apache.mesos": {}},
        "vxlan_mac_prefix": "0E-2A", "vxlan_vni": 4096, "windows_use_single_network": true,
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": []}, "dns": {},
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": true, "ipv4_pools": ["10.0.0.0/16", "pool-a"],
                 "ipv6_pools": ["fd00::/48"], "subnet": "usePodCidr"},
        "socket": "/run/a.sock", "state_dir": "/var/lib/a"
    }"#;
    let config = parse(with(serde_json::from_str(all).unwrap())).unwrap();
    assert_eq!(config.unknown, Vec::<String>::new());
    assert_eq!((config.mtu, config.nodename.as_deref()), (Some(1440), Some("n1")));
    assert_eq!(config.ipam.ipv4_pools, ["10.0.0.0/16", "pool-a"]);
    assert!(config.ipam.assign_ipv4 && config.ipam.assign_ipv6);
    assert!(config.allow_ip_forwarding && config.include_default_routes && config.feature_control.floating_ips);
    assert_eq!(config.socket, PathBuf::from("/run/a.sock"));
}

#[test]
fn all_problems_come_at_once_with_field_value_and_remedy() {
    check(
        json!({"mtu": "big", "socket": "relative", "log_level": "loud", "name": null,
               "ipam": {"type": "calico-ipam", "assign_ipv4": "yes", "ipv4_pools": ["fd00::/8"]}}),
        Code::InvalidConfig,
        &[
            "mtu: \"big\"; must be an integer from 0 to 65535",
            "socket: \"relative\"; must be an absolute path",
            "log_level: \"loud\"; must be one of none,",
            "name: null; must be letters",
            "ipam.assign_ipv4: \"yes\"; must be true, false, \"true\" or \"false\"",
            "ipam.ipv4_pools: [\"fd00::/8\"]; must be a list of names of pools or IPv4 ranges",
        ],
    );
}

#[test]
fn wrong_types_are_named() {
    check(
        json!({"mtu": 67}),
        Code::InvalidConfig,
        &["mtu: 67; must be an integer from 68"],
    );
    check(json!({"mtu": 1.5}), Code::InvalidConfig, &["mtu: 1.5"]);
    check(
        json!({"ipam": []}),
        Code::InvalidConfig,
        &["ipam: []; must be an object"],
    );
    check(
        json!({"kubernetes": {"kubeconfig": 1}}),
        Code::InvalidConfig,
        &["kubernetes.kubeconfig: 1; must be a string"],
    );
    check(
        json!({"container_settings": {"allow_ip_forwarding": "true"}}),
        Code::InvalidConfig,
        &["true or false"],
    );
    check(json!({"prevResult": {"ips": 3}}), Code::InvalidConfig, &["prevResult"]);
    check(
        json!({"cni.dev/valid-attachments": [{"ifname": "eth0"}]}),
        Code::InvalidConfig,
        &["containerID"],
    );
    check(
        json!({"ipam": {"type": "calico-ipam", "assign_ipv4": false}}),
        Code::InvalidConfig,
        &["needs an address"],
    );
    check(json!({"name": "../etc"}), Code::InvalidConfig, &["name: \"../etc\""]);
}

#[test]
fn what_is_understood_but_not_supported_has_its_own_code() {
    check(
        json!({"ipam": {"type": "host-local"}}),
        Code::UnsupportedField,
        &["ipam.type: \"host-local\"", "calico-ipam"],
    );
    check(json!({"ipam": null}), Code::UnsupportedField, &["ipam.type: missing"]);
    check(
        json!({"device_type": "netkit"}),
        Code::UnsupportedField,
        &["device_type: \"netkit\""],
    );
    check(
        json!({"dataplane_options": {"type": "grpc"}}),
        Code::UnsupportedField,
        &["dataplane_options.type"],
    );
}

#[test]
fn versions_we_do_not_speak_are_refused() {
    for version in [json!("0.2.0"), json!("2.0.0"), json!(1), json!(null)] {
        check(
            json!({"cniVersion": version}),
            Code::IncompatibleVersion,
            &["supported are 0.3.0"],
        );
    }
    for version in Version::ALL {
        assert_eq!(
            parse(with(json!({"cniVersion": version.text()}))).unwrap().cni_version,
            version
        );
    }
}

#[test]
fn what_is_no_object_cannot_be_decoded() {
    for input in ["", "[]", "{\"name\":", "nonsense"] {
        assert_eq!(
            Config::parse(input.as_bytes(), Role::Main).unwrap_err().code,
            Code::Decode,
            "{input:?}"
        );
    }
}

#[test]
fn unknown_keys_are_allowed_and_listed() {
    let config = parse(with(
        json!({"mtuu": 1, "ipam": {"type": "calico-ipam", "ipv4_pool": []}}),
    ))
    .unwrap();
    assert_eq!(config.unknown, ["ipam.ipv4_pool", "mtuu"]);
}

#[test]
fn the_list_of_attachments_is_read_under_both_names() {
    let list = json!([{"containerID": "a", "ifname": "eth0"}]);
    let wanted = Some(vec![Attachment {
        container_id: "a".into(),
        ifname: "eth0".into(),
    }]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(parse(with(json!({key: list}))).unwrap().valid_attachments, wanted);
    }
    assert_eq!(
        parse(with(json!({"cni.dev/valid-attachments": []})))
            .unwrap()
            .valid_attachments,
        Some(vec![])
    );
    assert_eq!(parse(with(json!({}))).unwrap().valid_attachments, None);
}

#[test]
fn a_mistyped_key_does_not_stop_a_del() {
    let input = with(json!({"mtu": "big", "cniVersion": "9", "state_dir": "/s"})).to_string();
    let config = Config::parse_leniently(input.as_bytes(), Role::Main).unwrap();
    assert_eq!(
        (config.name.as_str(), config.state_dir),
        ("k8s-pod-network", PathBuf::from("/s"))
    );
}

#[test]
fn as_ipam_plugin_foreign_keys_are_not_judged() {
    let document = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "macvlan", "mode": 7, "mtu": "x",
        "ipam": {"type": "calico-ipam", "socket": "/run/b.sock"},
    });
    let config = Config::parse(document.to_string().as_bytes(), Role::Ipam).unwrap();
    assert_eq!(config.socket, PathBuf::from("/run/b.sock"));
}

#[test]
fn what_the_runtime_asks_for_is_read_or_named() {
    let asked = |more: Value| parse(with(more)).map(|config| config.runtime);
    let runtime = asked(json!({
        "runtimeConfig": {
            "ips": ["10.0.0.1/24", "fd00::1"], "mac": "02:00:00:00:00:01",
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
            "portMappings": [{"hostPort": 8080, "containerPort": 80}, {"hostPort": 0, "containerPort": 81, "protocol": "UDP"}],
        },
        "args": {"cni": {"ips": ["10.0.0.9"]}},
    }));
    let wanted = Runtime {
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        mac: Some("02:00:00:00:00:01".into()),
        bandwidth: Some(Bandwidth {
            ingress_rate: 1000,
            ingress_burst: 2000,
            ..Bandwidth::default()
        }),
        port_mappings: vec![PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: "tcp".into(),
            host_ip: String::new(),
        }],
    };
    assert_eq!(runtime, Ok(wanted.clone()));
    // containerd's way to write it.
    let capitals = asked(json!({"runtimeConfig": {
        "bandwidth": {"IngressRate": 1000, "IngressBurst": 2000, "EgressRate": 0, "EgressBurst": 0},
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
    }}))
    .unwrap();
    assert_eq!(
        (capitals.bandwidth, capitals.port_mappings),
        (wanted.bandwidth, wanted.port_mappings.clone())
    );
    assert_eq!(asked(json!({})), Ok(Runtime::default()));
    let check = |runtime: Value, wanted: &str| {
        let error = asked(json!({"runtimeConfig": runtime})).unwrap_err();
        assert!(error.details.starts_with(wanted), "{error}");
    };
    check(json!({"ips": ["10.0.0.1", "10.0.0.2"]}), "runtimeConfig.ips: ");
    check(
        json!({"ips": ["x"]}),
        "runtimeConfig.ips: [\"x\"]; must be a list of addresses",
    );
    check(json!({"mac": "01:00:00:00:00:01"}), "runtimeConfig.mac: ");
    check(json!({"bandwidth": {"ingressRate": -1}}), "runtimeConfig.bandwidth: ");
    check(
        json!({"portMappings": [{"hostPort": 1, "containerPort": 0}]}),
        "runtimeConfig.portMappings: ",
    );
    check(
        json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}),
        "runtimeConfig.portMappings: ",
    );
}
