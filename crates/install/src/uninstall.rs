//! Takes back what `install` brought: from a cluster everything with our label, from a node what its Pods wrote there.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use api::crd::CrdGroup;
use clap::Args;
use serde_json::{Value, json};

use crate::manifest::{LABEL, objects, yaml};
use crate::options::{AnswersError, Options as Install};
use crate::settings::{Crds, Settings};

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
    /// How long each thing may take that is waited for: agents that end, nodes that clean up, the namespace that goes; seconds
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
    /// Something was deleted, and has not gone yet.
    #[error(
        "{what} is still there after {seconds} s, though it is being deleted{why}: look at `kubectl -n margay-system get pods`, and \
         run this again"
    )]
    Remains {
        /// What.
        what: String,
        /// What it says of its deletion, after a colon.
        why: String,
        /// The time it had.
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

/// Does what the command line says. What is printed for another program goes to `out`, what its caller should know to `hints`.
///
/// # Errors
/// See [`UninstallError`].
pub fn run(options: &Options, out: &mut dyn Write, hints: &mut dyn Write) -> Result<(), UninstallError> {
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
        let _ = hints.write_all(let_go(&settings).unwrap_or_default().as_bytes());
        return Ok(());
    }
    runtime()?.block_on(cluster::uninstall(options, out))
}

/// What its reader has to do besides, if anything: definitions go with the last of their objects, and nobody lets these go any more.
///
/// The list cannot do it. It names what goes, and kubectl asks for all of that at once: controllers end, and lose their rights, before they
/// could let go. Nor may they let go whenever they end, which they do at every upgrade: pools would then go with addresses in use.
fn let_go(settings: &Settings) -> Option<&'static str> {
    let ours = settings.group == CrdGroup::V3 && settings.crds != Crds::None;
    ours.then_some(LET_GO)
}

const LET_GO: &str = "\
The list is not all (`margay uninstall` without --manifest is). The definitions go when pools and tiers have gone; these were held by the
controllers, which go with the list. Without --wait=false kubectl waits for them for ever. When the list is deleted, run these two:

    kubectl wait --for delete --timeout 120s namespace/margay-system
    kubectl get ippools.projectcalico.org,tiers.projectcalico.org -o name | xargs -r -I {} kubectl patch {} --type merge -p '{\"metadata\":{\"finalizers\":null}}'

What is installed on nodes goes by `margay uninstall --node`, as root, on each of them.
";

/// What `install` would create, by name, in the order in which it can go: controllers first, which would put things in order
/// again, then agents, then what they live on.
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
    fn offline_the_list_has_all_that_install_makes_and_controllers_go_first() {
        let settings = Settings::from_options(&Install::default()).unwrap();
        let list = deletions(&settings);
        let documents: Vec<&str> = list.split("---\n").skip(1).collect();
        assert_eq!(documents.len(), objects(&settings).len());
        for (document, kind) in documents.iter().zip(["Deployment", "DaemonSet"]) {
            assert!(document.contains(&format!("kind: {kind}")), "{document}");
        }
        assert!(documents.last().unwrap().contains("kind: CustomResourceDefinition"));
        assert!(documents.iter().all(|document| !document.contains("spec:")));
        for (document, object) in documents.iter().zip(objects(&settings).iter().rev()) {
            let read: Value = serde_saphyr::from_str(document).unwrap();
            for field in ["name", "namespace"] {
                assert_eq!(read["metadata"][field], object["metadata"][field]);
            }
        }
    }

    #[test]
    fn who_deletes_by_the_list_hears_what_it_cannot_say() {
        let check = |group: &str, crds: &str, expected: bool| {
            let options = Options {
                manifest: true,
                install: Install {
                    api_group: Some(group.into()),
                    crds: Some(crds.into()),
                    ..Install::default()
                },
                ..parsed()
            };
            let (mut out, mut hints) = (Vec::new(), Vec::new());
            run(&options, &mut out, &mut hints).unwrap();
            let hints = String::from_utf8(hints).unwrap();
            let commands = hints.lines().filter_map(|line| line.strip_prefix("    "));
            assert_eq!(
                commands.collect::<Vec<_>>(),
                if expected { SECOND } else { &[] },
                "{group} {crds}: {hints}"
            );
            assert_eq!(hints.contains("--wait=false"), expected, "{group} {crds}: {hints}");
            assert!(!String::from_utf8(out).unwrap().contains("kubectl"));
        };
        check("projectcalico.org/v3", "all", true);
        check("projectcalico.org/v3", "none", false);
        check("crd.projectcalico.org/v1", "all", false);
    }

    /// `tools/kube/install` runs what is said.
    const SECOND: &[&str] = &[
        "kubectl wait --for delete --timeout 120s namespace/margay-system",
        "kubectl get ippools.projectcalico.org,tiers.projectcalico.org -o name | xargs -r -I {} kubectl patch {} --type merge \
         -p '{\"metadata\":{\"finalizers\":null}}'",
    ];

    fn parsed() -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        <Line as clap::Parser>::parse_from(["margay"]).options
    }
}
