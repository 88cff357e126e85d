//! The IP-in-IP device `tunl0`, in both flavours. All functions are synchronous and act on the calling thread's network namespace.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kernel::{IfName, IpipCounters, IpipFlavour, IpipTunnel, KernelError};

/// What the kernel can do for IP-in-IP, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kernel's own `ipip` device; `Err`: why not.
    pub native: Result<(), String>,
    /// Our BPF programs; `Err`: why not.
    pub bpf: Result<(), String>,
    /// The flavour to use; `None`: no IP-in-IP on this kernel.
    pub chosen: Option<IpipFlavour>,
    /// The reason, for people.
    pub why: String,
}

/// Makes the tunnel as described. On a tunnel that already is so, changes nothing.
pub fn put(tunnel: &IpipTunnel) -> Result<(), KernelError> {
    Err(KernelError::Unsupported(format!("IP-in-IP on {}", tunnel.underlay)))
}

/// Removes the tunnel and its programs; absence is fine.
pub fn remove(_name: &IfName) -> Result<(), KernelError> {
    Ok(())
}

/// Allows a node as outer source and makes it reachable as next hop on the tunnel.
pub fn put_peer(name: &IfName, _peer: Ipv4Addr) -> Result<(), KernelError> {
    Err(KernelError::NoDevice(name.clone()))
}

/// Forgets a node; absence is fine.
pub fn remove_peer(_name: &IfName, _peer: Ipv4Addr) -> Result<(), KernelError> {
    Ok(())
}

/// The tunnel as it works now (device and programs in place) with its peers; `None` if there is none of ours.
pub fn observe(_name: &IfName) -> Result<Option<(IpipTunnel, BTreeSet<Ipv4Addr>)>, KernelError> {
    Ok(None)
}

/// Counters since the tunnel was set up; `None` if there is no tunnel of ours.
pub fn counters(_name: &IfName) -> Result<Option<IpipCounters>, KernelError> {
    Ok(None)
}

/// Finds out what this kernel can do.
pub fn probe() -> Probe {
    Probe { native: Err("not probed".into()), bpf: Err("not probed".into()), chosen: None, why: String::new() }
}
