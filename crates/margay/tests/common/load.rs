//! Packets all the time, while something else happens.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linux::netns::{self, Netns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::net::{L4, any, socket};

/// Packets to many at once, without pause until it is dropped.
pub struct Spray {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Spray {
    pub fn start(from: &str, to: Vec<SocketAddr>) -> Self {
        Netns::open(&netns::path(from)).unwrap_or_else(|error| panic!("{from}: {error}"));
        Self::from_birth(from, to)
    }

    /// From a namespace that may not be there yet: as soon as it is, before it has a device or an address.
    pub fn from_birth(from: &str, to: Vec<SocketAddr>) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, told) = (sent.clone(), stop.clone());
        let (from, family) = (from.to_owned(), to[0].ip());
        let to: Vec<SockAddr> = to.into_iter().map(SockAddr::from).collect();
        let thread = std::thread::spawn(move || {
            let born = || netns::run_in(&netns::path(&from), || socket(&from, L4::Udp, family));
            let mut found = born();
            while found.is_err() && !told.load(Ordering::Relaxed) {
                std::thread::yield_now();
                found = born();
            }
            let Ok(socket) = found else { return };
            while !told.load(Ordering::Relaxed) {
                for target in &to {
                    // What is refused, or finds a full queue, is sent again soon.
                    let _ = socket.send_to(b"spray", target);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            sent,
            stop,
            thread: Some(thread),
        }
    }

    /// Packets to one target, each of them a flow of its own.
    pub fn of_flows(from: &str, to: SocketAddr) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, told) = (sent.clone(), stop.clone());
        let netns = Netns::open(&netns::path(from)).expect("the namespace");
        let thread = std::thread::spawn(move || {
            let work = || {
                // Far from the ports that are used once each. What was refused is remembered by nobody.
                let mut ports = (30_000..65_000_u16).cycle();
                while !told.load(Ordering::Relaxed) {
                    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).expect("a socket");
                    let port = ports.next().expect("they never end");
                    socket
                        .bind(&SocketAddr::from((any(to.ip()), port)).into())
                        .expect("a free port");
                    let _ = socket.send_to(b"spray", &to.into());
                    count.fetch_add(1, Ordering::Relaxed);
                }
            };
            netns.run(work).expect("the namespace");
        });
        Self {
            sent,
            stop,
            thread: Some(thread),
        }
    }

    /// Waits until each target was sent so many more packets.
    pub fn wait_for(&self, more: u64) {
        let now = self.sent.load(Ordering::Relaxed);
        while self.sent.load(Ordering::Relaxed) < now + more {
            std::thread::yield_now();
        }
    }
}

impl Drop for Spray {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A flow of its own every ten milliseconds; what comes of each.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Socket>>>,
}

impl Pulse {
    pub fn start(from: &str, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, netns, place) = (
            stop.clone(),
            Netns::open(&netns::path(from)).expect("the namespace"),
            from.to_owned(),
        );
        let thread = std::thread::spawn(move || {
            let work = || {
                let mut sent = Vec::new();
                let beginning = Instant::now();
                while !told.load(Ordering::Relaxed) {
                    let socket = socket(&place, L4::Udp, to.ip());
                    socket.connect(&to.into()).expect("a route");
                    socket.send(b"pulse").expect("it leaves");
                    sent.push(socket);
                    let next = Duration::from_millis(10) * u32::try_from(sent.len()).expect("a test is short");
                    let left = next.saturating_sub(beginning.elapsed());
                    let _ = poll(&mut [], PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
                }
                sent
            };
            netns.run(work).expect("the namespace")
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it without waiting for answers: how many were sent.
    pub fn stop(mut self) -> usize {
        self.sockets().len()
    }

    /// Ends it: how many were sent, and which of them were lost: not answered long after the last.
    pub fn end(mut self) -> (usize, Vec<usize>) {
        let sockets = self.sockets();
        let patience = Instant::now() + Duration::from_secs(5);
        let answered = |socket: &Socket| {
            let left = patience.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            socket.recv(&mut buffer).is_ok()
        };
        let lost = (0..sockets.len()).filter(|nth| !answered(&sockets[*nth]));
        (sockets.len(), lost.collect())
    }

    fn sockets(&mut self) -> Vec<Socket> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .map(|thread| thread.join().expect("the pulse"))
            .unwrap_or_default()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
