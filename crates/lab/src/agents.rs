//! The lab's daemons: store and agents started, stopped, waited for, and their logs.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::status::Report;
use kernel::IpFamily;
use linux::netns::{self, Netns};
use nix::sys::signal::{Signal, kill};

use crate::network::inside;
use crate::record::{Folder, NodeRecord, Record};
use crate::{LabError, exec, processes};

/// How long a part may take to come up before `up` gives in; more for many, who share the machine.
fn patience(parts: usize) -> Duration {
    Duration::from_secs(60) + Duration::from_secs(2) * u32::try_from(parts).unwrap_or(0)
}

/// How often it is looked whether those that are waited for still run.
const ALIVE: Duration = Duration::from_millis(500);

/// Starts the store and waits until it answers.
pub fn start_store(folder: &Folder) -> Result<(), LabError> {
    let mut command = Command::new(folder.bin().join("margay"));
    command
        .args(["store", "serve", "--file"])
        .arg(folder.store_file())
        .arg("--socket")
        .arg(folder.store_socket());
    daemon(folder, processes::STORE, "store", command, None)?;
    let mut watch = Watch::new(folder, 1);
    while UnixStream::connect(folder.store_socket()).is_err() {
        watch.pause(
            1,
            "the store",
            || vec![(processes::STORE.into(), "store".into())],
            || "it does not answer".into(),
        )?;
    }
    Ok(())
}

/// Starts a node's agent.
pub fn start(folder: &Folder, record: &Record, node: &NodeRecord) -> Result<(), LabError> {
    let mut command = Command::new(folder.bin().join("margay"));
    command.arg("agent");
    exec::environment(folder, node, &mut command);
    let source = |family| match node.address(family) {
        Some(_) => "autodetect",
        None => "none",
    };
    command
        .env("IP", source(IpFamily::V4))
        .env("IP6", source(IpFamily::V6))
        // `up` has probed the kernel, which is the same for all of them.
        .env("MARGAY_IPIP", &record.ipip)
        .env("MARGAY_STATE_DIR", folder.state_dir(&node.name))
        .env("FELIX_HEALTHPORT", "9099");
    daemon(
        folder,
        &processes::agent(&node.name),
        &node.name,
        command,
        Some(&node.netns),
    )
}

/// Ends a node's agent: `SIGTERM`, or at once with `SIGKILL`. What it programmed stays.
pub fn stop(folder: &Folder, node: &NodeRecord, at_once: bool) {
    end(folder, &processes::agent(&node.name), at_once);
}

/// Ends the store: `SIGTERM`, or at once with `SIGKILL`. What is in its file stays.
pub fn stop_store(folder: &Folder, at_once: bool) {
    end(folder, processes::STORE, at_once);
}

fn end(folder: &Folder, role: &str, at_once: bool) {
    if at_once && let Some(pid) = processes::find(folder.path()).get(role) {
        // Gone meanwhile is as good.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    let patience = if at_once {
        Duration::ZERO
    } else {
        Duration::from_secs(5)
    };
    processes::end(folder.path(), &|found| found == role, patience);
}

/// Waits until the agents of some nodes are ready, or says which is not and why.
pub fn wait_until_ready(folder: &Folder, nodes: &[&NodeRecord]) -> Result<(), LabError> {
    wait_until(folder, nodes, |_, report| {
        if report.ready {
            return Ok(());
        }
        let open = report.conditions.iter().filter(|c| c.required && !c.ok);
        let why: Vec<String> = open.map(|c| format!("{}: {}", c.name, c.message)).collect();
        Err(why.join("; "))
    })
}

/// Waits until every agent has its sessions, and a route to every pod of another node.
pub fn wait_until_routed(folder: &Folder, record: &Record) -> Result<(), LabError> {
    let agents: Vec<&NodeRecord> = record.nodes.iter().filter(|node| node.agent).collect();
    wait_until(folder, &agents, |node, report| {
        let mut down = report.bgp.peers.iter().filter(|peer| peer.state != "Established");
        if let Some(peer) = down.next() {
            return Err(format!("BGP session with {} is {}", peer.address, peer.state));
        }
        match missing_route(record, node) {
            Ok(None) => Ok(()),
            Ok(Some(address)) => Err(format!("it has no route to {address}")),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// A pod's address that a node's kernel would not send anywhere.
fn missing_route(record: &Record, node: &NodeRecord) -> Result<Option<IpAddr>, LabError> {
    let elsewhere = record.pods.iter().filter(|pod| pod.node != node.name);
    let mut elsewhere = elsewhere.flat_map(|pod| pod.addresses.iter().copied());
    let routes = inside(&node.netns, exec::routes)??;
    let reached = |address: &IpAddr| {
        routes
            .iter()
            .any(|route| route.prefix_len() > 0 && route.contains(address))
    };
    Ok(elsewhere.find(|address| !reached(address)))
}

/// Asks all in turn, so that the slowest one decides, not the sum.
fn wait_until(
    folder: &Folder,
    nodes: &[&NodeRecord],
    fine: impl Fn(&NodeRecord, &Report) -> Result<(), String>,
) -> Result<(), LabError> {
    let mut watch = Watch::new(folder, nodes.len());
    let mut open: Vec<(&NodeRecord, String)> = nodes.iter().map(|node| (*node, String::new())).collect();
    loop {
        open.retain_mut(|(node, why)| {
            let report = agent::http::ask(&agent::http::socket(&folder.run_dir(&node.name)));
            let outcome = match report {
                Ok(report) => fine(node, &report),
                Err(error) => Err(error.to_string()),
            };
            match outcome {
                Ok(()) => false,
                Err(reason) => {
                    *why = reason;
                    true
                }
            }
        });
        let Some((first, why)) = open.first() else {
            return Ok(());
        };
        let what = match open.len() {
            1 => format!("the agent of {}", first.name),
            count => format!("the agent of {} and {} more", first.name, count - 1),
        };
        let roles = || {
            open.iter()
                .map(|(node, _)| (processes::agent(&node.name), node.name.clone()))
                .collect()
        };
        watch.pause(open.len(), &what, roles, || why.clone())?;
    }
}

/// Time and life of those that are waited for.
struct Watch<'a> {
    folder: &'a Folder,
    deadline: Instant,
    look: Instant,
}

impl<'a> Watch<'a> {
    fn new(folder: &'a Folder, parts: usize) -> Self {
        let now = Instant::now();
        Self {
            folder,
            deadline: now + patience(parts),
            look: now + ALIVE,
        }
    }

    /// Sleeps a moment, longer if many are open; the error says that one of `roles` (with its log) has ended, or that it
    /// takes too long.
    fn pause(
        &mut self,
        open: usize,
        what: &str,
        roles: impl Fn() -> Vec<(String, String)>,
        why: impl Fn() -> String,
    ) -> Result<(), LabError> {
        let now = Instant::now();
        if now > self.look {
            self.look = now + ALIVE;
            let running = processes::find(self.folder.path());
            if let Some((_, log)) = roles().into_iter().find(|(role, _)| !running.contains_key(role)) {
                let hint = hint(self.folder, &log);
                return Err(LabError::NotReady {
                    what: what.to_string(),
                    why: format!("the process of {log} has ended. {hint}"),
                });
            }
        }
        if now > self.deadline {
            let log = roles().into_iter().next().map(|(_, log)| log).unwrap_or_default();
            return Err(LabError::NotReady {
                what: what.to_string(),
                why: format!("{}. {}", why(), hint(self.folder, &log)),
            });
        }
        std::thread::sleep(Duration::from_millis(5 * open as u64).clamp(Duration::from_millis(5), ALIVE / 2));
        Ok(())
    }
}

/// The end of a log, for an error that would otherwise send the reader looking.
fn hint(folder: &Folder, what: &str) -> String {
    let path = folder.log(what);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    format!("Last lines of {}:\n{last}", path.display())
}

/// Starts a process that outlives this one, in a session of its own, its words in a log.
fn daemon(folder: &Folder, role: &str, log: &str, mut command: Command, netns: Option<&str>) -> Result<(), LabError> {
    let path = folder.log(log);
    let what = format!("starting {role}");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(LabError::io(path.display().to_string()))?;
    let copy = file.try_clone().map_err(LabError::io(what.clone()))?;
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
    command.env(processes::MARK, processes::mark(folder.path(), role));
    command.process_group(0);
    if let Some(name) = netns {
        let netns = Netns::open(&netns::path(name)).map_err(LabError::io(name.to_string()))?;
        netns
            .enter_before_exec(&mut command, false)
            .map_err(LabError::io(what.clone()))?;
    }
    let child = command.spawn().map_err(LabError::io(what))?;
    // It is found by its mark; nobody waits for it here.
    drop(child);
    Ok(())
}

/// Shows the last lines of a node's or the store's log; with `follow`, what comes from then on too.
pub fn show_log(folder: &Folder, what: &str, lines: usize, follow: bool, out: &mut dyn Write) -> Result<(), LabError> {
    let record = folder.read()?;
    if what != "store" {
        record.node(what)?;
    }
    let path = folder.log(what);
    let failed = || LabError::io(path.display().to_string());
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(crate::spec::usage(
                "node",
                what,
                "has no log: no agent of the lab ran there",
            ));
        }
        Err(error) => return Err(failed()(error)),
    };
    let end = tail(&mut file, lines, out).map_err(failed())?;
    if !follow {
        return Ok(());
    }
    file.seek(SeekFrom::Start(end)).map_err(failed())?;
    // As long as the lab is there.
    while Path::new(&path).exists() {
        let copied = io::copy(&mut file, out).and_then(|copied| out.flush().map(|()| copied));
        if copied.map_err(LabError::io("standard output"))? == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Writes the last lines; where they end.
fn tail(file: &mut File, lines: usize, out: &mut dyn Write) -> io::Result<u64> {
    let mut last = VecDeque::new();
    let mut end = 0;
    let mut reader = BufReader::new(&mut *file);
    loop {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line)? {
            0 => break,
            length => end += length as u64,
        }
        last.push_back(line);
        if last.len() > lines {
            last.pop_front();
        }
    }
    last.iter().try_for_each(|line| out.write_all(line))?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo\nthree\nfo").unwrap();
        for (lines, shown) in [(0, ""), (1, "fo"), (2, "three\nfo"), (9, "one\ntwo\nthree\nfo")] {
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut out = Vec::new();
            assert_eq!(tail(&mut file, lines, &mut out).unwrap(), 16);
            assert_eq!(String::from_utf8(out).unwrap(), shown);
        }
    }
}
