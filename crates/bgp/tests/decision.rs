//! Best path selection: every step by example, its laws on random candidates, the incremental table against one that
//! starts from scratch.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bgp::attributes::{AsPath, Attributes, Origin, Segment};
use bgp::decision::{Candidate, Ineligible, Learnt, NotBest, Standing, decide};
use bgp::rib::{Best, PathCounts, PeerFacts, PeerIndex, Rib, Source};
use bgp::{Family, FamilySet, FibRoute};
use ipnet::IpNet;
use proptest::prelude::*;

/// A candidate that owns what it says.
#[derive(Clone, Debug)]
struct Entry {
    attributes: Attributes,
    learnt: Learnt,
    peer: u8,
    ineligible: Option<Ineligible>,
}

/// An internal path, like all others but for what the change says.
fn entry(peer: u8, change: impl FnOnce(&mut Entry)) -> Entry {
    let next_hop = IpAddr::V4(Ipv4Addr::new(10, 0, 0, peer));
    let mut entry = Entry {
        attributes: Attributes {
            local_pref: Some(100),
            ..Attributes::new(Origin::Igp, next_hop)
        },
        learnt: Learnt::Internal,
        peer,
        ineligible: None,
    };
    change(&mut entry);
    entry
}

fn path(ases: &[u32]) -> AsPath {
    AsPath(vec![Segment::Sequence(ases.to_vec())])
}

/// The first entry is best, the second lost for this reason.
fn check(loser: NotBest, entries: [Entry; 2]) {
    assert_eq!(judged(&entries), [Standing::Best, Standing::NotBest(loser)]);
}

#[test]
fn each_step_decides_what_the_ones_before_left_open() {
    check(
        NotBest::LocalPrefLower,
        [
            entry(2, |e| e.attributes.local_pref = None),
            entry(1, |e| e.attributes.local_pref = Some(99)),
        ],
    );
    check(
        NotBest::OriginatedHere,
        [entry(0, |e| e.learnt = Learnt::Local), entry(1, |_| {})],
    );
    check(
        NotBest::LocalPrefLower,
        [
            entry(1, |e| e.attributes.local_pref = Some(101)),
            entry(0, |e| e.learnt = Learnt::Local),
        ],
    );
    check(
        NotBest::AsPathLonger,
        [
            entry(2, |e| e.attributes.as_path = path(&[1])),
            entry(1, |e| e.attributes.as_path = path(&[1, 1])),
        ],
    );
    check(
        NotBest::OriginHigher,
        [entry(2, |_| {}), entry(1, |e| e.attributes.origin = Origin::Incomplete)],
    );
    check(
        NotBest::MedHigher,
        [entry(2, |_| {}), entry(1, |e| e.attributes.med = Some(1))],
    );
    check(
        NotBest::ExternalPreferred,
        [entry(2, |e| e.learnt = Learnt::External), entry(1, |_| {})],
    );
    let aloof = NotBest::Ineligible(Ineligible::AsLoop);
    check(
        aloof,
        [entry(2, |_| {}), entry(1, |e| e.ineligible = Some(Ineligible::AsLoop))],
    );
}

#[test]
fn meds_of_different_neighbours_do_not_compare() {
    let with = |peer, neighbour, med| {
        entry(peer, |e| {
            e.attributes.as_path = path(&[neighbour]);
            e.attributes.med = Some(med);
        })
    };
    let standings = judged(&[with(1, 65001, 10), with(2, 65002, 5), with(3, 65001, 9)]);
    assert_eq!(
        standings,
        [
            Standing::NotBest(NotBest::MedHigher),
            Standing::Best,
            Standing::Multipath
        ]
    );
}

#[test]
fn equal_paths_are_used_together_and_the_tie_break_names_the_best() {
    let standings = judged(&[entry(2, |_| {}), entry(1, |_| {}), entry(3, |_| {})]);
    assert_eq!(standings, [Standing::Multipath, Standing::Best, Standing::Multipath]);
    // RFC 4456 9: the originator counts, not who reflects; then the shorter CLUSTER_LIST.
    let reflected = |peer: u8, clusters: usize| {
        entry(peer, |e| {
            e.attributes.originator_id = Some(Ipv4Addr::new(10, 0, 0, 1));
            e.attributes.cluster_list = vec![Ipv4Addr::new(10, 0, 0, peer); clusters];
        })
    };
    assert_eq!(
        judged(&[reflected(7, 2), reflected(9, 1), entry(3, |_| {})])[1],
        Standing::Best
    );
    assert_eq!(
        judged(&[reflected(9, 1), reflected(7, 1)])[1],
        Standing::Best,
        "the lower peer address is last"
    );
}

#[test]
fn nothing_usable_gives_nothing() {
    assert_eq!(judged(&[]), []);
    let standings = judged(&[entry(1, |e| e.ineligible = Some(Ineligible::ClusterLoop))]);
    assert_eq!(
        standings,
        [Standing::NotBest(NotBest::Ineligible(Ineligible::ClusterLoop))]
    );
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_the_order(entries in entries(2..3), rotation in 0..8usize) {
        let standings = judged(&entries);
        let mut turned = entries.clone();
        turned.rotate_left(rotation % entries.len());
        let mut expected = standings;
        expected.rotate_left(rotation % entries.len());
        prop_assert_eq!(judged(&turned), expected);
    }

    #[test]
    fn at_most_one_is_best_and_one_is_if_any_may_be_used(entries in entries(0..3)) {
        let standings = judged(&entries);
        let usable = entries.iter().any(|entry| entry.ineligible.is_none());
        prop_assert_eq!(standings.iter().filter(|standing| **standing == Standing::Best).count(), usize::from(usable));
    }

    /// With one neighbour the MED is just another number, and the whole decision a comparison of tuples.
    #[test]
    fn with_one_neighbour_the_lowest_tuple_wins(entries in entries(0..1)) {
        let first = |e: &Entry| (
            u32::MAX - e.attributes.local_pref.unwrap_or(100),
            e.learnt != Learnt::Local,
            e.attributes.as_path.length(),
            e.attributes.origin,
            e.attributes.med.unwrap_or(0),
            e.learnt,
        );
        let last = |e: &Entry| (
            e.attributes.originator_id.unwrap_or(router_id(e)),
            e.attributes.cluster_list.len(),
            e.peer,
        );
        let usable = entries.iter().enumerate().filter(|(_, entry)| entry.ineligible.is_none());
        let best = usable.min_by_key(|(_, entry)| (first(entry), last(entry))).map(|(index, _)| index);
        for (index, standing) in judged(&entries).into_iter().enumerate() {
            let equal = best.is_some_and(|best| first(&entries[best]) == first(&entries[index]));
            match standing {
                Standing::Best => prop_assert_eq!(Some(index), best),
                Standing::Multipath => prop_assert!(equal && entries[index].ineligible.is_none()),
                Standing::NotBest(_) => prop_assert!(!equal || entries[index].ineligible.is_some()),
            }
        }
    }

    #[test]
    fn the_incremental_table_agrees_with_one_from_scratch(ops in prop::collection::vec(any_op(), 1..120)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.apply(op);
        }
        pair.apply(Op::Settle);
    }
}

fn router_id(entry: &Entry) -> Ipv4Addr {
    if entry.learnt == Learnt::Local {
        Ipv4Addr::UNSPECIFIED
    } else {
        Ipv4Addr::new(10, 0, 0, entry.peer)
    }
}

fn judged(entries: &[Entry]) -> Vec<Standing> {
    let candidates: Vec<_> = entries
        .iter()
        .map(|entry| Candidate {
            attributes: &entry.attributes,
            learnt: entry.learnt,
            router_id: router_id(entry),
            peer_address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, entry.peer)),
            ineligible: entry.ineligible,
        })
        .collect();
    decide(&candidates)
}

/// Candidates of different peers; `neighbours` bounds the AS that they came through.
fn entries(neighbours: std::ops::Range<u32>) -> impl Strategy<Value = Vec<Entry>> {
    let one = (
        any_attributes(neighbours),
        prop_oneof![3 => Just(Learnt::Internal), 2 => Just(Learnt::External)],
        prop_oneof![5 => Just(None), 1 => Just(Some(Ineligible::AsLoop))],
    );
    (prop::collection::vec(one, 1..7), any::<bool>()).prop_map(|(list, local)| {
        let entries = list
            .into_iter()
            .enumerate()
            .map(|(index, (attributes, learnt, ineligible))| Entry {
                attributes,
                learnt,
                peer: index as u8 + 1,
                ineligible,
            });
        let mut entries: Vec<_> = entries.collect();
        if local {
            entries[0].learnt = Learnt::Local;
            entries[0].ineligible = None;
        }
        entries
    })
}

fn any_attributes(neighbours: std::ops::Range<u32>) -> impl Strategy<Value = Attributes> {
    let neighbours = if neighbours.is_empty() { 0..1 } else { neighbours };
    let origin = prop_oneof![3 => Just(Origin::Igp), 1 => Just(Origin::Egp)];
    let few = |values: std::ops::Range<u32>| prop::option::of(values);
    (
        few(99..102),
        neighbours,
        1..3usize,
        origin,
        few(0..3),
        few(1..3),
        0..3usize,
        1..4u8,
    )
        .prop_map(
            |(local_pref, neighbour, length, origin, med, originator, clusters, next_hop)| Attributes {
                local_pref,
                as_path: path(&vec![65000 + neighbour; length]),
                med,
                originator_id: originator.map(|id| Ipv4Addr::new(10, 0, 0, id as u8)),
                cluster_list: vec![Ipv4Addr::LOCALHOST; clusters],
                ..Attributes::new(origin, IpAddr::V4(Ipv4Addr::new(10, 9, 0, next_hop)))
            },
        )
}

#[derive(Clone, Debug)]
enum Op {
    Announce(Option<u32>, usize, Box<Attributes>, bool),
    Withdraw(Option<u32>, usize),
    Stale(u32, Family),
    Sweep(u32, Family),
    Drop(u32),
    Settle,
}

fn any_op() -> impl Strategy<Value = Op> {
    let peer = 0..4u32;
    let source = prop_oneof![4 => peer.clone().prop_map(Some), 1 => Just(None)];
    let family = prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
    prop_oneof![
        8 => (source.clone(), 0..5usize, any_attributes(0..2), prop::bool::weighted(0.1))
            .prop_map(|(source, prefix, attributes, loops)| Op::Announce(source, prefix, Box::new(attributes), loops)),
        4 => (source, 0..5usize).prop_map(|(source, prefix)| Op::Withdraw(source, prefix)),
        1 => (peer.clone(), family.clone()).prop_map(|(peer, family)| Op::Stale(peer, family)),
        1 => (peer.clone(), family).prop_map(|(peer, family)| Op::Sweep(peer, family)),
        1 => peer.prop_map(Op::Drop),
        3 => Just(Op::Settle),
    ]
}

/// Attributes, whether it may be used, whether it is stale.
type Plain = (Arc<Attributes>, Option<Ineligible>, bool);

/// The table, and all that was ever said to it in the plainest form.
struct Pair {
    rib: Rib,
    plain: BTreeMap<(IpNet, Source), Plain>,
    best: BTreeMap<IpNet, Best>,
    fib: BTreeMap<IpNet, FibRoute>,
}

impl Pair {
    const PREFIXES: [&str; 5] = ["10.1.0.0/26", "10.1.0.64/26", "10.1.0.0/24", "fd00::/64", "fd00::/122"];

    fn new() -> Self {
        let mut rib = Rib::default();
        for peer in 0..4 {
            rib.set_peer(PeerIndex(peer), facts(peer));
        }
        Self {
            rib,
            plain: BTreeMap::new(),
            best: BTreeMap::new(),
            fib: BTreeMap::new(),
        }
    }

    fn apply(&mut self, op: Op) {
        let source = |peer: Option<u32>| peer.map_or(Source::Local, |peer| Source::Peer(PeerIndex(peer)));
        let prefix = |index: usize| Self::PREFIXES[index].parse::<IpNet>().expect("a prefix");
        match op {
            Op::Announce(peer, index, attributes, loops) => {
                let attributes = Arc::new(*attributes);
                let ineligible = (loops && peer.is_some()).then_some(Ineligible::AsLoop);
                self.rib
                    .announce(source(peer), prefix(index), Arc::clone(&attributes), ineligible);
                self.plain
                    .insert((prefix(index), source(peer)), (attributes, ineligible, false));
            }
            Op::Withdraw(peer, index) => {
                self.rib.withdraw(source(peer), prefix(index));
                self.plain.remove(&(prefix(index), source(peer)));
            }
            Op::Stale(peer, family) => {
                self.rib.mark_stale(PeerIndex(peer), [family].into_iter().collect());
                self.plain.retain(|(prefix, from), (_, _, stale)| {
                    let meant = *from == source(Some(peer)) && Family::of(prefix) == family;
                    !(meant && std::mem::replace(stale, *stale || meant))
                });
            }
            Op::Sweep(peer, family) => {
                self.rib.sweep_stale(PeerIndex(peer), [family].into_iter().collect());
                self.plain.retain(|(prefix, from), (_, _, stale)| {
                    !(*from == source(Some(peer)) && Family::of(prefix) == family && *stale)
                });
            }
            Op::Drop(peer) => {
                self.rib.drop_paths(PeerIndex(peer), FamilySet::BOTH);
                self.plain.retain(|(_, from), _| *from != source(Some(peer)));
            }
            Op::Settle => self.settle(),
        }
    }

    fn settle(&mut self) {
        for change in self.rib.settle() {
            assert_eq!(change.old.as_ref(), self.best.get(&change.prefix));
            match change.new {
                Some(best) => drop(self.best.insert(change.prefix, best)),
                None => drop(self.best.remove(&change.prefix)),
            }
            match change.route {
                Some(Some(route)) => assert_ne!(self.fib.insert(change.prefix, route.clone()), Some(route)),
                Some(None) => assert!(self.fib.remove(&change.prefix).is_some()),
                None => {}
            }
        }
        let (paths, best, fib) = self.computed_from_scratch();
        let seen = self.rib.iter().flat_map(|(prefix, list)| {
            list.iter().map(|path| {
                (
                    *prefix,
                    path.source,
                    Arc::clone(&path.attributes),
                    path.stale,
                    path.standing,
                )
            })
        });
        assert_eq!(seen.collect::<Vec<_>>(), paths);
        assert_eq!(self.best, best);
        assert_eq!(self.fib, fib);
        assert_eq!(self.rib.routes().collect::<BTreeMap<_, _>>(), fib);
        for peer in 0..4 {
            let of_peer = || {
                self.plain
                    .iter()
                    .filter(|((_, from), _)| *from == Source::Peer(PeerIndex(peer)))
            };
            let expected = PathCounts {
                received: of_peer().count(),
                accepted: of_peer().filter(|(_, (_, ineligible, _))| ineligible.is_none()).count(),
                stale: of_peer().filter(|(_, (_, _, stale))| *stale).count(),
            };
            assert_eq!(self.rib.counts(PeerIndex(peer)), expected);
        }
    }

    #[allow(clippy::type_complexity, reason = "three tables, compared at once")]
    fn computed_from_scratch(
        &self,
    ) -> (
        Vec<(IpNet, Source, Arc<Attributes>, bool, Standing)>,
        BTreeMap<IpNet, Best>,
        BTreeMap<IpNet, FibRoute>,
    ) {
        let (mut paths, mut bests, mut fib) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for prefix in Self::PREFIXES
            .iter()
            .map(|text| text.parse::<IpNet>().expect("a prefix"))
        {
            let of_prefix: Vec<_> = self.plain.iter().filter(|((of, _), _)| *of == prefix).collect();
            let candidates: Vec<_> = of_prefix
                .iter()
                .map(|((_, source), (attributes, ineligible, _))| {
                    let facts = match source {
                        Source::Local => None,
                        Source::Peer(PeerIndex(peer)) => Some(facts(*peer)),
                    };
                    Candidate {
                        attributes,
                        learnt: facts.map_or(Learnt::Local, |facts| {
                            if facts.internal {
                                Learnt::Internal
                            } else {
                                Learnt::External
                            }
                        }),
                        router_id: facts.map_or(Ipv4Addr::UNSPECIFIED, |facts| facts.router_id),
                        peer_address: facts.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |facts| facts.address),
                        ineligible: *ineligible,
                    }
                })
                .collect();
            let mut next_hops = Vec::new();
            for (((_, source), (attributes, _, stale)), standing) in of_prefix.into_iter().zip(decide(&candidates)) {
                paths.push((prefix, *source, Arc::clone(attributes), *stale, standing));
                if standing == Standing::Best {
                    bests.insert(
                        prefix,
                        Best {
                            source: *source,
                            attributes: Arc::clone(attributes),
                        },
                    );
                }
                if matches!(standing, Standing::Best | Standing::Multipath) {
                    next_hops.push(attributes.next_hop);
                }
            }
            next_hops.sort();
            next_hops.dedup();
            if let Some(best) = bests.get(&prefix).filter(|best| best.source != Source::Local) {
                fib.insert(
                    prefix,
                    FibRoute {
                        next_hops,
                        metric: best.attributes.metric(),
                    },
                );
            }
        }
        paths.sort_by_key(|(prefix, source, ..)| (*prefix, *source));
        (paths, bests, fib)
    }
}

fn facts(peer: u32) -> PeerFacts {
    let address = Ipv4Addr::new(10, 0, 0, peer as u8 + 1);
    PeerFacts {
        internal: peer > 0,
        router_id: address,
        address: IpAddr::V4(address),
    }
}
