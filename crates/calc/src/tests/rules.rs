//! Single rules, as data.

use api::{AffinityState, EncapMode, Resource};
use bgp::config::Config;

use super::build::*;
use crate::{GraphConfig, NodeState, Problem, RouterId, compute_with};

fn state(node: &str, resources: &[Resource]) -> (NodeState, Vec<Problem>) {
    compute_with(&GraphConfig::new(node), resources.iter())
}

fn bgp_config(node: &str, resources: &[Resource]) -> Config {
    state(node, resources).0.bgp.expect("a registered node")
}

/// One line for each session: name, address, AS, who opens it, families, reflection.
fn check(node: &str, resources: &[Resource], wanted: &[&str]) {
    let config = bgp_config(node, resources);
    let shown: Vec<String> = config
        .peers
        .iter()
        .map(|(id, peer)| {
            let families = peer
                .families
                .iter()
                .map(|family| format!("{family:?}"))
                .collect::<Vec<_>>()
                .join("+");
            let passive = if peer.passive { " passive" } else { "" };
            let client = if peer.reflector_client { " client" } else { "" };
            format!("{} {} AS{} {families}{passive}{client}", peer.name, id.0, peer.asn)
        })
        .collect();
    assert_eq!(shown, wanted);
}

fn complaints(node: &str, resources: &[Resource]) -> Vec<String> {
    state(node, resources).1.iter().map(ToString::to_string).collect()
}

#[test]
fn in_the_mesh_the_lower_address_as_text_waits() {
    let nodes = [node("a", &["10.0.0.2/24"]).into(), node("b", &["10.0.0.10/24"]).into()];
    check("a", &nodes, &["Mesh_10_0_0_10 10.0.0.10:179 AS64512 Ipv4"]);
    check("b", &nodes, &["Mesh_10_0_0_2 10.0.0.2:179 AS64512 Ipv4 passive"]);
}

#[test]
fn one_session_carries_both_families() {
    let nodes = [
        node("a", &["10.0.0.1/24", "fd00::1/64"]).into(),
        node("b", &["10.0.0.2/24", "fd00::2/64"]).into(),
        node("c", &["fd00::3/64"]).into(),
        node("d", &["10.0.0.4/24"]).into(),
    ];
    check(
        "a",
        &nodes,
        &[
            "Mesh_10_0_0_2 10.0.0.2:179 AS64512 Ipv4+Ipv6 passive",
            "Mesh_10_0_0_4 10.0.0.4:179 AS64512 Ipv4 passive",
            "Mesh_fd00__3 [fd00::3]:179 AS64512 Ipv6 passive",
        ],
    );
    check(
        "d",
        &nodes,
        &[
            "Mesh_10_0_0_1 10.0.0.1:179 AS64512 Ipv4",
            "Mesh_10_0_0_2 10.0.0.2:179 AS64512 Ipv4",
        ],
    );
}

#[test]
fn without_a_mesh_there_are_no_mesh_sessions() {
    let off = bgp("default", |spec| spec.node_to_node_mesh_enabled = Some(false));
    check(
        "a",
        &[
            node("a", &["10.0.0.1/24"]).into(),
            node("b", &["10.0.0.2/24"]).into(),
            off,
        ],
        &[],
    );
}

#[test]
fn as_numbers_and_ports_come_from_the_node_then_its_configuration_then_the_cluster() {
    let mut own_as = node("c", &["10.0.0.3/24"]);
    bgp_of(&mut own_as).as_number = asn(65003);
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        node("b", &["10.0.0.2/24"]).into(),
        own_as.into(),
        bgp("default", |spec| {
            (spec.as_number, spec.listen_port) = (asn(65000), Some(1179))
        }),
        bgp("node.b", |spec| spec.listen_port = Some(2179)),
    ];
    check(
        "a",
        &resources,
        &[
            "Mesh_10_0_0_2 10.0.0.2:2179 AS65000 Ipv4 passive",
            "Mesh_10_0_0_3 10.0.0.3:1179 AS65003 Ipv4 passive",
        ],
    );
    assert_eq!(bgp_config("b", &resources).listen_port, 2179);
    assert_eq!(bgp_config("c", &resources).asn, 65003);
}

#[test]
fn a_reflector_leaves_the_mesh_and_its_clients_are_mirrored() {
    let mut reflector = labelled(node("rr", &["10.0.0.9/24"]), &[("rr", "true")]);
    bgp_of(&mut reflector).route_reflector_cluster_id = Some("224.0.0.1".parse().unwrap());
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        node("b", &["10.0.0.2/24"]).into(),
        reflector.into(),
        peer("to-reflectors", |spec| {
            (spec.node_selector, spec.peer_selector) = ("!has(rr)".into(), "has(rr)".into())
        }),
    ];
    check(
        "a",
        &resources,
        &[
            "Mesh_10_0_0_2 10.0.0.2:179 AS64512 Ipv4 passive",
            "Node_10_0_0_9 10.0.0.9:179 AS64512 Ipv4",
        ],
    );
    check(
        "rr",
        &resources,
        &[
            "Node_10_0_0_1 10.0.0.1:179 AS64512 Ipv4 client",
            "Node_10_0_0_2 10.0.0.2:179 AS64512 Ipv4 client",
        ],
    );
}

#[test]
fn reflectors_of_one_cluster_are_not_clients_of_each_other() {
    let reflector = |name: &str, address: &str, cluster: &str| -> Resource {
        let mut node = labelled(node(name, &[address]), &[("rr", "true")]);
        bgp_of(&mut node).route_reflector_cluster_id = Some(cluster.parse().unwrap());
        node.into()
    };
    let resources = [
        reflector("r1", "10.0.0.1/24", "1.1.1.1"),
        reflector("r2", "10.0.0.2/24", "1.1.1.1"),
        reflector("r3", "10.0.0.3/24", "3.3.3.3"),
        peer("reflectors", |spec| {
            (spec.node_selector, spec.peer_selector) = ("has(rr)".into(), "has(rr)".into())
        }),
    ];
    check(
        "r1",
        &resources,
        &[
            "Node_10_0_0_2 10.0.0.2:179 AS64512 Ipv4",
            "Node_10_0_0_3 10.0.0.3:179 AS64512 Ipv4 client",
        ],
    );
}

#[test]
fn a_global_peer_is_a_session_of_every_node_and_waits_only_for_nodes() {
    let external = peer("tor", |spec| {
        (spec.peer_ip, spec.as_number) = ("10.0.0.254:1179".into(), asn(65001))
    });
    let resources = [node("a", &["10.0.0.1/24"]).into(), external];
    check(
        "a",
        &resources,
        &["Global_10_0_0_254_port_1179 10.0.0.254:1179 AS65001 Ipv4"],
    );

    let inside = peer("b", |spec| {
        (spec.peer_ip, spec.as_number) = ("10.0.0.2".into(), asn(64512))
    });
    let off = bgp("default", |spec| {
        (spec.node_to_node_mesh_enabled, spec.listen_port) = (Some(false), Some(1179))
    });
    let nodes = [
        node("a", &["10.0.0.1/24"]).into(),
        node("b", &["10.0.0.2/24"]).into(),
        inside,
        off,
    ];
    check(
        "a",
        &nodes,
        &["Global_10_0_0_2_port_1179 10.0.0.2:1179 AS64512 Ipv4 passive"],
    );
    check("b", &nodes, &["Node_10_0_0_1_port_1179 10.0.0.1:1179 AS64512 Ipv4"]);
}

#[test]
fn an_explicit_peering_replaces_the_mesh_session_to_the_same_node() {
    let explicit = peer("b", |spec| {
        (spec.node, spec.peer_ip, spec.as_number) = ("a".into(), "10.0.0.2".into(), asn(64512))
    });
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        node("b", &["10.0.0.2/24"]).into(),
        explicit,
    ];
    check("a", &resources, &["Node_10_0_0_2 10.0.0.2:179 AS64512 Ipv4"]);
    check("b", &resources, &["Node_10_0_0_1 10.0.0.1:179 AS64512 Ipv4"]);
}

#[test]
fn a_peering_that_makes_no_sense_is_left_out_alone() {
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        peer("both", |spec| {
            (spec.node, spec.node_selector) = ("a".into(), "all()".into())
        }),
        peer("selector", |spec| spec.peer_selector = "rack in".into()),
        peer("nobody", |_| {}),
        peer("text", |spec| spec.peer_ip = "10.0.0".into()),
        peer("as", |spec| spec.peer_ip = "10.0.0.3".into()),
        peer("good", |spec| {
            (spec.peer_ip, spec.as_number) = ("10.0.0.9".into(), asn(1))
        }),
    ];
    check("a", &resources, &["Global_10_0_0_9 10.0.0.9:179 AS1 Ipv4"]);
    let fields: Vec<String> = state("a", &resources)
        .1
        .iter()
        .map(|problem| format!("{} {}", problem.key.name, problem.field))
        .collect();
    let wanted = [
        "as spec.asNumber",
        "both spec.nodeSelector",
        "nobody spec.peerIP",
        "selector spec.peerSelector",
        "text spec.peerIP",
    ];
    assert_eq!(fields, wanted);
}

#[test]
fn confirmed_blocks_in_exported_pools_are_originated() {
    let mut quiet = pool("quiet", "172.16.0.0/16", EncapMode::Never);
    quiet.spec.disable_bgp_export = true;
    let mut disabled = pool("old", "172.17.0.0/16", EncapMode::Never);
    disabled.spec.disabled = true;
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        pool("p", "192.168.0.0/16", EncapMode::Always).into(),
        quiet.into(),
        disabled.into(),
        affinity("a", "192.168.1.0/26", AffinityState::Confirmed).into(),
        affinity("a", "192.168.1.64/32", AffinityState::Legacy).into(),
        affinity("a", "192.168.2.0/26", AffinityState::Pending).into(),
        affinity("a", "192.168.3.0/26", AffinityState::PendingDeletion).into(),
        affinity("b", "192.168.4.0/26", AffinityState::Confirmed).into(),
        affinity("a", "172.16.0.0/26", AffinityState::Confirmed).into(),
        affinity("a", "172.17.0.0/26", AffinityState::Confirmed).into(),
        affinity("a", "10.99.0.0/26", AffinityState::Confirmed).into(),
        felix("default", |spec| spec.ipv4_normal_route_priority = Some(500)).into(),
    ];
    let (state, problems) = state("a", &resources);
    let blocks: Vec<String> = state.blocks.iter().map(ToString::to_string).collect();
    assert_eq!(
        blocks,
        [
            "10.99.0.0/26",
            "172.16.0.0/26",
            "172.17.0.0/26",
            "192.168.1.0/26",
            "192.168.1.64/32"
        ]
    );
    let originated = state.bgp.expect("registered").originated;
    let shown: Vec<String> = originated
        .iter()
        .map(|(net, route)| format!("{net} {}", route.metric))
        .collect();
    assert_eq!(
        shown,
        ["172.17.0.0/26 500", "192.168.1.0/26 500", "192.168.1.64/32 500"]
    );
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].key.name, "a-10-99-0-0-26");
}

#[test]
fn what_others_announce_is_passed_on_within_exported_pools() {
    let mut quiet = pool("quiet", "172.16.0.0/16", EncapMode::Never);
    quiet.spec.disable_bgp_export = true;
    let services = bgp("default", |spec| {
        spec.service_load_balancer_ips = ranges(&["10.96.0.0/16"]);
        spec.service_external_ips = ranges(&["10.97.0.0/16"]);
        spec.service_cluster_ips = ranges(&["10.98.0.0/16"]);
    });
    let exportable = |node: Resource| {
        let resources = [
            node,
            pool("p", "192.168.0.0/16", EncapMode::Always).into(),
            pool("six", "fd00:1::/48", EncapMode::Never).into(),
            quiet.clone().into(),
            services.clone(),
        ];
        let ranges = bgp_config("a", &resources).exportable;
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut reflector = node("a", &["10.0.0.1/24"]);
    bgp_of(&mut reflector).route_reflector_cluster_id = Some("224.0.0.1".parse().expect("an id"));
    assert_eq!(
        exportable(node("a", &["10.0.0.1/24"]).into()),
        ["192.168.0.0/16", "fd00:1::/48"]
    );
    assert_eq!(
        exportable(reflector.into()),
        ["10.96.0.0/16", "10.97.0.0/16", "192.168.0.0/16", "fd00:1::/48"]
    );
}

#[test]
fn services_have_the_ranges_of_the_cluster_s_configuration() {
    let check = |name: &str, cluster: &[&str], external: &[&str], load_balancer: &[&str], expected: &[&str]| {
        let configuration = bgp(name, |spec| {
            spec.service_cluster_ips = ranges(cluster);
            spec.service_external_ips = ranges(external);
            spec.service_load_balancer_ips = ranges(load_balancer);
            // Says nothing, and is not an error.
            spec.service_external_ips.push(api::ServiceRange::default());
        });
        let shown: Vec<String> = state("a", &[configuration])
            .0
            .services
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, expected, "{name}");
    };
    check("default", &[], &[], &[], &[]);
    check("default", &["10.96.7.0/12"], &[], &[], &["10.96.0.0/12"]);
    check(
        "default",
        &["10.96.0.0/16", "fd00:10::/108"],
        &["192.0.2.7/32"],
        &["192.0.2.7/32", "203.0.113.0/24"],
        &["10.96.0.0/16", "192.0.2.7/32", "203.0.113.0/24", "fd00:10::/108"],
    );
    check("node.a", &["10.96.0.0/16"], &[], &[], &[]);
}

#[test]
fn an_address_belongs_to_one_node() {
    let nodes = |addresses: [(&str, i64); 2]| -> Vec<Resource> {
        addresses
            .map(|(name, age)| created(node(name, &["10.0.0.2/24"]), age).into())
            .to_vec()
    };
    let mut resources = nodes([("b", 2), ("c", 1)]);
    resources.push(node("a", &["10.0.0.1/24"]).into());
    let (as_seen_by_a, _) = state("a", &resources);
    assert_eq!(as_seen_by_a.peers["b"].ipv4, None, "the newcomer loses");
    assert!(as_seen_by_a.peers["c"].ipv4.is_some());
    assert_eq!(
        complaints("a", &resources),
        ["Node(b) spec.bgp.ipv4Address: 10.0.0.2 already belongs to node c: packets keep going there"]
    );
    let (as_seen_by_b, _) = state("b", &resources);
    assert!(
        as_seen_by_b.this_node.expect("registered").ipv4.is_some(),
        "a node's own address stands on itself"
    );
}

#[test]
fn of_two_pools_that_overlap_the_older_one_stands() {
    let resources = [
        created(pool("a-new", "192.168.0.0/17", EncapMode::Always), 2).into(),
        created(pool("old", "192.168.0.0/16", EncapMode::Never), 1).into(),
    ];
    let (state, problems) = state("a", &resources);
    assert_eq!(
        state.pools.keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.168.0.0/16"]
    );
    let names: Vec<&str> = problems.iter().map(|problem| problem.key.name.as_str()).collect();
    assert_eq!(names, ["a-new"]);
}

#[test]
fn a_pool_that_contradicts_itself_loses_no_route() {
    let check = |cidr: &str, vxlan: EncapMode, expected: (&str, EncapMode), problem: &str| {
        let mut pool = pool("p", cidr, EncapMode::Always);
        pool.spec.vxlan_mode = vxlan;
        let resources = [pool.into()];
        let (state, _) = state("a", &resources);
        let pools = state
            .pools
            .iter()
            .map(|(range, pool)| (range.to_string(), pool.ipip, pool.vxlan));
        let (range, ipip) = expected;
        assert_eq!(pools.collect::<Vec<_>>(), [(range.to_owned(), ipip, EncapMode::Never)]);
        assert_eq!(complaints("a", &resources), [problem]);
    };
    check(
        "192.168.0.0/16",
        EncapMode::Always,
        ("192.168.0.0/16", EncapMode::Always),
        "IPPool(p) spec.vxlanMode: ipipMode and vxlanMode exclude each other: ipipMode counts",
    );
    check(
        "fd00::/48",
        EncapMode::Never,
        ("fd00::/48", EncapMode::Never),
        "IPPool(p) spec.ipipMode: IP-in-IP carries IPv4 only: Never counts",
    );
    check(
        "192.168.7.1/16",
        EncapMode::Never,
        ("192.168.0.0/16", EncapMode::Always),
        "IPPool(p) spec.cidr: 192.168.7.1/16 has host bits: 192.168.0.0/16 counts",
    );
}

#[test]
fn settings_of_the_node_beat_those_of_the_cluster_field_by_field() {
    let resources = [
        felix("default", |spec| {
            (spec.ipip_mtu, spec.ipip_enabled) = (Some(1400), Some(false))
        })
        .into(),
        felix("node.a", |spec| spec.ipip_mtu = Some(0)).into(),
        felix("node.b", |spec| spec.ipip_mtu = Some(9)).into(),
    ];
    let settings = state("a", &resources).0.settings;
    assert_eq!((settings.ipip_mtu, settings.ipip_enabled), (None, Some(false)));
}

#[test]
fn the_router_id_follows_the_rule() {
    let id = |rule: &str, addresses: &[&str]| {
        let router_id: RouterId = rule.parse().expect("a rule");
        let config = GraphConfig {
            node: "a".into(),
            router_id,
        };
        let node = [Resource::from(node("a", addresses))];
        compute_with(&config, node.iter())
            .0
            .bgp
            .expect("registered")
            .router_id
            .to_string()
    };
    assert_eq!(id("", &["10.0.0.1/24"]), "10.0.0.1");
    assert_eq!(id("1.2.3.4", &["10.0.0.1/24"]), "1.2.3.4");
    // SHA-256("a") starts with ca 97 81 12.
    assert_eq!(id("hash", &["10.0.0.1/24"]), "202.151.129.18");
    assert_eq!(id("", &["fd00::1/64"]), "202.151.129.18");
    assert!("0.0.0.0".parse::<RouterId>().is_err());
    assert!("id".parse::<RouterId>().is_err());
}

#[test]
fn a_node_that_is_not_registered_has_no_bgp() {
    let mut bare = node("a", &[]);
    bare.spec.bgp = None;
    let (state, _) = state("a", &[bare.into(), node("b", &["10.0.0.2/24"]).into()]);
    assert_eq!((state.this_node, state.bgp), (None, None));
    assert_eq!(state.peers.len(), 1);
}

#[test]
fn a_peering_says_how_to_peer() {
    let external = |change: fn(&mut api::BgpPeerSpec)| {
        let asked = peer("x", |spec| {
            (spec.peer_ip, spec.as_number) = ("10.0.0.9".into(), asn(65001));
            change(spec);
        });
        let config = bgp_config("a", &[node("a", &["10.0.0.1/24"]).into(), asked]);
        config.peers.into_values().next()
    };
    let usual = external(|_| {}).expect("a session");
    assert_eq!(usual.source, Some("10.0.0.1".parse().expect("an address")));
    assert_eq!(usual.next_hop, bgp::NextHopMode::Auto);
    let kept = external(|spec| spec.keep_original_next_hop = true).expect("a session");
    assert_eq!(kept.next_hop, bgp::NextHopMode::Keep);
    let own = external(|spec| spec.next_hop_mode = Some(api::NextHopMode::SelfAddress)).expect("a session");
    assert_eq!(own.next_hop, bgp::NextHopMode::OwnAddress);
    let free = external(|spec| spec.source_address = Some(api::SourceAddress::None)).expect("a session");
    assert_eq!(free.source, None);
    let quick = external(|spec| spec.keepalive_time = Some(api::Duration::from_secs(10))).expect("a session");
    assert_eq!(quick.hold_time.as_secs(), 30);
    let filtered = external(|spec| spec.filters = vec!["f".into()]);
    assert_eq!(filtered, None, "without its filter it would say too much");
}

#[test]
fn manual_peerings_are_not_mirrored() {
    let one_way = peer("x", |spec| {
        (spec.node, spec.peer_selector) = ("a".into(), "has(rr)".into());
        spec.reverse_peering = Some(api::ReversePeering::Manual);
    });
    let off = bgp("default", |spec| spec.node_to_node_mesh_enabled = Some(false));
    let reflector = labelled(node("rr", &["10.0.0.9/24"]), &[("rr", "")]);
    let resources = [node("a", &["10.0.0.1/24"]).into(), reflector.into(), one_way, off];
    check("a", &resources, &["Node_10_0_0_9 10.0.0.9:179 AS64512 Ipv4"]);
    check("rr", &resources, &[]);
}

#[test]
fn a_selector_scoped_configuration_stands_between_the_cluster_and_the_node() {
    let scoped = |name: &str, selector: &str, mtu: u32, age: i64| -> Resource {
        let config = felix(name, |spec| {
            (spec.node_selector, spec.ipip_mtu) = (Some(selector.into()), Some(mtu))
        });
        created(config, age).into()
    };
    let resources = [
        labelled(node("a", &[]), &[("rack", "1")]).into(),
        felix("default", |spec| {
            (spec.ipip_mtu, spec.ipip_enabled) = (Some(1400), Some(true))
        })
        .into(),
        scoped("newer", "rack == '1'", 1200, 2),
        scoped("older", "rack == '1'", 1300, 1),
        scoped("elsewhere", "rack == '2'", 1100, 0),
        scoped("broken", "rack ==", 1000, 0),
        felix("node.a", |spec| spec.ipv6_normal_route_priority = Some(9)).into(),
    ];
    let (state, problems) = state("a", &resources);
    let settings = state.settings;
    assert_eq!(
        (settings.ipip_mtu, settings.ipip_enabled, settings.ipv6_metric),
        (Some(1300), Some(true), 9)
    );
    let names: Vec<&str> = problems.iter().map(|problem| problem.key.name.as_str()).collect();
    assert_eq!(names, ["broken", "newer"]);
}

#[test]
fn what_is_asked_of_bgp_and_not_done_is_a_problem() {
    let resources = [
        node("a", &["10.0.0.1/24"]).into(),
        bgp("default", |spec| {
            spec.node_mesh_password = Some(api::BgpPassword::default());
            spec.service_cluster_ips = vec![api::ServiceRange::default()];
        }),
        peer("p", |spec| {
            (spec.peer_ip, spec.as_number) = ("10.0.0.9".into(), asn(64999));
            spec.max_restart_time = Some("60s".parse().unwrap());
        }),
    ];
    let (state, problems) = state("a", &resources);
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        ["spec.nodeMeshPassword", "spec.serviceClusterIPs", "spec.maxRestartTime"]
    );
    assert_eq!(
        state.bgp.expect("registered").peers.len(),
        1,
        "the session is there all the same"
    );
}

#[test]
fn what_is_asked_for_and_not_done_is_said() {
    let check = |resource: Resource, expected: &[&str]| {
        let resources = [node("a", &["10.0.0.1/24"]).into(), resource];
        assert_eq!(complaints("a", &resources), expected);
    };
    let prefixed = |lines: &[&str]| -> Vec<String> {
        lines
            .iter()
            .map(|line| format!("BGPConfiguration(default) spec.{line}"))
            .collect()
    };
    let asked = |spec: &mut api::BgpConfigurationSpec| {
        spec.log_severity_screen = Some(api::LogSeverity::Debug);
        spec.ignored_interfaces = vec!["eth9".into()];
        spec.program_cluster_routes = Some(api::ProgramClusterRoutes::Enabled);
        (spec.ipv4_normal_route_priority, spec.ipv6_normal_route_priority) = (Some(512), Some(1024));
    };
    let said = prefixed(&[
        "logSeverityScreen: no effect: FelixConfiguration's logSeverityScreen sets the level",
        "ignoredInterfaces: no effect: routes of interfaces are never announced",
        "programClusterRoutes: no effect: the agent writes all routes to other nodes' blocks",
        "ipv4NormalRoutePriority: no effect: routes have FelixConfiguration's metric, 1024",
    ]);
    check(
        bgp("default", asked),
        &said.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    check(bgp("node.b", asked), &[]);
    check(
        bgp("default", |spec| {
            spec.log_severity_screen = Some(api::LogSeverity::Info);
            spec.bind_mode = Some(api::BindMode::NodeIp);
        }),
        &[],
    );
    let mut vxlan = pool("p", "10.1.0.0/16", EncapMode::Never);
    vxlan.spec.vxlan_mode = EncapMode::Always;
    check(
        vxlan.into(),
        &["IPPool(p) spec.vxlanMode: VXLAN is not available yet: routes that need it are left out"],
    );
}

#[test]
fn a_node_listens_everywhere_unless_told_otherwise() {
    let bind = |configs: &[(&str, api::BindMode)]| {
        let configs = configs
            .iter()
            .map(|(name, mode)| bgp(name, |spec| spec.bind_mode = Some(*mode)));
        let resources: Vec<Resource> = configs.chain([node("a", &["10.0.0.1/24"]).into()]).collect();
        bgp_config("a", &resources).bind
    };
    use api::BindMode::{NodeIp, None};
    assert_eq!(bind(&[]), bgp::Bind::All);
    assert_eq!(bind(&[("default", NodeIp)]), bgp::Bind::OwnAddresses);
    assert_eq!(bind(&[("default", NodeIp), ("node.a", None)]), bgp::Bind::All);
    assert_eq!(bind(&[("default", None), ("node.a", NodeIp)]), bgp::Bind::OwnAddresses);
    assert_eq!(bind(&[("node.b", NodeIp)]), bgp::Bind::All);
}
