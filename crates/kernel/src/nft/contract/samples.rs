//! One of everything that can be said.

use super::*;

/// A base chain of kind filter.
pub(super) fn filter(hook: Hook) -> BaseChain {
    BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority: 0,
        drop: false,
    }
}

/// The map of devices.
pub(super) fn map() -> SetSpec {
    SetSpec {
        name: "map".into(),
        key: vec![KeyType::Interface],
        interval: false,
        verdicts: true,
    }
}

/// Empty sets of every kind, the chains `plain` and `other`, and a base chain for each thing to do.
pub(super) fn sets_and_chains() -> Vec<Change> {
    let nat = |hook, priority| BaseChain {
        kind: ChainKind::Nat,
        hook,
        priority,
        drop: false,
    };
    let mut changes: Vec<Change> = sets().into_iter().map(|(spec, _)| Change::AddSet(spec)).collect();
    changes.extend([
        chain("plain"),
        chain("other"),
        base_chain("forward", filter(Hook::Forward)),
        base_chain("prerouting", nat(Hook::Prerouting, -100)),
        base_chain("postrouting", nat(Hook::Postrouting, 100)),
    ]);
    changes
}

/// An element of words: a device, `A.B.C.D[/N]`, IPv6 likewise, `tcp` or `udp`, `PORT[-PORT]`.
pub(super) fn element(words: &[&str]) -> Element {
    let value = |word: &&str| match *word {
        "tcp" => Value::Protocol(6),
        "udp" => Value::Protocol(17),
        word => {
            if let Ok(net) = word.parse() {
                Value::Net(net)
            } else if let Ok(address) = word.parse() {
                Value::Address(address)
            } else if let Ok(port) = word.parse() {
                Value::Port(port)
            } else {
                let ports = word
                    .split_once('-')
                    .and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
                ports.map_or_else(
                    || Value::Interface(word.to_string()),
                    |(low, high)| Value::Ports(low, high),
                )
            }
        }
    };
    Element {
        key: words.iter().map(value).collect(),
        verdict: None,
    }
}

/// Sets of every kind with elements for each.
pub(super) fn sets() -> Vec<(SetSpec, Vec<Element>)> {
    use KeyType::*;
    let spec = |name: &str, key: &[KeyType], interval| SetSpec {
        name: name.into(),
        key: key.to_vec(),
        interval,
        verdicts: false,
    };
    let v4 = Address(IpFamily::V4);
    let v6 = Address(IpFamily::V6);
    let of = |lines: &[&[&str]]| lines.iter().map(|words| element(words)).collect::<Vec<_>>();
    let with = |words: &[&str], verdict| Element {
        verdict: Some(verdict),
        ..element(words)
    };
    let mut nets_to_chains = spec("net-map", &[v4], true);
    nets_to_chains.verdicts = true;
    let mut several_to_chains = spec("net-port-map", &[v4, Protocol, Port], true);
    several_to_chains.verdicts = true;
    let mut pairs_to_chains = spec("pair-map", &[Interface, v4], false);
    pairs_to_chains.verdicts = true;
    vec![
        (
            spec("v4", &[v4], false),
            of(&[&["10.0.0.1"], &["0.0.0.0"], &["255.255.255.255"]]),
        ),
        (spec("v6", &[v6], false), of(&[&["2001:db8::1"], &["::"]])),
        (
            spec("devices", &[Interface], false),
            of(&[&["cali1"], &["cali0123456789a"]]),
        ),
        (spec("protocols", &[Protocol], false), of(&[&["tcp"], &["udp"]])),
        (spec("ports", &[Port], false), of(&[&["0"], &["80"], &["65535"]])),
        (
            spec("nets", &[v4], true),
            of(&[
                &["0.0.0.0/8"],
                &["10.0.0.0/24"],
                &["10.0.1.0/24"],
                &["10.0.2.7/32"],
                &["10.0.2.8"],
                &["192.168.0.0/16"],
                &["255.255.255.254/31"],
            ]),
        ),
        (
            spec("nets6", &[v6], true),
            of(&[
                &["::/8"],
                &["2001:db8::/32"],
                &["2001:db9::1"],
                &["fe80::/10"],
                &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"],
            ]),
        ),
        (
            spec("port-ranges", &[Port], true),
            of(&[&["0-79"], &["80"], &["81-443"], &["8080-65535"]]),
        ),
        (spec("some-devices", &[Interface], true), of(&[&["cali1"], &["cali2"]])),
        (
            spec("v4-port", &[v4, Protocol, Port], false),
            of(&[
                &["10.0.0.1", "tcp", "80"],
                &["10.0.0.1", "udp", "80"],
                &["10.0.0.2", "tcp", "443"],
            ]),
        ),
        (
            spec("device-v6", &[Interface, v6], false),
            of(&[
                &["cali1", "2001:db8::1"],
                &["cali1", "fe80::1"],
                &["cali2", "2001:db8::1"],
            ]),
        ),
        (
            spec("net-ports", &[v4, Protocol, Port], true),
            of(&[
                &["10.0.0.0/24", "tcp", "80"],
                &["10.0.1.0/24", "tcp", "80-90"],
                &["10.0.1.0/24", "udp", "0-65535"],
                &["10.1.0.7", "tcp", "443"],
            ]),
        ),
        (
            spec("net6-ports", &[v6, Protocol, Port], true),
            of(&[&["2001:db8::/64", "tcp", "80"], &["2001:db8:1::1", "udp", "53-54"]]),
        ),
        (
            map(),
            vec![
                with(&["cali1"], ElementVerdict::Jump("plain".into())),
                with(&["cali2"], ElementVerdict::Goto("other".into())),
                with(&["eth0"], ElementVerdict::Accept),
                with(&["eth1"], ElementVerdict::Drop),
            ],
        ),
        (
            nets_to_chains,
            vec![
                with(&["10.0.0.0/24"], ElementVerdict::Goto("plain".into())),
                with(&["10.0.1.0/24"], ElementVerdict::Accept),
            ],
        ),
        (
            several_to_chains,
            vec![
                with(&["10.0.0.0/24", "tcp", "1-1024"], ElementVerdict::Jump("plain".into())),
                with(&["10.0.0.0/24", "udp", "53"], ElementVerdict::Drop),
            ],
        ),
        (
            pairs_to_chains,
            vec![
                with(&["cali1", "10.0.0.1"], ElementVerdict::Goto("other".into())),
                with(&["cali2", "10.0.0.2"], ElementVerdict::Drop),
            ],
        ),
    ]
}

fn with_match(part: Match) -> Rule {
    Rule {
        matches: vec![part],
        ..Rule::default()
    }
}

/// Rules with every match, statement and verdict, alone and together, for a chain that nothing calls.
pub(super) fn rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = matches().into_iter().map(with_match).collect();
    rules.extend(statements().into_iter().map(|action| Rule {
        actions: vec![action],
        ..Rule::default()
    }));
    rules.extend(verdicts().into_iter().map(|verdict| Rule {
        verdict: Some(verdict),
        ..Rule::default()
    }));
    // All together, in an order of its own, with what a rule may end in.
    let counted = [vec![Statement::Counter], statements()].concat();
    for some in matches().chunks(16) {
        rules.push(Rule {
            matches: some.to_vec(),
            actions: statements(),
            verdict: Some(Verdict::Drop),
            comment: None,
        });
        rules.push(Rule {
            matches: some.iter().rev().cloned().collect(),
            actions: [counted.clone(), vec![Statement::Reject]].concat(),
            verdict: None,
            comment: None,
        });
    }
    rules.push(Rule {
        actions: counted,
        verdict: Some(Verdict::Accept),
        ..Rule::default()
    });
    rules.push(Rule::default());
    // What looks alike must not be taken for each other.
    let v4 = Match::Family(IpFamily::V4);
    let net = |end| Match::Net {
        end,
        negate: false,
        net: "10.0.0.0/8".parse().expect("a prefix"),
    };
    for alike in [
        vec![v4.clone(), v4.clone()],
        vec![v4.clone(), net(End::Source)],
        vec![net(End::Source), net(End::Destination)],
        vec![net(End::Source), v4.clone(), net(End::Destination)],
        vec![net(End::Source), v4.clone()],
        vec![protocol(6, false), protocol(6, true), protocol(6, false)],
        vec![protocol(6, false)],
    ] {
        rules.push(Rule {
            matches: alike.clone(),
            ..Rule::default()
        });
        rules.push(Rule {
            matches: alike,
            actions: vec![Statement::Reject],
            ..Rule::default()
        });
    }
    rules
}

fn protocol(number: u8, negate: bool) -> Match {
    Match::Protocol { negate, number }
}

fn matches() -> Vec<Match> {
    let mut matches = Vec::new();
    for negate in [false, true] {
        for (way, name) in [
            (Way::In, "cali1"),
            (Way::Out, "eth0"),
            (Way::In, "cali*"),
            (Way::Out, "cali01234567890"),
        ] {
            matches.push(Match::Interface {
                way,
                negate,
                name: name.into(),
            });
        }
        matches.push(protocol(6, negate));
        matches.push(protocol(132, negate));
        for net in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.0.0.0/9",
            "192.168.7.0/26",
            "10.0.0.1/32",
            "::/0",
            "2001:db8::/33",
            "fe80::1/128",
        ] {
            for end in [End::Source, End::Destination] {
                matches.push(Match::Net {
                    end,
                    negate,
                    net: net.parse().expect("a prefix"),
                });
            }
        }
        for ranges in [
            &[(80, 80)][..],
            &[(1024, 65535)],
            &[(0, 0)],
            &[(80, 80), (443, 443)],
            &[(0, 79), (80, 80), (90, 99), (65535, 65535)],
            &[(1, 2), (3, 65535)],
        ] {
            for end in [End::Source, End::Destination] {
                matches.push(Match::Port {
                    end,
                    negate,
                    ranges: ranges.to_vec(),
                });
            }
        }
        for code in [None, Some(0), Some(4)] {
            matches.push(Match::Icmp { negate, kind: 8, code });
        }
        for (key, set) in lookups() {
            matches.push(Match::InSet {
                key,
                negate,
                set: set.into(),
            });
        }
        for (mask, value) in [(u32::MAX, 7), (0xff00, 0x1200), (0x10, 0)] {
            matches.push(Match::Mark { mask, value, negate });
        }
    }
    matches.extend([Match::NoInterface(Way::In), Match::NoInterface(Way::Out)]);
    matches.extend(IpFamily::BOTH.map(Match::Family));
    let states = [
        CtState::New,
        CtState::Established,
        CtState::Related,
        CtState::Invalid,
        CtState::Untracked,
    ];
    matches.extend(states.map(|state| Match::Conntrack([state].into())));
    matches.push(Match::Conntrack(states.into()));
    matches.push(Match::Conntrack([CtState::Established, CtState::Related].into()));
    matches.extend([
        Match::Translated,
        Match::Ended,
        Match::DestinationIsLocal,
        Match::SourceIsLocal,
    ]);
    matches
}

fn lookups() -> Vec<(Vec<Field>, &'static str)> {
    use Field::*;
    let v4 = |end| Address(IpFamily::V4, end);
    let v6 = |end| Address(IpFamily::V6, end);
    vec![
        (vec![v4(End::Source)], "v4"),
        (vec![v4(End::Destination)], "nets"),
        (vec![v6(End::Source)], "v6"),
        (vec![v6(End::Destination)], "nets6"),
        (vec![Interface(Way::In)], "devices"),
        (vec![Interface(Way::Out)], "some-devices"),
        (vec![Protocol], "protocols"),
        (vec![Port(End::Source)], "ports"),
        (vec![Port(End::Destination)], "port-ranges"),
        (vec![v4(End::Destination), Protocol, Port(End::Destination)], "v4-port"),
        (vec![v4(End::Source), Protocol, Port(End::Destination)], "net-ports"),
        (vec![v6(End::Source), Protocol, Port(End::Source)], "net6-ports"),
        (vec![Interface(Way::In), v6(End::Source)], "device-v6"),
    ]
}

fn statements() -> Vec<Statement> {
    vec![
        Statement::Counter,
        Statement::Limit {
            packets: 9999,
            per: Per::Day,
            burst: 9999,
        },
        Statement::Limit {
            packets: 1,
            per: Per::Second,
            burst: 1,
        },
        Statement::Log {
            prefix: "dropped: ".into(),
        },
        Statement::Nflog {
            group: 7,
            prefix: "tier default".into(),
            snaplen: 0,
        },
        Statement::Nflog {
            group: 65535,
            prefix: "x".repeat(127),
            snaplen: 80,
        },
        Statement::SetMark {
            mask: u32::MAX,
            value: 0x1234_5678,
        },
        Statement::SetMark {
            mask: 0xff00,
            value: 0x1200,
        },
        Statement::SetMark { mask: 0x10, value: 0 },
        Statement::Notrack,
        Statement::Over(Threshold::Packets {
            per_second: 10_000,
            burst: 5,
        }),
        Statement::Over(Threshold::Flows(u32::MAX)),
        Statement::SetDscp {
            family: IpFamily::V4,
            value: 46,
        },
        Statement::SetDscp {
            family: IpFamily::V6,
            value: 63,
        },
        Statement::SetDscp {
            family: IpFamily::V6,
            value: 0,
        },
    ]
}

fn verdicts() -> Vec<Verdict> {
    let map = |fields: &[Field], name: &str| Verdict::Map {
        key: fields.to_vec(),
        map: name.into(),
    };
    let v4 = Field::Address(IpFamily::V4, End::Source);
    vec![
        Verdict::Accept,
        Verdict::Drop,
        Verdict::Return,
        Verdict::Jump("other".into()),
        Verdict::Goto("other".into()),
        map(&[Field::Interface(Way::In)], "map"),
        map(&[v4], "net-map"),
        map(&[v4, Field::Protocol, Field::Port(End::Source)], "net-port-map"),
        map(&[Field::Interface(Way::Out), v4], "pair-map"),
    ]
}

/// Rules for a nat chain in postrouting.
pub(super) fn nat_rules() -> Vec<Rule> {
    let mut actions = Vec::new();
    for ports in [None, Some((1024, 2048)), Some((7, 7))] {
        for random_fully in [false, true] {
            actions.push(Statement::Masquerade { ports, random_fully });
            for address in ["192.0.2.1", "2001:db8::1"] {
                actions.push(Statement::SourceNat {
                    address: address.parse().expect("an address"),
                    ports,
                    random_fully,
                });
            }
        }
    }
    actions.into_iter().map(ending_in).collect()
}

/// Rules for a nat chain in prerouting.
pub(super) fn destination_nat_rules() -> Vec<Rule> {
    let mut actions = Vec::new();
    for port in [None, Some(8080)] {
        for address in ["192.0.2.1", "2001:db8::1"] {
            actions.push(Statement::DestinationNat {
                address: address.parse().expect("an address"),
                port,
            });
        }
    }
    actions.into_iter().map(ending_in).collect()
}

fn ending_in(action: Statement) -> Rule {
    Rule {
        matches: vec![protocol(6, false)],
        actions: vec![Statement::Counter, action],
        verdict: None,
        comment: Some("translates".into()),
    }
}

/// Changes that make no sense by themselves.
pub(super) fn nonsense() -> Vec<Change> {
    let ports = |ranges: &[(u16, u16)]| Match::Port {
        end: End::Source,
        negate: false,
        ranges: ranges.to_vec(),
    };
    let device = |name: &str| Match::Interface {
        way: Way::In,
        negate: false,
        name: name.into(),
    };
    let bad_matches = [
        ports(&[]),
        ports(&[(2, 1)]),
        ports(&[(1, 5), (5, 6)]),
        ports(&[(5, 6), (1, 2)]),
        device(""),
        device("*"),
        device("a-name-of-16-byt"),
        Match::Mark {
            mask: 1,
            value: 2,
            negate: false,
        },
        Match::Net {
            end: End::Source,
            negate: false,
            net: "10.0.0.1/8".parse().expect("a prefix"),
        },
        Match::InSet {
            key: vec![],
            negate: false,
            set: "v4".into(),
        },
    ];
    let bad_actions = [
        vec![Statement::Log {
            prefix: "x".repeat(128),
        }],
        vec![Statement::Limit {
            packets: 0,
            per: Per::Hour,
            burst: 1,
        }],
        vec![Statement::SetMark { mask: 1, value: 2 }],
        vec![Statement::Over(Threshold::Packets {
            per_second: 0,
            burst: 1,
        })],
        vec![Statement::Over(Threshold::Flows(0))],
        vec![Statement::SetDscp {
            family: IpFamily::V4,
            value: 64,
        }],
        vec![Statement::Reject, Statement::Counter],
        vec![Statement::Reject, Statement::Reject],
        vec![Statement::Masquerade {
            ports: Some((2, 1)),
            random_fully: false,
        }],
    ];
    let mut rules: Vec<Rule> = bad_matches.into_iter().map(with_match).collect();
    rules.extend(bad_actions.map(|actions| Rule {
        actions,
        ..Rule::default()
    }));
    rules.push(Rule {
        actions: vec![Statement::Reject],
        verdict: Some(Verdict::Accept),
        ..Rule::default()
    });
    rules.push(Rule {
        comment: Some("x".repeat(129)),
        ..Rule::default()
    });
    let mut changes: Vec<Change> = rules.into_iter().map(|body| rule("a", body)).collect();
    changes.extend([
        chain(""),
        chain(&"x".repeat(128)),
        chain("with\0zero"),
        Change::AddSet(SetSpec { key: vec![], ..map() }),
        Change::AddSet(SetSpec {
            key: vec![KeyType::Interface; 5],
            ..map()
        }),
        Change::AddSet(SetSpec {
            key: vec![KeyType::Port; 6],
            ..map()
        }),
        Change::AddSet(SetSpec {
            name: "__set0".into(),
            ..map()
        }),
        add("v4", vec![element(&["10.0.0.1/8"])]),
        add(
            "v4",
            vec![Element {
                key: [].into(),
                verdict: None,
            }],
        ),
        add("devices", vec![element(&["a-name-of-16-byt"])]),
    ]);
    changes
}
