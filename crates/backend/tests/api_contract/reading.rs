//! Discovery, objects and lists.

use serde_json::{Value, json};

use super::{
    NAMESPACES, POOLS, SETS, Subject, assert_status, items, name, names, path_of, pool, refused, set, version,
};

pub async fn discovery_names_groups_and_their_resources(at: &Subject) {
    let groups = at.get("/apis").await;
    assert_eq!((groups.code, groups.content.as_str()), (200, "application/json"));
    let groups = groups.json();
    assert_eq!([&groups["kind"], &groups["apiVersion"]], ["APIGroupList", "v1"]);
    for (group, version) in [
        ("projectcalico.org", "v3"),
        ("networking.k8s.io", "v1"),
        ("apiregistration.k8s.io", "v1"),
    ] {
        let found = groups["groups"]
            .as_array()
            .expect("groups")
            .iter()
            .find(|found| found["name"] == group);
        let versions = found.expect("it has the group")["versions"]
            .as_array()
            .expect("versions");
        let both = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
        assert!(versions.contains(&both), "{versions:?}");
    }
    let resources = at.get("/apis/projectcalico.org/v3").await;
    assert_eq!((resources.code, resources.content.as_str()), (200, "application/json"));
    let resources = resources.json();
    assert_eq!(
        [&resources["kind"], &resources["apiVersion"]],
        ["APIResourceList", "v1"]
    );
    assert_eq!(resources["groupVersion"], "projectcalico.org/v3");
    let found = |name: &str| {
        let all = resources["resources"].as_array().expect("resources");
        let one = all.iter().find(|resource| resource["name"] == name);
        one.unwrap_or_else(|| panic!("{name} is not named")).clone()
    };
    for (plural, kind, is_namespaced) in [("ippools", "IPPool", false), ("networksets", "NetworkSet", true)] {
        let resource = found(plural);
        assert_eq!(
            (&resource["kind"], &resource["namespaced"]),
            (&json!(kind), &json!(is_namespaced))
        );
        let verbs = resource["verbs"].as_array().expect("verbs");
        for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
            assert!(verbs.contains(&json!(verb)), "{plural}: no {verb}");
        }
    }
    assert_eq!(found("ippools/status")["kind"], "IPPool");
}

pub async fn what_is_not_served_is_told_from_what_is_not_there(at: &Subject) {
    for path in [
        "/apis/none.example.org/v1",
        "/apis/none.example.org/v1/things",
        "/apis/projectcalico.org/v9/ippools",
        "/apis/projectcalico.org/v3/things",
        "/apis/projectcalico.org/v3/things?watch=true&resourceVersion=5",
        "/apis/projectcalico.org/v3/things/one",
    ] {
        let answer = at.get(path).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(
            (answer.code, &*text),
            (404, "404 page not found\n"),
            "{path}: {answer:?}"
        );
        assert!(answer.content.starts_with("text/plain"), "{path}: {answer:?}");
    }
    // Kubernetes' own groups speak of a missing resource as of a missing object, but without a name.
    for path in [
        "/api/v1/things",
        "/apis/networking.k8s.io/v1/things",
        "/api/v1/things?watch=true&resourceVersion=5",
    ] {
        let status = refused(&at.get(path).await, 404, "NotFound");
        assert_eq!(status["details"], json!({}), "{path}: {status}");
    }
    let answer = at.send("POST", "/apis/projectcalico.org/v3/things", &pool("a")).await;
    assert_eq!(
        (answer.code, &*answer.body),
        (404, &b"404 page not found\n"[..]),
        "{answer:?}"
    );
}

pub async fn a_missing_object_is_named_in_a_status(at: &Subject) {
    let check = async |path: &str, message: &str, details: Value| {
        let status = refused(&at.get(path).await, 404, "NotFound");
        assert_eq!(status["message"], message);
        assert_eq!(status["details"], details);
    };
    check(
        &format!("{POOLS}/contract-none"),
        "ippools.projectcalico.org \"contract-none\" not found",
        json!({ "name": "contract-none", "group": "projectcalico.org", "kind": "ippools" }),
    )
    .await;
    let details = refused(&at.get(&format!("{NAMESPACES}/contract-none")).await, 404, "NotFound")["details"].clone();
    assert_eq!(details["name"], "contract-none");
}

pub async fn a_list_has_a_version_and_whole_objects(at: &Subject) {
    for name in ["b", "a"] {
        at.create(POOLS, &pool(name)).await;
    }
    let answer = at.get(POOLS).await;
    assert_eq!((answer.code, answer.content.as_str()), (200, "application/json"));
    let list = answer.json();
    assert_eq!(
        [&list["kind"], &list["apiVersion"]],
        ["IPPoolList", "projectcalico.org/v3"]
    );
    assert!(version(&list) > 0);
    assert_eq!(names(items(&list)), ["contract-a", "contract-b"], "by name");
    for object in items(&list) {
        assert_eq!(
            [&object["kind"], &object["apiVersion"]],
            ["IPPool", "projectcalico.org/v3"]
        );
        assert!(version(object) <= version(&list), "{object}");
        let alone = at.get(&path_of(object)).await.json();
        assert_eq!(alone, *object, "as it is when it is asked for alone");
    }
    // Also when there is nothing.
    let none = at
        .get(&format!("{POOLS}?fieldSelector=metadata.name%3Dcontract-none"))
        .await
        .json();
    assert_eq!(items(&none), &[] as &[Value]);
    assert!(version(&none) > 0);
}

pub async fn pages_are_of_one_version(at: &Subject) {
    for name in ["a", "b", "c", "d", "e"] {
        at.create(POOLS, &pool(name)).await;
    }
    let whole = at.get(POOLS).await.json();
    let mut pages = Vec::new();
    let mut next = String::new();
    loop {
        let page = at.get(&format!("{POOLS}?limit=2{next}")).await.json();
        assert!(items(&page).len() <= 2);
        let left = items(&whole).len() - pages.len() - items(&page).len();
        pages.extend(items(&page).to_vec());
        let metadata = &page["metadata"];
        assert_eq!(version(&page), version(&whole), "of every page");
        let Some(token) = metadata["continue"].as_str().filter(|token| !token.is_empty()) else {
            assert_eq!(left, 0);
            assert!(metadata["remainingItemCount"].is_null(), "{metadata}");
            break;
        };
        assert_eq!(metadata["remainingItemCount"], left);
        next = format!("&continue={}", encoded(token));
        // What changes between the pages is in none of them.
        let last = name(items(&page).last().expect("a page has something")).to_owned();
        at.create(POOLS, &pool(&format!("{}-later", last.trim_start_matches("contract-"))))
            .await;
        at.send("DELETE", &format!("{POOLS}/contract-e"), &Value::Null).await;
    }
    assert_eq!(pages, items(&whole));
    let broken = at.get(&format!("{POOLS}?limit=2&continue=nonsense")).await;
    refused(&broken, 400, "BadRequest");
}

pub async fn one_object_is_picked_by_its_name(at: &Subject) {
    for name in ["a", "b"] {
        at.create(POOLS, &pool(name)).await;
    }
    let list = at
        .get(&format!("{POOLS}?limit=500&fieldSelector=metadata.name%3Dcontract-b"))
        .await
        .json();
    assert_eq!(names(items(&list)), ["contract-b"]);
    assert_eq!(items(&list).len(), 1);
    assert!(
        list["metadata"]["continue"].as_str().unwrap_or_default().is_empty(),
        "{}",
        list["metadata"]
    );
    let namespace = at
        .get(&format!(
            "{NAMESPACES}?limit=500&fieldSelector=metadata.name%3Dcontract"
        ))
        .await
        .json();
    assert_eq!(items(&namespace).len(), 1);
}

pub async fn a_namespaces_list_has_no_others(at: &Subject) {
    let made = at.create(SETS, &set("a")).await;
    assert_eq!(made["metadata"]["namespace"], "contract");
    let here = at.get(SETS).await.json();
    assert_eq!(names(items(&here)), ["contract-a"]);
    let all = at.get("/apis/projectcalico.org/v3/networksets").await.json();
    assert_eq!(names(items(&all)), ["contract-a"], "the whole cluster's");
    let elsewhere = SETS.replace("/contract/", "/contract-none/");
    assert_eq!(items(&at.get(&elsewhere).await.json()), &[] as &[Value], "also of none");
}

pub async fn a_list_is_as_new_as_what_was_written_before(at: &Subject) {
    let made = at.create(POOLS, &pool("a")).await;
    let list = at.get(&format!("{POOLS}?limit=1")).await.json();
    assert!(
        version(&list) >= version(&made),
        "{} {}",
        version(&list),
        version(&made)
    );
    // Of another kind too: this is how a reader learns that the server's data are from before.
    let others = at.get("/apis/projectcalico.org/v3/tiers?limit=1").await.json();
    assert!(
        version(&others) >= version(&made),
        "{} {}",
        version(&others),
        version(&made)
    );
}

pub async fn a_connection_serves_one_request_after_the_other(at: &Subject) {
    let mut connection = at.connect().await;
    let request = |path: &str| at.request(&at.token, "GET", path, &Value::Null);
    let list = connection.whole(request(POOLS)).await;
    assert_eq!(list.code, 200);
    let none = connection.whole(request(&format!("{POOLS}/contract-none"))).await;
    assert_status(&none.json(), 404, "NotFound");
    // A watch that has ended leaves it as it was.
    let path = format!(
        "{POOLS}?watch=true&timeoutSeconds=1&resourceVersion={}",
        version(&list.json())
    );
    let mut watch = at.watch_on(connection, &path).await;
    assert_eq!(watch.rest().await, &[] as &[Value]);
    assert_eq!(watch.connection().whole(request(POOLS)).await.code, 200);
}

/// In a query.
pub fn encoded(token: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let part = |byte| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    token.bytes().map(part).collect()
}
