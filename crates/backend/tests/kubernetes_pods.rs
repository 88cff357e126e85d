//! What is written into a pod, on an API server of our own over loopback that knows nothing else.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use api::{Key, Kind, WorkloadEndpoint};
use backend::kubernetes::KubernetesStore;
use datastore::{Scope, Store, StoreError};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PLACE: &str = "/api/v1/namespaces/ns/pods/web-0";

/// The pod, and how often somebody else changes it before it is written.
struct Held {
    pod: Value,
    contested: usize,
    /// How often the pod was read by itself.
    reads: usize,
}

impl Held {
    fn answer(&mut self, verb: &str, path: &str, body: &[u8]) -> (u16, Value) {
        match (verb, path.strip_prefix(PLACE)) {
            ("GET", _) if path == "/apis" => {
                let group = json!({ "name": "projectcalico.org", "versions": [{ "version": "v3" }] });
                (200, json!({ "groups": [group] }))
            }
            ("GET", Some("")) => {
                self.reads += 1;
                (200, self.pod.clone())
            }
            ("GET", None) if path.starts_with("/api/v1/pods?") => (
                200,
                json!({ "metadata": { "resourceVersion": "7" }, "items": [self.pod] }),
            ),
            ("PATCH", Some("/status")) => self.merge(&serde_json::from_slice(body).expect("a patch")),
            _ => (404, status(404, "NotFound")),
        }
    }

    /// Merges annotations, at the version that the patch names, if it names one.
    fn merge(&mut self, patch: &Value) -> (u16, Value) {
        if self.contested > 0 {
            self.contested -= 1;
            self.change();
        }
        let (wanted, metadata) = (&patch["metadata"]["resourceVersion"], &mut self.pod["metadata"]);
        if !wanted.is_null() && *wanted != metadata["resourceVersion"] {
            return (409, status(409, "Conflict"));
        }
        for (name, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            metadata["annotations"][name] = value.clone();
        }
        self.change();
        (200, self.pod.clone())
    }

    fn change(&mut self) {
        let version = &mut self.pod["metadata"]["resourceVersion"];
        let number: u64 = version.as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
        *version = (number + 1).to_string().into();
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason, "details": {} })
}

async fn serve(listener: TcpListener, held: Arc<Mutex<Held>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, Arc::clone(&held)));
    }
}

/// Answers requests until one is broken off.
async fn connection(mut stream: TcpStream, held: Arc<Mutex<Held>>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.and_then(|length| length.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        stream.read_exact(&mut body).await.ok()?;
        let mut words = head.split_whitespace();
        let (verb, path) = (words.next()?.to_ascii_uppercase(), words.next()?);
        let (code, answer) = held.lock().expect("not poisoned").answer(&verb, path, &body);
        let answer = answer.to_string();
        let answer = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// The endpoint of pod web-0 on node n1, as CNI ADD writes it.
fn endpoint() -> WorkloadEndpoint {
    let mut endpoint = WorkloadEndpoint::new("n1-k8s-web--0-eth0", Default::default());
    endpoint.metadata.namespace = Some("ns".into());
    endpoint.spec.orchestrator = "k8s".into();
    (endpoint.spec.node, endpoint.spec.pod) = ("n1".into(), "web-0".into());
    (endpoint.spec.endpoint, endpoint.spec.container_id) = ("eth0".into(), "c0ffee".into());
    endpoint.spec.ip_networks = vec!["10.0.0.1/32".parse().expect("a prefix")];
    endpoint
}

/// Creates the endpoint while the pod is on `node`, and others change it so many times meanwhile; if it was `seen` before, by a list
/// of all. Answers how often it was read.
async fn check(node: &str, seen: bool, contested: usize, expected: impl Fn(Key) -> Result<(), StoreError>) -> usize {
    let pod = json!({
        "metadata": {
            "namespace": "ns", "name": "web-0", "uid": "1", "resourceVersion": "7", "annotations": { "mine": "x" },
        },
        "spec": { "nodeName": node }, "status": {},
    });
    let held = Arc::new(Mutex::new(Held {
        pod,
        contested,
        reads: 0,
    }));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("it has one");
    let serving = tokio::spawn(serve(listener, Arc::clone(&held)));
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let access = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "u", "user": {} }],
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
    });
    std::fs::write(&kubeconfig, access.to_string()).expect("it is written");

    let store = KubernetesStore::with_kubeconfig(None, kubeconfig);
    if seen {
        let scope = Scope::Kind(Kind::WorkloadEndpoint);
        store.list(&scope).await.expect("a list");
    }
    let created = store.create(endpoint().into()).await.map(drop);
    serving.abort();
    let expected = expected(endpoint().key());
    assert_eq!(created, expected, "{node}, {contested}");
    let mut annotations = json!({ "mine": "x" });
    if expected.is_ok() {
        annotations["cni.projectcalico.org/podIP"] = "10.0.0.1/32".into();
        annotations["cni.projectcalico.org/podIPs"] = "10.0.0.1/32".into();
        annotations["cni.projectcalico.org/containerID"] = "c0ffee".into();
    }
    let held = held.lock().expect("not poisoned");
    assert_eq!(held.pod["metadata"]["annotations"], annotations);
    held.reads
}

#[test]
fn an_endpoint_is_written_only_into_a_pod_of_its_node() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        assert_eq!(check("n1", false, 0, |_| Ok(())).await, 1);
        assert_eq!(check("n1", true, 0, |_| Ok(())).await, 0, "it was seen");
        for seen in [false, true] {
            check("n2", seen, 0, |key| Err(StoreError::NotFound(key))).await;
            check("", seen, 0, |key| Err(StoreError::NotFound(key))).await;
            // kubelet writes into the pod at the same time.
            check("n1", seen, 2, |_| Ok(())).await;
            check("n1", seen, 1000, |key| Err(StoreError::Conflict(key))).await;
        }
    });
}
