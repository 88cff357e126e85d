//! Implementations of [`datastore::Store`] on real storage, and the choice between them.
//!
//! [`embedded`] needs nothing but a file and a unix socket. [`connect`] reads the environment that upstream's programs read.

mod connect;
pub mod embedded;

pub use connect::{ConnectError, DEFAULT_SOCKET, connect, open};
