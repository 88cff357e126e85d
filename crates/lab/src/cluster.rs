//! A lab's life: up, and down without a trace. `up` undoes itself when it fails, and cleans up first after a crash.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use api::Resource;
use backend::embedded::Client;
use datastore::SharedStore;
use ipnet::IpNet;
use kernel::IpipFlavour;
use linux::netns;

use crate::lock::Lock;
use crate::record::{DEFAULT_NAMESPACE, FABRIC_NAME, Folder, NodeRecord, POD_PREFIX, PodRecord, Record};
use crate::spec::{ClusterSpec, Wishes};
use crate::{LabError, agents, exec, network, pods, processes, spec};

/// What `up` found or did.
pub enum Up {
    /// It was up already.
    Already(Record),
    /// It was made.
    Made(Record),
}

/// Brings a cluster up. `say` hears of each step.
pub fn up(folder: &Folder, wishes: Wishes, say: &mut dyn FnMut(&str)) -> Result<Up, LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    let spec = ClusterSpec::decide(wishes, &exec::routes()?)?;
    if folder.path().exists() {
        match folder.read() {
            Ok(record) if is_healthy(folder, &record) => {
                return same_cluster(&record, &spec).map(|()| Up::Already(record));
            }
            _ => say("cleaning up what an earlier lab left"),
        }
        remove(folder)?;
    }
    let flavour = preflight(folder, &spec)?;
    spec.notes.iter().for_each(|note| say(note));
    let mut record = planned(folder, &spec, flavour);
    match make(folder, &mut record, &spec, say) {
        Ok(()) => Ok(Up::Made(record)),
        Err(error) => {
            // No half-made cluster stays; the first error is the one to tell.
            let _ = remove(folder);
            Err(error)
        }
    }
}

/// Takes a cluster down; whether there was one.
pub fn down(folder: &Folder, say: &mut dyn FnMut(&str)) -> Result<bool, LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    if !folder.path().exists() {
        return Ok(false);
    }
    remove(folder)?;
    Ok(true)
}

fn make(folder: &Folder, record: &mut Record, spec: &ClusterSpec, say: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    fs::create_dir_all(folder.path().join("log")).map_err(LabError::io(folder.path().display().to_string()))?;
    folder.write(record)?;
    install_names(folder)?;

    let ranges: Vec<String> = record.gateways.iter().map(|net| net.trunc().to_string()).collect();
    say(&format!("{} nodes on {}", record.nodes.len(), ranges.join(" and ")));
    network::make_fabric(record)?;
    for node in &record.nodes {
        network::make_node(record, node)?;
    }

    agents::start_store(folder)?;
    runtime()?.block_on(async {
        let store = store(folder).await?;
        write_resources(&store, &spec.resources).await
    })?;

    say("agents");
    for node in &record.nodes {
        agents::start(folder, record, node)?;
    }
    let all: Vec<&NodeRecord> = record.nodes.iter().collect();
    agents::wait_until_ready(folder, &all)?;

    if !spec.pods.is_empty() {
        say(&format!("{} pods", spec.pods.len()));
        pods::add_all(folder, record)?;
    }
    say("BGP sessions and routes");
    agents::wait_until_routed(folder, record)?;
    record.complete = true;
    folder.write(record)
}

/// Adds a node to a running lab; without an agent it is a machine for something else to run on.
pub fn add_node(folder: &Folder, name: &str, agent: bool, say: &mut dyn FnMut(&str)) -> Result<NodeRecord, LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    let mut record = folder.read()?;
    if record.place(name).is_ok() {
        return Err(spec::usage("node", name, "is in the lab already"));
    }
    if name == FABRIC_NAME || name.starts_with(POD_PREFIX) {
        return Err(spec::usage("node", name, "is how the lab calls a namespace of its own"));
    }
    let taken: BTreeSet<IpAddr> = record
        .nodes
        .iter()
        .flat_map(|node| node.addresses.iter().map(IpNet::addr))
        .collect();
    let free = |family| spec::free_address(family, &taken);
    let addresses: Option<Vec<IpNet>> = record.families().into_iter().map(free).collect();
    let node = NodeRecord {
        name: name.to_string(),
        netns: folder.netns(name),
        addresses: addresses.ok_or_else(|| spec::usage("node", name, "finds no free address on the fabric"))?,
        agent,
    };
    refuse_taken(&node.netns)?;
    record.nodes.push(node.clone());
    folder.write(&record)?;
    let made = network::make_node(&record, &node).and_then(|()| match agent {
        true => agents::start(folder, &record, &node).and_then(|()| agents::wait_until_ready(folder, &[&node])),
        false => Ok(()),
    });
    if let Err(error) = made {
        // The first error is the one to tell.
        let _ = remove_node(folder, &mut record, &node);
        return Err(error);
    }
    Ok(node)
}

/// Removes a node and what is on it: its pods as a runtime would, its entry in the datastore and its claims, its machine.
pub fn delete_node(folder: &Folder, name: &str, say: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    let mut record = folder.read()?;
    let node = record.node(name)?.clone();
    if record.nodes.len() == 1 {
        return Err(spec::usage("node", name, "is the last one; take the lab down instead"));
    }
    for pod in record.pods.clone().iter().filter(|pod| pod.node == name) {
        pods::remove(folder, &mut record, pod)?;
        say(&format!("pod {} deleted", pod.name));
    }
    agents::stop(folder, &node, false);
    // What is known of the node goes when the node cannot come back any more.
    let mut command = Command::new(folder.bin().join("calicoctl"));
    exec::environment(folder, &node, &mut command);
    let deleted = command
        .args(["delete", "node", name, "--skip-not-exists"])
        .output()
        .map_err(LabError::io("calicoctl delete node"))?;
    if !deleted.status.success() {
        return Err(LabError::Refused(
            String::from_utf8_lossy(&deleted.stderr).trim().to_string(),
        ));
    }
    remove_node(folder, &mut record, &node)
}

fn remove_node(folder: &Folder, record: &mut Record, node: &NodeRecord) -> Result<(), LabError> {
    let (agent, exec) = (processes::agent(&node.name), exec::role(&node.name));
    processes::end(
        folder.path(),
        &|role| role == agent || role == exec,
        Duration::from_secs(2),
    );
    netns::delete(&node.netns).map_err(LabError::io(format!("namespace {}", node.netns)))?;
    // A node of that name that comes later starts with nothing.
    let _ = fs::remove_dir_all(folder.node_dir(&node.name));
    let _ = fs::remove_file(folder.log(&node.name));
    record.nodes.retain(|known| known.name != node.name);
    folder.write(record)
}

/// The lab's datastore.
pub async fn store(folder: &Folder) -> Result<SharedStore, LabError> {
    let client = Client::connect(&folder.store_socket())
        .await
        .map_err(|error| LabError::Refused(error.to_string()))?;
    Ok(Arc::new(client))
}

/// A runtime for the lab's own dealings with the store.
pub fn runtime() -> Result<tokio::runtime::Runtime, LabError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LabError::io("starting"))
}

pub(crate) async fn write_resources(store: &SharedStore, resources: &[Resource]) -> Result<(), LabError> {
    for resource in resources {
        let mut resource = resource.clone().with_defaults();
        let metadata = resource.metadata_mut();
        metadata.creation_timestamp = Some(jiff::Timestamp::now());
        metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        store.create(resource).await?;
    }
    Ok(())
}

fn planned(folder: &Folder, spec: &ClusterSpec, flavour: String) -> Record {
    let node = |plan: &spec::NodePlan| NodeRecord {
        name: plan.name.clone(),
        netns: folder.netns(&plan.name),
        addresses: plan.addresses.clone(),
        agent: true,
    };
    Record {
        fabric: folder.netns(FABRIC_NAME),
        gateways: spec.gateways(),
        nodes: spec.nodes.iter().map(node).collect(),
        pods: spec
            .pods
            .iter()
            .map(|plan| PodRecord::planned(folder, DEFAULT_NAMESPACE, &plan.name, &plan.node))
            .collect(),
        ipip: flavour,
        complete: false,
    }
}

/// One binary under the names that runtimes and people call it by.
fn install_names(folder: &Folder) -> Result<(), LabError> {
    let bin = folder.bin();
    let place = || {
        fs::create_dir_all(&bin)?;
        // A copy, not a link: a rebuilt tree does not change a running lab. Not by name: this may be an earlier lab's copy,
        // which was just removed.
        fs::copy("/proc/self/exe", bin.join("margay"))?;
        ["calicoctl", "calico", "calico-ipam"]
            .iter()
            .try_for_each(|name| symlink("margay", bin.join(name)))?;
        let shell = folder.shell_bin();
        fs::create_dir_all(&shell)?;
        symlink(bin.join("margay"), shell.join("calicoctl"))
    };
    place().map_err(LabError::io(bin.display().to_string()))
}

/// Removes everything that belongs to the lab, whatever state it is in. Files go last, the record among them: after a crash
/// of this the next one knows what is left.
fn remove(folder: &Folder) -> Result<(), LabError> {
    processes::end(folder.path(), &|_| true, Duration::from_secs(5));
    for name in folder.namespaces() {
        netns::delete(&name).map_err(LabError::io(format!("namespace {name}")))?;
    }
    fs::remove_dir_all(folder.path()).map_err(LabError::io(folder.path().display().to_string()))
}

fn is_healthy(folder: &Folder, record: &Record) -> bool {
    let running = processes::find(folder.path());
    let mut agents = record.nodes.iter().filter(|node| node.agent);
    let nodes = record.nodes.iter().map(|node| &node.netns);
    let mut names = nodes
        .chain(record.pods.iter().map(|pod| &pod.netns))
        .chain([&record.fabric]);
    record.complete
        && running.contains_key(processes::STORE)
        && agents.all(|node| running.contains_key(&processes::agent(&node.name)))
        && names.all(|name| netns::path(name).exists())
}

/// A cluster that has grown by `node add` or `pod add` still is the same.
fn same_cluster(record: &Record, spec: &ClusterSpec) -> Result<(), LabError> {
    let same = |plan: &spec::NodePlan| {
        record
            .node(&plan.name)
            .is_ok_and(|node| node.addresses == plan.addresses)
    };
    if spec.nodes.iter().all(same) {
        return Ok(());
    }
    let families = if record.gateways.len() > 1 {
        " with IPv4 and IPv6"
    } else {
        ""
    };
    Err(LabError::InUse {
        what: "the lab".into(),
        by: format!("another cluster that is up, of {} nodes{families}", record.nodes.len()),
        remedy: "take it down first with `margay lab down`, or give this one a name with --name".into(),
    })
}

/// Up to so many nodes each agent looks for itself what its kernel can encapsulate with.
const PROBE_EACH: usize = 10;

/// Checks everything that would stop `up` halfway; how to encapsulate.
fn preflight(folder: &Folder, spec: &ClusterSpec) -> Result<String, LabError> {
    let names = spec.nodes.iter().map(|node| folder.netns(&node.name));
    let pods = spec
        .pods
        .iter()
        .map(|pod| folder.netns(&format!("{POD_PREFIX}{}", pod.name)));
    for name in names.chain(pods).chain([folder.netns(FABRIC_NAME)]) {
        refuse_taken(&name)?;
    }
    network::try_devices()?;
    // One who forces it has the last word.
    if let Ok(forced) = std::env::var("MARGAY_IPIP")
        && !forced.is_empty()
    {
        return Ok(forced);
    }
    let probe = linux::ipip::probe();
    match probe.chosen {
        // Few agents probe for themselves, and say what they found; many would do the same work many times over.
        Some(_) if spec.nodes.len() <= PROBE_EACH => Ok("auto".into()),
        Some(IpipFlavour::Native) => Ok("native".into()),
        Some(IpipFlavour::Bpf) => Ok("bpf".into()),
        None if spec.needs_ipip() => Err(LabError::Kernel(probe.why)),
        None => Ok("auto".into()),
    }
}

pub(crate) fn refuse_taken(name: &str) -> Result<(), LabError> {
    if !netns::path(name).exists() {
        return Ok(());
    }
    Err(LabError::InUse {
        what: format!("network namespace {name}"),
        by: "something that is not this lab".into(),
        remedy: format!("remove it with `ip netns delete {name}`, or give the lab another name with --name"),
    })
}

/// Namespaces and raw sockets need root.
pub(crate) fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(LabError::NotRoot)
    }
}
