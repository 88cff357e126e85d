//! Pods of a lab: a namespace each, attached and detached by executing the CNI plugin as a container runtime does.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::names::{WorkloadEndpointIds, workload_endpoint_name};
use api::resource::WorkloadEndpoint;
use api::{Metadata, WorkloadEndpointSpec};
use datastore::StoreError;
use kernel::IpFamily;

use linux::link;
use linux::netns::{self, Netns};
use serde_json::{Value, json};

use crate::cluster::{refuse_taken, require_root, runtime, store, write_resources};
use crate::lock::Lock;
use crate::network::{create_netns, inside, open_socket, refused};
use crate::record::{Folder, PodRecord, Record};
use crate::{LabError, exec, processes, spec};

/// How many plugins run at once while a lab comes up.
const AT_ONCE: usize = 8;
const INTERFACE: &str = "eth0";

/// Makes the planned pods of a new lab, which the record lists already, and writes down their addresses.
pub fn add_all(folder: &Folder, record: &mut Record) -> Result<(), LabError> {
    let planned = record.clone();
    // Node by node would have all plugins ask one agent: neighbours in the queue are on different nodes.
    let mut order: Vec<(usize, &PodRecord)> = Vec::new();
    let mut on_node = BTreeMap::<&str, usize>::new();
    for pod in &planned.pods {
        let rank = on_node.entry(&pod.node).or_default();
        order.push((*rank, pod));
        *rank += 1;
    }
    order.sort_by_key(|(rank, _)| *rank);
    let queue = Mutex::new(order.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut made = Vec::new();
        while let Some((_, pod)) = next() {
            made.push(make(folder, &planned, pod)?);
        }
        Ok(made)
    };
    let made: Vec<Result<Vec<PodRecord>, LabError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(LabError::Refused("a thread panicked".into()));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    for pods in made {
        pods?.into_iter().for_each(|pod| replace(record, pod));
    }
    folder.write(record)
}

/// A pod as it is asked for.
#[derive(Clone, Debug)]
pub struct NewPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Adds a pod to a running lab.
pub fn add(folder: &Folder, pod: &NewPod<'_>, say: &mut dyn FnMut(&str)) -> Result<PodRecord, LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    let mut record = folder.read()?;
    record.node(pod.node)?;
    let planned = PodRecord::planned(folder, pod.namespace, pod.name, pod.node);
    if record.place(&planned.name).is_ok() {
        return Err(crate::spec::usage("pod", &planned.name, "is in the lab already"));
    }
    refuse_taken(&planned.netns)?;
    runtime()?.block_on(announce(folder, &planned, pod))?;
    record.pods.push(planned.clone());
    folder.write(&record)?;
    match make(folder, &record, &planned) {
        Ok(pod) => {
            replace(&mut record, pod.clone());
            folder.write(&record)?;
            Ok(pod)
        }
        Err(error) => {
            // The first error is the one to tell.
            let _ = remove(folder, &mut record, &planned);
            Err(error)
        }
    }
}

/// Removes a pod.
pub fn delete(folder: &Folder, name: &str, say: &mut dyn FnMut(&str)) -> Result<(), LabError> {
    require_root()?;
    let _lock = Lock::take(folder, say)?;
    let mut record = folder.read()?;
    let pod = record.pod(name)?.clone();
    remove(folder, &mut record, &pod)
}

/// Detaches a pod as a runtime would, and removes its namespace.
pub(crate) fn remove(folder: &Folder, record: &mut Record, pod: &PodRecord) -> Result<(), LabError> {
    plugin(folder, record, pod, "DEL")?;
    let exec = exec::role(&pod.name);
    processes::end(folder.path(), &|role| role == exec, Duration::from_secs(2));
    netns::delete(&pod.netns).map_err(LabError::io(format!("network namespace {}", pod.netns)))?;
    record.pods.retain(|known| known.name != pod.name);
    folder.write(record)
}

/// What a cluster knows of a pod before a runtime attaches it: its namespace, and its labels.
async fn announce(folder: &Folder, planned: &PodRecord, pod: &NewPod<'_>) -> Result<(), LabError> {
    let store = store(folder).await?;
    for profile in spec::profiles(pod.namespace) {
        if store.get(&profile.key()).await?.is_none() {
            write_resources(&store, &[profile.into()]).await?;
        }
    }
    if pod.labels.is_empty() {
        return Ok(());
    }
    let endpoint = workload_endpoint(planned, &pod.labels)?;
    // What an earlier pod of this name has left is not this one's.
    match store.delete(&endpoint.key(), None).await {
        Err(StoreError::NotFound(_)) => {}
        other => drop(other?),
    }
    write_resources(&store, &[endpoint.into()]).await
}

/// The pod as it is known before it has an address. The plugin completes it, and keeps the labels.
fn workload_endpoint(pod: &PodRecord, labels: &BTreeMap<String, String>) -> Result<WorkloadEndpoint, LabError> {
    let ids = WorkloadEndpointIds {
        node: pod.node.clone(),
        orchestrator: "k8s".into(),
        pod: pod.short_name().into(),
        endpoint: INTERFACE.into(),
        ..WorkloadEndpointIds::default()
    };
    let name = workload_endpoint_name(&ids).map_err(|error| LabError::Refused(error.to_string()))?;
    Ok(WorkloadEndpoint {
        metadata: Metadata {
            labels: labels.clone(),
            ..Metadata::namespaced(&pod.namespace, &name)
        },
        spec: WorkloadEndpointSpec {
            orchestrator: ids.orchestrator,
            node: ids.node,
            pod: ids.pod,
            endpoint: ids.endpoint,
            container_id: pod.container_id.clone(),
            ..WorkloadEndpointSpec::default()
        },
        status: None,
    })
}

fn replace(record: &mut Record, pod: PodRecord) {
    if let Some(known) = record.pods.iter_mut().find(|known| known.name == pod.name) {
        *known = pod;
    }
}

fn make(folder: &Folder, record: &Record, pod: &PodRecord) -> Result<PodRecord, LabError> {
    create_netns(&pod.netns)?;
    inside(&pod.netns, || {
        open_socket().and_then(|mut socket| link::up(&mut socket, &"lo".into()).map_err(refused))
    })??;
    let answer = plugin(folder, record, pod, "ADD")?;
    let Some((addresses, host_device)) = attached(&answer) else {
        return Err(LabError::Cni {
            verb: "ADD",
            pod: pod.name.clone(),
            answer,
        });
    };
    Ok(PodRecord {
        addresses,
        host_device,
        ..pod.clone()
    })
}

/// Executes the plugin on the pod's node and answers with what it printed.
pub fn plugin(folder: &Folder, record: &Record, pod: &PodRecord, verb: &'static str) -> Result<String, LabError> {
    let node = record.node(&pod.node)?;
    let failed = |answer: String| LabError::Cni {
        verb,
        pod: pod.name.clone(),
        answer,
    };
    let mut command = Command::new(folder.bin().join("calico"));
    exec::environment(folder, node, &mut command);
    let (namespace, name, id) = (&pod.namespace, pod.short_name(), &pod.container_id);
    command
        .env(
            processes::MARK,
            processes::mark(folder.path(), &format!("cni/{}", pod.name)),
        )
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns::path(&pod.netns))
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", folder.bin())
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id}"
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let open = Netns::open(&netns::path(&node.netns)).map_err(LabError::io(node.netns.clone()))?;
    open.enter_before_exec(&mut command, false)
        .map_err(LabError::io(node.netns.clone()))?;
    let mut child = command.spawn().map_err(LabError::io("executing the CNI plugin"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read on says why below.
        let _ = stdin.write_all(configuration(folder, record, &node.name).to_string().as_bytes());
    }
    let done = child.wait_with_output().map_err(LabError::io("CNI plugin"))?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        Ok(printed)
    } else {
        Err(failed(printed + &String::from_utf8_lossy(&done.stderr)))
    }
}

/// The network configuration that a runtime would read from `10-calico.conflist`.
pub fn configuration(folder: &Folder, record: &Record, node: &str) -> Value {
    let families = record.families();
    let assign = |family| families.contains(&family).to_string();
    json!({
        "cniVersion": "1.1.0",
        "name": "k8s-pod-network",
        "type": "calico",
        "nodename": node,
        "ipam": {
            "type": "calico-ipam",
            "assign_ipv4": assign(IpFamily::V4),
            "assign_ipv6": assign(IpFamily::V6),
        },
        "socket": folder.run_dir(node).join("cni.sock"),
        "state_dir": folder.state_dir(node).join("cni"),
    })
}

/// Addresses and the node's end of the link, as the plugin's answer to ADD has them.
fn attached(answer: &str) -> Option<(Vec<IpAddr>, Option<String>)> {
    let result: Value = serde_json::from_str(answer).ok()?;
    let listed = |field: &str| result[field].as_array().cloned().unwrap_or_default();
    let addresses: Vec<IpAddr> = listed("ips")
        .iter()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect();
    // The node's end has no sandbox.
    let host_device = listed("interfaces")
        .into_iter()
        .find(|interface| interface["sandbox"].as_str().is_none_or(str::is_empty))
        .and_then(|interface| interface["name"].as_str().map(str::to_string));
    (!addresses.is_empty()).then_some((addresses, host_device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, expected: Option<(&[&str], Option<&str>)>) {
        let found = attached(answer);
        let expected = expected.map(|(addresses, device)| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            (addresses, device.map(str::to_string))
        });
        assert_eq!(found, expected, "{answer}");
    }

    #[test]
    fn the_plugins_answer_names_addresses_and_the_nodes_end() {
        let interfaces = r#""interfaces": [{"name": "cali1"}, {"name": "eth0", "sandbox": "/run/netns/x"}]"#;
        check(
            &format!(r#"{{"ips": [{{"address": "192.168.0.1/32"}}, {{"address": "fd00::1/128"}}], {interfaces}}}"#),
            Some((&["192.168.0.1", "fd00::1"], Some("cali1"))),
        );
        check(r#"{"ips": [{"address": "10.0.0.1/32"}]}"#, Some((&["10.0.0.1"], None)));
        check(&format!(r#"{{"ips": [], {interfaces}}}"#), None);
        check("no JSON", None);
    }

    #[test]
    fn the_configuration_asks_for_the_families_that_the_lab_has() {
        let folder = Folder::of("lab");
        for (gateways, v4, v6) in [
            (vec!["10.211.55.1/24"], "true", "false"),
            (vec!["10.211.55.1/24", "fd00::1/64"], "true", "true"),
            (vec!["fd00::1/64"], "false", "true"),
        ] {
            let record = Record {
                fabric: String::new(),
                gateways: gateways.iter().map(|net| net.parse().unwrap()).collect(),
                nodes: Vec::new(),
                pods: Vec::new(),
                ipip: "bpf".into(),
                complete: false,
            };
            let ipam = &configuration(&folder, &record, "n1")["ipam"];
            assert_eq!((&ipam["assign_ipv4"], &ipam["assign_ipv6"]), (&v4.into(), &v6.into()));
        }
    }
}
