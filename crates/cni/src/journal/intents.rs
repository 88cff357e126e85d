//! Intents on disk before anything that they announce is: one file of fixed size, written in place.
//!
//! The file of an endpoint is new, so making it durable takes the file system two commits, a millisecond and more when the disk
//! has other work. A slot of this file takes one write and one flush. It holds the intent until the endpoint's own file is
//! durable, which is then nobody's hurry.
//!
//! After a power failure a slot may speak of an endpoint whose file never reached the disk: that is what it is for. It may
//! also speak of one that is long gone; to remove that once more does no harm.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Endpoint, line};

/// Bytes of a slot: a page, so that no write touches two.
const SLOT: usize = 4096;
/// So many ADDs at once need not wait for their own files.
const SLOTS: usize = 128;

/// The file. One process has it.
#[derive(Debug)]
pub struct Intents {
    file: File,
    /// Which slots are in use.
    busy: Mutex<[bool; SLOTS]>,
}

/// A slot in use.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Intents {
    /// Opens or makes the file in the journal's directory, which must exist. Answers the intents that it holds.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<Endpoint>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("intents"))?;
        let mut bytes = Vec::with_capacity(SLOT * SLOTS);
        file.read_to_end(&mut bytes)?;
        let held = bytes.chunks(SLOT).filter_map(intent_of).collect();
        if bytes.len() != SLOT * SLOTS {
            // All of its blocks are allocated now: later writes change no metadata.
            file.set_len(0)?;
            file.write_all_at(&bytes_of_size(bytes), 0)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        let intents = Self {
            file,
            busy: Mutex::new([false; SLOTS]),
        };
        Ok((intents, held))
    }

    /// Writes an intent down: durable when this returns. `None`: there is no room for it, and nothing was written.
    pub fn note(&self, endpoint: &Endpoint) -> io::Result<Option<Slot>> {
        let mut bytes = line(endpoint)?;
        if bytes.len() > SLOT {
            return Ok(None);
        }
        bytes.resize(SLOT, 0);
        let Some(slot) = self.take() else { return Ok(None) };
        let written = self
            .file
            .write_all_at(&bytes, offset(slot.0))
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => Ok(Some(slot)),
            Err(error) => {
                self.free(slot);
                Err(error)
            }
        }
    }

    /// The intent is written down elsewhere, or no longer one.
    pub fn free(&self, slot: Slot) {
        // If this is lost, the next start finds an intent more than there is.
        let _ = self.file.write_all_at(&[0], offset(slot.0));
        if let Some(busy) = self.busy().get_mut(slot.0) {
            *busy = false;
        }
    }

    /// Forgets all intents: whoever opened the file has taken care of them.
    pub fn clear(&self) -> io::Result<()> {
        self.file.write_all_at(&bytes_of_size(Vec::new()), 0)?;
        self.file.sync_data()
    }

    fn take(&self) -> Option<Slot> {
        let mut busy = self.busy();
        let free = busy.iter().position(|busy| !busy)?;
        busy[free] = true;
        Some(Slot(free))
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, [bool; SLOTS]> {
        // No code that can panic runs while this is locked.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn offset(slot: usize) -> u64 {
    (slot * SLOT) as u64
}

fn bytes_of_size(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(SLOT * SLOTS, 0);
    bytes
}

/// The intent in a slot; one that was being written when the power went is none.
fn intent_of(slot: &[u8]) -> Option<Endpoint> {
    let end = slot.iter().position(|byte| *byte == b'\n')?;
    serde_json::from_slice(&slot[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::endpoint;

    fn check(what: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        what(dir.path());
    }

    #[test]
    fn an_intent_is_found_again_until_it_is_freed() {
        check(|dir| {
            let (intents, held) = Intents::open(dir).unwrap();
            assert_eq!(held, []);
            let (first, second) = (endpoint("a"), endpoint("b"));
            let slot = intents.note(&first).unwrap().unwrap();
            intents.note(&second).unwrap().unwrap();
            assert_eq!(Intents::open(dir).unwrap().1, [first.clone(), second.clone()]);
            intents.free(slot);
            let (intents, held) = Intents::open(dir).unwrap();
            assert_eq!(held, [second]);
            intents.clear().unwrap();
            assert_eq!(Intents::open(dir).unwrap().1, []);
        });
    }

    #[test]
    fn without_room_nothing_is_written() {
        check(|dir| {
            let (intents, _) = Intents::open(dir).unwrap();
            let mut large = endpoint("large");
            large.network = "n".repeat(SLOT);
            assert_eq!(intents.note(&large).unwrap(), None);
            let slots: Vec<_> = (0..SLOTS).map(|_| intents.note(&endpoint("a")).unwrap()).collect();
            assert!(slots.iter().all(Option::is_some));
            assert_eq!(intents.note(&endpoint("a")).unwrap(), None);
        });
    }

    #[test]
    fn torn_and_foreign_slots_are_no_intents() {
        check(|dir| {
            let whole = line(&endpoint("a")).unwrap();
            let mut bytes = whole[..whole.len() / 2].to_vec();
            bytes.resize(SLOT, 0);
            bytes.extend(&whole);
            std::fs::write(dir.join("intents"), bytes).unwrap();
            let (_, held) = Intents::open(dir).unwrap();
            assert_eq!(held, [endpoint("a")], "what a shorter file held is kept");
            assert_eq!(Intents::open(dir).unwrap().1, [endpoint("a")]);
        });
    }
}
