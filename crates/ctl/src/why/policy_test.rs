//! `policy test`: are expectations met by what is stored, with files put in its place? Nothing is written.

use std::io::{Read, Write};
use std::path::PathBuf;

use api::{Key, Kind, Resource};
use clap::Args;

use super::expect::{self, Expectation};
use super::explain::explain;
use super::world::{States, World};
use super::{AnswerFormat, show, write_data};
use crate::write::Open;
use crate::{CtlError, input, tier};

/// Flags of `policy test`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The file is a list of expectations:
  - {name: a database for the api alone, from: shop/web, to: shop/db, port: 5432, protocol: TCP, expect: Deny}
from and to: NAMESPACE/POD, an address, {pod: …}, {ip: …}, or a pod that need not exist:
  {namespace: shop, labels: {role: web}, serviceAccount: …, namespaceLabels: {…}, ports: {http: 8080}}
port: a number, a name, or a list; without one it is about ping. protocol: TCP unless it is said.
Exit codes: 0 all are met, 1 some are not.")]
pub struct TestArgs {
    /// The expectations; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Resources as if they were stored: a file, a folder; several times
    #[arg(short, long, value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    /// Folders inside folders too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Only what the files say; no datastore is asked
    #[arg(long, requires = "filename")]
    pub offline: bool,
    /// Namespace of pods and resources that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    pub output: AnswerFormat,
}

/// The result, for programs.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tested {
    /// How many there are.
    pub expectations: usize,
    /// Those that are not met.
    pub failed: Vec<Failed>,
}

/// An expectation that is not met.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Which.
    pub name: String,
    /// `Allow` or `Deny`.
    pub expected: &'static str,
    /// Why it is otherwise.
    pub explanation: show::Shown,
}

/// Tests expectations.
pub async fn test(args: &TestArgs, open: Open<'_>, stdin: &mut dyn Read, out: &mut dyn Write) -> Result<(), CtlError> {
    let dash = std::path::Path::new("-");
    if args.file == dash && args.filename.iter().any(|file| file == dash) {
        return Err(CtlError::Usage(
            "FILE and -f: only one of them can be standard input (`-`)".into(),
        ));
    }
    let (source, text) = input::text(&args.file, stdin);
    let text = text.map_err(|error| CtlError::Invalid(vec![format!("{source}: {error}")]))?;
    let resources = input::read(&args.filename, args.recursive, &args.namespace, stdin)?;
    let mut world = match args.offline {
        true => World::default(),
        false => World::read(&open().await?).await?,
    };
    let keys: Vec<Key> = resources.iter().map(Resource::key).collect();
    world.put(resources);
    let unknown = unknown_tiers(&world, &keys);
    if !unknown.is_empty() {
        return Err(CtlError::Invalid(unknown));
    }
    let expectations = expect::read(&source, &text, &args.namespace, &mut world)?;
    let pods = expectations.iter().flat_map(|one| super::pods(&one.question));
    let mut states = States::new(&world, pods);
    let mut failed = Vec::new();
    for Expectation { name, question, allow } in &expectations {
        let explanation = explain(&mut states, question);
        if explanation.is_allowed() != *allow {
            failed.push((name, *allow, explanation));
        }
    }
    let word = |allow: bool| if allow { "Allow" } else { "Deny" };
    match args.output {
        AnswerFormat::Text => {
            for (name, allow, explanation) in &failed {
                write(name, word(*allow), explanation, out).map_err(CtlError::output)?;
            }
            let (met, all) = (expectations.len() - failed.len(), expectations.len());
            writeln!(out, "{met} of {all} expectations are met").map_err(CtlError::output)?;
        }
        AnswerFormat::Json | AnswerFormat::Yaml => {
            let failed = failed.iter().map(|(name, allow, explanation)| Failed {
                name: (*name).clone(),
                expected: word(*allow),
                explanation: show::data(explanation, None),
            });
            let tested = Tested {
                expectations: expectations.len(),
                failed: failed.collect(),
            };
            write_data(&tested, args.output, out)?;
        }
    }
    match failed.len() {
        0 => Ok(()),
        1 => Err(CtlError::Unmet("1 expectation is not met".into())),
        count => Err(CtlError::Unmet(format!("{count} expectations are not met"))),
    }
}

fn write(
    name: &str,
    expected: &str,
    explanation: &super::explain::Explanation,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    writeln!(out, "FAILED {name}: expected {expected}")?;
    let mut text = Vec::new();
    show::text(explanation, None, &[], &mut text)?;
    for line in String::from_utf8_lossy(&text).lines() {
        match line.is_empty() {
            true => writeln!(out)?,
            false => writeln!(out, "  {line}")?,
        }
    }
    writeln!(out)
}

/// Policies among these whose tier is not there: they could not be applied.
pub(crate) fn unknown_tiers(world: &World, keys: &[Key]) -> Vec<String> {
    let of = |resource: &Resource| {
        let tier = resource.tier()?;
        let key = Key::cluster(Kind::Tier, tier);
        let is_there = tier::built_in(&key).is_some() || world.get(&key).is_some();
        let what = resource.key();
        (!is_there).then(|| format!("{what}: spec.tier: `{tier}` does not exist; give Tier({tier}) with -f, too"))
    };
    keys.iter().filter_map(|key| of(world.get(key)?)).collect()
}
