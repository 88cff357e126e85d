//! Where resources lie in etcd (upstream `lib/backend/model`), and which resource lies at a path.
//!
//! Most kinds are `/calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>`; IPAM's have older places.

use ipnet::IpNet;

use crate::names::parse_block_name;
use crate::{Key, Kind, Resource};

const RESOURCES: &str = "/calico/resources/v3/projectcalico.org";
const IPAM: &str = "/calico/ipam/v2";

/// The path of a resource.
pub fn of_resource(resource: &Resource) -> String {
    match resource {
        Resource::IPAMBlock(block) => block_path(block.spec.cidr),
        Resource::BlockAffinity(affinity) => {
            let kind = affinity.spec.affinity_type.as_deref().filter(|kind| !kind.is_empty());
            affinity_path(kind.unwrap_or("host"), &affinity.spec.node, affinity.spec.cidr)
        }
        Resource::IPAMHandle(handle) => format!("{IPAM}/handle/{}", handle.spec.handle_id),
        other => plain_path(&other.key()),
    }
}

/// The path of the resource with this key, if the key alone says it.
///
/// A block affinity's does only if its name can be split into host and block in one way; a handle's only if the handle
/// has no capitals, because keys have none.
pub fn of_key(key: &Key) -> Option<String> {
    match key.kind {
        Kind::IPAMBlock => parse_block_name(&key.name).map(block_path),
        Kind::BlockAffinity => match affinities_called(&key.name).as_slice() {
            [(host, cidr)] => Some(affinity_path("host", host, *cidr)),
            _ => None,
        },
        Kind::IPAMHandle => Some(format!("{IPAM}/handle/{}", key.name)),
        _ => Some(plain_path(key)),
    }
}

/// What the paths of all resources of a kind (in a namespace) start with.
pub fn of_kind(kind: Kind, namespace: Option<&str>) -> Vec<String> {
    match (kind, namespace) {
        (Kind::IPAMBlock, _) => vec![format!("{IPAM}/assignment/")],
        (Kind::BlockAffinity, _) => vec![format!("{IPAM}/host/"), format!("{IPAM}/virtual/")],
        (Kind::IPAMHandle, _) => vec![format!("{IPAM}/handle/")],
        (Kind::IPAMConfiguration, _) => vec![format!("{IPAM}/config")],
        (kind, Some(namespace)) if kind.is_namespaced() => vec![format!("{RESOURCES}/{}/{namespace}/", kind.plural())],
        (kind, _) => vec![format!("{RESOURCES}/{}/", kind.plural())],
    }
}

/// The key of the resource at a path, if it is a resource's path.
pub fn parse(path: &str) -> Option<Key> {
    if path == format!("{IPAM}/config") {
        return Some(Key::cluster(Kind::IPAMConfiguration, "default"));
    }
    if let Some(rest) = path.strip_prefix(IPAM) {
        return match *rest.strip_prefix('/')?.split('/').collect::<Vec<_>>() {
            ["assignment", family, "block", cidr] => Some(Key::block(parse_cidr(family, cidr)?)),
            ["host" | "virtual", host, family, "block", cidr] if !host.is_empty() => {
                Some(Key::affinity(host, parse_cidr(family, cidr)?))
            }
            ["handle", id] if !id.is_empty() => Some(Key::handle(id)),
            _ => None,
        };
    }
    let rest = path.strip_prefix(RESOURCES)?.strip_prefix('/')?;
    let (plural, rest) = rest.split_once('/')?;
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.plural() == plural && is_plain(*kind))?;
    match (kind.is_namespaced(), rest.split_once('/')) {
        (true, Some((namespace, name))) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Some(Key::namespaced(kind, namespace, name))
        }
        (false, None) if !rest.is_empty() => Some(Key::cluster(kind, rest)),
        _ => None,
    }
}

fn is_plain(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::IPAMBlock | Kind::BlockAffinity | Kind::IPAMHandle | Kind::IPAMConfiguration
    )
}

fn plain_path(key: &Key) -> String {
    let plural = key.kind.plural();
    match &key.namespace {
        _ if key.kind == Kind::IPAMConfiguration => format!("{IPAM}/config"),
        Some(namespace) => format!("{RESOURCES}/{plural}/{namespace}/{}", key.name),
        None => format!("{RESOURCES}/{plural}/{}", key.name),
    }
}

fn block_path(cidr: IpNet) -> String {
    format!("{IPAM}/assignment/{}/block/{}", family(cidr), cidr_part(cidr))
}

fn affinity_path(kind: &str, host: &str, cidr: IpNet) -> String {
    format!("{IPAM}/{kind}/{host}/{}/block/{}", family(cidr), cidr_part(cidr))
}

fn family(cidr: IpNet) -> &'static str {
    match cidr {
        IpNet::V4(_) => "ipv4",
        IpNet::V6(_) => "ipv6",
    }
}

fn cidr_part(cidr: IpNet) -> String {
    cidr.to_string().replace('/', "-")
}

fn parse_cidr(in_family: &str, part: &str) -> Option<IpNet> {
    let cidr: IpNet = part.replacen('-', "/", 1).parse().ok()?;
    (family(cidr) == in_family && cidr.trunc() == cidr).then_some(cidr)
}

/// Every host and block whose affinity may have this name.
fn affinities_called(name: &str) -> Vec<(&str, IpNet)> {
    name.match_indices('-')
        .filter_map(|(dash, _)| {
            let (host, block) = (&name[..dash], parse_block_name(&name[dash + 1..])?);
            (crate::names::is_subdomain(host) && is_block_size(block)).then_some((host, block))
        })
        .collect()
}

fn is_block_size(cidr: IpNet) -> bool {
    match cidr {
        IpNet::V4(cidr) => cidr.prefix_len() >= 20,
        IpNet::V6(cidr) => cidr.prefix_len() >= 116,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockAffinitySpec, IpamHandleSpec, Object};

    #[test]
    fn keys_have_paths_and_paths_have_keys() {
        let check = |key: Key, path: &str| {
            assert_eq!(of_key(&key).as_deref(), Some(path));
            assert_eq!(parse(path).as_ref(), Some(&key));
            assert!(
                of_kind(key.kind, key.namespace.as_deref())
                    .iter()
                    .any(|prefix| path.starts_with(prefix)),
                "{path}"
            );
        };
        let v4: IpNet = "10.0.0.64/26".parse().unwrap();
        let v6: IpNet = "fd00::40/122".parse().unwrap();
        check(
            Key::cluster(Kind::IPPool, "a"),
            "/calico/resources/v3/projectcalico.org/ippools/a",
        );
        check(
            Key::cluster(Kind::Node, "n.x"),
            "/calico/resources/v3/projectcalico.org/nodes/n.x",
        );
        check(
            Key::namespaced(Kind::WorkloadEndpoint, "default", "n-k8s-p-eth0"),
            "/calico/resources/v3/projectcalico.org/workloadendpoints/default/n-k8s-p-eth0",
        );
        for (kind, plural) in [
            (Kind::NetworkPolicy, "networkpolicies"),
            (Kind::StagedNetworkPolicy, "stagednetworkpolicies"),
            (Kind::StagedKubernetesNetworkPolicy, "stagedkubernetesnetworkpolicies"),
            (Kind::NetworkSet, "networksets"),
            (Kind::KubernetesEndpointSlice, "kubernetesendpointslices"),
        ] {
            check(
                Key::namespaced(kind, "ns", "default.a"),
                &format!("/calico/resources/v3/projectcalico.org/{plural}/ns/default.a"),
            );
        }
        for (kind, plural) in [
            (Kind::GlobalNetworkPolicy, "globalnetworkpolicies"),
            (Kind::StagedGlobalNetworkPolicy, "stagedglobalnetworkpolicies"),
            (Kind::Tier, "tiers"),
            (Kind::GlobalNetworkSet, "globalnetworksets"),
            (Kind::HostEndpoint, "hostendpoints"),
        ] {
            check(
                Key::cluster(kind, "a"),
                &format!("/calico/resources/v3/projectcalico.org/{plural}/a"),
            );
        }
        check(Key::block(v4), "/calico/ipam/v2/assignment/ipv4/block/10.0.0.64-26");
        check(Key::block(v6), "/calico/ipam/v2/assignment/ipv6/block/fd00::40-122");
        check(
            Key::affinity("node-1", v4),
            "/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.64-26",
        );
        check(
            Key::affinity("node1", v6),
            "/calico/ipam/v2/host/node1/ipv6/block/fd00::40-122",
        );
        check(
            Key::handle("k8s-pod-network.abc"),
            "/calico/ipam/v2/handle/k8s-pod-network.abc",
        );
        check(
            Key::cluster(Kind::IPAMConfiguration, "default"),
            "/calico/ipam/v2/config",
        );
    }

    #[test]
    fn other_paths_are_no_resources() {
        for path in [
            "",
            "/calico/v1/Ready",
            "/calico/resources/v3/projectcalico.org/ippools",
            "/calico/resources/v3/projectcalico.org/ippools/",
            "/calico/resources/v3/projectcalico.org/ippools/a/b",
            "/calico/resources/v3/projectcalico.org/tiers/a/b",
            "/calico/resources/v3/projectcalico.org/pods/a",
            "/calico/resources/v3/projectcalico.org/workloadendpoints/default",
            "/calico/resources/v3/projectcalico.org/ipamblocks/10-0-0-0-26",
            "/calico/ipam/v2/assignment/ipv6/block/10.0.0.0-26",
            "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26",
            "/calico/ipam/v2/host/n",
            "/calico/ipam/v2/handle/",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn the_resource_says_what_its_key_does_not() {
        let cidr: IpNet = "fd00::40/122".parse().unwrap();
        // Host `node-1` and fd00::40, or host `node` and 1:fd00::40?
        assert_eq!(of_key(&Key::affinity("node-1", cidr)), None);
        let spec = BlockAffinitySpec {
            state: crate::AffinityState::Confirmed,
            node: "node-1".to_owned(),
            affinity_type: Some("virtual".to_owned()),
            cidr,
            deleted: false,
        };
        let affinity = Object::new(Key::affinity("node-1", cidr).name, spec);
        assert_eq!(
            of_resource(&affinity.into()),
            "/calico/ipam/v2/virtual/node-1/ipv6/block/fd00::40-122"
        );
        let spec = IpamHandleSpec {
            handle_id: "k8s.ABC".to_owned(),
            ..IpamHandleSpec::default()
        };
        assert_eq!(
            of_resource(&Object::new("k8s.abc", spec).into()),
            "/calico/ipam/v2/handle/k8s.ABC"
        );
    }
}
