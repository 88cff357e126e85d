//! A lab's life: up, and down without a trace. `up` undoes itself when it fails, and cleans up first after a crash.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Resource;
use backend::embedded::Client;
use datastore::SharedStore;
use ipnet::{IpNet, Ipv4Net};
use kernel::{Address, IfName, NextHop, Route, RouteKey, RouteTarget, TABLE_MAIN};
use linux::link::{self, LinkSettings, VethEnd};
use linux::netns::{self, Netns};
use linux::request::Socket;
use nix::fcntl::{Flock, FlockArg};

use crate::record::{Folder, NodeRecord, PodRecord, Record};
use crate::spec::{ClusterSpec, Wishes};
use crate::{LabError, exec, pods, processes};

/// The nodes' device on the fabric, as in the walk-through.
pub const UNDERLAY: &str = "ens33";
const BRIDGE: &str = "fabric0";
/// How long a part may take to come up before `up` gives in.
const PATIENCE: Duration = Duration::from_secs(60);
/// RTPROT_STATIC: what an administrator would have set up.
const PROTOCOL_STATIC: u8 = 4;

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
    let _lock = lock(folder)?;
    let routes = host_routes()?;
    let spec = ClusterSpec::decide(wishes, &routes)?;
    crate::spec::duplicates(&spec.nodes).map_or(Ok(()), Err)?;
    if let Ok(record) = folder.read() {
        if is_healthy(folder, &record) {
            return same_cluster(&record, &spec).map(|()| Up::Already(record));
        }
        say("cleaning up what an earlier lab left");
        remove(folder)?;
    } else if folder.path().exists() {
        remove(folder)?;
    }
    preflight(folder, &spec)?;
    spec.notes.iter().for_each(|note| say(note));
    match make(folder, &spec, say) {
        Ok(record) => Ok(Up::Made(record)),
        Err(error) => {
            // No half-made cluster stays; the first error is the one to tell.
            let _ = remove(folder);
            Err(error)
        }
    }
}

/// Takes a cluster down; whether there was one.
pub fn down(folder: &Folder) -> Result<bool, LabError> {
    require_root()?;
    if !folder.path().exists() {
        return Ok(false);
    }
    let _lock = lock(folder)?;
    remove(folder)?;
    Ok(true)
}

fn make(folder: &Folder, spec: &ClusterSpec, say: &mut dyn FnMut(&str)) -> Result<Record, LabError> {
    let mut record = planned(folder, spec);
    fs::create_dir_all(folder.path().join("log")).map_err(LabError::io(folder.path().display().to_string()))?;
    folder.write(&record)?;
    install_names(folder)?;

    say(&format!("{} nodes on {}", spec.nodes.len(), spec.fabric));
    make_fabric(&record, spec.fabric)?;
    for node in &record.nodes {
        make_node(&record, node, spec.fabric)?;
    }

    start_store(folder)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let store = store(folder).await?;
        write_resources(&store, &spec.resources).await
    })?;

    say("agents");
    for node in &record.nodes {
        start_agent(folder, node)?;
    }
    let all: Vec<&NodeRecord> = record.nodes.iter().collect();
    wait_until_ready(folder, &all)?;

    if !spec.pods.is_empty() {
        say(&format!("{} pods", spec.pods.len()));
        pods::add_all(folder, &mut record, &spec.pods)?;
    }
    say("BGP sessions and routes");
    wait_until_routed(folder, &record)?;
    record.complete = true;
    folder.write(&record)?;
    Ok(record)
}

/// Adds a node to a running lab; without an agent it is a machine for something else to run on.
pub fn add_node(folder: &Folder, name: &str, agent: bool) -> Result<NodeRecord, LabError> {
    require_root()?;
    let _lock = lock(folder)?;
    let mut record = folder.read()?;
    if record.place(name).is_ok() {
        return Err(crate::spec::usage("node", name, "is in the lab already"));
    }
    let taken: Vec<Ipv4Addr> = record.nodes.iter().map(|node| node.address).collect();
    let free = crate::spec::FABRIC
        .hosts()
        .skip(6)
        .find(|address| !taken.contains(address));
    let address = free.ok_or_else(|| crate::spec::usage("node", name, "finds no free address on the fabric"))?;
    let node = NodeRecord {
        name: name.to_string(),
        netns: folder.netns(name),
        address,
        agent,
    };
    refuse_taken(&node.netns)?;
    record.nodes.push(node.clone());
    folder.write(&record)?;
    let made = make_node(&record, &node, crate::spec::FABRIC).and_then(|()| {
        if agent {
            start_agent(folder, &node).and_then(|()| wait_until_ready(folder, &[&node]))
        } else {
            Ok(())
        }
    });
    if made.is_err() {
        processes::end(
            folder.path(),
            &|role| role == format!("agent/{name}"),
            Duration::from_secs(2),
        );
        let _ = netns::delete(&node.netns);
        record.nodes.retain(|node| node.name != name);
        folder.write(&record)?;
    }
    made.map(|()| node)
}

/// Ends a node's agent: `SIGTERM`, or at once with `SIGKILL`. What it programmed stays.
pub fn stop_agent(folder: &Folder, node: &NodeRecord, at_once: bool) {
    let role = format!("agent/{}", node.name);
    let patience = if at_once {
        Duration::ZERO
    } else {
        Duration::from_secs(5)
    };
    if at_once && let Some(pid) = processes::find(folder.path()).get(&role) {
        let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGKILL);
    }
    processes::end(folder.path(), &|found| found == role, patience);
}

/// Starts a node's agent.
pub fn start_agent(folder: &Folder, node: &NodeRecord) -> Result<(), LabError> {
    let mut command = Command::new(folder.bin().join("margay"));
    command.arg("agent");
    exec::environment(folder, node, &mut command);
    command
        .env("MARGAY_STATE_DIR", folder.state_dir(&node.name))
        .env("FELIX_HEALTHPORT", "9099");
    let role = format!("agent/{}", node.name);
    daemon(folder, &role, &node.name, command, Some(&node.netns))
}

/// Waits until the agents of some nodes are ready, or says which is not and why.
pub fn wait_until_ready(folder: &Folder, nodes: &[&NodeRecord]) -> Result<(), LabError> {
    let deadline = Instant::now() + PATIENCE;
    for node in nodes {
        wait_for(folder, node, deadline, |report| match report.ready {
            true => Ok(()),
            false => {
                let open = report.conditions.iter().filter(|c| c.required && !c.ok);
                Err(open
                    .map(|c| format!("{}: {}", c.name, c.message))
                    .collect::<Vec<_>>()
                    .join("; "))
            }
        })?;
    }
    Ok(())
}

/// Waits until every agent has its sessions, and a route to every pod of another node.
fn wait_until_routed(folder: &Folder, record: &Record) -> Result<(), LabError> {
    let deadline = Instant::now() + PATIENCE;
    for node in record.nodes.iter().filter(|node| node.agent) {
        wait_for(folder, node, deadline, |report| {
            let down = report.bgp.peers.iter().find(|peer| peer.state != "Established");
            down.map_or(Ok(()), |peer| {
                Err(format!("BGP session with {} is {}", peer.address, peer.state))
            })
        })?;
        loop {
            let missing = missing_route(record, node)?;
            let Some(missing) = missing else { break };
            if Instant::now() > deadline {
                return Err(LabError::NotReady {
                    what: format!("the route from {} to {missing}", node.name),
                    why: log_hint(folder, &node.name),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// A pod's address that a node's kernel would not send anywhere.
fn missing_route(record: &Record, node: &NodeRecord) -> Result<Option<IpAddr>, LabError> {
    let elsewhere = record
        .pods
        .iter()
        .filter(|pod| pod.node != node.name)
        .flat_map(|pod| pod.addresses.iter().copied());
    let routes = inside(&node.netns, exec::routes)??;
    Ok(elsewhere.into_iter().find(|address| {
        !routes
            .iter()
            .any(|route| route.prefix_len() > 0 && route.contains(address))
    }))
}

fn wait_for(
    folder: &Folder,
    node: &NodeRecord,
    deadline: Instant,
    fine: impl Fn(&agent::status::Report) -> Result<(), String>,
) -> Result<(), LabError> {
    let socket = agent::http::socket(&folder.run_dir(&node.name));
    loop {
        let why = match agent::http::ask(&socket) {
            Ok(report) => match fine(&report) {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Err(error) => error.to_string(),
        };
        let role = format!("agent/{}", node.name);
        let gone = !processes::find(folder.path()).contains_key(&role);
        if gone || Instant::now() > deadline {
            let why = if gone {
                format!("its process has ended. {}", log_hint(folder, &node.name))
            } else {
                why
            };
            return Err(LabError::NotReady {
                what: format!("the agent of {}", node.name),
                why,
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The end of a log, for an error that would otherwise send the reader looking.
fn log_hint(folder: &Folder, what: &str) -> String {
    let path = folder.log(what);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(5).collect();
    format!(
        "Last lines of {}:\n{}",
        path.display(),
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
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

async fn write_resources(store: &SharedStore, resources: &[Resource]) -> Result<(), LabError> {
    let problems: Vec<String> = resources
        .iter()
        .flat_map(|resource| {
            resource
                .problems()
                .into_iter()
                .map(move |problem| format!("{}: {problem}", resource.key()))
        })
        .collect();
    if !problems.is_empty() {
        return Err(LabError::Resources(problems));
    }
    for resource in resources {
        let mut resource = resource.clone().with_defaults();
        let metadata = resource.metadata_mut();
        metadata.creation_timestamp = Some(jiff::Timestamp::now());
        metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        store.create(resource).await?;
    }
    Ok(())
}

fn planned(folder: &Folder, spec: &ClusterSpec) -> Record {
    let node = |plan: &crate::spec::NodePlan| NodeRecord {
        name: plan.name.clone(),
        netns: folder.netns(&plan.name),
        address: plan.address,
        agent: true,
    };
    Record {
        fabric: folder.netns("margay-fabric"),
        gateway: spec.gateway(),
        nodes: spec.nodes.iter().map(node).collect(),
        pods: spec
            .pods
            .iter()
            .map(|plan| PodRecord::planned(folder, &plan.name, &plan.node))
            .collect(),
        complete: false,
    }
}

/// One binary under the names that runtimes and people call it by.
fn install_names(folder: &Folder) -> Result<(), LabError> {
    let bin = folder.bin();
    let place = || {
        fs::create_dir_all(&bin)?;
        let binary = std::env::current_exe()?;
        // A copy, not a link: a rebuilt tree does not change a running lab.
        fs::copy(binary, bin.join("margay"))?;
        ["calicoctl", "calico", "calico-ipam"]
            .iter()
            .try_for_each(|name| symlink("margay", bin.join(name)))
    };
    place().map_err(LabError::io(bin.display().to_string()))
}

fn make_fabric(record: &Record, fabric: Ipv4Net) -> Result<(), LabError> {
    let netns = create_netns(&record.fabric)?;
    let gateway = Ipv4Net::new(record.gateway, fabric.prefix_len()).unwrap_or(fabric);
    netns
        .run(|| {
            let mut socket = open_socket()?;
            let (lo, bridge) = (IfName::from("lo"), IfName::from(BRIDGE));
            link::up(&mut socket, &lo).map_err(refused)?;
            link::create_bridge(&mut socket, &bridge).map_err(refused)?;
            link::add_address(
                &mut socket,
                &Address {
                    device: bridge.clone(),
                    net: IpNet::V4(gateway),
                },
            )
            .map_err(refused)?;
            link::up(&mut socket, &bridge).map_err(refused)
        })
        .map_err(LabError::io("fabric"))?
}

fn make_node(record: &Record, node: &NodeRecord, fabric: Ipv4Net) -> Result<(), LabError> {
    use std::os::fd::AsFd;
    let inside = create_netns(&node.netns)?;
    let outside = Netns::open(&netns::path(&record.fabric)).map_err(LabError::io(record.fabric.clone()))?;
    // Unique in the fabric and at most 15 bytes: the last parts of the node's address.
    let [_, _, third, fourth] = node.address.octets();
    let port = IfName(format!("port-{third}-{fourth}"));
    let underlay = IfName::from(UNDERLAY);
    outside
        .run(|| {
            let mut socket = open_socket()?;
            let end = |name| VethEnd {
                name,
                netns: None,
                mac: None,
                mtu: None,
            };
            let far = VethEnd {
                netns: Some(inside.as_fd()),
                ..end(&underlay)
            };
            link::create_veth(&mut socket, &end(&port), &far).map_err(refused)?;
            let bridge = link::index(&socket, &IfName::from(BRIDGE)).map_err(refused)?;
            let settings = LinkSettings {
                up: Some(true),
                master: Some(bridge),
                ..LinkSettings::default()
            };
            link::set(&mut socket, &port, &settings).map_err(refused)
        })
        .map_err(LabError::io(format!("node {}", node.name)))??;
    let gateway = record.gateway;
    let net = Ipv4Net::new(node.address, fabric.prefix_len()).unwrap_or(fabric);
    inside
        .run(|| {
            let mut socket = open_socket()?;
            link::up(&mut socket, &IfName::from("lo")).map_err(refused)?;
            link::add_address(
                &mut socket,
                &Address {
                    device: underlay.clone(),
                    net: IpNet::V4(net),
                },
            )
            .map_err(refused)?;
            link::up(&mut socket, &underlay).map_err(refused)?;
            link::put_route(&mut socket, &default_route(gateway, &underlay)).map_err(refused)
        })
        .map_err(LabError::io(format!("node {}", node.name)))?
}

fn default_route(gateway: Ipv4Addr, device: &IfName) -> Route {
    let everything = IpNet::V4(Ipv4Net::default());
    let next_hop = NextHop {
        gateway: IpAddr::V4(gateway),
        device: device.clone(),
        onlink: false,
    };
    Route {
        key: RouteKey {
            table: TABLE_MAIN,
            destination: everything,
            metric: 0,
        },
        target: RouteTarget::Via(vec![next_hop]),
        protocol: PROTOCOL_STATIC,
        source: None,
    }
}

fn start_store(folder: &Folder) -> Result<(), LabError> {
    let mut command = Command::new(folder.bin().join("margay"));
    command
        .args(["store", "serve", "--file"])
        .arg(folder.store_file())
        .arg("--socket")
        .arg(folder.store_socket());
    daemon(folder, "store", "store", command, None)?;
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(folder.store_socket()).is_err() {
        let gone = !processes::find(folder.path()).contains_key("store");
        if gone || Instant::now() > deadline {
            return Err(LabError::NotReady {
                what: "the store".into(),
                why: log_hint(folder, "store"),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Starts a process that outlives this one, in a session of its own, its words in a log.
fn daemon(folder: &Folder, role: &str, log: &str, mut command: Command, netns: Option<&str>) -> Result<(), LabError> {
    let path = folder.log(log);
    let what = format!("starting {role}");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(LabError::io(path.display().to_string()))?;
    let copy = file.try_clone().map_err(LabError::io(what.clone()))?;
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
    command.env(processes::MARK, processes::mark(folder.path(), role));
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    if let Some(name) = netns {
        let netns = Netns::open(&netns::path(name)).map_err(LabError::io(name.to_string()))?;
        netns
            .enter_before_exec(&mut command, false)
            .map_err(LabError::io(what.clone()))?;
    }
    let child = command.spawn().map_err(LabError::io(what))?;
    // It is found by its mark; nobody waits for it here.
    drop(child);
    Ok(())
}

/// Removes everything that belongs to the lab, whatever state it is in.
fn remove(folder: &Folder) -> Result<(), LabError> {
    processes::end(folder.path(), &|_| true, Duration::from_secs(5));
    if let Ok(record) = folder.read() {
        let names = record
            .pods
            .iter()
            .map(|pod| &pod.netns)
            .chain(record.nodes.iter().map(|node| &node.netns));
        for name in names.chain([&record.fabric]) {
            netns::delete(name).map_err(LabError::io(format!("namespace {name}")))?;
        }
    }
    fs::remove_dir_all(folder.path()).map_err(LabError::io(folder.path().display().to_string()))?;
    // Only if it is empty: another lab may live beside.
    if let Some(parent) = folder.path().parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn is_healthy(folder: &Folder, record: &Record) -> bool {
    let running = processes::find(folder.path());
    let agents = record.nodes.iter().filter(|node| node.agent);
    let names = record
        .nodes
        .iter()
        .map(|node| &node.netns)
        .chain(record.pods.iter().map(|pod| &pod.netns));
    record.complete
        && running.contains_key("store")
        && agents
            .into_iter()
            .all(|node| running.contains_key(&format!("agent/{}", node.name)))
        && names.into_iter().all(|name| netns::path(name).exists())
}

fn same_cluster(record: &Record, spec: &ClusterSpec) -> Result<(), LabError> {
    let planned: Vec<&String> = spec.nodes.iter().map(|node| &node.name).collect();
    let running: Vec<&String> = record.nodes.iter().map(|node| &node.name).collect();
    if planned.iter().all(|name| running.contains(name)) {
        return Ok(());
    }
    Err(LabError::InUse {
        what: "the lab".into(),
        by: format!("a cluster of {} nodes that is up", record.nodes.len()),
        remedy: "take it down first with `margay lab down`".into(),
    })
}

fn preflight(folder: &Folder, spec: &ClusterSpec) -> Result<(), LabError> {
    let names = spec.nodes.iter().map(|node| folder.netns(&node.name));
    let pods = spec.pods.iter().map(|pod| folder.netns(&format!("pod-{}", pod.name)));
    for name in names.chain(pods).chain([folder.netns("margay-fabric")]) {
        refuse_taken(&name)?;
    }
    let probe = linux::ipip::probe();
    if probe.chosen.is_none() {
        return Err(LabError::Kernel(probe.why));
    }
    // A namespace of its own shows at once whether devices of these kinds can be made.
    let try_devices = || {
        let mut socket = open_socket()?;
        let (a, b, bridge) = (IfName::from("a"), IfName::from("b"), IfName::from("c"));
        let end = |name| VethEnd {
            name,
            netns: None,
            mac: None,
            mtu: None,
        };
        link::create_veth(&mut socket, &end(&a), &end(&b)).map_err(refused)?;
        link::create_bridge(&mut socket, &bridge).map_err(refused)
    };
    let netns = Netns::unnamed().map_err(|error| LabError::Kernel(format!("no network namespaces: {error}")))?;
    let tried = netns.run(try_devices).map_err(LabError::io("a network namespace"))?;
    tried.map_err(|error| LabError::Kernel(format!("veth or bridge devices: {error}")))
}

fn refuse_taken(name: &str) -> Result<(), LabError> {
    if !netns::path(name).exists() {
        return Ok(());
    }
    Err(LabError::InUse {
        what: format!("network namespace {name}"),
        by: "something that is not this lab".into(),
        remedy: "remove it with `ip netns delete`, or give the lab another name with --name".into(),
    })
}

fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(LabError::NotRoot)
    }
}

/// One lab command at a time changes a lab.
fn lock(folder: &Folder) -> Result<Flock<File>, LabError> {
    let parent = folder.path().parent().unwrap_or(Path::new("/run"));
    let what = format!("lock on {}", parent.display());
    fs::create_dir_all(parent).map_err(LabError::io(what.clone()))?;
    let file = File::open(parent).map_err(LabError::io(what.clone()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| LabError::Io {
        what,
        source: errno.into(),
    })
}

fn host_routes() -> Result<Vec<IpNet>, LabError> {
    exec::routes()
}

pub(crate) fn create_netns(name: &str) -> Result<Netns, LabError> {
    netns::create(name).map_err(LabError::io(format!("network namespace {name}")))
}

/// Runs work in a named namespace.
pub(crate) fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    netns::run_in(&netns::path(netns), work).map_err(LabError::io(format!("network namespace {netns}")))
}

pub(crate) fn open_socket() -> Result<Socket, LabError> {
    Socket::open().map_err(LabError::io("netlink"))
}

pub(crate) fn refused(error: kernel::KernelError) -> LabError {
    LabError::Refused(error.to_string())
}
