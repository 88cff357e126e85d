//! Resources as Kubernetes has them, on a real API server. `tools/test-kube` starts one and runs these.

mod kubernetes_support;

use api::{Condition, ConditionStatus, Key, Kind, Node, Resource, WorkloadEndpoint};
use backend::kubernetes::{CalicoGroup, KubernetesStore};
use datastore::{Revision, Scope, Store, StoreError, Stored, Update, WatchEvent};
use futures::StreamExt;
use kubernetes_support::{Only, kubectl, run, store};

const BOTH: [CalicoGroup; 2] = [CalicoGroup::V1, CalicoGroup::V3];

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn a_sample_of_every_kind_comes_back() {
    let samples = include_str!("kubernetes_support/samples.yaml");
    let samples = api::document::read("samples.yaml", samples).expect("the samples are right");
    let made_elsewhere = [
        Kind::Node,
        Kind::WorkloadEndpoint,
        Kind::Profile,
        Kind::KubernetesEndpointSlice,
    ];
    for kind in Kind::ALL.into_iter().filter(|kind| !made_elsewhere.contains(kind)) {
        assert!(
            samples.iter().any(|sample| sample.kind() == kind),
            "no sample of {kind}"
        );
    }
    for group in BOTH {
        run(async {
            let store = store(group);
            for sample in &samples {
                drop(store.delete(&sample.key(), None).await);
                let created = store.create(sample.clone()).await;
                let created = created.unwrap_or_else(|error| panic!("{} in {}: {error}", sample.key(), group.name()));
                let read = store.get(&sample.key()).await.expect("it answers");
                assert_eq!(read.as_ref(), Some(&created));
                assert_eq!(written(created.resource), *sample, "in {}", group.name());
                store.delete(&sample.key(), None).await.expect("it goes");
            }
        });
    }
}

/// A resource without what the server gives it.
fn written(mut resource: Resource) -> Resource {
    let metadata = resource.metadata_mut();
    (metadata.resource_version, metadata.uid) = (None, None);
    (metadata.creation_timestamp, metadata.generation) = (None, None);
    resource
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn kubectl_and_we_see_the_same_pool() {
    run(async {
        let store = store(CalicoGroup::V3);
        let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: seen}\nspec: {cidr: 10.66.0.0/16, vxlanMode: Never}\n";
        kubectl("apply -f -", pool);
        let shown = kubectl("get ippools.projectcalico.org seen", "");
        assert!(shown.contains("10.66.0.0/16"), "{shown}");
        kubectl(
            "patch ippools.projectcalico.org seen --type merge -p {\"spec\":{\"natOutgoing\":true}}",
            "",
        );
        let stored = store
            .get(&Key::cluster(Kind::IPPool, "seen"))
            .await
            .expect("it answers")
            .expect("it is there");
        let Resource::IPPool(pool) = &stored.resource else {
            panic!("a pool")
        };
        assert!(pool.spec.nat_outgoing);
        store
            .delete(&stored.resource.key(), Some(&stored.revision))
            .await
            .expect("it goes");
    });
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn what_is_said_of_a_pool_and_who_holds_it_leave_the_rest() {
    for group in BOTH {
        run(async {
            let store = store(group);
            let (domain, version) = (group.name(), group.version());
            let pool = format!(
                "apiVersion: {domain}/{version}\nkind: IPPool\nmetadata: {{name: plain}}\nspec: {{cidr: 10.67.0.0/16, natOutgoing: false}}\n"
            );
            kubectl("apply -f -", &pool);
            let key = Key::cluster(Kind::IPPool, "plain");
            let mut stored = store.get(&key).await.expect("it answers").expect("it is there");
            for reason in ["OK", "PoolDisabled", "PoolDisabled"] {
                let condition = Condition {
                    kind: "Allocatable".into(),
                    status: ConditionStatus::True,
                    observed_generation: stored.resource.metadata().generation,
                    last_transition_time: jiff::Timestamp::UNIX_EPOCH,
                    reason: reason.into(),
                    message: "x".into(),
                };
                let is_news = stored.resource.conditions() != [condition.clone()];
                assert!(stored.resource.set_condition(condition.clone()));
                let said = store.update_status(stored.resource, &stored.revision).await;
                let said = said.unwrap_or_else(|error| panic!("{domain}: {error}"));
                assert_eq!(said.resource.conditions(), [condition], "{domain}");
                assert_eq!(said.revision != stored.revision, is_news, "{domain} {reason}");
                stored = said;
            }
            let held = store
                .set_finalizers(&key, vec!["example.org/x".into()], &stored.revision)
                .await;
            let held = held.expect("it is held");
            let fields = "{.spec.natOutgoing} {.status.conditions[*].reason} {.metadata.finalizers[*]}";
            let shown = kubectl(
                &format!("get ippools.{domain} plain -o jsonpath={}", fields.replace(' ', "/")),
                "",
            );
            assert_eq!(shown, "false/PoolDisabled/example.org/x", "{domain}");
            let free = store
                .set_finalizers(&key, Vec::new(), &held.revision)
                .await
                .expect("it is free");
            store.delete(&key, Some(&free.revision)).await.expect("it goes");
        });
    }
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn a_pod_becomes_an_endpoint_when_it_has_an_address() {
    run(async {
        let store = store(CalicoGroup::V3);
        kubectl(
            "apply -f -",
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot, namespace: ns}\n",
        );
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0, namespace: ns}\nspec:\n  nodeName: n1\n  \
                   serviceAccountName: robot\n  automountServiceAccountToken: false\n  containers: [{name: c, image: none}]\n";
        kubectl("apply -f -", pod);
        let key = Key::namespaced(Kind::WorkloadEndpoint, "ns", "n1-k8s-web--0-eth0");
        assert_eq!(store.get(&key).await, Ok(None));
        let mut watch = store.watch(Scope::Kind(Kind::WorkloadEndpoint), None);
        while !matches!(watch.next().await, Some(Ok(WatchEvent::InSync(_)))) {}
        // As CNI ADD writes it.
        let mut endpoint = WorkloadEndpoint::new(&key.name, Default::default());
        endpoint.metadata.namespace = Some("ns".into());
        endpoint.spec.orchestrator = "k8s".into();
        (endpoint.spec.node, endpoint.spec.pod) = ("n1".into(), "web-0".into());
        (endpoint.spec.endpoint, endpoint.spec.container_id) = ("eth0".into(), "c0ffee".into());
        endpoint.spec.ip_networks = vec!["10.0.0.1/32".parse().expect("a prefix")];
        let created = store.create(endpoint.clone().into()).await.expect("it is written");
        assert_eq!(created.resource.key(), key);
        assert_eq!(next(&mut watch).await, (key.clone(), Some(created.resource.clone())));
        let Resource::WorkloadEndpoint(read) = &created.resource else {
            panic!("an endpoint")
        };
        assert_eq!(read.spec.profiles, ["kns.ns", "ksa.ns.robot"]);
        // A stale version changes nothing.
        let stale = store.update(endpoint.clone().into(), &Revision("1".into())).await;
        assert_eq!(stale, Err(StoreError::Conflict(key.clone())));
        let deleted = store.delete(&key, Some(&created.revision)).await.expect("it goes");
        assert_eq!(deleted, created);
        assert_eq!(next(&mut watch).await, (key.clone(), None));
        assert_eq!(store.get(&key).await, Ok(None));
        let annotations = kubectl("get pod web-0 -n ns -o jsonpath={.metadata.annotations}", "");
        assert!(
            annotations.contains("\"cni.projectcalico.org/podIP\":\"\""),
            "{annotations}"
        );
        kubectl("delete pod web-0 -n ns --force --grace-period=0", "");
        let gone = store.create(endpoint.into()).await;
        assert_eq!(gone, Err(StoreError::NotFound(key)));
    });
}

async fn next(
    watch: &mut (impl futures::Stream<Item = Result<WatchEvent, StoreError>> + Unpin),
) -> (Key, Option<Resource>) {
    match watch.next().await {
        Some(Ok(WatchEvent::Update(Update { key, value }, _))) => (key, value),
        other => panic!("no change but {other:?}"),
    }
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn a_node_is_annotated_and_nobody_elses_fields_change() {
    run(async {
        let store = store(CalicoGroup::V3);
        let document = "apiVersion: v1\nkind: Node\nmetadata: {name: n7, labels: {zone: a}, annotations: {other: x}}\nspec: {podCIDR: 10.244.7.0/24}\n";
        kubectl("apply -f -", document);
        let key = Key::cluster(Kind::Node, "n7");
        let first = store.get(&key).await.expect("it answers").expect("it is there");
        let Ok(mut node) = Node::try_from(first.resource) else {
            panic!("a node")
        };
        assert_eq!(node.spec.bgp, None);
        node.spec.bgp.get_or_insert_default().ipv4_address = "10.0.0.7/24".parse().ok();
        node.metadata.labels.insert("rack".into(), "7".into());
        let second = store
            .update(node.clone().into(), &first.revision)
            .await
            .expect("it is written");
        let Resource::Node(read) = &second.resource else {
            panic!("a node")
        };
        assert_eq!(read.spec.bgp, node.spec.bgp);
        assert_eq!(read.metadata.labels, node.metadata.labels);
        let stale = store.update(node.clone().into(), &first.revision).await;
        assert_eq!(stale, Err(StoreError::Conflict(key.clone())));
        assert_eq!(store.create(node.into()).await, Err(StoreError::Exists(key.clone())));
        let shown = kubectl(
            "get node n7 -o jsonpath={.metadata.labels.rack}/{.metadata.annotations.other}",
            "",
        );
        assert_eq!(shown, "/x");
        assert!(matches!(store.delete(&key, None).await, Err(StoreError::Refused(_))));
        kubectl("delete node n7", "");
        let unknown = store.create(Node::new("n8", Default::default()).into()).await;
        assert!(matches!(unknown, Err(StoreError::Refused(_))), "{unknown:?}");
    });
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn what_is_made_of_something_else_is_not_written_here() {
    run(async {
        let store = store(CalicoGroup::V3);
        let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: ns}\nspec: {podSelector: {}}\n";
        kubectl("apply -f -", policy);
        let keys = [
            Key::cluster(Kind::Profile, "kns.ns"),
            Key::cluster(Kind::Profile, "projectcalico-default-allow"),
            Key::namespaced(Kind::NetworkPolicy, "ns", "knp.default.closed"),
        ];
        for key in keys {
            let Stored { resource, revision } = store.get(&key).await.expect("it answers").expect("it is there");
            let listed = store.list(&Scope::Key(key.clone())).await.expect("it answers").items;
            assert_eq!(listed.len(), 1, "{key}");
            for refused in [
                store.create(resource.clone()).await,
                store.update(resource, &revision).await,
                store.delete(&key, None).await,
            ] {
                assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
            }
        }
        kubectl("delete networkpolicy.networking.k8s.io closed -n ns", "");
    });
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn a_version_from_before_the_servers_memory_means_list_again() {
    run(async {
        let store = store(CalicoGroup::V3);
        let mut watch = store.watch(Scope::Kind(Kind::GlobalNetworkSet), Some(Revision("1".into())));
        assert_eq!(watch.next().await, Some(Err(StoreError::Compacted)));
        assert_eq!(watch.next().await, None);
    });
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn what_upstream_marked_as_deleted_does_not_stand_in_the_way() {
    for group in BOTH {
        run(async {
            let store = store(group);
            let only = Only {
                store: store.clone(),
                kinds: &[Kind::IPAMHandle],
            };
            only.clear().await.expect("it is cleared");
            let handle = api::IpamHandle::new(
                "h",
                api::IpamHandleSpec {
                    handle_id: "h".into(),
                    ..Default::default()
                },
            );
            store.create(handle.clone().into()).await.expect("it is written");
            let resource = format!("ipamhandles.{}", group.name());
            kubectl(
                &format!("patch {resource} h --type merge -p {{\"spec\":{{\"deleted\":true}}}}"),
                "",
            );
            assert_eq!(store.get(&handle.key()).await, Ok(None));
            assert_eq!(
                only.list(&Scope::All).await.map(|listing| listing.items),
                Ok(Vec::new())
            );
            store.create(handle.clone().into()).await.expect("it is written again");
            store.delete(&handle.key(), None).await.expect("it goes");
        });
    }
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn trouble_is_named() {
    kubernetes_support::prepare();
    let server = kubectl(
        "config view --minify --raw -o jsonpath={.clusters[0].cluster.server}",
        "",
    );
    let admin = kubectl("config view --minify --raw -o json", "");
    let admin: serde_json::Value = serde_json::from_str(&admin).expect("it is JSON");
    let folder = tempfile::tempdir().expect("a folder");
    let check = |server: &str, user: serde_json::Value, expected: &str| {
        let mut config = admin.clone();
        config["clusters"][0]["cluster"]["server"] = server.into();
        config["users"][0]["user"] = user;
        let file = folder.path().join("config");
        std::fs::write(&file, config.to_string()).expect("it is written");
        let store = KubernetesStore::with_kubeconfig(Some(CalicoGroup::V3), file);
        let answer = run(async { store.list(&Scope::Kind(Kind::IPPool)).await });
        let error = answer.expect_err("it cannot").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let user = admin["users"][0]["user"].clone();
    check(
        "https://127.0.0.1:1",
        user.clone(),
        "the API server cannot be reached: ",
    );
    check(
        &server,
        serde_json::json!({ "token": "wrong" }),
        "does not accept our credentials",
    );
    let mut nobody = user;
    nobody["as"] = "nobody".into();
    check(&server, nobody, "no permission to list ippools.projectcalico.org");
}
