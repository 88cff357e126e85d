//! What a peer is told of a best path: iBGP, eBGP and reflection rules (RFC 4271 9.2, RFC 4456), and of what was learnt
//! only what lies in the exportable ranges.
//!
//! The Adj-RIB-Out is not stored. It is this function of the best paths, equal for all peers of one [`Audience`] except
//! that nobody is told what it told us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::attributes::{Attributes, Community};
use crate::config::{Config, Family, FamilySet, NextHopMode, PeerConfig};
use crate::filter::{self, Filter, FilterRule, Subject};
use crate::rib::{Best, PeerIndex, Source};

/// Peers of one audience are told the same, in the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Audience {
    relation: Relation,
    next_hop: NextHopMode,
    own_v4: Option<Ipv4Addr>,
    own_v6: Option<Ipv6Addr>,
    /// Place of its filter in the exporter's list, from 1; 0: none.
    filter: usize,
    pub(crate) families: FamilySet,
    pub(crate) four_octet_as: bool,
}

/// What a peer is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    /// In another AS.
    External,
    /// In our AS.
    Internal,
    /// In our AS, and we reflect to it.
    Client,
}

/// The rules with all they depend on besides the audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exporter {
    asn: u32,
    /// Set on a reflector.
    cluster_id: Option<Ipv4Addr>,
    /// While set, only what we originate is told (RFC 4724 4.1).
    deferring: bool,
    /// Where learnt routes may lie that are told.
    exportable: BTreeSet<IpNet>,
    /// The peers' filters, each once.
    filters: Vec<Filter>,
    tellers: BTreeMap<PeerIndex, Teller>,
}

/// A peer as the source of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Teller {
    relation: Relation,
    router_id: Ipv4Addr,
}

impl Relation {
    fn of(config: &Config, peer: &PeerConfig) -> Self {
        match (
            config.asn == peer.asn,
            peer.reflector_client && config.cluster_id.is_some(),
        ) {
            (false, _) => Relation::External,
            (true, false) => Relation::Internal,
            (true, true) => Relation::Client,
        }
    }
}

/// The filters of a configuration's peers, each once, in order.
fn filters(config: &Config) -> Vec<Filter> {
    let mut filters: Vec<Filter> = Vec::new();
    for peer in config.peers.values().filter(|peer| !peer.export.is_empty()) {
        if !filters.contains(&peer.export) {
            filters.push(Filter::clone(&peer.export));
        }
    }
    filters
}

impl Audience {
    pub(crate) fn of(config: &Config, peer: &PeerConfig, families: FamilySet, four_octet_as: bool) -> Self {
        let (mut own_v4, mut own_v6) = (config.address_v4, config.address_v6);
        match peer.source {
            Some(IpAddr::V4(source)) => own_v4 = Some(source),
            Some(IpAddr::V6(source)) => own_v6 = Some(source),
            None => {}
        }
        Self {
            relation: Relation::of(config, peer),
            next_hop: peer.next_hop,
            own_v4,
            own_v6,
            filter: match peer.export.is_empty() {
                true => 0,
                false => {
                    1 + filters(config)
                        .iter()
                        .position(|filter| *filter == peer.export)
                        .unwrap_or_default()
                }
            },
            families,
            four_octet_as,
        }
    }

    /// The same for some of its families.
    pub(crate) fn with_families(self, families: FamilySet) -> Self {
        Self { families, ..self }
    }

    fn own_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.own_v4.map(IpAddr::V4),
            Family::Ipv6 => self.own_v6.map(IpAddr::V6),
        }
    }
}

impl Exporter {
    pub(crate) fn new(config: &Config, deferring: bool) -> Self {
        Self {
            asn: config.asn,
            cluster_id: config.cluster_id,
            deferring,
            exportable: config.exportable.clone(),
            filters: filters(config),
            tellers: BTreeMap::new(),
        }
    }

    /// The same peers under another configuration.
    pub(crate) fn with_config(&self, config: &Config) -> Self {
        Self {
            asn: config.asn,
            cluster_id: config.cluster_id,
            exportable: config.exportable.clone(),
            filters: filters(config),
            ..self.clone()
        }
    }

    pub(crate) fn set_deferring(&mut self, deferring: bool) {
        self.deferring = deferring;
    }

    pub(crate) fn set_teller(&mut self, index: PeerIndex, config: &Config, peer: &PeerConfig, router_id: Ipv4Addr) {
        self.tellers.insert(
            index,
            Teller {
                relation: Relation::of(config, peer),
                router_id,
            },
        );
    }

    pub(crate) fn remove_teller(&mut self, index: PeerIndex) {
        self.tellers.remove(&index);
    }

    pub(crate) fn router_id(&self, index: PeerIndex) -> Option<Ipv4Addr> {
        self.tellers.get(&index).map(|teller| teller.router_id)
    }

    /// The rule of an audience's filter that a best path meets, with its place.
    pub(crate) fn rule(&self, audience: &Audience, prefix: &IpNet, best: &Best) -> Option<(usize, &FilterRule)> {
        let filter = self.filters.get(audience.filter.checked_sub(1)?)?;
        let subject = Subject {
            prefix,
            attributes: &best.attributes,
            remote: best.source != Source::Local,
            external: audience.relation == Relation::External,
        };
        filter::first(filter, &subject)
    }

    /// Whether an audience may be told a best path, as far as its filter has not decided; whoever told it to us is not
    /// considered here.
    pub(crate) fn permits(&self, audience: &Audience, prefix: &IpNet, best: &Best) -> bool {
        if !audience.families.contains(Family::of(prefix)) || (self.deferring && best.source != Source::Local) {
            return false;
        }
        let withheld = |community: &Community| match *community {
            Community::NO_ADVERTISE => true,
            Community::NO_EXPORT | Community::NO_EXPORT_SUBCONFED => audience.relation == Relation::External,
            _ => false,
        };
        if best.attributes.communities.iter().any(withheld) {
            return false;
        }
        let rule = self.rule(audience, prefix, best);
        if rule.is_some_and(|(_, rule)| rule.accept.is_none()) {
            return false;
        }
        match (self.teller(best), audience.relation) {
            (None, _) => true,
            // Who accepts by name means also what lies elsewhere.
            (Some(_), _) if rule.is_none() && !self.exportable.iter().any(|range| range.contains(prefix)) => false,
            (Some(teller), to) => match (teller.relation, to) {
                (Relation::External, _) | (_, Relation::External) => true,
                // RFC 4456 6: from a client to all, from others to clients.
                (Relation::Client, _) | (_, Relation::Client) => true,
                (Relation::Internal, Relation::Internal) => false,
            },
        }
    }

    /// The attributes as that audience sees them; `None` if we have no address to name as next hop.
    pub(crate) fn attributes(
        &self,
        audience: &Audience,
        family: Family,
        best: &Best,
        rule: Option<&FilterRule>,
    ) -> Option<Attributes> {
        let mut attributes = Attributes::clone(&best.attributes);
        if let Some(rule) = rule {
            rule.change(&mut attributes);
        }
        let teller = self.teller(best);
        let own = match (audience.next_hop, teller) {
            (_, None) | (NextHopMode::OwnAddress, _) => true,
            (NextHopMode::Auto, Some(_)) => audience.relation == Relation::External,
            (NextHopMode::Keep, Some(_)) => false,
        };
        if own {
            attributes.next_hop = audience.own_address(family)?;
        }
        match audience.relation {
            Relation::External => {
                attributes.as_path.prepend(self.asn);
                attributes.local_pref = None;
                attributes.originator_id = None;
                attributes.cluster_list = Vec::new();
                if teller.is_some() {
                    // RFC 4271 5.1.4: what another AS said is not for a third one.
                    attributes.med = None;
                }
                // RFC 4360 6: bit 0x40 marks those that stay within the AS.
                attributes
                    .extended_communities
                    .retain(|community| community[0] & 0x40 == 0);
            }
            Relation::Internal | Relation::Client => {
                attributes.local_pref = Some(attributes.effective_local_pref());
                if let (
                    Some(Teller {
                        relation: Relation::Internal | Relation::Client,
                        router_id,
                    }),
                    Some(cluster),
                ) = (teller, self.cluster_id)
                {
                    attributes.originator_id.get_or_insert(router_id);
                    attributes.cluster_list.insert(0, cluster);
                }
            }
        }
        Some(attributes)
    }

    /// `None` for what we originate. A peer that is not known counts as internal, which is told least of.
    fn teller(&self, best: &Best) -> Option<Teller> {
        match best.source {
            Source::Local => None,
            Source::Peer(index) => Some(self.tellers.get(&index).copied().unwrap_or(Teller {
                relation: Relation::Internal,
                router_id: Ipv4Addr::UNSPECIFIED,
            })),
        }
    }
}
