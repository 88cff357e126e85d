//! Where a lab keeps its files, and the little that the machine itself cannot tell: which pods are on which node.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
    /// First address of the fabric.
    pub gateway: Ipv4Addr,
    /// The nodes.
    pub nodes: Vec<NodeRecord>,
    /// The pods.
    pub pods: Vec<PodRecord>,
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
    /// Its address.
    pub address: Ipv4Addr,
    /// An agent of ours runs there.
    pub agent: bool,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its namespace.
    pub netns: String,
    /// The container id that the runtime tells the plugin.
    pub container_id: String,
    /// Its addresses, once it has some.
    pub addresses: Vec<std::net::IpAddr>,
    /// The node's end of its link, once it has one.
    pub host_device: Option<String>,
}

impl Folder {
    /// The folder of the lab `name`.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_string(),
            root: Path::new("/run/margay-lab").join(name),
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

    /// Sockets of a node's agent.
    pub fn run_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node).join("run")
    }

    /// Journal of a node's agent.
    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node).join("state")
    }

    /// Log of a node's agent, or of the store (`store`).
    pub fn log(&self, what: &str) -> PathBuf {
        self.root.join("log").join(format!("{what}.log"))
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
        let path = self.root.join("lab.json");
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
        // A record that cannot be read is as good as none: `up` and `down` clean up by names.
        serde_json::from_str(&text).map_err(|_| LabError::NotUp)
    }

    /// Writes the record whole or not at all.
    pub fn write(&self, record: &Record) -> Result<(), LabError> {
        let (path, draft) = (self.root.join("lab.json"), self.root.join("lab.json.new"));
        let text = serde_json::to_vec_pretty(record).map_err(|error| LabError::Refused(error.to_string()))?;
        let write = || {
            let mut file = fs::File::create(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().map_err(LabError::io(path.display().to_string()))
    }
}

/// Name of the lab that commands mean if none is given.
pub const DEFAULT_NAME: &str = "lab";

impl PodRecord {
    /// A pod that is to be made, with a container id that no earlier pod had.
    pub fn planned(folder: &Folder, name: &str, node: &str) -> Self {
        Self {
            name: name.to_string(),
            node: node.to_string(),
            netns: folder.netns(&format!("pod-{name}")),
            container_id: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            addresses: Vec::new(),
            host_device: None,
        }
    }
}

impl Record {
    /// The node, or an error that lists the nodes.
    pub fn node(&self, name: &str) -> Result<&NodeRecord, LabError> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let known = self
                .nodes
                .iter()
                .map(|node| node.name.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            LabError::Unknown {
                kind: "node",
                name: name.to_string(),
                known,
            }
        })
    }

    /// The pod, or an error that lists the pods.
    pub fn pod(&self, name: &str) -> Result<&PodRecord, LabError> {
        self.pods.iter().find(|pod| pod.name == name).ok_or_else(|| {
            let known = self
                .pods
                .iter()
                .map(|pod| pod.name.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            LabError::Unknown {
                kind: "pod",
                name: name.to_string(),
                known,
            }
        })
    }

    /// The namespace of a pod or node, and the node it is on.
    pub fn place(&self, name: &str) -> Result<(String, &NodeRecord), LabError> {
        if let Ok(pod) = self.pod(name) {
            return Ok((pod.netns.clone(), self.node(&pod.node)?));
        }
        if let Ok(node) = self.node(name) {
            return Ok((node.netns.clone(), node));
        }
        let names = self
            .nodes
            .iter()
            .map(|node| &node.name)
            .chain(self.pods.iter().map(|pod| &pod.name));
        let known = names.map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(LabError::Unknown {
            kind: "node or pod",
            name: name.to_string(),
            known,
        })
    }
}
