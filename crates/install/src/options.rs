//! What flags and an answers file say, as text: the same names in both; a flag wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::problem::FieldProblem;
use clap::Args;
use serde_json::Value;

/// Command line of `margay install`, and of what takes it back.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Options {
    /// A YAML file with values for these flags, under the flags' names; a flag that is given wins
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Addresses of pods: an IPv4 range, for dual stack an IPv6 range too, after a comma; `none` creates no pool [192.168.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub pod_cidr: Option<String>,
    /// How many addresses a node claims at a time, as the length of a prefix: 20 to 32 [26]
    #[arg(long, value_name = "LENGTH")]
    pub block_size: Option<String>,
    /// How pods' packets cross the network: IPIP, IPIPCrossSubnet or None [IPIP]
    #[arg(long, value_name = "KIND")]
    pub encapsulation: Option<String>,
    /// Routes between nodes by BGP: Enabled, or Disabled: agents write them from the datastore [Enabled]
    #[arg(long, value_name = "STATE")]
    pub bgp: Option<String>,
    /// Where resources are kept: kubernetes [kubernetes]
    #[arg(long, value_name = "KIND")]
    pub datastore: Option<String>,
    /// Where nodes get the image from [localhost]
    #[arg(long, value_name = "HOST[/PATH]")]
    pub registry: Option<String>,
    /// Name and tag of the image [margay:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    pub image: Option<String>,
    /// Enforce policy for pods that another network plugin attaches: true or false [false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub policy_only: Option<String>,
    /// The API group: projectcalico.org/v3, or crd.projectcalico.org/v1 as existing Calico clusters have it [projectcalico.org/v3]
    #[arg(long, value_name = "GROUP")]
    pub api_group: Option<String>,
    /// Definitions of resources: all, no-rules (API servers before Kubernetes 1.25), none (they are there) [all; none in v1]
    #[arg(long, value_name = "WHICH")]
    pub crds: Option<String>,
    /// The API server as nodes reach it without kube-proxy: an address or a name [the Service's address]
    #[arg(long, value_name = "HOST")]
    pub kubernetes_service_host: Option<String>,
    /// Its port [443; with --kubernetes-service-host 6443]
    #[arg(long, value_name = "PORT")]
    pub kubernetes_service_port: Option<String>,
    /// How a node finds its own address: see docs/agent.md [first-found]
    #[arg(long, value_name = "METHOD")]
    pub ip_autodetection_method: Option<String>,
    /// What the devices of pods begin with that another plugin attaches, with --policy-only [cali]
    #[arg(long, value_name = "PREFIX")]
    pub interface_prefix: Option<String>,
    /// Only nodes with this label get an agent: to move a cluster node by node [all Linux nodes]
    #[arg(long, value_name = "KEY=VALUE")]
    pub node_selector: Option<String>,
    /// What pods may ask for by annotations besides, with commas between: ip_addrs_no_ipam, floating_ips; see docs/cni.md [nothing]
    #[arg(long, value_name = "NAMES")]
    pub cni_features: Option<String>,
    /// How many processes of the controllers there are, of which one works: 0 to 9 [1]
    #[arg(long, value_name = "NUMBER")]
    pub controllers: Option<String>,
}

/// Why the answers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnswersError {
    /// The file.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Values, all that are wrong.
    #[error("nothing was printed: {}", lines(.0))]
    Values(Vec<FieldProblem>),
}

fn lines(problems: &[FieldProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => one.clone(),
        many => format!("\n  {}", many.join("\n  ")),
    }
}

/// Values by name, as text.
pub(crate) type Answers = BTreeMap<String, String>;

impl Options {
    /// Names and values of all flags.
    fn flags(&self) -> [(&'static str, &Option<String>); 17] {
        [
            ("pod-cidr", &self.pod_cidr),
            ("block-size", &self.block_size),
            ("encapsulation", &self.encapsulation),
            ("bgp", &self.bgp),
            ("datastore", &self.datastore),
            ("registry", &self.registry),
            ("image", &self.image),
            ("policy-only", &self.policy_only),
            ("api-group", &self.api_group),
            ("crds", &self.crds),
            ("kubernetes-service-host", &self.kubernetes_service_host),
            ("kubernetes-service-port", &self.kubernetes_service_port),
            ("ip-autodetection-method", &self.ip_autodetection_method),
            ("interface-prefix", &self.interface_prefix),
            ("node-selector", &self.node_selector),
            ("cni-features", &self.cni_features),
            ("controllers", &self.controllers),
        ]
    }

    /// The answers file with the flags over it. Reads the file.
    ///
    /// # Errors
    /// [`AnswersError::File`], and [`AnswersError::Values`] for names and shapes of values that are not known.
    pub(crate) fn answers(&self) -> Result<Answers, AnswersError> {
        let mut answers = match &self.answers {
            Some(path) => self.read_file(path)?,
            None => Answers::new(),
        };
        for (name, value) in self.flags() {
            if let Some(value) = value {
                answers.insert(name.to_owned(), value.clone());
            }
        }
        Ok(answers)
    }

    fn read_file(&self, path: &Path) -> Result<Answers, AnswersError> {
        let broken = |reason: String| AnswersError::File {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
        self.read_text(&text).map_err(|error| match error {
            Unreadable::Text(reason) => broken(reason),
            Unreadable::Values(problems) => AnswersError::Values(problems),
        })
    }

    fn read_text(&self, text: &str) -> Result<Answers, Unreadable> {
        let document: Option<BTreeMap<String, Value>> =
            serde_saphyr::from_str(text).map_err(|error| Unreadable::Text(error.to_string()))?;
        let known = self.flags().map(|(name, _)| name);
        let mut answers = Answers::new();
        let mut problems = Vec::new();
        for (name, value) in document.unwrap_or_default() {
            let text = match &value {
                _ if !known.contains(&name.as_str()) => Err(format!("is not known; known are {}", known.join(", "))),
                Value::Null => continue,
                Value::Array(items) => {
                    let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                    texts
                        .map(|texts| texts.join(","))
                        .ok_or("must be a list of texts".into())
                }
                Value::Object(_) => Err("must be one value".into()),
                Value::String(text) => Ok(text.clone()),
                scalar => Ok(scalar.to_string()),
            };
            match text {
                Ok(text) => drop(answers.insert(name, text)),
                Err(message) => problems.push(FieldProblem {
                    field: name,
                    value: Some(value.to_string()),
                    message,
                }),
            }
        }
        match problems.is_empty() {
            true => Ok(answers),
            false => Err(Unreadable::Values(problems)),
        }
    }
}

enum Unreadable {
    Text(String),
    Values(Vec<FieldProblem>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_file_has_the_flags_names() {
        let check = |text: &str, expected: &str| {
            let said = match Options::default().read_text(text) {
                Ok(answers) => format!("{answers:?}"),
                Err(Unreadable::Text(reason)) => format!("text: {reason}"),
                Err(Unreadable::Values(problems)) => lines(&problems),
            };
            assert!(said.contains(expected), "{text}: {said}");
        };
        check("", "{}");
        check(
            "pod-cidr: 10.0.0.0/8\nblock-size: 24",
            r#"{"block-size": "24", "pod-cidr": "10.0.0.0/8"}"#,
        );
        check(
            "pod-cidr: [10.0.0.0/8, 'fd00::/48']\npolicy-only: false",
            "10.0.0.0/8,fd00::/48",
        );
        check(
            "podCidr: 10.0.0.0/8",
            "podCidr: `\"10.0.0.0/8\"` is not known; known are pod-cidr, block-size",
        );
        check("block-size: {a: 1}", "block-size: `{\"a\":1}` must be one value");
        check("block-size: 24\nblock-size: 25", "text: ");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "block-size: 24\nregistry: a.example").unwrap();
        let options = Options {
            answers: Some(file.path().to_owned()),
            block_size: Some("28".into()),
            ..Options::default()
        };
        let answers = options.answers().unwrap();
        assert_eq!(
            (answers["block-size"].as_str(), answers["registry"].as_str()),
            ("28", "a.example")
        );
    }
}
