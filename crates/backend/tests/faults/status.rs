//! Answers that are no success: Kubernetes' `Status`.

use serde_json::{Value, json};

use super::data::Place;
use super::request::Target;
use super::served::{SERVED, Served};

/// What is answered once and whole.
pub struct Whole {
    pub code: u16,
    pub content: &'static str,
    pub text: String,
}

impl Whole {
    pub fn json(code: u16, body: &Value) -> Self {
        Self {
            code,
            content: "application/json",
            text: body.to_string(),
        }
    }
}

/// What the server says of a resource that one of Kubernetes' own groups lacks.
pub fn no_such_resource() -> Whole {
    let message = "the server could not find the requested resource";
    Whole::json(404, &status(404, "NotFound", message, json!({})))
}

/// What the server says of any other path that it does not serve.
pub fn not_served() -> Whole {
    Whole {
        code: 404,
        content: "text/plain; charset=utf-8",
        text: "404 page not found\n".into(),
    }
}

/// A `Status`; `details` may be null.
pub fn status(code: u16, reason: &str, message: &str, details: Value) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !details.is_null() {
        status["details"] = details;
    }
    status
}

/// The `Status` of a version that is forgotten.
pub fn expired(message: &str) -> Value {
    status(410, "Expired", message, Value::Null)
}

pub fn unauthorized() -> Whole {
    Whole::json(401, &status(401, "Unauthorized", "Unauthorized", Value::Null))
}

pub fn forbidden(served: &Served, verb: &str, target: &Target) -> Whole {
    let (plural, group) = (&served.plural, &served.group);
    let part = if target.is_status { "/status" } else { "" };
    let place = match &target.namespace {
        None => "at the cluster scope".to_owned(),
        Some(namespace) => format!("in the namespace \"{namespace}\""),
    };
    let message = format!(
        "{} is forbidden: User \"agent\" cannot {verb} resource \"{plural}{part}\" in API group \"{group}\" {place}",
        served.full_name()
    );
    Whole::json(
        403,
        &status(403, "Forbidden", &message, json!({ "group": group, "kind": plural })),
    )
}

/// About one object.
pub fn about(place: &Place, code: u16, reason: &str, what: &str) -> Whole {
    let served = &SERVED[place.resource];
    let (full, name) = (served.full_name(), &place.name);
    let message = match reason {
        "Conflict" => format!("Operation cannot be fulfilled on {full} \"{name}\": {what}"),
        "Invalid" => format!("{} {full} \"{name}\" is invalid: {what}", served.kind),
        _ => format!("{full} \"{name}\" {what}"),
    };
    let details = json!({ "name": name, "group": served.group, "kind": served.plural });
    Whole::json(code, &status(code, reason, &message, details))
}

pub fn is_starting() -> Whole {
    let details = json!({ "retryAfterSeconds": 10 });
    Whole::json(503, &status(503, "ServiceUnavailable", "server is starting", details))
}

pub fn bad_request(message: &str) -> Whole {
    Whole::json(400, &status(400, "BadRequest", message, Value::Null))
}
