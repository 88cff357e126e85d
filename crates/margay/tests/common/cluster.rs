//! A lab for policies: three namespaces with three pods each on two nodes, all of them servers; who reaches whom, as a matrix.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use api::kubernetes::K8sNetworkPolicy;
use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource};
use backend::embedded::Client;
use datastore::{Store, StoreError};

use super::Lab;
use super::matrix::{self, PORTS};
pub use super::matrix::{Pod, Square};
use super::net::{self, L4, Servers};

/// Ports of the two pods that tell when a change has arrived.
const FENCES: std::ops::Range<u16> = 2000..2200;

/// The lab, its pods and what is written to its datastore.
pub struct Cluster {
    pub lab: Lab,
    pub pods: Vec<Pod>,
    fences: [Pod; 2],
    _servers: Servers,
    store: Datastore,
    written: BTreeSet<Key>,
    fence: u16,
    /// Matrices that were read before the kernel was as expected.
    pub early: usize,
}

impl Cluster {
    /// Brings it up; `None`, loudly, if this is not root's test run.
    pub fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0", "--ipv6"])?;
        let nodes = lab.nodes();
        let mut pods = Vec::new();
        for (number, (namespace, pod)) in ["x", "y", "z"]
            .into_iter()
            .flat_map(|namespace| ["a", "b", "c"].map(|pod| (namespace, pod)))
            .enumerate()
        {
            pods.push(lab.add_pod(namespace, pod, &nodes[number % 2], &[("pod", pod)]));
        }
        let fence = |node: usize| lab.add_pod("fence", &format!("f{node}"), &nodes[node], &[("fence", "yes")]);
        let fences = [fence(0), fence(1)];
        let ports: Vec<(L4, u16)> = PORTS
            .iter()
            .flat_map(|port| [(L4::Tcp, *port), (L4::Udp, *port)])
            .collect();
        let mut served: Vec<(String, Vec<(L4, u16)>)> =
            pods.iter().map(|pod| (pod.place.clone(), ports.clone())).collect();
        for pod in &fences {
            served.push((pod.place.clone(), FENCES.map(|port| (L4::Udp, port)).collect()));
        }
        let servers = Servers::start(&served);
        let store = Datastore::of(&lab);
        let cluster = Self {
            lab,
            pods,
            fences,
            _servers: servers,
            store,
            written: BTreeSet::new(),
            fence: FENCES.start,
            early: 0,
        };
        cluster.put(resource("{kind: Tier, metadata: {name: fence}, spec: {order: 1}}"));
        // Pods have named ports, as their containers would.
        for index in 0..cluster.pods.len() {
            cluster.change_pod(index, |endpoint| {
                let ports = [
                    ("serve-80-tcp", "TCP", 80),
                    ("serve-81-tcp", "TCP", 81),
                    ("serve-80-udp", "UDP", 80),
                ];
                let ports: Vec<_> = ports
                    .iter()
                    .map(|(name, protocol, port)| serde_json::json!({"name": name, "protocol": protocol, "port": port}))
                    .collect();
                endpoint.spec.ports = serde_json::from_value(ports.into()).expect("ports");
            });
        }
        Some(cluster)
    }

    /// The pod called `x/a`.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .expect("a pod of the matrix")
    }

    pub fn index(&self, name: &str) -> usize {
        self.pods
            .iter()
            .position(|pod| pod.name == name)
            .expect("a pod of the matrix")
    }

    /// Creates or replaces a resource.
    pub fn put(&self, resource: Resource) {
        self.store.put(resource);
    }

    /// Changes a pod's WorkloadEndpoint, as whoever follows Kubernetes would.
    pub fn change_pod(&self, index: usize, change: impl Fn(&mut WorkloadEndpoint)) {
        self.store.change_pod(&self.pods[index], change);
    }

    /// Makes these the only resources of the test, and waits until both nodes have heard of it.
    pub fn only(&mut self, resources: Vec<Resource>) {
        let keys: BTreeSet<Key> = resources.iter().map(Resource::key).collect();
        for gone in std::mem::replace(&mut self.written, keys.clone()).difference(&keys) {
            self.store.delete(gone);
        }
        // Tiers before their policies: otherwise these would be closed for a moment.
        let (tiers, others): (Vec<_>, Vec<_>) = resources.into_iter().partition(|it| it.kind() == Kind::Tier);
        tiers.into_iter().chain(others).for_each(|resource| self.put(resource));
        self.wait_for_fence();
    }

    /// Writes a policy that opens one more port of two pods, and waits until it is open: what was written before has been
    /// heard by then.
    pub fn wait_for_fence(&mut self) {
        self.fence += 1;
        assert!(FENCES.contains(&self.fence), "more ports for fences");
        self.put(resource(&format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: fence.fence}}, spec: {{tier: fence, selector: fence == 'yes', types: [Ingress, Egress],
               ingress: [{{action: Allow, protocol: UDP, destination: {{ports: [{}]}}}}], egress: [{{action: Allow}}]}}}}",
            self.fence
        )));
        let deadline = Instant::now() + Duration::from_secs(5);
        for [from, to] in [[0, 1], [1, 0]] {
            let to = SocketAddr::from((self.fences[to].addresses[0], self.fence));
            while net::seen_as(&self.fences[from].place, to, Duration::from_millis(2)).is_none() {
                assert!(
                    Instant::now() < deadline,
                    "a policy is not enforced within 5 s\n{}",
                    self.lab.lab(&["status"])
                );
            }
        }
    }

    /// Compares every pair of pods, protocol, port and family with what is expected.
    pub fn check(&mut self, what: &str, expected: &dyn Fn(Square<'_>) -> bool) {
        let diagnose = || self.lab.lab(&["status"]);
        self.early += matrix::check(what, &self.pods, expected, &diagnose);
    }
}

/// A lab's datastore, written to without asking what the command line would ask: as other programs do.
pub struct Datastore {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Datastore {
    pub fn of(lab: &Lab) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let socket = format!("/run/margay-lab/{}/store.sock", lab.name);
        let client = runtime
            .block_on(Client::connect(Path::new(&socket)))
            .expect("the store");
        Self { runtime, client }
    }

    /// Creates or replaces a resource.
    pub fn put(&self, resource: Resource) {
        let resource = resource.with_defaults();
        let key = resource.key();
        self.runtime.block_on(async {
            loop {
                let done = match self.client.get(&key).await.expect("the store") {
                    Some(stored) => self.client.update(resource.clone(), &stored.revision).await,
                    None => self.client.create(resource.clone()).await,
                };
                match done {
                    Ok(_) => return,
                    Err(StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Exists(_)) => {}
                    Err(error) => panic!("{key}: {error}"),
                }
            }
        });
    }

    /// A resource, if it is there.
    pub fn get(&self, key: &Key) -> Option<Resource> {
        let found = self.runtime.block_on(self.client.get(key)).expect("the store");
        found.map(|stored| stored.resource)
    }

    /// Changes a resource that is there, as text that its kind reads.
    pub fn change(&self, key: &Key, change: impl Fn(&mut serde_json::Value)) {
        let found = self.get(key).unwrap_or_else(|| panic!("{key} is not there"));
        let mut value = serde_json::to_value(&found).expect("a resource is JSON");
        change(&mut value);
        self.put(serde_json::from_value(value).expect("a resource"));
    }

    /// Deletes a resource, if it is there.
    pub fn delete(&self, key: &Key) {
        match self.runtime.block_on(self.client.delete(key, None)) {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => panic!("{key}: {error}"),
        }
    }

    /// Changes a pod's WorkloadEndpoint.
    pub fn change_pod(&self, pod: &Pod, change: impl Fn(&mut WorkloadEndpoint)) {
        let listed = self
            .runtime
            .block_on(self.client.list(&datastore::Scope::Kind(Kind::WorkloadEndpoint)))
            .expect("a list");
        let mut found = listed
            .items
            .into_iter()
            .filter_map(|stored| WorkloadEndpoint::try_from(stored.resource).ok())
            .filter(|endpoint| {
                endpoint.spec.pod == pod.pod && endpoint.metadata.namespace.as_deref() == Some(pod.namespace.as_str())
            });
        let mut endpoint = found.next().expect("its WorkloadEndpoint");
        change(&mut endpoint);
        self.put(endpoint.into());
    }
}

/// A resource from YAML.
pub fn resource(yaml: &str) -> Resource {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

/// A NetworkPolicy of Kubernetes in a namespace, from the YAML of its spec, as it is stored.
pub fn k8s(namespace: &str, name: &str, spec: &str) -> Resource {
    let spec: serde_json::Value = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let policy = serde_json::json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let policy: K8sNetworkPolicy = serde_json::from_value(policy).expect("a NetworkPolicy");
    let (policy, problems) = policy.to_network_policy();
    assert_eq!(problems, [], "{name}");
    policy.into()
}
