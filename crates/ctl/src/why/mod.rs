//! Why a packet is dropped: `explain`, `policy test`, `policy diff`.
//!
//! Everything is worked out from resources, of the store or of files, with the same policy state and the same evaluation that
//! the agents' rules are compared with. Nothing here asks a node or changes anything.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};

pub mod classes;
pub mod expect;
pub mod explain;
pub mod names;
pub mod place;
pub mod policy_diff;
pub mod policy_test;
pub mod ports;
pub mod question;
pub mod show;
pub mod world;

use self::place::{Place, Whose};
use self::ports::{Overview, Probe};
use self::question::{Question, Traffic};
use self::world::{States, World};
use crate::write::Open;
use crate::{CtlError, output};

/// Flags of `explain`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
FROM and TO are pods (POD or NAMESPACE/POD), addresses, host endpoints, nodes or network sets.
After TO: PORT, PORT/PROTOCOL, a port's NAME, icmp, TYPE/icmp, or /PROTOCOL. The protocol is TCP unless it is said; without a
port an echo request (ping) is explained and all ports are listed.
Quote the arrow, or leave it out: margay explain 'shop/web -> shop/db:5432', margay explain shop/web shop/db:5432
Exit codes: 0 allowed, 3 denied, 1 and 2 as with other commands.")]
pub struct ExplainArgs {
    /// The packet.
    #[command(flatten)]
    pub packet: PacketArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: AnswerFormat,
}

/// Which packet is asked about.
#[derive(Args, Clone, Debug)]
pub struct PacketArgs {
    /// Where the packet comes from: FROM[:SOURCE-PORT]; or all of it in quotes: 'FROM -> TO[:PORT[/PROTOCOL]]'
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where it goes: TO[:PORT[/PROTOCOL]]
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// TO, after an arrow that stands alone.
    #[arg(hide = true)]
    pub rest: Vec<String>,
    /// Namespace of pods that are named without one
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// IPv6, where both families are possible
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

/// `policy …`
#[derive(Subcommand, Clone, Debug)]
pub enum PolicyCommand {
    /// Test expectations (who may talk to whom) against policies, without applying them
    Test(policy_test::TestArgs),
    /// Show which pairs of live pods would be allowed or denied otherwise if files were applied
    Diff(policy_diff::DiffArgs),
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// For people
    #[default]
    Text,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// `explain`: asks both ends and says why.
pub async fn explain(args: &ExplainArgs, open: Open<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    let (world, question) = ask(&args.packet, open).await?;
    let mut states = States::new(&world, pods(&question));
    let explanation = explain::explain(&mut states, &question);
    let overview = question.any.then(|| overview(&mut states, &question));
    let problems = states.problems();
    match args.output {
        AnswerFormat::Text => {
            show::text(&explanation, overview.as_ref(), &problems, out).map_err(CtlError::output)?;
        }
        AnswerFormat::Json | AnswerFormat::Yaml => {
            write_data(&show::data(&explanation, overview.as_ref()), args.output, out)?;
        }
    }
    match explanation.is_allowed() {
        true => Ok(()),
        false => Err(CtlError::Denied),
    }
}

/// Reads the resources, and finds out which packet is meant.
pub(crate) async fn ask(args: &PacketArgs, open: Open<'_>) -> Result<(World, Question), CtlError> {
    let words: Vec<String> = [&args.from]
        .into_iter()
        .chain(&args.to)
        .chain(&args.rest)
        .cloned()
        .collect();
    let [from, to] = question::ends(&words)?;
    let ((from, source_port), (to, rest)) = (question::split(&from), question::split(&to));
    let traffic = Traffic::read("TO", rest)?;
    let source_port = match source_port.map(str::parse) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => {
            return Err(CtlError::Usage(format!(
                "FROM: `{}` must have a source port from 1 to 65535, or none",
                from_text(&words)
            )));
        }
    };
    let world = World::read(&open().await?).await?;
    let from = Place::find(&world, "FROM", from, &args.namespace)?;
    let to = Place::find(&world, "TO", to, &args.namespace)?;
    let question = Question::new(&world, from, to, &traffic, source_port, args.ipv6)?;
    Ok((world, question))
}

fn from_text(ends: &[String]) -> String {
    ends.join(" ").split_whitespace().next().unwrap_or_default().to_owned()
}

/// The pods at both ends.
pub(crate) fn pods(question: &Question) -> Vec<api::Key> {
    let places = [&question.from, &question.to];
    let pods = places.into_iter().filter_map(|place| match &place.whose {
        Whose::Pod { key, .. } => Some(key.clone()),
        Whose::Host { .. } | Whose::Elsewhere => None,
    });
    pods.collect()
}

/// Which ports are open between the ends.
fn overview(states: &mut States<'_>, question: &Question) -> Overview {
    let nodes = [&question.from, &question.to].map(|place| place.whose.node().unwrap_or_default().to_owned());
    let known = nodes.map(|node| states.of(&node));
    let known: Vec<&policy::PolicyState> = known.iter().map(|state| &**state).collect();
    Overview::new(Probe::all(&known), |probe| {
        let question = Question {
            packet: probe.packet(&question.packet),
            ..question.clone()
        };
        explain::is_allowed(states, &question)
    })
}

/// Data as JSON or YAML.
pub(crate) fn write_data(
    data: &impl serde::Serialize,
    format: AnswerFormat,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let text = match format {
        AnswerFormat::Json | AnswerFormat::Text => output::json(data),
        AnswerFormat::Yaml => {
            let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
            // What is shown here has keys of text only, which is all that can go wrong.
            serde_saphyr::to_string_with_options(data, options).expect("what is shown has a YAML form")
        }
    };
    out.write_all(text.as_bytes()).map_err(CtlError::output)
}
