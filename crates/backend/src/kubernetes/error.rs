//! What the API server answered when it did not do it, sorted by what the reader can do about it.

use api::Key;
use datastore::{Reason, StoreError};
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
    /// No connection to the proxy that leads to it, or none through it.
    #[error(
        "the proxy {proxy} (from the kubeconfig or HTTPS_PROXY; NO_PROXY names what is asked directly) does not lead to the API server: {message}"
    )]
    Proxy {
        /// Its address.
        proxy: String,
        /// Why.
        message: String,
    },
    /// Its certificate is not for this name, of an authority that we do not know, or not valid now.
    #[error("the API server's certificate cannot be trusted: {0}")]
    Certificate(String),
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
    /// A Kubernetes without what every version has that is known here.
    #[error("the API server does not serve {0}: it is too old, Kubernetes 1.20 is the oldest that is known to do")]
    TooOld(String),
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
    /// The server's data are from before what was read from it: somebody has restored a backup.
    #[error("the API server went back from version {from} to {to}: its data are from before")]
    WentBack {
        /// What had been read.
        from: u64,
        /// What it has now.
        to: u64,
    },
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
    name: String,
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
        let is_page = !known && !body.starts_with(NOT_SERVED);
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
            // Errors of the API server are JSON; gateways (5xx) say something of it, others of themselves.
            (300..500, _) if is_page => ApiError::Half(format!(
                "{code} and a page that is not the API server's (is there a proxy or load balancer in between?): {message}"
            )),
            // Admission, such as of namespaces that are being deleted: no role changes that.
            (403, _) if !message.contains(" cannot ") => ApiError::Invalid(message),
            (403, _) => ApiError::Forbidden {
                verb: asked.verb,
                resource: asked.resource.clone(),
                message,
            },
            // An object that is not there is reported with its name; a resource that is not served without, or with a bare line.
            (404, _) if status.details.as_ref().is_none_or(|details| details.name.is_empty()) => {
                ApiError::ResourceMissing(asked.resource.clone())
            }
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

    /// Whether the same request may succeed later.
    pub fn passes(&self) -> bool {
        match self {
            // Tokens are renewed, roles are corrected, and an API server that has just started may not know them yet.
            ApiError::Config(_)
            | ApiError::Unreachable(_)
            | ApiError::Proxy { .. }
            | ApiError::Certificate(_)
            | ApiError::Timeout { .. }
            | ApiError::Unauthorized(_)
            | ApiError::Forbidden { .. }
            | ApiError::Half(_)
            | ApiError::Server { .. } => true,
            ApiError::ResourceMissing(_)
            | ApiError::TooOld(_)
            | ApiError::NotFound(_)
            | ApiError::Exists(_)
            | ApiError::Conflict(_)
            | ApiError::Gone(_)
            | ApiError::WentBack { .. }
            | ApiError::Invalid(_) => false,
        }
    }

    /// Whether access to the server is to be read again before the next request: it may have been corrected.
    pub fn is_about_access(&self) -> bool {
        matches!(
            self,
            ApiError::Unreachable(_)
                | ApiError::Proxy { .. }
                | ApiError::Certificate(_)
                | ApiError::Unauthorized(_)
                | ApiError::Timeout { .. }
                | ApiError::Half(_)
                // A gateway's, as a rule.
                | ApiError::Server { code: 502..=504, .. }
        )
    }

    /// The kind of trouble that it is.
    pub fn reason(&self) -> Reason {
        match self {
            ApiError::Config(_) => Reason::NotConfigured,
            ApiError::Unreachable(_) => Reason::Unreachable,
            ApiError::Proxy { .. } => Reason::ProxyUnreachable,
            ApiError::Certificate(_) => Reason::CertificateInvalid,
            ApiError::Timeout { .. } => Reason::TooSlow,
            ApiError::Unauthorized(_) => Reason::Unauthorized,
            ApiError::Forbidden { .. } => Reason::Forbidden,
            ApiError::ResourceMissing(_) => Reason::NotInstalled,
            ApiError::TooOld(_) => Reason::VersionTooOld,
            ApiError::Half(_) => Reason::BadAnswer,
            ApiError::Server { .. } => Reason::ServerError,
            ApiError::NotFound(_)
            | ApiError::Exists(_)
            | ApiError::Conflict(_)
            | ApiError::Gone(_)
            | ApiError::WentBack { .. }
            | ApiError::Invalid(_) => Reason::Unavailable,
        }
    }
}

/// Where no single object was asked for.
impl From<ApiError> for StoreError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Gone(_) => StoreError::Compacted,
            ApiError::WentBack { .. } => StoreError::WentBack,
            ApiError::Invalid(_) | ApiError::NotFound(_) | ApiError::Exists(_) => {
                StoreError::Refused(error.to_string())
            }
            // A CRD, a role, a token or a configuration may come: asking again helps.
            _ => StoreError::unavailable(error.reason(), error.to_string()),
        }
    }
}

/// What the API server says of a path that it does not serve: its one answer that is no JSON.
const NOT_SERVED: &[u8] = b"404 page not found";

/// A body that is no `Status`: what fits on a line of it.
pub fn text(body: &[u8]) -> String {
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
            403,
            r#"{"kind":"Status","reason":"Forbidden","message":"pods \"a\" is forbidden: namespace n is being terminated","details":{}}"#,
            "the API server refused it: pods \"a\" is forbidden: namespace n is being terminated",
        );
        for code in [302, 403, 404] {
            check(
                code,
                "<html>Blocked</html>",
                &format!(
                    "the API server answered only half, or something else: {code} and a page that is not the API server's \
                     (is there a proxy or load balancer in between?): <html>Blocked</html>"
                ),
            );
        }
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
            r#"{"reason":"NotFound","message":"the server could not find the requested resource","details":{}}"#,
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
