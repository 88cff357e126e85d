//! Typed reads and writes on a store. An object that is marked as deleted counts as gone: whoever meets one finishes the job.

use api::{BlockAffinitySpec, IpamBlockSpec, IpamHandleSpec};
use api::{Key, Object, Resource, Spec};
use datastore::{Revision, Scope, Store, StoreError, Stored};

/// How often a compare-and-swap is tried again after a conflict (upstream's number).
pub(crate) const ATTEMPTS: usize = 100;

/// An object as it was at a revision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At<S: Spec> {
    pub object: Object<S>,
    pub revision: Revision,
}

/// Kinds that upstream marks before it deletes them, where the store has no compare-and-delete.
pub(crate) trait Mark {
    fn is_marked_deleted(&self) -> bool;
}

impl Mark for IpamBlockSpec {
    fn is_marked_deleted(&self) -> bool {
        self.deleted
    }
}

impl Mark for BlockAffinitySpec {
    fn is_marked_deleted(&self) -> bool {
        self.deleted
    }
}

impl Mark for IpamHandleSpec {
    fn is_marked_deleted(&self) -> bool {
        self.deleted
    }
}

/// Reads an object; `None` if there is none.
pub(crate) async fn read<S: Spec>(store: &dyn Store, key: &Key) -> Result<Option<At<S>>, StoreError>
where
    Object<S>: TryFrom<Resource>,
{
    store.get(key).await?.map(typed).transpose()
}

/// Reads an object that may be marked as deleted, and removes it if it is.
pub(crate) async fn read_live<S: Spec + Mark>(store: &dyn Store, key: &Key) -> Result<Option<At<S>>, StoreError>
where
    Object<S>: TryFrom<Resource>,
{
    for _ in 0..ATTEMPTS {
        match read::<S>(store, key).await? {
            Some(at) if at.object.spec.is_marked_deleted() => match store.delete(key, Some(&at.revision)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => return Ok(None),
                Err(StoreError::Conflict(_)) => continue,
                Err(other) => return Err(other),
            },
            other => return Ok(other),
        }
    }
    Err(StoreError::Conflict(key.clone()))
}

/// All objects of a kind, without those that are marked as deleted.
pub(crate) async fn list_live<S: Spec + Mark>(store: &dyn Store) -> Result<Vec<At<S>>, StoreError>
where
    Object<S>: TryFrom<Resource>,
{
    let listing = store.list(&Scope::Kind(S::KIND)).await?;
    let all: Result<Vec<At<S>>, StoreError> = listing.items.into_iter().map(typed).collect();
    Ok(all?
        .into_iter()
        .filter(|at| !at.object.spec.is_marked_deleted())
        .collect())
}

/// Creates an object.
pub(crate) async fn create<S: Spec>(store: &dyn Store, object: Object<S>) -> Result<At<S>, StoreError>
where
    Object<S>: TryFrom<Resource> + Into<Resource>,
{
    typed(store.create(object.into()).await?)
}

/// Replaces an object at a revision.
pub(crate) async fn update<S: Spec>(store: &dyn Store, at: At<S>) -> Result<At<S>, StoreError>
where
    Object<S>: TryFrom<Resource> + Into<Resource>,
{
    typed(store.update(at.object.into(), &at.revision).await?)
}

/// The object, or what can be read of it.
///
/// # Errors
/// [`StoreError::Refused`] if it is of another kind.
pub(crate) fn readable<S: Spec>(resource: Resource) -> Result<Option<Object<S>>, StoreError>
where
    Object<S>: TryFrom<Resource, Error = Resource>,
{
    let key = resource.key();
    let known = match resource {
        Resource::Wrong(wrong) => match wrong.readable() {
            Some(readable) => readable.clone(),
            None => return Ok(None),
        },
        resource => resource,
    };
    let other = |_| StoreError::Refused(format!("{key} was answered where a {} was asked for", S::KIND));
    Object::try_from(known).map(Some).map_err(other)
}

pub(crate) fn typed<S: Spec>(stored: Stored) -> Result<At<S>, StoreError>
where
    Object<S>: TryFrom<Resource>,
{
    let key = stored.resource.key();
    match Object::<S>::try_from(stored.resource) {
        Ok(object) => Ok(At {
            object,
            revision: stored.revision,
        }),
        Err(_) => Err(StoreError::Refused(format!(
            "{key} was answered where a {} was asked for",
            S::KIND
        ))),
    }
}
