//! Requests of traffic control that shapers need: `tbf` as a device's root, and a redirection of what a device receives.
//!
//! Layouts: `linux/pkt_sched.h`, `linux/pkt_cls.h`, `linux/tc_act/tc_mirred.h`.

use kernel::{KernelError, Peak, QueueCounters, Shaper};

use super::wire::{Message, attribute, u32_at};
use super::{
    CLSACT_INGRESS, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, RTM_DELQDISC, RTM_DELTFILTER, RTM_GETQDISC,
    RTM_GETTFILTER, RTM_NEWQDISC, RTM_NEWTFILTER, Rtnl, accept, done, lacks,
};

const ROOT: u32 = 0xffff_ffff;
/// Ours among root disciplines: the kernel gives numbers from 0x8000 on, people small ones.
const HANDLE: u32 = 0x4d61_0000;
/// Place of our redirection among a device's filters, and `ETH_P_ALL`.
const PRIORITY: u32 = 0x4d61;
const ALL: u16 = 3;

const TCA_STATS2: u16 = 7;
const STATS_BASIC: u16 = 1;
const STATS_QUEUE: u16 = 3;

const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_PRATE64: u16 = 5;
const TBF_BURST: u16 = 6;
const TBF_PBURST: u16 = 7;
/// Nanoseconds of one of the kernel's ticks.
const TICK: u64 = 64;
/// `TC_LINKLAYER_ETHERNET`: rates need no table.
const ETHERNET: u8 = 1;

const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;
const EGRESS_REDIR: u32 = 1;
const STOLEN: u32 = 4;

/// A device's root queueing discipline.
#[derive(Clone, Debug)]
pub struct Qdisc {
    /// Its device.
    pub index: u32,
    /// How packets wait there, if it is one of our shapers.
    pub shaper: Option<Shaper>,
    /// Somebody's, and not ours. (The kernel's own has no number.)
    pub foreign: bool,
    /// What it has seen.
    pub counters: QueueCounters,
}

impl Rtnl {
    /// The root disciplines of all devices.
    pub fn root_qdiscs(&mut self) -> Result<Vec<Qdisc>, KernelError> {
        let message = Message::traffic(RTM_GETQDISC, NLM_F_DUMP, 0, 0, 0, 0);
        let replies = done(self.call(message, "list queueing disciplines")?)?;
        Ok(replies.iter().filter_map(|reply| parse_qdisc(reply)).collect())
    }

    /// Makes a shaper the root of a device, or changes the one that is there; what waits in it stays.
    pub fn put_tbf(&mut self, index: u32, shaper: &Shaper) -> Result<(), KernelError> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        let mut message = Message::traffic(RTM_NEWQDISC, flags, index, HANDLE, ROOT, 0);
        message.text(libc::TCA_KIND, "tbf");
        message.nest(libc::TCA_OPTIONS, |options| {
            let peak = shaper.peak;
            let mut parms = Vec::with_capacity(36);
            parms.extend(ratespec(shaper.rate));
            parms.extend(peak.map_or([0; 12], |peak| ratespec(peak.rate)));
            parms.extend(shaper.queue.to_ne_bytes());
            // Buckets are given in bytes, below; as times they might not fit.
            parms.extend([0; 8]);
            options.bytes(TBF_PARMS, &parms);
            options.bytes(TBF_RATE64, &shaper.rate.to_ne_bytes());
            options.u32(TBF_BURST, shaper.burst);
            if let Some(peak) = peak {
                options.bytes(TBF_PRATE64, &peak.rate.to_ne_bytes());
                options.u32(TBF_PBURST, peak.burst);
            }
        });
        let answer = self.call(message, "add the queueing discipline tbf")?;
        answer
            .map(drop)
            .map_err(|refusal| lacks(refusal, "the queueing discipline tbf"))
    }

    /// Gives a device the kernel's own root discipline back. Ask [`Rtnl::root_qdiscs`] first whose it is.
    pub fn delete_root(&mut self, index: u32) -> Result<(), KernelError> {
        let message = Message::traffic(RTM_DELQDISC, NLM_F_ACK, index, HANDLE, ROOT, 0);
        let answer = self.call(message, "remove the queueing discipline tbf")?;
        accept(answer.map(drop), &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }

    /// The number of the device to which everything goes that this one receives, by our filter.
    pub fn redirection(&mut self, index: u32) -> Result<Option<u32>, KernelError> {
        let message = Message::traffic(RTM_GETTFILTER, NLM_F_DUMP, index, 0, CLSACT_INGRESS, filter_info());
        // Without `clsact` there are no filters.
        let Ok(replies) = self.call(message, "list filters")? else {
            return Ok(None);
        };
        Ok(replies.iter().find_map(|reply| parse_redirection(reply)))
    }

    /// Sends what a device receives to another one first, which gives it back when it has waited.
    pub fn put_redirection(&mut self, index: u32, to: u32) -> Result<(), KernelError> {
        let flags = NLM_F_CREATE | NLM_F_ACK;
        let mut message = Message::traffic(RTM_NEWTFILTER, flags, index, 0, CLSACT_INGRESS, filter_info());
        message.text(libc::TCA_KIND, "u32");
        message.nest(libc::TCA_OPTIONS, |options| {
            // One key that every packet has: no bit of the first word has to be anything.
            const TERMINAL: u8 = 1;
            let mut selector = vec![TERMINAL, 0, 1, 0];
            selector.extend([0; 12]);
            selector.extend([0; 16]);
            options.bytes(U32_SEL, &selector);
            options.nest(U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.text(ACT_KIND, "mirred");
                    action.nest(ACT_OPTIONS, |mirred| {
                        let words: Vec<u8> = [0, 0, STOLEN, 0, 0, EGRESS_REDIR, to]
                            .into_iter()
                            .flat_map(u32::to_ne_bytes)
                            .collect();
                        mirred.bytes(MIRRED_PARMS, &words);
                    });
                });
            });
        });
        let answer = self.call(message, "redirect what a pod sends")?;
        answer
            .map(drop)
            .map_err(|refusal| lacks(refusal, "redirecting packets (cls_u32, act_mirred)"))
    }

    /// Takes our redirection away; absence is fine.
    pub fn delete_redirection(&mut self, index: u32) -> Result<(), KernelError> {
        let message = Message::traffic(RTM_DELTFILTER, NLM_F_ACK, index, 0, CLSACT_INGRESS, filter_info());
        let answer = self.call(message, "stop redirecting what a pod sends")?;
        accept(answer.map(drop), &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }
}

/// Of a notification about a discipline: its device, and the shaper, if it is one of ours.
pub fn own_shaper(payload: &[u8]) -> Option<(u32, Shaper)> {
    let root = parse_qdisc(payload)?;
    Some((root.index, root.shaper?))
}

fn filter_info() -> u32 {
    PRIORITY << 16 | u32::from(ALL.to_be())
}

/// `struct tc_ratespec`; a rate beyond 32 bits is in an attribute of its own.
fn ratespec(rate: u64) -> [u8; 12] {
    let mut spec = [0; 12];
    spec[1] = ETHERNET;
    spec[8..].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    spec
}

fn parse_qdisc(reply: &[u8]) -> Option<Qdisc> {
    let (index, handle, parent) = (u32_at(reply, 4)?, u32_at(reply, 8)?, u32_at(reply, 12)?);
    if parent != ROOT {
        return None;
    }
    let attributes = reply.get(20..)?;
    let is_tbf = attribute(attributes, libc::TCA_KIND)?.starts_with(b"tbf\0");
    let ours = is_tbf && handle == HANDLE;
    Some(Qdisc {
        index,
        shaper: ours
            .then(|| parse_tbf(attribute(attributes, libc::TCA_OPTIONS)?))
            .flatten(),
        foreign: handle != 0 && !ours,
        counters: attribute(attributes, TCA_STATS2)
            .and_then(parse_counters)
            .unwrap_or_default(),
    })
}

fn parse_tbf(options: &[u8]) -> Option<Shaper> {
    let parms = attribute(options, TBF_PARMS)?;
    let word = |at: usize| u32_at(parms, at);
    let long = |kind: u16| Some(u64::from_ne_bytes(attribute(options, kind)?.try_into().ok()?));
    let rate = long(TBF_RATE64).unwrap_or(word(8)?.into());
    let peak = long(TBF_PRATE64).unwrap_or(word(20)?.into());
    let bytes = |ticks: u32, rate: u64| {
        let told = u128::from(ticks) * u128::from(TICK) * u128::from(rate) / 1_000_000_000;
        Shaper::nearest_burst(rate, u64::try_from(told).unwrap_or(u64::MAX))
    };
    let peak_ticks = word(32)?;
    Some(Shaper {
        rate,
        burst: bytes(word(28)?, rate),
        peak: (peak != 0).then(|| Peak {
            rate: peak,
            burst: bytes(peak_ticks, peak),
        }),
        queue: word(24)?,
    })
}

fn parse_counters(stats: &[u8]) -> Option<QueueCounters> {
    let basic = attribute(stats, STATS_BASIC)?;
    let queue = attribute(stats, STATS_QUEUE)?;
    Some(QueueCounters {
        bytes: u64::from_ne_bytes(basic.get(..8)?.try_into().ok()?),
        packets: u32_at(basic, 8)?.into(),
        dropped: u32_at(queue, 8)?.into(),
        waiting: u32_at(queue, 4)?.into(),
    })
}

fn parse_redirection(reply: &[u8]) -> Option<u32> {
    let info = u32_at(reply, 16)?;
    if info >> 16 != PRIORITY {
        return None;
    }
    let actions = attribute(attribute(reply.get(20..)?, libc::TCA_OPTIONS)?, U32_ACT)?;
    let action = attribute(actions, 1)?;
    if !attribute(action, ACT_KIND)?.starts_with(b"mirred\0") {
        return None;
    }
    let parms = attribute(attribute(action, ACT_OPTIONS)?, MIRRED_PARMS)?;
    let redirects = u32_at(parms, 20)? == EGRESS_REDIR;
    redirects.then(|| u32_at(parms, 24)).flatten()
}
