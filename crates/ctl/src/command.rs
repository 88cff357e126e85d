//! The commands and their flags.

use std::ffi::OsStr;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use api::Kind;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use datastore::SharedStore;
use futures::future::{BoxFuture, FutureExt};

use crate::write::Verb;
use crate::{
    CtlError, delete, get, ipam_show, node_checksystem, node_flows, node_policy, node_status, trace, version, why,
    write,
};

/// Flags that every command takes. Some only keep scripts working that were written for upstream's tool.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Accepted for scripts: no difference of versions is a reason to refuse
    #[arg(long, global = true)]
    pub allow_version_mismatch: bool,
    /// The datastore: embedded or kubernetes (default: the variable DATASTORE_TYPE, else embedded)
    #[arg(long, global = true, value_name = "TYPE")]
    pub datastore: Option<String>,
}

/// The commands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show resources
    Get(GetArgs),
    /// Create resources; refused if one exists
    Create(CreateArgs),
    /// Create or change resources
    Apply(FileArgs),
    /// Change resources; refused if one does not exist
    Replace(FileArgs),
    /// Delete resources, by file or by kind and name
    Delete(DeleteArgs),
    /// Check files without writing anything
    Validate(FileArgs),
    /// Find out why a packet may pass or is dropped: which tier, policy and rule decide at both ends
    Explain(why::ExplainArgs),
    /// Follow a packet's whole way: devices, routes, tunnel, MTU, policy with live counters; --watch waits for a real one
    Trace(Box<trace::TraceArgs>),
    /// Test policies and see what they would change, before they are applied
    #[command(subcommand)]
    Policy(why::PolicyCommand),
    /// Look at address management
    #[command(subcommand)]
    Ipam(IpamCommand),
    /// Look at a node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show the versions of this program and of the cluster
    Version(VersionArgs),
}

/// How `get` shows resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    #[default]
    Ps,
    /// A table with more columns
    Wide,
    /// YAML documents
    Yaml,
    /// JSON
    Json,
    /// KIND/NAME, one a line
    Name,
}

/// Flags of `get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Kind, by any of its names: ippool, ipp, wep, nodes, gnp, …
    #[arg(value_parser = KindNames, hide_possible_values = true)]
    pub kind: Option<String>,
    /// Names; all if none is given
    pub names: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// All namespaces
    #[arg(short = 'A', short_alias = 'a', long)]
    pub all_namespaces: bool,
    /// Show the resources that a file names (a folder, `-` for standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kind", "names"])]
    pub filename: Option<PathBuf>,
    /// Leave out what belongs to this cluster only (UIDs, revisions, times)
    #[arg(long)]
    pub export: bool,
    /// Directory of the agent's sockets: it is asked what became of policies on this node
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
}

/// Takes any text and tells shells what kinds there are: what no kind is called is refused with better words later.
#[derive(Clone, Copy, Debug)]
struct KindNames;

impl TypedValueParser for KindNames {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = Kind::ALL.into_iter().filter_map(|kind| kind.aliases().first());
        Some(Box::new(names.map(PossibleValue::new)))
    }
}

/// Files to read.
#[derive(Args, Clone, Debug)]
pub struct FileArgs {
    /// A file, a folder, or `-` for standard input
    #[arg(short, long, value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// Folders inside folders too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// A file without resources is no error
    #[arg(long)]
    pub skip_empty: bool,
    /// Namespace of resources that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// Flags of `create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// What to read.
    #[command(flatten)]
    pub files: FileArgs,
    /// Leave existing resources alone
    #[arg(long)]
    pub skip_exists: bool,
    /// Leave existing resources alone, and create a pool only if there is none of its address family
    #[arg(long, hide = true, conflicts_with = "skip_exists")]
    pub first: bool,
}

/// Flags of `delete`.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// Kind, by any of its names
    #[arg(required_unless_present = "filename", value_parser = KindNames, hide_possible_values = true)]
    pub kind: Option<String>,
    /// Names
    #[arg(required_unless_present = "filename")]
    pub names: Vec<String>,
    /// A file, a folder, or `-` for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kind", "names"])]
    pub filename: Vec<PathBuf>,
    /// Folders inside folders too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// A resource that is not there is no error
    #[arg(short, long)]
    pub skip_not_exists: bool,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// `ipam …`
#[derive(Subcommand, Clone, Debug)]
pub enum IpamCommand {
    /// How full pools and blocks are, and who holds an address
    Show(IpamShowArgs),
}

/// Flags of `ipam show`.
#[derive(Args, Clone, Debug)]
pub struct IpamShowArgs {
    /// Who holds this address
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["show_blocks", "show_borrowed", "show_configuration"])]
    pub ip: Option<std::net::IpAddr>,
    /// Blocks too
    #[arg(long)]
    pub show_blocks: bool,
    /// Addresses that a node holds in another node's block
    #[arg(long)]
    pub show_borrowed: bool,
    /// The IPAM settings
    #[arg(long, conflicts_with_all = ["show_blocks", "show_borrowed"])]
    pub show_configuration: bool,
}

/// `node …`
#[derive(Subcommand, Clone, Debug)]
pub enum NodeCommand {
    /// What the agent of this node says of itself
    Status(NodeStatusArgs),
    /// Network policy of this node: endpoints, policies, sets, and what the kernel's rules have counted
    Policy(node_policy::NodePolicyArgs),
    /// Whether this machine's kernel has what the agent needs; run as root
    Checksystem(node_checksystem::NodeChecksystemArgs),
    /// What policy decided about whom on this node (with flowLogsLocalReporter)
    Flows(NodeFlowsArgs),
}

/// Flags of `node status`.
#[derive(Args, Clone, Debug)]
pub struct NodeStatusArgs {
    /// The agent's run directory
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: StatusFormat,
}

/// Flags of `node flows`.
#[derive(Args, Clone, Debug)]
pub struct NodeFlowsArgs {
    /// The agent's run directory
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// How to show them; `json` with --follow is a record a line
    #[arg(short, long, value_enum, default_value_t)]
    pub output: StatusFormat,
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
}

/// How `node status` shows its report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Flags of `version`.
#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// Only this program's
    #[arg(long)]
    pub client: bool,
}

/// Opens the datastore; called only by commands that need it.
pub type Connect<'a> = &'a dyn Fn() -> BoxFuture<'static, Result<SharedStore, String>>;

/// Runs a command and answers with its exit code.
pub fn run(command: &Command, connect: Connect<'_>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(&CtlError::Io {
                what: "starting".into(),
                source: error,
            });
        }
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let done = runtime.block_on(perform(command, connect, &mut out));
    // Also after a failure: what was found comes before what was not.
    let shown = out.flush().map_err(CtlError::output);
    match done.and(shown) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

/// Runs a command, writing its answer to `out`. `-f -` reads the process's standard input.
pub async fn perform(command: &Command, connect: Connect<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    perform_on(command, connect, &mut std::io::stdin(), out).await
}

/// As [`perform`], with this standard input.
pub async fn perform_on(
    command: &Command,
    connect: Connect<'_>,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let store = || connect().map(|opened| opened.map_err(CtlError::Connect)).boxed();
    match command {
        Command::Get(args) => get::get(args, &store, stdin, out).await,
        Command::Create(args) => {
            let verb = match (args.first, args.skip_exists) {
                (true, _) => Verb::CreateFirst,
                (false, true) => Verb::CreateMissing,
                (false, false) => Verb::Create,
            };
            write::write(verb, &args.files, &store, stdin, out).await
        }
        Command::Apply(args) => write::write(Verb::Apply, args, &store, stdin, out).await,
        Command::Replace(args) => write::write(Verb::Replace, args, &store, stdin, out).await,
        Command::Delete(args) => delete::delete(args, &store, stdin, out).await,
        Command::Validate(args) => write::validate(args, stdin, out),
        Command::Ipam(IpamCommand::Show(args)) => ipam_show::show(args, &store().await?, out).await,
        Command::Node(NodeCommand::Status(args)) => node_status::status(args, out),
        Command::Node(NodeCommand::Policy(args)) => node_policy::policy(args, out).await,
        Command::Explain(args) => why::explain(args, &store, out).await,
        Command::Trace(args) => trace::trace(args, &store, out).await,
        Command::Policy(why::PolicyCommand::Test(args)) => why::policy_test::test(args, &store, stdin, out).await,
        Command::Policy(why::PolicyCommand::Diff(args)) => why::policy_diff::diff(args, &store, stdin, out).await,
        Command::Node(NodeCommand::Checksystem(_)) => node_checksystem::checksystem(out),
        Command::Node(NodeCommand::Flows(args)) => node_flows::flows(args, out),
        Command::Version(args) => version::version(args, &store, out).await,
    }
}

fn complain(error: &CtlError) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let prefix = if err.is_terminal() {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    };
    for line in error.to_string().lines() {
        let _ = writeln!(err, "{prefix} {line}");
    }
    ExitCode::from(error.exit_code())
}
