//! The datastore's watch, and everybody in the agent who hears of changes.

use std::sync::Arc;

use datastore::{SharedStore, SyncEvent, Syncer};
use futures::{FutureExt, StreamExt};
use ipam::Ipam;
use tokio::sync::{Semaphore, mpsc, watch};

use super::wait;
use crate::cni_server::{Lost, OwnBlocks};
use crate::last_known::News;
use crate::membership::concerns;
use crate::refusals::Said;
use crate::run::Event;
use crate::{claims, node_status};

/// Who hears of changes in the datastore.
pub struct Readers {
    /// This node.
    pub node: String,
    /// Its cache.
    pub ipam: Ipam,
    /// Own claims on blocks.
    pub claims: mpsc::UnboundedSender<claims::Change>,
    /// Counts what concerns the registration.
    pub changes: watch::Sender<u64>,
    /// What the next agent is to know.
    pub news: mpsc::UnboundedSender<News>,
    /// What may be lost of pods.
    pub lost: mpsc::UnboundedSender<Lost>,
    /// Who wants to know how the node is.
    pub wishes: mpsc::UnboundedSender<node_status::Wish>,
    /// What objects say of this node's kernel.
    pub said: mpsc::UnboundedSender<Said>,
    /// The loop.
    pub events: mpsc::UnboundedSender<Event>,
}

/// How many events may wait for the loop.
const AHEAD: usize = 2;

/// The datastore's watch, for ever. IPAM's cache hears of a change before the loop does.
pub async fn follow(store: SharedStore, readers: Readers) {
    let backoff = |attempt: u32| tokio::time::sleep(wait(attempt)).boxed();
    let mut blocks = OwnBlocks::default();
    let scopes = store.whole();
    let mut syncer = Syncer::new(store, scopes, backoff);
    let turns = Arc::new(Semaphore::new(AHEAD));
    while let Some(event) = syncer.next().await {
        if event == SyncEvent::InSync {
            let _ = readers.news.send(News::InSync);
            let _ = readers.lost.send(blocks.outside());
        }
        if let SyncEvent::Updates(updates) = &event {
            for news in updates.iter().filter_map(|update| News::of(&readers.node, update)) {
                let _ = readers.news.send(news);
            }
            updates.iter().for_each(|update| readers.ipam.note(update));
            for change in updates
                .iter()
                .filter_map(|update| claims::change(&readers.node, update))
            {
                let _ = readers.claims.send(change);
            }
            for wish in updates
                .iter()
                .filter_map(|update| node_status::wish(&readers.node, update))
            {
                let _ = readers.wishes.send(wish);
            }
            for said in updates.iter().filter_map(|update| Said::of(&readers.node, update)) {
                let _ = readers.said.send(said);
            }
            for lost in updates.iter().filter_map(|update| blocks.lost(&readers.node, update)) {
                let _ = readers.lost.send(lost);
            }
            if updates.iter().any(|update| concerns(&readers.node, update)) {
                readers.changes.send_modify(|count| *count += 1);
            }
        }
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            return;
        };
        if readers.events.send(Event::Sync(event, turn)).is_err() {
            return;
        }
    }
}
