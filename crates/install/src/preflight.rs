//! Looks whether a node can have the pod network. Changes nothing; what it tries in the kernel it tries in a namespace of its own.

mod cluster;
mod host;
mod routes;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::options::Options as Install;
use crate::settings::Settings;
use crate::uninstall::UninstallError;

/// Command line of `margay preflight`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Ask no API server
    #[arg(long)]
    pub no_api: bool,
    /// Where the container runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub conf_dir: PathBuf,
    /// text or json
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
    /// The flags of `install`: what is going to be installed
    #[command(flatten)]
    pub install: Install,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A line each.
    Text,
    /// A list of objects.
    Json,
}

/// What came out of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Fine.
    Ok,
    /// It will work, but somebody should know.
    Warning,
    /// It will not work.
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: one word, the same in every version.
    pub check: &'static str,
    /// What came out.
    pub outcome: Outcome,
    /// What was seen, and what to do about it.
    pub reason: String,
}

impl Check {
    fn new(check: &'static str, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            check,
            outcome,
            reason: reason.into(),
        }
    }
}

/// Runs all checks and prints them. True if none failed.
///
/// # Errors
/// Wrong flags or answers; a runtime that cannot be started.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<bool, UninstallError> {
    let settings = Settings::from_options(&options.install)?;
    let mut checks = host::checks(&settings, &options.conf_dir);
    if !options.no_api {
        let runtime = crate::uninstall::runtime()?;
        checks.extend(runtime.block_on(cluster::checks(&settings)));
    }
    let _ = match options.output {
        Format::Text => checks.iter().try_for_each(|check| writeln!(out, "{}", line(check))),
        Format::Json => writeln!(out, "{}", serde_json::json!(checks)),
    };
    Ok(checks.iter().all(|check| check.outcome != Outcome::Failed))
}

/// What the agent needs of the kernel, whatever is going to be installed. Changes nothing.
pub fn features() -> Vec<Check> {
    host::features()
}

fn line(check: &Check) -> String {
    let outcome = match check.outcome {
        Outcome::Ok => "ok",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED",
    };
    format!("{outcome:<8} {:<18} {}", check.check, check.reason)
}
