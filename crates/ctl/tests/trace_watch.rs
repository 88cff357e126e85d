//! Sightings of packets at many devices, put together to passages.

use agent::watch::Sighting;
use ctl::trace::hop::Outcome;
use ctl::trace::hop::Point;
use ctl::trace::passage::{Passages, ShownPassage, Way};
use ctl::trace::translate::Translated;
use ctl::trace::watch::Watched;
use ctl::trace::watch::text::text;
use policy::evaluate::Packet;

const WEB: [u8; 4] = [192, 168, 1, 10];
const DB: [u8; 4] = [192, 168, 2, 10];

/// A UDP packet to port 53, with its identification and payload.
fn udp(source: [u8; 4], id: u8, ttl: u8, payload: u8) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 36, 0, id, 0x40, 0, ttl, 17, 0, 0];
    bytes.extend(source);
    bytes.extend(DB);
    bytes.extend([0xc3, 0x50, 0, 53, 0, 16, payload, payload]);
    bytes.extend([payload; 8]);
    bytes
}

/// From the address to the database: protocol, ports and what follows.
fn packet(protocol: u8, id: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = udp(WEB, id, 64, 0);
    bytes[9] = protocol;
    bytes.truncate(20);
    bytes.extend(behind);
    bytes[3] = bytes.len() as u8;
    bytes
}

fn in_ipip(inner: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 20 + inner.len() as u8, 0, 0, 0x40, 0, 64, 4, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(inner);
    bytes
}

fn point(place: &str, always: bool) -> Point {
    let words: Vec<&str> = place.split(' ').collect();
    Point {
        node: words[0].into(),
        pod: Some(words[1].to_owned()).filter(|pod| pod != "-"),
        device: words[2].into(),
        outgoing: words[3] == "out",
        always,
    }
}

fn seen(place: &str, at: u64, bytes: &[u8]) -> Sighting {
    let point = point(place, true);
    Sighting {
        at,
        node: point.node,
        pod: point.pod,
        device: point.device,
        outgoing: point.outgoing,
        head: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The way from `web` on n1 to `db` on n2.
fn points() -> Vec<Point> {
    [
        ("n1 shop/web eth0 out", true),
        ("n1 - cali1 in", true),
        ("n1 - tunl0 out", false),
        ("n1 - ens33 out", true),
        ("n2 - ens33 in", true),
        ("n2 - tunl0 in", false),
        ("n2 - cali3 out", true),
        ("n2 shop/db eth0 in", true),
    ]
    .map(|(place, always)| point(place, always))
    .to_vec()
}

fn way(points: Vec<Point>) -> Way {
    Way {
        points,
        has_end: true,
        whole: true,
    }
}

fn flow(protocol: u8, port: Option<u16>, icmp: Option<(u8, u8)>) -> Packet {
    Packet {
        source: WEB.into(),
        destination: DB.into(),
        protocol,
        source_port: port.map(|_| 50_000),
        destination_port: port,
        icmp,
    }
}

fn shown(passages: Vec<ShownPassage>) -> String {
    let watched = Watched {
        translations: Vec::new(),
        passages,
        replies: Vec::new(),
        outcome: Outcome::Arrives,
        drops: [("n2".to_owned(), vec!["+2 end of tier default".to_owned()])].into(),
    };
    let mut out = Vec::new();
    text(&watched, std::time::Duration::from_secs(30), &mut out).expect("memory takes everything");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_packet_is_known_again_at_every_device() {
    let (flow, points) = (flow(17, Some(53), None), points());
    let mut passages = Passages::new(&flow, way(points));
    // Nodes tell when they come to it, and their clocks differ.
    let far = [
        ("n2 - ens33 in", 500, in_ipip(udp(WEB, 7, 63, 1))),
        ("n2 - tunl0 in", 500, udp(WEB, 7, 63, 1)),
        ("n2 shop/db eth0 in", 520, udp(WEB, 7, 62, 1)),
        ("n2 - cali3 out", 520, udp(WEB, 7, 62, 1)),
    ];
    let near = [
        ("n1 - cali1 in", 1010, udp(WEB, 7, 64, 1)),
        ("n1 shop/web eth0 out", 1000, udp(WEB, 7, 64, 1)),
        ("n1 - ens33 out", 1250, in_ipip(udp(WEB, 7, 63, 1))),
    ];
    for (place, at, bytes) in &far {
        assert_eq!(passages.add(seen(place, *at, bytes)), Some(0), "{place}");
    }
    assert!(passages.has_arrived(0) && !passages.is_complete(0));
    for (place, at, bytes) in &near {
        assert_eq!(passages.add(seen(place, *at, bytes)), Some(0), "{place}");
    }
    assert!(passages.is_complete(0));
    assert_eq!(
        shown(passages.shown(0).into_iter().collect()),
        "    0.000 ms  pod shop/web, eth0 out
              IPv4 192.168.1.10 -> 192.168.2.10  protocol 17 (UDP)  ttl 64  length 36  id 7 DF
                UDP 50000 -> 53  16 bytes
    0.010 ms  node n1, cali1 in
              the same, ttl 64
    0.250 ms  node n1, ens33 out
              outer  IPv4 10.0.0.1 -> 10.0.0.2  protocol 4 (IP-in-IP)  ttl 64  length 56  id 0 DF
                inner  the same, ttl 63
   -0.500 ms  node n2, ens33 in
              outer  IPv4 10.0.0.1 -> 10.0.0.2  protocol 4 (IP-in-IP)  ttl 64  length 56  id 0 DF
                inner  the same, ttl 63
   -0.500 ms  node n2, tunl0 in
              the same, ttl 63
   -0.480 ms  node n2, cali3 out
              the same, ttl 62
   -0.480 ms  pod shop/db, eth0 in
              the same, ttl 62
SEEN: it arrived

NOT ANSWERED: nothing came back within 1 s

dropped on node n2 meanwhile:
  +2 end of tier default
"
    );
}

#[test]
fn of_packets_that_do_not_arrive_the_one_that_came_farthest_is_shown() {
    let (flow, points) = (flow(17, Some(53), None), points());
    let mut passages = Passages::new(&flow, way(points));
    assert_eq!(passages.farthest(), None);
    assert!(shown(Vec::new()).starts_with("NOT SEEN: no such packet came within 30 s\n"));
    for (id, places) in [
        (1, &["n1 shop/web eth0 out"][..]),
        (2, &["n1 shop/web eth0 out", "n1 - cali1 in", "n1 - ens33 out"]),
        (3, &["n1 shop/web eth0 out", "n1 - cali1 in"]),
    ] {
        for place in places {
            passages.add(seen(place, 1000, &udp(WEB, id, 64, id)));
        }
    }
    let farthest = passages
        .farthest()
        .and_then(|index| passages.shown(index))
        .expect("one was seen");
    assert!(!farthest.arrived);
    let text = shown(vec![farthest]);
    let end = "LOST: last seen at ens33 of node n1
  not seen at ens33 of node n2
  not seen at cali3 of node n2
  not seen at eth0 of pod shop/db
";
    assert!(text.contains("id 2 DF") && text.contains(end), "{text}");
}

#[test]
fn where_the_end_cannot_be_seen_nothing_arrives() {
    let (flow, points) = (flow(17, Some(53), None), points());
    let mut passages = Passages::new(
        &flow,
        Way {
            has_end: false,
            ..way(points[..2].to_vec())
        },
    );
    for place in ["n1 shop/web eth0 out", "n1 - cali1 in"] {
        passages.add(seen(place, 1, &udp(WEB, 1, 64, 1)));
    }
    assert!(!passages.has_arrived(0));
    assert_eq!(passages.farthest(), Some(0));
}

/// The packet, from somewhere else to somewhere else.
fn readdressed(mut bytes: Vec<u8>, source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
    bytes[12..16].copy_from_slice(&source.0);
    bytes[16..20].copy_from_slice(&destination.0);
    bytes[20..22].copy_from_slice(&source.1.to_be_bytes());
    bytes[22..24].copy_from_slice(&destination.1.to_be_bytes());
    bytes
}

#[test]
fn answers_are_followed_back() {
    let mut passages = Passages::new(&flow(17, Some(53), None), way(points()));
    let answer = |id| readdressed(udp(WEB, id, 63, id), (DB, 53), (WEB, 50_000));
    for place in ["n1 shop/web eth0 out", "n2 shop/db eth0 in"] {
        passages.add(seen(place, 10, &udp(WEB, 1, 64, 1)));
    }
    // What others are answered is none of ours.
    let foreign = readdressed(udp(WEB, 8, 63, 8), (DB, 53), ([192, 168, 1, 99], 50_000));
    passages.add(seen("n2 shop/db eth0 out", 11, &foreign));
    passages.add(seen("n2 shop/db eth0 out", 12, &answer(2)));
    passages.add(seen("n1 - ens33 in", 14, &in_ipip(answer(2))));
    assert!(passages.answers(&[0]).is_empty(), "it is on its way");
    let underway = passages
        .farthest_answer(&[0])
        .and_then(|index| passages.shown(index))
        .expect("a reply");
    assert_eq!((underway.arrived, underway.seen.len()), (false, 2));
    for place in ["n2 - cali3 in", "n2 - ens33 out", "n1 - cali1 out"] {
        passages.add(seen(place, 13, &in_ipip(answer(2))));
    }
    let index = passages
        .add(seen("n1 shop/web eth0 in", 15, &answer(2)))
        .expect("a reply");
    assert_eq!(passages.answers(&[0]), [index]);
    // The tunnel's devices may or may not show it.
    assert!(passages.is_complete(index) && passages.is_reply(index) && !passages.is_reply(0));
    let shown = passages.shown(index).expect("it was seen");
    let places: Vec<String> = shown
        .seen
        .iter()
        .map(|seen| format!("{} {} {}", seen.node, seen.device, seen.direction))
        .collect();
    assert_eq!(
        places,
        [
            "n2 eth0 out",
            "n2 cali3 in",
            "n2 ens33 out",
            "n1 ens33 in",
            "n1 cali1 out",
            "n1 eth0 in"
        ]
    );
    let watched = Watched {
        translations: Vec::new(),
        passages: passages.shown(0).into_iter().collect(),
        replies: vec![shown],
        outcome: Outcome::Arrives,
        drops: [].into(),
    };
    let mut out = Vec::new();
    text(&watched, std::time::Duration::from_secs(30), &mut out).expect("memory takes everything");
    let text = String::from_utf8(out).expect("text");
    assert!(
        text.contains("\nand back:\n    0.000 ms  pod shop/db, eth0 out\n")
            && text.ends_with("\nANSWERED: it came back\n\n"),
        "{text}"
    );
}

#[test]
fn packets_are_known_again_behind_a_translation() {
    const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
    let client = (WEB, 50_000);
    let end = |(address, port): ([u8; 4], u16)| std::net::SocketAddr::from((address, port));
    let mut asked = flow(17, Some(80), None);
    asked.destination = SERVICE.0.into();
    // Whoever has the service's address is not here: it would go to a router.
    let towards = [
        ("n1 shop/web eth0 out", true),
        ("n1 - cali1 in", true),
        ("n1 - ens33 out", true),
    ];
    let towards = towards.map(|(place, always)| point(place, always)).to_vec();
    let mut passages = Passages::new(&asked, way(towards));
    let to = |id, destination| readdressed(udp(WEB, id, 64, id), client, destination);
    passages.add(seen("n1 shop/web eth0 out", 1, &to(1, SERVICE)));
    assert_eq!(
        passages.add(seen("n1 - ens33 out", 1, &in_ipip(to(1, (DB, 53))))),
        None,
        "who knows"
    );
    // Somebody knows where it goes.
    passages.is_translated(end(SERVICE));
    passages.add_way(end((DB, 53)), way(points()));
    let mut last = None;
    for (place, bytes) in [
        ("n1 shop/web eth0 out", to(2, SERVICE)),
        ("n1 - cali1 in", to(2, SERVICE)),
        ("n1 - ens33 out", in_ipip(to(2, (DB, 53)))),
        ("n2 - ens33 in", in_ipip(to(2, (DB, 53)))),
        ("n2 - cali3 out", to(2, (DB, 53))),
        ("n2 shop/db eth0 in", to(2, (DB, 53))),
    ] {
        last = passages.add(seen(place, 2, &bytes));
    }
    let last = last.expect("it is of the flow");
    assert!(passages.is_complete(last) && passages.way_of(last) == 1);
    // And back: until it is translated back, nobody knows it by the service's name.
    let back = |source| readdressed(udp(WEB, 3, 63, 3), source, client);
    for (place, bytes) in [
        ("n2 shop/db eth0 out", back((DB, 53))),
        ("n1 - ens33 in", in_ipip(back((DB, 53)))),
        ("n1 shop/web eth0 in", back(SERVICE)),
    ] {
        last_is_reply(&mut passages, place, &bytes);
    }
    assert_eq!(passages.answers(&[last]).len(), 1);
    assert!(passages.answers(&[0]).is_empty(), "the first one's way was not known");
    // Another name of a way that is known.
    let node_port = ([10, 0, 0, 1], 30080);
    passages.add_name(end(node_port), end((DB, 53)));
    assert!(passages.add(seen("n1 - ens33 in", 9, &to(9, node_port))).is_some());
    let translated = Translated {
        from: end(SERVICE),
        to: end((DB, 53)),
        node: "n1".into(),
        by: "conntrack".into(),
    };
    assert_eq!(
        translated.to_string(),
        "10.96.0.1:80 becomes 192.168.2.10:53 on node n1: conntrack"
    );
}

fn last_is_reply(passages: &mut Passages, place: &str, bytes: &[u8]) {
    let index = passages.add(seen(place, 3, bytes)).expect("it is of the flow");
    assert!(passages.is_reply(index), "{place}");
}

/// Whether a packet belongs to a flow, and whether a second one is another packet.
#[track_caller]
fn check(flow: &Packet, one: &[u8], is_it: bool, two: &[u8], is_same: bool) {
    let points = points();
    let mut passages = Passages::new(flow, way(points));
    let first = passages.add(seen("n1 shop/web eth0 out", 1, one));
    assert_eq!(first.is_some(), is_it);
    if is_it {
        let second = passages
            .add(seen("n2 shop/db eth0 in", 2, two))
            .expect("it is of the flow");
        assert_eq!(second == 0, is_same);
        assert_eq!(passages.has_arrived(0), is_same);
    }
}

#[test]
fn packets_are_told_apart_by_what_no_hop_changes() {
    let dns = flow(17, Some(53), None);
    let one = udp(WEB, 1, 64, 1);
    check(&dns, &one, true, &udp(WEB, 1, 62, 1), true);
    check(&dns, &one, true, &udp(WEB, 2, 64, 1), false);
    check(&dns, &one, true, &udp(WEB, 1, 64, 2), false);
    // A translated source is the same packet; a flow of the same kind from elsewhere is none of ours.
    check(&dns, &one, true, &udp([10, 0, 0, 1], 1, 63, 1), true);
    check(&flow(17, Some(54), None), &one, false, &one, true);
    check(&flow(6, Some(53), None), &one, false, &one, true);
    let mut foreign = udp([192, 168, 1, 99], 9, 64, 9);
    let points = points();
    let mut passages = Passages::new(&dns, way(points));
    passages.add(seen("n2 shop/db eth0 in", 1, &foreign));
    assert!(!passages.has_arrived(0) && passages.farthest().is_none());
    // TCP by sequence number and flags, whatever its checksum.
    let tcp = |sequence: u8, flags: u8, checksum: u8| {
        packet(
            6,
            1,
            &[
                0xc3, 0x50, 0, 53, 0, 0, 0, sequence, 0, 0, 0, 0, 0x50, flags, 1, 0, checksum, 0, 0, 0,
            ],
        )
    };
    let web = flow(6, Some(53), None);
    check(&web, &tcp(1, 2, 0), true, &tcp(1, 2, 9), true);
    check(&web, &tcp(1, 2, 0), true, &tcp(2, 2, 0), false);
    check(&web, &tcp(1, 2, 0), true, &tcp(1, 16, 0), false);
    // Echo requests by sequence number; replies are another flow.
    let echo = |kind: u8, sequence: u8| packet(1, 1, &[kind, 0, 0, 0, 0, 9, 0, sequence, 0, 0, 0, 0]);
    let ping = flow(1, None, Some((8, 0)));
    check(&ping, &echo(8, 1), true, &echo(8, 1), true);
    check(&ping, &echo(8, 1), true, &echo(8, 2), false);
    check(&ping, &echo(0, 1), false, &echo(0, 1), true);
    // Anything can be cut anywhere.
    foreign = in_ipip(udp(WEB, 1, 64, 1));
    for length in 0..foreign.len() {
        passages.add(seen("n1 - ens33 out", 1, &foreign[..length]));
    }
    let mut broken = seen("n1 - ens33 out", 1, &foreign);
    broken.head = "zz".into();
    assert_eq!(passages.add(broken), None);
}

#[test]
fn a_way_goes_on_where_packets_are_translated() {
    let text = |point: &Point| {
        let direction = if point.outgoing { "out" } else { "in" };
        format!("{} {} {direction}", point.node, point.device)
    };
    let places = |places: &[&str]| way(places.iter().map(|place| point(place, true)).collect());
    let check = |first: &[&str], node: &str, second: &[&str], joined: &[&str]| {
        let way = places(second).behind(&places(first), node);
        assert_eq!(way.points.iter().map(text).collect::<Vec<_>>(), joined);
    };
    let tunnelled = [
        "n1 shop/web eth0 out",
        "n1 - cali1 in",
        "n1 - tunl0 out",
        "n2 - tunl0 in",
        "n2 - cali3 out",
        "n2 shop/db eth0 in",
    ];
    // A service proxy on the sender's node; a port of the receiver's node, which is no address of the pods' network.
    check(
        &["n1 shop/web eth0 out", "n1 - cali1 in", "n1 - ens33 out"],
        "n1",
        &tunnelled,
        &[
            "n1 eth0 out",
            "n1 cali1 in",
            "n1 tunl0 out",
            "n2 tunl0 in",
            "n2 cali3 out",
            "n2 eth0 in",
        ],
    );
    let wire = [
        "n1 shop/web eth0 out",
        "n1 - cali1 in",
        "n1 - ens33 out",
        "n2 - ens33 in",
    ];
    check(
        &wire,
        "n2",
        &tunnelled,
        &[
            "n1 eth0 out",
            "n1 cali1 in",
            "n1 ens33 out",
            "n2 ens33 in",
            "n2 cali3 out",
            "n2 eth0 in",
        ],
    );
    // A port of a third node, and a node that the first way does not know.
    check(
        &[
            "n1 shop/web eth0 out",
            "n1 - cali1 in",
            "n1 - ens33 out",
            "n3 - ens33 in",
        ],
        "n3",
        &tunnelled,
        &[
            "n1 eth0 out",
            "n1 cali1 in",
            "n1 ens33 out",
            "n3 ens33 in",
            "n2 cali3 out",
            "n2 eth0 in",
        ],
    );
    check(
        &wire,
        "n4",
        &tunnelled[3..],
        &["n2 tunl0 in", "n2 cali3 out", "n2 eth0 in"],
    );
}
