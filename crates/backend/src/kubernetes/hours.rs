//! Hours of the store's life in virtual time, against an API server that lies in memory: what it asks at rest and in an outage.

#[allow(dead_code, reason = "the tests over loopback use the rest")]
#[path = "../../tests/faults/mod.rs"]
mod faults;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{Key, Kind};
use datastore::{Scope, Store, StoreError, SyncEvent, Syncer, WatchEvent};
use futures::{FutureExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, sleep};

use self::faults::{FakeApi, Fault, eventually};
use super::KubernetesStore;
use super::link::{Link, wait};
use super::table::ROWS;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Kinds that [`FakeApi`] does not have.
const MISSING: usize = 2;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(test);
}

fn store_with(api: &FakeApi, user: &str) -> KubernetesStore {
    // Named, so that the system's own authorities are not read each time.
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/other-ca.crt");
    let cluster = format!(", certificate-authority: \"{authority}\"");
    let (file, wire): (PathBuf, _) = (api.kubeconfig(&cluster, user), api.wire());
    let connect = move || wire::api(file.clone(), wire.clone()).boxed();
    KubernetesStore::over(Link::new(None, Box::new(connect)))
}

/// Somebody who follows everything, as agents do, and what was said to him.
#[derive(Clone, Default)]
struct Follower(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    in_sync: bool,
    /// How often the datastore was said to be lost: each is a line in an agent's log.
    losses: usize,
    /// How often a resource was said to be there.
    there: BTreeMap<String, usize>,
}

impl Follower {
    fn of(store: &KubernetesStore) -> Self {
        let follower = Self::default();
        let heard = Arc::clone(&follower.0);
        let backoff = |attempt| sleep(wait(attempt)).boxed();
        let mut syncer = Syncer::new(Arc::new(store.clone()), store.whole(), backoff);
        tokio::spawn(async move {
            while let Some(event) = syncer.next().await {
                let mut heard = heard.lock().expect("not poisoned");
                match event {
                    SyncEvent::InSync => heard.in_sync = true,
                    SyncEvent::Disconnected(_) => {
                        heard.in_sync = false;
                        heard.losses += 1;
                    }
                    SyncEvent::Updates(updates) => {
                        for update in updates.into_iter().filter(|update| update.value.is_some()) {
                            *heard.there.entry(update.key.name).or_default() += 1;
                        }
                    }
                }
            }
        });
        follower
    }

    fn with<T>(&self, of: impl FnOnce(&Heard) -> T) -> T {
        of(&self.0.lock().expect("not poisoned"))
    }

    async fn in_sync(&self) {
        eventually("in sync", async || self.with(|heard| heard.in_sync)).await;
    }

    /// How often it heard that a resource is there.
    fn heard(&self, name: &str) -> usize {
        self.with(|heard| heard.there.get(name).copied().unwrap_or(0))
    }
}

/// How many fell into each window of so long, counted from `began`.
fn windows(times: impl IntoIterator<Item = Instant>, began: Instant, window: Duration) -> BTreeMap<u64, usize> {
    let mut windows = BTreeMap::new();
    for time in times {
        *windows.entry((time - began).as_secs() / window.as_secs()).or_default() += 1;
    }
    windows
}

#[test]
fn at_rest_there_is_one_watch_a_kind_that_goes_on_and_no_list() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        let store = store_with(&api, "");
        let followers = [Follower::of(&store), Follower::of(&store)];
        for follower in &followers {
            follower.in_sync().await;
        }
        let mut one = store.watch(Scope::Key(Key::cluster(Kind::IPPool, "first")), None);
        while !matches!(one.next().await, Some(Ok(WatchEvent::InSync(_)))) {}
        tokio::spawn(one.for_each(|_| async {}));
        let (began, lists, all) = (Instant::now(), api.asked("limit=").len(), api.asked("").len());
        sleep(4 * HOUR).await;
        api.add_pool("second");
        sleep(SECOND).await;
        for follower in &followers {
            assert_eq!(follower.heard("second"), 1);
            assert!(follower.with(|heard| heard.in_sync && heard.losses == 0));
        }

        assert_eq!(api.asked("limit=").len(), lists, "no list");
        assert_eq!(api.most_watches(), 1, "of a kind at the same time");
        let watches = api.asked_at("watch=true");
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, path) in &watches {
            *kinds.entry(path.split('?').next().unwrap_or_default()).or_default() += 1;
        }
        assert_eq!(kinds.len(), ROWS.len() - MISSING);
        for (path, count) in &kinds {
            assert!((48..=82).contains(count), "{path}: {count} times in four hours");
        }
        // All began at once. The first of them end after three minutes, the last after five, and never half of them together.
        let again = watches.iter().map(|(at, _)| *at).filter(|at| *at > began + SECOND);
        let windows = windows(again, began, 10 * SECOND);
        assert!(windows.keys().next().is_some_and(|first| *first >= 17), "{windows:?}");
        assert!(windows.values().all(|count| *count <= kinds.len() / 2), "{windows:?}");
        // Besides: discovery, for what is missing.
        let others: Vec<String> = api.asked("").split_off(all);
        let others: Vec<&String> = others.iter().filter(|path| !path.contains("watch=true")).collect();
        assert!(
            others
                .iter()
                .all(|path| path.starts_with("/apis/") && path.matches('/').count() == 3),
            "{others:?}"
        );
        let a_minute = api.asked("").split_off(all).len() as f64 / 240.0;
        assert!(a_minute < 12.0, "{a_minute} requests a minute");
    });
}

#[test]
fn what_is_missing_is_asked_for_once_a_minute_for_all_and_found() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        api.lacks(&["tiers", "ipreservations", "bgpfilters", "stagednetworkpolicies"]);
        let store = store_with(&api, "");
        let followers = [Follower::of(&store), Follower::of(&store)];
        for follower in &followers {
            follower.in_sync().await;
        }
        let lists = api.asked("limit=").len();
        sleep(HOUR).await;
        assert_eq!(api.asked("limit=").len(), lists, "no list");
        for group in ["/apis/projectcalico.org/v3", "/apis/policy.networking.k8s.io/v1alpha2"] {
            let asked = api.asked(group).into_iter().filter(|path| path == group).count();
            assert!((40..=80).contains(&asked), "{group}: {asked} times in an hour");
        }
        api.lacks(&["ipreservations"]);
        sleep(2 * MINUTE).await;
        let found: Vec<String> = api.asked("limit=").split_off(lists);
        assert_eq!(found.len(), 3 * followers.len(), "{found:?}");
        assert_eq!(api.asked("/tiers?watch=true").len(), 1);
        assert!(api.asked("/ipreservations?watch=true").is_empty());
    });
}

#[test]
fn a_server_that_has_just_been_started_deletes_no_kind() {
    run(async {
        let api = FakeApi::start(Fault::None).await;
        let store = store_with(&api, "");
        let tiers = async || {
            store
                .list(&Scope::Kind(Kind::Tier))
                .await
                .map(|listed| listed.items.len())
        };
        assert_eq!(tiers().await.ok(), Some(0));
        api.hides(&["tiers"]);
        let error = tiers().await.expect_err("discovery names them");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        api.hides(&[]);
        assert_eq!(tiers().await.ok(), Some(0));
        api.lacks(&["tiers"]);
        assert_eq!(
            tiers().await.ok(),
            Some(0),
            "there is nothing of a kind that it does not have"
        );
    });
}

#[test]
fn a_bookmark_moves_where_a_watch_goes_on() {
    let check = |bookmarks: bool, lists_again: usize| {
        run(async move {
            let api = FakeApi::start(Fault::None).await;
            if bookmarks {
                api.knows_where_it_is();
            }
            let store = store_with(&api, "");
            let follower = Follower::of(&store);
            follower.in_sync().await;
            let lists = api.asked("limit=").len();
            for _ in 0..6 {
                // Other kinds change, and every watch comes to a server that was started since.
                api.passes(1000);
                sleep(2 * MINUTE).await;
                api.forgets(1);
                sleep(8 * MINUTE).await;
                let again = api.asked("limit=").split_off(lists);
                let at_most = again
                    .iter()
                    .map(|path| again.iter().filter(|other| *other == path).count())
                    .max();
                assert!(
                    at_most.unwrap_or(0) <= 6,
                    "once a kind for each time that it was forgotten: {again:?}"
                );
            }
            let again = api.asked("limit=").len() - lists;
            assert_eq!(again, lists_again, "bookmarks: {bookmarks}");
            assert!(follower.with(|heard| heard.in_sync));
        });
    };
    check(true, 0);
    check(false, 6 * (ROWS.len() - MISSING));
}

/// What would be tried in vain, for hours and again and again, is not begun.
#[test]
fn what_was_seen_of_a_pod_does_not_count_while_the_server_is_away() {
    run(async {
        let mut api = FakeApi::start(Fault::None).await;
        api.add(
            "namespaces",
            json!({ "kind": "Namespace", "metadata": { "name": "ns", "uid": "ns" } }),
        );
        let store = store_with(&api, "");
        let follower = Follower::of(&store);
        follower.in_sync().await;
        let metadata = json!({ "namespace": "ns", "name": "p", "uid": "1" });
        api.add(
            "pods",
            json!({ "kind": "Pod", "metadata": metadata, "spec": { "nodeName": "n1" }, "status": {} }),
        );
        let asks = async || store.workload("ns", "p", Some("1")).await.map(|known| known.is_some());
        eventually("the pod is seen", async || {
            let before = api.asked("/pods/p").len();
            asks().await == Ok(true) && api.asked("/pods/p").len() == before
        })
        .await;
        for wait in [Duration::from_secs(1), 10 * MINUTE] {
            api.becomes(Fault::Refuses).await;
            sleep(wait).await;
            let answer = asks().await;
            assert!(
                matches!(answer, Err(StoreError::Unavailable(_))),
                "{wait:?}: {answer:?}"
            );
            api.becomes(Fault::None).await;
            eventually("it counts again", async || asks().await == Ok(true)).await;
        }
    });
}

/// Counts lines that people would see in a log.
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(|heard| write!(f, "in sync: {}, lost {} times", heard.in_sync, heard.losses))
    }
}

#[test]
fn hours_without_an_answer_cost_little_and_end_at_once() {
    let check = |fault: Fault| {
        let lines = Arc::new(AtomicUsize::new(0));
        let counted = tracing::subscriber::set_default(Lines(Arc::clone(&lines)));
        run(async {
            let mut api = FakeApi::start(Fault::None).await;
            let token = api.folder.path().join("token");
            std::fs::write(&token, "old").expect("it is written");
            api.wants("old").await;
            let store = store_with(&api, &format!("tokenFile: \"{}\"", token.display()));
            let follower = Follower::of(&store);
            follower.in_sync().await;
            let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();

            let began = Instant::now();
            api.becomes(fault).await;
            sleep(10 * MINUTE).await;
            // Whoever asks has a few, and somebody asks every now and then.
            let most_tasks = async || {
                let mut most = 0;
                for _ in 0..60 {
                    sleep(SECOND).await;
                    most = most.max(tasks());
                }
                most
            };
            let after_minutes = most_tasks().await;
            sleep(3 * HOUR - 10 * MINUTE).await;
            let after_hours = most_tasks().await;
            assert!(
                after_hours <= after_minutes + 2,
                "{fault:?}: {after_hours} tasks, were {after_minutes}"
            );
            assert_eq!(
                store.shared.feeds.iter().filter(|feed| feed.is_running()).count(),
                0,
                "{fault:?}"
            );
            assert!(follower.with(|heard| heard.losses <= 2), "{fault:?}: {follower:?}");
            assert_eq!(
                lines.load(Ordering::Relaxed),
                0,
                "{fault:?}: the store itself says nothing"
            );
            // In the end it is asked every ten seconds or so, never in step.
            let asked = match fault {
                Fault::Refuses => api.dialled(),
                _ => api.asked_at("").into_iter().map(|(at, _)| at).collect(),
            };
            let asked: Vec<Instant> = asked.into_iter().filter(|at| *at > began + 10 * MINUTE).collect();
            let gaps: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (gaps.iter().min().copied(), gaps.iter().max().copied());
            assert!(
                most < Some(45 * SECOND) && least < most,
                "{fault:?}: {least:?} to {most:?}"
            );
            assert!(
                (200..=1200).contains(&asked.len()),
                "{fault:?}: asked {} times",
                asked.len()
            );

            // Meanwhile the token was renewed, another pool came, and the history was forgotten.
            std::fs::write(&token, "new").expect("it is written");
            api.wants("new").await;
            api.passes(1000);
            api.add_pool("second");
            api.forgets(0);
            let before = api.asked("limit=").len();
            let ended = Instant::now();
            api.becomes(Fault::None).await;
            eventually("everything is there", async || {
                follower.with(|heard| heard.in_sync) && follower.heard("second") == 1
            })
            .await;
            let back = ended.elapsed();
            assert!(back < 45 * SECOND, "{fault:?}: {back:?}");
            sleep(10 * MINUTE).await;
            let lists = api.asked("limit=").split_off(before);
            // One of them may have found the old token.
            assert!(
                (0..=3).contains(&(lists.len() - (ROWS.len() - MISSING))),
                "{fault:?}: {lists:?}"
            );
            assert_eq!(follower.heard("first"), 1, "{fault:?}: what did not change is not news");
            assert_eq!(store.trouble(), None, "{fault:?}");
        });
        drop(counted);
    };
    for fault in [Fault::Refuses, Fault::Tarpit, Fault::Cuts, Fault::Page(502)] {
        check(fault);
    }
}
