//! Copies of packets from many devices, put together to the passage of one packet.
//!
//! A packet is known again by what no hop changes: its destination, identification and what the protocol numbers it by. Its
//! source may be translated, its TTL counts down, checksums may be filled in late.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::watch::{Sighting, bytes};
use policy::evaluate::Packet;
use serde::Serialize;

use super::hop::Point;
use crate::packet;

/// What makes a packet itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    destination: IpAddr,
    id: u16,
    rest: Vec<u8>,
}

/// A packet's headers, as far as they are compared.
struct Head {
    source: IpAddr,
    protocol: u8,
    port: Option<u16>,
    icmp: Option<(u8, u8)>,
    mark: Mark,
}

/// One packet, seen at several devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    mark: Mark,
    /// It had the source that is asked about, somewhere.
    pub is_ours: bool,
    /// Where, each in the order in which it was told.
    pub seen: Vec<Sighting>,
}

/// A passage, for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownPassage {
    /// It was seen at the last device of its way.
    pub arrived: bool,
    /// Where it was seen.
    pub seen: Vec<ShownSighting>,
    /// Devices where it was not seen, though it should have been.
    pub missed: Vec<String>,
}

/// A sighting, for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownSighting {
    /// Milliseconds since the first sighting, by each node's own clock.
    pub after: f64,
    /// The node.
    pub node: String,
    /// The pod that the device is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The device.
    pub device: String,
    /// Which way.
    pub direction: &'static str,
    /// The packet there, a line for each header.
    pub packet: Vec<String>,
}

/// All passages of a flow.
pub struct Passages<'a> {
    flow: &'a Packet,
    points: &'a [Point],
    has_end: bool,
    all: Vec<Passage>,
}

impl<'a> Passages<'a> {
    /// Of packets like this one, over these devices. `has_end`: a packet that is seen at the last one has arrived.
    pub fn new(flow: &'a Packet, points: &'a [Point], has_end: bool) -> Self {
        Self {
            flow,
            points,
            has_end,
            all: Vec::new(),
        }
    }

    /// Adds a sighting; it belongs to the passage that is answered. `None`: it is not of this flow.
    pub fn add(&mut self, sighting: Sighting) -> Option<usize> {
        let head = head(&bytes(&sighting.head)?)?;
        let flow = self.flow;
        let is_it = head.protocol == flow.protocol
            && head.mark.destination == flow.destination
            && (flow.destination_port.is_none() || head.port == flow.destination_port)
            && (flow.icmp.is_none() || head.icmp == flow.icmp);
        if !is_it {
            return None;
        }
        let index = match self.all.iter().position(|passage| passage.mark == head.mark) {
            Some(index) => index,
            None => {
                self.all.push(Passage {
                    mark: head.mark,
                    is_ours: false,
                    seen: Vec::new(),
                });
                self.all.len() - 1
            }
        };
        let passage = self.all.get_mut(index)?;
        passage.is_ours |= head.source == flow.source;
        passage.seen.push(sighting);
        Some(index)
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&Passage> {
        self.all.get(index)
    }

    /// Whether one was seen at the last device.
    pub fn has_arrived(&self, index: usize) -> bool {
        let (Some(passage), Some(last)) = (self.get(index), self.points.last()) else {
            return false;
        };
        self.has_end && passage.is_ours && passage.seen.iter().any(|sighting| is_at(sighting, last))
    }

    /// Whether one was seen wherever it must be.
    pub fn is_complete(&self, index: usize) -> bool {
        self.has_arrived(index) && self.get(index).is_some_and(|passage| self.missed(passage).is_empty())
    }

    /// The one that came farthest; `None`: none was seen.
    pub fn farthest(&self) -> Option<usize> {
        let ours = (0..self.all.len()).filter(|index| self.all[*index].is_ours);
        ours.max_by_key(|index| {
            let seen = &self.all[*index].seen;
            seen.iter().filter_map(|sighting| self.place(sighting)).max()
        })
    }

    /// Where it must have been seen and was not.
    fn missed(&self, passage: &Passage) -> Vec<&Point> {
        let not_seen = |point: &&Point| point.always && !passage.seen.iter().any(|sighting| is_at(sighting, point));
        self.points.iter().filter(not_seen).collect()
    }

    /// Which point it is.
    fn place(&self, sighting: &Sighting) -> Option<usize> {
        self.points.iter().position(|point| is_at(sighting, point))
    }

    /// A passage as it is shown: in the packet's order, and behind a node's devices those where nobody expected it.
    pub fn shown(&self, index: usize) -> Option<ShownPassage> {
        let passage = self.get(index)?;
        let node = |sighting: &Sighting| {
            let same = |point: &Point| point.node == sighting.node;
            self.points.iter().position(same).unwrap_or(usize::MAX)
        };
        let mut seen: Vec<&Sighting> = passage.seen.iter().collect();
        // Times come last: the kernel begins to stamp packets only some moments after somebody wants it, and until then they
        // have the time at which they were read.
        seen.sort_by_key(|sighting| (node(sighting), self.place(sighting).unwrap_or(usize::MAX), sighting.at));
        let start = seen.first().map(|first| first.at).unwrap_or_default();
        let seen = seen.into_iter().map(|sighting| {
            let after = sighting.at as f64 - start as f64;
            let decoded = bytes(&sighting.head).and_then(|bytes| packet::head(&bytes));
            ShownSighting {
                after: after / 1000.0,
                node: sighting.node.clone(),
                pod: sighting.pod.clone(),
                device: sighting.device.clone(),
                direction: match sighting.outgoing {
                    true => "out",
                    false => "in",
                },
                packet: decoded.map(|packet| packet.lines()).unwrap_or_default(),
            }
        });
        Some(ShownPassage {
            arrived: self.has_arrived(index),
            seen: seen.collect(),
            missed: self.missed(passage).into_iter().map(name).collect(),
        })
    }
}

/// A device in words: `eth0 of pod shop/web`.
pub fn name(point: &Point) -> String {
    match &point.pod {
        Some(pod) => format!("{} of pod {pod}", point.device),
        None => format!("{} of node {}", point.device, point.node),
    }
}

fn is_at(sighting: &Sighting, point: &Point) -> bool {
    sighting.node == point.node
        && sighting.pod == point.pod
        && sighting.device == point.device
        && sighting.outgoing == point.outgoing
}

fn head(bytes: &[u8]) -> Option<Head> {
    match bytes.first()? >> 4 {
        4 => v4(bytes, true),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8], outer: bool) -> Option<Head> {
    const IPIP: u8 = 4;
    let header = bytes.get(..20)?;
    let behind = bytes.get(4 * usize::from(header[0] & 0xf)..)?;
    if outer
        && header[9] == IPIP
        && let Some(inner) = behind
            .first()
            .filter(|first| *first >> 4 == 4)
            .and_then(|_| v4(behind, false))
    {
        return Some(inner);
    }
    let address = |at: usize| {
        Some(IpAddr::V4(Ipv4Addr::from(
            <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
        )))
    };
    let id = u16::from_be_bytes([header[4], header[5]]);
    Some(with_payload(address(12)?, address(16)?, header[9], id, behind))
}

fn v6(bytes: &[u8]) -> Option<Head> {
    let header = bytes.get(..40)?;
    let address = |at: usize| {
        Some(IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?,
        )))
    };
    Some(with_payload(address(8)?, address(24)?, header[6], 0, &bytes[40..]))
}

fn with_payload(source: IpAddr, destination: IpAddr, protocol: u8, id: u16, behind: &[u8]) -> Head {
    let part = |from: usize, to: usize| behind.get(from..to.min(behind.len())).unwrap_or_default().to_vec();
    let (port, icmp, rest) = match protocol {
        // Sequence number and flags.
        6 => (half(behind, 2), None, [part(2, 8), part(13, 14)].concat()),
        // Length, and the beginning of the payload.
        17 | 136 => (half(behind, 2), None, [part(2, 6), part(8, 24)].concat()),
        132 => (half(behind, 2), None, part(2, 28)),
        // Type, code, sequence number.
        1 | 58 => (
            None,
            behind.first().copied().zip(behind.get(1).copied()),
            [part(0, 2), part(6, 8)].concat(),
        ),
        _ => (None, None, part(0, 16)),
    };
    Head {
        source,
        protocol,
        port,
        icmp,
        mark: Mark { destination, id, rest },
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
