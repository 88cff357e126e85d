//! One lock for each name. A name that nobody holds or waits for costs nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Locks by name.
#[derive(Default)]
pub struct Locks {
    by_name: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    /// Waits until nobody else holds this name. Served in order of asking.
    pub async fn hold(self: &Arc<Self>, name: String) -> Held {
        let lock = self.map().entry(name.clone()).or_default().clone();
        Held {
            guard: Some(lock.lock_owned().await),
            name,
            locks: self.clone(),
        }
    }

    /// Holds this name if nobody else does.
    pub fn try_hold(self: &Arc<Self>, name: String) -> Option<Held> {
        let mut map = self.map();
        let guard = map.entry(name.clone()).or_default().clone().try_lock_owned().ok()?;
        Some(Held {
            guard: Some(guard),
            name,
            locks: self.clone(),
        })
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        // No code that can panic runs while this is locked.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a name until dropped.
pub struct Held {
    guard: Option<OwnedMutexGuard<()>>,
    name: String,
    locks: Arc<Locks>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut map = self.locks.map();
        // Whoever waits has a reference of its own, taken under this map's lock.
        if map.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_held_once_and_forgotten_after() {
        let locks = Arc::new(Locks::default());
        let first = locks.hold("a".into()).await;
        let other = locks.hold("b".into()).await;
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.hold("a".into()).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(locks.try_hold("a".into()).is_none());
        drop(first);
        waiting.await.unwrap();
        assert!(locks.try_hold("a".into()).is_some());
        drop(other);
        assert!(locks.map().is_empty());
    }
}
