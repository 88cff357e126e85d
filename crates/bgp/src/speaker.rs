//! The speaker: one door in, one door out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ipnet::IpNet;

use crate::attributes::{AttributeTable, Attributes};
use crate::config::{Config, Family, FamilySet, LocalRoute, PeerConfig, PeerId};
use crate::decision::Ineligible;
use crate::export::{Audience, Exporter};
use crate::graceful::{CONNECT_GRACE, Convergence, Helper, PeerRestart, Progress, QUIET_GRACE};
use crate::message::{Notification, Update};
use crate::outbound::{self, Outgoing};
use crate::rib::{Path, PeerFacts, PeerIndex, Rib, Source};
use crate::session::{Effect, Ending, Local, Session};
use crate::status::{Counters, Negotiated, PathStatus, PeerStatus, RouteStatus, SessionError};
use crate::wire;

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
    /// restarts the session with that peer; another next-hop mode or reflection just sends the difference. Another AS,
    /// router id or cluster id of our own restarts all sessions. The rest takes effect with the next attempt.
    pub fn reconfigure(&mut self, now: Instant, config: Config) -> Vec<Output> {
        let mut outputs = Vec::new();
        if config == self.config || self.stopped {
            return outputs;
        }
        let old = std::mem::replace(&mut self.config, config);
        let identity = |config: &Config| (config.asn, config.router_id, config.cluster_id);
        let addresses = |config: &Config| (config.address_v4, config.address_v6);
        let new_identity = identity(&old) != identity(&self.config);

        let removed = self.end_changed_sessions(now, new_identity, &mut outputs);
        self.flush(&mut outputs);
        for index in removed {
            self.forget(index);
        }
        self.adopt_export_rules(&mut outputs);
        if new_identity || addresses(&old) != addresses(&self.config) {
            let config = &self.config;
            self.rib
                .judge_again(|facts, attributes| ineligible(config, facts, attributes));
        }
        self.originate(&old.originated);
        self.add_new_peers(now);
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
        outputs.retain(|output| matches!(output, Output::Send(..) | Output::Close(_)));
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

// === inputs ===

impl Speaker {
    fn accept(&mut self, now: Instant, conn: ConnId, from: SocketAddr, outputs: &mut Vec<Output>) {
        // The peer's port is any; dual-stack sockets give IPv4 peers as mapped addresses.
        let address = from.ip().to_canonical();
        let from = |port| PeerId(SocketAddr::new(address, port));
        let known = self.indices.range(from(0)..=from(u16::MAX)).map(|(_, index)| *index);
        let free = |index: &PeerIndex| self.peers.get(index).is_some_and(|peer| peer.live.is_none());
        let Some(index) = known.clone().find(free).or(known.min()) else {
            reject(conn, outputs);
            return;
        };
        self.connections.insert(conn, index);
        self.on_session(now, index, outputs, |session, local, effects| {
            session.on_accepted(now, conn, local, effects);
        });
    }

    fn wake(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        while let Some((at, index)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, index));
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            peer.armed = None;
            let swept = peer.helper.on_time(now);
            self.rib.sweep_stale(index, swept);
            let mut next_conn = self.next_conn;
            self.on_session(now, index, outputs, |session, _, effects| {
                session.on_time(now, &mut next_conn, effects);
            });
            self.next_conn = next_conn;
        }
    }

    fn on_connection(
        &mut self,
        now: Instant,
        conn: ConnId,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Session, &Local, &mut Vec<Effect>),
    ) {
        // Reports about connections that we closed may still be under way.
        if let Some(index) = self.connections.get(&conn).copied() {
            self.on_session(now, index, outputs, act);
        }
    }

    fn on_session(
        &mut self,
        now: Instant,
        index: PeerIndex,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Session, &Local, &mut Vec<Effect>),
    ) {
        let restart_time = self.config.graceful_restart;
        let local = Local {
            asn: self.config.asn,
            router_id: self.config.router_id,
            graceful_restart: restart_time,
            // A peer that still sees us as restarting need not wait for our End-of-RIB.
            restarted: self.restarted && restart_time.is_some_and(|time| now < self.started + time),
            preserved: self.restarted,
        };
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let mut effects = Vec::new();
        act(&mut peer.session, &local, &mut effects);
        for effect in effects {
            self.apply(now, index, effect, outputs);
        }
        self.arm(index);
    }

    fn apply(&mut self, now: Instant, index: PeerIndex, effect: Effect, outputs: &mut Vec<Output>) {
        match effect {
            Effect::Connect(conn, source) => {
                let Some(peer) = self.peers.get(&index) else { return };
                self.connections.insert(conn, index);
                outputs.push(Output::Connect {
                    conn,
                    peer: peer.session.peer(),
                    source,
                });
            }
            Effect::Send(conn, bytes) => outputs.push(Output::Send(conn, bytes)),
            Effect::Close(conn) => {
                self.connections.remove(&conn);
                outputs.push(Output::Close(conn));
            }
            Effect::Up(conn, negotiated) => self.up(now, index, conn, &negotiated, outputs),
            Effect::Down(ending) => self.down(now, index, ending),
            Effect::Update(update) => self.update(now, index, update),
            Effect::Refresh(family) => self.refresh(index, family, outputs),
        }
    }

    fn up(&mut self, now: Instant, index: PeerIndex, conn: ConnId, negotiated: &Negotiated, outputs: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let config = peer.session.config();
        let audience = Audience::of(&self.config, config, negotiated.families, negotiated.four_octet_as);
        let facts = PeerFacts {
            internal: config.asn == self.config.asn,
            router_id: negotiated.router_id,
            address: peer.session.peer().0.ip(),
        };
        self.exporter
            .set_teller(index, &self.config, config, negotiated.router_id);
        self.rib.set_peer(index, facts);

        let restart = negotiated.restart.as_ref();
        let swept = peer.helper.on_established(now, restart);
        peer.untold = negotiated.families;
        // One that restarts itself waits for us, so it cannot be waited for (RFC 4724 4.1).
        let announces_end = restart.is_some_and(|restart| !restart.restarted);
        peer.progress = Progress::Telling {
            since: now,
            announces_end,
        };
        self.rib.sweep_stale(index, swept);
        if !announces_end {
            self.check_convergence_by(now + QUIET_GRACE);
        }

        // Those before are told what changed; the new one is told all there is then.
        self.flush(outputs);
        let everything = outbound::resync(&self.rib, index, None, (&self.exporter, &audience));
        let Some(peer) = self.peers.get_mut(&index) else { return };
        peer.live = Some(Live {
            conn,
            audience,
            restart: negotiated.restart,
            advertised: 0,
        });
        self.audiences.entry(audience).or_default().insert(index);
        self.deliver(audience, everything, outputs);
        if !(self.restarted && self.convergence.deferring()) {
            self.send_end_of_rib(index, outputs);
        }
    }

    fn down(&mut self, now: Instant, index: PeerIndex, ending: Ending) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let Some(live) = peer.live.take() else { return };
        if let Some(members) = self.audiences.get_mut(&live.audience) {
            members.remove(&index);
        }
        self.audiences.retain(|_, members| !members.is_empty());
        peer.progress = Progress::Down;
        let kept = match ending {
            Ending::Lost => peer.helper.on_lost(now, live.restart.as_ref()),
            Ending::Notified => {
                peer.helper.on_ended();
                FamilySet::default()
            }
        };
        let gone = Family::BOTH
            .into_iter()
            .filter(|family| !kept.contains(*family))
            .collect();
        self.rib.drop_paths(index, gone);
        self.rib.mark_stale(index, kept);
        self.check_convergence_by(self.started + CONNECT_GRACE);
    }

    fn update(&mut self, now: Instant, index: PeerIndex, update: Update) {
        let source = Source::Peer(index);
        for prefix in update.withdrawn {
            self.rib.withdraw(source, prefix);
        }
        let Some(facts) = self.rib.facts(index) else { return };
        for announcement in update.announced {
            let ineligible = ineligible(&self.config, facts, &announcement.attributes);
            let attributes = self.attributes.intern(announcement.attributes);
            for prefix in announcement.prefixes {
                self.rib.announce(source, prefix, Arc::clone(&attributes), ineligible);
            }
        }
        let (Some(family), Some(peer)) = (update.end_of_rib, self.peers.get_mut(&index)) else {
            return;
        };
        if peer.helper.on_end_of_rib(family) {
            self.rib.sweep_stale(index, [family].into_iter().collect());
        }
        peer.untold.remove(family);
        if peer.untold.is_empty() && peer.progress != Progress::Told {
            peer.progress = Progress::Told;
            self.check_convergence_by(now);
        }
    }

    /// RFC 2918: everything of a family again.
    fn refresh(&mut self, index: PeerIndex, family: Family, outputs: &mut Vec<Output>) {
        self.flush(outputs);
        let Some(live) = self.peers.get_mut(&index).and_then(|peer| peer.live.as_mut()) else {
            return;
        };
        let audience = live.audience;
        let told_before = live.advertised;
        let narrow = audience.with_families([family].into_iter().collect());
        let everything = outbound::resync(&self.rib, index, None, (&self.exporter, &narrow));
        self.deliver(audience, everything, outputs);
        if let Some(live) = self.peers.get_mut(&index).and_then(|peer| peer.live.as_mut()) {
            live.advertised = told_before;
        }
    }
}

// === configuration ===

impl Speaker {
    /// Ends the sessions that cannot go on; answers the peers that are no longer configured.
    fn end_changed_sessions(&mut self, now: Instant, all: bool, outputs: &mut Vec<Output>) -> Vec<PeerIndex> {
        let mut removed = Vec::new();
        for (id, index) in self.indices.clone() {
            let Some(config) = self.config.peers.get(&id).cloned() else {
                self.on_session(now, index, outputs, |session, _, effects| {
                    let error = SessionError::ConfigurationChanged;
                    session.stop(now, &Notification::PEER_DECONFIGURED, error, effects);
                });
                self.drop_all(index);
                removed.push(index);
                continue;
            };
            let Some(peer) = self.peers.get(&index) else { continue };
            let reset = all || needs_new_session(peer.session.config(), &config);
            self.on_session(now, index, outputs, |session, _, effects| {
                if reset {
                    let error = SessionError::ConfigurationChanged;
                    session.reset(now, &Notification::OTHER_CONFIGURATION_CHANGE, error, effects);
                }
                session.set_config(now, config, effects);
            });
            if reset {
                self.drop_all(index);
            }
        }
        removed
    }

    /// Also the paths of a peer that is away.
    fn drop_all(&mut self, index: PeerIndex) {
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.helper.on_ended();
            self.rib.drop_paths(index, FamilySet::BOTH);
            self.arm(index);
        }
    }

    fn forget(&mut self, index: PeerIndex) {
        self.rib.remove_peer(index);
        self.exporter.remove_teller(index);
        self.connections.retain(|_, owner| *owner != index);
        self.indices.retain(|_, known| *known != index);
        if let Some(at) = self.peers.remove(&index).and_then(|peer| peer.armed) {
            self.timers.remove(&(at, index));
        }
    }

    /// Brings what established peers have been told in line with the configuration.
    fn adopt_export_rules(&mut self, outputs: &mut Vec<Output>) {
        let mut rules = self.exporter.with_config(&self.config);
        for (index, peer) in &self.peers {
            if let Some(router_id) = self.exporter.router_id(*index) {
                rules.set_teller(*index, &self.config, peer.session.config(), router_id);
            }
        }
        let old_rules = std::mem::replace(&mut self.exporter, rules);
        for index in self.indices() {
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            let Some(live) = &mut peer.live else { continue };
            let old = live.audience;
            let new = Audience::of(&self.config, peer.session.config(), old.families, old.four_octet_as);
            if old == new && old_rules == self.exporter {
                continue;
            }
            live.audience = new;
            if let Some(members) = self.audiences.get_mut(&old) {
                members.remove(&index);
            }
            self.audiences.retain(|_, members| !members.is_empty());
            self.audiences.entry(new).or_default().insert(index);
            let difference = outbound::resync(&self.rib, index, Some((&old_rules, &old)), (&self.exporter, &new));
            self.deliver(new, difference, outputs);
        }
    }

    fn originate(&mut self, old: &BTreeMap<IpNet, LocalRoute>) {
        for prefix in old.keys().filter(|prefix| !self.config.originated.contains_key(prefix)) {
            self.rib.withdraw(Source::Local, prefix.trunc());
        }
        for (prefix, route) in &self.config.originated {
            if old.get(prefix) != Some(route) {
                let attributes = Attributes::originated(Family::of(prefix), route.metric);
                self.rib
                    .announce(Source::Local, prefix.trunc(), self.attributes.intern(attributes), None);
            }
        }
    }

    fn add_new_peers(&mut self, now: Instant) {
        let new: Vec<_> = self
            .config
            .peers
            .iter()
            .filter(|(id, _)| !self.indices.contains_key(id))
            .collect();
        let mut added = Vec::with_capacity(new.len());
        for (id, config) in new {
            let index = PeerIndex(self.next_index);
            self.next_index += 1;
            self.indices.insert(*id, index);
            let peer = Peer {
                session: Session::new(now, *id, config.clone()),
                helper: Helper::default(),
                progress: Progress::Down,
                untold: FamilySet::default(),
                live: None,
                updates_sent: 0,
                armed: None,
            };
            self.peers.insert(index, peer);
            added.push(index);
        }
        added.into_iter().for_each(|index| self.arm(index));
    }
}

// === outputs ===

impl Speaker {
    /// Decides what was touched and tells everybody.
    fn flush(&mut self, outputs: &mut Vec<Output>) {
        let settled = self.rib.settle();
        if settled.is_empty() {
            return;
        }
        for one in &settled {
            if let Some(route) = &one.route {
                outputs.push(Output::Fib(FibChange {
                    prefix: one.prefix,
                    route: route.clone(),
                }));
            }
        }
        let audiences: Vec<_> = self.audiences.keys().copied().collect();
        for audience in audiences {
            let members = self.audiences.get(&audience);
            let is_member = |index| members.is_some_and(|members| members.contains(&index));
            let outgoing = outbound::publish(&self.exporter, &audience, &settled, is_member);
            self.deliver(audience, outgoing, outputs);
        }
    }

    fn deliver(&mut self, audience: Audience, outgoing: Vec<Outgoing>, outputs: &mut Vec<Output>) {
        let Some(members) = self.audiences.get(&audience) else {
            return;
        };
        for Outgoing {
            to,
            messages,
            advertised,
        } in outgoing
        {
            for member in members.iter().filter(|member| to.includes(**member)) {
                let Some(peer) = self.peers.get_mut(member) else {
                    continue;
                };
                let Some(live) = &mut peer.live else { continue };
                peer.updates_sent += messages.len() as u64;
                live.advertised = live.advertised.saturating_add_signed(advertised);
                outputs.extend(messages.iter().map(|message| Output::Send(live.conn, message.clone())));
            }
        }
    }

    fn send_end_of_rib(&mut self, index: PeerIndex, outputs: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let Some(live) = &peer.live else { return };
        // RFC 4724 2: only who announced the capability is known to understand it.
        if live.restart.is_some() {
            for family in live.audience.families.iter() {
                outputs.push(Output::Send(live.conn, wire::encode_end_of_rib(family)));
                peer.updates_sent += 1;
            }
        }
    }

    fn check_convergence(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        if self.check_convergence_at.is_none_or(|at| at > now) {
            return;
        }
        let progress = self.peers.values().map(|peer| peer.progress);
        if !self.convergence.check(now, progress.clone()) {
            self.check_convergence_at = self.convergence.deadline(now, progress);
            return;
        }
        self.check_convergence_at = None;
        outputs.push(Output::Converged);
        if !self.restarted {
            return;
        }
        let deferring = self.exporter.clone();
        self.exporter.set_deferring(false);
        for index in self.indices() {
            let Some(audience) = self
                .peers
                .get(&index)
                .and_then(|peer| Some(peer.live.as_ref()?.audience))
            else {
                continue;
            };
            let rules = (&self.exporter, &audience);
            let held_back = outbound::resync(&self.rib, index, Some((&deferring, &audience)), rules);
            self.deliver(audience, held_back, outputs);
            self.send_end_of_rib(index, outputs);
        }
    }

    /// Looks whether all peers have told everything, at that time at the latest.
    fn check_convergence_by(&mut self, at: Instant) {
        if self.convergence.deferring() {
            self.check_convergence_at = self.check_convergence_at.into_iter().chain([at]).min();
        }
    }

    /// Puts the peer's earliest timer where `wake` finds it.
    fn arm(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let earliest = peer.session.deadline().into_iter().chain(peer.helper.deadline()).min();
        if earliest == peer.armed {
            return;
        }
        if let Some(at) = std::mem::replace(&mut peer.armed, earliest) {
            self.timers.remove(&(at, index));
        }
        if let Some(at) = earliest {
            self.timers.insert((at, index));
        }
    }

    fn indices(&self) -> Vec<PeerIndex> {
        self.indices.values().copied().collect()
    }
}

fn reject(conn: ConnId, outputs: &mut Vec<Output>) {
    outputs.push(Output::Send(
        conn,
        wire::encode_notification(&Notification::CONNECTION_REJECTED),
    ));
    outputs.push(Output::Close(conn));
}

/// Whether a session has to start anew for a setting to take effect.
fn needs_new_session(old: &PeerConfig, new: &PeerConfig) -> bool {
    let agreed = |config: &PeerConfig| (config.asn, config.source, config.hold_time);
    agreed(old) != agreed(new) || old.families != new.families
}

/// Why a path from a peer may not be used (RFC 4271 9, 5.1.3; RFC 4456 8).
fn ineligible(config: &Config, facts: PeerFacts, attributes: &Attributes) -> Option<Ineligible> {
    if attributes.as_path.contains(config.asn) {
        return Some(Ineligible::AsLoop);
    }
    if facts.internal && attributes.originator_id == Some(config.router_id) {
        return Some(Ineligible::OriginatorLoop);
    }
    if config
        .cluster_id
        .is_some_and(|cluster| attributes.cluster_list.contains(&cluster))
    {
        return Some(Ineligible::ClusterLoop);
    }
    let own = match attributes.next_hop {
        IpAddr::V4(address) => config.address_v4 == Some(address),
        IpAddr::V6(address) => config.address_v6 == Some(address),
    };
    if own {
        return Some(Ineligible::NextHopIsSelf);
    }
    let invalid = match attributes.next_hop {
        IpAddr::V4(address) => address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    };
    invalid.then_some(Ineligible::NextHopInvalid)
}
