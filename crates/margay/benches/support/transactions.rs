//! What the kernel's nf_tables announces in a node's namespace.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kernel::nft::{NftEvent, NftKernel, TableName};
use linux::netns::Netns;
use linux::nft::LiveNft;

/// A thread in the node's namespace that hears of every transaction as the kernel has done it.
pub struct Transactions {
    transactions: Receiver<Instant>,
}

impl Transactions {
    /// Begins, and hears from now on.
    pub fn start(node: &Netns) -> Self {
        let (say, transactions) = mpsc::channel();
        let (ready, begun) = mpsc::channel();
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut kernel = LiveNft::open().expect("a netlink socket");
                let mut events = kernel.events(&TableName("calico".into())).expect("a subscription");
                let _ = ready.send(());
                while let Some(event) = events.next().await {
                    if matches!(event, NftEvent::Touched { .. }) && say.send(Instant::now()).is_err() {
                        return;
                    }
                }
            });
        };
        // The thread ends with the process: nobody needs its end.
        drop(node.spawn("watch", follow).expect("a thread"));
        begun.recv().expect("the watch has begun");
        Self { transactions }
    }

    /// What was heard so far.
    pub fn forget(&self) {
        while self.transactions.try_recv().is_ok() {}
    }

    /// Until nothing has happened for a while.
    pub fn quiet(&self) {
        while self.transactions.recv_timeout(Duration::from_millis(300)).is_ok() {}
    }

    /// When the last transaction came that follows something done at `since`: nothing comes for a `pause` after it. `None`: none
    /// has come within `limit`.
    pub fn last(&self, since: Instant, limit: Duration, pause: Duration) -> Option<Instant> {
        let deadline = since + limit;
        let mut last = self
            .transactions
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .ok()?;
        while let Ok(next) = self.transactions.recv_timeout(pause) {
            last = next;
        }
        Some(last)
    }
}
