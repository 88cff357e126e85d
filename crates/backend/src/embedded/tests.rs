//! The embedded store as a whole: the contract in process and over the socket, restarts, damage, misbehaving clients.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Kind, Object, ProfileSpec, Resource};
use datastore::contract::{Subject, all};
use datastore::{Revision, Scope, SharedStore, Store, StoreError, Stored, SyncEvent, Syncer, Update, WatchEvent};
use futures::future::{FutureExt, join_all};
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::engine::KEPT;
use super::wire::{Frames, PROTOCOL, Reply, Request, frame};
use super::*;
use crate::ConnectError;

#[tokio::test]
async fn in_process_it_keeps_the_contract() {
    for (name, check) in all() {
        let dir = dir();
        let server = Server::open(&dir.path().join("store")).unwrap();
        let subject = Subject::new(server.store()).with_compact(compact(&server));
        timely(check(subject))
            .await
            .unwrap_or_else(|why| panic!("{name}: {why}"));
    }
}

#[tokio::test]
async fn over_the_socket_it_keeps_the_contract() {
    for (name, check) in all() {
        let dir = dir();
        let server = Server::open(&dir.path().join("store")).unwrap();
        let compact = compact(&server);
        let served = Served::start(server, &dir).await;
        let subject = Subject::new(served.client().await).with_compact(compact);
        timely(check(subject))
            .await
            .unwrap_or_else(|why| panic!("{name}: {why}"));
        served.stop().await;
    }
}

#[tokio::test]
async fn the_contract_holds_with_a_connection_per_writer_too() {
    let dir = dir();
    let served = Served::start(Server::open(&dir.path().join("store")).unwrap(), &dir).await;
    let clients = join_all((0..8).map(|_| served.client())).await;
    let increments = clients.iter().map(|client| async move {
        for _ in 0..10 {
            datastore::modify(client.as_ref(), &key("n"), |now: Option<Object<ProfileSpec>>| {
                let count = now.map_or(0, |now| now.metadata.labels["n"].parse::<u32>().unwrap());
                Ok::<_, StoreError>((datastore::Edit::Put(object("n", &(count + 1).to_string())), ()))
            })
            .await
            .unwrap();
        }
    });
    join_all(increments).await;
    assert_eq!(label(&clients[0].get(&key("n")).await.unwrap().unwrap()), "80");
    served.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_resources_revisions_and_watches() {
    let dir = dir();
    let path = dir.path().join("store");
    let (start, first, second);
    {
        let store = Server::open(&path).unwrap().store();
        start = store.list(&Scope::All).await.unwrap().revision;
        first = store.create(profile("a", "1")).await.unwrap();
        second = store.create(profile("b", "1")).await.unwrap();
        store.delete(&key("b"), None).await.unwrap();
    }
    let store = Server::open(&path).unwrap().store();
    assert_eq!(store.get(&key("a")).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.get(&key("b")).await.unwrap(), None);
    let third = store.update(profile("a", "2"), &first.revision).await.unwrap();
    assert!(![&start, &first.revision, &second.revision].contains(&&third.revision));
    let seen: Vec<_> = store
        .watch(Scope::All, Some(start))
        .take(4)
        .map_ok(text)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(seen, ["a=1", "b=1", "b gone", "a=2"]);
}

#[tokio::test]
async fn a_restored_backup_gives_no_revision_a_second_time() {
    let dir = dir();
    let (path, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let before = Server::open(&path).unwrap().store().create(profile("a", "1")).await;
    let before = before.unwrap().revision;
    std::fs::copy(&path, &backup).unwrap();
    let lost = {
        let store = Server::open(&path).unwrap().store();
        store.create(profile("b", "lost")).await.unwrap().revision
    };
    std::fs::rename(&backup, &path).unwrap();
    for restart in ["restored", "once more"] {
        let store = Server::open(&path).unwrap().store();
        let listed = store.list(&Scope::All).await.unwrap().revision;
        let written = store.create(profile(restart, "1")).await.unwrap().revision;
        assert!(number_of(&listed) > number_of(&lost) && number_of(&written) > number_of(&listed));
        let mut from_lost = store.watch(Scope::All, Some(lost.clone()));
        assert_eq!(from_lost.next().await, Some(Err(StoreError::Compacted)), "{restart}");
        // What was known before the backup is still followed.
        let next = store.watch(Scope::All, Some(before.clone())).next().await;
        assert_eq!(text(next.unwrap().unwrap()), "restored=1");
    }
}

#[tokio::test]
async fn the_log_in_the_file_is_trimmed_and_a_restart_knows_how_far_it_goes() {
    let dir = dir();
    let path = dir.path().join("store");
    let start;
    {
        let store = Server::open(&path).unwrap().store();
        start = store.list(&Scope::All).await.unwrap().revision;
        fill(&store, KEPT.changes + 1500).await;
    }
    let server = Server::open(&path).unwrap();
    let store = server.store();
    assert_eq!(
        store.watch(Scope::All, Some(start.clone())).next().await,
        Some(Err(StoreError::Compacted))
    );
    let kept = Revision((number_of(&start) + 1500).to_string());
    let changes = store.watch(Scope::All, Some(kept)).take(KEPT.changes);
    assert_eq!(
        changes.filter(|event| std::future::ready(event.is_ok())).count().await,
        KEPT.changes
    );
}

#[tokio::test]
async fn a_new_file_does_not_accept_an_old_files_revisions() {
    let dir = dir();
    let old = Server::open(&dir.path().join("old"))
        .unwrap()
        .store()
        .create(profile("a", "1"))
        .await
        .unwrap();
    let later = Revision((number_of(&old.revision) - (1 << 20)).to_string());
    let store = Server::open(&dir.path().join("new")).unwrap().store();
    store.create(profile("a", "1")).await.unwrap();
    assert_eq!(
        store.watch(Scope::All, Some(later)).next().await,
        Some(Err(StoreError::Compacted))
    );
}

#[test]
fn a_file_in_use_is_refused() {
    let dir = dir();
    let path = dir.path().join("store");
    let first = Server::open(&path).unwrap();
    let second = Server::open(&path).map(drop);
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    drop(first);
    Server::open(&path).unwrap();
}

#[test]
fn the_file_is_for_its_user_alone() {
    let dir = dir();
    let path = dir.path().join("store");
    Server::open(&path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = dir();
    let good = dir.path().join("good");
    fill(&Server::open(&good).unwrap().store(), 200).await;
    let good = fs::read(good).unwrap();
    let damaged = |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let path = dir.path().join(name);
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        Server::open(&path).map(drop)
    };
    let results = [
        (
            "text",
            damaged("text", &|bytes| *bytes = b"not a store at all\n".repeat(100)),
        ),
        ("short", damaged("short", &|bytes| bytes.truncate(bytes.len() / 2))),
        ("header", damaged("header", &|bytes| bytes[..64].fill(0xff))),
        (
            "middle",
            damaged("middle", &|bytes| {
                let half = bytes.len() / 2;
                // Somewhere in the middle there is data, wherever redb put it.
                bytes[4096..half].iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
            }),
        ),
    ];
    for (name, result) in results {
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[test]
fn another_programs_file_and_a_newer_format_are_refused() {
    let dir = dir();
    let path = dir.path().join("store");
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let write = |rows: &[(&str, u64)]| {
        let db = redb::Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        rows.iter()
            .for_each(|(name, value)| drop(txn.open_table(table).unwrap().insert(name, value).unwrap()));
        txn.commit().unwrap();
    };
    write(&[("something", 1)]);
    let foreign = Server::open(&path).map(drop);
    assert!(matches!(foreign, Err(OpenError::Corrupt { .. })), "{foreign:?}");
    write(&[("format", 2)]);
    let newer = Server::open(&path).map(drop);
    assert!(matches!(newer, Err(OpenError::Newer { found: 2, .. })), "{newer:?}");
}

#[test]
fn a_file_that_cannot_be_opened_says_why() {
    let dir = dir();
    let missing = Server::open(&dir.path().join("no/such/directory")).map(drop);
    assert!(matches!(missing, Err(OpenError::Io { .. })), "{missing:?}");
}

#[tokio::test]
async fn the_socket_is_private_replaces_a_stale_one_and_goes_at_the_end() {
    let dir = dir();
    let socket = dir.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a dead server leaves its socket behind");
    let served = Served::start(Server::open(&dir.path().join("store")).unwrap(), &dir).await;
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let other = Server::open(&dir.path().join("other"))
        .unwrap()
        .bind(&socket)
        .await
        .map(drop);
    assert!(matches!(other, Err(ServeError::SocketInUse { .. })), "{other:?}");
    served.client().await.create(profile("a", "1")).await.unwrap();
    served.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_is_not_a_socket_is_not_replaced() {
    let dir = dir();
    let path = dir.path().join("file");
    fs::write(&path, "precious").unwrap();
    let refused = Server::open(&dir.path().join("store"))
        .unwrap()
        .bind(&path)
        .await
        .map(drop);
    assert!(matches!(refused, Err(ServeError::NotASocket { .. })), "{refused:?}");
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

#[tokio::test]
async fn without_a_server_the_error_says_so() {
    let dir = dir();
    let missing = Client::connect(&dir.path().join("none")).await.map(drop);
    assert!(matches!(missing, Err(ConnectError::NotRunning { .. })), "{missing:?}");
    let socket = dir.path().join("other");
    let listener = UnixListener::bind(&socket).unwrap();
    let (other, ()) = futures::join!(Client::connect(&socket), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    assert!(matches!(other.map(drop), Err(ConnectError::Protocol { .. })));
}

#[tokio::test]
async fn a_malformed_frame_closes_its_connection_only() {
    let dir = dir();
    let served = Served::start(Server::open(&dir.path().join("store")).unwrap(), &dir).await;
    let client = served.client().await;
    let hello = frame(1, &Request::Hello { protocol: PROTOCOL }).unwrap();
    let get = frame(2, &Request::Get(key("a"))).unwrap();
    for bad in [
        get.clone(),                                       // no hello
        [&hello[..], b"\0\0\0\x05[1,2"].concat(),          // not JSON
        [&hello[..], b"\0\0\0\x0b[3,\"Steal\"]"].concat(), // no such request
        [&hello[..], b"\xff\xff\xff\xff"].concat(),        // too large
        [&hello[..], b"\0\0\0\0"].concat(),                // empty
        hello[..7].to_vec(),                               // ends in its midst
    ] {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(&bad).await.unwrap();
        stream.shutdown().await.unwrap();
        // Closed by the server, with no more than the hello answered.
        let mut answer = Vec::new();
        timely(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("Absent"), "{bad:?}");
        client.get(&key("a")).await.unwrap();
    }
    served.stop().await;
}

#[tokio::test]
async fn a_refused_resource_says_why_and_leaves_the_connection() {
    let dir = dir();
    let served = Served::start(Server::open(&dir.path().join("store")).unwrap(), &dir).await;
    let client = served.client().await;
    let large = client.create(profile("a", &"x".repeat(MAX_VALUE))).await;
    assert!(
        matches!(&large, Err(StoreError::Refused(why)) if why.contains("the limit is")),
        "{large:?}"
    );
    // A client that does not check: raw requests.
    let stream = Arc::new(UnixStream::connect(&served.socket).await.unwrap());
    let mut frames = Frames::new(Arc::clone(&stream));
    let raw = |json: &str| serde_json::value::RawValue::from_string(json.into()).unwrap();
    let requests = [
        Request::Hello { protocol: PROTOCOL },
        Request::Create(raw("{\"kind\":\"Nothing\"}")),
        Request::Create(raw("{\"kind\":\"Profile\",\"metadata\":{\"name\":\"\"},\"spec\":{}}")),
        Request::Create(raw(
            "{\"kind\":\"Profile\",\"metadata\":{\"name\":\"b\",\"resourceVersion\":\"7\"},\"spec\":{}}",
        )),
    ];
    let mut said = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        stream.writable().await.unwrap();
        stream.try_write(&frame(id as u64, request).unwrap()).unwrap();
        said.push(
            match timely(frames.next::<Reply<serde_json::Value>>())
                .await
                .unwrap()
                .unwrap()
                .1
            {
                Reply::Failed(StoreError::Refused(_)) => "refused",
                Reply::Hello { .. } => "hello",
                Reply::Written(_) => "written",
                other => panic!("{other:?}"),
            },
        );
    }
    assert_eq!(said, ["hello", "refused", "refused", "written"]);
    let read = client.get(&key("b")).await.unwrap().unwrap();
    assert_eq!(
        read.resource.metadata().resource_version.as_ref(),
        Some(&read.revision.0)
    );
    served.stop().await;
}

#[tokio::test]
async fn a_slow_watcher_lists_again_and_holds_nobody_up() {
    let dir = dir();
    let server = Server::open(&dir.path().join("store")).unwrap();
    let served = Served::start(server, &dir).await;
    let client = served.client().await;
    let mut slow = client.watch(Scope::All, None);
    assert!(matches!(slow.next().await, Some(Ok(WatchEvent::InSync(_)))));
    fill(&client, KEPT.changes * 2).await;
    let mut seen = 0;
    let end = loop {
        match timely(slow.next()).await {
            Some(Ok(_)) => seen += 1,
            end => break end,
        }
    };
    assert_eq!(end, Some(Err(StoreError::Compacted)));
    assert!(seen <= 2 * wire::CREDIT as usize, "{seen} changes were queued for it");
    assert_eq!(slow.next().await, None);
    served.stop().await;
}

#[tokio::test]
async fn a_large_list_comes_whole() {
    let dir = dir();
    let served = Served::start(Server::open(&dir.path().join("store")).unwrap(), &dir).await;
    let client = served.client().await;
    let body = "x".repeat(100_000);
    let created = join_all((0..60).map(|n| client.create(profile(&format!("p{n:03}"), &body)))).await;
    let created: Vec<Stored> = created.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(timely(client.list(&Scope::All)).await.unwrap().items, created);
    let watched = client.watch(Scope::All, None).take(61).try_collect::<Vec<_>>();
    assert_eq!(timely(watched).await.unwrap().len(), 61);
    served.stop().await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again_without_an_error() {
    let dir = dir();
    let path = dir.path().join("store");
    let served = Served::start(Server::open(&path).unwrap(), &dir).await;
    let client = served.client().await;
    let first = client.create(profile("a", "1")).await.unwrap();
    let mut watch = client.watch(Scope::All, Some(first.revision.clone()));
    assert_eq!(watch.next().now_or_never(), None);
    served.stop().await;
    assert!(matches!(
        timely(watch.next()).await,
        Some(Err(StoreError::Unavailable(_)))
    ));
    assert_eq!(watch.next().await, None);
    assert!(matches!(client.get(&key("a")).await, Err(StoreError::Unavailable(_))));
    let served = Served::start(Server::open(&path).unwrap(), &dir).await;
    let second = timely(client.update(profile("a", "2"), &first.revision)).await.unwrap();
    let mut watch = client.watch(Scope::All, Some(first.revision));
    assert_eq!(
        timely(watch.next()).await.map(|event| text(event.unwrap())),
        Some("a=2".into())
    );
    assert_eq!(client.get(&key("a")).await.unwrap(), Some(second));
    served.stop().await;
}

#[tokio::test]
async fn a_syncer_lives_through_a_restart() {
    let dir = dir();
    let path = dir.path().join("store");
    let served = Served::start(Server::open(&path).unwrap(), &dir).await;
    let client = served.client().await;
    client.create(profile("a", "1")).await.unwrap();
    client.create(profile("b", "1")).await.unwrap();
    let back = Arc::new(tokio::sync::Semaphore::new(0));
    let wait = Arc::clone(&back);
    let mut syncer = Syncer::new(client.clone(), vec![Scope::Kind(Kind::Profile)], move |_| {
        let wait = Arc::clone(&wait);
        async move { wait.acquire().await.unwrap().forget() }.boxed()
    });
    assert_eq!(said(&mut syncer).await, "a b");
    assert_eq!(said(&mut syncer).await, "in sync");
    served.stop().await;
    assert_eq!(said(&mut syncer).await, "down");
    let local = Server::open(&path).unwrap().store();
    local.delete(&key("a"), None).await.unwrap();
    local.create(profile("c", "1")).await.unwrap();
    drop(local);
    let served = Served::start(Server::open(&path).unwrap(), &dir).await;
    back.add_permits(1);
    assert_eq!(said(&mut syncer).await, "c -a");
    assert_eq!(said(&mut syncer).await, "in sync");
    client.create(profile("d", "1")).await.unwrap();
    assert_eq!(said(&mut syncer).await, "d");
    served.stop().await;
}

#[tokio::test]
async fn a_write_under_way_when_the_connection_breaks_is_unavailable_and_a_read_is_asked_again() {
    let dir = dir();
    let socket = dir.path().join("fake");
    let listener = UnixListener::bind(&socket).unwrap();
    // Says hello, takes one request, hangs up; answers a request only on its third connection.
    let server = tokio::spawn(async move {
        for connection in 0..3 {
            let stream = Arc::new(listener.accept().await.unwrap().0);
            let mut frames = Frames::new(Arc::clone(&stream));
            let (id, _) = frames.next::<Request>().await.unwrap().unwrap();
            stream
                .try_write(&frame(id, &Reply::<()>::Hello { protocol: PROTOCOL }).unwrap())
                .unwrap();
            let (id, _) = frames.next::<Request>().await.unwrap().unwrap();
            if connection == 2 {
                stream.try_write(&frame(id, &Reply::<()>::Absent).unwrap()).unwrap();
                let _ = frames.next::<Request>().await;
            }
        }
    });
    let client = Client::connect(&socket).await.unwrap();
    assert!(matches!(
        timely(client.create(profile("a", "1"))).await,
        Err(StoreError::Unavailable(_))
    ));
    assert_eq!(timely(client.get(&key("a"))).await, Ok(None));
    drop(client);
    timely(server).await.unwrap();
}

async fn say_hello_and_no_more(stream: UnixStream) {
    let stream = Arc::new(stream);
    let mut frames = Frames::new(Arc::clone(&stream));
    let (id, _) = frames.next::<Request>().await.unwrap().unwrap();
    let hello = frame(id, &Reply::<()>::Hello { protocol: PROTOCOL }).unwrap();
    stream.try_write(&hello).unwrap();
    while let Ok(Some(_)) = frames.next::<Request>().await {}
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_after_a_while() {
    let dir = dir();
    let socket = dir.path().join("fake");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        loop {
            tokio::spawn(say_hello_and_no_more(listener.accept().await.unwrap().0));
        }
    });
    let client = Client::with_patience(&socket, Duration::from_millis(200));
    let slow = |error: StoreError| error.reason() == "TooSlow";
    let name = key("a");
    let mut watch = client.watch(Scope::All, None);
    // Whoever waits without a deadline hears of it.
    let (got, ended) = timely(async { tokio::join!(client.get(&name), watch.next()) }).await;
    assert!(got.is_err_and(slow));
    assert!(matches!(ended, Some(Err(StoreError::Unavailable(_)))), "{ended:?}");
    assert!(timely(client.create(profile("a", "1"))).await.is_err_and(slow));
    assert!(timely(client.list(&Scope::All)).await.is_err_and(slow));
    server.abort();
}

#[tokio::test]
async fn a_stopping_server_answers_what_is_under_way() {
    let dir = dir();
    let path = dir.path().join("store");
    let served = Served::start(Server::open(&path).unwrap(), &dir).await;
    let client = served.client().await;
    let names: Vec<String> = (0..100).map(|n| format!("p{n}")).collect();
    let (results, ()) = futures::join!(
        join_all(names.iter().map(|name| client.create(profile(name, "1")))),
        served.stop()
    );
    let store = Server::open(&path).unwrap().store();
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(stored) => assert_eq!(store.get(&key(name)).await.unwrap(), Some(stored)),
            Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error}"),
        }
    }
}

/// A server on `socket` in a directory, running.
struct Served {
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(server: Server, dir: &TempDir) -> Self {
        let socket = dir.path().join("socket");
        let bound = server.bind(&socket).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(bound.run(stopped.map(drop)));
        Self { socket, stop, task }
    }

    async fn client(&self) -> SharedStore {
        Arc::new(Client::connect(&self.socket).await.unwrap())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timely(self.task).await.unwrap();
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn compact(server: &Server) -> impl Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync + use<> {
    let log = server.log();
    move || {
        log.compact();
        std::future::ready(()).boxed()
    }
}

/// Changes one resource so many times, in large groups.
async fn fill(store: &SharedStore, times: usize) {
    let mut left = times;
    while left > 0 {
        // A create and a delete are two changes.
        let pairs = (left / 2).clamp(1, 200);
        let names: Vec<String> = (0..pairs).map(|n| format!("p{n}")).collect();
        join_all(names.iter().map(|name| async {
            store.create(profile(name, "1")).await.unwrap();
            store.delete(&key(name), None).await.unwrap();
        }))
        .await;
        left -= (pairs * 2).min(left);
    }
}

/// A generous limit: the machine may be busy.
async fn timely<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it answers in time")
}

fn key(name: &str) -> Key {
    Key::cluster(Kind::Profile, name)
}

fn profile(name: &str, label: &str) -> Resource {
    object(name, label).into()
}

fn object(name: &str, label: &str) -> Object<ProfileSpec> {
    let mut profile = Object::new(name, ProfileSpec::default());
    profile.metadata.labels.insert("n".into(), label.into());
    profile
}

fn label(stored: &Stored) -> &str {
    &stored.resource.metadata().labels["n"]
}

fn text(event: WatchEvent) -> String {
    match event {
        WatchEvent::InSync(_) => "in sync".into(),
        WatchEvent::Update(update, _) => match update.value {
            None => format!("{} gone", update.key.name),
            Some(value) => format!("{}={}", update.key.name, value.metadata().labels["n"]),
        },
    }
}

async fn said(syncer: &mut Syncer) -> String {
    match timely(syncer.next()).await.expect("it never ends") {
        SyncEvent::InSync => "in sync".into(),
        SyncEvent::Disconnected(_) => "down".into(),
        SyncEvent::Updates(updates) => {
            let sign = |update: &Update| if update.value.is_some() { "" } else { "-" };
            updates
                .iter()
                .map(|update| format!("{}{}", sign(update), update.key.name))
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

fn number_of(revision: &Revision) -> u64 {
    revision.0.parse().unwrap()
}
