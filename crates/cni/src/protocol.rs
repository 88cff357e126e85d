//! What plugin and agent say to each other: one request, one reply, then the connection closes.
//!
//! A message is its length as four bytes, big-endian, and that many bytes of JSON. Readers ignore keys they do not know, so
//! that plugin and agent may differ in version while one of them is being replaced.

use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::config::Config;
use crate::env::{Args, Call};
use crate::error::Error;
use crate::result::CniResult;

pub use crate::env::{Role, Verb};

/// The longest message, in bytes. A GC of some thousand attachments fits many times.
pub const MAX_MESSAGE: usize = 4 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// As network plugin or as IPAM plugin.
    #[serde(default)]
    pub role: Role,
    /// The container (sandbox); empty for STATUS and GC.
    #[serde(default)]
    pub container_id: String,
    /// Its network namespace.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// The interface in it.
    #[serde(default)]
    pub ifname: String,
    /// Pod names and the like.
    #[serde(default)]
    pub args: Args,
    /// The checked network configuration.
    pub config: Config,
}

impl Request {
    /// The request of a checked call.
    pub fn new(call: &Call, config: Config) -> Self {
        Self {
            verb: call.verb,
            role: call.role,
            container_id: call.container_id.clone(),
            netns: call.netns.clone(),
            ifname: call.ifname.clone(),
            args: call.args.clone(),
            config,
        }
    }
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// Done; ADD has a result.
    Ok(Option<CniResult>),
    /// Not done; the plugin prints it as it is.
    Error(Error),
}

/// A message as bytes, length first. `InvalidData` if it is too long.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    check_length(length)?;
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Reads one message. `InvalidData` if it is too long or not what it should be, `UnexpectedEof` if it ends early.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = vec![0; message_length(length)?];
    from.read_exact(&mut bytes)?;
    decode(&bytes)
}

/// The length that the first four bytes announce; `InvalidData` if it is beyond [`MAX_MESSAGE`].
pub fn message_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(prefix) as usize;
    check_length(length)?;
    Ok(length)
}

/// A message without its length.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn check_length(length: usize) -> io::Result<()> {
    if length <= MAX_MESSAGE {
        return Ok(());
    }
    let text = format!("a message of {length} bytes; at most {MAX_MESSAGE} are allowed");
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_reply_survives_the_wire() {
        let replies = [
            Reply::Ok(None),
            Reply::Ok(Some(CniResult::default())),
            Reply::Error(Error::new(Code::TryAgain, "later", "why")),
        ];
        for reply in replies {
            let bytes = encode(&reply).unwrap();
            assert_eq!(read::<Reply>(&mut bytes.as_slice()).unwrap(), reply);
        }
    }

    #[test]
    fn bad_messages_are_refused() {
        let check = |bytes: &[u8], wanted| {
            assert_eq!(read::<Reply>(&mut &*bytes).unwrap_err().kind(), wanted, "{bytes:?}");
        };
        check(&[], io::ErrorKind::UnexpectedEof);
        check(&[0, 0, 0, 9, b'{'], io::ErrorKind::UnexpectedEof);
        check(&[0xff; 8], io::ErrorKind::InvalidData);
        check(&[0, 0, 0, 2, b'{', b'}'], io::ErrorKind::InvalidData);
        assert!(encode(&"x".repeat(MAX_MESSAGE)).is_err());
    }
}
