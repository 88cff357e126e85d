//! What a speaker tells people: sessions with typed reasons, and every path with why it lost.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::attributes::Attributes;
use crate::config::{FamilySet, PeerId};
use crate::decision::Standing;
use crate::graceful::PeerRestart;
use crate::message::Notification;

/// State of a session (RFC 4271 8.2.2). With two connections it is that of the one that is further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits before it tries again.
    Idle,
    /// Waits for the TCP connection that it asked for.
    Connect,
    /// Waits for the peer to connect, or for the next attempt.
    Active,
    /// Connected; waits for the peer's OPEN.
    OpenSent,
    /// Agreed; waits for the peer's KEEPALIVE.
    OpenConfirm,
    /// Exchanges routes.
    Established,
}

/// One peer as status shows it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Which.
    pub peer: PeerId,
    /// Configured name.
    pub name: String,
    /// Configured AS.
    pub asn: u32,
    /// FSM state.
    pub state: State,
    /// Since when it is in that state.
    pub since: Instant,
    /// Why the last connection or attempt failed, and when; kept while a session is up.
    pub last_error: Option<(Instant, SessionError)>,
    /// What was agreed, while established.
    pub negotiated: Option<Negotiated>,
    /// Sessions so far, the current one included.
    pub sessions: u64,
    /// Messages and prefixes.
    pub counters: Counters,
}

/// Both sides' capabilities and timers, as far as they agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The peer's BGP identifier.
    pub router_id: Ipv4Addr,
    /// Families of the session.
    pub families: FamilySet,
    /// Four-octet ASes (RFC 6793).
    pub four_octet_as: bool,
    /// The peer understands ROUTE-REFRESH.
    pub route_refresh: bool,
    /// The lower of both hold times; zero means none.
    pub hold_time: Duration,
    /// What the peer announced for its restarts, if both sides do graceful restart.
    pub restart: Option<PeerRestart>,
}

/// Counters of one peer. Messages count since the peer was configured, prefixes are those of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// UPDATEs received.
    pub updates_received: u64,
    /// UPDATEs sent.
    pub updates_sent: u64,
    /// Attribute errors that were tolerated (RFC 7606).
    pub update_faults: u64,
    /// Prefixes in its Adj-RIB-In.
    pub prefixes_received: usize,
    /// Those of them that may be used.
    pub prefixes_accepted: usize,
    /// Those of them kept from before its restart.
    pub prefixes_stale: usize,
    /// Prefixes told to it.
    pub prefixes_advertised: usize,
}

/// Why a connection or an attempt to connect failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The operating system's words.
    #[error("connect failed: {0}")]
    ConnectFailed(String),
    /// No answer within the ConnectRetry time.
    #[error("connect timed out")]
    ConnectTimeout,
    /// The transport ended without a NOTIFICATION.
    #[error("connection closed in {0}")]
    ConnectionClosed(State),
    /// Nothing heard for the hold time.
    #[error("hold timer expired in {0}")]
    HoldTimerExpired(State),
    /// The peer ended it.
    #[error("notification received: {0}")]
    NotificationReceived(Notification),
    /// We did not like its OPEN.
    #[error("OPEN refused: {0}")]
    OpenRefused(OpenError),
    /// It sent something that cannot be read.
    #[error("notification sent: {0}")]
    ProtocolError(Notification),
    /// A message that does not belong there.
    #[error("unexpected message in {0}")]
    UnexpectedMessage(State),
    /// Our configuration changed.
    #[error("reset by configuration")]
    ConfigurationChanged,
    /// Stopped on purpose.
    #[error("shut down")]
    Shutdown,
}

/// What can be wrong with an OPEN that was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another AS than configured.
    #[error("bad peer AS: expected {expected}, got {got}")]
    BadPeerAs {
        /// Configured.
        expected: u32,
        /// In the OPEN.
        got: u32,
    },
    /// Zero, or ours within our AS.
    #[error("bad BGP identifier {0}")]
    BadIdentifier(Ipv4Addr),
    /// 1 or 2 s.
    #[error("unacceptable hold time {0} s")]
    UnacceptableHoldTime(u16),
    /// No family in common.
    #[error("no common address family")]
    NoCommonFamily,
}

/// A session came up or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvent {
    /// With whom.
    pub peer: PeerId,
    /// Configured name.
    pub name: String,
    /// What happened.
    pub change: PeerChange,
}

/// What happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// It is established.
    Up,
    /// It was established, and is no longer.
    Down {
        /// Why.
        reason: SessionError,
        /// Families whose routes are kept: the peer may be restarting (RFC 4724 4.2).
        kept: FamilySet,
    },
}

/// One prefix with all its paths.
#[derive(Clone, Debug)]
pub struct RouteStatus<'a> {
    /// The destination.
    pub prefix: IpNet,
    /// All paths, ours first, then by peer.
    pub paths: Vec<PathStatus<'a>>,
}

/// One path.
#[derive(Clone, Debug)]
pub struct PathStatus<'a> {
    /// Who told us; `None` for what we originate.
    pub from: Option<PeerId>,
    /// What it says.
    pub attributes: &'a Attributes,
    /// Kept from before the peer's restart.
    pub stale: bool,
    /// Best, used beside it, or why not.
    pub standing: Standing,
}

impl PeerEvent {
    /// Whether someone should look: a session ended, and neither side meant it to.
    pub fn is_unexpected(&self) -> bool {
        match &self.change {
            PeerChange::Up => false,
            PeerChange::Down { reason, kept } => match reason {
                SessionError::ConfigurationChanged | SessionError::Shutdown => false,
                SessionError::NotificationReceived(notification) => !notification.is_deliberate(),
                // An agent that is replaced just drops its sockets.
                SessionError::ConnectionClosed(_) => kept.is_empty(),
                SessionError::ConnectFailed(_)
                | SessionError::ConnectTimeout
                | SessionError::HoldTimerExpired(_)
                | SessionError::OpenRefused(_)
                | SessionError::ProtocolError(_)
                | SessionError::UnexpectedMessage(_) => true,
            },
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerChange::Up => f.write_str("up"),
            PeerChange::Down { reason, kept } if kept.is_empty() => write!(f, "down: {reason}"),
            PeerChange::Down { reason, .. } => write!(f, "down: {reason}; its routes are kept for its restart"),
        }
    }
}

impl PeerStatus {
    /// How long the session has been up.
    pub fn uptime(&self, now: Instant) -> Option<Duration> {
        (self.state == State::Established).then(|| now.saturating_duration_since(self.since))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` keeps column widths.
        f.pad(match self {
            State::Idle => "Idle",
            State::Connect => "Connect",
            State::Active => "Active",
            State::OpenSent => "OpenSent",
            State::OpenConfirm => "OpenConfirm",
            State::Established => "Established",
        })
    }
}
