//! `version`: this program's and the cluster's.

use std::io::Write;

use api::{Key, Kind, Resource};

use crate::CtlError;
use crate::command::VersionArgs;
use crate::write::Open;

/// Shows the versions.
pub async fn version(
    args: &VersionArgs,
    open: Open<'_>,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let mut lines = vec![("Client Version:", format!("v{}", env!("CARGO_PKG_VERSION")))];
    if !args.client {
        let stored = open().await?.get(&Key::cluster(Kind::ClusterInformation, "default")).await?;
        let info = match stored.map(|stored| stored.resource) {
            Some(Resource::ClusterInformation(info)) => info.spec,
            _ => api::ClusterInformationSpec::default(),
        };
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown: no agent has set up the cluster yet".into());
        lines.push(("Cluster Version:", known(info.calico_version)));
        lines.push(("Cluster Type:", known(info.cluster_type)));
    }
    for (name, value) in lines {
        writeln!(out, "{name:<18} {value}").map_err(CtlError::output)?;
    }
    Ok(())
}
