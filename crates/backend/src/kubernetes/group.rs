//! Which API groups and versions the server has: asked, not assumed.

use serde_json::Value;

use super::client::{Action, Api};
use super::error::ApiError;

/// The group that our own resources live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalicoGroup {
    /// `crd.projectcalico.org/v1`: existing Calico clusters.
    V1,
    /// `projectcalico.org/v3`: the resources as users know them, without an API server of their own.
    V3,
}

/// What the server has, as far as it differs between servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Where our own resources live.
    pub calico: CalicoGroup,
    /// Version of EndpointSlices, if there are any.
    pub endpoint_slices: Option<&'static str>,
    /// Whether ClusterNetworkPolicies are installed.
    pub cluster_policies: bool,
}

impl CalicoGroup {
    /// The group's name.
    pub const fn name(self) -> &'static str {
        match self {
            CalicoGroup::V1 => "crd.projectcalico.org",
            CalicoGroup::V3 => "projectcalico.org",
        }
    }

    /// Its version.
    pub const fn version(self) -> &'static str {
        match self {
            CalicoGroup::V1 => "v1",
            CalicoGroup::V3 => "v3",
        }
    }

    /// As `CALICO_API_GROUP` names it, in any case; anything else but `projectcalico.org/v3` means the other, as upstream
    /// reads it. Empty means that the server is asked.
    pub fn from_variable(value: &str) -> Option<Self> {
        match value {
            "" => None,
            _ if value.eq_ignore_ascii_case("projectcalico.org/v3") => Some(CalicoGroup::V3),
            _ => Some(CalicoGroup::V1),
        }
    }
}

impl Groups {
    /// Asks the server. `wanted` comes from `CALICO_API_GROUP`.
    ///
    /// # Errors
    /// See [`ApiError`]: never a guess.
    pub async fn discover(api: &Api, wanted: Option<CalicoGroup>) -> Result<Self, ApiError> {
        let answer = api.ask("API groups", "/apis", Action::Get).await?;
        if !names_all(&answer) {
            // What is not named yet would be taken for missing.
            let message = "it is starting: it does not name its API groups yet".into();
            return Err(ApiError::Server { code: 503, message });
        }
        Ok(Self::from_list(&answer, wanted))
    }

    /// From an `APIGroupList`.
    pub fn from_list(list: &Value, wanted: Option<CalicoGroup>) -> Self {
        let groups = list["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
        let versions = |name: &str| -> Option<Vec<&str>> {
            let group = groups.iter().find(|group| group["name"] == name)?;
            let versions = group["versions"].as_array()?.iter();
            Some(versions.filter_map(|version| version["version"].as_str()).collect())
        };
        let has = |name: &str, version: &str| versions(name).is_some_and(|versions| versions.contains(&version));
        // Calico's aggregated API server has the v3 group too, in front of the v1 CRDs. With neither, v3 is what gets installed.
        let calico = wanted.unwrap_or(match has("crd.projectcalico.org", "v1") {
            true => CalicoGroup::V1,
            false => CalicoGroup::V3,
        });
        let slices = |version: &'static str| has("discovery.k8s.io", version).then_some(version);
        Self {
            calico,
            endpoint_slices: slices("v1").or_else(|| slices("v1beta1")),
            cluster_policies: has("policy.networking.k8s.io", "v1alpha2"),
        }
    }
}

/// Whether an `APIGroupList` names what every server has. One that has just been started begins with almost none, for a moment.
fn names_all(list: &Value) -> bool {
    let groups = list["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    groups.iter().any(|group| group["name"] == "networking.k8s.io")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_group_is_chosen_by_variable_then_by_what_there_is() {
        let check = |variable: &str, served: &[&str], expected: CalicoGroup| {
            let group = |text: &&str| {
                let (name, version) = text.split_once('/').expect("group/version");
                json!({ "name": name, "versions": [{ "version": version }] })
            };
            let list = json!({ "groups": served.iter().map(group).collect::<Vec<_>>() });
            let got = Groups::from_list(&list, CalicoGroup::from_variable(variable)).calico;
            assert_eq!(got, expected, "{variable} {served:?}");
        };
        let (v1, v3) = ("crd.projectcalico.org/v1", "projectcalico.org/v3");
        check("", &[v1], CalicoGroup::V1);
        check("", &[v3], CalicoGroup::V3);
        check("", &[v1, v3], CalicoGroup::V1);
        check("", &[], CalicoGroup::V3);
        check("ProjectCalico.org/V3", &[v1], CalicoGroup::V3);
        check("crd.projectcalico.org/v1", &[v3], CalicoGroup::V1);
    }

    #[test]
    fn versions_are_those_that_are_served() {
        let check = |versions: &[&str], expected: Option<&str>| {
            let versions: Vec<Value> = versions.iter().map(|version| json!({ "version": version })).collect();
            let list = json!({ "groups": [{ "name": "discovery.k8s.io", "versions": versions }] });
            assert_eq!(Groups::from_list(&list, None).endpoint_slices, expected);
        };
        check(&["v1beta1"], Some("v1beta1"));
        check(&["v1beta1", "v1"], Some("v1"));
        check(&["v2"], None);
    }

    #[test]
    fn a_server_that_is_starting_names_not_all() {
        let check = |groups: &[&str], expected: bool| {
            let groups: Vec<Value> = groups.iter().map(|name| json!({ "name": name })).collect();
            assert_eq!(names_all(&json!({ "groups": groups })), expected, "{groups:?}");
        };
        check(&[], false);
        check(&["apiregistration.k8s.io"], false);
        check(&["apiregistration.k8s.io", "apps", "networking.k8s.io"], true);
        assert!(!names_all(&Value::Null));
    }
}
