//! The contract of a datastore: compare-and-swap on single resources, lists, and a watch with an in-sync mark.
//!
//! [`Store`] is implemented here by [`MemoryStore`], elsewhere by the embedded store, etcd and Kubernetes; all of them pass
//! [`contract`]. [`Syncer`] turns a watch that may break into one that never does; [`modify`] is the compare-and-swap loop.
//! Opens no socket, reads no clock: whoever writes an object sets its creation time and UID.

#[cfg(test)]
mod block_on;
pub mod changes;
pub mod contract;
pub mod memory;
pub mod modify;
pub mod store;
pub mod syncer;
mod trouble;

pub use memory::MemoryStore;
pub use modify::{Edit, modify};
pub use store::{
    Listing, News, Revision, Scope, SharedStore, Store, StoreError, Stored, Update, WatchEvent, Workload, Write,
    check_key, check_new,
};
pub use syncer::{SyncEvent, Syncer};
pub use trouble::{Reason, Trouble};
