//! `node status`: what the agent of this node says of itself, sessions first as upstream does.

use std::io::{self, Write};

use agent::status::{BgpPeerReport, DropReport, Report};

use crate::command::{NodeStatusArgs, StatusFormat};
use crate::{CtlError, output};

/// Asks the agent and shows its report.
pub fn status(args: &NodeStatusArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    let report = agent::http::ask(&agent::http::socket(&args.run_dir))?;
    match args.output {
        StatusFormat::Json => out
            .write_all(output::json(&report).as_bytes())
            .map_err(CtlError::output),
        StatusFormat::Text => text(&report, out).map_err(CtlError::output),
    }
}

/// The report as text.
pub fn text(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "Margay agent is running: node {}, version {}, pid {}.",
        report.node, report.version, report.pid
    )?;
    for (family, is_v6) in [("IPv4", false), ("IPv6", true)] {
        let peers: Vec<&BgpPeerReport> = report
            .bgp
            .peers
            .iter()
            .filter(|peer| peer.address.contains(':') == is_v6)
            .collect();
        writeln!(out, "\n{family} BGP status")?;
        if peers.is_empty() {
            writeln!(out, "No {family} peers found.")?;
            continue;
        }
        let mut rows = vec![
            ["PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"]
                .map(String::from)
                .to_vec(),
        ];
        rows.extend(peers.into_iter().map(peer_row));
        output::grid(out, &rows)?;
    }
    writeln!(
        out,
        "\n{}",
        if report.ready {
            "The node is ready."
        } else {
            "The node is NOT ready."
        }
    )?;
    for condition in &report.conditions {
        let mark = match (condition.ok, condition.required) {
            (true, _) => "ok",
            (false, true) => "NOT READY",
            (false, false) => "warning",
        };
        writeln!(
            out,
            "  {:<12} {mark:<10} {}: {}",
            condition.name, condition.reason, condition.message
        )?;
    }
    for why in &report.addresses.why {
        writeln!(out, "  Address      {why}")?;
    }
    writeln!(out, "  tunl0        {}: {}", report.ipip.flavour, report.ipip.why)?;
    if let Some(counters) = report.ipip.counters {
        writeln!(
            out,
            "               encapsulated {}, decapsulated {}, dropped: unknown source {}, no peer {}, malformed {}",
            counters.encapsulated,
            counters.decapsulated,
            counters.dropped_unknown_source,
            counters.dropped_no_peer,
            counters.dropped_malformed
        )?;
    }
    writeln!(out, "  Pod MTU      {}", report.pod_mtu)?;
    for class in &report.kernel {
        writeln!(
            out,
            "  {:<12} {} of {} installed, {} failed",
            class.class, class.installed, class.wanted, class.failed
        )?;
    }
    if !report.policy.drops.is_empty() {
        writeln!(out, "  dropped      {}", dropped(&report.policy.drops))?;
    }
    for problem in &report.problems {
        writeln!(out, "  problem      {problem}")?;
    }
    Ok(())
}

/// Sums by cause: `policy 12, spoofed 3 (packets)`.
fn dropped(drops: &[DropReport]) -> String {
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for drops in drops {
        match sums.iter_mut().find(|(cause, _)| *cause == drops.cause) {
            Some((_, sum)) => *sum += drops.packets,
            None => sums.push((&drops.cause, drops.packets)),
        }
    }
    let parts: Vec<String> = sums.iter().map(|(cause, sum)| format!("{cause} {sum}")).collect();
    format!("{} (packets)", parts.join(", "))
}

fn peer_row(peer: &BgpPeerReport) -> Vec<String> {
    let kind = match peer.name.split('_').next() {
        Some("Mesh") => "node-to-node mesh",
        Some("Node") => "node specific",
        Some("Global") => "global",
        _ => "other",
    };
    let up = peer.state == "Established";
    let info = match (&peer.info, up) {
        (_, true) => format!(
            "Established; {} received, {} advertised",
            peer.received, peer.advertised
        ),
        (Some(why), false) => format!("{}: {why}", peer.state),
        (None, false) => peer.state.clone(),
    };
    vec![
        peer.address.clone(),
        kind.to_string(),
        if up { "up" } else { "start" }.to_string(),
        duration(peer.since_seconds),
        info,
    ]
}

fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02} ago")
}
