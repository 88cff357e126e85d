//! The five BGP messages as values (RFC 4271 4, RFC 2918), without their bytes.

use std::fmt;
use std::net::Ipv4Addr;

use bytes::Bytes;
use ipnet::IpNet;

use crate::attributes::Attributes;
use crate::config::Family;

/// Stands for an AS above 65535 where only two octets fit (RFC 6793).
pub const AS_TRANS: u16 = 23456;

/// Any message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Opens a session.
    Open(Open),
    /// Routes; decoded later, as that needs to know what the session negotiated.
    Update(Bytes),
    /// The last word of a session.
    Notification(Notification),
    /// Still there.
    Keepalive,
    /// Asks for all routes of a family again.
    RouteRefresh(AfiSafi),
}

/// OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The two-octet field, [`AS_TRANS`] if the AS does not fit.
    pub my_as: u16,
    /// Seconds; 0 or at least 3.
    pub hold_time: u16,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// In the order sent.
    pub capabilities: Vec<Capability>,
}

/// What a speaker says it can do (RFC 5492).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760.
    Multiprotocol(AfiSafi),
    /// RFC 2918.
    RouteRefresh,
    /// RFC 6793.
    FourOctetAs(u32),
    /// RFC 4724.
    GracefulRestart(GracefulCapability),
    /// Kept as it came.
    Unknown {
        /// Capability code.
        code: u8,
        /// Its value.
        value: Bytes,
    },
}

/// The graceful restart capability (RFC 4724 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulCapability {
    /// R bit: the speaker has just restarted.
    pub restarted: bool,
    /// Seconds until it should be back, 0 to 4095.
    pub restart_time: u16,
    /// Families that survive, with the F bit: forwarding state was preserved.
    pub families: Vec<(AfiSafi, bool)>,
}

/// An address family as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AfiSafi {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent one.
    pub safi: u8,
}

/// The routes of one UPDATE after RFC 7606 error handling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Gone, or to be treated so; both families.
    pub withdrawn: Vec<IpNet>,
    /// New or replaced; at most one entry for the classic fields and one for MP_REACH_NLRI.
    pub announced: Vec<Announcement>,
    /// Set if it says that the initial update of a family is complete.
    pub end_of_rib: Option<Family>,
    /// What was wrong with it without ending the session.
    pub faults: Vec<Fault>,
}

/// Prefixes with common attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Next hop included.
    pub attributes: Attributes,
    /// All of one family.
    pub prefixes: Vec<IpNet>,
}

/// A tolerated error in an attribute (RFC 7606).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Attribute type.
    pub code: u8,
    /// What was done about it.
    pub remedy: Remedy,
}

/// What RFC 7606 does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// The attribute was ignored.
    AttributeDiscard,
    /// The prefixes count as withdrawn.
    TreatAsWithdraw,
}

/// NOTIFICATION: why a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Subcode, 0 if none applies.
    pub subcode: u8,
    /// What the error is about.
    pub data: Bytes,
}

impl Open {
    /// The speaker's AS: the four-octet one if it sent that capability.
    pub fn asn(&self) -> u32 {
        self.capabilities
            .iter()
            .find_map(|capability| match capability {
                Capability::FourOctetAs(asn) => Some(*asn),
                _ => None,
            })
            .unwrap_or(u32::from(self.my_as))
    }
}

impl AfiSafi {
    /// The family, if it is one of ours.
    pub fn family(self) -> Option<Family> {
        match (self.afi, self.safi) {
            (1, 1) => Some(Family::Ipv4),
            (2, 1) => Some(Family::Ipv6),
            _ => None,
        }
    }
}

impl From<Family> for AfiSafi {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self { afi: 1, safi: 1 },
            Family::Ipv6 => Self { afi: 2, safi: 1 },
        }
    }
}

impl Notification {
    /// Marker not all ones.
    pub const NOT_SYNCHRONISED: Self = Self::bare(1, 1);
    /// OPEN of another version; the data carries ours.
    pub const BAD_VERSION: Self = Self::with(2, 1, &[0, 4]);
    /// OPEN that cannot be read.
    pub const OPEN_MALFORMED: Self = Self::bare(2, 0);
    /// OPEN with another AS than configured.
    pub const BAD_PEER_AS: Self = Self::bare(2, 2);
    /// OPEN with an unusable identifier.
    pub const BAD_IDENTIFIER: Self = Self::bare(2, 3);
    /// OPEN with a parameter other than capabilities.
    pub const UNSUPPORTED_PARAMETER: Self = Self::bare(2, 4);
    /// OPEN with a hold time of 1 or 2 s.
    pub const UNACCEPTABLE_HOLD_TIME: Self = Self::bare(2, 6);
    /// UPDATE whose lengths do not add up.
    pub const MALFORMED_ATTRIBUTE_LIST: Self = Self::bare(3, 1);
    /// UPDATE with prefixes that cannot be read.
    pub const INVALID_NETWORK_FIELD: Self = Self::bare(3, 10);
    /// Nothing heard for the hold time.
    pub const HOLD_TIMER_EXPIRED: Self = Self::bare(4, 0);
    /// Deliberate stop (RFC 4486).
    pub const ADMINISTRATIVE_SHUTDOWN: Self = Self::bare(6, 2);
    /// The peer is no longer configured.
    pub const PEER_DECONFIGURED: Self = Self::bare(6, 3);
    /// Not a configured peer, or not now.
    pub const CONNECTION_REJECTED: Self = Self::bare(6, 5);
    /// The peer's configuration changed.
    pub const OTHER_CONFIGURATION_CHANGE: Self = Self::bare(6, 6);
    /// The other of two connections survives.
    pub const COLLISION_RESOLUTION: Self = Self::bare(6, 7);

    /// One without data.
    pub const fn bare(code: u8, subcode: u8) -> Self {
        Self {
            code,
            subcode,
            data: Bytes::new(),
        }
    }

    /// One with constant data.
    pub const fn with(code: u8, subcode: u8, data: &'static [u8]) -> Self {
        Self {
            code,
            subcode,
            data: Bytes::from_static(data),
        }
    }

    /// Whether it is Cease with collision resolution.
    pub fn is_collision(&self) -> bool {
        (self.code, self.subcode) == (6, 7)
    }

    /// Whether someone at the peer wanted the session to end: Cease for shutdown, removal, reset or configuration
    /// (RFC 4486, RFC 8538).
    pub fn is_deliberate(&self) -> bool {
        self.code == 6 && matches!(self.subcode, 2 | 3 | 4 | 6 | 9)
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 4271 4.5 and 6, RFC 4486, RFC 5492, RFC 6608, RFC 8538, RFC 9384.
        let (code, subcode) = match (self.code, self.subcode) {
            (1, 1) => ("Message Header Error", "Connection Not Synchronized"),
            (1, 2) => ("Message Header Error", "Bad Message Length"),
            (1, 3) => ("Message Header Error", "Bad Message Type"),
            (1, _) => ("Message Header Error", ""),
            (2, 1) => ("OPEN Message Error", "Unsupported Version Number"),
            (2, 2) => ("OPEN Message Error", "Bad Peer AS"),
            (2, 3) => ("OPEN Message Error", "Bad BGP Identifier"),
            (2, 4) => ("OPEN Message Error", "Unsupported Optional Parameter"),
            (2, 6) => ("OPEN Message Error", "Unacceptable Hold Time"),
            (2, 7) => ("OPEN Message Error", "Unsupported Capability"),
            (2, _) => ("OPEN Message Error", ""),
            (3, 1) => ("UPDATE Message Error", "Malformed Attribute List"),
            (3, 2) => ("UPDATE Message Error", "Unrecognized Well-known Attribute"),
            (3, 3) => ("UPDATE Message Error", "Missing Well-known Attribute"),
            (3, 4) => ("UPDATE Message Error", "Attribute Flags Error"),
            (3, 5) => ("UPDATE Message Error", "Attribute Length Error"),
            (3, 6) => ("UPDATE Message Error", "Invalid ORIGIN Attribute"),
            (3, 8) => ("UPDATE Message Error", "Invalid NEXT_HOP Attribute"),
            (3, 9) => ("UPDATE Message Error", "Optional Attribute Error"),
            (3, 10) => ("UPDATE Message Error", "Invalid Network Field"),
            (3, 11) => ("UPDATE Message Error", "Malformed AS_PATH"),
            (3, _) => ("UPDATE Message Error", ""),
            (4, _) => ("Hold Timer Expired", ""),
            (5, 1) => ("Finite State Machine Error", "Unexpected Message in OpenSent"),
            (5, 2) => ("Finite State Machine Error", "Unexpected Message in OpenConfirm"),
            (5, 3) => ("Finite State Machine Error", "Unexpected Message in Established"),
            (5, _) => ("Finite State Machine Error", ""),
            (6, 1) => ("Cease", "Maximum Number of Prefixes Reached"),
            (6, 2) => ("Cease", "Administrative Shutdown"),
            (6, 3) => ("Cease", "Peer De-configured"),
            (6, 4) => ("Cease", "Administrative Reset"),
            (6, 5) => ("Cease", "Connection Rejected"),
            (6, 6) => ("Cease", "Other Configuration Change"),
            (6, 7) => ("Cease", "Connection Collision Resolution"),
            (6, 8) => ("Cease", "Out of Resources"),
            (6, 9) => ("Cease", "Hard Reset"),
            (6, 10) => ("Cease", "BFD Down"),
            (6, _) => ("Cease", ""),
            (7, _) => ("ROUTE-REFRESH Message Error", ""),
            _ => ("Unknown error", ""),
        };
        write!(f, "{code}")?;
        if !subcode.is_empty() {
            write!(f, "/{subcode}")?;
        }
        write!(f, " ({}/{})", self.code, self.subcode)
    }
}
