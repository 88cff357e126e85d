//! Path attributes as values. Shared and immutable once in a RIB; how they look on the wire is `wire`'s business.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// LOCAL_PREF of a path that carries none.
pub const DEFAULT_LOCAL_PREF: u32 = 100;

/// Kernel metric of a route whose LOCAL_PREF says nothing about it.
pub const DEFAULT_METRIC: u32 = 1024;

/// Upstream's mapping between kernel metric and LOCAL_PREF mirrors around this value.
pub(crate) const METRIC_MIRROR: u32 = 2_147_483_647;

/// Everything a path carries besides its prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// How the prefix came into BGP.
    pub origin: Origin,
    /// The ASes it went through.
    pub as_path: AsPath,
    /// Where to send packets; unspecified on a route that this speaker originates.
    pub next_hop: IpAddr,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF; absent on what an external peer said.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// Who aggregated.
    pub aggregator: Option<Aggregator>,
    /// RFC 1997 communities, as received.
    pub communities: Vec<Community>,
    /// Who brought the path into the AS (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// The reflection clusters it went through, last one first (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
    /// RFC 4360 extended communities.
    pub extended_communities: Vec<[u8; 8]>,
    /// RFC 8092 large communities.
    pub large_communities: Vec<[u32; 3]>,
    /// Transitive attributes that we do not know and pass on, by code.
    pub unknown: Vec<UnknownAttribute>,
}

/// ORIGIN. The order is that of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp,
    /// Learnt by EGP.
    Egp,
    /// Some other way.
    Incomplete,
}

/// AS_PATH, nearest AS first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath(pub Vec<Segment>);

/// A part of an AS_PATH, never empty, at most 255 ASes on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Unordered.
    Set(Vec<u32>),
    /// Ordered.
    Sequence(Vec<u32>),
}

/// AGGREGATOR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Aggregator {
    /// Its AS.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
}

/// A community of RFC 1997, four octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

/// An optional transitive attribute that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnknownAttribute {
    /// Attribute type.
    pub code: u8,
    /// Value as received.
    pub value: Box<[u8]>,
}

impl Attributes {
    /// A path that this speaker originates with a kernel metric: LOCAL_PREF = 2147483647 − metric, as upstream.
    pub fn originated(family: crate::config::Family, metric: u32) -> Self {
        let next_hop = match family {
            crate::config::Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            crate::config::Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self {
            local_pref: Some(METRIC_MIRROR.saturating_sub(metric)),
            ..Self::new(Origin::Igp, next_hop)
        }
    }

    /// Just the mandatory ones, with an empty AS_PATH.
    pub fn new(origin: Origin, next_hop: IpAddr) -> Self {
        Self {
            origin,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// LOCAL_PREF as the decision process sees it.
    pub fn effective_local_pref(&self) -> u32 {
        self.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
    }

    /// Kernel metric: 2147483647 − LOCAL_PREF where that is not negative, else 1024.
    pub fn metric(&self) -> u32 {
        self.local_pref
            .and_then(|preference| METRIC_MIRROR.checked_sub(preference))
            .unwrap_or(DEFAULT_METRIC)
    }
}

impl AsPath {
    /// Length as the decision process counts it: a set counts as one (RFC 4271 9.1.2.2 a).
    pub fn length(&self) -> usize {
        self.0
            .iter()
            .map(|segment| match segment {
                Segment::Set(_) => 1,
                Segment::Sequence(ases) => ases.len(),
            })
            .sum()
    }

    /// Whether an AS is in it.
    pub fn contains(&self, asn: u32) -> bool {
        self.0.iter().any(|segment| segment.ases().contains(&asn))
    }

    /// The AS that we heard it from: the first of a leading sequence.
    pub fn neighbour(&self) -> Option<u32> {
        match self.0.first() {
            Some(Segment::Sequence(ases)) => ases.first().copied(),
            Some(Segment::Set(_)) | None => None,
        }
    }

    /// Puts an AS in front (RFC 4271 5.1.2 b).
    pub fn prepend(&mut self, asn: u32) {
        match self.0.first_mut() {
            Some(Segment::Sequence(ases)) if ases.len() < 255 => ases.insert(0, asn),
            _ => self.0.insert(0, Segment::Sequence(vec![asn])),
        }
    }
}

impl Segment {
    /// Its ASes.
    pub fn ases(&self) -> &[u32] {
        match self {
            Segment::Set(ases) | Segment::Sequence(ases) => ases,
        }
    }
}

impl Community {
    /// Not to external peers (RFC 1997).
    pub const NO_EXPORT: Self = Self(0xffff_ff01);
    /// To nobody (RFC 1997).
    pub const NO_ADVERTISE: Self = Self(0xffff_ff02);
    /// Not to external peers, confederation members included (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Self = Self(0xffff_ff03);
}

/// Equal attribute sets exist once.
#[derive(Debug, Default)]
pub(crate) struct AttributeTable {
    known: HashSet<Arc<Attributes>>,
    /// Sets that nobody holds any more are dropped when the table outgrows this.
    sweep_at: usize,
}

impl AttributeTable {
    /// The shared copy of a set.
    pub(crate) fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.known.get(&attributes) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at.max(1024) {
            self.known.retain(|attributes| Arc::strong_count(attributes) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let attributes = Arc::new(attributes);
        self.known.insert(Arc::clone(&attributes));
        attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;

    #[test]
    fn metric_and_local_pref_mirror_each_other() {
        for metric in [0, 512, 1024, 2_147_483_647] {
            assert_eq!(Attributes::originated(Family::Ipv4, metric).metric(), metric);
        }
        assert_eq!(
            Attributes::originated(Family::Ipv6, 1024).local_pref,
            Some(2_147_482_623)
        );
        let next_hop = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(Attributes::new(Origin::Igp, next_hop).metric(), 1024);
        assert_eq!(
            Attributes {
                local_pref: Some(u32::MAX),
                ..Attributes::new(Origin::Igp, next_hop)
            }
            .metric(),
            1024
        );
    }

    #[test]
    fn prepending_starts_a_new_sequence_where_it_must() {
        let mut path = AsPath(vec![Segment::Set(vec![7, 8])]);
        path.prepend(1);
        path.prepend(2);
        assert_eq!(
            path,
            AsPath(vec![Segment::Sequence(vec![2, 1]), Segment::Set(vec![7, 8])])
        );
        assert_eq!((path.length(), path.neighbour(), path.contains(8)), (3, Some(2), true));
        let mut full = AsPath(vec![Segment::Sequence(vec![5; 255])]);
        full.prepend(6);
        assert_eq!(full.0.len(), 2);
    }

    #[test]
    fn sets_that_nobody_holds_leave_the_table() {
        let mut table = AttributeTable::default();
        for metric in 0..10_000 {
            table.intern(Attributes::originated(Family::Ipv4, metric));
        }
        assert!(table.known.len() <= 2048);
        let first = table.intern(Attributes::originated(Family::Ipv4, 1));
        assert!(Arc::ptr_eq(
            &first,
            &table.intern(Attributes::originated(Family::Ipv4, 1))
        ));
    }
}
