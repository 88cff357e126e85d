//! Why the lab cannot do something, with what would help.

use std::io;

/// A failed lab command. The text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The command line asks for something impossible.
    #[error("{field}: `{value}` {problem}")]
    Usage {
        /// Flag or argument.
        field: String,
        /// What was given.
        value: String,
        /// What is wrong, what would be right.
        problem: String,
    },
    /// A file of resources has problems; all of them.
    #[error("{}", .0.join("\n"))]
    Resources(Vec<String>),
    /// Namespaces need root.
    #[error("the lab makes network namespaces and needs root: run it with sudo")]
    NotRoot,
    /// The kernel lacks something.
    #[error("this kernel cannot run the lab: {0}")]
    Kernel(String),
    /// A name or range is in use by something that is not this lab's.
    #[error("{what} is already in use by {by}; {remedy}")]
    InUse {
        /// Namespace or range.
        what: String,
        /// By what.
        by: String,
        /// What would help.
        remedy: String,
    },
    /// There is no lab.
    #[error("no lab is up; start one with `margay lab up`")]
    NotUp,
    /// Its record is another version's.
    #[error("{path} cannot be read ({why}): another version started this lab; take it down with `margay lab down`")]
    Unreadable {
        /// The record.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// There is no such node or pod.
    #[error("the lab has no {kind} `{name}`; it has: {known}")]
    Unknown {
        /// `node`, `pod`, `node or pod`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A part of the cluster did not come up.
    #[error("{what} did not come up: {why}")]
    NotReady {
        /// Which part.
        what: String,
        /// Last reason, and where its log is.
        why: String,
    },
    /// The CNI plugin answered with an error.
    #[error("CNI {verb} of pod {pod} failed: {answer}")]
    Cni {
        /// ADD, DEL, …
        verb: &'static str,
        /// The pod.
        pod: String,
        /// The plugin's own words.
        answer: String,
    },
    /// The datastore.
    #[error("datastore: {0}")]
    Store(#[from] datastore::StoreError),
    /// The operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{0}")]
    Refused(String),
}

impl LabError {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| LabError::Io { what, source }
    }
}
