//! What policy says of a packet's whole way through the node, one endpoint after the other.
//!
//! The order of the questions is upstream's: pods' own sources, untracked policies, `preDNAT`; then the sender's side and the
//! receiver's.

use dataplane::filter::{Failsafe, Settings, ToHost};
use policy::evaluate::{Hook, Outcome, Verdict, Way, evaluate_at};
use policy::{EndpointId, Interface, PolicyState};

use crate::case::Case;
use crate::packet::Packet;
use crate::world::{Place, uplink_addresses};

/// What happens to a packet, and why.
#[derive(Clone, Debug)]
pub struct Journey {
    /// It arrives.
    pub arrives: bool,
    /// No early policy took it out of connection tracking.
    pub is_tracked: bool,
    /// What was asked, in order.
    pub verdicts: Vec<Verdict>,
    /// What decided that was not policy.
    pub besides: Vec<&'static str>,
}

/// What policy says of a packet's whole way.
pub fn expected(case: &Case, packet: &Packet) -> Journey {
    let mut asking = Asking::new(case, packet);
    let arrives = asking.journey();
    Journey {
        arrives,
        is_tracked: asking.is_tracked,
        verdicts: asking.verdicts,
        besides: asking.besides,
    }
}

/// Whether the answer in a flow that was allowed and is tracked arrives: it must be its sender's, and only untracked policies
/// are asked about it. What these allow is of no flow any more, so everybody else is asked as well.
pub fn expected_answer(case: &Case, answer: &Packet) -> bool {
    let mut asking = Asking::new(case, answer);
    if matches!(answer.from, Place::Pod(_)) && !asking.may_send() {
        return false;
    }
    match asking.untracked() {
        None => false,
        Some(true) => expected(case, answer).arrives,
        Some(false) => true,
    }
}

/// The endpoint of a pod here, if policy knows it.
pub fn pod(state: &PolicyState, device: &str) -> Option<EndpointId> {
    let mut pods = state.endpoints.iter();
    let found = pods.find(|(id, endpoint)| {
        matches!(id, EndpointId::Workload(_)) && endpoint.interface == Interface::Named(device.to_owned())
    });
    found.map(|(id, _)| id.clone())
}

struct Asking<'a> {
    case: &'a Case,
    packet: &'a Packet,
    verdicts: Vec<Verdict>,
    besides: Vec<&'static str>,
    is_tracked: bool,
}

impl<'a> Asking<'a> {
    fn new(case: &'a Case, packet: &'a Packet) -> Self {
        Self {
            case,
            packet,
            verdicts: Vec::new(),
            besides: Vec::new(),
            is_tracked: true,
        }
    }

    fn journey(&mut self) -> bool {
        let (from, to) = (self.packet.from, self.packet.to);
        if let Place::Pod(_) = from
            && !self.may_send()
        {
            return false;
        }
        let Some(accepted_early) = self.early() else {
            return false;
        };
        let sent = match (from, to) {
            (Place::Pod(_), _) => self.pod(from, Way::Egress),
            (Place::Uplink(index), Place::Host) => {
                accepted_early || self.failsafe(Way::Ingress) || self.uplink(index, Hook::Normal, Way::Ingress)
            }
            (Place::Uplink(index), _) => accepted_early || self.uplink(index, Hook::Forward, Way::Ingress),
            (Place::Host, Place::Uplink(index)) => {
                accepted_early || self.failsafe(Way::Egress) || self.uplink(index, Hook::Normal, Way::Egress)
            }
            // Pods are not protected from their own host.
            (Place::Host, _) => return self.decided("from the host to its pod", true),
        };
        if !sent {
            return false;
        }
        match (from, to) {
            (Place::Pod(_), Place::Host) => self.end_at_host(),
            (Place::Host, _) | (_, Place::Host) => true,
            (_, Place::Pod(_)) => self.pod(to, Way::Ingress),
            (_, Place::Uplink(index)) => self.uplink(index, Hook::Forward, Way::Egress),
        }
    }

    /// Pods send from their own addresses, or from those that they may pretend.
    fn may_send(&mut self) -> bool {
        let source = self.packet.seen.source;
        let endpoint = self
            .pod_id(self.packet.from)
            .and_then(|id| self.case.state.endpoints.get(&id));
        let Some(endpoint) = endpoint else {
            return self.decided("device without policy", false);
        };
        if endpoint.addresses.contains(&source) {
            return true;
        }
        let may_pretend = endpoint.spoofable.iter().any(|net| net.contains(&source));
        match self.case.settings.source_spoofing && may_pretend {
            true => self.decided("spoofed source that is allowed", true),
            false => self.decided("spoofed source", false),
        }
    }

    /// Untracked and `preDNAT` policies: whether they have allowed the packet; `None`: they dropped it.
    fn early(&mut self) -> Option<bool> {
        if self.untracked()? {
            return Some(true);
        }
        // A host endpoint for all interfaces sees pods' packets too.
        let id = match self.packet.from {
            Place::Uplink(index) => self.host(index),
            Place::Pod(_) => self.for_all(),
            Place::Host => None,
        };
        match id {
            Some(id) if !self.failsafe(Way::Ingress) => self.pre_dnat(&id),
            _ => Some(false),
        }
    }

    /// As [`Self::early`], untracked policies alone.
    fn untracked(&mut self) -> Option<bool> {
        let (index, way) = match (self.packet.from, self.packet.to) {
            (Place::Uplink(index), _) => (index, Way::Ingress),
            (Place::Host, Place::Uplink(index)) => (index, Way::Egress),
            _ => return Some(false),
        };
        // What is for all interfaces has no untracked policy.
        let Some(id) = self.host(index).filter(|id| !self.is_for_all(id)) else {
            return Some(false);
        };
        if self.failsafe(way) || self.failsafe_reply(way) {
            return Some(false);
        }
        match self.ask(&id, Hook::Untracked, way) {
            Outcome::Deny => None,
            Outcome::Allow => {
                self.is_tracked = false;
                Some(true)
            }
            Outcome::Undecided => Some(false),
        }
    }

    fn pre_dnat(&mut self, id: &EndpointId) -> Option<bool> {
        match self.ask(id, Hook::PreDnat, Way::Ingress) {
            Outcome::Deny => None,
            Outcome::Allow => Some(true),
            Outcome::Undecided => Some(false),
        }
    }

    fn pod_id(&self, place: Place) -> Option<EndpointId> {
        pod(&self.case.state, place.device()?)
    }

    fn pod(&mut self, place: Place, way: Way) -> bool {
        match self.pod_id(place) {
            Some(id) => self.ask(&id, Hook::Normal, way) == Outcome::Allow,
            None => self.decided("device without policy", false),
        }
    }

    fn uplink(&mut self, index: usize, hook: Hook, way: Way) -> bool {
        match self.host(index) {
            Some(id) => self.ask(&id, hook, way) != Outcome::Deny,
            None => self.decided("no host endpoint", true),
        }
    }

    /// What policy of the pod allows may still not be for the host.
    fn end_at_host(&mut self) -> bool {
        match self.case.settings.endpoint_to_host {
            ToHost::Accept | ToHost::Return => true,
            ToHost::Drop => self.decided("defaultEndpointToHostAction", false),
        }
    }

    fn ask(&mut self, id: &EndpointId, hook: Hook, way: Way) -> Outcome {
        let verdict = evaluate_at(&self.case.state, id, hook, way, &self.packet.seen);
        let outcome = verdict.outcome;
        self.verdicts.push(verdict);
        outcome
    }

    fn decided(&mut self, why: &'static str, arrives: bool) -> bool {
        self.besides.push(why);
        arrives
    }

    /// The host endpoint of an uplink: one that names it, else one that has its address, else the one for all.
    fn host(&self, index: usize) -> Option<EndpointId> {
        let device = Place::Uplink(index).device().unwrap_or_default();
        let addresses = uplink_addresses(index);
        let named = |interface: &Interface| *interface == Interface::Named(device.to_owned());
        let has = |interface: &Interface| match interface {
            Interface::WithAddress(expected) => expected.iter().any(|address| addresses.contains(address)),
            Interface::Named(_) | Interface::All => false,
        };
        self.find(named).or_else(|| self.find(has)).or_else(|| self.for_all())
    }

    fn for_all(&self) -> Option<EndpointId> {
        self.find(|interface| *interface == Interface::All)
    }

    fn is_for_all(&self, id: &EndpointId) -> bool {
        self.for_all().as_ref() == Some(id)
    }

    fn find(&self, is: impl Fn(&Interface) -> bool) -> Option<EndpointId> {
        let mut endpoints = self.case.state.endpoints.iter();
        let found = endpoints.find(|(id, endpoint)| matches!(id, EndpointId::Host(_)) && is(&endpoint.interface));
        found.map(|(id, _)| id.clone())
    }

    fn failsafe(&mut self, way: Way) -> bool {
        let open = is_open(
            &self.case.settings,
            way,
            self.packet.seen.protocol,
            self.packet.seen.destination_port,
        );
        if open {
            self.besides.push("failsafe");
        }
        open
    }

    /// Replies of untracked flows are packets like any other.
    fn failsafe_reply(&self, way: Way) -> bool {
        let other = match way {
            Way::Ingress => Way::Egress,
            Way::Egress => Way::Ingress,
        };
        is_open(
            &self.case.settings,
            other,
            self.packet.seen.protocol,
            self.packet.seen.source_port,
        )
    }
}

fn is_open(settings: &Settings, way: Way, protocol: u8, port: Option<u16>) -> bool {
    let open = match way {
        Way::Ingress => &settings.failsafe_inbound,
        Way::Egress => &settings.failsafe_outbound,
    };
    let is = |failsafe: &Failsafe| failsafe.protocol == protocol && Some(failsafe.port) == port;
    open.iter().any(is)
}
