//! The lab's long-running processes: found by a variable in their environment, so that none is ever lost or mistaken.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set on every process that the lab leaves running: `<folder>:<role>`, role `store` or `agent/<node>`.
pub const MARK: &str = "MARGAY_LAB_PROCESS";

/// The value of [`MARK`] for a process of the lab in `folder`.
pub fn mark(folder: &Path, role: &str) -> String {
    format!("{}:{role}", folder.display())
}

/// The running processes of the lab in `folder`, by role.
pub fn find(folder: &Path) -> BTreeMap<String, Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((role_of(pid, folder)?, Pid::from_raw(pid))))
        .collect()
}

/// Ends the lab's processes: asks, waits up to `patience`, then kills. Only processes that carry the mark are touched.
pub fn end(folder: &Path, roles: &dyn Fn(&str) -> bool, patience: Duration) {
    let chosen = || {
        find(folder)
            .into_iter()
            .filter(|(role, _)| roles(role))
            .collect::<Vec<_>>()
    };
    for (_, pid) in chosen() {
        let _ = kill(pid, Signal::SIGTERM);
    }
    let deadline = Instant::now() + patience;
    while !chosen().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    for (_, pid) in chosen() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    while !chosen().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn role_of(pid: i32, folder: &Path) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{MARK}={}:", folder.display());
    let entry = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    // A process that has ended but was not waited for yet has an empty environment, or is a zombie.
    let zombie = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    (!zombie).then(|| String::from_utf8_lossy(std::ffi::OsStr::from_bytes(entry).as_bytes()).into_owned())
}
