//! Flow records: what policy decided about whom, as the kernel's rules logged it (NFLOG groups 1 and 2).
//!
//! Listens only while `flowLogsLocalReporter` is `Enabled`. Packets are summed in a bounded [`table`]; whoever asks reads it.
//! Never in the way of a packet: what is not read in time is lost, and that it was is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use jiff::Timestamp;
use kernel::IfName;
use linux::nflog::{NflogEvent, NflogSettings};
use tokio::sync::{mpsc, watch};

use crate::run::{Event, Facts};

pub mod prefix;
pub mod rehearse;
pub mod table;

pub use rehearse::{Question, Rehearsal};
pub use table::{FlowRecord, FlowReport, FlowTable};

/// Packets to an endpoint, and from one.
const GROUPS: [u16; 2] = [1, 2];
/// How long packets are summed if FelixConfiguration does not say it.
const INTERVAL: Duration = Duration::from_secs(300);
/// Shorter ones are not followed: the table is for people and for scrapers.
const SHORTEST: Duration = Duration::from_secs(1);
/// A kernel that refuses is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// The table that the task fills and others read. Clones are the same table.
#[derive(Clone, Default)]
pub struct Flows(Arc<Mutex<FlowTable>>);

impl Flows {
    /// What is known, of what changed after the number `after` (0: everything).
    pub fn report(&self, after: u64) -> FlowReport {
        self.with(|table| table.report(after))
    }

    /// This device is the pod's of this name; `None`: it is nobody's.
    pub fn name(&self, device: &IfName, pod: Option<String>) {
        self.with(|table| table.name(device, pod));
    }

    /// Devices that host endpoints have, with the names of these; and the mark of packets that these are asked about because
    /// they are forwarded (0: there is none).
    pub fn hosts(&self, hosts: BTreeMap<IfName, String>, forwarded_bit: u32) {
        self.with(|table| table.hosts(hosts, forwarded_bit));
    }

    /// Policies are staged (the number changes whenever policy does), or none is.
    pub fn rehearsal(&self, number: Option<u64>) {
        self.with(|table| table.rehearsal(number));
    }

    /// What staged policies would have decided.
    pub fn answer(&self, question: &Question, staged: Option<Rehearsal>) {
        self.with(|table| table.answer(question, staged));
    }

    fn with<T>(&self, act: impl FnOnce(&mut FlowTable) -> T) -> T {
        // The table is only numbers: one that a panic interrupted is still good to read.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Listens as long as it is asked for, for ever.
pub async fn run(flows: Flows, mut facts: watch::Receiver<Facts>, events: mpsc::UnboundedSender<Event>) {
    let mut source: Option<BoxStream<'static, NflogEvent>> = None;
    let mut said = None;
    loop {
        let (wanted, interval) = settings(&facts.borrow_and_update());
        flows.with(|table| table.enabled(wanted, Timestamp::now()));
        match (wanted, &source) {
            (false, Some(_)) => {
                source = None;
                tracing::info!("flow records end");
            }
            (true, None) => match listen() {
                Ok(both) => {
                    source = Some(both);
                    said = None;
                    tracing::info!("flow records begin");
                }
                Err(error) if said.as_ref() != Some(&error) => {
                    tracing::warn!(error, "there are no flow records");
                    said = Some(error);
                }
                Err(_) => {}
            },
            (false, None) | (true, Some(_)) => {}
        }
        let refused = wanted && source.is_none();
        let due = flows.with(|table| table.due(interval, Timestamp::now()));
        tokio::select! {
            event = next(&mut source) => match event {
                Some(NflogEvent::Packet(packet)) => {
                    // Answered by the loop, which has policy.
                    if let Some(question) = flows.with(|table| table.packet(&packet, Timestamp::now())) {
                        let _ = events.send(Event::Rehearse(Box::new(question)));
                    }
                }
                Some(NflogEvent::Lost) => flows.with(FlowTable::lost),
                None => source = None,
            },
            changed = facts.changed() => if changed.is_err() {
                // The loop is gone, and with it soon the agent.
                return std::future::pending().await;
            },
            () = tokio::time::sleep(due), if wanted => {
                for record in flows.with(|table| table.turn(Timestamp::now())) {
                    if let Ok(line) = serde_json::to_string(&record) {
                        tracing::debug!(target: "flows", "{line}");
                    }
                }
            }
            () = tokio::time::sleep(AGAIN), if refused => {}
        }
    }
}

fn settings(facts: &Facts) -> (bool, Duration) {
    let felix = &facts.state.settings.felix;
    let interval = felix.flow_logs_flush_interval.as_ref().map(|interval| interval.0);
    (
        felix.flow_logs_local_reporter == Some(api::Switch::Enabled),
        interval.unwrap_or(INTERVAL).max(SHORTEST),
    )
}

/// Both groups as one stream, which ends when one of them does.
fn listen() -> Result<BoxStream<'static, NflogEvent>, String> {
    let mut streams = Vec::new();
    for group in GROUPS {
        let stream = linux::nflog::listen(NflogSettings::of(group));
        let stream = stream.map_err(|error| format!("NFLOG group {group}: {error}"))?;
        let ended = futures::stream::once(async { None });
        streams.push(stream.map(Some).chain(ended).boxed());
    }
    let whole = futures::stream::select_all(streams).take_while(|event| std::future::ready(event.is_some()));
    Ok(whole.filter_map(std::future::ready).boxed())
}

async fn next(source: &mut Option<BoxStream<'static, NflogEvent>>) -> Option<NflogEvent> {
    match source {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
