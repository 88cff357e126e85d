//! What a watch brings, and from where.

use api::{Kind, Resource};
use futures::stream::StreamExt;

use super::parts::*;
use super::{Outcome, Subject};
use crate::store::{Revision, Scope, StoreError, WatchEvent};

pub(super) async fn a_watch_from_nothing_brings_what_is_there_then_in_sync_then_changes(subject: Subject) -> Outcome {
    let store = subject.store;
    let gone = ok(store.create(set("gone", "1")).await)?;
    let a = ok(store.create(set("a", "1")).await)?;
    let a = ok(store.update(set("a", "2"), &a.revision).await)?;
    let b = ok(store.create(namespaced_set("ns", "b")).await)?;
    ok(store.delete(&gone.resource.key(), None).await)?;
    let mut watch = store.watch(Scope::All, None);
    let there = by_kind(updates(&mut watch, 2).await?);
    same("what is there", there, by_kind(vec![appeared(&a), appeared(&b)]))?;
    let in_sync = in_sync(&mut watch).await?;
    // A write that changes nothing need not be told.
    let mut changed = namespaced_set("ns", "b");
    changed
        .metadata_mut()
        .labels
        .insert("example.org/changed".into(), "yes".into());
    let b = ok(store.update(changed, &b.revision).await)?;
    ok(store.delete(&key("a"), None).await)?;
    let changes = by_kind(vec![appeared(&b), (key("a"), None)]);
    same("the changes", by_kind(updates(&mut watch, 2).await?), changes.clone())?;
    let mut again = store.watch(Scope::All, Some(in_sync));
    same("from the in-sync mark", by_kind(updates(&mut again, 2).await?), changes)
}

pub(super) async fn a_watch_of_nothing_is_in_sync_at_once(subject: Subject) -> Outcome {
    let mut watch = subject.store.watch(Scope::Kind(Kind::GlobalNetworkSet), None);
    in_sync(&mut watch).await?;
    let a = ok(subject.store.create(set("a", "1")).await)?;
    same("a change", update(&mut watch).await?, appeared(&a))
}

pub(super) async fn a_watch_from_a_list_has_no_gap_and_no_duplicate(subject: Subject) -> Outcome {
    let store = subject.store;
    ok(store.create(set("before", "1")).await)?;
    let listed = ok(store.list(&Scope::All).await)?;
    let between = ok(store.create(set("between", "1")).await)?;
    let mut watch = store.watch(Scope::All, Some(listed.revision));
    let after = ok(store.create(set("after", "1")).await)?;
    same(
        "the change between list and watch",
        update(&mut watch).await?,
        appeared(&between),
    )?;
    same("the change after", update(&mut watch).await?, appeared(&after))?;
    let last = ok(store.create(set("last", "1")).await)?;
    same("the last change", update(&mut watch).await?, appeared(&last))
}

pub(super) async fn a_watch_continues_from_any_events_revision(subject: Subject) -> Outcome {
    let store = subject.store;
    let start = ok(store.list(&Scope::All).await)?.revision;
    let mut expected = Vec::new();
    for n in 0..4 {
        let stored = ok(store.create(set(&format!("p{n}"), "1")).await)?;
        ok(store.delete(&stored.resource.key(), None).await)?;
        expected.push((stored.resource.key(), Some(stored.resource.clone())));
        expected.push((stored.resource.key(), None));
    }
    let mut from = start;
    for at in 0..expected.len() {
        let mut watch = store.watch(Scope::All, Some(from.clone()));
        for (offset, expected) in expected[at..].iter().enumerate() {
            let WatchEvent::Update(update, revision) = next(&mut watch).await? else {
                return Err("an in-sync mark in a watch from a revision".into());
            };
            same("the event", (&update.key, &update.value), (&expected.0, &expected.1))?;
            if offset == 0 {
                from = revision;
            }
        }
    }
    Ok(())
}

pub(super) async fn a_watch_keeps_to_its_scope(subject: Subject) -> Outcome {
    let store = subject.store;
    let start = ok(store.list(&Scope::All).await)?.revision;
    let watch = |scope: Scope| (scope.clone(), store.watch(scope, Some(start.clone())));
    let early: Vec<_> = scopes().into_iter().map(watch).collect();
    for resource in population() {
        ok(store.create(resource).await)?;
    }
    let late = scopes().into_iter().map(watch);
    for (scope, mut watch) in early.into_iter().chain(late) {
        let mut expected = population();
        expected.retain(|resource| scope.contains(&resource.key()));
        let seen = by_kind(updates(&mut watch, expected.len()).await?);
        expected.sort_by_key(Resource::kind);
        for ((key, value), resource) in seen.into_iter().zip(&expected) {
            same(&format!("the key seen in {scope:?}"), &key, &resource.key())?;
            let value = value.map(|value| as_written(value, resource));
            same("the value", value.as_ref(), Some(resource))?;
        }
    }
    Ok(())
}

pub(super) async fn a_revision_of_another_store_means_list_again(subject: Subject) -> Outcome {
    let store = subject.store;
    ok(store.create(set("a", "1")).await)?;
    for foreign in ["", "no number", "18446744073709551615"] {
        let mut watch = store.watch(Scope::All, Some(Revision(foreign.into())));
        same("the watch", watch.next().await, Some(Err(StoreError::Compacted)))?;
        same("its end", watch.next().await, None)?;
    }
    Ok(())
}

pub(super) async fn a_compacted_revision_means_list_again(subject: Subject) -> Outcome {
    let Some(compact) = subject.compact else { return Ok(()) };
    let store = subject.store;
    let start = ok(store.list(&Scope::All).await)?.revision;
    let mut caught_up = store.watch(Scope::Key(key("later")), None);
    in_sync(&mut caught_up).await?;
    let a = ok(store.create(set("a", "1")).await)?;
    ok(store.update(set("a", "2"), &a.revision).await)?;
    compact().await;
    let mut watch = store.watch(Scope::All, Some(start));
    same("the watch", watch.next().await, Some(Err(StoreError::Compacted)))?;
    same("its end", watch.next().await, None)?;
    let listed = ok(store.list(&Scope::All).await)?;
    same("what is there", listed.items.len(), 1)?;
    let mut again = store.watch(Scope::All, Some(listed.revision));
    let later = ok(store.create(set("later", "1")).await)?;
    same("a watch from a new list", update(&mut again).await?, appeared(&later))
}

pub(super) async fn a_dropped_watch_disturbs_nobody(subject: Subject) -> Outcome {
    let store = subject.store;
    let mut first = store.watch(Scope::All, None);
    let mut second = store.watch(Scope::All, None);
    in_sync(&mut first).await?;
    in_sync(&mut second).await?;
    drop(first);
    for n in 0..10 {
        let stored = ok(store.create(set(&format!("p{n}"), "1")).await)?;
        same("the other watch", update(&mut second).await?, appeared(&stored))?;
    }
    Ok(())
}
