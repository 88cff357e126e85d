//! What the container runtime says by environment variables and by the program's name.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::is_mac;
use crate::error::{Code, Error};

/// The plugin's environment, as found. [`Env::call`] checks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    /// The last part of the program's path: `calico`, `calico-ipam`, …
    pub program: String,
    /// `CNI_COMMAND`.
    pub command: Option<String>,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<String>,
    /// `CNI_NETNS`.
    pub netns: Option<String>,
    /// `CNI_IFNAME`.
    pub ifname: Option<String>,
    /// `CNI_ARGS`.
    pub args: Option<String>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as ADD left it?
    Check,
    /// Can ADD be served?
    Status,
    /// Detach everything that is not on a list.
    Gc,
    /// Which versions are spoken?
    Version,
}

/// As what the plugin was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// As the network plugin: interface, address, routes, endpoint.
    #[default]
    Main,
    /// As the IPAM plugin of another network plugin: the address alone.
    Ipam,
}

/// A checked call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub verb: Verb,
    /// As what.
    pub role: Role,
    /// The container (sandbox); empty for verbs without one.
    pub container_id: String,
    /// Its network namespace; DEL may come without.
    pub netns: Option<PathBuf>,
    /// The interface to make in it; empty for verbs without one.
    pub ifname: String,
    /// The parsed `CNI_ARGS`.
    pub args: Args,
}

/// What `CNI_ARGS` says. Other keys are allowed with `IgnoreUnknown=true` and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Args {
    /// `K8S_POD_NAME`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// `K8S_POD_NAMESPACE`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_namespace: Option<String>,
    /// `K8S_POD_UID`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infra_container_id: Option<String>,
    /// `IP`: the address the caller asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<std::net::IpAddr>,
    /// `MAC`: the MAC address the caller asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Env {
    /// The environment of this process.
    pub fn from_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let program = std::env::args_os().next().unwrap_or_default();
        Self {
            program: Path::new(&program)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            command: variable("CNI_COMMAND"),
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            ifname: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        }
    }

    /// The call this environment makes, or every problem with it at once (code 4).
    pub fn call(&self) -> Result<Call, Error> {
        let mut problems = Vec::new();
        let verb = self.verb(&mut problems);
        let per_container = matches!(verb, Some(Verb::Add | Verb::Del | Verb::Check));
        let mut call = Call {
            verb: verb.unwrap_or(Verb::Version),
            role: if self.program.ends_with("-ipam") {
                Role::Ipam
            } else {
                Role::Main
            },
            container_id: String::new(),
            netns: self.netns.as_ref().map(PathBuf::from),
            ifname: String::new(),
            args: Args::default(),
        };
        if per_container {
            call.container_id = required(
                "CNI_CONTAINERID",
                &self.container_id,
                container_id_problem,
                &mut problems,
            );
            call.ifname = required("CNI_IFNAME", &self.ifname, ifname_problem, &mut problems);
            if self.netns.is_none() && verb != Some(Verb::Del) {
                problems.push("CNI_NETNS: missing; the path of the container's network namespace is required".into());
            }
            call.args = self
                .args
                .as_deref()
                .map(|text| Args::parse(text, &mut problems))
                .unwrap_or_default();
        }
        if (verb, call.role) == (Some(Verb::Add), Role::Main) {
            call.args.name_problems(&mut problems);
        }
        if problems.is_empty() {
            return Ok(call);
        }
        Err(Error::new(Code::InvalidEnv, "invalid environment", problems.join("; ")))
    }

    fn verb(&self, problems: &mut Vec<String>) -> Option<Verb> {
        let verb = match self.command.as_deref() {
            Some("ADD") => Verb::Add,
            Some("DEL") => Verb::Del,
            Some("CHECK") => Verb::Check,
            Some("STATUS") => Verb::Status,
            Some("GC") => Verb::Gc,
            Some("VERSION") => Verb::Version,
            other => {
                let found = other.map_or("missing".into(), |text| format!("{text:?}"));
                problems.push(format!(
                    "CNI_COMMAND: {found}; must be ADD, DEL, CHECK, STATUS, GC or VERSION"
                ));
                return None;
            }
        };
        Some(verb)
    }
}

/// The longest container id: with interface name and suffixes it must fit a file name.
const MAX_CONTAINER_ID: usize = 200;

/// What is wrong with a container id, if anything (CNI specification, "CNI_CONTAINERID").
pub fn container_id_problem(id: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(good) {
        return Some("must be letters, digits, '_', '.' or '-', beginning with a letter or digit".into());
    }
    (id.len() > MAX_CONTAINER_ID).then(|| format!("must have at most {MAX_CONTAINER_ID} characters"))
}

/// What is wrong with an interface name, if anything (CNI specification, "CNI_IFNAME"; IFNAMSIZ).
pub fn ifname_problem(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some("must not be \".\" or \"..\"".into());
    }
    if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        return Some("must not contain '/', ':' or white space".into());
    }
    (name.len() > 15).then(|| "must have at most 15 bytes".into())
}

fn required(
    name: &str,
    value: &Option<String>,
    problem: fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
) -> String {
    let Some(value) = value else {
        problems.push(format!("{name}: missing"));
        return String::new();
    };
    problems.extend(problem(value).map(|problem| format!("{name}: {value:?}; {problem}")));
    value.clone()
}

impl Args {
    /// Reads `KEY=VALUE;KEY=VALUE`. Problems are added to the list.
    pub fn parse(text: &str, problems: &mut Vec<String>) -> Args {
        let mut args = Args::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                problems.push(format!("CNI_ARGS: {pair:?}; must be KEY=VALUE pairs separated by ';'"));
                continue;
            };
            let text = Some(value.to_owned()).filter(|value| !value.is_empty());
            match key {
                "K8S_POD_NAME" => args.pod_name = text,
                "K8S_POD_NAMESPACE" => args.pod_namespace = text,
                "K8S_POD_UID" => args.pod_uid = text,
                "K8S_POD_INFRA_CONTAINER_ID" => args.infra_container_id = text,
                "IP" if value.is_empty() => {}
                "IP" => match value.parse() {
                    Ok(ip) => args.ip = Some(ip),
                    Err(_) => problems.push(format!("CNI_ARGS IP: {value:?}; must be an IPv4 or IPv6 address")),
                },
                "MAC" => match text.as_deref().is_none_or(is_mac) {
                    true => args.mac = text,
                    false => problems.push(format!(
                        "CNI_ARGS MAC: {value:?}; must be the MAC address of one interface, such as 02:00:5e:00:53:01"
                    )),
                },
                "IgnoreUnknown" => match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => ignore_unknown = true,
                    "0" | "false" => ignore_unknown = false,
                    _ => problems.push(format!(
                        "CNI_ARGS IgnoreUnknown: {value:?}; must be true, false, 1 or 0"
                    )),
                },
                other => unknown.push(other.to_owned()),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            problems.push(format!(
                "CNI_ARGS: unknown keys {}; add IgnoreUnknown=true to allow them",
                unknown.join(", ")
            ));
        }
        if args.pod_name.is_some() != args.pod_namespace.is_some() {
            problems.push("CNI_ARGS: K8S_POD_NAME and K8S_POD_NAMESPACE must come together".into());
        }
        args
    }

    /// The names become the endpoint's name, so they keep the rules of resource names. Only ADD asks: what is there already
    /// must be removable under any name.
    fn name_problems(&self, problems: &mut Vec<String>) {
        if let Some(name) = self.pod_name.as_deref()
            && !is_dns_name(name, 253)
        {
            problems.push(format!(
                "CNI_ARGS K8S_POD_NAME: {name:?}; must be a DNS name of at most 253 characters: lower-case letters, digits, '-' and '.'"
            ));
        }
        if let Some(namespace) = self.pod_namespace.as_deref()
            && (!is_dns_name(namespace, 63) || namespace.contains('.'))
        {
            problems.push(format!(
                "CNI_ARGS K8S_POD_NAMESPACE: {namespace:?}; must be a DNS label of at most 63 characters: lower-case letters, digits and '-'"
            ));
        }
    }

    /// Namespace and name of the pod, if the runtime named one.
    pub fn pod(&self) -> Option<(&str, &str)> {
        Some((self.pod_namespace.as_deref()?, self.pod_name.as_deref()?))
    }
}

/// RFC 1123 names as Kubernetes has them: parts of lower-case letters, digits and inner `-`.
fn is_dns_name(name: &str, longest: usize) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge) && bytes.iter().all(|b| edge(b) || *b == b'-')
    };
    name.len() <= longest && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(command: &str, id: &str, netns: &str, ifname: &str, args: &str) -> Env {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Env {
            program: "calico".into(),
            command: some(command),
            container_id: some(id),
            netns: some(netns),
            ifname: some(ifname),
            args: some(args),
        }
    }

    fn check(env: Env, wanted: Result<Verb, &[&str]>) {
        match (env.call(), wanted) {
            (Ok(call), Ok(verb)) => assert_eq!(call.verb, verb),
            (Err(error), Err(parts)) => {
                assert_eq!(error.code, Code::InvalidEnv);
                for part in parts {
                    assert!(error.details.contains(part), "{part:?} not in {:?}", error.details);
                }
            }
            (got, wanted) => panic!("{got:?}, wanted {wanted:?}"),
        }
    }

    #[test]
    fn each_verb_demands_what_it_needs() {
        check(env("ADD", "abc", "/run/netns/x", "eth0", ""), Ok(Verb::Add));
        check(env("DEL", "abc", "", "eth0", ""), Ok(Verb::Del));
        check(env("CHECK", "abc", "", "eth0", ""), Err(&["CNI_NETNS: missing"]));
        check(env("VERSION", "", "", "", ""), Ok(Verb::Version));
        check(env("STATUS", "", "", "", ""), Ok(Verb::Status));
        check(env("GC", "", "", "", ""), Ok(Verb::Gc));
    }

    #[test]
    fn all_problems_come_at_once() {
        check(
            env("ADD", "", "", "", ""),
            Err(&["CNI_CONTAINERID: missing", "CNI_NETNS: missing", "CNI_IFNAME: missing"]),
        );
        check(
            env("add", "", "", "", ""),
            Err(&["CNI_COMMAND: \"add\"", "must be ADD"]),
        );
        check(
            env("ADD", "-x", "/n", "a/b", ""),
            Err(&["CNI_CONTAINERID: \"-x\"", "CNI_IFNAME: \"a/b\""]),
        );
        check(
            env("DEL", "x/../y", "", "a-name-of-16-byt", ""),
            Err(&["CNI_CONTAINERID", "at most 15"]),
        );
        check(
            env("DEL", &"x".repeat(201), "", "..", ""),
            Err(&["at most 200", "CNI_IFNAME: \"..\""]),
        );
    }

    #[test]
    fn unknown_arguments_need_permission() {
        check(
            env("ADD", "a", "/n", "eth0", "FOO=1"),
            Err(&["unknown keys FOO", "IgnoreUnknown=true"]),
        );
        check(env("ADD", "a", "/n", "eth0", "FOO=1;IgnoreUnknown=1"), Ok(Verb::Add));
        check(
            env("ADD", "a", "/n", "eth0", "IgnoreUnknown=maybe;x"),
            Err(&["\"maybe\"", "KEY=VALUE"]),
        );
        check(env("ADD", "a", "/n", "eth0", "IP=nowhere"), Err(&["\"nowhere\""]));
        for wrong in [
            "MAC=x",
            "MAC=01:00:5e:00:00:01",
            "MAC=02:00:00:00:00:0",
            "MAC=02:00:00:00:00:+1",
        ] {
            check(env("ADD", "a", "/n", "eth0", wrong), Err(&["CNI_ARGS MAC"]));
        }
        check(env("ADD", "a", "/n", "eth0", "MAC=02:00:5E:00:53:01"), Ok(Verb::Add));
        check(
            env("ADD", "a", "/n", "eth0", "K8S_POD_NAME=a"),
            Err(&["must come together"]),
        );
    }

    #[test]
    fn a_pod_is_named_by_arguments() {
        let text = "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=cni-1;K8S_POD_UID=u;X=y;IP=10.0.0.1";
        let call = env("ADD", "a", "/n", "eth0", text).call().unwrap();
        assert_eq!(call.args.pod(), Some(("default", "cni-1")));
        assert_eq!(call.args.ip, Some([10, 0, 0, 1].into()));
    }

    #[test]
    fn a_pod_is_added_under_a_resource_name_alone_and_removed_under_any() {
        let long = "p".repeat(254);
        for (namespace, name, wrong) in [
            ("default", "a/b", "K8S_POD_NAME: \"a/b\""),
            ("default", "Web", "K8S_POD_NAME: \"Web\""),
            ("default", "a..b", "K8S_POD_NAME: \"a..b\""),
            ("default", "-a", "K8S_POD_NAME: \"-a\""),
            ("default", &long, "at most 253"),
            ("a.b", "web", "K8S_POD_NAMESPACE: \"a.b\""),
            ("../x", "web", "K8S_POD_NAMESPACE: \"../x\""),
        ] {
            let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
            check(env("ADD", "a", "/n", "eth0", &args), Err(&[wrong]));
            check(env("DEL", "a", "/n", "eth0", &args), Ok(Verb::Del));
        }
        let args = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=web-0.v1";
        check(env("ADD", "a", "/n", "eth0", args), Ok(Verb::Add));
    }

    #[test]
    fn the_program_name_decides_the_role() {
        let mut env = env("ADD", "a", "/n", "eth0", "");
        for (program, role) in [
            ("calico", Role::Main),
            ("calico-ipam", Role::Ipam),
            ("margay-cni", Role::Main),
        ] {
            env.program = program.into();
            assert_eq!(env.call().unwrap().role, role);
        }
    }
}
