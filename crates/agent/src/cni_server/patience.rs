//! Waits for the datastore, but not for ever: whoever waits holds the lock of a container, and somebody may want to detach it.

use std::time::Duration;

use datastore::{Reason, StoreError};

use super::ports::AllocError;

/// It did not answer within this time.
pub struct Slow(Duration);

/// The answer, or that it has not come within `wait`. What was asked for may then have been done all the same.
pub async fn within<T, E: From<Slow>>(wait: Duration, asked: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(wait, asked)
        .await
        .unwrap_or_else(|_| Err(Slow(wait).into()))
}

impl From<Slow> for StoreError {
    fn from(Slow(wait): Slow) -> Self {
        StoreError::unavailable(Reason::TooSlow, format!("no answer within {} s", wait.as_secs()))
    }
}

impl From<Slow> for AllocError {
    fn from(Slow(wait): Slow) -> Self {
        AllocError::TryAgain(format!("the datastore did not answer within {} s", wait.as_secs()))
    }
}
