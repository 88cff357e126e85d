//! Filters of peers: what is told, what is believed, and what a change of them does.

mod sim;

use std::sync::Arc;

use bgp::attributes::Community;
use bgp::filter::{FilterCommunity, FilterOperation, FilterRule, PrefixMatch};
use bgp::{Config, Family};
use sim::{block, join, node, peer_id, running};

const ANY: FilterRule = FilterRule {
    family: Family::Ipv4,
    prefix: None,
    remote: false,
    external: None,
    community: None,
    as_path_prefix: Vec::new(),
    metric: None,
    accept: None,
};

fn accept(operations: Vec<FilterOperation>) -> FilterRule {
    FilterRule {
        accept: Some(operations),
        ..ANY
    }
}

fn only(index: usize, rule: FilterRule) -> FilterRule {
    FilterRule {
        prefix: Some(PrefixMatch::Is(block(index), true)),
        ..rule
    }
}

fn set(config: &mut Config, peer: &Config, import: &[FilterRule], export: &[FilterRule]) {
    let peer = config.peers.get_mut(&peer_id(peer)).expect("it is a peer");
    (peer.import, peer.export) = (import.into(), export.into());
}

fn ipv4(fib: Vec<String>) -> Vec<String> {
    fib.into_iter().filter(|line| line.starts_with("192.")).collect()
}

#[test]
fn the_first_rule_that_holds_decides() {
    let check = |import: &[FilterRule], export: &[FilterRule], expected: &[&str]| {
        let (mut a, mut b) = (node(0), node(1));
        join(&mut a, &mut b);
        let (first, second) = (a.clone(), b.clone());
        set(&mut a, &second, &[], export);
        set(&mut b, &first, import, &[]);
        let mut network = running(vec![a, b]);
        network.seconds(2);
        assert_eq!(ipv4(network.fib(1)), expected);
        assert_eq!(
            network.fib(1).iter().filter(|line| line.starts_with("fd80")).count(),
            1,
            "the other family"
        );
    };
    let usual = "192.168.0.0/26 via 10.0.0.1 metric 1024";
    check(&[], &[], &[usual]);
    check(&[ANY], &[], &[]);
    check(&[], &[ANY], &[]);
    check(
        &[only(0, accept(vec![])), ANY],
        &[only(0, accept(vec![])), ANY],
        &[usual],
    );
    check(&[only(1, ANY)], &[only(1, ANY)], &[usual]);
    let slow = "192.168.0.0/26 via 10.0.0.1 metric 2000";
    check(&[accept(vec![FilterOperation::SetMetric(2000)])], &[], &[slow]);
    check(&[], &[accept(vec![FilterOperation::SetMetric(2000)])], &[slow]);
    // What one side puts on, the other side sees.
    let marked = FilterCommunity::Standard(Community(7));
    let refuse = FilterRule {
        community: Some(marked),
        ..ANY
    };
    check(std::slice::from_ref(&refuse), &[], &[usual]);
    check(&[refuse], &[accept(vec![FilterOperation::AddCommunity(marked)])], &[]);
}

#[test]
fn accepting_by_name_passes_on_what_lies_elsewhere_and_paths_grow() {
    let (mut a, mut b, mut c) = (node(0), node(1), node(2));
    (a.asn, c.asn) = (65001, 65003);
    join(&mut a, &mut b);
    join(&mut b, &mut c);
    b.exportable = std::collections::BTreeSet::new();
    let third = c.clone();
    let prepend = accept(vec![FilterOperation::Prepend(vec![65010, 65011])]);
    set(&mut b, &third, &[], &[only(0, prepend)]);
    let mut network = running(vec![a, b, c]);
    network.seconds(2);
    let routes: Vec<_> = network.speaker(2).routes().collect();
    let route = routes
        .iter()
        .find(|route| route.prefix == block(0))
        .expect("it was passed on");
    let path = &route.paths[0].attributes.as_path;
    assert_eq!(path.0[0].ases(), [64512, 65010, 65011, 65001]);
}

#[test]
fn a_change_of_what_is_told_ends_no_session() {
    let (mut a, mut b) = (node(0), node(1));
    join(&mut a, &mut b);
    let second = b.clone();
    let mut network = running(vec![a, b]);
    network.seconds(2);
    let sessions = network.status(0, 1).sessions;
    let id = peer_id(&second);
    let mut change = |export: &[FilterRule], expected: usize| {
        network.reconfigure(0, |config| {
            config.peers.get_mut(&id).expect("it is a peer").export = export.into()
        });
        network.seconds(2);
        assert_eq!(ipv4(network.fib(1)).len(), expected);
        assert_eq!(network.status(0, 1).sessions, sessions);
    };
    change(&[ANY], 0);
    change(&[only(1, ANY)], 1);
    change(&[], 1);
    // What is believed has to be told again.
    network.reconfigure(0, |config| {
        config.peers.get_mut(&id).expect("it is a peer").import = Arc::from([ANY])
    });
    network.seconds(10);
    assert_eq!(ipv4(network.fib(0)).len(), 0);
    assert_eq!(network.status(0, 1).sessions, sessions + 1);
}
