//! Where selectors meet labels: one message for a bad one, wherever it stands.

use std::collections::BTreeMap;

/// A parsed selector.
pub(crate) struct Selector(api::Selector);

impl Selector {
    /// Parses a selector; the error names its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        api::Selector::parse(text)
            .map(Self)
            .map_err(|why| format!("`{text}` {why}"))
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.evaluate(labels)
    }
}
