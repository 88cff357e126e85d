//! Why a store cannot be used: a sentence for people and a word for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is wrong with a store. Between processes only the sentence travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Trouble {
    /// What kind of trouble it is.
    pub reason: Reason,
    /// What happened, and what to correct.
    pub text: String,
}

/// Kinds of trouble, by what the operator looks at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing more is known than the sentence says.
    Unavailable,
    /// There is no description of the access to it, or one that cannot be used.
    NotConfigured,
    /// No connection comes about: network, address, or it does not run.
    Unreachable,
    /// The proxy that leads to it does not answer.
    ProxyUnreachable,
    /// Its certificate is not one that we trust for its name at this time.
    CertificateInvalid,
    /// It does not accept our credentials.
    Unauthorized,
    /// A role lacks a permission.
    Forbidden,
    /// It has no definition of our resources.
    NotInstalled,
    /// It is older than what we need.
    VersionTooOld,
    /// It takes too long to answer.
    TooSlow,
    /// Answers break off, or come from somebody else.
    BadAnswer,
    /// It says itself that it has an error or too much to do.
    ServerError,
}

impl Reason {
    /// As conditions show it.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::Unavailable => "Unavailable",
            Reason::NotConfigured => "NotConfigured",
            Reason::Unreachable => "Unreachable",
            Reason::ProxyUnreachable => "ProxyUnreachable",
            Reason::CertificateInvalid => "CertificateInvalid",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotInstalled => "NotInstalled",
            Reason::VersionTooOld => "VersionTooOld",
            Reason::TooSlow => "TooSlow",
            Reason::BadAnswer => "BadAnswer",
            Reason::ServerError => "ServerError",
        }
    }
}

impl Trouble {
    /// Of a known kind.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self::new(Reason::Unavailable, text)
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> Self {
        trouble.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sentence_travels() {
        let trouble = Trouble::new(Reason::Forbidden, "no permission");
        let read = Trouble::from(String::from(trouble));
        assert_eq!(read, Trouble::from("no permission"));
        assert_eq!(read.reason.word(), "Unavailable");
    }
}
