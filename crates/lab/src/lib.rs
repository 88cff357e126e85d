//! Clusters in network namespaces: for people who want to see a pod network, for tests and for benchmarks.
//!
//! ```text
//!   margay-fabric          k8s-125-master   k8s-125-node1    k8s-125-node2
//!   bridge fabric0 ── veth ── ens33 .7      ens33 .8         ens33 .9        10.211.55.0/24
//!   10.211.55.1               agent         agent            agent           one store, on a unix socket
//!                                           caliX   caliY    caliZ
//!                                           eth0 cni-1  c1   eth0 cni-2      192.168.0.0/16
//! ```
//!
//! Nodes run real agents (processes of this binary); pods are attached by executing the CNI plugin as a container runtime
//! would. Nothing is recorded that the machine itself can tell: namespaces are found by name, processes by a variable in
//! their environment. So `down` and the next `up` clean up after any crash.

pub mod agents;
pub mod arp;
pub mod capture;
pub mod cluster;
pub mod command;
pub mod error;
pub mod exec;
pub mod icmp;
pub mod lock;
pub mod network;
pub mod pods;
pub mod processes;
pub mod record;
pub mod spec;
pub mod status;
pub mod topology;
pub mod tour;

pub use command::{Command, run};
pub use error::LabError;
