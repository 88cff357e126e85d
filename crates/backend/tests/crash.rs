//! Kills a server in the middle of writes: every write that it has answered is there afterwards.

#![allow(clippy::unwrap_used)] // helpers of a test

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::{Key, Kind, Object, ProfileSpec, Resource};
use backend::embedded::{Client, Server};
use datastore::{Revision, Scope, Store, StoreError, WatchEvent};
use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::Notify;

const WRITERS: usize = 16;

#[tokio::test]
async fn every_answered_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("store"), dir.path().join("socket"));
    let mut start = None;
    for answers in [1, 17, 60, 150, 333] {
        let mut server = Killed(spawn_server(&file, &socket));
        let client: Arc<dyn Store> = Arc::new(Client::connect(&socket).await.unwrap());
        if start.is_none() {
            start = Some(client.list(&Scope::All).await.unwrap().revision);
        }
        let answered = AtomicUsize::new(0);
        let enough = Notify::new();
        let writers =
            join_all((0..WRITERS).map(|n| write_until_it_breaks(client.as_ref(), n, &answered, answers, &enough)));
        let kill = async {
            enough.notified().await;
            server.kill();
        };
        let (last_answers, ()) = futures::join!(writers, kill);
        check(&file, start.as_ref().unwrap(), &last_answers).await;
    }
}

/// The last write of a writer that was answered, if any, and what it then tried.
struct Last {
    name: String,
    answered: Option<(u64, Revision)>,
}

async fn write_until_it_breaks(
    store: &dyn Store,
    writer: usize,
    answered: &AtomicUsize,
    enough_answers: usize,
    enough: &Notify,
) -> Last {
    let name = format!("w{writer}");
    let key = Key::cluster(Kind::Profile, &name);
    let mut last = match store.get(&key).await {
        Ok(found) => found.map(|stored| (count(&stored.resource), stored.revision)),
        Err(error) => panic!("{error}: the server was killed before it was told to"),
    };
    loop {
        let next = last.as_ref().map_or(1, |(count, _)| count + 1);
        let written = match &last {
            None => store.create(counter(&name, next)).await,
            Some((_, revision)) => store.update(counter(&name, next), revision).await,
        };
        match written {
            Ok(stored) => last = Some((next, stored.revision)),
            Err(StoreError::Unavailable(_)) => return Last { name, answered: last },
            Err(other) => panic!("{other}"),
        }
        if answered.fetch_add(1, Ordering::Relaxed) + 1 == enough_answers {
            enough.notify_one();
        }
    }
}

/// The file holds what was answered, or the one write after it, and its log tells the same story.
async fn check(file: &Path, start: &Revision, writers: &[Last]) {
    let server = Server::open(file).unwrap();
    let store = server.store();
    let listing = store.list(&Scope::All).await.unwrap();
    let stored: BTreeMap<&str, _> = listing
        .items
        .iter()
        .map(|stored| (stored.resource.metadata().name.as_str(), stored))
        .collect();
    for Last { name, answered } in writers {
        let found = stored
            .get(name.as_str())
            .map(|stored| (count(&stored.resource), stored.revision.clone()));
        let expected = answered.as_ref().map_or(0, |(count, _)| *count);
        match &found {
            Some((count, _)) if *count == expected + 1 => {}
            _ => assert_eq!(&found, answered, "{name}"),
        }
    }
    let changes: u64 = listing.items.iter().map(|stored| count(&stored.resource)).sum();
    let mut replayed = BTreeMap::new();
    let mut log = store.watch(Scope::All, Some(start.clone()));
    for _ in 0..changes {
        let Some(Ok(WatchEvent::Update(update, revision))) = log.next().await else {
            panic!("the log has a gap")
        };
        let value = update.value.expect("nothing was deleted");
        assert_eq!(value.metadata().resource_version.as_ref(), Some(&revision.0));
        replayed.insert(update.key, value);
    }
    let expected: BTreeMap<Key, Resource> = listing
        .items
        .into_iter()
        .map(|stored| (stored.resource.key(), stored.resource))
        .collect();
    assert_eq!(replayed, expected);
}

fn counter(name: &str, count: u64) -> Resource {
    let mut profile = Object::new(name, ProfileSpec::default());
    profile.metadata.labels.insert("count".into(), count.to_string());
    profile.into()
}

fn count(resource: &Resource) -> u64 {
    resource.metadata().labels["count"].parse().unwrap()
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        // SIGKILL; the wait makes sure that its lock on the file is gone.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This test binary again, as a server; returns when it listens.
fn spawn_server(file: &Path, socket: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_until_killed", "--ignored", "--nocapture"])
        .env("CRASH_FILE", file)
        .env("CRASH_SOCKET", socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let ready = output.lines().any(|line| line.unwrap().contains("listening"));
    assert!(ready, "the server did not start");
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the server that the other test starts and kills"]
async fn serve_until_killed() {
    let (Some(file), Some(socket)) = (std::env::var_os("CRASH_FILE"), std::env::var_os("CRASH_SOCKET")) else {
        return;
    };
    let server = Server::open(Path::new(&file)).unwrap();
    let bound = server.bind(Path::new(&socket)).await.unwrap();
    println!("listening");
    bound.run(std::future::pending()).await;
}
