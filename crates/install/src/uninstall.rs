//! Takes back what `install` brought: from a cluster everything with our label, from a node what its Pods wrote there.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::manifest::{LABEL, objects, yaml};
use crate::options::{AnswersError, Options as Install};
use crate::settings::Settings;

mod cluster;

/// Command line of `margay uninstall`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only print what would be deleted, for `kubectl delete -f -`; asks no server
    #[arg(long, conflicts_with_all = ["node", "keep_crds"])]
    pub manifest: bool,
    /// Keep the definitions, and so all pools, policies and addresses
    #[arg(long, conflicts_with = "node")]
    pub keep_crds: bool,
    /// How long nodes may take to clean up, seconds
    #[arg(long, default_value = "120", value_name = "SECONDS")]
    pub timeout: u64,
    /// Clean this node: plugin, network configuration, what agents made in its kernel; asks no server
    #[arg(long)]
    pub node: bool,
    /// The pods' devices too: running pods lose their network at once
    #[arg(long, conflicts_with = "manifest")]
    pub pods: bool,
    /// With --node: do not end afterwards
    #[arg(long, hide = true, requires = "node")]
    pub stay: bool,
    /// With --node: where the container runtime looks for plugins
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub bin_dir: PathBuf,
    /// With --node: where the container runtime looks for network configurations
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub conf_dir: PathBuf,
    /// With --node: the agent's sockets
    #[arg(long, default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// With --node: what the agent kept
    #[arg(long, default_value = "/var/lib/margay", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// The flags of `install`, for --manifest
    #[command(flatten)]
    pub install: Install,
}

/// Why not everything was taken back.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// Flags or answers.
    #[error(transparent)]
    Answers(#[from] AnswersError),
    /// The API server.
    #[error(transparent)]
    Api(#[from] backend::kubernetes::ApiError),
    /// A node did not say that it is clean.
    #[error(
        "{ready} of {wanted} nodes cleaned up within {seconds} s; everything else was left as it is: look at \
         `kubectl -n margay-system get pods`, and run this again"
    )]
    Nodes {
        /// So many did.
        ready: u64,
        /// So many should.
        wanted: u64,
        /// The time they had.
        seconds: u64,
    },
    /// A file.
    #[error(transparent)]
    Plugin(#[from] cni::install::InstallError),
    /// The kernel, or an agent that still runs.
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Does what the command line says.
///
/// # Errors
/// See [`UninstallError`].
pub fn run(options: &Options, out: &mut dyn Write) -> Result<(), UninstallError> {
    if options.node {
        clean_node(options, out)?;
        return match options.stay {
            true => stay(),
            false => Ok(()),
        };
    }
    if options.manifest {
        let settings = Settings::from_options(&options.install)?;
        let _ = out.write_all(deletions(&settings).as_bytes());
        return Ok(());
    }
    runtime()?.block_on(cluster::uninstall(options, out))
}

/// What `install` would create, by name, in the order in which it can go: agents before what they live on.
fn deletions(settings: &Settings) -> String {
    let name = |object: &Value| {
        let mut metadata = json!({ "name": object["metadata"]["name"] });
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            metadata["namespace"] = json!(namespace);
        }
        let object = json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata });
        format!("---\n{}", yaml(&object))
    };
    let ours = |object: &&Value| object["metadata"]["labels"][LABEL.0] == LABEL.1;
    objects(settings).iter().rev().filter(ours).map(name).collect()
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, UninstallError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(at("starting the runtime"))
}

fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> UninstallError {
    let what = what.into();
    move |source| UninstallError::Io { what, source }
}

/// Plugin and configuration first, so that nobody asks for a network any more; then the kernel; then the agent's files.
fn clean_node(options: &Options, out: &mut dyn Write) -> Result<(), UninstallError> {
    let plugin = cni::install::uninstall(&options.bin_dir, Some(&options.conf_dir))?;
    for path in plugin.removed {
        let _ = writeln!(out, "removed {}", path.display());
    }
    for path in plugin.restored {
        let _ = writeln!(out, "put back {}", path.display());
    }
    let purge = agent::purge::Options {
        pods: options.pods,
        dry_run: false,
        run_dir: options.run_dir.clone(),
        state_dir: options.state_dir.clone(),
        interface_prefix: "cali".into(),
    };
    agent::purge::purge(&purge, out)?;
    // The embedded store lies beside the journal: it is no agent's.
    let journal = options.state_dir.join("cni");
    let sockets = ["agent.sock", "cni.sock"].map(|name| options.run_dir.join(name));
    for path in [journal].into_iter().chain(sockets) {
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => drop(writeln!(out, "removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(path.display().to_string())(error)),
        }
    }
    // Only if nothing of others is in them; in a container they are mounted and stay.
    for dir in [&options.run_dir, &options.state_dir] {
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

/// Until somebody ends the process.
fn stay() -> Result<(), UninstallError> {
    use tokio::signal::unix::{SignalKind, signal};
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(at("SIGTERM"))?;
        terminate.recv().await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_the_list_has_all_that_install_makes_and_agents_go_first() {
        let settings = Settings::from_options(&Install::default()).unwrap();
        let list = deletions(&settings);
        let documents: Vec<&str> = list.split("---\n").skip(1).collect();
        assert_eq!(documents.len(), objects(&settings).len());
        assert!(documents[0].contains("kind: DaemonSet"), "{}", documents[0]);
        assert!(documents.iter().all(|document| !document.contains("spec:")));
        for (document, object) in documents.iter().zip(objects(&settings).iter().rev()) {
            let read: Value = serde_saphyr::from_str(document).unwrap();
            for field in ["name", "namespace"] {
                assert_eq!(read["metadata"][field], object["metadata"][field]);
            }
        }
    }
}
