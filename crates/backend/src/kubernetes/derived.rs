//! What is made of Kubernetes' objects and never written: Profiles, policies, slices of endpoints.

use std::net::IpAddr;

use api::kubernetes::{ClusterNetworkPolicy, K8sNetworkPolicy};
use api::names::{K8S_CLUSTER_POLICY_PREFIX, K8S_POLICY_PREFIX, derived_uid};
use api::{
    Action, BuiltInTier, FieldProblem, Key, Kind, KubernetesEndpointSlice, KubernetesEndpointSliceSpec, Metadata,
    Profile, ProfileSpec, Protocol, Resource, Rule, SlicePort,
};
use serde::Deserialize;
use serde_json::Value;

use super::pod::prefixed;
use super::table::{DEFAULT_ALLOW, Source};

/// The label that names a slice's Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// The key of what an object is or was.
pub fn key(source: Source, object: &Value) -> Option<Key> {
    let name = object["metadata"]["name"].as_str()?;
    let namespace = || object["metadata"]["namespace"].as_str();
    match source {
        Source::Namespaces => Some(Key::cluster(Kind::Profile, format!("kns.{name}"))),
        Source::ServiceAccounts => Some(Key::cluster(Kind::Profile, format!("ksa.{}.{name}", namespace()?))),
        Source::NetworkPolicies => {
            let name = format!("{K8S_POLICY_PREFIX}{name}");
            Some(Key::namespaced(Kind::NetworkPolicy, namespace()?, name))
        }
        Source::ClusterNetworkPolicies => {
            let tier = match object["spec"]["tier"].as_str()? {
                "Baseline" => BuiltInTier::KUBE_BASELINE.name,
                _ => BuiltInTier::KUBE_ADMIN.name,
            };
            let name = format!("{K8S_CLUSTER_POLICY_PREFIX}{tier}.{name}");
            Some(Key::cluster(Kind::GlobalNetworkPolicy, name))
        }
        Source::EndpointSlices => Some(Key::namespaced(Kind::KubernetesEndpointSlice, namespace()?, name)),
        Source::Custom | Source::Pods | Source::Nodes => None,
    }
}

/// The key that an object may have had before it changed to have this one; `None` if a key is for an object's whole life.
pub fn former_key(source: Source, key: &Key) -> Option<Key> {
    if source != Source::ClusterNetworkPolicies {
        return None;
    }
    let (tier, name) = key.name.strip_prefix(K8S_CLUSTER_POLICY_PREFIX)?.split_once('.')?;
    let other = match tier == BuiltInTier::KUBE_ADMIN.name {
        true => BuiltInTier::KUBE_BASELINE.name,
        false => BuiltInTier::KUBE_ADMIN.name,
    };
    let name = format!("{K8S_CLUSTER_POLICY_PREFIX}{other}.{name}");
    Some(Key::cluster(Kind::GlobalNetworkPolicy, name))
}

/// Namespace and name of the object that a key was made of.
pub fn of_key(source: Source, key: &Key) -> Option<(Option<String>, String)> {
    let namespace = key.namespace.clone();
    match source {
        Source::Namespaces => Some((None, key.name.strip_prefix("kns.")?.to_owned())),
        Source::ServiceAccounts => {
            // A namespace has no dots, an account may have.
            let (namespace, name) = key.name.strip_prefix("ksa.")?.split_once('.')?;
            Some((Some(namespace.to_owned()), name.to_owned()))
        }
        Source::NetworkPolicies => Some((namespace, key.name.strip_prefix(K8S_POLICY_PREFIX)?.to_owned())),
        Source::ClusterNetworkPolicies => {
            let (_, name) = key.name.strip_prefix(K8S_CLUSTER_POLICY_PREFIX)?.split_once('.')?;
            Some((None, name.to_owned()))
        }
        Source::EndpointSlices => Some((namespace, key.name.clone())),
        Source::Custom | Source::Pods | Source::Nodes => None,
    }
}

/// What an object is for us, and what of it could not be understood.
///
/// # Errors
/// What is wrong with it.
pub fn read(source: Source, object: Value) -> Result<(Option<Resource>, Vec<FieldProblem>), String> {
    let whole = |resource: Resource| (Some(resource), Vec::new());
    match source {
        Source::Namespaces => Ok(whole(namespace(decoded(object)?))),
        Source::ServiceAccounts => Ok(whole(service_account(decoded(object)?))),
        Source::NetworkPolicies => {
            let (policy, problems) = decoded::<K8sNetworkPolicy>(object)?.to_network_policy();
            Ok((Some(policy.into()), problems))
        }
        Source::ClusterNetworkPolicies => {
            let (policy, problems) = decoded::<ClusterNetworkPolicy>(object)?.to_global_network_policy();
            Ok((Some(policy.into()), problems))
        }
        Source::EndpointSlices => Ok((slice(decoded(object)?), Vec::new())),
        Source::Custom | Source::Pods | Source::Nodes => Err("it is not made of another object".into()),
    }
}

/// The Profile that is always there: it allows everything.
pub fn default_allow() -> Resource {
    Profile::new(DEFAULT_ALLOW, allowing()).into()
}

fn allowing() -> ProfileSpec {
    ProfileSpec {
        ingress: vec![Rule::any(Action::Allow)],
        egress: vec![Rule::any(Action::Allow)],
        ..ProfileSpec::default()
    }
}

fn namespace(held: Bare) -> Resource {
    let mut spec = allowing();
    spec.labels_to_apply = prefixed("pcns.", &held.metadata.labels);
    let name = held.metadata.name.clone();
    spec.labels_to_apply
        .insert("pcns.projectcalico.org/name".into(), name.clone());
    profile(&held.metadata, format!("kns.{name}"), spec)
}

/// An account has labels only: whether a pod may talk is its namespace's matter.
fn service_account(held: Bare) -> Resource {
    let name = &held.metadata.name;
    let mut labels = prefixed("pcsa.", &held.metadata.labels);
    if name.len() < 63 {
        labels.insert("pcsa.projectcalico.org/name".into(), name.clone());
    }
    let spec = ProfileSpec {
        labels_to_apply: labels,
        ..ProfileSpec::default()
    };
    let namespace = held.metadata.namespace.clone().unwrap_or_default();
    profile(&held.metadata, format!("ksa.{namespace}.{name}"), spec)
}

fn profile(of: &Metadata, name: String, spec: ProfileSpec) -> Resource {
    let mut profile = Profile::new(name, spec);
    profile.metadata.resource_version = of.resource_version.clone();
    profile.metadata.uid = of.uid.as_deref().and_then(derived_uid);
    profile.metadata.creation_timestamp = of.creation_timestamp;
    profile.into()
}

/// An object of which only the metadata count.
#[derive(Deserialize)]
struct Bare {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    port: Option<u16>,
}

/// A slice of a Service with addresses; names in place of addresses are left out.
fn slice(held: Slice) -> Option<Resource> {
    let service = held.metadata.labels.get(SERVICE)?.clone();
    let endpoints = held.endpoints.unwrap_or_default();
    let texts = endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let port = |port: Port| {
        Some(SlicePort {
            name: port.name.unwrap_or_default(),
            protocol: port.protocol.unwrap_or_else(|| Protocol::from_text("TCP")),
            port: port.port.filter(|port| *port != 0)?,
        })
    };
    let spec = KubernetesEndpointSliceSpec {
        service,
        addresses,
        ports: held.ports.unwrap_or_default().into_iter().filter_map(port).collect(),
    };
    let mut slice = KubernetesEndpointSlice::new(held.metadata.name, spec);
    slice.metadata.namespace = held.metadata.namespace;
    slice.metadata.resource_version = held.metadata.resource_version;
    slice.metadata.uid = held.metadata.uid.as_deref().and_then(derived_uid);
    slice.metadata.creation_timestamp = held.metadata.creation_timestamp;
    Some(slice.into())
}

fn decoded<T: serde::de::DeserializeOwned>(object: Value) -> Result<T, String> {
    serde_json::from_value(object).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
