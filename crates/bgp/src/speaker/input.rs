//! What happens to a speaker: connections, messages, time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::{ConnId, Live, Output, Speaker};
use crate::attributes::Attributes;
use crate::config::{Config, Family, FamilySet, PeerId};
use crate::decision::Ineligible;
use crate::export::Audience;
use crate::filter::{self, Filter, FilterRule, Subject};
use crate::graceful::{CONNECT_GRACE, Progress, QUIET_GRACE};
use crate::message::{Notification, Update};
use crate::outbound;
use crate::rib::{PeerFacts, PeerIndex, Source};
use crate::session::{Effect, Ending, Local, Session};
use crate::status::{Negotiated, PeerChange, SessionError};
use crate::wire;

impl Speaker {
    pub(super) fn accept(&mut self, now: Instant, conn: ConnId, from: SocketAddr, outputs: &mut Vec<Output>) {
        // The peer's port is any; dual-stack sockets give IPv4 peers as mapped addresses.
        let address = from.ip().to_canonical();
        let from = |port| PeerId(SocketAddr::new(address, port));
        let known = self.indices.range(from(0)..=from(u16::MAX)).map(|(_, index)| *index);
        let free = |index: &PeerIndex| self.peers.get(index).is_some_and(|peer| peer.live.is_none());
        let Some(index) = known.clone().find(free).or(known.min()) else {
            reject(conn, outputs);
            return;
        };
        self.connections.insert(conn, index);
        self.on_session(now, index, outputs, |session, local, effects| {
            session.on_accepted(now, conn, local, effects);
        });
    }

    pub(super) fn wake(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        while let Some((at, index)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, index));
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            peer.armed = None;
            let swept = peer.helper.on_time(now);
            self.rib.sweep_stale(index, swept);
            let mut next_conn = self.next_conn;
            self.on_session(now, index, outputs, |session, _, effects| {
                session.on_time(now, &mut next_conn, effects);
            });
            self.next_conn = next_conn;
        }
    }

    pub(super) fn on_connection(
        &mut self,
        now: Instant,
        conn: ConnId,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Session, &Local, &mut Vec<Effect>),
    ) {
        // Reports about connections that we closed may still be under way.
        if let Some(index) = self.connections.get(&conn).copied() {
            self.on_session(now, index, outputs, act);
        }
    }

    pub(super) fn on_session(
        &mut self,
        now: Instant,
        index: PeerIndex,
        outputs: &mut Vec<Output>,
        act: impl FnOnce(&mut Session, &Local, &mut Vec<Effect>),
    ) {
        let restart_time = self.config.graceful_restart;
        let local = Local {
            asn: self.config.asn,
            router_id: self.config.router_id,
            graceful_restart: restart_time,
            // A peer that still sees us as restarting need not wait for our End-of-RIB.
            restarted: self.restarted && restart_time.is_some_and(|time| now < self.started + time),
            preserved: self.restarted,
        };
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let mut effects = Vec::new();
        act(&mut peer.session, &local, &mut effects);
        for effect in effects {
            self.apply(now, index, effect, outputs);
        }
        self.arm(index);
    }

    pub(super) fn apply(&mut self, now: Instant, index: PeerIndex, effect: Effect, outputs: &mut Vec<Output>) {
        match effect {
            Effect::Connect(conn, source) => {
                let Some(peer) = self.peers.get(&index) else { return };
                self.connections.insert(conn, index);
                outputs.push(Output::Connect {
                    conn,
                    peer: peer.session.peer(),
                    source,
                });
            }
            Effect::Send(conn, bytes) => outputs.push(Output::Send(conn, bytes)),
            Effect::Close(conn) => {
                self.connections.remove(&conn);
                outputs.push(Output::Close(conn));
            }
            Effect::Up(conn, negotiated) => self.up(now, index, conn, &negotiated, outputs),
            Effect::Down(ending, reason) => self.down(now, index, ending, reason, outputs),
            Effect::Update(update) => self.update(now, index, update),
            Effect::Refresh(family) => self.refresh(index, family, outputs),
        }
    }

    pub(super) fn up(
        &mut self,
        now: Instant,
        index: PeerIndex,
        conn: ConnId,
        negotiated: &Negotiated,
        outputs: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        outputs.push(Output::Peer(peer.event(PeerChange::Up)));
        let config = peer.session.config();
        let audience = Audience::of(&self.config, config, negotiated.families, negotiated.four_octet_as);
        let facts = PeerFacts {
            internal: config.asn == self.config.asn,
            router_id: negotiated.router_id,
            address: peer.session.peer().0.ip(),
        };
        self.exporter
            .set_teller(index, &self.config, config, negotiated.router_id);
        self.rib.set_peer(index, facts);

        let restart = negotiated.restart.as_ref();
        let swept = peer.helper.on_established(now, restart);
        peer.untold = negotiated.families;
        // One that restarts itself waits for us, so it cannot be waited for (RFC 4724 4.1).
        let announces_end = restart.is_some_and(|restart| !restart.restarted);
        peer.progress = Progress::Telling {
            since: now,
            announces_end,
        };
        self.rib.sweep_stale(index, swept);
        if !announces_end {
            self.check_convergence_by(now + QUIET_GRACE);
        }

        // Those before are told what changed; the new one is told all there is then.
        self.flush(outputs);
        let everything = outbound::resync(&self.rib, index, None, (&self.exporter, &audience));
        let Some(peer) = self.peers.get_mut(&index) else { return };
        peer.live = Some(Live {
            conn,
            audience,
            restart: negotiated.restart,
            advertised: 0,
        });
        self.audiences.entry(audience).or_default().insert(index);
        self.deliver(audience, everything, outputs);
        if !(self.restarted && self.convergence.deferring()) {
            self.send_end_of_rib(index, outputs);
        }
    }

    pub(super) fn down(
        &mut self,
        now: Instant,
        index: PeerIndex,
        ending: Ending,
        reason: SessionError,
        outputs: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let Some(live) = peer.live.take() else { return };
        if let Some(members) = self.audiences.get_mut(&live.audience) {
            members.remove(&index);
        }
        self.audiences.retain(|_, members| !members.is_empty());
        peer.progress = Progress::Down;
        let kept = match ending {
            Ending::Lost => peer.helper.on_lost(now, live.restart.as_ref()),
            Ending::Notified => {
                peer.helper.on_ended();
                FamilySet::default()
            }
        };
        outputs.push(Output::Peer(peer.event(PeerChange::Down { reason, kept })));
        let gone = Family::BOTH
            .into_iter()
            .filter(|family| !kept.contains(*family))
            .collect();
        self.rib.drop_paths(index, gone);
        self.rib.mark_stale(index, kept);
        self.check_convergence_by(self.started + CONNECT_GRACE);
    }

    pub(super) fn update(&mut self, now: Instant, index: PeerIndex, update: Update) {
        let source = Source::Peer(index);
        for prefix in update.withdrawn {
            self.rib.withdraw(source, prefix);
        }
        let Some(facts) = self.rib.facts(index) else { return };
        let filter = self
            .peers
            .get(&index)
            .map(|peer| Filter::clone(&peer.session.config().import));
        let filter = filter.filter(|filter| !filter.is_empty());
        for announcement in update.announced {
            let ineligible = ineligible(&self.config, facts, &announcement.attributes);
            if let Some(filter) = &filter {
                for prefix in announcement.prefixes {
                    self.filtered(filter, source, prefix, &announcement.attributes, (facts, ineligible));
                }
                continue;
            }
            let attributes = self.attributes.intern(announcement.attributes);
            for prefix in announcement.prefixes {
                self.rib.announce(source, prefix, Arc::clone(&attributes), ineligible);
            }
        }
        let (Some(family), Some(peer)) = (update.end_of_rib, self.peers.get_mut(&index)) else {
            return;
        };
        if peer.helper.on_end_of_rib(family) {
            self.rib.sweep_stale(index, [family].into_iter().collect());
        }
        peer.untold.remove(family);
        if peer.untold.is_empty() && peer.progress != Progress::Told {
            peer.progress = Progress::Told;
            self.check_convergence_by(now);
        }
    }

    /// A path that a filter looks at first. One that it rejects is as good as not told.
    fn filtered(
        &mut self,
        filter: &[FilterRule],
        source: Source,
        prefix: IpNet,
        attributes: &Attributes,
        (facts, ineligible): (PeerFacts, Option<Ineligible>),
    ) {
        let subject = Subject {
            prefix: &prefix,
            attributes,
            remote: true,
            external: !facts.internal,
        };
        let mut changed = attributes.clone();
        if let Some((_, rule)) = filter::first(filter, &subject) {
            if rule.accept.is_none() {
                self.rib.withdraw(source, prefix);
                return;
            }
            rule.change(&mut changed);
        }
        let attributes = self.attributes.intern(changed);
        self.rib.announce(source, prefix, attributes, ineligible);
    }

    /// RFC 2918: everything of a family again.
    pub(super) fn refresh(&mut self, index: PeerIndex, family: Family, outputs: &mut Vec<Output>) {
        self.flush(outputs);
        let Some(live) = self.peers.get_mut(&index).and_then(|peer| peer.live.as_mut()) else {
            return;
        };
        let audience = live.audience;
        let told_before = live.advertised;
        let narrow = audience.with_families([family].into_iter().collect());
        let everything = outbound::resync(&self.rib, index, None, (&self.exporter, &narrow));
        self.deliver(audience, everything, outputs);
        if let Some(live) = self.peers.get_mut(&index).and_then(|peer| peer.live.as_mut()) {
            live.advertised = told_before;
        }
    }
}

pub(super) fn reject(conn: ConnId, outputs: &mut Vec<Output>) {
    outputs.push(Output::Send(
        conn,
        wire::encode_notification(&Notification::CONNECTION_REJECTED),
    ));
    outputs.push(Output::Close(conn));
}

/// Why a path from a peer may not be used (RFC 4271 9, 5.1.3; RFC 4456 8).
pub(super) fn ineligible(config: &Config, facts: PeerFacts, attributes: &Attributes) -> Option<Ineligible> {
    if attributes.as_path.contains(config.asn) {
        return Some(Ineligible::AsLoop);
    }
    if facts.internal && attributes.originator_id == Some(config.router_id) {
        return Some(Ineligible::OriginatorLoop);
    }
    if config
        .cluster_id
        .is_some_and(|cluster| attributes.cluster_list.contains(&cluster))
    {
        return Some(Ineligible::ClusterLoop);
    }
    let own = match attributes.next_hop {
        IpAddr::V4(address) => config.address_v4 == Some(address),
        IpAddr::V6(address) => config.address_v6 == Some(address),
    };
    if own {
        return Some(Ineligible::NextHopIsSelf);
    }
    let invalid = match attributes.next_hop {
        IpAddr::V4(address) => address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST,
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    };
    invalid.then_some(Ineligible::NextHopInvalid)
}
