//! Rate limits and marking of a workload's packets.

use serde::{Deserialize, Serialize};

use super::is_zero;
use crate::problem::Problems;
use crate::value::{Dscp, check};

/// Limits of a workload endpoint. 0 means no limit, or the default beside a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QosControls {
    /// Bits per second to the workload, 1000 to 10^15.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_bandwidth: u64,
    /// Burst to the workload in bits, 1000 to 34359738360; default 4294967296.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_burst: u64,
    /// Bits per second within a burst to the workload, 1010 to 1.01 * 10^15; default the line's.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_peakrate: u64,
    /// Burst at the peak rate to the workload in bytes, 1000 to 10^8; default 65536.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_minburst: u64,
    /// Bits per second from the workload, 1000 to 10^15.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_bandwidth: u64,
    /// Burst from the workload in bits, 1000 to 34359738360; default 4294967296.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_burst: u64,
    /// Bits per second within a burst from the workload, 1010 to 1.01 * 10^15; default the line's.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_peakrate: u64,
    /// Burst at the peak rate from the workload in bytes, 1000 to 10^8; default 65536.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_minburst: u64,
    /// Packets per second to the workload, 1 to 10000.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_packet_rate: u64,
    /// Burst to the workload in packets, 1 to 10000; default 5.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_packet_burst: u64,
    /// Packets per second from the workload, 1 to 10000.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_packet_rate: u64,
    /// Burst from the workload in packets, 1 to 10000; default 5.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_packet_burst: u64,
    /// Connections to the workload at one time, 1 to 4294967295.
    #[serde(skip_serializing_if = "is_zero")]
    pub ingress_max_connections: u64,
    /// Connections from the workload at one time, 1 to 4294967295.
    #[serde(skip_serializing_if = "is_zero")]
    pub egress_max_connections: u64,
    /// Mark of packets from the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Dscp>,
}

impl QosControls {
    /// Burst in bits where none is set.
    pub const DEFAULT_BURST: u64 = 4_294_967_296;
    /// Burst in packets where none is set.
    pub const DEFAULT_PACKET_BURST: u64 = 5;

    /// Name, value and range of every number.
    fn numbers(&self) -> [(&'static str, u64, u64, u64); 14] {
        const RATE: (u64, u64) = (1_000, 1_000_000_000_000_000);
        const BURST: (u64, u64) = (1_000, 34_359_738_360);
        const PEAK: (u64, u64) = (1_010, 1_010_000_000_000_000);
        const MINBURST: (u64, u64) = (1_000, 100_000_000);
        const PACKETS: (u64, u64) = (1, 10_000);
        const CONNECTIONS: (u64, u64) = (1, 4_294_967_295);
        [
            ("ingressBandwidth", self.ingress_bandwidth, RATE),
            ("ingressBurst", self.ingress_burst, BURST),
            ("ingressPeakrate", self.ingress_peakrate, PEAK),
            ("ingressMinburst", self.ingress_minburst, MINBURST),
            ("egressBandwidth", self.egress_bandwidth, RATE),
            ("egressBurst", self.egress_burst, BURST),
            ("egressPeakrate", self.egress_peakrate, PEAK),
            ("egressMinburst", self.egress_minburst, MINBURST),
            ("ingressPacketRate", self.ingress_packet_rate, PACKETS),
            ("ingressPacketBurst", self.ingress_packet_burst, PACKETS),
            ("egressPacketRate", self.egress_packet_rate, PACKETS),
            ("egressPacketBurst", self.egress_packet_burst, PACKETS),
            ("ingressMaxConnections", self.ingress_max_connections, CONNECTIONS),
            ("egressMaxConnections", self.egress_max_connections, CONNECTIONS),
        ]
        .map(|(name, value, (least, most))| (name, value, least, most))
    }

    /// Name, range and place of every number.
    pub(crate) fn numbers_mut(&mut self) -> [(&'static str, u64, u64, &mut u64); 14] {
        let limits = self.numbers().map(|(name, _, least, most)| (name, least, most));
        // In the order of `numbers`.
        let places = [
            &mut self.ingress_bandwidth,
            &mut self.ingress_burst,
            &mut self.ingress_peakrate,
            &mut self.ingress_minburst,
            &mut self.egress_bandwidth,
            &mut self.egress_burst,
            &mut self.egress_peakrate,
            &mut self.egress_minburst,
            &mut self.ingress_packet_rate,
            &mut self.ingress_packet_burst,
            &mut self.egress_packet_rate,
            &mut self.egress_packet_burst,
            &mut self.ingress_max_connections,
            &mut self.egress_max_connections,
        ];
        let mut places = places.into_iter();
        limits.map(|(name, least, most)| {
            let place = places.next().expect("there are as many places as limits");
            (name, least, most, place)
        })
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        for (field, value, least, most) in self.numbers() {
            check::range(field, value, least, most, problems);
        }
    }
}
