//! Rules and real packets: a client, a router that has the rules, a server.
#![allow(clippy::unwrap_used, reason = "test code")]

mod ipip_support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use futures::StreamExt;
use ipip_support::Ns;
use kernel::IpFamily;
use kernel::nft::*;
use linux::conntrack::{Conntrack, DESTINATION_TRANSLATED, ENDED, FlowFilter, SEEN_REPLY};
use linux::nflog::{NflogEvent, NflogSettings};
use linux::nft::LiveNft;

struct Net {
    client: Ns,
    router: Ns,
    server: Ns,
    nft: LiveNft,
}

const CLIENT: [&str; 2] = ["10.0.1.2", "2001:db8:1::2"];
const ROUTER: [&str; 2] = ["10.0.1.1", "2001:db8:1::1"];
const SERVER: [&str; 2] = ["10.0.2.2", "2001:db8:2::2"];
const LIMIT: Duration = Duration::from_secs(10);

impl Net {
    /// `None` without root.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for network namespaces");
            return None;
        }
        let (client, router, server) = (Ns::new(), Ns::new(), Ns::new());
        client.wire("eth0", &router, "cali1");
        server.wire("eth0", &router, "cali2");
        for (ns, device, addresses) in [
            (&client, "eth0", CLIENT),
            (&router, "cali1", ROUTER),
            (&router, "cali2", ["10.0.2.1", "2001:db8:2::1"]),
            (&server, "eth0", SERVER),
        ] {
            ns.sh(&format!(
                "ip addr add {}/24 dev {device}; ip -6 addr add {}/64 dev {device} nodad",
                addresses[0], addresses[1]
            ));
        }
        for (ns, via) in [(&client, ROUTER), (&server, ["10.0.2.1", "2001:db8:2::1"])] {
            ns.sh(&format!(
                "ip route add default via {}; ip -6 route add default via {}",
                via[0], via[1]
            ));
        }
        router.sysctl("ipv4/conf/all/forwarding", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        let nft = router.run(LiveNft::open).unwrap();
        Some(Self {
            client,
            router,
            server,
            nft,
        })
    }

    fn apply(&self, changes: Vec<Change>) {
        let transaction = Transaction {
            table: table(),
            changes,
        };
        self.nft.apply_now(&transaction).unwrap();
    }

    /// Packets that each rule of a chain has counted.
    fn counts(&self, chain: &str) -> Vec<u64> {
        let state = self.nft.read_now(&table()).unwrap().unwrap();
        let rules = &state.chains[&chain.into()].rules;
        rules.iter().map(|rule| rule.count.unwrap().packets).collect()
    }

    fn udp(&self, ns: &Ns, address: &str, port: u16) -> UdpSocket {
        let socket = ns
            .run(|| UdpSocket::bind(SocketAddr::new(address.parse().unwrap(), port)))
            .unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// A packet of a kind goes from client to server, and has arrived when this returns.
    fn send(&self, kind: Kind) {
        match kind {
            Kind::Udp(family) => {
                let at = family as usize;
                let (to, from) = (
                    self.udp(&self.server, SERVER[at], 53),
                    self.udp(&self.client, CLIENT[at], 5000),
                );
                from.send_to(b"x", to.local_addr().unwrap()).unwrap();
                to.recv_from(&mut [0; 8]).unwrap();
            }
            Kind::Tcp => {
                let to = SocketAddr::new(SERVER[0].parse().unwrap(), 81);
                let refused = self.client.run(|| TcpStream::connect_timeout(&to, LIMIT));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
            Kind::Ping(family) => {
                self.client
                    .sh(&format!("ping -n -c 1 -W 10 {}", SERVER[family as usize]));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Udp(IpFamily),
    Tcp,
    Ping(IpFamily),
}

const UDP4: Kind = Kind::Udp(IpFamily::V4);
const UDP6: Kind = Kind::Udp(IpFamily::V6);
const PING4: Kind = Kind::Ping(IpFamily::V4);
const PING6: Kind = Kind::Ping(IpFamily::V6);
const ALL: [Kind; 5] = [UDP4, UDP6, Kind::Tcp, PING4, PING6];

fn table() -> TableName {
    TableName("margay".into())
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: Some(BaseChain {
            kind,
            hook,
            priority,
            drop: false,
        }),
    })
}

fn plain(name: &str) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: None,
    })
}

fn rule(chain: &str, matches: Vec<Match>, actions: Vec<Statement>, verdict: Option<Verdict>) -> Change {
    Change::AddRule(
        chain.into(),
        Rule {
            matches,
            actions,
            verdict,
            comment: None,
        },
    )
}

fn counted(matches: Vec<Match>) -> Change {
    rule("checks", matches, vec![Statement::Counter], None)
}

fn from_client() -> Match {
    Match::Interface {
        way: Way::In,
        negate: false,
        name: "cali1".into(),
    }
}

fn protocol(number: u8) -> Match {
    Match::Protocol { negate: false, number }
}

fn port(end: End, ranges: &[(u16, u16)], negate: bool) -> Match {
    Match::Port {
        end,
        negate,
        ranges: ranges.to_vec(),
    }
}

fn net(end: End, net: &str, negate: bool) -> Match {
    Match::Net {
        end,
        negate,
        net: net.parse().unwrap(),
    }
}

fn set(name: &str, key: &[KeyType], interval: bool, elements: &[&[Value]]) -> Vec<Change> {
    let elements = elements.iter().map(|key| Element {
        key: key.to_vec(),
        verdict: None,
    });
    vec![
        Change::AddSet(SetSpec {
            name: name.into(),
            key: key.to_vec(),
            interval,
            verdicts: false,
        }),
        Change::AddElements(name.into(), elements.collect()),
    ]
}

fn address(text: &str) -> Value {
    Value::Address(text.parse().unwrap())
}

fn prefix(text: &str) -> Value {
    Value::Net(text.parse().unwrap())
}

/// Matches (for what comes from the client, in forward) and the kinds of packets that each is true for.
fn cases() -> Vec<(Vec<Match>, Vec<Kind>)> {
    use End::*;
    let v4 = |end| Field::Address(IpFamily::V4, end);
    let v6 = |end| Field::Address(IpFamily::V6, end);
    let all = || ALL.to_vec();
    let only4 = || vec![UDP4, Kind::Tcp, PING4];
    let only6 = || vec![UDP6, PING6];
    let udp = || vec![UDP4, UDP6];
    let ports = || vec![UDP4, UDP6, Kind::Tcp];
    let device = |way, name: &str, negate| Match::Interface {
        way,
        negate,
        name: name.into(),
    };
    let within = |key: &[Field], set: &str, negate| Match::InSet {
        key: key.to_vec(),
        negate,
        set: set.into(),
    };
    let icmp = |kind, code, negate| Match::Icmp { negate, kind, code };
    let mut cases = vec![
        (vec![], all()),
        (vec![device(Way::Out, "cali2", false)], all()),
        (vec![device(Way::Out, "cali", false)], vec![]),
        (vec![device(Way::Out, "cali2", true)], vec![]),
        (vec![device(Way::In, "cali*", false)], all()),
        (vec![device(Way::Out, "eth*", false)], vec![]),
        (vec![device(Way::Out, "eth*", true)], all()),
        (vec![Match::NoInterface(Way::In)], vec![]),
        (vec![Match::NoInterface(Way::Out)], vec![]),
        (vec![Match::Family(IpFamily::V4)], only4()),
        (vec![Match::Family(IpFamily::V6)], only6()),
        (vec![protocol(17)], udp()),
        (
            vec![Match::Protocol {
                negate: true,
                number: 17,
            }],
            vec![Kind::Tcp, PING4, PING6],
        ),
        (vec![protocol(58)], vec![PING6]),
        (vec![net(Source, "10.0.1.0/24", false)], only4()),
        (vec![net(Source, "10.0.1.0/25", false)], only4()),
        (vec![net(Source, "10.0.1.128/25", false)], vec![]),
        (vec![net(Source, "10.0.1.128/25", true)], only4()),
        (vec![net(Source, "10.0.0.0/14", false)], only4()),
        (vec![net(Destination, "10.0.2.2/32", false)], only4()),
        (vec![net(Destination, "10.0.2.2/32", true)], vec![]),
        (vec![net(Destination, "0.0.0.0/0", false)], only4()),
        (vec![net(Destination, "0.0.0.0/0", true)], vec![]),
        (vec![net(Destination, "::/0", false)], only6()),
        (vec![net(Source, "2001:db8::/46", false)], only6()),
        (
            vec![
                net(Source, "2001:db8:1::2/128", false),
                net(Destination, "2001:db8:2::/48", false),
            ],
            only6(),
        ),
        (vec![net(Source, "2001:db8:1::/48", true)], vec![]),
        (vec![protocol(17), port(Destination, &[(53, 53)], false)], udp()),
        (vec![protocol(17), port(Destination, &[(53, 53)], true)], vec![]),
        (vec![protocol(17), port(Destination, &[(50, 60)], false)], udp()),
        (vec![protocol(17), port(Destination, &[(54, 60)], false)], vec![]),
        (vec![protocol(17), port(Destination, &[(54, 60)], true)], udp()),
        (vec![protocol(17), port(Source, &[(1, 2), (5000, 5000)], false)], udp()),
        (
            vec![
                protocol(17),
                port(Source, &[(1, 2), (4000, 4999), (5001, 65535)], false),
            ],
            vec![],
        ),
        (
            vec![protocol(17), port(Source, &[(1, 2), (4000, 4999), (5001, 65535)], true)],
            udp(),
        ),
        (
            vec![protocol(6), port(Destination, &[(80, 80), (81, 81)], false)],
            vec![Kind::Tcp],
        ),
        (vec![protocol(1), icmp(8, None, false)], vec![PING4]),
        (vec![protocol(1), icmp(8, Some(0), false)], vec![PING4]),
        (vec![protocol(1), icmp(8, Some(1), false)], vec![]),
        (vec![protocol(1), icmp(8, Some(1), true)], vec![PING4]),
        (vec![protocol(1), icmp(8, Some(0), true)], vec![]),
        (vec![protocol(58), icmp(128, None, false)], vec![PING6]),
        (vec![protocol(58), icmp(128, None, true)], vec![]),
        (vec![Match::Conntrack([CtState::New].into())], all()),
        (
            vec![Match::Conntrack([CtState::Established, CtState::Invalid].into())],
            vec![],
        ),
        (vec![Match::Conntrack(BTreeSet::new())], vec![]),
        (vec![Match::Translated], vec![]),
        (vec![Match::Ended], vec![]),
        (vec![Match::DestinationIsLocal], vec![]),
        (vec![Match::SourceIsLocal], vec![]),
    ];
    for (mask, value, is) in [
        (u32::MAX, 0x1234, true),
        (0xff00, 0x1200, true),
        (0xff00, 0x1300, false),
        (0x1, 0, true),
    ] {
        for negate in [false, true] {
            let kinds = if is != negate { all() } else { vec![] };
            cases.push((vec![Match::Mark { mask, value, negate }], kinds));
        }
    }
    for (key, name, kinds) in [
        (vec![v4(Source)], "clients", only4()),
        (vec![v4(Destination)], "clients", vec![]),
        (vec![v4(Source)], "nets", only4()),
        (vec![v6(Source)], "nets6", only6()),
        (vec![v6(Destination)], "nets6", vec![]),
        (vec![Field::Interface(Way::In)], "devices", all()),
        (vec![Field::Interface(Way::Out)], "devices", vec![]),
        (vec![Field::Protocol], "protocols", vec![Kind::Tcp, PING6]),
        (vec![Field::Port(Destination)], "ports", ports()),
        (
            vec![v4(Destination), Field::Protocol, Field::Port(Destination)],
            "named",
            vec![UDP4],
        ),
        (
            vec![v6(Destination), Field::Protocol, Field::Port(Destination)],
            "named6",
            vec![UDP6],
        ),
        (
            vec![v4(Source), Field::Protocol, Field::Port(Destination)],
            "wide",
            vec![UDP4],
        ),
        (vec![Field::Interface(Way::In), v4(Source)], "spoofing", only4()),
        (vec![Field::Interface(Way::In), v6(Source)], "spoofing6", only6()),
    ] {
        let of_family: Vec<Kind> = match key.iter().find(|field| matches!(field, Field::Address(..))) {
            Some(Field::Address(IpFamily::V4, _)) => only4(),
            Some(Field::Address(IpFamily::V6, _)) => only6(),
            // Ports of pings are whatever stands there: their first bytes.
            _ => all(),
        };
        if !key.contains(&Field::Port(Destination)) {
            let others = of_family.into_iter().filter(|kind| !kinds.contains(kind)).collect();
            cases.push((vec![within(&key, name, true)], others));
            cases.push((vec![within(&key, name, false)], kinds));
        } else {
            let l4 = Match::Protocol {
                negate: false,
                number: 17,
            };
            let kinds = kinds.into_iter().filter(|kind| matches!(kind, Kind::Udp(_))).collect();
            cases.push((vec![l4, within(&key, name, false)], kinds));
        }
    }
    cases
}

fn sets() -> Vec<Change> {
    use KeyType::*;
    let (v4, v6) = (Address(IpFamily::V4), Address(IpFamily::V6));
    let (udp, dns) = (Value::Protocol(17), Value::Port(53));
    let device = Value::Interface("cali1".into());
    [
        set("clients", &[v4], false, &[&[address(CLIENT[0])]]),
        set(
            "nets",
            &[v4],
            true,
            &[
                &[prefix("10.0.0.0/24")],
                &[prefix("10.0.1.0/30")],
                &[prefix("10.0.3.0/24")],
            ],
        ),
        set("nets6", &[v6], true, &[&[prefix("2001:db8:1::/48")]]),
        set("devices", &[Interface], false, &[std::slice::from_ref(&device)]),
        set(
            "protocols",
            &[Protocol],
            false,
            &[&[Value::Protocol(6)], &[Value::Protocol(58)]],
        ),
        set("ports", &[Port], true, &[&[Value::Ports(50, 81)]]),
        set(
            "named",
            &[v4, Protocol, Port],
            false,
            &[&[address(SERVER[0]), udp.clone(), dns.clone()]],
        ),
        set(
            "named6",
            &[v6, Protocol, Port],
            false,
            &[&[address(SERVER[1]), udp.clone(), dns]],
        ),
        set(
            "wide",
            &[v4, Protocol, Port],
            true,
            &[&[prefix("10.0.1.0/24"), udp, Value::Ports(1, 53)]],
        ),
        set(
            "spoofing",
            &[Interface, v4],
            false,
            &[&[device.clone(), address(CLIENT[0])]],
        ),
        set("spoofing6", &[Interface, v6], false, &[&[device, address(CLIENT[1])]]),
    ]
    .concat()
}

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
    let map = |name: &str, key, value, verdict| {
        let spec = SetSpec {
            name: name.into(),
            key: vec![key],
            interval: false,
            verdicts: true,
        };
        let element = Element {
            key: vec![value],
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
