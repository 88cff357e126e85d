//! Stores that cheat do not pass.

use std::sync::Arc;

use api::{Key, Resource};
use futures::future::ready;
use futures::stream::{BoxStream, StreamExt};

use super::parts::WatchResult;
use super::*;
use crate::MemoryStore;
use crate::block_on::block_on;
use crate::store::{Listing, Revision, Scope, Store, StoreError, Stored};

#[test]
fn an_update_that_ignores_the_revision_is_caught() {
    check(Cheat::BlindUpdate, "concurrent_increments_are_never_lost");
    check(Cheat::BlindUpdate, "an_update_needs_the_current_revision");
}

#[test]
fn a_delete_that_ignores_the_revision_is_caught() {
    check(Cheat::BlindDelete, "a_delete_with_a_revision_needs_the_current_one");
}

#[test]
fn a_create_that_replaces_is_caught() {
    check(Cheat::CreateReplaces, "an_existing_key_is_not_created_again");
    check(Cheat::CreateReplaces, "of_concurrent_creates_one_wins");
}

#[test]
fn a_list_in_the_wrong_order_is_caught() {
    check(Cheat::ListBackwards, "a_list_is_ordered_and_keeps_to_its_scope");
}

#[test]
fn a_scope_that_is_too_wide_is_caught() {
    check(Cheat::WideScope, "a_list_is_ordered_and_keeps_to_its_scope");
    check(Cheat::WideScope, "a_watch_keeps_to_its_scope");
}

#[test]
fn a_watch_with_a_gap_is_caught() {
    check(Cheat::WatchGap, "a_watch_from_a_list_has_no_gap_and_no_duplicate");
    check(Cheat::WatchGap, "a_watch_continues_from_any_events_revision");
    check(Cheat::WatchGap, "all_watchers_see_every_change_in_order");
}

#[test]
fn a_watch_that_says_things_twice_is_caught() {
    check(Cheat::WatchTwice, "a_watch_from_a_list_has_no_gap_and_no_duplicate");
    check(Cheat::WatchTwice, "all_watchers_see_every_change_in_order");
}

#[test]
fn a_watch_that_goes_on_after_an_error_is_caught() {
    check(Cheat::WatchGoesOn, "a_compacted_revision_means_list_again");
    check(Cheat::WatchGoesOn, "a_revision_of_another_store_means_list_again");
}

#[test]
fn a_resource_without_its_version_is_caught() {
    check(Cheat::NoVersion, "the_resource_version_is_the_stores_to_set");
}

#[derive(Clone, Copy, PartialEq)]
enum Cheat {
    BlindUpdate,
    BlindDelete,
    CreateReplaces,
    ListBackwards,
    WideScope,
    WatchGap,
    WatchTwice,
    WatchGoesOn,
    NoVersion,
}

/// The named check fails on a store that cheats so, and on an honest one it does not.
fn check(cheat: Cheat, name: &str) {
    let (_, check) = all()
        .into_iter()
        .find(|(known, _)| *known == name)
        .expect("a check of that name");
    let subject = |cheat| {
        let store = MemoryStore::new();
        let compact = store.clone();
        Subject::new(Arc::new(Cheater { store, cheat })).with_compact(move || {
            compact.compact();
            ready(()).boxed()
        })
    };
    assert_eq!(block_on(check(subject(None))), Ok(()));
    assert!(block_on(check(subject(Some(cheat)))).is_err(), "{name} did not notice");
}

struct Cheater {
    store: MemoryStore,
    cheat: Option<Cheat>,
}

impl Cheater {
    fn does(&self, cheat: Cheat) -> bool {
        self.cheat == Some(cheat)
    }

    fn scope(&self, scope: Scope) -> Scope {
        match scope {
            Scope::Namespace(kind, _) if self.does(Cheat::WideScope) => Scope::Kind(kind),
            honest => honest,
        }
    }
}

impl Store for Cheater {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async {
            let mut listing = self.store.list(&self.scope(scope.clone())).await?;
            if self.does(Cheat::ListBackwards) {
                listing.items.reverse();
            }
            Ok(listing)
        }
        .boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        async {
            if self.does(Cheat::CreateReplaces) {
                let _ = self.store.delete(&resource.key(), None).await;
            }
            let mut stored = self.store.create(resource).await?;
            if self.does(Cheat::NoVersion) {
                stored.resource.metadata_mut().resource_version = None;
            }
            Ok(stored)
        }
        .boxed()
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            match self.store.get(&resource.key()).await? {
                Some(stored) if self.does(Cheat::BlindUpdate) => self.store.update(resource, &stored.revision).await,
                _ => self.store.update(resource, expected).await,
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.store
            .delete(key, expected.filter(|_| !self.does(Cheat::BlindDelete)))
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, WatchResult> {
        let watch = self.store.watch(self.scope(scope), from.clone());
        match self.cheat {
            Some(Cheat::WatchGap) if from.is_some() => watch.skip(1).boxed(),
            Some(Cheat::WatchTwice) => watch
                .flat_map(|event| futures::stream::iter([event.clone(), event]))
                .boxed(),
            Some(Cheat::WatchGoesOn) => watch
                .flat_map(|event| {
                    futures::stream::iter(std::iter::repeat_n(event.clone(), 1 + usize::from(event.is_err())))
                })
                .boxed(),
            _ => watch,
        }
    }
}
