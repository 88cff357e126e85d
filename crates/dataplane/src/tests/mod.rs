//! Tests of the whole dataplane against a kernel in memory: `world` drives both, `oracle` says what should be there.

mod build;
mod fake;
mod oracle;
mod property;
mod rules;
mod shaping;
mod shared_fake;
mod world;
