//! Packets of one flow as they pass this node's devices and its pods', for `margay trace --watch`.
//!
//! Both directions: packets to the destination, and those that come back. Where the kernel's conntrack knows the flow under
//! another destination, that is told, too, so that the asker can watch that.
//!
//! Copies of the packets' heads go to whoever asks, a line of JSON each, as long as he listens; nobody decodes them here. The
//! kernel picks the packets, so that others cost nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use cni::journal::{Journal, Phase};
use kernel::IfName;
use linux::capture::{Capture, Direction, Selection};
use linux::netns::Netns;
use linux::request::Socket;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::head::Head;
use self::translate::{Translation, Translator};

pub mod head;
pub mod translate;

/// Which packets, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchQuestion {
    /// Their source: pods that have it are watched, too. Packets of other sources are shown as well: it may be translated.
    pub source: IpAddr,
    /// Their destination.
    pub destination: IpAddr,
    /// Their protocol.
    pub protocol: u8,
    /// What the destination is called, with its port (0: any): as it is asked for, and as it is translated to. At most
    /// [`linux::capture::ENDS`]. None: the destination, at any port.
    #[serde(default, with = "ends")]
    pub ends: Vec<SocketAddr>,
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
    /// Packets of the flow have another destination behind this node.
    Translated(Translation),
}

/// Addresses with ports as one word of an URL.
mod ends {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(ends: &[SocketAddr], serializer: S) -> Result<S::Ok, S::Error> {
        super::word(ends).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ends = text.split(',').filter(|end| !end.is_empty());
        let read = |end: &str| {
            let wrong = |_| serde::de::Error::custom(format!("ends: `{end}` must be ADDRESS:PORT"));
            end.parse().map_err(wrong)
        };
        ends.map(read).collect()
    }
}

/// `192.0.2.1:80,[2001:db8::1]:80`.
pub(crate) fn word(ends: &[SocketAddr]) -> String {
    let ends: Vec<String> = ends.iter().map(ToString::to_string).collect();
    ends.join(",")
}

impl WatchQuestion {
    /// What the destination is called, at least by the name that it is asked for.
    fn all_ends(&self) -> Vec<SocketAddr> {
        match self.ends.is_empty() {
            true => vec![SocketAddr::new(self.destination, 0)],
            false => self.ends.clone(),
        }
    }
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
    let ends = question.all_ends();
    // Pods' flows are translated on the node, not in the pod.
    let mut translator = Translator::open(node, question.source, question.protocol, &ends)
        .map_err(|error| problems.push(format!("conntrack, so translated destinations are not found: {error}")))
        .ok();
    let mut threads = Vec::new();
    for Place { pod, netns } in places {
        let addresses = ends.iter().map(SocketAddr::ip).collect();
        let selection = Selection::Of(addresses, question.protocol);
        let opened = netns.run(|| -> io::Result<_> { Ok((Capture::open(None, selection)?, Socket::open()?)) });
        match opened.and_then(|opened| opened) {
            Ok((capture, names)) => threads.push(Watcher {
                node: node.to_owned(),
                translator: if pod.is_none() { translator.take() } else { None },
                pod,
                ends: ends.clone(),
                protocol: question.protocol,
                capture,
                names,
                lines: lines.clone(),
                until,
            }),
            Err(error) => problems.push(format!("{}: {error}", pod.as_deref().unwrap_or("this node"))),
        }
    }
    // What is known before; and from here on nothing is missed.
    for watcher in &mut threads {
        let Some(translator) = &mut watcher.translator else {
            continue;
        };
        match translator.known() {
            Ok(known) => {
                for line in known.into_iter().map(WatchLine::Translated) {
                    let _ = lines.blocking_send(line);
                }
            }
            Err(error) => problems.push(format!("conntrack: {error}")),
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
    let ends = question.all_ends();
    let ends: Vec<IpAddr> = ends.iter().map(SocketAddr::ip).chain([question.source]).collect();
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
    ends: Vec<SocketAddr>,
    protocol: u8,
    /// Finds out what else the destination is called.
    translator: Option<Translator>,
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
            let turn = match self.translator.as_ref().is_some_and(Translator::waits) {
                true => translate::AGAIN,
                false => TURN,
            };
            match self.capture.next_within(left.min(turn)) {
                Ok(Some(packet)) => {
                    let Some(head) = self.concerned(&packet.bytes) else {
                        continue;
                    };
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
                    if let Some(translator) = &mut self.translator {
                        translator.saw(&head);
                    }
                }
                Ok(None) => {}
                // A device that went down says so once.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => {}
                Err(error) => {
                    tracing::debug!(%error, "watch: ended");
                    return;
                }
            }
            for found in self.translator.iter_mut().flat_map(Translator::settle) {
                let _ = self.lines.try_send(WatchLine::Translated(found));
            }
        }
    }

    /// The head of a packet to or from one of the ends, also as to ports.
    fn concerned(&self, bytes: &[u8]) -> Option<Head> {
        let head = head::read(bytes)?;
        let is_one = |end: SocketAddr| self.ends.iter().any(|asked| head::is_at(*asked, end));
        let concerns = head.protocol == self.protocol && (is_one(head.to()) || is_one(head.from()));
        concerns.then_some(head)
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

    #[test]
    fn ends_are_a_word() {
        let read = |text: &str| {
            let json = format!(r#"{{"source":"192.0.2.1","destination":"192.0.2.2","protocol":6,"seconds":1{text}}}"#);
            serde_json::from_str::<WatchQuestion>(&json).map_err(|error| error.to_string())
        };
        let ends = |text: &str| read(text).map(|question| word(&question.all_ends()));
        assert_eq!(ends("").as_deref(), Ok("192.0.2.2:0"));
        let several = "192.0.2.2:80,[2001:db8::1]:0";
        assert_eq!(ends(&format!(r#","ends":"{several}""#)).as_deref(), Ok(several));
        let wrong = ends(r#","ends":"192.0.2.2""#).expect_err("no port");
        assert!(wrong.starts_with("ends: `192.0.2.2` must be ADDRESS:PORT"), "{wrong}");
    }
}
