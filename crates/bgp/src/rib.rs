//! All paths to all prefixes, and what is best; incremental.
//!
//! One table holds the Adj-RIBs-In of all peers (a path knows its source) and the Loc-RIB (a path knows its standing).
//! What was announced or withdrawn since is decided in [`Rib::settle`], once per prefix however often it changed.

use std::collections::{BTreeMap, btree_map};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::attributes::Attributes;
use crate::config::{Family, FamilySet};
use crate::decision::{Candidate, Ineligible, Learnt, NotBest, Standing, decide};
use crate::speaker::FibRoute;

/// Number of a peer within one speaker; never used for another one afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// Who told us of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// This speaker originates it.
    Local,
    /// A peer.
    Peer(PeerIndex),
}

/// One way to a prefix.
#[derive(Clone, Debug)]
pub struct Path {
    /// Who told us.
    pub source: Source,
    /// What it says.
    pub attributes: Arc<Attributes>,
    /// Kept from before the peer's restart (RFC 4724).
    pub stale: bool,
    /// Why it may not be used.
    pub ineligible: Option<Ineligible>,
    /// What the decision process made of it; current after [`Rib::settle`].
    pub standing: Standing,
}

/// The best path of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    /// Who told us.
    pub source: Source,
    /// What it says.
    pub attributes: Arc<Attributes>,
}

/// What the decision process needs to know of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// In our AS.
    pub internal: bool,
    /// Its BGP identifier in the current or last session.
    pub router_id: Ipv4Addr,
    /// Its configured address.
    pub address: IpAddr,
}

/// How many paths of a peer the table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounts {
    /// All.
    pub received: usize,
    /// Those that may be used.
    pub accepted: usize,
    /// Those kept from before a restart.
    pub stale: usize,
}

/// The outcome for one prefix that was touched.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Which.
    pub prefix: IpNet,
    /// Best path before.
    pub old: Option<Best>,
    /// Best path now.
    pub new: Option<Best>,
    /// The wish for the forwarding table, if that changed.
    pub route: Option<Option<FibRoute>>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Rib {
    table: BTreeMap<IpNet, Vec<Path>>,
    peers: BTreeMap<PeerIndex, Known>,
    /// What was in force before a prefix was touched.
    touched: BTreeMap<IpNet, (Option<Best>, Option<FibRoute>)>,
}

#[derive(Debug)]
struct Known {
    facts: PeerFacts,
    counts: PathCounts,
}

impl Rib {
    /// Sets what is known of a peer; its paths are judged by it from their next change on.
    pub fn set_peer(&mut self, peer: PeerIndex, facts: PeerFacts) {
        match self.peers.entry(peer) {
            btree_map::Entry::Occupied(mut known) => known.get_mut().facts = facts,
            btree_map::Entry::Vacant(slot) => {
                slot.insert(Known {
                    facts,
                    counts: PathCounts::default(),
                });
            }
        }
    }

    /// Forgets a peer and its paths.
    pub fn remove_peer(&mut self, peer: PeerIndex) {
        self.drop_paths(peer, FamilySet::BOTH);
        self.peers.remove(&peer);
    }

    /// Adds or replaces the path of a source.
    pub fn announce(
        &mut self,
        source: Source,
        prefix: IpNet,
        attributes: Arc<Attributes>,
        ineligible: Option<Ineligible>,
    ) {
        let paths = self.table.entry(prefix).or_default();
        let at = paths.binary_search_by_key(&source, |path| path.source);
        if let Ok(at) = at {
            let path = &mut paths[at];
            if Arc::ptr_eq(&path.attributes, &attributes) && path.ineligible == ineligible {
                // The same again, as after a restart or a refresh: nothing to decide.
                let stale = std::mem::take(&mut path.stale);
                self.count(source, |counts| counts.stale -= usize::from(stale));
                return;
            }
        }
        self.touched.entry(prefix).or_insert_with(|| in_force(paths));
        let path = Path {
            source,
            attributes,
            stale: false,
            ineligible,
            standing: Standing::Best,
        };
        let gone = match at {
            Ok(at) => Some(std::mem::replace(&mut paths[at], path)),
            Err(at) => {
                paths.insert(at, path);
                None
            }
        };
        self.count(source, |counts| {
            if let Some(gone) = gone {
                counts.remove(&gone);
            }
            counts.received += 1;
            counts.accepted += usize::from(ineligible.is_none());
        });
    }

    /// Takes the path of a source away, if there is one.
    pub fn withdraw(&mut self, source: Source, prefix: IpNet) {
        let Some(paths) = self.table.get_mut(&prefix) else {
            return;
        };
        let Ok(at) = paths.binary_search_by_key(&source, |path| path.source) else {
            return;
        };
        self.touched.entry(prefix).or_insert_with(|| in_force(paths));
        let gone = paths.remove(at);
        self.count(source, |counts| counts.remove(&gone));
    }

    /// The peer's session was lost and it may come back: keeps its paths as stale, drops those that already were so
    /// (RFC 4724 4.2).
    pub fn mark_stale(&mut self, peer: PeerIndex, families: FamilySet) {
        self.sweep_stale(peer, families);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.counts.received == 0 || families.is_empty() {
            return;
        }
        let source = Source::Peer(peer);
        for (prefix, paths) in &mut self.table {
            if !families.contains(Family::of(prefix)) {
                continue;
            }
            if let Ok(at) = paths.binary_search_by_key(&source, |path| path.source) {
                paths[at].stale = true;
                known.counts.stale += 1;
            }
        }
    }

    /// Drops what the peer did not tell again after its restart.
    pub fn sweep_stale(&mut self, peer: PeerIndex, families: FamilySet) {
        if self.counts(peer).stale > 0 {
            self.drop_if(peer, families, |path| path.stale);
        }
    }

    /// Drops all paths of a peer in some families.
    pub fn drop_paths(&mut self, peer: PeerIndex, families: FamilySet) {
        self.drop_if(peer, families, |_| true);
    }

    /// Judges anew which paths may be used at all, when our own addresses or identifiers changed.
    pub fn judge_again(&mut self, ineligible: impl Fn(PeerFacts, &Attributes) -> Option<Ineligible>) {
        for (prefix, paths) in &mut self.table {
            for at in 0..paths.len() {
                let Source::Peer(peer) = paths[at].source else { continue };
                let Some(known) = self.peers.get_mut(&peer) else {
                    continue;
                };
                let verdict = ineligible(known.facts, &paths[at].attributes);
                if verdict != paths[at].ineligible {
                    self.touched.entry(*prefix).or_insert_with(|| in_force(paths));
                    known.counts.accepted += usize::from(verdict.is_none());
                    known.counts.accepted -= usize::from(paths[at].ineligible.is_none());
                    paths[at].ineligible = verdict;
                }
            }
        }
    }

    /// Decides every prefix touched since the last call, in ascending order; those whose outcome is the same are left
    /// out.
    pub fn settle(&mut self) -> Vec<Settled> {
        let mut settled = Vec::new();
        for (prefix, (old, old_route)) in std::mem::take(&mut self.touched) {
            let (new, new_route) = match self.table.entry(prefix) {
                btree_map::Entry::Vacant(_) => (None, None),
                btree_map::Entry::Occupied(paths) if paths.get().is_empty() => {
                    paths.remove();
                    (None, None)
                }
                btree_map::Entry::Occupied(mut paths) => {
                    judge(&self.peers, paths.get_mut());
                    in_force(paths.get())
                }
            };
            let route = (old_route != new_route).then_some(new_route);
            if route.is_some() || old != new {
                settled.push(Settled {
                    prefix,
                    old,
                    new,
                    route,
                });
            }
        }
        settled
    }

    /// All prefixes with their paths, ascending; a peer's own are told apart by [`Path::source`].
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &[Path])> {
        self.table.iter().map(|(prefix, paths)| (prefix, paths.as_slice()))
    }

    /// All prefixes with their best path, ascending. Current after [`Rib::settle`].
    pub fn best(&self) -> impl Iterator<Item = (&IpNet, &Path)> {
        self.iter().filter_map(|(prefix, paths)| Some((prefix, best(paths)?)))
    }

    /// All prefixes with a forwarding route, ascending. Current after [`Rib::settle`].
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, FibRoute)> {
        self.table
            .iter()
            .filter_map(|(prefix, paths)| Some((*prefix, in_force(paths).1?)))
    }

    /// How many paths a peer has.
    pub fn counts(&self, peer: PeerIndex) -> PathCounts {
        self.peers.get(&peer).map(|known| known.counts).unwrap_or_default()
    }

    /// What is known of a peer.
    pub fn facts(&self, peer: PeerIndex) -> Option<PeerFacts> {
        self.peers.get(&peer).map(|known| known.facts)
    }

    fn count(&mut self, source: Source, change: impl FnOnce(&mut PathCounts)) {
        if let Source::Peer(peer) = source
            && let Some(known) = self.peers.get_mut(&peer)
        {
            change(&mut known.counts);
        }
    }

    /// Walks the whole table: an index per peer would double the memory for what happens once per lost session.
    fn drop_if(&mut self, peer: PeerIndex, families: FamilySet, condition: impl Fn(&Path) -> bool) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.counts.received == 0 || families.is_empty() {
            return;
        }
        let source = Source::Peer(peer);
        for (prefix, paths) in &mut self.table {
            if !families.contains(Family::of(prefix)) {
                continue;
            }
            if let Ok(at) = paths.binary_search_by_key(&source, |path| path.source)
                && condition(&paths[at])
            {
                self.touched.entry(*prefix).or_insert_with(|| in_force(paths));
                known.counts.remove(&paths.remove(at));
            }
        }
    }
}

impl PathCounts {
    fn remove(&mut self, path: &Path) {
        self.received -= 1;
        self.accepted -= usize::from(path.ineligible.is_none());
        self.stale -= usize::from(path.stale);
    }
}

fn judge(peers: &BTreeMap<PeerIndex, Known>, paths: &mut [Path]) {
    if let [only] = paths {
        only.standing = match only.ineligible {
            None => Standing::Best,
            Some(reason) => Standing::NotBest(NotBest::Ineligible(reason)),
        };
        return;
    }
    let candidates: Vec<_> = paths
        .iter()
        .map(|path| {
            let facts = match path.source {
                Source::Local => None,
                Source::Peer(peer) => peers.get(&peer).map(|known| known.facts),
            };
            Candidate {
                attributes: &path.attributes,
                learnt: match facts {
                    None => Learnt::Local,
                    Some(facts) if facts.internal => Learnt::Internal,
                    Some(_) => Learnt::External,
                },
                router_id: facts.map_or(Ipv4Addr::UNSPECIFIED, |facts| facts.router_id),
                peer_address: facts.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |facts| facts.address),
                ineligible: path.ineligible,
            }
        })
        .collect();
    let standings = decide(&candidates);
    for (path, standing) in paths.iter_mut().zip(standings) {
        path.standing = standing;
    }
}

fn best(paths: &[Path]) -> Option<&Path> {
    paths.iter().find(|path| path.standing == Standing::Best)
}

/// Best path and forwarding route of a decided prefix. What we originate ourselves is no wish of BGP.
fn in_force(paths: &[Path]) -> (Option<Best>, Option<FibRoute>) {
    let Some(best) = best(paths) else { return (None, None) };
    let route = (best.source != Source::Local).then(|| {
        let used = |path: &&Path| matches!(path.standing, Standing::Best | Standing::Multipath);
        let mut next_hops: Vec<_> = paths.iter().filter(used).map(|path| path.attributes.next_hop).collect();
        next_hops.sort_unstable();
        next_hops.dedup();
        FibRoute {
            next_hops,
            metric: best.attributes.metric(),
        }
    });
    (
        Some(Best {
            source: best.source,
            attributes: Arc::clone(&best.attributes),
        }),
        route,
    )
}
