//! The hops of a packet's way, and what is said of each.

use agent::path::PathView;
use serde::Serialize;

use crate::why::show::ShownStage;

/// A place on the way.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// `pod shop/web`, `node n1`, `router 192.0.2.1`.
    pub name: String,
    /// Its node; empty: it is on none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// What is there and what happens, in the packet's order.
    pub lines: Vec<Line>,
    /// What the node's agent has answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<PathView>,
    /// Where the packet can be seen here, in its order.
    #[serde(skip)]
    pub points: Vec<Point>,
}

/// One thing about a hop.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// How it is.
    Fact(String),
    /// What policy says.
    Policy(ShownStage),
    /// Something is not as it should be.
    Finding(Finding),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
    /// What would be right; empty: that is plain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub right: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The packet (or a full-size one) does not get further.
    Broken,
    /// Policy denies it.
    Denied,
    /// Nobody can tell.
    Unseen,
    /// It goes where no node is.
    Beyond,
    /// Worth knowing.
    Note,
}

/// A device where the packet passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The node.
    pub node: String,
    /// The pod that the device is in; `None`: the node itself.
    pub pod: Option<String>,
    /// The device.
    pub device: String,
    /// It leaves the node or pod there, rather than comes in.
    pub outgoing: bool,
    /// It is always seen there. Not so on `tunl0` of BPF, which shows only what comes in.
    pub always: bool,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// It arrives.
    Arrives,
    /// It leaves the cluster.
    Leaves,
    /// Policy denies it.
    Denied,
    /// It does not arrive for another reason.
    Broken,
    /// Nothing is wrong where one can see, but one cannot see everything.
    Unknown,
}

impl Hop {
    /// An empty one.
    pub fn new(name: impl Into<String>, node: &str) -> Self {
        Self {
            name: name.into(),
            node: node.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a fact.
    pub fn fact(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Fact(text.into()));
    }

    /// Adds a finding.
    pub fn find(&mut self, kind: Kind, what: impl Into<String>, right: impl Into<String>) {
        self.lines.push(Line::Finding(Finding {
            kind,
            what: what.into(),
            right: right.into(),
        }));
    }

    /// Its findings.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.lines.iter().filter_map(|line| match line {
            Line::Finding(finding) => Some(finding),
            Line::Fact(_) | Line::Policy(_) => None,
        })
    }
}

/// What became of the packet, and which finding of which hop says so.
pub fn outcome(hops: &[Hop]) -> (Outcome, Option<(&Hop, &Finding)>) {
    let all = || {
        hops.iter()
            .flat_map(|hop| hop.findings().map(move |finding| (hop, finding)))
    };
    let first = |kinds: &[Kind]| all().find(|(_, finding)| kinds.contains(&finding.kind));
    if let Some((hop, finding)) = first(&[Kind::Broken, Kind::Denied]) {
        let outcome = match finding.kind {
            Kind::Denied => Outcome::Denied,
            _ => Outcome::Broken,
        };
        return (outcome, Some((hop, finding)));
    }
    if let Some(unseen) = first(&[Kind::Unseen]) {
        return (Outcome::Unknown, Some(unseen));
    }
    match first(&[Kind::Beyond]) {
        Some(beyond) => (Outcome::Leaves, Some(beyond)),
        None => (Outcome::Arrives, None),
    }
}
