//! The thin CNI plugin: reads what the container runtime says, asks the agent, prints what the agent answers.
//!
//! [`run`] is the whole plugin: one request over a unix socket ([`protocol`]), one result in the caller's CNI version
//! ([`result`]). It starts no runtime and no thread, holds no credential, makes no datastore call and touches no interface.
//! A DEL that cannot reach the agent is written to the [`journal`], which the agent shares, and is finished later.
//! [`install`] puts the plugin where container runtimes look for it.

pub mod client;
pub mod config;
pub mod env;
pub mod error;
pub mod install;
pub mod journal;
pub mod plugin;
pub mod protocol;
pub mod result;
pub mod version;

pub use config::Config;
pub use env::Env;
pub use error::{Code, Error};
pub use plugin::run;
pub use result::CniResult;
pub use version::Version;
