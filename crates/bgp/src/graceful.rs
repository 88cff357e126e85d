//! Graceful restart (RFC 4724), both roles, as two small machines.
//!
//! The helper keeps the paths of a peer whose session was lost without a NOTIFICATION:
//!
//! | state | event | paths of the peer | next state |
//! |---|---|---|---|
//! | `Live` | session lost, peer announced a restart time | negotiated families become stale, others go | `Waiting` |
//! | `Live` | session lost otherwise, or NOTIFICATION either way | all go | `Live` |
//! | `Waiting` | Restart timer | stale ones go | `Live` |
//! | `Waiting` | established | stale ones of families without F bit go | `Resuming`, `Live` if none is left |
//! | `Waiting` | a further connection fails | stay | `Waiting` |
//! | `Resuming` | End-of-RIB of a family | its stale ones go | `Resuming`, `Live` if it was the last |
//! | `Resuming` | stale-path timer | stale ones go | `Live` |
//! | `Resuming` | session lost | those still stale go (RFC 4724 4.2), the fresh ones become stale | `Waiting` |
//!
//! The restarting speaker waits until its peers have told everything:
//!
//! | state | event | next state |
//! |---|---|---|
//! | `Deferring` | every awaited peer is done | `Converged` |
//! | `Deferring` | 120 s since the start | `Converged` |
//!
//! A peer is done when it sent End-of-RIB for all its families; one that cannot or may not be waited for (no graceful
//! restart, or it restarts itself: two would wait for each other) is done 5 s after its session came up; one that is
//! not up is waited for until 30 s after the start, so a dead node delays nobody longer than that.

use std::time::{Duration, Instant};

use crate::config::{Family, FamilySet};

/// Longest wait for the End-of-RIB of a peer that is back.
pub const STALE_PATH_TIME: Duration = Duration::from_secs(360);
/// Longest time that a restarted speaker defers (RFC 4724 4.1).
pub const SELECTION_DEFERRAL: Duration = Duration::from_secs(120);
/// How long a restarted speaker waits for peers that are not up.
pub const CONNECT_GRACE: Duration = Duration::from_secs(30);
/// After what time a peer that sends no End-of-RIB counts as having told everything.
pub const QUIET_GRACE: Duration = Duration::from_secs(5);

/// What a peer announced for its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRestart {
    /// R bit: it has just restarted.
    pub restarted: bool,
    /// How long it may be away.
    pub restart_time: Duration,
    /// Negotiated families that survive its restart.
    pub families: FamilySet,
    /// Those of them with the F bit: it kept forwarding.
    pub forwarding: FamilySet,
}

/// The helper's state for one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Helper {
    /// No stale paths.
    #[default]
    Live,
    /// The peer is away; its stale paths are used.
    Waiting {
        /// End of the Restart timer.
        until: Instant,
        /// Families with stale paths.
        families: FamilySet,
    },
    /// The peer is back and tells its routes again.
    Resuming {
        /// End of the stale-path timer.
        until: Instant,
        /// Families with stale paths.
        families: FamilySet,
    },
}

impl Helper {
    /// The session was lost without a NOTIFICATION; answers which families' paths stay as stale. All others go.
    pub fn on_lost(&mut self, now: Instant, restart: Option<&PeerRestart>) -> FamilySet {
        let kept = restart.filter(|restart| !restart.restart_time.is_zero() && !restart.families.is_empty());
        *self = match kept {
            Some(restart) => Helper::Waiting {
                until: now + restart.restart_time,
                families: restart.families,
            },
            None => Helper::Live,
        };
        kept.map(|restart| restart.families).unwrap_or_default()
    }

    /// The session ended for good, or the peer is gone; all paths go.
    pub fn on_ended(&mut self) {
        *self = Helper::Live;
    }

    /// A session is up; answers whose stale paths go now.
    pub fn on_established(&mut self, now: Instant, restart: Option<&PeerRestart>) -> FamilySet {
        let (Helper::Waiting { families, .. } | Helper::Resuming { families, .. }) = *self else {
            return FamilySet::default();
        };
        let preserved = restart.map(|restart| restart.forwarding).unwrap_or_default();
        let kept: FamilySet = families.iter().filter(|family| preserved.contains(*family)).collect();
        *self = match kept.is_empty() {
            true => Helper::Live,
            false => Helper::Resuming {
                until: now + STALE_PATH_TIME,
                families: kept,
            },
        };
        families.iter().filter(|family| !kept.contains(*family)).collect()
    }

    /// The peer told everything of a family; answers whether its stale paths go now.
    pub fn on_end_of_rib(&mut self, family: Family) -> bool {
        let Helper::Resuming { families, .. } = self else {
            return false;
        };
        let known = families.contains(family);
        families.remove(family);
        if families.is_empty() {
            *self = Helper::Live;
        }
        known
    }

    /// Time passed; answers whose stale paths go now.
    pub fn on_time(&mut self, now: Instant) -> FamilySet {
        match *self {
            Helper::Waiting { until, families } | Helper::Resuming { until, families } if until <= now => {
                *self = Helper::Live;
                families
            }
            Helper::Live | Helper::Waiting { .. } | Helper::Resuming { .. } => FamilySet::default(),
        }
    }

    /// When to call [`Helper::on_time`].
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Helper::Live => None,
            Helper::Waiting { until, .. } | Helper::Resuming { until, .. } => Some(*until),
        }
    }
}

/// How far a peer has come in telling a speaker that has just started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No session.
    Down,
    /// A session since then; End-of-RIB is still to come.
    Telling {
        /// When it was established.
        since: Instant,
        /// Whether End-of-RIB can be waited for.
        announces_end: bool,
    },
    /// Told everything.
    Told,
}

/// The restarting speaker's state; every speaker has one, as the forwarding table waits for it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convergence {
    /// Not all peers told everything yet.
    Deferring {
        /// When the speaker started.
        since: Instant,
    },
    /// They did, or it took too long.
    Converged,
}

impl Convergence {
    /// Whether peers are still waited for.
    pub fn deferring(&self) -> bool {
        matches!(self, Convergence::Deferring { .. })
    }

    /// Looks at all peers; true once, when the wait ends.
    pub fn check(&mut self, now: Instant, peers: impl IntoIterator<Item = Progress>) -> bool {
        let Convergence::Deferring { since } = *self else {
            return false;
        };
        let ended = now >= since + SELECTION_DEFERRAL
            || peers.into_iter().all(|progress| match awaited_until(since, progress) {
                Some(until) => now >= until,
                None => progress == Progress::Told,
            });
        if ended {
            *self = Convergence::Converged;
        }
        ended
    }

    /// When to check again though nothing happened.
    pub fn deadline(&self, now: Instant, peers: impl IntoIterator<Item = Progress>) -> Option<Instant> {
        let Convergence::Deferring { since } = *self else {
            return None;
        };
        let later = peers
            .into_iter()
            .filter_map(|progress| awaited_until(since, progress))
            .filter(|at| *at > now);
        later.min().into_iter().chain([since + SELECTION_DEFERRAL]).min()
    }
}

/// Until when a peer in this state is waited for; `None` if time does not decide.
fn awaited_until(start: Instant, progress: Progress) -> Option<Instant> {
    match progress {
        Progress::Down => Some(start + CONNECT_GRACE),
        Progress::Telling {
            since,
            announces_end: false,
        } => Some(since + QUIET_GRACE),
        Progress::Telling {
            announces_end: true, ..
        }
        | Progress::Told => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restart(families: FamilySet, forwarding: FamilySet) -> PeerRestart {
        PeerRestart {
            restarted: true,
            restart_time: Duration::from_secs(60),
            families,
            forwarding,
        }
    }

    fn only(family: Family) -> FamilySet {
        [family].into_iter().collect()
    }

    #[test]
    fn helper_keeps_what_was_announced_and_sweeps_family_by_family() {
        let start = Instant::now();
        let mut helper = Helper::Live;
        let both = restart(FamilySet::BOTH, FamilySet::BOTH);
        assert_eq!(helper.on_lost(start, Some(&both)), FamilySet::BOTH);
        assert_eq!(helper.deadline(), Some(start + Duration::from_secs(60)));
        assert_eq!(helper.on_established(start, Some(&both)), FamilySet::default());
        assert!(helper.on_end_of_rib(Family::Ipv6));
        assert!(!helper.on_end_of_rib(Family::Ipv6));
        assert!(helper.on_end_of_rib(Family::Ipv4));
        assert_eq!(helper, Helper::Live);
    }

    #[test]
    fn families_without_the_forwarding_bit_go_at_once() {
        let start = Instant::now();
        let mut helper = Helper::Live;
        helper.on_lost(start, Some(&restart(FamilySet::BOTH, FamilySet::BOTH)));
        let half = restart(FamilySet::BOTH, only(Family::Ipv4));
        assert_eq!(helper.on_established(start, Some(&half)), only(Family::Ipv6));
        assert_eq!(helper.on_time(start + STALE_PATH_TIME), only(Family::Ipv4));
    }

    #[test]
    fn without_capability_nothing_is_kept() {
        let start = Instant::now();
        let mut helper = Helper::Live;
        assert_eq!(helper.on_lost(start, None), FamilySet::default());
        helper.on_lost(start, Some(&restart(FamilySet::BOTH, FamilySet::BOTH)));
        assert_eq!(helper.on_established(start, None), FamilySet::BOTH);
        assert_eq!(helper.deadline(), None);
    }

    #[test]
    fn waiting_ends_with_the_last_peer_and_dead_ones_do_not_hold_it() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let telling = Progress::Telling {
            since: later(2),
            announces_end: true,
        };
        let quiet = Progress::Telling {
            since: later(2),
            announces_end: false,
        };
        let cases: [(&[Progress], u64); 6] = [
            (&[], 0),
            (&[Progress::Told], 0),
            (&[Progress::Told, Progress::Down], 30),
            (&[Progress::Told, quiet], 7),
            (&[Progress::Told, telling], 120),
            (&[quiet, Progress::Down], 30),
        ];
        for (peers, end) in cases {
            let mut convergence = Convergence::Deferring { since: start };
            let mut now = start;
            while !convergence.check(now, peers.iter().copied()) {
                now = convergence
                    .deadline(now, peers.iter().copied())
                    .expect("still deferring");
            }
            assert_eq!(now, later(end), "{peers:?}");
            assert!(!convergence.check(now, []), "only once");
        }
    }
}
