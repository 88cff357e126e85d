//! Flows that the kernel would go on letting through although they may not be any more: it looks at policy only for a flow's
//! first packet.
//!
//! After a change of policy is in the kernel, the flows of the pods concerned are judged ([`judge`]) and those that are denied
//! now are marked as ended; a rule drops what comes on them. They are not just forgotten: then the next packet, whichever side
//! sends it, would be a new flow's first, and what the answering side may send is another question. A flow that policy allows
//! again is forgotten, and begins anew. So are the flows of a pod that is gone: its address will be another pod's. Reading the kernel's flows takes long where there are many; it happens beside the loop,
//! which judges some at a time. Never touches flows of other zones, nor those that another flow has announced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::IfName;
use linux::conntrack::{Conntrack, Flow, FlowFilter};
use linux::lookup;
use linux::request::Socket;
use tokio::sync::{mpsc, oneshot};

use crate::run::Event;

pub mod host;
pub mod judge;

/// So many flows are judged between two other events of the loop.
const AT_ONCE: usize = 256;
/// Between two readings of the kernel's flows is so many times what the last one took.
const REST: u32 = 4;
/// But never more than this: a flow is cut within a second.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// So long after a failure it is tried again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// So long pods that are gone wait for others that go.
const LINGER: Duration = Duration::from_millis(200);

/// Whose flows to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Addresses of pods, and of this host, that policy says something else about.
    pub changed: BTreeSet<IpAddr>,
    /// Addresses that no pod has any more.
    pub gone: BTreeSet<IpAddr>,
    /// What host endpoints have to do with flows of others.
    pub forwarded: Forwarded,
}

/// What host endpoints have to do with flows that are forwarded through their devices. Each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarded {
    /// Nothing: nobody has to know which devices a flow takes.
    #[default]
    Unjudged,
    /// Some judge them.
    Judged,
    /// One that judges them, or did, says something else now. Which addresses these flows have nobody knows: all are read.
    Changed,
}

/// By which device an address is reached. An address that is not there is this host's, or nowhere.
pub type Devices = BTreeMap<IpAddr, IfName>;

impl Work {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty() && self.forwarded < Forwarded::Changed
    }

    fn merge(&mut self, other: Work) {
        self.changed.extend(other.changed);
        self.gone.extend(other.gone);
        self.forwarded = self.forwarded.max(other.forwarded);
    }
}

/// Does the work that comes in, for ever; what comes meanwhile is done together.
pub async fn run(work: mpsc::UnboundedReceiver<Work>, events: mpsc::UnboundedSender<Event>) {
    let (mut queue, mut kernel) = (Queue::new(work), None);
    while let Some(now) = queue.next().await {
        let started = Instant::now();
        let rest = match pass(&mut kernel, &now, &events).await {
            Ok((forbidden, gone)) => {
                if (forbidden, gone) != (0, 0) {
                    tracing::info!(forbidden, gone, took = ?started.elapsed(), "flows cut");
                    let _ = events.send(Event::FlowsCut { forbidden, gone });
                }
                queue.done();
                (started.elapsed() * REST).min(LONGEST_REST)
            }
            Err(error) => {
                kernel = None;
                let again = queue.failed(now);
                tracing::warn!(
                    error,
                    ?again,
                    "flows cannot be looked at: what is established stays so until then"
                );
                again
            }
        };
        tokio::time::sleep(rest).await;
    }
    // The loop is gone, and with it soon the agent.
    std::future::pending().await
}

/// What is to be done, with what could not be done yet.
struct Queue {
    work: mpsc::UnboundedReceiver<Work>,
    left: Work,
    /// How long to wait after the next failure.
    again: Duration,
}

impl Queue {
    fn new(work: mpsc::UnboundedReceiver<Work>) -> Self {
        Self {
            work,
            left: Work::default(),
            again: AGAIN.0,
        }
    }

    /// All there is to do, as soon as there is something; `None` when nothing can come any more.
    async fn next(&mut self) -> Option<Work> {
        let mut now = std::mem::take(&mut self.left);
        if now.is_empty() {
            now = self.work.recv().await?;
        }
        while let Ok(more) = self.work.try_recv() {
            now.merge(more);
        }
        // Reading all flows takes milliseconds of a processor, and pods often go in crowds.
        let until = tokio::time::Instant::now() + LINGER;
        while now.changed.is_empty()
            && now.forwarded < Forwarded::Changed
            && let Ok(Some(more)) = tokio::time::timeout_at(until, self.work.recv()).await
        {
            now.merge(more);
        }
        (!self.work.is_closed()).then_some(now)
    }

    fn done(&mut self) {
        self.again = AGAIN.0;
    }

    /// Keeps what could not be done. Answers how long to wait before it is tried again, with what comes until then.
    fn failed(&mut self, work: Work) -> Duration {
        self.left = work;
        let again = self.again;
        self.again = (again * 2).min(AGAIN.1);
        again
    }
}

/// Looks at the flows once: how many forbidden ones and how many of pods that are gone were cut.
async fn pass(
    kernel: &mut Option<Conntrack>,
    work: &Work,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<(usize, usize), String> {
    let addresses = || work.changed.union(&work.gone).copied().collect();
    let filter = FlowFilter {
        addresses: (work.forwarded < Forwarded::Changed).then(addresses),
        ..FlowFilter::default()
    };
    let flows = aside(kernel, move |kernel| kernel.list(&filter)).await?;
    let of_gone = FlowFilter {
        addresses: Some(work.gone.clone()),
        ..FlowFilter::default()
    };
    let (gone, live): (Vec<Flow>, Vec<Flow>) = flows
        .into_iter()
        .filter(|flow| flow.zone == 0)
        .partition(|flow| of_gone.picks(flow));
    let gone_flows = gone.len();
    let devices = match work.forwarded {
        Forwarded::Unjudged => Devices::default(),
        Forwarded::Judged | Forwarded::Changed => devices(&live).await?,
    };
    let devices = Arc::new(devices);
    let (mut forbidden, mut forgotten) = (Vec::new(), gone);
    for some in live.chunks(AT_ONCE) {
        let (reply, judged) = oneshot::channel();
        let _ = events.send(Event::Flows(some.to_vec(), devices.clone(), reply));
        let judged = judged.await.map_err(|_| "the dataplane loop has ended".to_string())?;
        forbidden.extend(judged.forbidden);
        forgotten.extend(judged.pardoned);
    }
    if forbidden.is_empty() && forgotten.is_empty() {
        return Ok((0, 0));
    }
    aside(kernel, move |kernel| {
        let ended = kernel.end(&forbidden)?;
        let deleted = kernel.delete(&forgotten)?;
        Ok((ended, deleted.min(gone_flows)))
    })
    .await
}

/// By which devices both ends of flows are reached, as the routes are now.
async fn devices(flows: &[Flow]) -> Result<Devices, String> {
    let ends = flows.iter().flat_map(|flow| [flow.original.source, flow.reply.source]);
    let ends: BTreeSet<IpAddr> = ends.collect();
    let look_up = move || {
        let mut socket = Socket::open().map_err(|error| error.to_string())?;
        let mut devices = Devices::new();
        for end in ends {
            let device = lookup::device_to(&mut socket, end).map_err(|error| error.to_string())?;
            devices.extend(device.map(|device| (end, device)));
        }
        Ok(devices)
    };
    tokio::task::spawn_blocking(look_up)
        .await
        .map_err(|error| error.to_string())?
}

/// Asks the kernel on a thread that may block.
async fn aside<T: Send + 'static>(
    kernel: &mut Option<Conntrack>,
    ask: impl FnOnce(&mut Conntrack) -> Result<T, linux::request::Failure> + Send + 'static,
) -> Result<T, String> {
    let opened = kernel.take();
    let done = tokio::task::spawn_blocking(move || {
        let mut opened = match opened {
            Some(opened) => opened,
            None => Conntrack::open().map_err(|error| error.to_string())?,
        };
        let answer = ask(&mut opened).map_err(|error| error.to_string())?;
        Ok::<_, String>((opened, answer))
    });
    let (opened, answer) = done.await.map_err(|error| error.to_string())??;
    *kernel = Some(opened);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_could_not_be_looked_at_is_looked_at_again_with_what_came_since() {
        let of = |changed: &[u8], gone: &[u8]| Work {
            changed: changed.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect(),
            gone: gone.iter().map(|last| IpAddr::from([10, 0, 1, *last])).collect(),
            ..Work::default()
        };
        let (tell, work) = mpsc::unbounded_channel();
        let mut queue = Queue::new(work);
        tell.send(of(&[1], &[1])).unwrap();
        let now = queue.next().await.unwrap();
        assert_eq!(now, of(&[1], &[1]));
        assert_eq!(queue.failed(now), AGAIN.0);
        tell.send(of(&[2], &[2])).unwrap();
        for _ in 0..20 {
            let now = queue.next().await.unwrap();
            assert_eq!(now, of(&[1, 2], &[1, 2]));
            assert!(queue.failed(now) <= AGAIN.1);
        }
        let now = queue.next().await.unwrap();
        assert_eq!(queue.failed(now), AGAIN.1);
        queue.next().await.unwrap();
        queue.done();
        tell.send(of(&[3], &[])).unwrap();
        let now = queue.next().await.unwrap();
        assert_eq!(now, of(&[3], &[]));
        assert_eq!(queue.failed(now), AGAIN.0, "after a success it begins anew");
        drop(tell);
        assert_eq!(queue.next().await, None);
    }
}
