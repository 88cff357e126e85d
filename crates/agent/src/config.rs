//! What an agent is told by flags and environment. Read once, typed; nothing else in the crate reads the environment.
//!
//! Variables keep upstream's names where upstream has them (`NODENAME`, `IP`, `IP_AUTODETECTION_METHOD`, `FELIX_*`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use calc::RouterId;
use clap::Args;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::AgentError;
use crate::autodetect::Method;

/// What pods' devices begin with, as upstream has it.
pub(crate) const PREFIX: &str = "cali";

/// Command line of `margay agent`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Name of this node; default: the host's name in lower case
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// IPv4 address of this node: ADDRESS[/LENGTH], `autodetect` or `none`
    #[arg(long, env = "IP", default_value = "autodetect", value_name = "ADDRESS")]
    pub ip: String,

    /// IPv6 address of this node: ADDRESS[/LENGTH], `autodetect` or `none`
    #[arg(long, env = "IP6", default_value = "none", value_name = "ADDRESS")]
    pub ip6: String,

    /// first-found | can-reach=HOST | interface=REGEX,… | skip-interface=REGEX,… | cidr=CIDR,… | kubernetes-internal-ip
    #[arg(
        long,
        env = "IP_AUTODETECTION_METHOD",
        default_value = "first-found",
        value_name = "METHOD"
    )]
    pub ip_autodetection_method: String,

    /// The same for IPv6
    #[arg(
        long,
        env = "IP6_AUTODETECTION_METHOD",
        default_value = "first-found",
        value_name = "METHOD"
    )]
    pub ip6_autodetection_method: String,

    /// AS number of this node, if not the cluster's
    #[arg(long = "as", env = "AS", value_name = "NUMBER")]
    pub as_number: Option<String>,

    /// BGP identifier: an IPv4 address, or `hash` to derive it from the node's name
    #[arg(long, env = "CALICO_ROUTER_ID", value_name = "ID")]
    pub router_id: Option<String>,

    /// Start even if another node has registered the same address
    #[arg(long, env = "DISABLE_NODE_IP_CHECK", default_value_t = false, value_parser = clap::builder::FalseyValueParser::new())]
    pub disable_node_ip_check: bool,

    /// How tunl0 encapsulates: auto, native (the kernel's ipip driver) or bpf
    #[arg(long, env = "MARGAY_IPIP", default_value = "auto", value_name = "FLAVOUR")]
    pub ipip: String,

    /// Directory for sockets (agent.sock, cni.sock)
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,

    /// Directory for what must survive a reboot (CNI journal)
    #[arg(
        long,
        env = "MARGAY_STATE_DIR",
        default_value = "/var/lib/margay",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// Where this node's sysctls can be written: another mount of /proc/sys, where that is read-only
    #[arg(long, env = "MARGAY_PROC_SYS", default_value = linux::sysctl::DEFAULT, value_name = "DIR")]
    pub proc_sys: PathBuf,

    /// Host that answers /liveness, /readiness and /metrics
    #[arg(long, env = "FELIX_HEALTHHOST", default_value = "localhost", value_name = "HOST")]
    pub health_host: String,

    /// Port of the health endpoints; 0 turns them off (the unix socket always answers)
    #[arg(long, env = "FELIX_HEALTHPORT", default_value = "9099", value_parser = port, value_name = "PORT")]
    pub health_port: u16,

    /// First letters of the host side of pod interfaces
    #[arg(long, env = "FELIX_INTERFACEPREFIX", default_value = "cali", value_name = "PREFIX")]
    pub interface_prefix: String,

    /// Enforce policy only, for pods that another network plugin attaches: no addresses, no routes, no BGP
    #[arg(long, env = "MARGAY_POLICY_ONLY", default_value_t = false, value_parser = clap::builder::FalseyValueParser::new())]
    pub policy_only: bool,

    /// How nodes learn the way to each other's blocks: bird (BGP, by the agent itself) or none (from the datastore)
    #[arg(
        long,
        env = "CALICO_NETWORKING_BACKEND",
        default_value = "bird",
        value_name = "BACKEND"
    )]
    pub networking_backend: String,

    /// When policy changes, cut established flows that it forbids now; false: only new flows are judged
    #[arg(long, env = "MARGAY_CUT_FORBIDDEN_FLOWS", default_value = "true", value_parser = switch, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub cut_forbidden_flows: bool,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node_name: String,
    /// Where its IPv4 address comes from.
    pub ipv4: AddressSource<Ipv4Net>,
    /// Where its IPv6 address comes from.
    pub ipv6: AddressSource<Ipv6Net>,
    /// AS of this node, if not the cluster's.
    pub as_number: Option<api::AsNumber>,
    /// BGP identifier.
    pub router_id: RouterId,
    /// Refuse to start on another node's address.
    pub check_address: bool,
    /// Forced way of encapsulation.
    pub ipip: Option<kernel::IpipFlavour>,
    /// Sockets.
    pub run_dir: PathBuf,
    /// Journal.
    pub state_dir: PathBuf,
    /// Health endpoints, unless turned off.
    pub health: Option<SocketAddr>,
    /// Prefix of pod interfaces on the host.
    pub interface_prefix: String,
    /// What the agent does beside enforcing policy.
    pub work: Work,
    /// Established flows are cut when a change of policy forbids them.
    pub cut_forbidden_flows: bool,
}

/// What an agent does beside enforcing policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Pods, addresses, routes; BGP tells the other nodes.
    WithBgp,
    /// The same; routes to other nodes' blocks follow from the datastore.
    WithoutBgp,
    /// Nothing: another network plugin does.
    PolicyOnly,
}

/// Where an address of the node comes from.
#[derive(Clone, Debug)]
pub enum AddressSource<Net> {
    /// The node has none of this family.
    None,
    /// Given by the operator.
    Fixed(Net),
    /// Found on the node's interfaces.
    Detect(Method),
}

impl Config {
    /// Checks the options; `hostname` is the default for the node's name.
    pub fn from_options(options: &Options, hostname: &str) -> Result<Self, AgentError> {
        // Manifests set variables to nothing where they mean the default.
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let node_name = given(&options.node_name)
            .unwrap_or_else(|| hostname.to_string())
            .to_ascii_lowercase();
        check_node_name(&node_name)?;
        let or = |value: &str, default: &str| {
            if value.is_empty() {
                default.to_string()
            } else {
                value.to_string()
            }
        };
        let interface_prefix = or(&options.interface_prefix, PREFIX);
        check_prefix(&interface_prefix)?;
        let ipv4 = address_source(
            "IP",
            &or(&options.ip, "autodetect"),
            "32",
            "IP_AUTODETECTION_METHOD",
            &options.ip_autodetection_method,
        )?;
        let ipv6 = address_source(
            "IP6",
            &or(&options.ip6, "none"),
            "128",
            "IP6_AUTODETECTION_METHOD",
            &options.ip6_autodetection_method,
        )?;
        if matches!((&ipv4, &ipv6), (AddressSource::None, AddressSource::None)) {
            return Err(problem(
                "IP",
                &options.ip,
                "with IP6=none leaves the node without an address",
            ));
        }
        let as_number = match given(&options.as_number) {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|reason: String| problem("AS", &text, &format!("is refused: {reason}")))?,
            ),
        };
        let router_id = match options.router_id.as_deref().unwrap_or_default() {
            "" => RouterId::NodeAddress,
            "hash" => RouterId::Hash,
            text => match text.parse() {
                Ok(id) if id != Ipv4Addr::UNSPECIFIED => RouterId::Literal(id),
                _ => {
                    return Err(problem(
                        "CALICO_ROUTER_ID",
                        text,
                        "is neither an IPv4 address other than 0.0.0.0 nor `hash`",
                    ));
                }
            },
        };
        let ipip = match options.ipip.as_str() {
            "auto" | "" => None,
            "native" => Some(kernel::IpipFlavour::Native),
            "bpf" => Some(kernel::IpipFlavour::Bpf),
            other => return Err(problem("MARGAY_IPIP", other, "is none of auto, native, bpf")),
        };
        Ok(Self {
            node_name,
            ipv4,
            ipv6,
            as_number,
            router_id,
            check_address: !options.disable_node_ip_check,
            ipip,
            run_dir: options.run_dir.clone(),
            state_dir: options.state_dir.clone(),
            health: health_address(&or(&options.health_host, "localhost"), options.health_port)?,
            interface_prefix,
            work: work(options)?,
            cut_forbidden_flows: options.cut_forbidden_flows,
        })
    }
}

fn work(options: &Options) -> Result<Work, AgentError> {
    let backend = options.networking_backend.as_str();
    match (options.policy_only, backend) {
        (false, "bird" | "") => Ok(Work::WithBgp),
        (false, "none") => Ok(Work::WithoutBgp),
        // There is nothing for a backend to do.
        (true, "bird" | "none" | "") => Ok(Work::PolicyOnly),
        (_, "vxlan") => Err(problem(
            "CALICO_NETWORKING_BACKEND",
            backend,
            "is not available: there are no VXLAN tunnels; must be bird or none",
        )),
        _ => Err(problem("CALICO_NETWORKING_BACKEND", backend, "must be bird or none")),
    }
}

/// A variable that is set to nothing means the default.
fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// A variable that is set to nothing means the default.
fn port(text: &str) -> Result<u16, std::num::ParseIntError> {
    if text.is_empty() { Ok(9099) } else { text.parse() }
}

fn check_node_name(name: &str) -> Result<(), AgentError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() <= 253 && name.chars().all(good) && edge(name.chars().next()) && edge(name.chars().last()) {
        return Ok(());
    }
    Err(problem(
        "NODENAME",
        name,
        "is not a DNS name: up to 253 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit",
    ))
}

fn check_prefix(prefix: &str) -> Result<(), AgentError> {
    if !prefix.is_empty() && prefix.len() <= 4 && prefix.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    // 15 bytes of interface name less the 11 of the hash.
    Err(problem(
        "FELIX_INTERFACEPREFIX",
        prefix,
        "must be one to four letters or digits",
    ))
}

fn address_source<Net: std::str::FromStr>(
    field: &'static str,
    text: &str,
    full_length: &str,
    method_field: &'static str,
    method: &str,
) -> Result<AddressSource<Net>, AgentError> {
    match text {
        "none" => Ok(AddressSource::None),
        "autodetect" => Method::parse(method)
            .map(AddressSource::Detect)
            .map_err(|why| problem(method_field, method, &why)),
        address => {
            let full = if address.contains('/') {
                address.to_string()
            } else {
                format!("{address}/{full_length}")
            };
            full.parse().map(AddressSource::Fixed).map_err(|_| {
                problem(
                    field,
                    address,
                    "is neither an address of this family (with or without /LENGTH), `autodetect` nor `none`",
                )
            })
        }
    }
}

fn health_address(host: &str, port: u16) -> Result<Option<SocketAddr>, AgentError> {
    if port == 0 {
        return Ok(None);
    }
    let ip = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => other
            .parse()
            .map_err(|_| problem("FELIX_HEALTHHOST", other, "is neither `localhost` nor an address"))?,
    };
    Ok(Some(SocketAddr::new(ip, port)))
}

pub(crate) fn problem(field: &'static str, value: &str, problem: &str) -> AgentError {
    AgentError::Config {
        field,
        value: value.to_string(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    /// Flags to the parts of the configuration that are expected, or to the whole error.
    #[track_caller]
    fn check(flags: &str, expected: Result<&[&str], &str>) {
        let words = ["agent"]
            .into_iter()
            .chain(flags.split(' ').filter(|word| !word.is_empty()));
        let options = Line::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{error}"))
            .options;
        match (Config::from_options(&options, "Host.Example"), expected) {
            (Ok(config), Ok(parts)) => {
                let got = format!("{config:?}");
                for part in parts {
                    assert!(got.contains(part), "{flags}: no {part} in\n{got}");
                }
            }
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{flags}"),
            (got, expected) => panic!("{flags}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_defaults_are_upstreams() {
        let defaults = [
            "node_name: \"host.example\"",
            "ipv4: Detect(FirstFound)",
            "ipv6: None",
            "as_number: None",
            "router_id: NodeAddress",
            "check_address: true",
            "ipip: None",
            "health: Some(127.0.0.1:9099)",
            "interface_prefix: \"cali\"",
            "cut_forbidden_flows: true",
        ];
        check("", Ok(&defaults));
        check(
            "--node-name= --as= --router-id= --ipip= --ip= --ip6= --interface-prefix= --health-host= --health-port= \
             --cut-forbidden-flows=",
            Ok(&defaults),
        );
    }

    #[test]
    fn every_option_has_its_effect() {
        check("--node-name K8S-Node1", Ok(&["node_name: \"k8s-node1\""]));
        check("--cut-forbidden-flows no", Ok(&["cut_forbidden_flows: false"]));
        check("--ip 10.0.0.1", Ok(&["ipv4: Fixed(10.0.0.1/32)"]));
        check(
            "--ip 10.0.0.1/24 --ip6 fd00::1",
            Ok(&["ipv4: Fixed(10.0.0.1/24)", "ipv6: Fixed(fd00::1/128)"]),
        );
        check(
            "--ip none --ip6 autodetect",
            Ok(&["ipv4: None", "ipv6: Detect(FirstFound)"]),
        );
        check(
            "--ip-autodetection-method can-reach=h",
            Ok(&["Detect(CanReach(\"h\"))"]),
        );
        check("--as 65001", Ok(&["AsNumber(65001)"]));
        check("--as 1.10", Ok(&["AsNumber(65546)"]));
        check("--router-id hash", Ok(&["router_id: Hash"]));
        check("--router-id 1.2.3.4", Ok(&["router_id: Literal(1.2.3.4)"]));
        check("--disable-node-ip-check", Ok(&["check_address: false"]));
        check("--ipip native", Ok(&["ipip: Some(Native)"]));
        check("--health-port 0", Ok(&["health: None"]));
        check("--health-host ::1 --health-port 1", Ok(&["health: Some([::1]:1)"]));
        check(
            "--run-dir /a --state-dir /b",
            Ok(&["run_dir: \"/a\"", "state_dir: \"/b\""]),
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        check(
            "--node-name a_b",
            Err(
                "NODENAME: `a_b` is not a DNS name: up to 253 of a-z, 0-9, `-` and `.`, beginning and ending with a letter or digit",
            ),
        );
        check(
            "--ip fd00::1",
            Err(
                "IP: `fd00::1` is neither an address of this family (with or without /LENGTH), `autodetect` nor `none`",
            ),
        );
        check(
            "--ip none",
            Err("IP: `none` with IP6=none leaves the node without an address"),
        );
        check(
            "--ip6 autodetect --ip6-autodetection-method cidr=x",
            Err("IP6_AUTODETECTION_METHOD: `cidr=x` has `x`, which is not a CIDR"),
        );
        let id = "is neither an IPv4 address other than 0.0.0.0 nor `hash`";
        check("--router-id 0.0.0.0", Err(&format!("CALICO_ROUTER_ID: `0.0.0.0` {id}")));
        check("--router-id fd00::1", Err(&format!("CALICO_ROUTER_ID: `fd00::1` {id}")));
        check("--ipip fast", Err("MARGAY_IPIP: `fast` is none of auto, native, bpf"));
        check(
            "--health-host here",
            Err("FELIX_HEALTHHOST: `here` is neither `localhost` nor an address"),
        );
        check(
            "--interface-prefix eth-long",
            Err("FELIX_INTERFACEPREFIX: `eth-long` must be one to four letters or digits"),
        );
    }
}
