//! Resources of a file as a cluster's plan: what the lab can make of them, and what it cannot, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{FieldProblem, IpPool, Key, Node, Problem, Resource};
use ipnet::IpNet;
use kernel::IpFamily;

use crate::LabError;
use crate::record::{FABRIC_NAME, POD_PREFIX};
use crate::spec::{fabric, family_of, given, whose};

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// What problems call the file.
    source: String,
    /// Each resource with the number of its document, from 1.
    resources: Vec<(usize, Resource)>,
}

impl Topology {
    /// Reads a file's text; `source` is what problems call the file. All problems come at once.
    pub fn read(source: &str, text: &str) -> Result<Self, LabError> {
        let shown = |found: Vec<Problem>| LabError::Resources(found.iter().map(ToString::to_string).collect());
        let resources = api::document::read_numbered(source, text).map_err(shown)?;
        let source = source.to_string();
        Ok(Self { source, resources })
    }

    /// All resources, in the file's order.
    pub fn resources(&self) -> Vec<Resource> {
        self.resources.iter().map(|(_, resource)| resource.clone()).collect()
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.resources
            .iter()
            .filter_map(|(_, resource)| resource.try_into().ok())
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes().find(|node| node.metadata.name == name)
    }

    /// The pools of a family.
    pub fn pools(&self, family: IpFamily) -> impl Iterator<Item = &IpPool> {
        let pools = self
            .resources
            .iter()
            .filter_map(|(_, resource)| <&IpPool>::try_from(resource).ok());
        pools.filter(move |pool| family_of(&pool.spec.cidr) == family)
    }

    /// Whether a node or a pool has an IPv6 address.
    pub fn mentions_ipv6(&self) -> bool {
        let v6 = |net: &IpNet| family_of(net) == IpFamily::V6;
        self.pools(IpFamily::V6).next().is_some() || self.nodes().any(|node| given(node).iter().any(v6))
    }

    /// What the lab cannot make, all of it. `overlapping` finds what a pool would be in the way of.
    pub fn problems(&self, families: &[IpFamily], overlapping: impl Fn(IpNet) -> Option<IpNet>) -> Vec<String> {
        let mut found = Vec::new();
        let mut keys = BTreeMap::<Key, usize>::new();
        let mut addresses = BTreeMap::<IpAddr, String>::new();
        for (document, resource) in &self.resources {
            let mut report = |field: &str, value: Option<String>, message: String| {
                found.push(self.problem(*document, resource, field, value, message));
            };
            if let Some(first) = keys.insert(resource.key(), *document) {
                let name = resource.metadata().name.clone();
                report("metadata.name", Some(name), format!("stands in document {first} too"));
                continue;
            }
            if let Ok(node) = <&Node>::try_from(resource) {
                let name = &node.metadata.name;
                if name == FABRIC_NAME || name.starts_with(POD_PREFIX) {
                    let message = "is how the lab calls a network namespace of its own; choose another";
                    report("metadata.name", Some(name.clone()), message.into());
                }
                for net in given(node) {
                    let family = family_of(&net);
                    let field = match family {
                        IpFamily::V4 => "spec.bgp.ipv4Address",
                        IpFamily::V6 => "spec.bgp.ipv6Address",
                    };
                    if let Some(problem) = address_problem(&net, families, &addresses) {
                        report(field, Some(net.to_string()), problem);
                    }
                    addresses.insert(net.addr(), name.clone());
                }
            }
            if let Ok(pool) = <&IpPool>::try_from(resource)
                && let Some(route) = overlapping(pool.spec.cidr)
            {
                let message = format!("overlaps {}; choose another range", whose(route));
                report("spec.cidr", Some(pool.spec.cidr.to_string()), message);
            }
        }
        found
    }

    fn problem(
        &self,
        document: usize,
        resource: &Resource,
        field: &str,
        value: Option<String>,
        message: String,
    ) -> String {
        let problem = Problem {
            source: self.source.clone(),
            document: Some(document),
            subject: Some(format!("{} {}", resource.kind(), resource.metadata().name)),
            problem: FieldProblem {
                field: field.to_string(),
                value,
                message,
            },
        };
        problem.to_string()
    }
}

fn address_problem(net: &IpNet, families: &[IpFamily], taken: &BTreeMap<IpAddr, String>) -> Option<String> {
    let family = family_of(net);
    let range = fabric(family);
    if !families.contains(&family) {
        return Some("is of a family that --ipv6=only leaves out".into());
    }
    if !range.contains(&net.addr()) {
        return Some(format!(
            "is outside the lab's fabric {range}; leave it out or choose one inside"
        ));
    }
    let reserved: BTreeSet<IpAddr> = [
        range.network(),
        range.broadcast(),
        crate::spec::fabric_address(family, 1).addr(),
    ]
    .into();
    if reserved.contains(&net.addr()) {
        return Some("is the fabric's own address; choose another".into());
    }
    let other = taken.get(&net.addr())?;
    Some(format!("is Node {other}'s already"))
}
