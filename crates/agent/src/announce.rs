//! Tells the cluster that this node's pods have a network, once they have, and that they have not when the agent ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::http::Sources;
use crate::start::wait;

/// How often is looked whether the node has become ready.
const LOOK: Duration = Duration::from_secs(1);
/// How long the word may take that the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whom it is told.
pub trait Announce: Send + Sync {
    /// Says whether pods on `node` get a network.
    fn network<'a>(&'a self, node: &'a str, up: bool) -> BoxFuture<'a, Result<(), String>>;
}

/// What was told, and to whom.
#[derive(Clone)]
pub struct Announcer {
    to: Arc<dyn Announce>,
    node: String,
    is_up: Arc<AtomicBool>,
}

impl Announcer {
    /// Nothing has been told.
    pub fn new(to: Arc<dyn Announce>, node: &str) -> Self {
        Self {
            to,
            node: node.to_owned(),
            is_up: Arc::default(),
        }
    }

    /// Waits until the node is ready and tells it until it is heard; does not end then. A node that is not ready any more still
    /// attaches pods, or kubelet says itself that it cannot.
    pub async fn up(self, sources: Sources) {
        while !sources.report().await.is_ok_and(|report| report.ready) {
            tokio::time::sleep(LOOK).await;
        }
        let mut attempt = 0;
        while let Err(error) = self.tell().await {
            attempt += 1;
            if attempt == 1 {
                tracing::warn!(
                    error,
                    "the node's condition NetworkUnavailable is not set yet; trying again"
                );
            }
            tokio::time::sleep(wait(attempt)).await;
        }
        std::future::pending().await
    }

    async fn tell(&self) -> Result<(), String> {
        self.to.network(&self.node, true).await?;
        self.is_up.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Takes it back, if it was told.
    pub async fn down(self) {
        if !self.is_up.load(Ordering::SeqCst) {
            return;
        }
        let told = tokio::time::timeout(FAREWELL, self.to.network(&self.node, false)).await;
        let problem = match told {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {FAREWELL:?}"),
        };
        tracing::warn!(
            problem,
            "the node's condition NetworkUnavailable still says that the agent is up"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(String, bool)>>);

    impl Announce for Heard {
        fn network<'a>(&'a self, node: &'a str, up: bool) -> BoxFuture<'a, Result<(), String>> {
            self.0.lock().unwrap().push((node.to_owned(), up));
            async { Ok(()) }.boxed()
        }
    }

    #[tokio::test]
    async fn what_was_not_told_is_not_taken_back() {
        let heard = Arc::new(Heard::default());
        let announcer = Announcer::new(heard.clone(), "n1");
        announcer.clone().down().await;
        assert!(heard.0.lock().unwrap().is_empty());
        announcer.tell().await.unwrap();
        announcer.down().await;
        assert_eq!(
            *heard.0.lock().unwrap(),
            [("n1".to_owned(), true), ("n1".to_owned(), false)]
        );
    }
}
