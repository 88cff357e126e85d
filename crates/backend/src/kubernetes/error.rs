//! What the API server answered when it did not do it, sorted by what the reader can do about it.

use api::Key;
use datastore::StoreError;
use serde::Deserialize;

/// Why a request to the API server failed. The text is for people and names what to correct.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// No configuration, or one that cannot be used: correct it.
    #[error(
        "no usable access to Kubernetes: {0}; KUBECONFIG names a file with it, in a pod its service account is used"
    )]
    Config(String),
    /// No connection: wait, look at network, address and proxy.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the API server did not answer within {seconds} s: {request}")]
    Timeout {
        /// What was asked.
        request: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The credentials are wrong or have expired. A token's file is read again by itself.
    #[error("the API server does not accept our credentials (wrong or expired): {0}")]
    Unauthorized(String),
    /// A role lacks a permission.
    #[error("no permission to {verb} {resource}: add it to the role (RBAC): {message}")]
    Forbidden {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
        verb: &'static str,
        /// Plural and group, as a role names them.
        resource: String,
        /// What the API server said.
        message: String,
    },
    /// The server does not serve the resource.
    #[error("the API server does not know {0}: is its CRD installed? `margay crds | kubectl apply -f -` does it")]
    ResourceMissing(String),
    /// The object is not there.
    #[error("not found: {0}")]
    NotFound(String),
    /// It is there already.
    #[error("already exists: {0}")]
    Exists(String),
    /// It was changed in between, or is not the one that was meant.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The revision is too old, or from a future that the server does not know.
    #[error("the revision is no longer available: {0}")]
    Gone(String),
    /// The object is wrong.
    #[error("the API server refused it: {0}")]
    Invalid(String),
    /// The answer broke off or is not what the API says.
    #[error("the API server answered only half, or something else: {0}")]
    Half(String),
    /// It has an error of its own, or too much to do.
    #[error("the API server answered {code}: {message}")]
    Server {
        /// HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
}

/// What a request was about, for errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Kubernetes' word for what was to be done.
    pub verb: &'static str,
    /// Plural and group: `ippools.projectcalico.org`.
    pub resource: String,
}

/// The part of Kubernetes' `Status` that says why.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    reason: String,
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl ApiError {
    /// From the status and body of an answer that is no success.
    pub fn from_answer(asked: &Asked, code: u16, body: &[u8]) -> Self {
        let status: Option<Status> = serde_json::from_slice(body).ok();
        let known = status.is_some();
        let status = status.unwrap_or_default();
        let message = match status.message.is_empty() {
            true => text(body),
            false => status.message,
        };
        let too_large = |details: &Details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "ResourceVersionTooLarge")
        };
        match (code, status.reason.as_str()) {
            (401, _) => ApiError::Unauthorized(message),
            (403, _) => ApiError::Forbidden {
                verb: asked.verb,
                resource: asked.resource.clone(),
                message,
            },
            // An object that is not there is reported with its name, a resource that is not served with a bare line.
            (404, _) if !known || status.details.is_none() => ApiError::ResourceMissing(asked.resource.clone()),
            (404, _) => ApiError::NotFound(message),
            (409, "AlreadyExists") => ApiError::Exists(message),
            (409, _) => ApiError::Conflict(message),
            (410, _) => ApiError::Gone(message),
            (_, "Expired" | "Gone") => ApiError::Gone(message),
            (504, _) if status.details.as_ref().is_some_and(too_large) => ApiError::Gone(message),
            (400 | 405 | 413 | 415 | 422, _) => ApiError::Invalid(message),
            _ => ApiError::Server { code, message },
        }
    }

    /// As the store's caller needs it, who asked for `key`.
    pub fn about(self, key: &Key) -> StoreError {
        match self {
            ApiError::Conflict(_) => StoreError::Conflict(key.clone()),
            ApiError::Exists(_) => StoreError::Exists(key.clone()),
            ApiError::NotFound(_) => StoreError::NotFound(key.clone()),
            other => other.into(),
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn passes(&self) -> bool {
        match self {
            ApiError::Unreachable(_) | ApiError::Timeout { .. } | ApiError::Half(_) | ApiError::Server { .. } => true,
            ApiError::Config(_)
            | ApiError::Unauthorized(_)
            | ApiError::Forbidden { .. }
            | ApiError::ResourceMissing(_)
            | ApiError::NotFound(_)
            | ApiError::Exists(_)
            | ApiError::Conflict(_)
            | ApiError::Gone(_)
            | ApiError::Invalid(_) => false,
        }
    }
}

/// Where no single object was asked for.
impl From<ApiError> for StoreError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Gone(_) => StoreError::Compacted,
            ApiError::Forbidden { .. } | ApiError::Invalid(_) | ApiError::NotFound(_) | ApiError::Exists(_) => {
                StoreError::Refused(error.to_string())
            }
            // A CRD, a token or a configuration may come: asking again helps.
            _ => StoreError::Unavailable(error.to_string()),
        }
    }
}

/// A body that is no `Status`: what fits on a line of it.
fn text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no text");
    line.trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_what_to_do() {
        let check = |code: u16, body: &str, expected: &str| {
            let asked = Asked {
                verb: "list",
                resource: "ippools.projectcalico.org".into(),
            };
            let error = ApiError::from_answer(&asked, code, body.as_bytes());
            assert_eq!(error.to_string(), expected);
        };
        check(
            403,
            r#"{"kind":"Status","reason":"Forbidden","message":"User x cannot list","details":{}}"#,
            "no permission to list ippools.projectcalico.org: add it to the role (RBAC): User x cannot list",
        );
        check(
            401,
            r#"{"kind":"Status","message":"Unauthorized"}"#,
            "the API server does not accept our credentials (wrong or expired): Unauthorized",
        );
        check(
            404,
            "404 page not found\n",
            "the API server does not know ippools.projectcalico.org: is its CRD installed? \
             `margay crds | kubectl apply -f -` does it",
        );
        check(
            404,
            r#"{"reason":"NotFound","message":"ippools \"a\" not found","details":{"name":"a"}}"#,
            "not found: ippools \"a\" not found",
        );
        check(
            409,
            r#"{"reason":"Conflict","message":"the object has been modified","details":{}}"#,
            "conflict: the object has been modified",
        );
        check(
            504,
            r#"{"reason":"Timeout","message":"Too large resource version: 9, current: 1","details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}"#,
            "the revision is no longer available: Too large resource version: 9, current: 1",
        );
        check(
            502,
            "\n<html>Bad Gateway</html>",
            "the API server answered 502: <html>Bad Gateway</html>",
        );
        check(500, "", "the API server answered 500: no text");
    }

    #[test]
    fn what_may_come_is_asked_for_again() {
        let missing = ApiError::ResourceMissing("ippools.projectcalico.org".into());
        assert!(matches!(StoreError::from(missing), StoreError::Unavailable(_)));
        assert_eq!(StoreError::from(ApiError::Gone(String::new())), StoreError::Compacted);
    }
}
