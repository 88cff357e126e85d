//! Records of endpoints that have just begun: one file of fixed size, written in place.
//!
//! An endpoint's own file is new, so making it costs the file system more than all the rest of an ADD does on disk, and making it
//! durable takes two commits, for which whoever flushes at the same time waits as well. A slot of this file takes a write into a
//! page that is there already, and one flush. It holds what the endpoint's file would hold, until that is made when nobody is
//! in a hurry ([`super::Records`]).
//!
//! After a power failure a slot may speak of an endpoint that was forgotten: to remove that once more does no harm.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Its name.
const FILE: &str = "intents";
/// Bytes of a slot: a page, so that no write touches two.
const SLOT: usize = 4096;
/// So many ADDs at once need not wait for their own files.
pub(super) const SLOTS: usize = 128;

/// The file. One process has it.
#[derive(Debug)]
pub(super) struct Recent {
    file: File,
    /// Which slots are in use.
    busy: [bool; SLOTS],
}

/// A slot in use, and how many bytes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    at: usize,
    used: usize,
}

impl Recent {
    /// Opens or makes the file in a directory, which must exist. Answers the lines that its slots hold.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<Vec<u8>>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(FILE))?;
        let mut bytes = Vec::with_capacity(SLOT * SLOTS);
        file.read_to_end(&mut bytes)?;
        let held = lines_in(&bytes);
        if bytes.len() != SLOT * SLOTS {
            // All of its blocks are allocated now: later writes change no metadata.
            bytes.resize(SLOT * SLOTS, 0);
            file.set_len(0)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        let busy = [false; SLOTS];
        Ok((Self { file, busy }, held))
    }

    /// Another handle of the file, to flush it.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes a line into a free slot. `None`: there is no room for it, and nothing was written.
    pub fn note(&mut self, line: &[u8]) -> io::Result<Option<Slot>> {
        let Some(at) = self.busy.iter().position(|busy| !busy) else {
            return Ok(None);
        };
        // One byte is left: what is behind the last line must not be taken for another.
        if line.len() >= SLOT {
            return Ok(None);
        }
        let mut page = line.to_vec();
        page.resize(SLOT, 0);
        self.file.write_all_at(&page, offset(at))?;
        self.busy[at] = true;
        Ok(Some(Slot { at, used: line.len() }))
    }

    /// Writes one more line into a slot; `false`: there is no room for it, and nothing was written.
    pub fn append(&self, slot: &mut Slot, line: &[u8]) -> io::Result<bool> {
        if slot.used + line.len() >= SLOT {
            return Ok(false);
        }
        self.file.write_all_at(line, offset(slot.at) + slot.used as u64)?;
        slot.used += line.len();
        Ok(true)
    }

    /// What the slot says is written down elsewhere, or no longer true.
    pub fn free(&mut self, slot: Slot) {
        // If this is lost, the next start finds a record more than there is.
        let _ = self.file.write_all_at(&[0], offset(slot.at));
        self.busy[slot.at] = false;
    }

    /// Forgets all: whoever opened the file has taken care of what it held.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.write_all_at(&[0; SLOT * SLOTS], 0)?;
        self.busy = [false; SLOTS];
        self.file.sync_data()
    }
}

/// The lines that the slots of a directory's file hold; none if there is no such file.
pub(super) fn peek(dir: &Path) -> io::Result<Vec<Vec<u8>>> {
    match std::fs::read(dir.join(FILE)) {
        Ok(bytes) => Ok(lines_in(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn lines_in(file: &[u8]) -> Vec<Vec<u8>> {
    let held = file.chunks(SLOT).map(lines_of).filter(|lines| !lines.is_empty());
    held.map(<[u8]>::to_vec).collect()
}

fn offset(slot: usize) -> u64 {
    (slot * SLOT) as u64
}

/// The lines in a slot. One that was being written when the power went has no end, and is none.
fn lines_of(slot: &[u8]) -> &[u8] {
    let used = slot.iter().position(|byte| *byte == 0).unwrap_or(slot.len());
    let end = slot[..used].iter().rposition(|byte| *byte == b'\n');
    end.map_or(&[], |end| &slot[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        what(dir.path());
    }

    #[track_caller]
    fn check_held(dir: &Path, expected: &[&str]) {
        let (_, held) = Recent::open(dir).unwrap();
        let held: Vec<_> = held.iter().map(|lines| str::from_utf8(lines).unwrap()).collect();
        assert_eq!(held, expected);
    }

    #[test]
    fn what_was_noted_is_found_until_it_is_freed() {
        check(|dir| {
            let (mut recent, held) = Recent::open(dir).unwrap();
            assert_eq!(held, Vec::<Vec<u8>>::new());
            let mut first = recent.note(b"a\n").unwrap().unwrap();
            recent.note(b"b\n").unwrap().unwrap();
            assert!(recent.append(&mut first, b"aa\n").unwrap());
            check_held(dir, &["a\naa\n", "b\n"]);
            recent.free(first);
            check_held(dir, &["b\n"]);
            recent.note(b"c\n").unwrap().unwrap();
            check_held(dir, &["c\n", "b\n"]);
            recent.clear().unwrap();
            check_held(dir, &[]);
        });
    }

    #[test]
    fn without_room_nothing_is_written() {
        check(|dir| {
            let (mut recent, _) = Recent::open(dir).unwrap();
            assert_eq!(recent.note(&[b'x'; SLOT]).unwrap(), None);
            let mut slots: Vec<_> = (0..SLOTS).map(|_| recent.note(b"a\n").unwrap()).collect();
            assert!(slots.iter().all(Option::is_some));
            assert_eq!(recent.note(b"a\n").unwrap(), None);
            let mut last = slots.pop().unwrap().unwrap();
            assert!(!recent.append(&mut last, &[b'x'; SLOT - 2]).unwrap());
            assert_eq!(Recent::open(dir).unwrap().1.last().unwrap(), b"a\n");
        });
    }

    #[test]
    fn torn_lines_are_none_and_what_a_shorter_file_held_is_kept() {
        check(|dir| {
            let mut bytes = b"torn".to_vec();
            bytes.resize(SLOT, 0);
            bytes.extend(b"whole\nand torn");
            std::fs::write(dir.join("intents"), bytes).unwrap();
            check_held(dir, &["whole\n"]);
            check_held(dir, &["whole\n"]);
        });
    }
}
