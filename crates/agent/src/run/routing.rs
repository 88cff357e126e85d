//! Routes to other nodes: what the speaker is told, or what is known without one.

use std::collections::BTreeSet;

use dataplane::Cleanup;
use ipnet::IpNet;
use kernel::Kernel;
use tokio::sync::mpsc;

use super::Loop;
use crate::config::Work;
use crate::speaker;

/// What the speaker is to be told: what follows from the datastore, and the addresses that no block announces.
pub(super) struct Bgp {
    pub speaker: mpsc::UnboundedSender<speaker::Command>,
    pub config: Option<bgp::Config>,
    pub borrowed: BTreeSet<IpNet>,
    pub changed: bool,
}

impl<K: Kernel> Loop<K> {
    /// Half a picture would take routes away that are right.
    pub(super) fn route_without_bgp(&mut self) {
        if self.work != Work::WithoutBgp || !self.synced {
            return;
        }
        let settings = &self.graph.state().settings;
        for change in self.cluster.flush([settings.ipv4_metric, settings.ipv6_metric]) {
            self.dataplane.fib(change);
        }
        self.dataplane.allow_cleanup(Cleanup::Bgp);
    }

    /// Tells the speaker what changed, once the datastore was read, or what was known of it is used: half a picture would
    /// withdraw blocks that are ours.
    pub(super) fn configure_bgp(&mut self) {
        if self.work != Work::WithBgp {
            return;
        }
        let borrowed = self.dataplane.addresses_outside_blocks();
        if self.bgp.borrowed != borrowed {
            (self.bgp.borrowed, self.bgp.changed) = (borrowed, true);
        }
        if !(self.synced || self.recall.used) || !std::mem::take(&mut self.bgp.changed) {
            return;
        }
        let state = self.graph.state();
        let Some(mut config) = self.bgp.config.clone() else {
            return;
        };
        let exported = |net: &&IpNet| {
            state
                .pools
                .iter()
                .any(|(pool, options)| options.exported && pool.contains(*net))
        };
        for net in self.bgp.borrowed.iter().filter(exported) {
            let metric = if net.addr().is_ipv4() {
                state.settings.ipv4_metric
            } else {
                state.settings.ipv6_metric
            };
            config.originated.insert(*net, bgp::LocalRoute { metric });
        }
        let _ = self.bgp.speaker.send(speaker::Command::Config(Box::new(config)));
    }
}
