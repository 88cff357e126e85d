//! Commands as a user types them, over a store in memory: what is printed, what is complained about, the exit code.
#![allow(dead_code)] // each test binary uses its part

use std::fs;
use std::sync::Arc;

use api::{Key, Resource};
use clap::Parser;
use ctl::{Command, CtlError, Global};
use datastore::{Listing, MemoryStore, Revision, Scope, SharedStore, Store, StoreError, Stored, WatchEvent};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use ipam::{AutoAssign, Ipam};
use jiff::Timestamp;
use tempfile::TempDir;

/// A datastore, a folder with files, and somebody at the keyboard.
pub struct Cluster {
    pub store: MemoryStore,
    folder: TempDir,
    connects: bool,
}

/// The command line of both names, as crate `margay` has it.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    _global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cluster {
    /// Nothing there yet.
    pub fn new() -> Self {
        Self {
            store: MemoryStore::new(),
            folder: TempDir::new().expect("a folder"),
            connects: true,
        }
    }

    /// A datastore that cannot be reached.
    pub fn unreachable() -> Self {
        Self {
            connects: false,
            ..Self::new()
        }
    }

    /// With these resources, in short form: `Kind [namespace/]name {spec}`, one a line.
    pub fn with(lines: &str) -> Self {
        let cluster = Self::new();
        cluster.put(lines);
        cluster
    }

    pub fn put(&self, lines: &str) {
        let read = api::document::read("fixture", &documents(lines)).expect("the fixture is right");
        for resource in read {
            block_on(self.store.create(resource)).expect("the fixture is new");
        }
    }

    pub fn file(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    pub fn shared(&self) -> SharedStore {
        Arc::new(self.store.clone())
    }

    pub fn resource(&self, key: &Key) -> Option<Resource> {
        block_on(self.store.get(key))
            .expect("memory answers")
            .map(|stored| stored.resource)
    }

    /// The names of everything that is stored.
    pub fn keys(&self) -> Vec<String> {
        let listing = block_on(self.store.list(&Scope::All)).expect("memory answers");
        listing
            .items
            .iter()
            .map(|stored| stored.resource.key().to_string())
            .collect()
    }

    /// What a terminal shows: the answer, then `error: …` lines, then the exit code unless it is 0. In `line` and in the
    /// answer `{dir}` is the folder with the files.
    pub fn run(&self, line: &str, stdin: &str) -> String {
        self.perform(line, stdin, self.shared())
    }

    /// The same through another store.
    pub fn run_on(&self, line: &str, store: SharedStore) -> String {
        self.perform(line, "", store)
    }

    fn perform(&self, line: &str, stdin: &str, store: SharedStore) -> String {
        let folder = self.folder.path().display().to_string();
        let line = line.replace("{dir}", &folder);
        let words = ["calicoctl"].into_iter().chain(line.split_whitespace());
        let parsed = match Line::try_parse_from(words) {
            Ok(parsed) => parsed,
            Err(error) => {
                let text = error.to_string();
                return format!(
                    "{}\nexit {}",
                    text.lines().next().unwrap_or_default(),
                    error.exit_code()
                );
            }
        };
        let mut out = Vec::new();
        let done = {
            let connect = || {
                let opened = if self.connects {
                    Ok(store.clone())
                } else {
                    Err("no store listens".to_string())
                };
                futures::future::ready(opened).boxed()
            };
            block_on(ctl::command::perform_on(
                &parsed.command,
                &connect,
                &mut stdin.as_bytes(),
                &mut out,
            ))
        };
        let mut shown = String::from_utf8(out).expect("text");
        if let Err(error) = done {
            shown.push_str(&complaint(&error));
        }
        shown.replace(&folder, "{dir}")
    }

    /// Runs a command and compares what it shows, line by line without spaces at the ends.
    #[track_caller]
    pub fn check(&self, line: &str, expected: &str) {
        self.check_with(line, "", expected);
    }

    /// The same with something on standard input.
    #[track_caller]
    pub fn check_with(&self, line: &str, stdin: &str, expected: &str) {
        let got = self.run(line, stdin);
        assert_eq!(trimmed(&got), trimmed(expected), "\n$ calicoctl {line}\n{got}");
    }
}

/// A store in which somebody takes an address of pool `p` at the moment at which the pool is written.
pub struct Racing {
    inner: MemoryStore,
}

impl Racing {
    pub fn new(inner: MemoryStore) -> Self {
        Self { inner }
    }
}

impl Store for Racing {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.inner.list(scope)
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.inner.create(resource)
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            if let Resource::IPPool(pool) = &resource
                && pool.spec.disabled
            {
                let request = AutoAssign {
                    host: "a".into(),
                    handle: "racing".into(),
                    ipv4: 1,
                    pools_v4: vec!["p".into()],
                    ..AutoAssign::default()
                };
                let ipam = Ipam::new(Arc::new(self.inner.clone()));
                ipam.auto_assign(Timestamp::now(), &request)
                    .await
                    .expect("the pool has room");
            }
            self.inner.update(resource, expected).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.inner.delete(key, expected)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.inner.watch(scope, from)
    }
}

/// `Kind [namespace/]name {spec}` lines as YAML documents.
pub fn documents(lines: &str) -> String {
    let document = |line: &str| {
        let mut parts = line.trim().splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default();
        let (kind, name, spec) = (part(), part(), part());
        let name = match name.split_once('/') {
            Some((namespace, name)) => format!("{{namespace: {namespace}, name: {name}}}"),
            None => format!("{{name: {name}}}"),
        };
        let spec = if spec.is_empty() { "{}" } else { spec };
        format!("apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {name}\nspec: {spec}\n---\n")
    };
    lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(document)
        .collect()
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn complaint(error: &CtlError) -> String {
    let lines: String = error
        .to_string()
        .lines()
        .map(|line| format!("error: {line}\n"))
        .collect();
    format!("{lines}exit {}", error.exit_code())
}

fn trimmed(text: &str) -> String {
    text.trim()
        .lines()
        .map(|line| line.trim_end().to_string() + "\n")
        .collect()
}
