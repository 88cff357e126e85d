//! Echo requests from one namespace to an address, with what came back.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::Ipv4Slice;
use socket2::{Domain, Protocol, Socket, Type};

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// To whom.
    pub target: Ipv4Addr,
    /// How many.
    pub count: u16,
    /// Time from one to the next.
    pub interval: Duration,
    /// How long to wait for the last reply.
    pub patience: Duration,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// Requests that went out.
    pub sent: u16,
    /// One a reply, in order of arrival.
    pub replies: Vec<Reply>,
}

/// One reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which request it answers, from 1.
    pub sequence: u16,
    /// Hops it had left.
    pub ttl: u8,
    /// Bytes of the packet without its IP header.
    pub length: usize,
    /// Round trip.
    pub time: Duration,
}

impl Replies {
    /// Requests without a reply.
    pub fn lost(&self) -> u16 {
        let mut answered: Vec<u16> = self.replies.iter().map(|reply| reply.sequence).collect();
        answered.sort_unstable();
        answered.dedup();
        self.sent - answered.len() as u16
    }
}

/// Sends from the calling thread's namespace. `heard` is told of every reply as it comes.
pub fn ping(echo: &Echo, heard: &mut dyn FnMut(Reply)) -> io::Result<Replies> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    let id = std::process::id() as u16;
    let target = SocketAddr::new(IpAddr::V4(echo.target), 0).into();
    let started = Instant::now();
    let mut sent_at = Vec::with_capacity(usize::from(echo.count));
    let mut done = Replies::default();
    loop {
        let now = Instant::now();
        let due = started + echo.interval * u32::from(done.sent);
        if done.sent < echo.count && now >= due {
            done.sent += 1;
            sent_at.push(now);
            match socket.send_to(&request(id, done.sent), &target) {
                Ok(_) => {}
                // No route now is a lost packet, not the end: routes come and go while one watches.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
                    ) => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        let deadline = if done.sent < echo.count {
            due
        } else {
            sent_at.last().map_or(now, |last| *last + echo.patience)
        };
        if done.replies.len() >= usize::from(echo.count) || now >= deadline {
            return Ok(done);
        }
        socket.set_read_timeout(Some((deadline - now).max(Duration::from_micros(100))))?;
        let mut buffer = [0; 2048];
        let length = match (&socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        let Some((sequence, ttl, length)) = answer(&buffer[..length], id, echo.target) else {
            continue;
        };
        let Some(at) = sent_at.get(usize::from(sequence).wrapping_sub(1)) else {
            continue;
        };
        let reply = Reply {
            sequence,
            ttl,
            length,
            time: at.elapsed(),
        };
        heard(reply);
        done.replies.push(reply);
    }
}

fn request(id: u16, sequence: u16) -> Vec<u8> {
    let header = etherparse::Icmpv4Header::with_checksum(
        etherparse::Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id, seq: sequence }),
        PAYLOAD,
    );
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(PAYLOAD);
    bytes
}

/// 56 bytes, as `ping` sends.
const PAYLOAD: &[u8] = b"margay lab: every node is a router, every pod is a route";

/// Sequence, TTL and length of an echo reply to us.
fn answer(packet: &[u8], id: u16, from: Ipv4Addr) -> Option<(u16, u8, usize)> {
    let ip = Ipv4Slice::from_slice(packet).ok()?;
    let icmp = ip.payload().payload;
    let &[0, 0, _, _, a, b, c, d] = icmp.first_chunk::<8>()? else {
        return None;
    };
    let ours = u16::from_be_bytes([a, b]) == id && ip.header().source_addr() == from;
    ours.then(|| (u16::from_be_bytes([c, d]), ip.header().ttl(), icmp.len()))
}
