//! `lab status`: nodes, agents, sessions and pods, asked of the agents themselves.

use std::io::{self, Write};

use agent::status::Report;
use ctl::output;

use crate::LabError;
use crate::processes;
use crate::record::{Folder, NodeRecord, Record};

/// Shows the lab; the error says that there is none.
pub fn show(folder: &Folder, out: &mut dyn Write) -> Result<(), LabError> {
    let record = folder.read()?;
    let running = processes::find(folder.path());
    let mut rows = vec![
        ["NODE", "ADDRESS", "AGENT", "READY", "BGP", "TUNL0", "PODS"]
            .map(String::from)
            .to_vec(),
    ];
    let mut problems = Vec::new();
    for node in &record.nodes {
        let pods = record.pods.iter().filter(|pod| pod.node == node.name).count();
        let pid = running.get(&processes::agent(&node.name));
        let process = match (node.agent, pid) {
            (false, _) => "(none)".to_string(),
            (true, Some(pid)) => format!("pid {pid}"),
            (true, None) => "ended".to_string(),
        };
        let report = report(folder, node);
        let (ready, bgp, tunnel) = match &report {
            Some(report) => (
                if report.ready { "yes" } else { "NO" }.to_string(),
                sessions(report),
                report.ipip.flavour.clone(),
            ),
            None => ("-".into(), "-".into(), "-".into()),
        };
        problems.extend(report.into_iter().flat_map(|report| {
            let node = node.name.clone();
            report
                .problems
                .into_iter()
                .map(move |problem| format!("{node}: {problem}"))
        }));
        rows.push(vec![
            node.name.clone(),
            node.shown(),
            process,
            ready,
            bgp,
            tunnel,
            pods.to_string(),
        ]);
    }
    let mut shown = || -> io::Result<()> {
        output::columns(out, &rows)?;
        pods(&record, out)?;
        problems
            .iter()
            .try_for_each(|problem| writeln!(out, "problem: {problem}"))
    };
    shown().map_err(LabError::io("standard output"))
}

fn pods(record: &Record, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = vec![
        ["POD", "NODE", "ADDRESS", "NAMESPACE", "NODE'S END"]
            .map(String::from)
            .to_vec(),
    ];
    for pod in &record.pods {
        let device = pod.host_device.clone().unwrap_or_default();
        rows.push(vec![
            pod.name.clone(),
            pod.node.clone(),
            pod.shown(),
            pod.netns.clone(),
            device,
        ]);
    }
    output::columns(out, &rows)
}

/// An agent's report, if it answers.
pub fn report(folder: &Folder, node: &NodeRecord) -> Option<Report> {
    agent::http::ask(&agent::http::socket(&folder.run_dir(&node.name))).ok()
}

fn sessions(report: &Report) -> String {
    let up = report
        .bgp
        .peers
        .iter()
        .filter(|peer| peer.state == "Established")
        .count();
    format!("{up}/{}", report.bgp.peers.len())
}
