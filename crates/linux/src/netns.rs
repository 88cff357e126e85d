//! Network namespaces: named ones as `ip netns` sees them, work inside one, programs inside one.
//!
//! A namespace belongs to a thread. Nothing here moves the calling thread: work runs on a fresh one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces are mounted.
pub const DIRECTORY: &str = "/run/netns";

/// The calling thread's own namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A network namespace held open: it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// The calling thread's.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new(CURRENT))
    }

    /// By a path: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// A fresh one without a name; it ends with this value.
    pub fn unnamed() -> io::Result<Self> {
        on_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// Its identity on this machine.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.ino())
    }

    /// Runs work on a fresh thread inside, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        Self::run_at(self.0.as_fd(), work)
    }

    /// Runs work on a fresh thread inside the namespace of a descriptor, and waits for it.
    pub fn run_at<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_fresh_thread(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?
    }

    /// Starts a thread inside; what it opens stays inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<io::Result<T>>> {
        let file = self.0.try_clone()?;
        thread::Builder::new().name(name.to_string()).spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// Makes a program start inside. With `sysfs`, `/sys` shows the devices of the namespace, as `ip netns exec` does it:
    /// in a mount namespace of the program's own.
    pub fn enter_before_exec(&self, command: &mut Command, sysfs: bool) -> io::Result<()> {
        let file = self.0.try_clone()?;
        let (root, sys, kind) = (c"/", c"/sys", c"sysfs");
        let enter = move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            if sysfs {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(
                    None::<&str>,
                    root,
                    None::<&str>,
                    MsFlags::MS_SLAVE | MsFlags::MS_REC,
                    None::<&str>,
                )?;
                // Not mounted before is fine.
                let _ = umount2(sys, MntFlags::MNT_DETACH);
                mount(Some(kind), sys, Some(kind), MsFlags::empty(), None::<&str>)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls with memory prepared before (`CStr` arguments
        // are not copied by nix); it allocates nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The path of a named namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes a named namespace. `AlreadyExists` if there is one of that name.
pub fn create(name: &str) -> io::Result<Netns> {
    let path = checked_path(name)?;
    fs::create_dir_all(DIRECTORY)?;
    File::create_new(&path)?;
    let made = on_fresh_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some(CURRENT), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Netns::current()
    });
    match made {
        Ok(Ok(netns)) => Ok(netns),
        Ok(Err(error)) | Err(error) => {
            // Nothing half-made stays; the first error is the one to tell.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Removes a named namespace's name; absence is fine. The namespace ends when nothing else holds it.
pub fn delete(name: &str) -> io::Result<()> {
    let path = checked_path(name)?;
    // A name left by a crash between creating and mounting has no mount.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names of all named namespaces, sorted.
pub fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// The identity of the calling thread's namespace on this machine.
pub fn current() -> io::Result<u64> {
    Ok(fs::metadata(CURRENT)?.ino())
}

/// Runs work on a fresh thread inside the namespace of a path, and waits for it.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    Netns::open(path)?.run(work)
}

fn checked_path(name: &str) -> io::Result<PathBuf> {
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot name a namespace"),
        ));
    }
    Ok(path(name))
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        handle.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}
