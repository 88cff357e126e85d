//! The contract of a datastore: compare-and-swap on single resources, lists, and a watch with an in-sync mark.
//!
//! [`Store`] is implemented here by [`MemoryStore`], elsewhere by the embedded store, etcd and Kubernetes; all of them pass
//! [`contract`]. [`Syncer`] turns a watch that may break into one that never does. Opens no socket, reads no clock: whoever
//! writes an object sets its creation time and UID.

pub mod store;

pub use store::{Listing, Revision, Scope, SharedStore, Store, StoreError, Stored, Update, WatchEvent};
