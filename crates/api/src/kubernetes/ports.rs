//! Ports that a rule lists, by protocol: one rule for each protocol has all of them.

use std::collections::BTreeMap;

use super::{ClusterPort, ClusterPorts, ClusterProtocol, IntOrText, K8sPort};
use crate::problem::Problems;
use crate::{Port, Protocol};

/// What a list of ports means.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Ports by the name of their protocol; an empty name is any protocol, no ports are all.
    by_protocol: BTreeMap<String, AllOr>,
}

/// The ports of a protocol.
#[derive(Debug)]
enum AllOr {
    All,
    These(Vec<Port>),
}

impl Ports {
    /// Every port of every protocol.
    fn any() -> Self {
        let mut ports = Self::default();
        ports.by_protocol.insert(String::new(), AllOr::All);
        ports
    }

    /// Those of a NetworkPolicy's rule; `None` if one of them is wrong.
    pub fn of_network_policy(listed: &[K8sPort], problems: &mut Problems) -> Option<Self> {
        if listed.is_empty() {
            return Some(Self::any());
        }
        let mut ports = Self::default();
        let mut is_right = true;
        problems.each("ports", listed, |problems, port| match read(port, problems) {
            Some((protocol, port)) => ports.add(protocol, port),
            None => is_right = false,
        });
        is_right.then_some(ports)
    }

    /// Those of a ClusterNetworkPolicy's rule; `None` if one of them is wrong.
    pub fn of_cluster_network_policy(listed: &[ClusterProtocol], problems: &mut Problems) -> Option<Self> {
        if listed.is_empty() {
            return Some(Self::any());
        }
        let mut ports = Self::default();
        let mut is_right = true;
        problems.each("protocols", listed, |problems, protocol| {
            match read_cluster(protocol, problems) {
                Some((protocol, port)) => ports.add(protocol, port),
                None => is_right = false,
            }
        });
        is_right.then_some(ports)
    }

    /// Adds one port, or all of the protocol. Once all, always all.
    fn add(&mut self, protocol: &str, port: Option<Port>) {
        let held = self.by_protocol.entry(protocol.to_owned());
        let held = held.or_insert_with(|| AllOr::These(Vec::new()));
        match (held, port) {
            (AllOr::All, _) => {}
            (held, None) => *held = AllOr::All,
            (AllOr::These(ports), Some(port)) => ports.push(port),
        }
    }

    /// Protocol (`None`: any) and ports (none: all), in the order of the protocols' names.
    pub fn rules(&self) -> Vec<(Option<Protocol>, Vec<Port>)> {
        let rule = |(protocol, ports): (&String, &AllOr)| {
            let protocol = (!protocol.is_empty()).then(|| Protocol::from_text(protocol));
            let ports = match ports {
                AllOr::All => Vec::new(),
                AllOr::These(ports) => simplified(ports),
            };
            (protocol, ports)
        };
        self.by_protocol.iter().map(rule).collect()
    }
}

/// Protocol and port of a NetworkPolicy's port; no port is all.
fn read<'a>(port: &'a K8sPort, problems: &mut Problems) -> Option<(&'a str, Option<Port>)> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let known = ["TCP", "UDP", "SCTP"].contains(&protocol);
    if !known {
        problems.report("protocol", protocol, "must be TCP, UDP or SCTP");
    }
    let read = match (&port.port, port.end_port) {
        (None, None) => Some(None),
        (None, Some(end)) => {
            problems.report("endPort", end, "must be absent without port");
            None
        }
        (Some(IntOrText::Text(name)), None) if !is_number(name) => {
            let named = name.parse().ok().filter(Port::is_named);
            if named.is_none() {
                problems.report("port", name, "must be a port from 1 to 65535, or a port's name");
            }
            named.map(Some)
        }
        (Some(first), end) => {
            let number = match first {
                IntOrText::Int(number) => Some(*number),
                IntOrText::Text(text) => text.parse().ok(),
            };
            let first_port = number.and_then(port_number);
            if first_port.is_none() {
                let right = match end {
                    None => "must be a port from 1 to 65535, or a port's name",
                    Some(_) => "must be a port from 1 to 65535 with endPort",
                };
                problems.report("port", first, right);
            }
            let last_port = match (end, first_port) {
                (None, first_port) => first_port,
                (Some(end), first_port) => {
                    let last = port_number(end).filter(|last| first_port.is_none_or(|first| first <= *last));
                    if last.is_none() {
                        problems.report("endPort", end, "must be a port from port to 65535");
                    }
                    last
                }
            };
            first_port
                .zip(last_port)
                .map(|(first, last)| Some(Port::Range(first, last)))
        }
    };
    read.filter(|_| known).map(|port| (protocol, port))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// Protocol and port of a ClusterNetworkPolicy's protocol; no port is all. A name is a port of any protocol.
fn read_cluster(protocol: &ClusterProtocol, problems: &mut Problems) -> Option<(&'static str, Option<Port>)> {
    let ClusterProtocol {
        tcp,
        udp,
        sctp,
        destination_named_port: name,
    } = protocol;
    let named = [("TCP", "tcp", tcp), ("UDP", "udp", udp), ("SCTP", "sctp", sctp)];
    let mut set = named
        .iter()
        .filter_map(|(name, field, ports)| Some((*name, *field, ports.as_ref()?)));
    match (set.next(), set.next(), name.as_str()) {
        (Some((name, field, ports)), None, "") => problems.within(field, |problems| {
            let ClusterPorts { destination_port } = ports;
            let Some(port) = destination_port else {
                return Some((name, None));
            };
            problems.within("destinationPort", |problems| {
                read_cluster_port(port, problems).map(|port| (name, Some(port)))
            })
        }),
        (None, None, name) if !name.is_empty() => match name.parse() {
            Ok(port @ Port::Named(_)) => Some(("", Some(port))),
            Ok(Port::Range(..)) | Err(_) => {
                problems.report("destinationNamedPort", name, "must be a port's name");
                None
            }
        },
        // Nothing set is a protocol of another version: not every protocol.
        _ => {
            problems.missing("", "must have one of tcp, udp, sctp and destinationNamedPort");
            None
        }
    }
}

fn read_cluster_port(port: &ClusterPort, problems: &mut Problems) -> Option<Port> {
    match (port.number, &port.range) {
        (Some(number), None) => {
            let port = port_number(number);
            if port.is_none() {
                problems.report("number", number, "must be a port from 1 to 65535");
            }
            port.map(|port| Port::Range(port, port))
        }
        (None, Some(range)) => {
            let ends = port_number(range.start).zip(port_number(range.end));
            let port = ends.filter(|(first, last)| first <= last);
            if port.is_none() {
                let text = format!("{}-{}", range.start, range.end);
                problems.report("range", text, "must be ports from 1 to 65535, start not above end");
            }
            port.map(|(first, last)| Port::Range(first, last))
        }
        (None, None) | (Some(_), Some(_)) => {
            problems.missing("", "must have one of number and range");
            None
        }
    }
}

/// The least ranges that are the same ports; names first.
fn simplified(ports: &[Port]) -> Vec<Port> {
    let mut names: Vec<Port> = Vec::new();
    let mut numbers: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match port {
            Port::Named(_) if names.contains(port) => {}
            Port::Named(_) => names.push(port.clone()),
            Port::Range(first, last) => numbers.push((*first, *last)),
        }
    }
    numbers.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (first, last) in numbers {
        match ranges.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => ranges.push((first, last)),
        }
    }
    names.extend(ranges.into_iter().map(|(first, last)| Port::Range(first, last)));
    names
}
