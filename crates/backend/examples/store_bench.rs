//! Measures the embedded store: `cargo run --release -p backend --example store_bench [DIRECTORY]`.
//!
//! The directory decides whose disk is measured. The disk's own `fdatasync`, the floor of all writes, is measured between
//! them, so that whatever else the machine does falls on all alike.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Object, ProfileSpec, Resource};
use backend::embedded::{Client, Server};
use datastore::{Scope, Store, StoreError, Stored};
use futures::StreamExt;
use futures::future::join_all;

const TIMES: usize = 2000;
const IN_FLIGHT: usize = 64;
/// Pages that redb writes for one change, counted with strace.
const REDB_PAGES: u64 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let floor = Floor::new(dir.path())?;
    // The server has a runtime of its own, as in a process of its own.
    let (file, socket) = (dir.path().join("store"), dir.path().join("socket"));
    let server = Server::open(&file)?;
    let local = server.store();
    let serving = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let bound = serving.block_on(server.bind(&socket))?;
    serving.spawn(bound.run(std::future::pending()));
    let client_side = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    client_side.block_on(async {
        let remote: Arc<dyn Store> = Arc::new(Client::connect(&socket).await?);
        cas(&floor, local.as_ref(), remote.as_ref()).await?;
        get("get in process", local.as_ref()).await?;
        get("get over the socket", remote.as_ref()).await?;
        watch(remote.as_ref()).await?;
        throughput("64 CAS in flight, in process", local.as_ref()).await?;
        throughput("64 CAS in flight, one connection", remote.as_ref()).await
    })
}

/// A file as large as it will ever be.
struct Floor(File);

impl Floor {
    fn new(dir: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("floor"))?;
        file.write_all_at(&vec![0; 1 << 20], 0)?;
        file.sync_all()?;
        Ok(Self(file))
    }

    /// Writes pages here and there, and syncs once.
    fn sync(&self, pages: u64, n: usize) -> std::io::Result<()> {
        for page in 0..pages {
            self.0
                .write_all_at(&[n as u8; 4096], (n as u64 + page * 23) % 256 * 4096)?;
        }
        self.0.sync_data()
    }
}

async fn cas(floor: &Floor, local: &dyn Store, remote: &dyn Store) -> Result<(), Box<dyn Error>> {
    let mut in_process = local.create(resource("local", 0)).await?;
    let mut over_socket = local.create(resource("remote", 0)).await?;
    let (mut floors, mut syncs, mut locals, mut remotes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..TIMES {
        let start = Instant::now();
        floor.sync(1, n)?;
        floors.push(start.elapsed());
        let start = Instant::now();
        floor.sync(REDB_PAGES, n)?;
        syncs.push(start.elapsed());
        let start = Instant::now();
        in_process = local.update(resource("local", n), &in_process.revision).await?;
        locals.push(start.elapsed());
        let start = Instant::now();
        over_socket = remote.update(resource("remote", n), &over_socket.revision).await?;
        remotes.push(start.elapsed());
    }
    report("fdatasync after one page", floors);
    report("fdatasync after as many as redb's", syncs);
    report("single CAS in process", locals);
    report("single CAS over the socket", remotes);
    Ok(())
}

async fn get(what: &str, store: &dyn Store) -> Result<(), StoreError> {
    let key = store.create(resource(what, 0)).await?.resource.key();
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let start = Instant::now();
        store.get(&key).await?;
        times.push(start.elapsed());
    }
    report(what, times);
    Ok(())
}

/// From before the write until the watcher has it.
async fn watch(store: &dyn Store) -> Result<(), StoreError> {
    let from = store.list(&Scope::All).await?.revision;
    let mut events = store.watch(Scope::All, Some(from));
    let mut stored = store.create(resource("watched", 0)).await?;
    events.next().await;
    let mut times = Vec::new();
    for n in 0..TIMES {
        let start = Instant::now();
        let (updated, _) = futures::join!(store.update(resource("watched", n), &stored.revision), events.next());
        stored = updated?;
        times.push(start.elapsed());
    }
    report("write until seen by a watch", times);
    Ok(())
}

async fn throughput(what: &str, store: &dyn Store) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let writers = (0..IN_FLIGHT).map(|writer| async move {
        let name = format!("{what} {writer}");
        let mut stored: Stored = store.create(resource(&name, 0)).await?;
        for n in 1..TIMES / 4 {
            stored = store.update(resource(&name, n), &stored.revision).await?;
        }
        Ok::<_, StoreError>(())
    });
    join_all(writers).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let done = IN_FLIGHT * TIMES / 4;
    println!(
        "{what:36} {:8.0} per second",
        done as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// About 600 bytes of JSON, like an endpoint's.
fn resource(name: &str, n: usize) -> Resource {
    let mut profile = Object::new(name.replace([' ', ','], "-"), ProfileSpec::default());
    profile.metadata.labels.insert("n".into(), n.to_string());
    profile.spec.labels_to_apply.insert("padding".into(), "x".repeat(500));
    profile.into()
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what:36} p10 {:>9.1?}   p50 {:>9.1?}   p99 {:>9.1?}",
        at(0.10),
        at(0.50),
        at(0.99)
    );
}
