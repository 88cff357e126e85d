//! Echo requests from one namespace to an address, with what came back (RFC 792, RFC 4443).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etherparse::Ipv4Slice;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// To whom.
    pub target: IpAddr,
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
    let socket = open(echo.target)?;
    let id = std::process::id() as u16;
    let target = SocketAddr::new(echo.target, 0).into();
    let started = Instant::now();
    let mut sent_at = Vec::with_capacity(usize::from(echo.count));
    let mut done = Replies::default();
    loop {
        let now = Instant::now();
        let due = started + echo.interval * u32::from(done.sent);
        if done.sent < echo.count && now >= due {
            done.sent += 1;
            sent_at.push(now);
            match socket.send_to(&request(&echo.target, id, done.sent), &target) {
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
        let arrived = match receive(&socket) {
            Ok(arrived) => arrived,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error),
        };
        let Some(answer) = arrived.answer(&echo.target, id) else {
            continue;
        };
        let Some(at) = sent_at.get(usize::from(answer.sequence).wrapping_sub(1)) else {
            continue;
        };
        let reply = Reply {
            time: at.elapsed(),
            ..answer
        };
        heard(reply);
        done.replies.push(reply);
    }
}

fn open(target: IpAddr) -> io::Result<Socket> {
    match target {
        IpAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
        IpAddr::V6(_) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            // IPv6 hands out no header, so hops are asked for.
            socket.set_recv_hoplimit_v6(true)?;
            Ok(socket)
        }
    }
}

/// 56 bytes, as `ping` sends.
const PAYLOAD: &[u8] = b"margay lab: every node is a router, every pod is a route";
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

fn request(target: &IpAddr, id: u16, sequence: u16) -> Vec<u8> {
    if target.is_ipv4() {
        let echo = etherparse::IcmpEchoHeader { id, seq: sequence };
        let header = etherparse::Icmpv4Header::with_checksum(etherparse::Icmpv4Type::EchoRequest(echo), PAYLOAD);
        return [&header.to_bytes(), PAYLOAD].concat();
    }
    // The kernel fills in the checksum, which covers addresses that it chooses (RFC 3542 3.1).
    let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
    [&[REQUEST[1], 0, 0, 0, a, b, c, d], PAYLOAD].concat()
}

/// What a raw socket hands out: IPv4 with its header, IPv6 without.
struct Arrived {
    from: Option<IpAddr>,
    hops: Option<u8>,
    bytes: Vec<u8>,
}

fn receive(socket: &Socket) -> io::Result<Arrived> {
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let hops = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let from = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or(address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    let length = message.bytes;
    let bytes = buffer[..length].to_vec();
    Ok(Arrived { from, hops, bytes })
}

impl Arrived {
    /// The echo reply to us that this is.
    fn answer(&self, target: &IpAddr, id: u16) -> Option<Reply> {
        let (icmp, ttl, kind) = match target {
            IpAddr::V4(_) => {
                let ip = Ipv4Slice::from_slice(&self.bytes).ok()?;
                (ip.payload().payload, ip.header().ttl(), REPLY[0])
            }
            IpAddr::V6(_) => (&self.bytes[..], self.hops.unwrap_or_default(), REPLY[1]),
        };
        let &[found, 0, _, _, a, b, c, d] = icmp.first_chunk::<8>()? else {
            return None;
        };
        let ours = found == kind && u16::from_be_bytes([a, b]) == id && self.from.as_ref() == Some(target);
        ours.then(|| Reply {
            sequence: u16::from_be_bytes([c, d]),
            ttl,
            length: icmp.len(),
            time: Duration::ZERO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hops` is what a control message says; IPv4 has it in its header.
    fn check(from: &str, hops: Option<u8>, bytes: &[u8], expected: Option<(u16, u8, usize)>) {
        let from: IpAddr = from.parse().unwrap();
        let target = if from.is_ipv4() { "192.168.0.5" } else { "fd00::5" }.parse().unwrap();
        let arrived = Arrived {
            from: Some(from),
            hops,
            bytes: bytes.to_vec(),
        };
        let answer = arrived
            .answer(&target, 9)
            .map(|reply| (reply.sequence, reply.ttl, reply.length));
        assert_eq!(answer, expected);
    }

    #[test]
    fn only_replies_of_the_target_to_us_count() {
        let v4 = |icmp: [u8; 8]| {
            let header = [
                0x45, 0, 0, 28, 0, 7, 0x40, 0, 62, 1, 0, 0, 192, 168, 0, 5, 192, 168, 0, 9,
            ];
            [&header[..], &icmp].concat()
        };
        check("192.168.0.5", None, &v4([0, 0, 0, 0, 0, 9, 0, 3]), Some((3, 62, 8)));
        check("192.168.0.6", None, &v4([0, 0, 0, 0, 0, 9, 0, 3]), None);
        check("192.168.0.5", None, &v4([0, 0, 0, 0, 0, 8, 0, 3]), None);
        check("192.168.0.5", None, &v4([8, 0, 0, 0, 0, 9, 0, 3]), None);
        check("192.168.0.5", None, &v4([0, 0, 0, 0, 0, 9, 0, 3])[..27], None);
        check("fd00::5", Some(61), &[129, 0, 0, 0, 0, 9, 1, 0], Some((256, 61, 8)));
        check("fd00::5", Some(61), &[128, 0, 0, 0, 0, 9, 1, 0], None);
        check("fd00::6", Some(61), &[129, 0, 0, 0, 0, 9, 1, 0], None);
        check("fd00::5", None, &[129, 0], None);
    }

    #[test]
    fn what_was_not_answered_is_lost_and_an_answer_counts_once() {
        let reply = |sequence| Reply {
            sequence,
            ttl: 63,
            length: 64,
            time: Duration::ZERO,
        };
        let replies = Replies {
            sent: 4,
            replies: vec![reply(1), reply(3), reply(1)],
        };
        assert_eq!(replies.lost(), 2);
    }

    /// Loopback of this namespace, which every test may use; raw sockets need root.
    #[test]
    fn both_families_answer_on_loopback() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: raw sockets need root");
            return;
        }
        for target in ["127.0.0.1", "::1"] {
            let echo = Echo {
                target: target.parse().unwrap(),
                count: 2,
                interval: Duration::from_millis(1),
                patience: Duration::from_secs(5),
            };
            let replies = ping(&echo, &mut |_| {}).unwrap();
            assert_eq!((replies.sent, replies.lost()), (2, 0), "{target}");
            assert!(
                replies
                    .replies
                    .iter()
                    .all(|reply| reply.ttl == 64 && reply.length == 64),
                "{replies:?}"
            );
        }
    }
}
