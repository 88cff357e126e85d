//! What the server has and does, and what was asked of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Fault;
use super::data::{Data, Place};
use super::served::SERVED;

/// Versions before this one are forgotten from the start.
const FORGOTTEN: u64 = 10;

/// All of it.
pub struct State {
    pub fault: Fault,
    pub data: Data,
    /// The next watch of pools hears that its version is forgotten.
    pub forgotten: bool,
    /// Who is let in; everybody without.
    pub token: Option<String>,
    /// Who is let in too, and may do nothing.
    pub powerless: Option<String>,
    /// What was asked, as path and query.
    pub asked: Vec<(Instant, String)>,
    /// What was written: method, path, and body.
    pub written: Vec<(String, String, Value)>,
    /// When somebody wanted to connect, in memory.
    pub dialled: Vec<Instant>,
    /// Kinds that it does not have, by their plural.
    pub lacks: Vec<&'static str>,
    /// Of these kinds it says so although it has them.
    pub hides: Vec<&'static str>,
    /// How many next writes of objects somebody else is faster with.
    pub contested: usize,
    /// Bookmarks are where the server is, not where the kind is.
    pub knows_where_it_is: bool,
    /// How many watches of a path there are, and were at most.
    pub watches: BTreeMap<String, (usize, usize)>,
}

impl State {
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            data: data_with("first", 50, 100),
            forgotten: false,
            token: None,
            powerless: None,
            asked: Vec::new(),
            written: Vec::new(),
            dialled: Vec::new(),
            lacks: Vec::new(),
            hides: Vec::new(),
            contested: 0,
            knows_where_it_is: false,
            watches: BTreeMap::new(),
        }
    }
}

/// One pool, with the version that it got, and the version that the server came to since.
pub fn data_with(name: &str, version: u64, now: u64) -> Data {
    let mut data = Data::new(version - 1);
    let object = pool(name);
    data.change("ADDED", place("ippools", &object), object);
    (data.version, data.remembered) = (now, FORGOTTEN);
    data
}

/// A pool, with a field that only later definitions have.
pub fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": { "name": name, "uid": name, "generation": 1 },
        "spec": { "cidr": "192.168.0.0/16", "natOutgoing": false, "later": 1 },
    })
}

/// Where an object is.
pub fn place(plural: &str, object: &Value) -> Place {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    let resource = SERVED.iter().position(|one| one.plural == plural);
    Place {
        resource: resource.expect("it has such"),
        namespace: text("namespace"),
        name: text("name").expect("objects have names"),
    }
}
