//! Notifications of the kernel as a stream of events.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use futures::stream::BoxStream;
use kernel::{KernelError, KernelEvent, Link, Mac, Neighbor};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::NeighbourMessage;

use crate::decode::{self, Names};
use crate::encode;
use crate::notify::Notifications;
use crate::request::{self, Failure, Socket};
use crate::stream::{self, Source};
use crate::{rtnl, shaper};

/// A subscribed socket and what is needed to understand its messages.
pub(crate) struct Listener {
    socket: Notifications,
    view: View,
}

/// Room for some 20,000 route notifications while the agent is busy.
const RECEIVE_BUFFER: i32 = 16 << 20;

/// Subscribes in the calling thread's namespace.
pub(crate) fn open() -> Result<Listener, KernelError> {
    subscribe(RECEIVE_BUFFER)
        .map_err(|error| KernelError::Broken(format!("subscribing to the kernel's notifications: {error}")))
}

fn subscribe(buffer: i32) -> io::Result<Listener> {
    let groups = [
        libc::RTNLGRP_LINK,
        libc::RTNLGRP_NEIGH,
        libc::RTNLGRP_TC,
        libc::RTNLGRP_IPV4_IFADDR,
        libc::RTNLGRP_IPV4_ROUTE,
        libc::RTNLGRP_IPV4_RULE,
        libc::RTNLGRP_IPV6_IFADDR,
        libc::RTNLGRP_IPV6_ROUTE,
        libc::RTNLGRP_IPV6_RULE,
        libc::RTNLGRP_IPV4_NETCONF,
        libc::RTNLGRP_IPV6_NETCONF,
    ];
    let socket = Notifications::open(&groups, buffer, &[])?;
    let mut view = View {
        requests: Socket::open()?,
        links: HashMap::new(),
        names: Names::new(),
        permanent: HashMap::new(),
    };
    view.refresh()
        .map_err(|failure| io::Error::other(failure.to_string()))?;
    Ok(Listener { socket, view })
}

impl Listener {
    /// As a stream; must be called inside a tokio runtime.
    pub fn into_stream(self) -> Result<BoxStream<'static, KernelEvent>, KernelError> {
        stream::events(self).map_err(|error| KernelError::Broken(error.to_string()))
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Source for Listener {
    type Event = KernelEvent;
    const LOST: KernelEvent = KernelEvent::Resync;
    const AT_ONCE: usize = 64;

    fn receive(&mut self, events: &mut VecDeque<KernelEvent>) -> io::Result<()> {
        for message in self.socket.receive()? {
            self.view.take(&message, events);
        }
        Ok(())
    }

    fn recover(&mut self) -> bool {
        self.view.refresh().is_ok()
    }
}

/// What messages refer to: devices by number, and which neighbours were permanent.
struct View {
    requests: Socket,
    links: HashMap<u32, Link>,
    names: Names,
    permanent: HashMap<(u32, IpAddr), Mac>,
}

impl View {
    fn refresh(&mut self) -> Result<(), Failure> {
        let (links, permanent) = (RefCell::new(HashMap::new()), RefCell::new(HashMap::new()));
        self.requests.dump(
            Message::GetLink(encode::link_dump()),
            || links.borrow_mut().clear(),
            |_, payload| {
                links
                    .borrow_mut()
                    .extend(decode::link(payload).map(|link| (link.index, link)))
            },
        )?;
        self.requests.dump(
            Message::GetNeighbour(NeighbourMessage::default()),
            || permanent.borrow_mut().clear(),
            |_, payload| {
                let entry = decode::neighbor(payload);
                permanent
                    .borrow_mut()
                    .extend(entry.and_then(|e| Some(((e.index, e.address), e.permanent?))));
            },
        )?;
        self.links = links.into_inner();
        self.permanent = permanent.into_inner();
        self.names = self
            .links
            .values()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        Ok(())
    }

    fn take(&mut self, message: &request::Message<'_>, queue: &mut VecDeque<KernelEvent>) {
        const NEWLINK: u16 = 16;
        const DELLINK: u16 = 17;
        const NEWADDR: u16 = 20;
        const DELADDR: u16 = 21;
        const NEWROUTE: u16 = 24;
        const DELROUTE: u16 = 25;
        const NEWNEIGH: u16 = 28;
        const DELNEIGH: u16 = 29;
        const NEWRULE: u16 = 32;
        const DELRULE: u16 = 33;
        const NEWQDISC: u16 = 36;
        const DELQDISC: u16 = 37;
        const DELTFILTER: u16 = 45;
        const NEWNETCONF: u16 = 80;
        let payload = message.payload;
        match message.kind {
            NEWLINK => queue.extend(decode::link(payload).into_iter().flat_map(|link| self.link(link))),
            DELLINK => queue.extend(decode::link(payload).and_then(|link| self.link_gone(&link))),
            NEWADDR | DELADDR => {
                let address = decode::address(payload, &self.names);
                queue.extend(address.map(|address| KernelEvent::Address(address, message.kind == NEWADDR)));
            }
            NEWROUTE => queue.extend(decode::route(payload, &self.names).map(KernelEvent::Route)),
            DELROUTE => queue.extend(decode::route(payload, &self.names).map(KernelEvent::RouteGone)),
            NEWNEIGH | DELNEIGH => queue.extend(self.neighbor(payload, message.kind == NEWNEIGH)),
            NEWRULE | DELRULE => {
                queue.extend(decode::rule(payload).map(|rule| KernelEvent::Rule(rule, message.kind == NEWRULE)));
            }
            NEWNETCONF => {
                queue.extend(decode::forwarding(payload).map(|(family, on)| KernelEvent::Forwarding(family, on)));
            }
            NEWQDISC | DELQDISC => {
                let ours = rtnl::own_shaper(payload);
                queue.extend(ours.and_then(|(index, shaper)| {
                    let key = shaper::key(self.links.get(&index)?);
                    Some(KernelEvent::Shaper(key, (message.kind == NEWQDISC).then_some(shaper)))
                }));
            }
            // Perhaps the tunnel's program, or the way of a shaper.
            DELTFILTER => queue.push_back(KernelEvent::Resync),
            _ => {}
        }
    }

    /// The kernel announces a device for many reasons that we do not look at.
    fn link(&mut self, link: Link) -> Vec<KernelEvent> {
        let old = self.links.insert(link.index, link.clone());
        self.names.insert(link.index, link.name.clone());
        match old {
            Some(old) if old == link => Vec::new(),
            Some(old) if old.name != link.name => vec![KernelEvent::LinkGone(old.name), KernelEvent::Link(link)],
            _ => vec![KernelEvent::Link(link)],
        }
    }

    fn link_gone(&mut self, link: &Link) -> Option<KernelEvent> {
        self.permanent.retain(|(index, _), _| *index != link.index);
        self.names.remove(&link.index);
        self.links
            .remove(&link.index)
            .map(|link| KernelEvent::LinkGone(link.name))
    }

    fn neighbor(&mut self, payload: &[u8], new: bool) -> Option<KernelEvent> {
        let entry = decode::neighbor(payload)?;
        let key = (entry.index, entry.address);
        if let Some(mac) = entry.permanent.filter(|_| new) {
            let known = self.permanent.insert(key, mac) == Some(mac);
            return entry
                .object(&self.names)
                .filter(|_| !known)
                .map(|neighbor| KernelEvent::Neighbor(neighbor, true));
        }
        // Deleted, or no longer permanent.
        let mac = self.permanent.remove(&key)?;
        let device = self.names.get(&entry.index)?.clone();
        Some(KernelEvent::Neighbor(
            Neighbor {
                device,
                address: entry.address,
                mac,
            },
            false,
        ))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use testkit::netns::{in_netns, tool};

    use super::*;

    #[test]
    fn lost_notifications_are_announced_and_the_stream_goes_on() {
        in_netns(|| async {
            let mut events = subscribe(4096)
                .expect("subscribes")
                .into_stream()
                .expect("in a runtime");
            for number in 0..50 {
                tool(&format!("ip route add blackhole 10.0.0.{number}"));
            }
            let mut seen = 0;
            while let Some(KernelEvent::Route(_)) = events.next().await {
                seen += 1;
            }
            assert!(seen < 50, "the event that ended the loop was the announcement");
            tool("ip link set lo mtu 1400");
            while !matches!(events.next().await, Some(KernelEvent::Link(link)) if link.mtu == 1400) {}
        });
    }
}
