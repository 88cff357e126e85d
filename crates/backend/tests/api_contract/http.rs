//! Requests, as bare as they are.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::LocalBoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::Subject;

/// How long anything may take: longer than any watch here lives.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Makes connections.
pub type Dial = Box<dyn Fn() -> LocalBoxFuture<'static, io::Result<Box<dyn Stream>>>>;

/// What was answered.
pub struct Answer {
    pub code: u16,
    pub content: String,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.code,
            self.content,
            String::from_utf8_lossy(&self.body)
        )
    }
}

/// A connection to the server, for one request after the other.
pub struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        timeout(LIMIT, self.0.ready())
            .await
            .expect("in time")
            .expect("the connection is still there");
        let answer = timeout(LIMIT, self.0.send_request(request)).await;
        answer.expect("in time").expect("an answer")
    }

    /// A whole answer.
    pub async fn whole(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let answer = self.ask(request).await;
        let code = answer.status().as_u16();
        let content = content(&answer);
        let body = timeout(LIMIT, answer.into_body().collect()).await;
        let body = body.expect("in time").expect("it is whole").to_bytes();
        Answer { code, content, body }
    }
}

fn content(answer: &Response<Incoming>) -> String {
    let content = answer
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    content.unwrap_or_default().to_owned()
}

impl Subject {
    pub async fn connect(&self) -> Connection {
        let stream = (self.dial)().await.expect("a connection");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
        tokio::spawn(connection);
        Connection(sender)
    }

    /// A request by who has this token; an empty one is none.
    pub fn request(&self, token: &str, method: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
        let content = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let request = Request::builder().method(method).uri(path);
        let request = request.header("host", &self.host).header("accept", "application/json");
        let request = request.header("content-type", content);
        let request = match token {
            "" => request,
            token => request.header("authorization", format!("Bearer {token}")),
        };
        request.body(Full::new(body)).expect("a request")
    }

    /// The same, answered on a connection of its own.
    pub async fn ask_as(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let request = self.request(token, method, path, body);
        self.connect().await.whole(request).await
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.ask_as(&self.token, method, path, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &Value::Null).await
    }

    /// Begins a watch, which the server does.
    pub async fn watch(&self, path: &str) -> Watch {
        let connection = self.connect().await;
        self.watch_on(connection, path).await
    }

    pub async fn watch_on(&self, mut connection: Connection, path: &str) -> Watch {
        let answer = connection
            .ask(self.request(&self.token, "GET", path, &Value::Null))
            .await;
        assert_eq!(
            (answer.status().as_u16(), content(&answer).as_str()),
            (200, "application/json"),
            "{path}"
        );
        Watch {
            body: answer.into_body(),
            held: BytesMut::new(),
            connection,
        }
    }
}

/// A watch under way.
pub struct Watch {
    body: Incoming,
    held: BytesMut,
    connection: Connection,
}

impl Watch {
    /// The next event, which is a line; `None` when the server has ended the watch as it should.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
                let line = self.held.split_to(end + 1);
                return Some(serde_json::from_slice(&line).expect("a line is an event"));
            }
            match timeout(LIMIT, self.body.frame()).await.expect("in time") {
                Some(frame) => {
                    let frame = frame.expect("the body does not break off");
                    self.held
                        .extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
                None => {
                    assert!(self.held.is_empty(), "half an event at the end");
                    return None;
                }
            }
        }
    }

    /// Its events up to the end.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// What it came by, once it has ended.
    pub fn connection(self) -> Connection {
        self.connection
    }
}
