//! Which route keys others hold, so that replacing a route of ours never replaces one of theirs.
//!
//! The kernel replaces a route whatever its protocol. New routes are therefore sent with `NLM_F_EXCL`; only if the key
//! is taken does it matter by whom. Asking means a dump of all routes, so the answer is kept: one dump, then the kernel's
//! notifications, of which a socket filter lets through only those about routes that are not ours.

use std::collections::HashMap;
use std::io;

use kernel::{IpFamily, PROTOCOL_OURS, RouteKey};
use netlink_packet_route::RouteNetlinkMessage as Message;

use crate::decode::{self, Names};
use crate::encode::{canonical, route_dump};
use crate::notify::Notifications;
use crate::request::{Failure, Socket};
use crate::sockopt::{self, Filter};

/// The routes of others: key to protocol.
pub(crate) struct ForeignRoutes {
    socket: Notifications,
    known: HashMap<RouteKey, u8>,
    /// `known` is complete but for what waits in the socket.
    primed: bool,
}

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// Offset of `rtm_protocol`: behind the netlink header, the sixth byte of `rtmsg`.
const PROTOCOL_AT: u32 = 16 + 5;

impl ForeignRoutes {
    /// Opens the notification socket in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let not_ours = [
            Filter {
                code: sockopt::LOAD_BYTE,
                jt: 0,
                jf: 0,
                k: PROTOCOL_AT,
            },
            Filter {
                code: sockopt::JUMP_EQ,
                jt: 0,
                jf: 1,
                k: u32::from(PROTOCOL_OURS),
            },
            Filter {
                code: sockopt::RETURN,
                jt: 0,
                jf: 0,
                k: 0,
            },
            Filter {
                code: sockopt::RETURN,
                jt: 0,
                jf: 0,
                k: u32::MAX,
            },
        ];
        let groups = [libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE];
        let socket = Notifications::open(&groups, 1 << 20, &not_ours)?;
        Ok(Self {
            socket,
            known: HashMap::new(),
            primed: false,
        })
    }

    /// The protocol of the route in the way, if it is neither ours nor the `wanted` one.
    pub fn holder(&mut self, key: &RouteKey, wanted: u8, requests: &mut Socket) -> Result<Option<u8>, Failure> {
        let key = canonical(key);
        let fresh = !self.primed;
        if fresh {
            self.prime(requests)?;
        }
        self.drain();
        if !self.primed {
            self.prime(requests)?;
            self.drain();
        } else if !fresh && self.known.contains_key(&key) {
            // IPv4 routes that go with their device go without a notification: look again before refusing.
            self.prime(requests)?;
        }
        Ok(self.known.get(&key).copied().filter(|protocol| *protocol != wanted))
    }

    fn prime(&mut self, requests: &mut Socket) -> Result<(), Failure> {
        let names = Names::new();
        let known = std::cell::RefCell::new(HashMap::new());
        for family in IpFamily::BOTH {
            requests.dump(
                Message::GetRoute(route_dump(family)),
                || {
                    known
                        .borrow_mut()
                        .retain(|key: &RouteKey, _| IpFamily::of(&key.destination.addr()) != family)
                },
                |_, payload| {
                    if let Some(route) = decode::route(payload, &names)
                        && route.protocol != PROTOCOL_OURS
                    {
                        known.borrow_mut().insert(route.key, route.protocol);
                    }
                },
            )?;
        }
        self.known = known.into_inner();
        self.primed = true;
        Ok(())
    }

    fn drain(&mut self) {
        let names = Names::new();
        loop {
            let messages = match self.socket.receive() {
                Ok(messages) => messages,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Notifications were lost: only a dump helps. The error is cleared by having been told.
                Err(_) => {
                    self.primed = false;
                    return;
                }
            };
            for message in messages {
                let Some(route) = decode::route(message.payload, &names) else {
                    continue;
                };
                match message.kind {
                    RTM_NEWROUTE => drop(self.known.insert(route.key, route.protocol)),
                    RTM_DELROUTE => drop(self.known.remove(&route.key)),
                    _ => {}
                }
            }
        }
    }
}
