//! Selectors by what must be true of labels for them to match, so that few are tried on an endpoint.

use api::Selector;
use api::selector::Expression;

use crate::table::{ByNo, No, Table};

/// More alternatives than this are not told apart.
const MOST_ANCHORS: usize = 64;

/// Selectors (by number) under labels, one of which each of them needs.
#[derive(Debug, Default)]
pub(crate) struct Index {
    equal: ByNo<(No, No), Vec<No>>,
    present: ByNo<No, Vec<No>>,
    /// Those that may match without any label.
    always: Vec<No>,
}

/// One of these must be true for a selector to match; `None`: it may match anything.
pub(crate) type Anchors = Option<Vec<Anchor>>;

/// A label, by the numbers of its name and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Equal(No, No),
    Present(No),
}

impl Index {
    pub fn insert(&mut self, selector: No, anchors: &Anchors) {
        match anchors {
            None => self.always.push(selector),
            Some(anchors) => anchors.iter().for_each(|anchor| match anchor {
                Anchor::Equal(name, value) => self.equal.entry((*name, *value)).or_default().push(selector),
                Anchor::Present(name) => self.present.entry(*name).or_default().push(selector),
            }),
        }
    }

    pub fn remove(&mut self, selector: No, anchors: &Anchors) {
        let drop_from = |list: &mut Vec<No>| {
            if let Some(place) = list.iter().position(|no| *no == selector) {
                list.swap_remove(place);
            }
            list.is_empty()
        };
        match anchors {
            None => {
                drop_from(&mut self.always);
            }
            Some(anchors) => anchors.iter().for_each(|anchor| match anchor {
                Anchor::Equal(name, value) => {
                    let key = (*name, *value);
                    if self.equal.get_mut(&key).is_some_and(drop_from) {
                        self.equal.remove(&key);
                    }
                }
                Anchor::Present(name) => {
                    if self.present.get_mut(name).is_some_and(drop_from) {
                        self.present.remove(name);
                    }
                }
            }),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.always.is_empty() && self.equal.is_empty() && self.present.is_empty()
    }

    /// Those that may match labels, each once, sorted.
    pub fn candidates(&self, labels: impl Iterator<Item = (No, No)>) -> Vec<No> {
        let mut found = self.always.clone();
        labels.for_each(|label| self.find(label, &mut found));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Those that need one of these labels.
    pub fn anchored<'a>(&self, labels: impl Iterator<Item = &'a (No, No)>) -> Vec<No> {
        let mut found = Vec::new();
        labels.for_each(|label| self.find(*label, &mut found));
        found
    }

    /// Those that need no label.
    pub fn always(&self) -> &[No] {
        &self.always
    }

    fn find(&self, (name, value): (No, No), found: &mut Vec<No>) {
        found.extend(self.equal.get(&(name, value)).into_iter().flatten());
        found.extend(self.present.get(&name).into_iter().flatten());
    }
}

/// The anchors of a selector, whose texts are held in `symbols` until [`release`].
pub(crate) fn hold(selector: &Selector, symbols: &mut Table<Box<str>>) -> Anchors {
    let needs = needs(selector.expression())?;
    let mut hold = |text: &str| symbols.hold(text).0;
    Some(
        needs
            .into_iter()
            .map(|need| match need {
                (name, Some(value)) => Anchor::Equal(hold(name), hold(value)),
                (name, None) => Anchor::Present(hold(name)),
            })
            .collect(),
    )
}

/// Lets go of the texts of anchors.
pub(crate) fn release(anchors: &Anchors, symbols: &mut Table<Box<str>>) {
    for anchor in anchors.iter().flatten() {
        match anchor {
            Anchor::Equal(name, value) => {
                symbols.release(*name);
                symbols.release(*value);
            }
            Anchor::Present(name) => {
                symbols.release(*name);
            }
        }
    }
}

/// A label, with a value if it must be that one.
type Need<'a> = (&'a str, Option<&'a str>);

/// Labels one of which must be there; the rarest that can be told from the text.
fn needs(expression: &Expression) -> Option<Vec<Need<'_>>> {
    let found = match expression {
        Expression::Has(name)
        | Expression::Contains(name, _)
        | Expression::StartsWith(name, _)
        | Expression::EndsWith(name, _) => vec![(name.as_str(), None)],
        Expression::Equals(name, value) => vec![(name.as_str(), Some(value.as_str()))],
        Expression::In(name, values) if values.len() > MOST_ANCHORS => vec![(name.as_str(), None)],
        Expression::In(name, values) => values
            .iter()
            .map(|value| (name.as_str(), Some(value.as_str())))
            .collect(),
        Expression::And(parts) => parts.iter().filter_map(needs).min_by_key(|needs| width(needs))?,
        Expression::Or(parts) => parts.iter().map(needs).collect::<Option<Vec<_>>>()?.concat(),
        Expression::All | Expression::Global | Expression::Differs(..) | Expression::NotIn(..) | Expression::Not(_) => {
            return None;
        }
    };
    (found.len() <= MOST_ANCHORS).then_some(found)
}

/// How much needs let through, roughly: any value of a label is more than some values.
fn width(needs: &[Need<'_>]) -> usize {
    needs
        .iter()
        .map(|(_, value)| if value.is_some() { 1 } else { 1000 })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_found_by_the_rarest_label_it_needs() {
        check("all()", None);
        check("a == 'b'", Some("a=b"));
        check("has(c) && a == 'b' && x != 'y'", Some("a=b"));
        check("a in {'b', 'c'}", Some("a=b a=c"));
        check("a == 'b' || has(c)", Some("a=b c"));
        check("a == 'b' || d != 'c'", None);
        check("a starts with 'b' && !has(c)", Some("a"));
        check("a not in {'b'}", None);
        check("a in {}", Some(""));
    }

    fn check(selector: &str, wanted: Option<&str>) {
        let selector = Selector::parse(selector).unwrap();
        let shown = needs(selector.expression()).map(|needs| {
            let show = |(name, value): Need<'_>| value.map_or(name.to_owned(), |value| format!("{name}={value}"));
            needs.into_iter().map(show).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(shown.as_deref(), wanted, "{selector}");
    }
}
