//! What else a watched destination is called: what this node's conntrack knows of the flow.
//!
//! A flow that is under way is known before the first packet is seen. A new one is looked up by its packets: where a packet comes
//! in, it has not been translated yet, and conntrack knows it a moment later; so it is asked again for a while.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use linux::conntrack::{Conntrack, Detail, Flow, FlowFilter, Tuple};
use linux::request::Failure;
use serde::{Deserialize, Serialize};

use super::head::{Head, is_at};

/// How long until conntrack is asked again about a packet that it does not know.
pub const AGAIN: Duration = Duration::from_millis(20);
/// So often it is asked about one.
const TRIES: u8 = 10;
/// So many flows are remembered; then all are forgotten, and asked about once more.
const MOST: usize = 1024;
/// So many translations are told, of a service that has hundreds.
const TOLD: usize = 16;

/// A flow's destination, and its source, before and behind a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Translation {
    /// The node.
    pub node: String,
    /// The destination that the sender sees; port 0: the protocol has none.
    pub from: SocketAddr,
    /// The destination that answers.
    pub to: SocketAddr,
    /// The source.
    pub source: IpAddr,
    /// What the source is behind the node.
    pub source_behind: IpAddr,
}

/// Finds translations of the flows of one watch.
pub struct Translator {
    kernel: Conntrack,
    about: About,
    told: BTreeSet<(SocketAddr, SocketAddr)>,
    asked: BTreeSet<(SocketAddr, SocketAddr, Option<u16>)>,
    waiting: VecDeque<(Tuple, u8)>,
}

/// Which flows.
struct About {
    node: String,
    source: IpAddr,
    protocol: u8,
    ends: Vec<SocketAddr>,
}

impl Translator {
    /// For flows to these ends, in the network namespace of the calling thread.
    pub fn open(node: &str, source: IpAddr, protocol: u8, ends: &[SocketAddr]) -> io::Result<Self> {
        Ok(Self {
            kernel: Conntrack::open()?,
            about: About {
                node: node.to_owned(),
                source,
                protocol,
                ends: ends.to_vec(),
            },
            told: BTreeSet::new(),
            asked: BTreeSet::new(),
            waiting: VecDeque::new(),
        })
    }

    /// Translations of flows that are under way.
    pub fn known(&mut self) -> Result<Vec<Translation>, Failure> {
        let filter = FlowFilter {
            addresses: Some(self.about.ends.iter().map(SocketAddr::ip).collect()),
            protocol: Some(self.about.protocol),
            ..FlowFilter::default()
        };
        let flows = self.kernel.list(&filter)?;
        Ok(flows.iter().filter_map(|flow| self.news(flow)).collect())
    }

    /// Takes a packet that was seen on the node.
    pub fn saw(&mut self, head: &Head) {
        if self.asked.len() >= MOST {
            self.asked.clear();
        }
        if self.asked.insert((head.from(), head.to(), head.echo)) {
            self.waiting.push_back((tuple(head), 0));
        }
    }

    /// Whether conntrack has to be asked again soon.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Asks about the packets that wait.
    pub fn settle(&mut self) -> Vec<Translation> {
        let mut found = Vec::new();
        for _ in 0..self.waiting.len() {
            let Some((packet, tries)) = self.waiting.pop_front() else {
                break;
            };
            // Behind the translation it is what answers to it that conntrack knows.
            let flow = [packet.clone(), answer(&packet)].iter().find_map(|packet| {
                let answer = self.kernel.get(packet);
                answer.unwrap_or_else(|error| {
                    tracing::debug!(%error, "watch: conntrack");
                    None
                })
            });
            match flow {
                Some(flow) => found.extend(self.news(&flow)),
                None if tries < TRIES => self.waiting.push_back((packet, tries + 1)),
                None => {}
            }
        }
        found
    }

    fn news(&mut self, flow: &Flow) -> Option<Translation> {
        let translation = self.about.translation(flow)?;
        let is_news = self.told.len() < TOLD && self.told.insert((translation.from, translation.to));
        is_news.then_some(translation)
    }
}

impl About {
    /// What a flow's destination becomes; `None`: it stays, or the flow is none of these.
    fn translation(&self, flow: &Flow) -> Option<Translation> {
        let end = |address: IpAddr, detail: Detail, first: bool| match detail {
            Detail::Ports { source, destination } => SocketAddr::new(address, if first { source } else { destination }),
            Detail::Icmp { .. } | Detail::None => SocketAddr::new(address, 0),
        };
        let (original, reply) = (&flow.original, &flow.reply);
        let from = end(original.destination, original.detail, false);
        let to = end(reply.source, reply.detail, true);
        let is_one = |end: SocketAddr| self.ends.iter().any(|asked| is_at(*asked, end));
        // To the real destination others may come by another name; that is of interest if it is this source's.
        let is_ours = is_one(from) || (is_one(to) && original.source == self.source);
        (from != to && is_ours).then(|| Translation {
            node: self.node.clone(),
            from,
            to,
            source: original.source,
            source_behind: reply.destination,
        })
    }
}

fn tuple(head: &Head) -> Tuple {
    let detail = match (head.ports, head.icmp, head.echo) {
        (Some((source, destination)), ..) => Detail::Ports { source, destination },
        (_, Some((kind, code)), Some(id)) => Detail::Icmp { id, kind, code },
        _ => Detail::None,
    };
    Tuple {
        source: head.source,
        destination: head.destination,
        protocol: head.protocol,
        detail,
    }
}

/// What answers to a packet.
fn answer(packet: &Tuple) -> Tuple {
    Tuple {
        source: packet.destination,
        destination: packet.source,
        protocol: packet.protocol,
        detail: match packet.detail {
            Detail::Ports { source, destination } => Detail::Ports {
                source: destination,
                destination: source,
            },
            Detail::Icmp { id, kind, code } => Detail::Icmp {
                id,
                kind: answer_kind(kind),
                code,
            },
            Detail::None => Detail::None,
        },
    }
}

/// The type of ICMP's and ICMPv6's answer to an echo request, and the other way round; others stay.
pub fn answer_kind(kind: u8) -> u8 {
    match kind {
        8 => 0,
        0 => 8,
        128 => 129,
        129 => 128,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `10.0.0.1:40000 > 10.96.0.1:80 = 10.0.0.2:8080 > 10.0.0.1:40000`: as it is sent, and as it arrives.
    fn flow(text: &str) -> Flow {
        let ends: Vec<SocketAddr> = text
            .split([' ', '>', '='])
            .filter(|word| !word.is_empty())
            .map(|word| word.parse().expect("an end"))
            .collect();
        let tuple = |from: SocketAddr, to: SocketAddr| Tuple {
            source: from.ip(),
            destination: to.ip(),
            protocol: 6,
            detail: Detail::Ports {
                source: from.port(),
                destination: to.port(),
            },
        };
        Flow {
            original: tuple(ends[0], ends[1]),
            reply: tuple(ends[2], ends[3]),
            status: 0,
            mark: 0,
            zone: 0,
            id: 1,
        }
    }

    #[test]
    fn a_destination_that_becomes_another_is_told() {
        let about = |ends: &[&str]| About {
            node: "n1".into(),
            source: "10.0.0.1".parse().expect("an address"),
            protocol: 6,
            ends: ends.iter().map(|end| end.parse().expect("an end")).collect(),
        };
        let check = |ends: &[&str], text: &str, expected: Option<&str>| {
            let said = about(ends).translation(&flow(text));
            let shown = said.map(|it| format!("{} {} {} {}", it.from, it.to, it.source, it.source_behind));
            assert_eq!(shown.as_deref(), expected, "{ends:?} {text}");
        };
        let service = "10.0.0.1:40000 > 10.96.0.1:80 = 10.0.0.2:8080 > 10.0.0.1:40000";
        let told = Some("10.96.0.1:80 10.0.0.2:8080 10.0.0.1 10.0.0.1");
        check(&["10.96.0.1:80"], service, told);
        check(&["10.96.0.1:0"], service, told);
        check(&["10.96.0.1:81"], service, None);
        check(&["192.0.2.1:80", "10.0.0.2:8080"], service, told);
        let others = "10.0.0.9:40000 > 10.96.0.1:80 = 10.0.0.2:8080 > 192.0.2.1:50000";
        check(
            &["10.96.0.1:80"],
            others,
            Some("10.96.0.1:80 10.0.0.2:8080 10.0.0.9 192.0.2.1"),
        );
        check(&["10.0.0.2:8080"], others, None);
        // A source that becomes another is no matter.
        let plain = "10.0.0.1:40000 > 10.0.0.2:80 = 10.0.0.2:80 > 192.0.2.1:40000";
        check(&["10.0.0.2:80"], plain, None);
        for (kind, expected) in [(8, 0), (0, 8), (128, 129), (129, 128), (3, 3)] {
            assert_eq!(answer_kind(kind), expected);
        }
    }
}
