//! What every process says of itself: conditions with typed reasons, and metrics in Prometheus' text format.
//!
//! Data and text alone; who asks, and by which way, is the processes' matter.

mod condition;
mod metrics;

pub use condition::{Condition, lines};
pub use metrics::Metrics;
