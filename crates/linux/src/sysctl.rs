//! Sysctls below `/proc/sys/net`, or another mount of it, of the calling thread's network namespace.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use kernel::{IfName, KernelError, Sysctl};

/// Where sysctls are, if not below [`DEFAULT`].
static PLACE: OnceLock<PathBuf> = OnceLock::new();
/// Where sysctls usually are.
pub const DEFAULT: &str = "/proc/sys";

/// From now on sysctls are below this directory: in a container that is not privileged `/proc/sys` is read-only, and another
/// mount of it is not. Only the first call counts.
pub fn are_below(directory: PathBuf) {
    let _ = PLACE.set(directory);
}

/// Writes a sysctl. A missing file below `conf/DEVICE` or `neigh/DEVICE` is a missing device.
pub fn write(sysctl: &Sysctl) -> Result<(), KernelError> {
    let path = full(&sysctl.path)?;
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(sysctl.value.as_bytes()))
        .map_err(|error| explain(sysctl, &path, &error))
}

/// Reads a sysctl, without the newline; `None` if there is no such.
pub fn read(path: &str) -> Result<Option<String>, KernelError> {
    let full = full(path)?;
    match std::fs::read_to_string(&full) {
        Ok(value) => Ok(Some(value.trim_end().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(path, &error)),
    }
}

fn full(path: &str) -> Result<PathBuf, KernelError> {
    let plain = !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
    if plain {
        let place = PLACE.get().map_or(Path::new(DEFAULT), PathBuf::as_path);
        return Ok(place.join("net").join(path));
    }
    Err(refused(path, &io::Error::from_raw_os_error(libc::EINVAL)))
}

fn explain(sysctl: &Sysctl, path: &Path, error: &io::Error) -> KernelError {
    if error.kind() != io::ErrorKind::NotFound {
        return refused(&sysctl.path, error);
    }
    let parts: Vec<&str> = sysctl.path.split('/').collect();
    match parts.as_slice() {
        [_, "conf" | "neigh", device, _] if path.parent().is_some_and(|directory| !directory.exists()) => {
            KernelError::NoDevice(IfName::from(*device))
        }
        _ => KernelError::Unsupported(format!("sysctl {}", sysctl.path)),
    }
}

fn refused(path: &str, error: &io::Error) -> KernelError {
    KernelError::Refused {
        what: format!("sysctl {path}"),
        reason: error.to_string(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    }
}
