//! Parts of the agent that are a few lines each.

use std::time::Duration;

use api::LogSeverity;
use futures::StreamExt;
use tokio::sync::{mpsc, watch};

use crate::run::{Event, Facts};

/// How often operations that failed are tried again without any other cause.
const RETRY: Duration = Duration::from_secs(10);
/// How long the datastore may take to be read before the agent goes on from what the last one knew.
const DATASTORE_LATE: Duration = Duration::from_secs(3);

/// Hands a stream to the loop.
pub async fn feed(stream: impl futures::Stream<Item = Event>, events: mpsc::UnboundedSender<Event>) {
    futures::pin_mut!(stream);
    while let Some(event) = stream.next().await {
        if events.send(event).is_err() {
            return;
        }
    }
}

/// Tells what `logSeverityScreen` asks for, whenever that changes.
pub async fn follow_severity(mut facts: watch::Receiver<Facts>, set: impl Fn(Option<LogSeverity>)) {
    let mut current = None;
    loop {
        let wanted = facts.borrow_and_update().state.settings.log_severity;
        if wanted != current {
            current = wanted;
            set(wanted);
        }
        if facts.changed().await.is_err() {
            // The loop is gone, and with it soon the agent.
            return std::future::pending().await;
        }
    }
}

/// Tells the loop when the datastore should have been read.
pub async fn wait_for_datastore(events: mpsc::UnboundedSender<Event>) {
    tokio::time::sleep(DATASTORE_LATE).await;
    let _ = events.send(Event::DatastoreIsLate);
    // No part of the agent ends before it does.
    std::future::pending().await
}

/// Tells the loop to try again, for ever.
pub async fn retry(events: mpsc::UnboundedSender<Event>) {
    loop {
        tokio::time::sleep(RETRY).await;
        if events.send(Event::Retry).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_the_log_severity_is_told_once() {
        let (facts_out, facts) = watch::channel(Facts::default());
        let (told, mut heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(follow_severity(facts, move |severity| {
            let _ = told.send(severity);
        }));
        let set = |severity| facts_out.send_modify(|facts| facts.state.settings.log_severity = severity);
        set(Some(LogSeverity::Debug));
        assert_eq!(heard.recv().await, Some(Some(LogSeverity::Debug)));
        facts_out.send_modify(|facts| facts.pod_mtu = 1480);
        set(Some(LogSeverity::Error));
        assert_eq!(heard.recv().await, Some(Some(LogSeverity::Error)));
        set(None);
        assert_eq!(heard.recv().await, Some(None));
        task.abort();
    }
}
