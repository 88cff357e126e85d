//! Why an agent cannot start or go on, sorted by what the operator does next.

/// Why an agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A flag or variable is wrong: correct it.
    #[error("{field}: `{value}` {problem}")]
    Config {
        /// Flag or variable.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No address for this node was found.
    #[error("no {family} address for this node: {reason}")]
    NoAddress {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Which method looked where.
        reason: String,
    },
    /// Another node holds this node's address.
    #[error(
        "address {address} is already used by node {other}; free it there, or choose another with IP or IP_AUTODETECTION_METHOD"
    )]
    AddressTaken {
        /// The address.
        address: std::net::IpAddr,
        /// Who has it.
        other: String,
    },
    /// The datastore cannot be used.
    #[error("datastore: {0}")]
    Store(#[from] datastore::StoreError),
    /// The datastore cannot be reached with these settings.
    #[error("datastore: {0}")]
    Connect(String),
    /// No tunnel address could be had.
    #[error("tunnel address: {0}")]
    Ipam(#[from] ipam::IpamError),
    /// The kernel cannot be used.
    #[error("kernel: {0}")]
    Kernel(#[from] kernel::KernelError),
    /// The packet filter is not as it has to be after a boot.
    #[error("this host is not closed: {0}")]
    NotClosed(String),
    /// What it uses cannot be taken away from under it.
    #[error("an agent runs on this node: it answers on {0}; stop it first")]
    Running(String),
    /// A part of the agent stopped working: start the agent again, and report it.
    #[error("{task} failed: {why}")]
    Ended {
        /// Which part.
        task: &'static str,
        /// How.
        why: String,
    },
    /// A file or socket cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// Which one, and what for.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl AgentError {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| AgentError::Io { what, source }
    }
}
