//! What the packet filter does about flows that are there already, and what it has dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::filter::{DropCause, Pass, Settings, rewritten};
use kernel::nft::{Count, Rules, Transaction};
use linux::conntrack::Flow;
use policy::{EndpointId, PolicyChange, PolicyState};

use super::PacketFilter;
use crate::cut::host::judges_others;
use crate::cut::judge::{self, Judge, Judged};
use crate::cut::{Devices, Forwarded, Work};
use crate::flows::Question;
use crate::flows::rehearse::rehearse;

/// What the rules have counted over the life of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets dropped or refused, by cause.
    pub drops: BTreeMap<DropCause, Count>,
    /// Packets that policies' rules let pass: of a flow only the first.
    pub passes: BTreeMap<Pass, Count>,
}

/// Whose flows are to be looked at once the kernel has what policy says.
#[derive(Debug, Default)]
pub(super) struct Cutting {
    /// Whether flows that a change forbids are cut.
    pub forbidden: bool,
    /// The datastore has been read: what denies is not just not known yet.
    pub in_sync: bool,
    /// Policy says something else about these.
    pub changed: BTreeSet<EndpointId>,
    /// These have had addresses, and so may have flows.
    wired: BTreeSet<EndpointId>,
    /// Host endpoints that judge flows of others, as of when these were looked at last.
    judging: BTreeSet<EndpointId>,
    /// What was there when the agent started has been looked at.
    started: bool,
    /// Nobody has these any more.
    pub gone: BTreeSet<IpAddr>,
}

impl Cutting {
    /// Notes whose flows to look at after these changes. A pod that has just been made has none; those of pods that were there
    /// before the agent are looked at once, because policy may have changed while nobody looked.
    pub fn changed(&mut self, state: &PolicyState, changes: &[PolicyChange]) {
        let mut concerned = judge::concerned(state, changes);
        if self.started {
            // A host endpoint may be new, but its host's flows are not.
            concerned.retain(|id| matches!(id, EndpointId::Host(_)) || self.wired.contains(id));
        }
        self.started = true;
        self.changed.extend(concerned);
        for change in changes {
            match change {
                PolicyChange::Endpoint(id, Some(endpoint)) if !endpoint.addresses.is_empty() => {
                    self.wired.insert(id.clone());
                }
                PolicyChange::Endpoint(id, None) => {
                    self.wired.remove(id);
                }
                _ => {}
            }
        }
    }
}

impl PacketFilter {
    /// Whether established flows are cut when a change of policy forbids them.
    pub fn cut_forbidden_flows(&mut self, cut: bool) {
        self.cutting.forbidden = cut;
        self.filter.settings(Settings {
            cut_flows: cut,
            ..Settings::default()
        });
    }

    /// Takes what else the protection of this host depends on.
    pub(super) fn guard(&mut self, settings: Settings, nodes: BTreeSet<IpAddr>) {
        if (&self.guard.settings, &self.guard.nodes) == (&settings, &nodes) {
            return;
        }
        (self.guard.settings, self.guard.nodes) = (settings, nodes);
        self.name_hosts();
        if self.cutting.forbidden {
            let endpoints = self.graph.state().endpoints.keys();
            let hosts = endpoints.filter(|id| matches!(id, EndpointId::Host(_)));
            self.cutting.changed.extend(hosts.cloned());
        }
    }

    /// Whose flows to look at now: of pods that the kernel has another policy for, and of pods that are gone.
    pub fn flows_to_cut(&mut self) -> Work {
        let gone = std::mem::take(&mut self.cutting.gone);
        if self.broken.is_some() || !self.cutting.in_sync {
            return Work {
                gone,
                ..Work::default()
            };
        }
        let (filter, endpoints, guard) = (&self.filter, &self.graph.state().endpoints, &self.guard);
        let Cutting {
            changed: concerned,
            judging,
            ..
        } = &mut self.cutting;
        let mut changed = BTreeSet::new();
        let mut forwarded = Forwarded::Unjudged;
        concerned.retain(|id| {
            let endpoint = endpoints.get(id);
            let waits = endpoint.is_some() && !filter.is_enforced(id);
            match (id, endpoint) {
                _ if waits => {}
                // Which of the host's flows are whose may have changed too.
                (EndpointId::Host(_), endpoint) => {
                    changed.extend(guard.addresses());
                    let judged = judging.remove(id);
                    let judges = endpoint.is_some_and(|endpoint| judges_others(endpoint));
                    if judges {
                        judging.insert(id.clone());
                    }
                    if judged || judges {
                        forwarded = Forwarded::Changed;
                    }
                }
                (EndpointId::Workload(_), Some(endpoint)) => changed.extend(endpoint.addresses.iter().copied()),
                (EndpointId::Workload(_), None) => {}
            }
            waits
        });
        if !judging.is_empty() {
            forwarded = forwarded.max(Forwarded::Judged);
        }
        Work {
            changed,
            gone,
            forwarded,
        }
    }

    /// What is to happen to these flows, whose ends are behind these devices, by what policy says now.
    pub fn judge(&self, flows: Vec<Flow>, devices: &Devices) -> Judged {
        let own = self.guard.links.values().flatten().copied().collect();
        Judge::new(self.graph.state(), &own, &self.guard, devices).judge(flows)
    }

    /// Tells flow records which host endpoint has which device, and whether policies are staged, after these changes.
    pub(super) fn tell_records(&mut self, changes: &[PolicyChange]) {
        let is_host = |change: &PolicyChange| matches!(change, PolicyChange::Endpoint(EndpointId::Host(_), _));
        if changes.iter().any(is_host) {
            self.name_hosts();
        }
        self.tell_rehearsal(!changes.is_empty());
    }

    /// Devices or host endpoints have changed.
    pub(super) fn name_hosts(&self) {
        let bit = self.guard.settings.forwarded_bit();
        self.records.hosts(self.guard.named(self.graph.state()), bit);
    }

    fn tell_rehearsal(&mut self, changed: bool) {
        let restaged = std::mem::take(&mut self.restage);
        let is_staged = !self.graph.rehearsed().is_empty();
        let is_news = restaged || (changed && is_staged);
        if !is_news {
            return;
        }
        self.rehearsal += 1;
        let number = is_staged.then_some(self.rehearsal);
        self.records.rehearsal(number);
    }

    /// Answers what staged policies would have decided.
    pub fn rehearse(&self, question: &Question) {
        let mut pods = self
            .locals
            .values()
            .filter(|(_, local)| local.device == question.device);
        let pod = pods.next().map(|(key, _)| EndpointId::Workload(key.clone()));
        let state = self.graph.state();
        let endpoint = pod.or_else(|| self.guard.endpoint_at(state, &question.device).cloned());
        let staged = endpoint.and_then(|endpoint| rehearse(state, self.graph.rehearsed(), &endpoint, question));
        self.records.answer(question, staged);
    }

    /// Counts flows that were cut.
    pub fn flows_cut(&mut self, forbidden: usize, gone: usize) {
        self.applied.flows_forbidden += forbidden as u64;
        self.applied.flows_gone += gone as u64;
    }

    /// What the rules that a transaction throws away have counted. Counters are no reason to keep a change back.
    pub(super) async fn ending(&mut self, transaction: &Transaction) -> Rules {
        let read = match rewritten(transaction) {
            Some(chains) if chains.is_empty() => return Rules::new(),
            Some(chains) => self.kernel.rules_of(&self.table, &chains).await,
            None => self.kernel.rules(&self.table).await,
        };
        read.unwrap_or_else(|error| {
            tracing::debug!(%error, "packet filter: counters of rules that go were not read");
            Rules::new()
        })
    }
}
