//! The packet's way, hop by hop: each node says where it would send it, and the next one is asked.
//!
//! Where no agent answers, the datastore says what ought to be, and the walk goes on behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent::path::{Arrival, PathQuestion, PathView};
use agent::policy_view::PolicyView;
use api::Resource;
use policy::evaluate::Way;

use super::agents::Agents;
use super::expected::Expected;
use super::hop::{Hop, Kind, Line, Point};
use super::{counters, describe};
use crate::why::explain::{Explanation, Stage};
use crate::why::place::{Place, Whose, node_addresses};
use crate::why::world::World;

/// What was found.
pub struct Walked {
    /// The hops in order.
    pub hops: Vec<Hop>,
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

    fn source_pod(&mut self, node: &str, view: &PathView) {
        let mut hop = Hop::new(&self.explanation.question.from.name, node);
        match &view.source {
            Some(pod) => {
                describe::pod(&mut hop, pod, self.packet_source(), true);
                self.full = pod.inside.as_ref().map(|inside| inside.mtu);
                hop.points.push(Point {
                    node: node.to_owned(),
                    pod: Some(pod.name.clone()),
                    device: pod.interface.clone(),
                    outgoing: true,
                    always: true,
                });
            }
            None => self.stranger(&mut hop, node, self.packet_source()),
        }
        self.hops.push(hop);
    }

    fn destination_pod(&mut self, node: &str, view: &PathView, delivered: bool) {
        let (to, address) = (
            &self.explanation.question.to,
            self.explanation.question.packet.destination,
        );
        let mut hop = Hop::new(&to.name, node);
        match &view.destination {
            Some(pod) => {
                describe::pod(&mut hop, pod, address, false);
                if let (Some(full), Some(inside)) = (self.full, &pod.inside)
                    && inside.mtu < full
                {
                    let what = format!(
                        "its {} has MTU {}, the sender's packets up to {full}",
                        pod.interface, inside.mtu
                    );
                    hop.find(
                        Kind::Note,
                        what,
                        "one MTU for all pods; new pods get it from their agent",
                    );
                }
                if delivered {
                    hop.points.push(Point {
                        node: node.to_owned(),
                        pod: Some(pod.name.clone()),
                        device: pod.interface.clone(),
                        outgoing: false,
                        always: true,
                    });
                }
            }
            None => self.stranger(&mut hop, node, address),
        }
        self.hops.push(hop);
    }

    /// The datastore has a pod that its node does not have.
    fn stranger(&self, hop: &mut Hop, node: &str, address: IpAddr) {
        hop.find(
            Kind::Broken,
            format!("node {node} has no pod with {address}, though the datastore says so"),
            "the pod must be attached by that node's CNI plugin; if it is gone, its WorkloadEndpoint should be too",
        );
    }

    fn arrival(&self, hop: &mut Hop, node: &str, question: &PathQuestion, view: &PathView) {
        let mut point = |device: &str, always: bool| {
            hop.points.push(Point {
                node: node.to_owned(),
                pod: None,
                device: device.to_owned(),
                outgoing: false,
                always,
            });
        };
        let arrives = view.arrives.as_ref().map(|link| link.name.clone()).unwrap_or_default();
        match question.by {
            Arrival::Host => hop.fact("sends it itself"),
            Arrival::Pod => {
                if let Some(pod) = &view.source {
                    point(&pod.host_device, true);
                    describe::host_end(hop, pod);
                }
            }
            Arrival::Tunnel => {
                if let Some(tunnel) = &view.tunnel {
                    point(&tunnel.underlay, true);
                    point(&arrives, false);
                    describe::out_of_tunnel(hop, tunnel, &arrives, question.from);
                }
            }
            Arrival::Wire if arrives.is_empty() => {}
            Arrival::Wire => {
                point(&arrives, true);
                let from = question.from.map(|from| format!(" from {from}")).unwrap_or_default();
                hop.fact(format!("{arrives}: it comes in as it is{from}"));
            }
        }
    }

    /// Out of a node that has a route.
    fn leave(&mut self, hop: &mut Hop, node: &str, view: &PathView) -> Next {
        let Some(route) = &view.way.route else { return Next::End };
        let to = &self.explanation.question.to;
        if route.local {
            if to.whose.node() != Some(node) || !matches!(to.whose, Whose::Host { .. }) {
                hop.find(
                    Kind::Broken,
                    format!("the packet ends here: node {node} has its destination"),
                    "",
                );
            }
            return Next::End;
        }
        let mut point = |device: &str, always: bool| {
            hop.points.push(Point {
                node: node.to_owned(),
                pod: None,
                device: device.to_owned(),
                outgoing: true,
                always,
            });
        };
        let through_tunnel = view.outer.is_some();
        if let (Some(outer), Some(tunnel)) = (&view.outer, &view.tunnel) {
            point(&route.device, tunnel.flavour == "native");
            if let Some(device) = &outer.device {
                point(&device.name, true);
            }
            describe::into_tunnel(hop, view);
        } else {
            point(&route.device, true);
            describe::device(hop, &view.way);
        }
        if let Some(full) = self.full {
            describe::fits(hop, full, view);
        }
        let is_destinations = view
            .destination
            .as_ref()
            .is_some_and(|pod| pod.host_device == route.device);
        if self.is_end(node) {
            if let (false, Some(pod)) = (is_destinations, &view.destination) {
                hop.find(
                    Kind::Broken,
                    format!("the route leads to {}, not to the pod", route.device),
                    format!(
                        "a route to {} dev {}",
                        self.explanation.question.packet.destination, pod.host_device
                    ),
                );
            }
            return Next::End;
        }
        self.next_node(hop, node, view, through_tunnel)
    }

    fn next_node(&mut self, hop: &mut Hop, node: &str, view: &PathView, through_tunnel: bool) -> Next {
        let to = &self.explanation.question.to;
        let Some(next) = view.way.next else { return Next::End };
        if let Some(expected) = to.whose.node().and_then(|far| self.expected(node, far))
            && expected.ipip != through_tunnel
        {
            let what = match through_tunnel {
                true => "it goes through the tunnel, though the pool does not ask for it",
                false => "it does not go through the tunnel, though the pool asks for it",
            };
            hop.find(
                Kind::Note,
                what,
                expected.text(self.explanation.question.packet.destination),
            );
        }
        let by = match through_tunnel {
            true => Arrival::Tunnel,
            false => Arrival::Wire,
        };
        let own = view
            .tunnel
            .as_ref()
            .filter(|_| through_tunnel)
            .and_then(|tunnel| tunnel.local);
        let own = own.or_else(|| self.address(node));
        if let Some(there) = Place::at(self.world, next).whose.node() {
            return Next::Node(there.to_owned(), by, own);
        }
        let mut router = Hop::new(format!("{next}"), "");
        let on = view.outer.as_ref().unwrap_or(&view.way).device.as_ref();
        let on = on.map(|device| format!(" on {}", device.name)).unwrap_or_default();
        match to.whose.node() {
            Some(far) => {
                hop.find(Kind::Note, format!("handed to {next}{on}, which is no node"), "");
                router.fact(format!(
                    "a router without an agent; that it sends the packet on to node {far} cannot be seen"
                ));
                self.hops.push(std::mem::replace(hop, router));
                Next::Node(far.to_owned(), Arrival::Wire, None)
            }
            None => {
                self.translation(hop, node);
                hop.find(
                    Kind::Beyond,
                    format!("handed to {next}{on}; what happens beyond is not known here"),
                    "",
                );
                Next::End
            }
        }
    }

    /// What leaves a pool with natOutgoing for an address of no pool has the node's address from here on.
    fn translation(&self, hop: &mut Hop, node: &str) {
        let packet = &self.explanation.question.packet;
        let pools = self.world.resources().filter_map(|(key, resource)| match resource {
            Resource::IPPool(pool) => Some((key, &pool.spec)),
            _ => None,
        });
        let pools: Vec<_> = pools.collect();
        let is_inside = pools.iter().any(|(_, pool)| pool.cidr.contains(&packet.destination));
        let translates = pools
            .iter()
            .find(|(_, pool)| pool.nat_outgoing && pool.cidr.contains(&packet.source));
        if let (false, Some((key, _)), Some(own)) = (is_inside, translates, self.address(node)) {
            hop.fact(format!("its source becomes {own} ({key}: natOutgoing)"));
        }
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

    /// What policy says on a node: before the packet's route is looked up, or at its end.
    fn stages(&mut self, hop: &mut Hop, node: &str, at_end: bool) {
        let explanation = self.explanation;
        let stages: Vec<&Stage> = explanation
            .stages
            .iter()
            .filter(|stage| stage.node == node && self.is_at_end(stage) == at_end)
            .collect();
        if !stages.is_empty() && !self.policies.contains_key(node) && !hop.findings().any(|it| it.kind == Kind::Unseen)
        {
            match self.agents.policy(node) {
                Ok(view) => drop(self.policies.insert(node.to_owned(), view)),
                Err(why) => hop.find(Kind::Unseen, format!("its counters cannot be read: {why}"), ""),
            }
        }
        let view = self.policies.get(node);
        for stage in stages {
            let shown = counters::counted(stage, view);
            let last = shown.steps.last().map(|step| step.text.clone()).unwrap_or_default();
            hop.lines.push(Line::Policy(shown));
            if let Some(view) = view {
                counters::check_enforced(hop, stage, view);
            }
            if !stage.passes() {
                hop.find(Kind::Denied, format!("{} {}: {last}", stage.way, stage.at), "");
            }
        }
    }

    /// Stages of the packet's end come behind the route, those of its beginning before it.
    fn is_at_end(&self, stage: &Stage) -> bool {
        let question = &self.explanation.question;
        let same = question.from.whose.node() == question.to.whose.node();
        let is_to = stage.at == question.to.name || !same;
        stage.way == Way::Ingress && is_to && self.is_end(&stage.node)
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
