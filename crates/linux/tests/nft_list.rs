//! What is written over netlink, as `nft` lists it; large transactions; others' tables.

use kernel::IpFamily;
use kernel::nft::*;
use linux::nft::LiveNft;
use testkit::netns::{in_netns, tool, try_tool};

fn table() -> TableName {
    TableName("margay".into())
}

fn apply(kernel: &LiveNft, changes: Vec<Change>) -> Result<(), NftError> {
    kernel.apply_now(&Transaction {
        table: table(),
        changes,
    })
}

fn set(name: &str, key: &[KeyType], interval: bool, verdicts: bool) -> Change {
    Change::AddSet(SetSpec {
        name: name.into(),
        key: key.to_vec(),
        interval,
        verdicts,
    })
}

fn chain(name: &str, base: Option<BaseChain>) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base,
    })
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain {
        kind,
        hook,
        priority,
        drop: false,
    })
}

fn rule(chain: &str, matches: Vec<Match>, actions: Vec<Statement>, verdict: Option<Verdict>, comment: &str) -> Change {
    let comment = (!comment.is_empty()).then(|| comment.to_string());
    Change::AddRule(
        chain.into(),
        Rule {
            matches,
            actions,
            verdict,
            comment,
        },
    )
}

fn element(key: Vec<Value>, verdict: Option<ElementVerdict>) -> Element {
    Element {
        key: key.into_iter().collect(),
        verdict,
    }
}

fn net(text: &str) -> Value {
    Value::Net(text.parse().expect("a prefix"))
}

const V4: KeyType = KeyType::Address(IpFamily::V4);
const V6: KeyType = KeyType::Address(IpFamily::V6);

fn in_set(key: &[Field], set: &str) -> Match {
    Match::InSet {
        key: key.to_vec(),
        negate: false,
        set: set.into(),
    }
}

fn everything() -> Vec<Change> {
    let source4 = Field::Address(IpFamily::V4, End::Source);
    let source6 = Field::Address(IpFamily::V6, End::Source);
    let ports = |ranges: &[(u16, u16)], negate| Match::Port {
        end: End::Destination,
        negate,
        ranges: ranges.to_vec(),
    };
    let tcp = Match::Protocol {
        negate: false,
        number: 6,
    };
    vec![
        set("nets", &[V4], true, false),
        Change::AddElements(
            "nets".into(),
            vec![
                element(vec![net("10.0.0.0/8")], None),
                element(vec![net("255.0.0.0/8")], None),
            ],
        ),
        set("nets6", &[V6], true, false),
        Change::AddElements("nets6".into(), vec![element(vec![net("2001:db8::/32")], None)]),
        set("named", &[V4, KeyType::Protocol, KeyType::Port], false, false),
        Change::AddElements(
            "named".into(),
            vec![element(
                vec![
                    Value::Address([10, 0, 0, 1].into()),
                    Value::Protocol(6),
                    Value::Port(80),
                ],
                None,
            )],
        ),
        set("wide", &[V4, KeyType::Protocol, KeyType::Port], true, false),
        Change::AddElements(
            "wide".into(),
            vec![element(
                vec![net("10.0.0.0/24"), Value::Protocol(17), Value::Ports(1, 9)],
                None,
            )],
        ),
        chain("pod", None),
        set("dispatch", &[KeyType::Interface], false, true),
        Change::AddElements(
            "dispatch".into(),
            vec![
                element(
                    vec![Value::Interface("cali1".into())],
                    Some(ElementVerdict::Goto("pod".into())),
                ),
                element(vec![Value::Interface("cali2".into())], Some(ElementVerdict::Drop)),
            ],
        ),
        chain("filter-forward", base(ChainKind::Filter, Hook::Forward, 0)),
        rule(
            "filter-forward",
            vec![Match::Interface {
                way: Way::In,
                negate: false,
                name: "cali*".into(),
            }],
            vec![Statement::Counter],
            Some(Verdict::Map {
                key: vec![Field::Interface(Way::In)],
                map: "dispatch".into(),
            }),
            "to the pod's chain",
        ),
        rule(
            "filter-forward",
            vec![Match::Conntrack([CtState::Established, CtState::Related].into())],
            vec![],
            Some(Verdict::Accept),
            "",
        ),
        rule(
            "pod",
            vec![
                tcp.clone(),
                ports(&[(80, 80), (443, 445)], false),
                in_set(&[source4], "nets"),
            ],
            vec![],
            Some(Verdict::Accept),
            "policy default/allow-web",
        ),
        rule(
            "pod",
            vec![tcp.clone(), ports(&[(1, 1023)], true)],
            vec![],
            Some(Verdict::Return),
            "",
        ),
        rule(
            "pod",
            vec![in_set(&[source6], "nets6")],
            vec![],
            Some(Verdict::Accept),
            "",
        ),
        rule(
            "pod",
            vec![in_set(
                &[source4, Field::Protocol, Field::Port(End::Destination)],
                "named",
            )],
            vec![],
            None,
            "",
        ),
        rule(
            "pod",
            vec![Match::Net {
                end: End::Destination,
                negate: true,
                net: "192.168.0.0/26".parse().expect("a prefix"),
            }],
            vec![Statement::SetMark {
                mask: 0xff0000,
                value: 0x20000,
            }],
            None,
            "",
        ),
        rule(
            "pod",
            vec![
                Match::Protocol {
                    negate: false,
                    number: 1,
                },
                Match::Icmp {
                    negate: false,
                    kind: 3,
                    code: Some(4),
                },
            ],
            vec![
                Statement::Nflog {
                    group: 1,
                    prefix: "dropped".into(),
                    snaplen: 64,
                },
                Statement::Limit {
                    packets: 10,
                    per: Per::Minute,
                    burst: 7,
                },
                Statement::Log {
                    prefix: "calico: ".into(),
                },
            ],
            Some(Verdict::Drop),
            "",
        ),
        rule(
            "pod",
            vec![Match::DestinationIsLocal, Match::Translated],
            vec![Statement::Reject],
            None,
            "refused",
        ),
        chain("nat-post", base(ChainKind::Nat, Hook::Postrouting, 100)),
        rule(
            "nat-post",
            vec![tcp.clone()],
            vec![Statement::Masquerade {
                ports: Some((1024, 65535)),
                random_fully: true,
            }],
            None,
            "",
        ),
        rule(
            "nat-post",
            vec![],
            vec![Statement::SourceNat {
                address: [192, 0, 2, 1].into(),
                ports: None,
                random_fully: false,
            }],
            None,
            "",
        ),
        chain("nat-pre", base(ChainKind::Nat, Hook::Prerouting, -100)),
        rule(
            "nat-pre",
            vec![Match::Family(IpFamily::V6), tcp],
            vec![Statement::DestinationNat {
                address: "2001:db8::1".parse().expect("an address"),
                port: Some(8080),
            }],
            None,
            "",
        ),
        chain("raw", base(ChainKind::Filter, Hook::Prerouting, -300)),
        rule(
            "raw",
            vec![Match::NoInterface(Way::Out)],
            vec![Statement::Notrack],
            None,
            "",
        ),
    ]
}

#[test]
fn nft_lists_what_was_said() {
    in_netns(|| async {
        let kernel = LiveNft::open().expect("opens");
        apply(&kernel, everything()).expect("applies");
        let listed = tool("nft list table inet margay");
        for line in include_str!("nft_list.txt").lines() {
            assert!(
                listed.lines().any(|there| there.trim() == line.trim()),
                "not listed: {line}\n{listed}"
            );
        }
        assert_eq!(
            listed.lines().count(),
            include_str!("nft_list.txt").lines().count(),
            "{listed}"
        );
        // `nft` itself takes what it lists: nothing in it is only half understood.
        let path = std::env::temp_dir().join(format!("margay-nft-list-{}", std::process::id()));
        std::fs::write(&path, &listed).expect("writes");
        tool("nft flush ruleset");
        let (fine, said) = try_tool(&format!("nft -f {}", path.display()));
        std::fs::remove_file(&path).expect("was there");
        assert!(fine, "{said}\n{listed}");
        assert_eq!(tool("nft list table inet margay"), listed);
    });
}

#[test]
fn what_others_wrote_in_our_table_is_seen_as_strange() {
    in_netns(|| async {
        let kernel = LiveNft::open().expect("opens");
        apply(&kernel, everything()).expect("applies");
        tool("nft add rule inet margay pod ip ttl 7 counter drop comment \"theirs\"");
        tool("nft add set inet margay theirs { type ether_addr ; elements = { 02:00:00:00:00:01 } ; }");
        tool("nft add set inet margay timed { type ipv4_addr ; timeout 1h ; }");
        tool("nft add element inet margay nets { 11.0.0.1-11.0.0.5 }");
        tool("nft add chain inet margay late { type filter hook ingress device lo priority 0 ; }");
        let seen = kernel.read_now(&table()).expect("reads").expect("is there");
        let last = seen.chains[&"pod".into()].rules.last().expect("some rules");
        assert_eq!((&last.rule, last.comment.as_deref()), (&None, Some("theirs")));
        assert_eq!(seen.sets[&"theirs".into()].spec, None);
        assert_eq!(seen.sets[&"theirs".into()].strange, 1);
        assert_eq!(seen.sets[&"timed".into()].spec, None);
        assert_eq!(seen.sets[&"nets".into()].strange, 1);
        assert_eq!(seen.sets[&"nets".into()].elements.len(), 2);
        assert!(seen.chains[&"late".into()].strange);
        let ours = seen.chains[&"pod".into()]
            .rules
            .iter()
            .filter(|rule| rule.rule.is_some())
            .count();
        assert_eq!(ours, 7);
    });
}

#[test]
fn a_foreign_table_of_any_family_is_untouched() {
    in_netns(|| async {
        tool("nft add table ip margay");
        tool("nft add chain ip margay a { type filter hook input priority 0 ; policy drop ; }");
        tool("nft add table inet other");
        tool("nft add set inet other nets { type ipv4_addr ; }");
        let others = || tool("nft list table ip margay") + &tool("nft list table inet other");
        let before = others();
        let kernel = LiveNft::open().expect("opens");
        apply(&kernel, everything()).expect("applies");
        apply(&kernel, vec![Change::DeleteTable]).expect("applies");
        apply(&kernel, everything()).expect("applies");
        assert_eq!(others(), before);
    });
}

#[test]
fn a_hundred_thousand_elements_and_twenty_thousand_rules_go_in_one_transaction() {
    in_netns(|| async {
        let mut kernel = LiveNft::open().expect("opens");
        let address = |number: u32| Value::Address(std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
        let elements: Vec<Element> = (0..100_000).map(|at| element(vec![address(at)], None)).collect();
        let nets: Vec<Element> = (0..20_000)
            .map(|at: u32| {
                let net = ipnet::Ipv4Net::new((0x1400_0000 + at * 128).into(), 26).expect("a prefix");
                element(vec![Value::Net(net.into())], None)
            })
            .collect();
        let mut changes = vec![
            set("many", &[V4], false, false),
            set("nets", &[V4], true, false),
            Change::AddElements("many".into(), elements.clone()),
            Change::AddElements("nets".into(), nets.clone()),
        ];
        for at in 0..2_000 {
            let name = format!("chain-{at}");
            changes.push(chain(&name, None));
            for _ in 0..10 {
                let source = Field::Address(IpFamily::V4, End::Source);
                changes.push(rule(
                    &name,
                    vec![in_set(&[source], "many")],
                    vec![Statement::Counter],
                    Some(Verdict::Accept),
                    "x",
                ));
            }
        }
        let transaction = Transaction {
            table: table(),
            changes,
        };
        kernel.apply(&transaction).await.expect("applies");
        let seen = kernel.read(&table()).await.expect("reads").expect("is there");
        assert_eq!(seen.sets[&"many".into()].elements, elements.iter().cloned().collect());
        assert_eq!(seen.sets[&"nets".into()].elements, nets.iter().cloned().collect());
        assert_eq!(
            seen.chains.values().map(|chain| chain.rules.len()).sum::<usize>(),
            20_000
        );

        // Half of them are wrong: the first is named, however many answers there are.
        let mut wrong = vec![Change::DeleteElements("many".into(), elements[..50_000].to_vec())];
        wrong.extend((0..50_000).map(|_| Change::FlushChain("nowhere".into())));
        wrong.push(Change::DeleteElements("many".into(), elements[50_000..].to_vec()));
        let wrong = Transaction {
            table: table(),
            changes: wrong,
        };
        match kernel.apply(&wrong).await {
            Err(NftError::Refused {
                change: Some(1),
                cause: Cause::Absent,
                ..
            }) => {}
            other => panic!("{other:?}"),
        }
        let after = kernel.read(&table()).await.expect("reads").expect("is there");
        assert_eq!(after, seen);
    });
}
