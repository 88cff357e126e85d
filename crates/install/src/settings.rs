//! What is to be installed, checked: past this nobody validates again.

use std::net::IpAddr;

use api::crd::CrdGroup;
use api::problem::FieldProblem;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::options::{Answers, AnswersError, Options};

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The IPv4 pool that is created if it is not there.
    pub ipv4: Option<Pool>,
    /// The IPv6 pool that is created if it is not there; pods have IPv6 addresses if there is one.
    pub ipv6: Option<Ipv6Net>,
    /// The API group of our resources.
    pub group: CrdGroup,
    /// Which definitions are installed.
    pub crds: Crds,
    /// The image, with registry and tag.
    pub image: String,
    /// Host and port of the API server, if not the Service's.
    pub api_server: Option<(String, u16)>,
    /// How a node finds its address, as the agent reads it.
    pub autodetection: String,
    /// What the agent does beside enforcing policy.
    pub work: Work,
    /// What the devices of pods begin with that another plugin attaches.
    pub interface_prefix: String,
    /// Only nodes with this label get an agent.
    pub node_selector: Option<(String, String)>,
    /// How many processes of the controllers run, 0 to 9; one of them works.
    pub controllers: u8,
}

/// What an agent does beside enforcing policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Pods, addresses, routes; BGP tells other nodes.
    WithBgp,
    /// The same; routes to other nodes follow from the datastore.
    WithoutBgp,
    /// Nothing: another network plugin does.
    PolicyOnly,
}

/// The IPv4 pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its range.
    pub cidr: Ipv4Net,
    /// Length of a block's prefix, 20 to 32, not shorter than the pool's.
    pub block_size: u8,
    /// How packets cross the network.
    pub encapsulation: Encapsulation,
}

/// How pods' packets cross the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP-in-IP between all nodes.
    Ipip,
    /// IP-in-IP between nodes of different subnets.
    IpipCrossSubnet,
    /// As they are.
    None,
}

/// Which definitions of resources are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crds {
    /// With their validation rules.
    All,
    /// Without: API servers before Kubernetes 1.25 do not know them.
    NoRules,
    /// They are there.
    None,
}

const V3: &str = "projectcalico.org/v3";
const V1: &str = "crd.projectcalico.org/v1";

impl Settings {
    /// From flags and answers file.
    ///
    /// # Errors
    /// All that is wrong, together.
    pub fn from_options(options: &Options) -> Result<Self, AnswersError> {
        Self::from_answers(options.answers()?).map_err(AnswersError::Values)
    }

    fn from_answers(answers: Answers) -> Result<Self, Vec<FieldProblem>> {
        let mut answers = Reader {
            answers,
            problems: Vec::new(),
        };
        let settings = Self::read(&mut answers);
        match answers.problems.is_empty() {
            true => Ok(settings),
            false => Err(answers.problems),
        }
    }

    fn read(answers: &mut Reader) -> Self {
        let policy_only = answers.get("policy-only", "false", truth).unwrap_or(false);
        if policy_only {
            for name in ["pod-cidr", "block-size", "encapsulation", "bgp"] {
                let given = answers.answers.get(name).cloned().filter(|text| text.trim() != "none");
                if given.is_some() {
                    answers.problem(
                        name,
                        given,
                        "must be left out with policy-only: another network plugin does that".into(),
                    );
                }
            }
        } else if let Some(prefix) = answers.answers.get("interface-prefix").cloned() {
            let message = "must be left out without policy-only: our plugin's devices begin with cali".into();
            answers.problem("interface-prefix", Some(prefix), message);
        }
        let encapsulation = answers.get("encapsulation", "IPIP", Encapsulation::parse);
        let block_size = answers.get("block-size", "26", block_size);
        let default_range = if policy_only { "none" } else { "192.168.0.0/16" };
        let (ipv4, ipv6) = answers.get("pod-cidr", default_range, ranges).unwrap_or_default();
        if let (Some(cidr), Some(size)) = (ipv4, block_size)
            && cidr.prefix_len() > size
        {
            let message = format!("is larger than the pool {cidr}: {} to 32", cidr.prefix_len().max(20));
            answers.problem("block-size", Some(size.to_string()), message);
        }
        let bgp = answers.get("bgp", "Enabled", bgp).unwrap_or(true);
        answers.get("datastore", "kubernetes", datastore);
        let group = answers.get("api-group", V3, api_group).unwrap_or(CrdGroup::V3);
        // Existing Calico clusters have theirs, and those are not ours to change.
        let default = if group == CrdGroup::V1 { "none" } else { "all" };
        let crds = answers.get("crds", default, Crds::parse).unwrap_or(Crds::None);
        let registry = answers.get("registry", "localhost", |text| {
            part_of_image(text.trim_end_matches('/'))
        });
        let image = answers.get("image", concat!("margay:", env!("CARGO_PKG_VERSION")), image);
        let host = answers.optional("kubernetes-service-host", host);
        let port = answers.optional("kubernetes-service-port", port);
        if host.is_none() && port.is_some() {
            let message = "needs kubernetes-service-host".to_owned();
            answers.problem("kubernetes-service-port", port.map(|port| port.to_string()), message);
        }
        Self {
            ipv4: ipv4.map(|cidr| Pool {
                cidr,
                block_size: block_size.unwrap_or(26),
                encapsulation: encapsulation.unwrap_or(Encapsulation::Ipip),
            }),
            ipv6,
            group,
            crds,
            image: [registry, image].map(Option::unwrap_or_default).join("/"),
            api_server: host.map(|host| (host, port.unwrap_or(6443))),
            autodetection: answers
                .get("ip-autodetection-method", "first-found", autodetection)
                .unwrap_or_default(),
            work: match (policy_only, bgp) {
                (true, _) => Work::PolicyOnly,
                (false, true) => Work::WithBgp,
                (false, false) => Work::WithoutBgp,
            },
            interface_prefix: answers
                .get("interface-prefix", "cali", interface_prefix)
                .unwrap_or_default(),
            node_selector: answers.optional("node-selector", node_selector),
            controllers: answers.get("controllers", "1", controllers).unwrap_or(1),
        }
    }

    /// The API group as users write it.
    pub fn group_name(&self) -> &'static str {
        match self.group {
            CrdGroup::V3 => V3,
            CrdGroup::V1 => V1,
        }
    }
}

struct Reader {
    answers: Answers,
    problems: Vec<FieldProblem>,
}

impl Reader {
    fn get<T>(&mut self, name: &str, default: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.answers.get(name).cloned().unwrap_or_else(|| default.to_owned());
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(name, Some(text), message);
                None
            }
        }
    }

    fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let given = self.answers.get(name).is_some_and(|text| !text.trim().is_empty());
        given.then(|| self.get(name, "", parse)).flatten()
    }

    fn problem(&mut self, field: &str, value: Option<String>, message: String) {
        self.problems.push(FieldProblem {
            field: field.to_owned(),
            value,
            message,
        });
    }
}

impl Encapsulation {
    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "ipip" => Ok(Self::Ipip),
            "ipipcrosssubnet" => Ok(Self::IpipCrossSubnet),
            "none" => Ok(Self::None),
            "vxlan" | "vxlancrosssubnet" => {
                Err("is not available: the agent makes no VXLAN tunnels yet; use IPIP or IPIPCrossSubnet, or None where the \
                     network routes pods' addresses"
                    .into())
            }
            _ => Err("must be IPIP, IPIPCrossSubnet or None".into()),
        }
    }

    /// As an IPPool writes it in `ipipMode`.
    pub fn ipip_mode(self) -> &'static str {
        match self {
            Self::Ipip => "Always",
            Self::IpipCrossSubnet => "CrossSubnet",
            Self::None => "Never",
        }
    }
}

impl Crds {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "no-rules" => Ok(Self::NoRules),
            "none" => Ok(Self::None),
            _ => Err("must be all, no-rules or none".into()),
        }
    }
}

fn ranges(text: &str) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), String> {
    if text == "none" {
        return Ok((None, None));
    }
    let (mut ipv4, mut ipv6) = (None, None);
    for part in text.split(',').map(str::trim) {
        let net: ipnet::IpNet = part
            .parse()
            .map_err(|_| format!("{part:?} is no range; write it like 192.168.0.0/16, or none"))?;
        if net.addr() != net.network() {
            return Err(format!(
                "{part} has bits behind its length: did you mean {}?",
                net.trunc()
            ));
        }
        let again = match net {
            ipnet::IpNet::V4(net) if net.prefix_len() > 30 => {
                return Err(format!("{net} is too small for a pool: /30 is the smallest"));
            }
            ipnet::IpNet::V6(net) if net.prefix_len() > 122 => {
                return Err(format!("{net} is smaller than one block, /122"));
            }
            ipnet::IpNet::V4(net) => ipv4.replace(net).is_some(),
            ipnet::IpNet::V6(net) => ipv6.replace(net).is_some(),
        };
        if again {
            return Err("must be at most one range of each family".into());
        }
    }
    match (ipv4, ipv6) {
        (None, Some(_)) => Err("IPv6 alone is not available: add an IPv4 range".into()),
        ranges => Ok(ranges),
    }
}

fn block_size(text: &str) -> Result<u8, String> {
    let right = "must be a number from 20 to 32";
    text.trim_start_matches('/')
        .parse()
        .ok()
        .filter(|size| (20..=32).contains(size))
        .ok_or_else(|| right.into())
}

fn bgp(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("must be Enabled or Disabled".into()),
    }
}

fn datastore(text: &str) -> Result<(), String> {
    match text {
        "kubernetes" => Ok(()),
        "etcdv3" => Err("is not available yet; must be kubernetes".into()),
        "embedded" => Err("serves one machine by a unix socket; on Kubernetes it must be kubernetes".into()),
        _ => Err("must be kubernetes".into()),
    }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".into())
}

/// 15 bytes of a device's name less the 11 of the hash.
fn interface_prefix(text: &str) -> Result<String, String> {
    match (1..=4).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric()) {
        true => Ok(text.to_owned()),
        false => Err("must be one to four letters or digits: what the other plugin's devices begin with".into()),
    }
}

fn node_selector(text: &str) -> Result<(String, String), String> {
    let part = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && part(key, "-_./") && part(value, "-_.") => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("must be one label of nodes: KEY=VALUE".into()),
    }
}

fn api_group(text: &str) -> Result<CrdGroup, String> {
    match text.to_ascii_lowercase().as_str() {
        V3 => Ok(CrdGroup::V3),
        V1 => Ok(CrdGroup::V1),
        _ => Err(format!("must be {V3} or {V1}")),
    }
}

/// What a reference to an image may consist of; the runtime says the rest.
fn part_of_image(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let plain =
        !text.is_empty() && text.chars().all(fine) && !text.contains("//") && !text.starts_with(['/', ':', '@', '-']);
    match plain {
        true => Ok(text.to_owned()),
        false => Err("must be like registry.example:5000/network".into()),
    }
}

fn image(text: &str) -> Result<String, String> {
    let name = part_of_image(text).map_err(|_| "must be like margay:1.0".to_owned())?;
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') && !last.ends_with(":latest") {
        true => Ok(name),
        false => Err("needs a tag that stays what it is, or a digest: margay:1.0".into()),
    }
}

fn host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label)) {
        true => Ok(text.to_owned()),
        false => Err("must be an address or a host's name, without port and https://".into()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let right = || "must be a port, 1 to 65535".to_owned();
    text.parse().ok().filter(|port| *port > 0).ok_or_else(right)
}

fn controllers(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number <= 9);
    number.ok_or_else(|| "must be a number from 0 to 9".into())
}

fn autodetection(text: &str) -> Result<String, String> {
    const PLAIN: [&str; 2] = ["first-found", "kubernetes-internal-ip"];
    const WITH: [&str; 4] = ["can-reach=", "interface=", "skip-interface=", "cidr="];
    let fine = PLAIN.contains(&text)
        || WITH
            .iter()
            .any(|name| text.strip_prefix(name).is_some_and(|rest| !rest.is_empty()));
    match fine {
        true => Ok(text.to_owned()),
        false => Err(
            "must be first-found, kubernetes-internal-ip, can-reach=HOST, interface=REGEX, skip-interface=REGEX or \
                      cidr=CIDR"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(answers: &[(&str, &str)]) -> Result<Settings, Vec<FieldProblem>> {
        let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Settings::from_answers(answers.iter().map(pair).collect())
    }

    #[test]
    fn what_is_wrong_names_field_value_and_what_would_be_right() {
        let check = |name: &str, value: &str, expected: &str| {
            let problems = settings(&[(name, value)]).expect_err(name);
            let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert!(said.starts_with(&format!("{name}: `{value}` ")), "{said}");
            assert!(said.contains(expected), "{said}");
        };
        check("pod-cidr", "192.168.0.0", "write it like");
        check("pod-cidr", "192.168.7.0/16", "did you mean 192.168.0.0/16?");
        check("pod-cidr", "10.0.0.0/8,10.0.0.0/8", "one range of each family");
        check("pod-cidr", "fd00::/48", "add an IPv4 range");
        check("pod-cidr", "10.0.0.0/31", "too small");
        check("block-size", "19", "20 to 32");
        check("block-size", "x", "20 to 32");
        check("encapsulation", "VXLAN", "no VXLAN tunnels yet");
        check("encapsulation", "GRE", "must be IPIP, IPIPCrossSubnet or None");
        check("bgp", "off", "Enabled or Disabled");
        check("datastore", "etcdv3", "must be kubernetes");
        check("datastore", "embedded", "must be kubernetes");
        check("registry", "https://a.example", "must be like");
        check("image", "margay", "needs a tag");
        check("image", "margay:latest", "needs a tag");
        check("policy-only", "yes", "true or false");
        check("interface-prefix", "eni", "without policy-only");
        check("node-selector", "margay", "KEY=VALUE");
        check("api-group", "v3", "must be projectcalico.org/v3");
        check("crds", "some", "no-rules");
        check("kubernetes-service-host", "https://10.0.0.1:6443", "without port");
        check("kubernetes-service-port", "6443", "needs kubernetes-service-host");
        check("ip-autodetection-method", "interface=", "cidr=CIDR");
        check("controllers", "ten", "0 to 9");
        check("controllers", "10", "0 to 9");
    }

    #[test]
    fn all_problems_are_reported_together() {
        let problems = settings(&[
            ("encapsulation", "VXLAN"),
            ("pod-cidr", "10.0.0.0/24"),
            ("block-size", "20"),
        ]);
        let fields: Vec<String> = problems.unwrap_err().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["encapsulation", "block-size"]);
    }

    #[test]
    fn with_policy_alone_another_plugin_does_the_rest() {
        let given = [("policy-only", "true"), ("interface-prefix", "eni")];
        let plain = settings(&given).unwrap();
        assert_eq!(
            (plain.work, plain.interface_prefix.as_str(), plain.ipv4),
            (Work::PolicyOnly, "eni", None)
        );
        let check = |name: &'static str, value: &'static str| {
            let problems = settings(&[given[0], (name, value)]).expect_err(name);
            let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            assert!(said.starts_with(&format!("{name}: ")), "{said}");
        };
        check("pod-cidr", "10.0.0.0/8");
        check("encapsulation", "IPIP");
        check("bgp", "Disabled");
        check("interface-prefix", "toolong");
        assert_eq!(settings(&[("bgp", "Disabled")]).unwrap().work, Work::WithoutBgp);
    }

    #[test]
    fn defaults_and_what_follows_from_what() {
        let plain = settings(&[]).unwrap();
        let pool = plain.ipv4.unwrap();
        assert_eq!(
            (pool.cidr.to_string().as_str(), pool.block_size),
            ("192.168.0.0/16", 26)
        );
        assert_eq!(plain.image, concat!("localhost/margay:", env!("CARGO_PKG_VERSION")));
        assert_eq!((plain.crds, plain.ipv6, &plain.api_server), (Crds::All, None, &None));
        let other = settings(&[
            ("api-group", "crd.projectcalico.org/v1"),
            ("pod-cidr", "10.0.0.0/8, fd00::/48"),
            ("encapsulation", "IPIPCrossSubnet"),
            ("kubernetes-service-host", "10.0.0.1"),
            ("registry", "r.example:5000/net/"),
        ])
        .unwrap();
        assert_eq!(other.crds, Crds::None);
        assert_eq!(other.ipv6.unwrap().to_string(), "fd00::/48");
        assert_eq!(other.api_server, Some(("10.0.0.1".into(), 6443)));
        assert!(other.image.starts_with("r.example:5000/net/margay:"));
        assert_eq!(settings(&[("pod-cidr", "none")]).unwrap().ipv4, None);
    }
}
