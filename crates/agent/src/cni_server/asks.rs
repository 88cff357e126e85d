//! What an attachment is to have: what the pod's annotations ask for, then its namespace's, then the runtime, then the network
//! configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::FieldProblem;
use api::annotations::{self, Attachment};
use cni::protocol::{Request, Role};
use cni::{Code, Error};
use datastore::{StoreError, Workload};

use super::CniServer;
use super::patience::within;

/// What an attachment is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// These addresses; empty: any.
    pub addresses: Vec<IpAddr>,
    /// IPAM is not asked for [`Asks::addresses`].
    pub outside_ipam: bool,
    /// An IPv4 address, if none is named.
    pub ipv4: bool,
    /// An IPv6 address, if none is named.
    pub ipv6: bool,
    /// The only IPv4 pools to use; empty: any that may be used.
    pub ipv4_pools: Vec<String>,
    /// The same for IPv6.
    pub ipv6_pools: Vec<String>,
    /// The pod's MAC address.
    pub mac: Option<[u8; 6]>,
    /// Labels of the pod's namespace, where they are known.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Who asks for these addresses or pools, if not the network configuration: for errors.
    pub said_by: Vec<String>,
}

impl CniServer {
    /// What this request is to have.
    pub(super) async fn asks(&self, request: &Request) -> Result<Asks, Error> {
        let workload = self.workload_of(request).await?;
        decide(request, workload.as_ref()).map_err(|problems| {
            let msg = "the pod cannot be attached as it asks";
            Error::new(Code::InvalidConfig, msg, problems.join("; "))
        })
    }

    /// What is said of the pod, where somebody knows pods. As an IPAM plugin we serve another plugin's configuration alone.
    async fn workload_of(&self, request: &Request) -> Result<Option<Workload>, Error> {
        let (Some((namespace, pod)), Role::Main) = (request.args.pod(), request.role) else {
            return Ok(None);
        };
        let uid = request.args.pod_uid.as_deref();
        let asked = self.shared.parts.store.workload(namespace, pod, uid);
        let error = match within(self.shared.settings.store_wait, asked).await {
            Ok(workload) => return Ok(workload),
            Err(error) => error,
        };
        let code = match error {
            StoreError::Refused(_) => Code::Datastore,
            _ => Code::TryAgain,
        };
        let what = match &error {
            StoreError::NotFound(key) => match &key.namespace {
                Some(namespace) => format!("pod {namespace}/{} does not exist", key.name),
                None => format!("namespace {} does not exist", key.name),
            },
            other => other.to_string(),
        };
        Err(Error::new(code, "the pod's annotations cannot be read", what))
    }
}

/// Puts together what the pod, its namespace, the runtime and the configuration say, or tells all that is wrong.
fn decide(request: &Request, workload: Option<&Workload>) -> Result<Asks, Vec<String>> {
    let config = &request.config;
    let mut asks = Asks {
        ipv4: config.ipam.assign_ipv4,
        ipv6: config.ipam.assign_ipv6,
        ipv4_pools: config.ipam.ipv4_pools.clone(),
        ipv6_pools: config.ipam.ipv6_pools.clone(),
        ..Asks::default()
    };
    let runtime = &config.runtime;
    asks.addresses = match runtime.ips.is_empty() {
        false => runtime.ips.clone(),
        true => request.args.ip.into_iter().collect(),
    };
    let mac = runtime.mac.as_deref().or(request.args.mac.as_deref());
    asks.mac = mac.and_then(annotations::mac);
    let (Some(workload), Some((namespace, pod))) = (workload, request.args.pod()) else {
        return Ok(asks);
    };
    asks.namespace_labels = Some(workload.namespace_labels.clone());
    if workload.annotations.is_empty() && workload.namespace_annotations.is_empty() {
        return Ok(asks);
    }
    let mut problems = Vec::new();
    let (of_pod, of_namespace) = (format!("pod {namespace}/{pod}"), format!("namespace {namespace}"));
    let (by_namespace, wrong) = annotations::attachment(&defaults(workload));
    problems.extend(told(&wrong, &of_namespace));
    asks.follow(by_namespace, &of_namespace);
    let (by_pod, wrong) = annotations::attachment(&workload.annotations);
    problems.extend(told(&wrong, &of_pod));
    let families = by_pod.families;
    asks.follow(by_pod, &of_pod);
    let (running, wrong) = annotations::running(&workload.annotations);
    problems.extend(told(&wrong, &of_pod));

    let mut refuse = |name: &str, message: String| {
        let problem = FieldProblem {
            field: name.into(),
            value: workload.annotations.get(name).cloned(),
            message,
        };
        problems.extend(told(&[problem], &of_pod));
    };
    if asks.outside_ipam && !config.feature_control.ip_addrs_no_ipam {
        let needed = "needs \"feature_control\": {\"ip_addrs_no_ipam\": true} in the network configuration";
        refuse(annotations::IP_ADDRS_NO_IPAM, needed.into());
    }
    if !running.floating.is_empty() && !config.feature_control.floating_ips {
        let needed = "needs \"feature_control\": {\"floating_ips\": true} in the network configuration";
        refuse(annotations::FLOATING_IPS, needed.into());
    }
    if let Some((v4, v6)) = families
        && let Some(other) = asks.addresses.iter().find(|ip| !(if ip.is_ipv4() { v4 } else { v6 }))
    {
        refuse(annotations::IP_FAMILIES, format!("must have the family of {other} too"));
    }
    let (v4, v6) = asks.families();
    if let Some(lost) = running.floating.iter().find(|ip| !(if ip.is_ipv4() { v4 } else { v6 })) {
        let message = format!("must have addresses of the pod's own families only: {lost} leads nowhere");
        refuse(annotations::FLOATING_IPS, message);
    }
    for note in &running.notes {
        tracing::warn!(pod = of_pod, %note, "cni: an annotation");
    }
    if problems.is_empty() { Ok(asks) } else { Err(problems) }
}

/// Only pools and families can be said for a whole namespace.
fn defaults(workload: &Workload) -> BTreeMap<String, String> {
    let names = [
        annotations::IPV4_POOLS,
        annotations::IPV6_POOLS,
        annotations::IP_FAMILIES,
    ];
    let said = |name: &str| Some((name.to_owned(), workload.namespace_annotations.get(name)?.clone()));
    names.into_iter().filter_map(said).collect()
}

fn told<'a>(problems: &'a [FieldProblem], whose: &'a str) -> impl Iterator<Item = String> + 'a {
    let tell = move |problem: &FieldProblem| match &problem.value {
        Some(value) => format!("annotation {} of {whose}: `{value}` {}", problem.field, problem.message),
        None => format!("annotation {} of {whose}: {}", problem.field, problem.message),
    };
    problems.iter().map(tell)
}

impl Asks {
    /// What somebody says takes the place of what was said so far.
    fn follow(&mut self, said: Attachment, by: &str) {
        let mut said_by = |name: &str| self.said_by.push(format!("annotation {name} of {by}"));
        for (name, addresses, outside) in [
            (annotations::IP_ADDRS, said.addresses, false),
            (annotations::IP_ADDRS_NO_IPAM, said.addresses_no_ipam, true),
        ] {
            if !addresses.is_empty() {
                said_by(name);
                (self.addresses, self.outside_ipam) = (addresses, outside);
            }
        }
        for (name, pools, place) in [
            (annotations::IPV4_POOLS, said.ipv4_pools, &mut self.ipv4_pools),
            (annotations::IPV6_POOLS, said.ipv6_pools, &mut self.ipv6_pools),
        ] {
            if let Some(pools) = pools {
                said_by(name);
                *place = pools;
            }
        }
        if let Some(families) = said.families {
            said_by(annotations::IP_FAMILIES);
            (self.ipv4, self.ipv6) = families;
        }
        self.mac = said.mac.or(self.mac);
    }

    /// Of which families there will be addresses: IPv4, IPv6.
    fn families(&self) -> (bool, bool) {
        match self.addresses.is_empty() {
            true => (self.ipv4, self.ipv6),
            false => (
                self.addresses.iter().any(IpAddr::is_ipv4),
                self.addresses.iter().any(IpAddr::is_ipv6),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
