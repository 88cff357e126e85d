//! Sightings of packets at many devices, put together to passages.

use agent::watch::Sighting;
use ctl::trace::hop::Point;
use ctl::trace::passage::{Passages, ShownPassage};
use ctl::trace::watch::{Watched, text};
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
        whole: true,
        passages,
        drops: [("n2".to_owned(), vec!["+2 end of tier default".to_owned()])].into(),
    };
    let mut out = Vec::new();
    text(&watched, std::time::Duration::from_secs(30), &mut out).expect("memory takes everything");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_packet_is_known_again_at_every_device() {
    let (flow, points) = (flow(17, Some(53), None), points());
    let mut passages = Passages::new(&flow, &points, true);
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

dropped on node n2 meanwhile:
  +2 end of tier default
"
    );
}

#[test]
fn of_packets_that_do_not_arrive_the_one_that_came_farthest_is_shown() {
    let (flow, points) = (flow(17, Some(53), None), points());
    let mut passages = Passages::new(&flow, &points, true);
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
    let mut passages = Passages::new(&flow, &points[..2], false);
    for place in ["n1 shop/web eth0 out", "n1 - cali1 in"] {
        passages.add(seen(place, 1, &udp(WEB, 1, 64, 1)));
    }
    assert!(!passages.has_arrived(0));
    assert_eq!(passages.farthest(), Some(0));
}

/// Whether a packet belongs to a flow, and whether a second one is another packet.
#[track_caller]
fn check(flow: &Packet, one: &[u8], is_it: bool, two: &[u8], is_same: bool) {
    let points = points();
    let mut passages = Passages::new(flow, &points, true);
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
    let mut passages = Passages::new(&dns, &points, true);
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
