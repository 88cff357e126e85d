//! A packet's way as text for people and as data for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::hop::{Finding, Hop, Kind, Line, Outcome, outcome};
use super::passage::ShownPassage;
use super::translate::Translated;
use super::watch::Watched;
use crate::why::explain::Explanation;
use crate::why::show::{ShownPacket, ShownPlace, data, packet_line, place_line, write_shown};

/// A packet's way, for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownTrace<'a> {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// Where that is decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<&'a str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finding: Option<&'a Finding>,
    /// The packet.
    pub packet: ShownPacket,
    /// Where it comes from.
    pub from: ShownPlace,
    /// Where it goes.
    pub to: ShownPlace,
    /// The hops, in order.
    pub hops: &'a [Hop],
    /// What cannot be known, or is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Packets that were seen, with `--watch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passages: Option<Vec<ShownPassage>>,
    /// What came back, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replies: Option<Vec<ShownPassage>>,
    /// What the destination becomes, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translations: Option<Vec<Translated>>,
}

/// For programs.
pub fn shown<'a>(explanation: &Explanation, hops: &'a [Hop], watched: Option<Watched>) -> ShownTrace<'a> {
    let explained = data(explanation, None);
    let (outcome, found) = outcome(hops);
    let (mut passages, mut replies, mut translations) = (None, None, None);
    if let Some(watched) = watched {
        (passages, replies) = (Some(watched.passages), Some(watched.replies));
        translations = Some(watched.translations);
    }
    ShownTrace {
        outcome,
        at: found.map(|(hop, _)| hop.name.as_str()),
        finding: found.map(|(_, finding)| finding),
        packet: explained.packet,
        from: explained.from,
        to: explained.to,
        hops,
        notes: explained.notes,
        passages,
        replies,
        translations,
    }
}

/// For people.
pub fn text(explanation: &Explanation, hops: &[Hop], problems: &[String], out: &mut dyn Write) -> io::Result<()> {
    let question = &explanation.question;
    writeln!(out, "{}", packet_line(&question.packet))?;
    writeln!(out, "  from {}", place_line(&question.from, question.packet.source))?;
    writeln!(out, "  to   {}", place_line(&question.to, question.packet.destination))?;
    for (number, hop) in hops.iter().enumerate() {
        let on = match hop.node.is_empty() || hop.name == format!("node {}", hop.node) {
            true => String::new(),
            false => format!(" on node {}", hop.node),
        };
        writeln!(out, "\n{}. {}{on}", number + 1, hop.name)?;
        for line in &hop.lines {
            match line {
                Line::Fact(text) => writeln!(out, "   {text}")?,
                Line::Policy(stage) => write_shown(stage, "   ", out)?,
                // Policy's own words stand above it.
                Line::Finding(Finding { kind: Kind::Denied, .. }) => {}
                Line::Finding(finding) => write_finding(finding, out)?,
            }
        }
    }
    writeln!(out)?;
    write_outcome(hops, out)?;
    for note in &explanation.notes {
        writeln!(out, "note: {note}")?;
    }
    for problem in problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(())
}

fn write_finding(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    let mark = match finding.kind {
        Kind::Broken | Kind::Denied => "WRONG",
        Kind::Unseen => "UNKNOWN",
        Kind::Beyond | Kind::Note => "note",
    };
    writeln!(out, "   {mark}: {}", finding.what)?;
    match finding.right.is_empty() {
        true => Ok(()),
        false => writeln!(out, "     right would be: {}", finding.right),
    }
}

fn write_outcome(hops: &[Hop], out: &mut dyn Write) -> io::Result<()> {
    let (outcome, found) = outcome(hops);
    let said = match found {
        Some((hop, finding)) => format!("{}: {}", hop.name, finding.what),
        None => String::new(),
    };
    match outcome {
        Outcome::Arrives => writeln!(out, "ARRIVES"),
        Outcome::Leaves => writeln!(out, "LEAVES at {said}"),
        Outcome::Denied => writeln!(out, "DENIED at {said}"),
        Outcome::Broken => writeln!(out, "BROKEN at {said}"),
        Outcome::Unknown => writeln!(out, "UNKNOWN: nothing is wrong where one can look; {said}"),
    }
}
