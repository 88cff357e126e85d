//! Going on from what the last agent knew.

use datastore::Update;
use kernel::Kernel;

use super::Loop;
use crate::last_known::Picture;
use crate::packet_filter::PacketFilter;

/// What the last agent knew, for one that cannot reach its datastore: it goes on from there.
#[derive(Default)]
pub(super) struct Recall {
    /// What the datastore has not said otherwise yet.
    pub resources: Picture,
    /// It is used: the picture is whole, though maybe old.
    pub used: bool,
}

impl<K: Kernel> Loop<K> {
    /// Goes on from what the last agent knew, as far as the datastore has not said anything newer.
    pub(super) fn recall(&mut self) {
        if self.synced || self.recall.used || self.recall.resources.is_empty() {
            return;
        }
        tracing::warn!(
            resources = self.recall.resources.len(),
            "datastore: it cannot be read; going on from what was known when an agent last read it"
        );
        self.recall.used = true;
        for (key, resource) in &self.recall.resources {
            // Host endpoints are closed after a boot without being recalled: policy alone opens them.
            if !PacketFilter::concerns(key.kind) {
                self.graph.apply(Update {
                    key: key.clone(),
                    value: Some(resource.clone()),
                });
            }
        }
    }

    /// The datastore has been read: what it did not mention is gone.
    pub(super) fn forget_what_is_gone(&mut self) {
        for key in std::mem::take(&mut self.recall.resources).into_keys() {
            if self.recall.used && !PacketFilter::concerns(key.kind) {
                self.graph.apply(Update { key, value: None });
            }
        }
    }
}
