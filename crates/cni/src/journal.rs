//! What this node's truth about its pods is written on: one file for each endpoint, one for each deletion to be finished.
//!
//! `endpoints/` belongs to the agent, which writes by [`Records`]. A file there is a list of JSON lines; the last whole line
//! counts, so that progress is one appended line and a torn write is harmless. Records of endpoints that have just begun are
//! in slots of one file (`recent.rs`) instead. Only the first line is waited for until it is durable: what is lost with the power
//! is at most the news that an endpoint was attached, and no endpoint survives the power.
//!
//! `pending-delete/` is written by the plugin when it cannot reach the agent, and by the agent when it cannot reach the
//! datastore. A file there appears whole and durable, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::config::{Bandwidth, PortMapping};
use crate::env::Args;

mod recent;
mod records;

pub use records::{Begun, Records};

/// An endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// How far ADD has come.
    pub phase: Phase,
    /// The container (sandbox).
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// The network's name.
    pub network: String,
    /// The address alone, for another network plugin.
    #[serde(default)]
    pub ipam_only: bool,
    /// The IPAM handle that holds its addresses.
    pub handle: String,
    /// Its addresses; empty while phase is [`Phase::Intent`].
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its addresses are none of IPAM's: the pod named them itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside_ipam: bool,
    /// Limits that the runtime asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Ports of the host that the runtime asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// The interface on the host; `None` for an address alone.
    #[serde(default)]
    pub host_device: Option<String>,
    /// A newer container of the same pod has taken the host device, or is about to.
    #[serde(default)]
    pub displaced: bool,
    /// MAC address of the container's side, as text.
    #[serde(default)]
    pub mac: String,
    /// MTU of the container's side.
    #[serde(default)]
    pub mtu: u32,
    /// Whether the container may forward packets.
    #[serde(default)]
    pub ip_forward: bool,
    /// Path of the container's network namespace.
    pub netns: PathBuf,
    /// Which namespace that was: a path can be used again.
    #[serde(default)]
    pub netns_id: Option<NetnsId>,
    /// The namespace of its WorkloadEndpoint.
    #[serde(default)]
    pub wep_namespace: String,
    /// The name of its WorkloadEndpoint; empty if it has none.
    #[serde(default)]
    pub wep_name: String,
    /// Pod names and the like, as the runtime gave them.
    #[serde(default)]
    pub args: Args,
    /// Alias of the host device, by which we know it as this endpoint's.
    #[serde(default)]
    pub alias: String,
    /// Another plugin has attached it: it is not wired in our way, and its network namespace is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// Its WorkloadEndpoint as the datastore had it last, as JSON: what counts for policy if that has none any more. `None`:
    /// nothing more was known than is written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<serde_json::Value>,
}

/// How far ADD has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Anything from nothing to everything may have been made: undo it.
    Intent,
    /// All is made, and the caller has been or could have been told.
    Attached,
}

/// Identity of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device of the namespace file system.
    pub dev: u64,
    /// Inode in it.
    pub ino: u64,
}

impl NetnsId {
    /// The namespace at this path.
    pub fn of(path: &Path) -> io::Result<NetnsId> {
        let metadata = fs::metadata(path)?;
        Ok(NetnsId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        })
    }
}

/// A deletion to be finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The container (sandbox).
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
    /// The network's name.
    pub network: String,
    /// The address alone, for another network plugin.
    #[serde(default)]
    pub ipam_only: bool,
    /// Its network namespace, if the runtime said one.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Pod names and the like.
    #[serde(default)]
    pub args: Args,
}

/// One attachment: container and interface. Names its files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The container (sandbox).
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

impl Id {
    /// This interface of this container.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    /// `<container>-<ifname>.json`. A `-` in the container's part is written `%`, which no container id has, so the first
    /// `-` separates and no two attachments share a file.
    pub fn file_name(&self) -> String {
        format!("{}-{}.json", self.container_id.replace('-', "%"), self.ifname)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

impl Endpoint {
    /// Which attachment this is.
    pub fn id(&self) -> Id {
        Id::new(&self.container_id, &self.ifname)
    }
}

impl Pending {
    /// Which attachment is to go.
    pub fn id(&self) -> Id {
        Id::new(&self.container_id, &self.ifname)
    }
}

/// What a directory of records held.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The readable records, by file name.
    pub records: Vec<T>,
    /// Files that hold no record, and why. Left where they are, for people to look at.
    pub damaged: Vec<(PathBuf, String)>,
}

/// The journal in one directory.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// The journal in `dir`; directories are made when something is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Begins an endpoint's file. Visible at once, durable after [`Journal::make_durable`].
    fn begin(&self, endpoint: &Endpoint) -> io::Result<File> {
        let dir = self.endpoints_dir()?;
        let name = endpoint.id().file_name();
        let temporary = temporary(&dir, &name);
        let file = write_file(&temporary, &line(endpoint)?)?;
        if let Err(error) = fs::rename(&temporary, dir.join(name)) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(file)
    }

    /// Makes an endpoint's beginning durable: the file, then its name in the directory.
    fn make_durable(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        File::open(self.dir.join("endpoints"))?.sync_all()
    }

    fn endpoints_dir(&self) -> io::Result<PathBuf> {
        self.make("endpoints")
    }

    /// Appends an endpoint's newer state; [`io::ErrorKind::NotFound`] if it was not begun.
    fn progress(&self, endpoint: &Endpoint) -> io::Result<()> {
        let path = self.dir.join("endpoints").join(endpoint.id().file_name());
        let mut file = OpenOptions::new().append(true).open(path)?;
        // If the last line was torn, this one must still begin on its own.
        let mut bytes = vec![b'\n'];
        bytes.extend(line(endpoint)?);
        file.write_all(&bytes)
    }

    /// An endpoint's last state; `None` if there is none.
    pub fn endpoint(&self, id: &Id) -> io::Result<Option<Endpoint>> {
        read_optional(&self.dir.join("endpoints").join(id.file_name()), last_line)
    }

    /// Removes an endpoint's file. One that is not there is fine.
    fn forget(&self, id: &Id) -> io::Result<()> {
        remove(&self.dir.join("endpoints").join(id.file_name()))
    }

    /// All endpoints, young ones included.
    pub fn endpoints(&self) -> io::Result<Loaded<Endpoint>> {
        // In this order: a record that leaves its slot meanwhile has its file by then.
        let young = recent::peek(&self.dir)?;
        let mut loaded = load(&self.dir.join("endpoints"), last_line::<Endpoint>)?;
        for young in young.iter().filter_map(|lines| last_line::<Endpoint>(lines).ok()) {
            loaded.records.retain(|filed| filed.id() != young.id());
            loaded.records.push(young);
        }
        loaded.records.sort_by_key(|endpoint| endpoint.id().file_name());
        Ok(loaded)
    }

    /// Notes a deletion to be finished: whole and durable when this returns.
    pub fn write_pending(&self, pending: &Pending) -> io::Result<()> {
        let dir = self.make("pending-delete")?;
        write_atomically(&dir, &pending.id().file_name(), &line(pending)?, 0o600)
    }

    /// A deletion to be finished; `None` if there is none.
    pub fn pending(&self, id: &Id) -> io::Result<Option<Pending>> {
        read_optional(&self.dir.join("pending-delete").join(id.file_name()), last_line)
    }

    /// Forgets a deletion. Forgetting twice is fine.
    pub fn forget_pending(&self, id: &Id) -> io::Result<()> {
        remove(&self.dir.join("pending-delete").join(id.file_name()))
    }

    /// All deletions to be finished.
    pub fn all_pending(&self) -> io::Result<Loaded<Pending>> {
        load(&self.dir.join("pending-delete"), last_line)
    }

    /// Removes what interrupted writers left. For the agent alone, at its start: it is the only writer of endpoints; a
    /// plugin that notes a deletion is done long before `patience` is over.
    pub fn sweep(&self, patience: Duration) -> io::Result<()> {
        for (part, patience) in [("endpoints", Duration::ZERO), ("pending-delete", patience)] {
            let entries = match fs::read_dir(self.dir.join(part)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let is_old = || Some(entry.metadata().ok()?.modified().ok()?.elapsed().ok()? >= patience);
                if entry.file_name().to_string_lossy().starts_with('.') && is_old() == Some(true) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Makes one of the directories, for root alone.
    fn make(&self, part: &str) -> io::Result<PathBuf> {
        let dir = self.dir.join(part);
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        }
        Ok(dir)
    }
}

/// Writes a file so that it appears whole and durable, or not at all: temporary file, sync, rename, sync of the directory.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(dir, name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
        File::open(dir)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes a new file, for root alone; on failure there is none.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Err(error) = file.write_all(bytes) {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(file)
}

/// A name that no reader takes for a record and no other writer uses.
fn temporary(dir: &Path, name: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // Process ids repeat after a restart, so a left-over of a crash may have this very name: take the next then.
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".{}-{number}.{name}", std::process::id()));
        if !path.exists() {
            return path;
        }
    }
}

fn line(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(record)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn last_line<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut why = "empty".to_owned();
    for line in lines.rev() {
        match serde_json::from_slice(line) {
            Ok(record) => return Ok(record),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn read_optional<T>(path: &Path, read: impl Fn(&[u8]) -> Result<T, String>) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => read(&bytes)
            .map(Some)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn load<T>(dir: &Path, read: impl Fn(&[u8]) -> Result<T, String>) -> io::Result<Loaded<T>> {
    let mut loaded = Loaded {
        records: Vec::new(),
        damaged: Vec::new(),
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(loaded),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().ends_with(".json") && !name.to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        match fs::read(&path) {
            Ok(bytes) => match read(&bytes) {
                Ok(record) => loaded.records.push(record),
                Err(why) => loaded.damaged.push((path, why)),
            },
            // Finished by someone else meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => loaded.damaged.push((path, error.to_string())),
        }
    }
    Ok(loaded)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
