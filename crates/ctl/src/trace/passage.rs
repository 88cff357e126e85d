//! Copies of packets from many devices, put together to the passage of one packet.
//!
//! A packet is known again by what no hop changes: its identification and what the protocol numbers it by. Its source and its
//! destination may be translated, its TTL counts down, checksums may be filled in late.

use std::net::SocketAddr;

use agent::watch::head::{self, Head, is_at as is_end};
use agent::watch::translate::answer_kind;
use agent::watch::{Sighting, bytes};
use policy::evaluate::Packet;
use serde::Serialize;

use super::hop::Point;
use crate::packet;

/// A way of packets, over these devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Where they can be seen, in a packet's order.
    pub points: Vec<Point>,
    /// A packet that is seen at the last one has arrived.
    pub has_end: bool,
    /// The last one is the packet's end, not just the last one that can be watched.
    pub whole: bool,
}

/// What makes a packet itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    is_reply: bool,
    id: u16,
    rest: Vec<u8>,
}

/// One packet, seen at several devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    mark: Mark,
    /// It had the source that is asked about, somewhere (a reply: the destination).
    pub is_ours: bool,
    /// Which way it takes.
    way: usize,
    /// Where, each in the order in which it was told.
    pub seen: Vec<Sighting>,
}

/// A passage, for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownPassage {
    /// It was seen at the last device of its way.
    pub arrived: bool,
    /// That device is its end, rather than the last one that can be watched.
    #[serde(skip)]
    pub whole: bool,
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

/// All passages of a flow, in both directions.
pub struct Passages {
    flow: Packet,
    ways: Vec<Way>,
    /// Ways of what comes back.
    back: Vec<Way>,
    /// What the destination is called, and on which way.
    ends: Vec<(SocketAddr, usize)>,
    all: Vec<Passage>,
}

impl Passages {
    /// Of packets like this one, which go this way as far as their destination stays what it is.
    pub fn new(flow: &Packet, way: Way) -> Self {
        let asked = asked(flow);
        let mut passages = Self {
            flow: flow.clone(),
            ways: Vec::new(),
            back: Vec::new(),
            ends: Vec::new(),
            all: Vec::new(),
        };
        passages.add_way(asked, way);
        passages
    }

    /// Packets may go another way, to this end, because their destination is translated to it.
    pub fn add_way(&mut self, end: SocketAddr, way: Way) {
        self.ends.push((end, self.ways.len()));
        self.back.push(way.back());
        self.ways.push(way);
    }

    /// The end of a way has another name, too.
    pub fn add_name(&mut self, name: SocketAddr, of: SocketAddr) {
        if let Some(way) = self.way_to(of) {
            self.ends.push((name, way));
        }
    }

    /// Packets to this end are translated: they end elsewhere.
    pub fn is_translated(&mut self, end: SocketAddr) {
        if let Some(way) = self.way_to(end).and_then(|way| self.ways.get_mut(way)) {
            way.has_end = false;
        }
    }

    /// Whether that is one of the ends.
    pub fn knows(&self, end: SocketAddr) -> bool {
        self.way_to(end).is_some()
    }

    /// The way to an end.
    pub fn way_there(&self, end: SocketAddr) -> Option<&Way> {
        self.way_to(end).and_then(|way| self.ways.get(way))
    }

    /// The ends so far.
    pub fn ends(&self) -> Vec<SocketAddr> {
        self.ends.iter().map(|(end, _)| *end).collect()
    }

    /// All devices of all ways.
    pub fn points(&self) -> Vec<&Point> {
        let mut points: Vec<&Point> = Vec::new();
        for point in self.ways.iter().flat_map(|way| &way.points) {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }

    fn way_to(&self, end: SocketAddr) -> Option<usize> {
        let mut ends = self.ends.iter();
        ends.find(|(known, _)| is_end(*known, end)).map(|(_, way)| *way)
    }

    /// Adds a sighting; it belongs to the passage that is answered. `None`: it is not of this flow.
    pub fn add(&mut self, sighting: Sighting) -> Option<usize> {
        let head = head::read(&bytes(&sighting.head)?)?;
        let (is_reply, way) = self.place_in_flow(&head)?;
        let other = if is_reply { head.destination } else { head.source };
        let mark = Mark {
            is_reply,
            id: head.id,
            rest: head.rest,
        };
        let index = match self.all.iter().position(|passage| passage.mark == mark) {
            Some(index) => index,
            None => {
                self.all.push(Passage {
                    mark,
                    is_ours: false,
                    way,
                    seen: Vec::new(),
                });
                self.all.len() - 1
            }
        };
        let passage = self.all.get_mut(index)?;
        passage.is_ours |= other == self.flow.source;
        // What it is called where it is not translated (yet) tells nothing.
        passage.way = passage.way.max(way);
        passage.seen.push(sighting);
        Some(index)
    }

    /// Whether a packet comes back, and which way it belongs to.
    fn place_in_flow(&self, head: &Head) -> Option<(bool, usize)> {
        if head.protocol != self.flow.protocol {
            return None;
        }
        let answer = |(kind, code)| (answer_kind(kind), code);
        let has_kind = |icmp: Option<(u8, u8)>| self.flow.icmp.is_none() || head.icmp == icmp;
        let there = self.way_to(head.to()).filter(|_| has_kind(self.flow.icmp));
        let back = || {
            let way = self.way_to(head.from())?;
            has_kind(self.flow.icmp.map(answer)).then_some((true, way))
        };
        there.map(|way| (false, way)).or_else(back)
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&Passage> {
        self.all.get(index)
    }

    /// Whether it is of a packet that comes back.
    pub fn is_reply(&self, index: usize) -> bool {
        self.get(index).is_some_and(|passage| passage.mark.is_reply)
    }

    /// Whether one was seen at the last device.
    pub fn has_arrived(&self, index: usize) -> bool {
        let Some(passage) = self.get(index) else { return false };
        let Some(way) = self.way(passage) else { return false };
        let is_at_end = |last: &Point| passage.seen.iter().any(|sighting| is_at(sighting, last));
        way.has_end && passage.is_ours && way.points.last().is_some_and(is_at_end)
    }

    /// Whether one was seen wherever it must be.
    pub fn is_complete(&self, index: usize) -> bool {
        self.has_arrived(index) && self.get(index).is_some_and(|passage| self.missed(passage).is_empty())
    }

    /// Packets that came back after these went there, by the same ways, in the order in which they were seen first. What came
    /// back to a packet whose own way was not known yet is not followed whole, either.
    pub fn answers(&self, to: &[usize]) -> Vec<usize> {
        let all = self.after(to).into_iter();
        all.filter(|index| self.has_arrived(*index)).collect()
    }

    /// The packet that came back farthest after these went there; `None`: none was seen.
    pub fn farthest_answer(&self, to: &[usize]) -> Option<usize> {
        self.after(to).into_iter().max_by_key(|index| self.distance(*index))
    }

    fn after(&self, to: &[usize]) -> Vec<usize> {
        let Some(first) = to.iter().min() else {
            return Vec::new();
        };
        let ways: Vec<usize> = to.iter().map(|asked| self.way_of(*asked)).collect();
        let later = self.all.iter().enumerate().skip(*first);
        let answers =
            later.filter(|(_, passage)| passage.mark.is_reply && passage.is_ours && ways.contains(&passage.way));
        answers.map(|(index, _)| index).collect()
    }

    /// The one that came farthest; `None`: none was seen.
    pub fn farthest(&self) -> Option<usize> {
        let all = 0..self.all.len();
        let ours = all.filter(|index| self.all[*index].is_ours && !self.is_reply(*index));
        ours.max_by_key(|index| self.distance(*index))
    }

    fn distance(&self, index: usize) -> Option<usize> {
        let passage = self.get(index)?;
        let places = passage.seen.iter().filter_map(|sighting| self.place(passage, sighting));
        places.max()
    }

    fn way(&self, passage: &Passage) -> Option<&Way> {
        match passage.mark.is_reply {
            true => self.back.get(passage.way),
            false => self.ways.get(passage.way),
        }
    }

    /// The number of the way that a passage takes: 0 is the one that was asked about.
    pub fn way_of(&self, index: usize) -> usize {
        self.get(index).map_or(0, |passage| passage.way)
    }

    /// Where it must have been seen and was not.
    fn missed(&self, passage: &Passage) -> Vec<&Point> {
        let not_seen = |point: &&Point| point.always && !passage.seen.iter().any(|sighting| is_at(sighting, point));
        let points = self.way(passage).map(|way| way.points.as_slice()).unwrap_or_default();
        points.iter().filter(not_seen).collect()
    }

    /// Which point it is.
    fn place(&self, passage: &Passage, sighting: &Sighting) -> Option<usize> {
        self.way(passage)?
            .points
            .iter()
            .position(|point| is_at(sighting, point))
    }

    /// A passage as it is shown: in the packet's order, and behind a node's devices those where nobody expected it.
    pub fn shown(&self, index: usize) -> Option<ShownPassage> {
        let passage = self.get(index)?;
        let way = self.way(passage)?;
        let node = |sighting: &Sighting| {
            let same = |point: &Point| point.node == sighting.node;
            way.points.iter().position(same).unwrap_or(usize::MAX)
        };
        let mut seen: Vec<&Sighting> = passage.seen.iter().collect();
        // Times come last: the kernel begins to stamp packets only some moments after somebody wants it, and until then they
        // have the time at which they were read.
        seen.sort_by_key(|sighting| {
            let place = self.place(passage, sighting).unwrap_or(usize::MAX);
            (node(sighting), place, sighting.at)
        });
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
            whole: way.whole,
            seen: seen.collect(),
            missed: self.missed(passage).into_iter().map(name).collect(),
        })
    }
}

impl Way {
    /// This way of translated packets, which begins as `first` and is left for this one on a node.
    pub fn behind(self, first: &Way, node: &str) -> Self {
        let is_there = |point: &Point| point.node == node && point.pod.is_none();
        // Sent by the node itself, it is translated before it comes to a device.
        let sent_there = || first.points.first().filter(|point| is_there(point)).map(|_| 0);
        let came_in = first
            .points
            .iter()
            .rposition(|point| is_there(point) && !point.outgoing);
        let Some(until) = came_in.map(|at| at + 1).or_else(sent_there) else {
            return self;
        };
        let leaves = |node: &str| {
            let mut points = self.points.iter();
            points.position(|point| point.node == node && point.pod.is_none() && point.outgoing)
        };
        // How it comes from there to the last node, if not by this way, is not known.
        let last = || leaves(&self.points.last()?.node);
        let from = leaves(node).or_else(last).unwrap_or(self.points.len());
        let points = first.points.iter().take(until).chain(self.points.iter().skip(from));
        Self {
            points: points.cloned().collect(),
            ..self
        }
    }

    /// The way of answers, if routes lead both ways alike. A tunnel's device that is not always seen is not in the other
    /// direction either.
    fn back(&self) -> Self {
        let turned = |point: &Point| Point {
            outgoing: !point.outgoing,
            ..point.clone()
        };
        let points: Vec<Point> = self.points.iter().rev().map(turned).collect();
        // In a pod it ends; elsewhere it may go on.
        let whole = points.last().is_some_and(|last| last.pod.is_some());
        Self {
            has_end: !points.is_empty(),
            points,
            whole,
        }
    }
}

/// The end that is asked about.
pub fn asked(flow: &Packet) -> SocketAddr {
    SocketAddr::new(flow.destination, flow.destination_port.unwrap_or_default())
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
