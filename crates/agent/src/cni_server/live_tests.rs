//! The server on a live kernel: real pods in real namespaces, real IPAM over a memory store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cni::protocol::{Reply, Request, Role, Verb};
use cni::{Code, Config};
use datastore::{MemoryStore, SharedStore};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use ipam::Ipam;
use linux::netns::Netns;
use serde_json::json;
use testkit::netns::{in_netns, tool, try_tool};
use tokio::sync::watch;

use super::ipam_allocator::{IpamAllocator, NodeLabels};
use super::linux_pods::{LinuxPods, WIRED_AT_ONCE};
use super::ports::{Dataplane, LocalEndpoint, PodLink, Pods, Readiness, Wired};
use super::{CniServer, Parts, Settings};

/// Routes by the independent tool.
struct ToolDataplane;

impl Dataplane for ToolDataplane {
    fn announce(&self, _id: String, _endpoint: LocalEndpoint) {}

    fn program(&self, _id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        if let Some(LocalEndpoint { device, addresses, .. }) = endpoint {
            addresses
                .iter()
                .for_each(|address| drop(tool(&format!("ip route replace {address} dev {device}"))));
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

#[test]
fn a_pod_on_the_live_kernel_comes_works_and_goes() {
    in_netns(|| async {
        let dir = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(MemoryStore::new());
        let pool =
            json!({"kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/24", "blockSize": 26}});
        store.create(serde_json::from_value(pool).unwrap()).await.unwrap();
        let parts = Parts {
            allocator: Arc::new(IpamAllocator {
                ipam: Ipam::new(store.clone()),
                node: "n1".into(),
                labels: NodeLabels::new(store.clone(), "n1".into()),
            }),
            pods: Arc::new(LinuxPods::default()),
            dataplane: Arc::new(ToolDataplane),
            store: store.clone(),
            readiness: watch::channel(Readiness::Ready { pod_mtu: 1480 }).1,
            problems: Arc::new(drop),
        };
        let server = CniServer::new(Settings::new("n1", dir.path()), parts);
        server.recover().await.unwrap();
        let pod = Pod::new();
        let (old, new) = (pod.request("old"), Pod::new());
        let Reply::Ok(Some(first)) = server.handle(request(&old, Verb::Add)).await else {
            panic!("no result")
        };
        assert_eq!(
            server.handle(request(&old, Verb::Add)).await,
            Reply::Ok(Some(first.clone())),
            "again"
        );
        assert_eq!(server.handle(request(&old, Verb::Check)).await, Reply::Ok(None));
        let device = &first.interfaces[0].name;
        assert!(tool(&format!("ip link show {device}")).contains("margay:old/eth0"));

        // A new container of the same pod, then the old one's DEL.
        let new = new.request("new");
        let Reply::Ok(Some(second)) = server.handle(request(&new, Verb::Add)).await else {
            panic!("no result")
        };
        assert_eq!(&second.interfaces[0].name, device);
        assert_eq!(server.handle(request(&old, Verb::Del)).await, Reply::Ok(None));
        assert_eq!(server.handle(request(&new, Verb::Check)).await, Reply::Ok(None));
        tool(&format!("ip link set {device} mtu 1400"));
        let Reply::Error(error) = server.handle(request(&new, Verb::Check)).await else {
            panic!("the MTU differs")
        };
        assert_eq!(error.code, Code::CheckFailed);
        assert_eq!(server.handle(request(&new, Verb::Del)).await, Reply::Ok(None));
        assert!(!try_tool(&format!("ip link show {device}")).0);
        assert_eq!(server.endpoints(), []);
    });
}

#[test]
fn pods_that_wait_for_their_addresses_keep_no_other_from_being_detached() {
    in_netns(|| async {
        let (pods, pod) = (LinuxPods::default(), Pod::new());
        let link = |number: usize| PodLink {
            netns: pod.path.clone(),
            ifname: format!("eth{number}"),
            host_device: format!("cali{number}"),
            addresses: Vec::new(),
            mtu: 1480,
            mac: [2, 0, 0, 0, 0, u8::try_from(number).unwrap()],
            alias: format!("margay:{number}/eth0"),
            ip_forward: false,
        };
        let (tell, later): (Vec<_>, Vec<_>) = (0..WIRED_AT_ONCE).map(|_| oneshot::channel()).unzip();
        let attached = later.into_iter().enumerate();
        let mut attached: FuturesUnordered<_> = attached
            .map(|(number, later)| pods.attach(link(number), Some(later)))
            .collect();
        let detached = pods.detach(Wired {
            netns: None,
            ifname: "eth0".into(),
            host_device: "cali-gone".into(),
            alias: "margay:gone/eth0".into(),
        });
        let first = async {
            tokio::select! {
                biased;
                early = attached.next() => panic!("without an address: {early:?}"),
                detached = detached => detached.unwrap(),
            }
        };
        tokio::time::timeout(Duration::from_secs(30), first)
            .await
            .expect("it is not kept waiting");
        for (number, tell) in (1..).zip(tell) {
            tell.send(vec![[10, 0, 0, number].into()]).unwrap();
        }
        while let Some(attached) = attached.next().await {
            attached.unwrap();
        }
    });
}

fn request(of: &Request, verb: Verb) -> Request {
    Request { verb, ..of.clone() }
}

/// A network namespace without a name, reached by the thread that lives in it.
struct Pod {
    path: PathBuf,
    _stay: std::sync::mpsc::Sender<()>,
}

impl Pod {
    fn new() -> Self {
        let (stay, end) = std::sync::mpsc::channel::<()>();
        let (say, path) = std::sync::mpsc::channel();
        let netns = Netns::unnamed().unwrap();
        std::thread::spawn(move || {
            netns
                .run(move || {
                    let thread = std::fs::read_link("/proc/thread-self").unwrap();
                    say.send(PathBuf::from("/proc").join(thread).join("ns/net")).unwrap();
                    let _ = end.recv();
                })
                .unwrap();
        });
        Self {
            path: path.recv().unwrap(),
            _stay: stay,
        }
    }

    fn request(&self, container: &str) -> Request {
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "calico", "ipam": {"type": "calico-ipam"}});
        let mut problems = Vec::new();
        Request {
            verb: Verb::Add,
            role: Role::Main,
            container_id: container.into(),
            netns: Some(self.path.clone()),
            ifname: "eth0".into(),
            args: cni::env::Args::parse("K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p", &mut problems),
            config: Config::parse(config.to_string().as_bytes(), Role::Main).unwrap(),
        }
    }
}
