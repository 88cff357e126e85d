//! `trace`: the whole way of a packet, with what each node on it would do now.
//!
//! What policy says is worked out as `explain` does it. Devices, routes, tunnels and counters are what the agents of the nodes
//! read from their kernels at that moment. Nothing is changed, and no packet is sent.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

pub mod agents;
pub mod counters;
pub mod describe;
pub mod expected;
pub mod hop;
pub mod passage;
pub mod show;
pub mod translate;
pub mod walk;
pub mod watch;

use self::agents::Sockets;
use self::hop::{Outcome, outcome};
use self::watch::Limits;
use crate::CtlError;
use crate::why::world::States;
use crate::why::{self, AnswerFormat, PacketArgs, explain};
use crate::write::Open;

/// Flags of `trace`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
FROM and TO are written as for `explain`.
Each node on the way is asked through its agent's socket: this node's is in --run-dir; where those of other nodes are, --agents
says, with {node} for a node's name. In the lab that is known. A socket can be brought here:
  ssh -nNT -L /tmp/agents/n2/agent.sock:/run/margay/agent.sock n2 &
  margay trace --agents '/tmp/agents/{node}' shop/web shop/db:5432
Of nodes that cannot be asked only the datastore's side is shown.
Exit codes: 0 it arrives (with --watch: it was seen to), 3 denied, 4 it does not arrive for another reason (with --watch: or was
last seen on its way), 5 not everything could be seen, and nothing was wrong elsewhere (with --watch: or no packet came);
1 and 2 as with other commands.")]
pub struct TraceArgs {
    /// The packet.
    #[command(flatten)]
    pub packet: PacketArgs,
    /// This node's agent's run directory
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Run directories of other nodes' agents, with {node} for the node's name
    #[arg(long, env = "MARGAY_AGENTS", value_name = "PATTERN", value_parser = pattern)]
    pub agents: Option<String>,
    /// Wait for a real packet of this flow, and show where it and its answer are seen, also behind translations
    #[arg(short, long)]
    pub watch: bool,
    /// With --watch: end after so many packets that arrived
    #[arg(long, default_value_t = 1, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// With --watch: end after so many seconds
    #[arg(long, default_value_t = 30, value_name = "S", requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3000))]
    pub timeout: u64,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: AnswerFormat,
}

fn pattern(text: &str) -> Result<String, String> {
    match text.contains(agents::NODE) {
        true => Ok(text.to_owned()),
        false => Err("must have {node} where a node's name belongs: /tmp/agents/{node}".into()),
    }
}

/// `trace`: asks all nodes on the way.
pub async fn trace(args: &TraceArgs, open: Open<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    let (world, question) = why::ask(&args.packet, open).await?;
    let mut states = States::new(&world, why::pods(&question));
    let explanation = explain::explain(&mut states, &question);
    let problems = states.problems();
    let mut sockets = Sockets::new(args.run_dir.clone(), args.agents.clone());
    let walked = walk::walk(&world, &explanation, &mut sockets);
    let is_text = args.output == AnswerFormat::Text;
    if is_text {
        show::text(&explanation, &walked.hops, &problems, out).map_err(CtlError::output)?;
    }
    let watched = match args.watch {
        false => None,
        true => {
            let limits = Limits {
                count: args.count.into(),
                timeout: Duration::from_secs(args.timeout),
            };
            if is_text {
                writeln!(out).map_err(CtlError::output)?;
            }
            out.flush().map_err(CtlError::output)?;
            let mut say = |text: &str| writeln!(std::io::stderr(), "{text}").map_err(CtlError::output);
            let follow = |to, sockets: &mut Sockets| {
                let question = translate::translated(&world, &question, to);
                let mut states = States::new(&world, why::pods(&question));
                walk::walk(&world, &explain::explain(&mut states, &question), sockets)
            };
            let watched = watch::watch(
                &question.packet,
                &walked,
                translate::by_our_rules(&world, &question.packet),
                &mut sockets,
                limits,
                (&follow, &mut say),
            )?;
            Some((watched, limits))
        }
    };
    if let (Some((watched, limits)), true) = (&watched, is_text) {
        watch::text::text(watched, limits.timeout, out).map_err(CtlError::output)?;
    }
    let watched = watched.map(|(watched, _)| watched);
    let code = match &watched {
        None => of_outcome(outcome(&walked.hops).0),
        Some(watched) => of_passages(&watched.passages, watched.outcome),
    };
    if !is_text {
        why::write_data(&show::shown(&explanation, &walked.hops, watched), args.output, out)?;
    }
    code
}

fn of_outcome(outcome: Outcome) -> Result<(), CtlError> {
    match outcome {
        Outcome::Arrives | Outcome::Leaves => Ok(()),
        Outcome::Denied => Err(CtlError::Denied),
        Outcome::Broken => Err(CtlError::Broken),
        Outcome::Unknown => Err(CtlError::Unseen),
    }
}

/// What was seen counts more than what was worked out.
fn of_passages(passages: &[passage::ShownPassage], outcome: Outcome) -> Result<(), CtlError> {
    match (passages.is_empty(), passages.iter().all(|passage| passage.arrived)) {
        (true, _) => Err(CtlError::Unseen),
        (false, true) => match outcome {
            Outcome::Unknown => Err(CtlError::Unseen),
            Outcome::Arrives | Outcome::Leaves | Outcome::Denied | Outcome::Broken => Ok(()),
        },
        (false, false) => match outcome {
            Outcome::Denied => Err(CtlError::Denied),
            Outcome::Arrives | Outcome::Leaves | Outcome::Broken | Outcome::Unknown => Err(CtlError::Broken),
        },
    }
}
