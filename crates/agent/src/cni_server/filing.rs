//! Endpoints' own files on their way to the disk, when nobody is in a hurry.
//!
//! An ADD waits for its intent in a slot and for the datastore's flush. Making the endpoint's own file durable at the same
//! time takes the file system a commit, and whoever flushes meanwhile waits for that too. So the files wait a little, and
//! those of many ADDs then go together. Until then the intents keep their slots; when there is none left, an ADD waits for its
//! own file (`add.rs`).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cni::journal::{Intents, Journal, Slot};

/// How long a file waits for others.
pub(super) const LINGER: Duration = Duration::from_millis(100);

/// Files that are not durable yet, and the slots that speak for them.
#[derive(Debug, Default)]
pub(super) struct Filing {
    waiting: Mutex<Vec<(File, Slot)>>,
}

impl Filing {
    /// Takes a file. `true`: it is the first one, so somebody has to [`settle`](Self::settle) after [`LINGER`].
    pub fn put(&self, file: File, slot: Slot) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((file, slot));
        waiting.len() == 1
    }

    /// Makes all files durable that came so far and frees their slots. Blocks. What fails keeps its slot, which the next
    /// start looks into.
    pub fn settle(&self, journal: &Journal, intents: &Intents) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let there: Vec<&File> = waiting
            .iter()
            .map(|(file, _)| file)
            .filter(|file| is_named(file))
            .collect();
        match journal.make_durable(&there) {
            Ok(()) => waiting.into_iter().for_each(|(_, slot)| intents.free(slot)),
            Err(error) => {
                tracing::error!(%error, "cni: endpoints' files are not on the disk; their intents stay where they are");
            }
        }
    }
}

/// Whether the endpoint is still there. One that was removed meanwhile needs no file.
fn is_named(file: &File) -> bool {
    let named = |meta: io::Result<std::fs::Metadata>| meta.map_or(true, |meta| meta.nlink() > 0);
    named(file.metadata())
}

#[cfg(test)]
mod tests {
    use cni::journal::Pending;

    use super::super::Naming;
    use super::*;

    #[test]
    fn slots_are_free_when_the_files_are_durable_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let (intents, _) = journal.intents().unwrap();
        let filing = Filing::default();
        let naming = Naming {
            node: "n1".into(),
            prefix: "cali".into(),
        };
        let endpoints = ["a", "b"].map(|container| {
            naming.endpoint(&Pending {
                container_id: container.into(),
                ifname: "eth0".into(),
                network: "net".into(),
                ipam_only: false,
                netns: None,
                args: Default::default(),
            })
        });
        for (at, endpoint) in endpoints.iter().enumerate() {
            let file = journal.begin(endpoint).unwrap();
            let slot = intents.note(endpoint).unwrap().unwrap();
            assert_eq!(
                filing.put(file, slot),
                at == 0,
                "only the first one has to be settled for"
            );
        }
        journal.forget(&endpoints[1].id()).unwrap();
        assert_eq!(journal.intents().unwrap().1.len(), 2);
        filing.settle(&journal, &intents);
        assert_eq!(journal.intents().unwrap().1, []);
        assert!(journal.endpoint(&endpoints[0].id()).unwrap().is_some());
    }
}
