//! A client, a router that has the rules, a server; and short ways to say what tests need.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kernel::IpFamily;
use kernel::nft::*;
use linux::nft::LiveNft;

use super::ipip_support::Ns;

pub struct Net {
    pub client: Ns,
    pub router: Ns,
    pub server: Ns,
    pub nft: LiveNft,
}

pub const CLIENT: [&str; 2] = ["10.0.1.2", "2001:db8:1::2"];
pub const ROUTER: [&str; 2] = ["10.0.1.1", "2001:db8:1::1"];
pub const SERVER: [&str; 2] = ["10.0.2.2", "2001:db8:2::2"];
pub const LIMIT: Duration = Duration::from_secs(10);

impl Net {
    /// `None` without root.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for network namespaces");
            return None;
        }
        let (client, router, server) = (Ns::new(), Ns::new(), Ns::new());
        client.wire("eth0", &router, "cali1");
        server.wire("eth0", &router, "cali2");
        for (ns, device, addresses) in [
            (&client, "eth0", CLIENT),
            (&router, "cali1", ROUTER),
            (&router, "cali2", ["10.0.2.1", "2001:db8:2::1"]),
            (&server, "eth0", SERVER),
        ] {
            ns.sh(&format!(
                "ip addr add {}/24 dev {device}; ip -6 addr add {}/64 dev {device} nodad",
                addresses[0], addresses[1]
            ));
        }
        for (ns, via) in [(&client, ROUTER), (&server, ["10.0.2.1", "2001:db8:2::1"])] {
            ns.sh(&format!(
                "ip route add default via {}; ip -6 route add default via {}",
                via[0], via[1]
            ));
        }
        router.sysctl("ipv4/conf/all/forwarding", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        let nft = router.run(LiveNft::open).unwrap();
        Some(Self {
            client,
            router,
            server,
            nft,
        })
    }

    pub fn apply(&self, changes: Vec<Change>) {
        let transaction = Transaction {
            table: table(),
            changes,
        };
        self.nft.apply_now(&transaction).unwrap();
    }

    /// Packets that each rule of a chain has counted.
    pub fn counts(&self, chain: &str) -> Vec<u64> {
        let state = self.nft.read_now(&table()).unwrap().unwrap();
        let rules = &state.chains[&chain.into()].rules;
        rules.iter().map(|rule| rule.count.unwrap().packets).collect()
    }

    /// A socket at an address. A program that another test begins at this moment holds what was open here until it is executed,
    /// so an address that was just closed may be in use for a while.
    pub fn udp(&self, ns: &Ns, address: &str, port: u16) -> UdpSocket {
        let at = SocketAddr::new(address.parse().unwrap(), port);
        let until = Instant::now() + LIMIT;
        let socket = loop {
            match ns.run(|| UdpSocket::bind(at)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::yield_now()
                }
                bound => break bound.unwrap(),
            }
        };
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// A packet of a kind goes from client to server, and has arrived when this returns.
    pub fn send(&self, kind: Kind) {
        match kind {
            Kind::Udp(family) => {
                let at = family as usize;
                let (to, from) = (
                    self.udp(&self.server, SERVER[at], 53),
                    self.udp(&self.client, CLIENT[at], 5000),
                );
                from.send_to(b"x", to.local_addr().unwrap()).unwrap();
                to.recv_from(&mut [0; 8]).unwrap();
            }
            Kind::Tcp => {
                let to = SocketAddr::new(SERVER[0].parse().unwrap(), 81);
                let refused = self.client.run(|| TcpStream::connect_timeout(&to, LIMIT));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
            Kind::Ping(family) => {
                self.client
                    .sh(&format!("ping -n -c 1 -W 10 {}", SERVER[family as usize]));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Udp(IpFamily),
    Tcp,
    Ping(IpFamily),
}

pub const UDP4: Kind = Kind::Udp(IpFamily::V4);
pub const UDP6: Kind = Kind::Udp(IpFamily::V6);
pub const PING4: Kind = Kind::Ping(IpFamily::V4);
pub const PING6: Kind = Kind::Ping(IpFamily::V6);
pub const ALL: [Kind; 5] = [UDP4, UDP6, Kind::Tcp, PING4, PING6];

pub fn table() -> TableName {
    TableName("margay".into())
}

pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: Some(BaseChain {
            kind,
            hook,
            priority,
            drop: false,
        }),
    })
}

pub fn plain(name: &str) -> Change {
    Change::AddChain(Chain {
        name: name.into(),
        base: None,
    })
}

pub fn rule(chain: &str, matches: Vec<Match>, actions: Vec<Statement>, verdict: Option<Verdict>) -> Change {
    Change::AddRule(
        chain.into(),
        Rule {
            matches,
            actions,
            verdict,
            comment: None,
        },
    )
}

pub fn counted(matches: Vec<Match>) -> Change {
    rule("checks", matches, vec![Statement::Counter], None)
}

pub fn from_client() -> Match {
    Match::Interface {
        way: Way::In,
        negate: false,
        name: "cali1".into(),
    }
}

pub fn protocol(number: u8) -> Match {
    Match::Protocol { negate: false, number }
}

pub fn port(end: End, ranges: &[(u16, u16)], negate: bool) -> Match {
    Match::Port {
        end,
        negate,
        ranges: ranges.to_vec(),
    }
}

pub fn net(end: End, net: &str, negate: bool) -> Match {
    Match::Net {
        end,
        negate,
        net: net.parse().unwrap(),
    }
}

pub fn set(name: &str, key: &[KeyType], interval: bool, elements: &[&[Value]]) -> Vec<Change> {
    let elements = elements.iter().map(|key| Element {
        key: key.iter().cloned().collect(),
        verdict: None,
    });
    vec![
        Change::AddSet(SetSpec {
            name: name.into(),
            key: key.to_vec(),
            interval,
            verdicts: false,
        }),
        Change::AddElements(name.into(), elements.collect()),
    ]
}

pub fn address(text: &str) -> Value {
    Value::Address(text.parse().unwrap())
}

pub fn prefix(text: &str) -> Value {
    Value::Net(text.parse().unwrap())
}
