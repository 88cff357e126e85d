//! The kernel's table of flows: finding, ending and deleting them.
//!
//! Once its entry is gone, a flow's next packet is a new flow's first, whichever side it comes from. For flows that a new policy
//! forbids that is not enough; they are marked as ended.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use kernel::IpFamily;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use crate::decode::Attributes;
use crate::nfnetlink::{Bytes, CONNTRACK, GENERIC, Socket, Target, be16, be32};
use crate::request::Failure;

/// The flows of the network namespace of the thread that opened it.
pub struct Conntrack(Socket);

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet had it.
    pub original: Tuple,
    /// As answers have it: the other way round, and translated.
    pub reply: Tuple,
    /// `IPS_*`.
    pub status: u32,
    /// The flow's mark.
    pub mark: u32,
    /// Flows of different zones do not know each other.
    pub zone: u16,
    /// The kernel's number of the entry. The next flow with the same addresses has another, unless it got the same place.
    pub id: u32,
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// What the protocol adds.
    pub detail: Detail,
}

/// What tells flows of one protocol between the same addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// TCP, UDP, UDP-Lite, SCTP, DCCP.
    Ports {
        /// Of the source.
        source: u16,
        /// Of the destination.
        destination: u16,
    },
    /// ICMP, ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Nothing that is looked at here.
    None,
}

/// Which flows. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// IPv4 or IPv6.
    pub family: Option<IpFamily>,
    /// One of these takes part: source or destination, in either direction, translated or not.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// A port that takes part, likewise.
    pub port: Option<u16>,
}

/// Another flow announced it (FTP's data).
pub const EXPECTED: u32 = 1;
/// The flow was seen in both directions.
pub const SEEN_REPLY: u32 = 1 << 1;
/// The source was translated.
pub const SOURCE_TRANSLATED: u32 = 1 << 4;
/// The destination was translated.
pub const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// [`Conntrack::end`] was here (the kernel: the entry's time is fixed, packets do not prolong it).
pub const ENDED: u32 = 1 << 10;

/// The flow is not the first to go when there is no room.
const ASSURED: u32 = 1 << 2;

const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// So many entries are deleted by one call.
const AT_ONCE: usize = 512;

impl Conntrack {
    /// Opens the flows of the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Socket::open().map(Self)
    }

    /// The flows that the filter picks. The kernel's table changes all the time: what comes or goes meanwhile may be missing.
    pub fn list(&mut self, filter: &FlowFilter) -> Result<Vec<Flow>, Failure> {
        let mut flows = Vec::new();
        let target = target(GET, filter.family);
        self.0.dump(
            target,
            |_| (),
            &mut flows,
            Vec::clear,
            |flows, payload| {
                flows.extend(read_flow(payload).filter(|flow| filter.picks(flow)));
            },
        )?;
        Ok(flows)
    }

    /// The flow that has a packet like this, in either direction, as it is before anything is translated; `None`: none is known.
    pub fn get(&mut self, packet: &Tuple) -> Result<Option<Flow>, Failure> {
        let target = target(GET, Some(IpFamily::of(&packet.source)));
        self.0.get(target, |bytes| write_tuple(bytes, packet), read_flow)
    }

    /// Deletes these flows; how many were still there.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<usize, Failure> {
        self.each(DELETE, flows, write_key)
    }

    /// Marks these flows as [`ENDED`], for rules to see; how many were still there. The entry stays: without it the next packet
    /// of either side would be a new flow's first, and it might be the answering side's, which other rules let in.
    pub fn end(&mut self, flows: &[Flow]) -> Result<usize, Failure> {
        self.each(NEW, flows, |bytes, flow| {
            write_key(bytes, flow);
            // What the kernel may have set meanwhile must not be taken back.
            bytes.be32(STATUS, flow.status | SEEN_REPLY | ASSURED | ENDED);
            bytes.be32(TIMEOUT, ended_for(flow.original.protocol).as_secs() as u32);
        })
    }

    /// Does the same to each of these flows; how many were still there.
    fn each(&mut self, operation: u16, flows: &[Flow], write: impl Fn(&mut Bytes, &Flow)) -> Result<usize, Failure> {
        let mut done = 0;
        for some in flows.chunks(AT_ONCE) {
            let first = self.0.sequences(some.len() as u32);
            let last = first + some.len() as u32 - 1;
            let mut bytes = Bytes(Vec::with_capacity(some.len() * 128));
            for (sequence, flow) in (first..).zip(some) {
                let ack = if sequence == last { NLM_F_ACK } else { 0 };
                let target = target(operation, Some(IpFamily::of(&flow.original.source)));
                bytes.message(target, NLM_F_REQUEST | ack, sequence, |bytes| write(bytes, flow));
            }
            let answer = self.0.batch(&bytes.0, last, |_| ())?;
            let gone = answer.failures.len();
            // One that went meanwhile (or is just going), or whose place is another's now, is no failure.
            let real = answer
                .failures
                .into_iter()
                .find(|(_, failure)| !matches!(failure.errno(), Some(libc::ENOENT | libc::EBUSY)));
            if let Some((_, failure)) = real {
                return Err(failure);
            }
            done += some.len() - gone.min(some.len());
        }
        Ok(done)
    }

    /// Deletes the flows that the filter picks; how many.
    pub fn cut(&mut self, filter: &FlowFilter) -> Result<usize, Failure> {
        let flows = self.list(filter)?;
        self.delete(&flows)
    }
}

impl FlowFilter {
    /// All flows in which an address takes part.
    pub fn of(address: IpAddr) -> Self {
        Self {
            family: Some(IpFamily::of(&address)),
            addresses: Some([address].into()),
            ..Self::default()
        }
    }

    /// Does it pick the flow?
    pub fn picks(&self, flow: &Flow) -> bool {
        let tuples = [&flow.original, &flow.reply];
        let address = |wanted: &BTreeSet<IpAddr>| {
            let mut ends = tuples.iter().flat_map(|tuple| [tuple.source, tuple.destination]);
            ends.any(|end| wanted.contains(&end))
        };
        let port = |wanted: u16| {
            tuples.iter().any(|tuple| match tuple.detail {
                Detail::Ports { source, destination } => source == wanted || destination == wanted,
                Detail::Icmp { .. } | Detail::None => false,
            })
        };
        self.family
            .is_none_or(|family| family == IpFamily::of(&flow.original.source))
            && self.addresses.as_ref().is_none_or(address)
            && self.protocol.is_none_or(|protocol| protocol == flow.original.protocol)
            && self.port.is_none_or(port)
    }
}

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// How long an ended flow's entry stays. TCP's ends may be silent for days and still believe in their connection.
fn ended_for(protocol: u8) -> Duration {
    const TCP: u8 = 6;
    match protocol {
        TCP => Duration::from_secs(5 * 24 * 3600),
        _ => Duration::from_secs(3600),
    }
}

fn target(operation: u16, family: Option<IpFamily>) -> Target {
    let family = match family {
        None => libc::AF_UNSPEC,
        Some(IpFamily::V4) => libc::AF_INET,
        Some(IpFamily::V6) => libc::AF_INET6,
    };
    Target {
        subsystem: CONNTRACK,
        operation,
        family: family as u8,
        resource: 0,
    }
}

fn write_key(bytes: &mut Bytes, flow: &Flow) {
    write_tuple(bytes, &flow.original);
    if flow.zone != 0 {
        bytes.be16(ZONE, flow.zone);
    }
    bytes.be32(ID, flow.id);
}

fn write_tuple(bytes: &mut Bytes, tuple: &Tuple) {
    bytes.nest(TUPLE_ORIGINAL, |bytes| {
        bytes.nest(1, |bytes| match (tuple.source, tuple.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.put(1, &source.octets());
                bytes.put(2, &destination.octets());
            }
            (source, destination) => {
                let octets = |address| match address {
                    IpAddr::V4(address) => std::net::Ipv4Addr::to_ipv6_mapped(&address).octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                bytes.put(3, &octets(source));
                bytes.put(4, &octets(destination));
            }
        });
        bytes.nest(2, |bytes| {
            bytes.put(1, &[tuple.protocol]);
            match tuple.detail {
                Detail::Ports { source, destination } => {
                    bytes.be16(2, source);
                    bytes.be16(3, destination);
                }
                Detail::Icmp { id, kind, code } => {
                    let first = if tuple.source.is_ipv4() { 4 } else { 7 };
                    bytes.be16(first, id);
                    bytes.put(first + 1, &[kind]);
                    bytes.put(first + 2, &[code]);
                }
                Detail::None => {}
            }
        });
    });
}

fn read_flow(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut mark, mut zone, mut id) = (0, 0, 0, 0);
    for (kind, value) in Attributes(payload.get(GENERIC..)?) {
        match kind {
            TUPLE_ORIGINAL => original = read_tuple(value),
            TUPLE_REPLY => reply = read_tuple(value),
            STATUS => status = be32(value)?,
            MARK => mark = be32(value)?,
            ID => id = be32(value)?,
            ZONE => zone = be16(value)?,
            _ => {}
        }
    }
    Some(Flow {
        original: original?,
        reply: reply?,
        status,
        mark,
        zone,
        id,
    })
}

fn read_tuple(tuple: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut ports, mut icmp) = (None, (None, None), (None, None, None));
    for (kind, value) in Attributes(tuple) {
        match kind {
            1 => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        1 | 3 => source = address(value),
                        2 | 4 => destination = address(value),
                        _ => {}
                    }
                }
            }
            2 => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        1 => protocol = value.first().copied(),
                        2 => ports.0 = be16(value),
                        3 => ports.1 = be16(value),
                        4 | 7 => icmp.0 = be16(value),
                        5 | 8 => icmp.1 = value.first().copied(),
                        6 | 9 => icmp.2 = value.first().copied(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let detail = match (ports, icmp) {
        ((Some(source), Some(destination)), _) => Detail::Ports { source, destination },
        (_, (Some(id), Some(kind), Some(code))) => Detail::Icmp { id, kind, code },
        _ => Detail::None,
    };
    Some(Tuple {
        source: source?,
        destination: destination?,
        protocol: protocol?,
        detail,
    })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            detail: Detail::Ports {
                source: 40000,
                destination: 80,
            },
        }
    }

    #[test]
    fn a_flow_is_picked_by_whoever_takes_part() {
        // To a service's address, translated to a pod's.
        let flow = Flow {
            original: tuple("10.0.0.1", "10.96.0.1"),
            reply: tuple("10.0.1.2", "10.0.0.1"),
            status: DESTINATION_TRANSLATED,
            mark: 0,
            zone: 0,
            id: 7,
        };
        for (address, picked) in [
            ("10.0.0.1", true),
            ("10.96.0.1", true),
            ("10.0.1.2", true),
            ("10.0.1.3", false),
            ("::1", false),
        ] {
            assert_eq!(
                FlowFilter::of(address.parse().unwrap()).picks(&flow),
                picked,
                "{address}"
            );
        }
        let by = |protocol, port| FlowFilter {
            protocol,
            port,
            ..FlowFilter::default()
        };
        for (filter, picked) in [
            (by(None, None), true),
            (by(Some(6), Some(80)), true),
            (by(Some(17), Some(80)), false),
            (by(Some(6), Some(81)), false),
        ] {
            assert_eq!(filter.picks(&flow), picked, "{filter:?}");
        }
    }
}
