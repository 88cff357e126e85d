//! The incremental calculation and its oracle.

use std::collections::{BTreeMap, BTreeSet};

use api::Resource;
use datastore::Update;
use ipnet::IpNet;

use crate::bgp_config::{self, RouterId};
use crate::facts::{Changed, Facts};
use crate::nodes::{self, Nodes};
use crate::pools;
use crate::problem::Problem;
use crate::services::services;
use crate::settings;
use crate::state::{NodeChange, NodeState, PoolState};

/// What the graph is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphConfig {
    /// Name of this node.
    pub node: String,
    /// Where the BGP identifier comes from.
    pub router_id: RouterId,
}

/// Turns updates of resources into changes of this node's desired state.
///
/// Updates may come in any order, repeatedly, and for things that never were. [`Graph::apply`] only records; the parts that
/// depend on what changed are worked out again in [`Graph::flush`], so a burst of updates costs one calculation.
/// Resources without influence on this node (pods, addresses, other nodes' blocks, heartbeats) cost nothing.
#[derive(Debug)]
pub struct Graph {
    config: GraphConfig,
    facts: Facts,
    dirty: Dirty,
    parts: Parts,
    state: NodeState,
}

/// The parts of the calculation, each with what is wrong in it.
#[derive(Debug, Default)]
struct Parts {
    nodes: (Nodes, Vec<Problem>),
    pools: (BTreeMap<IpNet, PoolState>, Vec<Problem>),
    settings: (crate::Settings, Vec<Problem>),
    bgp: (Option<bgp::Config>, Vec<Problem>),
}

/// Parts to work out again.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    nodes: bool,
    pools: bool,
    blocks: bool,
    services: bool,
    settings: bool,
    bgp: bool,
}

/// The desired state worked out from scratch: what [`Graph`] must agree with.
pub fn compute<'a>(node: &str, resources: impl Iterator<Item = &'a Resource>) -> NodeState {
    compute_with(&GraphConfig::new(node), resources).0
}

/// As [`compute`], with all settings, and with the problems found.
pub fn compute_with<'a>(
    config: &GraphConfig,
    resources: impl Iterator<Item = &'a Resource>,
) -> (NodeState, Vec<Problem>) {
    let mut facts = Facts::default();
    for resource in resources {
        facts.set(&config.node, resource.key(), Some(resource.clone()));
    }
    let mut parts = Parts::default();
    parts.recompute(config, &facts, Dirty::ALL);
    (parts.state(&facts), parts.problems(&facts))
}

impl Graph {
    /// A graph for the node of this name, which knows no resource yet.
    pub fn new(node: &str) -> Self {
        Self::with_config(GraphConfig::new(node))
    }

    /// A graph with all settings.
    pub fn with_config(config: GraphConfig) -> Self {
        Self {
            config,
            facts: Facts::default(),
            dirty: Dirty::default(),
            parts: Parts::default(),
            state: NodeState::default(),
        }
    }

    /// Records what one resource is now.
    pub fn apply(&mut self, update: Update) {
        match self.facts.set(&self.config.node, update.key, update.value) {
            Changed::Nothing => {}
            Changed::Nodes => {
                self.dirty.nodes = true;
                self.dirty.settings = true;
                self.dirty.bgp = true;
            }
            Changed::Pools => {
                self.dirty.pools = true;
                self.dirty.bgp = true;
            }
            Changed::Affinities => {
                self.dirty.blocks = true;
                self.dirty.bgp = true;
            }
            Changed::Bgp => {
                self.dirty.services = true;
                self.dirty.bgp = true;
            }
            Changed::Felix => {
                self.dirty.settings = true;
                self.dirty.bgp = true;
            }
        }
    }

    /// Works out what the updates since the last flush change. Referents (settings, nodes, pools) come before what refers
    /// to them (blocks, BGP); removals come last and the other way round.
    pub fn flush(&mut self) -> Vec<NodeChange> {
        let dirty = std::mem::take(&mut self.dirty);
        if !dirty.any() {
            return Vec::new();
        }
        self.parts.recompute(&self.config, &self.facts, dirty);
        self.parts.changes(&self.facts, dirty, &mut self.state)
    }

    /// The desired state as of the last flush.
    pub fn state(&self) -> &NodeState {
        &self.state
    }

    /// Resources that were left out as of the last flush, and why.
    pub fn problems(&self) -> Vec<Problem> {
        self.parts.problems(&self.facts)
    }
}

impl GraphConfig {
    /// The usual settings.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            router_id: RouterId::NodeAddress,
        }
    }
}

impl Dirty {
    const ALL: Dirty = Dirty {
        nodes: true,
        pools: true,
        blocks: true,
        services: true,
        settings: true,
        bgp: true,
    };

    fn any(self) -> bool {
        self.nodes || self.pools || self.blocks || self.services || self.settings || self.bgp
    }
}

impl Parts {
    fn recompute(&mut self, config: &GraphConfig, facts: &Facts, dirty: Dirty) {
        if dirty.nodes {
            self.nodes = nodes::nodes(&config.node, facts);
        }
        if dirty.pools {
            self.pools = pools::pools(facts);
        }
        if dirty.settings {
            self.settings = settings::settings(&config.node, facts);
        }
        if dirty.bgp {
            self.bgp = bgp_config::config(bgp_config::Inputs {
                config,
                facts,
                nodes: &self.nodes.0,
                pools: &self.pools.0,
                blocks: &blocks(facts),
                settings: &self.settings.0,
            });
        }
    }

    /// The state as a whole.
    fn state(&self, facts: &Facts) -> NodeState {
        NodeState {
            settings: self.settings.0.clone(),
            this_node: self.nodes.0.this.clone(),
            peers: self.nodes.0.others.clone(),
            pools: self.pools.0.clone(),
            blocks: blocks(facts),
            services: services(facts),
            bgp: self.bgp.0.clone(),
        }
    }

    /// Brings `state` up to date and tells what that took.
    fn changes(&self, facts: &Facts, dirty: Dirty, state: &mut NodeState) -> Vec<NodeChange> {
        let mut changes = Vec::new();
        let mut removals = Vec::new();
        if dirty.settings && state.settings != self.settings.0 {
            state.settings = self.settings.0.clone();
            changes.push(NodeChange::Settings(state.settings.clone()));
        }
        if dirty.nodes {
            let this = &self.nodes.0.this;
            if state.this_node != *this {
                state.this_node = this.clone();
                let order = if this.is_some() { &mut changes } else { &mut removals };
                order.push(NodeChange::ThisNode(this.clone()));
            }
        }
        if dirty.pools {
            difference(
                &mut state.pools,
                self.pools.0.clone(),
                &mut changes,
                &mut removals,
                NodeChange::Pool,
            );
        }
        if dirty.nodes {
            let others = self.nodes.0.others.clone();
            difference(&mut state.peers, others, &mut changes, &mut removals, NodeChange::Peer);
        }
        if dirty.blocks {
            let blocks = blocks(facts);
            changes.extend(
                blocks
                    .difference(&state.blocks)
                    .map(|block| NodeChange::Block(*block, true)),
            );
            removals.extend(
                state
                    .blocks
                    .difference(&blocks)
                    .map(|block| NodeChange::Block(*block, false)),
            );
            state.blocks = blocks;
        }
        if dirty.services {
            let services = services(facts);
            if state.services != services {
                state.services = services.clone();
                changes.push(NodeChange::Services(services));
            }
        }
        if dirty.bgp && state.bgp != self.bgp.0 {
            state.bgp = self.bgp.0.clone();
            changes.push(NodeChange::Bgp(state.bgp.clone()));
        }
        changes.extend(removals.into_iter().rev());
        changes
    }

    fn problems(&self, facts: &Facts) -> Vec<Problem> {
        let parts = [&self.settings.1, &self.nodes.1, &self.pools.1, &self.bgp.1];
        parts.into_iter().flatten().cloned().chain(facts.problems()).collect()
    }
}

/// This node's blocks. Two affinities may name one.
fn blocks(facts: &Facts) -> BTreeSet<IpNet> {
    facts.affinities.values().map(|block| block.trunc()).collect()
}

/// Makes `old` equal to `new`, recording what that takes.
fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    old: &mut BTreeMap<K, V>,
    new: BTreeMap<K, V>,
    changes: &mut Vec<NodeChange>,
    removals: &mut Vec<NodeChange>,
    change: impl Fn(K, Option<V>) -> NodeChange,
) {
    for (key, value) in &new {
        if old.get(key) != Some(value) {
            changes.push(change(key.clone(), Some(value.clone())));
        }
    }
    removals.extend(
        old.keys()
            .filter(|key| !new.contains_key(key))
            .map(|key| change(key.clone(), None)),
    );
    *old = new;
}
