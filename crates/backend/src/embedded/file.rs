//! The store's file: three redb tables, read and written by blocking calls.
//!
//! `resources` holds the JSON of each resource at its revision, `log` what every revision changed (for watches that continue
//! after a restart), `meta` the format and the last revision. Every change has a revision of its own, without gaps.

use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::{Key, Kind};
use datastore::changes::Change;
use datastore::{Scope, StoreError};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition, TableHandle,
};
use serde_json::value::RawValue;

/// The format of the tables. A file with a higher one was written by a newer version.
const FORMAT: u64 = 1;
/// Memory for redb's page cache; its own default is a gigabyte.
const CACHE: usize = 8 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Kind, namespace (empty: none), name: revision, JSON without resource version.
const RESOURCES: TableDefinition<Path3, (u64, &[u8])> = TableDefinition::new("resources");
/// Revision: what changed, and its JSON (empty: deleted).
const LOG: TableDefinition<u64, (Path3, &[u8])> = TableDefinition::new("log");

type Path3 = (&'static str, &'static str, &'static str);
type Resources<'txn> = Table<'txn, Path3, (u64, &'static [u8])>;

/// The JSON of a resource, without its resource version.
pub(crate) type Value = Arc<RawValue>;

/// An open file. This process has it for itself.
pub(crate) struct StoreFile {
    db: Database,
    path: PathBuf,
}

/// What was in the log when the file was opened.
pub(crate) struct Tail {
    /// The oldest revision from which the log is complete.
    pub(crate) floor: u64,
    /// The changes after it.
    pub(crate) changes: Vec<Change<Value>>,
    /// Where the file stands now.
    pub(crate) revision: u64,
}

/// One resource as stored.
pub(crate) struct Item {
    pub(crate) key: Key,
    pub(crate) revision: u64,
    pub(crate) value: Value,
}

/// Some resources as of one revision.
pub(crate) struct Snapshot {
    pub(crate) items: Vec<Item>,
    pub(crate) revision: u64,
}

/// One compare-and-swap.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create { key: Key, value: Value },
    Update { key: Key, value: Value, expected: String },
    Delete { key: Key, expected: Option<String> },
}

/// What an [`Op`] did.
#[derive(Clone, Debug)]
pub(crate) enum Done {
    /// Stored at this revision.
    Written(u64),
    /// What was deleted, and the revision it had.
    Deleted(u64, Value),
}

/// What a group of [`Op`]s did.
pub(crate) struct Committed {
    /// In the order of the groups, and in each of the operations that were tried.
    pub(crate) outcomes: Vec<Vec<Result<Done, StoreError>>>,
    /// In the order of their revisions.
    pub(crate) changes: Vec<Change<Value>>,
}

/// Why the embedded store's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Stop the other process, or ask it through its socket.
    #[error("{path} is in use by another process: connect to its socket instead")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Update this program.
    #[error("{path} has format {found}, this version knows formats up to {FORMAT}: use a newer version")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Restore the file from a backup, or move it away to begin with an empty store.
    #[error("{path} is damaged or not a store: {why}; restore it from a backup or move it away")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// Make the file accessible.
    #[error("cannot open {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StoreFile {
    /// Opens or creates the file, verifies it whole, and reads the tail of its log.
    pub(crate) fn open(path: &Path) -> Result<(Self, Tail), OpenError> {
        private_file(path).map_err(|source| OpenError::Io {
            path: path.into(),
            source,
        })?;
        // redb's debug builds panic on some damage that its release builds report.
        catch_unwind(AssertUnwindSafe(|| Self::open_checked(path))).unwrap_or_else(|_| {
            Err(OpenError::Corrupt {
                path: path.into(),
                why: "its structure makes no sense".into(),
            })
        })
    }

    fn open_checked(path: &Path) -> Result<(Self, Tail), OpenError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let db = builder.create(path).map_err(|error| open_error(path, error))?;
        let file = Self { db, path: path.into() };
        file.prepare()?;
        if let Err(why) = file.count_on() {
            // The disk is full, maybe: then nothing can be written, and what is there can be read.
            tracing::error!(path = %path.display(), %why, "the store's file cannot be written");
        }
        let tail = file.tail().map_err(|why| file.corrupt(why))?;
        Ok((file, tail))
    }

    /// Creates the tables of a new file; checks the format of an old one.
    fn prepare(&self) -> Result<(), OpenError> {
        let names: Vec<String> = self.tables().map_err(|why| self.corrupt(why))?;
        if names.is_empty() {
            return self.initialise().map_err(|why| OpenError::Io {
                path: self.path.clone(),
                source: io::Error::other(why.0),
            });
        }
        match self.meta("format") {
            Ok(Some(FORMAT)) => Ok(()),
            Ok(Some(found)) if found > FORMAT => Err(OpenError::Newer {
                path: self.path.clone(),
                found,
            }),
            Ok(other) => Err(self.corrupt(format!("its format is {other:?}"))),
            Err(why) => Err(self.corrupt(why)),
        }
    }

    fn tables(&self) -> Result<Vec<String>, Failure> {
        Ok(self
            .db
            .begin_read()?
            .list_tables()?
            .map(|table| table.name().to_string())
            .collect())
    }

    fn initialise(&self) -> Result<(), Failure> {
        let txn = self.db.begin_write()?;
        txn.open_table(RESOURCES)?;
        txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", first_revision())?;
        drop(meta);
        Ok(txn.commit()?)
    }

    /// Goes on counting where a new file would begin.
    fn count_on(&self) -> Result<(), Failure> {
        let txn = self.db.begin_write()?;
        let mut meta = txn.open_table(META)?;
        let held = meta.get("revision")?.map(|value| value.value());
        // Without one the file is damaged: found when its tail is read.
        if let Some(held) = held {
            meta.insert("revision", held.max(first_revision()))?;
        }
        drop(meta);
        Ok(txn.commit()?)
    }

    fn tail(&self) -> Result<Tail, Failure> {
        let txn = self.db.begin_read()?;
        let revision = self.meta("revision")?.ok_or(Failure("it has no revision".into()))?;
        let mut changes = Vec::new();
        for row in txn.open_table(LOG)?.iter()? {
            let (revision, change) = row?;
            let ((kind, namespace, name), json) = change.value();
            // Kinds of a newer version are kept, and shown to nobody.
            let Some(key) = key(kind, namespace, name) else {
                continue;
            };
            let value = if json.is_empty() { None } else { Some(raw(json)?) };
            changes.push(Change {
                revision: revision.value(),
                size: size(&value),
                key,
                value,
            });
        }
        let first = txn.open_table(LOG)?.first()?.map(|(revision, _)| revision.value());
        Ok(Tail {
            floor: first.map_or(revision, |first| first - 1),
            changes,
            revision,
        })
    }

    fn meta(&self, name: &str) -> Result<Option<u64>, Failure> {
        Ok(self
            .db
            .begin_read()?
            .open_table(META)?
            .get(name)?
            .map(|value| value.value()))
    }

    /// The last committed revision.
    pub(crate) fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.meta("revision")?.unwrap_or_default())
    }

    /// Reads one resource.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<(u64, Value)>, StoreError> {
        self.try_get(key).map_err(StoreError::from)
    }

    fn try_get(&self, key: &Key) -> Result<Option<(u64, Value)>, Failure> {
        let table = self.db.begin_read()?.open_table(RESOURCES)?;
        let Some(row) = table.get(path(key))? else {
            return Ok(None);
        };
        let (revision, json) = row.value();
        Ok(Some((revision, raw(json)?)))
    }

    /// Reads a scope, ordered by key.
    pub(crate) fn list(&self, scope: &Scope) -> Result<Snapshot, StoreError> {
        self.try_list(scope).map_err(StoreError::from)
    }

    fn try_list(&self, scope: &Scope) -> Result<Snapshot, Failure> {
        let txn = self.db.begin_read()?;
        let revision = txn.open_table(META)?.get("revision")?.map_or(0, |value| value.value());
        let table = txn.open_table(RESOURCES)?;
        let mut items = Vec::new();
        // Kinds one by one: the file orders them by name, keys by the order of `Kind`.
        for kind in Kind::ALL.into_iter().filter(|kind| concerns(scope, *kind)) {
            let start = match scope {
                Scope::All | Scope::Kind(_) => (kind.name(), "", ""),
                Scope::Namespace(_, namespace) => (kind.name(), namespace.as_str(), ""),
                Scope::Key(key) => path(key),
            };
            for row in table.range(start..)? {
                let (path, stored) = row?;
                let (name_of_kind, namespace, name) = path.value();
                let Some(key) = key(name_of_kind, namespace, name).filter(|key| key.kind == kind) else {
                    break;
                };
                if scope.contains(&key) {
                    let (revision, json) = stored.value();
                    items.push(Item {
                        revision,
                        value: raw(json)?,
                        key,
                    });
                } else if key > last(scope, kind) {
                    break;
                }
            }
        }
        Ok(Snapshot { items, revision })
    }

    /// Does all operations in one transaction with one sync, each judged by what the ones before it left; of those that
    /// belong together none after one that fails. When it returns, they are on the disk. Also drops the log up to and including `forget`.
    ///
    /// On an error nothing was done, or nobody can know: the same answer goes to all.
    pub(crate) fn commit(&self, group: &[Vec<Op>], forget: Option<u64>) -> Result<Committed, StoreError> {
        self.try_commit(group, forget).map_err(StoreError::from)
    }

    fn try_commit(&self, group: &[Vec<Op>], forget: Option<u64>) -> Result<Committed, Failure> {
        let txn = self.db.begin_write()?;
        let mut changes = Vec::new();
        let mut outcomes = Vec::with_capacity(group.len());
        {
            let mut meta = txn.open_table(META)?;
            let mut revision = meta.get("revision")?.map_or(0, |value| value.value());
            let mut resources = txn.open_table(RESOURCES)?;
            for ops in group {
                let mut done = Vec::with_capacity(ops.len());
                for op in ops {
                    let outcome = apply(&mut resources, op, &mut revision, &mut changes)?;
                    let failed = outcome.is_err();
                    done.push(outcome);
                    if failed {
                        break;
                    }
                }
                outcomes.push(done);
            }
            if !changes.is_empty() {
                let mut log = txn.open_table(LOG)?;
                for change in &changes {
                    let json = change.value.as_ref().map_or("", |value| value.get());
                    log.insert(change.revision, (path(&change.key), json.as_bytes()))?;
                }
                while let Some(forget) = forget
                    && log.first()?.is_some_and(|(oldest, _)| oldest.value() <= forget)
                {
                    log.pop_first()?;
                }
                meta.insert("revision", revision)?;
            }
        }
        if changes.is_empty() {
            txn.abort()?;
        } else {
            txn.commit()?;
        }
        Ok(Committed { outcomes, changes })
    }

    fn corrupt(&self, why: impl Display) -> OpenError {
        OpenError::Corrupt {
            path: self.path.clone(),
            why: why.to_string(),
        }
    }
}

fn apply(
    resources: &mut Resources<'_>,
    op: &Op,
    revision: &mut u64,
    changes: &mut Vec<Change<Value>>,
) -> Result<Result<Done, StoreError>, Failure> {
    let key = op.key();
    let found = resources.get(path(key))?.map(|row| row.value().0);
    let refusal = match (op, found) {
        (Op::Create { .. }, Some(_)) => Some(StoreError::Exists(key.clone())),
        (Op::Update { .. } | Op::Delete { .. }, None) => Some(StoreError::NotFound(key.clone())),
        (
            Op::Update { expected, .. }
            | Op::Delete {
                expected: Some(expected),
                ..
            },
            Some(found),
        ) if *expected != found.to_string() => Some(StoreError::Conflict(key.clone())),
        (Op::Create { .. } | Op::Update { .. } | Op::Delete { .. }, _) => None,
    };
    if let Some(refusal) = refusal {
        return Ok(Err(refusal));
    }
    *revision += 1;
    let (value, done) = match op {
        Op::Create { value, .. } | Op::Update { value, .. } => {
            resources.insert(path(key), (*revision, value.get().as_bytes()))?;
            (Some(Arc::clone(value)), Done::Written(*revision))
        }
        Op::Delete { .. } => {
            let removed = resources.remove(path(key))?.ok_or(Failure("a row is gone".into()))?;
            let (was, json) = removed.value();
            (None, Done::Deleted(was, raw(json)?))
        }
    };
    changes.push(Change {
        revision: *revision,
        key: key.clone(),
        size: size(&value),
        value,
    });
    Ok(Ok(done))
}

impl Op {
    fn key(&self) -> &Key {
        match self {
            Op::Create { key, .. } | Op::Update { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// Roughly its share of a transaction, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Op::Create { value, .. } | Op::Update { value, .. } => value.get().len(),
            Op::Delete { .. } => 0,
        }
    }
}

/// Where counting begins when a file is opened: at the time, so that revisions that this file, an earlier one or a later state of
/// it has given are always lower, and whoever comes with one lists again. Leaves room for a million changes a second.
fn first_revision() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from((since.as_nanos() << 20) / 1_000_000_000).unwrap_or_default()
}

/// Creates the file, if it is not there, for this user alone.
fn private_file(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
}

fn path(key: &Key) -> (&str, &str, &str) {
    (key.kind.name(), key.namespace.as_deref().unwrap_or_default(), &key.name)
}

fn key(kind: &str, namespace: &str, name: &str) -> Option<Key> {
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
    let namespace = (!namespace.is_empty()).then(|| namespace.to_string());
    Some(Key {
        kind,
        namespace,
        name: name.to_string(),
    })
}

fn concerns(scope: &Scope, kind: Kind) -> bool {
    match scope {
        Scope::All => true,
        Scope::Kind(only) | Scope::Namespace(only, _) => *only == kind,
        Scope::Key(key) => key.kind == kind,
    }
}

/// The last key of a kind that a scope can contain, or one after it.
fn last(scope: &Scope, kind: Kind) -> Key {
    let end = || char::MAX.to_string();
    match scope {
        Scope::All | Scope::Kind(_) => Key::namespaced(kind, end(), end()),
        Scope::Namespace(_, namespace) => Key::namespaced(kind, namespace, end()),
        Scope::Key(key) => key.clone(),
    }
}

fn raw(json: &[u8]) -> Result<Value, Failure> {
    let boxed: Box<RawValue> =
        serde_json::from_slice(json).map_err(|error| Failure(format!("bad JSON in the file: {error}")))?;
    Ok(boxed.into())
}

/// What a change costs in memory, in bytes.
fn size(value: &Option<Value>) -> usize {
    128 + value.as_ref().map_or(0, |value| value.get().len())
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse { path },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path, source }
        }
        other => OpenError::Corrupt {
            path,
            why: other.to_string(),
        },
    }
}

/// Anything redb says while the file is open.
#[derive(Debug)]
struct Failure(String);

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        StoreError::Unavailable(format!("the store's file: {failure}").into())
    }
}
