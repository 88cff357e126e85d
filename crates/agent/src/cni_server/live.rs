//! The CNI server's real surroundings: IPAM, the kernel, the agent's loop.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::resource::{Node, Resource, WorkloadEndpoint};
use api::{AllowedUse, Key, Kind};
use datastore::{Scope, SharedStore, StoreError, SyncEvent, Syncer};
use futures::channel::oneshot as addresses;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use ipam::{AssignIp, Assigned, AutoAssign, Ipam, IpamError};
use ipnet::IpNet;
use jiff::Timestamp;
use kernel::{IfName, Mac};
use linux::pod::PodInterface;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::ports::{
    AllocError, Allocator, Dataplane, Given, HostDevice, LocalEndpoint, PodLink, Pods, Readiness, Want, Wired,
};
use super::{CniServer, Naming, Parts, Settings, socket};
use super::{Lost, Tell};
use crate::config::Config;
use crate::run::{Event, Facts};

/// How many pods are wired at once. The kernel does one at a time anyway; each takes a thread.
const WIRED_AT_ONCE: usize = 16;
/// How long to wait before trying again to listen or to read the journal.
const PAUSE: Duration = Duration::from_secs(1);

/// What the server needs from the rest of the agent.
pub struct Deps {
    /// The agent's configuration.
    pub config: Config,
    /// Where WorkloadEndpoints are written.
    pub store: SharedStore,
    /// Hands out addresses.
    pub ipam: Ipam,
    /// The agent's loop.
    pub events: mpsc::UnboundedSender<Event>,
    /// What the loop knows.
    pub facts: watch::Receiver<Facts>,
    /// What the datastore may have lost of this node's pods.
    pub lost: mpsc::UnboundedReceiver<Lost>,
    /// Says in the node's status what is wrong with pods.
    pub problems: Tell,
    /// True once the agent is told to stop; also if the sender is gone.
    pub stop: watch::Receiver<bool>,
}

/// Where an agent's journal is.
pub fn journal(config: &Config) -> std::path::PathBuf {
    config.state_dir.join("cni")
}

/// Serves container runtimes until the agent is told to stop, then lets what is under way come to its end: `cni.sock` in the
/// run directory, the journal under `cni` in the state directory. Hands the journal's endpoints to the loop, then says through `ready` whether it serves, or why not yet.
pub async fn serve(deps: Deps, ready: impl Fn(Result<(), String>) + Send + Sync) {
    let Deps {
        config,
        store,
        ipam,
        events,
        facts,
        lost,
        problems,
        stop,
    } = deps;
    let path = config.run_dir.join("cni.sock");
    let state_dir = journal(&config);
    let settings = Settings {
        naming: Naming {
            node: config.node_name.clone(),
            prefix: config.interface_prefix,
        },
        ..Settings::new(config.node_name.clone(), state_dir)
    };
    let (say, readiness) = watch::channel(readiness(&facts.borrow()));
    let labels = NodeLabels::new(store.clone(), config.node_name.clone());
    let parts = Parts {
        allocator: Arc::new(IpamAllocator {
            ipam,
            node: config.node_name,
            labels: labels.clone(),
        }),
        pods: Arc::new(LinuxPods::default()),
        dataplane: Arc::new(LoopDataplane { events: events.clone() }),
        store: store.clone(),
        readiness,
        problems,
    };
    let server = CniServer::new(settings, parts);
    let start = async {
        let listener = listen(&path, &ready).await;
        let all = recover(&server, &events, &ready).await;
        ready(Ok(()));
        tracing::info!(socket = %path.display(), "cni: serving");
        let told = async move { drop(stop.clone().wait_for(|stop| *stop).await) };
        tokio::select! {
            () = server.serve(listener, told) => {}
            () = keep(&server, &events, all, lost) => {}
        }
    };
    tokio::select! {
        () = start => {}
        () = async { futures::join!(follow_readiness(facts, say), labels.follow()); } => {}
    }
}

/// Listens, as soon as nobody else does any more: the agent that this one replaces may still be on its way out.
async fn listen(path: &std::path::Path, ready: &(impl Fn(Result<(), String>) + Sync)) -> UnixListener {
    loop {
        match socket::bind(path) {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cni: cannot listen; trying again");
                ready(Err(format!("cannot listen on {}: {error}", path.display())));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Hands the journal's endpoints to the loop. Answers whether it has all of them: a record that cannot be read may be a live
/// pod's.
async fn recover(
    server: &CniServer,
    events: &mpsc::UnboundedSender<Event>,
    ready: &(impl Fn(Result<(), String>) + Sync),
) -> bool {
    let recovered = loop {
        match server.recover().await {
            Ok(recovered) => break recovered,
            Err(error) => {
                tracing::error!(%error, "cni: cannot read the journal; trying again");
                ready(Err(format!("cannot read the journal: {error}")));
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    hand_over(recovered.endpoints, events);
    recovered.damaged == 0
}

/// Takes over what other plugins attached, then lets the loop sweep and enforce: it knows all pods now. Then sees to what the
/// datastore loses. Never ends.
async fn keep(
    server: &CniServer,
    events: &mpsc::UnboundedSender<Event>,
    all: bool,
    lost: mpsc::UnboundedReceiver<Lost>,
) {
    let program = |id, endpoint| hand_over(vec![(id, endpoint)], events);
    let done = || drop(events.send(Event::EndpointsLoaded { all }));
    server.keep_endpoints(lost, program, done).await;
}

fn hand_over(endpoints: Vec<(String, LocalEndpoint)>, events: &mpsc::UnboundedSender<Event>) {
    for (id, endpoint) in endpoints {
        // Nobody waits for these: they are most likely in place already.
        let (done, _) = oneshot::channel();
        let _ = events.send(Event::Endpoint {
            id,
            endpoint: Some(Box::new(local(endpoint))),
            done,
        });
    }
}

async fn follow_readiness(mut facts: watch::Receiver<Facts>, say: watch::Sender<Readiness>) {
    loop {
        let now = readiness(&facts.borrow_and_update());
        say.send_if_modified(|said| {
            let changed = *said != now;
            *said = now;
            changed
        });
        if facts.changed().await.is_err() {
            say.send_replace(Readiness::Waiting("the agent is stopping".into()));
            return;
        }
    }
}

/// ADD needs the datastore (pools, blocks) and a registered node (others must find the way to its blocks).
fn readiness(facts: &Facts) -> Readiness {
    if !facts.synced {
        return Readiness::Waiting("the datastore has not been read yet".into());
    }
    if facts.state.this_node.is_none() {
        return Readiness::Waiting("this node is not registered in the datastore yet".into());
    }
    Readiness::Ready { pod_mtu: facts.pod_mtu }
}

fn local(endpoint: LocalEndpoint) -> (dataplane::LocalEndpoint, WorkloadEndpoint) {
    let local = dataplane::LocalEndpoint {
        device: IfName(endpoint.device),
        addresses: endpoint.addresses,
        fresh: endpoint.fresh,
    };
    (local, endpoint.resource)
}

/// The agent's loop as the owner of the host's routes.
struct LoopDataplane {
    events: mpsc::UnboundedSender<Event>,
}

impl Dataplane for LoopDataplane {
    fn announce(&self, id: String, endpoint: LocalEndpoint) {
        let endpoint = Box::new(local(endpoint));
        // An agent that is stopping prepares nothing.
        let _ = self.events.send(Event::Announced { id, endpoint });
    }

    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (done, outcome) = oneshot::channel();
            let stopping = |_| "the agent is stopping".to_owned();
            let event = Event::Endpoint {
                id,
                endpoint: endpoint.map(|endpoint| Box::new(local(endpoint))),
                done,
            };
            self.events
                .send(event)
                .map_err(|_| "the agent is stopping".to_owned())?;
            outcome.await.map_err(stopping)?
        }
        .boxed()
    }
}

/// The live kernel as the place where pods are wired.
pub struct LinuxPods {
    at_once: Arc<Semaphore>,
}

impl Default for LinuxPods {
    fn default() -> Self {
        Self {
            at_once: Arc::new(Semaphore::new(WIRED_AT_ONCE)),
        }
    }
}

impl LinuxPods {
    /// Runs blocking work on a thread of its own, a few at a time.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let _permit = self.at_once.acquire().await.map_err(|error| error.to_string())?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())?
    }
}

impl Pods for LinuxPods {
    fn attach(
        &self,
        link: PodLink,
        later: Option<addresses::Receiver<Vec<IpAddr>>>,
    ) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let _permit = self.at_once.acquire().await.map_err(|error| error.to_string())?;
            let mut pod = interface(link);
            let (done, attached) = oneshot::channel();
            let bare = pod.clone();
            // Who no longer waits undoes it.
            let attach = move || linux::pod::attach_here_then(&bare, |result| drop(done.send(result)));
            tokio::task::spawn_blocking(attach);
            let stopped = |_| "the thread that wires the pod has stopped".to_owned();
            let attached = attached.await.map_err(stopped)?;
            let (_, mut inside) = attached.map_err(|error| error.to_string())?;
            let Some(later) = later else { return Ok(()) };
            let Ok(addresses) = later.await else { return Ok(()) };
            pod.addresses = addresses;
            // A few messages to the kernel, as short as those for a route: no thread is worth it.
            inside.assign(&pod).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn detach(&self, wired: Wired) -> BoxFuture<'_, Result<(), String>> {
        let detach = move || {
            let device = IfName(wired.host_device);
            linux::pod::detach(wired.netns.as_deref(), &wired.ifname, &device, &wired.alias)
                .map_err(|error| error.to_string())
        };
        self.run(detach).boxed()
    }

    fn check(&self, link: PodLink) -> BoxFuture<'_, Result<(), String>> {
        let check = move || linux::pod::check(&interface(link)).map_err(|differences| differences.join("; "));
        self.run(check).boxed()
    }

    fn exists<'a>(&'a self, host_device: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        let device = IfName::from(host_device);
        let exists = move || {
            let mut socket = linux::request::Socket::open().map_err(|error| error.to_string())?;
            let found = linux::link::find(&mut socket, &device).map_err(|error| error.to_string())?;
            Ok(found.is_some())
        };
        self.run(exists).boxed()
    }

    fn devices<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<HostDevice>, String>> {
        let prefix = prefix.to_owned();
        let devices = move || {
            let mut socket = linux::request::Socket::open().map_err(|error| error.to_string())?;
            let links = linux::link::list(&mut socket).map_err(|error| error.to_string())?;
            let looks_so = |link: &kernel::Link| link.kind == "veth" && link.up && link.name.0.starts_with(&prefix);
            let device = |link: kernel::Link| HostDevice {
                name: link.name.0,
                alias: link.alias,
                mtu: link.mtu,
            };
            Ok(links.into_iter().filter(looks_so).map(device).collect())
        };
        self.run(devices).boxed()
    }

    fn mark<'a>(&'a self, host_device: &'a str, alias: &'a str) -> BoxFuture<'a, Result<(), String>> {
        let (device, alias) = (IfName::from(host_device), alias.to_owned());
        let mark = move || linux::pod::mark(&device, &alias).map_err(|error| error.to_string());
        self.run(mark).boxed()
    }
}

fn interface(link: PodLink) -> PodInterface {
    let all = |address: IpAddr| IpNet::new(address, 0).expect("0 is a prefix length of both families");
    PodInterface {
        netns: link.netns,
        name: link.ifname,
        host_device: IfName(link.host_device),
        addresses: link.addresses,
        mtu: link.mtu,
        mac: Some(Mac(link.mac)),
        alias: link.alias,
        // Those of a family without an address are left out.
        default_routes: vec![all([0; 4].into()), all([0; 16].into())],
        ip_forward: link.ip_forward,
    }
}

/// This node's labels, which pools select by. Followed, so that an allocation need not read them.
#[derive(Clone)]
pub(super) struct NodeLabels {
    store: SharedStore,
    key: Key,
    known: Arc<watch::Sender<Option<BTreeMap<String, String>>>>,
}

impl NodeLabels {
    pub(super) fn new(store: SharedStore, node: String) -> Self {
        Self {
            store,
            key: Key::cluster(Kind::Node, node),
            known: Arc::new(watch::channel(None).0),
        }
    }

    async fn follow(&self) {
        let backoff = |attempt: u32| tokio::time::sleep(crate::start::wait(attempt)).boxed();
        let mut syncer = Syncer::new(self.store.clone(), vec![Scope::Key(self.key.clone())], backoff);
        while let Some(event) = syncer.next().await {
            let SyncEvent::Updates(updates) = event else { continue };
            for update in updates {
                self.known.send_replace(update.value.map(labels_of));
            }
        }
    }

    /// As followed; before anything was heard, as stored.
    async fn get(&self) -> Result<BTreeMap<String, String>, StoreError> {
        if let Some(labels) = self.known.borrow().clone() {
            return Ok(labels);
        }
        Ok(self
            .store
            .get(&self.key)
            .await?
            .map(|stored| labels_of(stored.resource))
            .unwrap_or_default())
    }
}

fn labels_of(resource: Resource) -> BTreeMap<String, String> {
    Node::try_from(resource)
        .map(|node| node.metadata.labels)
        .unwrap_or_default()
}

/// IPAM for this node's pods.
pub(super) struct IpamAllocator {
    pub(super) ipam: Ipam,
    pub(super) node: String,
    pub(super) labels: NodeLabels,
}

impl IpamAllocator {
    async fn assign_all(&self, wants: Vec<Want>) -> Vec<Result<Given, AllocError>> {
        let labels = match self.labels.get().await {
            Ok(labels) => labels,
            Err(error) => return wants.iter().map(|_| Err(store_error(&error))).collect(),
        };
        let now = Timestamp::now();
        let (given, any): (Vec<_>, Vec<_>) = wants
            .iter()
            .enumerate()
            .partition(|(_, want)| !want.addresses.is_empty());
        let mut answers: Vec<_> = wants
            .iter()
            .map(|_| Err(AllocError::TryAgain("not asked".into())))
            .collect();
        let requests: Vec<_> = any
            .iter()
            .map(|(_, want)| self.any_address(now, want, &labels))
            .collect();
        if !requests.is_empty() {
            let assigned = self.ipam.auto_assign_many(now, &requests).await;
            for ((index, _), assigned) in any.into_iter().zip(assigned) {
                let given = |assigned: Assigned| Given {
                    addresses: assigned.v4.iter().chain(&assigned.v6).map(IpNet::addr).collect(),
                    endpoint: assigned.endpoint,
                };
                answers[index] = assigned.map(given).map_err(alloc_error);
            }
        }
        for (index, want) in given {
            answers[index] = self.these_addresses(now, want).await;
        }
        answers
    }

    /// All of the addresses that are asked for, or none.
    async fn these_addresses(&self, now: Timestamp, want: &Want) -> Result<Given, AllocError> {
        let mut addresses = Vec::new();
        for ip in &want.addresses {
            let request = AssignIp {
                ip: *ip,
                host: self.node.clone(),
                handle: want.handle.clone(),
                attributes: attributes(now, want),
                intended_use: AllowedUse::Workload,
            };
            match self.ipam.assign_ip(now, &request).await {
                Ok(net) => addresses.push(net.addr()),
                Err(error) => {
                    if !addresses.is_empty() {
                        self.release(&want.handle).await?;
                    }
                    return Err(alloc_error(error));
                }
            }
        }
        Ok(Given {
            addresses,
            endpoint: None,
        })
    }

    fn any_address(&self, now: Timestamp, want: &Want, labels: &BTreeMap<String, String>) -> AutoAssign {
        AutoAssign {
            host: self.node.clone(),
            handle: want.handle.clone(),
            attributes: attributes(now, want),
            ipv4: u32::from(want.ipv4),
            ipv6: u32::from(want.ipv6),
            pools_v4: want.ipv4_pools.clone(),
            pools_v6: want.ipv6_pools.clone(),
            intended_use: AllowedUse::Workload,
            host_labels: labels.clone(),
            endpoint: want.endpoint.clone(),
            preview: want.preview.clone(),
            namespace_labels: want.namespace_labels.clone(),
            ..AutoAssign::default()
        }
    }
}

impl Allocator for IpamAllocator {
    fn assign(&self, wants: Vec<Want>) -> BoxFuture<'_, Vec<Result<Given, AllocError>>> {
        self.assign_all(wants).boxed()
    }

    fn release<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), AllocError>> {
        async move {
            self.ipam
                .release_handle(Timestamp::now(), handle)
                .await
                .map(drop)
                .map_err(alloc_error)
        }
        .boxed()
    }

    fn holder(&self, address: IpAddr) -> BoxFuture<'_, Result<Option<String>, AllocError>> {
        async move { self.ipam.handle_of(address).await.map_err(alloc_error) }.boxed()
    }

    fn held<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, AllocError>> {
        async move { self.ipam.ips_by_handle(handle).await.map_err(alloc_error) }.boxed()
    }
}

/// As upstream stores them with an allocation.
fn attributes(now: Timestamp, want: &Want) -> BTreeMap<String, String> {
    let mut attributes = want.attributes.clone();
    attributes.insert("timestamp".into(), now.to_string());
    attributes
}

fn alloc_error(error: IpamError) -> AllocError {
    let text = error.to_string();
    match error {
        IpamError::NoPools { .. } => AllocError::NoPools(text),
        IpamError::Exhausted { .. } | IpamError::BlockLimit { .. } => AllocError::Exhausted(text),
        IpamError::InvalidRequest(_)
        | IpamError::AlreadyAssigned { .. }
        | IpamError::NotInPool { .. }
        | IpamError::BlockTaken { .. } => AllocError::Invalid(text),
        IpamError::SequenceMismatch { .. } => AllocError::TryAgain(text),
        IpamError::Store(error) => store_error(&error),
    }
}

fn store_error(error: &StoreError) -> AllocError {
    match error {
        StoreError::Refused(_) => AllocError::Refused(error.to_string()),
        _ => AllocError::TryAgain(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn allocator(pools: &[serde_json::Value]) -> IpamAllocator {
        let store: SharedStore = Arc::new(datastore::MemoryStore::new());
        for spec in pools {
            let pool = json!({"kind": "IPPool", "metadata": {"name": "pool"}, "spec": spec});
            store.create(serde_json::from_value(pool).unwrap()).await.unwrap();
        }
        let node = json!({"kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "a"}}, "spec": {}});
        store.create(serde_json::from_value(node).unwrap()).await.unwrap();
        IpamAllocator {
            ipam: Ipam::new(store.clone()),
            node: "n1".into(),
            labels: NodeLabels::new(store, "n1".into()),
        }
    }

    fn want(handle: &str) -> Want {
        Want {
            handle: handle.into(),
            ipv4: true,
            ..Want::default()
        }
    }

    #[tokio::test]
    async fn addresses_come_from_ipam_and_go_back_to_it() {
        let allocator =
            allocator(&[json!({"cidr": "10.0.0.0/29", "blockSize": 30, "nodeSelector": "rack == 'a'"})]).await;
        let given = Want {
            addresses: vec![[10, 0, 0, 6].into()],
            ..want("net.c")
        };
        let answers = allocator.assign(vec![want("net.a"), given, want("net.b")]).await;
        let assigned: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().addresses).collect();
        assert_eq!(assigned[1], [IpAddr::from([10, 0, 0, 6])]);
        assert_ne!(assigned[0], assigned[2]);
        assert_eq!(allocator.held("net.a").await, Ok(assigned[0].clone()));
        let taken = Want {
            addresses: vec![[10, 0, 0, 5].into(), [10, 0, 0, 6].into()],
            ..want("net.d")
        };
        assert!(matches!(
            allocator.assign(vec![taken]).await[..],
            [Err(AllocError::Invalid(_))]
        ));
        assert_eq!(allocator.held("net.d").await, Ok(vec![]), "all or none");
        for _ in 0..2 {
            allocator.release("net.a").await.unwrap();
            assert_eq!(allocator.held("net.a").await, Ok(vec![]));
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_is_created_with_its_address_comes_back_as_the_datastore_has_it() {
        let allocator = allocator(&[json!({"cidr": "10.0.0.0/29", "blockSize": 30})]).await;
        let mut endpoint = WorkloadEndpoint::new("e", api::WorkloadEndpointSpec::default());
        endpoint.metadata.namespace = Some("ns".into());
        let with_endpoint = Want {
            endpoint: Some(endpoint),
            ..want("net.a")
        };
        let answers = allocator.assign(vec![with_endpoint]).await;
        let [Ok(given)] = &answers[..] else {
            panic!("{answers:?}")
        };
        let stored = given.endpoint.as_ref().expect("it was created");
        assert_eq!(stored.spec.ip_networks, [IpNet::from(given.addresses[0])]);
        assert!(stored.metadata.resource_version.is_some());
    }

    #[tokio::test]
    async fn why_there_is_no_address_is_told_apart() {
        let full = allocator(&[json!({"cidr": "10.0.0.0/30", "blockSize": 30})]).await;
        let wants = (0..5).map(|number| want(&format!("net.{number}"))).collect();
        let answers = full.assign(wants).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
        assert!(
            answers
                .iter()
                .any(|answer| matches!(answer, Err(AllocError::Exhausted(_)))),
            "{answers:?}"
        );
        let unselected = json!({"cidr": "10.0.0.0/30", "blockSize": 30, "nodeSelector": "rack == 'b'"});
        for pools in [&[unselected][..], &[]] {
            let answers = allocator(pools).await.assign(vec![want("net.a")]).await;
            assert!(matches!(answers[..], [Err(AllocError::NoPools(_))]), "{answers:?}");
        }
    }

    #[test]
    fn add_waits_for_the_datastore_and_for_the_registration() {
        let mut facts = Facts::default();
        assert!(matches!(readiness(&facts), Readiness::Waiting(why) if why.contains("datastore has not been read")));
        facts.synced = true;
        assert!(matches!(readiness(&facts), Readiness::Waiting(why) if why.contains("not registered")));
        facts.state.this_node = Some(calc::ThisNode::default());
        facts.pod_mtu = 1480;
        assert_eq!(readiness(&facts), Readiness::Ready { pod_mtu: 1480 });
    }
}
