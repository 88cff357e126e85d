//! A world to serve pods in: allocator, pods, dataplane and store in memory, with failures, outages, a seeded scheduler, and
//! a crash before or after any step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::Kind;
use api::resource::WorkloadEndpoint;
use cni::journal::{Journal, Phase};
use cni::protocol::{Reply, Request, Role, Verb};
use cni::{CniResult, Config, Error};
use datastore::{MemoryStore, Scope, Store, Stored, Workload};
use serde_json::json;
use tokio::sync::{Notify, watch};

use self::store::FakeStore;
use super::ports::*;
use super::{CniServer, Parts, Settings};

mod ports;
mod store;

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
