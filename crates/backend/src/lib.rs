//! Implementations of [`datastore::Store`] on real storage, and the choice between them.
//!
//! [`embedded`] needs nothing but a file and a unix socket, [`kubernetes`] an API server. [`connect`] reads the environment that upstream's programs read.

mod connect;
pub mod embedded;
pub mod kubernetes;

pub use connect::{ConnectError, DEFAULT_SOCKET, connect, open};
