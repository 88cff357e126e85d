//! What an agent says of itself.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{Lab, net};

/// Its status, as JSON.
pub fn status(lab: &Lab, node: &str) -> Value {
    let text = lab.exec(node, &["calicoctl", "node", "status", "-o", "json"]);
    serde_json::from_str(&text).expect("JSON")
}

/// Its metrics, as text.
pub fn metrics(lab: &Lab, node: &str) -> String {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("localhost", 9099))?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    net::inside(&lab.node_place(node), get).expect("the agent answers")
}

/// Packets that it has dropped for a cause, of this name or of any.
pub fn dropped(lab: &Lab, node: &str, cause: &str, name: Option<&str>) -> u64 {
    let drops = status(lab, node)["policy"]["drops"].clone();
    let of_cause = drops
        .as_array()
        .into_iter()
        .flatten()
        .filter(|drop| drop["cause"] == cause && name.is_none_or(|name| drop["name"] == name));
    of_cause.map(|drop| drop["packets"].as_u64().expect("a number")).sum()
}

/// Names of what it has dropped packets for, by cause.
pub fn names(lab: &Lab, node: &str, cause: &str) -> Vec<String> {
    let drops = status(lab, node)["policy"]["drops"].clone();
    let of_cause = drops
        .as_array()
        .into_iter()
        .flatten()
        .filter(|drop| drop["cause"] == cause);
    let names = of_cause.filter_map(|drop| drop["name"].as_str());
    names.map(str::to_owned).collect()
}
