//! Resources that a cluster begins with: created where they are missing, afterwards the operator's.
//!
//! They are not objects of the manifest: kubectl cannot apply a resource together with its definition, and would take changes
//! back with every later `apply`. A Job creates them. It goes soon after it has finished, so that another `apply` makes it again: what was
//! lost (with the definitions, say) is there again when the manifest is.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Settings;
use crate::agent_pod::{environment, file_rights, pod_spec};
use crate::manifest::{DEFAULTS, NAMESPACE, yaml};
use crate::settings::Work;

const FILE: &str = "defaults.yaml";
/// How long the finished Job is there, seconds: enough for who waits for it. `apply` of one that is there does nothing.
const GOES_AFTER: u32 = 60;

/// The resources.
pub(crate) fn resources(settings: &Settings) -> Vec<Value> {
    let resource = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": { "name": name }, "spec": spec });
    let mut list = Vec::new();
    if let Some(pool) = settings.ipv4 {
        list.push(resource(
            "IPPool",
            "default-ipv4-ippool",
            json!({ "cidr": pool.cidr, "blockSize": pool.block_size, "ipipMode": pool.encapsulation.ipip_mode(),
                "vxlanMode": "Never", "natOutgoing": true, "nodeSelector": "all()" }),
        ));
    }
    if let Some(cidr) = settings.ipv6 {
        list.push(resource(
            "IPPool",
            "default-ipv6-ippool",
            json!({ "cidr": cidr, "blockSize": 122, "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": false,
                "nodeSelector": "all()" }),
        ));
    }
    let mut felix = json!({ "logSeverityScreen": "Info" });
    if settings.work == Work::PolicyOnly {
        // Pods of the other plugin reached their node until now.
        felix["defaultEndpointToHostAction"] = json!("Accept");
    }
    list.push(resource("FelixConfiguration", "default", felix));
    if settings.work == Work::WithBgp {
        let spec = json!({ "nodeToNodeMeshEnabled": true, "asNumber": 64512 });
        list.push(resource("BGPConfiguration", "default", spec));
    }
    list
}

/// What brings them into the cluster.
pub(crate) fn objects(settings: &Settings) -> [Value; 2] {
    let text: String = resources(settings)
        .iter()
        .map(|resource| format!("---\n{}", yaml(resource)))
        .collect();
    let container = json!({
        "name": "defaults",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["create", "--first", "-f", format!("/defaults/{FILE}")],
        "env": environment(settings),
        "securityContext": file_rights(),
        "volumeMounts": [{ "name": "defaults", "mountPath": "/defaults", "readOnly": true }],
    });
    let mut spec = pod_spec(DEFAULTS);
    spec["restartPolicy"] = json!("OnFailure");
    spec["containers"] = json!([container]);
    spec["volumes"] = json!([{ "name": "defaults", "configMap": { "name": DEFAULTS } }]);
    // The template of a Job cannot change: other contents are another Job.
    let digest = Sha256::digest(format!("{spec}{text}"));
    let suffix: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    [
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": DEFAULTS, "namespace": NAMESPACE },
            "data": { FILE: text } }),
        json!({ "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": format!("{DEFAULTS}-{suffix}"), "namespace": NAMESPACE },
            "spec": { "backoffLimit": 20, "ttlSecondsAfterFinished": GOES_AFTER, "template": {
                "metadata": { "labels": { "app.kubernetes.io/name": DEFAULTS } }, "spec": spec } } }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    #[test]
    fn the_commands_that_read_them_find_nothing_wrong() {
        let settings = Settings::from_options(&Options {
            pod_cidr: Some("10.0.0.0/16,fd00:10::/48".into()),
            encapsulation: Some("IPIPCrossSubnet".into()),
            ..Options::default()
        })
        .unwrap();
        let found = resources(&settings);
        assert_eq!(found.len(), 4);
        for resource in found {
            let read = api::document::read("defaults", &yaml(&resource));
            assert!(read.is_ok(), "{resource}: {read:?}");
        }
    }
}
