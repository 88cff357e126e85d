//! Endpoints' records as the agent keeps them: in a slot of [`Recent`] while they are young, then in a file each.
//!
//! All of it can be read again by another process at any moment. Where an endpoint has a slot, that is newer than its file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::recent::{Recent, Slot};
use super::{Endpoint, Id, Journal, last_line, line, temporary, write_file};

/// The records of one journal. One process has them.
#[derive(Debug)]
pub struct Records {
    journal: Journal,
    young: Mutex<Young>,
    /// The slots' file, to flush it; `None`: it cannot be opened, so every endpoint's own file is made at once.
    slots: Option<File>,
}

#[derive(Debug, Default)]
struct Young {
    recent: Option<Recent>,
    held: BTreeMap<Id, Held>,
    /// Tells records of one attachment apart that follow each other.
    births: u64,
}

/// What a slot holds.
#[derive(Debug)]
struct Held {
    slot: Slot,
    lines: Vec<u8>,
    birth: u64,
}

/// An endpoint's beginning, visible and not durable yet.
#[derive(Debug)]
#[must_use = "it is not durable yet"]
pub struct Begun(Option<File>);

impl Records {
    /// Takes the journal over: what an earlier process left in slots gets its files. An error of the slots' file is answered
    /// beside records that do without it.
    pub fn open(journal: Journal) -> (Self, io::Result<()>) {
        let opened = adopt(&journal);
        let (recent, slots, outcome) = match opened.and_then(|recent| Ok((recent.handle()?, recent))) {
            Ok((slots, recent)) => (Some(recent), Some(slots), Ok(())),
            Err(error) => (None, None, Err(error)),
        };
        let young = Mutex::new(Young {
            recent,
            ..Young::default()
        });
        (Self { journal, young, slots }, outcome)
    }

    /// Begins an endpoint's record, anew if there is one: another process would see it from now on.
    pub fn begin(&self, endpoint: &Endpoint) -> io::Result<Begun> {
        let (id, lines) = (endpoint.id(), line(endpoint)?);
        let mut young = self.young();
        let slot = match &mut young.recent {
            Some(recent) => recent.note(&lines)?,
            None => None,
        };
        let file = match slot {
            Some(_) => None,
            None => Some(self.journal.begin(endpoint)?),
        };
        // What was there before goes last, so that something is there all the time.
        young.forget(&id);
        if let Some(slot) = slot {
            young.births += 1;
            let birth = young.births;
            young.held.insert(id, Held { slot, lines, birth });
        }
        Ok(Begun(file))
    }

    /// Makes a beginning durable. Blocks.
    pub fn make_durable(&self, begun: Begun) -> io::Result<()> {
        match (begun.0, &self.slots) {
            (Some(file), _) => self.journal.make_durable(&file),
            (None, Some(slots)) => slots.sync_data(),
            (None, None) => Err(io::Error::other("a slot without a file of slots")),
        }
    }

    /// Notes an endpoint's newer state; [`io::ErrorKind::NotFound`] if it was not begun.
    pub fn progress(&self, endpoint: &Endpoint) -> io::Result<()> {
        let mut young = self.young();
        let Young { recent, held, .. } = &mut *young;
        let (Some(recent), Some(held)) = (recent, held.get_mut(&endpoint.id())) else {
            drop(young);
            return self.journal.progress(endpoint);
        };
        let line = line(endpoint)?;
        if recent.append(&mut held.slot, &line)? {
            held.lines.extend(line);
            return Ok(());
        }
        // No room: its own file has all of it, and the slot is given back.
        let lines = [&held.lines[..], &line].concat();
        let path = self.prepare(&endpoint.id(), &lines)?;
        self.place(path, &endpoint.id())?;
        young.forget(&endpoint.id());
        Ok(())
    }

    /// Forgets an endpoint. Forgetting twice is fine.
    pub fn forget(&self, id: &Id) -> io::Result<()> {
        // Under the lock: a file that is just being made must not appear afterwards.
        let mut young = self.young();
        young.forget(id);
        self.journal.forget(id)
    }

    /// Gives young records their files and their slots back. Blocks. Answers whether there are any left: some may have changed
    /// meanwhile. On an error slots stay as they are.
    pub fn settle(&self) -> io::Result<bool> {
        let young: Vec<(Id, u64, Vec<u8>)> = {
            let young = self.young();
            let copy = |(id, held): (&Id, &Held)| (id.clone(), held.birth, held.lines.clone());
            young.held.iter().map(copy).collect()
        };
        let mut filed = Vec::new();
        for (id, birth, lines) in young {
            let path = self.prepare(&id, &lines)?;
            let young = self.young();
            match young.is_still(&id, birth, lines.len()) {
                true => self.place(path, &id)?,
                false => fs::remove_file(path)?,
            }
            filed.push((id, birth, lines.len()));
        }
        if !filed.is_empty() {
            File::open(self.journal.endpoints_dir()?)?.sync_all()?;
        }
        let mut young = self.young();
        for (id, birth, length) in filed {
            if young.is_still(&id, birth, length) {
                young.forget(&id);
            }
        }
        Ok(!young.held.is_empty())
    }

    /// A durable file of these lines that has no name yet that counts; on failure there is none.
    fn prepare(&self, id: &Id, lines: &[u8]) -> io::Result<PathBuf> {
        let path = temporary(&self.journal.endpoints_dir()?, &id.file_name());
        let written = write_file(&path, lines)?.sync_all();
        or_remove(path, written)
    }

    /// Gives such a file the name that counts; on failure it is gone.
    fn place(&self, path: PathBuf, id: &Id) -> io::Result<()> {
        let placed = fs::rename(&path, self.path(id));
        or_remove(path, placed).map(drop)
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.journal.dir().join("endpoints").join(id.file_name())
    }

    fn young(&self) -> MutexGuard<'_, Young> {
        // Whoever panicked here left the slots as they are on disk.
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Young {
    fn forget(&mut self, id: &Id) {
        if let (Some(held), Some(recent)) = (self.held.remove(id), &mut self.recent) {
            recent.free(held.slot);
        }
    }

    fn is_still(&self, id: &Id, birth: u64, length: usize) -> bool {
        let held = self.held.get(id);
        held.is_some_and(|held| held.birth == birth && held.lines.len() == length)
    }
}

/// Keeps a file only if what was done with it worked: it is tried again with another one.
fn or_remove(path: PathBuf, outcome: io::Result<()>) -> io::Result<PathBuf> {
    if let Err(error) = outcome {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(path)
}

/// Opens the slots; what they hold gets files, which are durable before the slots are free.
fn adopt(journal: &Journal) -> io::Result<Recent> {
    let dir = journal.endpoints_dir()?;
    let (mut recent, held) = Recent::open(journal.dir())?;
    for lines in &held {
        // What cannot be read was never answered to anybody.
        let Ok(endpoint) = last_line::<Endpoint>(lines) else {
            continue;
        };
        super::write_atomically(&dir, &endpoint.id().file_name(), lines, 0o600)?;
    }
    recent.clear()?;
    Ok(recent)
}

#[cfg(test)]
mod tests {
    use super::super::Phase;
    use super::super::recent::SLOTS;
    use super::super::tests::{attached, endpoint};
    use super::*;

    fn check(what: impl FnOnce(&Journal, Records)) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let (records, opened) = Records::open(journal.clone());
        opened.unwrap();
        what(&journal, records);
    }

    /// What another process finds, by container: one that looks, and one that takes over.
    fn seen(journal: &Journal) -> BTreeMap<String, Phase> {
        let look = || {
            let loaded = journal.endpoints().unwrap();
            assert_eq!(loaded.damaged, []);
            let seen = loaded.records.into_iter();
            seen.map(|endpoint| (endpoint.container_id, endpoint.phase)).collect()
        };
        let seen = look();
        drop(Records::open(journal.clone()));
        assert_eq!(look(), seen);
        seen
    }

    fn files(journal: &Journal) -> usize {
        fs::read_dir(journal.dir().join("endpoints")).unwrap().count()
    }

    #[test]
    fn another_process_finds_the_last_state() {
        for settled in [false, true] {
            check(|journal, records| {
                records.make_durable(records.begin(&endpoint("a")).unwrap()).unwrap();
                records.make_durable(records.begin(&endpoint("b")).unwrap()).unwrap();
                records.progress(&attached("b")).unwrap();
                assert_eq!(files(journal), 0, "they are young");
                if settled {
                    assert!(!records.settle().unwrap());
                    assert_eq!(files(journal), 2);
                    records.progress(&attached("a")).unwrap();
                    records.forget(&endpoint("b").id()).unwrap();
                    assert_eq!(seen(journal), [("a".into(), Phase::Attached)].into());
                } else {
                    assert_eq!(
                        seen(journal),
                        [("a".into(), Phase::Intent), ("b".into(), Phase::Attached)].into()
                    );
                }
            });
        }
    }

    #[test]
    fn a_slot_is_newer_than_a_file() {
        check(|journal, records| {
            drop(records.begin(&endpoint("a")).unwrap());
            records.progress(&attached("a")).unwrap();
            records.settle().unwrap();
            drop(records.begin(&endpoint("a")).unwrap());
            assert_eq!(seen(journal), [("a".into(), Phase::Intent)].into());
        });
    }

    #[test]
    fn what_was_forgotten_stays_so() {
        check(|journal, records| {
            drop(records.begin(&endpoint("a")).unwrap());
            records.forget(&endpoint("a").id()).unwrap();
            records.forget(&endpoint("a").id()).unwrap();
            assert!(!records.settle().unwrap());
            assert_eq!(files(journal), 0);
            assert_eq!(seen(journal), BTreeMap::new());
            let progressed = records.progress(&attached("a")).unwrap_err();
            assert_eq!(progressed.kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn without_a_slot_the_file_is_made_at_once() {
        check(|journal, records| {
            for number in 0..=SLOTS {
                let begun = records.begin(&endpoint(&format!("c{number}"))).unwrap();
                records.make_durable(begun).unwrap();
            }
            assert_eq!(files(journal), 1);
            let last = format!("c{SLOTS}");
            records.progress(&attached(&last)).unwrap();
            assert_eq!(seen(journal)[&last], Phase::Attached);
            assert_eq!(seen(journal).len(), SLOTS + 1);
        });
    }

    #[test]
    fn a_record_that_outgrows_its_slot_moves_to_its_file() {
        check(|journal, records| {
            drop(records.begin(&endpoint("a")).unwrap());
            let mut large = attached("a");
            large.network = "n".repeat(4000);
            records.progress(&large).unwrap();
            assert_eq!(files(journal), 1);
            assert_eq!(journal.endpoint(&large.id()).unwrap(), Some(large));
            assert!(!records.settle().unwrap());
        });
    }

    #[test]
    fn a_file_that_cannot_be_finished_is_not_left() {
        check(|journal, records| {
            let endpoint = attached("a");
            records.make_durable(records.begin(&endpoint).unwrap()).unwrap();
            // Something that no file can replace is in the way.
            let in_the_way = journal.dir().join("endpoints").join(endpoint.id().file_name());
            fs::create_dir_all(&in_the_way).unwrap();
            for _ in 0..3 {
                records.settle().unwrap_err();
                assert_eq!(files(journal), 1);
            }
            fs::remove_dir(&in_the_way).unwrap();
            assert!(!records.settle().unwrap());
            assert_eq!(journal.endpoint(&endpoint.id()).unwrap(), Some(endpoint));
        });
    }
}
