//! What an attachment is called everywhere: handle, host device, alias, WorkloadEndpoint. Derived from the request alone, so
//! that a DEL knows the names without a journal.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::names::{WorkloadEndpointIds, interface_name, workload_endpoint_name};
use api::resource::WorkloadEndpoint;
use api::{EndpointPort, Metadata, Protocol, QosControls, WorkloadEndpointSpec, annotations};
use cni::config::PortMapping;
use cni::journal::{Endpoint, Pending, Phase};
use cni::protocol::{Request, Role};
use cni::result::{Interface, Ip, Route};
use cni::{CniResult, Code, Error};
use ipnet::IpNet;

use super::asks::Asks;
use super::known::complete;
use super::ports::{LocalEndpoint, PodLink, Want, Wired};

/// MAC address of the host's end, as upstream has it.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The pod's IPv4 gateway, as upstream has it.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's IPv6 gateway: the link-local address that belongs to [`HOST_MAC`] (RFC 4291 appendix A).
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// Where WorkloadEndpoints live that no pod names a namespace for, as upstream has it.
const DEFAULT_NAMESPACE: &str = "default";

/// Node name and prefix of interfaces: what names depend on besides the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// This node.
    pub node: String,
    /// Prefix of host devices, `cali`.
    pub prefix: String,
}

impl Naming {
    /// The beginning of an endpoint's record. `Err` if the node, container or interface cannot be part of a name.
    pub fn intent(&self, request: &Request) -> Result<Endpoint, Error> {
        let pending = Pending {
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            network: request.config.name.clone(),
            ipam_only: request.role == Role::Ipam,
            netns: request.netns.clone(),
            args: request.args.clone(),
        };
        let names = self.endpoint(&pending);
        if !names.ipam_only && names.wep_name.is_empty() {
            let name = workload_endpoint_name(&self.ids(&names))
                .err()
                .map(|error| error.to_string());
            let details = name.unwrap_or_default();
            return Err(Error::new(Code::InvalidEnv, "the endpoint cannot be named", details));
        }
        Ok(names)
    }

    /// All names of an attachment whose record may be lost. A name that cannot be is empty: then it was never used.
    pub fn endpoint(&self, pending: &Pending) -> Endpoint {
        let container = &pending.container_id;
        let handle = format!("{}.{container}", pending.network);
        let host_device = match pending.args.pod() {
            Some((namespace, pod)) => interface_name(&self.prefix, namespace, pod),
            // Upstream: the first 11 characters of the container's id (fewer if it is shorter).
            None => format!("{}{}", self.prefix, container.chars().take(11).collect::<String>()),
        };
        let mut endpoint = Endpoint {
            phase: Phase::Intent,
            container_id: container.clone(),
            ifname: pending.ifname.clone(),
            network: pending.network.clone(),
            ipam_only: pending.ipam_only,
            mac: mac_text(mac_of(&handle)),
            handle,
            addresses: Vec::new(),
            host_device: (!pending.ipam_only).then_some(host_device),
            outside_ipam: false,
            bandwidth: None,
            port_mappings: Vec::new(),
            displaced: false,
            mtu: 0,
            ip_forward: false,
            netns: pending.netns.clone().unwrap_or_default(),
            netns_id: None,
            wep_namespace: pending
                .args
                .pod()
                .map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
                .to_owned(),
            wep_name: String::new(),
            args: pending.args.clone(),
            alias: format!("margay:{container}/{}", pending.ifname),
            adopted: false,
            known: None,
        };
        if !pending.ipam_only {
            endpoint.wep_name = workload_endpoint_name(&self.ids(&endpoint)).unwrap_or_default();
        }
        endpoint
    }

    /// The WorkloadEndpoint, as far as it is known, without UID and creation time.
    pub fn workload_endpoint(&self, endpoint: &Endpoint) -> WorkloadEndpoint {
        let ids = self.ids(endpoint);
        let mut labels = BTreeMap::from([("projectcalico.org/orchestrator".to_owned(), ids.orchestrator.clone())]);
        labels.insert("projectcalico.org/namespace".to_owned(), endpoint.wep_namespace.clone());
        let profiles = match endpoint.args.pod() {
            // The service account is not known here; where there is a Kubernetes API, its store fills it in.
            Some((namespace, _)) => vec![format!("kns.{namespace}"), format!("ksa.{namespace}.default")],
            None => vec![endpoint.network.clone()],
        };
        let limits = endpoint.bandwidth.map(|limits| QosControls {
            ingress_bandwidth: limits.ingress_rate,
            ingress_burst: limits.ingress_burst,
            egress_bandwidth: limits.egress_rate,
            egress_burst: limits.egress_burst,
            ..QosControls::default()
        });
        let spec = WorkloadEndpointSpec {
            orchestrator: ids.orchestrator,
            node: ids.node,
            container_id: endpoint.container_id.clone(),
            pod: ids.pod,
            endpoint: ids.endpoint,
            ip_networks: endpoint.addresses.iter().map(|address| IpNet::from(*address)).collect(),
            profiles,
            interface_name: endpoint.host_device.clone().unwrap_or_default(),
            mac: endpoint.mac.clone(),
            ports: endpoint.port_mappings.iter().map(port).collect(),
            qos_controls: limits,
            ..WorkloadEndpointSpec::default()
        };
        let metadata = Metadata {
            labels,
            ..Metadata::namespaced(&endpoint.wep_namespace, &endpoint.wep_name)
        };
        let made = WorkloadEndpoint {
            metadata,
            spec,
            status: None,
        };
        complete(made, endpoint.known.as_ref())
    }

    /// The endpoint as the dataplane sees it, if it has a device and still is its owner.
    pub fn local(&self, endpoint: &Endpoint) -> Option<LocalEndpoint> {
        let device = endpoint.host_device.clone().filter(|_| !endpoint.displaced)?;
        Some(LocalEndpoint {
            device,
            addresses: endpoint.addresses.clone(),
            fresh: false,
            resource: self.workload_endpoint(endpoint),
        })
    }

    /// What is stored with its addresses.
    pub fn attributes(&self, endpoint: &Endpoint) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([("node".to_owned(), self.node.clone())]);
        if let Some((namespace, pod)) = endpoint.args.pod() {
            attributes.insert("namespace".to_owned(), namespace.to_owned());
            attributes.insert("pod".to_owned(), pod.to_owned());
        }
        if endpoint.ipam_only {
            attributes.insert(ipam::ADDRESS_ALONE.to_owned(), "true".to_owned());
        }
        attributes
    }

    /// The request for addresses.
    pub fn want(&self, endpoint: &Endpoint, asks: Asks) -> Want {
        let namespace_labels = endpoint.args.pod().map(|(namespace, _)| {
            // Kubernetes puts this one on every namespace.
            let mut labels = asks.namespace_labels.unwrap_or_default();
            labels
                .entry("kubernetes.io/metadata.name".to_owned())
                .or_insert_with(|| namespace.to_owned());
            labels
        });
        Want {
            handle: endpoint.handle.clone(),
            attributes: self.attributes(endpoint),
            ipv4: asks.ipv4,
            ipv6: asks.ipv6,
            ipv4_pools: asks.ipv4_pools,
            ipv6_pools: asks.ipv6_pools,
            addresses: asks.addresses,
            namespace_labels,
            said_by: asks.said_by,
            endpoint: None,
            preview: None,
        }
    }

    fn ids(&self, endpoint: &Endpoint) -> WorkloadEndpointIds {
        let pod = endpoint.args.pod().map(|(_, pod)| pod.to_owned());
        WorkloadEndpointIds {
            node: self.node.clone(),
            orchestrator: if pod.is_some() { "k8s" } else { "cni" }.to_owned(),
            container_id: if pod.is_some() {
                String::new()
            } else {
                endpoint.container_id.clone()
            },
            pod: pod.unwrap_or_default(),
            endpoint: endpoint.ifname.clone(),
            ..WorkloadEndpointIds::default()
        }
    }
}

/// The record of a deletion that finds everything this endpoint has.
pub fn pending_of(endpoint: &Endpoint) -> Pending {
    Pending {
        container_id: endpoint.container_id.clone(),
        ifname: endpoint.ifname.clone(),
        network: endpoint.network.clone(),
        ipam_only: endpoint.ipam_only,
        netns: Some(endpoint.netns.clone()),
        args: endpoint.args.clone(),
    }
}

/// The wiring of an endpoint that has a device and still is its owner.
pub fn link_of(endpoint: &Endpoint) -> Option<PodLink> {
    if endpoint.displaced {
        return None;
    }
    Some(PodLink {
        netns: endpoint.netns.clone(),
        ifname: endpoint.ifname.clone(),
        host_device: endpoint.host_device.clone()?,
        addresses: endpoint.addresses.clone(),
        mtu: endpoint.mtu,
        mac: annotations::mac(&endpoint.mac).unwrap_or_else(|| mac_of(&endpoint.handle)),
        alias: endpoint.alias.clone(),
        ip_forward: endpoint.ip_forward,
    })
}

/// What is to be recognised of an endpoint's wiring, if it ever had a device: also if another has taken it since.
pub fn wired_of(endpoint: &Endpoint) -> Option<Wired> {
    Some(Wired {
        netns: Some(endpoint.netns.clone()).filter(|path| !path.as_os_str().is_empty()),
        ifname: endpoint.ifname.clone(),
        host_device: endpoint.host_device.clone()?,
        alias: endpoint.alias.clone(),
    })
}

/// What ADD answers.
pub fn result_of(endpoint: &Endpoint) -> CniResult {
    let Some(host_device) = &endpoint.host_device else {
        let ips = endpoint.addresses.iter().map(|address| ip(*address, None)).collect();
        return CniResult {
            ips,
            ..CniResult::default()
        };
    };
    let host = Interface {
        name: host_device.clone(),
        mac: HOST_MAC.into(),
        mtu: Some(endpoint.mtu),
        ..Interface::default()
    };
    let pod = Interface {
        name: endpoint.ifname.clone(),
        mac: endpoint.mac.clone(),
        mtu: Some(endpoint.mtu),
        sandbox: endpoint.netns.to_string_lossy().into_owned(),
    };
    let mut routes = Vec::new();
    if endpoint.addresses.iter().any(IpAddr::is_ipv4) {
        routes.push(default_route(Ipv4Addr::UNSPECIFIED.into(), GATEWAY_V4.into()));
    }
    if endpoint.addresses.iter().any(IpAddr::is_ipv6) {
        routes.push(default_route(Ipv6Addr::UNSPECIFIED.into(), GATEWAY_V6.into()));
    }
    let ips = endpoint.addresses.iter().map(|address| ip(*address, Some(1))).collect();
    CniResult {
        interfaces: vec![host, pod],
        ips,
        routes,
        ..CniResult::default()
    }
}

fn port(mapping: &PortMapping) -> EndpointPort {
    EndpointPort {
        name: String::new(),
        protocol: Protocol::from_text(&mapping.protocol.to_ascii_uppercase()),
        port: mapping.container_port,
        host_port: Some(mapping.host_port),
        host_ip: mapping.host_ip.parse().ok(),
    }
}

fn ip(address: IpAddr, interface: Option<usize>) -> Ip {
    Ip {
        interface,
        address: address.into(),
        gateway: None,
    }
}

fn default_route(unspecified: IpAddr, gateway: IpAddr) -> Route {
    let dst = IpNet::new(unspecified, 0).expect("0 is a prefix length of both families");
    Route {
        dst,
        gw: Some(gateway),
        mtu: None,
    }
}

/// The MAC address of a pod's end: chosen here, so that the WorkloadEndpoint can be written while the device is being made,
/// and always the same for the same attachment. Locally administered, unicast; the rest is FNV-1a over the handle.
fn mac_of(handle: &str) -> [u8; 6] {
    let hash = handle.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
}

/// A MAC address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
