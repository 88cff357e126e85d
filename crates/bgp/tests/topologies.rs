//! What reaches whom: full mesh, reflectors, other ASes, reconfiguration.

mod sim;

use std::collections::BTreeMap;

use bgp::{Config, LocalRoute, NextHopMode};
use ipnet::IpNet;
use sim::{Network, block, join, mesh, node, peer_id, reflected, running};

#[test]
fn two_hundred_speakers_in_a_full_mesh_learn_each_others_blocks() {
    let configs = mesh(200).into_iter().enumerate().map(|(index, config)| {
        let originated = BTreeMap::from([(block(index), LocalRoute { metric: 1024 })]);
        // As upstream's mesh: one side of each pair dials.
        let mut config = Config { originated, ..config };
        for (id, peer) in &mut config.peers {
            peer.passive = id.0.ip() > config.address_v4.expect("has one");
        }
        config
    });
    let mut network = running(configs.collect());
    network.seconds(5);
    for node in &network.nodes {
        assert_eq!(node.fib.len(), 199);
        assert_eq!(node.converged, 1);
    }
}

#[test]
fn internal_routes_are_not_passed_on_without_a_reflector() {
    let mut configs: Vec<_> = (0..3).map(node).collect();
    let [a, b, c] = &mut configs[..] else { panic!("three") };
    join(a, b);
    join(b, c);
    let mut network = running(configs);
    network.seconds(2);
    assert_eq!(network.nodes[0].fib.len(), 2);
    assert_eq!(network.nodes[1].fib.len(), 4);
}

#[test]
fn a_reflector_passes_on_with_originator_and_cluster() {
    let mut network = running(reflected(4));
    network.seconds(2);
    for index in 0..4 {
        assert_eq!(network.nodes[index].fib.len(), 6);
    }
    assert!(
        network
            .fib(2)
            .contains(&"192.168.0.64/26 via 10.0.0.2 metric 1024".to_owned()),
        "next hop is kept"
    );
    check_routes(
        &network,
        2,
        "192.168.0.64/26",
        &["from 10.0.0.1 originator 10.0.0.2 clusters [10.0.0.1] path [] Best"],
    );
}

#[test]
fn two_reflectors_do_not_loop_and_share_the_load() {
    let mut configs: Vec<_> = (0..5).map(node).collect();
    let (reflectors, clients) = configs.split_at_mut(2);
    let [one, two] = reflectors else { panic!("two") };
    join(one, two);
    for client in clients {
        sim::reflect(one, client);
        sim::reflect(two, client);
    }
    let mut network = running(configs);
    network.seconds(5);
    for index in 0..5 {
        assert_eq!(network.nodes[index].fib.len(), 8);
    }
    check_routes(
        &network,
        3,
        "192.168.0.128/26",
        &[
            "from 10.0.0.1 originator 10.0.0.3 clusters [10.0.0.1] path [] Best",
            "from 10.0.0.2 originator 10.0.0.3 clusters [10.0.0.2] path [] Multipath",
        ],
    );
}

#[test]
fn other_ases_see_path_and_next_hop_of_the_border() {
    let mut configs: Vec<_> = (0..3).map(node).collect();
    configs[2].asn = 4_200_000_000;
    let [inner, border, outer] = &mut configs[..] else {
        panic!("three")
    };
    join(inner, border);
    join(border, outer);
    let mut network = running(configs);
    network.seconds(2);
    assert!(
        network
            .fib(2)
            .contains(&"192.168.0.0/26 via 10.0.0.2 metric 1024".to_owned())
    );
    check_routes(
        &network,
        2,
        "192.168.0.0/26",
        &["from 10.0.0.2 originator - clusters [] path [64512] Best"],
    );
    // RFC 4271 5.1.3: unchanged towards internal peers.
    assert!(
        network
            .fib(0)
            .contains(&"192.168.0.128/26 via 10.0.0.3 metric 2147483547".to_owned())
    );
    network.reconfigure(1, |config| {
        config
            .peers
            .values_mut()
            .for_each(|peer| peer.next_hop = NextHopMode::OwnAddress);
    });
    network.seconds(1);
    assert!(
        network
            .fib(0)
            .contains(&"192.168.0.128/26 via 10.0.0.2 metric 2147483547".to_owned())
    );
    assert_eq!(network.status(0, 1).sessions, 1, "only the difference is sent");
}

#[test]
fn a_node_with_two_upstream_routers_is_no_way_between_them() {
    let mut configs: Vec<_> = (0..4).map(node).collect();
    let [border, inner, one, two] = &mut configs[..] else {
        panic!("four")
    };
    (one.asn, two.asn) = (65001, 65002);
    let outside: IpNet = "10.50.0.0/16".parse().expect("a prefix");
    for prefix in ["0.0.0.0/0", "10.50.0.0/16", "::/0"] {
        let prefix = prefix.parse().expect("a prefix");
        one.originated.insert(prefix, LocalRoute { metric: 1024 });
    }
    join(border, inner);
    join(border, one);
    join(border, two);
    let mut network = running(configs);
    network.seconds(2);
    let knows = |network: &Network, index: usize, prefix: &str| {
        let prefix: IpNet = prefix.parse().expect("a prefix");
        network.nodes[index].fib.contains_key(&prefix)
    };
    assert!(knows(&network, 0, "0.0.0.0/0") && knows(&network, 0, "::/0"));
    for other in [1, 3] {
        for prefix in ["0.0.0.0/0", "10.50.0.0/16", "::/0"] {
            assert!(!knows(&network, other, prefix), "{other} was told {prefix}");
        }
    }
    assert!(knows(&network, 3, "192.168.0.64/26"), "the inner node's block is told");

    network.reconfigure(0, |config| {
        config.exportable.insert(outside);
    });
    network.seconds(1);
    assert!(knows(&network, 3, "10.50.0.0/16") && !knows(&network, 3, "0.0.0.0/0"));
    network.reconfigure(0, |config| {
        config.exportable.remove(&outside);
    });
    network.seconds(1);
    assert!(!knows(&network, 3, "10.50.0.0/16"));
    for other in 1..4 {
        assert_eq!(network.status(0, other).sessions, 1, "no session was disturbed");
    }
}

#[test]
fn a_reflector_passes_on_what_lies_in_its_ranges_and_always_tells_its_own() {
    let mut configs = reflected(3);
    configs[0].exportable.clear();
    let mut network = running(configs);
    network.seconds(2);
    assert_eq!(network.nodes[0].fib.len(), 4);
    assert_eq!(network.nodes[1].fib.len(), 2, "only the reflector's own");
    network.reconfigure(0, |config| config.exportable = node(0).exportable);
    network.seconds(1);
    assert_eq!(network.nodes[1].fib.len(), 4);
}

#[test]
fn a_ring_of_ases_does_not_loop() {
    let mut configs: Vec<_> = (0..3).map(node).collect();
    configs
        .iter_mut()
        .zip(65001..)
        .for_each(|(config, asn)| config.asn = asn);
    let [a, b, c] = &mut configs[..] else { panic!("three") };
    join(a, b);
    join(b, c);
    join(c, a);
    let mut network = running(configs);
    network.seconds(5);
    check_routes(
        &network,
        0,
        "192.168.0.64/26",
        &[
            "from 10.0.0.2 originator - clusters [] path [65002] Best",
            "from 10.0.0.3 originator - clusters [] path [65003, 65002] longer AS_PATH",
        ],
    );
}

#[test]
fn one_block_on_two_nodes_gives_two_next_hops() {
    let mut network = running(mesh(3));
    network.reconfigure(2, |config| {
        config.originated.insert(block(1), LocalRoute { metric: 1024 });
    });
    network.seconds(2);
    assert!(
        network
            .fib(0)
            .contains(&"192.168.0.64/26 via 10.0.0.2 10.0.0.3 metric 1024".to_owned())
    );
    // A lower metric is a higher LOCAL_PREF: upstream's live migration.
    network.reconfigure(2, |config| {
        config.originated.insert(block(1), LocalRoute { metric: 512 });
    });
    network.seconds(2);
    assert!(
        network
            .fib(0)
            .contains(&"192.168.0.64/26 via 10.0.0.3 metric 512".to_owned())
    );
    assert!(
        network
            .fib(1)
            .contains(&"192.168.0.64/26 via 10.0.0.3 metric 512".to_owned())
    );
}

#[test]
fn a_removed_peer_is_told_and_forgotten_and_others_do_not_notice() {
    let mut network = running(mesh(3));
    network.seconds(2);
    let gone = peer_id(&network.nodes[2].config);
    network.reconfigure(0, |config| {
        config.peers.remove(&gone);
    });
    network.seconds(2);
    assert_eq!(network.nodes[0].fib.len(), 2);
    assert_eq!(network.status(0, 1).sessions, 1);
    // The other side goes on dialling and is turned away.
    assert_eq!(network.nodes[2].fib.len(), 2);
    let back = mesh(3)[0].peers[&gone].clone();
    network.reconfigure(0, |config| {
        config.peers.insert(gone, back);
    });
    network.seconds(40);
    assert_eq!(network.nodes[0].fib.len(), 4);
}

#[test]
fn another_setting_of_one_peer_restarts_that_session_only() {
    let mut network = running(mesh(3));
    network.seconds(2);
    let changed = peer_id(&network.nodes[2].config);
    network.reconfigure(0, |config| {
        if let Some(peer) = config.peers.get_mut(&changed) {
            peer.hold_time = std::time::Duration::from_secs(30);
        }
    });
    network.seconds(30);
    assert_eq!((network.status(0, 1).sessions, network.status(0, 2).sessions), (1, 2));
    let hold_time = network.status(2, 0).negotiated.expect("established").hold_time;
    assert_eq!(hold_time.as_secs(), 30);
}

#[test]
fn a_new_own_address_is_told_without_a_new_session() {
    let mut network = running(mesh(2));
    network.seconds(2);
    network.reconfigure(0, |config| config.address_v6 = "fd00::99".parse().ok());
    network.seconds(1);
    assert!(
        network
            .fib(1)
            .contains(&"fd80::1:0/122 via fd00::99 metric 1024".to_owned())
    );
    assert_eq!(network.status(1, 0).sessions, 1);
}

/// All paths of a node to a prefix, in the order of status.
fn check_routes(network: &Network, index: usize, prefix: &str, expected: &[&str]) {
    let prefix = prefix.parse().expect("a prefix");
    let route = network
        .speaker(index)
        .routes()
        .find(|route| route.prefix == prefix)
        .expect("is known");
    let text = |path: &bgp::status::PathStatus<'_>| {
        let from = path.from.map_or("us".to_owned(), |peer| peer.0.ip().to_string());
        let originator = path
            .attributes
            .originator_id
            .map_or("-".to_owned(), |id| id.to_string());
        let ases: Vec<_> = path
            .attributes
            .as_path
            .0
            .iter()
            .flat_map(|segment| segment.ases())
            .collect();
        let clusters = &path.attributes.cluster_list;
        format!(
            "from {from} originator {originator} clusters {clusters:?} path {ases:?} {}",
            path.standing
        )
    };
    assert_eq!(route.paths.iter().map(text).collect::<Vec<_>>(), expected);
}
