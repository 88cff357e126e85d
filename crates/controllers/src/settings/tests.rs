use api::Resource;

use super::*;

fn environment(variables: &[(&str, &str)]) -> Result<Environment, Vec<String>> {
    let env = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Environment::read(&env)
}

fn spec(json: serde_json::Value) -> Spec {
    let text = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "KubeControllersConfiguration",
        "metadata": {"name": "default"}, "spec": json
    });
    match api::document::read("-", &text.to_string()).unwrap().remove(0) {
        Resource::KubeControllersConfiguration(config) => config.spec,
        other => panic!("{other:?}"),
    }
}

/// What the spec and these variables make, as one line.
#[track_caller]
fn check(variables: &[(&str, &str)], json: serde_json::Value, expected: &str) {
    let spec = Some(spec(json)).filter(|spec| *spec != Spec::default());
    let (settings, status) = environment(variables).unwrap().merge(spec.as_ref());
    let node = settings.node.map_or("off".to_owned(), |node| {
        let grace = node.grace.map_or("never".into(), |grace| grace.as_secs().to_string());
        let heps = format!("{}/{}", node.auto_create, node.default_host_endpoint);
        format!("every {} grace {grace} heps {heps}", node.period.as_secs())
    });
    let port = settings.metrics_port.map_or("none".into(), |port| port.to_string());
    let line = format!(
        "{} health {} port {port} node {node} missing {}",
        settings.log_severity,
        settings.health,
        settings.missing.join(",")
    );
    assert_eq!(line, expected);
    let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
    assert!(
        status
            .environment_vars
            .keys()
            .all(|name| names.contains(&name.as_str()))
    );
}

const ALL: &str = "policy,workloadEndpoint,serviceAccount,namespace,loadBalancer";

#[test]
fn without_an_object_the_initial_one_counts() {
    let expected = format!("Info health true port 9094 node every 300 grace 900 heps false/true missing {ALL}");
    check(&[], serde_json::json!({}), &expected);
}

#[test]
fn an_object_turns_off_what_it_does_not_name() {
    check(
        &[],
        serde_json::json!({"logSeverityScreen": "Debug", "healthChecks": "Disabled", "prometheusMetricsPort": 0}),
        "Debug health false port none node off missing ",
    );
    let node = serde_json::json!({"leakGracePeriod": "0s", "reconcilerPeriod": "10s", "hostEndpoint": {
        "autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled"}});
    check(
        &[],
        serde_json::json!({"prometheusMetricsPort": 9, "controllers": {"node": node}}),
        "Info health true port 9 node every 10 grace never heps true/false missing ",
    );
}

#[test]
fn the_environment_wins() {
    check(
        &[
            ("ENABLED_CONTROLLERS", "node, LoadBalancer"),
            ("RECONCILER_PERIOD", "1m"),
            ("LOG_LEVEL", "warn"),
            ("HEALTH_ENABLED", "false"),
            ("AUTO_HOST_ENDPOINTS", "Enabled"),
            ("SYNC_NODE_LABELS", ""),
        ],
        serde_json::json!({"controllers": {"policy": {}, "node": {"leakGracePeriod": "1s"}}}),
        "Warning health false port 9094 node every 60 grace 1 heps true/true missing loadBalancer",
    );
}

#[test]
fn wrong_variables_are_told_all_at_once() {
    let problems = environment(&[
        ("ENABLED_CONTROLLERS", "node,pods"),
        ("RECONCILER_PERIOD", "5"),
        ("HEALTH_ENABLED", "yes"),
        ("AUTO_HOST_ENDPOINTS", "on"),
    ])
    .unwrap_err();
    assert_eq!(
        problems,
        [
            "RECONCILER_PERIOD: `5` must be a duration like 90s, 1m30s or 500ms",
            "ENABLED_CONTROLLERS: `node,pods` must be a list of controllers with commas between: node, policy, \
             workloadendpoint, serviceaccount, namespace, profile, loadbalancer",
            "HEALTH_ENABLED: `yes` must be true or false",
            "AUTO_HOST_ENDPOINTS: `on` must be enabled or disabled",
        ]
    );
}
