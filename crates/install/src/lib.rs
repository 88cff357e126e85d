//! Installing on Kubernetes.
//!
//! [`Settings`] are what flags and an answers file say, checked; [`manifest`] makes the objects of them, as data;
//! [`uninstall`] takes them back, and what a node was given; [`preflight`] looks at a node before. No object that somebody else
//! made is ever changed or deleted.

mod agent_pod;
mod controllers_pod;
mod defaults;
pub mod manifest;
mod options;
pub mod preflight;
mod roles;
mod settings;
pub mod uninstall;

pub use options::{AnswersError, Options};
pub use settings::{Crds, Encapsulation, Pool, Settings, Work};
