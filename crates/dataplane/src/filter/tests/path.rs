//! Each piece of the packet's way: what a packet meets, and what the rules look like.

use std::sync::Arc;

use api::Action;
use kernel::IfName;
use kernel::nft::CtState;
use policy::*;

use super::build::*;
use crate::LocalEndpoint;
use crate::filter::interpret::{Decision, Packet, journey};
use crate::filter::{
    Cluster, DenyAction, Failsafe, Filter, FloatingIp, HostPort, Nat, NatExclusions, NatPool, ServiceLoop, Settings,
    ToHost, Tunnel,
};

mod hosts;
mod pods;
mod rules;
mod translation;

const ACCEPTED: Decision = Decision::Accepted;
const DROPPED: Decision = Decision::Dropped;

/// Two pods that may do everything, `cali1` with 10.0.0.1 and fd00::1, `cali2` with 10.0.0.2 and fd00::2.
pub fn open_pods() -> PolicyState {
    let mut state = PolicyState::default();
    let open = Profile {
        ingress: [rule(Action::Allow)].into(),
        egress: [rule(Action::Allow)].into(),
        missing: false,
    };
    state.profiles.insert("open".into(), Arc::new(open));
    for (device, v4, v6) in [("cali1", "10.0.0.1", "fd00::1"), ("cali2", "10.0.0.2", "fd00::2")] {
        let pod = Endpoint {
            profiles: vec!["open".into()],
            ..pod(device, &[v4, v6])
        };
        state.endpoints.insert(wep(device), Arc::new(pod));
    }
    state
}

fn udp(mut packet: Packet, source: u16, destination: u16) -> Packet {
    packet.protocol = 17;
    packet.ports = Some((source, destination));
    packet
}

fn icmp_v6(mut packet: Packet, kind: u8) -> Packet {
    packet.protocol = 58;
    packet.ports = None;
    packet.icmp = Some((kind, 0));
    packet
}

/// The packet's end, and the comment of the rule that decided.
fn check(filter: &mut Filter, packet: &Packet, decision: Decision, why: &str) {
    let outcome = journey(&filter.table(), packet);
    assert_eq!(outcome.decision, decision, "{packet:?}\n{}", outcome.path.join("\n"));
    let last = outcome.path.last().cloned().unwrap_or_default();
    assert!(last.contains(why), "{last} does not say {why:?}");
}

/// The rules of a chain, one a line.
fn chain(filter: &mut Filter, name: &str, expected: &[&str]) {
    let table = filter.table();
    let chain = &table
        .chains
        .get(&name.into())
        .unwrap_or_else(|| panic!("no chain {name}"));
    let rules: Vec<String> = chain.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, expected, "{name}");
}

/// `eth0` is a host endpoint that a policy lets nobody but 192.0.2.5 in.
fn guarded_host() -> PolicyState {
    let mut state = open_pods();
    let friend = Rule {
        source: Side {
            nets: vec![net("192.0.2.5/32")],
            ..Side::default()
        },
        ..rule(Action::Allow)
    };
    put_policy(&mut state, gnp("guard"), policy(vec![friend], vec![]));
    let mut host = endpoint(Interface::Named("eth0".into()));
    host.ingress = tier("default", &[gnp("guard")], TierEnd::Deny);
    host.egress = tier("default", &[gnp("guard")], TierEnd::Deny);
    state.endpoints.insert(hep("host"), Arc::new(host));
    state
}
