//! What a dataplane is told once.

use kernel::{IfName, IpipFlavour};

/// Fixed for the life of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node, for messages.
    pub node: String,
    /// Devices whose name starts so lead to pods; upstream's default is `cali`.
    pub interface_prefix: String,
    /// The IP-in-IP device; upstream's name is `tunl0`.
    pub tunnel: IfName,
    /// How it encapsulates; `None`: this kernel cannot.
    pub ipip_flavour: Option<IpipFlavour>,
}

impl Config {
    /// Upstream's names.
    pub fn new(node: impl Into<String>, ipip_flavour: Option<IpipFlavour>) -> Self {
        Self {
            node: node.into(),
            interface_prefix: "cali".into(),
            tunnel: IfName::from("tunl0"),
            ipip_flavour,
        }
    }

    /// Whether a device leads to a pod.
    pub fn is_pod_device(&self, device: &IfName) -> bool {
        device.0.starts_with(&self.interface_prefix)
    }
}
