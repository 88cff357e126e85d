//! Puts the plugin where container runtimes look for it, and takes it away again.
//!
//! Binaries are copied, never linked, and appear by rename: a runtime that starts the plugin meanwhile gets the old one or
//! the new one. No file gets a SUID bit or a capability. Nothing that is not ours is ever removed: what stood in our place before,
//! another Calico's plugin and configuration, is kept beside under a name that runtimes do not read, and put back at the end.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::{DEFAULT_SOCKET, DEFAULT_STATE_DIR, FeatureControl};
use crate::journal::write_atomically;

/// The names under which runtimes call the plugin.
pub const BINARIES: [&str; 2] = ["calico", "calico-ipam"];
/// The name of the network configuration list.
pub const CONFLIST: &str = "10-calico.conflist";
/// What is put behind the name of a file of another that ours replaces.
pub const KEPT: &str = ".before-margay";

/// What to install where.
#[derive(Clone, Debug)]
pub struct Install {
    /// The binary to copy, usually `/proc/self/exe`.
    pub binary: PathBuf,
    /// Where runtimes look for plugins: `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Where runtimes look for configurations: `/etc/cni/net.d`; `None` installs the binaries alone.
    pub conf_dir: Option<PathBuf>,
    /// What the configuration says.
    pub network: Network,
}

/// What differs from one installation's configuration to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The network's name; the first part of IPAM handles.
    pub name: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Directory of the journal.
    pub state_dir: PathBuf,
    /// Fixed MTU; `None`: the agent decides.
    pub mtu: Option<u32>,
    /// Give pods IPv4 addresses.
    pub ipv4: bool,
    /// Give pods IPv6 addresses.
    pub ipv6: bool,
    /// Chain `portmap` for host ports, as upstream does; its binary must be there.
    pub portmap: bool,
    /// What pods may ask for besides (`feature_control`).
    pub features: FeatureControl,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            name: "k8s-pod-network".into(),
            socket: DEFAULT_SOCKET.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            mtu: None,
            ipv4: true,
            ipv6: false,
            portmap: true,
            features: FeatureControl::default(),
        }
    }
}

/// Which file could not be installed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct InstallError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Installs. Binaries first, so that a runtime never sees a configuration without its plugin. Answers what it wrote.
pub fn install(wanted: &Install) -> Result<Vec<PathBuf>, InstallError> {
    let bytes = fs::read(&wanted.binary).map_err(at(&wanted.binary))?;
    let mut written = Vec::new();
    make_dir(&wanted.bin_dir)?;
    for name in BINARIES {
        keep(&wanted.bin_dir, name, is_our_binary)?;
        written.push(place(&wanted.bin_dir, name, &bytes, 0o755)?);
    }
    if let Some(dir) = &wanted.conf_dir {
        make_dir(dir)?;
        keep(dir, CONFLIST, is_our_conflist)?;
        let mut text = format!("{:#}", wanted.network.conflist());
        text.push('\n');
        written.push(place(dir, CONFLIST, text.as_bytes(), 0o644)?);
    }
    Ok(written)
}

/// What [`uninstall`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uninstalled {
    /// Files of ours that are gone.
    pub removed: Vec<PathBuf>,
    /// Files of others that are in their place again.
    pub restored: Vec<PathBuf>,
}

/// Removes what [`install`] wrote, and puts back what it replaced: our configuration goes first, another's comes last. Files of
/// others under the same names stay.
pub fn uninstall(bin_dir: &Path, conf_dir: Option<&Path>) -> Result<Uninstalled, InstallError> {
    let mut done = Uninstalled::default();
    let conflist = conf_dir.map(|dir| dir.join(CONFLIST));
    if let Some(path) = &conflist {
        remove(path, is_our_conflist, &mut done)?;
    }
    for path in BINARIES.map(|name| bin_dir.join(name)) {
        remove(&path, is_our_binary, &mut done)?;
        restore(&path, &mut done)?;
    }
    if let Some(path) = &conflist {
        restore(path, &mut done)?;
    }
    Ok(done)
}

fn remove(path: &Path, ours: fn(&[u8]) -> bool, done: &mut Uninstalled) -> Result<(), InstallError> {
    match fs::read(path) {
        Ok(bytes) if ours(&bytes) => {
            fs::remove_file(path).map_err(at(path))?;
            done.removed.push(path.to_owned());
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path)(error)),
    }
    Ok(())
}

/// Keeps another's file that is about to be replaced. It stays in its place until then.
fn keep(dir: &Path, name: &str, ours: fn(&[u8]) -> bool) -> Result<(), InstallError> {
    let path = dir.join(name);
    match fs::read(&path) {
        Ok(bytes) if ours(&bytes) => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(&path)(error)),
    }
    let kept = kept(&path);
    match fs::remove_file(&kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&kept)(error)),
        _ => fs::hard_link(&path, &kept).map_err(at(&kept)),
    }
}

/// Puts another's file back, unless there is one in its place already.
fn restore(path: &Path, done: &mut Uninstalled) -> Result<(), InstallError> {
    let kept = kept(path);
    if fs::symlink_metadata(&kept).is_err() || fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    fs::rename(&kept, path).map_err(at(path))?;
    done.restored.push(path.to_owned());
    Ok(())
}

fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(KEPT);
    name.into()
}

impl Network {
    /// The configuration list.
    pub fn conflist(&self) -> Value {
        let mut calico = json!({
            "type": "calico",
            "socket": self.socket,
            "state_dir": self.state_dir,
            "mtu": self.mtu.unwrap_or(0),
            "ipam": {
                "type": "calico-ipam",
                "assign_ipv4": self.ipv4.to_string(),
                "assign_ipv6": self.ipv6.to_string(),
            },
            "policy": {"type": "k8s"},
            "capabilities": {"ips": true, "mac": true, "bandwidth": true},
        });
        if self.features != FeatureControl::default() {
            calico["feature_control"] = json!(self.features);
        }
        if self.mtu.is_none() {
            calico
                .as_object_mut()
                .expect("it was just written as an object")
                .remove("mtu");
        }
        // Whoever does host ports is told of them, and nobody else.
        if !self.portmap {
            calico["capabilities"]["portMappings"] = json!(true);
        }
        let mut plugins = vec![calico];
        if self.portmap {
            plugins.push(json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}));
        }
        json!({"name": self.name, "cniVersion": "1.0.0", "plugins": plugins})
    }
}

/// Found in every binary that contains this crate, and in no other's plugin.
static MARK: &[u8] = b"margay: this file is the plugin that cni::install wrote";

fn is_our_binary(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK)
}

/// Whether a network configuration list is one that [`install`] wrote, and not Calico's.
pub fn is_our_conflist(bytes: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let plugins = document["plugins"].as_array().cloned().unwrap_or_default();
    plugins
        .iter()
        .any(|plugin| plugin["type"] == "calico" && plugin["socket"].is_string())
}

fn make_dir(dir: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(dir).map_err(at(dir))
}

/// Writes a file atomically, and only if it is not there as it should be.
fn place(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, InstallError> {
    let path = dir.join(name);
    let right_mode = fs::symlink_metadata(&path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o7777 == mode);
    if right_mode && fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(path);
    }
    write_atomically(dir, name, bytes, mode).map_err(at(&path))?;
    // The process's umask may have taken bits away.
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(at(&path))?;
    Ok(path)
}

fn at(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |source| InstallError {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, env::Role};

    fn wanted(dir: &Path) -> Install {
        let binary = dir.join("margay");
        fs::write(&binary, [b"\x7fELF", MARK].concat()).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o6755)).unwrap();
        Install {
            binary,
            bin_dir: dir.join("bin"),
            conf_dir: Some(dir.join("net.d")),
            network: Network::default(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn both_names_are_copies_without_suid() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path());
        assert_eq!(install(&wanted).unwrap().len(), 3);
        assert_eq!(install(&wanted).unwrap().len(), 3, "again");
        assert_eq!(names(&wanted.bin_dir), BINARIES);
        for name in BINARIES {
            let metadata = fs::symlink_metadata(wanted.bin_dir.join(name)).unwrap();
            assert!(metadata.is_file());
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
        }
        assert_eq!(names(&dir.path().join("net.d")), [CONFLIST]);
    }

    #[test]
    fn the_plugin_understands_the_configuration() {
        for network in [
            Network::default(),
            Network {
                mtu: Some(1440),
                ipv6: true,
                portmap: false,
                ..Network::default()
            },
        ] {
            let list = network.conflist();
            let mut plugin = list["plugins"][0].clone();
            plugin["name"] = list["name"].clone();
            plugin["cniVersion"] = list["cniVersion"].clone();
            let config = Config::parse(plugin.to_string().as_bytes(), Role::Main).unwrap();
            assert_eq!((config.mtu, config.ipam.assign_ipv6), (network.mtu, network.ipv6));
            assert_eq!(config.unknown, Vec::<String>::new());
        }
    }

    #[test]
    fn what_others_had_in_our_place_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path());
        let conf_dir = wanted.conf_dir.clone().unwrap();
        let theirs = r#"{"plugins": [{"type": "calico"}]}"#;
        fs::create_dir_all(&wanted.bin_dir).unwrap();
        fs::create_dir_all(&conf_dir).unwrap();
        fs::write(wanted.bin_dir.join("calico"), "someone else's").unwrap();
        fs::write(conf_dir.join(CONFLIST), theirs).unwrap();
        install(&wanted).unwrap();
        install(&wanted).unwrap();
        let kept = format!("{CONFLIST}{KEPT}");
        assert_eq!(names(&conf_dir), [CONFLIST, kept.as_str()]);
        assert!(is_our_conflist(&fs::read(conf_dir.join(CONFLIST)).unwrap()));

        let done = uninstall(&wanted.bin_dir, Some(&conf_dir)).unwrap();
        assert_eq!(done.removed.len(), 3);
        assert_eq!(done.restored, [wanted.bin_dir.join("calico"), conf_dir.join(CONFLIST)]);
        assert_eq!(names(&wanted.bin_dir), ["calico"]);
        assert_eq!(
            fs::read_to_string(wanted.bin_dir.join("calico")).unwrap(),
            "someone else's"
        );
        assert_eq!(fs::read_to_string(conf_dir.join(CONFLIST)).unwrap(), theirs);
        assert_eq!(
            uninstall(&wanted.bin_dir, Some(&conf_dir)).unwrap(),
            Uninstalled::default(),
            "again"
        );
    }

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = wanted(dir.path());
        let conf_dir = wanted.conf_dir.clone().unwrap();
        install(&wanted).unwrap();
        fs::write(wanted.bin_dir.join("calico-ipam"), "someone else's").unwrap();
        fs::write(conf_dir.join(CONFLIST), r#"{"plugins": [{"type": "calico"}]}"#).unwrap();
        let done = uninstall(&wanted.bin_dir, Some(&conf_dir)).unwrap();
        assert_eq!(done.removed, [wanted.bin_dir.join("calico")]);
        assert_eq!(names(&wanted.bin_dir), ["calico-ipam"]);
        assert_eq!(names(&conf_dir), [CONFLIST]);
        // The configuration and one of the binaries are kept, and come back.
        install(&wanted).unwrap();
        let done = uninstall(&wanted.bin_dir, Some(&conf_dir)).unwrap();
        assert_eq!((done.removed.len(), done.restored.len()), (3, 2));
    }
}
