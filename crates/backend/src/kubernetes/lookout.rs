//! What the server lacks, and when it is looked for again.
//!
//! A document of discovery names all kinds of an API group. It is read for everybody who misses one of them, once a turn.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// How long a turn is, about.
const TURN: Duration = Duration::from_secs(60);

/// What was found in this turn.
#[derive(Debug, Default)]
pub struct Lookout {
    /// When the next turn begins.
    next: Option<Instant>,
    /// Names of kinds by the paths of documents.
    documents: HashMap<String, BTreeSet<String>>,
}

impl Lookout {
    /// When is looked next.
    pub fn next(&mut self, now: Instant) -> Instant {
        *self.next.get_or_insert_with(|| now + turn())
    }

    /// Forgets what was found, if the next turn has begun.
    pub fn begin(&mut self, now: Instant) {
        if self.next(now) <= now {
            self.documents.clear();
            self.next = Some(now + turn());
        }
    }

    /// Whether the document at this path names a kind; `None` if it has not been read in this turn.
    pub fn names(&self, path: &str, plural: &str) -> Option<bool> {
        self.documents.get(path).map(|names| names.contains(plural))
    }

    /// Takes an `APIResourceList`. [`Value::Null`]: there is none.
    pub fn take(&mut self, path: &str, document: &Value) {
        self.documents
            .insert(path.to_owned(), names(document).map(str::to_owned).collect());
    }
}

/// The names in an `APIResourceList`.
pub fn names(document: &Value) -> impl Iterator<Item = &str> {
    let resources = document["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    resources.iter().filter_map(|resource| resource["name"].as_str())
}

/// Spread, so that agents do not come together.
fn turn() -> Duration {
    TURN.mul_f64(rand::random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_good_for_a_turn() {
        let mut lookout = Lookout::default();
        let start = Instant::now();
        let next = lookout.next(start);
        assert!(next >= start + TURN / 2 && next <= start + TURN * 2);
        lookout.take(
            "/apis/g/v",
            &json!({ "resources": [{ "name": "tiers" }, { "name": "tiers/status" }] }),
        );
        lookout.take("/apis/none/v", &Value::Null);
        lookout.begin(start);
        assert_eq!(lookout.next(start), next);
        let said =
            |lookout: &Lookout| ["/apis/g/v", "/apis/none/v", "/apis/other/v"].map(|path| lookout.names(path, "tiers"));
        assert_eq!(said(&lookout), [Some(true), Some(false), None]);
        lookout.begin(next);
        assert_eq!(said(&lookout), [None, None, None]);
        assert!(lookout.next(next) > next);
    }
}
