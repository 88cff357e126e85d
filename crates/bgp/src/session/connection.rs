//! One TCP connection of a session, from OPEN sent to Established, with its timers.

use std::time::Instant;

use super::Effect;
use crate::speaker::ConnId;
use crate::status::{Negotiated, State};
use crate::wire::{self, Framer};

/// A connection and how far it has come.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnId,
    /// We opened it.
    pub(super) outgoing: bool,
    pub(super) framer: Framer,
    pub(super) phase: Phase,
}

/// The lower half of the FSM.
#[derive(Debug)]
pub(super) enum Phase {
    OpenSent { hold_until: Instant },
    OpenConfirm(Agreed),
    Established { agreed: Agreed, since: Instant },
}

/// What holds once both OPENs are known.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) negotiated: Negotiated,
    pub(super) hold_until: Option<Instant>,
    pub(super) keepalive_at: Option<Instant>,
}

impl Connection {
    pub(super) fn hold_until(&self) -> Option<Instant> {
        match &self.phase {
            Phase::OpenSent { hold_until } => Some(*hold_until),
            Phase::OpenConfirm(agreed) | Phase::Established { agreed, .. } => agreed.hold_until,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::OpenSent { hold_until } => Some(*hold_until),
            Phase::OpenConfirm(agreed) | Phase::Established { agreed, .. } => {
                agreed.hold_until.into_iter().chain(agreed.keepalive_at).min()
            }
        }
    }

    pub(super) fn keep_alive(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (Phase::OpenConfirm(agreed) | Phase::Established { agreed, .. }) = &mut self.phase else {
            return;
        };
        if agreed.keepalive_at.is_some_and(|at| at <= now) {
            effects.push(Effect::Send(self.id, wire::encode_keepalive()));
            agreed.keepalive_at = Some(now + agreed.negotiated.hold_time / 3);
        }
    }
}

impl Phase {
    pub(super) fn state(&self) -> State {
        match self {
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm(_) => State::OpenConfirm,
            Phase::Established { .. } => State::Established,
        }
    }
}

impl Agreed {
    pub(super) fn heard(&mut self, now: Instant) {
        self.hold_until = self.hold_until.map(|_| now + self.negotiated.hold_time);
    }
}
