//! One speaker against a scripted peer: what it says to good and bad messages in each state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bgp::attributes::{AsPath, Attributes, Origin, Segment};
use bgp::message::{AfiSafi, Capability, GracefulCapability, Message, Notification, Open};
use bgp::wire::{self, Framer, UpdateContext};
use bgp::{
    Config, ConnId, Family, FamilySet, FibChange, FibRoute, Input, LocalRoute, Output, PeerConfig, PeerId, Speaker,
    State,
};
use bytes::Bytes;
use ipnet::IpNet;
use proptest::prelude::*;

const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

#[test]
fn unacceptable_opens_are_refused_with_the_right_code() {
    type Change = fn(&mut Open);
    let cases: [(&str, Change, (u8, u8)); 7] = [
        ("hold time 1", |open| open.hold_time = 1, (2, 6)),
        ("hold time 2", |open| open.hold_time = 2, (2, 6)),
        ("identifier 0", |open| open.router_id = Ipv4Addr::UNSPECIFIED, (2, 3)),
        ("our identifier", |open| open.router_id = US, (2, 3)),
        ("another AS", |open| open.my_as = 64513, (2, 2)),
        (
            "another four-octet AS",
            |open| open.capabilities.push(Capability::FourOctetAs(70_000)),
            (2, 2),
        ),
        (
            "no family of ours",
            |open| open.capabilities = vec![Capability::Multiprotocol(AfiSafi { afi: 25, safi: 70 })],
            (2, 7),
        ),
    ];
    for (name, change, code) in cases {
        let mut driver = Driver::passive();
        let conn = driver.accept();
        let mut open = open();
        change(&mut open);
        driver.send(conn, wire::encode_open(&open));
        let goodbye = driver.goodbye(conn).expect(name);
        assert_eq!((goodbye.code, goodbye.subcode), code, "{name}");
        if code == (2, 7) {
            assert_eq!(
                goodbye.data[..],
                [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1],
                "names what we miss"
            );
        }
    }
}

#[test]
fn messages_out_of_place_end_the_session() {
    let update = wire::encode_end_of_rib(Family::Ipv4);
    for message in [wire::encode_keepalive(), update.clone()] {
        let mut driver = Driver::passive();
        let conn = driver.accept();
        driver.send(conn, message);
        assert_eq!(driver.goodbye(conn), Some(Notification::bare(5, 1)));
    }
    let mut driver = Driver::passive();
    let conn = driver.accept();
    driver.send(conn, wire::encode_open(&open()));
    driver.send(conn, update);
    assert_eq!(driver.goodbye(conn), Some(Notification::bare(5, 2)));

    let mut driver = Driver::passive();
    let conn = driver.establish(&open());
    driver.send(conn, wire::encode_open(&open()));
    assert_eq!(driver.goodbye(conn), Some(Notification::bare(5, 3)));
}

#[test]
fn the_state_is_always_one_of_the_six() {
    let mut driver = Driver::passive();
    assert_eq!(driver.state(), State::Active);
    let conn = driver.accept();
    assert_eq!(driver.state(), State::OpenSent);
    driver.send(conn, wire::encode_open(&open()));
    assert_eq!(driver.state(), State::OpenConfirm);
    driver.send(conn, wire::encode_keepalive());
    assert_eq!(driver.state(), State::Established);
    driver.step(Input::Closed(conn));
    assert_eq!(driver.state(), State::Active);

    let mut driver = Driver::new(|peer| peer.passive = false);
    assert_eq!(driver.state(), State::Connect);
    driver.step(Input::ConnectFailed(ConnId(1), "No route to host".into()));
    assert_eq!(driver.state(), State::Active);
    driver.wait(5);
    assert_eq!(driver.state(), State::Connect);
    driver.step(Input::Connected(ConnId(2)));
    driver.send(ConnId(2), wire::encode_open(&Open { my_as: 1, ..open() }));
    assert_eq!(driver.state(), State::Idle);
}

#[test]
fn who_does_not_answer_is_asked_again_soon_and_then_less_often() {
    let mut driver = Driver::new(|peer| peer.passive = false);
    let mut waits = Vec::new();
    for attempt in 1..=8 {
        let before = driver.now;
        driver.step(Input::ConnectFailed(ConnId(attempt), "Connection refused".into()));
        driver.wait_for(|output| matches!(output, Output::Connect { .. }));
        waits.push((driver.now - before).as_millis());
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn errors_in_a_row_make_it_wait_longer() {
    let mut driver = Driver::new(|peer| peer.passive = false);
    let mut waits = Vec::new();
    for attempt in 1..=6 {
        let conn = ConnId(attempt);
        driver.step(Input::Connected(conn));
        let before = driver.now;
        driver.send(conn, wire::encode_open(&Open { my_as: 1, ..open() }));
        driver.wait_for(|output| matches!(output, Output::Connect { .. }));
        waits.push((driver.now - before).as_secs());
    }
    assert_eq!(waits, [5, 10, 20, 30, 30, 30]);
}

#[test]
fn a_connection_that_does_not_come_up_is_given_up_and_asked_for_again() {
    let mut driver = Driver::new(|peer| peer.passive = false);
    driver.outputs.clear();
    driver.wait(5);
    let connect = Output::Connect {
        conn: ConnId(2),
        peer: peer_id(),
        source: None,
    };
    assert_eq!(driver.outputs, [Output::Close(ConnId(1)), connect]);
    // The first one comes up after all.
    driver.outputs.clear();
    driver.step(Input::Connected(ConnId(1)));
    assert_eq!(driver.outputs, []);
}

#[test]
fn the_lower_hold_time_rules_and_keepalives_come_three_times_as_often() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&Open { hold_time: 9, ..open() });
    driver.sent.clear();
    driver.wait(8);
    let keepalives = driver.sent[&conn]
        .iter()
        .filter(|message| **message == Message::Keepalive)
        .count();
    assert_eq!(keepalives, 2);
    driver.wait(1);
    assert_eq!(driver.goodbye(conn), Some(Notification::HOLD_TIMER_EXPIRED));
}

#[test]
fn hold_time_zero_means_no_timers() {
    let mut driver = Driver::passive();
    driver.establish(&Open { hold_time: 0, ..open() });
    driver.wait(10);
    assert_eq!(driver.speaker.next_wakeup(), None);
}

#[test]
fn a_peer_that_never_opens_is_dropped_after_four_minutes() {
    let mut driver = Driver::passive();
    let conn = driver.accept();
    driver.wait(239);
    assert_eq!(driver.goodbye(conn), None);
    driver.wait(1);
    assert_eq!(driver.goodbye(conn), Some(Notification::HOLD_TIMER_EXPIRED));
}

#[test]
fn a_newer_connection_of_the_peer_replaces_one_that_never_opened() {
    let mut driver = Driver::passive();
    let (first, second) = (driver.accept(), driver.accept());
    assert!(driver.closed(first) && !driver.closed(second));
    driver.send(second, wire::encode_open(&open()));
    driver.send(second, wire::encode_keepalive());
    assert_eq!(driver.state(), State::Established);
}

#[test]
fn of_two_connections_the_one_of_the_higher_identifier_survives() {
    for (peer_id, ours_survives) in [(Ipv4Addr::new(10, 0, 0, 2), false), (Ipv4Addr::new(9, 0, 0, 2), true)] {
        for ours_first in [true, false] {
            let mut driver = Driver::new(|peer| peer.passive = false);
            let ours = ConnId(1);
            driver.step(Input::Connected(ours));
            let theirs = driver.accept();
            let order = if ours_first { [ours, theirs] } else { [theirs, ours] };
            for conn in order {
                driver.send(
                    conn,
                    wire::encode_open(&Open {
                        router_id: peer_id,
                        ..open()
                    }),
                );
            }
            let (winner, loser) = if ours_survives { (ours, theirs) } else { (theirs, ours) };
            assert_eq!(driver.goodbye(loser), Some(Notification::COLLISION_RESOLUTION));
            driver.send(winner, wire::encode_keepalive());
            assert_eq!(driver.state(), State::Established);
        }
    }
}

#[test]
fn a_second_connection_does_not_disturb_an_established_one() {
    let mut driver = Driver::passive();
    let first = driver.establish(&open());
    let second = driver.accept();
    driver.send(second, wire::encode_open(&open()));
    assert_eq!(driver.goodbye(second), Some(Notification::COLLISION_RESOLUTION));
    assert!(!driver.closed(first));
    assert_eq!(driver.state(), State::Established);
}

#[test]
fn a_malformed_route_counts_as_withdrawn_and_the_session_goes_on() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&open());
    driver.announce(conn, "192.168.7.0/26", |_| {});
    assert_eq!(driver.fib.len(), 1);
    // The same with an ORIGIN that does not exist.
    let good = announcement("192.168.7.0/26", |_| {});
    let mut bad = good.to_vec();
    let origin = good
        .windows(3)
        .position(|window| window == [0x40, 1, 1])
        .expect("has one")
        + 3;
    bad[origin] = 9;
    driver.send(conn, bad.into());
    assert!(driver.fib.is_empty());
    assert_eq!(driver.state(), State::Established);
    assert_eq!(driver.speaker.status()[0].counters.update_faults, 1);
}

#[test]
fn an_unreadable_update_ends_the_session_and_takes_the_routes_along() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&with_restart(open()));
    driver.announce(conn, "192.168.7.0/26", |_| {});
    let mut bad = wire::encode_withdrawal(&["10.0.0.0/8".parse().expect("a prefix")])[0].to_vec();
    bad[21] = 33;
    driver.send(conn, bad.into());
    assert_eq!(driver.goodbye(conn), Some(Notification::INVALID_NETWORK_FIELD));
    assert!(driver.fib.is_empty(), "graceful restart is not for errors");
    let (_, error) = driver.speaker.status().remove(0).last_error.expect("an error");
    assert_eq!(
        error.to_string(),
        "notification sent: UPDATE Message Error/Invalid Network Field (3/10)"
    );
}

#[test]
fn paths_that_would_loop_are_kept_but_not_used() {
    type Change = fn(&mut Attributes);
    let cases: [(&str, Change); 6] = [
        ("own AS in AS_PATH", |a| {
            a.as_path = AsPath(vec![Segment::Sequence(vec![65001, 64512])])
        }),
        ("own router id as ORIGINATOR_ID", |a| a.originator_id = Some(US)),
        ("own cluster in CLUSTER_LIST", |a| a.cluster_list = vec![PEER, US]),
        ("next hop is ourselves", |a| a.next_hop = IpAddr::V4(US)),
        ("next hop is not a unicast address", |a| {
            a.next_hop = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1))
        }),
        ("next hop is not a unicast address", |a| {
            a.next_hop = IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }),
    ];
    for (reason, change) in cases {
        let mut driver = Driver::passive();
        driver.reconfigure(|config| config.cluster_id = Some(US));
        let conn = driver.establish(&open());
        driver.announce(conn, "192.168.7.0/26", change);
        assert!(driver.fib.is_empty(), "{reason}");
        let route = driver
            .speaker
            .routes()
            .find(|route| route.paths[0].from.is_some())
            .expect("is kept");
        assert_eq!(route.paths[0].standing.to_string(), reason);
        let counters = driver.speaker.status()[0].counters;
        assert_eq!((counters.prefixes_received, counters.prefixes_accepted), (1, 0));
    }
}

#[test]
fn what_the_peer_is_told() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&with_restart(open()));
    // Our two blocks, then End-of-RIB, as the peer announced graceful restart.
    assert_eq!(driver.told(conn), ["192.168.1.0/26 via 10.0.0.1", "EoR Ipv4"]);
    driver.sent.clear();
    driver.send(conn, wire::encode_route_refresh(Family::Ipv4.into()));
    assert_eq!(driver.told(conn), ["192.168.1.0/26 via 10.0.0.1"]);
    assert_eq!(driver.speaker.status()[0].counters.prefixes_advertised, 1);
    driver.sent.clear();
    driver.reconfigure(|config| config.originated.clear());
    assert_eq!(driver.told(conn), ["-192.168.1.0/26"]);
    assert_eq!(driver.speaker.status()[0].counters.prefixes_advertised, 0);
    // Its own routes are not told back.
    driver.sent.clear();
    driver.announce(conn, "192.168.7.0/26", |_| {});
    assert_eq!(driver.sent.get(&conn), None);
}

#[test]
fn a_speaker_that_restarted_says_so_and_holds_back_end_of_rib() {
    let mut driver = Driver::restarted();
    let conn = driver.accept();
    let Message::Open(ours) = &driver.sent[&conn][0] else {
        panic!("OPEN comes first")
    };
    let graceful = ours.capabilities.iter().find_map(|capability| match capability {
        Capability::GracefulRestart(graceful) => Some(graceful.clone()),
        _ => None,
    });
    let families = Family::BOTH.map(|family| (family.into(), true)).to_vec();
    assert_eq!(
        graceful,
        Some(GracefulCapability {
            restarted: true,
            restart_time: 120,
            families
        })
    );

    driver.send(conn, wire::encode_open(&with_restart(open())));
    driver.send(conn, wire::encode_keepalive());
    assert_eq!(
        driver.told(conn),
        ["192.168.1.0/26 via 10.0.0.1"],
        "our own routes at once"
    );
    assert!(!driver.outputs.contains(&Output::Converged));
    driver.announce(conn, "192.168.7.0/26", |_| {});
    driver.send(conn, wire::encode_end_of_rib(Family::Ipv4));
    assert!(driver.outputs.contains(&Output::Converged));
    assert_eq!(driver.told(conn), ["192.168.1.0/26 via 10.0.0.1", "EoR Ipv4"]);
}

#[test]
fn peers_are_known_by_address_whatever_their_port() {
    let mut driver = Driver::passive();
    let mapped = SocketAddr::new(IpAddr::V6(PEER.to_ipv6_mapped()), 50_000);
    driver.step(Input::Accepted(ConnId(1 << 63), mapped));
    assert_eq!(driver.state(), State::OpenSent);
    let stranger = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), 179);
    let conn = ConnId((1 << 63) + 1);
    driver.step(Input::Accepted(conn, stranger));
    assert_eq!(driver.goodbye(conn), Some(Notification::CONNECTION_REJECTED));
}

#[test]
fn after_a_shutdown_nothing_moves() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&open());
    driver.announce(conn, "192.168.7.0/26", |_| {});
    let mut outputs = driver.speaker.shutdown(driver.now);
    let news = outputs.pop();
    assert!(matches!(news, Some(Output::Peer(event)) if !event.is_unexpected()));
    let goodbye = wire::encode_notification(&Notification::ADMINISTRATIVE_SHUTDOWN);
    assert_eq!(outputs, [Output::Send(conn, goodbye), Output::Close(conn)]);
    assert_eq!(driver.speaker.next_wakeup(), None);
    let conn = driver.accept();
    assert_eq!(driver.goodbye(conn), Some(Notification::CONNECTION_REJECTED));
    assert_eq!(driver.fib.len(), 1);
}

#[test]
fn a_hundred_thousand_routes_come_and_go() {
    let mut driver = Driver::passive();
    let conn = driver.establish(&open());
    let prefixes: Vec<IpNet> = (0..100_000u32)
        .map(|n| IpNet::new(IpAddr::V4((0x0b00_0000 + n * 64).into()), 26).expect("a prefix"))
        .collect();
    let attributes = Attributes {
        local_pref: Some(100),
        ..Attributes::new(Origin::Igp, IpAddr::V4(PEER))
    };
    let stream = wire::encode_announcement(&attributes, &prefixes, true)
        .expect("fits")
        .concat();
    for chunk in stream.chunks(65_536) {
        driver.send(conn, Bytes::copy_from_slice(chunk));
    }
    assert_eq!(driver.fib.len(), 100_000);
    driver.step(Input::Closed(conn));
    assert!(driver.fib.is_empty());
}

proptest! {
    #[test]
    fn any_bytes_in_any_state_are_survived(
        stage in 0..3usize,
        chunks in prop::collection::vec(any_chunk(), 1..12),
    ) {
        let mut driver = Driver::passive();
        let conn = driver.accept();
        let greeting = [wire::encode_open(&with_restart(open())), wire::encode_keepalive()];
        greeting.into_iter().take(stage).for_each(|message| driver.send(conn, message));
        for chunk in chunks {
            driver.send(conn, chunk);
        }
        driver.step(Input::Closed(conn));
        // It can still do its work.
        let conn = driver.establish(&open());
        driver.announce(conn, "192.168.7.0/26", |_| {});
        prop_assert!(driver.fib.contains_key(&"192.168.7.0/26".parse::<IpNet>().expect("a prefix")));
    }
}

/// A message, whole, damaged or made up.
fn any_chunk() -> impl Strategy<Value = Bytes> {
    let valid = prop_oneof![
        Just(wire::encode_open(&with_restart(open()))),
        Just(wire::encode_keepalive()),
        Just(wire::encode_end_of_rib(Family::Ipv4)),
        Just(wire::encode_end_of_rib(Family::Ipv6)),
        Just(wire::encode_route_refresh(Family::Ipv4.into())),
        Just(announcement("192.168.7.0/26", |_| {})),
        Just(announcement("fd80::40/122", |a| a.next_hop = "fd00::2".parse().expect("an address"))),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let damaged = (valid, damage).prop_map(|(message, damage)| {
        let mut bytes = message.to_vec();
        for (at, value) in damage {
            // The marker stays, so that the body is reached.
            let at = 16 + at.index(bytes.len() - 16);
            bytes[at] = value;
        }
        Bytes::from(bytes)
    });
    prop_oneof![6 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Bytes::from)]
}

struct Driver {
    now: Instant,
    speaker: Speaker,
    outputs: Vec<Output>,
    sent: BTreeMap<ConnId, Vec<Message>>,
    fib: BTreeMap<IpNet, FibRoute>,
    next_conn: u64,
}

impl Driver {
    fn passive() -> Self {
        Self::new(|peer| peer.passive = true)
    }

    fn new(change: fn(&mut PeerConfig)) -> Self {
        Self::start(change, Speaker::new)
    }

    fn restarted() -> Self {
        Self::start(|peer| peer.passive = true, Speaker::restarted)
    }

    fn start(change: fn(&mut PeerConfig), make: fn(Instant, Config) -> Speaker) -> Self {
        let mut peer = PeerConfig::new("Mesh_10_0_0_2", 64512, Family::BOTH.into());
        change(&mut peer);
        let config = Config {
            router_id: US,
            asn: 64512,
            listen_port: 179,
            bind: bgp::Bind::All,
            address_v4: Some(US),
            address_v6: None,
            cluster_id: None,
            graceful_restart: Some(Duration::from_secs(120)),
            peers: [(peer_id(), peer)].into(),
            exportable: BTreeSet::new(),
            originated: [("192.168.1.0/26".parse().expect("a prefix"), LocalRoute { metric: 1024 })].into(),
        };
        let now = Instant::now();
        let mut driver = Self {
            now,
            speaker: make(now, config),
            outputs: Vec::new(),
            sent: BTreeMap::new(),
            fib: BTreeMap::new(),
            next_conn: 1 << 63,
        };
        driver.step(Input::Wake);
        driver
    }

    fn step(&mut self, input: Input) {
        let outputs = self.speaker.step(self.now, input);
        self.take(outputs);
    }

    fn reconfigure(&mut self, change: fn(&mut Config)) {
        let mut config = self.speaker.config().clone();
        change(&mut config);
        let outputs = self.speaker.reconfigure(self.now, config);
        self.take(outputs);
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for output in &outputs {
            match output {
                Output::Send(conn, bytes) => {
                    let mut framer = Framer::default();
                    framer.push(bytes.clone());
                    while let Some(message) = framer.next_message().expect("we speak BGP") {
                        self.sent.entry(*conn).or_default().push(message);
                    }
                }
                Output::Fib(FibChange {
                    prefix,
                    route: Some(route),
                }) => drop(self.fib.insert(*prefix, route.clone())),
                Output::Fib(FibChange { prefix, route: None }) => drop(self.fib.remove(prefix)),
                Output::Connect { .. } | Output::Close(_) | Output::Converged | Output::Peer(_) => {}
            }
        }
        self.outputs.extend(outputs);
    }

    fn wait(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.speaker.next_wakeup().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.step(Input::Wake);
        }
        self.now = end;
    }

    fn wait_for(&mut self, wanted: fn(&Output) -> bool) {
        self.outputs.clear();
        while !self.outputs.iter().any(wanted) {
            self.now = self.speaker.next_wakeup().expect("something is to come");
            self.step(Input::Wake);
        }
    }

    fn accept(&mut self) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.step(Input::Accepted(conn, SocketAddr::new(IpAddr::V4(PEER), 40_000)));
        conn
    }

    fn establish(&mut self, open: &Open) -> ConnId {
        let conn = self.accept();
        self.send(conn, wire::encode_open(open));
        self.send(conn, wire::encode_keepalive());
        assert_eq!(self.state(), State::Established);
        conn
    }

    fn send(&mut self, conn: ConnId, bytes: Bytes) {
        self.step(Input::Received(conn, bytes));
    }

    fn announce(&mut self, conn: ConnId, prefix: &str, change: fn(&mut Attributes)) {
        self.send(conn, announcement(prefix, change));
    }

    fn state(&self) -> State {
        self.speaker.status()[0].state
    }

    fn closed(&self, conn: ConnId) -> bool {
        self.outputs.contains(&Output::Close(conn))
    }

    /// The NOTIFICATION with which a connection was closed.
    fn goodbye(&self, conn: ConnId) -> Option<Notification> {
        match self.sent.get(&conn)?.last()? {
            Message::Notification(notification) if self.closed(conn) => Some(notification.clone()),
            _ => None,
        }
    }

    /// The routes that the peer was told, as text.
    fn told(&self, conn: ConnId) -> Vec<String> {
        let context = UpdateContext {
            four_octet_as: false,
            internal: true,
            families: FamilySet::BOTH,
        };
        let mut told = Vec::new();
        for message in &self.sent[&conn] {
            let Message::Update(body) = message else { continue };
            let update = wire::decode_update(body, &context).expect("we speak BGP");
            assert_eq!(update.faults, []);
            told.extend(update.withdrawn.iter().map(|prefix| format!("-{prefix}")));
            for announcement in update.announced {
                let next_hop = announcement.attributes.next_hop;
                told.extend(
                    announcement
                        .prefixes
                        .iter()
                        .map(|prefix| format!("{prefix} via {next_hop}")),
                );
            }
            told.extend(update.end_of_rib.map(|family| format!("EoR {family:?}")));
        }
        told
    }
}

fn peer_id() -> PeerId {
    PeerId(SocketAddr::new(IpAddr::V4(PEER), 179))
}

/// A peer without any capability: IPv4, two-octet ASes.
fn open() -> Open {
    Open {
        my_as: 64512,
        hold_time: 90,
        router_id: PEER,
        capabilities: Vec::new(),
    }
}

fn with_restart(mut open: Open) -> Open {
    open.capabilities.push(Capability::GracefulRestart(GracefulCapability {
        restarted: false,
        restart_time: 60,
        families: vec![(Family::Ipv4.into(), true)],
    }));
    open
}

/// An UPDATE of the peer.
fn announcement(prefix: &str, change: fn(&mut Attributes)) -> Bytes {
    let mut attributes = Attributes {
        local_pref: Some(100),
        ..Attributes::new(Origin::Igp, IpAddr::V4(PEER))
    };
    change(&mut attributes);
    let prefix = prefix.parse().expect("a prefix");
    wire::encode_announcement(&attributes, &[prefix], false)
        .expect("fits")
        .remove(0)
}
