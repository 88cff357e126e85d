//! The command line of `margay` and of `calicoctl`, and the composition of the crates behind them.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand};
use datastore::SharedStore;
use futures::future::{BoxFuture, FutureExt, TryFutureExt};

use crate::logging::Log;

/// A pod network: every node a router, every pod a route.
#[derive(Parser)]
#[command(name = "margay", version, long_about = None, propagate_version = true)]
struct Margay {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    global: ctl::Global,
    #[command(subcommand)]
    command: Command,
}

/// The command line tool of the pod network.
#[derive(Parser)]
#[command(name = "calicoctl", version, long_about = None, disable_version_flag = true)]
struct Calicoctl {
    /// Log level (kept for scripts; commands log nothing)
    #[arg(short, long, global = true, default_value = "panic", value_name = "LEVEL")]
    log_level: String,
    /// Context of the kubeconfig (kept for scripts; its current context is used)
    #[arg(long, global = true)]
    context: Option<String>,
    /// Configuration file (kept for scripts; settings come from the environment)
    #[arg(short, long, global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    global: ctl::Global,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    Ctl(ctl::Command),
}

#[derive(Subcommand)]
enum Command {
    /// Run this node's agent
    Agent(AgentArgs),
    /// Run what one process does for the whole cluster: address garbage collection, automatic host endpoints, pools, tiers
    Controllers(controllers::Options),
    /// The embedded datastore
    #[command(subcommand)]
    Store(StoreCommand),
    /// A pod network in network namespaces on this machine, to look at
    #[command(subcommand)]
    Lab(lab::Command),
    /// Install or remove the CNI plugin
    #[command(subcommand)]
    Cni(CniCommand),
    /// Print the CustomResourceDefinitions that Kubernetes needs to hold the resources
    Crds(CrdsArgs),
    /// Print the manifest that installs the pod network on Kubernetes
    Install(InstallArgs),
    /// Take everything back that `install` brought into a cluster, or what its Pods left on a node
    Uninstall(Box<install::uninstall::Options>),
    /// Look whether a node can have the pod network
    Preflight(install::preflight::Options),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    Ctl(ctl::Command),
}

#[derive(Args)]
struct InstallArgs {
    #[command(flatten)]
    options: install::Options,
    /// Say what would be created instead
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct CrdsArgs {
    /// The API group: projectcalico.org/v3, or crd.projectcalico.org/v1 as existing Calico clusters have it
    #[arg(long, env = "CALICO_API_GROUP", default_value = "projectcalico.org/v3", value_name = "GROUP", value_parser = crd_group)]
    group: api::crd::CrdGroup,
    /// Without validation rules, which API servers before Kubernetes 1.25 do not know
    #[arg(long)]
    no_rules: bool,
}

fn crd_group(text: &str) -> Result<api::crd::CrdGroup, String> {
    match text.to_ascii_lowercase().as_str() {
        "projectcalico.org/v3" => Ok(api::crd::CrdGroup::V3),
        "crd.projectcalico.org/v1" => Ok(api::crd::CrdGroup::V1),
        _ => Err("must be projectcalico.org/v3 or crd.projectcalico.org/v1".into()),
    }
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct AgentArgs {
    #[command(flatten)]
    options: Box<agent::Options>,
    #[command(subcommand)]
    command: Option<AgentCommand>,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Close this host until the agent knows policy, from what the last agent knew, and end: for a unit that runs before the network
    Boot(agent::boot::Options),
    /// Remove from this node's kernel what agents made: routes, tunl0 with its programs, rules; nothing of others'
    Purge(agent::purge::Options),
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Serve the store's file on a unix socket
    Serve(ServeArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The store's file; made if it is not there
    #[arg(long, default_value = "/var/lib/margay/store.redb", value_name = "FILE")]
    file: PathBuf,
    /// The socket
    #[arg(
        long,
        env = "MARGAY_STORE_SOCKET",
        default_value = "/run/margay/store.sock",
        value_name = "SOCKET"
    )]
    socket: PathBuf,
}

#[derive(Subcommand)]
enum CniCommand {
    /// Copy this program as `calico` and `calico-ipam`, and write the network configuration
    Install(CniPaths),
    /// Remove what `install` wrote
    Uninstall(CniPaths),
}

#[derive(Args)]
struct CniPaths {
    /// Where the container runtime looks for plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    bin_dir: PathBuf,
    /// Where the container runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    conf_dir: PathBuf,
    /// The agent's socket
    #[arg(long, default_value = "/run/margay/cni.sock", value_name = "SOCKET")]
    socket: PathBuf,
    /// The agent's journal
    #[arg(long, default_value = "/var/lib/margay/cni", value_name = "DIR")]
    state_dir: PathBuf,
    /// Do not chain `portmap` for host ports
    #[arg(long)]
    no_portmap: bool,
    /// Give pods IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// What pods may ask for by annotations besides: may be given more than once
    #[arg(long = "feature", value_name = "NAME")]
    features: Vec<CniFeature>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CniFeature {
    /// `ipAddrsNoIpam`: addresses without asking IPAM
    #[value(name = "ip_addrs_no_ipam")]
    IpAddrsNoIpam,
    /// `floatingIPs`: further addresses that lead to the pod
    #[value(name = "floating_ips")]
    FloatingIps,
}

/// Runs as `calicoctl`.
pub fn ctl(args: Vec<OsString>) -> ExitCode {
    let parsed = Calicoctl::parse_from(args);
    match parsed.command {
        CtlCommand::Completion { shell } => completion(shell, &mut Calicoctl::command()),
        CtlCommand::Ctl(command) => ctl::run(&command, &|| connect(parsed.global.datastore.clone())),
    }
}

/// Runs as `margay`.
pub fn margay(args: Vec<OsString>) -> ExitCode {
    let parsed = Margay::parse_from(args);
    match parsed.command {
        Command::Ctl(command) => ctl::run(&command, &|| connect(parsed.global.datastore.clone())),
        Command::Crds(args) => crds(&args),
        Command::Install(args) => ended(manifest(&args)),
        Command::Uninstall(options) => {
            let (mut out, mut hints) = (std::io::stdout(), std::io::stderr());
            ended(install::uninstall::run(&options, &mut out, &mut hints))
        }
        Command::Preflight(options) => match install::preflight::run(&options, &mut std::io::stdout()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => ended(Err(error)),
        },
        Command::Completion { shell } => completion(shell, &mut Margay::command()),
        Command::Lab(command) => ended(lab::run(&command)),
        Command::Agent(AgentArgs {
            command: Some(AgentCommand::Purge(options)),
            ..
        }) => ended(agent::purge::purge(&options, &mut std::io::stdout())),
        Command::Agent(AgentArgs {
            command: Some(AgentCommand::Boot(options)),
            ..
        }) => {
            let _fixed = parsed.log.start();
            ended(agent::boot::boot(&options, &mut std::io::stdout()))
        }
        Command::Agent(AgentArgs { options, .. }) => {
            let set_severity = parsed.log.start();
            let datastore = parsed.global.datastore;
            let announce = announce(datastore.as_deref());
            ended(agent::start(&options, || open(datastore), announce, set_severity))
        }
        Command::Controllers(options) => {
            let set_severity = parsed.log.start();
            let datastore = parsed.global.datastore;
            let place = place(datastore.as_deref());
            let variables = |name: &str| variable(name, datastore.as_deref());
            ended(controllers::start(
                &options,
                place,
                &variables,
                || open(datastore.clone()),
                set_severity,
            ))
        }
        Command::Store(StoreCommand::Serve(args)) => {
            let _fixed = parsed.log.start();
            ended(serve(&args))
        }
        Command::Cni(command) => ended(cni(command)),
    }
}

/// Prints the completion script of a command line. Nobody reading it to the end is no error.
fn completion(shell: clap_complete::Shell, line: &mut clap::Command) -> ExitCode {
    let name = line.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(shell, line, name, &mut script);
    let _ = std::io::stdout().write_all(&script);
    ExitCode::SUCCESS
}

type Failure = Box<dyn std::error::Error>;

/// Prints the definitions as YAML documents. Nobody reading them to the end is no error.
fn crds(args: &CrdsArgs) -> ExitCode {
    let text = api::crd::to_yaml(args.group, !args.no_rules);
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Prints the manifest, or what is in it. Nobody reading it to the end is no error.
fn manifest(args: &InstallArgs) -> Result<(), Failure> {
    let settings = install::Settings::from_options(&args.options)?;
    let text = match args.dry_run {
        true => install::manifest::summary(&settings),
        false => install::manifest::text(&settings),
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// The datastore that the flag or the environment names.
fn connect(datastore: Option<String>) -> BoxFuture<'static, Result<SharedStore, String>> {
    backend::connect(&|name| variable(name, datastore.as_deref()))
        .map_err(|error| error.to_string())
        .boxed()
}

/// The same, for the agent, which starts before its datastore if it must.
fn open(datastore: Option<String>) -> Result<SharedStore, String> {
    backend::open(&|name| variable(name, datastore.as_deref())).map_err(|error| error.to_string())
}

/// On Kubernetes, the Node hears whether its pods get a network.
struct NodeNetwork(backend::kubernetes::NodeNetwork);

impl agent::Announce for NodeNetwork {
    fn network<'a>(&'a self, node: &'a str, up: bool) -> BoxFuture<'a, Result<(), String>> {
        self.0.set(node, up).map_err(|error| error.to_string()).boxed()
    }
}

fn announce(datastore: Option<&str>) -> Option<Arc<dyn agent::Announce>> {
    let is_kubernetes = variable("DATASTORE_TYPE", datastore).as_deref() == Some("kubernetes");
    is_kubernetes
        .then(|| Arc::new(NodeNetwork(backend::kubernetes::NodeNetwork::default())) as Arc<dyn agent::Announce>)
}

/// What the controllers must know of the datastore that the environment names. Kubernetes' endpoints are its pods, and its
/// API waits for finalizers; elsewhere endpoints are objects, and deletion takes place at once. In the API group of existing
/// Calico clusters nobody sets finalizers, and nobody would take ours away.
fn place(datastore: Option<&str>) -> controllers::Place {
    let is_kubernetes = variable("DATASTORE_TYPE", datastore).as_deref() == Some("kubernetes");
    let group = variable("CALICO_API_GROUP", datastore).filter(|group| !group.is_empty());
    let is_older = group.is_some_and(|group| group != "projectcalico.org/v3");
    let socket = variable("MARGAY_STORE_SOCKET", datastore).filter(|socket| !socket.is_empty());
    let socket = PathBuf::from(socket.unwrap_or_else(|| backend::DEFAULT_SOCKET.to_owned()));
    controllers::Place {
        abilities: controllers::Abilities {
            finalizers: is_kubernetes && !is_older,
            endpoints_are_stored: !is_kubernetes,
        },
        leadership: match is_kubernetes {
            true => controllers::Agreement::Lease,
            false => controllers::Agreement::File(socket.with_file_name("controllers.lock")),
        },
    }
}

/// A variable of the environment, or the flag in its place.
fn variable(name: &str, datastore: Option<&str>) -> Option<String> {
    match (name, datastore) {
        ("DATASTORE_TYPE", Some(datastore)) => Some(datastore.to_owned()),
        _ => std::env::var(name).ok(),
    }
}

fn serve(args: &ServeArgs) -> Result<(), Failure> {
    for path in [&args.file, &args.socket] {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = backend::embedded::Server::open(&args.file)?;
        tracing::info!(file = %args.file.display(), socket = %args.socket.display(), "store serves");
        server.serve(&args.socket, stop()).await?;
        Ok(())
    })
}

/// Ends on SIGTERM or SIGINT.
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}

fn cni(command: CniCommand) -> Result<(), Failure> {
    let written = match command {
        CniCommand::Install(paths) => {
            let network = cni::install::Network {
                socket: paths.socket,
                state_dir: paths.state_dir,
                portmap: !paths.no_portmap,
                ipv6: paths.ipv6,
                features: cni::config::FeatureControl {
                    ip_addrs_no_ipam: paths.features.contains(&CniFeature::IpAddrsNoIpam),
                    floating_ips: paths.features.contains(&CniFeature::FloatingIps),
                },
                ..cni::install::Network::default()
            };
            let binary = PathBuf::from("/proc/self/exe");
            cni::install::install(&cni::install::Install {
                binary,
                bin_dir: paths.bin_dir,
                conf_dir: Some(paths.conf_dir),
                network,
            })?
        }
        CniCommand::Uninstall(paths) => {
            let done = cni::install::uninstall(&paths.bin_dir, Some(&paths.conf_dir))?;
            done.removed.into_iter().chain(done.restored).collect()
        }
    };
    for path in written {
        println!("{}", path.display());
    }
    Ok(())
}

fn ended<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let prefix = if std::io::stderr().is_terminal() {
                "\x1b[1;31merror:\x1b[0m"
            } else {
                "error:"
            };
            eprintln!("{prefix} {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_arguments_of_a_command_share_a_name() {
        Margay::command().debug_assert();
        Calicoctl::command().debug_assert();
    }

    #[test]
    fn purge_takes_none_of_the_agents_flags() {
        for (line, fine) in [
            ("margay agent --ip none --ip6 fd00::7", true),
            ("margay agent purge --pods --dry-run", true),
            ("margay agent --ip none purge", false),
            ("margay agent purge --ip none", false),
        ] {
            assert_eq!(Margay::try_parse_from(line.split(' ')).is_ok(), fine, "{line}");
        }
    }

    #[test]
    fn installing_has_the_same_flags_forth_and_back() {
        for (line, fine) in [
            ("margay install --pod-cidr 10.0.0.0/8 --dry-run", true),
            ("margay install --policy-only", true),
            ("margay uninstall --manifest --pod-cidr 10.0.0.0/8", true),
            ("margay uninstall --node --pods", true),
            ("margay uninstall --node --manifest", false),
            ("margay uninstall --pods", true),
            ("margay preflight --no-api --pod-cidr 10.0.0.0/8 -o json", true),
        ] {
            assert_eq!(Margay::try_parse_from(line.split(' ')).is_ok(), fine, "{line}");
        }
    }

    #[test]
    fn a_pod_is_added_by_name_to_a_lab_by_name() {
        for line in [
            "margay lab pod add web --node n1 --name other",
            "margay lab pod delete web --name other",
        ] {
            assert!(Margay::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
