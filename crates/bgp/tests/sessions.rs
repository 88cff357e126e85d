//! Whole speakers talking to each other in virtual time: sessions, collisions, timers, errors.

mod sim;

use std::time::Duration;

use bgp::{LocalRoute, State};
use sim::{Network, block, mesh, node, running_mesh};

#[test]
fn two_speakers_exchange_both_families_over_one_session() {
    let mut network = running_mesh(2);
    network.seconds(1);
    assert_eq!(network.state(0, 1), State::Established);
    assert_eq!(network.state(1, 0), State::Established);
    assert_eq!(
        network.fib(0),
        [
            "192.168.0.64/26 via 10.0.0.2 metric 1024",
            "fd80::2:0/122 via fd00::2 metric 1024"
        ]
    );
    assert_eq!(
        network.fib(1),
        [
            "192.168.0.0/26 via 10.0.0.1 metric 1024",
            "fd80::1:0/122 via fd00::1 metric 1024"
        ]
    );
}

#[test]
fn originated_routes_come_and_go_without_touching_the_session() {
    let mut network = running_mesh(2);
    network.seconds(1);
    network.reconfigure(0, |config| {
        config.originated.remove(&block(0));
        config.originated.insert(block(7), LocalRoute { metric: 512 });
    });
    network.seconds(1);
    assert_eq!(
        network.fib(1),
        [
            "192.168.1.192/26 via 10.0.0.1 metric 512",
            "fd80::1:0/122 via fd00::1 metric 1024"
        ]
    );
    assert_eq!(network.status(1, 0).sessions, 1);
}

#[test]
fn when_both_dial_one_connection_survives() {
    for skew in (0..5_000).step_by(250) {
        let mut network = Network::new();
        network.latency = |_, _| Duration::from_millis(5);
        mesh(2).into_iter().for_each(|config| {
            network.install(config);
        });
        network.boot(0, false);
        network.run_for(Duration::from_micros(skew));
        network.boot(1, false);
        network.seconds(20);
        for (a, b) in [(0, 1), (1, 0)] {
            let status = network.status(a, b);
            assert_eq!(status.state, State::Established, "skew {skew}");
            assert_eq!((status.sessions, status.last_error), (1, None), "skew {skew}");
        }
        assert_eq!(network.fib(0).len(), 2);
    }
}

#[test]
fn keepalives_hold_a_quiet_session_for_hours() {
    let mut network = running_mesh(2);
    network.seconds(3 * 3600);
    assert_eq!(network.status(0, 1).sessions, 1);
    assert!(
        network
            .status(0, 1)
            .uptime(network.now)
            .is_some_and(|uptime| uptime > Duration::from_secs(10_000))
    );
}

#[test]
fn a_dead_node_is_noticed_when_the_hold_time_is_over() {
    let mut network = running_mesh(2);
    network.seconds(1);
    network.cut(0, 1);
    network.seconds(59);
    assert_eq!(network.state(0, 1), State::Established);
    network.seconds(31);
    assert_ne!(network.state(0, 1), State::Established);
    assert!(network.fib(0).is_empty());
    let (_, error) = network.status(0, 1).last_error.expect("an error");
    assert_eq!(error.to_string(), "hold timer expired in Established");
    network.heal(0, 1);
    network.seconds(60);
    assert_eq!(network.fib(0).len(), 2);
}

#[test]
fn another_as_than_configured_is_refused_with_both_numbers() {
    let mut configs = mesh(2);
    configs[1].asn = 64513;
    let mut network = Network::new();
    configs.into_iter().for_each(|config| {
        network.add(config);
    });
    network.seconds(60);
    let (_, error) = network.status(0, 1).last_error.expect("an error");
    assert!(
        error.to_string().contains("bad peer AS: expected 64512, got 64513"),
        "{error}"
    );
    network.reconfigure(1, |config| config.asn = 64512);
    network.seconds(40);
    assert_eq!(network.fib(1).len(), 2);
}

#[test]
fn nobody_at_the_address_is_reported_and_tried_again() {
    let mut configs = mesh(2);
    let late = configs.pop().expect("two");
    let mut network = Network::new();
    network.add(configs.pop().expect("one"));
    network.seconds(3);
    let status = &network.speaker(0).status()[0];
    assert_eq!(status.state, State::Active);
    let (_, error) = status.last_error.clone().expect("an error");
    assert_eq!(error.to_string(), "connect failed: Connection refused");
    network.add(late);
    network.seconds(6);
    assert_eq!(network.state(0, 1), State::Established);
}

#[test]
fn strangers_are_turned_away() {
    let mut network = Network::new();
    network.add(node(0));
    let mut stranger = node(1);
    sim::join(&mut stranger, &mut node(0));
    network.add(stranger);
    network.seconds(1);
    let (_, error) = network.status(1, 0).last_error.expect("an error");
    assert_eq!(
        error.to_string(),
        "notification received: Cease/Connection Rejected (6/5)"
    );
}

#[test]
fn sessions_that_come_and_go_are_reported_with_their_reason() {
    check_reports(|_| {}, &["Mesh_10_0_0_2 up"]);
    check_reports(
        |network| network.shutdown(1),
        &[
            "Mesh_10_0_0_2 up",
            "Mesh_10_0_0_2 down: notification received: Cease/Administrative Shutdown (6/2)",
        ],
    );
    check_reports(
        |network| network.vanish(1),
        &[
            "Mesh_10_0_0_2 up",
            "Mesh_10_0_0_2 down: hold timer expired in Established (!)",
        ],
    );
    check_reports(
        |network| {
            network.kill(1);
            network.seconds(1);
            network.boot(1, true);
        },
        &[
            "Mesh_10_0_0_2 up",
            "Mesh_10_0_0_2 down: connection closed in Established; its routes are kept for its restart",
            "Mesh_10_0_0_2 up",
        ],
    );
    check_reports(
        |network| network.reconfigure(0, |config| config.peers.clear()),
        &["Mesh_10_0_0_2 up", "Mesh_10_0_0_2 down: reset by configuration"],
    );
    check_reports(
        |network| network.shutdown(0),
        &["Mesh_10_0_0_2 up", "Mesh_10_0_0_2 down: shut down"],
    );
}

#[test]
fn without_graceful_restart_a_closed_connection_is_worth_a_look() {
    let configs = mesh(2).into_iter().map(|config| bgp::Config {
        graceful_restart: None,
        ..config
    });
    let mut network = sim::running(configs.collect());
    network.seconds(2);
    network.kill(1);
    network.seconds(1);
    assert_eq!(
        network.nodes[0].sessions,
        [
            "Mesh_10_0_0_2 up",
            "Mesh_10_0_0_2 down: connection closed in Established (!)"
        ]
    );
}

/// What node 0 reports of its session with node 1.
fn check_reports(happen: impl FnOnce(&mut Network), expected: &[&str]) {
    let mut network = running_mesh(2);
    network.seconds(2);
    happen(&mut network);
    network.seconds(100);
    assert_eq!(network.nodes[0].sessions, expected);
}
