//! A pod's wiring in real namespaces, checked with iproute2 and ping.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kernel::{IfName, Mac, Op, PROTOCOL_OURS, Route, RouteKey, RouteTarget, TABLE_MAIN};
use linux::capture::{Capture, Selection};
use linux::netns::Netns;
use linux::pod::{self, PodError, PodInterface};
use linux::{LiveKernel, link, request::Socket};
use testkit::netns::{in_netns, tool, try_tool};

#[test]
fn two_pods_reach_each_other_through_the_host_in_both_families() {
    in_netns(|| async {
        forwarding();
        let pods = [Pod::new(1), Pod::new(2)];
        for pod in &pods {
            let (attached, _) = pod::attach(&pod.interface).expect("attaches");
            assert_eq!(pod::check(&pod.interface), Ok(()));
            let shown = tool("ip -j -d link show").replace(' ', "");
            assert!(
                shown.contains(&format!("\"ifname\":\"{}\"", pod.interface.host_device)),
                "{shown}"
            );
            assert!(tool(&format!("ip link show {}", pod.interface.host_device)).contains("ee:ee:ee:ee:ee:ee"));
            let inside = pod.tool("ip link show eth0");
            assert!(inside.contains(&attached.pod_mac.to_string()), "{inside}");
            assert!(inside.contains("mtu 1440"), "{inside}");
            assert_eq!(
                pod.tool("ip -4 route").split_whitespace().collect::<Vec<_>>().join(" "),
                "default via 169.254.1.1 dev eth0 169.254.1.1 dev eth0 scope link"
            );
            assert!(
                pod.tool("ip -6 route show default")
                    .contains("via fe80::ecee:eeff:feee:eeee dev eth0")
            );
            assert!(
                pod.tool("ip neigh")
                    .contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT")
            );
            pod.route_from_host();
        }
        for address in &pods[1].interface.addresses {
            pods[0].tool(&format!("ping -c 1 -W 2 {address}"));
        }
    });
}

/// What a pod says by ARP (1: a question, 2: an answer) as the holder of an address.
fn arp(operation: u16, sender: Mac, claimed: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4];
    message.extend(operation.to_be_bytes());
    message.extend(sender.0);
    message.extend(claimed.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    message
}

#[test]
fn a_pod_that_lies_by_arp_gets_nobodys_packets_and_fills_no_table() {
    const ARP: u16 = 0x0806;
    const LIAR: Mac = Mac([2, 0, 0, 0, 0, 0x66]);
    in_netns(|| async {
        forwarding();
        for line in [
            "ip link add eth0 type veth peer name wire",
            "ip addr add 10.9.0.1/24 dev eth0",
            "ip link set eth0 up",
            "ip link set wire up",
            "ip route add default via 10.9.0.254",
        ] {
            tool(line);
        }
        let pods = [Pod::new(1), Pod::new(2), Pod::new(3)];
        let attach = |pod: &Pod| {
            pod::attach(&pod.interface).expect("attaches");
            pod.route_from_host();
        };
        pods.iter().for_each(attach);
        let (liar, victim, other) = (&pods[0], &pods[1], &pods[2]);
        // The victim, the pods' gateway, the node, and the node's gateway.
        let claims = ["10.65.0.2", "169.254.1.1", "10.9.0.1", "10.9.0.254"];
        let addresses = claims.map(|claim| claim.parse::<Ipv4Addr>().expect("an address"));
        let lie = |senders: &[Ipv4Addr]| {
            let say = || -> std::io::Result<()> {
                let device = IfName::from("eth0");
                let wire = Capture::open(Some(&device), Selection::ArpAndIpv4)?;
                let node: Ipv4Addr = [10, 9, 0, 1].into();
                for claimed in senders {
                    let gateway = Ipv4Addr::new(169, 254, 1, 1);
                    for (operation, target) in [(1, gateway), (1, node), (1, *claimed), (2, *claimed), (2, gateway)] {
                        for to in [Mac([0xff; 6]), Mac([0xee; 6])] {
                            wire.send(&device, to, ARP, &arp(operation, LIAR, *claimed, target))?;
                        }
                    }
                }
                Ok(())
            };
            liar.netns.run(say).expect("enters").expect("sends");
            // What was sent before has arrived when this is answered.
            liar.tool("ping -c 1 -W 2 10.9.0.1");
        };
        let neighbours = |pod: &Pod| tool(&format!("ip -4 neigh show dev {}", pod.interface.host_device));
        let believed = |pod: &Pod| neighbours(pod).contains(&LIAR.to_string());
        let reached = |when: &str| {
            assert!(!believed(victim), "{when}: {}", neighbours(victim));
            other.tool("ping -c 1 -W 2 10.65.0.2");
            tool("ping -c 1 -W 2 10.65.0.2");
        };
        let flood: Vec<Ipv4Addr> = (0..200).map(|host| Ipv4Addr::new(10, 66, 0, host)).collect();
        reached("before");
        for all in ["0", "1", "2"] {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", all).expect("its own");
            lie(&addresses);
            lie(&flood);
            assert!(!believed(liar), "all/rp_filter {all}: {}", neighbours(liar));
            reached(all);
        }
        // Somebody has switched it off: the node believes it, for packets that no route sends there.
        for device in ["all", &liar.interface.host_device.0] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").expect("its own");
        }
        lie(&addresses);
        assert!(believed(liar), "{}", neighbours(liar));
        reached("without rp_filter");
    });
}

#[test]
fn attaching_and_detaching_twice_is_fine() {
    in_netns(|| async {
        let pod = Pod::new(1);
        let (first, _) = pod::attach(&pod.interface).expect("attaches");
        let (second, _) = pod::attach(&pod.interface).expect("attaches again");
        assert_eq!(second, first, "the same devices, not new ones");
        for _ in 0..2 {
            assert_eq!(pod.detach(), Ok(()));
            assert!(!pod.host_device_exists());
        }
        assert!(!try_tool_in(&pod, "ip link show eth0"));
        // The pod itself may be gone already.
        let nowhere = PathBuf::from("/proc/1/ns/nope");
        let device = &pod.interface.host_device;
        assert_eq!(
            pod::detach(Some(&nowhere), "eth0", device, &pod.interface.alias),
            Ok(())
        );
        let gone = PodInterface {
            netns: nowhere,
            ..pod.interface.clone()
        };
        assert!(matches!(pod::attach(&gone), Err(PodError::NoNamespace { .. })));
    });
}

#[test]
fn a_pod_that_was_wired_without_addresses_is_complete_when_it_gets_them() {
    in_netns(|| async {
        let pod = Pod::new(1);
        let mut whole = pod.interface.clone();
        whole.addresses.retain(IpAddr::is_ipv4);
        let bare = PodInterface {
            addresses: vec![],
            ..whole.clone()
        };
        let (_, mut inside) = pod::attach(&bare).expect("attaches");
        assert_eq!(pod::check(&bare), Ok(()));
        assert!(pod::check(&whole).is_err());
        for _ in 0..2 {
            inside.assign(&whole).expect("gets its address");
            assert_eq!(pod::check(&whole), Ok(()));
        }
    });
}

#[test]
fn an_interrupted_attach_is_finished() {
    in_netns(|| async {
        let pod = Pod::new(1);
        pod::attach(&pod.interface).expect("attaches");
        pod.tool("ip addr flush dev eth0");
        pod.tool("ip link set eth0 down");
        tool(&format!("ip link set {} down", pod.interface.host_device));
        let differences = pod::check(&pod.interface).expect_err("much is missing");
        for text in [
            "eth0 is down",
            "caliabc1 is down",
            "eth0 has no address 10.65.0.1/32",
            "no route to 0.0.0.0/0",
        ] {
            assert!(
                differences.iter().any(|difference| difference.contains(text)),
                "{text} in {differences:#?}"
            );
        }
        pod::attach(&pod.interface).expect("finishes");
        assert_eq!(pod::check(&pod.interface), Ok(()));
        // Stopped before the mark was set: replaced.
        tool(&format!("ip link set {} down", pod.interface.host_device));
        tool(&format!("ip link set {} alias x", pod.interface.host_device));
        assert!(matches!(pod::attach(&pod.interface), Err(PodError::NameTaken { .. })));
        pod.tool("ip link del eth0");
        let (host, peer) = (&pod.interface.host_device, "halfmade");
        tool(&format!(
            "ip link add {host} address ee:ee:ee:ee:ee:ee type veth peer name {peer}"
        ));
        pod::attach(&pod.interface).expect("replaces");
        assert_eq!(pod::check(&pod.interface), Ok(()));
    });
}

#[test]
fn a_successor_takes_the_name_and_the_predecessors_delete_leaves_it_alone() {
    in_netns(|| async {
        let (old, mut new) = (Pod::new(1), Pod::new(2));
        pod::attach(&old.interface).expect("attaches");
        new.interface.host_device = old.interface.host_device.clone();
        pod::attach(&new.interface).expect("replaces the stale one");
        assert_eq!(old.detach(), Ok(()));
        assert_eq!(pod::check(&new.interface), Ok(()));
    });
}

#[test]
fn what_is_not_ours_is_named_and_stays() {
    in_netns(|| async {
        let pod = Pod::new(1);
        let host = pod.interface.host_device.clone();
        tool(&format!("ip link add {host} type veth peer name other"));
        tool(&format!("ip link set {host} alias somebody"));
        let error = pod::attach(&pod.interface).expect_err("taken").to_string();
        assert_eq!(
            error,
            "device caliabc1 exists and is not ours: a veth with alias \"somebody\""
        );
        assert_eq!(pod.detach(), Ok(()));
        assert!(pod.host_device_exists());
        tool(&format!("ip link del {host}"));
        pod.tool("ip link add eth0 type veth peer name eth9");
        let error = pod::attach(&pod.interface).expect_err("exists").to_string();
        assert_eq!(error, "the pod already has an interface eth0");
        assert!(!pod.host_device_exists(), "nothing half-made stays");
    });
}

#[test]
fn a_failure_on_the_way_leaves_nothing() {
    in_netns(|| async {
        let mut pod = Pod::new(1);
        pod.interface.mtu = 7;
        assert!(matches!(pod::attach(&pod.interface), Err(PodError::Kernel(_))));
        assert!(!pod.host_device_exists());
        pod.interface.mtu = 1440;
        // Refused when the pair is made already.
        pod.interface.addresses = vec!["ff02::5".parse().expect("an address")];
        assert!(matches!(pod::attach(&pod.interface), Err(PodError::Kernel(_))));
        assert!(!pod.host_device_exists());
    });
}

/// Prints the figures; the limit only catches what would be felt.
#[test]
fn wiring_takes_about_a_millisecond_and_unwiring_does_not_wait_for_the_kernel() {
    in_netns(|| async {
        let timed = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            start.elapsed()
        };
        // All namespaces live to the end: their own teardown would be measured too.
        let pods: Vec<Pod> = (1..=20).map(Pod::new).collect();
        let attach = |pod: &Pod| {
            timed(&mut || {
                pod::attach(&pod.interface).expect("attaches");
            })
        };
        let mut adds: Vec<Duration> = pods.iter().map(attach).collect();
        let mut deletes: Vec<Duration> = pods
            .iter()
            .map(|pod| timed(&mut || pod.detach().expect("detaches")))
            .collect();
        adds.extend(pods.iter().map(attach));
        let mut socket = Socket::open().expect("opens");
        let mut delete = |pod: &Pod| {
            timed(&mut || {
                link::delete(&mut socket, &pod.interface.host_device).expect("deletes");
            })
        };
        let mut plain: Vec<Duration> = pods.iter().map(&mut delete).collect();
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        let (add, delete, plain) = (median(&mut adds), median(&mut deletes), median(&mut plain));
        println!("attach {add:?}, detach {delete:?}, plain RTM_DELLINK {plain:?} (medians of 20)");
        assert!(add < Duration::from_millis(50) && delete < Duration::from_millis(200));
    });
}

struct Pod {
    netns: Netns,
    interface: PodInterface,
}

impl Pod {
    /// A namespace that ends with the value.
    fn new(number: u8) -> Self {
        let netns = Netns::unnamed().expect("root may make a namespace");
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&netns))
        );
        let addresses: Vec<IpAddr> = vec![
            format!("10.65.0.{number}").parse().expect("an address"),
            format!("2001:db8:65::{number}").parse().expect("an address"),
        ];
        let interface = PodInterface {
            netns: PathBuf::from(path),
            name: "eth0".into(),
            host_device: IfName(format!("caliabc{number}")),
            addresses,
            mtu: 1440,
            mac: number.is_multiple_of(2).then_some(Mac([2, 0, 0, 0, 0, number])),
            alias: format!("margay:container{number}/eth0"),
            default_routes: vec![
                "0.0.0.0/0".parse().expect("a prefix"),
                "::/0".parse().expect("a prefix"),
            ],
            ip_forward: false,
        };
        Self { netns, interface }
    }

    fn tool(&self, line: &str) -> String {
        self.netns.run(|| tool(line)).expect("enters")
    }

    fn detach(&self) -> Result<(), PodError> {
        let pod = &self.interface;
        pod::detach(Some(&pod.netns), &pod.name, &pod.host_device, &pod.alias)
    }

    fn host_device_exists(&self) -> bool {
        let mut socket = Socket::open().expect("opens");
        link::find(&mut socket, &self.interface.host_device)
            .expect("asks")
            .is_some()
    }

    /// What the agent adds: a route to each address of the pod.
    fn route_from_host(&self) {
        let ops: Vec<Op> = self
            .interface
            .addresses
            .iter()
            .map(|address| {
                let metric = if address.is_ipv6() { 1024 } else { 0 };
                let key = RouteKey {
                    table: TABLE_MAIN,
                    destination: (*address).into(),
                    metric,
                };
                let target = RouteTarget::Link {
                    device: self.interface.host_device.clone(),
                };
                Op::PutRoute(Route {
                    key,
                    target,
                    protocol: PROTOCOL_OURS,
                    source: None,
                })
            })
            .collect();
        let results = LiveKernel::open().expect("opens").apply_now(&ops);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}

fn try_tool_in(pod: &Pod, line: &str) -> bool {
    pod.netns.run(|| try_tool(line).0).expect("enters")
}

fn forwarding() {
    tool("ip link set lo up");
    for path in [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        std::fs::write(path, "1").expect("a namespace has its own forwarding switch");
    }
}
