//! The sums: who with whom, over which protocol and port, what was decided by which rule, how often. Pure, and bounded.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use kernel::IfName;
use linux::nflog::Logged;
use policy::evaluate::{Hook, Way};
use serde::{Deserialize, Serialize};

use super::prefix::{self, FlowVerdict};
use super::rehearse::{self, Question, Rehearsal};

/// So many different flows in one interval; packets of further ones are only counted.
const AT_ONCE: usize = 4096;
/// So many records of intervals that are over are kept.
const KEPT: usize = 4096;

/// Netfilter's hooks, as packets that were logged name them.
const PREROUTING: u8 = 0;
const FORWARD: u8 = 2;

/// Packets of one kind between an endpoint and a peer in one interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// Grows with every change: ask for what is after it to hear what is new.
    pub number: u64,
    /// First packet.
    pub first: Timestamp,
    /// Last packet.
    pub last: Timestamp,
    /// The endpoint that was asked: namespace and name of a pod, a host endpoint, else the device.
    pub endpoint: String,
    /// `ingress`: to the endpoint; `egress`: from it. Of what is forwarded through a host endpoint: in by its device, out by it.
    pub direction: String,
    /// The endpoint is a host endpoint, and the packets are neither to nor from its host.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub forwarded: bool,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What was decided.
    pub verdict: FlowVerdict,
    /// The tier that decided, unless it was a profile or none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tier: Option<String>,
    /// By which rule, or where no rule did.
    pub policy: String,
    /// What staged policies would have decided about the last packet that was looked at, if one concerns the endpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub staged: Option<Rehearsal>,
    /// Packets that met the rule. Of a flow that is allowed only the first one does, so these are flows.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The interval is over: it will not change any more.
    pub finished: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowReport {
    /// Whether flows are recorded.
    pub enabled: bool,
    /// The number of the last change.
    pub number: u64,
    /// Packets that no record counts: the table was full, or their prefix is not ours.
    pub not_counted: u64,
    /// Times that the kernel had to drop records because they were not read in time.
    pub lost: u64,
    /// Records, in the order in which they changed last.
    pub records: Vec<FlowRecord>,
}

/// What the packets of a record have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    endpoint: String,
    is_egress: bool,
    forwarded: bool,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: Option<u16>,
    verdict: FlowVerdict,
    tier: Option<String>,
    policy: String,
}

/// A record that still grows.
#[derive(Debug)]
struct Growing {
    record: FlowRecord,
    /// For which policy it was asked what staged ones would have said.
    asked: Option<u64>,
}

/// The sums of the interval that is running, and of the last ones.
#[derive(Debug, Default)]
pub struct FlowTable {
    enabled: bool,
    names: BTreeMap<IfName, String>,
    /// Devices of this host that a host endpoint has.
    hosts: BTreeMap<IfName, String>,
    /// The mark of packets that host endpoints are asked about because they are forwarded; 0: there is none.
    forwarded_bit: u32,
    current: BTreeMap<Kind, Growing>,
    /// While policies are staged: changes whenever policy does.
    rehearsal: Option<u64>,
    finished: VecDeque<FlowRecord>,
    since: Option<Timestamp>,
    number: u64,
    not_counted: u64,
    lost: u64,
}

impl FlowTable {
    /// Whether packets are recorded from now on. What was recorded stays to be read.
    pub fn enabled(&mut self, enabled: bool, now: Timestamp) {
        if enabled && !self.enabled {
            self.since = Some(now);
        }
        self.enabled = enabled;
    }

    /// The device is this pod's, or nobody's.
    pub fn name(&mut self, device: &IfName, pod: Option<String>) {
        match pod {
            Some(pod) => drop(self.names.insert(device.clone(), pod)),
            None => drop(self.names.remove(device)),
        }
    }

    /// Devices that host endpoints have, with the names of these; and the mark of packets that these are asked about because
    /// they are forwarded (0: there is none).
    pub fn hosts(&mut self, hosts: BTreeMap<IfName, String>, forwarded_bit: u32) {
        self.hosts = hosts;
        self.forwarded_bit = forwarded_bit;
    }

    /// Policies are staged (the number changes whenever policy does), or none is.
    pub fn rehearsal(&mut self, number: Option<u64>) {
        self.rehearsal = number;
    }

    /// Takes a packet that a rule logged. Answers what is to be found out about it.
    pub fn packet(&mut self, packet: &Logged, now: Timestamp) -> Option<Question> {
        let Some(decision) = prefix::read(&packet.prefix) else {
            self.not_counted += 1;
            return None;
        };
        // A pod's device is on its side of this host, a host endpoint's on the other.
        let (near, far, direction) = match decision.way {
            Way::Ingress => (&packet.output, &packet.input, "ingress"),
            Way::Egress => (&packet.input, &packet.output, "egress"),
        };
        let forwarded = packet.hook == FORWARD && self.is_of_host(packet.mark, near.as_ref(), far.as_ref());
        let device = if forwarded { far } else { near };
        // A packet for this host has no outgoing device, one from it no incoming one.
        let device = device.as_ref().or(packet.input.as_ref()).or(packet.output.as_ref());
        let endpoint = match &device {
            Some(device) => {
                let name = self.names.get(device).or_else(|| self.hosts.get(device));
                name.cloned().unwrap_or_else(|| device.0.clone())
            }
            None => "-".to_owned(),
        };
        let kind = Kind {
            endpoint,
            is_egress: decision.way == Way::Egress,
            forwarded,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            port: packet.ports.map(|(_, port)| port),
            verdict: decision.verdict,
            tier: decision.tier,
            policy: decision.policy,
        };
        if self.current.len() >= AT_ONCE && !self.current.contains_key(&kind) {
            self.not_counted += 1;
            return None;
        }
        self.number += 1;
        let growing = self.current.entry(kind.clone()).or_insert_with(|| Growing {
            record: FlowRecord {
                number: 0,
                first: now,
                last: now,
                endpoint: kind.endpoint.clone(),
                direction: direction.to_owned(),
                forwarded,
                source: kind.source,
                destination: kind.destination,
                protocol: kind.protocol,
                port: kind.port,
                verdict: kind.verdict,
                tier: kind.tier.clone(),
                policy: kind.policy.clone(),
                staged: None,
                packets: 0,
                bytes: 0,
                finished: false,
            },
            asked: None,
        });
        let record = &mut growing.record;
        record.number = self.number;
        record.last = now;
        record.packets += 1;
        record.bytes += u64::from(packet.length);
        // What is passed on is decided by another rule, which has a record of its own.
        if growing.asked == self.rehearsal || kind.verdict == FlowVerdict::Pass {
            return None;
        }
        let hook = match (packet.hook, forwarded) {
            // Early policies are not staged: what they leave is judged later.
            (PREROUTING, _) => return None,
            (_, true) => Hook::Forward,
            (_, false) => Hook::Normal,
        };
        growing.asked = self.rehearsal;
        record.staged = record.staged.take().filter(|_| self.rehearsal.is_some());
        self.rehearsal?;
        Some(Question {
            kind,
            device: device?.clone(),
            hook,
            way: decision.way,
            packet: rehearse::packet(packet),
        })
    }

    /// Whether a verdict about a forwarded packet is of the host endpoint on the far side rather than of the pod on the near one.
    fn is_of_host(&self, mark: u32, near: Option<&IfName>, far: Option<&IfName>) -> bool {
        let has_host = far.is_some_and(|device| self.hosts.contains_key(device));
        let has_pod = near.is_some_and(|device| self.names.contains_key(device));
        mark & self.forwarded_bit != 0 || (has_host && !has_pod)
    }

    /// What staged policies would have said.
    pub fn answer(&mut self, question: &Question, staged: Option<Rehearsal>) {
        let Some(growing) = self.current.get_mut(&question.kind) else {
            return;
        };
        if growing.record.staged != staged {
            self.number += 1;
            growing.record.staged = staged;
            growing.record.number = self.number;
        }
    }

    /// The kernel dropped some.
    pub fn lost(&mut self) {
        self.lost += 1;
    }

    /// How long until the interval is over.
    pub fn due(&self, interval: Duration, now: Timestamp) -> Duration {
        let passed = self.since.map(|since| now.duration_since(since));
        let passed = passed
            .and_then(|passed| Duration::try_from(passed).ok())
            .unwrap_or_default();
        interval.saturating_sub(passed)
    }

    /// The interval is over: its records, which are kept as far as there is room.
    pub fn turn(&mut self, now: Timestamp) -> Vec<FlowRecord> {
        self.since = Some(now);
        let current = std::mem::take(&mut self.current).into_values();
        let mut records: Vec<FlowRecord> = current.map(|growing| growing.record).collect();
        records.sort_by_key(|record| record.number);
        records.iter_mut().for_each(|record| record.finished = true);
        let surplus = (self.finished.len() + records.len()).saturating_sub(KEPT);
        self.finished.drain(..surplus.min(self.finished.len()));
        self.finished.extend(records.iter().cloned());
        records
    }

    /// What changed after the number.
    pub fn report(&self, after: u64) -> FlowReport {
        let current = self.current.values().map(|growing| &growing.record);
        let all = self.finished.iter().chain(current);
        let mut records: Vec<FlowRecord> = all.filter(|record| record.number > after).cloned().collect();
        records.sort_by_key(|record| record.number);
        FlowReport {
            enabled: self.enabled,
            number: self.number,
            not_counted: self.not_counted,
            lost: self.lost,
            records,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn packet(prefix: &str, source: &str, destination: &str, port: u16) -> Logged {
        Logged {
            prefix: prefix.into(),
            hook: FORWARD,
            input: Some("cali1".into()),
            output: Some("cali2".into()),
            mark: 0,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            ports: Some((40000, port)),
            icmp: None,
            length: 60,
        }
    }

    fn shown(table: &FlowTable, after: u64) -> Vec<String> {
        let line = |record: &FlowRecord| {
            format!(
                "{} {} {}>{}:{} {:?} {} {}/{}{}",
                record.endpoint,
                record.direction,
                record.source,
                record.destination,
                record.port.unwrap_or_default(),
                record.verdict,
                record.policy,
                record.packets,
                record.bytes,
                if record.finished { " finished" } else { "" }
            )
        };
        table.report(after).records.iter().map(line).collect()
    }

    #[test]
    fn packets_of_one_kind_are_one_record() {
        let mut table = FlowTable::default();
        table.name(&"cali2".into(), Some("default/db".into()));
        table.hosts([("cali1".into(), "HostEndpoint(h)".into())].into(), 0x4);
        let denied = packet("DPI-1|default", "10.0.0.1", "10.0.0.2", 80);
        table.packet(&denied, at(1));
        table.packet(
            &packet("APE0|default|np/default/web", "10.0.0.1", "10.0.0.2", 80),
            at(2),
        );
        // Another source port is the same kind.
        table.packet(
            &Logged {
                ports: Some((40001, 80)),
                ..denied.clone()
            },
            at(3),
        );
        let (out, into) = (
            "HostEndpoint(h) egress 10.0.0.1>10.0.0.2:80 Allow np/default/web rule 0 1/60",
            "default/db ingress 10.0.0.1>10.0.0.2:80 Deny end of tier default 2/120",
        );
        assert_eq!(shown(&table, 0), [out, into]);
        assert_eq!(shown(&table, 2), [into], "only what is new");
        // The interval is over; the next packet begins a record.
        assert_eq!(table.turn(at(10)).len(), 2);
        table.packet(&denied, at(11));
        let again = "default/db ingress 10.0.0.1>10.0.0.2:80 Deny end of tier default 1/60";
        assert_eq!(shown(&table, 3), [again]);
        assert_eq!(
            shown(&table, 0),
            [&format!("{out} finished"), &format!("{into} finished"), again]
        );
        assert_eq!(table.due(Duration::from_secs(5), at(12)), Duration::from_secs(3));
        assert_eq!(table.due(Duration::from_secs(5), at(20)), Duration::ZERO);
    }

    #[test]
    fn forwarded_packets_are_of_the_endpoint_whose_verdict_it_is() {
        let mut table = FlowTable::default();
        table.name(&"cali1".into(), Some("default/web".into()));
        table.name(&"cali2".into(), Some("default/db".into()));
        let hosts = [("eth0", "HostEndpoint(out)"), ("eth1", "HostEndpoint(in)")];
        table.hosts(hosts.map(|(device, name)| (device.into(), name.into())).into(), 0x4);
        table.rehearsal(Some(1));
        let mut check = |way: &str, hook, devices: [&str; 2], mark, expected: &str, asked: Option<Hook>| {
            let mut packet = packet(&format!("DP{way}0|t|gnp/p"), "192.0.2.9", "10.0.0.2", 80);
            [packet.input, packet.output] = devices.map(|device| Some(device.into()).filter(|_| !device.is_empty()));
            (packet.hook, packet.mark) = (hook, mark);
            let question = table.packet(&packet, at(1));
            let report = table.report(0);
            let record = report.records.last().expect("a record");
            let forwarded = if record.forwarded { " forwarded" } else { "" };
            assert_eq!(format!("{} {}{forwarded}", record.endpoint, record.direction), expected);
            assert_eq!(question.map(|question| question.hook), asked, "{expected}");
            table.turn(at(1));
        };
        let (normal, forward) = (Some(Hook::Normal), Some(Hook::Forward));
        // One policy is asked twice about one packet: for the host endpoint, then for the pod.
        check(
            "I",
            FORWARD,
            ["eth0", "cali2"],
            0x4,
            "HostEndpoint(out) ingress forwarded",
            forward,
        );
        check("I", FORWARD, ["eth0", "cali2"], 0x3, "default/db ingress", normal);
        check("E", FORWARD, ["cali1", "eth0"], 0, "default/web egress", normal);
        check(
            "E",
            FORWARD,
            ["cali1", "eth0"],
            0x4,
            "HostEndpoint(out) egress forwarded",
            forward,
        );
        // Without a pod it is a host endpoint's in any case.
        check(
            "I",
            FORWARD,
            ["eth1", "eth0"],
            0,
            "HostEndpoint(in) ingress forwarded",
            forward,
        );
        check(
            "E",
            FORWARD,
            ["eth1", "eth0"],
            0,
            "HostEndpoint(out) egress forwarded",
            forward,
        );
        // To this host and from it, and before it is known where it goes.
        check("I", 1, ["eth1", ""], 0, "HostEndpoint(in) ingress", normal);
        check("E", 3, ["", "eth0"], 0x4, "HostEndpoint(out) egress", normal);
        check("I", PREROUTING, ["eth1", ""], 0x4, "HostEndpoint(in) ingress", None);
    }

    #[test]
    fn a_record_is_asked_about_whenever_policy_has_changed() {
        let mut table = FlowTable::default();
        let denied = packet("DPI-1|default", "10.0.0.1", "10.0.0.2", 80);
        assert_eq!(table.packet(&denied, at(1)), None, "nothing is staged");
        table.rehearsal(Some(1));
        let question = table.packet(&denied, at(2)).expect("a question");
        assert_eq!((&question.device.0[..], question.way), ("cali2", Way::Ingress));
        assert_eq!(table.packet(&denied, at(3)), None, "it has been asked");
        let passed = packet("PPI0|default|np/default/db", "10.0.0.1", "10.0.0.2", 80);
        assert_eq!(table.packet(&passed, at(3)), None, "another rule decides");
        let before = table.report(0).number;
        table.answer(
            &question,
            Some(Rehearsal {
                verdict: FlowVerdict::Allow,
                tier: Some("default".into()),
                policy: "snp/default/db rule 0".into(),
            }),
        );
        assert_eq!(table.report(before).records.len(), 1, "an answer is news");
        table.rehearsal(Some(2));
        assert!(table.packet(&denied, at(4)).is_some(), "policy has changed");
        let kept = table.report(0).records.last().and_then(|record| record.staged.clone());
        assert_eq!(
            kept.map(|staged| staged.policy).as_deref(),
            Some("snp/default/db rule 0")
        );
        table.rehearsal(None);
        table.turn(at(5));
        assert_eq!(table.packet(&denied, at(6)), None);
        table.answer(&question, None);
        assert_eq!(
            table.report(0).records.last().and_then(|record| record.staged.clone()),
            None
        );
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut table = FlowTable::default();
        for number in 0..AT_ONCE as u32 + 10 {
            let source = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            table.packet(&packet("DPI-1|default", &source, "10.0.0.2", 80), at(1));
        }
        table.packet(&packet("not ours", "10.0.0.1", "10.0.0.2", 80), at(1));
        table.lost();
        let report = table.report(0);
        assert_eq!(
            (report.records.len(), report.not_counted, report.lost),
            (AT_ONCE, 11, 1)
        );
        for second in 2..5 {
            table.turn(at(second));
            table.packet(
                &packet("DPI-1|default", "10.0.0.1", "10.0.0.2", second as u16),
                at(second),
            );
        }
        assert!(table.report(0).records.len() <= KEPT + 1);
    }
}
