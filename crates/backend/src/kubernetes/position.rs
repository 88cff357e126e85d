//! Revisions: one number for what lies in one row, and for several rows the place in each.
//!
//! Kubernetes' versions of different kinds are not to be compared, so a place in all of them is a list: `po=12,no=15`. A row
//! that the server does not have is `0`.

use std::collections::BTreeMap;

use datastore::Revision;

use super::table::ROWS;

/// The place in a row that is absent on the server.
pub const ABSENT: u64 = 0;

/// Where a reader is, by the row's place in [`ROWS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(BTreeMap<usize, u64>);

impl Position {
    /// Sets the place in a row.
    pub fn set(&mut self, row: usize, version: u64) {
        self.0.insert(row, version);
    }

    /// The place in a row.
    pub fn get(&self, row: usize) -> Option<u64> {
        self.0.get(&row).copied()
    }

    /// As text. A single row needs no name.
    pub fn to_revision(&self) -> Revision {
        if self.0.len() == 1
            && let Some(version) = self.0.values().next()
        {
            return Revision(version.to_string());
        }
        let parts = self
            .0
            .iter()
            .map(|(row, version)| format!("{}={version}", ROWS[*row].id));
        Revision(parts.collect::<Vec<_>>().join(","))
    }

    /// The places in these rows; `None` if the text is not ours, or says nothing of one of them.
    pub fn read(revision: &Revision, rows: &[usize]) -> Option<Self> {
        if let ([row], Ok(version)) = (rows, revision.0.parse()) {
            return Some(Self(BTreeMap::from([(*row, version)])));
        }
        let parts: Option<BTreeMap<&str, u64>> = revision
            .0
            .split(',')
            .map(|part| {
                let (id, version) = part.split_once('=')?;
                Some((id, version.parse().ok()?))
            })
            .collect();
        let parts = parts?;
        let place = |row: &usize| Some((*row, *parts.get(ROWS[*row].id)?));
        rows.iter().map(place).collect::<Option<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back() {
        let check = |places: &[(usize, u64)], text: &str| {
            let position = Position(places.iter().copied().collect());
            assert_eq!(position.to_revision(), Revision(text.into()));
            let rows: Vec<usize> = places.iter().map(|(row, _)| *row).collect();
            assert_eq!(Position::read(&Revision(text.into()), &rows), Some(position));
        };
        check(&[(0, 12)], "12");
        check(&[(0, 12), (4, 15)], "po=12,no=15");
        check(&[(0, 12), (24, ABSENT)], "po=12,es=0");
    }

    #[test]
    fn what_says_nothing_of_a_row_is_no_place_in_it() {
        let check = |text: &str, rows: &[usize], expected: bool| {
            assert_eq!(
                Position::read(&Revision(text.into()), rows).is_some(),
                expected,
                "{text} {rows:?}"
            );
        };
        check("po=12,no=15", &[4], true);
        check("po=12,no=15", &[4, 5], false);
        check("12", &[0, 4], false);
        check("", &[0], false);
        check("no number", &[0], false);
        check("po=12,no=x", &[0], false);
    }
}
