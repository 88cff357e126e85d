//! The compare-and-swap loop, as a closure over a value.

use api::{Key, Object, Resource, Spec};

use crate::{Store, StoreError, Stored};

/// How often [`modify`] tries before it gives up with [`StoreError::Conflict`] (upstream's `datastoreRetries`).
pub const TRIES: usize = 100;

/// What is to become of the value that the closure of [`modify`] was given.
#[allow(clippy::large_enum_variant)] // one at a time, short-lived
#[derive(Clone, Debug, PartialEq)]
pub enum Edit<S: Spec> {
    /// Store this: create it, or replace what was read.
    Put(Object<S>),
    /// Delete what was read; nothing to do if nothing was.
    Delete,
    /// Leave it as it is.
    Keep,
}

/// Reads `key`, hands its value to `edit`, and writes what that says if nobody else wrote in between; otherwise from the
/// start, up to [`TRIES`] times. Answers what `edit` answered beside the edit that was stored.
///
/// `edit` may run many times: it takes all it needs from its argument and changes nothing else. Only lost races are
/// tried again; what else the store says, and what `edit` fails with, is returned at once.
///
/// # Errors
/// [`StoreError::Conflict`] after [`TRIES`] lost races; [`StoreError::Refused`] if `key` is not of kind `S`.
pub async fn modify<S, R, E>(
    store: &dyn Store,
    key: &Key,
    mut edit: impl FnMut(Option<Object<S>>) -> Result<(Edit<S>, R), E>,
) -> Result<R, E>
where
    S: Spec,
    E: From<StoreError>,
    Resource: From<Object<S>>,
    Object<S>: TryFrom<Resource, Error = Resource>,
{
    for _ in 0..TRIES {
        let read = store.get(key).await?;
        let revision = read.as_ref().map(|stored| stored.revision.clone());
        let (edit, answer) = edit(read.map(|stored| typed(key, stored)).transpose()?)?;
        let written = match (edit, &revision) {
            (Edit::Keep, _) | (Edit::Delete, None) => return Ok(answer),
            (Edit::Put(object), None) => store.create(object.into()).await,
            (Edit::Put(object), Some(revision)) => store.update(object.into(), revision).await,
            (Edit::Delete, Some(revision)) => store.delete(key, Some(revision)).await,
        };
        match written {
            Ok(_) => return Ok(answer),
            // Whichever it is, the key is not as it was read.
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {}
            Err(
                error @ (StoreError::Compacted
                | StoreError::WentBack
                | StoreError::Unavailable(_)
                | StoreError::Refused(_)),
            ) => {
                return Err(error.into());
            }
        }
    }
    Err(StoreError::Conflict(key.clone()).into())
}

fn typed<S: Spec>(key: &Key, stored: Stored) -> Result<Object<S>, StoreError>
where
    Object<S>: TryFrom<Resource, Error = Resource>,
{
    Object::try_from(stored.resource).map_err(|_| StoreError::Refused(format!("{key} is not a {}", S::KIND)))
}

#[cfg(test)]
mod tests {
    use crate::block_on::block_on;
    use api::{Kind, ProfileSpec};
    use futures::FutureExt;

    use super::*;
    use crate::MemoryStore;

    type Profile = Object<ProfileSpec>;

    #[test]
    fn creates_replaces_keeps_and_deletes() {
        let store = MemoryStore::new();
        for (edit, expected) in [
            (Edit::Keep, None),
            (Edit::Delete, None),
            (Edit::Put(profile("a")), Some("a")),
            (Edit::Put(profile("b")), Some("b")),
            (Edit::Keep, Some("b")),
            (Edit::Delete, None),
        ] {
            let before = label(&store);
            let seen: Result<Option<String>, StoreError> = block_on(modify(&store, &key(), |now| {
                Ok((edit.clone(), now.map(|now| now.metadata.labels["l"].clone())))
            }));
            assert_eq!(seen, Ok(before));
            assert_eq!(label(&store).as_deref(), expected);
        }
    }

    #[test]
    fn a_lost_race_runs_the_edit_again_on_the_new_value() {
        let store = MemoryStore::new();
        let mut runs = 0;
        let result = block_on(modify(&store, &key(), |now: Option<Profile>| {
            runs += 1;
            if runs == 1 {
                store.create(profile("theirs").into()).now_or_never();
            }
            Ok::<_, StoreError>((Edit::Put(profile("ours")), now.is_some()))
        }));
        assert_eq!((result, runs, label(&store).as_deref()), (Ok(true), 2, Some("ours")));
    }

    #[test]
    fn gives_up_after_a_hundred_lost_races() {
        let store = MemoryStore::new();
        let mut runs = 0;
        let result = block_on(modify(&store, &key(), |now: Option<Profile>| {
            runs += 1;
            match now {
                None => store.create(profile("theirs").into()).now_or_never(),
                Some(_) => store.delete(&key(), None).now_or_never(),
            };
            Ok::<_, StoreError>((Edit::Put(profile("ours")), ()))
        }));
        assert_eq!((result, runs), (Err(StoreError::Conflict(key())), TRIES));
    }

    #[test]
    fn what_the_edit_fails_with_comes_back_at_once() {
        let store = MemoryStore::new();
        let refused = StoreError::Refused("no".into());
        let result = block_on(modify(&store, &key(), |_: Option<Profile>| {
            Err::<(_, ()), _>(refused.clone())
        }));
        assert_eq!(result, Err(refused));
    }

    fn key() -> Key {
        Key::cluster(Kind::Profile, "p")
    }

    fn profile(label: &str) -> Profile {
        let mut profile = Object::new("p", ProfileSpec::default());
        profile.metadata.labels.insert("l".into(), label.into());
        profile
    }

    fn label(store: &MemoryStore) -> Option<String> {
        block_on(store.get(&key()))
            .unwrap()
            .map(|stored| stored.resource.metadata().labels["l"].clone())
    }
}
