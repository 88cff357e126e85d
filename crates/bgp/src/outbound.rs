//! From changed best paths to UPDATEs: encoded once per audience, handed to each member.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use crate::attributes::Attributes;
use crate::config::Family;
use crate::export::{Audience, Exporter};
use crate::rib::{Best, PeerIndex, Rib, Settled, Source};
use crate::wire;

/// UPDATEs for some members of an audience.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) to: Target,
    pub(crate) messages: Vec<Bytes>,
    /// By how much the number of prefixes told grows or shrinks.
    pub(crate) advertised: isize,
}

/// Which members of an audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// All, or all but those that told us the path before or after the change.
    Except(Option<PeerIndex>, Option<PeerIndex>),
    /// One.
    Only(PeerIndex),
}

impl Target {
    pub(crate) fn includes(self, member: PeerIndex) -> bool {
        match self {
            Target::Except(a, b) => Some(member) != a && Some(member) != b,
            Target::Only(only) => member == only,
        }
    }
}

/// What an audience is to be told after a round of decisions.
pub(crate) fn publish(
    exporter: &Exporter,
    audience: &Audience,
    settled: &[Settled],
    is_member: impl Fn(PeerIndex) -> bool,
) -> Vec<Outgoing> {
    let mut view = View::new(exporter, audience);
    let mut batches = Batches::default();
    for Settled { prefix, old, new, .. } in settled {
        let old = old.as_ref().and_then(|best| view.told(prefix, best));
        let new = new.as_ref().and_then(|best| view.told(prefix, best));
        match (old, new) {
            (None, None) => {}
            (Some(old), None) => batches.withdraw(prefix, Target::Except(old.teller, None)),
            (None, Some(new)) => batches.announce(prefix, new.attributes, Target::Except(new.teller, None), true),
            (Some(old), Some(new)) => {
                let same = Arc::ptr_eq(&old.attributes, &new.attributes) || old.attributes == new.attributes;
                if !same {
                    let target = match old.teller == new.teller {
                        true => Target::Except(new.teller, None),
                        false => Target::Except(old.teller, new.teller),
                    };
                    batches.announce(prefix, Arc::clone(&new.attributes), target, false);
                }
                if old.teller != new.teller {
                    // Whoever told us the old path has not heard of it yet; whoever told us the new one must forget
                    // the old one.
                    if let Some(member) = old.teller.filter(|member| is_member(*member)) {
                        batches.announce(prefix, Arc::clone(&new.attributes), Target::Only(member), true);
                    }
                    if let Some(member) = new.teller.filter(|member| is_member(*member)) {
                        batches.withdraw(prefix, Target::Only(member));
                    }
                }
            }
        }
    }
    batches.encode(audience.four_octet_as)
}

/// What one member is to be told when the rules for it change from `old` to `new`; `None` stands for no session.
///
/// The table must be settled.
pub(crate) fn resync(
    rib: &Rib,
    member: PeerIndex,
    old: Option<(&Exporter, &Audience)>,
    new: (&Exporter, &Audience),
) -> Vec<Outgoing> {
    let mut old = old.map(|(exporter, audience)| View::new(exporter, audience));
    let four_octet_as = new.1.four_octet_as;
    let mut new = View::new(new.0, new.1);
    let mut batches = Batches::default();
    for (prefix, path) in rib.best() {
        if path.source == Source::Peer(member) {
            continue;
        }
        let best = Best {
            source: path.source,
            attributes: Arc::clone(&path.attributes),
        };
        let old = old.as_mut().and_then(|view| view.told(prefix, &best));
        match (old, new.told(prefix, &best)) {
            (None, None) => {}
            (Some(_), None) => batches.withdraw(prefix, Target::Only(member)),
            (None, Some(new)) => batches.announce(prefix, new.attributes, Target::Only(member), true),
            (Some(old), Some(new)) if old.attributes == new.attributes => {}
            (Some(_), Some(new)) => batches.announce(prefix, new.attributes, Target::Only(member), false),
        }
    }
    batches.encode(four_octet_as)
}

/// What one member has been told: its Adj-RIB-Out.
pub(crate) fn advertised<'a>(
    rib: &'a Rib,
    member: PeerIndex,
    exporter: &'a Exporter,
    audience: &'a Audience,
) -> impl Iterator<Item = (IpNet, Arc<Attributes>)> + 'a {
    let mut view = View::new(exporter, audience);
    rib.best()
        .filter(move |(_, path)| path.source != Source::Peer(member))
        .filter_map(move |(prefix, path)| {
            let best = Best {
                source: path.source,
                attributes: Arc::clone(&path.attributes),
            };
            view.told(prefix, &best).map(|told| (*prefix, told.attributes))
        })
}

/// A best path in an audience's eyes.
struct Told {
    attributes: Arc<Attributes>,
    teller: Option<PeerIndex>,
}

/// The export rules for one audience, with the results remembered: many prefixes share attributes.
struct View<'a> {
    exporter: &'a Exporter,
    audience: &'a Audience,
    results: HashMap<(*const Attributes, Source, Family, Option<usize>), Exported>,
}

/// The original is kept so that its address, by which it is looked up, stays its own.
struct Exported {
    _original: Arc<Attributes>,
    result: Option<Arc<Attributes>>,
}

impl<'a> View<'a> {
    fn new(exporter: &'a Exporter, audience: &'a Audience) -> Self {
        Self {
            exporter,
            audience,
            results: HashMap::new(),
        }
    }

    fn told(&mut self, prefix: &IpNet, best: &Best) -> Option<Told> {
        if !self.exporter.permits(self.audience, prefix, best) {
            return None;
        }
        let family = Family::of(prefix);
        let rule = self.exporter.rule(self.audience, prefix, best);
        let key = (
            Arc::as_ptr(&best.attributes),
            best.source,
            family,
            rule.map(|(place, _)| place),
        );
        let exported = self.results.entry(key).or_insert_with(|| {
            let rule = rule.map(|(_, rule)| rule);
            let result = self
                .exporter
                .attributes(self.audience, family, best, rule)
                .map(Arc::new);
            Exported {
                _original: Arc::clone(&best.attributes),
                result,
            }
        });
        let teller = match best.source {
            Source::Local => None,
            Source::Peer(peer) => Some(peer),
        };
        Some(Told {
            attributes: Arc::clone(exported.result.as_ref()?),
            teller,
        })
    }
}

/// Prefixes collected by what is said of them and to whom, in order of first appearance.
#[derive(Default)]
struct Batches {
    batches: Vec<Batch>,
    known: HashMap<(Option<*const Attributes>, Family, Target), usize>,
}

struct Batch {
    to: Target,
    /// `None` withdraws.
    attributes: Option<Arc<Attributes>>,
    prefixes: Vec<IpNet>,
    /// How many of them the target has not been told before.
    new: usize,
}

impl Batches {
    fn withdraw(&mut self, prefix: &IpNet, to: Target) {
        self.batch(None, prefix, to).prefixes.push(*prefix);
    }

    fn announce(&mut self, prefix: &IpNet, attributes: Arc<Attributes>, to: Target, new: bool) {
        let batch = self.batch(Some(attributes), prefix, to);
        batch.prefixes.push(*prefix);
        batch.new += usize::from(new);
    }

    fn batch(&mut self, attributes: Option<Arc<Attributes>>, prefix: &IpNet, to: Target) -> &mut Batch {
        let key = (attributes.as_ref().map(Arc::as_ptr), Family::of(prefix), to);
        let at = *self.known.entry(key).or_insert_with(|| {
            self.batches.push(Batch {
                to,
                attributes,
                prefixes: Vec::new(),
                new: 0,
            });
            self.batches.len() - 1
        });
        &mut self.batches[at]
    }

    fn encode(self, four_octet_as: bool) -> Vec<Outgoing> {
        self.batches
            .into_iter()
            .map(|batch| batch.encode(four_octet_as))
            .collect()
    }
}

impl Batch {
    fn encode(self, four_octet_as: bool) -> Outgoing {
        let attributes = self.attributes.as_ref();
        let announced = attributes.and_then(|a| wire::encode_announcement(a, &self.prefixes, four_octet_as));
        let old = (self.prefixes.len() - self.new) as isize;
        match announced {
            Some(messages) => Outgoing {
                to: self.to,
                messages,
                advertised: self.new as isize,
            },
            // Also where the attributes fit no message: then the peer must at least not keep what it had.
            None => Outgoing {
                to: self.to,
                messages: wire::encode_withdrawal(&self.prefixes),
                advertised: -old,
            },
        }
    }
}
