//! The `Store` contract and its plain data types.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use api::{Key, Kind, Resource};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::trouble::{Reason, Trouble};

/// A compare-and-swap store of resources. Cheap to share: implementations are handed around as `Arc<dyn Store>`.
pub trait Store: Send + Sync {
    /// Reads one resource; `None` if it does not exist.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>>;

    /// Reads everything in a scope, ordered by key, as of one revision from which [`Store::watch`] can continue.
    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Creates a resource; [`StoreError::Exists`] if the key is taken.
    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>>;

    /// Replaces a resource if it is still at `expected`; [`StoreError::Conflict`] if not, [`StoreError::NotFound`] if gone.
    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// As [`Store::update`] for what is said of a resource, its status, alone; the resource is to be as it was read otherwise.
    /// Answers what there is then: a store may have no place for it.
    fn update_status<'a>(
        &'a self,
        resource: Resource,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.update(resource, expected)
    }

    /// Sets who holds the deletion of a resource (`metadata.finalizers`) if it is still at `expected`, and changes nothing else of it, be
    /// it known here or not. Answers what there is then; of what is being deleted and held by nobody any more, what there was.
    fn set_finalizers<'a>(
        &'a self,
        key: &'a Key,
        finalizers: Vec<String>,
        expected: &'a Revision,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let stored = self.get(key).await?;
            let mut resource = stored.ok_or_else(|| StoreError::NotFound(key.clone()))?.resource;
            resource.metadata_mut().finalizers = finalizers;
            self.update(resource, expected).await
        }
        .boxed()
    }

    /// Deletes a resource, if `expected` is given only at that revision. Answers what was deleted.
    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// Writes in order, each judged by what the ones before it left, until one fails. The answers are those of the writes that
    /// were tried: all of them `Ok`, or the last one an error. After [`StoreError::Unavailable`] nothing is known of the write
    /// it stands for nor of any later one; and of creations of one kind that follow one another a store may try all at once, so
    /// that those behind one that failed may have been done without an answer. Others may see the first ones without the rest; a store that can does all in one go.
    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Stored, StoreError>>> {
        async move {
            let mut answers = Vec::with_capacity(writes.len());
            for write in writes {
                let answer = match write {
                    Write::Create(resource) => self.create(resource).await,
                    Write::Update(resource, expected) => self.update(resource, &expected).await,
                    Write::Delete(key, expected) => self.delete(&key, expected.as_ref()).await,
                };
                let failed = answer.is_err();
                answers.push(answer);
                if failed {
                    break;
                }
            }
            answers
        }
        .boxed()
    }

    /// Tells people about a resource where they look for news of it, if the store has such a place. News of what is not there are
    /// dropped, and the same news twice are told once.
    fn tell<'a>(&'a self, _news: &'a News) -> BoxFuture<'a, Result<(), StoreError>> {
        futures::future::ready(Ok(())).boxed()
    }

    /// What is said of a workload besides resources, by whoever runs it: its own annotations, and labels and annotations of its
    /// namespace. `uid` tells it from others of its name. `None`: this store knows nothing of workloads. [`StoreError::NotFound`] if
    /// there is no such workload or namespace.
    fn workload<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Workload>, StoreError>> {
        let _ = (namespace, name, uid);
        async { Ok(None) }.boxed()
    }

    /// Every change in a scope after `from`, without gaps, those of one kind in order; without `from` first everything that is
    /// there, then [`WatchEvent::InSync`], then changes. Ends with [`StoreError::Compacted`] if `from` is too old, or if the reader has
    /// been too slow: list again. Ends after any error; never ends without one.
    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>>;

    /// How somebody who follows everything does it best: by one watch, or by several that are read again apart from each other.
    fn whole(&self) -> Vec<Scope> {
        vec![Scope::All]
    }

    /// What has been wrong for a while with watches that go on by themselves once it is right again; `None` if nothing is, or if
    /// such watches end at once.
    fn trouble(&self) -> Option<Trouble> {
        None
    }
}

/// Something to know about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Which resource.
    pub about: Key,
    /// Whether somebody has to do something.
    pub is_warning: bool,
    /// What it is, in one word: `Invalid`.
    pub reason: String,
    /// What it is, in a sentence.
    pub message: String,
    /// Who says so: `margay-controllers`.
    pub reporter: String,
    /// The node that it is about, if it is one.
    pub node: Option<String>,
}

/// A store that can be handed around.
pub type SharedStore = Arc<dyn Store>;

/// What is said of a workload: the answer of [`Store::workload`]. Of annotations only those are here that are read somewhere
/// ([`api::annotations`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Labels of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Annotations of its namespace.
    pub namespace_annotations: BTreeMap<String, String>,
}

/// One write of [`Store::write_all`]: as the method of the same name does it.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // nearly all are resources
pub enum Write {
    /// [`Store::create`].
    Create(Resource),
    /// [`Store::update`].
    Update(Resource, Revision),
    /// [`Store::delete`].
    Delete(Key, Option<Revision>),
}

/// Opaque version of a resource. Compared for equality only, never for order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub String);

/// A resource as the store holds it. `metadata.resource_version` repeats the revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The resource.
    pub resource: Resource,
    /// Its version.
    pub revision: Revision,
}

/// What a list or watch covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Everything.
    All,
    /// One kind, in all namespaces.
    Kind(Kind),
    /// One kind in one namespace.
    Namespace(Kind, String),
    /// One resource.
    Key(Key),
}

/// The answer of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// The resources, ordered by key.
    pub items: Vec<Stored>,
    /// Where a watch continues.
    pub revision: Revision,
}

/// One key's new state: existence is `Some` or `None`, never the kind of event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Which resource.
    pub key: Key,
    /// What it is now; `None`: it is gone.
    pub value: Option<Resource>,
}

/// What a watch delivers.
#[allow(clippy::large_enum_variant)] // nearly all are updates
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WatchEvent {
    /// A change, and the revision from which a new watch would continue after it: not always the resource's own. Before [`WatchEvent::InSync`] it is only
    /// the resource's own revision: what is there comes in any order, so a watch cannot continue in the middle of it.
    Update(Update, Revision),
    /// Everything that was there at the start has been delivered.
    InSync(Revision),
}

/// Why a store did not do it, sorted by what the caller does next.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Serialize, Deserialize)]
pub enum StoreError {
    /// Someone wrote first: read again, try again.
    #[error("{0} was changed by someone else")]
    Conflict(Key),
    /// It is already there.
    #[error("{0} already exists")]
    Exists(Key),
    /// It is not there.
    #[error("{0} does not exist")]
    NotFound(Key),
    /// The revision is too old to watch from: list again.
    #[error("the revision is no longer available")]
    Compacted,
    /// The store's data are from before what was read from it, as after a backup was restored: list again, and take no revision
    /// for the same content.
    #[error("the datastore has gone back to older data")]
    WentBack,
    /// The store cannot answer now: wait, try again.
    #[error("the datastore is not available: {0}")]
    Unavailable(Trouble),
    /// Asking again will not help: tell the user.
    #[error("the datastore refused: {0}")]
    Refused(String),
}

impl StoreError {
    /// A word for programs.
    pub const fn reason(&self) -> &'static str {
        match self {
            StoreError::Conflict(_) => "Conflict",
            StoreError::Exists(_) => "Exists",
            StoreError::NotFound(_) => "NotFound",
            StoreError::Compacted | StoreError::WentBack => "ReadingAgain",
            StoreError::Unavailable(trouble) => trouble.reason.word(),
            StoreError::Refused(_) => "Refused",
        }
    }

    /// A word for programs, from somebody who follows the store and had `read` all of it or not: of a store that names no reason that is all
    /// that is known.
    pub fn loss(&self, read: bool) -> &'static str {
        match (self, read) {
            (StoreError::Unavailable(trouble), true) if trouble.reason == Reason::Unavailable => "Disconnected",
            (StoreError::Unavailable(trouble), false) if trouble.reason == Reason::Unavailable => "Unreachable",
            (other, _) => other.reason(),
        }
    }

    /// The store cannot be used now, for this reason.
    pub fn unavailable(reason: Reason, text: impl Into<String>) -> Self {
        StoreError::Unavailable(Trouble::new(reason, text))
    }
}

impl Scope {
    /// Whether a key lies in the scope.
    pub fn contains(&self, key: &Key) -> bool {
        match self {
            Scope::All => true,
            Scope::Kind(kind) => key.kind == *kind,
            Scope::Namespace(kind, namespace) => key.kind == *kind && key.namespace.as_ref() == Some(namespace),
            Scope::Key(only) => key == only,
        }
    }
}

impl Listing {
    /// What a watch that starts from nothing delivers first: all of it, then the in-sync mark.
    pub fn into_events(self) -> impl Iterator<Item = WatchEvent> {
        let updates = self.items.into_iter().map(Stored::into_event);
        updates.chain([WatchEvent::InSync(self.revision)])
    }
}

impl Stored {
    /// As a watch that starts from nothing tells of it.
    pub fn into_event(self) -> WatchEvent {
        let update = Update {
            key: self.resource.key(),
            value: Some(self.resource),
        };
        WatchEvent::Update(update, self.revision)
    }
}

/// Whether a resource may be created: nobody makes a wrong one. One that is there may be written back as it was.
///
/// # Errors
/// [`StoreError::Refused`] if not.
pub fn check_new(resource: &Resource) -> Result<(), StoreError> {
    match resource {
        Resource::Wrong(wrong) => {
            let problem = wrong.problems().iter().map(ToString::to_string).next();
            let key = resource.key();
            Err(StoreError::Refused(format!(
                "{key} is wrong: {}",
                problem.unwrap_or_default()
            )))
        }
        _ => Ok(()),
    }
}

/// Whether a resource may be stored under this key: a name, and no empty namespace, which would look like none.
///
/// # Errors
/// [`StoreError::Refused`] if not.
pub fn check_key(key: &Key) -> Result<(), StoreError> {
    if key.name.is_empty() {
        return Err(StoreError::Refused(format!("a {} needs a name", key.kind)));
    }
    if key.namespace.as_deref() == Some("") {
        return Err(StoreError::Refused(format!(
            "{} {} has an empty namespace",
            key.kind, key.name
        )));
    }
    Ok(())
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
