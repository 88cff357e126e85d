//! Sockets inside pods: servers that answer, and many probes at once. Everything runs in the test's own process; a socket
//! stays in the network namespace that it was opened in.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linux::netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// What a probe is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum L4 {
    Tcp,
    Udp,
}

/// One attempt to reach somebody.
#[derive(Clone, Debug)]
pub struct Probe {
    /// A network namespace: its name, or its path.
    pub from: String,
    pub to: SocketAddr,
    pub l4: L4,
}

/// How long one that should arrive is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one that should not arrive is listened for, after all others have. Everything happens on one machine, where a
/// packet takes microseconds.
const GRACE: Duration = Duration::from_millis(25);

/// Sends all probes at once, first those that should not arrive; which ones were answered.
pub fn probe_all(probes: &[Probe], expected: &[bool]) -> Vec<bool> {
    let mut sockets: Vec<Option<Socket>> = probes.iter().map(|_| None).collect();
    let mut by_place: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_place.entry(&probe.from).or_default().push(index);
    }
    for (place, indices) in by_place {
        let opened = inside(place, || {
            indices
                .iter()
                .map(|index| open(place, &probes[*index]))
                .collect::<Vec<_>>()
        });
        for (index, socket) in indices.iter().zip(opened) {
            sockets[*index] = Some(socket);
        }
    }
    let sockets: Vec<Socket> = sockets.into_iter().flatten().collect();
    for wanted in [false, true] {
        for index in (0..probes.len()).filter(|index| expected[*index] == wanted) {
            let (probe, socket) = (&probes[index], &sockets[index]);
            // Under way, or refused at once: what comes of it is seen below.
            let _ = socket.connect(&probe.to.into());
            if probe.l4 == L4::Udp {
                let _ = socket.send(b"probe");
            }
        }
    }
    let mut answered = vec![false; probes.len()];
    let mut open: Vec<usize> = (0..probes.len()).collect();
    let patience = Instant::now() + PATIENCE;
    let mut grace = None;
    while !open.is_empty() {
        let now = Instant::now();
        if open.iter().all(|index| !expected[*index]) && grace.is_none() {
            grace = Some(now + GRACE);
        }
        let left = grace.unwrap_or(patience).saturating_duration_since(now);
        if left.is_zero() {
            break;
        }
        let events = |index: &usize| match probes[*index].l4 {
            L4::Tcp => PollFlags::POLLOUT,
            L4::Udp => PollFlags::POLLIN,
        };
        let mut polled: Vec<PollFd<'_>> = open
            .iter()
            .map(|index| PollFd::new(sockets[*index].as_fd(), events(index)))
            .collect();
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).expect("seconds");
        poll(&mut polled, timeout).expect("poll");
        let ready: Vec<usize> = open
            .iter()
            .zip(&polled)
            .filter(|(_, polled)| polled.any() == Some(true))
            .map(|(index, _)| *index)
            .collect();
        drop(polled);
        for index in ready {
            let socket = &sockets[index];
            answered[index] = match probes[index].l4 {
                L4::Tcp => matches!(socket.take_error(), Ok(None)) && socket.peer_addr().is_ok(),
                L4::Udp => socket.recv(&mut [std::mem::MaybeUninit::uninit(); 64]).is_ok(),
            };
            open.retain(|other| *other != index);
        }
    }
    answered
}

/// One UDP flow to a server, asked again and again: whether the next packet is answered.
pub fn flow(from: &str, to: SocketAddr) -> impl FnMut() -> bool + use<> {
    let socket = inside(from, || socket(from, L4::Udp, to.ip()));
    socket.connect(&to.into()).expect("UDP never waits");
    socket.set_nonblocking(false).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    move || socket.send(b"ping").is_ok() && (&socket).read(&mut [0; 64]).is_ok()
}

/// Whether one probe is answered; `expected` says how long it is waited for.
pub fn reaches(from: &str, to: SocketAddr, l4: L4, expected: bool) -> bool {
    let probe = Probe {
        from: from.to_owned(),
        to,
        l4,
    };
    probe_all(&[probe], &[expected])[0]
}

/// Runs work inside a network namespace: a name, or a path.
pub fn inside<T: Send>(place: &str, work: impl FnOnce() -> T + Send) -> T {
    netns::run_in(&netns::path(place), work).unwrap_or_else(|error| panic!("{place}: {error}"))
}

/// Source ports are used once each: connection tracking remembers the others.
static NEXT_PORT: Mutex<BTreeMap<String, u16>> = Mutex::new(BTreeMap::new());

fn next_port(place: &str) -> u16 {
    let mut ports = NEXT_PORT.lock().expect("nobody panics with it");
    let port = ports.entry(place.to_owned()).or_insert(10_000);
    *port += 1;
    *port
}

/// An unconnected socket with a source port that was not used before.
pub fn socket(place: &str, l4: L4, family: IpAddr) -> Socket {
    let (kind, protocol) = match l4 {
        L4::Tcp => (Type::STREAM, Protocol::TCP),
        L4::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let domain = match family {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, Some(protocol)).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    socket
        .bind(&SocketAddr::from((any(family), next_port(place))).into())
        .expect("an unused port");
    socket
}

/// No address, of the same family.
pub fn any(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    }
}

fn open(place: &str, probe: &Probe) -> Socket {
    socket(place, probe.l4, probe.to.ip())
}

/// Servers in any number of pods, all in one thread. UDP says back who it heard; TCP takes a connection and closes it.
pub struct Servers {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Servers at these ports of these namespaces, at all addresses there.
    pub fn start(at: &[(String, Vec<(L4, u16)>)]) -> Self {
        let mut sockets: Vec<(L4, Socket)> = Vec::new();
        for (place, ports) in at {
            sockets.extend(inside(place, || {
                ports
                    .iter()
                    .map(|(l4, port)| (*l4, listening(*l4, *port)))
                    .collect::<Vec<_>>()
            }));
        }
        let (stop, mut stopped) = UnixStream::pair().expect("a pair of sockets");
        let thread = std::thread::spawn(move || serve(&sockets, &mut stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn listening(l4: L4, port: u16) -> Socket {
    let (kind, protocol) = match l4 {
        L4::Tcp => (Type::STREAM, Protocol::TCP),
        L4::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol)).expect("a socket");
    socket.set_only_v6(false).expect("both families");
    socket.set_reuse_address(true).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&address.into()).expect("the port is free");
    if l4 == L4::Tcp {
        socket.listen(1024).expect("listening");
    }
    socket
}

fn serve(sockets: &[(L4, Socket)], stopped: &mut UnixStream) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
    loop {
        let ready: Vec<usize> = {
            let mut polled: Vec<PollFd<'_>> = sockets
                .iter()
                .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .chain([PollFd::new(stopped.as_fd(), PollFlags::POLLIN)])
                .collect();
            poll(&mut polled, PollTimeout::NONE).expect("poll");
            let ready = polled.iter().enumerate().filter(|(_, fd)| fd.any() == Some(true));
            ready.map(|(index, _)| index).collect()
        };
        for index in ready {
            let Some((l4, socket)) = sockets.get(index) else {
                let _ = stopped.read(&mut [0; 1]);
                return;
            };
            match l4 {
                L4::Tcp => while socket.accept().is_ok() {},
                L4::Udp => {
                    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(heard(&from).as_bytes(), &from);
                    }
                }
            }
        }
    }
}

fn heard(from: &SockAddr) -> String {
    let ip = from.as_socket().map(|address| address.ip().to_canonical());
    ip.map(|ip| ip.to_string()).unwrap_or_default()
}

/// Asks a UDP server under which address it sees the sender; `None`: no answer.
pub fn seen_as(from: &str, to: SocketAddr, patience: Duration) -> Option<IpAddr> {
    let socket = inside(from, || socket(from, L4::Udp, to.ip()));
    socket.set_nonblocking(false).ok()?;
    socket.set_read_timeout(Some(patience)).ok()?;
    socket.connect(&to.into()).ok()?;
    socket.send(b"who am I").ok()?;
    let mut buffer = [0; 64];
    let length = (&socket).read(&mut buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.parse().ok()
}

/// What arrived at a UDP port: when, and from whom. It answers.
pub struct Receiver {
    arrived: Arc<Mutex<Vec<(Instant, IpAddr)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// At a port of a namespace.
    pub fn start(place: &str, port: u16) -> Self {
        let socket = inside(place, || listening(L4::Udp, port));
        socket.set_nonblocking(false).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a socket");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (written, told) = (arrived.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            while !told.load(Ordering::Relaxed) {
                let Ok((_, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                // Written down before it is answered: who has the answer may look.
                if let Some(from) = from.as_socket() {
                    let mut arrived = written.lock().expect("nobody panics with it");
                    arrived.push((Instant::now(), from.ip().to_canonical()));
                }
                let _ = socket.send_to(b"heard", &from);
            }
        });
        Self {
            arrived,
            stop,
            thread: Some(thread),
        }
    }

    /// When packets of a sender arrived.
    pub fn heard(&self, from: IpAddr) -> Vec<Instant> {
        let arrived = self.arrived.lock().expect("nobody panics with it");
        arrived
            .iter()
            .filter(|(_, sender)| *sender == from)
            .map(|(at, _)| *at)
            .collect()
    }

    /// Forgets what has arrived.
    pub fn forget(&self) {
        self.arrived.lock().expect("nobody panics with it").clear();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// UDP packets that have come into a namespace over IPv4 and over IPv6, whether somebody listened or not.
pub fn datagrams_in(place: &str) -> [u64; 2] {
    let read = || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        (read("snmp").expect("counters"), read("snmp6").expect("counters"))
    };
    let (v4, v6) = inside(place, read);
    let mut lines = v4.lines().filter(|line| line.starts_with("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let v4: BTreeMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    let v6: BTreeMap<&str, &str> = v6
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .collect();
    let sum = |counters: &BTreeMap<&str, &str>, names: [&str; 2]| {
        let value = |name: &&str| counters[name].trim().parse::<u64>().expect("a number");
        names.iter().map(value).sum()
    };
    [
        sum(&v4, ["InDatagrams", "NoPorts"]),
        sum(&v6, ["Udp6InDatagrams", "Udp6NoPorts"]),
    ]
}

/// Sends one UDP packet from an address that may be anybody's. The namespace must have it somewhere.
pub fn send_as(place: &str, source: IpAddr, to: SocketAddr) {
    inside(place, || {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).expect("a socket");
        socket
            .bind(&SocketAddr::from((source, next_port(place))).into())
            .expect("the address is there");
        // That it is refused at once is as good.
        let _ = socket.send_to(b"from whom?", &to.into());
    });
}

/// A socket that sends and hears IP packets of a protocol.
pub fn raw(place: &str, protocol: i32) -> Socket {
    inside(place, || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(protocol))).expect("root may");
        socket.set_nonblocking(true).expect("a socket");
        socket
    })
}
