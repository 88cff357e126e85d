//! Where a lab keeps its files, and the little that the machine itself cannot tell: which pods are on which node.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kernel::IpFamily;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::LabError;

/// The folder of one lab, below `/run` so that a reboot forgets it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Name of the lab.
    pub name: String,
    root: PathBuf,
}

/// What is written down; whole, by rename, before the things themselves are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The fabric's namespace.
    pub fabric: String,
    /// The fabric's own addresses, the nodes' default gateways: one of each family that the lab has.
    pub gateways: Vec<IpNet>,
    /// The nodes.
    pub nodes: Vec<NodeRecord>,
    /// The pods.
    pub pods: Vec<PodRecord>,
    /// How agents are told to encapsulate (`MARGAY_IPIP`): what `up` found out for all of them.
    pub ipip: String,
    /// `up` came to its end.
    pub complete: bool,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name in the cluster.
    pub name: String,
    /// Its namespace.
    pub netns: String,
    /// Its addresses, one of each family that the lab has.
    pub addresses: Vec<IpNet>,
    /// An agent of ours runs there.
    pub agent: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// What the lab calls it: its name, with its namespace in front (`shop/web`) unless that is `default`.
    pub name: String,
    /// Its namespace in the cluster.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// Its network namespace.
    pub netns: String,
    /// The container id that the runtime tells the plugin.
    pub container_id: String,
    /// Its addresses, once it has some.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its link, once it has one.
    pub host_device: Option<String>,
}

/// The namespace of pods that are given none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Where all labs have their folders.
pub const LABS: &str = "/run/margay-lab";
/// Name of the lab that commands mean if none is given.
pub const DEFAULT_NAME: &str = "lab";
/// The fabric's name among the namespaces.
pub const FABRIC_NAME: &str = "margay-fabric";
/// What stands before a pod's name in its namespace's.
pub const POD_PREFIX: &str = "pod-";

impl Folder {
    /// The folder of the lab `name`.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_string(),
            root: Path::new(LABS).join(name),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The store's socket.
    pub fn store_socket(&self) -> PathBuf {
        self.root.join("store.sock")
    }

    /// The store's file.
    pub fn store_file(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    /// Where `margay`, `calicoctl`, `calico` and `calico-ipam` lie as names of one binary.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Where `calicoctl` alone lies: for a shell that outlives the lab, and should then still find its own `margay`.
    pub fn shell_bin(&self) -> PathBuf {
        self.root.join("shell")
    }

    /// Sockets of a node's agent.
    pub fn run_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node).join("run")
    }

    /// Journal of a node's agent.
    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node).join("state")
    }

    /// Both directories of a node.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// Log of a node's agent, or of the store (`store`).
    pub fn log(&self, what: &str) -> PathBuf {
        self.root.join("log").join(format!("{what}.log"))
    }

    /// What commands that change this lab hold, one at a time.
    pub fn lock(&self) -> PathBuf {
        Path::new(LABS).join(format!("{}.lock", self.name))
    }

    /// The name of a namespace of this lab; labs other than the default one carry their name in front.
    pub fn netns(&self, name: &str) -> String {
        if self.name == DEFAULT_NAME {
            name.to_string()
        } else {
            format!("{}.{name}", self.name)
        }
    }

    /// Reads the record; [`LabError::NotUp`] if there is none.
    pub fn read(&self) -> Result<Record, LabError> {
        let path = self.file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(LabError::NotUp),
            Err(source) => {
                return Err(LabError::Io {
                    what: path.display().to_string(),
                    source,
                });
            }
        };
        // Another version wrote it: only its namespaces' names are of use, and only to take the lab down.
        serde_json::from_str(&text).map_err(|error| LabError::Unreadable {
            path: path.display().to_string(),
            why: error.to_string(),
        })
    }

    /// Writes the record whole or not at all.
    pub fn write(&self, record: &Record) -> Result<(), LabError> {
        let (path, draft) = (self.file(), self.root.join("lab.json.new"));
        let text = serde_json::to_vec_pretty(record).map_err(|error| LabError::Refused(error.to_string()))?;
        let write = || {
            let mut file = fs::File::create(&draft)?;
            file.write_all(&text)?;
            fs::rename(&draft, &path)
        };
        write().map_err(LabError::io(path.display().to_string()))
    }

    /// The names of the lab's namespaces, whatever version wrote the record; none if there is no record.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let text = fs::read(self.file()).unwrap_or_default();
        let mut names = BTreeSet::new();
        collect(&serde_json::from_slice(&text).unwrap_or_default(), &mut names);
        names
    }

    fn file(&self) -> PathBuf {
        self.root.join("lab.json")
    }
}

/// Every text called `netns` or `fabric`.
fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(field, value)| match (field.as_str(), value) {
            ("netns" | "fabric", Value::String(name)) => drop(names.insert(name.clone())),
            (_, value) => collect(value, names),
        }),
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

impl NodeRecord {
    /// Its address of a family.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(IpNet::addr)
            .find(|address| IpFamily::of(address) == family)
    }

    /// Its addresses as text, joined by commas.
    pub fn shown(&self) -> String {
        joined(self.addresses.iter().map(IpNet::addr))
    }
}

impl PodRecord {
    /// A pod that is to be made, with a container id that no earlier pod had.
    pub fn planned(folder: &Folder, namespace: &str, name: &str, node: &str) -> Self {
        // Neither names nor namespaces have dots or slashes.
        let (place, netns) = match namespace {
            DEFAULT_NAMESPACE => (name.to_string(), format!("{POD_PREFIX}{name}")),
            other => (format!("{other}/{name}"), format!("{POD_PREFIX}{other}.{name}")),
        };
        Self {
            name: place,
            namespace: namespace.to_string(),
            node: node.to_string(),
            netns: folder.netns(&netns),
            container_id: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            addresses: Vec::new(),
            host_device: None,
        }
    }

    /// Its name in its namespace.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// Its address of a family.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| IpFamily::of(address) == family)
    }

    /// Its addresses as text, joined by commas.
    pub fn shown(&self) -> String {
        joined(self.addresses.iter().copied())
    }
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_string()
}

fn joined(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses
        .map(|address| address.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

impl Record {
    /// The address families that the lab has.
    pub fn families(&self) -> Vec<IpFamily> {
        self.gateways.iter().map(crate::spec::family_of).collect()
    }

    /// The node, or an error that lists the nodes.
    pub fn node(&self, name: &str) -> Result<&NodeRecord, LabError> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| unknown("node", name, self.nodes.iter().map(|node| &node.name)))
    }

    /// The pod, or an error that lists the pods.
    pub fn pod(&self, name: &str) -> Result<&PodRecord, LabError> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.ok_or_else(|| unknown("pod", name, self.pods.iter().map(|pod| &pod.name)))
    }

    /// The namespace of a pod or node, and the node it is on.
    pub fn place(&self, name: &str) -> Result<(String, &NodeRecord), LabError> {
        if let Ok(pod) = self.pod(name) {
            return Ok((pod.netns.clone(), self.node(&pod.node)?));
        }
        if let Ok(node) = self.node(name) {
            return Ok((node.netns.clone(), node));
        }
        let nodes = self.nodes.iter().map(|node| &node.name);
        Err(unknown(
            "node or pod",
            name,
            nodes.chain(self.pods.iter().map(|pod| &pod.name)),
        ))
    }

    /// The first address of a pod or node by its name.
    pub fn first_address(&self, name: &str) -> Result<IpAddr, LabError> {
        let addresses = self.addresses(name)?;
        addresses.first().copied().ok_or_else(|| LabError::NotReady {
            what: name.to_string(),
            why: "it has no address".into(),
        })
    }

    /// The addresses of a pod or node by its name.
    pub fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LabError> {
        match (self.pod(name), self.node(name)) {
            (Ok(pod), _) => Ok(pod.addresses.clone()),
            (_, Ok(node)) => Ok(node.addresses.iter().map(IpNet::addr).collect()),
            _ => self.place(name).map(|_| Vec::new()),
        }
    }
}

fn unknown<'a>(kind: &'static str, name: &str, known: impl Iterator<Item = &'a String>) -> LabError {
    let known: Vec<&str> = known.map(String::as_str).collect();
    LabError::Unknown {
        kind,
        name: name.to_string(),
        known: if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let folder = Folder::of("big");
        let node = |name: &str, host: u32| NodeRecord {
            name: name.into(),
            netns: folder.netns(name),
            addresses: IpFamily::BOTH
                .map(|family| crate::spec::fabric_address(family, host))
                .to_vec(),
            agent: true,
        };
        let mut pod = PodRecord::planned(&folder, DEFAULT_NAMESPACE, "web", "n1");
        pod.addresses = vec!["192.168.0.1".parse().unwrap(), "fd00:192:168::1".parse().unwrap()];
        Record {
            fabric: folder.netns(FABRIC_NAME),
            gateways: IpFamily::BOTH
                .map(|family| crate::spec::fabric_address(family, 1))
                .to_vec(),
            nodes: vec![node("n1", 7), node("n2", 12)],
            pods: vec![pod],
            ipip: "bpf".into(),
            complete: true,
        }
    }

    #[test]
    fn labs_other_than_the_default_one_carry_their_name_in_front() {
        assert_eq!(Folder::of("lab").netns("n1"), "n1");
        assert_eq!(Folder::of("big").netns("n1"), "big.n1");
        assert_eq!(Folder::of("big").lock(), Path::new("/run/margay-lab/big.lock"));
    }

    #[test]
    fn pods_of_other_namespaces_carry_them_in_front() {
        let folder = Folder::of("big");
        for (namespace, name, netns) in [
            ("default", "web", "big.pod-web"),
            ("shop", "shop/web", "big.pod-shop.web"),
        ] {
            let pod = PodRecord::planned(&folder, namespace, "web", "n1");
            assert_eq!(
                (pod.name.as_str(), pod.netns.as_str(), pod.short_name()),
                (name, netns, "web")
            );
        }
    }

    #[test]
    fn places_are_found_by_name_and_errors_list_what_there_is() {
        let record = record();
        for (name, netns, node) in [("n2", "big.n2", "n2"), ("web", "big.pod-web", "n1")] {
            let (found, on) = record.place(name).unwrap();
            assert_eq!((found.as_str(), on.name.as_str()), (netns, node));
        }
        for (error, words) in [
            (
                record.place("x").unwrap_err(),
                "the lab has no node or pod `x`; it has: n1, n2, web",
            ),
            (
                record.node("web").unwrap_err(),
                "the lab has no node `web`; it has: n1, n2",
            ),
            (record.pod("n1").unwrap_err(), "the lab has no pod `n1`; it has: web"),
        ] {
            assert_eq!(error.to_string(), words);
        }
        let empty = Record { pods: vec![], ..record };
        assert!(empty.pod("web").unwrap_err().to_string().ends_with("it has: none"));
    }

    #[test]
    fn both_families_have_their_addresses() {
        let record = record();
        assert_eq!(record.families(), IpFamily::BOTH);
        assert_eq!(record.nodes[1].shown(), "10.211.55.12,fd00:10:211:55::12");
        assert_eq!(record.pods[0].shown(), "192.168.0.1,fd00:192:168::1");
        assert_eq!(record.addresses("web").unwrap(), record.pods[0].addresses);
        assert_eq!(
            record.nodes[0].address(IpFamily::V6),
            Some("fd00:10:211:55::7".parse().unwrap())
        );
        assert_eq!(
            record.pods[0].address(IpFamily::V4),
            Some("192.168.0.1".parse().unwrap())
        );
    }

    #[test]
    fn a_record_of_another_version_still_tells_the_namespaces() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder {
            name: "big".into(),
            root: place.path().into(),
        };
        assert!(matches!(folder.read(), Err(LabError::NotUp)));
        assert!(folder.namespaces().is_empty());

        let written = record();
        folder.write(&written).unwrap();
        assert_eq!(folder.read().unwrap(), written);
        let names: Vec<String> = folder.namespaces().into_iter().collect();
        assert_eq!(names, ["big.margay-fabric", "big.n1", "big.n2", "big.pod-web"]);

        let other =
            r#"{"version": 9, "fabric": "f", "machines": [{"netns": "a"}], "deep": {"pods": [{"netns": "b"}]}}"#;
        fs::write(folder.file(), other).unwrap();
        assert!(matches!(folder.read(), Err(LabError::Unreadable { .. })));
        assert_eq!(folder.namespaces(), ["a", "b", "f"].map(String::from).into());
        fs::write(folder.file(), "{cut sho").unwrap();
        assert!(folder.namespaces().is_empty());
    }
}
