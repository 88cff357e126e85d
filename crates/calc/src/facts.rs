//! What we keep of the resources: only what the output depends on, so that a change of anything else is no change.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use api::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, FelixConfigurationSpec, FieldProblem,
    IpPoolSpec, Key, Kind, Metadata, NodeSpec, Object, Resource, Spec, Wrong,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;

use crate::problem::Problem;

/// The resources that matter, by object name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub nodes: BTreeMap<String, NodeFacts>,
    pub pools: BTreeMap<String, Aged<IpPoolSpec>>,
    /// By affinity: confirmed ones of this node.
    pub affinities: BTreeMap<String, IpNet>,
    pub bgp: BTreeMap<String, BgpConfigurationSpec>,
    pub peers: BTreeMap<String, BgpPeerSpec>,
    pub filters: BTreeMap<String, BgpFilterSpec>,
    pub felix: BTreeMap<String, Aged<FelixConfigurationSpec>>,
    /// What is there but cannot be read as a whole.
    wrong: BTreeMap<Key, Doubt>,
}

/// A resource that cannot be read as a whole.
#[derive(Clone, Debug, PartialEq)]
struct Doubt {
    problems: Vec<FieldProblem>,
    /// What counts meanwhile.
    counts: Counts,
}

/// What counts of a resource that cannot be read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// The last version that could.
    LastGood,
    /// What can be read: there was no such version.
    Readable,
    /// Nothing: there was no such version, and too little can be read.
    Nothing,
}

/// What matters of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeFacts {
    pub age: Age,
    pub labels: BTreeMap<String, String>,
    /// It has a BGP section: its agent has been there.
    pub registered: bool,
    pub ipv4: Option<Ipv4Net>,
    pub ipv6: Option<Ipv6Net>,
    pub ipip_tunnel: Option<Ipv4Addr>,
    pub asn: Option<u32>,
    pub cluster_id: Option<Ipv4Addr>,
}

/// A spec and when its object was created.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Aged<S> {
    pub age: Age,
    pub spec: S,
}

/// Sorts the older first, those of unknown age last. Of two objects that contradict each other the older one stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age(bool, Option<Timestamp>);

/// Which facts changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Nothing,
    Nodes,
    Pools,
    Affinities,
    Bgp,
    Felix,
}

impl Facts {
    /// Records what a resource is now (`None`: gone) for `this` node, and tells what that changes.
    ///
    /// Of one that cannot be read as a whole the last good version stays: a slip of the pen must not take routes, sessions or
    /// address translation from what runs. This is the one place where the past counts.
    pub fn set(&mut self, this: &str, key: Key, value: Option<Resource>) -> Changed {
        let value = match value {
            Some(Resource::Wrong(wrong)) => {
                let before = self.wrong.get(&key).map(|doubt| doubt.counts);
                let has_good = match before {
                    None => self.has(&key),
                    Some(counts) => counts == Counts::LastGood,
                };
                let readable = wrong.readable().filter(|_| is_enough(key.kind, &wrong)).cloned();
                let counts = match (has_good, &readable) {
                    (true, _) => Counts::LastGood,
                    (false, Some(_)) => Counts::Readable,
                    (false, None) => Counts::Nothing,
                };
                let problems = wrong.problems().to_vec();
                self.wrong.insert(key.clone(), Doubt { problems, counts });
                if has_good {
                    return Changed::Nothing;
                }
                readable
            }
            value => {
                self.wrong.remove(&key);
                value
            }
        };
        let name = key.name;
        match key.kind {
            Kind::Node => when(
                put(&mut self.nodes, name, object(value).map(NodeFacts::from)),
                Changed::Nodes,
            ),
            Kind::IPPool => when(
                put(&mut self.pools, name, object(value).map(Aged::from)),
                Changed::Pools,
            ),
            Kind::BlockAffinity => {
                let spec = object(value)
                    .map(|affinity| affinity.spec)
                    .filter(|affinity| is_ours(affinity, this));
                when(
                    put(&mut self.affinities, name, spec.map(|spec| spec.cidr)),
                    Changed::Affinities,
                )
            }
            Kind::BGPConfiguration => when(put(&mut self.bgp, name, spec(value)), Changed::Bgp),
            Kind::BGPPeer => when(put(&mut self.peers, name, spec(value)), Changed::Bgp),
            Kind::BGPFilter => when(put(&mut self.filters, name, spec(value)), Changed::Bgp),
            Kind::FelixConfiguration => when(
                put(&mut self.felix, name, object(value).map(Aged::from)),
                Changed::Felix,
            ),
            _ => Changed::Nothing,
        }
    }
}

impl Facts {
    /// What cannot be read as a whole, and what counts meanwhile.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let of = |(key, doubt): (&Key, &Doubt)| {
            let follows = match doubt.counts {
                Counts::LastGood => "the last good version stays in force",
                Counts::Readable => "only the rest applies",
                Counts::Nothing => "it counts as absent",
            };
            let problems = doubt.problems.iter().map(move |problem| {
                let value = problem
                    .value
                    .as_ref()
                    .map(|value| format!("`{value}` "))
                    .unwrap_or_default();
                Problem::new(
                    key.clone(),
                    &problem.field,
                    format!("{value}{}: {follows}", problem.message),
                )
            });
            problems.collect::<Vec<_>>()
        };
        self.wrong.iter().filter(|(key, _)| is_followed(key.kind)).flat_map(of)
    }

    /// Whether there is a version of this.
    fn has(&self, key: &Key) -> bool {
        let name = &key.name;
        match key.kind {
            Kind::Node => self.nodes.contains_key(name),
            Kind::IPPool => self.pools.contains_key(name),
            Kind::BlockAffinity => self.affinities.contains_key(name),
            Kind::BGPConfiguration => self.bgp.contains_key(name),
            Kind::BGPPeer => self.peers.contains_key(name),
            Kind::BGPFilter => self.filters.contains_key(name),
            Kind::FelixConfiguration => self.felix.contains_key(name),
            _ => false,
        }
    }
}

fn is_followed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Node
            | Kind::IPPool
            | Kind::BlockAffinity
            | Kind::BGPConfiguration
            | Kind::BGPPeer
            | Kind::BGPFilter
            | Kind::FelixConfiguration
    )
}

/// Whether what can be read may count by itself. Half a session could leak what the other half keeps; a claim that may be another
/// node's is not ours.
fn is_enough(kind: Kind, wrong: &Wrong) -> bool {
    let needed: &[&str] = match kind {
        Kind::IPPool => &["spec.cidr"],
        Kind::BlockAffinity => &["spec.node", "spec.cidr", "spec.state", "spec.type", "spec.deleted"],
        Kind::BGPPeer | Kind::BGPFilter => &["spec"],
        Kind::Node => &["spec.bgp"],
        _ => &[],
    };
    !needed.iter().any(|field| wrong.is_in_doubt(field))
}

/// The object; a value of another kind than its key says counts as gone.
fn object<S: Spec>(value: Option<Resource>) -> Option<Object<S>>
where
    Object<S>: TryFrom<Resource>,
{
    Object::try_from(value?).ok()
}

fn spec<S: Spec>(value: Option<Resource>) -> Option<S>
where
    Object<S>: TryFrom<Resource>,
{
    object(value).map(|object| object.spec)
}

/// Whether a claim is a confirmed one of this host: only those are routed.
fn is_ours(spec: &BlockAffinitySpec, this: &str) -> bool {
    let of_a_host = spec
        .affinity_type
        .as_deref()
        .is_none_or(|kind| kind.is_empty() || kind == "host");
    of_a_host && spec.node == this && spec.state.is_confirmed() && !spec.deleted
}

/// Makes `name` hold `value`; answers whether that is news.
fn put<V: PartialEq>(map: &mut BTreeMap<String, V>, name: String, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&name) == Some(&value) => false,
        Some(value) => {
            map.insert(name, value);
            true
        }
        None => map.remove(&name).is_some(),
    }
}

fn when(news: bool, changed: Changed) -> Changed {
    if news { changed } else { Changed::Nothing }
}

impl Age {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.creation_timestamp.is_none(), metadata.creation_timestamp)
    }
}

impl<S: Spec> From<Object<S>> for Aged<S> {
    fn from(object: Object<S>) -> Self {
        Self {
            age: Age::of(&object.metadata),
            spec: object.spec,
        }
    }
}

impl From<Object<NodeSpec>> for NodeFacts {
    fn from(node: Object<NodeSpec>) -> Self {
        let age = Age::of(&node.metadata);
        let registered = node.spec.bgp.is_some();
        let bgp = node.spec.bgp.unwrap_or_default();
        Self {
            age,
            labels: node.metadata.labels,
            registered,
            ipv4: bgp.ipv4_address,
            ipv6: bgp.ipv6_address,
            ipip_tunnel: bgp.ipv4_ipip_tunnel_addr,
            asn: bgp.as_number.map(|asn| asn.0),
            cluster_id: bgp.route_reflector_cluster_id,
        }
    }
}
