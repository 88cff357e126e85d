//! Requests for addresses that wait together are served together: one swap of a block for all of them.
//!
//! Whoever gets the turn takes everything that has queued up while the previous turn was under way. Nobody waits for company.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::ports::{AllocError, Allocator, Given, Want};

/// Collects requests in front of an allocator.
pub struct Batcher {
    allocator: Arc<dyn Allocator>,
    queue: Mutex<Vec<(Want, oneshot::Sender<Answer>)>>,
    turn: tokio::sync::Mutex<()>,
}

type Answer = Result<Given, AllocError>;

impl Batcher {
    /// Batches in front of this allocator.
    pub fn new(allocator: Arc<dyn Allocator>) -> Self {
        Self {
            allocator,
            queue: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Addresses for one endpoint. If the caller stops waiting the handle may hold something: release it.
    pub async fn assign(&self, want: Want) -> Answer {
        let (sender, mut answer) = oneshot::channel();
        self.queue().push((want, sender));
        let _turn = self.turn.lock().await;
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        self.serve_queue().await;
        // Not served: the one who had it in hand stopped waiting in the middle.
        answer
            .try_recv()
            .unwrap_or_else(|_| Err(AllocError::TryAgain("the allocation was interrupted".into())))
    }

    async fn serve_queue(&self) {
        let mut batch = std::mem::take(&mut *self.queue());
        // Nobody waits for these any more.
        batch.retain(|(_, sender)| !sender.is_closed());
        if batch.is_empty() {
            return;
        }
        let (wants, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let answers = self.allocator.assign(wants).await;
        for (sender, answer) in senders.into_iter().zip(answers) {
            // Who stopped waiting releases the handle.
            let _ = sender.send(answer);
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Vec<(Want, oneshot::Sender<Answer>)>> {
        // No code that can panic runs while this is locked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
