//! KubeControllersConfiguration: what the cluster-wide controllers do (upstream `kubecontrollersconfig.go`).
//!
//! A controller whose part is absent is off, so the object that says nothing of any controller turns all of them off. While
//! there is no object at all, [`KubeControllersConfigurationSpec::initial`] counts.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::Switch;
use crate::metadata::{check_annotations, check_labels};
use crate::names::{NameRule, is_subdomain};
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{Duration, check, choice, net};
use crate::{Kind, Metadata};

/// Spec of the KubeControllersConfiguration `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeControllersConfigurationSpec {
    /// From which level on is logged; default Info.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_severity_screen: Option<ControllersLogSeverity>,
    /// Whether liveness and readiness are answered; default Enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_checks: Option<Switch>,
    /// How often etcd is compacted; 0: never; default 10m.
    #[serde(rename = "etcdV3CompactionPeriod", skip_serializing_if = "Option::is_none")]
    pub etcd_v3_compaction_period: Option<Duration>,
    /// TCP port of the metrics; 0: none; default 9094.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_metrics_port: Option<u16>,
    /// TCP port for profiles of the process; absent or 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_profile_port: Option<u16>,
    /// The controllers.
    pub controllers: ControllersConfig,
}

/// The controllers; one that is absent is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ControllersConfig {
    /// What deleted nodes leave behind, leaked addresses, automatic host endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeControllerConfig>,
    /// Copies Kubernetes' NetworkPolicies; etcd only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PeriodicControllerConfig>,
    /// Copies pods' labels; etcd only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_endpoint: Option<PeriodicControllerConfig>,
    /// Copies service accounts as profiles; etcd only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<PeriodicControllerConfig>,
    /// Copies namespaces as profiles; etcd only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<PeriodicControllerConfig>,
    /// Gives services of type LoadBalancer addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerControllerConfig>,
    /// Rewrites the names under which old versions stored policies.
    #[serde(rename = "policyMigration", skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationControllerConfig>,
}

/// The node controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeControllerConfig {
    /// How often everything is looked at, whether something changed or not; default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconciler_period: Option<Duration>,
    /// Whether Kubernetes' labels are copied to Nodes; default Enabled; etcd only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_labels: Option<Switch>,
    /// Automatic host endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_endpoint: Option<AutoHostEndpointConfig>,
    /// How long an address must look leaked before it is freed; 0: never; default 15m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leak_grace_period: Option<Duration>,
}

/// Automatic host endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoHostEndpointConfig {
    /// Whether there are any; default Disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_create: Option<Switch>,
    /// Whether each node has one for all its interfaces; default Enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_default_host_endpoint: Option<Switch>,
    /// Further ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<HostEndpointTemplate>,
}

/// What a further host endpoint of each selected node is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostEndpointTemplate {
    /// Stands in its name behind the node's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// Only the node's addresses in these ranges.
    #[serde(rename = "interfaceCIDRs", skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub interface_cidrs: Vec<IpNet>,
    /// One for each interface whose whole name this regular expression is found in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface_pattern: String,
    /// Labels besides the node's; these win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The nodes; empty: all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
}

/// A controller that only has a period.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeriodicControllerConfig {
    /// How often everything is looked at, whether something changed or not; default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconciler_period: Option<Duration>,
}

/// The load balancer controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerControllerConfig {
    /// Which services get addresses; default AllServices.
    #[serde(rename = "assignIPs", skip_serializing_if = "Option::is_none")]
    pub assign_ips: Option<AssignIps>,
}

/// The controller that renames policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationControllerConfig {
    /// Whether it works; default Enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<Switch>,
}

choice! {
    /// From which level on controllers log.
    pub enum ControllersLogSeverity {
        /// Nothing.
        None = "None",
        /// Decisions.
        Debug = "Debug",
        /// Changes that one can see.
        Info = "Info",
        /// What someone should look at.
        Warning = "Warning",
        /// What went wrong.
        Error = "Error",
        /// What ends the process.
        Fatal = "Fatal",
        /// As Fatal.
        Panic = "Panic",
    }
}

choice! {
    /// Which services get load balancer addresses.
    pub enum AssignIps {
        /// All of that type.
        AllServices = "AllServices",
        /// Those that ask for it.
        RequestedServicesOnly = "RequestedServicesOnly",
    }
}

/// Status of the KubeControllersConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeControllersConfigurationStatus {
    /// What is in force: the spec and the environment of the controllers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_config: Option<Box<KubeControllersConfigurationSpec>>,
    /// The variables that had a part in it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_vars: BTreeMap<String, String>,
}

impl crate::Judged for KubeControllersConfigurationStatus {}

impl KubeControllersConfigurationSpec {
    /// Port of the metrics unless told otherwise.
    pub const METRICS_PORT: u16 = 9094;
    /// Grace of leaked addresses unless told otherwise.
    pub const LEAK_GRACE: Duration = Duration::from_secs(15 * 60);
    /// Period of controllers unless told otherwise.
    pub const PERIOD: Duration = Duration::from_secs(5 * 60);

    /// What counts while there is no object, and what the controllers create then (upstream's
    /// `NewDefaultKubeControllersConfig`).
    pub fn initial() -> Self {
        let periodic = || {
            Some(PeriodicControllerConfig {
                reconciler_period: Some(Self::PERIOD),
            })
        };
        Self {
            log_severity_screen: Some(ControllersLogSeverity::Info),
            health_checks: Some(Switch::Enabled),
            etcd_v3_compaction_period: Some(Duration::from_secs(600)),
            prometheus_metrics_port: None,
            debug_profile_port: None,
            controllers: ControllersConfig {
                node: Some(NodeControllerConfig {
                    reconciler_period: Some(Self::PERIOD),
                    sync_labels: Some(Switch::Enabled),
                    host_endpoint: Some(AutoHostEndpointConfig {
                        auto_create: Some(Switch::Disabled),
                        create_default_host_endpoint: Some(Switch::Enabled),
                        templates: Vec::new(),
                    }),
                    leak_grace_period: Some(Self::LEAK_GRACE),
                }),
                policy: periodic(),
                workload_endpoint: periodic(),
                service_account: periodic(),
                namespace: periodic(),
                load_balancer: Some(LoadBalancerControllerConfig {
                    assign_ips: Some(AssignIps::AllServices),
                }),
                migration: None,
            },
        }
    }
}

impl Spec for KubeControllersConfigurationSpec {
    const KIND: Kind = Kind::KubeControllersConfiguration;
    const NAMES: NameRule = NameRule::Default;
    type Status = KubeControllersConfigurationStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        let Some(host_endpoint) = self
            .controllers
            .node
            .as_ref()
            .and_then(|node| node.host_endpoint.as_ref())
        else {
            return;
        };
        problems.within("controllers", |problems| {
            problems.within("node", |problems| {
                problems.within("hostEndpoint", |problems| {
                    check_templates(&host_endpoint.templates, problems)
                })
            })
        });
    }
}

fn check_templates(templates: &[HostEndpointTemplate], problems: &mut Problems) {
    let mut names = BTreeSet::new();
    problems.each("templates", templates, |problems, template| {
        template.check(problems);
        let name = &template.generate_name;
        if !name.is_empty() && !names.insert(name.as_str()) {
            problems.report(
                "generateName",
                name,
                "must be another one than those of the other templates",
            );
        }
    });
}

impl HostEndpointTemplate {
    fn check(&self, problems: &mut Problems) {
        let name = &self.generate_name;
        if name.is_empty() {
            problems.missing(
                "generateName",
                "is required: it tells the template's host endpoints from others",
            );
        } else if !is_subdomain(name) {
            problems.report(
                "generateName",
                name,
                "must be a DNS name: lower-case letters, digits, `-` and `.`",
            );
        }
        if self.interface_cidrs.is_empty() && self.interface_pattern.is_empty() {
            problems.missing("interfaceCIDRs", "is required without interfacePattern");
        }
        if let Err(error) = self.pattern() {
            problems.report("interfacePattern", &self.interface_pattern, error);
        }
        check_labels("labels", &self.labels, problems);
        check_annotations(&self.annotations, problems);
        check::selector("nodeSelector", &self.node_selector, problems);
    }

    /// The pattern of interface names, if there is one.
    ///
    /// # Errors
    /// What would be right.
    pub fn pattern(&self) -> Result<Option<Regex>, String> {
        if self.interface_pattern.is_empty() {
            return Ok(None);
        }
        let pattern = Regex::new(&self.interface_pattern);
        pattern.map(Some).map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("must be a regular expression: {last}")
        })
    }
}
