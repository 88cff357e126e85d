//! A file of expectations: who should reach whom, and who should not.
//!
//! ```yaml
//! - name: only the api reaches the database
//!   from: {namespace: shop, labels: {role: web}}
//!   to: shop/db
//!   port: 5432
//!   expect: Deny
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::WorkloadEndpointSpec;
use api::resource::WorkloadEndpoint;
use api::{Action, EndpointPort, Key, Kind, Metadata, Object, ProfileSpec, Protocol, Resource, Rule};
use serde_json::Value;

use super::place::Place;
use super::question::{Question, Traffic};
use super::world::World;
use crate::CtlError;

/// Addresses of pods that are made up: reserved for benchmarks, so that no rule means them by chance.
const MADE_UP_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const MADE_UP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
const FIELDS: [&str; 6] = ["name", "from", "to", "port", "protocol", "expect"];

/// One expectation, with the world's answer still to be found.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// `expectation 3 (only the api …)`.
    pub name: String,
    /// What is asked.
    pub question: Question,
    /// Whether it should be allowed.
    pub allow: bool,
}

/// Reads expectations; pods that are only described are put into `world`. All problems come at once.
pub fn read(source: &str, text: &str, namespace: &str, world: &mut World) -> Result<Vec<Expectation>, CtlError> {
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|error| CtlError::Invalid(vec![format!("{source}: is no YAML: {error}")]))?;
    let Value::Array(items) = value else {
        return Err(CtlError::Invalid(vec![format!(
            "{source}: must be a list of expectations, each with `from`, `to` and `expect`"
        )]));
    };
    let mut reader = Reader {
        world,
        namespace,
        made_up: 0,
        problems: Vec::new(),
        at: String::new(),
    };
    let mut expectations = Vec::new();
    for (position, item) in items.iter().enumerate() {
        let name = match item.get("name").and_then(Value::as_str) {
            Some(name) => format!("expectation {} ({name})", position + 1),
            None => format!("expectation {}", position + 1),
        };
        reader.at = format!("{source}, {name}");
        expectations.extend(reader.expectation(&name, item));
    }
    if items.is_empty() {
        reader.problems.push(format!("{source}: has no expectations"));
    }
    match reader.problems.is_empty() {
        true => Ok(expectations),
        false => Err(CtlError::Invalid(reader.problems)),
    }
}

struct Reader<'a> {
    world: &'a mut World,
    namespace: &'a str,
    made_up: u32,
    problems: Vec<String>,
    at: String,
}

impl Reader<'_> {
    fn problem(&mut self, field: &str, value: &Value, why: &str) {
        let value = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.problems.push(format!("{}: {field}: `{value}` {why}", self.at));
    }

    fn expectation(&mut self, name: &str, item: &Value) -> Vec<Expectation> {
        let before = self.problems.len();
        let Value::Object(fields) = item else {
            self.problems
                .push(format!("{}: must have `from`, `to` and `expect`", self.at));
            return Vec::new();
        };
        for (field, value) in fields.iter().filter(|(field, _)| !FIELDS.contains(&field.as_str())) {
            self.problem(
                field,
                value,
                &format!("is no field here; there are {}", FIELDS.join(", ")),
            );
        }
        let (from, to) = (
            self.place("from", fields.get("from")),
            self.place("to", fields.get("to")),
        );
        let allow = match fields.get("expect") {
            Some(Value::String(word)) if word.eq_ignore_ascii_case("allow") => Some(true),
            Some(Value::String(word)) if word.eq_ignore_ascii_case("deny") => Some(false),
            Some(other) => {
                self.problem("expect", other, "must be Allow or Deny");
                None
            }
            None => {
                self.problems
                    .push(format!("{}: expect is missing: Allow or Deny", self.at));
                None
            }
        };
        let traffic = self.traffic(fields.get("port"), fields.get("protocol"));
        let (Some(from), Some(to), Some(allow)) = (from, to, allow) else {
            return Vec::new();
        };
        let mut expectations = Vec::new();
        for (label, traffic) in traffic {
            let question = Question::new(self.world, from.clone(), to.clone(), &traffic, None, false);
            match question {
                Ok(question) => expectations.push(Expectation {
                    name: format!("{name}{label}"),
                    question,
                    allow,
                }),
                Err(error) => self.problems.push(format!("{}: {error}", self.at)),
            }
        }
        match self.problems.len() == before {
            true => expectations,
            false => Vec::new(),
        }
    }

    /// One port or a list of them; each is an expectation of its own.
    fn traffic(&mut self, ports: Option<&Value>, protocol: Option<&Value>) -> Vec<(String, Traffic)> {
        let protocol = match protocol {
            None => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(other) => {
                self.problem("protocol", other, "must be a name or a number");
                return Vec::new();
            }
        };
        let several = matches!(ports, Some(Value::Array(_)));
        let ports: Vec<Value> = match ports {
            None => vec![Value::Null],
            Some(Value::Array(ports)) => ports.clone(),
            Some(port) => vec![port.clone()],
        };
        let mut traffic = Vec::new();
        for port in ports {
            let port = match &port {
                Value::Null => None,
                Value::String(name) => Some(name.clone()),
                Value::Number(number) => Some(number.to_string()),
                other => {
                    self.problem("port", other, "must be a number or a name, or a list of them");
                    continue;
                }
            };
            let text = match (&port, &protocol) {
                (None, None) => None,
                (Some(port), None) => Some(format!("{port}/TCP")),
                (Some(port), Some(protocol)) => Some(format!("{port}/{protocol}")),
                (None, Some(protocol)) => Some(format!("/{protocol}")),
            };
            match Traffic::read("port", text.as_deref()) {
                Ok(read) => {
                    let label = port
                        .filter(|_| several)
                        .map_or_else(String::new, |port| format!(", port {port}"));
                    traffic.push((label, read));
                }
                Err(error) => self.problems.push(format!("{}: {error}", self.at)),
            }
        }
        traffic
    }

    fn place(&mut self, field: &str, value: Option<&Value>) -> Option<Place> {
        let word = match value {
            None => {
                self.problems
                    .push(format!("{}: {field} is missing: a pod or an address", self.at));
                return None;
            }
            Some(Value::String(word)) => word,
            Some(Value::Object(fields)) => match (fields.get("pod"), fields.get("ip")) {
                (Some(Value::String(word)), None) | (None, Some(Value::String(word))) if fields.len() == 1 => word,
                (None, None) => return self.described(field, fields),
                (Some(_), _) | (_, Some(_)) => {
                    let value = Value::Object(fields.clone());
                    self.problem(field, &value, "must have a pod, or an ip, or a namespace with labels");
                    return None;
                }
            },
            Some(other) => {
                self.problem(field, other, "must be a pod, an address, or a namespace with labels");
                return None;
            }
        };
        match Place::find(self.world, field, word, self.namespace) {
            Ok(place) => Some(place),
            Err(error) => {
                self.problems.push(format!("{}: {error}", self.at));
                None
            }
        }
    }

    /// A pod that need not exist, by its namespace, labels, service account and ports.
    fn described(&mut self, field: &str, fields: &serde_json::Map<String, Value>) -> Option<Place> {
        const KNOWN: [&str; 5] = ["namespace", "labels", "namespaceLabels", "serviceAccount", "ports"];
        let before = self.problems.len();
        for (name, value) in fields.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
            let all = KNOWN.join(", ");
            self.problem(
                &format!("{field}.{name}"),
                value,
                &format!("is no field of a pod; there are pod, ip, {all}"),
            );
        }
        let namespace = match fields.get("namespace") {
            None => self.namespace.to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                self.problem(&format!("{field}.namespace"), other, "must be a name");
                String::new()
            }
        };
        let account = match fields.get("serviceAccount") {
            None => "default".to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                self.problem(&format!("{field}.serviceAccount"), other, "must be a name");
                String::new()
            }
        };
        let labels = self.labels(&format!("{field}.labels"), fields.get("labels"));
        let of_namespace = self.labels(&format!("{field}.namespaceLabels"), fields.get("namespaceLabels"));
        let ports = self.ports(&format!("{field}.ports"), fields.get("ports"));
        if self.problems.len() > before {
            return None;
        }
        Some(self.make_up(&namespace, &account, labels, of_namespace, ports))
    }

    fn labels(&mut self, field: &str, value: Option<&Value>) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        match value {
            None => {}
            Some(Value::Object(fields)) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) => drop(labels.insert(name.clone(), text.clone())),
                        other => self.problem(&format!("{field}.{name}"), other, "must be text; write it in quotes"),
                    }
                }
            }
            Some(other) => self.problem(field, other, "must be labels, as {role: web}"),
        }
        labels
    }

    fn ports(&mut self, field: &str, value: Option<&Value>) -> Vec<EndpointPort> {
        let mut ports = Vec::new();
        match value {
            None => {}
            Some(Value::Object(fields)) => {
                for (name, value) in fields {
                    match value
                        .as_u64()
                        .and_then(|port| u16::try_from(port).ok())
                        .filter(|port| *port > 0)
                    {
                        Some(port) => ports.extend(["TCP", "UDP", "SCTP"].map(|protocol| EndpointPort {
                            name: name.clone(),
                            protocol: Protocol::from_text(protocol),
                            port,
                            host_port: None,
                            host_ip: None,
                        })),
                        None => self.problem(&format!("{field}.{name}"), value, "must be a port from 1 to 65535"),
                    }
                }
            }
            Some(other) => self.problem(field, other, "must be named ports, as {http: 8080}"),
        }
        ports
    }

    /// A pod with addresses that nobody has. Its namespace, if it is not known, is as Kubernetes makes one: open.
    fn make_up(
        &mut self,
        namespace: &str,
        account: &str,
        labels: BTreeMap<String, String>,
        of_namespace: BTreeMap<String, String>,
        ports: Vec<EndpointPort>,
    ) -> Place {
        self.made_up += 1;
        let number = self.made_up;
        let name = format!("expected-{number}");
        let mut profiles = vec![format!("kns.{namespace}"), format!("ksa.{namespace}.{account}")];
        if !of_namespace.is_empty() {
            // In front, so that its labels win.
            let own = format!("expected-namespace-{number}");
            let prefixed = of_namespace
                .into_iter()
                .map(|(name, value)| (format!("pcns.{name}"), value));
            self.profile(&own, Vec::new(), prefixed.collect());
            profiles.insert(0, own);
        }
        if self
            .world
            .get(&Key::cluster(Kind::Profile, &profiles[profiles.len() - 2]))
            .is_none()
        {
            let label = |name: &str| (format!("pcns.{name}"), namespace.to_owned());
            let labels = [label("kubernetes.io/metadata.name"), label("projectcalico.org/name")];
            self.profile(
                &format!("kns.{namespace}"),
                vec![Rule::any(Action::Allow)],
                labels.into(),
            );
        }
        let account_profile = format!("ksa.{namespace}.{account}");
        if self.world.get(&Key::cluster(Kind::Profile, &account_profile)).is_none() {
            let label = ("pcsa.projectcalico.org/name".to_owned(), account.to_owned());
            self.profile(&account_profile, Vec::new(), [label].into());
        }
        let addresses = [
            IpAddr::from(Ipv4Addr::from(u32::from(MADE_UP_V4) + number)),
            IpAddr::from(Ipv6Addr::from(u128::from(MADE_UP_V6) + u128::from(number))),
        ];
        let spec = WorkloadEndpointSpec {
            orchestrator: "k8s".into(),
            // Of its own: it is on the host of nobody else.
            node: String::new(),
            pod: name.clone(),
            service_account_name: account.to_owned(),
            ip_networks: addresses.map(ipnet::IpNet::from).to_vec(),
            profiles,
            ports,
            ..WorkloadEndpointSpec::default()
        };
        let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut metadata = Metadata::namespaced(namespace, &name);
        metadata.labels = labels;
        let endpoint: WorkloadEndpoint = Object {
            metadata,
            spec,
            status: None,
        };
        let key = endpoint.key();
        self.world.put([Resource::from(endpoint)]);
        Place {
            named: true,
            name: match shown.is_empty() {
                true => format!("a pod without labels in {namespace}"),
                false => format!("a pod with {} in {namespace}", shown.join(", ")),
            },
            addresses: addresses.to_vec(),
            whose: super::place::Whose::Pod {
                key,
                node: String::new(),
            },
        }
    }

    fn profile(&mut self, name: &str, rules: Vec<Rule>, labels: BTreeMap<String, String>) {
        let spec = ProfileSpec {
            ingress: rules.clone(),
            egress: rules,
            labels_to_apply: labels,
        };
        self.world.put([Resource::from(Object::new(name, spec))]);
    }
}
