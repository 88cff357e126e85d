//! `margay agent boot`: closes this host as the agent would do it first, and ends. It asks no datastore and leaves no process, so it
//! can run before the host's devices are up; the agent finds what it has made, and replaces it when policy is known.

use std::io::Write;
use std::path::PathBuf;

use api::Resource;
use clap::Args;
use kernel::{IfName, Kernel};
use linux::LiveKernel;

use crate::AgentError;
use crate::config::PREFIX;
use crate::last_known::{self, Memory};
use crate::nft::Nft;
use crate::packet_filter::{LastRun, PacketFilter};
use crate::start::TUNNEL;

/// Command line of `margay agent boot`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The agent's directory for what must survive a reboot
    #[arg(
        long,
        env = "MARGAY_STATE_DIR",
        default_value = "/var/lib/margay",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// First letters of the host side of pod interfaces
    #[arg(long, env = "FELIX_INTERFACEPREFIX", default_value = PREFIX, value_name = "PREFIX")]
    pub interface_prefix: String,

    /// Leave a host open of which no agent has written down anything
    #[arg(long)]
    pub open_if_unknown: bool,
}

/// Closes the host endpoints that the last agent knew, and pods, if there is no agent's table; says what it did.
///
/// # Errors
/// If the kernel cannot be asked or told: then nothing is closed.
pub fn boot(options: &Options, out: &mut dyn Write) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::io("starting the runtime"))?;
    let lines = runtime.block_on(close(options))?;
    let mut lines = lines.iter();
    lines
        .try_for_each(|line| writeln!(out, "{line}"))
        .map_err(AgentError::io("standard output"))
}

async fn close(options: &Options) -> Result<Vec<String>, AgentError> {
    let memory = last_known::read(&options.state_dir);
    let node = node(&memory).to_owned();
    let tunnel = IfName::from(TUNNEL);
    let seen = LiveKernel::open()?.observe(&tunnel).await?;
    let mut filter = PacketFilter::new(&node, Box::new(Nft::default()), tunnel);
    let prefix = &options.interface_prefix;
    if prefix != PREFIX {
        filter.set_prefix(prefix);
    }
    filter.observed(&seen, |device| device.0.starts_with(prefix));
    if let Some(last) = LastRun::new(&node, &memory, !options.open_if_unknown) {
        filter.remember(last);
    }
    filter.settle().await;
    let report = filter.report();
    match report
        .broken
        .or(report.problems.iter().find(|_| report.applied.failed > 0).cloned())
    {
        Some(why) => Err(AgentError::NotClosed(why)),
        None if report.applied.transactions == 0 => Ok(vec![
            "the table inet calico is there: it stays as it is until the agent knows policy".to_owned(),
        ]),
        None if report.problems.is_empty() => Ok(vec!["no host endpoint is known here: pods are closed".to_owned()]),
        None => Ok(report.problems),
    }
}

/// The node that host endpoints in the picture belong to: only one's are.
fn node(memory: &Memory) -> &str {
    let Memory::Picture(picture) = memory else { return "" };
    let mut nodes = picture.values().filter_map(|resource| match resource {
        Resource::HostEndpoint(endpoint) => Some(endpoint.spec.node.as_str()),
        _ => None,
    });
    nodes.next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
