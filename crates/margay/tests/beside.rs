//! Beside others: rule sets of kube-proxy, Docker and firewalld on a node, loaded before and after the agent's table.
//!
//! Pods reach what policy allows and nothing else, over both families, through services too. What others drop stays dropped: what
//! our table accepts they still see. Nobody touches anybody's tables.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::Lab;
use common::net::{self, L4, Probe};
use common::talk::{apply, connect, connect_within, echo, forbid};

const NODE: &str = "k8s-125-master";
const FAR_NODE: &str = "k8s-125-node1";
const PORT: u16 = 5432;

/// Two nodes; on each somebody who may talk to servers and somebody who may not; on the first one others' rules.
struct World {
    lab: Lab,
    /// A server of the first node, and one of the second: IPv4 and IPv6.
    near: [String; 2],
    far: [String; 2],
    /// Who reaches whom, if others let it pass.
    pairs: Vec<(Probe, bool)>,
}

const CLIENT: &str = "pod-0-1";
const STRANGER: &str = "pod-0-2";
/// Servers, and who comes from another node: over IPv4 by the tunnel, over IPv6 without.
const NEAR: &str = "pod-0-3";
const FAR: &str = "pod-1-1";
const FAR_CLIENT: &str = "pod-1-2";
const FAR_STRANGER: &str = "pod-1-3";

impl World {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "3", "--ipv6"])?;
        for server in [NEAR, FAR] {
            echo(&lab, server, PORT);
        }
        let mut rules = Vec::new();
        let mut pairs = Vec::new();
        for ipv6 in [false, true] {
            let address = |pod: &str| lab.first_address(pod, "eth0", ipv6);
            let net = |pod: &str| format!("\"{}/{}\"", address(pod), if ipv6 { 128 } else { 32 });
            rules.push(format!(
                r#"{{"action":"Deny","source":{{"nets":[{},{}]}},"destination":{{"nets":[{},{}]}}}}"#,
                net(STRANGER),
                net(FAR_STRANGER),
                net(NEAR),
                net(FAR)
            ));
            for (from, to, reached) in [
                (CLIENT, NEAR, true),
                (CLIENT, FAR, true),
                (FAR_CLIENT, NEAR, true),
                (STRANGER, NEAR, false),
                (STRANGER, FAR, false),
                (FAR_STRANGER, NEAR, false),
            ] {
                let from = format!("{}.pod-{from}", lab.name);
                let (to, l4) = ((address(to), PORT).into(), L4::Tcp);
                pairs.push((Probe { from, to, l4 }, reached));
            }
        }
        let spec = format!(
            r#"{{"selector":"all()","order":10,"types":["Ingress"],"ingress":[{},{{"action":"Allow"}}]}}"#,
            rules.join(",")
        );
        apply(&lab, "GlobalNetworkPolicy", "guard", &spec);
        let both = |pod: &str| [false, true].map(|ipv6| lab.first_address(pod, "eth0", ipv6).to_string());
        let (near, far) = (both(NEAR), both(FAR));
        let world = Self { lab, near, far, pairs };
        world
            .lab
            .eventually("policy is enforced", || world.reached() == world.by_policy());
        Some(world)
    }

    fn reaches(&self, pod: &str, address: &str) -> bool {
        connect(&self.lab, pod, address, PORT).is_ok()
    }

    fn by_policy(&self) -> Vec<bool> {
        self.pairs.iter().map(|(_, reached)| *reached).collect()
    }

    /// Who reaches whom.
    fn reached(&self) -> Vec<bool> {
        let probes: Vec<Probe> = self.pairs.iter().map(|(probe, _)| probe.clone()).collect();
        net::probe_all(&probes, &self.by_policy())
    }

    /// Nobody reaches anybody whose packets this node forwards.
    fn is_closed(&self, when: &str) {
        let probes: Vec<Probe> = self.pairs.iter().map(|(probe, _)| probe.clone()).collect();
        let reached = net::probe_all(&probes, &vec![false; probes.len()]);
        let through: Vec<&Probe> = probes
            .iter()
            .zip(reached)
            .filter(|(_, it)| *it)
            .map(|(it, _)| it)
            .collect();
        assert!(through.is_empty(), "{when}: {through:?}");
    }

    /// Runs a program on the node with a text of rules as its file.
    fn load(&self, program: &[&str], text: &str) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let path = file.path().to_string_lossy().into_owned();
        let mut command = program.to_vec();
        command.push(&path);
        self.lab.exec(NODE, &command);
    }

    /// Rules about services, for the pods of this world. What kube-proxy writes for IPv6 is the same with other words.
    fn services(&self, text: &str, ipv6: bool) -> String {
        let at = usize::from(ipv6);
        // 192.168.7.9 is of 192.168.0.0/16.
        let first: Vec<&str> = self.near[0].split('.').take(2).collect();
        let cluster = if ipv6 {
            "fd00::/8".into()
        } else {
            format!("{}.0.0/16", first.join("."))
        };
        let mut text = text.to_owned();
        if ipv6 {
            for (v4, v6) in [
                ("@NEAR@:5432", "[@NEAR@]:5432"),
                ("@FAR@:5432", "[@FAR@]:5432"),
                ("10.96.0.", "fd96::"),
                ("127.0.0.0/8", "::1/128"),
                ("/32", "/128"),
                ("icmp-port", "icmp6-port"),
                ("table ip ", "table ip6 "),
                ("ipv4_addr", "ipv6_addr"),
                ("ip daddr", "ip6 daddr"),
                ("ip saddr", "ip6 saddr"),
            ] {
                text = text.replace(v4, v6);
            }
        }
        text.replace("@CLUSTER@", &cluster)
            .replace("@NEAR@", &self.near[at])
            .replace("@FAR@", &self.far[at])
    }

    /// Rules as iptables knows them, and as ip6tables does.
    fn iptables(&self, v4: &str, v6: &str) {
        for (program, text) in [("iptables-nft-restore", v4), ("ip6tables-nft-restore", v6)] {
            self.load(&[program, "--noflush"], text);
        }
    }

    fn nft(&self, text: &str) {
        self.load(&["nft", "-f"], text);
    }

    /// Every table of the node as text, without counters.
    fn tables(&self) -> BTreeMap<String, String> {
        let names = self.lab.exec(NODE, &["nft", "list", "tables"]);
        let table = |line: &str| {
            let name = line.strip_prefix("table ")?.to_owned();
            let mut command = vec!["nft", "-s", "list", "table"];
            command.extend(name.split(' '));
            let text = self.lab.exec(NODE, &command);
            Some((name, text))
        };
        names.lines().filter_map(table).collect()
    }

    fn others(&self) -> BTreeMap<String, String> {
        let mut tables = self.tables();
        tables.remove(OURS).expect("our table is there");
        tables
    }

    /// Our table; the order of a set's elements means nothing.
    fn ours(&self) -> Vec<String> {
        let tables = self.tables();
        let text = tables.get(OURS).expect("our table is there");
        let words = text.split_whitespace().map(|word| word.trim_matches(','));
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.sort();
        words
    }

    /// Our table is made anew, after everybody else's, and policy changes meanwhile.
    fn table_anew(&self) {
        self.lab.lab(&["agent", "kill", NODE]);
        self.lab.exec(NODE, &["nft", "delete", "table", "inet", "calico"]);
        self.lab.lab(&["agent", "start", NODE]);
        self.lab
            .eventually("the table is there again", || self.tables().contains_key(OURS));
        forbid(&self.lab, "more", "192.0.2.1", &["192.0.2.2"]);
        self.lab.eventually("policy is enforced", || {
            let text = self.tables().get(OURS).cloned().unwrap_or_default();
            text.contains("gnp/more") && !self.reaches(STRANGER, &self.near[0])
        });
    }

    /// A node's own address in a range.
    fn address_in(&self, node: &str, family: &str, range: &str) -> String {
        let shown = self.lab.exec(
            node,
            &["ip", family, "-o", "address", "show", "to", range, "scope", "global"],
        );
        let address = shown.split_whitespace().nth(3).and_then(|net| net.split('/').next());
        address
            .unwrap_or_else(|| panic!("{node} has no address in {range}: {shown}"))
            .to_owned()
    }

    /// Policy holds, over both families, here and to and from the other node.
    fn policy_holds(&self, when: &str) {
        let wrong: Vec<(Probe, bool)> = self
            .pairs
            .iter()
            .zip(self.reached())
            .filter(|((_, expected), reached)| expected != reached)
            .map(|(pair, _)| pair.clone())
            .collect();
        assert!(wrong.is_empty(), "{when}: not as expected: {wrong:?}");
    }

    /// Services lead to their pods, for those whom policy lets through.
    fn services_work(&self, when: &str) {
        for (family, net, node_net) in [("-4", "10.96.0.", "10.211.55.0/24"), ("-6", "fd96::", "fd00::/8")] {
            for (pod, service, reached) in [
                (CLIENT, "10", true),
                (CLIENT, "12", true),
                (STRANGER, "10", false),
                (STRANGER, "12", false),
            ] {
                let service = format!("{net}{service}");
                assert_eq!(self.reaches(pod, &service), reached, "{when}: {pod} to {service}");
            }
            // kube-proxy refuses what has no endpoint; our table would let it go. (Over IPv6 Linux believes the second refusal.)
            let none = format!("{net}11");
            let refused = connect_within(&self.lab, CLIENT, &none, PORT, LONG).expect_err("it has no endpoint");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{when}: {net}11");
            // A port of the node, from another node.
            let node = self.address_in(NODE, family, node_net);
            let knock = format!("echo | timeout 2 bash -c 'exec 3<>/dev/tcp/{node}/30080'");
            self.lab.exec(FAR_NODE, &["sh", "-c", &knock]);
        }
    }
}

/// For a refusal of the second packet, which comes after a second.
const LONG: Duration = Duration::from_secs(10);
const OURS: &str = "inet calico";

#[test]
fn beside_kube_proxy_in_iptables_mode() {
    let Some(world) = World::up("t-kpi") else { return };
    let rules = include_str!("beside/kube-proxy.iptables");
    let ours = world.ours();
    world.iptables(&world.services(rules, false), &world.services(rules, true));
    assert_eq!(world.ours(), ours, "iptables-restore leaves our table alone");
    let theirs = world.others();
    world.policy_holds("theirs last");
    world.services_work("theirs last");
    world.table_anew();
    world.policy_holds("ours last");
    world.services_work("ours last");
    assert_eq!(world.others(), theirs);
}

#[test]
fn beside_kube_proxy_in_nftables_mode() {
    let Some(world) = World::up("t-kpn") else { return };
    let rules = include_str!("beside/kube-proxy.nft");
    let ours = world.ours();
    for (family, ipv6) in [("ip", false), ("ip6", true)] {
        let rules = world.services(rules, ipv6);
        world.nft(&rules);
        // As it writes all of it again.
        let table = format!("{family} kube-proxy");
        world.nft(&format!("table {table}\ndelete table {table}\n{rules}"));
    }
    assert_eq!(world.ours(), ours, "nft -f leaves our table alone");
    let theirs = world.others();
    world.policy_holds("theirs last");
    world.services_work("theirs last");
    world.table_anew();
    world.policy_holds("ours last");
    world.services_work("ours last");
    assert_eq!(world.others(), theirs);
}

#[test]
fn beside_docker_which_forwards_what_it_is_told() {
    let Some(world) = World::up("t-docker") else { return };
    let ours = world.ours();
    world.iptables(
        include_str!("beside/docker.iptables"),
        include_str!("beside/docker.ip6tables"),
    );
    assert_eq!(world.ours(), ours, "iptables-restore leaves our table alone");
    world.is_closed("Docker drops what it does not know; that our table accepts it does not matter");
    let theirs = world.others();
    world.table_anew();
    world.is_closed("nor does it when our table comes later");
    assert_eq!(world.others(), theirs);

    let user = include_str!("beside/docker-user.iptables");
    world.iptables(user, user);
    let theirs = world.others();
    world.policy_holds("pods in DOCKER-USER");
    world.table_anew();
    world.policy_holds("pods in DOCKER-USER, ours last");
    assert_eq!(world.others(), theirs);
}

#[test]
fn beside_firewalld_which_forwards_what_it_trusts() {
    let Some(world) = World::up("t-fwd") else { return };
    let ours = world.ours();
    world.nft(include_str!("beside/firewalld.nft"));
    assert_eq!(world.ours(), ours, "nft -f leaves our table alone");
    world.is_closed("firewalld refuses what is in no zone that forwards");
    let theirs = world.others();
    world.table_anew();
    world.is_closed("also when our table comes later");
    assert_eq!(world.others(), theirs);

    world.nft(include_str!("beside/firewalld-trusted.nft"));
    let far_client = format!("{}.pod-{FAR_CLIENT}", world.lab.name);
    let comes_bare = |(probe, _): &&(Probe, bool)| probe.from == far_client && probe.to.is_ipv6();
    let (probe, _) = world.pairs.iter().find(comes_bare).expect("there is one");
    let bare = net::probe_all(std::slice::from_ref(probe), &[false]);
    assert_eq!(
        bare,
        [false],
        "what comes through no tunnel is in no zone that forwards"
    );
    world.nft(include_str!("beside/firewalld-ranges.nft"));
    let theirs = world.others();
    world.policy_holds("pods and nodes in zone trusted");
    world.table_anew();
    world.policy_holds("pods and nodes in zone trusted, ours last");
    assert_eq!(world.others(), theirs);
}
