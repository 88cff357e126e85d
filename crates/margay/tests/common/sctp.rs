//! SCTP by hand, over raw sockets: kernels have its connection tracking, but few have its sockets.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::net::inside;

/// IP protocol number.
pub const SCTP: i32 = 132;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HEARTBEAT: u8 = 4;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// How long a packet that should arrive is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one that should not arrive is listened for.
const GRACE: Duration = Duration::from_millis(40);

/// One end, at an address of a network namespace.
pub struct End {
    socket: Socket,
    pub address: IpAddr,
    next_port: std::cell::Cell<u16>,
}

/// One packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    /// Verification tag.
    tag: u32,
    chunk: u8,
    body: Vec<u8>,
}

/// Two ends that know each other.
pub struct Association<'a> {
    client: &'a End,
    server: &'a End,
    ports: (u16, u16),
    /// What client and server want to be called by.
    tags: (u32, u32),
}

impl End {
    pub fn new(place: &str, address: IpAddr) -> Self {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = inside(place, || {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).expect("root may");
            socket
                .bind(&SocketAddr::from((address, 0)).into())
                .expect("its address");
            socket
        });
        Self {
            socket,
            address,
            next_port: std::cell::Cell::new(20_000),
        }
    }

    /// Sends a packet. That it is refused at once is as good as lost.
    fn send(&self, to: &End, packet: &Packet) {
        let _ = self
            .socket
            .send_to(&packet.bytes(), &SocketAddr::from((to.address, 0)).into());
    }

    /// Waits for this packet from there; its body.
    fn hears(&self, from: &End, like: &Packet, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 512];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).expect("a socket");
            let Ok(length) = (&self.socket).read(&mut buffer) else {
                continue;
            };
            // IPv4 comes with its header.
            let header = match from.address {
                IpAddr::V4(_) => usize::from(buffer[0] & 15) * 4,
                IpAddr::V6(_) => 0,
            };
            let packet = buffer.get(header..length).and_then(Packet::read);
            let key = |packet: &Packet| (packet.source, packet.destination, packet.tag, packet.chunk);
            if let Some(packet) = packet.filter(|packet| key(packet) == key(like)) {
                return Some(packet.body);
            }
        }
    }

    /// Sends the first packet of an association with a wrong checksum; whether it arrives.
    pub fn reaches_with_a_wrong_checksum(&self, server: &End, port: u16) -> bool {
        let packet = self.init(port);
        let mut bytes = packet.bytes();
        bytes[8] ^= 1;
        let _ = self
            .socket
            .send_to(&bytes, &SocketAddr::from((server.address, 0)).into());
        server.hears(self, &packet, GRACE).is_some()
    }

    fn init(&self, port: u16) -> Packet {
        self.next_port.set(self.next_port.get() + 1);
        let source = self.next_port.get();
        Packet {
            source,
            destination: port,
            tag: 0,
            chunk: INIT,
            body: initiation(u32::from(source)),
        }
    }

    /// Opens an association: four packets, each of which must arrive. `expected` says how long the first is waited for.
    pub fn associate<'a>(&'a self, server: &'a End, port: u16, expected: bool) -> Option<Association<'a>> {
        let first = self.init(port);
        self.send(server, &first);
        server.hears(self, &first, if expected { PATIENCE } else { GRACE })?;
        let association = Association {
            client: self,
            server,
            ports: (first.source, port),
            tags: (u32::from(first.source), 77),
        };
        // What was let in once is let through: these are waited for in any case.
        let mut cookie = initiation(77);
        cookie.extend([0, 7, 0, 8, 1, 2, 3, 4]);
        let steps = [
            (false, INIT_ACK, cookie),
            (true, COOKIE_ECHO, vec![1, 2, 3, 4]),
            (false, COOKIE_ACK, vec![]),
        ];
        for (by_client, chunk, body) in steps {
            assert!(
                association.passes(by_client, chunk, body, true),
                "chunk {chunk} of an association is lost"
            );
        }
        Some(association)
    }
}

impl Association<'_> {
    /// Whether data arrives, from the client or from the server.
    pub fn data(&self, by_client: bool, expected: bool) -> bool {
        self.passes(by_client, DATA, [&[0; 12][..], b"data"].concat(), expected)
    }

    /// Whether a sign of life of the client arrives.
    pub fn heartbeat(&self, expected: bool) -> bool {
        self.passes(true, HEARTBEAT, vec![0, 1, 0, 8, 9, 9, 9, 9], expected)
    }

    fn passes(&self, by_client: bool, chunk: u8, body: Vec<u8>, expected: bool) -> bool {
        let (from, to) = match by_client {
            true => (self.client, self.server),
            false => (self.server, self.client),
        };
        let ((source, destination), tag) = match by_client {
            true => (self.ports, self.tags.1),
            false => ((self.ports.1, self.ports.0), self.tags.0),
        };
        let packet = Packet {
            source,
            destination,
            tag,
            chunk,
            body,
        };
        from.send(to, &packet);
        let patience = if expected { PATIENCE } else { GRACE };
        to.hears(from, &packet, patience).is_some()
    }
}

/// Body of INIT and INIT ACK (RFC 9260 3.3.2): tag, window, streams, first number.
fn initiation(tag: u32) -> Vec<u8> {
    let mut body = tag.to_be_bytes().to_vec();
    body.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    body
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        // A DATA chunk is a whole, unordered message.
        bytes.extend([self.chunk, if self.chunk == DATA { 3 } else { 0 }]);
        bytes.extend(u16::try_from(self.body.len() + 4).expect("short").to_be_bytes());
        bytes.extend(&self.body);
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            source: word(0)?,
            destination: word(2)?,
            tag: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
            chunk: *bytes.get(12)?,
            body: bytes.get(16..)?.to_vec(),
        })
    }
}

/// The checksum (RFC 9260 appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let by_bit = |sum: u32, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |sum: u32, byte| (0..8).fold(sum ^ u32::from(*byte), by_bit))
}
