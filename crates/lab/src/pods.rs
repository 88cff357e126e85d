//! Pods of a lab: a namespace each, attached and detached by executing the CNI plugin as a container runtime does.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use linux::link;
use linux::netns::{self, Netns};
use serde_json::{Value, json};

use crate::LabError;
use crate::cluster::{create_netns, inside, open_socket, refused};
use crate::exec;
use crate::record::{Folder, PodRecord, Record};
use crate::spec::PodPlan;

/// How many plugins run at once while a lab comes up.
const AT_ONCE: usize = 8;
const INTERFACE: &str = "eth0";

/// Makes the planned pods of a new lab, which the record lists already, and writes down their addresses.
pub fn add_all(folder: &Folder, record: &mut Record, plans: &[PodPlan]) -> Result<(), LabError> {
    let planned: Vec<PodRecord> = plans
        .iter()
        .map(|plan| record.pod(&plan.name).cloned())
        .collect::<Result<_, _>>()?;
    for chunk in planned.chunks(AT_ONCE) {
        let attach = |pod: &PodRecord| make(folder, record, pod);
        let made: Vec<Result<PodRecord, LabError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = chunk.iter().map(|pod| scope.spawn(|| attach(pod))).collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(LabError::Refused("a thread panicked".into())))
                })
                .collect()
        });
        for pod in made {
            let pod = pod?;
            if let Some(known) = record.pods.iter_mut().find(|known| known.name == pod.name) {
                *known = pod;
            }
        }
    }
    folder.write(record)
}

/// Adds a pod to a running lab.
pub fn add(folder: &Folder, name: &str, node: &str) -> Result<PodRecord, LabError> {
    let mut record = folder.read()?;
    record.node(node)?;
    if record.place(name).is_ok() {
        return Err(crate::spec::usage("pod", name, "is in the lab already"));
    }
    let planned = PodRecord::planned(folder, name, node);
    record.pods.push(planned.clone());
    folder.write(&record)?;
    match make(folder, &record, &planned) {
        Ok(pod) => {
            replace(&mut record, pod.clone());
            folder.write(&record)?;
            Ok(pod)
        }
        Err(error) => {
            let _ = unmake(folder, &record, &planned);
            record.pods.retain(|pod| pod.name != name);
            folder.write(&record)?;
            Err(error)
        }
    }
}

/// Removes a pod.
pub fn delete(folder: &Folder, name: &str) -> Result<(), LabError> {
    let mut record = folder.read()?;
    let pod = record.pod(name)?.clone();
    unmake(folder, &record, &pod)?;
    record.pods.retain(|pod| pod.name != name);
    folder.write(&record)
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
    let result: Value = serde_json::from_str(&answer).unwrap_or_default();
    let addresses = result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str());
    let addresses: Vec<IpAddr> = addresses
        .filter_map(|net| net.split('/').next()?.parse().ok())
        .collect();
    // The result lists the node's end first, then the pod's.
    let host_device = result["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["sandbox"].as_str().is_none_or(str::is_empty));
    let host_device = host_device
        .and_then(|interface| interface["name"].as_str())
        .map(str::to_string);
    if addresses.is_empty() {
        return Err(LabError::Cni {
            verb: "ADD",
            pod: pod.name.clone(),
            answer,
        });
    }
    Ok(PodRecord {
        addresses,
        host_device,
        ..pod.clone()
    })
}

fn unmake(folder: &Folder, record: &Record, pod: &PodRecord) -> Result<(), LabError> {
    plugin(folder, record, pod, "DEL")?;
    netns::delete(&pod.netns).map_err(LabError::io(format!("network namespace {}", pod.netns)))
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
    let name = &pod.name;
    let id = &pod.container_id;
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns::path(&pod.netns))
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", folder.bin())
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id}"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let open = Netns::open(&netns::path(&node.netns)).map_err(LabError::io(node.netns.clone()))?;
    open.enter_before_exec(&mut command, false)
        .map_err(LabError::io(node.netns.clone()))?;
    let mut child = command.spawn().map_err(LabError::io("executing the CNI plugin"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(configuration(folder, &node.name).to_string().as_bytes())
            .map_err(LabError::io("CNI plugin"))?;
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
pub fn configuration(folder: &Folder, node: &str) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "k8s-pod-network",
        "type": "calico",
        "nodename": node,
        "ipam": { "type": "calico-ipam", "assign_ipv4": "true" },
        "socket": folder.run_dir(node).join("cni.sock"),
        "state_dir": folder.state_dir(node).join("cni"),
    })
}
