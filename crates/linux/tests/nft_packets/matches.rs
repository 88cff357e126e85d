//! Every match, beside the packets that it is true for.

use std::collections::BTreeSet;

use kernel::IpFamily;
use kernel::nft::*;

use super::net::*;

pub fn cases() -> Vec<(Vec<Match>, Vec<Kind>)> {
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

pub fn sets() -> Vec<Change> {
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
