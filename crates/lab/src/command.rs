//! The lab's command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::EncapMode;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use kernel::IpFamily;

use crate::cluster::{self, Up};
use crate::icmp::{self, Echo};
use crate::pods::NewPod;
use crate::record::{DEFAULT_NAME, DEFAULT_NAMESPACE, Folder, Record};
use crate::spec::{Families, Wishes, usage};
use crate::topology::Topology;
use crate::{LabError, agents, capture, exec, network, pods, processes, status, tour};

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
    /// Add or delete a node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Stop, start or kill a node's agent, to see what happens to traffic (nothing should)
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Stop, start or kill the datastore, to see that nodes go on without it
    #[command(subcommand)]
    Store(StoreCommand),
    /// Run a command in a pod or on a node
    Exec(ExecArgs),
    /// Send echo requests from one pod or node to another
    Ping(PingArgs),
    /// Show the log of a node's agent, or of the store
    Logs(LogsArgs),
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
    /// Give nodes and pods IPv6 addresses: beside IPv4, or `only`
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "too")]
    pub ipv6: Option<Ipv6>,
    /// Range of the pods' addresses, once for each family; default 192.168.0.0/16 and fd00:192:168::/48, or ranges that
    /// this machine has no route to
    #[arg(long = "pool", value_name = "CIDR")]
    pub pools: Vec<IpNet>,
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

/// How far IPv6 goes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Ipv6 {
    /// Beside IPv4
    #[value(alias = "dual")]
    Too,
    /// Without IPv4
    Only,
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
        /// Its namespace; one that is new gets its profiles. The lab calls the pod NAMESPACE/NAME
        #[arg(long, default_value = DEFAULT_NAMESPACE)]
        namespace: String,
        /// A label, as often as needed
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Which lab.
        #[command(flatten)]
        lab: Lab,
    },
    /// Detach and remove a pod
    Delete {
        /// Its name, NAMESPACE/NAME outside the namespace `default`
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
    /// Remove a node, its pods, and what the datastore has of it
    Delete {
        /// Its name
        name: String,
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
    Start {
        /// Do not wait until it is ready
        #[arg(long)]
        no_wait: bool,
        /// Which agent.
        #[command(flatten)]
        agent: AgentArgs,
    },
    /// End it and start it
    Restart(AgentArgs),
    /// End it with SIGKILL
    Kill(AgentArgs),
}

/// `store …`
#[derive(Subcommand, Clone, Debug)]
pub enum StoreCommand {
    /// End it as a service manager would
    Stop(Lab),
    /// Start it
    Start(Lab),
    /// End it with SIGKILL
    Kill(Lab),
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
    /// To this pod, node or address
    pub to: String,
    /// The target's IPv4 address
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// The target's IPv6 address
    #[arg(short = '6')]
    pub ipv6: bool,
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

/// Flags of `logs`.
#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Which lab.
    #[command(flatten)]
    pub lab: Lab,
    /// A node, or `store`
    pub node: String,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
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
    #[arg(long, default_value = network::UNDERLAY)]
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
    // Looking needs it as well: whose processes and sockets cannot be seen would be told as ended.
    cluster::require_root()?;
    let started = Instant::now();
    let mut progress = |step: &str| eprintln!("[{:5.2} s] {step}", started.elapsed().as_secs_f64());
    match command {
        Command::Up(args) => up(args, &mut progress, out),
        Command::Status(lab) => status::show(&lab.folder(), out),
        Command::Tour(lab) => tour::walk(&lab.folder(), out),
        Command::Pod(PodCommand::Add {
            name,
            node,
            namespace,
            labels,
            lab,
        }) => {
            let wanted = NewPod {
                namespace: checked_name("namespace", namespace)?,
                name: checked_name("pod", name)?,
                node,
                labels: labels.iter().cloned().collect(),
            };
            let pod = pods::add(&lab.folder(), &wanted, &mut progress)?;
            say(out, &format!("pod {} on {node}: {}", pod.name, pod.shown()))
        }
        Command::Pod(PodCommand::Delete { name, lab }) => {
            pods::delete(&lab.folder(), name, &mut progress)?;
            say(out, &format!("pod {name} deleted"))
        }
        Command::Node(NodeCommand::Add { name, no_agent, lab }) => {
            let node = cluster::add_node(&lab.folder(), checked_name("node", name)?, !no_agent, &mut progress)?;
            say(out, &format!("node {name}: {}, namespace {}", node.shown(), node.netns))
        }
        Command::Node(NodeCommand::Delete { name, lab }) => {
            cluster::delete_node(&lab.folder(), name, &mut progress)?;
            say(out, &format!("node {name} deleted"))
        }
        Command::Agent(command) => agent(command, out),
        Command::Store(command) => store(command, out),
        Command::Exec(args) => match exec::replace(&args.lab.folder(), &args.place, &args.command)? {},
        Command::Ping(args) => ping(args, out),
        Command::Logs(args) => {
            let lines = args.lines.unwrap_or(usize::MAX);
            agents::show_log(&args.lab.folder(), &args.node, lines, args.follow, out)
        }
        Command::Capture(args) => capture::follow(&args.lab.folder(), &args.node, &args.device, args.count, out),
        Command::Env(lab) => environment(&lab.folder(), out),
        Command::Down(lab) => {
            let text = if cluster::down(&lab.folder(), &mut progress)? {
                "the lab is down; nothing of it is left"
            } else {
                "no lab is up"
            };
            say(out, text)
        }
    }
}

fn up(args: &UpArgs, progress: &mut dyn FnMut(&str), out: &mut dyn Write) -> Result<(), LabError> {
    let started = Instant::now();
    let folder = args.lab.folder();
    match cluster::up(&folder, wishes(args)?, progress)? {
        Up::Already(record) => say(
            out,
            &format!("the lab is up already, with {} nodes", record.nodes.len()),
        ),
        Up::Made(record) => {
            let counts = format!("{} nodes and {} pods", record.nodes.len(), record.pods.len());
            let name = match args.lab.name.as_str() {
                DEFAULT_NAME => String::new(),
                name => format!(" --name {name}"),
            };
            say(
                out,
                &format!("the lab is up: {counts} in {:.2} s", started.elapsed().as_secs_f64()),
            )?;
            say(
                out,
                &format!(
                    "look at it with `margay lab tour{name}` and `margay lab status{name}`; take it down with `margay lab down{name}`"
                ),
            )
        }
    }
}

fn wishes(args: &UpArgs) -> Result<Wishes, LabError> {
    let topology = match &args.from {
        None => Topology::default(),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(LabError::io(name.clone()))?;
            Topology::read(&name, &text)?
        }
    };
    Ok(Wishes {
        nodes: args.nodes,
        pods_per_node: args.pods_per_node,
        ipip_mode: match args.ipip_mode {
            Mode::Never => EncapMode::Never,
            Mode::Always => EncapMode::Always,
            Mode::CrossSubnet => EncapMode::CrossSubnet,
        },
        families: match args.ipv6 {
            None => Families::Ipv4,
            Some(Ipv6::Too) => Families::Both,
            Some(Ipv6::Only) => Families::Ipv6,
        },
        pools: args.pools.clone(),
        topology,
    })
}

fn agent(command: &AgentCommand, out: &mut dyn Write) -> Result<(), LabError> {
    let (args, stop, start, at_once) = match command {
        AgentCommand::Stop(args) => (args, true, false, false),
        AgentCommand::Start { agent, .. } => (agent, false, true, false),
        AgentCommand::Restart(args) => (args, true, true, false),
        AgentCommand::Kill(args) => (args, true, false, true),
    };
    let wait = !matches!(command, AgentCommand::Start { no_wait: true, .. });
    let folder = args.lab.folder();
    let record = folder.read()?;
    let node = record.node(&args.node)?;
    if stop {
        agents::stop(&folder, node, at_once);
        say(out, &format!("the agent of {} has ended", node.name))?;
    }
    if start {
        if processes::find(folder.path()).contains_key(&processes::agent(&node.name)) {
            return Err(usage("node", &node.name, "has a running agent already"));
        }
        agents::start(&folder, &record, node)?;
        if !wait {
            return say(out, &format!("the agent of {} starts", node.name));
        }
        agents::wait_until_ready(&folder, &[node])?;
        say(out, &format!("the agent of {} is ready", node.name))?;
    }
    Ok(())
}

fn store(command: &StoreCommand, out: &mut dyn Write) -> Result<(), LabError> {
    let (lab, stop_at_once) = match command {
        StoreCommand::Stop(lab) => (lab, Some(false)),
        StoreCommand::Kill(lab) => (lab, Some(true)),
        StoreCommand::Start(lab) => (lab, None),
    };
    let folder = lab.folder();
    folder.read()?;
    let Some(at_once) = stop_at_once else {
        if processes::find(folder.path()).contains_key(processes::STORE) {
            return Err(usage("store", "start", "the lab's store runs already"));
        }
        agents::start_store(&folder)?;
        return say(out, "the store answers");
    };
    agents::stop_store(&folder, at_once);
    say(out, "the store has ended")
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
    let family = match (args.ipv4, args.ipv6) {
        (true, _) => Some(IpFamily::V4),
        (_, true) => Some(IpFamily::V6),
        (false, false) => None,
    };
    let target = address_of(&record, &args.to, family)?;
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
    let replies = network::inside(&netns, || {
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

/// The address of a pod, a node, or written out; the first one if no family is asked for.
pub(crate) fn address_of(record: &Record, name: &str, family: Option<IpFamily>) -> Result<IpAddr, LabError> {
    let fits = |address: &IpAddr| family.is_none_or(|family| IpFamily::of(address) == family);
    let known = match name.parse() {
        Ok(address) => vec![address],
        Err(_) => record.addresses(name)?,
    };
    let missing = match family {
        Some(IpFamily::V4) => "has no IPv4 address",
        Some(IpFamily::V6) => "has no IPv6 address: start the lab with --ipv6",
        None => "has no address",
    };
    known.into_iter().find(fits).ok_or_else(|| usage("to", name, missing))
}

fn environment(folder: &Folder, out: &mut dyn Write) -> Result<(), LabError> {
    folder.read()?;
    for (name, value) in exec::variables(folder, folder.shell_bin()) {
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

/// `key=value`, as Kubernetes takes it.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    match api::names::is_label_key(key) && api::names::is_label_value(value) {
        true => Ok((key.to_string(), value.to_string())),
        false => Err(
            "a label has a name such as `app` or `example.org/app`, and up to 63 of A-Z, a-z, 0-9, `-`, `_` and `.`"
                .into(),
        ),
    }
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
