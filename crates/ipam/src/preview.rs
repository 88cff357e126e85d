//! Telling what a request is about to be given.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Hears which addresses a request is about to be given, before they are written. If the race for them is lost, it hears the
/// next ones. Nothing holds them yet: whoever listens may prepare, but must give nothing away.
#[derive(Clone)]
pub struct Preview(Arc<Hear>);

type Hear = dyn Fn(&[IpAddr]) + Send + Sync;

impl Preview {
    /// Calls this.
    pub fn new(hear: impl Fn(&[IpAddr]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Says it.
    pub fn say(&self, addresses: &[IpAddr]) {
        (self.0)(addresses);
    }
}

impl fmt::Debug for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preview")
    }
}

/// Equal if they are the same listener.
impl PartialEq for Preview {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
