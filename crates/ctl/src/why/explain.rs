//! What happens to a connection's first packet, stage by stage, and why.
//!
//! ```text
//!  sender's host    the sender's own policy (egress), then host endpoints that it is forwarded through
//!  receiver's host  host endpoints that it is forwarded through, then the receiver's own policy (ingress)
//! ```
//!
//! Policy is asked with [`policy::evaluate`], over what the nodes' agents would compute. What the packet filter does besides
//! (failsafe ports, `defaultEndpointToHostAction`, pods of the same host) is a stage with a reason.

use std::net::IpAddr;
use std::rc::Rc;

use api::{Key, Kind, Resource};
use dataplane::filter::{Failsafe, ToHost};
use policy::evaluate::{Hook, Outcome, Packet, Verdict, Way, evaluate, evaluate_at, evaluate_sent};
use policy::{EndpointId, Interface, PolicyState};

use super::place::{Place, Whose, node_addresses};
use super::question::Question;
use super::world::States;

const TCP: u8 = 6;
const BGP: u16 = 179;

/// The answer to a question.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// Stages in the packet's order; the last one may have denied it.
    pub stages: Vec<Stage>,
    /// What cannot be known here, or is worth knowing.
    pub notes: Vec<String>,
}

/// One stage of a packet's way.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Whose policy: `pod shop/web`.
    pub at: String,
    /// On which node; empty: unknown.
    pub node: String,
    /// From it or to it.
    pub way: Way,
    /// The packet as it is there: its source may have been translated.
    pub packet: Packet,
    /// What is said there.
    pub said: Said,
}

/// What a stage says.
#[derive(Clone, Debug)]
pub enum Said {
    /// Policy: its verdict, and the state that it comes from.
    Policy(Verdict, Rc<PolicyState>),
    /// The packet filter itself, whatever policy says: whether it lets the packet pass, and why.
    Fixed(bool, String),
}

impl Stage {
    /// Whether the packet goes on after it.
    pub fn passes(&self) -> bool {
        match &self.said {
            Said::Policy(verdict, _) => verdict.outcome != Outcome::Deny,
            Said::Fixed(passes, _) => *passes,
        }
    }
}

impl Explanation {
    /// Whether the connection can be made.
    pub fn is_allowed(&self) -> bool {
        self.stages.iter().all(Stage::passes)
    }

    /// The first stage that denies.
    pub fn denied_at(&self) -> Option<&Stage> {
        self.stages.iter().find(|stage| !stage.passes())
    }
}

/// Answers a question. Both ends are always asked, so that the second reason for a drop is not found only after the first one
/// was removed.
pub fn explain(states: &mut States<'_>, question: &Question) -> Explanation {
    let mut journey = Journey {
        states,
        packet: question.packet.clone(),
        stages: Vec::new(),
        notes: Vec::new(),
    };
    journey.go(&question.from, &question.to);
    let (stages, notes) = (journey.stages, journey.notes);
    Explanation {
        question: question.clone(),
        stages,
        notes,
    }
}

/// Whether the packet of a question passes; the same as [`explain`], without words.
pub fn is_allowed(states: &mut States<'_>, question: &Question) -> bool {
    explain(states, question).is_allowed()
}

struct Journey<'s, 'w> {
    states: &'s mut States<'w>,
    packet: Packet,
    stages: Vec<Stage>,
    notes: Vec<String>,
}

impl Journey<'_, '_> {
    fn go(&mut self, from: &Place, to: &Place) {
        if let (Whose::Pod { key: a, .. }, Whose::Pod { key: b, .. }) = (&from.whose, &to.whose)
            && a == b
        {
            return self.fixed(from, Way::Egress, true, "a pod to itself: the packet never leaves it");
        }
        let node = from.whose.node().map(str::to_owned);
        // What is made up is on no node, and on nobody's host.
        let same_node = node.as_deref().is_some_and(|node| !node.is_empty()) && node.as_deref() == to.whose.node();
        match &from.whose {
            Whose::Pod { key, node } => {
                // With `*` as interface these see what pods send, too.
                self.early_of_pods(from, node);
                self.sent_by_pod(from, key, node);
                if !same_node {
                    self.forwarded(node, Way::Egress);
                }
            }
            Whose::Host { .. } if same_node && matches!(to.whose, Whose::Pod { .. }) => {
                return self.fixed(to, Way::Ingress, true, "pods are not protected from their own host");
            }
            Whose::Host { .. } if same_node => {
                return self.fixed(
                    from,
                    Way::Egress,
                    true,
                    "a host to itself: over loopback, which is not asked about",
                );
            }
            Whose::Host { node, endpoint } => self.host(from, node, endpoint.as_deref(), Way::Egress),
            Whose::Elsewhere => self.notes.push(format!(
                "FROM is {}: only TO's policy is asked",
                from.with(self.packet.source)
            )),
        }
        match &to.whose {
            Whose::Pod { key, node } => {
                if !same_node {
                    self.forwarded(node, Way::Ingress);
                }
                self.received_by_pod(to, key, node);
            }
            Whose::Host { node, .. } if same_node => self.pod_to_host(to, node),
            Whose::Host { node, endpoint } => {
                self.translate_source(&from.whose);
                self.host(to, node, endpoint.as_deref(), Way::Ingress);
            }
            Whose::Elsewhere => self.notes.push(format!(
                "TO is {}: only FROM's policy is asked",
                to.with(self.packet.destination)
            )),
        }
    }

    fn sent_by_pod(&mut self, place: &Place, key: &Key, node: &str) {
        let state = self.states.of(node);
        let verdict = evaluate_sent(&state, &EndpointId::Workload(key.clone()), &self.packet);
        self.policy(&place.name, node, Way::Egress, verdict, state);
    }

    fn received_by_pod(&mut self, place: &Place, key: &Key, node: &str) {
        let state = self.states.of(node);
        let verdict = evaluate(&state, &EndpointId::Workload(key.clone()), Way::Ingress, &self.packet);
        self.policy(&place.name, node, Way::Ingress, verdict, state);
    }

    /// What a pod's own policy allows may still not be for its host.
    fn pod_to_host(&mut self, place: &Place, node: &str) {
        let (passes, action) = match self.states.world.settings(node).endpoint_to_host {
            ToHost::Drop => (false, "Drop"),
            ToHost::Accept => (true, "Accept"),
            ToHost::Return => (true, "Return"),
        };
        let why = format!("a pod to its own host: defaultEndpointToHostAction is {action}");
        self.fixed(place, Way::Ingress, passes, &why);
    }

    /// Pools with natOutgoing: whoever is in no pool sees the address of the sender's node.
    fn translate_source(&mut self, from: &Whose) {
        let Whose::Pod { node, .. } = from else { return };
        let (source, destination) = (self.packet.source, self.packet.destination);
        let pools = self
            .states
            .world
            .resources()
            .filter_map(|(_, resource)| match resource {
                Resource::IPPool(pool) => Some((pool.spec.cidr, pool.spec.nat_outgoing)),
                _ => None,
            });
        let pools: Vec<_> = pools.collect();
        let is_inside = pools.iter().any(|(net, _)| net.contains(&destination));
        let is_translated = pools.iter().any(|(net, nat)| *nat && net.contains(&source));
        let own = node_addresses(self.states.world, node).into_iter();
        if let Some(address) = own
            .filter(|own| own.is_ipv4() == source.is_ipv4())
            .find(|_| is_translated && !is_inside)
        {
            self.packet.source = address;
            self.notes.push(format!(
                "its source becomes {address} on node {node} (natOutgoing): that is what TO's host endpoint sees"
            ));
        }
    }

    fn early_of_pods(&mut self, place: &Place, node: &str) {
        let state = self.states.of(node);
        for (id, host) in hosts(&state) {
            if host.interface == Interface::All && !host.pre_dnat.tiers.is_empty() {
                let verdict = evaluate_at(&state, id, Hook::PreDnat, Way::Ingress, &self.packet);
                let at = format!("{} (preDNAT, for what {} sends)", host_name(id), place.name);
                self.policy(&at, node, Way::Ingress, verdict, state.clone());
            }
        }
    }

    /// Host endpoints that packets are forwarded through. Which device they take is the routes' matter: only a host endpoint
    /// for all devices that is alone on its node is certain to be asked.
    fn forwarded(&mut self, node: &str, way: Way) {
        let state = self.states.of(node);
        let all: Vec<_> = hosts(&state).collect();
        for (id, host) in &all {
            let forward = match way {
                Way::Ingress => &host.forward.ingress,
                Way::Egress => &host.forward.egress,
            };
            let untracked = match way {
                Way::Ingress => &host.untracked.ingress,
                Way::Egress => &host.untracked.egress,
            };
            let early = match way {
                Way::Ingress => !host.pre_dnat.tiers.is_empty(),
                Way::Egress => false,
            };
            let hooks = [
                (Hook::Untracked, !untracked.tiers.is_empty()),
                (Hook::PreDnat, early),
                (Hook::Forward, !forward.tiers.is_empty()),
            ];
            for (hook, _) in hooks.into_iter().filter(|(_, applies)| *applies) {
                let verdict = evaluate_at(&state, id, hook, way, &self.packet);
                let at = format!("{} ({})", host_name(id), hook_name(hook));
                if host.interface == Interface::All && all.len() == 1 {
                    self.policy(&at, node, way, verdict, state.clone());
                } else {
                    let last = verdict.trace.last().map(ToString::to_string).unwrap_or_default();
                    self.notes.push(format!(
                        "{at} on node {node} is asked if the packet takes {}: {}: {last}",
                        device(&host.interface),
                        verdict.outcome
                    ));
                }
            }
        }
    }

    /// A host endpoint as the packet's end.
    fn host(&mut self, place: &Place, node: &str, named: Option<&str>, way: Way) {
        let state = self.states.of(node);
        let address = match way {
            Way::Ingress => self.packet.destination,
            Way::Egress => self.packet.source,
        };
        let Some(id) = self.endpoint_of(&state, named, address) else {
            let mut others =
                hosts(&state).map(|(id, host)| format!("{} for {}", host_name(id), device(&host.interface)));
            let why = match others.next() {
                None => format!("node {node} has no host endpoint, so policy leaves it alone"),
                Some(other) => {
                    let all: Vec<String> = std::iter::once(other).chain(others).collect();
                    let all = all.join(", ");
                    format!(
                        "no host endpoint of node {node} is known to have {address}; there is {all}: name one to ask it"
                    )
                }
            };
            return self.fixed(place, way, true, &why);
        };
        if let Some(why) = self.always_open(node, way) {
            return self.fixed(place, way, true, &why);
        }
        let hooks = [Hook::Untracked, Hook::PreDnat, Hook::Normal];
        for hook in hooks {
            let applies = state.endpoints.get(&id).is_some_and(|host| match (hook, way) {
                (Hook::Untracked, Way::Ingress) => !host.untracked.ingress.tiers.is_empty(),
                (Hook::Untracked, Way::Egress) => !host.untracked.egress.tiers.is_empty(),
                (Hook::PreDnat, Way::Ingress) => !host.pre_dnat.tiers.is_empty(),
                (Hook::PreDnat, Way::Egress) | (Hook::Forward, _) => false,
                (Hook::Normal, _) => true,
            });
            if !applies {
                continue;
            }
            let verdict = evaluate_at(&state, &id, hook, way, &self.packet);
            let outcome = verdict.outcome;
            let at = match hook {
                Hook::Normal | Hook::Forward => host_name(&id),
                Hook::PreDnat | Hook::Untracked => format!("{} ({})", host_name(&id), hook_name(hook)),
            };
            self.policy(&at, node, way, verdict, state.clone());
            // What an early policy decides is decided.
            if outcome != Outcome::Undecided {
                return;
            }
        }
    }

    /// The host endpoint with an address: the named one, the one that expects it, the one for all devices.
    fn endpoint_of(&self, state: &PolicyState, named: Option<&str>, address: IpAddr) -> Option<EndpointId> {
        let is_expected = |name: &str| {
            let resource = self.states.world.get(&Key::cluster(Kind::HostEndpoint, name));
            matches!(resource, Some(Resource::HostEndpoint(host)) if host.spec.expected_ips.contains(&address))
        };
        let mut all = None;
        for (id, host) in hosts(state) {
            let EndpointId::Host(name) = id else { continue };
            match named {
                Some(named) if named == name => return Some(id.clone()),
                None if is_expected(name) => return Some(id.clone()),
                Some(_) | None if host.interface == Interface::All => all = Some(id.clone()),
                Some(_) | None => {}
            }
        }
        all
    }

    /// Ports that host endpoints never close.
    fn always_open(&self, node: &str, way: Way) -> Option<String> {
        let settings = self.states.world.settings(node);
        let packet = &self.packet;
        let (ports, peer, field) = match way {
            Way::Ingress => (&settings.failsafe_inbound, packet.source, "failsafeInboundHostPorts"),
            Way::Egress => (
                &settings.failsafe_outbound,
                packet.destination,
                "failsafeOutboundHostPorts",
            ),
        };
        let opens = |failsafe: &&Failsafe| {
            failsafe.protocol == packet.protocol
                && packet.destination_port == Some(failsafe.port)
                && failsafe.net.is_none_or(|net| net.contains(&peer))
        };
        if let Some(failsafe) = ports.iter().find(opens) {
            let protocol = policy::protocol_name(failsafe.protocol);
            return Some(format!("{protocol} {} is a failsafe port ({field})", failsafe.port));
        }
        let is_bgp = packet.protocol == TCP && packet.destination_port == Some(BGP);
        let is_node = matches!(Place::at(self.states.world, peer).whose, Whose::Host { .. });
        (is_bgp && is_node).then(|| "BGP between nodes is never closed".to_owned())
    }

    fn policy(&mut self, at: &str, node: &str, way: Way, verdict: Verdict, state: Rc<PolicyState>) {
        self.stages.push(Stage {
            at: at.to_owned(),
            node: node.to_owned(),
            way,
            packet: self.packet.clone(),
            said: Said::Policy(verdict, state),
        });
    }

    fn fixed(&mut self, place: &Place, way: Way, passes: bool, why: &str) {
        self.stages.push(Stage {
            at: place.name.clone(),
            node: place.whose.node().unwrap_or_default().to_owned(),
            way,
            packet: self.packet.clone(),
            said: Said::Fixed(passes, why.to_owned()),
        });
    }
}

fn hosts(state: &PolicyState) -> impl Iterator<Item = (&EndpointId, &policy::Endpoint)> {
    let hosts = state.endpoints.iter().filter(|(id, _)| match id {
        EndpointId::Host(_) => true,
        EndpointId::Workload(_) => false,
    });
    hosts.map(|(id, endpoint)| (id, &**endpoint))
}

fn host_name(id: &EndpointId) -> String {
    match id {
        EndpointId::Host(name) => format!("host endpoint {name}"),
        EndpointId::Workload(key) => key.to_string(),
    }
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Normal => "to and from the host",
        Hook::Forward => "applyOnForward",
        Hook::PreDnat => "preDNAT",
        Hook::Untracked => "doNotTrack",
    }
}

fn device(interface: &Interface) -> String {
    match interface {
        Interface::Named(name) => format!("device {name}"),
        Interface::All => "any device that no other host endpoint is for".into(),
        Interface::WithAddress(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("the device with {}", addresses.join(" or "))
        }
    }
}
