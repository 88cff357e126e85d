//! `margay controllers` beside a cluster: a leak goes after its grace and no pod's address ever, what a dead node left comes
//! back, automatic host endpoints come and go, one of two processes writes.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::embedded::Client;
use common::{Lab, MARGAY, net};
use ipam::{AutoAssign, Ipam};

const GRACE: Duration = Duration::from_secs(4);

/// A running `margay controllers`; ends when it is dropped, also when the test fails.
struct Controllers(Child);

impl Controllers {
    /// In a node's namespace, where the port is its own.
    fn start(lab: &Lab, node: &str) -> Self {
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &lab.node_place(node),
                MARGAY,
                "controllers",
                "--host",
                "127.0.0.1",
            ])
            .env(
                "MARGAY_STORE_SOCKET",
                format!("/run/margay-lab/{}/store.sock", lab.name),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ip starts");
        Self(child)
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process answers on its port in a node's namespace; nothing while it does not.
fn ask(lab: &Lab, node: &str, path: &str) -> String {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 9094))?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    net::inside(&lab.node_place(node), get).unwrap_or_default()
}

fn within(limit: Duration, what: &str, mut fine: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !fine() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
    }
}

fn configure(lab: &Lab, auto_create: &str) {
    let grace = GRACE.as_secs();
    let yaml = format!(
        "apiVersion: projectcalico.org/v3\nkind: KubeControllersConfiguration\nmetadata: {{name: default}}\nspec: \
         {{controllers: {{node: {{leakGracePeriod: {grace}s, hostEndpoint: {{autoCreate: {auto_create}}}}}}}}}\n"
    );
    let command = format!("printf '%s' '{yaml}' | calicoctl apply -f -");
    lab.exec("k8s-125-master", &["sh", "-c", &command]);
}

/// An address that is held for a pod that does not exist.
fn leak(lab: &Lab, handle: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let socket = format!("/run/margay-lab/{}/store.sock", lab.name);
        let client = Client::connect(Path::new(&socket)).await.expect("the store");
        let attributes = [("node", "k8s-125-node1"), ("namespace", "default"), ("pod", "ghost")];
        let request = AutoAssign {
            host: "k8s-125-node1".into(),
            handle: handle.into(),
            attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ipv4: 1,
            namespace_labels: Some(BTreeMap::new()),
            ..AutoAssign::default()
        };
        let ipam = Ipam::new(Arc::new(client));
        let assigned = ipam
            .auto_assign(jiff::Timestamp::now(), &request)
            .await
            .expect("an address");
        assigned.v4[0].addr().to_string()
    })
}

#[test]
fn leaks_and_dead_nodes_are_cleaned_up_and_live_pods_keep_everything() {
    let Some(lab) = Lab::up("controllers-t", &[]) else {
        return;
    };
    let pods = ["cni-1", "c1", "cni-2"].map(|pod| (pod, lab.address(pod)));
    let is_held = |address: &str| lab.ctl(&["ipam", "show", "--ip", address]).contains("is in use");
    let names = |kind: &str| lab.ctl(&["get", kind, "-o", "name"]);
    configure(&lab, "Disabled");

    // Two processes: one leads, the other one is ready to.
    let first = Controllers::start(&lab, "k8s-125-master");
    within(Duration::from_secs(30), "a leader", || {
        ask(&lab, "k8s-125-master", "/readiness").contains("Leadership    ok        Leading")
    });
    let _second = Controllers::start(&lab, "k8s-125-node1");
    within(Duration::from_secs(30), "a standby", || {
        ask(&lab, "k8s-125-node1", "/readiness").contains("Leadership    ok        Standby")
    });
    let running = lab.ctl(&["get", "kcc", "default", "-o", "yaml"]);
    assert!(running.contains("runningConfig:"), "{running}");
    assert!(names("tiers").contains("Tier/kube-admin"), "{}", names("tiers"));

    // A leak goes, but not before its time.
    let began = Instant::now();
    let leaked = leak(&lab, "k8s-pod-network.ghost");
    assert!(is_held(&leaked));
    within(Duration::from_secs(30), "the leak is freed", || !is_held(&leaked));
    assert!(began.elapsed() >= GRACE, "freed after {:?}", began.elapsed());
    assert!(!names("ipamhandles").contains("ghost"), "{}", names("ipamhandles"));
    for (pod, address) in &pods {
        assert!(is_held(address), "{pod} has lost {address}");
    }
    let metrics = ask(&lab, "k8s-125-master", "/metrics");
    let freed = "ipam_allocations_gc_reclamations{ippool=\"default-ipv4-ippool\",node=\"k8s-125-node1\"} 1\n";
    assert!(metrics.contains(freed), "{metrics}");

    // Somebody deletes a live pod's endpoint: its agent writes it again, and the address stays.
    lab.ctl(&["delete", "wep", "k8s--125--node1-k8s-c1-eth0"]);
    within(Duration::from_secs(30), "the endpoint is back", || {
        names("wep").contains("k8s-c1-eth0")
    });
    assert!(is_held(&pods[1].1), "c1 has lost its address");

    // The leader dies; the other one goes on.
    drop(first);
    within(Duration::from_secs(30), "the other one leads", || {
        ask(&lab, "k8s-125-node1", "/readiness").contains("Leadership    ok        Leading")
    });
    configure(&lab, "Enabled");
    within(Duration::from_secs(30), "host endpoints", || {
        names("heps").matches("-auto-hep").count() == 3
    });
    let endpoint = lab.ctl(&["get", "hep", "k8s-125-node2-auto-hep", "-o", "yaml"]);
    for part in ["- 10.211.55.9", "- projectcalico-default-allow", "interfaceName: '*'"] {
        let part = part.replace('\'', "");
        assert!(endpoint.replace(['\'', '"'], "").contains(&part), "{endpoint}");
    }
    lab.lab(&["ping", "cni-1", "cni-2"]);

    // A node dies and is deleted; its pod's endpoint, address and block come back by themselves.
    let (_, dead) = &pods[2];
    lab.lab(&["agent", "kill", "k8s-125-node2"]);
    lab.ctl(&["delete", "node", "k8s-125-node2"]);
    assert!(is_held(dead), "{dead} goes with the node only after a while");
    within(Duration::from_secs(60), "what the node had is free", || {
        let left = ["wep", "hep", "blockaffinities", "ipamhandles"].map(&names).join("");
        !left.contains("node2") && !left.contains("node--125--node2") && !is_held(dead)
    });
    let blocks = lab.ctl(&["get", "ipamblocks", "-o", "wide"]);
    assert!(!blocks.contains("node2"), "{blocks}");
    for (pod, address) in &pods[..2] {
        assert!(is_held(address), "{pod} has lost {address}");
    }
    lab.lab(&["ping", "cni-1", "c1"]);

    configure(&lab, "Disabled");
    within(Duration::from_secs(30), "no host endpoints", || {
        !names("heps").contains("-auto-hep")
    });
}
