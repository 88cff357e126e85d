//! docs/packet-filter.md shows what is really rendered: its blocks are compared with the example state below.
//!
//! With `MARGAY_BLESS=1` the page's blocks are written anew.

use std::sync::Arc;

use api::{Action, QosControls};
use kernel::IfName;
use policy::*;

use super::build::*;
use crate::filter::{Cluster, FloatingIp, HostPort, Nat, NatPool, Settings, Table, Tunnel};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/packet-filter.md");

#[test]
fn the_page_shows_what_is_rendered() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let fresh = with_fresh_blocks(&page, &example());
    if std::env::var_os("MARGAY_BLESS").is_some() {
        std::fs::write(PAGE, &fresh).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert_eq!(page, fresh, "run the test with MARGAY_BLESS=1 and look at what changed");
}

#[test]
fn the_page_names_every_chain_that_is_always_there() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let table = filter(&PolicyState::default()).table();
    let unnamed: Vec<_> = table.chains.keys().filter(|chain| !page.contains(&chain.0)).collect();
    assert_eq!(unnamed, Vec::<&kernel::nft::ChainName>::new());
}

/// Blocks that begin with a chain or set of the table, as they should be.
fn with_fresh_blocks(page: &str, table: &Table) -> String {
    let mut parts = page.split("```");
    let mut fresh = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        fresh.push_str("```");
        let is_block = index % 2 == 0;
        match part.strip_prefix("nft\n").filter(|_| is_block) {
            Some(block) => fresh.push_str(&format!("nft\n{}", fresh_block(block, table))),
            None => fresh.push_str(part),
        }
    }
    fresh
}

fn fresh_block(block: &str, table: &Table) -> String {
    let heads = block
        .lines()
        .filter(|line| line.starts_with("chain ") || line.starts_with("set ") || line.starts_with("map "));
    let shown = heads.map(|line| {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match kind {
            "chain" => chain(table, name),
            _ => set(table, kind, name),
        }
    });
    shown.collect::<Vec<_>>().join("\n")
}

fn chain(table: &Table, name: &str) -> String {
    let chain = table
        .chains
        .get(&name.into())
        .unwrap_or_else(|| panic!("the page shows {name}, which there is not"));
    let base = chain.base.iter().map(|base| format!("    {base}\n"));
    let rules = chain.rules.iter().map(|rule| format!("    {rule}\n"));
    format!("chain {name} {{\n{}}}\n", base.chain(rules).collect::<String>())
}

fn set(table: &Table, kind: &str, name: &str) -> String {
    let set = table
        .sets
        .get(&name.into())
        .unwrap_or_else(|| panic!("the page shows {name}, which there is not"));
    let elements: Vec<String> = set.elements.iter().map(|element| element.to_string()).collect();
    let elements = elements.join(",\n                 ");
    format!(
        "{kind} {name} {{\n    {}\n    elements = {{ {elements} }}\n}}\n",
        set.spec
    )
}

/// Two pods, `web` behind cali1 and `db` behind cali2, on a node whose device eth0 is a host endpoint.
fn example() -> Table {
    let mut state = PolicyState::default();
    let namespace = Profile {
        ingress: [rule(Action::Allow)].into(),
        egress: [rule(Action::Allow)].into(),
        missing: false,
    };
    state.profiles.insert("kns.default".into(), Arc::new(namespace));
    state.sets.insert(
        super::build::set("_5rJ3b"),
        nets(&["192.168.1.10", "192.168.2.7", "fd00:1::a"]),
    );
    state
        .sets
        .insert(super::build::set("Kx81_0"), nets(&["198.51.100.0/24", "203.0.113.7"]));

    let threats = Rule {
        source: Side {
            sets: vec![super::build::set("Kx81_0")],
            ..Side::default()
        },
        ..rule(Action::Deny)
    };
    let threats = Policy {
        tier: "security".into(),
        ..policy(vec![threats, rule(Action::Pass)], vec![])
    };
    put_policy(&mut state, gnp("threats"), threats);
    let web = Rule {
        protocol: Some(6),
        source: Side {
            sets: vec![super::build::set("_5rJ3b")],
            ..Side::default()
        },
        destination: Side {
            ports: vec![(5432, 5432)],
            ..Side::default()
        },
        ..rule(Action::Allow)
    };
    put_policy(&mut state, np("db"), policy(vec![web], vec![]));
    let admins = Rule {
        source: Side {
            nets: vec![net("192.0.2.64/27"), net("198.51.100.9/32")],
            ..Side::default()
        },
        ..rule(Action::Allow)
    };
    put_policy(&mut state, gnp("hosts"), policy(vec![admins], vec![]));
    let no_telnet = Rule {
        protocol: Some(6),
        destination: Side {
            ports: vec![(23, 23)],
            ..Side::default()
        },
        ..rule(Action::Deny)
    };
    put_policy(&mut state, gnp("no-telnet"), policy(vec![no_telnet], vec![]));

    let pod = |device: &str, v4: &str, v6: &str| Endpoint {
        profiles: vec!["kns.default".into()],
        ..pod(device, &[v4, v6])
    };
    state
        .endpoints
        .insert(wep("cali1"), Arc::new(pod("cali1", "192.168.1.10", "fd00:1::a")));
    let mut db = pod("cali2", "192.168.1.11", "fd00:1::b");
    db.ingress.tiers = [
        tier("security", &[gnp("threats")], TierEnd::Deny).tiers,
        tier("default", &[np("db")], TierEnd::Deny).tiers,
    ]
    .concat()
    .into();
    state.endpoints.insert(wep("cali2"), Arc::new(db));
    let mut host = endpoint(Interface::Named("eth0".into()));
    host.ingress = tier("default", &[gnp("hosts")], TierEnd::Deny);
    host.pre_dnat = tier("default", &[gnp("no-telnet")], TierEnd::Pass);
    host.profiles = vec!["kns.default".into()];
    state.endpoints.insert(hep("n1-eth0"), Arc::new(host));

    let mut filter = filter(&state);
    filter.settings(Settings {
        floating_ips: true,
        ..Settings::default()
    });
    filter.cluster(Cluster {
        pools: vec![NatPool {
            net: net("192.168.0.0/16"),
            nat_outgoing: true,
        }],
        nodes: [ip("192.0.2.1"), ip("192.0.2.2")].into(),
        tunnels: vec![Tunnel {
            device: IfName::from("tunl0"),
            address: Some(ip("192.168.1.1")),
        }],
        ipip: true,
        vxlan: false,
        services: vec![net("10.96.0.0/12")],
    });
    filter.nat(Nat {
        floating_ips: vec![FloatingIp {
            external: ip("192.0.2.200"),
            pod: ip("192.168.1.10"),
        }],
        host_ports: vec![HostPort {
            host: None,
            protocol: 6,
            port: 8080,
            pod: ip("192.168.1.10"),
            pod_port: 80,
        }],
    });
    let controls = QosControls {
        egress_packet_rate: 1_000,
        ingress_max_connections: 1_000,
        dscp: api::Dscp::new(46),
        ..QosControls::default()
    };
    filter.limits([("cali1".to_owned(), controls)].into());
    filter.table()
}
