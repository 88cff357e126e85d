//! `trace --watch`: a real packet of the flow, seen where it passes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::AgentError;
use agent::policy_view::PolicyView;
use agent::watch::{WatchLine, WatchQuestion};
use policy::evaluate::Packet;

use super::agents::{Agents, Sockets};
use super::counters;
use super::hop::{Hop, Outcome, Point, outcome};
use super::passage::{self, Passages, ShownPassage};
use crate::CtlError;

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
/// A watch that does not begin.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was seen.
pub struct Watched {
    /// The packet's end could be watched.
    pub whole: bool,
    /// Packets that arrived; if none did, the one that came farthest, if there was any.
    pub passages: Vec<ShownPassage>,
    /// What was dropped meanwhile, by node.
    pub drops: BTreeMap<String, Vec<String>>,
}

/// Watches the devices of the hops. `say` is told when no packet is missed any more.
pub fn watch(
    flow: &Packet,
    hops: &[Hop],
    before: &BTreeMap<String, PolicyView>,
    agents: &mut Sockets,
    limits: Limits,
    mut say: impl FnMut(&str) -> Result<(), CtlError>,
) -> Result<Watched, CtlError> {
    let nodes: BTreeSet<&str> = hops
        .iter()
        .filter(|hop| hop.view.is_some())
        .map(|hop| hop.node.as_str())
        .collect();
    let points: Vec<Point> = hops.iter().flat_map(|hop| hop.points.clone()).collect();
    let outcome = outcome(hops).0;
    let whole = outcome != Outcome::Leaves && hops.last().is_some_and(|hop| !hop.points.is_empty());
    // Where the end cannot be watched, the last device that can stands for it.
    let has_end = whole || [Outcome::Unknown, Outcome::Leaves].contains(&outcome);
    let question = WatchQuestion {
        source: flow.source,
        destination: flow.destination,
        protocol: flow.protocol,
        seconds: (limits.timeout + PATIENCE).as_secs(),
    };
    let (send, lines) = mpsc::channel();
    for node in &nodes {
        let socket = agents.of(node).map_err(CtlError::Usage)?;
        let (question, send, node) = (question.clone(), send.clone(), (*node).to_owned());
        std::thread::spawn(move || {
            let ended = agent::http::follow_watch(&socket, &question, |line| send.send(Heard::Line(line)).is_ok());
            let _ = send.send(Heard::Ended(node, ended.err()));
        });
    }
    drop(send);
    ready(&lines, nodes.len(), &mut say)?;
    let places: Vec<String> = points.iter().map(passage::name).collect();
    say(&format!("watching {}; now send such a packet", places.join(", ")))?;
    let until = Instant::now() + limits.timeout;
    let mut passages = Passages::new(flow, &points, has_end);
    let mut arrived: Vec<usize> = Vec::new();
    let mut end = until;
    while let Ok(heard) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        let sighting = match heard {
            Heard::Line(WatchLine::Seen(sighting)) => sighting,
            Heard::Line(WatchLine::Ready { .. }) => continue,
            Heard::Ended(node, error) => {
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                say(&format!("node {node} is not watched any more{why}"))?;
                continue;
            }
        };
        let Some(index) = passages.add(sighting) else { continue };
        if passages.has_arrived(index) && !arrived.contains(&index) && arrived.len() < limits.count {
            arrived.push(index);
            if arrived.len() == limits.count {
                end = until.min(Instant::now() + LAGGARDS);
            }
        }
        if arrived.len() == limits.count && arrived.iter().all(|index| passages.is_complete(*index)) {
            break;
        }
    }
    let mut drops = BTreeMap::new();
    if arrived.is_empty() {
        arrived.extend(passages.farthest());
        for (node, before) in before {
            let more = agents
                .policy(node)
                .map(|now| counters::since(before, &now))
                .unwrap_or_default();
            if !more.is_empty() {
                drops.insert(node.clone(), more);
            }
        }
    }
    Ok(Watched {
        whole,
        passages: arrived.into_iter().filter_map(|index| passages.shown(index)).collect(),
        drops,
    })
}

enum Heard {
    Line(WatchLine),
    Ended(String, Option<AgentError>),
}

/// Waits until all agents watch.
fn ready(
    lines: &mpsc::Receiver<Heard>,
    nodes: usize,
    say: &mut impl FnMut(&str) -> Result<(), CtlError>,
) -> Result<(), CtlError> {
    let until = Instant::now() + PATIENCE;
    let mut ready = 0;
    while ready < nodes {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Heard::Line(WatchLine::Ready { node, problems })) => {
                ready += 1;
                for problem in problems {
                    say(&format!("node {node} does not see everything: {problem}"))?;
                }
            }
            Ok(Heard::Line(WatchLine::Seen(_))) => {}
            Ok(Heard::Ended(node, error)) => {
                ready += 1;
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                say(&format!("node {node} is not watched{why}"))?;
            }
            Err(_) => return say("not all nodes are watched yet"),
        }
    }
    Ok(())
}

/// The lines of a packet, without what they share with those of its first sighting.
fn changed(first: &[String], lines: &[String]) -> Vec<String> {
    let plain = |line: &str| line.trim().trim_start_matches("inner").trim().to_owned();
    // What counts down at each hop is shown, not compared.
    let hops = |line: &str| -> Option<(String, String)> {
        let at = line.find("ttl ").or_else(|| line.find("hop limit "))?;
        let (before, rest) = line.split_at(at);
        let (hops, after) = rest.split_once("  ")?;
        Some((format!("{}{after}", plain(before)), hops.to_owned()))
    };
    let known = first.first().and_then(|line| hops(line)).map(|(rest, _)| rest);
    let mut shown = Vec::new();
    for line in lines {
        match hops(line) {
            Some((rest, left)) if Some(&rest) == known.as_ref() => {
                let indent = " ".repeat(line.len() - line.trim_start().len());
                let what = if line.contains("inner") {
                    "inner  the same"
                } else {
                    "the same"
                };
                shown.push(format!("{indent}{what}, {left}"));
            }
            None if first.iter().any(|known| plain(known) == plain(line)) => {}
            _ => shown.push(line.clone()),
        }
    }
    match shown.is_empty() {
        true => vec!["the same".to_owned()],
        false => shown,
    }
}

/// What was seen, for people.
pub fn text(watched: &Watched, timeout: Duration, out: &mut dyn Write) -> std::io::Result<()> {
    if watched.passages.is_empty() {
        writeln!(out, "NOT SEEN: no such packet came within {} s", timeout.as_secs())?;
    }
    for passage in &watched.passages {
        let first = passage
            .seen
            .first()
            .map(|first| first.packet.as_slice())
            .unwrap_or_default();
        for (number, sighting) in passage.seen.iter().enumerate() {
            let place = match &sighting.pod {
                Some(pod) => format!("pod {pod}"),
                None => format!("node {}", sighting.node),
            };
            writeln!(
                out,
                "{:>9.3} ms  {place}, {} {}",
                sighting.after, sighting.device, sighting.direction
            )?;
            let lines = match number {
                0 => sighting.packet.clone(),
                _ => changed(first, &sighting.packet),
            };
            for line in lines {
                writeln!(out, "              {line}")?;
            }
        }
        match (passage.arrived, passage.seen.last()) {
            (true, _) if watched.whole => writeln!(out, "SEEN: it arrived")?,
            (true, _) => writeln!(out, "SEEN as far as one can look")?,
            (false, Some(last)) => {
                let place = match &last.pod {
                    Some(pod) => format!("pod {pod}"),
                    None => format!("node {}", last.node),
                };
                writeln!(out, "LOST: last seen at {} of {place}", last.device)?;
            }
            (false, None) => {}
        }
        for missed in &passage.missed {
            writeln!(out, "  not seen at {missed}")?;
        }
        writeln!(out)?;
    }
    for (node, drops) in &watched.drops {
        writeln!(out, "dropped on node {node} meanwhile:")?;
        drops.iter().try_for_each(|drop| writeln!(out, "  {drop}"))?;
    }
    Ok(())
}
