//! Why a command did not do it.

use std::io;

use api::Key;

/// A failed command. Each text stands alone: what, why, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// Files, documents or requests have problems: all of them, one a line. Nothing was written.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A word on the command line means nothing.
    #[error("{0}")]
    Usage(String),
    /// Some of what was asked for is not there: all of it, one a line.
    #[error("{}", missing(.0))]
    Missing(Vec<Key>),
    /// The datastore cannot be reached.
    #[error("{0}")]
    Connect(String),
    /// The datastore refused.
    #[error("{0}")]
    Store(#[from] datastore::StoreError),
    /// Address management refused.
    #[error("{0}")]
    Ipam(#[from] ipam::IpamError),
    /// Some resources were done, then one failed.
    #[error("{done} of {total} resources were {verb}; then: {why}")]
    Partial {
        /// How many were done.
        done: usize,
        /// Of how many.
        total: usize,
        /// `applied`, …
        verb: &'static str,
        /// Why the next was not.
        why: Box<CtlError>,
    },
    /// `explain` found that the packet is dropped: an answer, not a failure. There is nothing to complain about.
    #[error("")]
    Denied,
    /// `trace` found that the packet does not arrive, and not because of policy: an answer, too.
    #[error("")]
    Broken,
    /// `trace` could not see all of the packet's way, or saw no packet, and found nothing wrong elsewhere: an answer, too.
    #[error("")]
    Unseen,
    /// `policy test` found expectations that are not met, or `node checksystem` a kernel that lacks something; what has been shown.
    #[error("{0}")]
    Unmet(String),
    /// The agent does not answer.
    #[error("{0}")]
    Agent(#[from] agent::AgentError),
    /// A file or the output.
    #[error("{what}: {source}")]
    Io {
        /// Which file.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl CtlError {
    /// What the process ends with: 2 if the command line is wrong; 3 if the answer is that a packet is denied, 4 that it does
    /// not arrive for another reason, 5 that nobody can tell; otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::Usage(_) => 2,
            CtlError::Denied => 3,
            CtlError::Broken => 4,
            CtlError::Unseen => 5,
            _ => 1,
        }
    }

    /// Nobody reads the output any more (`| head`): no reason to complain.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, CtlError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Wraps a failure to write the answer.
    pub fn output(source: io::Error) -> Self {
        CtlError::Io {
            what: "standard output".into(),
            source,
        }
    }
}

fn missing(keys: &[Key]) -> String {
    let lines = keys
        .iter()
        .map(|key| datastore::StoreError::NotFound(key.clone()).to_string());
    lines.collect::<Vec<_>>().join("\n")
}
