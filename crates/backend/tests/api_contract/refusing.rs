//! Who may not.

use serde_json::{Value, json};

use super::{POOLS, SETS, Subject, pool, refused};

pub async fn a_wrong_token_is_unauthorized(at: &Subject) {
    let watch = format!("{POOLS}?watch=true&resourceVersion=5");
    for (method, path) in [
        ("GET", POOLS),
        ("GET", watch.as_str()),
        ("GET", "/apis"),
        ("GET", "/apis/projectcalico.org/v3/things"),
        ("POST", POOLS),
    ] {
        let status = refused(
            &at.ask_as("wrong", method, path, &Value::Null).await,
            401,
            "Unauthorized",
        );
        assert_eq!(
            (&status["message"], &status["details"]),
            (&json!("Unauthorized"), &Value::Null)
        );
    }
}

pub async fn who_has_no_right_is_forbidden(at: &Subject) {
    let one = format!("{POOLS}/contract-a");
    let watch = format!("{POOLS}?watch=true&resourceVersion=5");
    let check = async |method: &str, path: &str, verb: &str, resource: &str, place: &str| {
        let answer = at.ask_as(&at.powerless, method, path, &pool("a")).await;
        let status = refused(&answer, 403, "Forbidden");
        let message = status["message"].as_str().expect("a text");
        let expected = format!("cannot {verb} resource \"{resource}\" in API group \"projectcalico.org\" {place}");
        assert!(
            message.contains(" is forbidden: User ") && message.ends_with(&expected),
            "{message}"
        );
        let (plural, details) = (resource.split('/').next(), &status["details"]);
        assert_eq!(
            (details["group"].as_str(), details["kind"].as_str()),
            (Some("projectcalico.org"), plural),
            "{status}"
        );
    };
    let cluster = "at the cluster scope";
    for (method, path, verb) in [
        ("GET", POOLS, "list"),
        ("GET", &watch, "watch"),
        ("GET", &one, "get"),
        ("POST", POOLS, "create"),
        ("PUT", &one, "update"),
        ("PATCH", &one, "patch"),
        ("DELETE", &one, "delete"),
    ] {
        check(method, path, verb, "ippools", cluster).await;
    }
    check("PUT", &format!("{one}/status"), "update", "ippools/status", cluster).await;
    check("GET", SETS, "list", "networksets", "in the namespace \"contract\"").await;
    // What there is may be known.
    let groups = at.ask_as(&at.powerless, "GET", "/apis", &Value::Null).await;
    assert_eq!(groups.code, 200, "{groups:?}");
}
