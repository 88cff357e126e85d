//! What rules log to a group (NFLOG), packet by packet.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use futures::stream::BoxStream;
use kernel::IfName;

use crate::decode::Attributes;
use crate::nfnetlink::{GENERIC, Socket, Target, ULOG, be32, text};
use crate::request::{Failure, Messages};
use crate::sockopt;
use crate::stream::{self, Source};

mod packet;

/// One packet that a rule logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What the rule says.
    pub prefix: String,
    /// Where the packet was: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// The device that it came from.
    pub input: Option<IfName>,
    /// The device that it goes to.
    pub output: Option<IfName>,
    /// The packet's mark.
    pub mark: u32,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IP protocol, the last one of an IPv6 header chain.
    pub protocol: u8,
    /// Source and destination port, if the protocol has them and the first fragment was copied.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code, likewise.
    pub icmp: Option<(u8, u8)>,
    /// Bytes of the packet from its IP header on, as the header says.
    pub length: u32,
}

/// What a group's listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NflogEvent {
    /// A packet.
    Packet(Logged),
    /// Some packets were not told: the listener was too slow.
    Lost,
}

/// How a group is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NflogSettings {
    /// The group.
    pub group: u16,
    /// Bytes of each packet that are looked at.
    pub snaplen: u32,
    /// The kernel keeps packets back so long, in hundredths of a second, to hand out several at once.
    pub wait: u32,
}

impl NflogSettings {
    /// Headers alone, and at most a tenth of a second late.
    pub fn of(group: u16) -> Self {
        Self {
            group,
            snaplen: 128,
            wait: 10,
        }
    }
}

const CONFIG: u16 = 1;
const PACKET: u16 = ULOG << 8;
/// The kernel gathers so many bytes before it hands them out.
const GATHER: u32 = 32 * 1024;
/// Room for what comes while the reader is busy.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// Listens to a group in the calling thread's namespace. Must be called inside a tokio runtime. A group has one listener:
/// another is refused (EBUSY).
pub fn listen(settings: NflogSettings) -> Result<BoxStream<'static, NflogEvent>, Failure> {
    let broken = |error: io::Error| Failure::Broken(error.to_string());
    let mut socket = Socket::open().map_err(broken)?;
    sockopt::receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
    let target = Target {
        subsystem: ULOG,
        operation: CONFIG,
        family: libc::AF_UNSPEC as u8,
        resource: settings.group,
    };
    const BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    socket.request(target, 0, |bytes| bytes.put(1, &[BIND]))?;
    socket.request(target, 0, |bytes| {
        let mut mode = settings.snaplen.to_be_bytes().to_vec();
        mode.extend_from_slice(&[COPY_PACKET, 0]);
        bytes.put(2, &mode);
        bytes.be32(3, GATHER);
        bytes.be32(4, settings.wait);
    })?;
    socket.set_non_blocking().map_err(broken)?;
    stream::events(Listener(socket)).map_err(broken)
}

struct Listener(Socket);

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Source for Listener {
    type Event = NflogEvent;
    const LOST: NflogEvent = NflogEvent::Lost;
    const AT_ONCE: usize = 16;

    fn receive(&mut self, events: &mut VecDeque<NflogEvent>) -> io::Result<()> {
        self.0.take(|socket, datagram| read_all(socket, datagram, events))
    }
}

/// The packets of a datagram. Devices are named as they are called now.
fn read_all(socket: std::os::fd::BorrowedFd<'_>, datagram: &[u8], queue: &mut VecDeque<NflogEvent>) {
    let mut names = HashMap::new();
    let mut name = |index: u32| {
        let known = names.entry(index);
        known
            .or_insert_with(|| sockopt::device_name(socket, index).ok().flatten())
            .clone()
    };
    for message in Messages(datagram).filter(|message| message.kind == PACKET) {
        queue.extend(read(message.payload, &mut name).map(NflogEvent::Packet));
    }
}

fn read(payload: &[u8], name: &mut impl FnMut(u32) -> Option<IfName>) -> Option<Logged> {
    let (mut prefix, mut hook, mut mark) = ("", 0, 0);
    let (mut input, mut output, mut bytes) = (None, None, &[][..]);
    for (kind, value) in Attributes(payload.get(GENERIC..)?) {
        match kind {
            1 => hook = *value.get(2)?,
            2 => mark = be32(value)?,
            4 => input = be32(value),
            5 => output = be32(value),
            9 => bytes = value,
            10 => prefix = text(value),
            _ => {}
        }
    }
    let packet = packet::read(bytes)?;
    Some(Logged {
        prefix: prefix.to_owned(),
        hook,
        input: input.and_then(&mut *name),
        output: output.and_then(name),
        mark,
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        ports: packet.ports,
        icmp: packet.icmp,
        length: packet.length,
    })
}
