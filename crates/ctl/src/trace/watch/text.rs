//! What was seen, for people.

use std::io::Write;
use std::time::Duration;

use super::{ANSWER, ShownPassage, Watched};

/// What was seen, for people.
pub fn text(watched: &Watched, timeout: Duration, out: &mut dyn Write) -> std::io::Result<()> {
    for translated in &watched.translations {
        writeln!(out, "the destination {translated}")?;
    }
    if watched.passages.is_empty() {
        writeln!(out, "NOT SEEN: no such packet came within {} s", timeout.as_secs())?;
    }
    for passage in &watched.passages {
        sightings(passage, out)?;
        end(passage, ["SEEN: it arrived", "SEEN as far as one can look"], out)?;
    }
    for passage in &watched.replies {
        writeln!(out, "and back:")?;
        sightings(passage, out)?;
        end(
            passage,
            ["ANSWERED: it came back", "ANSWERED, as far as one can look"],
            out,
        )?;
    }
    if watched.replies.is_empty() && watched.passages.iter().any(|passage| passage.arrived) {
        writeln!(out, "NOT ANSWERED: nothing came back within {} s\n", ANSWER.as_secs())?;
    }
    for (node, drops) in &watched.drops {
        writeln!(out, "dropped on node {node} meanwhile:")?;
        drops.iter().try_for_each(|drop| writeln!(out, "  {drop}"))?;
    }
    Ok(())
}

fn sightings(passage: &ShownPassage, out: &mut dyn Write) -> std::io::Result<()> {
    let first = passage.seen.first().map(|first| first.packet.as_slice());
    for (number, sighting) in passage.seen.iter().enumerate() {
        writeln!(
            out,
            "{:>9.3} ms  {}, {} {}",
            sighting.after,
            place(&sighting.pod, &sighting.node),
            sighting.device,
            sighting.direction
        )?;
        let lines = match number {
            0 => sighting.packet.clone(),
            _ => changed(first.unwrap_or_default(), &sighting.packet),
        };
        for line in lines {
            writeln!(out, "              {line}")?;
        }
    }
    Ok(())
}

/// What became of it: at its end, or at the last place that can be watched.
fn end(passage: &ShownPassage, [whole, partly]: [&str; 2], out: &mut dyn Write) -> std::io::Result<()> {
    match (passage.arrived, passage.seen.last()) {
        (true, _) if passage.whole => writeln!(out, "{whole}")?,
        (true, _) => writeln!(out, "{partly}")?,
        (false, Some(last)) => {
            let place = place(&last.pod, &last.node);
            writeln!(out, "LOST: last seen at {} of {place}", last.device)?;
        }
        (false, None) => {}
    }
    for missed in &passage.missed {
        writeln!(out, "  not seen at {missed}")?;
    }
    writeln!(out)
}

fn place(pod: &Option<String>, node: &str) -> String {
    match pod {
        Some(pod) => format!("pod {pod}"),
        None => format!("node {node}"),
    }
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
