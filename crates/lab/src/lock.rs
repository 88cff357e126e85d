//! One command at a time changes a lab; commands on different labs do not wait for each other.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::LabError;
use crate::record::{Folder, LABS};

/// The right to change a lab. Ends with the process, however that ends; programs that were started meanwhile do not hold
/// it on, but one that was forked and has not begun yet does, so that nobody overlooks it.
pub struct Lock {
    folder: Folder,
    _file: Flock<File>,
}

impl Lock {
    /// Waits for the right. `say` hears of it if there is something to wait for.
    pub fn take(folder: &Folder, say: &mut dyn FnMut(&str)) -> Result<Self, LabError> {
        let path = folder.lock();
        loop {
            let file = match open(&path) {
                // The last lab took the directory away with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(LabError::io(path.display().to_string()))?,
            };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((file, Errno::EWOULDBLOCK)) => {
                    say("waiting for another command on this lab");
                    Flock::lock(file, FlockArg::LockExclusive)
                }
                other => other,
            };
            let refused = |(_, errno): (File, Errno)| LabError::io(path.display().to_string())(errno.into());
            let file = file.map_err(refused)?;
            if is_at(&file, &path) {
                return Ok(Self {
                    folder: folder.clone(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.folder.path().exists() {
            // Nothing is left to guard. Who waits for this file sees that it is gone and opens the next one.
            let _ = fs::remove_file(self.folder.lock());
            let _ = fs::remove_dir(LABS);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    fs::create_dir_all(LABS)?;
    File::options().create(true).append(true).open(path)
}

/// Whether the locked file still is the one that others find.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}
