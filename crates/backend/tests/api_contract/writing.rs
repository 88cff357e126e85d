//! Writes by compare-and-swap, and what becomes of what is written.

use serde_json::{Value, json};

use super::{POOLS, SETS, Subject, path_of, pool, refused, set, version};

pub async fn a_new_object_gets_an_identity(at: &Subject) {
    let mut wanted = pool("a");
    wanted["status"] = json!({ "conditions": [] });
    let made = at.create(POOLS, &wanted).await;
    let metadata = &made["metadata"];
    assert!(metadata["uid"].as_str().is_some_and(|uid| !uid.is_empty()), "{made}");
    let time = metadata["creationTimestamp"].as_str().expect("a time");
    assert!(
        time.ends_with('Z') && time.len() == "2026-01-01T00:00:00Z".len(),
        "{time}"
    );
    assert_eq!(metadata["generation"], 1);
    assert!(version(&made) > 0);
    assert_eq!(made["spec"]["cidr"], wanted["spec"]["cidr"]);
    assert_eq!(made["status"], Value::Null, "a status has a place of its own");
    assert_eq!(at.get(&path_of(&made)).await.json(), made);
    let other = at.create(POOLS, &pool("b")).await;
    assert_ne!(other["metadata"]["uid"], metadata["uid"]);
    assert!(version(&other) > version(&made));
}

pub async fn what_is_there_is_not_created_again(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let status = refused(&at.send("POST", POOLS, &pool("a")).await, 409, "AlreadyExists");
    assert_eq!(
        status["message"],
        "ippools.projectcalico.org \"contract-a\" already exists"
    );
    assert_eq!(status["details"]["name"], "contract-a");
    // As another one, when it was gone in between.
    at.send("DELETE", &path_of(&made), &Value::Null).await;
    let again = at.create(POOLS, &pool("a")).await;
    assert_ne!(again["metadata"]["uid"], made["metadata"]["uid"]);
}

pub async fn a_namespace_must_be_there_first(at: &Subject) {
    at.create(SETS, &set("a")).await;
    let nowhere = SETS.replace("/contract/", "/contract-none/");
    let mut wanted = set("a");
    wanted["metadata"]["namespace"] = "contract-none".into();
    let status = refused(&at.send("POST", &nowhere, &wanted).await, 404, "NotFound");
    assert_eq!(status["message"], "namespaces \"contract-none\" not found");
    assert_eq!(status["details"]["kind"], "namespaces");
}

pub async fn a_stale_version_is_a_conflict(at: &Subject) {
    let first = at.create(POOLS, &pool("a")).await;
    let path = path_of(&first);
    let mut second = first.clone();
    second["spec"]["natOutgoing"] = true.into();
    let second = at.update(&path, &second).await;
    assert!(version(&second) > version(&first));
    assert_eq!(second["metadata"]["generation"], 2);
    let patch =
        json!({ "metadata": { "resourceVersion": first["metadata"]["resourceVersion"], "labels": { "a": "b" } } });
    for stale in [
        at.send("PUT", &path, &first).await,
        at.send("PATCH", &path, &patch).await,
        at.send("PUT", &format!("{path}/status"), &first).await,
    ] {
        let status = refused(&stale, 409, "Conflict");
        assert_eq!(
            status["message"],
            "Operation cannot be fulfilled on ippools.projectcalico.org \"contract-a\": the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        assert_eq!(status["details"]["name"], "contract-a");
    }
    assert_eq!(at.get(&path).await.json(), second);
}

pub async fn an_update_says_of_which_version(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let without = at.send("PUT", &path_of(&made), &pool("a")).await;
    refused(&without, 422, "Invalid");
}

pub async fn what_changes_nothing_makes_no_version(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let path = path_of(&made);
    assert_eq!(at.update(&path, &made).await, made);
    assert_eq!(at.update(&format!("{path}/status"), &made).await, made);
    let patched = at
        .send("PATCH", &path, &json!({ "spec": { "natOutgoing": false } }))
        .await
        .json();
    assert_eq!(patched, made);
}

pub async fn status_and_the_rest_are_written_apart(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let path = path_of(&made);
    let conditions = json!([{
        "type": "Allocatable", "status": "True", "reason": "OK", "message": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"
    }]);
    let mut wanted = made.clone();
    wanted["status"] = json!({ "conditions": conditions });
    wanted["spec"]["natOutgoing"] = true.into();
    let said = at.update(&format!("{path}/status"), &wanted).await;
    assert_eq!(said["status"]["conditions"], conditions);
    assert_eq!(
        (&said["spec"], &said["metadata"]["generation"]),
        (&made["spec"], &json!(1)),
        "the rest stays"
    );
    assert!(version(&said) > version(&made));
    let mut wanted = said.clone();
    wanted["status"] = json!({ "conditions": [] });
    wanted["spec"]["natOutgoing"] = true.into();
    let changed = at.update(&path, &wanted).await;
    assert_eq!(changed["status"]["conditions"], conditions, "the status stays");
    assert_eq!(
        (&changed["spec"]["natOutgoing"], &changed["metadata"]["generation"]),
        (&json!(true), &json!(2))
    );
    // A kind that has no such place.
    let policies = "/apis/networking.k8s.io/v1/namespaces/contract/networkpolicies";
    let answer = at.send("PUT", &format!("{policies}/contract-a/status"), &made).await;
    assert_eq!(refused(&answer, 404, "NotFound")["details"], json!({}));
}

pub async fn a_patch_changes_what_it_names(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let path = path_of(&made);
    let patch = json!({ "metadata": { "labels": { "a": "b", "c": "d" } }, "spec": { "natOutgoing": true } });
    let first = at.send("PATCH", &path, &patch).await.json();
    assert_eq!(first["spec"]["cidr"], made["spec"]["cidr"]);
    assert_eq!(first["spec"]["natOutgoing"], true);
    let version = first["metadata"]["resourceVersion"].clone();
    let patch = json!({ "metadata": { "resourceVersion": version, "labels": { "a": null } } });
    let second = at.send("PATCH", &path, &patch).await;
    assert_eq!((second.code, second.content.as_str()), (200, "application/json"));
    assert_eq!(second.json()["metadata"]["labels"], json!({ "c": "d" }));
    assert_eq!(second.json()["metadata"]["generation"], 2, "labels are not counted");
}

pub async fn what_is_not_there_cannot_be_changed(at: &Subject) {
    let path = format!("{POOLS}/contract-none");
    let mut wanted = pool("none");
    wanted["metadata"]["resourceVersion"] = "5".into();
    for answer in [
        at.send("PUT", &path, &wanted).await,
        at.send("PATCH", &path, &json!({ "spec": { "natOutgoing": true } }))
            .await,
        at.send("PUT", &format!("{path}/status"), &wanted).await,
        at.send("DELETE", &path, &Value::Null).await,
    ] {
        let status = refused(&answer, 404, "NotFound");
        assert_eq!(status["details"]["name"], "contract-none");
    }
}

pub async fn what_is_wrong_is_refused(at: &Subject) {
    let mut wrong = pool("a");
    wrong["spec"] = "none".into();
    let status = refused(&at.send("POST", POOLS, &wrong).await, 422, "Invalid");
    assert!(
        status["message"].as_str().is_some_and(|text| text.contains("spec")),
        "{status}"
    );
    let made = at.create(POOLS, &pool("a")).await;
    wrong["metadata"] = made["metadata"].clone();
    refused(&at.send("PUT", &path_of(&made), &wrong).await, 422, "Invalid");
    assert_eq!(at.get(&path_of(&made)).await.json(), made);
}

pub async fn a_deletion_may_say_of_what(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let path = path_of(&made);
    let uid = &made["metadata"]["uid"];
    let version = &made["metadata"]["resourceVersion"];
    let options = |uid: &Value, version: &Value| json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid, "resourceVersion": version } });
    for options in [options(&json!("another"), version), options(uid, &json!("1"))] {
        refused(&at.send("DELETE", &path, &options).await, 409, "Conflict");
    }
    assert_eq!(at.get(&path).await.json(), made);
    let done = at.send("DELETE", &path, &options(uid, version)).await;
    assert_eq!(
        (done.code, done.content.as_str()),
        (200, "application/json"),
        "{done:?}"
    );
    let done = done.json();
    assert_eq!([&done["kind"], &done["status"]], ["Status", "Success"]);
    assert_eq!(done["details"]["name"], "contract-a");
    refused(&at.get(&path).await, 404, "NotFound");
}

pub async fn finalizers_hold_an_object(at: &Subject) {
    let mut wanted = pool("a");
    wanted["metadata"]["finalizers"] = json!(["example.org/a"]);
    let made = at.create(POOLS, &wanted).await;
    let path = path_of(&made);
    for _ in 0..2 {
        let marked = at.send("DELETE", &path, &Value::Null).await;
        assert_eq!(marked.code, 200, "{marked:?}");
        let marked = marked.json();
        assert_eq!(marked["kind"], "IPPool", "it is still there");
        assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
        assert_eq!(at.get(&path).await.json(), marked);
    }
    let free = at
        .send("PATCH", &path, &json!({ "metadata": { "finalizers": [] } }))
        .await;
    assert_eq!(free.code, 200, "{free:?}");
    refused(&at.get(&path).await, 404, "NotFound");
}

pub async fn a_pods_status_takes_its_annotations_along(at: &Subject) {
    let folder = "/api/v1/namespaces/contract";
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "robot" } });
    let made = at.send("POST", &format!("{folder}/serviceaccounts"), &account).await;
    assert!([201, 409].contains(&made.code), "{made:?}");
    let path = format!("{folder}/pods/contract-a");
    // Without a kubelet nobody else ends it.
    let at_once = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
    at.send("DELETE", &path, &at_once).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "contract-a", "annotations": { "mine": "x" } },
        "spec": {
            "nodeName": "none", "serviceAccountName": "robot", "automountServiceAccountToken": false,
            "containers": [{ "name": "c", "image": "none" }],
        },
    });
    let made = at.create(&format!("{folder}/pods"), &pod).await;
    let status = format!("{path}/status");
    let patch = |version: &Value| json!({ "metadata": { "resourceVersion": version, "annotations": { "ours": "y" } } });
    let first = &made["metadata"]["resourceVersion"];
    let written = at.send("PATCH", &status, &patch(first)).await;
    assert_eq!(written.code, 200, "{written:?}");
    let written = written.json();
    assert_eq!(written["metadata"]["annotations"], json!({ "mine": "x", "ours": "y" }));
    assert_eq!(written["spec"], made["spec"]);
    assert!(version(&written) > version(&made));
    refused(&at.send("PATCH", &status, &patch(first)).await, 409, "Conflict");
    let same = at
        .send("PATCH", &status, &patch(&written["metadata"]["resourceVersion"]))
        .await
        .json();
    assert_eq!(same, written, "nothing is new");
    let done = at.send("DELETE", &path, &at_once).await;
    assert_eq!(done.code, 200, "{done:?}");
    refused(&at.get(&path).await, 404, "NotFound");
}
