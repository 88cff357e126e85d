//! The examination that every [`Store`](crate::Store) takes.
//!
//! Each check gets a store of its own, empty at the start, and says what was wrong. A check whose watch never speaks
//! waits for ever: run them with a time limit where there is a clock.

use api::{Key, Kind, Resource};
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::StreamExt;

use crate::store::{Revision, Scope, SharedStore, StoreError, Stored, Update, WatchEvent, Write};
use parts::*;

mod parts;

/// One check: `Err` says what the store did wrong.
pub type Check = fn(Subject) -> BoxFuture<'static, Outcome>;

/// What a check says.
pub type Outcome = Result<(), String>;

/// The store under examination.
pub struct Subject {
    store: SharedStore,
    names_its_objects: bool,
    compact: Option<Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>>,
}

impl Subject {
    /// A store, empty.
    pub fn new(store: SharedStore) -> Self {
        Self {
            store,
            names_its_objects: false,
            compact: None,
        }
    }

    /// One that gives UIDs, creation times and generations itself, whatever its writers say.
    pub fn that_names_its_objects(self) -> Self {
        Self {
            names_its_objects: true,
            ..self
        }
    }

    /// With a way to make it forget the changes so far; without, what needs compaction is not checked.
    pub fn with_compact(self, compact: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self {
            compact: Some(Box::new(compact)),
            ..self
        }
    }
}

macro_rules! checks {
    ($($name:ident),* $(,)?) => { vec![$((stringify!($name), |subject| $name(subject).boxed())),*] };
}

/// All checks, each with its name.
pub fn all() -> Vec<(&'static str, Check)> {
    checks![
        what_was_created_is_read_back,
        everything_in_a_resource_is_kept,
        an_existing_key_is_not_created_again,
        what_is_not_there_is_none,
        a_resource_needs_a_name,
        a_wrong_resource_is_not_made_and_is_kept_as_it_is,
        every_write_has_a_new_revision,
        the_resource_version_is_the_stores_to_set,
        an_update_needs_the_current_revision,
        an_update_of_nothing_is_not_found,
        finalizers_are_set_alone,
        a_delete_answers_what_was_deleted,
        a_delete_with_a_revision_needs_the_current_one,
        a_recreated_resource_does_not_match_its_old_revision,
        a_list_is_ordered_and_keeps_to_its_scope,
        a_watch_from_nothing_brings_what_is_there_then_in_sync_then_changes,
        a_watch_of_nothing_is_in_sync_at_once,
        a_watch_from_a_list_has_no_gap_and_no_duplicate,
        a_watch_continues_from_any_events_revision,
        a_watch_keeps_to_its_scope,
        a_revision_of_another_store_means_list_again,
        a_compacted_revision_means_list_again,
        a_dropped_watch_disturbs_nobody,
        several_writes_are_done_in_their_order,
        several_writes_end_at_the_first_that_fails,
        of_concurrent_creates_one_wins,
        concurrent_increments_are_never_lost,
        all_watchers_see_every_change_in_order,
    ]
}

async fn what_was_created_is_read_back(subject: Subject) -> Outcome {
    let store = subject.store;
    for resource in [set("a", "1"), namespaced_set("ns", "a")] {
        let created = ok(store.create(resource.clone()).await)?;
        same(
            "the created resource",
            as_written(created.resource.clone(), &resource),
            resource.clone(),
        )?;
        same("get", store.get(&resource.key()).await, Ok(Some(created)))?;
    }
    Ok(())
}

/// Other programs and other versions write what cannot be read here.
async fn a_wrong_resource_is_not_made_and_is_kept_as_it_is(subject: Subject) -> Outcome {
    let store = subject.store;
    let made = set("a", "1");
    let key = made.key();
    let spoilt = |stored: &Stored| {
        let mut json = serde_json::to_value(&stored.resource).map_err(|error| error.to_string())?;
        json["spec"]["nets"] = serde_json::json!(["10.0.0.0/8", "ten"]);
        Resource::from_json(json)
    };
    // What is wrong with it, and what can be read of it.
    let read = |resource: &Resource| match resource {
        Resource::Wrong(wrong) => {
            let problems: Vec<String> = wrong.problems().iter().map(ToString::to_string).collect();
            let nets = match wrong.readable() {
                Some(Resource::GlobalNetworkSet(set)) => set.spec.nets.len(),
                _ => 0,
            };
            format!("{problems:?} {nets} {:?}", wrong.metadata().labels)
        }
        right => format!("{right:?} is right"),
    };
    let created = ok(store.create(made).await)?;
    let wrong = spoilt(&created)?;
    let expected = read(&wrong);
    let updated = ok(store.update(wrong.clone(), &created.revision).await)?;
    same("the updated resource", read(&updated.resource), expected.clone())?;
    let held = ok(store.get(&key).await)?.ok_or("it is gone")?;
    same("get", read(&held.resource), expected.clone())?;
    let listed = ok(store.list(&Scope::Kind(key.kind)).await)?;
    let shown: Vec<String> = listed.items.iter().map(|stored| read(&stored.resource)).collect();
    same("a list", shown, vec![expected.clone()])?;
    let mut watch = store.watch(Scope::Kind(key.kind), None);
    let (told, value) = update(&mut watch).await?;
    same("the key that a watch tells", told, key.clone())?;
    same("a watch", value.as_ref().map(read), Some(expected.clone()))?;
    // Written back with a label more, the rest is as it was.
    let mut labelled = held.resource.clone();
    labelled.metadata_mut().labels.insert("more".into(), "x".into());
    let expected = read(&labelled);
    let again = ok(store.update(labelled, &held.revision).await)?;
    same("written back", read(&again.resource), expected)?;
    ok(store.delete(&key, Some(&again.revision)).await)?;
    match store.create(wrong).await {
        Err(StoreError::Refused(_)) => Ok(()),
        other => Err(format!("a wrong resource was made: {other:?}")),
    }
}

async fn everything_in_a_resource_is_kept(subject: Subject) -> Outcome {
    let mut resource = set("every.thing-1", "1");
    let metadata = resource.metadata_mut();
    if !subject.names_its_objects {
        metadata.uid = Some("0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11".into());
        metadata.generation = Some(i64::MAX);
    }
    metadata.annotations.insert(
        "example.org/text".into(),
        "\"quotes\"\nlines\t\u{0}\u{1f}, naïve 日本語 🦊".into(),
    );
    metadata.finalizers = vec!["example.org/hold".into()];
    metadata.labels.insert("example.org/label".into(), "A.b_c-1".into());
    metadata.annotations.insert("long".into(), "x".repeat(100_000));
    let Resource::GlobalNetworkSet(set) = &mut resource else {
        return Err("a set is a set".into());
    };
    set.spec.nets = ["10.0.0.0/8", "fd00::/64"]
        .iter()
        .filter_map(|net| net.parse().ok())
        .collect();
    let created = ok(subject.store.create(resource.clone()).await)?;
    let read = ok(subject.store.get(&resource.key()).await)?.ok_or("nothing was stored")?;
    same("get", &read, &created)?;
    same("the resource", as_written(read.resource, &resource), resource)
}

async fn an_existing_key_is_not_created_again(subject: Subject) -> Outcome {
    let store = subject.store;
    let first = ok(store.create(set("a", "1")).await)?;
    same(
        "create",
        store.create(set("a", "2")).await,
        Err(StoreError::Exists(key("a"))),
    )?;
    same("get", store.get(&key("a")).await, Ok(Some(first)))?;
    // The same name in another namespace, or of another kind, is another resource.
    ok(store.create(namespaced_set("ns", "a")).await)?;
    ok(store.create(namespaced_set("other", "a")).await)?;
    Ok(())
}

async fn what_is_not_there_is_none(subject: Subject) -> Outcome {
    let store = subject.store;
    same("get from an empty store", store.get(&key("a")).await, Ok(None))?;
    ok(store.create(set("aa", "1")).await)?;
    same("get of a prefix", store.get(&key("a")).await, Ok(None))?;
    same("get of a longer name", store.get(&key("aaa")).await, Ok(None))
}

async fn a_resource_needs_a_name(subject: Subject) -> Outcome {
    for resource in [set("", "1"), namespaced_set("ns", ""), namespaced_set("", "a")] {
        match subject.store.create(resource.clone()).await {
            Err(StoreError::Refused(_)) => {}
            other => return Err(format!("create of {} gave {other:?}", resource.key())),
        }
    }
    Ok(())
}

async fn finalizers_are_set_alone(subject: Subject) -> Outcome {
    let store = subject.store;
    let mut written = set("a", "1");
    written.metadata_mut().labels.insert("l".into(), "x".into());
    let created = ok(store.create(written.clone()).await)?;
    let holders = |held: bool| Vec::from_iter(held.then(|| "example.org/hold".to_owned()));
    let mut last = created.revision.clone();
    for held in [true, false] {
        written.metadata_mut().finalizers = holders(held);
        let set = ok(store.set_finalizers(&key("a"), holders(held), &last).await)?;
        same(
            "the resource",
            as_written(set.resource.clone(), &written),
            written.clone(),
        )?;
        same("get", store.get(&key("a")).await, Ok(Some(set.clone())))?;
        last = set.revision;
    }
    let stale = store.set_finalizers(&key("a"), holders(true), &created.revision).await;
    same("at an old revision", stale, Err(StoreError::Conflict(key("a"))))?;
    let absent = store.set_finalizers(&key("b"), holders(true), &last).await;
    same("of nothing", absent, Err(StoreError::NotFound(key("b"))))
}

async fn every_write_has_a_new_revision(subject: Subject) -> Outcome {
    let store = subject.store;
    let mut revisions = Vec::new();
    let mut stored = ok(store.create(set("a", "0")).await)?;
    for n in 1..5 {
        revisions.push(stored.revision.clone());
        stored = ok(store.update(set("a", &n.to_string()), &stored.revision).await)?;
    }
    revisions.push(stored.revision);
    revisions.push(ok(store.create(set("b", "0")).await)?.revision);
    let distinct: std::collections::HashSet<_> = revisions.iter().collect();
    same("distinct revisions", distinct.len(), revisions.len())
}

async fn the_resource_version_is_the_stores_to_set(subject: Subject) -> Outcome {
    let store = subject.store;
    let mut stale = set("a", "1");
    stale.metadata_mut().resource_version = Some("12345".into());
    let created = ok(store.create(stale.clone()).await)?;
    same("after create", version(&created), Some(&created.revision.0))?;
    let updated = ok(store.update(stale, &created.revision).await)?;
    same("after update", version(&updated), Some(&updated.revision.0))?;
    let read = ok(store.get(&key("a")).await)?.ok_or("it is gone")?;
    same("after get", version(&read), Some(&updated.revision.0))?;
    let listed = ok(store.list(&Scope::All).await)?;
    same(
        "in a list",
        listed.items.first().and_then(version),
        Some(&updated.revision.0),
    )?;
    let mut watch = store.watch(Scope::All, None);
    match next(&mut watch).await? {
        WatchEvent::Update(Update { value: Some(value), .. }, _) => same(
            "in a watch",
            value.metadata().resource_version.as_ref(),
            Some(&updated.revision.0),
        ),
        other => Err(format!("the watch began with {other:?}")),
    }
}

async fn an_update_needs_the_current_revision(subject: Subject) -> Outcome {
    let store = subject.store;
    let first = ok(store.create(set("a", "1")).await)?;
    let second = ok(store.update(set("a", "2"), &first.revision).await)?;
    same(
        "the update",
        as_written(second.resource.clone(), &set("a", "2")),
        set("a", "2"),
    )?;
    for stale in [
        first.revision,
        Revision("0".into()),
        Revision(String::new()),
        Revision("no number".into()),
    ] {
        let conflict = store.update(set("a", "3"), &stale).await;
        same(
            "an update at a stale revision",
            conflict,
            Err(StoreError::Conflict(key("a"))),
        )?;
    }
    same("get", store.get(&key("a")).await, Ok(Some(second)))
}

async fn an_update_of_nothing_is_not_found(subject: Subject) -> Outcome {
    let store = subject.store;
    let created = ok(store.create(set("a", "1")).await)?;
    let other = store.update(set("b", "1"), &created.revision).await;
    same("update of what never was", other, Err(StoreError::NotFound(key("b"))))?;
    ok(store.delete(&key("a"), None).await)?;
    let gone = store.update(set("a", "2"), &created.revision).await;
    same("update of what was deleted", gone, Err(StoreError::NotFound(key("a"))))?;
    same("get", store.get(&key("a")).await, Ok(None))
}

async fn a_delete_answers_what_was_deleted(subject: Subject) -> Outcome {
    let store = subject.store;
    let created = ok(store.create(set("a", "1")).await)?;
    same("delete", store.delete(&key("a"), None).await, Ok(created))?;
    same("get", store.get(&key("a")).await, Ok(None))?;
    same(
        "delete again",
        store.delete(&key("a"), None).await,
        Err(StoreError::NotFound(key("a"))),
    )
}

async fn a_delete_with_a_revision_needs_the_current_one(subject: Subject) -> Outcome {
    let store = subject.store;
    let first = ok(store.create(set("a", "1")).await)?;
    let second = ok(store.update(set("a", "2"), &first.revision).await)?;
    let stale = store.delete(&key("a"), Some(&first.revision)).await;
    same("delete at a stale revision", stale, Err(StoreError::Conflict(key("a"))))?;
    same("get", store.get(&key("a")).await, Ok(Some(second.clone())))?;
    same(
        "delete",
        store.delete(&key("a"), Some(&second.revision)).await,
        Ok(second.clone()),
    )?;
    let gone = store.delete(&key("a"), Some(&second.revision)).await;
    same("delete again", gone, Err(StoreError::NotFound(key("a"))))
}

async fn a_recreated_resource_does_not_match_its_old_revision(subject: Subject) -> Outcome {
    let store = subject.store;
    let first = ok(store.create(set("a", "1")).await)?;
    ok(store.delete(&key("a"), None).await)?;
    let second = ok(store.create(set("a", "1")).await)?;
    let conflict = Err(StoreError::Conflict(key("a")));
    same(
        "update",
        store.update(set("a", "2"), &first.revision).await,
        conflict.clone(),
    )?;
    same("delete", store.delete(&key("a"), Some(&first.revision)).await, conflict)?;
    same("get", store.get(&key("a")).await, Ok(Some(second)))
}

async fn a_list_is_ordered_and_keeps_to_its_scope(subject: Subject) -> Outcome {
    let store = subject.store;
    for resource in population().into_iter().rev() {
        ok(store.create(resource).await)?;
    }
    for scope in scopes() {
        let listed = ok(store.list(&scope).await)?;
        let keys: Vec<Key> = listed.items.iter().map(|stored| stored.resource.key()).collect();
        let mut expected: Vec<Key> = population().iter().map(Resource::key).collect();
        expected.retain(|key| scope.contains(key));
        expected.sort();
        same(&format!("list of {scope:?}"), keys, expected)?;
        for stored in listed.items {
            same("get", store.get(&stored.resource.key()).await, Ok(Some(stored)))?;
        }
    }
    Ok(())
}

async fn a_watch_from_nothing_brings_what_is_there_then_in_sync_then_changes(subject: Subject) -> Outcome {
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

async fn a_watch_of_nothing_is_in_sync_at_once(subject: Subject) -> Outcome {
    let mut watch = subject.store.watch(Scope::Kind(Kind::GlobalNetworkSet), None);
    in_sync(&mut watch).await?;
    let a = ok(subject.store.create(set("a", "1")).await)?;
    same("a change", update(&mut watch).await?, appeared(&a))
}

async fn a_watch_from_a_list_has_no_gap_and_no_duplicate(subject: Subject) -> Outcome {
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

async fn a_watch_continues_from_any_events_revision(subject: Subject) -> Outcome {
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

async fn a_watch_keeps_to_its_scope(subject: Subject) -> Outcome {
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

async fn a_revision_of_another_store_means_list_again(subject: Subject) -> Outcome {
    let store = subject.store;
    ok(store.create(set("a", "1")).await)?;
    for foreign in ["", "no number", "18446744073709551615"] {
        let mut watch = store.watch(Scope::All, Some(Revision(foreign.into())));
        same("the watch", watch.next().await, Some(Err(StoreError::Compacted)))?;
        same("its end", watch.next().await, None)?;
    }
    Ok(())
}

async fn a_compacted_revision_means_list_again(subject: Subject) -> Outcome {
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

async fn a_dropped_watch_disturbs_nobody(subject: Subject) -> Outcome {
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

async fn several_writes_are_done_in_their_order(subject: Subject) -> Outcome {
    let store = subject.store;
    same("no writes", store.write_all(vec![]).await, vec![])?;
    let old = ok(store.create(set("old", "1")).await)?;
    let doomed = ok(store.create(set("doomed", "1")).await)?;
    let writes = vec![
        Write::Create(set("new", "1")),
        Write::Update(set("old", "2"), old.revision.clone()),
        Write::Delete(key("doomed"), Some(doomed.revision.clone())),
        // Judged by what the ones before it left.
        Write::Create(set("doomed", "2")),
    ];
    let mut answers = Vec::new();
    for answer in store.write_all(writes).await {
        answers.push(ok(answer)?);
    }
    let names: Vec<_> = answers.iter().map(|stored| stored.resource.key()).collect();
    same(
        "the answers",
        names,
        vec![key("new"), key("old"), key("doomed"), key("doomed")],
    )?;
    same("what was deleted", answers.get(2), Some(&doomed))?;
    for (name, index) in [("new", 0), ("old", 1), ("doomed", 3)] {
        same("get", store.get(&key(name)).await, Ok(answers.get(index).cloned()))?;
    }
    same("the update", count(&answers[1].resource), 2)
}

async fn several_writes_end_at_the_first_that_fails(subject: Subject) -> Outcome {
    let store = subject.store;
    let old = ok(store.create(set("old", "1")).await)?;
    ok(store.update(set("old", "2"), &old.revision).await)?;
    let writes = vec![
        Write::Create(set("first", "1")),
        Write::Update(set("old", "3"), old.revision),
        Write::Create(set("last", "1")),
    ];
    let answers = store.write_all(writes).await;
    same("the number of answers", answers.len(), 2)?;
    same(
        "the refused one",
        answers[1].as_ref().err(),
        Some(&StoreError::Conflict(key("old"))),
    )?;
    same(
        "the first",
        store.get(&key("first")).await,
        answers[0].clone().map(Some),
    )?;
    same("the last", store.get(&key("last")).await, Ok(None))
}

async fn of_concurrent_creates_one_wins(subject: Subject) -> Outcome {
    let store = subject.store;
    let results = join_all((0..16).map(|n| store.create(set("a", &n.to_string())))).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("winners", won.len(), 1)?;
    for lost in lost {
        same("a loser", lost, Err(StoreError::Exists(key("a"))))?;
    }
    let winner = ok(won.into_iter().next().ok_or("nobody won")?)?;
    same("get", store.get(&key("a")).await, Ok(Some(winner)))
}

async fn concurrent_increments_are_never_lost(subject: Subject) -> Outcome {
    const WRITERS: usize = 8;
    const EACH: usize = 12;
    let store = subject.store;
    join_all((0..WRITERS).map(|_| increment(store.as_ref(), EACH)))
        .await
        .into_iter()
        .collect::<Outcome>()?;
    let counted = ok(store.get(&key("counter")).await)?.ok_or("it is gone")?;
    same("the counter", count(&counted.resource), WRITERS * EACH)
}

async fn all_watchers_see_every_change_in_order(subject: Subject) -> Outcome {
    const WRITERS: usize = 6;
    const EACH: usize = 10;
    let store = subject.store;
    let start = ok(store.list(&Scope::All).await)?.revision;
    let watchers = (0..4).map(|n| {
        let from = (n % 2 == 0).then(|| start.clone());
        let watch = store.watch(Scope::Kind(Kind::GlobalNetworkSet), from);
        async move { collect_counts(watch, WRITERS * EACH).await }
    });
    let writers = join_all((0..WRITERS).map(|_| increment(store.as_ref(), EACH)));
    let (written, seen) = futures::join!(writers, join_all(watchers));
    written.into_iter().collect::<Outcome>()?;
    for (n, seen) in seen.into_iter().enumerate() {
        let seen = seen?;
        // A watch from nothing may find the first counts already there: the newest of them, once.
        let first = if n % 2 == 0 {
            1
        } else {
            seen.first().copied().unwrap_or(1)
        };
        same(
            &format!("what watcher {n} saw"),
            seen,
            (first..=WRITERS * EACH).collect(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
