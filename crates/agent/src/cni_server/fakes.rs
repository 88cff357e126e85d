//! A world to serve pods in: allocator, pods, dataplane and store in memory, with failures, outages, a seeded scheduler, and
//! a crash before or after any step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource};
use cni::journal::{Journal, Phase};
use cni::protocol::{Reply, Request, Role, Verb};
use cni::{CniResult, Config, Error};
use datastore::{Listing, MemoryStore, Revision, Scope, Store, StoreError, Stored, WatchEvent, Workload};
use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::ports::*;
use super::{CniServer, Parts, Settings};

/// Everything outside the server. Survives its crashes.
pub struct World {
    pub dir: tempfile::TempDir,
    pub state: Mutex<State>,
    pub store: MemoryStore,
    pub readiness: watch::Sender<Readiness>,
    blown: Notify,
    freed: Notify,
}

/// What the fakes know.
#[derive(Default)]
pub struct State {
    pub free: VecDeque<IpAddr>,
    pub held: BTreeMap<String, Vec<IpAddr>>,
    /// Alias and addresses, by host device.
    pub devices: BTreeMap<String, (String, Vec<IpAddr>)>,
    pub routes: BTreeMap<String, LocalEndpoint>,
    /// Endpoints that were announced and neither programmed nor taken back.
    pub announced: BTreeSet<String>,
    /// Sizes of the batches of allocations.
    pub batches: Vec<usize>,
    /// Steps that fail.
    pub failing: BTreeSet<&'static str>,
    /// How many steps were taken.
    pub steps: usize,
    /// Steps that do not go on before they are freed.
    pub stuck: BTreeSet<&'static str>,
    /// What the node's status says of pods.
    pub problems: Vec<String>,
    /// Why there are no addresses, instead of exhaustion.
    pub refusal: Option<AllocError>,
    /// Labels that every created endpoint has besides its writer's, as it gets its Pod's in Kubernetes.
    pub pod_labels: BTreeMap<String, String>,
    /// What is said of every pod, where somebody knows pods.
    pub workload: Option<Workload>,
    /// Every pod's UID, where it is checked.
    pub pod_uid: Option<String>,
    /// Steps until the crash.
    fuse: Option<usize>,
    /// State of the scheduler's generator; 0 schedules nothing.
    seed: u64,
}

impl World {
    /// A ready world with this many addresses.
    pub fn new(addresses: u8) -> Arc<World> {
        let free = (0..addresses).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        Arc::new(World {
            // In memory where there is such a place: the journal syncs often.
            dir: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
            state: Mutex::new(State {
                free,
                ..State::default()
            }),
            store: MemoryStore::new(),
            readiness: watch::channel(Readiness::Ready { pod_mtu: 1480 }).0,
            blown: Notify::new(),
            freed: Notify::new(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn settings(&self) -> Settings {
        Settings {
            ready_wait: Duration::ZERO,
            ..Settings::new("n1", self.dir.path().join("state"))
        }
    }

    pub fn journal(&self) -> Journal {
        Journal::new(self.dir.path().join("state"))
    }

    /// A server that has just started: its dataplane knows what the journal knows.
    pub async fn server(self: &Arc<Self>) -> CniServer {
        self.server_with(self.settings()).await
    }

    pub async fn server_with(self: &Arc<Self>, settings: Settings) -> CniServer {
        self.server_of(settings, self.parts()).await
    }

    pub fn parts(self: &Arc<Self>) -> Parts {
        let world = self.clone();
        Parts {
            allocator: self.clone(),
            pods: self.clone(),
            dataplane: self.clone(),
            store: Arc::new(FakeStore(self.clone())),
            readiness: self.readiness.subscribe(),
            problems: Arc::new(move |problems| world.state().problems = problems),
        }
    }

    pub async fn server_of(&self, settings: Settings, parts: Parts) -> CniServer {
        let server = CniServer::new(settings, parts);
        let recovered = server.recover().await.unwrap();
        self.state().routes = recovered.endpoints.into_iter().collect();
        server
    }

    /// Makes some steps fail, and no others.
    pub fn fail(&self, steps: &[&'static str]) {
        self.state().failing = steps.iter().copied().collect();
    }

    /// Makes some steps stand still, and no others: what stood still at others goes on.
    pub fn stick(&self, steps: &[&'static str]) {
        self.state().stuck = steps.iter().copied().collect();
        self.freed.notify_waiters();
    }

    /// From now on, whoever takes a step lets others go first, as this seed says.
    pub fn shuffle(&self, seed: u64) {
        self.state().seed = seed.wrapping_mul(2).wrapping_add(1);
    }

    /// Crashes a server `point` half-steps into a request (before or after the effect of a step). `None`: it came to its
    /// end before that.
    pub async fn crash(self: &Arc<Self>, server: CniServer, point: usize, request: Request) -> Option<()> {
        self.state().fuse = Some(point);
        let crashed = tokio::select! {
            biased;
            () = self.blown.notified() => Some(()),
            _ = server.handle(request) => None,
        };
        self.state().fuse = None;
        crashed
    }

    /// A step is about to have its effect, or has had it.
    async fn step(&self, name: &'static str) -> Result<(), String> {
        let (yields, blown, fails) = {
            let mut state = self.state();
            state.steps += 1;
            let yields = state.random(4);
            let blown = state.fuse.as_mut().is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            (yields, blown, state.failing.contains(name))
        };
        if blown {
            self.blown.notify_one();
            // The process is gone: nothing comes after this.
            std::future::pending::<()>().await;
        }
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        loop {
            let freed = self.freed.notified();
            if !self.state().stuck.contains(name) {
                break;
            }
            freed.await;
        }
        if fails { Err(format!("{name} fails")) } else { Ok(()) }
    }

    /// A network namespace: any file will do.
    pub fn netns(&self, container: &str) -> PathBuf {
        let path = self.dir.path().join(format!("netns-{container}"));
        if !path.exists() {
            std::fs::write(&path, "").unwrap();
        }
        path
    }

    /// A request for container `container` of pod `pod` (empty: of no pod).
    pub fn request(&self, verb: Verb, container: &str, pod: &str) -> Request {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "calico", "ipam": {"type": "calico-ipam"},
            "cni.dev/valid-attachments": [],
        });
        let mut problems = Vec::new();
        let args = if pod.is_empty() {
            String::new()
        } else {
            format!("K8S_POD_NAMESPACE=ns;K8S_POD_NAME={pod}")
        };
        Request {
            verb,
            role: Role::Main,
            container_id: container.into(),
            netns: Some(self.netns(container)),
            ifname: "eth0".into(),
            args: cni::env::Args::parse(&args, &mut problems),
            config: Config::parse(config.to_string().as_bytes(), Role::Main).unwrap(),
        }
    }

    pub async fn add(&self, server: &CniServer, container: &str, pod: &str) -> Result<CniResult, Error> {
        match server.handle(self.request(Verb::Add, container, pod)).await {
            Reply::Ok(result) => Ok(result.expect("ADD has a result")),
            Reply::Error(error) => Err(error),
        }
    }

    pub async fn del(&self, server: &CniServer, container: &str, pod: &str) {
        assert_eq!(
            server.handle(self.request(Verb::Del, container, pod)).await,
            Reply::Ok(None)
        );
    }

    /// The datastore forgets what a handle holds.
    pub fn forget(&self, handle: &str) {
        let mut state = self.state();
        for address in state.held.remove(handle).unwrap_or_default() {
            state.free.push_front(address);
        }
    }

    /// The datastore has given a free address to somebody.
    pub fn hold(&self, handle: &str, address: IpAddr) {
        let mut state = self.state();
        state.free.retain(|free| *free != address);
        state.held.insert(handle.to_owned(), vec![address]);
    }

    /// Who has an address by the datastore.
    pub fn holder(&self, address: IpAddr) -> Option<String> {
        let state = self.state();
        let mut holders = state.held.iter();
        holders
            .find(|(_, held)| held.contains(&address))
            .map(|(handle, _)| handle.clone())
    }

    pub async fn weps(&self) -> BTreeMap<String, WorkloadEndpoint> {
        let listing = self.store.list(&Scope::Kind(Kind::WorkloadEndpoint)).await.unwrap();
        let endpoint = |stored: Stored| WorkloadEndpoint::try_from(stored.resource).unwrap();
        listing
            .items
            .into_iter()
            .map(endpoint)
            .map(|wep| (wep.metadata.name.clone(), wep))
            .collect()
    }

    /// Addresses, devices, routes, WorkloadEndpoints and journal all tell the same, and nothing is left to do.
    pub async fn assert_consistent(&self, server: &CniServer) {
        let endpoints = server.endpoints();
        assert!(
            endpoints.iter().all(|endpoint| endpoint.phase == Phase::Attached),
            "{endpoints:?}"
        );
        while server.records().unwrap().settle().unwrap() {}
        assert_eq!(self.journal().endpoints().unwrap().records, endpoints);
        assert_eq!(self.journal().all_pending().unwrap().records, []);
        let weps = self.weps().await;
        let with_device = || {
            endpoints
                .iter()
                .filter(|endpoint| endpoint.host_device.is_some() && !endpoint.displaced)
        };
        let state = self.state();
        let held: BTreeMap<_, _> = endpoints
            .iter()
            .filter(|e| !e.outside_ipam)
            .map(|e| (e.handle.clone(), e.addresses.clone()))
            .collect();
        assert_eq!(state.held, held);
        let devices: BTreeMap<_, _> = with_device()
            .map(|e| (e.host_device.clone().unwrap(), (e.alias.clone(), e.addresses.clone())))
            .collect();
        // What a displaced container still has may stay until its successor or its DEL takes it away.
        let is_displaced = |alias: &String| endpoints.iter().any(|e| e.displaced && e.alias == *alias);
        let mut found = state.devices.clone();
        found.retain(|_, (alias, _)| !is_displaced(alias));
        assert_eq!(found, devices);
        let routes: BTreeMap<_, _> = with_device()
            .map(|e| (e.id().to_string(), server.naming().local(e).unwrap()))
            .collect();
        assert_eq!(state.routes, routes);
        assert_eq!(state.announced, BTreeSet::new());
        let wanted: BTreeMap<_, _> = with_device()
            .map(|e| (e.wep_name.clone(), e.container_id.clone()))
            .collect();
        let displaced = |id: &String| endpoints.iter().any(|e| e.displaced && e.container_id == *id);
        let found = weps.into_iter().map(|(name, wep)| (name, wep.spec.container_id));
        let found: BTreeMap<_, _> = found.filter(|(_, id)| !displaced(id)).collect();
        assert_eq!(found, wanted);
    }

    /// Nothing is left of any pod.
    pub async fn assert_empty(&self, server: &CniServer) {
        self.assert_consistent(server).await;
        assert_eq!(server.endpoints(), []);
    }
}

impl State {
    /// A number below `below`; 0 unless a seed was set (xorshift).
    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn assign(&mut self, want: &Want) -> Result<Vec<IpAddr>, AllocError> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        assert!(
            !self.held.contains_key(&want.handle),
            "a second address for {}",
            want.handle
        );
        let full = || AllocError::Exhausted("pool 10.0.0.0/24 is full".into());
        let addresses = match want.addresses.is_empty() {
            true => vec![self.free.front().copied().ok_or_else(full)?],
            false => want.addresses.clone(),
        };
        if !addresses.iter().all(|address| self.free.contains(address)) {
            return Err(full());
        }
        self.free.retain(|free| !addresses.contains(free));
        self.held.insert(want.handle.clone(), addresses.clone());
        Ok(addresses)
    }
}

impl Allocator for World {
    fn assign(&self, wants: Vec<Want>) -> BoxFuture<'_, Vec<Result<Given, AllocError>>> {
        Box::pin(async move {
            if let Err(why) = self.step("assign").await {
                return wants.iter().map(|_| Err(AllocError::TryAgain(why.clone()))).collect();
            }
            let answers = {
                let mut state = self.state();
                state.batches.push(wants.len());
                let given = |addresses| Given {
                    addresses,
                    endpoint: None,
                };
                wants
                    .iter()
                    .map(|want| state.assign(want).map(given))
                    .collect::<Vec<_>>()
            };
            for (want, answer) in wants.iter().zip(&answers) {
                if let (Some(preview), Ok(given)) = (&want.preview, answer) {
                    preview.say(&given.addresses);
                }
            }
            let _ = self.step("assigned").await;
            answers
        })
    }

    fn release<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), AllocError>> {
        Box::pin(async move {
            self.step("release").await.map_err(AllocError::TryAgain)?;
            {
                let mut state = self.state();
                for address in state.held.remove(handle).unwrap_or_default() {
                    let own = |id: &str| {
                        id.split('/')
                            .next()
                            .is_some_and(|container| handle.ends_with(&format!(".{container}")))
                    };
                    let mut routes = state.routes.iter().filter(|(id, _)| own(id));
                    let routed = routes.any(|(_, local)| local.addresses.contains(&address));
                    assert!(!routed, "{address} is released while it is routed");
                    state.free.push_back(address);
                }
            }
            let _ = self.step("released").await;
            Ok(())
        })
    }

    fn holder(&self, address: IpAddr) -> BoxFuture<'_, Result<Option<String>, AllocError>> {
        Box::pin(async move {
            self.step("holder").await.map_err(AllocError::TryAgain)?;
            let state = self.state();
            let holder = state.held.iter().find(|(_, addresses)| addresses.contains(&address));
            Ok(holder.map(|(handle, _)| handle.clone()))
        })
    }

    fn held<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, AllocError>> {
        Box::pin(async move {
            self.step("held").await.map_err(AllocError::TryAgain)?;
            Ok(self.state().held.get(handle).cloned().unwrap_or_default())
        })
    }
}

impl Pods for World {
    fn attach(
        &self,
        link: PodLink,
        later: Option<oneshot::Receiver<Vec<IpAddr>>>,
    ) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("attach").await?;
            self.state()
                .devices
                .insert(link.host_device.clone(), (link.alias.clone(), link.addresses));
            let _ = self.step("attached").await;
            let Some(later) = later else { return Ok(()) };
            let Ok(came) = later.await else { return Ok(()) };
            self.step("address").await?;
            {
                let mut state = self.state();
                let device = state.devices.get_mut(&link.host_device);
                let (alias, addresses) = device.ok_or("there is no such device")?;
                assert_eq!(*alias, link.alias);
                *addresses = came;
            }
            let _ = self.step("addressed").await;
            Ok(())
        })
    }

    fn detach(&self, wired: Wired) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("detach").await?;
            {
                let mut state = self.state();
                if state
                    .devices
                    .get(&wired.host_device)
                    .is_some_and(|(found, _)| *found == wired.alias)
                {
                    state.devices.remove(&wired.host_device);
                    // Routes go with their device.
                    state.routes.retain(|_, local| local.device != wired.host_device);
                }
            }
            let _ = self.step("detached").await;
            Ok(())
        })
    }

    fn check(&self, link: PodLink) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.step("check").await?;
            match self.state().devices.get(&link.host_device) {
                Some((alias, addresses)) if *alias == link.alias && *addresses == link.addresses => Ok(()),
                found => Err(format!("{} is {found:?}", link.host_device)),
            }
        })
    }

    fn exists<'a>(&'a self, host_device: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            self.step("exists").await?;
            Ok(self.state().devices.contains_key(host_device))
        })
    }

    fn devices<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<HostDevice>, String>> {
        Box::pin(async move {
            self.step("devices").await?;
            let state = self.state();
            let device = |(name, (alias, _)): (&String, &(String, Vec<IpAddr>))| HostDevice {
                name: name.clone(),
                alias: Some(alias.clone()).filter(|alias| !alias.is_empty()),
                mtu: 1480,
            };
            let devices = state.devices.iter().filter(|(name, _)| name.starts_with(prefix));
            Ok(devices.map(device).collect())
        })
    }

    fn mark<'a>(&'a self, host_device: &'a str, alias: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.step("mark").await?;
            let mut state = self.state();
            let (found, _) = state.devices.get_mut(host_device).ok_or("there is no such device")?;
            match found.is_empty() || found == alias {
                true => *found = alias.to_owned(),
                false => return Err(format!("{host_device} is {found}'s")),
            }
            Ok(())
        })
    }
}

impl Dataplane for World {
    fn announce(&self, id: String, endpoint: LocalEndpoint) {
        assert_ne!(endpoint.addresses, Vec::<IpAddr>::new(), "{id}");
        assert_eq!(endpoint.resource.spec.ip_networks, Vec::new(), "{id}: not certain yet");
        self.state().announced.insert(id);
    }

    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let (before, after) = if endpoint.is_some() {
                ("program", "programmed")
            } else {
                ("unprogram", "unprogrammed")
            };
            self.step(before).await?;
            {
                let mut state = self.state();
                state.announced.remove(&id);
                match endpoint {
                    Some(endpoint) if !state.devices.contains_key(&endpoint.device) => {
                        return Err(format!("{} does not exist", endpoint.device));
                    }
                    Some(endpoint) => state.routes.insert(
                        id,
                        LocalEndpoint {
                            fresh: false,
                            ..endpoint
                        },
                    ),
                    None => state.routes.remove(&id),
                };
            }
            let _ = self.step(after).await;
            Ok(())
        })
    }
}

/// The world's store: a memory store with outages.
struct FakeStore(Arc<World>);

impl FakeStore {
    async fn step(&self) -> Result<(), StoreError> {
        self.0
            .step("store")
            .await
            .map_err(|why| StoreError::Unavailable(why.into()))
    }

    async fn after<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        let _ = self.0.step("stored").await;
        outcome
    }
}

impl Store for FakeStore {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.0.store.get(key).await
        })
    }

    fn workload<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Workload>, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            let state = self.0.state();
            match (&state.pod_uid, uid) {
                (Some(known), Some(uid)) if known != uid => Err(StoreError::Refused("it is another one".into())),
                _ => Ok(state.workload.clone()),
            }
        })
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.0.store.list(scope)
    }

    fn create(&self, mut resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            let more = self.0.state().pod_labels.clone();
            resource.metadata_mut().labels.extend(more);
            self.after(self.0.store.create(resource).await).await
        })
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.after(self.0.store.update(resource, expected).await).await
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        Box::pin(async move {
            self.step().await?;
            self.after(self.0.store.delete(key, expected).await).await
        })
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.0.store.watch(scope, from)
    }
}
