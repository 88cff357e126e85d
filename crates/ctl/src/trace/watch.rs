//! `trace --watch`: a real packet of the flow, seen where it passes, and what comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::AgentError;
use agent::policy_view::PolicyView;
use agent::watch::head::is_at;
use agent::watch::{Sighting, WatchLine, WatchQuestion};
use policy::evaluate::Packet;

use super::agents::{Agents, Sockets};
use super::counters;
use super::hop::{Hop, Outcome, outcome};
use super::passage::{self, Passages, ShownPassage, Way};
use super::translate::Translated;
use super::walk::Walked;
use crate::CtlError;

pub mod text;

/// How long and how many.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So many packets that arrive.
    pub count: usize,
    /// No longer than this.
    pub timeout: Duration,
}

/// After a packet was seen at its end, others of its sightings may still be on their way here.
const LAGGARDS: Duration = Duration::from_millis(500);
/// After it was seen wherever it must be, it may still be told of by other devices (tunnels that show one direction).
const GRACE: Duration = Duration::from_millis(100);
/// After it was seen at its end, an answer is waited for.
pub const ANSWER: Duration = Duration::from_secs(1);
/// A watch that does not begin.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many names of the destination are followed: services may have hundreds of pods.
const NAMES: usize = 8;

/// What was seen.
pub struct Watched {
    /// What the destination becomes on the way.
    pub translations: Vec<Translated>,
    /// Packets that arrived; if none did, the one that came farthest, if there was any.
    pub passages: Vec<ShownPassage>,
    /// The same of packets that came back.
    pub replies: Vec<ShownPassage>,
    /// What becomes of packets on the way that the first of them took, by what was worked out.
    pub outcome: Outcome,
    /// What was dropped meanwhile, by node.
    pub drops: BTreeMap<String, Vec<String>>,
}

/// Finds the way of packets to another destination.
pub type Follow<'a> = &'a dyn Fn(SocketAddr, &mut Sockets) -> Walked;
/// Says something while it goes on.
pub type Say<'a> = &'a mut dyn FnMut(&str) -> Result<(), CtlError>;

/// Watches the devices of the way, and of those to what the destination is translated to. `say` is told when no packet is missed
/// any more.
pub fn watch(
    flow: &Packet,
    walked: &Walked,
    known: Vec<Translated>,
    agents: &mut Sockets,
    limits: Limits,
    (follow, say): (Follow<'_>, Say<'_>),
) -> Result<Watched, CtlError> {
    let (send, lines) = mpsc::channel();
    let mut watching = Watching {
        flow,
        limits,
        agents,
        follow,
        say,
        send,
        passages: Passages::new(flow, way(walked)),
        outcomes: vec![outcome(&walked.hops).0],
        nodes: BTreeSet::new(),
        started: BTreeSet::new(),
        awaited: 0,
        is_begun: false,
        before: walked.policies.clone(),
        translations: Vec::new(),
    };
    watching.watch_nodes(&walked.hops)?;
    for translated in known {
        watching.translated(translated)?;
    }
    watching.ready(&lines)?;
    let places: Vec<String> = watching.passages.points().into_iter().map(passage::name).collect();
    (watching.say)(&format!("watching {}; now send such a packet", places.join(", ")))?;
    let arrived = watching.gather(&lines)?;
    Ok(watching.seen(arrived))
}

struct Watching<'a> {
    flow: &'a Packet,
    limits: Limits,
    agents: &'a mut Sockets,
    follow: Follow<'a>,
    say: Say<'a>,
    send: mpsc::Sender<Heard>,
    passages: Passages,
    /// Of each way.
    outcomes: Vec<Outcome>,
    /// Nodes that can be asked.
    nodes: BTreeSet<String>,
    /// Who watches for what.
    started: BTreeSet<(String, SocketAddr)>,
    /// Watches that have not begun.
    awaited: usize,
    /// The user has been told to send.
    is_begun: bool,
    /// What nodes had counted before.
    before: BTreeMap<String, PolicyView>,
    translations: Vec<Translated>,
}

enum Heard {
    Line(WatchLine),
    /// A watch of a node is over; whether it had begun.
    Ended(String, bool, Option<AgentError>),
}

/// The devices of some hops as a way.
fn way(walked: &Walked) -> Way {
    let hops = &walked.hops;
    let outcome = outcome(hops).0;
    let whole = walked.ends_here && hops.last().is_some_and(|hop| !hop.points.is_empty());
    Way {
        points: hops.iter().flat_map(|hop| hop.points.clone()).collect(),
        // Where the end cannot be watched, the last device that can stands for it.
        has_end: whole || [Outcome::Unknown, Outcome::Leaves].contains(&outcome),
        whole,
    }
}

impl Watching<'_> {
    /// These hops' nodes watch, too; and all watch for whatever the destination is called by now.
    fn watch_nodes(&mut self, hops: &[Hop]) -> Result<(), CtlError> {
        let nodes = hops.iter().filter(|hop| hop.view.is_some());
        self.nodes.extend(nodes.map(|hop| hop.node.clone()));
        for node in self.nodes.clone() {
            let mut ends = self.passages.ends();
            ends.retain(|end| self.started.insert((node.clone(), *end)));
            if !ends.is_empty() {
                self.start(node, ends)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, node: String, ends: Vec<SocketAddr>) -> Result<(), CtlError> {
        let question = WatchQuestion {
            source: self.flow.source,
            destination: ends.first().map_or(self.flow.destination, SocketAddr::ip),
            protocol: self.flow.protocol,
            ends,
            seconds: (self.limits.timeout + PATIENCE).as_secs(),
        };
        let socket = self.agents.of(&node).map_err(CtlError::Usage)?;
        let send = self.send.clone();
        self.awaited += 1;
        std::thread::spawn(move || {
            let mut has_begun = false;
            let ended = agent::http::follow_watch(&socket, &question, |line| {
                has_begun |= matches!(line, WatchLine::Ready { .. });
                send.send(Heard::Line(line)).is_ok()
            });
            let _ = send.send(Heard::Ended(node, has_begun, ended.err()));
        });
        Ok(())
    }

    /// Takes what the destination becomes, or what else it is called.
    fn translated(&mut self, translated: Translated) -> Result<(), CtlError> {
        let Translated { from, to, .. } = translated;
        let node = translated.node.as_str();
        let knows = [from, to].map(|end| self.passages.knows(end));
        // What else the destination is called matters of the one that is asked about, not of what that becomes.
        let is_name = !knows[0] && is_at(passage::asked(self.flow), to);
        if knows[0] == knows[1] || !(knows[0] || is_name) || self.passages.ends().len() >= NAMES {
            return Ok(());
        }
        let mut hops = Vec::new();
        if knows[0] {
            let walked = (self.follow)(to, self.agents);
            let mut way = way(&walked);
            if let Some(first) = self.passages.way_there(from) {
                way = way.behind(first, node);
            }
            self.passages.is_translated(from);
            self.passages.add_way(to, way);
            self.outcomes.push(outcome(&walked.hops).0);
            for (node, policy) in walked.policies {
                self.before.entry(node).or_insert(policy);
            }
            hops = walked.hops;
        } else {
            self.passages.add_name(from, to);
        }
        self.watch_nodes(&hops)?;
        let since = match self.is_begun {
            true => "; packets are followed there from now on",
            false => "",
        };
        (self.say)(&format!("the destination {translated}{since}"))?;
        self.translations.push(translated);
        Ok(())
    }

    /// Waits until all agents watch.
    fn ready(&mut self, lines: &mpsc::Receiver<Heard>) -> Result<(), CtlError> {
        let until = Instant::now() + PATIENCE;
        while self.awaited > 0 {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(heard) => drop(self.hear(heard)?),
                Err(_) => {
                    (self.say)("not all nodes are watched yet")?;
                    break;
                }
            }
        }
        self.is_begun = true;
        Ok(())
    }

    /// Takes what an agent says; a packet that was seen is answered.
    fn hear(&mut self, heard: Heard) -> Result<Option<Sighting>, CtlError> {
        match heard {
            Heard::Line(WatchLine::Seen(sighting)) => return Ok(Some(sighting)),
            Heard::Line(WatchLine::Translated(told)) => self.translated(told.into())?,
            Heard::Line(WatchLine::Ready { node, problems }) => {
                self.awaited = self.awaited.saturating_sub(1);
                for problem in problems {
                    (self.say)(&format!("node {node} does not see everything: {problem}"))?;
                }
            }
            Heard::Ended(node, has_begun, error) => {
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                let more = if has_begun { " any more" } else { "" };
                self.awaited -= usize::from(!has_begun && self.awaited > 0);
                (self.say)(&format!("node {node} is not watched{more}{why}"))?;
            }
        }
        Ok(None)
    }

    /// Gathers sightings until enough packets have arrived and were answered, or the time is over: those that arrived.
    fn gather(&mut self, lines: &mpsc::Receiver<Heard>) -> Result<Vec<usize>, CtlError> {
        let until = Instant::now() + self.limits.timeout;
        let (mut end, mut is_answered, mut is_complete) = (until, false, false);
        let mut arrived: Vec<usize> = Vec::new();
        while let Ok(heard) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            let Some(sighting) = self.hear(heard)? else {
                // What seemed to be the end is not, if packets are translated there.
                let before = arrived.len();
                arrived.retain(|index| self.passages.has_arrived(*index));
                if arrived.len() < before {
                    (end, is_answered, is_complete) = (until, false, false);
                }
                continue;
            };
            let Some(index) = self.passages.add(sighting) else {
                continue;
            };
            let counts = !self.passages.is_reply(index) && self.passages.has_arrived(index);
            if counts && !arrived.contains(&index) && arrived.len() < self.limits.count {
                arrived.push(index);
                if arrived.len() == self.limits.count {
                    end = until.min(Instant::now() + ANSWER);
                }
            }
            if arrived.len() < self.limits.count {
                continue;
            }
            let mut replies = self.passages.answers(&arrived);
            replies.truncate(self.limits.count);
            if replies.len() == self.limits.count && !is_answered {
                is_answered = true;
                end = end.min(Instant::now() + LAGGARDS);
            }
            let mut all = arrived.iter().chain(&replies);
            if is_answered && !is_complete && all.all(|index| self.passages.is_complete(*index)) {
                is_complete = true;
                end = end.min(Instant::now() + GRACE);
            }
        }
        arrived.retain(|index| self.passages.has_arrived(*index));
        Ok(arrived)
    }

    fn seen(self, mut arrived: Vec<usize>) -> Watched {
        let mut drops = BTreeMap::new();
        if arrived.is_empty() {
            arrived.extend(self.passages.farthest());
            for (node, before) in &self.before {
                let more = self
                    .agents
                    .policy(node)
                    .map(|now| counters::since(before, &now))
                    .unwrap_or_default();
                if !more.is_empty() {
                    drops.insert(node.clone(), more);
                }
            }
        }
        let mut replies = self.passages.answers(&arrived);
        replies.truncate(self.limits.count);
        if replies.is_empty() {
            replies.extend(self.passages.farthest_answer(&arrived));
        }
        let way = arrived.first().map_or(0, |index| self.passages.way_of(*index));
        let shown = |indices: Vec<usize>| {
            indices
                .into_iter()
                .filter_map(|index| self.passages.shown(index))
                .collect()
        };
        Watched {
            translations: self.translations,
            passages: shown(arrived),
            replies: shown(replies),
            outcome: self.outcomes.get(way).copied().unwrap_or(Outcome::Unknown),
            drops,
        }
    }
}
