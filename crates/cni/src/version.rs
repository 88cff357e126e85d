//! The versions of the CNI specification that we speak.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};

/// A supported version, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// Results with interfaces and lists of addresses.
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// Result of a chain goes to the next plugin.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// Addresses without `version`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// GC and STATUS; more fields of interfaces and routes.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Version; 5] = [
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version with this text; an error of code 1 that lists what is supported if there is none.
    pub fn parse(text: &str) -> Result<Version, Error> {
        Version::ALL
            .into_iter()
            .find(|version| version.text() == text)
            .ok_or_else(|| {
                let supported: Vec<_> = Version::ALL.iter().map(|version| version.text()).collect();
                Error::new(
                    Code::IncompatibleVersion,
                    "incompatible CNI version",
                    format!("cniVersion: {text:?}; supported are {}", supported.join(", ")),
                )
            })
    }

    /// As written in `cniVersion`.
    pub fn text(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
