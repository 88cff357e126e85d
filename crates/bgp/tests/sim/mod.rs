//! A network of speakers in virtual time: in-memory connections with latency, partitions, crashes and restarts.
//!
//! The clock jumps from event to event, so minutes of protocol time take milliseconds and every run is the same.

#![allow(dead_code, reason = "every test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bgp::{Config, ConnId, Family, FibChange, FibRoute, Input, LocalRoute, Output, PeerConfig, PeerId, Speaker, State};
use ipnet::IpNet;

pub struct Network {
    pub start: Instant,
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub latency: fn(usize, usize) -> Duration,
    addresses: BTreeMap<IpAddr, usize>,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    /// Which endpoint is connected to which.
    pipes: BTreeMap<(usize, ConnId), (usize, ConnId)>,
    aborted: BTreeSet<(usize, u32, ConnId)>,
    cuts: BTreeSet<(usize, usize)>,
    parked: Vec<(u64, Event)>,
    next_accepted: u64,
}

pub struct Node {
    pub speaker: Option<Speaker>,
    pub config: Config,
    /// The sum of all FIB changes; survives a restart, as the kernel's does.
    pub fib: BTreeMap<IpNet, FibRoute>,
    /// How many routes were taken away.
    pub removals: usize,
    pub converged_at: Option<Instant>,
    /// Sessions that came up or ended, as text, with a mark if that was unexpected.
    pub sessions: Vec<String>,
    /// Number of `Converged` outputs of this life.
    pub converged: usize,
    generation: u32,
    wake_at: Option<Instant>,
}

#[derive(Debug)]
enum Event {
    Wake(usize),
    Syn {
        from: usize,
        generation: u32,
        conn: ConnId,
        to: IpAddr,
    },
    Deliver {
        from: usize,
        to: usize,
        generation: u32,
        input: Input,
    },
}

impl Network {
    pub fn new() -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            nodes: Vec::new(),
            latency: |_, _| Duration::from_millis(1),
            addresses: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            pipes: BTreeMap::new(),
            aborted: BTreeSet::new(),
            cuts: BTreeSet::new(),
            parked: Vec::new(),
            next_accepted: 1 << 63,
        }
    }

    /// Adds a node and starts its speaker.
    pub fn add(&mut self, config: Config) -> usize {
        let index = self.install(config);
        self.boot(index, false);
        index
    }

    /// Adds a node that does not run yet.
    pub fn install(&mut self, config: Config) -> usize {
        let index = self.nodes.len();
        let own = config
            .address_v4
            .map(IpAddr::V4)
            .into_iter()
            .chain(config.address_v6.map(IpAddr::V6));
        self.addresses.extend(own.map(|address| (address, index)));
        self.nodes.push(Node {
            speaker: None,
            config,
            fib: BTreeMap::new(),
            removals: 0,
            converged_at: None,
            sessions: Vec::new(),
            converged: 0,
            generation: 0,
            wake_at: None,
        });
        index
    }

    /// Starts a speaker where there is none.
    pub fn boot(&mut self, index: usize, restarted: bool) {
        let node = &mut self.nodes[index];
        let config = node.config.clone();
        node.generation += 1;
        node.wake_at = None;
        node.converged = 0;
        node.converged_at = None;
        if !restarted {
            node.fib.clear();
        }
        node.speaker = Some(match restarted {
            true => Speaker::restarted(self.now, config),
            false => Speaker::new(self.now, config),
        });
        self.step(index, Input::Wake);
    }

    /// Kills the process: its sockets close, nothing is said. The forwarding table stays.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].speaker = None;
        let owned: Vec<_> = self.pipes.keys().copied().filter(|(node, _)| *node == index).collect();
        for end in owned {
            self.close(end);
        }
    }

    /// The machine loses power: nobody hears of it.
    pub fn vanish(&mut self, index: usize) {
        self.nodes[index].speaker = None;
        self.pipes.retain(|(a, _), (b, _)| *a != index && *b != index);
    }

    /// The transport of all connections between two nodes is lost for both.
    pub fn break_connections(&mut self, a: usize, b: usize) {
        let ends: Vec<_> = self
            .pipes
            .iter()
            .filter(|((x, _), (y, _))| (*x, *y) == (a, b))
            .map(|(e, f)| (*e, *f))
            .collect();
        for (x, y) in ends {
            for end in [x, y] {
                self.pipes.remove(&end);
                self.step(end.0, Input::Closed(end.1));
            }
        }
    }

    /// From now on nothing gets through between two nodes.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    /// What waited gets through, as TCP sends again.
    pub fn heal(&mut self, a: usize, b: usize) {
        self.cuts.remove(&(a.min(b), a.max(b)));
        for (sequence, event) in std::mem::take(&mut self.parked) {
            // Its own old sequence number keeps it before what is under way.
            self.queue.insert((self.now, sequence), event);
        }
    }

    pub fn reconfigure(&mut self, index: usize, change: impl FnOnce(&mut Config)) {
        let node = &mut self.nodes[index];
        change(&mut node.config);
        let config = node.config.clone();
        let now = self.now;
        if let Some(speaker) = &mut node.speaker {
            let outputs = speaker.reconfigure(now, config);
            self.carry_out(index, outputs);
        }
    }

    pub fn shutdown(&mut self, index: usize) {
        let now = self.now;
        if let Some(speaker) = &mut self.nodes[index].speaker {
            let outputs = speaker.shutdown(now);
            self.carry_out(index, outputs);
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, sequence), event) = entry.remove_entry();
            self.now = at;
            self.handle(sequence, event);
        }
        self.now = end;
    }

    pub fn seconds(&mut self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    pub fn step(&mut self, index: usize, input: Input) {
        let now = self.now;
        if let Some(speaker) = &mut self.nodes[index].speaker {
            let outputs = speaker.step(now, input);
            self.carry_out(index, outputs);
        }
    }

    pub fn speaker(&self, index: usize) -> &Speaker {
        self.nodes[index].speaker.as_ref().expect("the node runs")
    }

    pub fn state(&self, of: usize, with: usize) -> State {
        self.status(of, with).state
    }

    pub fn status(&self, of: usize, with: usize) -> bgp::PeerStatus {
        let peer = peer_id(&self.nodes[with].config);
        self.speaker(of)
            .status()
            .into_iter()
            .find(|status| status.peer == peer)
            .expect("configured")
    }

    /// Next hops and metrics by prefix, as text.
    pub fn fib(&self, index: usize) -> Vec<String> {
        let text = |(prefix, route): (&IpNet, &FibRoute)| {
            let via: Vec<_> = route.next_hops.iter().map(IpAddr::to_string).collect();
            format!("{prefix} via {} metric {}", via.join(" "), route.metric)
        };
        self.nodes[index].fib.iter().map(text).collect()
    }

    fn handle(&mut self, sequence: u64, event: Event) {
        match event {
            Event::Wake(index) => {
                if self.nodes[index].wake_at != Some(self.now) {
                    return;
                }
                self.nodes[index].wake_at = None;
                self.step(index, Input::Wake);
            }
            Event::Syn {
                from,
                generation,
                conn,
                to,
            } => {
                let target = self.addresses.get(&to).copied();
                if target.is_some_and(|to| self.is_cut(from, to)) {
                    self.parked.push((
                        sequence,
                        Event::Syn {
                            from,
                            generation,
                            conn,
                            to,
                        },
                    ));
                    return;
                }
                if self.aborted.remove(&(from, generation, conn)) || self.nodes[from].generation != generation {
                    return;
                }
                let up = target.filter(|to| self.nodes[*to].speaker.is_some());
                let Some(up) = up else {
                    let refused = Input::ConnectFailed(conn, "Connection refused".into());
                    self.schedule(target.unwrap_or(from), from, refused);
                    return;
                };
                let accepted = ConnId(self.next_accepted);
                self.next_accepted += 1;
                self.pipes.insert((from, conn), (up, accepted));
                self.pipes.insert((up, accepted), (from, conn));
                self.schedule(up, from, Input::Connected(conn));
                let source = match to {
                    IpAddr::V4(_) => self.nodes[from].config.address_v4.map(IpAddr::V4),
                    IpAddr::V6(_) => self.nodes[from].config.address_v6.map(IpAddr::V6),
                };
                let source = SocketAddr::new(source.expect("has an address"), 40_000);
                self.step(up, Input::Accepted(accepted, source));
            }
            Event::Deliver {
                from,
                to,
                generation,
                input,
            } => {
                if self.is_cut(from, to) {
                    self.parked.push((
                        sequence,
                        Event::Deliver {
                            from,
                            to,
                            generation,
                            input,
                        },
                    ));
                    return;
                }
                if self.nodes[to].generation != generation {
                    return;
                }
                if let Input::Closed(conn) = &input {
                    self.pipes.remove(&(to, *conn));
                }
                self.step(to, input);
            }
        }
    }

    fn carry_out(&mut self, index: usize, outputs: Vec<Output>) {
        let generation = self.nodes[index].generation;
        for output in outputs {
            match output {
                Output::Connect { conn, peer, .. } => {
                    let to = peer.0.ip();
                    let latency = self
                        .addresses
                        .get(&to)
                        .map_or(Duration::ZERO, |to| (self.latency)(index, *to));
                    self.push(
                        self.now + latency,
                        Event::Syn {
                            from: index,
                            generation,
                            conn,
                            to,
                        },
                    );
                }
                Output::Send(conn, bytes) => {
                    if let Some((to, other)) = self.pipes.get(&(index, conn)).copied() {
                        self.schedule(index, to, Input::Received(other, bytes));
                    }
                }
                Output::Close(conn) => match self.pipes.contains_key(&(index, conn)) {
                    true => self.close((index, conn)),
                    false => {
                        self.aborted.insert((index, generation, conn));
                    }
                },
                Output::Fib(FibChange { prefix, route }) => {
                    let node = &mut self.nodes[index];
                    match route {
                        Some(route) => {
                            node.fib.insert(prefix, route);
                        }
                        None => {
                            node.removals += 1;
                            assert!(node.fib.remove(&prefix).is_some(), "{prefix} removed but not there");
                        }
                    }
                }
                Output::Peer(event) => {
                    let mark = if event.is_unexpected() { " (!)" } else { "" };
                    let text = format!("{} {}{mark}", event.name, event.change);
                    self.nodes[index].sessions.push(text);
                }
                Output::Converged => {
                    let now = self.now;
                    let node = &mut self.nodes[index];
                    node.converged += 1;
                    node.converged_at = Some(now);
                    // As the dataplane does: what nobody told again goes now.
                    if let Some(speaker) = &node.speaker {
                        node.fib = speaker.fib().collect();
                    }
                }
            }
        }
        let node = &mut self.nodes[index];
        let next = node.speaker.as_ref().and_then(Speaker::next_wakeup);
        if let Some(next) = next.map(|next| next.max(self.now))
            && node.wake_at.is_none_or(|at| next < at)
        {
            node.wake_at = Some(next);
            self.push(next, Event::Wake(index));
        }
    }

    fn close(&mut self, end: (usize, ConnId)) {
        if let Some((to, other)) = self.pipes.remove(&end) {
            self.schedule(end.0, to, Input::Closed(other));
        }
    }

    fn schedule(&mut self, from: usize, to: usize, input: Input) {
        let generation = self.nodes[to].generation;
        self.push(
            self.now + (self.latency)(from, to),
            Event::Deliver {
                from,
                to,
                generation,
                input,
            },
        );
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.queue.insert((at, self.sequence), event);
        self.sequence += 1;
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }
}

/// Router id and IPv4 address of node `index`.
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, (index / 250) as u8, (index % 250 + 1) as u8)
}

/// IPv6 address of node `index`.
pub fn address_v6(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, index as u16 + 1)
}

/// The IPv4 block that node `index` originates.
pub fn block(index: usize) -> IpNet {
    format!("192.168.{}.{}/26", index / 4, index % 4 * 64)
        .parse()
        .expect("a prefix")
}

/// The IPv6 block that node `index` originates.
pub fn block_v6(index: usize) -> IpNet {
    format!("fd80::{:x}:0/122", index + 1).parse().expect("a prefix")
}

/// A node in AS 64512 without peers that originates its two blocks.
pub fn node(index: usize) -> Config {
    Config {
        router_id: address(index),
        asn: 64512,
        listen_port: 179,
        bind: bgp::Bind::All,
        address_v4: Some(address(index)),
        address_v6: Some(address_v6(index)),
        cluster_id: None,
        graceful_restart: Some(Duration::from_secs(120)),
        peers: BTreeMap::new(),
        exportable: ["192.168.0.0/16", "fd80::/16"]
            .map(|pool| pool.parse().expect("a range"))
            .into(),
        originated: [block(index), block_v6(index)]
            .map(|prefix| (prefix, LocalRoute { metric: 1024 }))
            .into(),
    }
}

pub fn peer_id(config: &Config) -> PeerId {
    PeerId(SocketAddr::new(
        IpAddr::V4(config.address_v4.expect("has an address")),
        179,
    ))
}

/// Makes two nodes each other's peers.
pub fn join(a: &mut Config, b: &mut Config) {
    let families: BTreeSet<_> = Family::BOTH.into();
    let (a_id, b_id) = (peer_id(a), peer_id(b));
    a.peers.insert(b_id, PeerConfig::new(name(b), b.asn, families.clone()));
    b.peers.insert(a_id, PeerConfig::new(name(a), a.asn, families));
}

fn name(config: &Config) -> String {
    format!("Mesh_{}", config.router_id.to_string().replace('.', "_"))
}

/// Makes one node the reflector of another.
pub fn reflect(reflector: &mut Config, client: &mut Config) {
    join(reflector, client);
    reflector.cluster_id = Some(reflector.router_id);
    let id = peer_id(client);
    if let Some(peer) = reflector.peers.get_mut(&id) {
        peer.reflector_client = true;
    }
}

/// Configurations of a reflector, node 0, and its clients.
pub fn reflected(size: usize) -> Vec<Config> {
    let mut configs: Vec<_> = (0..size).map(node).collect();
    if let Some((reflector, clients)) = configs.split_first_mut() {
        clients.iter_mut().for_each(|client| reflect(reflector, client));
    }
    configs
}

/// Configurations of a full mesh.
pub fn mesh(size: usize) -> Vec<Config> {
    let mut configs: Vec<_> = (0..size).map(node).collect();
    for b in 1..size {
        let (left, right) = configs.split_at_mut(b);
        left.iter_mut().for_each(|a| join(a, &mut right[0]));
    }
    configs
}

/// A running full mesh.
pub fn running_mesh(size: usize) -> Network {
    running(mesh(size))
}

/// A network in which all nodes start at once.
pub fn running(configs: Vec<Config>) -> Network {
    let mut network = Network::new();
    for config in configs {
        network.install(config);
    }
    (0..network.nodes.len()).for_each(|index| network.boot(index, false));
    network
}
