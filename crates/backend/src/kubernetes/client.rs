//! Requests to the API server: one function for all that have one answer, one for watches.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use super::connect::{Access, access, blame, chain};
use super::error::{ApiError, Asked, text};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// Most that one event may have, bytes: far above what the API server stores of one object.
const LONGEST_EVENT: usize = 16 << 20;

/// The API server.
#[derive(Clone)]
pub struct Api {
    access: Arc<Access>,
}

/// What is to be done with a path.
#[derive(Clone, Debug)]
pub enum Action {
    /// `get`.
    Get,
    /// `list`.
    List,
    /// `create`.
    Create(Value),
    /// `update`.
    Update(Value),
    /// `patch`, by RFC 7386.
    Patch(Value),
    /// `patch` by Kubernetes' own rules for its own kinds: conditions, for one, are merged by their type.
    Merge(Value),
    /// `delete`, with its options.
    Delete(Value),
}

impl Api {
    /// With what the file says, without one what KUBECONFIG, `~/.kube/config` or the pod's service account say. Call it inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ApiError::Config`].
    pub async fn connect(kubeconfig: Option<PathBuf>) -> Result<Self, ApiError> {
        Ok(Self::with(access(kubeconfig.as_deref()).await?))
    }

    /// With this access.
    pub fn with(access: Access) -> Self {
        Self {
            access: Arc::new(access),
        }
    }

    /// Whether both are the same access.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.access, &other.access)
    }

    /// Asks once and reads the whole answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn ask(&self, resource: &str, path: &str, action: Action) -> Result<Value, ApiError> {
        let (verb, method, content, body) = match action {
            Action::Get => ("get", Method::GET, "", Vec::new()),
            Action::List => ("list", Method::GET, "", Vec::new()),
            Action::Create(body) => (
                "create",
                Method::POST,
                "application/json",
                body.to_string().into_bytes(),
            ),
            Action::Update(body) => ("update", Method::PUT, "application/json", body.to_string().into_bytes()),
            Action::Patch(body) => (
                "patch",
                Method::PATCH,
                "application/merge-patch+json",
                body.to_string().into_bytes(),
            ),
            Action::Merge(body) => (
                "patch",
                Method::PATCH,
                "application/strategic-merge-patch+json",
                body.to_string().into_bytes(),
            ),
            Action::Delete(body) => (
                "delete",
                Method::DELETE,
                "application/json",
                body.to_string().into_bytes(),
            ),
        };
        let asked = Asked {
            verb,
            resource: resource.to_owned(),
        };
        let answer = async {
            let response = self.send(method, path, content, body).await?;
            let code = response.status().as_u16();
            let body = response.into_body().collect_bytes().await;
            let body = body.map_err(|error| ApiError::Half(chain(&error)))?;
            if !(200..300).contains(&code) {
                return Err(ApiError::from_answer(&asked, code, &body));
            }
            let no_json = |error| ApiError::Half(format!("no JSON ({error}): {}", text(&body)));
            serde_json::from_slice(&body).map_err(no_json)
        };
        tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| {
            Err(ApiError::Timeout {
                request: format!("{verb} {resource}"),
                seconds: ANSWER.as_secs(),
            })
        })
    }

    /// Opens a watch: a line an event. The stream ends when the server ends it, and after an error; that nothing came for as
    /// long as `silence` is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn watch(
        &self,
        resource: &str,
        path: &str,
        silence: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, ApiError>>, ApiError> {
        let asked = Asked {
            verb: "watch",
            resource: resource.to_owned(),
        };
        let late = |request: String, wait: Duration| ApiError::Timeout {
            request,
            seconds: wait.as_secs(),
        };
        let opening = self.send(Method::GET, path, "", Vec::new());
        let response = tokio::time::timeout(ANSWER, opening).await;
        let response = response.unwrap_or_else(|_| Err(late(format!("watch {resource}"), ANSWER)))?;
        let code = response.status().as_u16();
        if code != 200 {
            let body = tokio::time::timeout(ANSWER, response.into_body().collect_bytes()).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            return Err(ApiError::from_answer(&asked, code, &body));
        }
        let silent = format!("watch {resource}");
        let chunks = response.into_body().into_data_stream();
        let chunks = stream::unfold(Some((chunks, silent)), move |state| async move {
            let (mut chunks, silent) = state?;
            match tokio::time::timeout(silence, chunks.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some((chunks, silent)))),
                Ok(Some(Err(error))) => Some((Err(ApiError::Half(chain(&error))), None)),
                Err(_) => Some((Err(late(silent, silence)), None)),
            }
        });
        Ok(lines(chunks.boxed()))
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: Vec<u8>) -> Result<Response<Body>, ApiError> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content);
        }
        request = request
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::USER_AGENT, concat!("margay/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.access.token {
            request = request.header(http::header::AUTHORIZATION, token.header(Instant::now()));
        }
        let request = request
            .body(Body::from(body))
            .map_err(|error| ApiError::Invalid(format!("{path} is no path: {error}")))?;
        let access = &self.access;
        let sent = access.client.clone().send(request).await;
        sent.map_err(|error| blame(&error, access.proxy.as_deref()))
    }
}

/// Chunks of bytes to lines; what comes after the last newline is no event.
fn lines(chunks: BoxStream<'static, Result<Bytes, ApiError>>) -> BoxStream<'static, Result<Bytes, ApiError>> {
    let lines = stream::try_unfold((chunks, BytesMut::new()), |(mut chunks, mut held)| async move {
        // Where the search for the end of the line goes on.
        let mut looked = 0;
        loop {
            if let Some(end) = held[looked..].iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(looked + end + 1).freeze();
                return Ok(Some((line, (chunks, held))));
            }
            looked = held.len();
            if looked > LONGEST_EVENT {
                return Err(ApiError::Half(format!("an event of more than {LONGEST_EVENT} bytes")));
            }
            match chunks.try_next().await? {
                Some(chunk) => held.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    });
    lines.boxed()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Chunks that are there need no waiting.
    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("it is there")
    }

    #[test]
    fn lines_come_whole_however_the_bytes_come() {
        let check = |chunks: &[&'static str], expected: &[&str]| {
            let chunks: Vec<Result<Bytes, ApiError>> = chunks.iter().map(|chunk| Ok(Bytes::from(*chunk))).collect();
            let got: Vec<Bytes> = now(lines(stream::iter(chunks).boxed()).try_collect()).expect("no error");
            assert_eq!(got, expected);
        };
        check(&["a\nb\n"], &["a\n", "b\n"]);
        check(&["a", "", "b", "\nc\nd", "e\n"], &["ab\n", "c\n", "de\n"]);
        check(&["a\nhalf"], &["a\n"]);
        check(&[], &[]);
    }

    #[test]
    fn an_error_ends_the_lines() {
        let half = || ApiError::Half("it broke".into());
        let chunks = vec![Ok(Bytes::from("a\nb")), Err(half())];
        let got: Vec<_> = now(lines(stream::iter(chunks).boxed()).collect());
        assert_eq!(got, [Ok(Bytes::from("a\n")), Err(half())]);
    }
}
