//! What follows from what happened: decisions told to peers and to the forwarding table, convergence, timers.

use std::time::Instant;

use super::{FibChange, Output, Speaker};
use crate::export::Audience;
use crate::outbound::{self, Outgoing};
use crate::rib::PeerIndex;
use crate::wire;

impl Speaker {
    /// Decides what was touched and tells everybody.
    pub(super) fn flush(&mut self, outputs: &mut Vec<Output>) {
        let settled = self.rib.settle();
        if settled.is_empty() {
            return;
        }
        for one in &settled {
            if let Some(route) = &one.route {
                outputs.push(Output::Fib(FibChange {
                    prefix: one.prefix,
                    route: route.clone(),
                }));
            }
        }
        let audiences: Vec<_> = self.audiences.keys().copied().collect();
        for audience in audiences {
            let members = self.audiences.get(&audience);
            let is_member = |index| members.is_some_and(|members| members.contains(&index));
            let outgoing = outbound::publish(&self.exporter, &audience, &settled, is_member);
            self.deliver(audience, outgoing, outputs);
        }
    }

    pub(super) fn deliver(&mut self, audience: Audience, outgoing: Vec<Outgoing>, outputs: &mut Vec<Output>) {
        let Some(members) = self.audiences.get(&audience) else {
            return;
        };
        for Outgoing {
            to,
            messages,
            advertised,
        } in outgoing
        {
            for member in members.iter().filter(|member| to.includes(**member)) {
                let Some(peer) = self.peers.get_mut(member) else {
                    continue;
                };
                let Some(live) = &mut peer.live else { continue };
                peer.updates_sent += messages.len() as u64;
                live.advertised = live.advertised.saturating_add_signed(advertised);
                outputs.extend(messages.iter().map(|message| Output::Send(live.conn, message.clone())));
            }
        }
    }

    pub(super) fn send_end_of_rib(&mut self, index: PeerIndex, outputs: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let Some(live) = &peer.live else { return };
        // RFC 4724 2: only who announced the capability is known to understand it.
        if live.restart.is_some() {
            for family in live.audience.families.iter() {
                outputs.push(Output::Send(live.conn, wire::encode_end_of_rib(family)));
                peer.updates_sent += 1;
            }
        }
    }

    pub(super) fn check_convergence(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        if self.check_convergence_at.is_none_or(|at| at > now) {
            return;
        }
        let progress = self.peers.values().map(|peer| peer.progress);
        if !self.convergence.check(now, progress.clone()) {
            self.check_convergence_at = self.convergence.deadline(now, progress);
            return;
        }
        self.check_convergence_at = None;
        outputs.push(Output::Converged);
        if !self.restarted {
            return;
        }
        let deferring = self.exporter.clone();
        self.exporter.set_deferring(false);
        for index in self.indices() {
            let Some(audience) = self
                .peers
                .get(&index)
                .and_then(|peer| Some(peer.live.as_ref()?.audience))
            else {
                continue;
            };
            let rules = (&self.exporter, &audience);
            let held_back = outbound::resync(&self.rib, index, Some((&deferring, &audience)), rules);
            self.deliver(audience, held_back, outputs);
            self.send_end_of_rib(index, outputs);
        }
    }

    /// Looks whether all peers have told everything, at that time at the latest.
    pub(super) fn check_convergence_by(&mut self, at: Instant) {
        if self.convergence.deferring() {
            self.check_convergence_at = self.check_convergence_at.into_iter().chain([at]).min();
        }
    }

    /// Puts the peer's earliest timer where `wake` finds it.
    pub(super) fn arm(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let earliest = peer.session.deadline().into_iter().chain(peer.helper.deadline()).min();
        if earliest == peer.armed {
            return;
        }
        if let Some(at) = std::mem::replace(&mut peer.armed, earliest) {
            self.timers.remove(&(at, index));
        }
        if let Some(at) = earliest {
            self.timers.insert((at, index));
        }
    }

    pub(super) fn indices(&self) -> Vec<PeerIndex> {
        self.indices.values().copied().collect()
    }
}
