//! Whatever happened in between: once all nodes run and all links work, everyone has exactly what everyone originates.

mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use bgp::{Config, LocalRoute, NextHopMode};
use ipnet::IpNet;
use proptest::prelude::*;
use sim::{Network, block, peer_id};

/// Something bad, or just a change.
#[derive(Clone, Debug)]
enum Event {
    Cut(usize, usize),
    Heal(usize, usize),
    Break(usize, usize),
    Kill(usize),
    Vanish(usize),
    Boot(usize, bool),
    Originate(usize, usize, u32),
    Withdraw(usize, usize),
    Forget(usize, usize),
    NextHop(usize, bool),
    Export(usize, Exported),
    Wait(u64),
}

/// Where a node passes on what it learnt.
#[derive(Clone, Copy, Debug)]
enum Exported {
    Everything,
    /// Half of what the events originate.
    Some,
    Nothing,
}

const SIZE: usize = 5;

fn any_event() -> impl Strategy<Value = Event> {
    let node = || 0..SIZE;
    let exported = || {
        prop_oneof![
            Just(Exported::Everything),
            Just(Exported::Some),
            Just(Exported::Nothing)
        ]
    };
    let metric = prop_oneof![Just(512u32), Just(1024)];
    prop_oneof![
        (node(), node()).prop_map(|(a, b)| Event::Cut(a, b)),
        (node(), node()).prop_map(|(a, b)| Event::Heal(a, b)),
        (node(), node()).prop_map(|(a, b)| Event::Break(a, b)),
        node().prop_map(Event::Kill),
        node().prop_map(Event::Vanish),
        (node(), any::<bool>()).prop_map(|(a, restarted)| Event::Boot(a, restarted)),
        (node(), 0..8usize, metric).prop_map(|(a, what, metric)| Event::Originate(a, what, metric)),
        (node(), 0..8usize).prop_map(|(a, what)| Event::Withdraw(a, what)),
        (node(), node()).prop_map(|(a, b)| Event::Forget(a, b)),
        (node(), any::<bool>()).prop_map(|(a, own)| Event::NextHop(a, own)),
        (node(), exported()).prop_map(|(a, exported)| Event::Export(a, exported)),
        // Milliseconds, to meet messages on their way, and minutes, to meet timers.
        prop_oneof![0..8u64, 500..3_000u64, 20_000..200_000u64].prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_mesh_heals(events in prop::collection::vec(any_event(), 1..40), graceful in any::<bool>()) {
        let configs = sim::mesh(SIZE).into_iter().map(|config| Config {
            graceful_restart: config.graceful_restart.filter(|_| graceful),
            ..config
        });
        heal(configs.collect(), events);
    }

    #[test]
    fn reflectors_and_their_clients_heal(events in prop::collection::vec(any_event(), 1..40)) {
        let mut configs: Vec<_> = (0..SIZE).map(sim::node).collect();
        let (reflectors, clients) = configs.split_at_mut(2);
        let [one, two] = reflectors else { panic!("two") };
        sim::join(one, two);
        for client in clients {
            sim::reflect(one, client);
            sim::reflect(two, client);
        }
        heal(configs, events);
    }
}

fn heal(configs: Vec<Config>, events: Vec<Event>) {
    let original: Vec<_> = configs.iter().map(|config| config.peers.clone()).collect();
    let mut network = sim::running(configs);
    network.latency = |a, b| Duration::from_millis(1 + ((a * 7 + b * 3) % 5) as u64);
    for event in events {
        apply(&mut network, event);
    }
    for a in 0..SIZE {
        (0..a).for_each(|b| network.heal(a, b));
        if network.nodes[a].speaker.is_none() {
            network.boot(a, false);
        }
    }
    for (index, peers) in original.into_iter().enumerate() {
        network.reconfigure(index, |config| config.peers = peers);
    }
    // A session that died unnoticed takes its hold time, stale paths the restart time, errors the longest wait.
    network.seconds(400);
    for index in 0..SIZE {
        check_node(&network, index);
    }
}

fn apply(network: &mut Network, event: Event) {
    let runs = |network: &Network, index: usize| network.nodes[index].speaker.is_some();
    match event {
        Event::Cut(a, b) => network.cut(a, b),
        Event::Heal(a, b) => network.heal(a, b),
        Event::Break(a, b) => network.break_connections(a, b),
        Event::Kill(a) => network.kill(a),
        Event::Vanish(a) => network.vanish(a),
        Event::Boot(a, restarted) if !runs(network, a) => network.boot(a, restarted),
        Event::Boot(..) => {}
        Event::Originate(a, what, metric) => network.reconfigure(a, |config| {
            config.originated.insert(block(20 + what), LocalRoute { metric });
        }),
        Event::Withdraw(a, what) => network.reconfigure(a, |config| {
            config.originated.remove(&block(20 + what));
        }),
        Event::Forget(a, b) => {
            let id = peer_id(&network.nodes[b].config);
            network.reconfigure(a, |config| {
                config.peers.remove(&id);
            });
        }
        Event::NextHop(a, own) => network.reconfigure(a, |config| {
            let mode = if own {
                NextHopMode::OwnAddress
            } else {
                NextHopMode::Auto
            };
            config.peers.values_mut().for_each(|peer| peer.next_hop = mode);
        }),
        Event::Export(a, exported) => network.reconfigure(a, |config| {
            config.exportable = match exported {
                Exported::Everything => sim::node(a).exportable,
                Exported::Some => ["192.168.5.0/24".parse().expect("a range")].into(),
                Exported::Nothing => Default::default(),
            };
        }),
        Event::Wait(milliseconds) => network.run_for(Duration::from_millis(milliseconds)),
    }
}

/// Whether a node hears of the best route to a prefix. A client has it from a reflector, which tells what it originates
/// itself, and what it learnt if that may be passed on.
fn is_told(network: &Network, index: usize, prefix: &IpNet, metric: u32) -> bool {
    let reflectors = || network.nodes.iter().filter(|node| node.config.cluster_id.is_some());
    let is_client = network.nodes[index].config.cluster_id.is_none() && reflectors().next().is_some();
    let tells = |config: &Config| {
        let own = config
            .originated
            .get(prefix)
            .is_some_and(|route| route.metric == metric);
        own || config.exportable.iter().any(|range| range.contains(prefix))
    };
    !is_client || reflectors().any(|reflector| tells(&reflector.config))
}

/// Its routes are what the others originate with the lowest metric, and what it heard is what it was told.
fn check_node(network: &Network, index: usize) {
    let mut expected = BTreeMap::new();
    for (other, node) in network.nodes.iter().enumerate().filter(|(other, _)| *other != index) {
        for (prefix, route) in &node.config.originated {
            let (metric, owners) = expected.entry(*prefix).or_insert((u32::MAX, Vec::new()));
            if route.metric < *metric {
                (*metric, *owners) = (route.metric, Vec::new());
            }
            if route.metric == *metric {
                owners.push(other);
            }
        }
    }
    let own = &network.nodes[index].config.originated;
    expected.retain(|prefix, (metric, _)| own.get(prefix).is_none_or(|route| *metric < route.metric));
    expected.retain(|prefix, (metric, _)| is_told(network, index, prefix, *metric));

    let node = &network.nodes[index];
    let speaker = network.speaker(index);
    assert_eq!(
        speaker.fib().collect::<BTreeMap<_, _>>(),
        node.fib,
        "sum of changes at {index}"
    );
    let seen: Vec<_> = node.fib.iter().map(|(prefix, route)| (*prefix, route.metric)).collect();
    let wanted: Vec<_> = expected
        .iter()
        .map(|(prefix, (metric, _))| (*prefix, *metric))
        .collect();
    assert_eq!(seen, wanted, "routes of {index}");
    assert!(speaker.converged());

    for status in speaker.status() {
        assert_eq!(status.counters.prefixes_stale, 0);
        let Some(other) = network
            .nodes
            .iter()
            .position(|node| peer_id(&node.config) == status.peer)
        else {
            continue;
        };
        let us = peer_id(&node.config);
        let told: BTreeMap<_, _> = network.speaker(other).advertised(us).collect();
        let told_count = network.status(other, index).counters.prefixes_advertised;
        assert_eq!(told.len(), told_count, "{other} counts what it told {index}");
        let heard = speaker.routes().flat_map(|route| {
            let from_it = route.paths.into_iter().filter(|path| path.from == Some(status.peer));
            from_it.map(move |path| (route.prefix, path.attributes.clone()))
        });
        let told = told
            .into_iter()
            .map(|(prefix, attributes)| (prefix, attributes.as_ref().clone()));
        assert_eq!(
            heard.collect::<BTreeMap<_, _>>(),
            told.collect(),
            "{index} hears what {other} tells"
        );
    }
}
