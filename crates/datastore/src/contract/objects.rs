//! What one resource is: written, read, listed.

use api::{Key, Resource};

use super::parts::*;
use super::{Outcome, Subject};
use crate::store::{Revision, Scope, StoreError, Stored, Update, WatchEvent};

pub(super) async fn what_was_created_is_read_back(subject: Subject) -> Outcome {
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
pub(super) async fn a_wrong_resource_is_not_made_and_is_kept_as_it_is(subject: Subject) -> Outcome {
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

pub(super) async fn everything_in_a_resource_is_kept(subject: Subject) -> Outcome {
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

pub(super) async fn an_existing_key_is_not_created_again(subject: Subject) -> Outcome {
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

pub(super) async fn what_is_not_there_is_none(subject: Subject) -> Outcome {
    let store = subject.store;
    same("get from an empty store", store.get(&key("a")).await, Ok(None))?;
    ok(store.create(set("aa", "1")).await)?;
    same("get of a prefix", store.get(&key("a")).await, Ok(None))?;
    same("get of a longer name", store.get(&key("aaa")).await, Ok(None))
}

pub(super) async fn a_resource_needs_a_name(subject: Subject) -> Outcome {
    for resource in [set("", "1"), namespaced_set("ns", ""), namespaced_set("", "a")] {
        match subject.store.create(resource.clone()).await {
            Err(StoreError::Refused(_)) => {}
            other => return Err(format!("create of {} gave {other:?}", resource.key())),
        }
    }
    Ok(())
}

pub(super) async fn finalizers_are_set_alone(subject: Subject) -> Outcome {
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

pub(super) async fn every_write_has_a_new_revision(subject: Subject) -> Outcome {
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

pub(super) async fn the_resource_version_is_the_stores_to_set(subject: Subject) -> Outcome {
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

pub(super) async fn an_update_needs_the_current_revision(subject: Subject) -> Outcome {
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

pub(super) async fn an_update_of_nothing_is_not_found(subject: Subject) -> Outcome {
    let store = subject.store;
    let created = ok(store.create(set("a", "1")).await)?;
    let other = store.update(set("b", "1"), &created.revision).await;
    same("update of what never was", other, Err(StoreError::NotFound(key("b"))))?;
    ok(store.delete(&key("a"), None).await)?;
    let gone = store.update(set("a", "2"), &created.revision).await;
    same("update of what was deleted", gone, Err(StoreError::NotFound(key("a"))))?;
    same("get", store.get(&key("a")).await, Ok(None))
}

pub(super) async fn a_delete_answers_what_was_deleted(subject: Subject) -> Outcome {
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

pub(super) async fn a_delete_with_a_revision_needs_the_current_one(subject: Subject) -> Outcome {
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

pub(super) async fn a_recreated_resource_does_not_match_its_old_revision(subject: Subject) -> Outcome {
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

pub(super) async fn a_list_is_ordered_and_keeps_to_its_scope(subject: Subject) -> Outcome {
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
