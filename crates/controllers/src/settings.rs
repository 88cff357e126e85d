//! What is in force: the KubeControllersConfiguration and the environment together. The environment wins, as upstream's does.

use std::collections::BTreeMap;

use api::{
    ControllersLogSeverity, Duration, HostEndpointTemplate, KubeControllersConfigurationSpec as Spec,
    KubeControllersConfigurationStatus as Status, NodeControllerConfig, PeriodicControllerConfig, Switch,
};
use jiff::SignedDuration;

/// What the environment says, read and checked once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    log_level: Option<ControllersLogSeverity>,
    reconciler_period: Option<Duration>,
    enabled: Option<Vec<Controller>>,
    compaction_period: Option<Duration>,
    health: Option<bool>,
    sync_labels: Option<bool>,
    auto_host_endpoints: Option<bool>,
    /// As they were written, for the status.
    variables: BTreeMap<String, String>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From which level on is logged.
    pub log_severity: ControllersLogSeverity,
    /// Whether liveness and readiness are answered.
    pub health: bool,
    /// Port of the metrics.
    pub metrics_port: Option<u16>,
    /// The node controller, unless it is off.
    pub node: Option<NodeSettings>,
    /// Controllers that are on and that this program does not have.
    pub missing: Vec<&'static str>,
}

/// What the node controller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// How often everything is looked at.
    pub period: SignedDuration,
    /// How long an address must look leaked; `None`: leaks are left alone.
    pub grace: Option<SignedDuration>,
    /// Whether nodes have automatic host endpoints.
    pub auto_create: bool,
    /// Whether each has one for all its interfaces.
    pub default_host_endpoint: bool,
    /// Further ones.
    pub templates: Vec<HostEndpointTemplate>,
}

/// The controllers by upstream's names in `ENABLED_CONTROLLERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Node,
    Policy,
    WorkloadEndpoint,
    ServiceAccount,
    Namespace,
    LoadBalancer,
}

const CONTROLLERS: [(&str, Controller); 7] = [
    ("node", Controller::Node),
    ("policy", Controller::Policy),
    ("workloadendpoint", Controller::WorkloadEndpoint),
    ("serviceaccount", Controller::ServiceAccount),
    ("namespace", Controller::Namespace),
    // What upstream once called it.
    ("profile", Controller::Namespace),
    ("loadbalancer", Controller::LoadBalancer),
];

impl Environment {
    /// Reads upstream's variables. One that is set to nothing counts as absent.
    ///
    /// # Errors
    /// Every variable that is wrong, with what would be right.
    pub fn read(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut read = Reader {
            env,
            variables: BTreeMap::new(),
            problems: Vec::new(),
        };
        let environment = Self {
            log_level: read.get("LOG_LEVEL", severity),
            reconciler_period: read.get("RECONCILER_PERIOD", str::parse),
            enabled: read.get("ENABLED_CONTROLLERS", controllers),
            compaction_period: read.get("COMPACTION_PERIOD", str::parse),
            health: read.get("HEALTH_ENABLED", boolean),
            sync_labels: read.get("SYNC_NODE_LABELS", boolean),
            auto_host_endpoints: read.get("AUTO_HOST_ENDPOINTS", on_or_off),
            variables: read.variables,
        };
        match read.problems.is_empty() {
            true => Ok(environment),
            false => Err(read.problems),
        }
    }

    /// What is in force with this spec (`None`: there is no object yet), and the status that says so.
    pub fn merge(&self, spec: Option<&Spec>) -> (Settings, Status) {
        let spec = spec.cloned().unwrap_or_else(Spec::initial);
        let running = self.running(spec);
        let settings = settings(&running);
        let status = Status {
            running_config: Some(Box::new(running)),
            environment_vars: self.variables.clone(),
        };
        (settings, status)
    }

    fn running(&self, mut spec: Spec) -> Spec {
        if let Some(level) = self.log_level {
            spec.log_severity_screen = Some(level);
        }
        if let Some(enabled) = &self.enabled {
            only(&mut spec, enabled);
        }
        if let Some(period) = self.reconciler_period {
            let controllers = &mut spec.controllers;
            let periodic = [
                &mut controllers.policy,
                &mut controllers.workload_endpoint,
                &mut controllers.service_account,
                &mut controllers.namespace,
            ];
            for controller in periodic.into_iter().flatten() {
                controller.reconciler_period = Some(period);
            }
            if let Some(node) = &mut controllers.node {
                node.reconciler_period = Some(period);
            }
        }
        if let Some(period) = self.compaction_period {
            spec.etcd_v3_compaction_period = Some(period);
        }
        if let Some(health) = self.health {
            spec.health_checks = Some(switch(health));
        }
        if let Some(node) = &mut spec.controllers.node {
            if let Some(sync) = self.sync_labels {
                node.sync_labels = Some(switch(sync));
            }
            if let Some(auto) = self.auto_host_endpoints {
                node.host_endpoint.get_or_insert_default().auto_create = Some(switch(auto));
            }
        }
        spec
    }
}

/// Leaves exactly these controllers on, with what the spec says of them.
fn only(spec: &mut Spec, enabled: &[Controller]) {
    let on = |controller| enabled.contains(&controller);
    let initial = Spec::initial().controllers;
    let controllers = &mut spec.controllers;
    fn set<T>(part: &mut Option<T>, on: bool, initial: Option<T>) {
        *part = part.take().or(initial).filter(|_| on);
    }
    set(&mut controllers.node, on(Controller::Node), initial.node);
    set(&mut controllers.policy, on(Controller::Policy), initial.policy);
    set(
        &mut controllers.workload_endpoint,
        on(Controller::WorkloadEndpoint),
        initial.workload_endpoint,
    );
    set(
        &mut controllers.service_account,
        on(Controller::ServiceAccount),
        initial.service_account,
    );
    set(&mut controllers.namespace, on(Controller::Namespace), initial.namespace);
    set(
        &mut controllers.load_balancer,
        on(Controller::LoadBalancer),
        initial.load_balancer,
    );
}

fn settings(running: &Spec) -> Settings {
    let controllers = &running.controllers;
    let is_on = |part: &Option<PeriodicControllerConfig>| part.is_some();
    let missing = [
        ("policy", is_on(&controllers.policy)),
        ("workloadEndpoint", is_on(&controllers.workload_endpoint)),
        ("serviceAccount", is_on(&controllers.service_account)),
        ("namespace", is_on(&controllers.namespace)),
        ("loadBalancer", controllers.load_balancer.is_some()),
        ("policyMigration", controllers.migration.is_some()),
    ];
    Settings {
        log_severity: running.log_severity_screen.unwrap_or(ControllersLogSeverity::Info),
        health: running.health_checks != Some(Switch::Disabled),
        metrics_port: Some(running.prometheus_metrics_port.unwrap_or(Spec::METRICS_PORT)).filter(|port| *port != 0),
        node: controllers.node.as_ref().map(node_settings),
        missing: missing.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect(),
    }
}

fn node_settings(config: &NodeControllerConfig) -> NodeSettings {
    let host_endpoint = config.host_endpoint.clone().unwrap_or_default();
    let grace = signed(config.leak_grace_period.unwrap_or(Spec::LEAK_GRACE));
    NodeSettings {
        period: signed(config.reconciler_period.unwrap_or(Spec::PERIOD)),
        grace: Some(grace).filter(|grace| !grace.is_zero()),
        auto_create: host_endpoint.auto_create == Some(Switch::Enabled),
        default_host_endpoint: host_endpoint.create_default_host_endpoint != Some(Switch::Disabled),
        templates: host_endpoint.templates,
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration.0).unwrap_or(SignedDuration::MAX)
}

fn switch(on: bool) -> Switch {
    if on { Switch::Enabled } else { Switch::Disabled }
}

struct Reader<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    variables: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn get<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = (self.env)(name).filter(|text| !text.is_empty())?;
        match parse(&text) {
            Ok(value) => {
                self.variables.insert(name.to_owned(), text);
                Some(value)
            }
            Err(right) => {
                self.problems.push(format!("{name}: `{text}` {right}"));
                None
            }
        }
    }
}

/// The words of upstream's logging library.
fn severity(text: &str) -> Result<ControllersLogSeverity, String> {
    match text.to_ascii_lowercase().as_str() {
        "warn" => Ok(ControllersLogSeverity::Warning),
        "trace" => Ok(ControllersLogSeverity::Debug),
        lower => lower.parse(),
    }
}

fn controllers(text: &str) -> Result<Vec<Controller>, String> {
    let one = |word: &str| {
        let found = CONTROLLERS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(word.trim()));
        found.map(|(_, controller)| *controller).ok_or_else(|| {
            let names = CONTROLLERS.map(|(name, _)| name).join(", ");
            format!("must be a list of controllers with commas between: {names}")
        })
    };
    text.split(',').map(one).collect()
}

fn boolean(text: &str) -> Result<bool, String> {
    // As Go's ParseBool.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("must be enabled or disabled".into()),
    }
}

#[cfg(test)]
mod tests;
