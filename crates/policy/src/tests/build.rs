//! Short ways to resources.

use std::collections::BTreeMap;

use api::resource::*;
use api::*;

pub(crate) fn workload(node: &str, namespace: &str, name: &str) -> WorkloadEndpoint {
    let spec = WorkloadEndpointSpec {
        orchestrator: "k8s".into(),
        node: node.into(),
        ..WorkloadEndpointSpec::default()
    };
    in_namespace(namespace, name, spec)
}

pub(crate) fn host(name: &str, node: &str, interface: &str) -> HostEndpoint {
    let spec = HostEndpointSpec {
        node: node.into(),
        interface_name: interface.into(),
        ..HostEndpointSpec::default()
    };
    Object::new(name, spec)
}

pub(crate) fn network_set(namespace: &str, name: &str) -> NetworkSet {
    in_namespace(namespace, name, NetworkSetSpec::default())
}

pub(crate) fn global_network_set(name: &str) -> GlobalNetworkSet {
    Object::new(name, GlobalNetworkSetSpec::default())
}

pub(crate) fn profile(
    name: &str,
    labels: BTreeMap<String, String>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
) -> resource::Profile {
    let spec = ProfileSpec {
        ingress,
        egress,
        labels_to_apply: labels,
    };
    Object::new(name, spec)
}

pub(crate) fn tier(name: &str, order: Option<i32>, default_action: Option<TierAction>) -> resource::Tier {
    let order = order.map_or(Order::LAST, Order::whole);
    Object::new(name, TierSpec { order, default_action })
}

pub(crate) fn slice(namespace: &str, name: &str, service: &str) -> KubernetesEndpointSlice {
    let spec = KubernetesEndpointSliceSpec {
        service: service.into(),
        ..KubernetesEndpointSliceSpec::default()
    };
    in_namespace(namespace, name, spec)
}

pub(crate) fn port(name: &str, protocol: &str, port: u16) -> EndpointPort {
    EndpointPort {
        name: name.into(),
        protocol: Protocol::from_text(protocol),
        port,
        host_port: None,
        host_ip: None,
    }
}

pub(crate) fn host_port(name: &str, protocol: &str, port: u16) -> HostEndpointPort {
    HostEndpointPort {
        name: name.into(),
        protocol: Protocol::from_text(protocol),
        port,
    }
}

pub(crate) fn slice_port(protocol: &str, port: u16) -> SlicePort {
    SlicePort {
        name: String::new(),
        protocol: Protocol::from_text(protocol),
        port,
    }
}

/// What a policy of any kind may say.
#[derive(Clone, Default)]
pub(crate) struct Parts {
    pub tier: String,
    pub order: Option<i32>,
    pub selector: String,
    pub namespace_selector: String,
    pub account_selector: String,
    pub types: Vec<PolicyType>,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
    pub everywhere: bool,
    pub apply_on_forward: bool,
    pub do_not_track: bool,
    pub pre_dnat: bool,
}

macro_rules! spec {
    ($parts:expr, $spec:ident { $($own:tt)* }) => {{
        let parts = $parts;
        $spec {
            tier: parts.tier,
            order: parts.order.map_or(Order::LAST, Order::whole),
            selector: parts.selector,
            service_account_selector: parts.account_selector,
            types: parts.types,
            ingress: parts.ingress,
            egress: parts.egress,
            performance_hints: match parts.everywhere {
                true => vec![PerformanceHint::AssumeNeededOnEveryNode],
                false => vec![],
            },
            $($own)*
        }
    }};
}

impl Parts {
    pub fn namespaced(self, namespace: &str, name: &str) -> Resource {
        in_namespace(namespace, name, spec!(self, NetworkPolicySpec {})).into()
    }

    pub fn global(self, name: &str) -> Resource {
        let spec = spec!(
            self.clone(),
            GlobalNetworkPolicySpec {
                namespace_selector: self.namespace_selector,
                apply_on_forward: self.apply_on_forward,
                do_not_track: self.do_not_track,
                pre_dnat: self.pre_dnat,
            }
        );
        Object::new(name, spec).into()
    }

    pub fn staged(self, namespace: &str, name: &str, delete: bool) -> Resource {
        let staged_action = delete.then_some(StagedAction::Delete);
        in_namespace(namespace, name, spec!(self, StagedNetworkPolicySpec { staged_action })).into()
    }

    pub fn staged_global(self, name: &str, delete: bool) -> Resource {
        let staged_action = delete.then_some(StagedAction::Delete);
        let spec = spec!(
            self.clone(),
            StagedGlobalNetworkPolicySpec {
                staged_action,
                namespace_selector: self.namespace_selector,
                apply_on_forward: self.apply_on_forward,
                do_not_track: self.do_not_track,
                pre_dnat: self.pre_dnat,
            }
        );
        Object::new(name, spec).into()
    }
}

fn in_namespace<S: Spec>(namespace: &str, name: &str, spec: S) -> Object<S> {
    Object {
        metadata: Metadata::namespaced(namespace, name),
        spec,
        status: None,
    }
}
