//! `node flows`: what policy decided about whom on this node, as the agent recorded it.

use std::io::Write;
use std::time::Duration;

use agent::flows::FlowRecord;
use agent::flows::prefix::FlowVerdict;

use crate::command::{NodeFlowsArgs, StatusFormat};
use crate::{CtlError, output};

/// How often the agent is asked for news.
const EVERY: Duration = Duration::from_millis(500);

/// Asks the agent and shows its records; with `--follow` until somebody ends it.
pub fn flows(args: &NodeFlowsArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    let socket = agent::http::socket(&args.run_dir);
    let first = agent::http::ask_flows(&socket, 0)?;
    if !args.follow && args.output == StatusFormat::Json {
        return write(out, &output::json(&first));
    }
    if args.output == StatusFormat::Text {
        if !first.enabled {
            let how = "flows are not recorded: set flowLogsLocalReporter to Enabled in FelixConfiguration\n";
            write(out, how)?;
        }
        if first.not_counted + first.lost > 0 {
            let text = format!(
                "{} packets in no record; records lost {} times\n",
                first.not_counted, first.lost
            );
            write(out, &text)?;
        }
        write(out, &line(&HEADINGS.map(String::from)))?;
    }
    let mut report = first;
    loop {
        for record in &report.records {
            match args.output {
                StatusFormat::Text => write(out, &line(&row(record)))?,
                StatusFormat::Json => {
                    let text = serde_json::to_string(record).unwrap_or_default();
                    write(out, &format!("{text}\n"))?;
                }
            }
        }
        if !args.follow {
            return Ok(());
        }
        out.flush().map_err(CtlError::output)?;
        std::thread::sleep(EVERY);
        let next = agent::http::ask_flows(&socket, report.number)?;
        // A restarted agent counts from the beginning.
        report = match next.number < report.number {
            true => agent::http::ask_flows(&socket, 0)?,
            false => next,
        };
    }
}

const HEADINGS: [&str; 9] = [
    "LAST",
    "VERDICT",
    "ENDPOINT",
    "DIRECTION",
    "SOURCE",
    "DESTINATION",
    "PROTOCOL",
    "PACKETS",
    "POLICY",
];
/// Records come one by one, so that the columns cannot wait for the longest.
const WIDTHS: [usize; 9] = [20, 8, 24, 11, 16, 22, 9, 8, 0];

fn row(record: &FlowRecord) -> [String; 9] {
    let destination = match record.port {
        Some(port) => std::net::SocketAddr::new(record.destination, port).to_string(),
        None => record.destination.to_string(),
    };
    let protocol = match record.protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    };
    [
        format!("{:.0}", record.last),
        verdict(record.verdict).to_owned(),
        record.endpoint.clone(),
        match record.forwarded {
            true => format!("{}-fwd", record.direction),
            false => record.direction.clone(),
        },
        record.source.to_string(),
        destination,
        protocol,
        record.packets.to_string(),
        decision(record),
    ]
}

/// Which rule decided, and what staged policies would have done.
fn decision(record: &FlowRecord) -> String {
    let rule = |tier: &Option<String>, policy: &str| match tier {
        Some(tier) if !policy.starts_with("end of tier") => format!("tier {tier}: {policy}"),
        _ => policy.to_owned(),
    };
    let decided = rule(&record.tier, &record.policy);
    match &record.staged {
        Some(staged) => {
            let by = rule(&staged.tier, &staged.policy);
            format!("{decided}; staged: {} by {by}", verdict(staged.verdict))
        }
        None => decided,
    }
}

fn verdict(verdict: FlowVerdict) -> &'static str {
    match verdict {
        FlowVerdict::Allow => "allow",
        FlowVerdict::Deny => "DENY",
        FlowVerdict::Pass => "pass",
    }
}

fn line(cells: &[String; 9]) -> String {
    let padded = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}"));
    format!("{}\n", padded.collect::<Vec<_>>().join(" ").trim_end())
}

fn write(out: &mut dyn Write, text: &str) -> Result<(), CtlError> {
    out.write_all(text.as_bytes()).map_err(CtlError::output)
}

#[cfg(test)]
mod tests {
    use agent::flows::Rehearsal;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_record_is_a_line() {
        let mut record = FlowRecord {
            number: 7,
            first: Timestamp::UNIX_EPOCH,
            last: Timestamp::UNIX_EPOCH,
            endpoint: "default/db".into(),
            direction: "ingress".into(),
            forwarded: false,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            port: Some(5432),
            verdict: FlowVerdict::Deny,
            tier: Some("default".into()),
            policy: "end of tier default".into(),
            staged: None,
            packets: 3,
            bytes: 180,
            finished: false,
        };
        let check = |record: &FlowRecord, decided: &str| {
            let words: Vec<String> = line(&row(record)).split_whitespace().map(str::to_owned).collect();
            let expected = "1970-01-01T00:00:00Z DENY default/db ingress 10.0.0.1 10.0.0.2:5432 TCP 3";
            assert_eq!(words.join(" "), format!("{expected} {decided}"));
        };
        check(&record, "end of tier default");
        record.forwarded = true;
        assert!(
            line(&row(&record)).contains(" ingress-fwd 10.0.0.1 "),
            "{}",
            line(&row(&record))
        );
        record.forwarded = false;
        record.policy = "np/default/db rule 0".into();
        check(&record, "tier default: np/default/db rule 0");
        record.staged = Some(Rehearsal {
            verdict: FlowVerdict::Allow,
            tier: None,
            policy: "profile kns.default rule 0".into(),
        });
        check(
            &record,
            "tier default: np/default/db rule 0; staged: allow by profile kns.default rule 0",
        );
    }
}
