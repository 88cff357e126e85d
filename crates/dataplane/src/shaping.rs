//! Bandwidths of pods as shapers of the kernel.

use std::collections::BTreeMap;

use api::QosControls;
use kernel::{Direction, IfName, Shaper, ShaperKey};

use crate::dataplane::Dataplane;
use crate::filter::Limits;

/// Bytes of a burst at the peak rate where none is set: what a device hands over at once.
const MINBURST: u64 = 65_536;

impl Dataplane {
    /// Says how fast pods may send and receive.
    pub fn bandwidths(&mut self, limits: &Limits) {
        let shapers = limits.iter().flat_map(|(device, controls)| {
            Direction::BOTH.into_iter().filter_map(|direction| {
                let device = IfName::from(device.as_str());
                Some((ShaperKey { device, direction }, shaper(controls, direction)?))
            })
        });
        let shapers: BTreeMap<ShaperKey, Shaper> = shapers.collect();
        let gone = self
            .shapers
            .all_wanted()
            .keys()
            .filter(|key| !shapers.contains_key(key));
        let gone: Vec<ShaperKey> = gone.cloned().collect();
        gone.into_iter().for_each(|key| self.shapers.want(key, None));
        shapers
            .into_iter()
            .for_each(|(key, shaper)| self.shapers.want(key, Some(Some(shaper))));
    }

    /// Whether a device is a pod's, or is there for one.
    pub fn serves_a_pod(&self, device: &IfName) -> bool {
        self.is_pod_device(device) || self.detoured(device).is_some()
    }

    /// The shaper whose detour a device is.
    pub(crate) fn detoured(&self, device: &IfName) -> Option<ShaperKey> {
        if !ShaperKey::may_be_detour(device) {
            return None;
        }
        let shapers = self.shapers.all_wanted().keys().chain(self.shapers.all_seen().keys());
        let mut egress = shapers.filter(|key| key.direction == Direction::Egress);
        egress.find(|key| ShaperKey::detour(&key.device) == *device).cloned()
    }

    /// A shaper's queue is so. That packets take the detour to it is known from elsewhere, or not.
    pub(crate) fn shaper_changed(&mut self, key: ShaperKey, shaper: Shaper) {
        let is_whole = matches!(self.shapers.seen(&key), Some(Some(_)));
        if key.direction == Direction::Ingress || is_whole {
            self.shapers.saw(key, Some(Some(shaper)));
        }
    }

    /// What is known of a shaper after its device, its detour or its queue went.
    pub(crate) fn shaper_lost(&mut self, key: &ShaperKey) {
        match key.direction {
            Direction::Ingress => self.shapers.saw(key.clone(), None),
            // The detour is still there, and has to go or to be mended.
            Direction::Egress if self.shapers.seen(key).is_some() => self.shapers.saw(key.clone(), Some(None)),
            Direction::Egress => {}
        }
    }

    pub(crate) fn shapers_of(device: &IfName) -> [ShaperKey; 2] {
        Direction::BOTH.map(|direction| ShaperKey {
            device: device.clone(),
            direction,
        })
    }
}

fn shaper(controls: &QosControls, direction: Direction) -> Option<Shaper> {
    let [bandwidth, burst, peak, minburst] = match direction {
        Direction::Ingress => [
            controls.ingress_bandwidth,
            controls.ingress_burst,
            controls.ingress_peakrate,
            controls.ingress_minburst,
        ],
        Direction::Egress => [
            controls.egress_bandwidth,
            controls.egress_burst,
            controls.egress_peakrate,
            controls.egress_minburst,
        ],
    };
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let peak = (peak != 0).then(|| (peak.div_ceil(8), or(minburst, MINBURST)));
    let burst = or(burst, QosControls::DEFAULT_BURST) / 8;
    (bandwidth != 0).then(|| Shaper::new(bandwidth.div_ceil(8), burst, peak))
}
