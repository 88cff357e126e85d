//! Devices, addresses, routes and neighbours, one at a time: for the lab and the CNI server.
//!
//! Every function acts in the network namespace of the socket that it is given.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::mpsc;
use std::thread;

use kernel::{Address, IfName, KernelError, Link, Mac, Neighbor, Route};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::decode;
use crate::encode;
pub use crate::encode::LinkSettings;
use crate::notify::Notifications;
use crate::request::{self, Failure, Request, Socket};

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a IfName,
    /// The namespace it is born in; `None`: the socket's.
    pub netns: Option<BorrowedFd<'a>>,
    /// Hardware address; `None`: the kernel's choice.
    pub mac: Option<Mac>,
    /// Bytes; `None`: 1500.
    pub mtu: Option<u32>,
}

/// Makes a veth pair, both ends down, each born where it belongs.
pub fn create_veth(socket: &mut Socket, first: &VethEnd<'_>, second: &VethEnd<'_>) -> Result<(), KernelError> {
    let mut message = end_message(first);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end_message(second)))),
    ]));
    create(socket, message, first.name)
}

fn end_message(end: &VethEnd<'_>) -> LinkMessage {
    let settings = LinkSettings {
        name: Some(end.name.clone()),
        mtu: end.mtu,
        mac: end.mac,
        ..LinkSettings::default()
    };
    let mut message = encode::link(0, &settings);
    // By itself the driver allocates a queue for each processor and then uses one, which it brings about by waiting for a grace
    // period while it holds the kernel's lock for devices (`veth_init_queues`).
    message.attributes.push(LinkAttribute::NumTxQueues(1));
    message.attributes.push(LinkAttribute::NumRxQueues(1));
    message
        .attributes
        .extend(end.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
    message
}

/// Makes a bridge, down.
pub fn create_bridge(socket: &mut Socket, name: &IfName) -> Result<(), KernelError> {
    let mut message = encode::link(
        0,
        &LinkSettings {
            name: Some(name.clone()),
            ..LinkSettings::default()
        },
    );
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    create(socket, message, name)
}

fn create(socket: &mut Socket, message: LinkMessage, name: &IfName) -> Result<(), KernelError> {
    socket
        .request(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(|failure| failure.about(format!("device {name}"), None))
}

/// Changes a device.
pub fn set(socket: &mut Socket, name: &IfName, settings: &LinkSettings) -> Result<(), KernelError> {
    let index = index(socket, name)?;
    socket
        .request(Message::SetLink(encode::link(index, settings)), 0)
        .map_err(|failure| failure.about(format!("device {name}"), Some(name)))
}

/// Sets a device up.
pub fn up(socket: &mut Socket, name: &IfName) -> Result<(), KernelError> {
    set(
        socket,
        name,
        &LinkSettings {
            up: Some(true),
            ..LinkSettings::default()
        },
    )
}

/// Moves a device into another namespace.
pub fn move_to(socket: &mut Socket, name: &IfName, netns: BorrowedFd<'_>) -> Result<(), KernelError> {
    let mut message = encode::link(index(socket, name)?, &LinkSettings::default());
    message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    socket
        .request(Message::SetLink(message), 0)
        .map_err(|failure| failure.about(format!("device {name}"), Some(name)))
}

/// Deletes a device and, for a veth, its other end. `false`: there was none. Takes tens of milliseconds: the kernel
/// waits for a grace period.
pub fn delete(socket: &mut Socket, name: &IfName) -> Result<bool, KernelError> {
    let what = format!("device {name}");
    let Some(index) = socket.index(name).map_err(|failure| failure.about(&what, None))? else {
        return Ok(false);
    };
    match socket.request(Message::DelLink(encode::link(index, &LinkSettings::default())), 0) {
        Ok(()) => Ok(true),
        Err(Failure::Refused {
            errno: libc::ENODEV, ..
        }) => Ok(false),
        Err(failure) => Err(failure.about(what, None)),
    }
}

/// Deletes a device like [`delete`], but returns when the kernel has taken it off its list, while the rest of the work
/// goes on on another thread.
///
/// What takes so long is that the kernel, having unlisted the device and let go of its lock, waits until no processor can
/// still be using it (`netdev_run_todo`). Nothing that the caller can do depends on that.
pub fn delete_and_go_on(socket: &mut Socket, name: &IfName) -> Result<bool, KernelError> {
    let what = format!("device {name}");
    let Some(index) = socket.index(name).map_err(|failure| failure.about(&what, None))? else {
        return Ok(false);
    };
    let broken = |error: io::Error| KernelError::Broken(error.to_string());
    let mut gone = Notifications::open(&[libc::RTNLGRP_LINK], 1 << 20, &[]).map_err(broken)?;
    let mut worker = Socket::open().map_err(broken)?;
    let (done, answer) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("link-delete".into())
        .spawn(move || {
            let result = worker.request(Message::DelLink(encode::link(index, &LinkSettings::default())), 0);
            // Nobody waits any more if the notification came first.
            let _ = done.send(result);
        })
        .map_err(broken)?;
    loop {
        while let Ok(mut messages) = gone.receive() {
            let is_it = |message: &request::Message<'_>| {
                message.kind == RTM_DELLINK && decode::link(message.payload).is_some_and(|link| link.index == index)
            };
            if messages.any(|message| is_it(&message)) {
                return Ok(true);
            }
        }
        match answer.try_recv() {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(Failure::Refused {
                errno: libc::ENODEV, ..
            })) => return Ok(false),
            Ok(Err(failure)) => return Err(failure.about(what, None)),
            Err(mpsc::TryRecvError::Disconnected) => return Err(broken(io::Error::other("the deletion was lost"))),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        // The answer of the worker is looked for between two waits.
        let mut wait = [PollFd::new(gone.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wait, PollTimeout::from(5u8));
    }
}

const RTM_DELLINK: u16 = 17;

/// A device as `RTM_GETLINK` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkDetails {
    /// The device.
    pub link: Link,
    /// The number of a veth's other end, in the namespace where that is.
    pub peer: Option<u32>,
}

/// Looks a device up; `None` if there is none of that name.
pub fn find(socket: &mut Socket, name: &IfName) -> Result<Option<LinkDetails>, KernelError> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message.attributes.push(LinkAttribute::IfName(name.0.clone()));
    socket
        .get(Message::GetLink(message), |payload| {
            Some(LinkDetails {
                link: decode::link(payload)?,
                peer: decode::peer_index(payload),
            })
        })
        .map_err(|failure| failure.about(format!("device {name}"), None))
}

/// All devices, by number.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, KernelError> {
    let mut links = std::cell::RefCell::new(Vec::new());
    socket
        .dump(
            Message::GetLink(encode::link_dump()),
            || links.borrow_mut().clear(),
            |_, payload| links.borrow_mut().extend(decode::link(payload)),
        )
        .map_err(|failure| failure.about("devices", None))?;
    Ok(std::mem::take(links.get_mut()))
}

/// The addresses of a device.
pub fn addresses(socket: &mut Socket, link: &Link) -> Result<Vec<Address>, KernelError> {
    let names = [(link.index, link.name.clone())].into();
    let mut found = std::cell::RefCell::new(Vec::new());
    socket
        .dump(
            Message::GetAddress(AddressMessage::default()),
            || found.borrow_mut().clear(),
            |_, payload| found.borrow_mut().extend(decode::address(payload, &names)),
        )
        .map_err(|failure| failure.about("addresses", Some(&link.name)))?;
    Ok(std::mem::take(found.get_mut()))
}

/// Adds an address; that it exists is fine.
pub fn add_address(socket: &mut Socket, address: &Address) -> Result<(), KernelError> {
    let index = index(socket, &address.device)?;
    let result = socket.request(
        Message::NewAddress(encode::address(address, index)),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    accept(result, &[libc::EEXIST])
        .map_err(|failure| failure.about(format!("address {}", address.net), Some(&address.device)))
}

/// Adds or replaces a route, whoever's it was: for namespaces that are all ours.
pub fn put_route(socket: &mut Socket, route: &Route) -> Result<(), KernelError> {
    let message = encode::route(route, |device| index(socket, device))?;
    socket
        .request(Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(|failure| failure.about(format!("route {}", route.key.destination), None))
}

/// Adds or replaces a permanent neighbour.
pub fn put_neighbor(socket: &mut Socket, neighbor: &Neighbor) -> Result<(), KernelError> {
    let index = index(socket, &neighbor.device)?;
    socket
        .request(
            Message::NewNeighbour(encode::neighbor(neighbor, index)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map_err(|failure| failure.about(format!("neighbour {}", neighbor.address), Some(&neighbor.device)))
}

/// The number of a device that must be there.
pub fn index(socket: &Socket, name: &IfName) -> Result<u32, KernelError> {
    socket
        .index(name)
        .map_err(|failure| failure.about(format!("device {name}"), None))?
        .ok_or_else(|| KernelError::NoDevice(name.clone()))
}

/// Sends requests that all must succeed; the first failure is the answer.
pub(crate) fn all(socket: &mut Socket, requests: &[Request], what: &str) -> Result<(), KernelError> {
    socket
        .send_all(requests)
        .and_then(|results| results.into_iter().collect::<Result<(), Failure>>())
        .map_err(|failure| failure.about(what, None))
}

pub(crate) fn accept(result: Result<(), Failure>, errnos: &[i32]) -> Result<(), Failure> {
    result.or_else(|failure| match failure.errno() {
        Some(errno) if errnos.contains(&errno) => Ok(()),
        _ => Err(failure),
    })
}
