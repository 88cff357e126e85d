//! Prometheus' text format, version 0.0.4. A library would rename counters (`_total`), and upstream's names must stay.

use std::fmt::{Display, Write as _};

use crate::Condition;

/// Metrics as they are written, family by family.
#[derive(Debug, Default)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Begins a family: its name, `counter` or `gauge`, and what it is, in a sentence.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of the family that was begun last; label values may hold anything.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, text)| format!("{label}=\"{}\"", escape(text)))
            .collect();
        let braces = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.text, "{name}{braces} {value}");
    }

    /// A family of conditions: 1 for each that is fine.
    pub fn conditions(&mut self, name: &str, conditions: &[Condition]) {
        self.family(name, "gauge", "1 if the part is fine; the reason is a label.");
        for condition in conditions {
            let labels = [
                ("condition", condition.name.as_str()),
                ("reason", condition.reason.as_str()),
            ];
            self.sample(name, &labels, u8::from(condition.ok));
        }
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut out = Metrics::default();
        out.family("a", "gauge", "What it is.");
        out.sample("a", &[], 1_u64);
        out.sample("a", &[("why", "\"\\\n"), ("b", "c")], 2_u64);
        let expected = "# HELP a What it is.\n# TYPE a gauge\na 1\na{why=\"\\\"\\\\\\n\",b=\"c\"} 2\n";
        assert_eq!(out.into_text(), expected);
    }
}
