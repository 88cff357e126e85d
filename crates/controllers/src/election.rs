//! Who leads, by a record that all can read and that is written by compare-and-swap: decisions only, in virtual time.
//!
//! The record says who leads and for how long at most after its last change. No clock of another process is believed: whoever
//! waits counts, by its own clock, from when it saw the record change last. Whoever leads counts from when it *sent* its last
//! renewal, which is before anybody can have seen it, and stops a good while before the others may begin. So two never lead at
//! once, as long as no two clocks run at rates that differ by more than `lease / term`.
//!
//! A leader's writes end with its term ([`Elector::left`]): what is not answered by then is given up, so that nothing is sent
//! later. What was sent before has the time from there to the end of the lease, by a clock that runs true `lease - term`, to
//! arrive.
//!
//! A shell asks [`Elector::poll`] what to ask the server, and hands every answer to [`Elector::answer`]; times are those since
//! any moment in this process, and never go back.

use std::time::Duration;

use jiff::Timestamp;

/// What everybody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty: nobody.
    pub holder: String,
    /// How long after the last change it may.
    pub duration: Duration,
    /// When it began, by its wall clock. For people.
    pub acquired: Option<Timestamp>,
    /// When it renewed last, by its wall clock. For people.
    pub renewed: Option<Timestamp>,
    /// How often the leader has changed.
    pub transitions: u64,
}

/// Which state of the record it is; another one after every write.
pub type Version = String;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the record's last change. Whole seconds.
    pub lease: Duration,
    /// How long after sending a renewal this process leads, and its writes may take. Less than `lease`: the rest is for clocks
    /// that run at different rates, and for what was sent and has not arrived.
    pub term: Duration,
    /// How often the record is renewed, or looked at.
    pub retry: Duration,
}

impl Default for Timing {
    /// As Kubernetes' own controllers have them.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            term: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What to ask the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What the record is now. Not from a cache.
    Read,
    /// To write it.
    Write {
        /// The record.
        record: Record,
        /// Only if it is this one still; `None`: only if there is none.
        replaces: Option<Version>,
    },
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The record, if there is one.
    Read(Option<(Record, Version)>),
    /// Written; it has this version now.
    Written(Version),
    /// Not written: it is another one, or there is one, or none.
    Refused,
    /// No answer, or none that says whether it was done.
    Lost,
}

/// What is known well enough to write over it.
#[derive(Clone, Debug)]
struct Known {
    record: Option<Record>,
    version: Option<Version>,
}

/// One process that wants to lead.
#[derive(Clone, Debug)]
pub struct Elector {
    me: String,
    timing: Timing,
    known: Option<Known>,
    /// The version that was seen last, and until when somebody else may lead because of what was seen.
    seen: Option<Version>,
    promised: Option<Duration>,
    /// Until when this process leads.
    term: Option<Duration>,
    /// What was asked, and when.
    asked: Option<(Duration, Ask)>,
    due: Duration,
    leaving: bool,
}

impl Elector {
    /// `me` must be another text in each process, also when one is started again.
    pub fn new(me: impl Into<String>, timing: Timing) -> Self {
        Self {
            me: me.into(),
            timing,
            known: None,
            seen: None,
            promised: None,
            term: None,
            asked: None,
            due: Duration::ZERO,
            leaving: false,
        }
    }

    /// What to ask now, if anything; an answer must follow. `wall` is for people.
    pub fn poll(&mut self, now: Duration, wall: Timestamp) -> Option<Ask> {
        if self.asked.is_some() || now < self.due {
            return None;
        }
        let ask = match &self.known {
            Some(known) if self.leaving && !self.is_mine(known) => return None,
            Some(known) if self.may_write(now, known) => Ask::Write {
                record: self.next(known, wall),
                replaces: known.version.clone(),
            },
            _ => Ask::Read,
        };
        self.asked = Some((now, ask.clone()));
        Some(ask)
    }

    /// Takes the answer to what was asked.
    pub fn answer(&mut self, now: Duration, answer: Answer) {
        let Some((sent, ask)) = self.asked.take() else { return };
        match (ask, answer) {
            (Ask::Read, Answer::Read(found)) => self.read(now, found),
            (Ask::Write { record, .. }, Answer::Written(version)) => {
                self.term = Some(sent + self.timing.term).filter(|_| !self.leaving);
                self.seen = Some(version.clone());
                self.promised = None;
                self.known = Some(Known {
                    record: Some(record),
                    version: Some(version),
                });
                self.due = sent + self.timing.retry;
            }
            (Ask::Write { .. }, Answer::Refused) => {
                // Somebody else has written, and may lead by it.
                self.term = None;
                self.known = None;
                self.due = sent + self.timing.retry;
            }
            // It may have been done or not: only the server knows.
            _ => {
                self.known = None;
                self.due = sent + self.timing.retry;
            }
        }
    }

    fn read(&mut self, now: Duration, found: Option<(Record, Version)>) {
        if let Some((record, version)) = &found
            && self.seen.as_ref() != Some(version)
        {
            self.seen = Some(version.clone());
            let other = !record.holder.is_empty() && record.holder != self.me;
            // One that promises nothing is taken at our own measure.
            let duration = Some(record.duration).filter(|duration| !duration.is_zero());
            self.promised = other.then(|| now + duration.unwrap_or(self.timing.lease));
        }
        // A record that somebody has deleted says nothing: what it promised when it was seen last still holds.
        let (record, version) = found.unzip();
        let known = Known { record, version };
        let wait = match self.may_write(now, &known) {
            true => Duration::ZERO,
            false => self.timing.retry,
        };
        let expiry = self.promised.filter(|_| wait > Duration::ZERO);
        self.due = expiry.map_or(now + wait, |expiry| expiry.min(now + wait));
        self.known = Some(known);
    }

    fn is_mine(&self, known: &Known) -> bool {
        known.record.as_ref().is_some_and(|record| record.holder == self.me)
    }

    fn may_write(&self, now: Duration, known: &Known) -> bool {
        self.is_mine(known) || self.promised.is_none_or(|until| now >= until)
    }

    fn next(&self, known: &Known, wall: Timestamp) -> Record {
        let before = known.record.as_ref();
        let mine = before.filter(|record| record.holder == self.me);
        let transitions = before.map_or(0, |record| record.transitions + u64::from(mine.is_none()));
        if self.leaving {
            return Record {
                holder: String::new(),
                duration: Duration::from_secs(1),
                acquired: mine.and_then(|record| record.acquired),
                renewed: Some(wall),
                transitions,
            };
        }
        Record {
            holder: self.me.clone(),
            duration: self.timing.lease,
            acquired: mine.and_then(|record| record.acquired).or(Some(wall)),
            renewed: Some(wall),
            transitions,
        }
    }

    /// Whether this process leads.
    pub fn holds(&self, now: Duration) -> bool {
        self.left(now).is_some()
    }

    /// How long this process still leads unless it can renew; `None`: it does not. Nothing that it sends may be sent later.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        self.term.filter(|end| now < *end).map(|end| end - now)
    }

    /// When [`Self::poll`] has something to ask next, unless an answer is awaited.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Who else leads, as far as is known.
    pub fn other(&self) -> Option<&str> {
        let holder = self.known.as_ref()?.record.as_ref()?.holder.as_str();
        Some(holder).filter(|holder| !holder.is_empty() && *holder != self.me)
    }

    /// Leads no more and never again. What [`Self::poll`] asks from now on gives the record back, if it is ours; it has said
    /// all when it says nothing. Not to be called before the last write of this leader is through.
    pub fn leave(&mut self, now: Duration) {
        self.leaving = true;
        self.term = None;
        self.due = now;
        if self.asked.take().is_some() {
            self.known = None;
        }
    }
}

#[cfg(test)]
mod tests;
