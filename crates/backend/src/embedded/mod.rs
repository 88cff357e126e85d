//! The embedded store: one file that one process owns and serves to the others on a unix socket.
//!
//! An answered write is on the disk. Waiting writes share one sync. Watches continue over a restart of the server as long as
//! the log in the file reaches back.

mod client;
mod engine;
mod file;
mod outbox;
mod server;
mod wire;

pub use client::Client;
pub use engine::MAX_VALUE;
pub use file::OpenError;
pub use server::{Bound, ServeError, Server};

#[cfg(test)]
mod tests;
