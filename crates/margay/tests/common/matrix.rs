//! Who reaches whom: every pair of pods, two ports, TCP and UDP, each family that the pods have; and what is expected of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::net::{self, L4, Probe};

/// A pod that is asked, and asks.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `x/a`.
    pub name: String,
    pub namespace: String,
    /// `a`.
    pub pod: String,
    /// Its network namespace: a name, or a path.
    pub place: String,
    pub addresses: Vec<IpAddr>,
}

/// One square of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Square<'a> {
    pub from: &'a Pod,
    pub to: &'a Pod,
    pub l4: L4,
    pub port: u16,
    pub ipv6: bool,
}

/// Ports that every pod serves, as TCP and UDP.
pub const PORTS: [u16; 2] = [80, 81];
impl Pod {
    pub fn address(&self, ipv6: bool) -> IpAddr {
        let found = self.addresses.iter().find(|address| address.is_ipv6() == ipv6);
        *found.unwrap_or_else(|| panic!("{} has no such address", self.name))
    }
}

/// How long it may take until everything is as expected.
const LIMIT: Duration = Duration::from_secs(5);

/// Probes all squares until all are as expected; how often they were not. Panics, with what `diagnose` says, if that takes too long.
pub fn check(what: &str, pods: &[Pod], expected: &dyn Fn(Square<'_>) -> bool, diagnose: &dyn Fn() -> String) -> usize {
    let squares = squares(pods);
    let expected: Vec<bool> = squares.iter().map(|square| expected(*square)).collect();
    let probes: Vec<Probe> = squares.iter().map(Square::probe).collect();
    let deadline = Instant::now() + LIMIT;
    let mut early = 0;
    loop {
        let answered = net::probe_all(&probes, &expected);
        if answered == expected {
            return early;
        }
        early += 1;
        let wrong: Vec<String> = squares
            .iter()
            .zip(answered.iter().zip(&expected))
            .filter(|(_, (answered, expected))| answered != expected)
            .map(|(square, (answered, _))| square.tell(*answered))
            .collect();
        assert!(
            Instant::now() < deadline,
            "{what}: {} of {} squares are wrong:\n{}\n{}",
            wrong.len(),
            squares.len(),
            wrong[..wrong.len().min(12)].join("\n"),
            diagnose()
        );
    }
}

/// All squares, in order.
pub fn squares(pods: &[Pod]) -> Vec<Square<'_>> {
    let mut squares = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            for port in PORTS {
                for address in &to.addresses {
                    for l4 in [L4::Tcp, L4::Udp] {
                        squares.push(Square {
                            from,
                            to,
                            l4,
                            port,
                            ipv6: address.is_ipv6(),
                        });
                    }
                }
            }
        }
    }
    squares
}

impl Square<'_> {
    fn probe(&self) -> Probe {
        Probe {
            from: self.from.place.clone(),
            to: (self.to.address(self.ipv6), self.port).into(),
            l4: self.l4,
        }
    }

    fn tell(&self, passes: bool) -> String {
        let family = if self.ipv6 { 6 } else { 4 };
        let what = if passes { "passes" } else { "is lost" };
        let (from, to) = (&self.from.name, &self.to.name);
        format!("{from} -> {to} {:?} {} IPv{family} {what}", self.l4, self.port)
    }
}
