//! Helpers for tests of several crates. Depends on none of them.

pub mod measure;
pub mod netns;
