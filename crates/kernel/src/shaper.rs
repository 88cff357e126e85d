//! Shapers: queues that hold a pod's packets to a rate.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::object::IfName;

/// Which way a pod's packets go, from the pod's point of view, as upstream's `qosControls` have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both, in order.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

/// Which shaper: a device has at most one for each direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShaperKey {
    /// The host side of the pod's veth pair.
    pub device: IfName,
    /// Whose packets wait.
    pub direction: Direction,
}

/// A queue from which packets go on no faster than a token bucket allows: Linux' `tbf`. The numbers are ones that the kernel can
/// say again, as [`Shaper::new`] makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaper {
    /// Bytes each second, at least 125.
    pub rate: u64,
    /// Bytes that may go at once after a pause.
    pub burst: u32,
    /// How fast a burst goes; `None`: as fast as the line.
    pub peak: Option<Peak>,
    /// Bytes that may wait; what comes then is dropped.
    pub queue: u32,
}

/// The second bucket of a shaper, that a burst goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Bytes each second, more than the shaper's rate.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
}

impl Shaper {
    /// The shaper that comes nearest. Bursts are at least [`Shaper::LEAST_BURST`], so that every packet fits, and at most what comes
    /// in four minutes, which is what the kernel can say again; both are whole multiples of a grain. A peak that is not above the
    /// rate is the rate. Up to 50 ms of the rate may wait, and no less than two of the largest packets.
    pub fn new(rate: u64, burst: u64, peak: Option<(u64, u64)>) -> Self {
        let rate = rate.max(LEAST_RATE);
        match peak {
            Some((peak, least)) if peak <= rate => Self::new(peak, least.min(burst), None),
            peak => Self {
                rate,
                burst: round(rate, burst),
                peak: peak.map(|(peak, burst)| Peak {
                    rate: peak,
                    burst: round(peak, burst),
                }),
                queue: u32::try_from(rate / 20).unwrap_or(u32::MAX).max(LEAST_QUEUE),
            },
        }
    }

    /// Bytes: a jumbo frame with its header, in whole grains.
    pub const LEAST_BURST: u32 = 10 << 10;

    /// The multiple of the grain that is nearest to a number of bytes that the kernel told.
    pub fn nearest_burst(rate: u64, told: u64) -> u32 {
        let grain = grain(rate);
        let whole = told.saturating_add(grain / 2) / grain * grain;
        u32::try_from(whole).unwrap_or(u32::MAX)
    }
}

/// Start of a detour's name.
const BEGINS: &str = "bw";
/// Start of a detour's alias; the pod's device follows.
const DETOUR: &str = "margay queue of ";
/// Bytes each second: less cannot be asked for.
const LEAST_RATE: u64 = 125;
const LEAST_QUEUE: u32 = 128 << 10;
/// The kernel keeps a bucket as time, in 32 bits of 64 ns: 274 s.
const LONGEST_BURST: u64 = 240;

/// So exactly does the kernel tell the size of a bucket of that rate: it counts in 64 ns.
fn grain(rate: u64) -> u64 {
    (rate / 2_000_000).next_power_of_two().max(1 << 10)
}

fn round(rate: u64, burst: u64) -> u32 {
    let grain = grain(rate);
    let most = rate.saturating_mul(LONGEST_BURST).min(u32::MAX.into()) / grain * grain;
    let least = u64::from(Shaper::LEAST_BURST).next_multiple_of(grain);
    let whole = burst.min(u32::MAX.into()).next_multiple_of(grain).min(most).max(least);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

impl ShaperKey {
    /// The device in whose queue packets from the pod wait: they are received, so that the pod's own device has no queue for them.
    pub fn detour(device: &IfName) -> IfName {
        let skip = device.0.char_indices().rev().nth(12).map_or(0, |(at, _)| at);
        IfName(format!("{BEGINS}{}", &device.0[skip..]))
    }

    /// Whether a device has a name that detours have.
    pub fn may_be_detour(device: &IfName) -> bool {
        device.0.starts_with(BEGINS)
    }

    /// The alias of a detour, by which it is known as ours.
    pub fn alias(device: &IfName) -> String {
        format!("{DETOUR}{device}")
    }

    /// The pod's device whose detour has that alias.
    pub fn of_alias(alias: &str) -> Option<IfName> {
        alias.strip_prefix(DETOUR).map(IfName::from)
    }
}

/// What a shaper's queue has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Bytes that went through.
    pub bytes: u64,
    /// Packets that went through.
    pub packets: u64,
    /// Packets dropped because the queue was full.
    pub dropped: u64,
    /// Bytes that wait now.
    pub waiting: u64,
}

impl fmt::Display for ShaperKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.direction {
            Direction::Ingress => write!(f, "bandwidth to {}", self.device),
            Direction::Egress => write!(f, "bandwidth from {}", self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shaper_has_numbers_that_the_kernel_can_say_again() {
        let check = |rate: u64, burst: u64, peak: Option<(u64, u64)>, expected: (u64, u32, Option<(u64, u32)>, u32)| {
            let shaper = Shaper::new(rate, burst, peak);
            let peak = shaper.peak.map(|peak| (peak.rate, peak.burst));
            assert_eq!((shaper.rate, shaper.burst, peak, shaper.queue), expected);
            // The kernel's ticks, and back.
            let ticks = u128::from(shaper.burst) * 1_000_000_000 / u128::from(shaper.rate) / 64;
            assert!(ticks <= u128::from(u32::MAX), "{ticks}");
            let told = ticks * 64 * u128::from(shaper.rate) / 1_000_000_000;
            let told = u64::try_from(told).expect("a small number");
            assert_eq!(Shaper::nearest_burst(shaper.rate, told), shaper.burst);
        };
        let kib = |n: u32| n << 10;
        check(1_250_000, 100_000, None, (1_250_000, kib(98), None, kib(128)));
        check(1_250_000, 1, None, (1_250_000, kib(10), None, kib(128)));
        // The default burst of a slow line: four minutes.
        check(125, 1 << 29, None, (125, kib(29), None, kib(128)));
        check(1_000_000, 1 << 29, None, (1_000_000, kib(234_375), None, kib(128)));
        check(12_500_000, 1 << 29, None, (12_500_000, 1 << 29, None, 625_000));
        // 100 Gbit/s and the most that can be asked.
        check(
            12_500_000_000,
            1 << 29,
            None,
            (12_500_000_000, 1 << 29, None, 625_000_000),
        );
        check(
            125_000_000_000_000,
            1,
            None,
            (125_000_000_000_000, 1 << 26, None, u32::MAX),
        );
        check(
            1_000_000,
            9_000,
            Some((2_000_000, 65_536)),
            (1_000_000, kib(10), Some((2_000_000, kib(64))), kib(128)),
        );
        check(
            1_000_000,
            90_000,
            Some((500_000, 20_000)),
            (500_000, kib(20), None, kib(128)),
        );
        check(0, 0, None, (125, kib(10), None, kib(128)));
    }

    #[test]
    fn a_detour_has_a_name_that_a_device_can_have() {
        let check = |device: &str, expected: &str| assert_eq!(ShaperKey::detour(&device.into()).0, expected);
        check("cali0123456789a", "bwli0123456789a");
        check("cali1", "bwcali1");
        check("eni1", "bweni1");
    }
}
