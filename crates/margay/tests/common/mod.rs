//! A lab for a test: up when made, down when dropped, also when the test fails.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod cluster;
pub mod frames;
pub mod load;
pub mod matrix;
pub mod net;
pub mod sctp;
pub mod talk;
pub mod told;

use std::net::IpAddr;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The binary under test.
pub const MARGAY: &str = env!("CARGO_BIN_EXE_margay");

/// Labs share the machine's two cores and its routes: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running lab.
pub struct Lab {
    pub name: &'static str,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// Brings a lab up; `None`, loudly, if this is not root's test run.
    pub fn up(name: &'static str, args: &[&str]) -> Option<Lab> {
        Self::up_with(name, args, &[])
    }

    /// Brings a lab up whose agents, as they start, have these variables in their environment.
    pub fn up_with(name: &'static str, args: &[&str], environment: &[(&str, &str)]) -> Option<Lab> {
        let turn = turn()?;
        let lab = Lab { name, _turn: turn };
        let mut all = vec!["up", "--name", name];
        all.extend(args);
        let output = margay_lab_with(&all, environment);
        assert!(output.status.success(), "lab up: {}", text(&output));
        Some(lab)
    }

    /// `margay lab ARGS`, which must succeed; its standard output.
    pub fn lab(&self, args: &[&str]) -> String {
        let output = self.try_lab(args);
        assert!(output.status.success(), "margay lab {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `margay lab ARGS`.
    pub fn try_lab(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().expect("a verb");
        let mut all = vec![*verb];
        // `--name` goes behind the words of the sub-command, and before `--`.
        let end = rest.iter().position(|arg| *arg == "--").unwrap_or(rest.len());
        all.extend(&rest[..end]);
        all.extend(["--name", self.name]);
        all.extend(&rest[end..]);
        margay_lab(&all)
    }

    /// Runs a program in a pod or on a node; its standard output.
    pub fn exec(&self, place: &str, command: &[&str]) -> String {
        let mut args = vec!["exec", place, "--"];
        args.extend(command);
        self.lab(&args)
    }

    /// `calicoctl ARGS`, on a node.
    pub fn ctl(&self, args: &[&str]) -> String {
        let mut command = vec!["calicoctl"];
        command.extend(args);
        self.exec("k8s-125-master", &command)
    }

    /// A pod's address.
    pub fn address(&self, pod: &str) -> String {
        self.exec(pod, &["ip", "-4", "-o", "address", "show", "eth0"])
            .split_whitespace()
            .find_map(|word| word.strip_suffix("/32"))
            .unwrap_or_else(|| panic!("pod {pod} has no /32"))
            .to_string()
    }

    /// The first address of a device of a pod or node that others know.
    pub fn first_address(&self, place: &str, device: &str, ipv6: bool) -> IpAddr {
        let family = if ipv6 { "-6" } else { "-4" };
        let shown = self.exec(
            place,
            &["ip", family, "-o", "address", "show", device, "scope", "global"],
        );
        let net = shown.split_whitespace().nth(3).unwrap_or_default();
        let address = net.split('/').next().unwrap_or_default().parse();
        address.unwrap_or_else(|_| panic!("{place}: {device} has no address: {shown}"))
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.ctl(&["get", "nodes", "-o", "name"]);
        nodes
            .lines()
            .map(|line| line.trim_start_matches("Node/").to_owned())
            .collect()
    }

    /// The network namespace of a node.
    pub fn node_place(&self, node: &str) -> String {
        format!("{}.{node}", self.name)
    }

    /// Adds a pod.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) -> cluster::Pod {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut args = vec!["pod", "add", name, "--node", node, "--namespace", namespace];
        labels.iter().for_each(|label| args.extend(["--label", label]));
        let said = self.lab(&args);
        let addresses = said.trim().rsplit(' ').next().unwrap_or_default();
        let addresses = addresses.split(',').map(|address| address.parse().expect("an address"));
        let (shown, place) = match namespace {
            "default" => (name.to_owned(), format!("{}.pod-{name}", self.name)),
            other => (format!("{other}/{name}"), format!("{}.pod-{other}.{name}", self.name)),
        };
        cluster::Pod {
            name: shown,
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            place,
            addresses: addresses.collect(),
        }
    }

    /// Waits for something that happens by itself.
    pub fn eventually(&self, what: &str, mut fine: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fine() {
            assert!(
                Instant::now() < deadline,
                "{what}: not within 20 s\n{}",
                self.lab(&["status"])
            );
            std::thread::yield_now();
        }
    }

    /// Pings at 100 a second while `meanwhile` happens; not one may be lost.
    pub fn no_packet_is_lost(&self, from: &str, to: &str, count: u16, meanwhile: impl FnOnce()) {
        let count_text = count.to_string();
        let mut ping = Command::new(MARGAY)
            .args([
                "lab",
                "ping",
                from,
                to,
                "-q",
                "-c",
                &count_text,
                "-i",
                "0.01",
                "--name",
                self.name,
            ])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("ping starts");
        meanwhile();
        assert!(
            matches!(ping.try_wait(), Ok(None)),
            "the pings ended before what they watch: send more"
        );
        let output = ping.wait_with_output().expect("ping ends");
        assert!(
            text(&output).contains(&format!("{count} sent, {count} answered, 0 lost")),
            "{}",
            text(&output)
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = margay_lab(&["down", "--name", self.name]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "lab down: {}", text(&output));
        }
    }
}

/// The right to have a lab; `None`, loudly, without root.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout == b"0\n");
    if !root {
        eprintln!("SKIPPED: a lab needs root");
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

/// `margay lab ARGS`.
pub fn margay_lab(args: &[&str]) -> Output {
    margay_lab_with(args, &[])
}

/// The same with variables in its environment, which agents that it starts have too.
fn margay_lab_with(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(MARGAY)
        .arg("lab")
        .args(args)
        .envs(environment.iter().copied())
        .output()
        .expect("margay runs")
}

/// Runs a program of the machine; its standard output.
pub fn run(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both streams.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
