//! Who wants to see the kernel's rules, with what they have counted.

use kernel::Kernel;
use kernel::nft::{NftError, Rules};
use tokio::sync::oneshot;

use super::{Event, Loop};
use crate::packet_filter::Counted;
use crate::policy_view::PolicyView;

/// Who waits for a reading of the kernel's rules.
#[derive(Default)]
pub(super) struct Curious {
    /// They want to see policy.
    pub viewers: Vec<oneshot::Sender<PolicyView>>,
    /// They want to know what was counted.
    pub counting: Vec<oneshot::Sender<Result<Counted, String>>>,
}

impl<K: Kernel> Loop<K> {
    /// One reading of the kernel's rules answers all who have asked before it. It goes on while the loop does: there may be
    /// tens of thousands of rules.
    pub(super) fn read_rules(&mut self) {
        let is_asked = !self.curious.viewers.is_empty() || !self.curious.counting.is_empty();
        if self.reading.is_some() || !is_asked {
            return;
        }
        self.reading = Some(std::mem::take(&mut self.curious));
        let (rules, myself) = (self.filter.read_rules(), self.myself.clone());
        tokio::spawn(async move { drop(myself.send(Event::Rules(rules.await))) });
    }

    pub(super) fn answer_curious(&mut self, rules: Result<Rules, NftError>) {
        let counted = self.filter.rules_read(&rules);
        let Curious { viewers, counting } = self.reading.take().unwrap_or_default();
        counting.into_iter().for_each(|reply| drop(reply.send(counted.clone())));
        if !viewers.is_empty() {
            let known = self.filter.known();
            tokio::task::spawn_blocking(move || {
                let view = known.view(&rules);
                viewers.into_iter().for_each(|viewer| drop(viewer.send(view.clone())));
            });
        }
    }
}
