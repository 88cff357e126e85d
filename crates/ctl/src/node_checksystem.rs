//! `node checksystem`: whether this machine's kernel has what the agent needs, in upstream's order: version, then features.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use install::preflight::{Check, Outcome};

use crate::CtlError;

/// Flags of `node checksystem`.
#[derive(Args, Clone, Debug)]
pub struct NodeChecksystemArgs {
    /// Accepted for scripts: the kernel itself is asked, not a file about it
    #[arg(short = 'f', long, value_name = "FILE")]
    pub kernel_config: Option<PathBuf>,
}

/// Asks the kernel.
///
/// # Errors
/// [`CtlError::Unmet`] names the features that are missing.
pub fn checksystem(out: &mut dyn Write) -> Result<(), CtlError> {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|source| CtlError::Io {
        what: "/proc/sys/kernel/osrelease".into(),
        source,
    })?;
    let checks = install::preflight::features();
    text(version.trim(), &checks, out).map_err(CtlError::output)?;
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Failed);
    let missing: Vec<&str> = failed.map(|check| check.check).collect();
    match missing.as_slice() {
        [] => writeln!(out, "The system has what the agent needs.").map_err(CtlError::output),
        _ => Err(CtlError::Unmet(format!(
            "the system lacks {}: `margay preflight` looks at the rest of the node",
            missing.join(", ")
        ))),
    }
}

fn text(version: &str, checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Checking kernel version...\n    {version:<30} OK")?;
    writeln!(out, "Checking kernel features...")?;
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Ok | Outcome::Warning => "OK",
            Outcome::Failed => "FAIL",
        };
        writeln!(out, "    {:<30} {outcome:<4} {}", check.check, check.reason)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_has_a_line_that_says_whether_it_is_there() {
        let check = |check, outcome, reason: &str| Check {
            check,
            outcome,
            reason: reason.into(),
        };
        let checks = [
            check("ipip", Outcome::Ok, "tunl0 will be native"),
            check("nf_tables", Outcome::Failed, "not permitted"),
            check("forwarding", Outcome::Warning, "on already"),
        ];
        let mut out = Vec::new();
        text("6.1.0", &checks, &mut out).unwrap();
        let expected = "\
Checking kernel version...
    6.1.0                          OK
Checking kernel features...
    ipip                           OK   tunl0 will be native
    nf_tables                      FAIL not permitted
    forwarding                     OK   on already
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
