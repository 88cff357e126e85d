//! Random policies and packets, and what must happen to them.
//!
//! A [`Case`] is one node of a small world (see [`world`]) with random resources: every field that policy knows, every kind
//! that brings members or labels. [`packet::any`] makes packets likely to meet them, [`journey::expected`] says what policy
//! says of a packet's whole way, [`Coverage`] counts what was decided by what, so that a test can show that nothing was left
//! out. Whoever compares (`tests/interpreter.rs` here, `crates/linux/tests/policy_packets.rs` on the live kernel) brings the
//! other side. Everything follows from a seed; nothing here opens a socket or reads a clock.

mod case;
mod coverage;
pub mod journey;
mod make;
pub mod packet;
mod plain;
mod random;
pub mod world;

pub use case::Case;
pub use coverage::{Coverage, Reason};
pub use packet::Packet;
pub use plain::Plain;
pub use random::Random;

/// How many states to try: `usual`, or as many as `MARGAY_PROOF` says; and the seeds to try them with. With `MARGAY_SEED`
/// only that one.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>());
    let number = |name: &str| {
        let found = number(name);
        found.map(|found| found.unwrap_or_else(|why| panic!("{name}: must be a whole number: {why}")))
    };
    match (number("MARGAY_SEED"), number("MARGAY_PROOF")) {
        (Some(seed), _) => seed..seed + 1,
        (None, states) => 0..states.unwrap_or(usual),
    }
}
