//! One part's state, and how people read several.

use serde::{Deserialize, Serialize};

/// One part's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which part.
    pub name: String,
    /// Fine or not.
    pub ok: bool,
    /// Whether the process is unready without it. Peers that are down make no agent unready.
    pub required: bool,
    /// A word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// A line each, as a readiness probe shows them. Names are at least `width` letters wide.
pub fn lines(conditions: &[Condition], width: usize) -> String {
    let line = |c: &Condition| {
        let mark = match (c.ok, c.required) {
            (true, _) => "ok",
            (false, true) => "NOT READY",
            (false, false) => "warning",
        };
        format!("{:<width$} {mark:<9} {}: {}\n", c.name, c.reason, c.message)
    };
    conditions.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_required_makes_unready() {
        let condition = |ok, required| Condition {
            name: "BGP".into(),
            ok,
            required,
            reason: "Down".into(),
            message: "no peer".into(),
        };
        let conditions = [condition(true, true), condition(false, true), condition(false, false)];
        let expected = "BGP  ok        Down: no peer\nBGP  NOT READY Down: no peer\nBGP  warning   Down: no peer\n";
        assert_eq!(lines(&conditions, 4), expected);
    }
}
