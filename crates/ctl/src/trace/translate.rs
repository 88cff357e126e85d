//! Destinations that are translated on the way: what the agents' own rules do is known from the datastore; what others do
//! (service proxies), a node's conntrack tells while packets are watched.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use agent::watch::translate::Translation;
use policy::evaluate::Packet;
use serde::Serialize;

use super::passage::asked;
use crate::why::place::{Place, node_addresses};
use crate::why::question::Question;
use crate::why::world::World;

/// A destination that becomes another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Translated {
    /// The one that the sender sees.
    #[serde(serialize_with = "shown")]
    pub from: SocketAddr,
    /// The one that answers.
    #[serde(serialize_with = "shown")]
    pub to: SocketAddr,
    /// Where.
    pub node: String,
    /// Who does it, or knows it: `host port of pod shop/web`, `conntrack`.
    pub by: String,
}

/// Port 0 stands for none.
fn shown<S: serde::Serializer>(end: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*end))
}

fn text(end: SocketAddr) -> String {
    match end.port() {
        0 => end.ip().to_string(),
        _ => end.to_string(),
    }
}

impl fmt::Display for Translated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} becomes {} on node {}: {}",
            text(self.from),
            text(self.to),
            self.node,
            self.by
        )
    }
}

impl From<Translation> for Translated {
    fn from(told: Translation) -> Self {
        let source = match told.source == told.source_behind {
            true => String::new(),
            false => format!("; its source {} becomes {}", told.source, told.source_behind),
        };
        Self {
            from: told.from,
            to: told.to,
            node: told.node,
            by: format!("conntrack{source}"),
        }
    }
}

/// What our own rules make of a destination: host ports and floating IPs of pods.
pub fn by_our_rules(world: &World, packet: &Packet) -> Vec<Translated> {
    let mut found = Vec::new();
    let destination = packet.destination;
    for (key, endpoint) in world.endpoints() {
        let spec = &endpoint.spec;
        let pod = Place::pod(key, endpoint).name;
        for nat in spec.ip_nats.iter().filter(|nat| nat.external_ip == destination) {
            found.push(Translated {
                from: asked(packet),
                to: SocketAddr::new(nat.internal_ip, packet.destination_port.unwrap_or_default()),
                node: spec.node.clone(),
                by: format!("floating IP of {pod}"),
            });
        }
        let is_here = |host_ip: Option<IpAddr>| match host_ip.filter(|address| !address.is_unspecified()) {
            Some(address) => address == destination,
            None => node_addresses(world, &spec.node).contains(&destination),
        };
        let ports = spec.ports.iter().filter(|port| {
            packet.destination_port.is_some()
                && port.host_port == packet.destination_port
                && port.protocol.number() == Some(packet.protocol)
                && is_here(port.host_ip)
        });
        for port in ports {
            let addresses = spec.ip_networks.iter().map(ipnet::IpNet::addr);
            let same_family = addresses.filter(|address| address.is_ipv6() == destination.is_ipv6());
            found.extend(same_family.take(1).map(|address| Translated {
                from: asked(packet),
                to: SocketAddr::new(address, port.port),
                node: spec.node.clone(),
                by: format!("host port of {pod}"),
            }));
        }
    }
    found
}

/// The same question about packets to another destination.
pub fn translated(world: &World, question: &Question, to: SocketAddr) -> Question {
    Question {
        to: Place::at(world, to.ip()),
        packet: Packet {
            destination: to.ip(),
            destination_port: question.packet.destination_port.map(|_| to.port()),
            ..question.packet.clone()
        },
        ..question.clone()
    }
}
