//! The codec: captured bytes, error handling, round trips, arbitrary bytes.
//!
//! The captures are from BIRD 2.0.12, AS 4200000001 on both sides, with this configuration on the sending one:
//!
//! ```text
//! router id 10.99.0.1;
//! protocol static { ipv4; route 192.168.10.0/26 blackhole { bgp_community.add((64512,100));
//!   bgp_large_community.add((64512,1,2)); bgp_ext_community.add((rt,64512,7)); bgp_med=50; }; … }
//! protocol static { ipv6; route fd80::40/122 blackhole; route fd80:1::/48 blackhole; }
//! protocol bgp { local 10.99.0.1 as 4200000001; neighbor 10.99.0.2 as 4200000001; graceful restart;
//!   ipv4 { export all; next hop self; }; ipv6 { export all; next hop address fd99::1; }; }
//! ```
//!
//! `tcpdump -i veth0 -w cap.pcap tcp port 179`

use std::net::{IpAddr, Ipv4Addr};

use bgp::attributes::{Aggregator, AsPath, Attributes, Community, Origin, Segment, UnknownAttribute};
use bgp::message::{
    AfiSafi, Announcement, Capability, Fault, GracefulCapability, Message, Notification, Open, Remedy, Update,
};
use bgp::wire::{self, Framer, MAX_MESSAGE, UpdateContext};
use bgp::{Family, FamilySet};
use bytes::Bytes;
use ipnet::IpNet;
use proptest::prelude::*;

const MARKER: &str = "ffffffffffffffffffffffffffffffff";

/// OPEN of BIRD.
const BIRD_OPEN: &str = "
    0043 01                 length 67, OPEN
    04 5ba0 00f0 0a630001   version 4, AS_TRANS, hold time 240, 10.99.0.1
    26 02 24                parameters of 38: capabilities of 36
    01 04 0001 00 01        IPv4 unicast
    01 04 0002 00 01        IPv6 unicast
    02 00                   route refresh
    40 0a 0078              graceful restart, no R, 120 s
      0001 01 00 0002 01 00   IPv4 and IPv6, no F
    41 04 fa56ea01          AS 4200000001
    46 00 47 00             enhanced refresh, long-lived graceful restart";

/// UPDATE of BIRD with every attribute of its static routes.
const BIRD_UPDATE: &str = "
    005e 02 0000 003d       length 94, UPDATE, nothing withdrawn, 61 of attributes
    40 01 01 00             ORIGIN IGP
    40 02 00                AS_PATH empty
    40 03 04 0a630001       NEXT_HOP 10.99.0.1
    80 04 04 00000032       MED 50
    40 05 04 00000064       LOCAL_PREF 100
    c0 08 04 fc000064       COMMUNITIES 64512:100
    c0 10 08 0002fc0000000007         EXTENDED COMMUNITIES rt 64512:7
    c0 20 0c 0000fc000000000100000002 LARGE COMMUNITIES 64512:1:2
    1a c0a80a40             192.168.10.64/26
    1a c0a80a00             192.168.10.0/26";

/// UPDATE of BIRD for IPv6.
const BIRD_UPDATE_V6: &str = "
    0056 02 0000 003f       length 86, UPDATE, nothing withdrawn, 63 of attributes
    90 0e 002d 0002 01      MP_REACH_NLRI of 45, IPv6 unicast
      10 fd990000000000000000000000000001 00   next hop fd99::1
      30 fd8000010000       fd80:1::/48
      7a fd800000000000000000000000000040      fd80::40/122
    40 01 01 00             ORIGIN IGP
    40 02 00                AS_PATH empty
    40 05 04 00000064       LOCAL_PREF 100";

#[test]
fn birds_open_is_read_and_written_to_the_byte() {
    let bytes = message(BIRD_OPEN);
    let expected = Open {
        my_as: 23456,
        hold_time: 240,
        router_id: Ipv4Addr::new(10, 99, 0, 1),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4.into()),
            Capability::Multiprotocol(Family::Ipv6.into()),
            Capability::RouteRefresh,
            Capability::GracefulRestart(GracefulCapability {
                restarted: false,
                restart_time: 120,
                families: vec![(Family::Ipv4.into(), false), (Family::Ipv6.into(), false)],
            }),
            Capability::FourOctetAs(4_200_000_001),
            Capability::Unknown {
                code: 70,
                value: Bytes::new(),
            },
            Capability::Unknown {
                code: 71,
                value: Bytes::new(),
            },
        ],
    };
    assert_eq!(expected.asn(), 4_200_000_001);
    assert_eq!(wire::encode_open(&expected), bytes);
    assert_eq!(read(bytes), Ok(vec![Message::Open(expected)]));
}

#[test]
fn birds_updates_are_read_and_written_to_the_byte() {
    let announcement = Announcement {
        attributes: Attributes {
            med: Some(50),
            local_pref: Some(100),
            communities: vec![Community(64512 << 16 | 100)],
            extended_communities: vec![[0, 2, 0xfc, 0, 0, 0, 0, 7]],
            large_communities: vec![[64512, 1, 2]],
            ..Attributes::new(Origin::Igp, address("10.99.0.1"))
        },
        prefixes: vec![prefix("192.168.10.64/26"), prefix("192.168.10.0/26")],
    };
    check_both_ways(BIRD_UPDATE, announcement);
    let announcement = Announcement {
        attributes: Attributes {
            local_pref: Some(100),
            ..Attributes::new(Origin::Igp, address("fd99::1"))
        },
        prefixes: vec![prefix("fd80:1::/48"), prefix("fd80::40/122")],
    };
    check_both_ways(BIRD_UPDATE_V6, announcement);
}

#[test]
fn birds_end_of_rib_of_both_families() {
    for (text, family) in [
        ("0017 02 0000 0000", Family::Ipv4),
        ("001d 02 0000 0006 80 0f 03 0002 01", Family::Ipv6),
    ] {
        let expected = Update {
            end_of_rib: Some(family),
            ..Update::default()
        };
        assert_eq!(decode(&message(text), INTERNAL), Ok(expected.clone()));
        assert_eq!(decode(&wire::encode_end_of_rib(family), INTERNAL), Ok(expected));
    }
}

#[test]
fn birds_goodbye() {
    let bytes = message("0015 03 06 02");
    assert_eq!(wire::encode_notification(&Notification::ADMINISTRATIVE_SHUTDOWN), bytes);
    assert_eq!(
        read(bytes),
        Ok(vec![Message::Notification(Notification::ADMINISTRATIVE_SHUTDOWN)])
    );
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    let refresh = AfiSafi::from(Family::Ipv6);
    let parts = [
        message(BIRD_OPEN),
        wire::encode_keepalive(),
        wire::encode_route_refresh(refresh),
        message(BIRD_UPDATE),
    ];
    let stream = parts.concat();
    let whole = read(Bytes::from(stream.clone())).expect("is fine");
    assert_eq!(whole.len(), 4);
    assert_eq!(whole[2], Message::RouteRefresh(refresh));
    for size in 1..stream.len() {
        let mut framer = Framer::default();
        let mut messages = Vec::new();
        for chunk in stream.chunks(size) {
            framer.push(Bytes::copy_from_slice(chunk));
            while let Some(message) = framer.next_message().expect("is fine") {
                messages.push(message);
            }
        }
        assert_eq!(messages, whole);
    }
}

#[test]
fn broken_headers_and_opens_get_the_right_notification() {
    let cases = [
        ("0013 00", (1, 3)),
        ("0013 06", (1, 3)),
        ("0012 04", (1, 2)),
        ("1001 02", (1, 2)),
        ("0014 04 00", (1, 2)),
        ("001c 01", (1, 2)),
        ("001d 01 03 5ba0 00f0 0a630001 00", (2, 1)),
        ("001d 01 04 5ba0 00f0 0a630001 01", (2, 0)),
        ("001f 01 04 5ba0 00f0 0a630001 02 02 01", (2, 0)),
        ("001f 01 04 5ba0 00f0 0a630001 02 01 00", (2, 4)),
        ("0021 01 04 5ba0 00f0 0a630001 04 02 02 41 04", (2, 0)),
    ];
    for (text, code) in cases {
        let error = read(message(text)).expect_err(text);
        assert_eq!((error.code, error.subcode), code, "{text}");
    }
    let mut bytes = message("0013 04").to_vec();
    bytes[3] = 0;
    assert_eq!(read(Bytes::from(bytes)), Err(Notification::NOT_SYNCHRONISED));
}

#[test]
fn open_with_extended_parameter_lengths() {
    // RFC 9072: ff ff, then two-octet lengths.
    let text = "0029 01 04 fc00 005a 0a000001 ff ff 0009 02 0006 41 04 0000fc00";
    let Ok(messages) = read(message(text)) else {
        panic!("is fine")
    };
    let [Message::Open(open)] = &messages[..] else {
        panic!("an OPEN")
    };
    assert_eq!(open.capabilities, [Capability::FourOctetAs(64512)]);
}

/// Attributes that make a good UPDATE for 10.0.0.0/8.
const GOOD: &str = "40010100 400200 4003040a000001 40050400000064";

#[test]
fn attribute_errors_cost_the_attribute_or_the_prefixes_but_not_the_session() {
    use Remedy::{AttributeDiscard as Discard, TreatAsWithdraw as Withdraw};
    let cases = [
        (
            "ORIGIN of an unknown value",
            "40010103 400200 4003040a000001",
            vec![(1, Withdraw)],
        ),
        (
            "ORIGIN too long",
            "4001020000 400200 4003040a000001",
            vec![(1, Withdraw)],
        ),
        ("ORIGIN missing", "400200 4003040a000001", vec![(1, Withdraw)]),
        ("AS_PATH missing", "40010100 4003040a000001", vec![(2, Withdraw)]),
        ("NEXT_HOP missing", "40010100 400200", vec![(3, Withdraw)]),
        (
            "NEXT_HOP too short",
            "40010100 400200 4003030a0000",
            vec![(3, Withdraw)],
        ),
        (
            "AS_PATH with an empty segment",
            "40010100 4002020200 4003040a000001",
            vec![(2, Withdraw)],
        ),
        (
            "AS_PATH with an unknown segment",
            "40010100 4002060301 00000001 4003040a000001",
            vec![(2, Withdraw)],
        ),
        (
            "AS_PATH cut off",
            "40010100 4002040201 0001 4003040a000001",
            vec![(2, Withdraw)],
        ),
        (
            "ORIGIN marked optional",
            "c0010100 400200 4003040a000001",
            vec![(1, Withdraw)],
        ),
        ("MED too short", &format!("{GOOD} 80040100"), vec![(4, Withdraw)]),
        (
            "MED twice",
            &format!("{GOOD} 80040400000001 80040400000002"),
            vec![(4, Discard)],
        ),
        (
            "LOCAL_PREF too short",
            "40010100 400200 4003040a000001 40050100",
            vec![(5, Withdraw)],
        ),
        (
            "ATOMIC_AGGREGATE with a value",
            &format!("{GOOD} 40060100"),
            vec![(6, Discard)],
        ),
        (
            "AGGREGATOR of two-octet size",
            &format!("{GOOD} c00706fc000a000001"),
            vec![(7, Discard)],
        ),
        ("COMMUNITIES empty", &format!("{GOOD} c00800"), vec![(8, Withdraw)]),
        (
            "COMMUNITIES cut off",
            &format!("{GOOD} c00803fc0000"),
            vec![(8, Withdraw)],
        ),
        (
            "ORIGINATOR_ID too long",
            &format!("{GOOD} 8009050000000000"),
            vec![(9, Withdraw)],
        ),
        ("CLUSTER_LIST empty", &format!("{GOOD} 800a00"), vec![(10, Withdraw)]),
        (
            "large communities cut off",
            &format!("{GOOD} c0200400000000"),
            vec![(32, Withdraw)],
        ),
        (
            "extended communities cut off",
            &format!("{GOOD} c0100400000000"),
            vec![(16, Withdraw)],
        ),
        (
            "AS4_PATH from a four-octet peer",
            &format!("{GOOD} c01100"),
            vec![(17, Discard)],
        ),
        (
            "well-known but unknown",
            &format!("{GOOD} 406300"),
            vec![(99, Withdraw)],
        ),
        (
            "an attribute longer than the block",
            &format!("{GOOD} 80040a00"),
            vec![(0, Withdraw)],
        ),
        ("half an attribute header", &format!("{GOOD} 80"), vec![(0, Withdraw)]),
    ];
    for (name, block, faults) in cases {
        let update = decode(&update_of(block, "08 0a"), INTERNAL).expect(name);
        let faults: Vec<_> = faults
            .into_iter()
            .map(|(code, remedy)| Fault { code, remedy })
            .collect();
        assert_eq!(update.faults, faults, "{name}");
        let withdrawn = faults.iter().any(|fault| fault.remedy == Withdraw);
        assert_eq!(update.withdrawn.len(), usize::from(withdrawn), "{name}");
        assert_eq!(update.announced.len(), usize::from(!withdrawn), "{name}");
    }
}

#[test]
fn what_hides_prefixes_ends_the_session() {
    let cases = [
        ("a prefix longer than 32", GOOD, "21 0a00000000", (3, 10)),
        ("a prefix cut off", GOOD, "18 0a00", (3, 10)),
        ("two MP_REACH_NLRI", "800e05 0002010000 800e05 0002010000", "", (3, 9)),
        (
            "MP_REACH_NLRI with half a next hop",
            "800e09 000201 04 00000000 00",
            "",
            (3, 9),
        ),
        ("MP_REACH_NLRI too short", "800e03 000201", "", (3, 9)),
        ("MP_UNREACH_NLRI with a bad prefix", "800f05 000201 81 00", "", (3, 9)),
        ("two MP_UNREACH_NLRI", "800f03 000201 800f03 000201", "", (3, 1)),
    ];
    for (name, block, nlri, code) in cases {
        let error = decode(&update_of(block, nlri), INTERNAL).expect_err(name);
        assert_eq!((error.code, error.subcode), code, "{name}");
    }
    for text in ["0017 02 0001 0000", "0017 02 0000 0001"] {
        assert_eq!(
            decode(&message(text), INTERNAL),
            Err(Notification::MALFORMED_ATTRIBUTE_LIST)
        );
    }
}

#[test]
fn what_only_internal_peers_may_say_is_ignored_from_others() {
    let block = format!("{GOOD} 8009040a000009 800a040a000009");
    let update = decode(
        &update_of(&block, "08 0a"),
        UpdateContext {
            internal: false,
            ..INTERNAL
        },
    )
    .expect("is fine");
    assert_eq!(
        update.faults.iter().map(|fault| fault.code).collect::<Vec<_>>(),
        [5, 9, 10]
    );
    assert_eq!(
        update.announced[0].attributes,
        Attributes::new(Origin::Igp, address("10.0.0.1"))
    );
}

#[test]
fn a_link_local_next_hop_beside_the_global_one_is_left_out() {
    // RFC 2545 3: 32 octets.
    let next_hops = "fd990000000000000000000000000001 fe800000000000000000000000000001";
    let block = format!("900e002e 000201 20 {next_hops} 00 40fd80000000000000 40010100 400200");
    let update = decode(&update_of(&block, ""), INTERNAL).expect("is fine");
    assert_eq!(update.announced[0].attributes.next_hop, address("fd99::1"));
    assert_eq!(update.announced[0].prefixes, [prefix("fd80::/64")]);
}

#[test]
fn families_that_were_not_negotiated_are_ignored() {
    let only = |family| UpdateContext {
        families: [family].into_iter().collect(),
        ..INTERNAL
    };
    let empty = Update::default();
    assert_eq!(decode(&message(BIRD_UPDATE), only(Family::Ipv6)), Ok(empty.clone()));
    assert_eq!(decode(&message(BIRD_UPDATE_V6), only(Family::Ipv4)), Ok(empty));
}

#[test]
fn unknown_transitive_attributes_are_passed_on_as_partial() {
    let update = decode(&update_of(&format!("{GOOD} c06302abcd 80640101"), "08 0a"), INTERNAL).expect("is fine");
    let attributes = &update.announced[0].attributes;
    assert_eq!(
        attributes.unknown,
        [UnknownAttribute {
            code: 0x63,
            value: [0xab, 0xcd].into()
        }]
    );
    let again = wire::encode_announcement(attributes, &[prefix("10.0.0.0/8")], true).expect("fits");
    assert!(again[0].windows(5).any(|window| window == [0xe0, 0x63, 2, 0xab, 0xcd]));
}

#[test]
fn two_octet_peers_get_the_long_path_beside_the_short_one() {
    let attributes = Attributes {
        as_path: AsPath(vec![Segment::Sequence(vec![64512, 4_200_000_001])]),
        aggregator: Some(Aggregator {
            asn: 4_200_000_001,
            router_id: Ipv4Addr::new(10, 0, 0, 9),
        }),
        ..Attributes::new(Origin::Igp, address("10.0.0.1"))
    };
    let narrow = UpdateContext {
        four_octet_as: false,
        ..INTERNAL
    };
    let bytes = &wire::encode_announcement(&attributes, &[prefix("10.0.0.0/8")], false).expect("fits")[0];
    assert_eq!(
        decode(bytes, narrow).expect("is fine").announced[0].attributes,
        attributes
    );
    // RFC 6793 4.2.3: ASes that two-octet speakers put in front on the way stay in front.
    let text = "40010100 4002080203 1234fc005ba0 4003040a000001 c0110a0202 0000fc00 fa56ea01";
    let update = decode(&update_of(text, "08 0a"), narrow).expect("is fine");
    let path = AsPath(vec![
        Segment::Sequence(vec![0x1234]),
        Segment::Sequence(vec![64512, 4_200_000_001]),
    ]);
    assert_eq!(update.announced[0].attributes.as_path, path);
}

#[test]
fn many_prefixes_share_few_messages_of_at_most_4096_octets() {
    let attributes = Attributes::new(Origin::Igp, address("10.0.0.1"));
    let prefixes: Vec<_> = (0..100_000u32).map(|n| prefix_of(0x0a00_0000 + n * 64, 26)).collect();
    let messages = wire::encode_announcement(&attributes, &prefixes, true).expect("fits");
    assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE));
    assert_eq!(
        messages.len(),
        100_000usize.div_ceil((MAX_MESSAGE - 19 - 4 - 4 - 3 - 7) / 5)
    );
    let back: Vec<_> = messages
        .iter()
        .flat_map(|one| decode(one, INTERNAL).expect("is fine").announced.remove(0).prefixes)
        .collect();
    assert_eq!(back, prefixes);
    let huge = Attributes {
        communities: vec![Community(1); 1100],
        ..attributes
    };
    assert_eq!(
        wire::encode_announcement(&huge, &prefixes, true),
        None,
        "no room for a prefix"
    );
}

proptest! {
    #[test]
    fn announcements_survive_the_way_there_and_back(
        attributes in any_attributes(),
        v4 in prop::collection::vec((any::<u32>(), 0..=32u8).prop_map(|(bits, length)| prefix_of(bits, length)), 1..2000),
        four_octet_as in any::<bool>(),
    ) {
        let v6: Vec<IpNet> = v4.iter().map(widened).collect();
        let context = UpdateContext { four_octet_as, ..INTERNAL };
        for (next_hop, prefixes) in [("10.0.0.1", v4), ("fd00::1", v6)] {
            let attributes = Attributes { next_hop: address(next_hop), ..attributes.clone() };
            let messages = wire::encode_announcement(&attributes, &prefixes, four_octet_as).expect("fits");
            let mut back = Vec::new();
            for message in &messages {
                prop_assert!(message.len() <= MAX_MESSAGE);
                let update = decode(message, context).expect("is fine");
                prop_assert_eq!(&update.faults, &[]);
                for announcement in update.announced {
                    prop_assert_eq!(&announcement.attributes, &attributes);
                    back.extend(announcement.prefixes);
                }
            }
            prop_assert_eq!(back, prefixes.clone());
            let mut withdrawn = Vec::new();
            for message in wire::encode_withdrawal(&prefixes) {
                prop_assert!(message.len() <= MAX_MESSAGE);
                withdrawn.extend(decode(&message, context).expect("is fine").withdrawn);
            }
            prop_assert_eq!(withdrawn, prefixes);
        }
    }

    #[test]
    fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..600), kind in 0..7u8) {
        let mut bytes = vec![0xff; 16];
        bytes.extend(u16::try_from(body.len() + 19).expect("short").to_be_bytes());
        bytes.push(kind);
        bytes.extend(body);
        survive(&bytes);
        survive(&bytes[16..]);
    }

    #[test]
    fn damaged_messages_are_survived(
        which in 0..3usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = message([BIRD_OPEN, BIRD_UPDATE, BIRD_UPDATE_V6][which]).to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(&bytes);
    }
}

const INTERNAL: UpdateContext = UpdateContext {
    four_octet_as: true,
    internal: true,
    families: FamilySet::BOTH,
};

fn survive(bytes: &[u8]) {
    for message in read(Bytes::copy_from_slice(bytes)).unwrap_or_default() {
        if let Message::Update(body) = message {
            for four_octet_as in [false, true] {
                for internal in [false, true] {
                    let _ = wire::decode_update(
                        &body,
                        &UpdateContext {
                            four_octet_as,
                            internal,
                            ..INTERNAL
                        },
                    );
                }
            }
        }
    }
}

fn check_both_ways(text: &str, announcement: Announcement) {
    let bytes = message(text);
    let encoded = wire::encode_announcement(&announcement.attributes, &announcement.prefixes, true);
    assert_eq!(encoded, Some(vec![bytes.clone()]));
    let expected = Update {
        announced: vec![announcement],
        ..Update::default()
    };
    assert_eq!(decode(&bytes, INTERNAL), Ok(expected));
}

/// Hexadecimal digits, each line up to what does not look like them.
fn message(text: &str) -> Bytes {
    let hex = |word: &&str| {
        word.len().is_multiple_of(2) && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let digits: String = text
        .lines()
        .flat_map(|line| line.split_whitespace().take_while(hex))
        .collect();
    let digits = format!("{MARKER}{digits}");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn update_of(block: &str, nlri: &str) -> Bytes {
    let size = |text: &str| text.bytes().filter(u8::is_ascii_hexdigit).count() / 2;
    let (block_size, nlri_size) = (size(block), size(nlri));
    message(&format!(
        "{:04x} 02 0000 {block_size:04x} {block} {nlri}",
        23 + block_size + nlri_size
    ))
}

fn read(bytes: Bytes) -> Result<Vec<Message>, Notification> {
    let mut framer = Framer::default();
    framer.push(bytes);
    std::iter::from_fn(|| framer.next_message().transpose()).collect()
}

fn decode(message: &Bytes, context: UpdateContext) -> Result<Update, Notification> {
    let messages = read(message.clone())?;
    let [Message::Update(body)] = &messages[..] else {
        panic!("one UPDATE: {messages:?}")
    };
    wire::decode_update(body, &context)
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let segment = (any::<bool>(), prop::collection::vec(1..u32::MAX, 1..40)).prop_map(|(set, ases)| {
        if set {
            Segment::Set(ases)
        } else {
            Segment::Sequence(ases)
        }
    });
    let path = prop::collection::vec(segment, 0..3).prop_map(AsPath);
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let id = || any::<u32>().prop_map(Ipv4Addr::from);
    let aggregator = (1..u32::MAX, id()).prop_map(|(asn, router_id)| Aggregator { asn, router_id });
    let first = (
        origin,
        path,
        any::<Option<u32>>(),
        any::<Option<u32>>(),
        any::<bool>(),
        prop::option::of(aggregator),
    );
    let second = (
        prop::collection::vec(any::<u32>().prop_map(Community), 0..80),
        prop::option::of(id()),
        prop::collection::vec(id(), 0..5),
        prop::collection::vec(any::<[u8; 8]>(), 0..5),
        prop::collection::vec(any::<[u32; 3]>(), 0..5),
        prop::collection::btree_map(128..255u8, prop::collection::vec(any::<u8>(), 0..300), 0..3),
    );
    (first, second).prop_map(
        |((origin, as_path, med, local_pref, atomic_aggregate, aggregator), second)| {
            let (communities, originator_id, cluster_list, extended_communities, large_communities, unknown) = second;
            // An aggregator that is AS_TRANS itself cannot be told from a substitute.
            let aggregator = aggregator.filter(|aggregator| aggregator.asn != 23456);
            Attributes {
                origin,
                as_path,
                next_hop: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                med,
                local_pref,
                atomic_aggregate,
                aggregator,
                communities,
                originator_id,
                cluster_list,
                extended_communities,
                large_communities,
                unknown: unknown
                    .into_iter()
                    .map(|(code, value)| UnknownAttribute {
                        code,
                        value: value.into(),
                    })
                    .collect(),
            }
        },
    )
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn prefix_of(bits: u32, length: u8) -> IpNet {
    IpNet::new(IpAddr::V4(bits.into()), length).expect("at most 32").trunc()
}

/// An IPv6 prefix made of an IPv4 one, 80 bits longer.
fn widened(prefix: &IpNet) -> IpNet {
    let IpAddr::V4(network) = prefix.network() else {
        panic!("IPv4")
    };
    let bits = 0xfd80 << 112 | u128::from(u32::from(network)) << 16;
    IpNet::new(IpAddr::V6(bits.into()), prefix.prefix_len() + 80)
        .expect("at most 112")
        .trunc()
}
