//! Running things where pods and nodes are, and reading their kernel.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use ipnet::IpNet;
use kernel::{IfName, Kernel, RouteTarget};
use linux::LiveKernel;
use linux::netns::{self, Netns};

use crate::record::{Folder, NodeRecord};
use crate::{LabError, processes};

/// Replaces this process by a program in the namespace of a node or pod. Returns only if that fails.
pub fn replace(folder: &Folder, place: &str, command: &[OsString]) -> Result<std::convert::Infallible, LabError> {
    let record = folder.read()?;
    let (netns, node) = record.place(place)?;
    let mut child = prepared(folder, node, &netns, command)?;
    // What it leaves running ends with the lab.
    child.env(processes::MARK, processes::mark(folder.path(), &role(place)));
    Err(LabError::Io {
        what: format!("cannot run `{}`", shown(command)),
        source: child.exec(),
    })
}

/// Runs a program in the namespace of a node or pod and answers with what it printed, both streams together.
pub fn output(folder: &Folder, place: &str, command: &[&str]) -> Result<String, LabError> {
    let record = folder.read()?;
    let (netns, node) = record.place(place)?;
    let command: Vec<OsString> = command.iter().map(OsString::from).collect();
    let done = prepared(folder, node, &netns, &command)?
        .output()
        .map_err(LabError::io(format!("cannot run `{}`", shown(&command))))?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr))
}

/// The role of programs that were started in a pod or on a node.
pub fn role(place: &str) -> String {
    format!("exec/{place}")
}

fn prepared(folder: &Folder, node: &NodeRecord, netns: &str, command: &[OsString]) -> Result<Command, LabError> {
    let Some((program, args)) = command.split_first() else {
        return Err(crate::spec::usage(
            "command",
            "",
            "is missing: margay lab exec PLACE -- COMMAND…",
        ));
    };
    let mut child = Command::new(program);
    child.args(args);
    environment(folder, node, &mut child);
    let open = Netns::open(&netns::path(netns)).map_err(LabError::io(format!("network namespace {netns}")))?;
    open.enter_before_exec(&mut child, true)
        .map_err(LabError::io(format!("network namespace {netns}")))?;
    Ok(child)
}

/// What programs of a node find: the lab's names first in `PATH`, the store, the node's agent.
pub fn environment(folder: &Folder, node: &NodeRecord, command: &mut Command) {
    for (name, value) in variables(folder, folder.bin()) {
        command.env(name, value);
    }
    command
        .env("NODENAME", &node.name)
        .env("MARGAY_RUN_DIR", folder.run_dir(&node.name))
        .env("MARGAY_STATE_DIR", folder.state_dir(&node.name));
}

/// What is needed to talk to the lab's store and to its nodes' agents; programs are looked for in `first`, then where they were before.
pub fn variables(folder: &Folder, first: PathBuf) -> Vec<(&'static str, OsString)> {
    let mut path = first.into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    vec![
        ("PATH", path),
        ("DATASTORE_TYPE", "embedded".into()),
        ("MARGAY_STORE_SOCKET", folder.store_socket().into_os_string()),
        (
            "MARGAY_AGENTS",
            folder.run_dir(ctl::trace::agents::NODE).into_os_string(),
        ),
    ]
}

/// Destinations that the calling thread's namespace has routes to, own links and blackholes included.
pub fn routes() -> Result<Vec<IpNet>, LabError> {
    let runtime = crate::cluster::runtime()?;
    let observe = async { LiveKernel::open()?.observe(&IfName::from("tunl0")).await };
    let seen = runtime.block_on(observe).map_err(crate::network::refused)?;
    let leads = |target: &RouteTarget| !matches!(target, RouteTarget::Other(_));
    Ok(seen
        .routes
        .into_values()
        .filter(|route| leads(&route.target))
        .map(|route| route.key.destination)
        .collect())
}

fn shown(command: &[OsString]) -> String {
    command
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
