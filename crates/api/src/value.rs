//! Values that occur in many specs: durations, ports, protocols, prefixes, choices; and checks they share.

mod as_number;
pub(crate) mod check;
mod choice;
mod dscp;
mod duration;
pub(crate) mod net;
mod order;
mod port;
mod protocol;
pub(crate) mod quantity;

pub use as_number::AsNumber;
pub(crate) use choice::choice;
pub use dscp::Dscp;
pub use duration::Duration;
pub use order::Order;
pub use port::Port;
pub use protocol::Protocol;
