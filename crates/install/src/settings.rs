//! What is to be installed, checked: past this nobody validates again.

use api::crd::CrdGroup;
use api::problem::FieldProblem;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::options::{Answers, AnswersError, Options};
use parse::{
    api_group, autodetection, bgp, block_size, cni_features, controllers, datastore, host, image, interface_prefix,
    node_selector, part_of_image, port, ranges, truth,
};

mod parse;

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
    /// What pods may ask for by annotations besides: names in the `feature_control` of the plugin's configuration.
    pub cni_features: Vec<&'static str>,
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
            for name in ["pod-cidr", "block-size", "encapsulation", "bgp", "cni-features"] {
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
            cni_features: answers.optional("cni-features", cni_features).unwrap_or_default(),
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

#[cfg(test)]
mod tests;
