//! What is asked.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::data::Place;
use super::served::SERVED;

/// One request.
pub struct Request {
    pub method: String,
    /// Path and query as they came.
    pub path: String,
    /// Null without one.
    pub body: Value,
    head: String,
}

/// What a path is about: a resource or an object of it, or its status.
pub struct Target {
    pub resource: usize,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub is_status: bool,
}

impl Request {
    /// The next one on a connection; `None` when there is none any more.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Self> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let mut words = head.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut request = Self {
            method,
            path,
            body: Value::Null,
            head,
        };
        let length = request.header("content-length").and_then(|text| text.parse().ok());
        let mut bytes = vec![0; length.unwrap_or_default()];
        stream.read_exact(&mut bytes).await.ok()?;
        request.body = serde_json::from_slice(&bytes).unwrap_or_default();
        Some(request)
    }

    fn header(&self, wanted: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then_some(value.trim())
        })
    }

    pub fn token(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    /// Without the query.
    pub fn place(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query.
    pub fn parameter(&self, wanted: &str) -> Option<String> {
        let (_, query) = self.path.split_once('?')?;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.into_iter().find(|(name, _)| *name == wanted)?.1;
        Some(decoded(value))
    }

    pub fn number(&self, wanted: &str) -> Option<u64> {
        self.parameter(wanted)?.parse().ok()
    }

    pub fn is_watch(&self) -> bool {
        self.parameter("watch").as_deref() == Some("true")
    }

    /// As roles name it.
    pub fn verb(&self, target: &Target) -> &'static str {
        match self.method.as_str() {
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ if self.is_watch() => "watch",
            _ if target.name.is_some() => "get",
            _ => "list",
        }
    }

    /// `None`: the server has no such resource.
    pub fn target(&self) -> Option<Target> {
        let parts: Vec<&str> = self.place().split('/').skip(1).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..] if *plural != "status" => {
                (Some(decoded(namespace)), [&[*plural], rest].concat())
            }
            rest => (None, rest.to_vec()),
        };
        let (plural, name, is_status) = match rest.as_slice() {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some(decoded(name)), false),
            [plural, name, "status"] => (plural, Some(decoded(name)), true),
            _ => return None,
        };
        let resource = SERVED
            .iter()
            .position(|one| one.group == group && one.version == version && one.plural == *plural)?;
        Some(Target {
            resource,
            namespace,
            name,
            is_status,
        })
    }
}

impl Target {
    /// Whether it is about the object at this place.
    pub fn has(&self, place: &Place) -> bool {
        self.resource == place.resource
            && (self.namespace.is_none() || self.namespace == place.namespace)
            && self.name.as_ref().is_none_or(|name| *name == place.name)
    }

    /// Where an object of this name is.
    pub fn place(&self, name: &str) -> Place {
        Place {
            resource: self.resource,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }
}

/// Without `%XX`.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        let digits = || {
            let mut rest = bytes.clone();
            let text = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&text).ok()?, 16).ok()
        };
        match (byte, digits()) {
            (b'%', Some(value)) => {
                plain.push(value);
                bytes.next();
                bytes.next();
            }
            _ => plain.push(byte),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}
