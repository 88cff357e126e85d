//! The ends of the way: pods, and policy.

use std::net::IpAddr;

use agent::path::PathView;
use policy::evaluate::Way;

use super::super::hop::{Hop, Kind, Line, Point};
use super::super::{counters, describe};
use super::Walker;
use crate::why::explain::Stage;

impl Walker<'_> {
    pub(super) fn source_pod(&mut self, node: &str, view: &PathView) {
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

    pub(super) fn destination_pod(&mut self, node: &str, view: &PathView, delivered: bool) {
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

    /// What policy says on a node: before the packet's route is looked up, or at its end.
    pub(super) fn stages(&mut self, hop: &mut Hop, node: &str, at_end: bool) {
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
}
