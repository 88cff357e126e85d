//! Where each kind lives in Kubernetes: a row for each kind of API object that is read.

use api::names::{K8S_CLUSTER_POLICY_PREFIX, K8S_POLICY_PREFIX};
use api::{Key, Kind};
use datastore::Scope;

use super::error::ApiError;
use super::group::{CalicoGroup, Groups};

/// What kind of API object a row reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A custom resource of ours: the same object.
    Custom,
    /// Pods that have an address are WorkloadEndpoints.
    Pods,
    /// Nodes, with annotations.
    Nodes,
    /// Namespaces are Profiles `kns.`.
    Namespaces,
    /// Service accounts are Profiles `ksa.`.
    ServiceAccounts,
    /// Kubernetes' own NetworkPolicies.
    NetworkPolicies,
    /// ClusterNetworkPolicies.
    ClusterNetworkPolicies,
    /// EndpointSlices.
    EndpointSlices,
}

/// One kind of API object, and what it is for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is for us.
    pub kind: Kind,
    /// What it is in Kubernetes.
    pub source: Source,
    /// Its name in revisions: short, unique, never another row's.
    pub id: &'static str,
}

/// The name of the Profile that everything has which has no other.
pub const DEFAULT_ALLOW: &str = "projectcalico-default-allow";

/// Group and version of ClusterNetworkPolicies.
const CLUSTER_POLICIES: (&str, &str) = ("policy.networking.k8s.io", "v1alpha2");
/// The group of EndpointSlices.
const SLICES: &str = "discovery.k8s.io";

macro_rules! rows {
    ($($kind:ident $source:ident $id:literal;)*) => {
        &[$(Row { kind: Kind::$kind, source: Source::$source, id: $id }),*]
    };
}

/// All rows, in the order of [`Kind::ALL`].
pub const ROWS: &[Row] = rows! {
    IPPool Custom "po";
    BGPConfiguration Custom "bc";
    BGPPeer Custom "bp";
    FelixConfiguration Custom "fc";
    Node Nodes "no";
    WorkloadEndpoint Pods "pd";
    Profile Namespaces "ns";
    Profile ServiceAccounts "sa";
    ClusterInformation Custom "ci";
    IPAMBlock Custom "ib";
    BlockAffinity Custom "ba";
    IPAMHandle Custom "ih";
    IPAMConfiguration Custom "ic";
    NetworkPolicy Custom "np";
    NetworkPolicy NetworkPolicies "kn";
    GlobalNetworkPolicy Custom "gp";
    GlobalNetworkPolicy ClusterNetworkPolicies "kc";
    StagedNetworkPolicy Custom "sn";
    StagedGlobalNetworkPolicy Custom "sg";
    StagedKubernetesNetworkPolicy Custom "sk";
    Tier Custom "ti";
    NetworkSet Custom "se";
    GlobalNetworkSet Custom "gs";
    HostEndpoint Custom "he";
    KubernetesEndpointSlice EndpointSlices "es";
    KubeControllersConfiguration Custom "cc";
    IPReservation Custom "ir";
    CalicoNodeStatus Custom "cs";
    BGPFilter Custom "bf";
};

impl Row {
    /// The row that has, or would have, this key. `None` for the one object that is made up.
    pub fn of_key(key: &Key) -> Option<&'static Row> {
        let source = match key.kind {
            Kind::Node => Source::Nodes,
            Kind::WorkloadEndpoint => Source::Pods,
            Kind::KubernetesEndpointSlice => Source::EndpointSlices,
            Kind::Profile if key.name == DEFAULT_ALLOW => return None,
            Kind::Profile if key.name.starts_with("ksa.") => Source::ServiceAccounts,
            Kind::Profile => Source::Namespaces,
            Kind::NetworkPolicy if key.name.starts_with(K8S_POLICY_PREFIX) => Source::NetworkPolicies,
            Kind::GlobalNetworkPolicy if key.name.starts_with(K8S_CLUSTER_POLICY_PREFIX) => {
                Source::ClusterNetworkPolicies
            }
            _ => Source::Custom,
        };
        ROWS.iter().find(|row| row.kind == key.kind && row.source == source)
    }

    /// The rows of a scope, by their places in [`ROWS`].
    pub fn of_scope(scope: &Scope) -> Vec<usize> {
        let (kind, only) = match scope {
            Scope::All => return (0..ROWS.len()).collect(),
            Scope::Kind(kind) | Scope::Namespace(kind, _) => (*kind, None),
            Scope::Key(key) => (key.kind, Row::of_key(key)),
        };
        let in_scope = |row: &Row| row.kind == kind && only.is_none_or(|only| only == row);
        let places = ROWS.iter().enumerate().filter(|(_, row)| in_scope(row));
        places.map(|(place, _)| place).collect()
    }

    /// Whether a cluster may do without: then there is nothing of it. Calico before 3.29 has no tiers, and the others come
    /// with something else or later.
    pub fn is_optional(self) -> bool {
        match self.source {
            Source::ClusterNetworkPolicies | Source::EndpointSlices => true,
            Source::Custom => matches!(
                self.kind,
                Kind::Tier
                    | Kind::StagedNetworkPolicy
                    | Kind::StagedGlobalNetworkPolicy
                    | Kind::StagedKubernetesNetworkPolicy
                    | Kind::KubeControllersConfiguration
                    | Kind::IPReservation
                    | Kind::CalicoNodeStatus
                    | Kind::BGPFilter
            ),
            _ => false,
        }
    }

    /// What it means that the server does not have the row.
    pub fn missing(self, error: ApiError) -> ApiError {
        match error {
            ApiError::ResourceMissing(what) if self.source != Source::Custom && !self.is_optional() => {
                ApiError::TooOld(what)
            }
            error => error,
        }
    }

    /// API group and version; `None` if the server has no version that is known here.
    pub fn group_version(self, groups: &Groups) -> Option<(&'static str, &'static str)> {
        match self.source {
            Source::Custom => Some((groups.calico.name(), groups.calico.version())),
            Source::Pods | Source::Nodes | Source::Namespaces | Source::ServiceAccounts => Some(("", "v1")),
            Source::NetworkPolicies => Some(("networking.k8s.io", "v1")),
            Source::ClusterNetworkPolicies => groups.cluster_policies.then_some(CLUSTER_POLICIES),
            Source::EndpointSlices => groups.endpoint_slices.map(|version| (SLICES, version)),
        }
    }

    /// The documents of discovery that name the row once the server has it, and the name there.
    pub fn documents(self, groups: &Groups) -> Vec<(String, &'static str)> {
        let versions: Vec<(&str, &str)> = match self.source {
            Source::ClusterNetworkPolicies => vec![CLUSTER_POLICIES],
            Source::EndpointSlices => ["v1", "v1beta1"].map(|version| (SLICES, version)).to_vec(),
            _ => self.group_version(groups).into_iter().collect(),
        };
        let paths = versions
            .iter()
            .map(|(group, version)| format!("/apis/{group}/{version}"));
        paths.map(|path| (path, self.plural(groups))).collect()
    }

    /// The plural in paths.
    pub fn plural(self, groups: &Groups) -> &'static str {
        match self.source {
            Source::Custom if self.kind == Kind::IPAMConfiguration && groups.calico == CalicoGroup::V1 => "ipamconfigs",
            Source::Custom => self.kind.plural(),
            Source::Pods => "pods",
            Source::Nodes => "nodes",
            Source::Namespaces => "namespaces",
            Source::ServiceAccounts => "serviceaccounts",
            Source::NetworkPolicies => "networkpolicies",
            Source::ClusterNetworkPolicies => "clusternetworkpolicies",
            Source::EndpointSlices => "endpointslices",
        }
    }

    /// Plural and group, as a role names it: `ippools.projectcalico.org`.
    pub fn resource(self, groups: &Groups) -> String {
        let group = self.group_version(groups).map_or("", |(group, _)| group);
        match group {
            "" => self.plural(groups).to_owned(),
            group => format!("{}.{group}", self.plural(groups)),
        }
    }

    /// The path of one object, or with an empty name of all of them; `None` if the server has none.
    pub fn path(self, groups: &Groups, namespace: Option<&str>, name: &str) -> Option<String> {
        let mut path = match self.group_version(groups)? {
            ("", version) => format!("/api/{version}"),
            (group, version) => format!("/apis/{group}/{version}"),
        };
        if let Some(namespace) = namespace {
            path = format!("{path}/namespaces/{}", escaped(namespace));
        }
        path = format!("{path}/{}", self.plural(groups));
        if !name.is_empty() {
            path = format!("{path}/{}", escaped(name));
        }
        Some(path)
    }
}

/// A name as one part of a path. Real names need no change; a wrong one must not reach another path.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut text = String::new();
    for byte in name.bytes() {
        match plain(byte) && name != "." && name != ".." {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const GROUPS: Groups = Groups {
        calico: CalicoGroup::V1,
        endpoint_slices: Some("v1beta1"),
        cluster_policies: false,
    };

    #[test]
    fn every_kind_has_a_row_and_every_row_a_name() {
        let kinds: BTreeSet<Kind> = ROWS.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, Kind::ALL.into_iter().collect());
        let ids: BTreeSet<&str> = ROWS.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), ROWS.len());
    }

    #[test]
    fn paths_follow_group_and_version() {
        let check = |key: Key, expected: Option<&str>| {
            let row = Row::of_key(&key).expect("it has a row");
            let path = row.path(&GROUPS, key.namespace.as_deref(), &key.name);
            assert_eq!(path.as_deref(), expected);
        };
        check(
            Key::cluster(Kind::IPPool, "a"),
            Some("/apis/crd.projectcalico.org/v1/ippools/a"),
        );
        check(
            Key::cluster(Kind::IPAMConfiguration, "default"),
            Some("/apis/crd.projectcalico.org/v1/ipamconfigs/default"),
        );
        check(
            Key::namespaced(Kind::NetworkSet, "ns", "a/../b"),
            Some("/apis/crd.projectcalico.org/v1/namespaces/ns/networksets/a%2F..%2Fb"),
        );
        check(Key::cluster(Kind::Node, ".."), Some("/api/v1/nodes/%2E%2E"));
        check(
            Key::namespaced(Kind::KubernetesEndpointSlice, "ns", "s"),
            Some("/apis/discovery.k8s.io/v1beta1/namespaces/ns/endpointslices/s"),
        );
        check(Key::cluster(Kind::GlobalNetworkPolicy, "kcnp.kube-admin.a"), None);
    }

    #[test]
    fn what_is_missing_is_looked_for_where_it_would_be() {
        let check = |kind: Kind, expected: &str| {
            let row = ROWS.iter().rfind(|row| row.kind == kind).expect("it has a row");
            let documents = row.documents(&GROUPS);
            let texts: Vec<String> = documents
                .iter()
                .map(|(path, plural)| format!("{path} {plural}"))
                .collect();
            assert_eq!(texts.join(", "), expected);
        };
        check(Kind::Tier, "/apis/crd.projectcalico.org/v1 tiers");
        check(
            Kind::GlobalNetworkPolicy,
            "/apis/policy.networking.k8s.io/v1alpha2 clusternetworkpolicies",
        );
        check(
            Kind::KubernetesEndpointSlice,
            "/apis/discovery.k8s.io/v1 endpointslices, /apis/discovery.k8s.io/v1beta1 endpointslices",
        );
    }

    #[test]
    fn a_scope_has_the_rows_that_may_have_its_keys() {
        let check = |scope: Scope, expected: &str| {
            let ids: Vec<&str> = Row::of_scope(&scope).into_iter().map(|place| ROWS[place].id).collect();
            assert_eq!(ids.join(" "), expected, "{scope:?}");
        };
        check(Scope::Kind(Kind::Profile), "ns sa");
        check(Scope::Kind(Kind::NetworkPolicy), "np kn");
        check(
            Scope::Key(Key::namespaced(Kind::NetworkPolicy, "n", "knp.default.a")),
            "kn",
        );
        check(Scope::Key(Key::namespaced(Kind::NetworkPolicy, "n", "a")), "np");
        check(Scope::Key(Key::cluster(Kind::Profile, "ksa.n.a")), "sa");
        check(Scope::Namespace(Kind::WorkloadEndpoint, "n".into()), "pd");
    }
}
