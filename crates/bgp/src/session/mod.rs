//! The session with one peer: RFC 4271's FSM over up to two connections at a time, and what to do when both exist.
//!
//! ```text
//!                 ┌────────────── wait over ──────────────┐
//!                 │                                       │
//!   Idle ──► Connect ──► (failed) ──► Active ◄── passive peers stay here
//!    ▲            │                       │
//!    │            └──► OpenSent ◄─────────┘ accepted
//!    │                     │ OPEN is fine: answer KEEPALIVE, resolve collisions
//!    │                 OpenConfirm
//!    │                     │ KEEPALIVE
//!    └── any error ── Established
//! ```
//!
//! The upper half is [`Dial`], our own attempt; the lower half is a [`Phase`] per connection. The session's state is that
//! of the connection that is furthest on.
//!
//! Waiting after an error only stops our own dialling. RFC 4271's Idle also refuses what comes in; but two sides that
//! each refuse the other while they wait need never meet, and the peer is a configured one.

mod connection;
mod negotiation;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::{Family, PeerConfig, PeerId};
use crate::message::{Message, Notification, Open, Update};
use crate::speaker::ConnId;
use crate::status::{Negotiated, SessionError, State};
use crate::wire::{self, Framer, UpdateContext};

use connection::{Agreed, Connection, Phase};
pub(crate) use negotiation::Local;
use negotiation::{negotiate, open, refusal};

/// Hold timer until OPEN arrives (RFC 4271 8.2.2 suggests four minutes).
pub const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);
/// Longest wait after repeated errors, unless the configured retry time is longer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Wait after an established session was lost without an error.
pub const SHORT_WAIT: Duration = Duration::from_secs(1);
/// Wait after the first attempt to connect that came to nothing; each further one doubles it, up to the configured time.
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// A session that lived this long makes earlier errors forgotten.
pub const STABLE: Duration = Duration::from_secs(60);

/// What a session wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    Connect(ConnId, Option<IpAddr>),
    Send(ConnId, Bytes),
    Close(ConnId),
    Up(ConnId, Box<Negotiated>),
    Down(Ending, SessionError),
    Update(Update),
    Refresh(Family),
}

/// How an established session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Without a NOTIFICATION: the peer may be restarting.
    Lost,
    /// With one, in either direction.
    Notified,
}

#[derive(Debug)]
pub(crate) struct Session {
    peer: PeerId,
    config: PeerConfig,
    dial: Dial,
    connections: Vec<Connection>,
    /// Errors in a row.
    failures: u32,
    /// Attempts to connect in a row that came to nothing.
    unanswered: u32,
    /// Whether our identifier is the higher one (RFC 4271 6.8), as far as known.
    outranks_peer: bool,
    state: State,
    since: Instant,
    last_error: Option<(Instant, SessionError)>,
    sessions: u64,
    updates_received: u64,
    update_faults: u64,
}

/// Our own attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// Waits after an error, a loss or the start.
    Idle { until: Instant },
    /// Asked for a connection.
    Connect { conn: ConnId, retry_at: Instant },
    /// The attempt failed; `None` on passive peers, which never attempt.
    Active { retry_at: Option<Instant> },
    /// There is a connection, so none is asked for.
    Settled,
    /// Stopped for good.
    Stopped,
}

/// Why no connection is left.
#[derive(Clone, Copy, Debug)]
enum Setback {
    /// An established session was lost without error.
    Lost,
    /// A connection ended before that.
    Closed,
    /// The other connection of a collision was to survive, and did not.
    Collision,
    /// An error, ours or theirs.
    Error,
}

impl Session {
    pub(crate) fn new(now: Instant, peer: PeerId, config: PeerConfig) -> Self {
        let dial = if config.passive {
            Dial::Active { retry_at: None }
        } else {
            Dial::Idle { until: now }
        };
        let state = dial.state();
        Self {
            peer,
            config,
            dial,
            connections: Vec::new(),
            failures: 0,
            unanswered: 0,
            outranks_peer: false,
            state,
            since: now,
            last_error: None,
            sessions: 0,
            updates_received: 0,
            update_faults: 0,
        }
    }

    pub(crate) fn config(&self) -> &PeerConfig {
        &self.config
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn last_error(&self) -> Option<&(Instant, SessionError)> {
        self.last_error.as_ref()
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.sessions
    }

    pub(crate) fn updates_received(&self) -> u64 {
        self.updates_received
    }

    pub(crate) fn update_faults(&self) -> u64 {
        self.update_faults
    }

    /// Adopts settings that need no new session.
    pub(crate) fn set_config(&mut self, now: Instant, config: PeerConfig, effects: &mut Vec<Effect>) {
        let passive_before = std::mem::replace(&mut self.config, config).passive;
        match (passive_before, self.config.passive) {
            (false, true) if self.dial != Dial::Settled => {
                self.stop_dialling(effects);
                self.dial = Dial::Active { retry_at: None };
            }
            (true, false) if self.connections.is_empty() => self.dial = Dial::Idle { until: now },
            (true, false) => self.dial = Dial::Settled,
            _ => {}
        }
        self.note_state(now);
    }

    /// When to call [`Session::on_time`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let dial = match self.dial {
            Dial::Idle { until } => Some(until),
            Dial::Connect { retry_at, .. } => Some(retry_at),
            Dial::Active { retry_at } => retry_at,
            Dial::Settled | Dial::Stopped => None,
        };
        self.connections
            .iter()
            .filter_map(Connection::deadline)
            .chain(dial)
            .min()
    }

    pub(crate) fn on_time(&mut self, now: Instant, next_conn: &mut u64, effects: &mut Vec<Effect>) {
        self.dial_if_due(now, next_conn, effects);
        for at in (0..self.connections.len()).rev() {
            if self.connections[at].hold_until().is_some_and(|until| until <= now) {
                let state = self.connections[at].phase.state();
                let error = SessionError::HoldTimerExpired(state);
                self.fail(now, at, Some(Notification::HOLD_TIMER_EXPIRED), error, effects);
            }
        }
        for connection in &mut self.connections {
            connection.keep_alive(now, effects);
        }
        self.note_state(now);
    }

    pub(crate) fn on_connected(&mut self, now: Instant, conn: ConnId, local: &Local, effects: &mut Vec<Effect>) {
        if !matches!(self.dial, Dial::Connect { conn: ours, .. } if ours == conn) {
            effects.push(Effect::Close(conn));
            return;
        }
        self.dial = Dial::Settled;
        self.add_connection(now, conn, true, local, effects);
    }

    pub(crate) fn on_connect_failed(&mut self, now: Instant, conn: ConnId, text: String) {
        if matches!(self.dial, Dial::Connect { conn: ours, .. } if ours == conn) {
            self.last_error = Some((now, SessionError::ConnectFailed(text)));
            self.dial = Dial::Active {
                retry_at: Some(now + self.next_attempt()),
            };
            self.note_state(now);
        }
    }

    pub(crate) fn on_accepted(&mut self, now: Instant, conn: ConnId, local: &Local, effects: &mut Vec<Effect>) {
        if self.dial == Dial::Stopped {
            effects.push(Effect::Send(
                conn,
                wire::encode_notification(&Notification::CONNECTION_REJECTED),
            ));
            effects.push(Effect::Close(conn));
            return;
        }
        // The peer opens one at a time, so an older one that never got to OPEN is dead on its side.
        let superseded = |c: &Connection| !c.outgoing && matches!(c.phase, Phase::OpenSent { .. });
        if let Some(at) = self.connections.iter().position(superseded) {
            effects.push(Effect::Close(self.connections.remove(at).id));
        }
        self.add_connection(now, conn, false, local, effects);
    }

    pub(crate) fn on_closed(&mut self, now: Instant, conn: ConnId, effects: &mut Vec<Effect>) {
        if matches!(self.dial, Dial::Connect { conn: ours, .. } if ours == conn) {
            self.on_connect_failed(now, conn, "connection closed".into());
            return;
        }
        let Some(at) = self.position(conn) else { return };
        let state = self.connections[at].phase.state();
        self.remove(now, at, SessionError::ConnectionClosed(state), Ending::Lost, effects);
        self.note_state(now);
    }

    pub(crate) fn on_received(
        &mut self,
        now: Instant,
        conn: ConnId,
        bytes: Bytes,
        local: &Local,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(at) = self.position(conn) {
            self.connections[at].framer.push(bytes);
        }
        // Any message may end this or another connection, so the position is looked up each time.
        while let Some(at) = self.position(conn) {
            match self.connections[at].framer.next_message() {
                Ok(None) => break,
                Ok(Some(message)) => self.on_message(now, at, message, local, effects),
                Err(notification) => {
                    let error = SessionError::ProtocolError(notification.clone());
                    self.fail(now, at, Some(notification), error, effects);
                }
            }
        }
        self.note_state(now);
    }

    /// Ends everything with a NOTIFICATION and dials again at once.
    pub(crate) fn reset(
        &mut self,
        now: Instant,
        notification: &Notification,
        error: SessionError,
        effects: &mut Vec<Effect>,
    ) {
        while !self.connections.is_empty() {
            self.fail(now, 0, Some(notification.clone()), error.clone(), effects);
        }
        self.stop_dialling(effects);
        self.failures = 0;
        self.dial = if self.config.passive {
            Dial::Active { retry_at: None }
        } else {
            Dial::Idle { until: now }
        };
        self.note_state(now);
    }

    /// Ends everything with a NOTIFICATION, for good.
    pub(crate) fn stop(
        &mut self,
        now: Instant,
        notification: &Notification,
        error: SessionError,
        effects: &mut Vec<Effect>,
    ) {
        self.reset(now, notification, error, effects);
        self.dial = Dial::Stopped;
        self.note_state(now);
    }

    fn on_message(&mut self, now: Instant, at: usize, message: Message, local: &Local, effects: &mut Vec<Effect>) {
        let connection = &mut self.connections[at];
        match (&mut connection.phase, message) {
            (_, Message::Notification(notification)) => {
                effects.push(Effect::Close(connection.id));
                self.remove(
                    now,
                    at,
                    SessionError::NotificationReceived(notification),
                    Ending::Notified,
                    effects,
                );
            }
            (Phase::OpenSent { .. }, Message::Open(open)) => self.on_open(now, at, &open, local, effects),
            (Phase::OpenConfirm(_), Message::Keepalive) => self.establish(now, at, effects),
            (Phase::Established { agreed, .. }, Message::Keepalive) => agreed.heard(now),
            (Phase::Established { agreed, .. }, Message::Update(body)) => {
                agreed.heard(now);
                self.updates_received += 1;
                let context = UpdateContext {
                    four_octet_as: agreed.negotiated.four_octet_as,
                    internal: self.config.asn == local.asn,
                    families: agreed.negotiated.families,
                };
                match wire::decode_update(&body, &context) {
                    Ok(update) => {
                        self.update_faults += update.faults.len() as u64;
                        effects.push(Effect::Update(update));
                    }
                    Err(notification) => {
                        let error = SessionError::ProtocolError(notification.clone());
                        self.fail(now, at, Some(notification), error, effects);
                    }
                }
            }
            (Phase::Established { agreed, .. }, Message::RouteRefresh(family)) => {
                agreed.heard(now);
                let negotiated = family
                    .family()
                    .filter(|family| agreed.negotiated.families.contains(*family));
                effects.extend(negotiated.map(Effect::Refresh));
            }
            (phase, Message::Open(_) | Message::Update(_) | Message::Keepalive | Message::RouteRefresh(_)) => {
                // RFC 6608: the subcode tells the state.
                let state = phase.state();
                let subcode = match phase {
                    Phase::OpenSent { .. } => 1,
                    Phase::OpenConfirm(_) => 2,
                    Phase::Established { .. } => 3,
                };
                let error = SessionError::UnexpectedMessage(state);
                self.fail(now, at, Some(Notification::bare(5, subcode)), error, effects);
            }
        }
    }

    fn on_open(&mut self, now: Instant, at: usize, open: &Open, local: &Local, effects: &mut Vec<Effect>) {
        let negotiated = match negotiate(&self.config, local, open) {
            Ok(negotiated) => negotiated,
            Err(error) => {
                let notification = refusal(&error, &self.config);
                self.fail(now, at, Some(notification), SessionError::OpenRefused(error), effects);
                return;
            }
        };
        // RFC 6286 2.3 breaks ties by AS.
        self.outranks_peer = (local.router_id, local.asn) > (negotiated.router_id, open.asn());
        let Some(at) = self.resolve_collision(now, at, effects) else {
            return;
        };
        let connection = &mut self.connections[at];
        effects.push(Effect::Send(connection.id, wire::encode_keepalive()));
        let hold_time = Some(negotiated.hold_time).filter(|time| !time.is_zero());
        connection.phase = Phase::OpenConfirm(Agreed {
            negotiated,
            hold_until: hold_time.map(|time| now + time),
            keepalive_at: hold_time.map(|time| now + time / 3),
        });
    }

    /// RFC 4271 6.8, when a good OPEN has come on the connection at `at`. Answers where that connection is now, `None`
    /// if it had to go.
    fn resolve_collision(&mut self, now: Instant, at: usize, effects: &mut Vec<Effect>) -> Option<usize> {
        let this = self.connections[at].id;
        let outgoing = self.connections[at].outgoing;
        let rival = self
            .connections
            .iter()
            .position(|c| c.id != this && !matches!(c.phase, Phase::OpenSent { .. }));
        let Some(rival) = rival else { return Some(at) };
        let wins = match &self.connections[rival].phase {
            // RFC 4724 4.2: a peer that can restart and connects anew has lost the old connection.
            Phase::Established { agreed, .. } if agreed.negotiated.restart.is_some() => {
                effects.push(Effect::Close(self.connections[rival].id));
                let error = SessionError::ConnectionClosed(State::Established);
                self.remove(now, rival, error, Ending::Lost, effects);
                return self.position(this);
            }
            Phase::Established { .. } => false,
            // Two in the same direction: the newer one is what the peer means.
            _ if self.connections[rival].outgoing == outgoing => true,
            // The connection opened by the speaker with the higher identifier survives.
            _ => outgoing == self.outranks_peer,
        };
        let loser = if wins { rival } else { at };
        self.drop_collided(loser, effects);
        if !wins && self.connections.is_empty() {
            self.set_back(now, Setback::Collision);
        }
        self.position(this)
    }

    fn drop_collided(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let id = self.connections.remove(at).id;
        effects.push(Effect::Send(
            id,
            wire::encode_notification(&Notification::COLLISION_RESOLUTION),
        ));
        effects.push(Effect::Close(id));
    }

    fn establish(&mut self, now: Instant, at: usize, effects: &mut Vec<Effect>) {
        let mut connection = self.connections.remove(at);
        let Phase::OpenConfirm(mut agreed) = connection.phase else {
            return;
        };
        while !self.connections.is_empty() {
            self.drop_collided(0, effects);
        }
        self.stop_dialling(effects);
        self.dial = Dial::Settled;
        agreed.heard(now);
        effects.push(Effect::Up(connection.id, Box::new(agreed.negotiated.clone())));
        connection.phase = Phase::Established { agreed, since: now };
        self.connections.push(connection);
        self.sessions += 1;
        self.since = now;
    }

    fn add_connection(&mut self, now: Instant, id: ConnId, outgoing: bool, local: &Local, effects: &mut Vec<Effect>) {
        self.unanswered = 0;
        let open = open(&self.config, local, self.sessions > 0);
        effects.push(Effect::Send(id, wire::encode_open(&open)));
        let phase = Phase::OpenSent {
            hold_until: now + OPEN_HOLD_TIME,
        };
        self.connections.push(Connection {
            id,
            outgoing,
            framer: Framer::default(),
            phase,
        });
        self.note_state(now);
    }

    /// Ends a connection because of an error that we found.
    fn fail(
        &mut self,
        now: Instant,
        at: usize,
        notification: Option<Notification>,
        error: SessionError,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.connections[at].id;
        effects.extend(notification.map(|n| Effect::Send(id, wire::encode_notification(&n))));
        effects.push(Effect::Close(id));
        self.remove(now, at, error, Ending::Notified, effects);
    }

    /// Takes a connection out and decides how to go on.
    fn remove(&mut self, now: Instant, at: usize, error: SessionError, ending: Ending, effects: &mut Vec<Effect>) {
        let connection = self.connections.remove(at);
        let collision = matches!(&error, SessionError::NotificationReceived(n) if n.is_collision());
        let mut setback = match ending {
            Ending::Notified if collision => Setback::Collision,
            Ending::Notified => Setback::Error,
            Ending::Lost => Setback::Closed,
        };
        if let Phase::Established { since, .. } = connection.phase {
            effects.push(Effect::Down(ending, error.clone()));
            if now.saturating_duration_since(since) >= STABLE {
                self.failures = 0;
            }
            if ending == Ending::Lost {
                setback = Setback::Lost;
            }
        }
        // Losing a collision is no error while the other connection lives.
        if !collision || self.connections.is_empty() {
            self.last_error = Some((now, error));
        }
        if matches!(setback, Setback::Error) {
            self.failures = self.failures.saturating_add(1);
        }
        if self.connections.is_empty() && self.dial == Dial::Settled {
            self.set_back(now, setback);
        }
    }

    /// Chooses when to dial again.
    fn set_back(&mut self, now: Instant, setback: Setback) {
        let retry = self.retry_time();
        let wait = match setback {
            Setback::Lost => SHORT_WAIT,
            Setback::Closed => retry,
            // One side comes back sooner, so that the two do not collide again in the same way.
            Setback::Collision if self.outranks_peer => SHORT_WAIT,
            Setback::Collision => retry,
            Setback::Error => {
                let doublings = self.failures.saturating_sub(1).min(16);
                retry.saturating_mul(1 << doublings).min(LONGEST_WAIT.max(retry))
            }
        };
        self.dial = match self.config.passive {
            true => Dial::Active { retry_at: None },
            false => Dial::Idle { until: now + wait },
        };
    }

    fn dial_if_due(&mut self, now: Instant, next_conn: &mut u64, effects: &mut Vec<Effect>) {
        match self.dial {
            Dial::Idle { until } if until <= now => {}
            Dial::Active { retry_at: Some(at) } if at <= now => {}
            Dial::Connect { conn, retry_at } if retry_at <= now => {
                effects.push(Effect::Close(conn));
                self.last_error = Some((now, SessionError::ConnectTimeout));
            }
            Dial::Idle { .. } | Dial::Active { .. } | Dial::Connect { .. } | Dial::Settled | Dial::Stopped => return,
        }
        if !self.connections.is_empty() {
            // The peer was quicker.
            self.dial = Dial::Settled;
            return;
        }
        let conn = ConnId(*next_conn);
        *next_conn += 1;
        effects.push(Effect::Connect(conn, self.config.source));
        self.dial = Dial::Connect {
            conn,
            retry_at: now + self.config.connect_retry.max(SHORT_WAIT),
        };
    }

    /// A node that comes up at the same time as this one listens in a moment, so the first attempts follow quickly.
    fn next_attempt(&mut self) -> Duration {
        let doublings = self.unanswered.min(16);
        self.unanswered = self.unanswered.saturating_add(1);
        FIRST_WAIT.saturating_mul(1 << doublings).min(self.retry_time())
    }

    /// A retry time of zero must not make us spin.
    fn retry_time(&self) -> Duration {
        self.config.connect_retry.max(SHORT_WAIT)
    }

    fn stop_dialling(&mut self, effects: &mut Vec<Effect>) {
        if let Dial::Connect { conn, .. } = self.dial {
            effects.push(Effect::Close(conn));
        }
    }

    fn position(&self, conn: ConnId) -> Option<usize> {
        self.connections.iter().position(|connection| connection.id == conn)
    }

    fn note_state(&mut self, now: Instant) {
        let state = self.connections.iter().map(|connection| connection.phase.state()).max();
        let state = state.unwrap_or(self.dial.state());
        if state != self.state {
            self.state = state;
            self.since = now;
        }
    }

    /// The peer this session is with.
    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// What was agreed, while established.
    pub(crate) fn negotiated(&self) -> Option<&Negotiated> {
        self.connections.iter().find_map(|connection| match &connection.phase {
            Phase::Established { agreed, .. } => Some(&agreed.negotiated),
            Phase::OpenSent { .. } | Phase::OpenConfirm(_) => None,
        })
    }
}

impl Dial {
    fn state(&self) -> State {
        match self {
            Dial::Idle { .. } | Dial::Settled | Dial::Stopped => State::Idle,
            Dial::Connect { .. } => State::Connect,
            Dial::Active { .. } => State::Active,
        }
    }
}
