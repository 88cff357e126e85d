//! The way to the server that lies in memory.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Fault;
use super::serve::connection;
use super::state::State;

/// Connections to the server that lie in memory.
#[derive(Clone)]
pub struct Wire {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) connections: Arc<Mutex<JoinSet<()>>>,
}

impl Wire {
    pub(super) fn to(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            changes: watch::channel(0).0,
            connections: Arc::default(),
        }
    }

    /// A connection to the server, if it listens.
    pub fn dial(&self) -> io::Result<DuplexStream> {
        let mut state = self.state.lock().expect("not poisoned");
        state.dialled.push(Instant::now());
        if state.fault == Fault::Refuses {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let served = connection(theirs, Arc::clone(&self.state), self.changes.clone());
        let mut connections = self.connections.lock().expect("not poisoned");
        while connections.try_join_next().is_some() {}
        connections.spawn(served);
        Ok(ours)
    }
}
