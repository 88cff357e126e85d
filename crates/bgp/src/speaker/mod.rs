//! The speaker: one door in, one door out.

mod configuration;
mod input;
mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ipnet::IpNet;

use crate::attributes::{AttributeTable, Attributes};
use crate::config::{Config, FamilySet, PeerId};
use crate::export::{Audience, Exporter};
use crate::graceful::{Convergence, Helper, PeerRestart, Progress};
use crate::message::Notification;
use crate::outbound;
use crate::rib::{Path, PeerIndex, Rib, Source};
use crate::session::Session;
use crate::status::{Counters, PathStatus, PeerChange, PeerEvent, PeerStatus, RouteStatus, SessionError};

use input::{ineligible, reject};

/// One TCP connection; the shell numbers those that it accepts, the speaker those that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What happens to a speaker.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection came in; the shell chose an id with the top bit set.
    Accepted(ConnId, SocketAddr),
    /// A connection that we asked for is up.
    Connected(ConnId),
    /// A connection that we asked for failed; the text is the operating system's.
    ConnectFailed(ConnId, String),
    /// Bytes arrived, cut anywhere.
    Received(ConnId, Bytes),
    /// The connection ended.
    Closed(ConnId),
    /// `next_wakeup` is due.
    Wake,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection, from `source` if given.
    Connect {
        /// Number to use for it from now on.
        conn: ConnId,
        /// Where to.
        peer: PeerId,
        /// Local address.
        source: Option<IpAddr>,
    },
    /// Send these bytes, in order.
    Send(ConnId, Bytes),
    /// Close it, after what was sent. Also ends an attempt to connect. Nothing need be reported about it any more.
    Close(ConnId),
    /// The best route to a prefix changed.
    Fib(FibChange),
    /// A session came up or ended. For people: nothing need be done.
    Peer(PeerEvent),
    /// Every peer that can be waited for has told all its routes, so what the forwarding table has beyond them is old.
    /// Comes exactly once, at most 120 s after the start ([`crate::graceful`] has the rule).
    Converged,
}

/// The wish for one prefix in the forwarding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibChange {
    /// The destination.
    pub prefix: IpNet,
    /// The route, or `None` when there is none any more.
    pub route: Option<FibRoute>,
}

/// How to reach a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibRoute {
    /// Next hops, ascending; several mean ECMP.
    pub next_hops: Vec<IpAddr>,
    /// Kernel metric: 2147483647 − LOCAL_PREF where that is in range, else 1024.
    pub metric: u32,
}

/// A BGP speaker.
///
/// The contract with the shell, which owns sockets and clock:
///
/// * `now` never goes back from one call to the next.
/// * Outputs are carried out in order. Bytes of one connection stay in order, in both directions.
/// * When both are ready, what arrived is handed in before [`Input::Wake`]: a busy shell must not make a hold timer
///   expire that was just about to be renewed.
/// * After every call the shell asks [`Speaker::next_wakeup`] again.
/// * A speaker is created with its first real configuration. One that starts without peers converges at once.
/// * To restart without loss, the shell just drops its sockets: peers that do graceful restart go on forwarding. The
///   next speaker begins as [`Speaker::restarted`]. To stop for good, [`Speaker::shutdown`] comes first.
#[derive(Debug)]
pub struct Speaker {
    config: Config,
    started: Instant,
    /// The forwarding table survived from an earlier speaker.
    restarted: bool,
    attributes: AttributeTable,
    rib: Rib,
    exporter: Exporter,
    convergence: Convergence,
    check_convergence_at: Option<Instant>,
    peers: BTreeMap<PeerIndex, Peer>,
    indices: BTreeMap<PeerId, PeerIndex>,
    connections: BTreeMap<ConnId, PeerIndex>,
    /// Established peers by what they are told.
    audiences: BTreeMap<Audience, BTreeSet<PeerIndex>>,
    timers: BTreeSet<(Instant, PeerIndex)>,
    next_conn: u64,
    next_index: u32,
    /// After [`Speaker::shutdown`].
    stopped: bool,
}

/// A configured peer.
#[derive(Debug)]
struct Peer {
    session: Session,
    helper: Helper,
    progress: Progress,
    /// Families whose End-of-RIB has not come in this session.
    untold: FamilySet,
    live: Option<Live>,
    updates_sent: u64,
    /// Its entry in the speaker's timers.
    armed: Option<Instant>,
}

/// What exists while a session is established.
#[derive(Debug)]
struct Live {
    conn: ConnId,
    audience: Audience,
    /// What the peer announced for its restarts.
    restart: Option<PeerRestart>,
    advertised: usize,
}

impl Peer {
    fn event(&self, change: PeerChange) -> PeerEvent {
        PeerEvent {
            peer: self.session.peer(),
            name: self.session.config().name.clone(),
            change,
        }
    }
}

// === life ===

impl Speaker {
    /// A speaker with this configuration and no past; call [`Speaker::step`] with [`Input::Wake`] to start it.
    pub fn new(now: Instant, config: Config) -> Self {
        Self::start(now, config, false)
    }

    /// A speaker that follows another one whose routes are still in the forwarding table (RFC 4724 4.1): it says so to
    /// its peers (R and F bits), and tells them what it learnt, and that this was all, once it has converged.
    pub fn restarted(now: Instant, config: Config) -> Self {
        Self::start(now, config, true)
    }

    fn start(now: Instant, config: Config, restarted: bool) -> Self {
        let empty = Config {
            peers: BTreeMap::new(),
            originated: BTreeMap::new(),
            ..config.clone()
        };
        let mut speaker = Self {
            started: now,
            restarted,
            attributes: AttributeTable::default(),
            rib: Rib::default(),
            exporter: Exporter::new(&config, restarted),
            convergence: Convergence::Deferring { since: now },
            check_convergence_at: Some(now),
            peers: BTreeMap::new(),
            indices: BTreeMap::new(),
            connections: BTreeMap::new(),
            audiences: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_conn: 1,
            next_index: 0,
            stopped: false,
            config: empty,
        };
        let outputs = speaker.reconfigure(now, config);
        debug_assert!(outputs.is_empty(), "nothing can be done before the first step");
        speaker
    }

    /// Takes one input.
    pub fn step(&mut self, now: Instant, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.stopped {
            if let Input::Accepted(conn, _) = input {
                reject(conn, &mut outputs);
            }
            return outputs;
        }
        match input {
            Input::Accepted(conn, from) => self.accept(now, conn, from, &mut outputs),
            Input::Connected(conn) => self.on_connection(now, conn, &mut outputs, |session, local, effects| {
                session.on_connected(now, conn, local, effects);
            }),
            Input::ConnectFailed(conn, text) => {
                self.on_connection(now, conn, &mut outputs, |session, _, _| {
                    session.on_connect_failed(now, conn, text)
                });
                self.connections.remove(&conn);
            }
            Input::Received(conn, bytes) => self.on_connection(now, conn, &mut outputs, |session, local, effects| {
                session.on_received(now, conn, bytes, local, effects);
            }),
            Input::Closed(conn) => {
                self.on_connection(now, conn, &mut outputs, |session, _, effects| {
                    session.on_closed(now, conn, effects)
                });
                self.connections.remove(&conn);
            }
            Input::Wake => self.wake(now, &mut outputs),
        }
        self.flush(&mut outputs);
        self.check_convergence(now, &mut outputs);
        outputs
    }

    /// Adopts another configuration; only what differs changes.
    ///
    /// Routes come and go incrementally. A removed peer is told so; another AS, family, source address or hold time
    /// restarts the session with that peer; another next-hop mode, reflection or other exportable ranges just send the
    /// difference. Another AS, router id or cluster id of our own restarts all sessions. The rest takes effect with the
    /// next attempt.
    pub fn reconfigure(&mut self, now: Instant, config: Config) -> Vec<Output> {
        let mut outputs = Vec::new();
        if config == self.config || self.stopped {
            return outputs;
        }
        let old = std::mem::replace(&mut self.config, config);
        let identity = |config: &Config| (config.asn, config.router_id, config.cluster_id);
        let addresses = |config: &Config| (config.address_v4, config.address_v6);
        let new_identity = identity(&old) != identity(&self.config);
        let new_addresses = addresses(&old) != addresses(&self.config);
        let new_exports = old.exportable != self.config.exportable;

        if new_identity || new_addresses || new_exports || old.peers != self.config.peers {
            let removed = self.end_changed_sessions(now, new_identity, &mut outputs);
            self.flush(&mut outputs);
            for index in removed {
                self.forget(index);
            }
            self.adopt_export_rules(&mut outputs);
            self.add_new_peers(now);
        }
        if new_identity || new_addresses {
            let config = &self.config;
            self.rib
                .judge_again(|facts, attributes| ineligible(config, facts, attributes));
        }
        self.originate(&old.originated);
        self.flush(&mut outputs);
        self.check_convergence_by(now);
        outputs
    }

    /// Stops for good: tells all peers (Cease, Administrative Shutdown), who then forget our routes at once. The
    /// forwarding table stays as it is; what becomes of it is the caller's decision.
    pub fn shutdown(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        for index in self.indices() {
            self.on_session(now, index, &mut outputs, |session, _, effects| {
                session.stop(
                    now,
                    &Notification::ADMINISTRATIVE_SHUTDOWN,
                    SessionError::Shutdown,
                    effects,
                );
            });
        }
        outputs.retain(|output| matches!(output, Output::Send(..) | Output::Close(_) | Output::Peer(_)));
        self.stopped = true;
        self.check_convergence_at = None;
        outputs
    }

    /// When to call with [`Input::Wake`] at the latest.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.timers
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.check_convergence_at)
            .min()
    }
}

// === what is known ===

impl Speaker {
    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether [`Output::Converged`] has been given.
    pub fn converged(&self) -> bool {
        !self.convergence.deferring()
    }

    /// All peers, by address.
    pub fn status(&self) -> Vec<PeerStatus> {
        let peers = self
            .indices
            .values()
            .filter_map(|index| Some((*index, self.peers.get(index)?)));
        peers.map(|(index, peer)| self.peer_status(index, peer)).collect()
    }

    /// All prefixes with all paths and their standing, ascending.
    pub fn routes(&self) -> impl Iterator<Item = RouteStatus<'_>> {
        self.rib.iter().map(|(prefix, paths)| {
            let paths = paths.iter().map(|path| self.path_status(path)).collect();
            RouteStatus { prefix: *prefix, paths }
        })
    }

    /// The routes that the forwarding table should have from us, ascending; the sum of all [`Output::Fib`].
    pub fn fib(&self) -> impl Iterator<Item = (IpNet, FibRoute)> {
        self.rib.routes()
    }

    /// What a peer has been told: its Adj-RIB-Out. Empty without a session.
    pub fn advertised(&self, peer: PeerId) -> impl Iterator<Item = (IpNet, Arc<Attributes>)> + '_ {
        let index = self.indices.get(&peer).copied();
        let live = index.and_then(|index| Some((index, self.peers.get(&index)?.live.as_ref()?)));
        live.into_iter()
            .flat_map(|(index, live)| outbound::advertised(&self.rib, index, &self.exporter, &live.audience))
    }

    fn peer_status(&self, index: PeerIndex, peer: &Peer) -> PeerStatus {
        let counts = self.rib.counts(index);
        PeerStatus {
            peer: peer.session.peer(),
            name: peer.session.config().name.clone(),
            asn: peer.session.config().asn,
            state: peer.session.state(),
            since: peer.session.since(),
            last_error: peer.session.last_error().cloned(),
            negotiated: peer.session.negotiated().cloned(),
            sessions: peer.session.sessions(),
            counters: Counters {
                updates_received: peer.session.updates_received(),
                updates_sent: peer.updates_sent,
                update_faults: peer.session.update_faults(),
                prefixes_received: counts.received,
                prefixes_accepted: counts.accepted,
                prefixes_stale: counts.stale,
                prefixes_advertised: peer.live.as_ref().map_or(0, |live| live.advertised),
            },
        }
    }

    fn path_status<'a>(&'a self, path: &'a Path) -> PathStatus<'a> {
        PathStatus {
            from: match path.source {
                Source::Local => None,
                Source::Peer(index) => self.peers.get(&index).map(|peer| peer.session.peer()),
            },
            attributes: &path.attributes,
            stale: path.stale,
            standing: path.standing,
        }
    }
}
