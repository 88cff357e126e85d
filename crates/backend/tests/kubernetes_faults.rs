//! What the store on Kubernetes says of an API server that does something wrong, and that it goes on by itself afterwards.
//!
//! The API server here is a small one of our own, over loopback; `tools/kube/outage` does what it can of this to a real one.

#[allow(dead_code, reason = "tests in virtual time use the rest")]
mod faults;

use std::time::Duration;

use api::{Key, Kind};
use backend::kubernetes::KubernetesStore;
use datastore::{Scope, Store, StoreError, SyncEvent, Syncer, WatchEvent};
use faults::{FakeApi, Fault, deaf_port, eventually};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};

/// Faults with the word and a part of the sentence that they are reported by.
const FAULTS: &[(Fault, &str, &str)] = &[
    (Fault::Refuses, "Unreachable", "Connection refused"),
    (Fault::Cuts, "BadAnswer", "connection closed before message completed"),
    (Fault::Truncates, "BadAnswer", "answered only half"),
    (Fault::Page(200), "BadAnswer", "no JSON"),
    (
        Fault::Page(302),
        "BadAnswer",
        "is there a proxy or load balancer in between?",
    ),
    (
        Fault::Page(403),
        "BadAnswer",
        "is there a proxy or load balancer in between?",
    ),
    (Fault::Page(502), "ServerError", "502"),
    (
        Fault::Status(401, "Unauthorized", "Unauthorized"),
        "Unauthorized",
        "does not accept our credentials",
    ),
    (
        Fault::Status(500, "InternalError", "etcdserver: leader changed"),
        "ServerError",
        "leader changed",
    ),
    (Fault::Starts, "ServerError", "starting"),
    (Fault::Status(429, "TooManyRequests", "later"), "ServerError", "429"),
    (
        Fault::Forbids,
        "Forbidden",
        "no permission to list ippools.projectcalico.org: add it to the role (RBAC)",
    ),
    (
        Fault::Undefined,
        "NotInstalled",
        "does not know ippools.projectcalico.org: is its CRD installed?",
    ),
    (Fault::Old, "VersionTooOld", "does not serve nodes: it is too old"),
];

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

fn store_at(api: &FakeApi) -> KubernetesStore {
    KubernetesStore::with_kubeconfig(None, api.kubeconfig("", ""))
}

/// What of everything is the trouble with a list of this kind.
fn kind_of(fault: Fault) -> Kind {
    match fault {
        Fault::Old => Kind::Node,
        _ => Kind::IPPool,
    }
}

async fn list(store: &KubernetesStore, kind: Kind) -> Result<Vec<String>, StoreError> {
    let listing = store.list(&Scope::Kind(kind)).await?;
    Ok(listing
        .items
        .into_iter()
        .map(|stored| stored.resource.key().name)
        .collect())
}

#[track_caller]
fn assert_said(error: &StoreError, word: &str, part: &str) {
    let text = error.to_string();
    assert!(
        error.reason() == word && text.contains(part),
        "{word}, {part}: {error:?}"
    );
}

#[test]
fn each_fault_at_the_start_has_its_reason_and_ends_by_itself() {
    run(async {
        let checks = FAULTS.iter().map(|(fault, word, part)| async move {
            let mut api = FakeApi::start(*fault).await;
            let store = store_at(&api);
            let kind = kind_of(*fault);
            assert_said(&list(&store, kind).await.expect_err("a fault"), word, part);
            api.becomes(Fault::None).await;
            eventually(word, async || list(&store, kind).await.is_ok()).await;
        });
        join_all(checks).await;
    });
}

#[test]
fn each_fault_at_run_time_is_said_while_the_watch_goes_on() {
    run(async {
        // What the server does not have any more ends the watch: it is listed again at once.
        let lasting = FAULTS
            .iter()
            .filter(|(fault, ..)| !matches!(fault, Fault::Undefined | Fault::Old));
        let checks = lasting.map(|(fault, word, _)| async move {
            let mut api = FakeApi::start(Fault::None).await;
            let store = store_at(&api);
            let mut watch = store.watch(Scope::Kind(Kind::IPPool), None);
            while !matches!(
                watch.next().await.expect("it goes on").expect("no error"),
                WatchEvent::InSync(_)
            ) {}
            // Watches are opened when somebody looks.
            assert!(watch.next().now_or_never().is_none());
            eventually("the watch", async || !api.asked("ippools?watch").is_empty()).await;
            api.becomes(*fault).await;
            eventually(word, async || {
                store.trouble().is_some_and(|trouble| trouble.reason.word() == *word)
            })
            .await;
            assert!(watch.next().now_or_never().is_none(), "{fault:?}: the watch goes on");
            api.becomes(Fault::None).await;
            api.add_pool("second");
            let Some(Ok(WatchEvent::Update(update, _))) = watch.next().await else {
                panic!("{fault:?}: the watch is lost")
            };
            assert_eq!(update.key, Key::cluster(Kind::IPPool, "second"));
            assert_eq!(store.trouble(), None, "{fault:?}");
        });
        join_all(checks).await;
    });
}

#[test]
fn a_server_that_says_nothing_is_too_slow() {
    run(async {
        let mut api = FakeApi::start(Fault::Tarpit).await;
        let store = store_at(&api);
        let mut asking = Box::pin(list(&store, Kind::IPPool));
        eventually("the question", async || {
            assert!(futures::poll!(&mut asking).is_pending());
            !api.asked("/apis").is_empty()
        })
        .await;
        assert_said(
            &asking.await.expect_err("no answer"),
            "TooSlow",
            "did not answer within 20 s",
        );
        api.becomes(Fault::None).await;
        eventually("an answer", async || list(&store, Kind::IPPool).await.is_ok()).await;
    });
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_named() {
    run(async {
        let api = FakeApi::with_tls().await;
        let folder = format!("{}/tests/faults", env!("CARGO_MANIFEST_DIR"));
        for (authority, part) in [("other-ca.crt", "UnknownIssuer"), ("server.crt", "elsewhere.example")] {
            let file = api.kubeconfig(&format!(", certificate-authority: \"{folder}/{authority}\""), "");
            let store = KubernetesStore::with_kubeconfig(None, file);
            assert_said(
                &list(&store, Kind::IPPool).await.expect_err("no trust"),
                "CertificateInvalid",
                part,
            );
        }
        // The kubeconfig is corrected: the same store goes on.
        let file = api.kubeconfig(&format!(", certificate-authority: \"{folder}/other-ca.crt\""), "");
        let store = KubernetesStore::with_kubeconfig(None, file);
        list(&store, Kind::IPPool).await.expect_err("no trust");
        api.kubeconfig(", insecure-skip-tls-verify: true", "");
        eventually("trust", async || list(&store, Kind::IPPool).await.is_ok()).await;
    });
}

#[test]
fn a_proxy_that_does_not_answer_is_named() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        let deaf = deaf_port().await;
        let file = api.kubeconfig(&format!(", proxy-url: \"http://{deaf}\""), "");
        let store = KubernetesStore::with_kubeconfig(None, file);
        let error = list(&store, Kind::IPPool).await.expect_err("no proxy");
        assert_said(&error, "ProxyUnreachable", &format!("the proxy http://{deaf} "));
    });
}

#[test]
fn a_token_that_is_renewed_is_used_as_soon_as_the_old_one_is_refused() {
    run(async {
        let mut api = FakeApi::start(Fault::None).await;
        let file = api.folder.path().join("token");
        std::fs::write(&file, "old\n").expect("it is written");
        api.wants("old").await;
        let store =
            KubernetesStore::with_kubeconfig(None, api.kubeconfig("", &format!("tokenFile: \"{}\"", file.display())));
        assert_eq!(
            list(&store, Kind::IPPool).await.as_deref(),
            Ok(&["first".to_owned()][..])
        );
        api.wants("new").await;
        assert_said(
            &list(&store, Kind::IPPool).await.expect_err("refused"),
            "Unauthorized",
            "wrong or expired",
        );
        std::fs::write(&file, "new").expect("it is written");
        let unusable = api.folder.path().join("unusable");
        std::fs::write(&unusable, "new\nnew").expect("it is written");
        let user = format!("tokenFile: \"{}\"", unusable.display());
        let other = FakeApi::start(Fault::None).await;
        let refused = KubernetesStore::with_kubeconfig(None, other.kubeconfig("", &user));
        let error = list(&refused, Kind::IPPool).await.expect_err("two lines");
        assert_said(&error, "Unauthorized", "in one line");
        let began = std::time::Instant::now();
        eventually("the new token", async || list(&store, Kind::IPPool).await.is_ok()).await;
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    });
}

/// Follows everything until it is in sync; what was said.
async fn in_sync(syncer: &mut Syncer) -> Vec<String> {
    let mut said = Vec::new();
    loop {
        match syncer.next().await.expect("it never ends") {
            SyncEvent::InSync => return said,
            SyncEvent::Updates(updates) => said.extend(updates.into_iter().map(|update| {
                let sign = if update.value.is_some() { '+' } else { '-' };
                format!("{sign}{}", update.key.name)
            })),
            SyncEvent::Disconnected(error) => said.push(error.to_string()),
        }
    }
}

fn syncer(store: &KubernetesStore) -> Syncer {
    let wait = |_| tokio::time::sleep(Duration::from_millis(50)).boxed();
    Syncer::new(std::sync::Arc::new(store.clone()), store.whole(), wait)
}

/// Until an update with this text.
async fn until(syncer: &mut Syncer, text: &str) {
    loop {
        match syncer.next().await.expect("it never ends") {
            SyncEvent::Updates(updates) => {
                let mut said = updates.iter().map(|update| {
                    let sign = if update.value.is_some() { '+' } else { '-' };
                    format!("{sign}{}", update.key.name)
                });
                if said.any(|said| said == text) {
                    return;
                }
            }
            SyncEvent::InSync => {}
            SyncEvent::Disconnected(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_version_that_is_forgotten_lists_that_kind_alone() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        let store = store_at(&api);
        let mut syncer = syncer(&store);
        assert_eq!(in_sync(&mut syncer).await, ["+first", "+projectcalico-default-allow"]);
        let before = api.asked("?limit=").len();
        api.forget();
        api.add_pool("second");
        until(&mut syncer, "+second").await;
        let lists = api.asked("?limit=");
        let again: Vec<&str> = lists[before..].iter().map(String::as_str).collect();
        assert_eq!(again, ["/apis/projectcalico.org/v3/ippools?limit=500"]);
    });
}

#[test]
fn data_from_a_backup_are_noticed_and_read_again() {
    run(async {
        let mut api = FakeApi::start(Fault::None).await;
        let store = store_at(&api);
        let mut syncer = syncer(&store);
        in_sync(&mut syncer).await;
        // Pools alone are ahead of what is restored; the other kinds have no way to know it.
        api.add_pool("second");
        until(&mut syncer, "+second").await;
        api.add_pool("third");
        until(&mut syncer, "+third").await;
        let before = api.asked("?limit=500").len();
        api.restore(101).await;
        let mut gone = false;
        let mut restored = false;
        while !(gone && restored) {
            if let SyncEvent::Updates(updates) = syncer.next().await.expect("it never ends") {
                gone |= updates
                    .iter()
                    .any(|update| update.key.name == "first" && update.value.is_none());
                restored |= updates
                    .iter()
                    .any(|update| update.key.name == "restored" && update.value.is_some());
            }
        }
        eventually("lists of all kinds", async || {
            let _ = syncer.next().now_or_never();
            api.asked("?limit=500").len() >= before + Kind::ALL.len()
        })
        .await;
    });
}

/// What only others know, and defaults that they wrote out, cannot be lost by what is not written.
#[test]
fn finalizers_and_status_are_written_alone() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        let store = store_at(&api);
        let key = Key::cluster(Kind::IPPool, "first");
        let mut stored = store.get(&key).await.expect("it answers").expect("it is there");
        let finalizers = vec!["x/y".to_owned()];
        let set = store.set_finalizers(&key, finalizers.clone(), &stored.revision).await;
        let set = set.expect("it is held");
        assert_eq!(
            set.resource.metadata().finalizers,
            finalizers,
            "what the server answered"
        );
        stored = set;
        let condition = api::Condition {
            kind: "Allocatable".into(),
            status: api::ConditionStatus::True,
            observed_generation: None,
            last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            reason: "OK".into(),
            message: String::new(),
        };
        assert!(stored.resource.set_condition(condition));
        let said = store.update_status(stored.resource, &stored.revision).await;
        assert!(said.is_ok(), "{said:?}");
        let path = "/apis/projectcalico.org/v3/ippools/first";
        let written = api.written();
        let places: Vec<(&str, &str)> = written.iter().map(|(method, path, _)| (&**method, &**path)).collect();
        assert_eq!(places, [("PATCH", path), ("PUT", &format!("{path}/status"))]);
        let patch = serde_json::json!({ "metadata": { "finalizers": ["x/y"], "resourceVersion": "50" } });
        assert_eq!(written[0].2, patch);
    });
}
