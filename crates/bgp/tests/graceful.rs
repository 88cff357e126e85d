//! Graceful restart between whole speakers: what survives a crash, a restart, a deliberate stop.

mod sim;

use bgp::{Config, State};
use sim::{Network, block, block_v6, mesh, running, running_mesh};

/// A settled mesh whose removals are counted from now on.
fn settled(size: usize) -> Network {
    let mut network = running_mesh(size);
    network.seconds(10);
    network
}

fn without_graceful_restart(size: usize) -> Vec<Config> {
    mesh(size)
        .into_iter()
        .map(|config| Config {
            graceful_restart: None,
            ..config
        })
        .collect()
}

fn removals(network: &Network) -> Vec<usize> {
    network.nodes.iter().map(|node| node.removals).collect()
}

#[test]
fn routes_of_a_crashed_peer_stay_for_its_restart_time() {
    let mut network = settled(2);
    network.kill(1);
    network.seconds(119);
    assert_eq!(network.fib(0).len(), 2);
    assert_eq!(network.status(0, 1).counters.prefixes_stale, 2);
    network.seconds(2);
    assert!(network.fib(0).is_empty());
}

#[test]
fn a_restart_in_time_moves_no_route_on_either_side() {
    let mut network = settled(3);
    let before: Vec<_> = (0..3).map(|index| network.fib(index)).collect();
    network.kill(1);
    network.seconds(10);
    network.boot(1, true);
    assert_eq!(network.fib(1), before[1], "the kernel still has them");
    network.seconds(10);
    assert_eq!(removals(&network), [0, 0, 0]);
    assert_eq!((0..3).map(|index| network.fib(index)).collect::<Vec<_>>(), before);
    assert_eq!(network.nodes[1].converged, 1);
    assert_eq!(network.status(0, 1).counters.prefixes_stale, 0);
}

#[test]
fn what_a_restarted_peer_no_longer_has_goes_with_its_end_of_rib() {
    let mut network = settled(2);
    network.kill(1);
    network.nodes[1].config.originated.remove(&block(1));
    network.boot(1, true);
    network.seconds(10);
    assert_eq!(network.fib(0), ["fd80::2:0/122 via fd00::2 metric 1024"]);
}

#[test]
fn a_peer_that_lost_its_forwarding_table_is_not_trusted() {
    let mut network = settled(2);
    network.kill(1);
    network.seconds(1);
    network.boot(1, false);
    network.seconds(10);
    assert_eq!(network.nodes[0].removals, 2);
    assert_eq!(network.fib(0).len(), 2);
}

#[test]
fn a_deliberate_stop_takes_the_routes_along() {
    let mut network = settled(2);
    network.shutdown(1);
    network.seconds(1);
    assert!(network.fib(0).is_empty());
    let (_, error) = network.status(0, 1).last_error.expect("an error");
    assert_eq!(
        error.to_string(),
        "notification received: Cease/Administrative Shutdown (6/2)"
    );
    assert_eq!(network.fib(1).len(), 2, "the stopped one leaves its own table alone");
}

#[test]
fn a_lost_connection_comes_back_within_seconds_and_moves_no_route() {
    let mut network = settled(2);
    for round in 2..5 {
        network.break_connections(0, 1);
        network.seconds(3);
        assert_eq!(network.state(0, 1), State::Established);
        assert_eq!(network.status(0, 1).sessions, round);
    }
    assert_eq!(removals(&network), [0, 0]);
}

#[test]
fn without_the_capability_a_lost_connection_costs_the_routes() {
    let mut network = running(without_graceful_restart(2));
    network.seconds(10);
    network.break_connections(0, 1);
    assert!(network.fib(0).is_empty());
    network.seconds(3);
    assert_eq!(network.fib(0).len(), 2);
}

#[test]
fn a_peer_back_from_power_loss_replaces_its_own_dead_connection() {
    let mut network = settled(2);
    network.vanish(1);
    network.boot(1, true);
    network.seconds(7);
    assert_eq!(network.status(0, 1).sessions, 2);
    assert_eq!(removals(&network), [0, 0]);
}

#[test]
fn without_the_capability_the_dead_connection_blocks_until_the_hold_time() {
    let mut network = running(without_graceful_restart(2));
    network.seconds(10);
    network.vanish(1);
    network.boot(1, false);
    network.seconds(30);
    assert_eq!(network.status(0, 1).sessions, 1);
    network.seconds(120);
    assert_eq!(network.status(0, 1).sessions, 2);
    assert_eq!(network.fib(0).len(), 2);
}

#[test]
fn all_may_restart_at_once() {
    let mut network = settled(4);
    (0..4).for_each(|index| network.kill(index));
    network.seconds(1);
    (0..4).for_each(|index| network.boot(index, true));
    network.seconds(20);
    assert_eq!(removals(&network), [0; 4]);
    for node in &network.nodes {
        assert_eq!((node.converged, node.fib.len()), (1, 6));
    }
}

#[test]
fn a_dead_node_delays_the_restart_of_others_by_half_a_minute() {
    let mut network = settled(3);
    network.vanish(2);
    network.kill(1);
    let at = network.now;
    network.boot(1, true);
    network.seconds(60);
    let waited = network.nodes[1].converged_at.expect("converged") - at;
    assert_eq!(waited.as_secs(), 30);
    assert_eq!(network.fib(1).len(), 2);
}

#[test]
fn a_restarting_reflector_costs_its_clients_nothing() {
    let mut network = running(sim::reflected(5));
    network.seconds(10);
    let before: Vec<_> = (0..5).map(|index| network.fib(index)).collect();
    assert_eq!(before[4].len(), 8);
    network.kill(0);
    network.seconds(3);
    network.boot(0, true);
    network.seconds(30);
    assert_eq!(removals(&network), [0; 5]);
    assert_eq!((0..5).map(|index| network.fib(index)).collect::<Vec<_>>(), before);
}

#[test]
fn a_fresh_start_converges_as_soon_as_all_have_told() {
    let network = settled(3);
    for node in &network.nodes {
        let waited = node.converged_at.expect("converged") - network.start;
        assert!(waited.as_millis() < 100, "{waited:?}");
    }
}

#[test]
fn the_forwarding_table_is_the_sum_of_its_changes() {
    let mut network = settled(3);
    network.reconfigure(1, |config| {
        config.originated.remove(&block_v6(1));
    });
    network.seconds(1);
    let sum: Vec<_> = network.nodes[0].fib.clone().into_iter().collect();
    assert_eq!(sum, network.speaker(0).fib().collect::<Vec<_>>());
}
