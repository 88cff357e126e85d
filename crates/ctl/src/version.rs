//! `version`: this program's and the cluster's.

use std::io::Write;

use api::{ClusterInformationSpec, Key, Kind, Resource};

use crate::CtlError;
use crate::command::VersionArgs;
use crate::write::Open;

/// Shows the versions; this program's also when the cluster cannot be asked.
pub async fn version(args: &VersionArgs, open: Open<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<18} {value}").map_err(CtlError::output);
    line("Client Version:", concat!("v", env!("CARGO_PKG_VERSION")))?;
    if args.client {
        return Ok(());
    }
    let stored = open()
        .await?
        .get(&Key::cluster(Kind::ClusterInformation, "default"))
        .await?;
    let info = match stored.map(|stored| stored.resource) {
        Some(Resource::ClusterInformation(info)) => info.spec,
        _ => ClusterInformationSpec::default(),
    };
    let unknown = "unknown: no agent has set up the cluster yet";
    line("Cluster Version:", info.calico_version.as_deref().unwrap_or(unknown))?;
    line("Cluster Type:", info.cluster_type.as_deref().unwrap_or(unknown))
}
