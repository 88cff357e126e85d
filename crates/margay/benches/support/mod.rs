//! What the benchmarks share: percentiles, bars, a lab that goes when the benchmark ends, and plugins run as a runtime does.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub mod datastore;
pub mod memory;
pub mod transactions;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lab::record::{Folder, NodeRecord, Record};
use linux::netns::{self, Netns};

/// The binary under test, built with the benchmark's profile.
pub const MARGAY: &str = env!("CARGO_BIN_EXE_margay");

/// Times of one kind of run.
#[derive(Clone, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The nearest-rank percentile; zero without a run.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    pub fn best(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The bars of a benchmark, and whether all were reached.
#[derive(Default)]
pub struct Bars {
    missed: usize,
}

impl Bars {
    /// `value` may be at most `bar`. Says so on a line of its own, either way.
    pub fn at_most(&mut self, what: &str, value: f64, bar: f64, unit: &str) {
        let verdict = if value <= bar { "ok    " } else { "MISSED" };
        self.missed += usize::from(value > bar);
        println!("{verdict} {what}: {value:.2}{unit}, at most {bar}{unit}");
    }

    /// 1 if a bar was missed.
    pub fn exit(self) -> ExitCode {
        if self.missed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(1)
        }
    }
}

/// How busy the machine was before the benchmark, for the reader to judge by.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_string()
}

/// Benchmarks need namespaces; without root they are left out, loudly.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// A lab that is taken down when this goes, also by a panic.
pub struct Lab {
    pub folder: Folder,
    pub record: Record,
    /// How long `up` took.
    pub took: Duration,
}

impl Lab {
    /// A lab that must come up.
    pub fn up(name: &str, args: &[&str]) -> Lab {
        Lab::try_up(name, args).unwrap_or_else(|why| panic!("lab {name}: {why}"))
    }

    /// A lab, or what it said when it did not come up.
    pub fn try_up(name: &str, args: &[&str]) -> Result<Lab, String> {
        // An earlier benchmark may have been interrupted.
        margay(&["lab", "down", "--name", name])?;
        let started = Instant::now();
        margay(&[&["lab", "up", "--name", name], args].concat())?;
        let took = started.elapsed();
        let folder = Folder::of(name);
        let record = folder.read().map_err(|error| error.to_string())?;
        Ok(Lab { folder, record, took })
    }

    /// A command of the lab, which must succeed.
    pub fn margay(&self, args: &[&str]) {
        if let Err(why) = margay(&[args, &["--name", &self.folder.name]].concat()) {
            panic!("margay {args:?}: {why}");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(MARGAY)
            .args(["lab", "down", "--name", &self.folder.name])
            .output();
    }
}

/// Runs the binary; what it said if it failed.
fn margay(args: &[&str]) -> Result<(), String> {
    let output = Command::new(MARGAY)
        .args(args)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// A plugin, its configuration, and where it is run.
pub struct Plugin<'a> {
    pub program: PathBuf,
    pub config: String,
    pub node: &'a Netns,
}

/// One pod: a namespace of its own, and a container id.
pub struct Pod {
    pub container_id: String,
    pub netns: String,
}

impl Pod {
    /// A fresh pod; `kind` and `number` name it.
    pub fn new(kind: &str, number: usize) -> Pod {
        let netns = format!("margay-bench-{kind}-{number}");
        let _ = netns::delete(&netns);
        netns::create(&netns).expect("a namespace can be made");
        Pod {
            container_id: format!("{number:08x}{:032x}", u128::from(std::process::id())),
            netns,
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = netns::delete(&self.netns);
    }
}

impl Plugin<'_> {
    /// Executes the plugin as a container runtime does, in the node's namespace; how long that took and what it printed.
    pub fn run(&self, verb: &str, pod: &Pod) -> (Duration, String) {
        let mut command = Command::new(&self.program);
        let id = &pod.container_id;
        let name = &pod.netns;
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns::path(&pod.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", STOCK)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.node
            .enter_before_exec(&mut command, false)
            .expect("the node's namespace is open");
        let started = Instant::now();
        let mut child = command.spawn().expect("the plugin starts");
        // One that reads nothing may have ended already.
        let _ = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(self.config.as_bytes()));
        let done = child.wait_with_output().expect("the plugin ends");
        let took = started.elapsed();
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{} {verb}: {printed}{complaint}",
            self.program.display()
        );
        (took, printed)
    }
}

/// Where Debian's `containernetworking-plugins` puts the stock plugins.
pub const STOCK: &str = "/usr/lib/cni";

/// Our plugin as the lab's nodes have it.
pub fn ours<'a>(lab: &Lab, node: &NodeRecord, netns: &'a Netns) -> Plugin<'a> {
    Plugin {
        program: lab.folder.bin().join("calico"),
        config: lab::pods::configuration(&lab.folder, &lab.record, &node.name).to_string(),
        node: netns,
    }
}

/// The netlink floor: an example of crate `linux`, beside the binary under test.
pub fn floor_program() -> PathBuf {
    let path = Path::new(MARGAY).with_file_name("examples").join("floor_plugin");
    assert!(
        path.exists(),
        "{} is missing: cargo build --release -p linux --example floor_plugin (tools/bench does it)",
        path.display()
    );
    path
}
