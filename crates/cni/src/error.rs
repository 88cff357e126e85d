//! The error a CNI plugin prints: a code of the specification, a message, and what would be right.

use serde::{Deserialize, Serialize};

/// What went wrong, as the container runtime reads it (CNI specification, section "Error").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct Error {
    /// Which class of failure.
    pub code: Code,
    /// One short sentence.
    pub msg: String,
    /// Field, value and what would be right; or the cause and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error with its explanation.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }
}

/// Error codes: below 100 the specification's, from 100 on ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u32", from = "u32")]
pub enum Code {
    /// 1: the configuration's CNI version is not supported, or does not know the verb.
    IncompatibleVersion,
    /// 2: a field is set to something that is not supported.
    UnsupportedField,
    /// 3: the container is not known; nothing needs to be cleaned up.
    UnknownContainer,
    /// 4: an environment variable is missing or wrong.
    InvalidEnv,
    /// 5: reading or writing failed.
    Io,
    /// 6: the input is not the JSON it should be.
    Decode,
    /// 7: the network configuration is wrong.
    InvalidConfig,
    /// 8: `CNI_NETNS` is no namespace for a container.
    InvalidNetns,
    /// 11: a passing condition; ask again.
    TryAgain,
    /// 50 (STATUS): the plugin cannot serve ADD.
    NotAvailable,
    /// 51 (STATUS): the plugin cannot serve ADD, and running containers may have limited connectivity.
    LimitedConnectivity,
    /// 100: every pool that may be used is full.
    NoAddress,
    /// 101: no enabled pool may be used here.
    NoPool,
    /// 102: the pod's interface could not be made.
    Interface,
    /// 103: the pod's routes could not be programmed.
    Dataplane,
    /// 104: CHECK found something different from what ADD made.
    CheckFailed,
    /// 105: the datastore refused for good.
    Datastore,
    /// Any other number, from an agent of another version.
    Other(u32),
}

impl From<Code> for u32 {
    fn from(code: Code) -> u32 {
        match code {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnv => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::InvalidConfig => 7,
            Code::InvalidNetns => 8,
            Code::TryAgain => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            Code::NoAddress => 100,
            Code::NoPool => 101,
            Code::Interface => 102,
            Code::Dataplane => 103,
            Code::CheckFailed => 104,
            Code::Datastore => 105,
            Code::Other(number) => number,
        }
    }
}

impl From<u32> for Code {
    fn from(number: u32) -> Code {
        match number {
            1 => Code::IncompatibleVersion,
            2 => Code::UnsupportedField,
            3 => Code::UnknownContainer,
            4 => Code::InvalidEnv,
            5 => Code::Io,
            6 => Code::Decode,
            7 => Code::InvalidConfig,
            8 => Code::InvalidNetns,
            11 => Code::TryAgain,
            50 => Code::NotAvailable,
            51 => Code::LimitedConnectivity,
            100 => Code::NoAddress,
            101 => Code::NoPool,
            102 => Code::Interface,
            103 => Code::Dataplane,
            104 => Code::CheckFailed,
            105 => Code::Datastore,
            other => Code::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_the_wire() {
        for number in 0..200 {
            assert_eq!(u32::from(Code::from(number)), number);
        }
    }
}
