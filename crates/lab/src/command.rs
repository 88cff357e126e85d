//! The lab's command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::EncapMode;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::cluster::{self, Up};
use crate::icmp::{self, Echo};
use crate::record::{DEFAULT_NAME, Folder};
use crate::spec::{Wishes, usage};
use crate::{LabError, capture, exec, pods, status, tour};

/// `margay lab …`
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Start a cluster: nodes, agents, pods
    Up(UpArgs),
    /// Show nodes, sessions and pods
    Status(Lab),
    /// Walk through a packet's way, reading everything from the running cluster
    Tour(Lab),
    /// Add or delete a pod
    #[command(subcommand)]
    Pod(PodCommand),
    /// Add a node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Stop, start or kill a node's agent, to see what happens to traffic (nothing should)
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Run a command in a pod or on a node
    Exec(ExecArgs),
    /// Send echo requests from one pod or node to another
    Ping(PingArgs),
    /// Show packets on a node's underlay, IP-in-IP decoded
    Capture(CaptureArgs),
    /// Print shell variables for talking to the lab: eval "$(margay lab env)"
    Env(Lab),
    /// Take the cluster down, leaving nothing behind
    Down(Lab),
}

/// Which lab.
#[derive(Args, Clone, Debug)]
pub struct Lab {
    /// Name of the lab; others than the default carry it in front of their namespaces' names
    // Its own id: commands that take a NAME are flattened together with this.
    #[arg(id = "lab_name", long = "name", value_name = "NAME", env = "MARGAY_LAB", default_value = DEFAULT_NAME, value_parser = lab_name)]
    pub name: String,
}

/// Flags of `up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
    /// Number of nodes; default 3
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// Pods on each node; default: three pods on two nodes, for the tour
    #[arg(long, value_name = "K")]
    pub pods_per_node: Option<usize>,
    /// When packets to other nodes travel in IP-in-IP
    #[arg(long, value_enum, default_value = "always", ignore_case = true)]
    pub ipip_mode: Mode,
    /// Range of the pods' addresses; default 192.168.0.0/16, or a range that this machine has no route to
    #[arg(long, value_name = "CIDR")]
    pub pool: Option<IpNet>,
    /// Resources for the cluster: its Nodes become the nodes, its IPPools the pools
    #[arg(long, value_name = "FILE.yaml")]
    pub from: Option<PathBuf>,
}

/// As in an IPPool.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// Never
    Never,
    /// Always
    Always,
    /// Only to nodes in other subnets
    #[value(alias = "crosssubnet")]
    CrossSubnet,
}

/// `pod …`
#[derive(Subcommand, Clone, Debug)]
pub enum PodCommand {
    /// Make a pod and attach it as a container runtime would
    Add {
        /// Its name
        name: String,
        /// Its node
        #[arg(long)]
        node: String,
        /// Which lab.
        #[command(flatten)]
        lab: Lab,
    },
    /// Detach and remove a pod
    Delete {
        /// Its name
        name: String,
        /// Which lab.
        #[command(flatten)]
        lab: Lab,
    },
}

/// `node …`
#[derive(Subcommand, Clone, Debug)]
pub enum NodeCommand {
    /// Connect another node to the fabric
    Add {
        /// Its name
        name: String,
        /// Start no agent: something else will run there, BIRD for example
        #[arg(long)]
        no_agent: bool,
        /// Which lab.
        #[command(flatten)]
        lab: Lab,
    },
}

/// `agent …`
#[derive(Subcommand, Clone, Debug)]
pub enum AgentCommand {
    /// End it as a service manager would
    Stop(AgentArgs),
    /// Start it
    Start(AgentArgs),
    /// End it and start it
    Restart(AgentArgs),
    /// End it with SIGKILL
    Kill(AgentArgs),
}

/// Which agent.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Its node
    pub node: String,
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
}

/// Flags of `exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
    /// Pod or node
    pub place: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// Flags of `ping`.
#[derive(Args, Clone, Debug)]
pub struct PingArgs {
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
    /// From this pod or node
    pub from: String,
    /// To this pod, node or IPv4 address
    pub to: String,
    /// How many requests
    #[arg(short, long, default_value_t = 3)]
    pub count: u16,
    /// Seconds from one to the next
    #[arg(short, long, default_value_t = 0.2)]
    pub interval: f64,
    /// Only the summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// Flags of `capture`.
#[derive(Args, Clone, Debug)]
pub struct CaptureArgs {
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
    /// The node
    pub node: String,
    /// Stop after so many packets
    #[arg(short, long)]
    pub count: Option<usize>,
    /// Another device of the node
    #[arg(long, default_value = cluster::UNDERLAY)]
    pub device: String,
}

/// Runs a command of the lab.
pub fn run(command: &Command) -> Result<(), LabError> {
    let mut out = io::stdout().lock();
    match perform(command, &mut out).and_then(|()| out.flush().map_err(LabError::io("standard output"))) {
        // Nobody reads any more (`| head`): no reason to complain.
        Err(LabError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn perform(command: &Command, out: &mut dyn Write) -> Result<(), LabError> {
    match command {
        Command::Up(args) => up(args, out),
        Command::Status(lab) => status::show(&lab.folder(), out),
        Command::Tour(lab) => tour::walk(&lab.folder(), out),
        Command::Pod(PodCommand::Add { name, node, lab }) => {
            let pod = pods::add(&lab.folder(), checked_name("pod", name)?, node)?;
            let addresses = pod
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            say(out, &format!("pod {name} on {node}: {addresses}"))
        }
        Command::Pod(PodCommand::Delete { name, lab }) => {
            pods::delete(&lab.folder(), name)?;
            say(out, &format!("pod {name} deleted"))
        }
        Command::Node(NodeCommand::Add { name, no_agent, lab }) => {
            let node = cluster::add_node(&lab.folder(), checked_name("node", name)?, !no_agent)?;
            say(out, &format!("node {name}: {}, namespace {}", node.address, node.netns))
        }
        Command::Agent(command) => agent(command, out),
        Command::Exec(args) => match exec::replace(&args.lab.folder(), &args.place, &args.command)? {},
        Command::Ping(args) => ping(args, out),
        Command::Capture(args) => capture::follow(&args.lab.folder(), &args.node, &args.device, args.count, out),
        Command::Env(lab) => environment(&lab.folder(), out),
        Command::Down(lab) => {
            let text = if cluster::down(&lab.folder())? {
                "the lab is down; nothing of it is left"
            } else {
                "no lab is up"
            };
            say(out, text)
        }
    }
}

fn up(args: &UpArgs, out: &mut dyn Write) -> Result<(), LabError> {
    let started = Instant::now();
    let resources = match &args.from {
        None => Vec::new(),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(LabError::io(name.clone()))?;
            let problems =
                |found: Vec<api::Problem>| LabError::Resources(found.iter().map(ToString::to_string).collect());
            api::document::read(&name, &text).map_err(problems)?
        }
    };
    let ipip_mode = match args.ipip_mode {
        Mode::Never => EncapMode::Never,
        Mode::Always => EncapMode::Always,
        Mode::CrossSubnet => EncapMode::CrossSubnet,
    };
    let wishes = Wishes {
        nodes: args.nodes,
        pods_per_node: args.pods_per_node,
        ipip_mode,
        pool: args.pool,
        resources,
    };
    let mut progress = |step: &str| eprintln!("[{:5.2} s] {step}", started.elapsed().as_secs_f64());
    let folder = args.lab.folder();
    match cluster::up(&folder, wishes, &mut progress)? {
        Up::Already(record) => say(
            out,
            &format!("the lab is up already, with {} nodes", record.nodes.len()),
        ),
        Up::Made(record) => {
            let counts = format!("{} nodes and {} pods", record.nodes.len(), record.pods.len());
            say(
                out,
                &format!("the lab is up: {counts} in {:.2} s", started.elapsed().as_secs_f64()),
            )?;
            say(
                out,
                "look at it with `margay lab tour` and `margay lab status`; take it down with `margay lab down`",
            )
        }
    }
}

fn agent(command: &AgentCommand, out: &mut dyn Write) -> Result<(), LabError> {
    let (args, stop, start, at_once) = match command {
        AgentCommand::Stop(args) => (args, true, false, false),
        AgentCommand::Start(args) => (args, false, true, false),
        AgentCommand::Restart(args) => (args, true, true, false),
        AgentCommand::Kill(args) => (args, true, false, true),
    };
    let folder = args.lab.folder();
    let record = folder.read()?;
    let node = record.node(&args.node)?;
    if stop {
        cluster::stop_agent(&folder, node, at_once);
        say(out, &format!("the agent of {} has ended", node.name))?;
    }
    if start {
        if crate::processes::find(folder.path()).contains_key(&format!("agent/{}", node.name)) {
            return Err(usage("node", &node.name, "has a running agent already"));
        }
        cluster::start_agent(&folder, node)?;
        cluster::wait_until_ready(&folder, &[node])?;
        say(out, &format!("the agent of {} is ready", node.name))?;
    }
    Ok(())
}

fn ping(args: &PingArgs, out: &mut dyn Write) -> Result<(), LabError> {
    let folder = args.lab.folder();
    let record = folder.read()?;
    let (netns, _) = record.place(&args.from)?;
    if !(0.0..=3600.0).contains(&args.interval) {
        return Err(usage(
            "--interval",
            &args.interval.to_string(),
            "is out of range: 0 to 3600 seconds",
        ));
    }
    let target = address_of(&record, &args.to)?;
    let echo = Echo {
        target,
        count: args.count,
        interval: Duration::from_secs_f64(args.interval),
        patience: Duration::from_secs(2),
    };
    say(
        out,
        &format!(
            "from {} to {} ({target}): {} echo requests",
            args.from, args.to, args.count
        ),
    )?;
    let quiet = args.quiet;
    let mut lines = Vec::new();
    let replies = cluster::inside(&netns, || {
        icmp::ping(&echo, &mut |reply| {
            if !quiet {
                lines.push(format!(
                    "{} bytes from {target}: seq={} ttl={} time={:.3} ms",
                    reply.length,
                    reply.sequence,
                    reply.ttl,
                    reply.time.as_secs_f64() * 1000.0
                ));
            }
        })
    })?
    .map_err(LabError::io("sending echo requests"))?;
    lines.iter().try_for_each(|line| say(out, line))?;
    let lost = replies.lost();
    say(
        out,
        &format!("{} sent, {} answered, {lost} lost", replies.sent, replies.sent - lost),
    )?;
    if lost == 0 {
        Ok(())
    } else {
        Err(LabError::Refused(format!(
            "{lost} of {} requests were not answered",
            replies.sent
        )))
    }
}

/// The IPv4 address of a pod, a node, or written out.
pub(crate) fn address_of(record: &crate::record::Record, name: &str) -> Result<Ipv4Addr, LabError> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    if let Ok(node) = record.node(name) {
        return Ok(node.address);
    }
    match record.place(name) {
        Err(error) => Err(error),
        Ok(_) => {
            let v4 = record.pod(name)?.addresses.iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            });
            v4.ok_or_else(|| usage("to", name, "has no IPv4 address"))
        }
    }
}

fn environment(folder: &Folder, out: &mut dyn Write) -> Result<(), LabError> {
    folder.read()?;
    for (name, value) in exec::variables(folder) {
        say(
            out,
            &format!("export {name}='{}'", value.to_string_lossy().replace('\'', r"'\''")),
        )?;
    }
    Ok(())
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), LabError> {
    writeln!(out, "{line}").map_err(LabError::io("standard output"))
}

/// Names become parts of namespace and file names.
fn checked_name<'a>(what: &str, name: &'a str) -> Result<&'a str, LabError> {
    if api::names::is_label(name) {
        return Ok(name);
    }
    Err(usage(
        what,
        name,
        "is no DNS label: up to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit",
    ))
}

fn lab_name(text: &str) -> Result<String, String> {
    match api::names::is_label(text) && text.len() <= 32 {
        true => Ok(text.to_string()),
        false => Err("up to 32 of a-z, 0-9 and `-`, beginning and ending with a letter or digit".into()),
    }
}

impl Lab {
    fn folder(&self) -> Folder {
        Folder::of(&self.name)
    }
}
