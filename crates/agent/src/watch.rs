//! Packets of one flow as they pass this node's devices and its pods', for `margay trace --watch`.
//!
//! Copies of the packets' heads go to whoever asks, a line of JSON each, as long as he listens; nobody decodes them here. The
//! kernel picks the packets, so that others cost nothing.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use cni::journal::{Journal, Phase};
use kernel::IfName;
use linux::capture::{Capture, Direction, Selection};
use linux::netns::Netns;
use linux::request::Socket;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Which packets, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchQuestion {
    /// Their source: pods that have it are watched, too. Packets of other sources are shown as well: it may be translated.
    pub source: IpAddr,
    /// Their destination.
    pub destination: IpAddr,
    /// Their protocol.
    pub protocol: u8,
    /// Ends after so many seconds, at most [`LONGEST`].
    pub seconds: u64,
}

/// Nobody watches for longer.
pub const LONGEST: u64 = 3600;

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchLine {
    /// From now on no packet is missed.
    Ready {
        /// The node.
        node: String,
        /// What cannot be watched, and why.
        problems: Vec<String>,
    },
    /// A packet.
    Seen(Sighting),
}

/// A packet at a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sighting {
    /// When the kernel saw it: microseconds since 1970, by this node's clock.
    pub at: u64,
    /// The node.
    pub node: String,
    /// The pod that the device is in; `None`: the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The device.
    pub device: String,
    /// It left the node or pod by the device, rather than came in.
    pub outgoing: bool,
    /// Its head from the IP header on, in hexadecimal digits.
    pub head: String,
}

/// How many lines may wait for a reader. What comes meanwhile is dropped: it is one of many, then.
pub const WAITING: usize = 1024;
/// How long a thread sleeps before it looks whether somebody still listens.
const TURN: Duration = Duration::from_millis(200);

/// A place with devices.
struct Place {
    pod: Option<String>,
    netns: Netns,
}

/// Watches until the time is over or nobody listens. Blocking until all captures are open; then threads go on by themselves.
pub fn watch(node: &str, journal: &std::path::Path, question: &WatchQuestion, lines: &mpsc::Sender<WatchLine>) {
    let mut problems = Vec::new();
    let mut places = Vec::new();
    match Netns::current() {
        Ok(netns) => places.push(Place { pod: None, netns }),
        Err(error) => problems.push(format!("the node's namespace: {error}")),
    }
    for (name, path) in pods(journal, question, &mut problems) {
        match Netns::open(&path) {
            Ok(netns) => places.push(Place { pod: Some(name), netns }),
            Err(error) => problems.push(format!("pod {name}: {}: {error}", path.display())),
        }
    }
    let until = Instant::now() + Duration::from_secs(question.seconds.min(LONGEST));
    let mut threads = Vec::new();
    for Place { pod, netns } in places {
        let selection = Selection::To(question.destination, question.protocol);
        let opened = netns.run(|| -> io::Result<_> { Ok((Capture::open(None, selection)?, Socket::open()?)) });
        match opened.and_then(|opened| opened) {
            Ok((capture, names)) => threads.push(Watcher {
                node: node.to_owned(),
                pod,
                capture,
                names,
                lines: lines.clone(),
                until,
            }),
            Err(error) => problems.push(format!("{}: {error}", pod.as_deref().unwrap_or("this node"))),
        }
    }
    let node = node.to_owned();
    if lines.blocking_send(WatchLine::Ready { node, problems }).is_err() {
        return;
    }
    for watcher in threads {
        let started = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || watcher.run());
        if let Err(error) = started {
            tracing::warn!(%error, "watch: no thread");
        }
    }
}

/// Pods of this node at the packets' ends, with their namespaces.
fn pods(journal: &std::path::Path, question: &WatchQuestion, problems: &mut Vec<String>) -> Vec<(String, PathBuf)> {
    let loaded = match Journal::new(journal).endpoints() {
        Ok(loaded) => loaded,
        Err(error) => {
            problems.push(format!("journal: {error}"));
            return Vec::new();
        }
    };
    let ends = [question.source, question.destination];
    let pods = loaded.records.into_iter().filter(|pod| {
        pod.phase == Phase::Attached
            && !pod.displaced
            && !pod.ipam_only
            && ends.iter().any(|end| pod.addresses.contains(end))
    });
    pods.map(|pod| (crate::path::pod_name(&pod), pod.netns)).collect()
}

/// What one thread does.
struct Watcher {
    node: String,
    pod: Option<String>,
    capture: Capture,
    names: Socket,
    lines: mpsc::Sender<WatchLine>,
    until: Instant,
}

impl Watcher {
    fn run(mut self) {
        while !self.lines.is_closed() {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.capture.next_within(left.min(TURN)) {
                Ok(Some(packet)) => {
                    let line = WatchLine::Seen(Sighting {
                        at: packet
                            .at
                            .duration_since(UNIX_EPOCH)
                            .map_or(0, |since| since.as_micros() as u64),
                        node: self.node.clone(),
                        pod: self.pod.clone(),
                        device: self.device(packet.index),
                        outgoing: packet.direction == Direction::Out,
                        head: hex(&packet.bytes),
                    });
                    // Too slow a reader misses some.
                    let _ = self.lines.try_send(line);
                }
                Ok(None) => {}
                // A device that went down says so once.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => {}
                Err(error) => {
                    tracing::debug!(%error, "watch: ended");
                    return;
                }
            }
        }
    }

    fn device(&self, index: u32) -> String {
        match self.names.name(index) {
            Ok(Some(IfName(name))) => name,
            Ok(None) | Err(_) => format!("device {index}"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of [`Sighting::head`]; `None` if it has other digits.
pub fn bytes(head: &str) -> Option<Vec<u8>> {
    let digits = head.as_bytes();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => {
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        }
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        let every: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes(&hex(&every)), Some(every));
        assert_eq!(bytes(""), Some(Vec::new()));
        assert_eq!(bytes("abc"), None);
        assert_eq!(bytes("zz"), None);
    }
}
