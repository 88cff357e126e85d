//! Watches: what they say, and how they end.

use serde_json::{Value, json};

use super::reading::encoded;
use super::{POOLS, SETS, Subject, Watch, assert_status, name, path_of, pool, refused, set, version};

/// A watch of pools after this version, for so many seconds.
fn path(from: u64, seconds: u64) -> String {
    format!("{POOLS}?watch=true&timeoutSeconds={seconds}&resourceVersion={from}")
}

/// The next events, as WORD NAME; their versions grow.
async fn said(watch: &mut Watch, count: usize) -> Vec<String> {
    let mut said = Vec::new();
    let mut last = 0;
    for _ in 0..count {
        let event = watch.next().await.expect("it goes on");
        let object = &event["object"];
        assert!(version(object) > last, "not in order: {event}");
        last = version(object);
        let word = event["type"].as_str().expect("events have a type");
        said.push(format!("{word} {}", name(object)));
    }
    said
}

pub async fn changes_come_in_their_order(at: &Subject) {
    let mut watch = at.watch(&path(at.now().await, 20)).await;
    let first = at.create(POOLS, &pool("a")).await;
    let mut wanted = first.clone();
    wanted["spec"]["natOutgoing"] = true.into();
    let second = at.update(&path_of(&first), &wanted).await;
    // Of no interest.
    at.create(SETS, &set("a")).await;
    at.update(&path_of(&first), &second).await;
    at.send("DELETE", &path_of(&first), &Value::Null).await;
    let other = at.create(POOLS, &pool("b")).await;
    let mut events = Vec::new();
    for _ in 0..4 {
        events.push(watch.next().await.expect("it goes on"));
    }
    assert_eq!(events[0], json!({ "type": "ADDED", "object": first }));
    assert_eq!(events[1], json!({ "type": "MODIFIED", "object": second }));
    let (word, gone) = (&events[2]["type"], &events[2]["object"]);
    assert_eq!(word, "DELETED");
    assert!(version(gone) > version(&second), "the version of its deletion: {gone}");
    assert!(version(gone) < version(&other));
    let mut as_it_was = gone.clone();
    as_it_was["metadata"]["resourceVersion"] = second["metadata"]["resourceVersion"].clone();
    assert_eq!(as_it_was, second, "otherwise as it was");
    assert_eq!(events[3], json!({ "type": "ADDED", "object": other }));
}

pub async fn a_watch_goes_on_after_a_version(at: &Subject) {
    let before = at.now().await;
    let mut objects = Vec::new();
    for name in ["a", "b", "c"] {
        objects.push(at.create(POOLS, &pool(name)).await);
    }
    let patch = json!({ "metadata": { "finalizers": ["example.org/a"] } });
    at.send("PATCH", &path_of(&objects[1]), &patch).await;
    at.send("DELETE", &path_of(&objects[1]), &Value::Null).await;
    at.send(
        "PATCH",
        &path_of(&objects[1]),
        &json!({ "metadata": { "finalizers": [] } }),
    )
    .await;
    let all = [
        "ADDED contract-a",
        "ADDED contract-b",
        "ADDED contract-c",
        "MODIFIED contract-b",
        "MODIFIED contract-b",
        "DELETED contract-b",
    ];
    for (from, expected) in [
        (before, &all[..]),
        (version(&objects[0]), &all[1..]),
        (version(&objects[2]), &all[3..]),
    ] {
        let mut watch = at.watch(&path(from, 20)).await;
        assert_eq!(said(&mut watch, expected.len()).await, expected, "after {from}");
    }
}

pub async fn a_namespaces_watch_has_no_others(at: &Subject) {
    let from = at.now().await;
    let mut here = at
        .watch(&format!("{SETS}?watch=true&timeoutSeconds=20&resourceVersion={from}"))
        .await;
    let all = "/apis/projectcalico.org/v3/networksets";
    let mut all = at
        .watch(&format!("{all}?watch=true&timeoutSeconds=20&resourceVersion={from}"))
        .await;
    let mut elsewhere = set("a");
    elsewhere["metadata"]["namespace"] = "default".into();
    let others = SETS.replace("/contract/", "/default/");
    at.create(&others, &elsewhere).await;
    at.create(SETS, &set("b")).await;
    at.send("DELETE", &format!("{others}/contract-a"), &Value::Null).await;
    assert_eq!(said(&mut here, 1).await, ["ADDED contract-b"]);
    assert_eq!(
        said(&mut all, 3).await,
        ["ADDED contract-a", "ADDED contract-b", "DELETED contract-a"]
    );
}

pub async fn a_watch_ends_when_its_time_is_up(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let mut watch = at.watch(&path(version(&made), 2)).await;
    assert_eq!(watch.rest().await, &[] as &[Value], "not with an error");
    let mut watch = at.watch(&path(version(&made) - 1, 2)).await;
    let events = watch.rest().await;
    assert_eq!(events.len(), 1, "{events:?}");
}

pub async fn a_forgotten_version_is_an_event(at: &Subject) {
    let mut watch = at.watch(&path(1, 20)).await;
    let events = watch.rest().await;
    assert_eq!(events.len(), 1, "it ends after it: {events:?}");
    assert_eq!(events[0]["type"], "ERROR");
    assert_status(&events[0]["object"], 410, "Expired");
}

pub async fn compaction_ends_lists_and_no_watches(at: &Subject) {
    for name in ["a", "b"] {
        at.create(POOLS, &pool(name)).await;
    }
    let page = at.get(&format!("{POOLS}?limit=1")).await.json();
    let token = encoded(page["metadata"]["continue"].as_str().expect("there is more"));
    let mut watch = at.watch(&path(version(&page), 20)).await;
    at.create(POOLS, &pool("c")).await;
    assert_eq!(said(&mut watch, 1).await, ["ADDED contract-c"]);
    (at.compact)(at.now().await).await;
    let next = at.get(&format!("{POOLS}?limit=1&continue={token}")).await;
    refused(&next, 410, "Expired");
    assert_eq!(
        at.get(&format!("{POOLS}?limit=1")).await.code,
        200,
        "from the beginning"
    );
    at.create(POOLS, &pool("d")).await;
    assert_eq!(
        said(&mut watch, 1).await,
        ["ADDED contract-d"],
        "a watch that had begun goes on"
    );
}

pub async fn a_version_that_is_still_to_come_is_waited_for(at: &Subject) {
    let mut watch = at.watch(&path(at.now().await + 100_000, 2)).await;
    at.create(POOLS, &pool("a")).await;
    assert_eq!(watch.rest().await, &[] as &[Value], "silence, and no error");
}

pub async fn bookmarks_come_to_who_wants_them(at: &Subject) {
    let from = at.now().await;
    let mut with = at.watch(&format!("{}&allowWatchBookmarks=true", path(from, 5))).await;
    let mut without = at.watch(&path(from, 5)).await;
    let made = at.create(POOLS, &pool("a")).await;
    let added = json!({ "type": "ADDED", "object": made });
    assert_eq!(with.next().await.as_ref(), Some(&added));
    let bookmarks = with.rest().await;
    assert!(!bookmarks.is_empty(), "one comes before the end");
    for bookmark in bookmarks {
        assert_eq!(bookmark["type"], "BOOKMARK");
        let object = &bookmark["object"];
        assert_eq!(
            [&object["kind"], &object["apiVersion"]],
            ["IPPool", "projectcalico.org/v3"]
        );
        assert!(version(object) >= version(&made), "{bookmark}");
    }
    assert_eq!(without.rest().await, [added]);
}

pub async fn no_bookmark_is_older_than_its_watch(at: &Subject) {
    at.create(POOLS, &pool("a")).await;
    // The server is ahead of what it knows of pools.
    at.create(SETS, &set("a")).await;
    let from = at.now().await;
    let mut watch = at.watch(&format!("{}&allowWatchBookmarks=true", path(from, 4))).await;
    for event in watch.rest().await {
        assert_eq!(event["type"], "BOOKMARK");
        assert!(version(&event["object"]) >= from, "{event}");
    }
}
