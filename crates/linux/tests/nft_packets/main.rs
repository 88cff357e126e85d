//! Rules and real packets: a client, a router that has the rules, a server.
#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "../ipip_support/mod.rs"]
mod ipip_support;
mod limits;
mod matches;
mod net;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};

use futures::StreamExt;
use kernel::IpFamily;
use kernel::nft::*;
use linux::conntrack::{Conntrack, DESTINATION_TRANSLATED, ENDED, FlowFilter, SEEN_REPLY};
use linux::nflog::{NflogEvent, NflogSettings};
use matches::{cases, sets};
use net::*;

#[test]
fn every_match_is_true_for_its_packets() {
    let Some(net) = Net::new() else { return };
    let cases = cases();
    let mut start = sets();
    start.extend([
        base("mangle", ChainKind::Filter, Hook::Prerouting, -150),
        rule(
            "mangle",
            vec![],
            vec![
                Statement::SetMark {
                    mask: u32::MAX,
                    value: 0xf034,
                },
                Statement::SetMark {
                    mask: 0xff00,
                    value: 0x1200,
                },
            ],
            None,
        ),
        plain("checks"),
        base("forward-hook", ChainKind::Filter, Hook::Forward, 0),
        // The first packet of each flow alone: answers come the other way.
        rule(
            "forward-hook",
            vec![from_client()],
            vec![],
            Some(Verdict::Jump("checks".into())),
        ),
    ]);
    net.apply(start);
    for kind in ALL {
        let mut anew = vec![Change::FlushChain("checks".into())];
        anew.extend(cases.iter().map(|(matches, _)| counted(matches.clone())));
        net.apply(anew);
        // TCP's only packet from the client is its first: the port is closed.
        net.send(kind);
        for ((matches, kinds), count) in cases.iter().zip(net.counts("checks")) {
            assert_eq!(count, u64::from(kinds.contains(&kind)), "{kind:?}: {matches:?}");
        }
        Conntrack::cut(&mut net.router.run(Conntrack::open).unwrap(), &FlowFilter::default()).unwrap();
    }
}

#[test]
fn verdicts_and_maps_lead_packets() {
    let Some(net) = Net::new() else { return };
    let verdict = |verdict| rule("checks", vec![], vec![], Some(verdict));
    let count = |chain: &str| rule(chain, vec![], vec![Statement::Counter], None);
    let ask = |key: Field, map: &str| {
        verdict(Verdict::Map {
            key: vec![key],
            map: map.into(),
        })
    };
    let map = |name: &str, key, value: Value, verdict| {
        let spec = SetSpec {
            name: name.into(),
            key: vec![key],
            interval: false,
            verdicts: true,
        };
        let element = Element {
            key: value.into(),
            verdict: Some(verdict),
        };
        [Change::AddSet(spec), Change::AddElements(name.into(), vec![element])]
    };
    let client = || Value::Interface("cali1".into());
    let mut start = vec![
        plain("checks"),
        plain("other"),
        base("forward-hook", ChainKind::Filter, Hook::Forward, 0),
    ];
    start.push(rule(
        "forward-hook",
        vec![from_client()],
        vec![],
        Some(Verdict::Jump("checks".into())),
    ));
    start.push(rule(
        "forward-hook",
        vec![from_client()],
        vec![Statement::Counter],
        None,
    ));
    start.extend(map(
        "jumps",
        KeyType::Interface,
        client(),
        ElementVerdict::Jump("other".into()),
    ));
    start.extend(map(
        "gotos",
        KeyType::Interface,
        client(),
        ElementVerdict::Goto("other".into()),
    ));
    start.extend(map("drops", KeyType::Interface, client(), ElementVerdict::Drop));
    start.extend(map("accepts", KeyType::Interface, client(), ElementVerdict::Accept));
    start.extend(map(
        "misses",
        KeyType::Interface,
        Value::Interface("cali9".into()),
        ElementVerdict::Drop,
    ));
    net.apply(start);
    let device = Field::Interface(Way::In);
    // What the packet meets: the rest of the chain, the other chain, the caller, the server.
    for (body, met) in [
        (verdict(Verdict::Accept), [0, 0, 0, 1]),
        (verdict(Verdict::Drop), [0, 0, 0, 0]),
        (verdict(Verdict::Return), [0, 0, 1, 1]),
        (verdict(Verdict::Jump("other".into())), [1, 1, 1, 1]),
        (verdict(Verdict::Goto("other".into())), [0, 1, 1, 1]),
        (ask(device, "jumps"), [1, 1, 1, 1]),
        (ask(device, "gotos"), [0, 1, 1, 1]),
        (ask(device, "drops"), [0, 0, 0, 0]),
        (ask(device, "accepts"), [0, 0, 0, 1]),
        (ask(device, "misses"), [1, 0, 1, 1]),
    ] {
        let words = format!("{body:?}");
        net.apply(vec![
            Change::FlushChain("checks".into()),
            body,
            count("checks"),
            Change::FlushChain("other".into()),
            count("other"),
            Change::FlushChain("forward-hook".into()),
            rule(
                "forward-hook",
                vec![protocol(17), port(End::Source, &[(5001, 5001)], false)],
                vec![],
                Some(Verdict::Accept),
            ),
            rule(
                "forward-hook",
                vec![from_client()],
                vec![],
                Some(Verdict::Jump("checks".into())),
            ),
            count("forward-hook"),
        ]);
        let (to, from) = (
            net.udp(&net.server, SERVER[0], 53),
            net.udp(&net.client, CLIENT[0], 5000),
        );
        // Behind the packet comes one that always arrives: then the first has, or never will.
        let marker = net.udp(&net.client, CLIENT[0], 5001);
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        marker.send_to(b"m", to.local_addr().unwrap()).unwrap();
        let mut byte = [0];
        to.recv_from(&mut byte).unwrap();
        let arrived = u64::from(byte == *b"x");
        if arrived == 1 {
            to.recv_from(&mut byte).unwrap();
        }
        let state = net.nft.read_now(&table()).unwrap().unwrap();
        let seen = [("checks", 1), ("other", 0), ("forward-hook", 2)].map(|(chain, at)| {
            let rule = &state.chains[&chain.into()].rules[at];
            rule.count.unwrap().packets
        });
        assert_eq!([seen[0], seen[1], seen[2], arrived], met, "{words}");
    }
}

#[test]
fn addresses_are_translated_and_flows_are_seen_and_cut() {
    let Some(net) = Net::new() else { return };
    let service: SocketAddr = "10.0.9.9:99".parse().unwrap();
    net.apply(vec![
        base("nat-pre", ChainKind::Nat, Hook::Prerouting, -100),
        rule(
            "nat-pre",
            vec![protocol(17), port(End::Destination, &[(99, 99)], false)],
            vec![Statement::DestinationNat {
                address: SERVER[0].parse().unwrap(),
                port: Some(53),
            }],
            None,
        ),
        base("nat-post", ChainKind::Nat, Hook::Postrouting, 100),
        rule(
            "nat-post",
            vec![Match::Family(IpFamily::V4)],
            vec![masquerade(Some((7000, 7000)))],
            None,
        ),
        rule(
            "nat-post",
            vec![Match::Family(IpFamily::V6)],
            vec![Statement::SourceNat {
                address: "2001:db8:2::99".parse().unwrap(),
                ports: Some((8000, 8001)),
                random_fully: true,
            }],
            None,
        ),
        plain("checks"),
        base("forward-hook", ChainKind::Filter, Hook::Forward, 0),
        rule(
            "forward-hook",
            vec![from_client()],
            vec![],
            Some(Verdict::Jump("checks".into())),
        ),
        counted(vec![Match::Translated]),
        counted(vec![Match::Conntrack([CtState::Established].into())]),
        counted(vec![Match::Ended]),
    ]);
    net.server.sh("ip -6 addr add 2001:db8:2::98 dev eth0 nodad");
    let (to, from) = (
        net.udp(&net.server, SERVER[0], 53),
        net.udp(&net.client, CLIENT[0], 5000),
    );
    let mut buffer = [0; 8];
    from.send_to(b"a", service).unwrap();
    let (_, seen) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(seen, "10.0.2.1:7000".parse().unwrap(), "both ends were translated");
    to.send_to(b"b", seen).unwrap();
    assert_eq!(from.recv_from(&mut buffer).unwrap().1, service);
    from.send_to(b"c", service).unwrap();
    to.recv_from(&mut buffer).unwrap();
    assert_eq!(net.counts("checks"), [2, 1, 0]);

    // The flow, as others see it.
    let mut conntrack = net.router.run(Conntrack::open).unwrap();
    for end in [CLIENT[0], "10.0.9.9", SERVER[0], "10.0.2.1"] {
        let flows = conntrack.list(&FlowFilter::of(end.parse().unwrap())).unwrap();
        assert_eq!(flows.len(), 1, "{end}: {flows:?}");
        let flow = &flows[0];
        let both = SEEN_REPLY | DESTINATION_TRANSLATED;
        assert_eq!(flow.status & both, both);
        let listed = net.router.sh("conntrack -L -p udp");
        assert!(
            listed.contains("src=10.0.1.2 dst=10.0.9.9 sport=5000 dport=99"),
            "{listed}"
        );
    }
    assert_eq!(conntrack.cut(&FlowFilter::of("10.0.7.7".parse().unwrap())).unwrap(), 0);
    let flows = conntrack.list(&FlowFilter::of(SERVER[0].parse().unwrap())).unwrap();
    assert_eq!(conntrack.cut(&FlowFilter::of(SERVER[0].parse().unwrap())).unwrap(), 1);
    assert_eq!(conntrack.delete(&flows).unwrap(), 0, "it is gone");
    assert!(!net.router.sh("conntrack -L -p udp").contains("sport=5000"));
    // Its next packet is a new flow's first.
    from.send_to(b"d", service).unwrap();
    to.recv_from(&mut buffer).unwrap();
    assert_eq!(net.counts("checks"), [3, 1, 0]);
    // One that is ended stays, and its packets are known as such, whichever side sends them.
    let flows = conntrack.list(&FlowFilter::of(SERVER[0].parse().unwrap())).unwrap();
    assert_eq!(conntrack.end(&flows).unwrap(), 1);
    let ended = conntrack.list(&FlowFilter::of(SERVER[0].parse().unwrap())).unwrap();
    assert_eq!((ended.len(), ended[0].status & ENDED), (1, ENDED));
    from.send_to(b"e", service).unwrap();
    to.recv_from(&mut buffer).unwrap();
    assert_eq!(net.counts("checks"), [4, 2, 1]);
    assert_eq!(conntrack.delete(&ended).unwrap(), 1);
    assert_eq!(conntrack.end(&ended).unwrap(), 0, "it is gone");

    let (to, from) = (
        net.udp(&net.server, SERVER[1], 53),
        net.udp(&net.client, CLIENT[1], 5000),
    );
    from.send_to(b"x", to.local_addr().unwrap()).unwrap();
    let (_, seen) = to.recv_from(&mut buffer).unwrap();
    assert_eq!(seen.ip(), "2001:db8:2::99".parse::<IpAddr>().unwrap());
    assert!((8000..=8001).contains(&seen.port()));
    net.client.sh(&format!("ping -n -c 1 -W 10 {}", SERVER[0]));
    let v6 = FlowFilter {
        family: Some(IpFamily::V6),
        protocol: Some(17),
        port: Some(53),
        ..FlowFilter::default()
    };
    assert_eq!(conntrack.cut(&v6).unwrap(), 1);
    let pings = FlowFilter {
        protocol: Some(1),
        ..FlowFilter::default()
    };
    assert_eq!(conntrack.cut(&pings).unwrap(), 1);
}

fn masquerade(ports: Option<(u16, u16)>) -> Statement {
    Statement::Masquerade {
        ports,
        random_fully: false,
    }
}

#[test]
fn what_is_not_tracked_is_untracked_and_local_is_local() {
    let Some(net) = Net::new() else { return };
    net.apply(vec![
        base("raw", ChainKind::Filter, Hook::Prerouting, -300),
        rule("raw", vec![protocol(17)], vec![Statement::Notrack], None),
        base("checks", ChainKind::Filter, Hook::Input, 0),
        counted(vec![
            from_client(),
            protocol(17),
            Match::Conntrack([CtState::Untracked].into()),
        ]),
        counted(vec![from_client(), protocol(17), Match::DestinationIsLocal]),
        counted(vec![from_client(), protocol(17), Match::NoInterface(Way::Out)]),
        counted(vec![from_client(), protocol(17), Match::SourceIsLocal]),
        counted(vec![
            from_client(),
            protocol(17),
            Match::Conntrack([CtState::New].into()),
        ]),
    ]);
    let (to, from) = (
        net.udp(&net.router, ROUTER[0], 53),
        net.udp(&net.client, CLIENT[0], 5000),
    );
    from.send_to(b"x", to.local_addr().unwrap()).unwrap();
    to.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(net.counts("checks"), [1, 1, 1, 0, 0]);
}

#[test]
fn what_is_behind_a_limit_happens_to_so_many_packets() {
    let Some(net) = Net::new() else { return };
    let limited = vec![
        Statement::Limit {
            packets: 1,
            per: Per::Day,
            burst: 3,
        },
        Statement::Counter,
    ];
    net.apply(vec![
        base("forward", ChainKind::Filter, Hook::Forward, 0),
        rule("forward", vec![protocol(17), from_client()], limited, None),
        rule(
            "forward",
            vec![protocol(17), from_client()],
            vec![Statement::Counter],
            None,
        ),
    ]);
    (0..10).for_each(|_| net.send(UDP4));
    let counts = net.counts("forward");
    assert_eq!(counts[1], 10, "all go on behind the rule");
    assert!((3..=4).contains(&counts[0]), "{counts:?}");
}

#[test]
fn who_is_refused_is_told() {
    let Some(net) = Net::new() else { return };
    net.apply(vec![
        base("forward-hook", ChainKind::Filter, Hook::Forward, 0),
        rule(
            "forward-hook",
            vec![from_client()],
            vec![Statement::Counter, Statement::Reject],
            None,
        ),
    ]);
    for (at, errno) in [(0, libc::EHOSTUNREACH), (1, libc::EACCES)] {
        let from = net.udp(&net.client, CLIENT[at], 5000);
        from.connect(SocketAddr::new(SERVER[at].parse().unwrap(), 53)).unwrap();
        from.send(b"x").unwrap();
        assert_eq!(from.recv(&mut [0; 8]).unwrap_err().raw_os_error(), Some(errno));
        let to = SocketAddr::new(SERVER[at].parse().unwrap(), 81);
        let refused = net.client.run(|| TcpStream::connect_timeout(&to, LIMIT));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(net.counts("forward-hook"), [4], "one rule, though the kernel has two");
}

#[test]
fn logged_packets_are_read() {
    let Some(net) = Net::new() else { return };
    let log = |group, prefix: &str, snaplen| Statement::Nflog {
        group,
        prefix: prefix.into(),
        snaplen,
    };
    net.apply(vec![
        base("forward-hook", ChainKind::Filter, Hook::Forward, 0),
        rule(
            "forward-hook",
            vec![from_client()],
            vec![log(5, "A:default/allow-dns", 0), log(6, "other group", 64)],
            None,
        ),
    ]);
    let settings = NflogSettings {
        wait: 1,
        ..NflogSettings::of(5)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let listen = || {
        let _inside = handle.enter();
        linux::nflog::listen(settings)
    };
    let mut events = net.router.run(listen).unwrap();
    assert!(net.router.run(listen).is_err(), "a group has one listener");
    for kind in ALL {
        net.send(kind);
        let event = runtime.block_on(async { tokio::time::timeout(LIMIT, events.next()).await });
        let Some(NflogEvent::Packet(seen)) = event.unwrap() else {
            panic!("{kind:?}")
        };
        assert_eq!(seen.prefix, "A:default/allow-dns");
        assert_eq!(seen.hook, 2);
        assert_eq!(seen.input.as_ref().map(|name| name.0.as_str()), Some("cali1"));
        assert_eq!(seen.output.as_ref().map(|name| name.0.as_str()), Some("cali2"));
        let (family, protocol, ports, icmp, length) = match kind {
            Kind::Udp(IpFamily::V4) => (0, 17, Some((5000, 53)), None, 29),
            Kind::Udp(IpFamily::V6) => (1, 17, Some((5000, 53)), None, 49),
            Kind::Tcp => (0, 6, Some((seen.ports.unwrap().0, 81)), None, 60),
            Kind::Ping(IpFamily::V4) => (0, 1, None, Some((8, 0)), 84),
            Kind::Ping(IpFamily::V6) => (1, 58, None, Some((128, 0)), 104),
        };
        assert_eq!(seen.source, CLIENT[family].parse::<IpAddr>().unwrap());
        assert_eq!(seen.destination, SERVER[family].parse::<IpAddr>().unwrap());
        assert_eq!(
            (seen.protocol, seen.ports, seen.icmp, seen.length),
            (protocol, ports, icmp, length)
        );
    }
}
