//! What is written into a pod, on the small API server of our own.

#[allow(dead_code, reason = "tests of faults use the rest")]
mod faults;

use api::{Key, Kind, WorkloadEndpoint};
use backend::kubernetes::KubernetesStore;
use datastore::{Scope, Store, StoreError};
use faults::{FakeApi, Fault};
use serde_json::json;

const PLACE: &str = "/api/v1/namespaces/ns/pods/web-0";

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
    let api = FakeApi::start(Fault::None).await;
    let metadata = json!({ "namespace": "ns", "name": "web-0", "uid": "1", "annotations": { "mine": "x" } });
    api.add(
        "pods",
        json!({ "metadata": metadata, "spec": { "nodeName": node }, "status": {} }),
    );
    api.contests(contested);
    let store = KubernetesStore::with_kubeconfig(None, api.kubeconfig("", ""));
    if seen {
        let scope = Scope::Kind(Kind::WorkloadEndpoint);
        store.list(&scope).await.expect("a list");
    }
    let created = store.create(endpoint().into()).await.map(drop);
    let expected = expected(endpoint().key());
    assert_eq!(created, expected, "{node}, {contested}");
    let mut annotations = json!({ "mine": "x" });
    if expected.is_ok() {
        annotations["cni.projectcalico.org/podIP"] = "10.0.0.1/32".into();
        annotations["cni.projectcalico.org/podIPs"] = "10.0.0.1/32".into();
        annotations["cni.projectcalico.org/containerID"] = "c0ffee".into();
    }
    let pod = api.object("pods", "ns", "web-0").expect("it is there");
    assert_eq!(pod["metadata"]["annotations"], annotations);
    api.asked(PLACE).iter().filter(|path| *path == PLACE).count()
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
