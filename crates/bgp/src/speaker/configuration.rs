//! From one configuration to the next: only what differs changes.

use std::collections::BTreeMap;
use std::time::Instant;

use ipnet::IpNet;

use super::{Output, Peer, Speaker};
use crate::attributes::Attributes;
use crate::config::{Family, FamilySet, LocalRoute, PeerConfig};
use crate::export::Audience;
use crate::graceful::{Helper, Progress};
use crate::message::Notification;
use crate::outbound;
use crate::rib::{PeerIndex, Source};
use crate::session::Session;
use crate::status::SessionError;

impl Speaker {
    /// Ends the sessions that cannot go on; answers the peers that are no longer configured.
    pub(super) fn end_changed_sessions(
        &mut self,
        now: Instant,
        all: bool,
        outputs: &mut Vec<Output>,
    ) -> Vec<PeerIndex> {
        let mut removed = Vec::new();
        for (id, index) in self.indices.clone() {
            let Some(config) = self.config.peers.get(&id).cloned() else {
                self.on_session(now, index, outputs, |session, _, effects| {
                    let error = SessionError::ConfigurationChanged;
                    session.stop(now, &Notification::PEER_DECONFIGURED, error, effects);
                });
                self.drop_all(index);
                removed.push(index);
                continue;
            };
            let Some(peer) = self.peers.get(&index) else { continue };
            let reset = all || needs_new_session(peer.session.config(), &config);
            self.on_session(now, index, outputs, |session, _, effects| {
                if reset {
                    let error = SessionError::ConfigurationChanged;
                    session.reset(now, &Notification::OTHER_CONFIGURATION_CHANGE, error, effects);
                }
                session.set_config(now, config, effects);
            });
            if reset {
                self.drop_all(index);
            }
        }
        removed
    }

    /// Also the paths of a peer that is away.
    pub(super) fn drop_all(&mut self, index: PeerIndex) {
        if let Some(peer) = self.peers.get_mut(&index) {
            peer.helper.on_ended();
            self.rib.drop_paths(index, FamilySet::BOTH);
            self.arm(index);
        }
    }

    pub(super) fn forget(&mut self, index: PeerIndex) {
        self.rib.remove_peer(index);
        self.exporter.remove_teller(index);
        self.connections.retain(|_, owner| *owner != index);
        self.indices.retain(|_, known| *known != index);
        if let Some(at) = self.peers.remove(&index).and_then(|peer| peer.armed) {
            self.timers.remove(&(at, index));
        }
    }

    /// Brings what established peers have been told in line with the configuration.
    pub(super) fn adopt_export_rules(&mut self, outputs: &mut Vec<Output>) {
        let mut rules = self.exporter.with_config(&self.config);
        for (index, peer) in &self.peers {
            if let Some(router_id) = self.exporter.router_id(*index) {
                rules.set_teller(*index, &self.config, peer.session.config(), router_id);
            }
        }
        let old_rules = std::mem::replace(&mut self.exporter, rules);
        for index in self.indices() {
            let Some(peer) = self.peers.get_mut(&index) else {
                continue;
            };
            let Some(live) = &mut peer.live else { continue };
            let old = live.audience;
            let new = Audience::of(&self.config, peer.session.config(), old.families, old.four_octet_as);
            if old == new && old_rules == self.exporter {
                continue;
            }
            live.audience = new;
            if let Some(members) = self.audiences.get_mut(&old) {
                members.remove(&index);
            }
            self.audiences.retain(|_, members| !members.is_empty());
            self.audiences.entry(new).or_default().insert(index);
            let difference = outbound::resync(&self.rib, index, Some((&old_rules, &old)), (&self.exporter, &new));
            self.deliver(new, difference, outputs);
        }
    }

    pub(super) fn originate(&mut self, old: &BTreeMap<IpNet, LocalRoute>) {
        for prefix in old.keys().filter(|prefix| !self.config.originated.contains_key(prefix)) {
            self.rib.withdraw(Source::Local, prefix.trunc());
        }
        for (prefix, route) in &self.config.originated {
            if old.get(prefix) != Some(route) {
                let attributes = Attributes::originated(Family::of(prefix), route.metric);
                self.rib
                    .announce(Source::Local, prefix.trunc(), self.attributes.intern(attributes), None);
            }
        }
    }

    pub(super) fn add_new_peers(&mut self, now: Instant) {
        let new: Vec<_> = self
            .config
            .peers
            .iter()
            .filter(|(id, _)| !self.indices.contains_key(id))
            .collect();
        let mut added = Vec::with_capacity(new.len());
        for (id, config) in new {
            let index = PeerIndex(self.next_index);
            self.next_index += 1;
            self.indices.insert(*id, index);
            let peer = Peer {
                session: Session::new(now, *id, config.clone()),
                helper: Helper::default(),
                progress: Progress::Down,
                untold: FamilySet::default(),
                live: None,
                updates_sent: 0,
                armed: None,
            };
            self.peers.insert(index, peer);
            added.push(index);
        }
        added.into_iter().for_each(|index| self.arm(index));
    }
}

/// Whether a session has to start anew for a setting to take effect.
fn needs_new_session(old: &PeerConfig, new: &PeerConfig) -> bool {
    let agreed = |config: &PeerConfig| (config.asn, config.source, config.hold_time);
    // What a filter has kept out has to be told again.
    agreed(old) != agreed(new) || old.families != new.families || old.import != new.import
}
