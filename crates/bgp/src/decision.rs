//! Which of several paths to one prefix is best, as one pure function with named steps (RFC 4271 9.1.2.2, RFC 4456 9).

use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::attributes::Attributes;

/// A path as the decision process sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its attributes.
    pub attributes: &'a Attributes,
    /// Where it came from.
    pub learnt: Learnt,
    /// BGP identifier of the peer that told us; unspecified for our own.
    pub router_id: Ipv4Addr,
    /// Address of that peer; unspecified for our own.
    pub peer_address: IpAddr,
    /// Why it may not be used at all.
    pub ineligible: Option<Ineligible>,
}

/// How a path came to us. The order is that of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Learnt {
    /// This speaker originates it.
    Local,
    /// From another AS.
    External,
    /// From our AS.
    Internal,
}

/// What the decision process made of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The one that is used and told to others.
    Best,
    /// As good as the best up to the tie-breaks: used beside it.
    Multipath,
    /// Not used.
    NotBest(NotBest),
}

/// Why a path lost, by the step that it lost in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum NotBest {
    /// It may not be used.
    #[error("{0}")]
    Ineligible(Ineligible),
    /// Another has a higher LOCAL_PREF.
    #[error("lower LOCAL_PREF")]
    LocalPrefLower,
    /// This speaker originates the prefix.
    #[error("originated here as well")]
    OriginatedHere,
    /// Another has a shorter AS_PATH.
    #[error("longer AS_PATH")]
    AsPathLonger,
    /// Another has a better ORIGIN.
    #[error("worse ORIGIN")]
    OriginHigher,
    /// Another one through the same AS has a lower MULTI_EXIT_DISC.
    #[error("higher MED")]
    MedHigher,
    /// Another one comes from an external peer.
    #[error("internal, another is external")]
    ExternalPreferred,
    /// Another one's originator has a lower identifier.
    #[error("higher router id")]
    RouterIdHigher,
    /// Another one went through fewer reflectors.
    #[error("longer CLUSTER_LIST")]
    ClusterListLonger,
    /// Another one's peer has a lower address.
    #[error("higher peer address")]
    PeerAddressHigher,
}

/// Why a path may not be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Ineligible {
    /// Our AS is in its AS_PATH (RFC 4271 9).
    #[error("own AS in AS_PATH")]
    AsLoop,
    /// We originated it (RFC 4456 8).
    #[error("own router id as ORIGINATOR_ID")]
    OriginatorLoop,
    /// Our cluster reflected it (RFC 4456 8).
    #[error("own cluster in CLUSTER_LIST")]
    ClusterLoop,
    /// Its next hop is this speaker (RFC 4271 5.1.3).
    #[error("next hop is ourselves")]
    NextHopIsSelf,
    /// Its next hop is not an address that packets can be sent to.
    #[error("next hop is not a unicast address")]
    NextHopInvalid,
}

/// Judges all paths of one prefix; the answer has their order. At most one is best, and one is if any may be used.
///
/// Stale paths take part as others do (RFC 4724 4.2). The order of candidates does not matter, unless two are equal in
/// everything, which two paths of one speaker never are.
pub fn decide(candidates: &[Candidate<'_>]) -> Vec<Standing> {
    let mut race = Race {
        candidates,
        standings: candidates
            .iter()
            .map(|c| c.ineligible.map_or(Standing::Best, lost_as))
            .collect(),
        running: (0..candidates.len())
            .filter(|index| candidates[*index].ineligible.is_none())
            .collect(),
    };
    race.keep_lowest(NotBest::LocalPrefLower, |c| {
        Reverse(c.attributes.effective_local_pref())
    });
    race.keep_lowest(NotBest::OriginatedHere, |c| c.learnt != Learnt::Local);
    race.keep_lowest(NotBest::AsPathLonger, |c| c.attributes.as_path.length());
    race.keep_lowest(NotBest::OriginHigher, |c| c.attributes.origin);
    race.keep_lowest_med();
    race.keep_lowest(NotBest::ExternalPreferred, |c| c.learnt);
    let equal = race.running.clone();
    race.keep_lowest(NotBest::RouterIdHigher, |c| {
        c.attributes.originator_id.unwrap_or(c.router_id)
    });
    race.keep_lowest(NotBest::ClusterListLonger, |c| c.attributes.cluster_list.len());
    race.keep_lowest(NotBest::PeerAddressHigher, |c| c.peer_address);
    race.keep_first();
    for index in equal {
        let standing = &mut race.standings[index];
        if *standing != Standing::Best && candidates[index].learnt != Learnt::Local {
            *standing = Standing::Multipath;
        }
    }
    race.standings
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Best => f.write_str("Best"),
            Standing::Multipath => f.write_str("Multipath"),
            Standing::NotBest(reason) => reason.fmt(f),
        }
    }
}

fn lost_as(reason: Ineligible) -> Standing {
    Standing::NotBest(NotBest::Ineligible(reason))
}

/// The candidates still in the running; whoever drops out takes the step's name along.
struct Race<'a> {
    candidates: &'a [Candidate<'a>],
    standings: Vec<Standing>,
    running: Vec<usize>,
}

impl Race<'_> {
    fn keep_lowest<K: Ord>(&mut self, otherwise: NotBest, key: impl Fn(&Candidate<'_>) -> K) {
        let candidates = self.candidates;
        let Some(lowest) = self.running.iter().map(|index| key(&candidates[*index])).min() else {
            return;
        };
        let standings = &mut self.standings;
        self.running.retain(|index| {
            let keep = key(&candidates[*index]) == lowest;
            if !keep {
                standings[*index] = Standing::NotBest(otherwise);
            }
            keep
        });
    }

    /// MEDs compare only between paths through the same neighbouring AS; an absent one counts as 0.
    fn keep_lowest_med(&mut self) {
        let candidates = self.candidates;
        let neighbour_and_med = |index: usize| {
            let attributes = candidates[index].attributes;
            (attributes.as_path.neighbour(), attributes.med.unwrap_or(0))
        };
        let before = self.running.clone();
        let standings = &mut self.standings;
        self.running.retain(|index| {
            let (neighbour, med) = neighbour_and_med(*index);
            let beaten = before
                .iter()
                .map(|other| neighbour_and_med(*other))
                .any(|(n, m)| n == neighbour && m < med);
            if beaten {
                standings[*index] = Standing::NotBest(NotBest::MedHigher);
            }
            !beaten
        });
    }

    fn keep_first(&mut self) {
        for index in self.running.drain(..).skip(1) {
            self.standings[index] = Standing::NotBest(NotBest::PeerAddressHigher);
        }
    }
}
