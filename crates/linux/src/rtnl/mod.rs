//! The few rtnetlink requests that the tunnel and the shapers need, one at a time and each awaited.
//!
//! A socket belongs to the network namespace of the thread that opened it.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use kernel::{IfName, KernelError, Mac};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use wire::{HEADER, Message, attribute, i32_at, ipv4, split_message, u16_at, u32_at};

mod tc;
mod wire;

pub use tc::{Qdisc, own_shaper};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
pub const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// Where filters for received packets hang.
pub const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Where filters for packets to be sent hang.
pub const CLSACT_EGRESS: u32 = 0xffff_fff3;

/// `ARPHRD_ETHER`.
pub const ETHERNET: u16 = 1;

/// Which filter: its place and the name of its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterId {
    /// `TCA_BPF_NAME`.
    pub name: &'static str,
    /// Lower first.
    pub priority: u16,
    /// Within the priority.
    pub handle: u32,
    /// `ETH_P_*` that it sees.
    pub protocol: u16,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    pub kind: String,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// `IFF_*`.
    pub flags: u32,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub alias: String,
    /// Packets sent, as the device counts them.
    pub sent: u64,
}

impl Device {
    /// Whether all of these `IFF_*` are set.
    pub fn has(&self, flags: i32) -> bool {
        self.flags & flags as u32 == flags as u32
    }
}

/// Changes to a device; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    /// Values and mask of `IFF_*`.
    pub flags: Option<(i32, i32)>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub alias: Option<&'a str>,
    pub name: Option<&'a str>,
}

/// What the kernel answered instead of doing it.
#[derive(Debug)]
pub struct Refusal {
    pub errno: i32,
    text: String,
    what: String,
}

/// A request's outcome. `Err` is the channel's failure, `Ok(Err)` the kernel's refusal.
type Answer<T> = Result<Result<T, Refusal>, KernelError>;

/// A blocking rtnetlink socket.
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Comfort only: error texts, filtered dumps.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(socket)
        };
        open().map(|socket| Self { socket, sequence: 0 }).map_err(broken)
    }

    // === devices ===

    /// The device of that name.
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, KernelError> {
        let mut message = Message::link(RTM_GETLINK, 0, 0);
        message.text(libc::IFLA_IFNAME, name);
        self.find_device(message, name)
    }

    /// The device of that number.
    pub fn device_by_index(&mut self, index: u32) -> Result<Option<Device>, KernelError> {
        self.find_device(Message::link(RTM_GETLINK, 0, index), "device")
    }

    /// All devices.
    pub fn devices(&mut self) -> Result<Vec<Device>, KernelError> {
        let replies = done(self.call(Message::link(RTM_GETLINK, NLM_F_DUMP, 0), "list devices")?)?;
        Ok(replies.iter().filter_map(|reply| parse_device(reply)).collect())
    }

    /// Creates a veth pair; only the first end gets MAC and MTU, the other end is its equal.
    pub fn create_veth(&mut self, name: &str, peer: &str, mac: Mac, mtu: u32) -> Result<(), KernelError> {
        let mut message = Message::link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, 0);
        message.text(libc::IFLA_IFNAME, name);
        message.bytes(libc::IFLA_ADDRESS, &mac.0);
        message.u32(libc::IFLA_MTU, mtu);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(1, |peer_info| {
                    peer_info.raw(&[0; 16]);
                    peer_info.text(libc::IFLA_IFNAME, peer);
                    peer_info.u32(libc::IFLA_MTU, mtu);
                });
            });
        });
        done(self.call(message, &format!("create {name}"))?).map(drop)
    }

    /// Creates a device of the kernel's `ipip` driver, which loads the driver. `ends`: local and remote, else any.
    pub fn create_ipip(&mut self, name: &str, ends: Option<(Ipv4Addr, Ipv4Addr)>) -> Answer<()> {
        let mut message = Message::link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, 0);
        message.text(libc::IFLA_IFNAME, name);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "ipip");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                if let Some((local, remote)) = ends {
                    data.bytes(2, &local.octets());
                    data.bytes(3, &remote.octets());
                }
                // As the driver's own fallback device: the inner packet decides about DF.
                data.bytes(10, &[0]);
            });
        });
        Ok(self.call(message, &format!("create {name}"))?.map(drop))
    }

    /// Creates an `ifb` device, down, which loads the driver.
    pub fn create_ifb(&mut self, name: &str, mac: Mac) -> Answer<()> {
        let mut message = Message::link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, 0);
        message.text(libc::IFLA_IFNAME, name);
        message.bytes(libc::IFLA_ADDRESS, &mac.0);
        message.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "ifb"));
        Ok(self.call(message, &format!("create {name}"))?.map(drop))
    }

    /// Changes a device.
    pub fn change(&mut self, index: u32, change: &Change<'_>) -> Result<(), KernelError> {
        let mut message = Message::link(RTM_SETLINK, NLM_F_ACK, index);
        if let Some((flags, mask)) = change.flags {
            message.patch(HEADER + 8, &(flags as u32).to_ne_bytes());
            message.patch(HEADER + 12, &(mask as u32).to_ne_bytes());
        }
        if let Some(mtu) = change.mtu {
            message.u32(libc::IFLA_MTU, mtu);
        }
        if let Some(mac) = change.mac {
            message.bytes(libc::IFLA_ADDRESS, &mac.0);
        }
        if let Some(alias) = change.alias {
            message.bytes(libc::IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(name) = change.name {
            message.text(libc::IFLA_IFNAME, name);
        }
        done(self.call(message, "change the device")?).map(drop)
    }

    /// Forbids a device to make itself an IPv6 link-local address. Fine where there is no IPv6.
    pub fn forbid_ipv6_link_local(&mut self, index: u32) -> Result<(), KernelError> {
        let mut message = Message::link(RTM_SETLINK, NLM_F_ACK, index);
        message.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET6 as u16, |v6| v6.bytes(8, &[1]));
        });
        let answer = self.call(message, "forbid link-local addresses")?;
        accept(answer.map(drop), &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP])
    }

    /// Deletes a device; absence is fine.
    pub fn delete_device(&mut self, index: u32) -> Result<(), KernelError> {
        let answer = self.call(Message::link(RTM_DELLINK, NLM_F_ACK, index), "delete the device")?;
        accept(answer.map(drop), &[libc::ENODEV])
    }

    // === addresses ===

    /// IPv4 addresses of a device, the primary first.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<(Ipv4Addr, u8)>, KernelError> {
        let message = Message::address(RTM_GETADDR, NLM_F_DUMP, index, 0);
        let replies = done(self.call(message, "list addresses")?)?;
        let parse = |reply: &Vec<u8>| {
            let (prefix, of) = (*reply.get(1)?, u32_at(reply, 4)?);
            let address = attribute(reply.get(8..)?, libc::IFA_LOCAL)?;
            (of == index).then_some((ipv4(address)?, prefix))
        };
        Ok(replies.iter().filter_map(parse).collect())
    }

    /// Adds a /32.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr) -> Result<(), KernelError> {
        let mut message = Message::address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, index, 32);
        message.bytes(libc::IFA_LOCAL, &address.octets());
        message.bytes(libc::IFA_ADDRESS, &address.octets());
        let answer = self.call(message, &format!("add address {address}"))?;
        accept(answer.map(drop), &[libc::EEXIST])
    }

    /// Deletes an address; absence is fine.
    pub fn delete_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), KernelError> {
        let mut message = Message::address(RTM_DELADDR, NLM_F_ACK, index, prefix);
        message.bytes(libc::IFA_LOCAL, &address.octets());
        let answer = self.call(message, &format!("delete address {address}"))?;
        accept(answer.map(drop), &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }

    // === neighbours ===

    /// Permanent IPv4 neighbours of a device.
    pub fn neighbors(&mut self, index: u32) -> Result<Vec<(Ipv4Addr, Mac)>, KernelError> {
        let mut message = Message::neighbor(RTM_GETNEIGH, NLM_F_DUMP, 0);
        message.u32(libc::NDA_IFINDEX, index);
        let replies = done(self.call(message, "list neighbours")?)?;
        let parse = |reply: &Vec<u8>| {
            let (of, state) = (u32_at(reply, 4)?, u16_at(reply, 8)?);
            let attributes = reply.get(12..)?;
            let address = ipv4(attribute(attributes, libc::NDA_DST)?)?;
            let mac = Mac(attribute(attributes, libc::NDA_LLADDR)?.try_into().ok()?);
            (of == index && state & libc::NUD_PERMANENT != 0).then_some((address, mac))
        };
        Ok(replies.iter().filter_map(parse).collect())
    }

    /// Adds or replaces a permanent neighbour.
    pub fn put_neighbor(&mut self, index: u32, address: Ipv4Addr, mac: Mac) -> Result<(), KernelError> {
        let mut message = Message::neighbor(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK, index);
        message.bytes(libc::NDA_DST, &address.octets());
        message.bytes(libc::NDA_LLADDR, &mac.0);
        done(self.call(message, &format!("add neighbour {address}"))?).map(drop)
    }

    /// Deletes a neighbour; absence is fine.
    pub fn delete_neighbor(&mut self, index: u32, address: Ipv4Addr) -> Result<(), KernelError> {
        let mut message = Message::neighbor(RTM_DELNEIGH, NLM_F_ACK, index);
        message.bytes(libc::NDA_DST, &address.octets());
        let answer = self.call(message, &format!("delete neighbour {address}"))?;
        accept(answer.map(drop), &[libc::ENOENT, libc::ENODEV])
    }

    // === traffic control ===

    /// Makes sure that a device has ingress (and egress) hooks. `true`: it had none before.
    pub fn ensure_clsact(&mut self, index: u32) -> Result<bool, KernelError> {
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        let mut message = Message::traffic(RTM_NEWQDISC, flags, index, CLSACT_HANDLE, CLSACT, 0);
        message.text(libc::TCA_KIND, "clsact");
        match self.call(message, "add the clsact queueing discipline")? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.errno == libc::EEXIST => Ok(false),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Removes `clsact` unless somebody's filter hangs there; absence is fine.
    pub fn delete_clsact_if_empty(&mut self, index: u32) -> Result<(), KernelError> {
        for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
            let message = Message::traffic(RTM_GETTFILTER, NLM_F_DUMP, index, 0, parent, 0);
            if self
                .call(message, "list filters")?
                .is_ok_and(|filters| !filters.is_empty())
            {
                return Ok(());
            }
        }
        let mut message = Message::traffic(RTM_DELQDISC, NLM_F_ACK, index, CLSACT_HANDLE, CLSACT, 0);
        message.text(libc::TCA_KIND, "clsact");
        let answer = self.call(message, "remove the clsact queueing discipline")?;
        accept(answer.map(drop), &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }

    /// The program of a filter, by number. `Foreign` if something else is in its place.
    pub fn filter(&mut self, index: u32, parent: u32, id: FilterId) -> Result<Option<u32>, KernelError> {
        let mut message = Message::traffic(RTM_GETTFILTER, 0, index, id.handle, parent, id.info());
        message.text(libc::TCA_KIND, "bpf");
        let Ok(replies) = self.call(message, "look for the filter")? else {
            return Ok(None);
        };
        let parse = |reply: &Vec<u8>| {
            let options = attribute(reply.get(20..)?, libc::TCA_OPTIONS)?;
            let name = attribute(options, 7)?.split(|byte| *byte == 0).next()?;
            Some((name == id.name.as_bytes(), u32_at(attribute(options, 11)?, 0)?))
        };
        match replies.iter().find_map(parse) {
            Some((true, program)) => Ok(Some(program)),
            Some((false, _)) => Err(KernelError::Foreign {
                what: format!("traffic filter {:#x} of priority {}", id.handle, id.priority),
            }),
            None => Ok(None),
        }
    }

    /// Puts a program in its place; one that is there is replaced between two packets.
    pub fn put_filter(&mut self, index: u32, parent: u32, id: FilterId, program: &OwnedFd) -> Result<(), KernelError> {
        let mut message = Message::traffic(
            RTM_NEWTFILTER,
            NLM_F_CREATE | NLM_F_ACK,
            index,
            id.handle,
            parent,
            id.info(),
        );
        message.text(libc::TCA_KIND, "bpf");
        message.nest(libc::TCA_OPTIONS, |options| {
            options.u32(6, program.as_raw_fd() as u32);
            options.text(7, id.name);
            options.u32(8, 1); // the program's answer is the action
        });
        done(self.call(message, &format!("attach {}", id.name))?).map(drop)
    }

    /// Takes a filter away; absence is fine. Ask [`Rtnl::filter`] first whose it is.
    pub fn delete_filter(&mut self, index: u32, parent: u32, id: FilterId) -> Result<(), KernelError> {
        let mut message = Message::traffic(RTM_DELTFILTER, NLM_F_ACK, index, id.handle, parent, id.info());
        message.text(libc::TCA_KIND, "bpf");
        let answer = self.call(message, &format!("detach {}", id.name))?;
        accept(answer.map(drop), &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }

    fn find_device(&mut self, message: Message, name: &str) -> Result<Option<Device>, KernelError> {
        match self.call(message, &format!("look at {name}"))? {
            Ok(replies) => Ok(replies.first().and_then(|reply| parse_device(reply))),
            Err(refusal) if refusal.errno == libc::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Sends a request and gathers the payloads of the answers.
    fn call(&mut self, mut message: Message, what: &str) -> Answer<Vec<Vec<u8>>> {
        self.sequence += 1;
        message.finish(self.sequence);
        self.socket.send(&message.buffer, 0).map_err(broken)?;
        let flags = message.flags();
        let (dump, acknowledged) = (flags & NLM_F_DUMP == NLM_F_DUMP, flags & NLM_F_ACK != 0);
        let mut replies = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(broken)?;
            let mut rest = datagram.as_slice();
            while let Some((header, payload, next)) = split_message(rest) {
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_DONE => return Ok(Ok(replies)),
                    NLMSG_ERROR => {
                        return Ok(match i32_at(payload, 0).unwrap_or(-libc::EIO) {
                            0 => Ok(replies),
                            code => Err(Refusal::new(-code, what, header.flags, payload)),
                        });
                    }
                    _ => {
                        replies.push(payload.to_vec());
                        if !dump && !acknowledged {
                            return Ok(Ok(replies));
                        }
                    }
                }
            }
        }
    }
}

impl FilterId {
    fn info(self) -> u32 {
        u32::from(self.priority) << 16 | u32::from(self.protocol.to_be())
    }
}

impl Refusal {
    fn new(errno: i32, what: &str, flags: u16, payload: &[u8]) -> Self {
        // After the number comes the request, cut to its header or whole, then perhaps attributes with words.
        let length = if flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            u32_at(payload, 4).unwrap_or(0) as usize
        };
        let words = (flags & NLM_F_ACK_TLVS != 0)
            .then(|| payload.get(4 + length.next_multiple_of(4)..))
            .flatten()
            .and_then(|attributes| attribute(attributes, 1))
            .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_string());
        let text = words.unwrap_or_else(|| std::io::Error::from_raw_os_error(errno).to_string());
        Self {
            errno,
            text,
            what: what.to_string(),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (errno {})", self.text, self.errno)
    }
}

impl From<Refusal> for KernelError {
    fn from(refusal: Refusal) -> Self {
        KernelError::Refused {
            what: refusal.what,
            reason: refusal.text,
            errno: refusal.errno,
        }
    }
}

/// Takes a refusal for an error.
pub fn done<T>(answer: Result<T, Refusal>) -> Result<T, KernelError> {
    answer.map_err(KernelError::from)
}

fn accept(answer: Result<(), Refusal>, fine: &[i32]) -> Result<(), KernelError> {
    match answer {
        Err(refusal) if !fine.contains(&refusal.errno) => Err(refusal.into()),
        _ => Ok(()),
    }
}

fn broken(error: std::io::Error) -> KernelError {
    KernelError::Broken(format!("rtnetlink: {error}"))
}

/// A refusal that says that the kernel has no such feature: `Unsupported`.
pub fn lacks(refusal: Refusal, what: &str) -> KernelError {
    match refusal.errno {
        libc::ENOENT | libc::EOPNOTSUPP => KernelError::Unsupported(format!("{what}: {refusal}")),
        _ => refusal.into(),
    }
}

/// `NoDevice`, spelled shortly.
pub fn no_device(name: &str) -> KernelError {
    KernelError::NoDevice(IfName::from(name))
}

fn parse_device(payload: &[u8]) -> Option<Device> {
    let attributes = payload.get(16..)?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_string();
    let kind = attribute(attributes, libc::IFLA_LINKINFO).and_then(|info| attribute(info, libc::IFLA_INFO_KIND));
    Some(Device {
        index: u32_at(payload, 4)?,
        name: text(attribute(attributes, libc::IFLA_IFNAME)?),
        kind: kind.map(text).unwrap_or_default(),
        hardware: u16_at(payload, 2)?,
        flags: u32_at(payload, 8)?,
        mtu: attribute(attributes, libc::IFLA_MTU).and_then(|value| u32_at(value, 0))?,
        mac: attribute(attributes, libc::IFLA_ADDRESS)
            .and_then(|value| value.try_into().ok())
            .map(Mac),
        alias: attribute(attributes, libc::IFLA_IFALIAS).map(text).unwrap_or_default(),
        sent: attribute(attributes, libc::IFLA_STATS64)
            .and_then(|stats| stats.get(8..16))
            .and_then(|value| value.try_into().ok())
            .map_or(0, u64::from_ne_bytes),
    })
}
