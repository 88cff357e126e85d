//! Who is found where: the chains of the table itself, and the sets and maps that they look into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernel::nft::*;
use kernel::{IfName, IpFamily};
use policy::{Endpoint, EndpointId, Interface};

use super::base::{FROM_ENDPOINT, Frame, HostDispatch, LOCAL_PODS, TO_ENDPOINT, dispatch_map};
use super::early::{SOURCES, SPOOFABLE};
use super::items::Item;
use super::limits;
use super::machine::{Around, Filter};
use super::names::{self, Prefix};
use super::refused::ChainOwner;
use super::rule::of_family;
use super::settle::{HOST, speaks};

/// Items of a device's sources, by family.
type Sources = BTreeSet<(IpFamily, Item)>;

impl Filter {
    pub(super) fn render_frame(&mut self) {
        let (sources, spoofable) = self.sources();
        let spoofable_families: BTreeSet<IpFamily> = spoofable.iter().map(|(family, _)| *family).collect();
        let hosts = self.hosts();
        let is_as_before = self.around.spoofable == spoofable_families && self.around.hosts == hosts;
        if std::mem::take(&mut self.dirty.rules) || !is_as_before {
            self.render_own_rules(spoofable_families, hosts);
        }
        let hosts = self.around.hosts.clone();
        let mut sets = self.frame_sets(&sources, &spoofable, &hosts);
        sets.retain(|spec, _| self.around.used.contains(&spec.0));
        let names: BTreeSet<SetName> = sets.keys().map(|(name, _)| name.clone()).collect();
        for gone in std::mem::replace(&mut self.frame_sets, names.clone()).difference(&names) {
            self.wanted.no_set(gone);
        }
        for ((name, shape), items) in sets {
            let (key, interval, verdicts) = shape.parts();
            self.wanted.set(SetSpec {
                name: name.clone(),
                key,
                interval,
                verdicts,
            });
            self.wanted.items(&name, &items);
        }
    }

    /// The rules that belong to no endpoint, policy or profile.
    fn render_own_rules(&mut self, spoofable: BTreeSet<IpFamily>, hosts: BTreeMap<Prefix, HostDispatch>) {
        let (settings, cluster, nat) = (self.settings.clone(), self.cluster.clone(), self.translations.clone());
        let limits = self.limits.clone();
        let frame = Frame {
            settings: &settings,
            cluster: &cluster,
            nat: &nat,
            limits: &limits,
            spoofable: &spoofable,
            hosts: &hosts,
        };
        let chains = frame.chains();
        let used: BTreeSet<SetName> = chains
            .iter()
            .flat_map(|(_, rules)| rules.iter().flat_map(Rule::sets))
            .cloned()
            .collect();
        self.around = Around { spoofable, hosts, used };
        let names: BTreeSet<ChainName> = chains.iter().map(|(chain, _)| chain.name.clone()).collect();
        for gone in std::mem::replace(&mut self.frame_chains, names.clone()).difference(&names) {
            self.drop_chain(gone);
        }
        for (chain, rules) in chains {
            self.put_chain(ChainOwner::Frame, chain, rules, BTreeMap::new());
        }
    }

    /// Devices of pods that may send from IPv4 prefixes besides their addresses.
    pub fn granted_sources(&self) -> BTreeSet<IfName> {
        let devices = self.devices.iter().filter(|_| self.settings.source_spoofing);
        let granted = devices.filter(|(_, id)| {
            let endpoint = self.endpoints.get(id);
            endpoint.is_some_and(|endpoint| endpoint.spoofable.iter().any(|net| net.addr().is_ipv4()))
        });
        granted.map(|(device, _)| IfName::from(device.as_str())).collect()
    }

    /// What each pod's device may send from, by family: addresses and prefixes.
    fn sources(&self) -> (Sources, Sources) {
        let mut sources = BTreeSet::new();
        let mut spoofable = BTreeSet::new();
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let item = |device: &str, value: Value| Item::key([Value::Interface(device.to_owned()), value]);
        for local in self.locals.values() {
            known.insert(&local.device.0);
            for address in &local.addresses {
                sources.insert((IpFamily::of(address), item(&local.device.0, Value::Address(*address))));
            }
        }
        for (device, id) in &self.devices {
            let Some(endpoint) = self.endpoints.get(id) else {
                continue;
            };
            // The journal rules where it knows the device.
            for address in endpoint.addresses.iter().filter(|_| !known.contains(device.as_str())) {
                sources.insert((IpFamily::of(address), item(device, Value::Address(*address))));
            }
            for family in IpFamily::BOTH.into_iter().filter(|_| self.settings.source_spoofing) {
                for net in of_family(family, &endpoint.spoofable) {
                    spoofable.insert((family, item(device, Value::Net(net))));
                }
            }
        }
        (sources, spoofable)
    }

    /// Which host endpoint a device belongs to, at each stage: one that names it comes before one that has its address.
    fn hosts(&self) -> BTreeMap<Prefix, HostDispatch> {
        let host = |(id, endpoint): (&EndpointId, &Arc<Endpoint>)| match id {
            EndpointId::Host(name) => Some((name.clone(), endpoint.clone())),
            EndpointId::Workload(_) => None,
        };
        let endpoints: Vec<(String, Arc<Endpoint>)> = self.endpoints.iter().filter_map(host).collect();
        let mut devices: BTreeMap<String, usize> = BTreeMap::new();
        for (index, (_, endpoint)) in endpoints.iter().enumerate() {
            if let Interface::Named(device) = &endpoint.interface {
                devices.entry(device.clone()).or_insert(index);
            }
        }
        for (index, (_, endpoint)) in endpoints.iter().enumerate() {
            let Interface::WithAddress(addresses) = &endpoint.interface else {
                continue;
            };
            let has = |there: &BTreeSet<std::net::IpAddr>| addresses.iter().any(|address| there.contains(address));
            for (device, _) in self.links.iter().filter(|(_, there)| has(there)) {
                devices.entry(device.0.clone()).or_insert(index);
            }
        }
        let all = endpoints
            .iter()
            .find(|(_, endpoint)| endpoint.interface == Interface::All);
        let mut hosts = BTreeMap::new();
        for prefix in HOST {
            // Upstream has no untracked policy for all devices at once.
            let is_untracked = matches!(prefix, Prefix::FromHostUntracked | Prefix::ToHostUntracked);
            let speaks_for_all = all.filter(|(_, endpoint)| !is_untracked && speaks(endpoint, prefix));
            let any = speaks_for_all.map(|(name, _)| names::chain(prefix, name));
            let mut dispatch = HostDispatch {
                devices: BTreeMap::new(),
                any,
            };
            for (device, index) in devices
                .iter()
                .filter(|(device, _)| !device.is_empty() && device.len() <= 15)
            {
                let (name, endpoint) = &endpoints[*index];
                if speaks(endpoint, prefix) {
                    let verdict = ElementVerdict::Goto(names::chain(prefix, name));
                    dispatch.devices.insert(device.clone(), verdict);
                } else if dispatch.any.is_some() {
                    dispatch.devices.insert(device.clone(), ElementVerdict::Accept);
                }
            }
            if !dispatch.devices.is_empty() || dispatch.any.is_some() {
                hosts.insert(prefix, dispatch);
            }
        }
        hosts
    }

    fn frame_sets(
        &self,
        sources: &BTreeSet<(IpFamily, Item)>,
        spoofable: &BTreeSet<(IpFamily, Item)>,
        hosts: &BTreeMap<Prefix, HostDispatch>,
    ) -> BTreeMap<(SetName, Shape), BTreeSet<Item>> {
        let mut sets: BTreeMap<(SetName, Shape), BTreeSet<Item>> = BTreeMap::new();
        let only = |items: &BTreeSet<(IpFamily, Item)>, family: IpFamily| -> BTreeSet<Item> {
            items
                .iter()
                .filter(|(of, _)| *of == family)
                .map(|(_, item)| item.clone())
                .collect()
        };
        let cluster = &self.cluster;
        let pools = |nat_only: bool| -> Vec<ipnet::IpNet> {
            let pools = cluster.pools.iter().filter(|pool| pool.nat_outgoing || !nat_only);
            pools.map(|pool| pool.net).collect()
        };
        for family in IpFamily::BOTH {
            let nets = |nets: &[ipnet::IpNet]| of_family(family, nets).into_iter().map(Item::Net).collect();
            let nodes = cluster.nodes.iter().filter(|node| IpFamily::of(node) == family);
            let mut put = |name: &str, shape: Shape, items: BTreeSet<Item>| {
                sets.insert((names::of_family(name, family), shape), items);
            };
            put(SOURCES, Shape::Source(family, false), only(sources, family));
            put(SPOOFABLE, Shape::Source(family, true), only(spoofable, family));
            put(LOCAL_PODS, Shape::Address(family, false), self.local_pods(family));
            put(
                "nodes",
                Shape::Address(family, false),
                nodes.map(|node| Item::Net((*node).into())).collect(),
            );
            put("all-ipam-pools", Shape::Address(family, true), nets(&pools(false)));
            put("masq-ipam-pools", Shape::Address(family, true), nets(&pools(true)));
            put("services", Shape::Address(family, true), nets(&cluster.services));
        }
        for (map, prefix) in [(FROM_ENDPOINT, Prefix::FromWorkload), (TO_ENDPOINT, Prefix::ToWorkload)] {
            let item = |device: &String| Item::device(device, ElementVerdict::Goto(self.entry(prefix, device)));
            sets.insert((map.into(), Shape::Devices), self.devices.keys().map(item).collect());
        }
        for (device, controls) in &self.limits {
            for (map, prefix) in limits::maps(controls) {
                let items = sets.entry((map.into(), Shape::Devices)).or_default();
                items.insert(Item::device(device, ElementVerdict::Goto(names::chain(prefix, device))));
            }
        }
        for (prefix, dispatch) in hosts {
            let items = dispatch
                .devices
                .iter()
                .map(|(device, verdict)| Item::device(device, verdict.clone()));
            sets.insert((dispatch_map(*prefix).into(), Shape::Devices), items.collect());
        }
        sets
    }

    fn local_pods(&self, family: IpFamily) -> BTreeSet<Item> {
        let journal = self.locals.values().flat_map(|local| &local.addresses);
        let endpoints = self.devices.values().filter_map(|id| self.endpoints.get(id));
        let known = endpoints.flat_map(|endpoint| &endpoint.addresses);
        let addresses = journal.chain(known).filter(|address| IpFamily::of(address) == family);
        addresses.map(|address| Item::Net((*address).into())).collect()
    }
}

/// What the elements of one of the frame's sets look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// Addresses, or prefixes.
    Address(IpFamily, bool),
    /// A device with an address, or with a prefix.
    Source(IpFamily, bool),
    /// Verdicts by device.
    Devices,
}

impl Shape {
    pub fn parts(self) -> (Vec<KeyType>, bool, bool) {
        match self {
            Shape::Address(family, interval) => (vec![KeyType::Address(family)], interval, false),
            Shape::Source(family, interval) => (vec![KeyType::Interface, KeyType::Address(family)], interval, false),
            Shape::Devices => (vec![KeyType::Interface], false, true),
        }
    }
}
