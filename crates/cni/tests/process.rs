//! The plugin as a process: environment and standard input in, standard output and exit code out.
//!
//! This binary is both: with `CNI_TEST_PLUGIN` set it is the plugin, otherwise it starts itself as one.

#![allow(clippy::unwrap_used, reason = "a test without the harness that clippy would know")]

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;

use cni::protocol::{self, Reply, Request, Verb};
use cni::result::{CniResult, Interface, Ip};
use cni::{Code, Env, Error};
use serde_json::{Value, json};

fn main() -> ExitCode {
    if std::env::var_os("CNI_TEST_PLUGIN").is_some() {
        let stdin = std::io::stdin().lock();
        let env = Env {
            program: std::env::var("CNI_TEST_PLUGIN").unwrap_or_default(),
            ..Env::from_process()
        };
        return cni::run(&env, stdin, std::io::stdout().lock());
    }
    type Case = (&'static str, fn(&Path));
    let cases: &[Case] = &[
        (
            "version_is_answered_without_an_agent",
            version_is_answered_without_an_agent,
        ),
        (
            "add_prints_the_result_in_the_callers_version",
            add_prints_the_result_in_the_callers_version,
        ),
        (
            "add_without_an_agent_asks_to_try_again",
            add_without_an_agent_asks_to_try_again,
        ),
        (
            "an_agents_error_is_printed_as_it_is",
            an_agents_error_is_printed_as_it_is,
        ),
        ("an_agent_that_hangs_up_is_named", an_agent_that_hangs_up_is_named),
        (
            "a_pod_is_never_made_in_the_nodes_own_namespace",
            a_pod_is_never_made_in_the_nodes_own_namespace,
        ),
        ("del_with_an_agent_leaves_no_record", del_with_an_agent_leaves_no_record),
        ("del_without_an_agent_is_journalled", del_without_an_agent_is_journalled),
        (
            "del_is_journalled_if_the_agent_refuses",
            del_is_journalled_if_the_agent_refuses,
        ),
        (
            "del_survives_a_mistyped_configuration",
            del_survives_a_mistyped_configuration,
        ),
        ("status_without_an_agent_is_code_50", status_without_an_agent_is_code_50),
        ("verbs_need_their_version", verbs_need_their_version),
        ("gc_needs_a_list", gc_needs_a_list),
        ("bad_input_is_explained", bad_input_is_explained),
        ("called_as_ipam_the_role_is_told", called_as_ipam_the_role_is_told),
    ];
    for (name, case) in cases {
        let dir = tempfile::tempdir().expect("a temporary directory");
        case(dir.path());
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn version_is_answered_without_an_agent(dir: &Path) {
    let call = Call {
        env: &[("CNI_COMMAND", "VERSION")],
        ..Call::new(dir)
    };
    let (exit, out) = call.run_with(json!({"cniVersion": "0.4.0"}).to_string());
    assert_eq!((exit, out["cniVersion"].as_str()), (0, Some("0.4.0")));
    assert_eq!(
        out["supportedVersions"],
        json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    let (exit, out) = call.run_with(String::new());
    assert_eq!((exit, out["cniVersion"].as_str()), (0, Some("1.1.0")));
}

fn add_prints_the_result_in_the_callers_version(dir: &Path) {
    let result = CniResult {
        interfaces: vec![Interface {
            name: "eth0".into(),
            mtu: Some(1480),
            ..Interface::default()
        }],
        ips: vec![Ip {
            interface: Some(0),
            address: "10.0.0.1/32".parse().unwrap(),
            gateway: None,
        }],
        ..CniResult::default()
    };
    for (version, mtu, family) in [("0.3.1", json!(null), json!("4")), ("1.1.0", json!(1480), json!(null))] {
        let agent = agent(dir, vec![Some(Reply::Ok(Some(result.clone())))]);
        let (exit, out) = Call {
            version,
            args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p",
            ..Call::new(dir)
        }
        .run("ADD");
        assert_eq!((exit, out["cniVersion"].as_str()), (0, Some(version)));
        assert_eq!(
            (&out["interfaces"][0]["mtu"], &out["ips"][0]["version"]),
            (&mtu, &family)
        );
        let requests = agent.join().unwrap();
        assert_eq!(requests[0].verb, Verb::Add);
        assert_eq!(
            (requests[0].container_id.as_str(), requests[0].ifname.as_str()),
            ("c1", "eth0")
        );
        assert_eq!(requests[0].args.pod(), Some(("ns", "p")));
    }
}

fn add_without_an_agent_asks_to_try_again(dir: &Path) {
    let (exit, out) = Call::new(dir).run("ADD");
    assert_eq!((exit, &out["code"]), (1, &json!(11)));
    assert_eq!(out["cniVersion"], "1.1.0");
    let details = out["details"].as_str().unwrap();
    assert!(
        details.contains("cni.sock") && details.contains("is the margay agent running"),
        "{details}"
    );
}

fn an_agents_error_is_printed_as_it_is(dir: &Path) {
    let error = Error::new(Code::NoAddress, "no address is left", "pool 10.0.0.0/30: 4 of 4 in use");
    let agent = agent(dir, vec![Some(Reply::Error(error))]);
    let (exit, out) = Call::new(dir).run("ADD");
    assert_eq!(exit, 1);
    let wanted = json!({"cniVersion": "1.1.0", "code": 100, "msg": "no address is left", "details": "pool 10.0.0.0/30: 4 of 4 in use"});
    assert_eq!(out, wanted);
    agent.join().unwrap();
}

fn an_agent_that_hangs_up_is_named(dir: &Path) {
    let agent = agent(dir, vec![None]);
    let (exit, out) = Call::new(dir).run("ADD");
    assert_eq!((exit, &out["code"]), (1, &json!(11)));
    assert_eq!(out["msg"], "lost the connection to the agent");
    let details = out["details"].as_str().unwrap();
    assert!(details.ends_with("the agent ended before it answered"), "{details}");
    agent.join().unwrap();
}

fn a_pod_is_never_made_in_the_nodes_own_namespace(dir: &Path) {
    let call = Call {
        netns: "/proc/self/ns/net",
        ..Call::new(dir)
    };
    let (exit, out) = call.run("ADD");
    assert_eq!((exit, &out["code"]), (1, &json!(8)), "{out}");
    assert_eq!(out["msg"], "this is the node's own network namespace");
    assert_eq!(call.run("DEL"), (0, Value::Null));
}

fn del_with_an_agent_leaves_no_record(dir: &Path) {
    let agent = agent(dir, vec![Some(Reply::Ok(None))]);
    let call = Call {
        env: &[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
        ],
        ..Call::new(dir)
    };
    assert_eq!(call.run_with(call.config().to_string()), (0, Value::Null));
    assert_eq!(agent.join().unwrap()[0].netns, None);
    assert!(!dir.join("state").exists());
}

fn del_without_an_agent_is_journalled(dir: &Path) {
    let call = Call {
        args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p",
        ..Call::new(dir)
    };
    for _ in 0..2 {
        assert_eq!(call.run("DEL"), (0, Value::Null));
        let pending = cni::journal::Journal::new(dir.join("state")).all_pending().unwrap();
        assert_eq!(pending.records.len(), 1);
        assert_eq!(pending.records[0].args.pod(), Some(("ns", "p")));
        assert_eq!(
            (pending.records[0].network.as_str(), pending.records[0].ipam_only),
            ("net", false)
        );
    }
}

fn del_is_journalled_if_the_agent_refuses(dir: &Path) {
    let refusal = || Some(Reply::Error(Error::new(Code::Decode, "cannot decode", "")));
    let agent = agent(dir, vec![refusal(), refusal()]);
    assert_eq!(Call::new(dir).run("DEL"), (0, Value::Null));
    assert!(dir.join("state/pending-delete/c1-eth0.json").exists());
    agent.join().unwrap();
}

fn del_survives_a_mistyped_configuration(dir: &Path) {
    let call = Call {
        version: "9.9.9",
        ..Call::new(dir)
    };
    let mut config = call.config();
    config["mtu"] = json!("big");
    assert_eq!(call.with("DEL", config.to_string()), (0, Value::Null));
    assert!(dir.join("state/pending-delete/c1-eth0.json").exists());
}

fn status_without_an_agent_is_code_50(dir: &Path) {
    let call = Call {
        env: &[("CNI_COMMAND", "STATUS")],
        ..Call::new(dir)
    };
    let (exit, out) = call.run_with(call.config().to_string());
    assert_eq!((exit, &out["code"]), (1, &json!(50)));
}

fn verbs_need_their_version(dir: &Path) {
    for (verb, version) in [("STATUS", "1.0.0"), ("GC", "1.0.0"), ("CHECK", "0.3.1")] {
        let (exit, out) = Call {
            version,
            ..Call::new(dir)
        }
        .run(verb);
        assert_eq!(
            (exit, &out["code"], out["cniVersion"].as_str()),
            (1, &json!(1), Some(version)),
            "{verb}"
        );
    }
}

fn gc_needs_a_list(dir: &Path) {
    let call = Call {
        env: &[("CNI_COMMAND", "GC")],
        ..Call::new(dir)
    };
    let (exit, out) = call.run_with(call.config().to_string());
    assert_eq!((exit, &out["code"]), (1, &json!(7)));
    let agent = agent(dir, vec![Some(Reply::Ok(None))]);
    let mut config = call.config();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(call.run_with(config.to_string()), (0, Value::Null));
    assert_eq!(
        agent.join().unwrap()[0]
            .config
            .valid_attachments
            .as_ref()
            .unwrap()
            .len(),
        1
    );
}

fn bad_input_is_explained(dir: &Path) {
    let call = Call::new(dir);
    let check = |verb: &str, input: String, code: u32, part: &str| {
        let (exit, out) = call.with(verb, input);
        assert_eq!((exit, &out["code"]), (1, &json!(code)), "{out}");
        assert!(out["details"].as_str().unwrap().contains(part), "{out}");
    };
    check("ADD", "{".into(), 6, "must be a JSON object");
    check("add", call.config().to_string(), 4, "CNI_COMMAND: \"add\"");
    check("ADD", json!({"cniVersion": "1.0.0"}).to_string(), 7, "name: missing");
    check("ADD", json!({"cniVersion": "7.0.0"}).to_string(), 1, "\"7.0.0\"");
    check("DEL", "[]".into(), 6, "found []");
}

fn called_as_ipam_the_role_is_told(dir: &Path) {
    let agent = agent(dir, vec![Some(Reply::Ok(Some(CniResult::default())))]);
    let (exit, out) = Call {
        program: "calico-ipam",
        ..Call::new(dir)
    }
    .run("ADD");
    assert_eq!((exit, out), (0, json!({"cniVersion": "1.1.0", "ips": [], "dns": {}})));
    assert_eq!(agent.join().unwrap()[0].role, protocol::Role::Ipam);
}

/// One call of the plugin.
struct Call<'a> {
    dir: &'a Path,
    program: &'a str,
    version: &'a str,
    args: &'a str,
    netns: &'a str,
    env: &'a [(&'a str, &'a str)],
}

impl<'a> Call<'a> {
    fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            program: "calico",
            version: "1.1.0",
            args: "",
            netns: "/run/netns/c1",
            env: &[],
        }
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": self.version, "name": "net", "type": "calico", "ipam": {"type": "calico-ipam"},
            "socket": self.dir.join("cni.sock"), "state_dir": self.dir.join("state"),
        })
    }

    fn run(&self, verb: &str) -> (i32, Value) {
        self.with(verb, self.config().to_string())
    }

    fn with(&self, verb: &str, input: String) -> (i32, Value) {
        let full = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", self.netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", self.args),
        ];
        Call { env: &full, ..*self }.run_with(input)
    }

    fn run_with(&self, input: String) -> (i32, Value) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env_clear()
            .env("CNI_TEST_PLUGIN", self.program)
            .envs(self.env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let out = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        (output.status.code().unwrap(), out)
    }
}

/// An agent that answers one connection with each reply (`None` hangs up), then is gone. Answers what it was asked.
fn agent(dir: &Path, replies: Vec<Option<Reply>>) -> JoinHandle<Vec<Request>> {
    let path = dir.join("cni.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let serve = |reply: Option<Reply>| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = protocol::read(&mut stream).unwrap();
            if let Some(reply) = reply {
                stream.write_all(&protocol::encode(&reply).unwrap()).unwrap();
            }
            request
        };
        let requests = replies.into_iter().map(serve).collect();
        std::fs::remove_file(path).unwrap();
        requests
    })
}
