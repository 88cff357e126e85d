//! What pods ask for besides policy: limits and marks; and what of their wishes this node does not grant.

use api::resource::WorkloadEndpoint;
use dataplane::filter::Limits;

use super::PacketFilter;

/// Wishes that FelixConfiguration switches off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Off {
    /// Floating addresses.
    pub floating: bool,
    /// Sources besides a pod's own addresses.
    pub sources: bool,
}

impl PacketFilter {
    /// Limits and marks of the pods that are here.
    pub(super) fn limits(&self) -> Limits {
        let limited = self.locals.values().filter_map(|(key, local)| {
            let controls = self.graph.pod(key)?.spec.qos_controls.clone()?;
            Some((local.device.0.clone(), controls))
        });
        limited.collect()
    }

    /// Wishes that are not granted, for people.
    pub(super) fn switched_off(&self) -> impl Iterator<Item = String> + '_ {
        let pods = self.locals.values().filter_map(|(key, _)| self.graph.pod(key));
        pods.flat_map(|pod| self.off.of(pod))
    }
}

impl Off {
    fn of(self, pod: &WorkloadEndpoint) -> Vec<String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let whose = format!("pod {namespace}/{}", pod.spec.pod);
        let mut told = Vec::new();
        if self.floating && !pod.spec.ip_nats.is_empty() {
            told.push(format!(
                "floating addresses of {whose} lead nowhere: floatingIPs of FelixConfiguration is not Enabled"
            ));
        }
        if self.sources && !pod.spec.allow_spoofed_source_prefixes.is_empty() {
            told.push(format!(
                "{whose} has its own addresses only as sources: workloadSourceSpoofing of FelixConfiguration is not Any"
            ));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use api::{IpNat, Metadata, WorkloadEndpointSpec};

    use super::*;

    #[test]
    fn wishes_that_are_switched_off_are_told() {
        let address = "10.0.0.1".parse().expect("an address");
        let pod = |floating: bool, sources: bool| WorkloadEndpoint {
            metadata: Metadata::namespaced("shop", "n1-k8s-web-eth0"),
            spec: WorkloadEndpointSpec {
                pod: "web".into(),
                ip_nats: floating
                    .then_some(IpNat {
                        internal_ip: address,
                        external_ip: address,
                    })
                    .into_iter()
                    .collect(),
                allow_spoofed_source_prefixes: sources.then(|| "10.9.0.0/16".to_owned()).into_iter().collect(),
                ..WorkloadEndpointSpec::default()
            },
            status: None,
        };
        let check = |off: [bool; 2], asks: [bool; 2], expected: &[&str]| {
            let [floating, sources] = off;
            let told = Off { floating, sources }.of(&pod(asks[0], asks[1]));
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, part) in told.iter().zip(expected) {
                assert!(told.contains(part) && told.contains("pod shop/web"), "{told}");
            }
        };
        check([true; 2], [true; 2], &["floatingIPs", "workloadSourceSpoofing"]);
        check([true; 2], [false; 2], &[]);
        check([false; 2], [true; 2], &[]);
        check([false, true], [true; 2], &["workloadSourceSpoofing"]);
    }
}
