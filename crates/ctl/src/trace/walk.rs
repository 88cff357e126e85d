//! The packet's way, hop by hop: each node says where it would send it, and the next one is asked.
//!
//! Where no agent answers, the datastore says what ought to be, and the walk goes on behind.

mod ends;
mod leave;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent::path::{Arrival, PathQuestion, PathView};
use agent::policy_view::PolicyView;

use super::agents::Agents;
use super::expected::Expected;
use super::hop::{Hop, Kind, Line};
use super::{counters, describe};
use crate::why::explain::Explanation;
use crate::why::place::{Place, Whose, node_addresses};
use crate::why::world::World;

/// What was found.
pub struct Walked {
    /// The hops in order.
    pub hops: Vec<Hop>,
    /// The packet's end is a pod or node here, which the last hop then is.
    pub ends_here: bool,
    /// What nodes enforce, of those that have said it.
    pub policies: BTreeMap<String, PolicyView>,
}

/// Follows the packet of an explanation.
pub fn walk(world: &World, explanation: &Explanation, agents: &mut dyn Agents) -> Walked {
    let mut walker = Walker {
        world,
        explanation,
        agents,
        hops: Vec::new(),
        policies: BTreeMap::new(),
        full: None,
        visited: BTreeSet::new(),
    };
    walker.go();
    Walked {
        hops: walker.hops,
        ends_here: explanation.question.to.whose.node().is_some(),
        policies: walker.policies,
    }
}

struct Walker<'a> {
    world: &'a World,
    explanation: &'a Explanation,
    agents: &'a mut dyn Agents,
    hops: Vec<Hop>,
    policies: BTreeMap<String, PolicyView>,
    /// The longest packet that the sender makes.
    full: Option<u32>,
    visited: BTreeSet<String>,
}

/// Where the packet goes from a node.
enum Next {
    /// It has arrived, or cannot be followed.
    End,
    /// To this node, in this way, from this address.
    Node(String, Arrival, Option<IpAddr>),
}

impl Walker<'_> {
    fn go(&mut self) {
        let question = &self.explanation.question;
        let (from, to) = (question.from.clone(), question.to.clone());
        if let (Whose::Pod { key: a, node }, Whose::Pod { key: b, .. }) = (&from.whose, &to.whose)
            && a == b
        {
            let mut hop = Hop::new(&from.name, node);
            hop.fact("a pod to itself: the packet never leaves it");
            return self.hops.push(hop);
        }
        let (start, by) = match (&from.whose, to.whose.node()) {
            (Whose::Pod { node, .. }, _) => (node.clone(), Arrival::Pod),
            (Whose::Host { node, .. }, _) => (node.clone(), Arrival::Host),
            (Whose::Elsewhere, Some(node)) => {
                let mut hop = Hop::new(from.with(self.packet_source()), "");
                hop.fact(format!("how it comes to node {node} is not known here"));
                self.hops.push(hop);
                (node.to_owned(), Arrival::Wire)
            }
            (Whose::Elsewhere, None) => {
                let mut hop = Hop::new(from.with(self.packet_source()), "");
                hop.find(
                    Kind::Unseen,
                    "neither end is here, so no node is known to be on its way",
                    "",
                );
                return self.hops.push(hop);
            }
        };
        let mut next = Next::Node(start, by, None);
        while let Next::Node(node, by, from) = next {
            next = match self.visited.insert(node.clone()) {
                true => self.visit(&node, by, from),
                false => {
                    let mut hop = Hop::new(format!("node {node}"), &node);
                    let what = "the packet comes here again: the routes lead in a circle";
                    hop.find(Kind::Broken, what, "see the route of each node above");
                    self.hops.push(hop);
                    Next::End
                }
            };
        }
        self.not_reached(&from, &to);
    }

    /// Also the end that the packet never comes to is looked at: there may be more that is wrong.
    fn not_reached(&mut self, from: &Place, to: &Place) {
        let Some(node) = to.whose.node().filter(|node| !self.visited.contains(*node)) else {
            return;
        };
        let node = node.to_owned();
        let (by, address) = match from.whose.node() {
            Some(near) => self.expected_arrival(near, &node),
            None => (Arrival::Wire, None),
        };
        self.visited.insert(node.clone());
        let before = self.hops.len();
        self.visit(&node, by, address);
        if let Some(hop) = self.hops.get_mut(before) {
            let not_there = Line::Fact("the packet does not come here; if it did:".into());
            hop.lines.insert(0, not_there);
        }
        for hop in self.hops.iter_mut().skip(before) {
            hop.points.clear();
        }
    }

    fn visit(&mut self, node: &str, by: Arrival, from: Option<IpAddr>) -> Next {
        let packet = &self.explanation.question.packet;
        let question = PathQuestion {
            source: packet.source,
            destination: packet.destination,
            by,
            from,
        };
        match self.agents.path(node, &question) {
            Ok(view) => self.seen(node, &question, view),
            Err(why) => self.unseen(node, by, &why),
        }
    }

    fn seen(&mut self, node: &str, question: &PathQuestion, view: PathView) -> Next {
        if question.by == Arrival::Pod {
            self.source_pod(node, &view);
        }
        let mut hop = Hop::new(format!("node {node}"), node);
        for problem in &view.problems {
            hop.find(
                Kind::Unseen,
                format!("its kernel does not say everything: {problem}"),
                "",
            );
        }
        self.arrival(&mut hop, node, question, &view);
        self.stages(&mut hop, node, false);
        let is_local = view.way.route.as_ref().is_some_and(|route| route.local);
        if !view.forwards && question.by != Arrival::Host && !is_local {
            let family = match question.destination {
                IpAddr::V4(_) => ("IPv4", "net.ipv4.ip_forward"),
                IpAddr::V6(_) => ("IPv6", "net.ipv6.conf.all.forwarding"),
            };
            hop.find(
                Kind::Broken,
                format!("it does not forward {} packets", family.0),
                format!("sysctl {}=1, which the agent sets", family.1),
            );
        }
        let expected = self.expected_text(node);
        let goes_on = describe::way(&mut hop, &view.way, &expected);
        let next = match goes_on {
            true => self.leave(&mut hop, node, &view),
            false => Next::End,
        };
        let has_arrived = self.is_end(node);
        if has_arrived {
            self.stages(&mut hop, node, true);
        }
        if let Some(text) = self.policies.get(node).and_then(counters::other_drops) {
            hop.fact(format!("other drops on this node so far: {text}"));
        }
        let is_delivered = goes_on && matches!(next, Next::End);
        hop.view = Some(view.clone());
        self.hops.push(hop);
        if has_arrived && let Whose::Pod { .. } = &self.explanation.question.to.whose {
            self.destination_pod(node, &view, is_delivered);
        }
        next
    }

    /// No agent answers: what the datastore says.
    fn unseen(&mut self, node: &str, by: Arrival, why: &str) -> Next {
        let (from, to) = (&self.explanation.question.from, &self.explanation.question.to);
        if by == Arrival::Pod {
            let mut hop = Hop::new(&from.name, node);
            hop.fact(format!("{}, by the datastore", self.packet_source()));
            self.hops.push(hop);
        }
        let mut hop = Hop::new(format!("node {node}"), node);
        hop.find(
            Kind::Unseen,
            format!("its agent cannot be asked: {why}"),
            "run it there, or say with --agents where the sockets of other nodes' agents are",
        );
        hop.fact("by the datastore alone:");
        self.stages(&mut hop, node, false);
        let next = match to.whose.node() {
            Some(far) if far != node => {
                let (by, own) = self.expected_arrival(node, far);
                hop.fact(format!("there should be {}", self.expected_text(node)));
                Next::Node(far.to_owned(), by, own)
            }
            Some(_) => {
                self.stages(&mut hop, node, true);
                Next::End
            }
            None => Next::End,
        };
        self.hops.push(hop);
        if let (Next::End, Whose::Pod { .. }) = (&next, &to.whose) {
            let mut hop = Hop::new(&to.name, node);
            let address = self.explanation.question.packet.destination;
            hop.fact(format!("{address}, by the datastore"));
            self.hops.push(hop);
        }
        next
    }

    fn is_end(&self, node: &str) -> bool {
        self.explanation.question.to.whose.node() == Some(node)
    }

    fn packet_source(&self) -> IpAddr {
        self.explanation.question.packet.source
    }

    fn address(&self, node: &str) -> Option<IpAddr> {
        let v6 = self.packet_source().is_ipv6();
        let mut addresses = node_addresses(self.world, node).into_iter();
        addresses.find(|address| address.is_ipv6() == v6)
    }

    fn expected(&self, near: &str, far: &str) -> Option<Expected> {
        let address = self.explanation.question.packet.destination;
        match self.explanation.question.to.whose {
            Whose::Pod { .. } => Expected::new(self.world, near, far, address),
            Whose::Host { .. } | Whose::Elsewhere => None,
        }
    }

    fn expected_arrival(&self, near: &str, far: &str) -> (Arrival, Option<IpAddr>) {
        let ipip = self.expected(near, far).is_some_and(|expected| expected.ipip);
        let by = match ipip {
            true => Arrival::Tunnel,
            false => Arrival::Wire,
        };
        (by, self.address(near))
    }

    /// Which route would be right on a node.
    fn expected_text(&self, node: &str) -> String {
        let question = &self.explanation.question;
        let address = question.packet.destination;
        match (&question.to.whose, question.to.whose.node()) {
            (Whose::Elsewhere, _) | (_, None) => {
                format!("an address that somebody has: `margay ipam show --ip={address}` says whose it is")
            }
            (Whose::Pod { .. }, Some(far)) if far == node => format!("a route to {address} dev cali…, by the agent"),
            (Whose::Pod { .. }, Some(far)) => match self.expected(node, far) {
                Some(expected) => expected.text(address),
                None => format!("a route to {address} via node {far}"),
            },
            (Whose::Host { .. }, Some(far)) => format!("a route to {address}, an address of node {far}"),
        }
    }
}
