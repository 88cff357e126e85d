//! Limits and marks: `qos.projectcalico.org/…`, and Kubernetes' own bandwidth.

use super::{Dscp, EGRESS_BANDWIDTH, FieldProblem, INGRESS_BANDWIDTH, Problems, QOS, QosControls, Reader, quantity};

impl Reader<'_> {
    /// The limits, and which of them were not in their ranges: as upstream does, the nearest value counts then.
    pub(super) fn qos(&mut self) -> (Option<QosControls>, Vec<FieldProblem>) {
        let mut controls = QosControls::default();
        let mut notes = Problems::new();
        for (name, least, most, value) in controls.numbers_mut() {
            let named = format!("{QOS}{name}");
            let kubernetes = match name {
                "ingressBandwidth" => Some(INGRESS_BANDWIDTH),
                "egressBandwidth" => Some(EGRESS_BANDWIDTH),
                _ => None,
            };
            let names = [Some(named.as_str()), kubernetes];
            // The more special one counts.
            let Some((name, text)) = names
                .into_iter()
                .flatten()
                .find_map(|name| Some((name, self.text(name)?)))
            else {
                continue;
            };
            match quantity::whole(text) {
                Some(number) => {
                    *value = number.clamp(least, most);
                    if *value != number {
                        let message = format!("must be from {least} to {most}; {value} counts");
                        notes.report(name, text, message);
                    }
                }
                None => self.wrong(name, &format!("must be a quantity from {least} to {most}, such as 10M")),
            }
        }
        let dscp = format!("{QOS}dscp");
        if let Some(text) = self.text(&dscp) {
            match text.parse::<Dscp>() {
                Ok(value) => controls.dscp = Some(value),
                Err(right) => self.wrong(&dscp, &right),
            }
        }
        for (needed, name, has) in [
            ("ingressBandwidth", "ingressBurst", controls.ingress_bandwidth),
            ("ingressBandwidth", "ingressPeakrate", controls.ingress_bandwidth),
            ("ingressPeakrate", "ingressMinburst", controls.ingress_peakrate),
            ("egressBandwidth", "egressBurst", controls.egress_bandwidth),
            ("egressBandwidth", "egressPeakrate", controls.egress_bandwidth),
            ("egressPeakrate", "egressMinburst", controls.egress_peakrate),
            ("ingressPacketRate", "ingressPacketBurst", controls.ingress_packet_rate),
            ("egressPacketRate", "egressPacketBurst", controls.egress_packet_rate),
        ] {
            let name = format!("{QOS}{name}");
            if let (Some(text), 0) = (self.text(&name), has) {
                notes.report(&name, text, format!("means nothing without {QOS}{needed}"));
            }
        }
        let asked = (controls != QosControls::default()).then_some(controls);
        (asked, notes.into_vec())
    }
}
