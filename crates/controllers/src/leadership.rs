//! One process of a cluster leads: only it writes. How that is agreed upon depends on the datastore.
//!
//! [`FileLock`] is for the embedded store, which has one socket on one machine. With Kubernetes it is
//! [`LeaseLock`](crate::lease::LeaseLock).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long a term still lasts unless it is renewed, [`Duration::MAX`] if no time ends it; `None`: it is over. Asked before every
/// write and at every step of one, so it must be cheap.
pub type Left = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// How often a lock that another process has is tried, and how often ours is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Why this process does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Another one does: who, or how one knows.
    Other(String),
    /// Nobody can tell, and why.
    Trouble(String),
}

/// Hears why a process does not lead.
pub type Say<'a> = &'a (dyn Fn(Wait) + Send + Sync);

/// A way to agree on who leads.
pub trait Leadership: Send + Sync {
    /// Waits until this process leads. Tries for ever; what stands in the way goes to `say`, once for each reason.
    fn acquire<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Term>;

    /// Lets another one lead at once, if that needs a word; the end of the process may be enough. To be called when the last
    /// write is through. Takes a few seconds at most.
    fn release(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

/// The time in which this process leads.
pub struct Term {
    /// How long it still does.
    pub left: Left,
    /// Ends when it does not any more, and says why.
    pub ended: BoxFuture<'static, String>,
}

/// Leads who has the lock on a file. The lock goes with the process, however that ends.
pub struct FileLock {
    path: PathBuf,
}

impl FileLock {
    /// The lock on this file; it is made if it is not there, its folder is not: that is the store's.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn try_lock(&self) -> Result<Option<Flock<File>>, io::Error> {
        let file = File::options().create(true).append(true).open(&self.path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Between opening and locking somebody may have put another file there.
            Ok(lock) => Ok(Some(lock).filter(|lock| is_at(lock, &self.path))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

impl Leadership for FileLock {
    fn acquire<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Term> {
        async move {
            let mut said = None;
            loop {
                let why = match self.try_lock() {
                    Ok(Some(lock)) => return term(lock, self.path.clone()),
                    Ok(None) => Wait::Other(format!("another process has the lock on {}", self.path.display())),
                    Err(error) => Wait::Trouble(format!("{}: {error}", self.path.display())),
                };
                if said.as_ref() != Some(&why) {
                    said = Some(why.clone());
                    say(why);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        .boxed()
    }
}

/// The lock cannot be taken from us; but if the file was taken away, others lock the next one.
fn term(lock: Flock<File>, path: PathBuf) -> Term {
    let lock = Arc::new(lock);
    let left: Left = {
        let (lock, path) = (Arc::clone(&lock), path.clone());
        Arc::new(move || is_at(&lock, &path).then_some(Duration::MAX))
    };
    let watched = Arc::clone(&left);
    let ended = async move {
        while watched().is_some() {
            tokio::time::sleep(LOOK).await;
        }
        format!("the lock's file {} was taken away", path.display())
    };
    Term {
        left,
        ended: ended.boxed(),
    }
}

/// Whether the locked file still is the one that others find.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn one_leads_and_the_next_one_when_it_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controllers.lock");
        let (first, second) = (FileLock::new(&path), FileLock::new(&path));
        let quiet = |_: Wait| {};
        let term = first.acquire(&quiet).await;
        assert!((term.left)().is_some());
        let said = Mutex::new(Vec::new());
        let say = |why: Wait| said.lock().unwrap().push(why);
        {
            let waiting = second.acquire(&say);
            futures::pin_mut!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            drop(term);
            let term = waiting.await;
            assert!((term.left)().is_some());
        }
        assert_eq!(
            *said.lock().unwrap(),
            [Wait::Other(format!(
                "another process has the lock on {}",
                path.display()
            ))]
        );
    }

    #[tokio::test]
    async fn a_term_ends_when_the_locks_file_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("controllers.lock");
        let quiet = |_: Wait| {};
        let term = FileLock::new(&path).acquire(&quiet).await;
        fs::remove_file(&path).unwrap();
        assert_eq!((term.left)(), None, "before anybody has looked");
        assert!(term.ended.await.starts_with("the lock's file "));
        assert!((FileLock::new(&path).acquire(&quiet).await.left)().is_some());
    }
}
