//! Into a node and out of it.

use agent::path::{Arrival, PathQuestion, PathView};
use api::Resource;

use super::super::describe;
use super::super::hop::{Hop, Kind, Point};
use super::{Next, Walker};
use crate::why::place::{Place, Whose};

impl Walker<'_> {
    pub(super) fn arrival(&self, hop: &mut Hop, node: &str, question: &PathQuestion, view: &PathView) {
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
    pub(super) fn leave(&mut self, hop: &mut Hop, node: &str, view: &PathView) -> Next {
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
}
