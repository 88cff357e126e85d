//! The manifest, as objects in the order in which they are applied.

use std::fmt::Write;

use serde_json::{Value, json};

use api::crd::CrdGroup;

use crate::agent_pod::{CAPABILITIES, daemon_set};
use crate::settings::{Crds, Settings, Work};
use crate::{controllers_pod, defaults, roles};

/// Where what we run lives.
pub const NAMESPACE: &str = "margay-system";
/// The agent's DaemonSet, account, role and binding.
pub(crate) const AGENT: &str = "margay-agent";
/// The controllers' Deployment, account, roles, bindings and Lease.
pub(crate) const CONTROLLERS: &str = "margay-controllers";
/// What creates the first resources.
pub(crate) const DEFAULTS: &str = "margay-defaults";
/// The label of everything that we install: by it, it is found and deleted.
pub(crate) const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "margay");

/// All objects.
pub fn objects(settings: &Settings) -> Vec<Value> {
    let mut list = match settings.crds {
        Crds::All => api::crd::definitions(settings.group, true),
        Crds::NoRules => api::crd::definitions(settings.group, false),
        Crds::None => Vec::new(),
    };
    list.push(
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE,
        "labels": { "pod-security.kubernetes.io/enforce": "privileged" } } }),
    );
    for role in roles::roles(domain(settings), settings.work) {
        if role.name != CONTROLLERS || settings.controllers > 0 {
            list.extend(role.objects(NAMESPACE));
        }
    }
    list.extend(defaults::objects(settings));
    // Deleted in the opposite order: controllers first, that nobody undoes what follows.
    list.push(daemon_set(settings));
    list.extend(controllers_pod::deployment(settings));
    for object in list.iter_mut().filter(|object| is_labelled(settings, object)) {
        object["metadata"]["labels"][LABEL.0] = json!(LABEL.1);
    }
    list
}

/// In the group of existing Calico clusters definitions may be Calico's, which client-side `apply` cannot know: labelled, they
/// would go with `uninstall`, and with them everything that Calico has stored.
fn is_labelled(settings: &Settings, object: &Value) -> bool {
    settings.group == CrdGroup::V3 || object["kind"] != "CustomResourceDefinition"
}

/// The API group of our resources without its version.
pub(crate) fn domain(settings: &Settings) -> &'static str {
    let name = settings.group_name();
    name.split_once('/').map_or(name, |(domain, _)| domain)
}

/// The objects as one file of YAML documents.
pub fn text(settings: &Settings) -> String {
    objects(settings)
        .iter()
        .map(|object| format!("---\n{}", yaml(object)))
        .collect()
}

/// What would be created, for people.
pub fn summary(settings: &Settings) -> String {
    let mut out = String::new();
    let mut line = |name: &str, what: String| {
        let _ = writeln!(out, "{name:<16} {what}");
    };
    match settings.ipv4 {
        Some(pool) => line(
            "IPv4 pool",
            format!(
                "{} in blocks of /{}, ipipMode {}, natOutgoing; created if there is no IPv4 pool",
                pool.cidr,
                pool.block_size,
                pool.encapsulation.ipip_mode()
            ),
        ),
        None => line("IPv4 pool", "none is created".into()),
    }
    if let Some(cidr) = settings.ipv6 {
        line(
            "IPv6 pool",
            format!("{cidr} in blocks of /122; created if there is no IPv6 pool"),
        );
    }
    line(
        "routes",
        match settings.work {
            Work::WithBgp => "BGP between all nodes".into(),
            Work::WithoutBgp => "from the datastore, without BGP".into(),
            Work::PolicyOnly => format!(
                "none: policy alone, for pods of another plugin, whose devices are called {}…",
                settings.interface_prefix
            ),
        },
    );
    if let Some((key, value)) = &settings.node_selector {
        line("nodes", format!("those with label {key}={value}"));
    }
    if !settings.cni_features.is_empty() {
        let features = settings.cni_features.join(", ");
        line("pods may ask", format!("for what {features} grants"));
    }
    line("API group", settings.group_name().into());
    line("image", settings.image.clone());
    line(
        "API server",
        match &settings.api_server {
            Some((host, port)) => format!("{host} port {port}"),
            None => "the Service kubernetes: kube-proxy has to be there first".into(),
        },
    );
    line("node's address", settings.autodetection.clone());
    line(
        "controllers",
        match settings.controllers {
            0 => "none: leaked addresses stay, no automatic host endpoints, no conditions of pools and tiers".into(),
            1 => "1 process".into(),
            many => format!("{many} processes, of which one works"),
        },
    );
    let rights: Vec<String> = CAPABILITIES
        .iter()
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    line("agent's rights", rights.join(", "));
    let _ = writeln!(out, "\nobjects:");
    let objects = objects(settings);
    let mut definitions = 0;
    for object in &objects {
        let [kind, name] = [&object["kind"], &object["metadata"]["name"]].map(|text| text.as_str().unwrap_or_default());
        match (kind, object["metadata"]["namespace"].as_str()) {
            ("CustomResourceDefinition", _) => definitions += 1,
            (_, Some(namespace)) => out.push_str(&format!("  {kind} {namespace}/{name}\n")),
            (_, None) => out.push_str(&format!("  {kind} {name}\n")),
        }
    }
    let _ = writeln!(out, "  {definitions} CustomResourceDefinitions of {}", domain(settings));
    out
}

/// YAML of a value.
pub(crate) fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("JSON can be written as YAML")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Options;

    fn settings(set: impl Fn(&mut Options)) -> Settings {
        let mut options = Options::default();
        set(&mut options);
        Settings::from_options(&options).unwrap()
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        objects.iter().find(is).unwrap_or_else(|| panic!("{kind} {name}"))
    }

    #[test]
    fn every_object_is_labelled_named_once_and_reads_back_the_same() {
        for group in ["projectcalico.org/v3", "crd.projectcalico.org/v1"] {
            let settings = settings(|options| {
                options.api_group = Some(group.into());
                options.crds = Some("all".into());
            });
            let mut seen = BTreeSet::new();
            for object in objects(&settings) {
                let theirs = group != "projectcalico.org/v3" && object["kind"] == "CustomResourceDefinition";
                assert_eq!(object["metadata"]["labels"][LABEL.0] == LABEL.1, !theirs, "{object}");
                assert!(seen.insert((object["kind"].to_string(), object["metadata"]["name"].to_string())));
                let read: Value = serde_saphyr::from_str(&yaml(&object)).unwrap();
                assert_eq!(read, object);
            }
        }
    }

    #[test]
    fn accounts_that_pods_use_are_there() {
        let objects = objects(&settings(|_| {}));
        for object in &objects {
            if let Some(account) = object["spec"]["template"]["spec"]["serviceAccountName"].as_str() {
                find(&objects, "ServiceAccount", account);
                assert_eq!(
                    find(&objects, "ClusterRoleBinding", account)["roleRef"]["name"],
                    account
                );
            }
        }
    }

    #[test]
    fn the_agent_is_not_privileged_and_finds_the_api_server_itself() {
        let settings = settings(|options| options.kubernetes_service_host = Some("10.0.0.1".into()));
        let objects = objects(&settings);
        let pod = &find(&objects, "DaemonSet", AGENT)["spec"]["template"]["spec"];
        let text = pod.to_string();
        assert!(!text.contains("\"privileged\""), "{text}");
        let env = |container: &Value, name: &str| -> Value {
            let list = container["env"].as_array().cloned().unwrap_or_default();
            list.into_iter().find(|entry| entry["name"] == name).unwrap_or_default()["value"].clone()
        };
        assert_eq!(env(&pod["containers"][0], "KUBERNETES_SERVICE_HOST"), "10.0.0.1");
        assert_eq!(env(&pod["containers"][0], "KUBERNETES_SERVICE_PORT"), "6443");
        assert_eq!(pod["hostNetwork"], true);
    }

    #[test]
    fn the_controllers_have_no_rights_on_their_node() {
        let text = |count: &str| {
            let objects = objects(&settings(|options| options.controllers = Some(count.into())));
            let named = objects
                .iter()
                .filter(|object| object["metadata"]["name"] == CONTROLLERS);
            let kinds: Vec<&str> = named.filter_map(|object| object["kind"].as_str()).collect();
            kinds.join(" ")
        };
        assert_eq!(text("0"), "");
        assert_eq!(
            text("2"),
            "ServiceAccount ClusterRole ClusterRoleBinding Role RoleBinding Deployment"
        );
        let objects = objects(&settings(|options| options.controllers = Some("2".into())));
        let deployment = find(&objects, "Deployment", CONTROLLERS);
        assert_eq!(deployment["spec"]["replicas"], 2);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(
            container,
            &json!({ "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } })
        );
        assert!(!pod.to_string().contains("hostPath"), "{pod}");
    }

    #[test]
    fn flavours_are_the_agents_variables() {
        let check = |set: &dyn Fn(&mut Options), expected: &[(&str, &str)], plugin: bool| {
            let objects = objects(&settings(set));
            let pod = &find(&objects, "DaemonSet", AGENT)["spec"]["template"]["spec"];
            let has = |name: &str| {
                pod["containers"][0]["env"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|env| env["name"] == name)
            };
            for name in [
                "CALICO_NETWORKING_BACKEND",
                "MARGAY_POLICY_ONLY",
                "FELIX_INTERFACEPREFIX",
            ] {
                let wanted = expected.iter().find(|(wanted, _)| *wanted == name);
                assert_eq!(
                    has(name).map(|env| env["value"].as_str().unwrap()),
                    wanted.map(|(_, value)| *value),
                    "{name}"
                );
            }
            assert_eq!(pod["initContainers"].is_array(), plugin);
        };
        check(&|_| {}, &[], true);
        check(
            &|options| options.bgp = Some("Disabled".into()),
            &[("CALICO_NETWORKING_BACKEND", "none")],
            true,
        );
        check(
            &|options| {
                options.policy_only = Some("true".into());
                options.interface_prefix = Some("eni".into());
            },
            &[("MARGAY_POLICY_ONLY", "true"), ("FELIX_INTERFACEPREFIX", "eni")],
            false,
        );
        let chosen = settings(|options| options.node_selector = Some("net=margay".into()));
        let objects = objects(&chosen);
        let selector = &find(&objects, "DaemonSet", AGENT)["spec"]["template"]["spec"]["nodeSelector"];
        assert_eq!(*selector, json!({ "kubernetes.io/os": "linux", "net": "margay" }));
    }

    #[test]
    fn features_are_the_plugins_flags() {
        let check = |features: Option<&str>, expected: &str| {
            let objects = objects(&settings(|options| options.cni_features = features.map(str::to_owned)));
            let pod = &find(&objects, "DaemonSet", AGENT)["spec"]["template"]["spec"];
            let arguments = pod["initContainers"][0]["args"].as_array().unwrap();
            let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
            assert!(arguments.join(" ").ends_with(expected), "{arguments:?}");
        };
        check(None, "--no-portmap");
        check(
            Some("floating_ips, ip_addrs_no_ipam,floating_ips"),
            "--no-portmap --feature floating_ips --feature ip_addrs_no_ipam",
        );
    }

    #[test]
    fn another_image_is_another_job() {
        let name = |image: &str| {
            let objects = objects(&settings(|options| options.image = Some(image.into())));
            let job = objects.iter().find(|object| object["kind"] == "Job").unwrap();
            job["metadata"]["name"].clone()
        };
        assert_eq!(name("margay:1"), name("margay:1"));
        assert_ne!(name("margay:1"), name("margay:2"));
    }

    #[test]
    fn the_definitions_of_existing_clusters_are_left_alone() {
        let text = text(&settings(|options| {
            options.api_group = Some("crd.projectcalico.org/v1".into())
        }));
        assert!(!text.contains("CustomResourceDefinition"));
    }

    #[test]
    fn the_summary_names_what_matters() {
        let said = summary(&settings(|options| options.pod_cidr = Some("10.1.0.0/16".into())));
        for part in [
            "10.1.0.0/16 in blocks of /26",
            "DaemonSet margay-system/margay-agent",
            "NET_ADMIN",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
