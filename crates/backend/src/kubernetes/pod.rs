//! Pods as WorkloadEndpoints (upstream `backend/k8s/conversion`). The addresses that CNI gave stand in annotations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::annotations;
use api::names::{NAMESPACE_LABEL, WorkloadEndpointIds, derived_uid, interface_name, workload_endpoint_name};
use api::{EndpointPort, Key, Kind, Metadata, Protocol, Resource, WorkloadEndpoint, WorkloadEndpointSpec};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

const POD_IP: &str = "cni.projectcalico.org/podIP";
const POD_IPS: &str = "cni.projectcalico.org/podIPs";
const CONTAINER_ID: &str = "cni.projectcalico.org/containerID";
/// What a pod's interface is called.
const INTERFACE: &str = "eth0";
/// What host devices are called at the start.
const PREFIX: &str = "cali";

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    node_name: String,
    host_network: bool,
    service_account_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<ContainerPort>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    protocol: Option<Protocol>,
    container_port: u16,
    host_port: u16,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

/// The key of the WorkloadEndpoint that a pod is or was; `None` as long as it is on no node, and in its node's network.
pub fn key(pod: &Value) -> Option<Key> {
    let spec = &pod["spec"];
    let (node, name) = (spec["nodeName"].as_str()?, pod["metadata"]["name"].as_str()?);
    if node.is_empty() || spec["hostNetwork"] == true {
        return None;
    }
    let name = workload_endpoint_name(&ids(node, name)).ok()?;
    Some(Key::namespaced(
        Kind::WorkloadEndpoint,
        pod["metadata"]["namespace"].as_str()?,
        name,
    ))
}

/// Whether a pod is on a node, and still waits for its addresses there.
pub fn is_waiting(pod: &Value) -> bool {
    let some = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let has_address = some(&pod["status"]["podIP"]) || some(&pod["metadata"]["annotations"][POD_IP]);
    some(&pod["spec"]["nodeName"]) && pod["spec"]["hostNetwork"] != true && !has_address
}

/// The WorkloadEndpoint that a pod is: `None` without an address, and once its containers have ended.
///
/// # Errors
/// What is wrong with it.
pub fn read(pod: Value) -> Result<Option<Resource>, String> {
    let Some(key) = key(&pod) else { return Ok(None) };
    let pod: Pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
    let ip_networks = pod.addresses();
    if ip_networks.is_empty() {
        return Ok(None);
    }
    let namespace = key.namespace.clone().unwrap_or_default();
    let account = &pod.spec.service_account_name;
    let mut profiles = vec![format!("kns.{namespace}")];
    let mut labels = pod.metadata.labels.clone();
    labels.insert(NAMESPACE_LABEL.into(), namespace.clone());
    labels.insert("projectcalico.org/orchestrator".into(), "k8s".into());
    if !account.is_empty() {
        profiles.push(format!("ksa.{namespace}.{account}"));
        // A longer name is no label.
        if account.len() < 63 {
            labels.insert("projectcalico.org/serviceaccount".into(), account.clone());
        }
    }
    let (asked, problems) = annotations::running(&pod.metadata.annotations);
    for problem in problems.iter().chain(&asked.notes) {
        tracing::warn!(%key, %problem, "an annotation of a pod");
    }
    let own: Vec<IpAddr> = ip_networks.iter().map(IpNet::addr).collect();
    let spec = WorkloadEndpointSpec {
        orchestrator: "k8s".into(),
        node: pod.spec.node_name.clone(),
        container_id: pod.annotation(CONTAINER_ID).to_owned(),
        pod: pod.metadata.name.clone(),
        endpoint: INTERFACE.into(),
        service_account_name: account.clone(),
        ip_networks,
        profiles,
        interface_name: interface_name(PREFIX, &namespace, &pod.metadata.name),
        ports: pod.ports(),
        ip_nats: asked.translations(&own),
        allow_spoofed_source_prefixes: asked.sources,
        qos_controls: asked.qos,
        ..WorkloadEndpointSpec::default()
    };
    let metadata = Metadata {
        resource_version: pod.metadata.resource_version,
        uid: pod.metadata.uid.as_deref().and_then(derived_uid),
        creation_timestamp: pod.metadata.creation_timestamp,
        generate_name: pod.metadata.generate_name,
        labels,
        ..Metadata::namespaced(namespace, key.name)
    };
    let endpoint = WorkloadEndpoint {
        metadata,
        spec,
        status: None,
    };
    Ok(Some(endpoint.into()))
}

/// Whether an endpoint belongs to a pod.
pub fn is_pods(endpoint: &WorkloadEndpoint) -> bool {
    endpoint.spec.orchestrator == "k8s" && !endpoint.spec.pod.is_empty()
}

/// What to merge into this version of the pod that an endpoint belongs to.
pub fn patch(endpoint: &WorkloadEndpoint, version: &str) -> Value {
    let addresses: Vec<String> = endpoint.spec.ip_networks.iter().map(ToString::to_string).collect();
    let first = addresses.first().cloned().unwrap_or_default();
    addresses_patch(&first, &addresses.join(","), &endpoint.spec.container_id, version)
}

/// What to merge into a pod whose endpoint is gone. Emptied, not removed: so it shows that there was an address.
pub fn emptied(version: &str) -> Value {
    addresses_patch("", "", "", version)
}

fn addresses_patch(first: &str, all: &str, container: &str, version: &str) -> Value {
    json!({ "metadata": {
        "resourceVersion": version,
        "annotations": { POD_IP: first, POD_IPS: all, CONTAINER_ID: container },
    } })
}

/// Pod and namespace of a WorkloadEndpoint's key.
pub fn of_key(key: &Key) -> Option<(&str, String)> {
    let ids = api::names::parse_workload_endpoint_name(&key.name).ok()?;
    (ids.orchestrator == "k8s" && ids.endpoint == INTERFACE).then_some((key.namespace.as_deref()?, ids.pod))
}

fn ids(node: &str, pod: &str) -> WorkloadEndpointIds {
    WorkloadEndpointIds {
        node: node.into(),
        orchestrator: "k8s".into(),
        pod: pod.into(),
        endpoint: INTERFACE.into(),
        ..WorkloadEndpointIds::default()
    }
}

impl Pod {
    fn annotation(&self, name: &str) -> &str {
        self.metadata.annotations.get(name).map_or("", String::as_str)
    }

    /// Its addresses: as kubelet says, else as CNI says.
    fn addresses(&self) -> Vec<IpNet> {
        let ended = ["Failed", "Succeeded"].contains(&self.status.phase.as_str());
        let released = self.metadata.deletion_timestamp.is_some()
            && self.metadata.annotations.get(POD_IP).is_some_and(String::is_empty);
        if ended || released {
            return Vec::new();
        }
        let by_kubelet: Vec<&str> = self.status.pod_ips.iter().map(|pod_ip| pod_ip.ip.as_str()).collect();
        let by_cni: Vec<&str> = self.annotation(POD_IPS).split(',').collect();
        let places = [
            by_kubelet,
            vec![self.status.pod_ip.as_str()],
            by_cni,
            vec![self.annotation(POD_IP)],
        ];
        let read = |texts: Vec<&str>| -> Vec<IpNet> { texts.into_iter().filter_map(address).collect() };
        places
            .into_iter()
            .map(read)
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    /// Ports that something refers to: by name, or through a port of the host.
    fn ports(&self) -> Vec<EndpointPort> {
        let containers = self.spec.containers.iter().chain(&self.spec.init_containers);
        let ports = containers.flat_map(|container| &container.ports);
        let used = |port: &&ContainerPort| port.container_port != 0 && (!port.name.is_empty() || port.host_port != 0);
        let port = |port: &ContainerPort| EndpointPort {
            name: port.name.clone(),
            protocol: port.protocol.clone().unwrap_or_else(|| Protocol::from_text("TCP")),
            port: port.container_port,
            host_port: Some(port.host_port).filter(|port| *port != 0),
            host_ip: port.host_ip.parse().ok(),
        };
        ports.filter(used).map(port).collect()
    }
}

/// `10.0.0.1` or `10.0.0.1/32`.
fn address(text: &str) -> Option<IpNet> {
    let text = text.trim();
    match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((bare, _)) => bare.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

/// Labels of a namespace or account as a Profile hands them on.
pub(super) fn prefixed(prefix: &str, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels
        .iter()
        .map(|(name, value)| (format!("{prefix}{name}"), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
