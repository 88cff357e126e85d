//! The lab's processes: found by a variable in their environment, so that none is ever lost or mistaken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set on every process that the lab starts: `<folder>:<role>`, role `store`, `agent/<node>`, `cni/<pod>` or
/// `exec/<place>`. Children inherit it.
pub const MARK: &str = "MARGAY_LAB_PROCESS";

/// The role of the store.
pub const STORE: &str = "store";

/// The value of [`MARK`] for a process of the lab in `folder`.
pub fn mark(folder: &Path, role: &str) -> String {
    format!("{}:{role}", folder.display())
}

/// The role of a node's agent.
pub fn agent(node: &str) -> String {
    format!("agent/{node}")
}

/// The running processes of the lab in `folder`, by role; of several with one role, one of them.
pub fn find(folder: &Path) -> BTreeMap<String, Pid> {
    all(folder).into_iter().collect()
}

/// All running processes of the lab in `folder` but this one, with their roles.
pub fn all(folder: &Path) -> Vec<(String, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id() as i32;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| Some((role_of(pid, folder)?, Pid::from_raw(pid))))
        .collect()
}

/// Whether a process still runs and still is what it was.
pub fn is_running(folder: &Path, role: &str, pid: Pid) -> bool {
    role_of(pid.as_raw(), folder).is_some_and(|found| found == role)
}

/// Ends the lab's processes: asks, waits up to `patience`, then kills. Only processes that carry the mark are touched.
pub fn end(folder: &Path, roles: &dyn Fn(&str) -> bool, patience: Duration) {
    let chosen = || {
        let mut running = all(folder);
        running.retain(|(role, _)| roles(role));
        running
    };
    let signal = |running: &[(String, Pid)], signal: Signal| {
        // One that ended meanwhile is as good as one that listens.
        for (_, pid) in running {
            let _ = kill(*pid, signal);
        }
    };
    let mut running = chosen();
    let deadline = Instant::now() + patience;
    if !patience.is_zero() {
        signal(&running, Signal::SIGTERM);
        while !running.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            running.retain(|(role, pid)| is_running(folder, role, *pid));
        }
        // Children may have come meanwhile.
        running = chosen();
    }
    while !running.is_empty() {
        signal(&running, Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(5));
        running = chosen();
    }
}

fn role_of(pid: i32, folder: &Path) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let role = role_in(&environment, folder)?;
    // One that has ended but was not waited for yet has an empty environment, or is a zombie.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    (!is_zombie(&stat)).then_some(role)
}

/// The role in an environment, as `/proc/PID/environ` shows it.
fn role_in(environment: &[u8], folder: &Path) -> Option<String> {
    let prefix = format!("{MARK}={}:", folder.display());
    let entry = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(entry).into_owned())
}

/// The state follows the name, which is in parentheses and may hold anything.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn a_role_is_read_from_the_environment_of_the_right_lab() {
        let folder = Path::new("/run/margay-lab/a");
        for (environment, role) in [
            (
                "PATH=/bin\0MARGAY_LAB_PROCESS=/run/margay-lab/a:agent/n1\0X=y\0",
                Some("agent/n1"),
            ),
            ("MARGAY_LAB_PROCESS=/run/margay-lab/a:store", Some("store")),
            ("MARGAY_LAB_PROCESS=/run/margay-lab/ab:store\0", None),
            ("NO_MARGAY_LAB_PROCESS=/run/margay-lab/a:store\0", None),
            ("", None),
        ] {
            assert_eq!(
                role_in(environment.as_bytes(), folder).as_deref(),
                role,
                "{environment:?}"
            );
        }
        assert!(is_zombie("12 (sh) Z 1 12"));
        assert!(is_zombie("12 (a) b) Z 1 12"));
        assert!(!is_zombie("12 (x) Z y) S 1 12"));
    }

    /// A shell that ignores SIGTERM, or ends on it.
    fn start(folder: &Path, role: &str, script: &str) -> Child {
        let child = Command::new("sh")
            .args(["-c", script])
            .env(MARK, mark(folder, role))
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        while !is_running(folder, role, pid) {
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn all_processes_end_also_stubborn_ones_and_two_of_one_role() {
        let place = tempfile::tempdir().unwrap();
        let (folder, other) = (place.path().join("a"), place.path().join("b"));
        let wait = "while :; do sleep 0.05; done";
        let mut ours = [
            start(&folder, "exec/n1", wait),
            start(&folder, "exec/n1", wait),
            start(&folder, "agent/n1", &format!("trap '' TERM; {wait}")),
        ];
        let mut others = [start(&folder, "store", wait), start(&other, "agent/n1", wait)];
        end(&folder, &|role| role != "store", Duration::from_millis(300));
        ours.iter_mut()
            .for_each(|child| assert!(!child.wait().unwrap().success()));
        assert_eq!(find(&folder).into_keys().collect::<Vec<_>>(), ["store"]);
        assert_eq!(find(&other).into_keys().collect::<Vec<_>>(), ["agent/n1"]);
        for child in &mut others {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        end(&folder, &|_| true, Duration::ZERO);
        assert!(all(&folder).is_empty());
    }
}
